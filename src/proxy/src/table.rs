//! The decision: which frontends there are and which endpoints they have.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use client::SERVICE_NAME;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::ResourceExt;
use netns::{Backend, Cidr, Frontend, Protocol};

use crate::topology::Candidates;

/// Whoever sets this wants to serve the Service with a proxy of their own.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Whoever sets this wants nobody to serve the Service's addresses.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The older way to say who may use a load balancer.
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// This node, as services see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub node: String,
    /// Its addresses in its own network, where node ports are.
    pub addresses: Vec<IpAddr>,
    /// Where it stands, by its label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
}

/// The slices of each Service, by namespace and name.
pub(crate) struct Slices<'a>(HashMap<(&'a str, &'a str), Vec<&'a Arc<EndpointSlice>>>);

impl<'a> Slices<'a> {
    pub fn new(slices: &'a [Arc<EndpointSlice>]) -> Self {
        let mut own: HashMap<_, Vec<&Arc<EndpointSlice>>> = HashMap::with_capacity(slices.len());
        for slice in slices {
            let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
            if let Some(name) = name {
                let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
                own.entry((namespace, name.as_str())).or_default().push(slice);
            }
        }
        Self(own)
    }

    pub fn of<'s>(&'s self, service: &'s Service) -> &'s [&'a Arc<EndpointSlice>] {
        self.0.get(&key(service)).map_or(&[], Vec::as_slice)
    }
}

fn key(service: &Service) -> (&str, &str) {
    let metadata = &service.metadata;
    (
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

/// Whether this proxy is the one to serve the Service.
pub(crate) fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let kind = spec.and_then(|spec| spec.type_.as_deref());
    let labels = service.labels();
    let foreign = labels.contains_key(PROXY_NAME) || labels.contains_key(HEADLESS);
    kind != Some("ExternalName") && !foreign
}

/// What one Service contributes. `balanced` is the address of the load balancer that this program is.
pub(crate) fn entries(
    service: &Service,
    slices: &[&Arc<EndpointSlice>],
    place: &Place,
    balanced: Option<IpAddr>,
) -> Vec<(Frontend, Backend)> {
    // Each family is a network of its own: what one has does not count for the other.
    let families = ["IPv4", "IPv6"].into_iter().flat_map(|family| {
        let own: Vec<_> = slices.iter().copied().filter(|s| s.address_type == family).collect();
        let all = entries_of(service, &own, place, balanced).into_iter();
        all.filter(move |(frontend, _)| frontend.address.is_ipv4() == (family == "IPv4"))
    });
    families.collect()
}

fn entries_of(
    service: &Service,
    slices: &[&Arc<EndpointSlice>],
    place: &Place,
    balanced: Option<IpAddr>,
) -> Vec<(Frontend, Backend)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let mut all = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = protocol(port.protocol.as_deref()) else { continue };
        let backend = |local| {
            let endpoints = |local| endpoints(slices, port, place, local);
            let own = endpoints(local);
            // Refused is only what nobody serves anywhere.
            let elsewhere = local && own.is_empty() && !endpoints(false).is_empty();
            let affinity_s = affinity(spec);
            Backend { endpoints: own, elsewhere, affinity_s, ..Backend::default() }
        };
        let internal = backend(spec.internal_traffic_policy.as_deref() == Some("Local"));
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        let mut external = backend(local);
        // The policy is about where traffic enters the cluster; that of pods is in it already.
        external.for_pods = local
            .then(|| endpoints(slices, port, place, false))
            .filter(|all| *all != external.endpoints);
        let mut insert = |address, port, backend: &Backend| {
            all.push((Frontend { address, protocol, port }, backend.clone()));
        };
        if let Ok(number) = u16::try_from(port.port) {
            for address in cluster_ips(spec) {
                insert(address, number, &internal);
            }
            let external_ips = spec.external_ips.iter().flatten();
            for address in external_ips.filter_map(|text| text.parse().ok()) {
                insert(address, number, &external);
            }
            let guarded = |allowed| Backend { allowed, ..external.clone() };
            for address in virtual_ips(service) {
                insert(address, number, &guarded(ranges_of(spec, address)));
            }
            if let Some(address) = balanced {
                insert(address, number, &guarded(source_ranges(service, place)));
            }
        }
        if let Some(number) = node_port(port) {
            for address in &place.addresses {
                insert(*address, number, &external);
            }
        }
    }
    all
}

