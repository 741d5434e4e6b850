//! Amounts of resources: what a pod asks for, what a node has.
//!
//! Source: `k8s.io/component-helpers/resource` (PodRequests) and the scheduler's `framework.Resource`.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

/// What a container without a CPU request counts for when nodes are compared.
const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container without a memory request counts for when nodes are compared.
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// Amounts by resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Thousandths of a CPU.
    pub milli_cpu: i64,
    /// Bytes of memory.
    pub memory_bytes: i64,
    /// Bytes of local ephemeral storage.
    pub ephemeral_bytes: i64,
    /// Extended resources, huge pages and attachable volumes by name.
    pub scalars: BTreeMap<String, i64>,
}

impl Resource {
    fn set(&mut self, name: &str, text: &Text) {
        // The API server has validated quantities; one that cannot be read asks for nothing.
        let Ok(quantity) = text.0.parse::<Quantity>() else { return };
        match name {
            "cpu" => self.put(name, quantity.milli_value()),
            "pods" => {}
            other => self.put(other, quantity.value()),
        }
    }

    /// Sets the amount of the resource `name`: of CPU in thousandths.
    fn put(&mut self, name: &str, amount: i64) {
        match name {
            "cpu" => self.milli_cpu = amount,
            "memory" => self.memory_bytes = amount,
            "ephemeral-storage" => self.ephemeral_bytes = amount,
            other => drop(self.scalars.insert(other.to_owned(), amount)),
        }
    }

    /// The amounts of a resource list; `pods` is not among them.
    pub fn from_list(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resource = Self::default();
        for (name, text) in list.into_iter().flatten() {
            resource.set(name, text);
        }
        resource
    }

    /// The amount of the resource `name`: of CPU in thousandths.
    pub fn amount(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.milli_cpu,
            "memory" => self.memory_bytes,
            "ephemeral-storage" => self.ephemeral_bytes,
            other => self.scalars.get(other).copied().unwrap_or(0),
        }
    }

    /// Adds `other` to this.
    pub fn add(&mut self, other: &Self) {
        self.milli_cpu += other.milli_cpu;
        self.memory_bytes += other.memory_bytes;
        self.ephemeral_bytes += other.ephemeral_bytes;
        for (name, amount) in &other.scalars {
            *self.scalars.entry(name.clone()).or_default() += amount;
        }
    }

    /// Takes `other` from this.
    pub fn subtract(&mut self, other: &Self) {
        self.milli_cpu -= other.milli_cpu;
        self.memory_bytes -= other.memory_bytes;
        self.ephemeral_bytes -= other.ephemeral_bytes;
        for (name, amount) in &other.scalars {
            *self.scalars.entry(name.clone()).or_default() -= amount;
        }
    }

    fn raise_to(&mut self, other: &Self) {
        self.milli_cpu = self.milli_cpu.max(other.milli_cpu);
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.ephemeral_bytes = self.ephemeral_bytes.max(other.ephemeral_bytes);
        for (name, amount) in &other.scalars {
            let mine = self.scalars.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }

    /// Nothing is asked for.
    pub fn is_zero(&self) -> bool {
        self.milli_cpu == 0
            && self.memory_bytes == 0
            && self.ephemeral_bytes == 0
            && self.scalars.values().all(|amount| *amount == 0)
    }
}

/// A list of amounts of the API.
type List = BTreeMap<String, Text>;

/// What a pod may ask for as a whole.
fn is_of_pods(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

/// What a container, or a pod as a whole, asks for in `list`. While it is being resized it is taken to need the most of
/// what it asked for, asks for, and was given; what it cannot be given does not count.
fn held(
    list: Option<&List>,
    (actual, granted): (Option<&List>, Option<&List>),
    infeasible: bool,
) -> Resource {
    let known = actual.is_some() || granted.is_some();
    let mut resource =
        if infeasible && known { Resource::default() } else { Resource::from_list(list) };
    for other in [actual, granted].into_iter().filter(|other| other.is_some() && *other != list) {
        resource.raise_to(&Resource::from_list(other));
    }
    if infeasible && known && (actual == list || granted == list) {
        resource.raise_to(&Resource::from_list(list));
    }
    resource
}

fn container_requests(
    container: &Container,
    told: Option<&ContainerStatus>,
    (infeasible, defaults): (bool, bool),
) -> Resource {
    let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let actual = told.and_then(|told| told.resources.as_ref()?.requests.as_ref());
    let granted = told.and_then(|told| told.allocated_resources.as_ref());
    let mut resource = held(list, (actual, granted), infeasible);
    let missing = |name: &str| list.is_none_or(|list| !list.contains_key(name));
    if defaults && missing("cpu") {
        resource.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if defaults && missing("memory") {
        resource.memory_bytes = DEFAULT_MEMORY_BYTES;
    }
    resource
}

/// Whether the node has said that it can never give what the pod was resized to.
fn is_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|told| {
        told.type_ == "PodResizePending" && told.reason.as_deref() == Some("Infeasible")
    })
}

