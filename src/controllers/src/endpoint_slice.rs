//! EndpointSlices of Services with a selector.
//!
//! Source: `pkg/controller/endpointslice` and `staging/src/k8s.io/endpointslice/reconciler.go`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Informer, Informers, Recorder, object_reference};
use futures::Stream;
use k8s_openapi::api::core::v1::{Node, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::{Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::ownership;
use crate::queue::{self, Next};
use crate::topology::{self, Shares};
use crate::{touched, unless_code};

/// Most endpoints of one slice.
pub const PER_SLICE: usize = 100;
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
pub const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

pub type Labels = BTreeMap<String, String>;

pub fn selects(selector: &Labels, labels: Option<&Labels>) -> bool {
    let empty = Labels::new();
    let labels = labels.unwrap_or(&empty);
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|conditions| {
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    })
}

/// The pod's port that `port` of a Service means; `None` when the pod has none of that name.
pub fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let spec = pod.spec.as_ref()?;
            // Of init containers those that go on running (`FindPort` of `pkg/api/v1/pod`).
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
            spec.containers
                .iter()
                .chain(sidecars)
                .flat_map(|container| container.ports.iter().flatten())
                .find(|found| {
                    found.name.as_deref() == Some(name)
                        && found.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|found| found.container_port)
        }
    }
}

/// The zones of the nodes, by the node's name.
type Zones = BTreeMap<String, String>;

/// For whom a ready endpoint is meant, as the Service distributes its traffic.
///
/// Source: `staging/src/k8s.io/endpointslice/trafficdist`.
fn hints(service: &Service, endpoint: &Endpoint) -> Option<EndpointHints> {
    // Hints of another kind go before this one.
    if topology::is_automatic(service) {
        return None;
    }
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let by_node = distribution == "PreferSameNode";
    if !by_node && !matches!(distribution, "PreferClose" | "PreferSameZone") {
        return None;
    }
    endpoint.conditions.as_ref().filter(|conditions| conditions.ready == Some(true))?;
    let for_zones = endpoint.zone.clone().map(|name| vec![ForZone { name }]);
    let for_nodes = endpoint.node_name.clone().filter(|_| by_node);
    let for_nodes = for_nodes.map(|name| vec![ForNode { name }]);
    (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones })
}

fn endpoint(service: &Service, pod: &Pod, family: &str, zones: &Zones) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let address = all
        .filter(|address| !address.is_empty())
        .find(|address| address.contains(':') == (family == "IPv6"))?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let publish = spec.publish_not_ready_addresses == Some(true);
    let serving = is_ready(pod);
    let pod_spec = pod.spec.as_ref()?;
    // Only pods that name the Service as their subdomain have a name below it.
    let hostname = pod_spec
        .hostname
        .clone()
        .filter(|_| pod_spec.subdomain.as_deref() == service.metadata.name.as_deref());
    let mut made = Endpoint {
        addresses: vec![address.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: pod_spec.node_name.clone(),
        zone: pod_spec.node_name.as_ref().and_then(|node| zones.get(node)).cloned(),
        target_ref: Some(k8s_openapi::api::core::v1::ObjectReference {
            api_version: None,
            resource_version: None,
            ..object_reference(pod)
        }),
        ..Endpoint::default()
    };
    made.hints = hints(service, &made);
    Some(made)
}

/// The families of a Service's addresses, for each of which it has slices.
fn families(service: &Service) -> Vec<String> {
    let spec = service.spec.as_ref();
    let families = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".to_owned()] } else { families }
}