/// Who may use the load balancer that this program is; None is everybody. Over loopback come the host, and in the
/// node's network its own pods: they are the node, as ranges see it.
pub(crate) fn source_ranges(service: &Service, place: &Place) -> Option<Vec<Cidr>> {
    let mut ranges = named_ranges(service)?;
    if place.addresses.iter().any(|node| ranges.iter().any(|range| range.contains(*node))) {
        ranges.push(Cidr::containing(Ipv4Addr::LOCALHOST.into(), 8));
        ranges.push(Cidr::containing(Ipv6Addr::LOCALHOST.into(), 128));
    }
    Some(ranges)
}

/// The ranges that a Service names: the field counts before the annotation (`GetLoadBalancerSourceRanges` of
/// `k8s.io/cloud-provider/service/helpers`).
fn named_ranges(service: &Service) -> Option<Vec<Cidr>> {
    let spec = service.spec.as_ref().filter(|s| s.type_.as_deref() == Some("LoadBalancer"))?;
    let own = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty());
    if let Some(own) = own {
        return Some(own.iter().filter_map(|text| range(text)).collect());
    }
    let noted = service.annotations().get(SOURCE_RANGES)?.trim();
    (!noted.is_empty()).then(|| noted.split(',').filter_map(range).collect())
}

/// Who may use an address of somebody else's load balancer: by the field alone, and nobody is kept away where
/// it has no range of the address' family (`pkg/proxy/serviceport.go`).
fn ranges_of(spec: &ServiceSpec, address: IpAddr) -> Option<Vec<Cidr>> {
    let all = spec.load_balancer_source_ranges.iter().flatten().filter_map(|text| range(text));
    let own: Vec<_> = all.filter(|cidr| cidr.address().is_ipv4() == address.is_ipv4()).collect();
    (!own.is_empty()).then_some(own)
}

/// A range, read as generously as upstream does: with bits beyond the prefix.
fn range(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.trim().split_once('/')?;
    let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
    let most = if address.is_ipv4() { 32 } else { 128 };
    (prefix <= most).then(|| Cidr::containing(address, prefix))
}

/// Addresses that somebody else's load balancer has given the Service: what is sent to them from within
/// the cluster need not go there. Not those of a load balancer that wants to see everything.
fn virtual_ips(service: &Service) -> Vec<IpAddr> {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let all = status.into_iter().flat_map(|status| status.ingress.iter().flatten());
    let own = all.filter(|ingress| {
        kind == Some("LoadBalancer") && ingress.ip_mode.as_deref() != Some("Proxy")
    });
    own.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect()
}

/// Within the pods' network a host port is at the node's address and, for the node itself and pods in
/// its network, on loopback; or where the pod wants it of these.
pub(crate) fn host_ports(pod: &Pod, place: &Place) -> Vec<(Frontend, Backend)> {
    let mut all = Vec::new();
    for port in HostPort::of(pod, place) {
        if place.addresses.contains(&port.target.ip()) {
            // A pod in the node's network listens there itself.
            continue;
        }
        for address in place.addresses.iter().copied().chain([Ipv4Addr::LOCALHOST.into()]) {
            let asked = port.host_ip.is_none_or(|ip| ip == address);
            if asked && address.is_ipv4() == port.target.is_ipv4() {
                let (protocol, port_number) = (port.protocol, port.host_port);
                let frontend = Frontend { address, protocol, port: port_number };
                let backend = Backend { endpoints: vec![port.target], ..Backend::default() };
                all.push((frontend, backend));
            }
        }
    }
    all
}

/// A port of the host that a container asked for.
pub(crate) struct HostPort {
    /// None: every address.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub protocol: Protocol,
    pub target: SocketAddr,
}

impl HostPort {
    /// Those of a pod that runs on this node.
    pub fn of(pod: &Pod, place: &Place) -> Vec<Self> {
        let (Some(spec), Some(status)) = (&pod.spec, &pod.status) else { return Vec::new() };
        let here = spec.node_name.as_deref() == Some(&place.node)
            && status.phase.as_deref() == Some("Running");
        let address: Option<IpAddr> = status.pod_ip.as_ref().and_then(|ip| ip.parse().ok());
        let Some(address) = address.filter(|_| here) else { return Vec::new() };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let ports = containers.flat_map(|container| container.ports.iter().flatten());
        ports
            .filter_map(|port| {
                let number = |n: i32| u16::try_from(n).ok().filter(|n| *n != 0);
                Some(Self {
                    host_ip: port
                        .host_ip
                        .as_ref()
                        .and_then(|ip| ip.parse().ok())
                        .filter(|ip: &IpAddr| !ip.is_unspecified()),
                    host_port: number(port.host_port?)?,
                    protocol: protocol(port.protocol.as_deref())?,
                    target: SocketAddr::new(address, number(port.container_port)?),
                })
            })
            .collect()
    }
}

