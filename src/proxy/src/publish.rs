//! The way in: which ports of the host lead where, and what is told about it.
//!
//! Node ports and host ports are offered on the addresses that the cluster was started with, the
//! host's loopback by default. A load balancer gets a loopback address of its own, where its ports are
//! the Service's; where the host does not allow that, it is reached through its node ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use client::object_reference;
use k8s_openapi::api::core::v1::{
    LoadBalancerIngress, ObjectReference, Pod, PortStatus, Service, ServicePort,
};
use kube::ResourceExt;
use netns::{Frontend, LOOPBACK_SERVICES, Protocol, Publication, Refused, ServiceTable};

use crate::table::{HostPort, Place, cluster_ips, is_ours, node_port, protocol, source_ranges};

/// Why a port is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A Service's node port.
    NodePort,
    /// A container's host port.
    HostPort,
    /// A load balancer's port at its own address.
    LoadBalancer,
    /// A load balancer's port at the common address, since it has neither its own nor a node port.
    Substitute,
}

/// A port to publish, and for whom.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The Service or the Pod.
    pub object: ObjectReference,
    /// Why.
    pub purpose: Purpose,
    /// What.
    pub publication: Publication,
}

/// Where things are published.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub place: Place,
    /// Addresses of the host on which node ports and host ports are offered.
    pub addresses: Vec<IpAddr>,
}

/// Whether a Service wants a load balancer, and none of somebody else's.
pub(crate) fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    }) && is_ours(service)
        && service.metadata.deletion_timestamp.is_none()
}

/// Keeps a Service until its load balancer is gone (`k8s.io/cloud-provider/service/helpers`).
pub(crate) const CLEANUP: &str = "service.kubernetes.io/load-balancer-cleanup";

/// Whether a Service is kept until its load balancer is gone.
fn is_kept(service: &Service) -> bool {
    service.finalizers().iter().any(|finalizer| finalizer == CLEANUP)
}

/// Whether a Service is to be kept, where it is not, or to be let go, where it is.
pub(crate) fn keep(service: &Service) -> Option<bool> {
    let spec = service.spec.as_ref();
    let theirs = spec.is_some_and(|spec| spec.load_balancer_class.is_some());
    let wanted = is_balanced(service);
    (wanted != is_kept(service) && (wanted || !theirs)).then_some(wanted)
}

/// Whether a Service is of any concern here.
pub(crate) fn concerns(service: &Service) -> bool {
    was_balanced(service) || is_kept(service) || is_ours(service) && is_published(service)
}

/// Whether a Service has ports on the host.
fn is_published(service: &Service) -> bool {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    is_balanced(service) || ports.into_iter().flatten().any(|port| node_port(port).is_some())
}

/// Whether the status of a Service still tells of the load balancer that it was.
pub(crate) fn was_balanced(service: &Service) -> bool {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let told = status.and_then(|status| status.ingress.as_ref());
    kind != Some("LoadBalancer") && told.is_some_and(|ingress| !ingress.is_empty())
}