/// Deals endpoints out to slices so that as few as possible of those that there are change: each stays where it is;
/// new ones fill up slices that change anyway, or else one that has room for all of them, or else new slices
/// (`reconcileByPortMapping`).
fn deal(
    endpoints: Vec<Endpoint>,
    slices: &[&EndpointSlice],
) -> Vec<(Option<String>, Vec<Endpoint>)> {
    // Several pods may have the node's address.
    let key = |endpoint: &Endpoint| {
        let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.name.clone());
        (endpoint.addresses.clone(), pod)
    };
    let mut left: BTreeMap<_, Endpoint> =
        endpoints.into_iter().map(|endpoint| (key(&endpoint), endpoint)).collect();
    let mut dealt: Vec<(bool, Option<String>, Vec<Endpoint>)> = Vec::new();
    for slice in slices {
        let old = slice.endpoints.as_deref().unwrap_or_default();
        let kept: Vec<Endpoint> =
            old.iter().filter_map(|endpoint| left.remove(&key(endpoint))).collect();
        // Hints are dealt out afterwards.
        let same = |(old, new): (&Endpoint, &Endpoint)| {
            *new == Endpoint { hints: new.hints.clone(), ..old.clone() }
        };
        let changed = kept.len() != old.len() || !old.iter().zip(&kept).all(same);
        if !kept.is_empty() {
            dealt.push((changed, slice.metadata.name.clone(), kept));
        }
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    for (_, _, kept) in dealt.iter_mut().filter(|(changed, ..)| *changed) {
        let room = PER_SLICE.saturating_sub(kept.len()).min(left.len());
        kept.extend(left.drain(..room));
    }
    let roomy = dealt.iter_mut().filter(|(_, _, kept)| kept.len() + left.len() <= PER_SLICE);
    if !left.is_empty()
        && let Some((_, _, kept)) = roomy.max_by_key(|(_, _, kept)| kept.len())
    {
        kept.append(&mut left);
    }
    let new = left.chunks(PER_SLICE).map(|chunk| (None, chunk.to_vec())).collect::<Vec<_>>();
    dealt.into_iter().map(|(_, name, endpoints)| (name, endpoints)).chain(new).collect()
}

/// What the Service's slices of a family shall say: ports, and the endpoints that have exactly these ports.
fn wanted(
    service: &Service,
    pods: &[&Pod],
    family: &str,
    zones: &Zones,
    found: &[&EndpointSlice],
) -> Vec<Content> {
    let empty = Vec::new();
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).unwrap_or(&empty);
    let mut groups: BTreeMap<Vec<Option<i32>>, Vec<Endpoint>> = BTreeMap::new();
    for pod in pods {
        if let Some(endpoint) = endpoint(service, pod, family, zones) {
            let numbers = ports.iter().map(|port| target(port, pod)).collect();
            groups.entry(numbers).or_default().push(endpoint);
        }
    }
    let content = |slice, ports, endpoints| Content {
        slice,
        address_type: family.to_owned(),
        ports,
        endpoints,
    };
    let mut contents = Vec::new();
    for (numbers, endpoints) in groups {
        let slice_ports: Vec<EndpointPort> = ports
            .iter()
            .zip(&numbers)
            .filter_map(|(port, number)| {
                Some(EndpointPort {
                    name: Some(port.name.clone().unwrap_or_default()),
                    port: Some((*number)?),
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        let alike = |slice: &&&EndpointSlice| {
            slice.address_type == family
                && slice.ports.as_deref().unwrap_or_default() == slice_ports
        };
        let alike: Vec<&EndpointSlice> = found.iter().filter(alike).copied().collect();
        let dealt = deal(endpoints, &alike).into_iter();
        contents.extend(dealt.map(|(slice, dealt)| content(slice, slice_ports.clone(), dealt)));
    }
    if contents.is_empty() {
        // A slice without endpoints tells that the Service was looked at.
        contents.push(content(None, Vec::new(), Vec::new()));
    }
    contents
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.into(), String::new());
    }
    labels
}

/// The changes that make `found` say what is wanted.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// New slices.
    pub create: Vec<EndpointSlice>,
    /// Slices that say something else.
    pub update: Vec<EndpointSlice>,
    /// Slices that go, by name.
    pub delete: Vec<String>,
}

impl Changes {
    /// All of them go.
    pub fn none_left(found: &[&EndpointSlice]) -> Self {
        let delete = found.iter().map(|slice| slice.name_any()).collect();
        Self { delete, ..Self::default() }
    }

    /// Writes them.
    pub async fn write(self, api: &Api<EndpointSlice>) -> Result<(), kube::Error> {
        for slice in &self.create {
            api.create(&PostParams::default(), slice).await?;
        }
        for slice in &self.update {
            api.replace(&slice.name_any(), &PostParams::default(), slice).await?;
        }
        for name in &self.delete {
            unless_code(api.delete(name, &DeleteParams::default()).await.map(drop), 404)?;
        }
        Ok(())
    }
}

/// What one slice shall say.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// The slice that is closest to it, where there is one.
    pub slice: Option<String>,
    pub address_type: String,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
}