pub(crate) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

pub(crate) fn node_port(port: &ServicePort) -> Option<u16> {
    port.node_port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

/// The Service's own addresses. A headless one has `None` there, which is no address.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> BTreeSet<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|text| text.parse().ok()).collect()
}

fn affinity(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let seconds = config.and_then(|c| c.timeout_seconds).unwrap_or(10_800);
    u32::try_from(seconds).ok()
}

pub(crate) fn is_local(endpoint: &Endpoint, place: &Place) -> bool {
    endpoint.node_name.as_deref() == Some(&place.node)
}

/// The endpoints that get the traffic of a port. With `local` only this node's are looked at.
pub(crate) fn endpoints(
    slices: &[&Arc<EndpointSlice>],
    port: &ServicePort,
    place: &Place,
    local: bool,
) -> Vec<SocketAddr> {
    let wanted = port.name.as_deref().unwrap_or_default();
    let mut candidates = Candidates::new(place, local);
    for slice in slices {
        let target = slice
            .ports
            .iter()
            .flatten()
            .filter(|p| p.name.as_deref().unwrap_or_default() == wanted)
            .filter(|p| protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref()))
            .find_map(|p| p.port.and_then(|n| u16::try_from(n).ok()));
        let Some(target) = target else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            candidates.add(endpoint, target);
        }
    }
    candidates.chosen()
}