/// Everything that is to be published. `substituted` are the uids of load balancers that could not
/// have their own address.
pub fn wanted(
    services: &[Arc<Service>],
    pods: &[Arc<Pod>],
    table: &ServiceTable,
    settings: &Settings,
    substituted: &BTreeSet<String>,
) -> Vec<Entry> {
    let mut entries = Vec::new();
    let addresses = own_addresses(services, &settings.place);
    for service in ordered(services) {
        let Some(spec) = &service.spec else { continue };
        let keeps_client = spec.external_traffic_policy.as_deref() == Some("Local");
        let mut add = |purpose, host, port: &ServicePort, target: SocketAddr| {
            let Some(protocol) = protocol(port.protocol.as_deref()) else { return };
            let frontend = Frontend { address: target.ip(), protocol, port: target.port() };
            let backend = table.services.get(&frontend);
            let served = backend.is_some_and(|backend| !backend.endpoints.is_empty());
            let balanced = matches!(purpose, Purpose::LoadBalancer | Purpose::Substitute);
            let allowed = balanced.then(|| source_ranges(service, &settings.place)).flatten();
            let publication = Publication { host, protocol, target, served, allowed, keeps_client };
            entries.push(Entry { object: object_reference(&**service), purpose, publication });
        };
        let own = service.uid().and_then(|uid| addresses.get(&uid).copied());
        for port in spec.ports.iter().flatten() {
            if let Some(number) = node_port(port) {
                for (host, node) in pairs(settings) {
                    let purpose = Purpose::NodePort;
                    add(purpose, (host, number).into(), port, (node, number).into());
                }
            }
            let Some(own) = own else { continue };
            let Some(target) = balanced_target(service, port, &settings.place) else { continue };
            let Ok(number) = u16::try_from(port.port) else { continue };
            add(Purpose::LoadBalancer, (own, number).into(), port, target);
            let substitute = substituted.contains(&service.uid().unwrap_or_default());
            if substitute && node_port(port).is_none() {
                for (host, _) in pairs(settings) {
                    let host = SocketAddr::new(host, substitute_port(number));
                    add(Purpose::Substitute, host, port, target);
                }
            }
        }
    }
    entries.extend(pods.iter().flat_map(|pod| host_ports(pod, settings)));
    entries
}

/// The Services that have ports on the host, the oldest first: what two want, that one has.
fn ordered(services: &[Arc<Service>]) -> Vec<&Arc<Service>> {
    let concerned = services.iter().filter(|service| is_ours(service) && is_published(service));
    let mut ordered: Vec<&Arc<Service>> = concerned.collect();
    ordered.sort_by_key(|service| (service.creation_timestamp(), service.uid()));
    ordered
}

/// The address of each load balancer, by the Service's uid.
pub(crate) fn own_addresses(services: &[Arc<Service>], place: &Place) -> BTreeMap<String, IpAddr> {
    let mut taken = BTreeSet::new();
    let balanced = ordered(services).into_iter().filter(|service| is_balanced(service));
    let addresses = balanced
        .filter_map(|service| Some((service.uid()?, own_address(service, place, &mut taken))));
    addresses.collect()
}

/// Each address of the host with the node's address of the same family, or the first.
fn pairs(settings: &Settings) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    settings.addresses.iter().filter_map(|host| {
        let nodes = &settings.place.addresses;
        let same = nodes.iter().find(|node| node.is_ipv4() == host.is_ipv4());
        Some((*host, *same.or(nodes.first())?))
    })
}

fn balanced_target(service: &Service, port: &ServicePort, place: &Place) -> Option<SocketAddr> {
    if let Some(number) = node_port(port) {
        return Some(SocketAddr::new(*place.addresses.first()?, number));
    }
    let address = cluster_ips(service.spec.as_ref()?).into_iter().next()?;
    Some(SocketAddr::new(address, u16::try_from(port.port).ok()?))
}

/// The loopback address of a load balancer: asked for, or made from its name, so that it is the same
/// after a restart, and another in another cluster.
fn own_address(service: &Service, place: &Place, taken: &mut BTreeSet<IpAddr>) -> IpAddr {
    let asked = service.spec.as_ref().and_then(|spec| spec.load_balancer_ip.as_ref());
    let asked: Option<IpAddr> = asked.and_then(|text| text.parse().ok());
    if let Some(address) = asked.filter(IpAddr::is_loopback) {
        return address;
    }
    let namespace = service.namespace().unwrap_or_default();
    let name = format!("{}/{namespace}/{}", place.node, service.name_any());
    let mut number = fnv(name.as_bytes());
    loop {
        let [a, b, c, _] = number.to_be_bytes();
        let own = Ipv4Addr::new(0, a >> 2, b, c.clamp(1, 254));
        let address = IpAddr::from(LOOPBACK_SERVICES | own);
        if taken.insert(address) {
            return address;
        }
        number = number.wrapping_add(0x0100_0100);
    }
}