/// Changes as little as possible so that there is a slice for each of `wanted`. New slices are named
/// after `owner`, which controls them. Without `annotations` those that there are stay.
pub fn reconcile<O: Resource<DynamicType = ()>>(
    owner: &O,
    labels: &Labels,
    annotations: Option<&Labels>,
    wanted: Vec<Content>,
    found: &[&EndpointSlice],
) -> Changes {
    let mut changes = Changes::default();
    let mut free: Vec<&EndpointSlice> = found.to_vec();
    let mut missing = Vec::new();
    for content in wanted {
        let same = |slice: &&EndpointSlice| {
            slice.address_type == content.address_type
                && slice.endpoints.as_deref().unwrap_or_default() == content.endpoints
                && slice.ports.as_deref().unwrap_or_default() == content.ports
                && slice.metadata.labels.as_ref() == Some(labels)
                && annotations.is_none_or(|wanted| slice.annotations() == wanted)
        };
        match free.iter().position(same) {
            Some(index) => drop(free.swap_remove(index)),
            None => missing.push(content),
        }
    }
    // Those that are meant for a slice take it first.
    missing.sort_by_key(|content| content.slice.is_none());
    for content in missing {
        let meant = |slice: &&EndpointSlice| {
            content.slice.is_some() && slice.metadata.name == content.slice
        };
        let alike = |slice: &&EndpointSlice| slice.address_type == content.address_type;
        let usable = free.iter().position(meant).or_else(|| free.iter().position(alike));
        let mut slice = match usable.map(|index| free.swap_remove(index)) {
            Some(known) => known.clone(),
            None => EndpointSlice {
                address_type: content.address_type,
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", owner.name_any())),
                    namespace: owner.namespace(),
                    owner_references: Some(vec![ownership::owner_reference(owner)]),
                    ..ObjectMeta::default()
                },
                ..EndpointSlice::default()
            },
        };
        slice.metadata.labels = Some(labels.clone());
        if let Some(annotations) = annotations {
            slice.metadata.annotations = Some(annotations.clone());
        }
        slice.ports = Some(content.ports);
        slice.endpoints = Some(content.endpoints);
        if slice.metadata.name.is_some() {
            changes.update.push(slice);
        } else {
            changes.create.push(slice);
        }
    }
    changes.delete = free.iter().map(|slice| slice.name_any()).collect();
    changes
}

/// The changes, and what is told about hints: whether it is a success, and the message.
fn decide(
    service: &Service,
    pods: &[&Pod],
    found: &[&EndpointSlice],
    zones: &Zones,
    shares: Option<&Shares>,
) -> (Changes, Vec<(bool, String)>) {
    let mut contents = Vec::new();
    let mut told = Vec::new();
    for family in families(service) {
        let mut of_family = wanted(service, pods, &family, zones, found);
        if topology::is_automatic(service) {
            match topology::assign(shares, &mut of_family, found) {
                Err(reason) => told.push((false, format!("{reason}, addressType: {family}"))),
                Ok(()) if found.iter().any(|slice| has_hints(slice, &family)) => {}
                Ok(()) => {
                    let enabled = "Topology Aware Hints has been enabled";
                    told.push((true, format!("{enabled}, addressType: {family}")));
                }
            }
        }
        contents.extend(of_family);
    }
    (reconcile(service, &labels(service), None, contents, found), told)
}

fn has_hints(slice: &EndpointSlice, family: &str) -> bool {
    slice.address_type == family
        && slice.endpoints.iter().flatten().any(|endpoint| endpoint.hints.is_some())
}

type Key = (String, String);

fn key(service: &Service) -> Vec<Key> {
    vec![(service.namespace().unwrap_or_default(), service.name_any())]
}

/// What is looked at.
struct Caches {
    services: Informer<Service>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    nodes: Informer<Node>,
}