/// How many endpoints of a Service on this node are ready, whatever their ports.
pub(crate) fn local_endpoints(slices: &[&Arc<EndpointSlice>], place: &Place) -> usize {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        is_local(endpoint, place) && conditions.and_then(|c| c.ready).unwrap_or(true)
    });
    let addresses: BTreeSet<_> = ready.filter_map(|e| e.addresses.first()).collect();
    addresses.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::table;
    use netns::ServiceTable;
    use serde_json::{Value, json};

    fn place() -> Place {
        let addresses = vec!["10.42.0.1".parse().unwrap()];
        Place { node: "here".into(), addresses, zone: None }
    }

    fn service(spec: &Value) -> Vec<Arc<Service>> {
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"}]}
        });
        let fields = spec.as_object().cloned().unwrap_or_default();
        service["spec"].as_object_mut().unwrap().extend(fields);
        vec![Arc::new(serde_json::from_value(service).unwrap())]
    }

    fn slices(endpoints: &Value) -> Vec<Arc<EndpointSlice>> {
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints
        });
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }

    /// `10.43.0.9:80 > 10.42.0.2:8080,…` a line each.
    fn told(table: &ServiceTable) -> Vec<String> {
        table
            .services
            .iter()
            .map(|(frontend, backend)| {
                let endpoints: Vec<_> = backend.endpoints.iter().map(ToString::to_string).collect();
                let own = SocketAddr::new(frontend.address, frontend.port);
                let elsewhere = if backend.elsewhere { "elsewhere" } else { "" };
                let for_pods: Vec<_> =
                    backend.for_pods.iter().flatten().map(ToString::to_string).collect();
                let for_pods = match for_pods.as_slice() {
                    [] => String::new(),
                    _ => format!(" pods {}", for_pods.join(",")),
                };
                let affinity = backend.affinity_s.map_or(String::new(), |s| format!(" for {s} s"));
                format!("{own} > {}{elsewhere}{affinity}{for_pods}", endpoints.join(","))
            })
            .collect()
    }

    fn endpoint(address: &str, node: &str, conditions: &Value) -> Value {
        json!({"addresses": [address], "nodeName": node, "conditions": conditions})
    }

    #[test]
    fn ready_endpoints_are_used_and_serving_ones_as_a_last_resort() {
        let ready = endpoint("10.42.0.2", "here", &json!({"ready": true}));
        let unready = endpoint("10.42.0.3", "here", &json!({"ready": false}));
        let ending = json!({"ready": false, "serving": true, "terminating": true});
        let ending = endpoint("10.42.0.4", "here", &ending);
        let gone = json!({"ready": false, "serving": false, "terminating": true});
        let gone = endpoint("10.42.0.5", "here", &gone);
        let untold = json!({"ready": false, "terminating": true});
        let untold = endpoint("10.42.0.6", "here", &untold);
        let cases = [
            (json!([ready, unready, ending, gone]), "10.42.0.2:8080"),
            (json!([unready, ending, gone]), "10.42.0.4:8080"),
            (json!([unready, gone]), ""),
            (json!([unready, untold]), "10.42.0.6:8080"),
        ];
        for (endpoints, want) in cases {
            let table = table(&service(&Value::Null), &slices(&endpoints), &[], &place());
            let lines = [format!("10.42.0.1:30080 > {want}"), format!("10.43.0.9:80 > {want}")];
            assert_eq!(told(&table), lines);
        }
    }

    #[test]
    fn policies_choose_by_where_the_traffic_comes_from() {
        let near = endpoint("10.42.0.2", "here", &json!({"ready": true}));
        let far = endpoint("10.42.1.2", "there", &json!({"ready": true}));
        let (one, both) = ("10.42.0.2:8080", "10.42.0.2:8080,10.42.1.2:8080");
        let (other, lost) = ("10.42.1.2:8080", "elsewhere");
        let (all, far, none) = (json!([near, far]), json!([far]), json!([]));
        // What enters the cluster stays here; what pods begin is in it already.
        let (one_pods, lost_pods) = (format!("{one} pods {both}"), format!("{lost} pods {other}"));
        let (one_pods, lost_pods) = (one_pods.as_str(), lost_pods.as_str());
        let cases = [
            (json!({}), &all, both, both),
            (json!({"internalTrafficPolicy": "Local"}), &all, one, both),
            (json!({"externalTrafficPolicy": "Local"}), &all, both, one_pods),
            (json!({"internalTrafficPolicy": "Local"}), &far, lost, other),
            (json!({"externalTrafficPolicy": "Local"}), &far, other, lost_pods),
            (json!({"externalTrafficPolicy": "Local"}), &none, "", ""),
        ];
        for (spec, endpoints, internal, external) in cases {
            let mut spec = spec;
            spec["externalIPs"] = json!(["198.51.100.1"]);
            let table = table(&service(&spec), &slices(endpoints), &[], &place());
            let lines = [
                format!("10.42.0.1:30080 > {external}"),
                format!("10.43.0.9:80 > {internal}"),
                format!("198.51.100.1:80 > {external}"),
            ];
            assert_eq!(told(&table), lines, "{spec}");
        }
    }

    #[test]
    fn families_choose_their_endpoints_each_for_itself() {
        let ending = json!({"ready": false, "serving": true, "terminating": true});
        let mut six = (*slices(&json!([endpoint("fd00::2", "here", &ending)]))[0]).clone();
        six.address_type = "IPv6".into();
        six.metadata.name = Some("web-2".into());
        let four = slices(&json!([endpoint("10.42.0.2", "here", &json!({"ready": true}))]));
        let spec = json!({"clusterIPs": ["10.43.0.9", "fd43::9"],
            "ports": [{"name": "http", "port": 80}]});
        let slices = [Arc::clone(&four[0]), Arc::new(six)];
        let lines = ["10.43.0.9:80 > 10.42.0.2:8080", "[fd43::9]:80 > [fd00::2]:8080"];
        assert_eq!(told(&table(&service(&spec), &slices, &[], &place())), lines);
    }

    #[test]
    fn affinity_headless_and_foreign_services() {
        let near = json!([endpoint("10.42.0.2", "here", &json!({"ready": true}))]);
        let sticky = json!({"sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}, "ports": [
            {"name": "http", "port": 80}]});
        let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [
            {"name": "http", "port": 80}]});
        let external = json!({"type": "ExternalName", "externalName": "example.org"});
        let cases = [
            (sticky, vec!["10.43.0.9:80 > 10.42.0.2:8080 for 60 s"]),
            (headless, vec![]),
            (external, vec![]),
        ];
        for (spec, want) in cases {
            let table = table(&service(&spec), &slices(&near), &[], &place());
            assert_eq!(told(&table), want, "{spec}");
        }
        for label in [PROXY_NAME, HEADLESS] {
            let mut foreign = (*service(&Value::Null)[0]).clone();
            foreign.labels_mut().insert(label.into(), "other".into());
            let table = table(&[Arc::new(foreign)], &slices(&near), &[], &place());
            assert_eq!(told(&table).len(), 0, "{label}");
        }
    }

    #[test]
    fn load_balancers_are_for_those_who_may() {
        let near = json!([endpoint("10.42.0.2", "here", &json!({"ready": true}))]);
        let own: IpAddr = "127.64.0.1".parse().unwrap();
        let service = |field: &Value, note: Option<&str>| -> Service {
            let ip = json!([{"ip": "192.0.2.9", "ipMode": "VIP"}, {"ip": "192.0.2.8", "ipMode": "Proxy"}]);
            let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9",
                "loadBalancerSourceRanges": field, "externalIPs": ["198.51.100.1"],
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}]});
            let notes = note.map(|text| json!({SOURCE_RANGES: text}));
            let service = json!({"metadata": {"name": "web", "annotations": notes}, "spec": spec,
                "status": {"loadBalancer": {"ingress": ip}}});
            serde_json::from_value(service).unwrap()
        };
        let cases = [
            (
                json!(["10.0.0.1/8", " fd00::/8"]),
                None,
                "10.0.0.0/8 fd00::/8 127.0.0.0/8 ::1/128",
                "10.0.0.0/8",
            ),
            (json!(["fd00::/8"]), None, "fd00::/8", "all"),
            (
                json!([]),
                Some("192.0.2.0/24, 198.51.100.0/24"),
                "192.0.2.0/24 198.51.100.0/24",
                "all",
            ),
            (json!(["192.0.2.0/24"]), Some("10.0.0.0/8"), "192.0.2.0/24", "192.0.2.0/24"),
            (Value::Null, Some(" "), "all", "all"),
            (Value::Null, None, "all", "all"),
        ];
        for (field, note, ours, theirs) in cases {
            let slices = slices(&near);
            let slices: Vec<_> = slices.iter().collect();
            let all = entries(&service(&field, note), &slices, &place(), Some(own));
            let told: BTreeSet<String> = all
                .iter()
                .map(|(frontend, backend)| {
                    let ranges = backend.allowed.as_ref().map_or("all".into(), |ranges| {
                        ranges.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" ")
                    });
                    format!("{} {ranges}", frontend.address)
                })
                .collect();
            let want = ["10.42.0.1 all", "10.43.0.9 all", "198.51.100.1 all"].map(String::from);
            let mut want = BTreeSet::from(want);
            want.extend([format!("127.64.0.1 {ours}"), format!("192.0.2.9 {theirs}")]);
            assert_eq!(told, want, "{field} {note:?}");
        }
    }

    #[test]
    fn host_ports_are_at_the_nodes_address() {
        let pod = |phase: &str, node: &str| {
            let pod = json!({"metadata": {"name": "p", "namespace": "d"},
                "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [
                    {"containerPort": 80, "hostPort": 8080}, {"containerPort": 81}]}]},
                "status": {"phase": phase, "podIP": "10.42.0.2"}});
            vec![Arc::new(serde_json::from_value::<Pod>(pod).unwrap())]
        };
        let lines = |pods: &[Arc<Pod>]| told(&table(&[], &[], pods, &place()));
        assert_eq!(
            lines(&pod("Running", "here")),
            ["10.42.0.1:8080 > 10.42.0.2:80", "127.0.0.1:8080 > 10.42.0.2:80"]
        );
        assert!(lines(&pod("Succeeded", "here")).is_empty());
        assert!(lines(&pod("Running", "there")).is_empty());
    }

    /// Upstream's conformance: the same port with another address or protocol is no conflict.
    #[test]
    fn host_ports_share_a_number_at_different_addresses() {
        let pod = |name: &str, pod_ip: &str, host_ip: &str, protocol: &str| {
            let pod = json!({"metadata": {"name": name, "namespace": "d"},
                "spec": {"nodeName": "here", "containers": [{"name": "c", "ports": [
                    {"containerPort": 80, "hostPort": 8080, "hostIP": host_ip,
                     "protocol": protocol}]}]},
                "status": {"phase": "Running", "podIP": pod_ip}});
            Arc::new(serde_json::from_value::<Pod>(pod).unwrap())
        };
        let pods = [
            pod("one", "10.42.0.2", "127.0.0.1", "TCP"),
            pod("two", "10.42.0.3", "10.42.0.1", "TCP"),
            pod("three", "10.42.0.4", "10.42.0.1", "UDP"),
            pod("elsewhere", "10.42.0.5", "192.0.2.1", "TCP"),
        ];
        let lines = [
            "10.42.0.1:8080 > 10.42.0.3:80",
            "10.42.0.1:8080 > 10.42.0.4:80",
            "127.0.0.1:8080 > 10.42.0.2:80",
        ];
        assert_eq!(told(&table(&[], &[], &pods, &place())), lines);
        let all = [pod("all", "10.42.0.2", "0.0.0.0", "TCP")];
        assert_eq!(told(&table(&[], &[], &all, &place())).len(), 2);
    }
}
