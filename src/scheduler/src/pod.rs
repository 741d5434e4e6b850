//! A pod as the scheduler sees it: the object, and what is derived from it once.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeAffinity, Pod, PodSpec};

use crate::affinity::{AffinityTerm, WeightedTerm};
use crate::resource::{Resource, pod_requests, pod_requests_or_default};

/// A port of the node that a pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The address, `0.0.0.0` for all.
    pub ip: String,
    /// The number.
    pub port: i32,
}

const ANY_ADDRESS: &str = "0.0.0.0";

impl HostPort {
    /// Both cannot be bound on one node.
    pub fn conflicts(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == ANY_ADDRESS || other.ip == ANY_ADDRESS)
    }
}

/// The terms by which a pod wants to be near other pods, or far from them.
#[derive(Clone, Debug, Default)]
pub struct PodAffinities {
    /// It must be near a pod of each of these.
    pub required: Vec<AffinityTerm>,
    /// It must not be near a pod of any of these.
    pub required_anti: Vec<AffinityTerm>,
    /// It would rather be near.
    pub preferred: Vec<WeightedTerm>,
    /// It would rather not be near.
    pub preferred_anti: Vec<WeightedTerm>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct PodInfo {
    /// The object.
    pub pod: Arc<Pod>,
    /// Its uid, by which the scheduler knows it.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it is bound to; empty while it is not.
    pub node_name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its priority; 0 when it has none.
    pub priority: i32,
    /// What it asks for.
    pub requests: Resource,
    /// What it counts for when nodes are compared.
    pub weighed: Resource,
    /// The node's ports that it wants.
    pub host_ports: Vec<HostPort>,
    /// What other pods it wants near, or far.
    pub affinities: PodAffinities,
    /// The same for all pods of its namespace with its labels.
    pub group: u64,
    /// The same for all pods that are alike, and seldom for others.
    pub likeness: u64,
}

impl PodInfo {
    /// What the scheduler needs to know of `pod`.
    pub fn new(pod: Arc<Pod>) -> Self {
        let meta = &pod.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let requests = pod_requests(&pod);
        Self {
            likeness: likeness(spec, &requests),
            uid: text(&meta.uid),
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            node_name: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            labels: meta.labels.clone().unwrap_or_default(),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
            requests,
            weighed: pod_requests_or_default(&pod),
            host_ports: spec.map(host_ports).unwrap_or_default(),
            affinities: spec
                .map(|spec| affinities(spec, &text(&meta.namespace)))
                .unwrap_or_default(),
            group: group(meta.namespace.as_deref(), meta.labels.as_ref()),
            pod,
        }
    }

    /// `namespace/name`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The specification; an API object always has one.
    pub fn spec(&self) -> &PodSpec {
        static NONE: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
        self.pod.spec.as_ref().unwrap_or_else(|| NONE.get_or_init(PodSpec::default))
    }

    /// The pod is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.pod.metadata.deletion_timestamp.is_some()
    }

    /// The pod has run to its end and holds nothing any more.
    pub fn is_finished(&self) -> bool {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        matches!(phase, Some("Succeeded" | "Failed"))
    }

    /// The node that preemption has made room on for this pod.
    pub fn nominated_node(&self) -> Option<&str> {
        let status = self.pod.status.as_ref()?;
        status.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// The scheduler that is asked to place it.
    pub fn scheduler_name(&self) -> &str {
        self.spec()
            .scheduler_name
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or("default-scheduler")
    }

    /// The version of the object as a number, to tell which of two is newer.
    pub fn version(&self) -> u64 {
        let version = self.pod.metadata.resource_version.as_deref();
        version.and_then(|version| version.parse().ok()).unwrap_or(0)
    }

    /// Whether nodes that are judged by themselves, not by other pods or volumes, are the same to both pods.
    pub fn is_alike(&self, other: &Self) -> bool {
        let (one, two) = (self.spec(), other.spec());
        self.likeness == other.likeness
            && self.node_name == other.node_name
            && self.requests == other.requests
            && self.weighed == other.weighed
            && self.host_ports == other.host_ports
            && self.scheduler_name() == other.scheduler_name()
            && one.node_selector == two.node_selector
            && one.tolerations == two.tolerations
            && node_affinity(one) == node_affinity(two)
    }

    /// The same pod, taken to run on `node`.
    #[must_use]
    pub fn on(&self, node: &str) -> Self {
        Self { node_name: node.to_owned(), ..self.clone() }
    }
}

fn group(namespace: Option<&str>, labels: Option<&BTreeMap<String, String>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    (namespace, labels).hash(&mut hasher);
    hasher.finish()
}

fn node_affinity(spec: &PodSpec) -> Option<&NodeAffinity> {
    spec.affinity.as_ref()?.node_affinity.as_ref()
}

fn likeness(spec: Option<&PodSpec>, requests: &Resource) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Resource { milli_cpu, memory_bytes, ephemeral_bytes, scalars } = requests;
    (milli_cpu, memory_bytes, ephemeral_bytes, scalars).hash(&mut hasher);
    if let Some(spec) = spec {
        (&spec.scheduler_name, &spec.node_selector).hash(&mut hasher);
        spec.tolerations.as_ref().map(Vec::len).hash(&mut hasher);
    }
    hasher.finish()
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or(ANY_ADDRESS);
            let protocol = port.protocol.as_deref().filter(|p| !p.is_empty()).unwrap_or("TCP");
            Some(HostPort { protocol: protocol.to_owned(), ip: ip.to_owned(), port: number })
        })
        .collect()
}

fn affinities(spec: &PodSpec, namespace: &str) -> PodAffinities {
    let Some(affinity) = &spec.affinity else { return PodAffinities::default() };
    let (near, far) = (affinity.pod_affinity.as_ref(), affinity.pod_anti_affinity.as_ref());
    let required = |terms: Option<&Vec<_>>| {
        terms.into_iter().flatten().map(|term| AffinityTerm::new(term, namespace)).collect()
    };
    let preferred = |terms: Option<&Vec<_>>| {
        terms.into_iter().flatten().map(|term| WeightedTerm::new(term, namespace)).collect()
    };
    PodAffinities {
        required: required(
            near.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        ),
        required_anti: required(
            far.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
        ),
        preferred: preferred(
            near.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
        ),
        preferred_anti: preferred(
            far.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
        ),
    }
}