impl Caches {
    /// The Services that a change concerns.
    fn changes(&self) -> impl Stream<Item = Vec<Key>> + Send + use<> {
        let known = self.services.store();
        let of_pod = move |pod: &Pod| {
            let all = known.state();
            let mine = all.iter().filter(|service| {
                service.namespace() == pod.namespace()
                    && selector(service)
                        .is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
            });
            mine.flat_map(|service| key(service)).collect()
        };
        let of_slice = |slice: &EndpointSlice| {
            let service = slice.labels().get(SERVICE_NAME).cloned();
            service.map(|name| (slice.namespace().unwrap_or_default(), name)).into_iter().collect()
        };
        // Of a node only its zone and its CPUs matter here, and they seldom change.
        let (known, seen) = (self.services.store(), Mutex::new(BTreeMap::new()));
        let of_node = move |node: &Node| {
            let now = (node.labels().get(ZONE).cloned(), topology::capacity(node));
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            let before = seen.insert(node.name_any(), now.clone()).unwrap_or_default();
            if before == now {
                return Vec::new();
            }
            let all = known.state();
            let concerned =
                |service: &&Arc<Service>| before.0 != now.0 || topology::is_automatic(service);
            all.iter().filter(concerned).flat_map(|service| key(service)).collect()
        };
        futures::stream::select(
            futures::stream::select(touched(&self.services, key), touched(&self.nodes, of_node)),
            futures::stream::select(touched(&self.pods, of_pod), touched(&self.slices, of_slice)),
        )
    }

    /// Decides about the slices of one Service, of which there may be none any more.
    fn decide(
        &self,
        service: Option<&Service>,
        (namespace, name): (&str, &str),
    ) -> (Changes, Vec<(bool, String)>) {
        let found = self.slices.store().state_filter(|slice| {
            slice.namespace().as_deref() == Some(namespace)
                && slice.labels().get(SERVICE_NAME).is_some_and(|found| found == name)
                && slice.labels().get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
        });
        let found: Vec<&EndpointSlice> = found.iter().map(AsRef::as_ref).collect();
        let staying = service.filter(|service| service.metadata.deletion_timestamp.is_none());
        let Some((service, selector)) = staying.and_then(|s| Some((s, selector(s)?))) else {
            // The slices of a Service that is gone, or has no selector any more, are not ours to keep.
            return (Changes::none_left(&found), Vec::new());
        };
        let chosen = self.pods.store().state_filter(|pod| {
            pod.namespace().as_deref() == Some(namespace)
                && selects(selector, pod.metadata.labels.as_ref())
        });
        let chosen: Vec<&Pod> = chosen.iter().map(AsRef::as_ref).collect();
        let zone = |pod: &&Pod| {
            let name = pod.spec.as_ref()?.node_name.clone()?;
            let zone = self.nodes.get("", &name)?.labels().get(ZONE)?.clone();
            Some((name, zone))
        };
        let zones: Zones = chosen.iter().filter_map(zone).collect();
        let shares = topology::is_automatic(service)
            .then(|| Shares::of(&self.nodes.store().state()))
            .flatten();
        decide(service, &chosen, &found, &zones, shares.as_ref())
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let caches = Caches {
        services: informers.get(),
        pods: informers.get(),
        slices: informers.get(),
        nodes: informers.get(),
    };
    let events = Recorder::new(client.clone(), "endpoint-slice-controller", "");
    caches.pods.ready().await;
    caches.slices.ready().await;
    caches.nodes.ready().await;
    queue::run("endpointslice", caches.changes(), shutdown, |(namespace, name): Key| {
        let service = caches.services.get(&namespace, &name);
        let (changes, told) = caches.decide(service.as_deref(), (&namespace, &name));
        for (enabled, message) in told {
            let Some(service) = service.as_deref() else { continue };
            if enabled {
                events.normal(object_reference(service), "TopologyAwareHintsEnabled", message);
            } else {
                let reason = "TopologyAwareHintsDisabled";
                events.warning(object_reference(service), reason, message);
            }
        }
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &namespace);
        Box::pin(async move {
            changes.write(&api).await?;
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(ports: &Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"},
            "spec": {"clusterIP": "10.43.0.9", "selector": {"a": "b"}, "ports": ports}}))
        .unwrap()
    }

    fn pod(ip: &str, ready: &str, port: i32) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": ip, "namespace": "n", "uid": ip},
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": ip, "phase": "Running",
                "conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    fn first_ready(slice: &EndpointSlice) -> Option<bool> {
        slice.endpoints.as_ref()?.first()?.conditions.as_ref()?.ready
    }

    #[test]
    fn named_ports_are_each_pods_own() {
        let service = service(&json!([{"port": 80, "targetPort": "web"}]));
        let (one, two) = (pod("10.0.0.1", "True", 8080), pod("10.0.0.2", "True", 9090));
        let ports: Vec<_> = wanted(&service, &[&one, &two], "IPv4", &Zones::new(), &[])
            .into_iter()
            .map(|content| (content.ports[0].port, content.endpoints[0].addresses[0].clone()))
            .collect();
        assert_eq!(
            ports,
            [(Some(8080), "10.0.0.1".to_owned()), (Some(9090), "10.0.0.2".to_owned())]
        );
    }

