//! Amounts of resources: what a pod asks for, what a node has.
//!
//! Source: `k8s.io/component-helpers/resource` (PodRequests) and the scheduler's `framework.Resource`.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
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
            "cpu" => self.milli_cpu = quantity.milli_value(),
            "memory" => self.memory_bytes = quantity.value(),
            "ephemeral-storage" => self.ephemeral_bytes = quantity.value(),
            "pods" => {}
            other => drop(self.scalars.insert(other.to_owned(), quantity.value())),
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

fn container_requests(container: &Container, defaults: bool) -> Resource {
    let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut resource = Resource::from_list(list);
    let missing = |name: &str| list.is_none_or(|list| !list.contains_key(name));
    if defaults && missing("cpu") {
        resource.milli_cpu = DEFAULT_MILLI_CPU;
    }
    if defaults && missing("memory") {
        resource.memory_bytes = DEFAULT_MEMORY_BYTES;
    }
    resource
}

/// What a running pod needs at most at one time: its containers and sidecars together, or one init
/// container with the sidecars started before it; what the pod as a whole asks for overrules that.
fn requests(spec: &PodSpec, defaults: bool) -> Resource {
    let mut total = Resource::default();
    for container in &spec.containers {
        total.add(&container_requests(container, defaults));
    }
    let mut sidecars = Resource::default();
    let mut starting = Resource::default();
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container, defaults);
        if container.restart_policy.as_deref() == Some("Always") {
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
    for (name, text) in spec.resources.iter().flat_map(|r| r.requests.iter().flatten()) {
        if name == "cpu" || name == "memory" || name.starts_with("hugepages-") {
            total.set(name, text);
        }
    }
    total.add(&Resource::from_list(spec.overhead.as_ref()));
    total
}

/// What the pod asks for.
pub fn pod_requests(pod: &Pod) -> Resource {
    pod.spec.as_ref().map(|spec| requests(spec, false)).unwrap_or_default()
}

/// What the pod counts for when nodes are compared: containers that ask for no CPU or memory are
/// taken to need some.
pub fn pod_requests_or_default(pod: &Pod) -> Resource {
    pod.spec.as_ref().map(|spec| requests(spec, true)).unwrap_or_default()
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
    fn containers_that_ask_for_nothing_count_for_something() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, container("1", "1Gi")]}});
        let pod: Pod = serde_json::from_value(pod).expect("a pod");
        let got = pod_requests_or_default(&pod);
        assert_eq!((got.milli_cpu, got.memory_bytes), (1100, (200 << 20) + (1 << 30)));
    }
}