/// FNV-1a of 32 bits: the same in every version of the program.
fn fnv(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

/// A port that needs no privilege.
fn substitute_port(port: u16) -> u16 {
    if port < 1024 { port + 8000 } else { port }
}

fn host_ports(pod: &Pod, settings: &Settings) -> Vec<Entry> {
    let mut entries = Vec::new();
    for port in HostPort::of(pod, &settings.place) {
        let hosts = match port.host_ip {
            // Within the pods' network, and nowhere else.
            Some(ip) if settings.place.addresses.contains(&ip) => Vec::new(),
            Some(ip) => vec![ip],
            None => settings.addresses.clone(),
        };
        entries.extend(hosts.into_iter().map(|host| Entry {
            object: object_reference(pod),
            purpose: Purpose::HostPort,
            publication: Publication {
                host: SocketAddr::new(host, port.host_port),
                protocol: port.protocol,
                target: port.target,
                served: true,
                allowed: None,
                // As with the CNI's plugin `portmap`.
                keeps_client: true,
            },
        }));
    }
    entries
}

/// Uids of the load balancers that could not have all ports at their own address.
pub fn without_own_address(entries: &[Entry], answers: &[Option<Refused>]) -> BTreeSet<String> {
    let refused = entries
        .iter()
        .zip(answers)
        .filter(|(entry, answer)| entry.purpose == Purpose::LoadBalancer && answer.is_some());
    refused.filter_map(|(entry, _)| entry.object.uid.clone()).collect()
}

/// What the status of a load balancer says; nothing while no port of it can be reached.
pub fn ingress(
    service: &Service,
    entries: &[Entry],
    answers: &[Option<Refused>],
) -> Option<Vec<LoadBalancerIngress>> {
    let uid = service.uid();
    let own: Vec<_> = entries.iter().zip(answers).filter(|(e, _)| e.object.uid == uid).collect();
    let of = |purpose: &Purpose| {
        let purpose = purpose.clone();
        own.iter().filter(move |(entry, _)| entry.purpose == purpose)
    };
    let balanced = || of(&Purpose::LoadBalancer);
    let at_own_address = balanced().count() > 0 && balanced().all(|(_, answer)| answer.is_none());
    let reached: Vec<&Publication> = if at_own_address {
        balanced().map(|(entry, _)| &entry.publication).collect()
    } else {
        let others = of(&Purpose::NodePort).chain(of(&Purpose::Substitute));
        let open = others.filter(|(_, answer)| answer.is_none());
        open.map(|(entry, _)| &entry.publication).collect()
    };
    let addresses: BTreeSet<IpAddr> = reached.iter().map(|p| p.host.ip()).collect();
    let ingress: Vec<_> = addresses
        .into_iter()
        .map(|address| LoadBalancerIngress {
            ip: Some(address.to_string()),
            // Connections do not keep their addresses on the way in.
            ip_mode: Some("Proxy".into()),
            ports: Some(
                reached
                    .iter()
                    .filter(|p| p.host.ip() == address)
                    .map(|p| PortStatus {
                        port: p.host.port().into(),
                        protocol: word(p.protocol).into(),
                        error: None,
                    })
                    .collect(),
            ),
            ..LoadBalancerIngress::default()
        })
        .collect();
    (!ingress.is_empty()).then_some(ingress)
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

const EACCES: i32 = 13;
const EADDRINUSE: i32 = 98;
const EADDRNOTAVAIL: i32 = 99;

/// Reason and message of the event about a port that could not be published.
pub fn complaint(
    entry: &Entry,
    refused: &Refused,
    otherwise: Option<&str>,
) -> (&'static str, String) {
    let Publication { host, protocol, .. } = entry.publication;
    let what = format!("{host} ({}) of the host", word(protocol));
    let (reason, mut message) = match refused.errno {
        EACCES => (
            "PortNeedsPrivilege",
            format!(
                "cannot listen on {what}: ports below net.ipv4.ip_unprivileged_port_start need a \
                 privilege; to allow this one: sudo sysctl -w \
                 net.ipv4.ip_unprivileged_port_start={}",
                host.port()
            ),
        ),
        EADDRINUSE => ("PortConflict", format!("cannot listen on {what}: it is in use already")),
        EADDRNOTAVAIL => (
            "AddressNotAvailable",
            format!("cannot listen on {what}: the host has no such address"),
        ),
        _ => ("PublishFailed", format!("cannot listen on {what}: {}", refused.message)),
    };
    if let Some(otherwise) = otherwise {
        message.push_str("; meanwhile it is at ");
        message.push_str(otherwise);
    }
    (reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netns::{Backend, Cidr};
    use serde_json::{Value, json};

    fn settings() -> Settings {
        let addresses = vec!["10.42.0.1".parse().unwrap()];
        let place = Place { node: "here".into(), addresses, zone: None };
        Settings { place, addresses: vec!["127.0.0.1".parse().unwrap()] }
    }

    fn service(name: &str, spec: &Value) -> Arc<Service> {
        let service =
            json!({"metadata": {"name": name, "namespace": "d", "uid": name}, "spec": spec});
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn balancer(node_port: Option<u16>) -> Arc<Service> {
        let port = json!({"port": 80, "nodePort": node_port.unwrap_or_default()});
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": [port]});
        service("lb", &spec)
    }

    fn told(entries: &[Entry]) -> Vec<String> {
        let line = |entry: &Entry| {
            let Publication { host, target, served, .. } = entry.publication;
            let host =
                if host.ip() == Ipv4Addr::LOCALHOST { host.to_string() } else { "own".into() };
            format!("{:?} {host} > {target} {served}", entry.purpose)
        };
        entries.iter().map(line).collect()
    }

    fn plain(services: &[Arc<Service>], substituted: &[&str]) -> Vec<Entry> {
        let frontend = Frontend {
            address: "10.42.0.1".parse().unwrap(),
            protocol: Protocol::Tcp,
            port: 30080,
        };
        let backend =
            Backend { endpoints: vec!["10.42.0.2:80".parse().unwrap()], ..Backend::default() };
        let table = ServiceTable { services: [(frontend, backend)].into() };
        let substituted = substituted.iter().map(ToString::to_string).collect();
        wanted(services, &[], &table, &settings(), &substituted)
    }

    #[test]
    fn node_ports_and_load_balancers_are_published() {
        let ports = json!({"type": "NodePort", "clusterIP": "10.43.0.9",
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 81, "nodePort": 30081}]});
        let cases = [
            (
                plain(&[service("a", &ports)], &[]),
                vec![
                    "NodePort 127.0.0.1:30080 > 10.42.0.1:30080 true",
                    "NodePort 127.0.0.1:30081 > 10.42.0.1:30081 false",
                ],
            ),
            (
                plain(&[balancer(Some(30080))], &[]),
                vec![
                    "NodePort 127.0.0.1:30080 > 10.42.0.1:30080 true",
                    "LoadBalancer own > 10.42.0.1:30080 true",
                ],
            ),
            (plain(&[balancer(None)], &[]), vec!["LoadBalancer own > 10.43.0.9:80 false"]),
            (
                plain(&[balancer(None)], &["lb"]),
                vec![
                    "LoadBalancer own > 10.43.0.9:80 false",
                    "Substitute 127.0.0.1:8080 > 10.43.0.9:80 false",
                ],
            ),
        ];
        for (entries, want) in cases {
            assert_eq!(told(&entries), want);
        }
    }

    #[test]
    fn clients_are_kept_where_traffic_stays_on_the_node() {
        for (policy, want) in [("Cluster", false), ("Local", true)] {
            let ports = json!([{"port": 80, "nodePort": 30080}]);
            let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": ports,
                "externalTrafficPolicy": policy});
            let entries = plain(&[service("lb", &spec)], &[]);
            let told: Vec<_> = entries.iter().map(|e| e.publication.keeps_client).collect();
            assert_eq!(told, [want; 2], "{policy}");
        }
    }

    #[test]
    fn load_balancers_are_for_whom_their_ranges_name() {
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        let cases = [
            (json!(["192.0.2.0/24"]), "192.0.2.0/24"),
            (json!(["10.42.0.0/16"]), "10.42.0.0/16 127.0.0.0/8 ::1/128"),
            (json!([]), "all"),
        ];
        for (ranges, want) in cases {
            let spec = json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": ports,
                "loadBalancerSourceRanges": ranges});
            let entries = plain(&[service("lb", &spec)], &[]);
            let told: Vec<String> = entries
                .iter()
                .map(|entry| {
                    let ranges = entry.publication.allowed.as_ref();
                    ranges.map_or("all".into(), |ranges| {
                        ranges.iter().map(Cidr::to_string).collect::<Vec<_>>().join(" ")
                    })
                })
                .collect();
            assert_eq!(told, ["all", want], "node port, load balancer");
        }
    }

    #[test]
    fn services_are_kept_while_they_are_load_balancers() {
        let ours = json!({"type": "LoadBalancer"});
        let theirs = json!({"type": "LoadBalancer", "loadBalancerClass": "example.org/lb"});
        let plain = json!({"type": "ClusterIP"});
        let cases = [
            (&ours, false, false, Some(true)),
            (&ours, true, false, None),
            (&ours, true, true, Some(false)),
            (&plain, true, false, Some(false)),
            (&plain, false, false, None),
            (&theirs, true, false, None),
            (&theirs, false, false, None),
        ];
        for (spec, kept, ending, want) in cases {
            let mut service = (*service("s", spec)).clone();
            if kept {
                service.finalizers_mut().push(CLEANUP.into());
            }
            if ending {
                let time = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
                service.metadata.deletion_timestamp = Some(time);
            }
            assert_eq!(keep(&service), want, "{spec} {kept} {ending}");
        }
    }

    #[test]
    fn own_addresses_stay_and_differ() {
        let spec =
            json!({"type": "LoadBalancer", "clusterIP": "10.43.0.9", "ports": [{"port": 80}]});
        let services: Vec<_> = (0..50).map(|n| service(&format!("s{n}"), &spec)).collect();
        let hosts = |services: &[Arc<Service>]| -> Vec<IpAddr> {
            plain(services, &[]).iter().map(|e| e.publication.host.ip()).collect()
        };
        let first = hosts(&services);
        assert!(first.iter().all(IpAddr::is_loopback));
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 50);
        assert_eq!(hosts(&services), first);
    }

    #[test]
    fn the_status_tells_where_a_load_balancer_is_reached() {
        let refused = || Some(Refused { errno: EACCES, message: String::new() });
        let lb = balancer(Some(30080));
        let entries = plain(std::slice::from_ref(&lb), &[]);
        let status = |answers: &[Option<Refused>]| {
            let ingress = ingress(&lb, &entries, answers)?;
            assert_eq!(ingress.len(), 1);
            let ip: IpAddr = ingress[0].ip.as_ref()?.parse().ok()?;
            Some((ip == Ipv4Addr::LOCALHOST, ingress[0].ports.as_ref()?[0].port))
        };
        assert_eq!(status(&[None, None]), Some((false, 80)));
        assert_eq!(status(&[None, refused()]), Some((true, 30080)));
        assert_eq!(status(&[refused(), refused()]), None);
        assert_eq!(without_own_address(&entries, &[None, refused()]), ["lb".to_owned()].into());
        let (reason, message) =
            complaint(&entries[1], &refused().unwrap(), Some("127.0.0.1:30080"));
        assert_eq!(reason, "PortNeedsPrivilege");
        assert!(message.ends_with(
            "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=80; meanwhile it is at 127.0.0.1:30080"
        ));
    }
}