    /// Upstream's "should connect to the ports exposed by restartable init containers".
    #[test]
    fn init_containers_have_ports_if_they_go_on_running() {
        let port = |name: &str| service(&json!([{"port": 80, "targetPort": name}]));
        let mut pod = pod("10.0.0.1", "True", 8080);
        let init = json!([
            {"name": "first", "ports": [{"name": "first", "containerPort": 81}]},
            {"name": "side", "restartPolicy": "Always",
             "ports": [{"name": "side", "containerPort": 82}, {"name": "web", "containerPort": 83}]}]);
        pod.spec.as_mut().unwrap().init_containers = serde_json::from_value(init).unwrap();
        for (name, want) in [("web", Some(8080)), ("side", Some(82)), ("first", None)] {
            let ports = port(name).spec.unwrap().ports.unwrap();
            assert_eq!(target(&ports[0], &pod), want, "{name}");
        }
    }

    #[test]
    fn slices_change_only_when_they_must() {
        let service = service(&json!([{"port": 80}]));
        let first = pod("10.0.0.1", "False", 80);
        let made = decide(&service, &[&first], &[], &Zones::new(), None).0;
        assert_eq!(made.create.len(), 1);
        let mut slice = made.create[0].clone();
        assert_eq!(first_ready(&slice), Some(false));
        slice.metadata.name = Some("s-x".into());
        assert_eq!(
            decide(&service, &[&first], &[&slice], &Zones::new(), None).0,
            Changes::default()
        );
        let ready = pod("10.0.0.1", "True", 80);
        let changed = decide(&service, &[&ready], &[&slice], &Zones::new(), None).0;
        assert_eq!(changed.update.len(), 1);
        assert_eq!(first_ready(&changed.update[0]), Some(true));
    }