/// What a running pod needs at most at one time: its containers and sidecars together, or one init
/// container with the sidecars started before it; what the pod as a whole asks for overrules that.
fn requests<'a>(pod: &'a Pod, defaults: bool) -> Resource {
    let Some(spec) = pod.spec.as_ref() else { return Resource::default() };
    let how = (is_infeasible(pod), defaults);
    let status = pod.status.as_ref();
    let told = |statuses: Option<&'a Vec<ContainerStatus>>, name: &str| {
        statuses.and_then(|all| all.iter().find(|told| told.name == name))
    };
    let mut total = Resource::default();
    for container in &spec.containers {
        let told = told(status.and_then(|s| s.container_statuses.as_ref()), &container.name);
        total.add(&container_requests(container, told, how));
    }
    let mut sidecars = Resource::default();
    let mut starting = Resource::default();
    for container in spec.init_containers.iter().flatten() {
        let is_sidecar = container.restart_policy.as_deref() == Some("Always");
        let statuses = status.and_then(|s| s.init_container_statuses.as_ref());
        let told = told(statuses.filter(|_| is_sidecar), &container.name);
        let own = container_requests(container, told, how);
        if is_sidecar {
            total.add(&own);
            sidecars.add(&own);
            starting.raise_to(&sidecars);
        } else {
            let mut here = sidecars.clone();
            here.add(&own);
            starting.raise_to(&here);
        }
    }
    total.raise_to(&starting);
    let wanted = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let actual = status.and_then(|status| status.resources.as_ref()?.requests.as_ref());
    let granted = status.and_then(|status| status.allocated_resources.as_ref());
    let whole = held(wanted, (actual, granted), how.0);
    for name in wanted.into_iter().flat_map(BTreeMap::keys).filter(|name| is_of_pods(name)) {
        total.put(name, whole.amount(name));
    }
    total.add(&Resource::from_list(spec.overhead.as_ref()));
    total
}

/// What the pod asks for.
pub fn pod_requests(pod: &Pod) -> Resource {
    requests(pod, false)
}

/// What the pod counts for when nodes are compared: containers that ask for no CPU or memory are
/// taken to need some.
pub fn pod_requests_or_default(pod: &Pod) -> Resource {
    requests(pod, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container(cpu: &str, memory: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    fn sidecar(cpu: &str, memory: &str) -> Value {
        let mut container = container(cpu, memory);
        container["restartPolicy"] = json!("Always");
        container
    }

    #[test]
    fn a_pod_needs_the_most_it_needs_at_one_time() {
        let cases = [
            (
                json!({"containers": [container("100m", "1Gi"), container("1", "1Mi")]}),
                1100,
                (1 << 30) + (1 << 20),
            ),
            (
                json!({"containers": [container("100m", "2")], "initContainers": [container("1", "1")]}),
                1000,
                2,
            ),
            (
                json!({"containers": [container("1", "2")], "initContainers": [sidecar("500m", "1")]}),
                1500,
                3,
            ),
            // The sidecar runs while the second init container does.
            (
                json!({"containers": [container("1", "2")], "initContainers": [sidecar("500m", "1"), container("2", "1")]}),
                2500,
                3,
            ),
            (json!({"containers": [container("1", "2")], "overhead": {"cpu": "250m"}}), 1250, 2),
            (
                json!({"containers": [container("1", "2")], "resources": {"requests": {"cpu": "3"}}}),
                3000,
                2,
            ),
            (json!({"containers": [{"name": "c"}]}), 0, 0),
        ];
        for (spec, milli_cpu, memory_bytes) in cases {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).expect("a pod");
            let got = pod_requests(&pod);
            assert_eq!((got.milli_cpu, got.memory_bytes), (milli_cpu, memory_bytes), "{spec}");
        }
    }

    #[test]
    fn a_pod_that_is_being_resized_needs_the_most_of_what_it_may_have() {
        let pod = |asked: &str, actual: &str, granted: &str, reason: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [container(asked, "1")]},
                "status": {"conditions": [
                        {"type": "PodResizePending", "status": "True", "reason": reason}],
                    "containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
                        "restartCount": 0, "allocatedResources": {"cpu": granted, "memory": "1"},
                        "resources": {"requests": {"cpu": actual, "memory": "1"}}}]}}))
            .expect("a pod")
        };
        for (asked, actual, granted, reason, want) in [
            ("2", "1", "1", "Deferred", 2000),
            ("1", "2", "2", "Deferred", 2000),
            ("1", "2", "1", "", 2000),
            ("4", "1", "2", "Infeasible", 2000),
            ("1", "1", "1", "Infeasible", 1000),
        ] {
            let got = pod_requests(&pod(asked, actual, granted, reason)).milli_cpu;
            assert_eq!(got, want, "{asked} {actual} {granted} {reason}");
            let whole: Pod = serde_json::from_value(json!({
                "spec": {"containers": [container("10m", "1")],
                    "resources": {"requests": {"cpu": asked}}},
                "status": {"resources": {"requests": {"cpu": actual, "memory": "7"}},
                    "allocatedResources": {"cpu": granted},
                    "conditions": [
                        {"type": "PodResizePending", "status": "True", "reason": reason}]}}))
            .expect("a pod");
            let got = pod_requests(&whole);
            // What the pod does not ask for as a whole its containers do.
            assert_eq!((got.milli_cpu, got.memory_bytes), (want, 1), "{asked} {actual}");
        }
    }

    #[test]
    fn containers_that_ask_for_nothing_count_for_something() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, container("1", "1Gi")]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let got = pod_requests_or_default(&pod);
        assert_eq!((got.milli_cpu, got.memory_bytes), (1100, (200 << 20) + (1 << 30)));
    }
}