    #[test]
    fn conditions_tell_of_readiness_and_of_the_end() {
        for (ready, terminating, publish, want) in [
            ("True", false, false, (true, true)),
            ("True", true, false, (false, true)),
            ("False", false, false, (false, false)),
            ("False", false, true, (true, false)),
            ("False", true, true, (true, false)),
        ] {
            let mut service = service(&json!([{"port": 80}]));
            service.spec.as_mut().unwrap().publish_not_ready_addresses = Some(publish);
            let mut pod = pod("10.0.0.1", ready, 80);
            pod.metadata.deletion_timestamp =
                terminating.then(|| serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
            let made = decide(&service, &[&pod], &[], &Zones::new(), None).0.create;
            let endpoint = made[0].endpoints.as_ref().unwrap()[0].clone();
            let told = endpoint.conditions.unwrap();
            assert_eq!((told.ready, told.serving), (Some(want.0), Some(want.1)));
            assert_eq!(told.terminating, Some(terminating));
        }
    }

    #[test]
    fn each_family_has_slices_of_its_own() {
        let mut service = service(&json!([{"port": 80}]));
        let mut pod = pod("10.0.0.1", "True", 80);
        let ips = json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]);
        pod.status.as_mut().unwrap().pod_ips = serde_json::from_value(ips).unwrap();
        service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv6".into(), "IPv4".into()]);
        let made = decide(&service, &[&pod], &[], &Zones::new(), None).0.create;
        let told: Vec<_> = made
            .iter()
            .map(|slice| {
                let endpoint = &slice.endpoints.as_ref().unwrap()[0];
                (slice.address_type.as_str(), endpoint.addresses[0].as_str())
            })
            .collect();
        assert_eq!(told, [("IPv6", "fd00::1"), ("IPv4", "10.0.0.1")]);
        let mut slices = made.clone();
        for (number, slice) in slices.iter_mut().enumerate() {
            slice.metadata.name = Some(format!("s-{number}"));
        }
        let found: Vec<_> = slices.iter().collect();
        assert_eq!(decide(&service, &[&pod], &found, &Zones::new(), None).0, Changes::default());
        service.spec.as_mut().unwrap().ip_families = Some(vec!["IPv4".into()]);
        assert_eq!(decide(&service, &[&pod], &found, &Zones::new(), None).0.delete, ["s-0"]);
    }

    #[test]
    fn of_many_slices_few_change() {
        let service = service(&json!([{"port": 80}]));
        let pods: Vec<Pod> =
            (0..252).map(|n| pod(&format!("10.0.{}.{}", n / 250, n % 250), "True", 80)).collect();
        let some = |range: std::ops::Range<usize>, without: &[usize]| -> Vec<&Pod> {
            range.filter(|n| !without.contains(n)).map(|n| &pods[n]).collect()
        };
        let changes = |pods: &[&Pod], found: &[&EndpointSlice]| {
            decide(&service, pods, found, &Zones::new(), None).0
        };
        let size = |slice: &EndpointSlice| slice.endpoints.as_ref().map_or(0, Vec::len);
        let mut made = changes(&some(0..250, &[]), &[]).create;
        assert_eq!(made.iter().map(size).collect::<Vec<_>>(), [100, 100, 50]);
        for (number, slice) in made.iter_mut().enumerate() {
            slice.metadata.name = Some(format!("s-{number}"));
        }
        let found: Vec<&EndpointSlice> = made.iter().collect();
        let unready = pod("10.0.0.0", "False", 80);
        let with_unready: Vec<&Pod> = std::iter::once(&unready).chain(some(1..250, &[])).collect();
        let is_first = |pod: &&Pod| {
            let mut addresses = found[0].endpoints.iter().flatten().map(|e| &e.addresses[0]);
            addresses.any(|address| *address == pod.name_any())
        };
        let first: Vec<&Pod> = pods.iter().filter(is_first).collect();
        for (pods, updated, created, deleted) in [
            (some(0..250, &[]), vec![], 0, 0),
            // One fewer, one more, one for another; each is where it was.
            (some(0..250, &[120]), vec![99], 0, 0),
            (some(0..251, &[]), vec![51], 0, 0),
            (some(0..251, &[120]), vec![100], 0, 0),
            (with_unready, vec![100], 0, 0),
            (first[..50].to_vec(), vec![50], 0, 2),
            (first, vec![], 0, 2),
        ] {
            let changes = changes(&pods, &found);
            let sizes: Vec<usize> = changes.update.iter().map(size).collect();
            let got = (sizes, changes.create.len(), changes.delete.len());
            assert_eq!(got, (updated, created, deleted), "{}", pods.len());
        }
        // What finds no room where there are others is put into a slice of its own.
        let full = changes(&some(0..252, &[]), &found[..2]);
        assert_eq!(full.create.iter().map(size).collect::<Vec<_>>(), [52]);
        assert!(full.update.is_empty());
    }

    #[test]
    fn traffic_is_kept_near_where_the_service_prefers_it() {
        let zones = Zones::from([("n".to_owned(), "z".to_owned())]);
        let told = |distribution: &str, ready: &str, mode: &str, zones: &Zones| {
            let mut service = service(&json!([{"port": 80}]));
            let key = "service.kubernetes.io/topology-mode";
            service.annotations_mut().insert(key.into(), mode.into());
            service.spec.as_mut().unwrap().traffic_distribution = Some(distribution.into());
            let mut pod = pod("10.0.0.1", ready, 80);
            pod.spec.as_mut().unwrap().node_name = Some("n".into());
            let made = endpoint(&service, &pod, "IPv4", zones).unwrap();
            let hints = made.hints.unwrap_or_default();
            let zones = hints.for_zones.into_iter().flatten().map(|zone| zone.name);
            let nodes = hints.for_nodes.into_iter().flatten().map(|node| node.name);
            zones.chain(nodes).collect::<Vec<_>>().join(" ")
        };
        let none = Zones::new();
        for (distribution, ready, mode, zones, want) in [
            ("PreferClose", "True", "", &zones, "z"),
            ("PreferSameZone", "True", "", &zones, "z"),
            ("PreferSameNode", "True", "", &zones, "z n"),
            ("PreferSameNode", "True", "", &none, "n"),
            ("PreferSameZone", "True", "", &none, ""),
            ("PreferSameZone", "False", "", &zones, ""),
            ("PreferSameZone", "True", "Auto", &zones, ""),
        ] {
            assert_eq!(
                told(distribution, ready, mode, zones),
                want,
                "{distribution} {ready} {mode}"
            );
        }
    }
}
