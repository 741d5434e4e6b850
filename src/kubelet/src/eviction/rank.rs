//! Whom a node under pressure ends first, and what it says of it. Pure.
//!
//! Source of behaviour: `pkg/kubelet/eviction/helpers.go` (`rankMemoryPressure`, `rankDiskPressureFunc`,
//! `rankPIDPressure`, `evictionMessage`).

use std::cmp::Reverse;
use std::fmt::Write as _;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::threshold::{Reading, Signal};
use crate::quantity::binary;
use crate::{pod, resources};

/// A pod, and what it uses of the resource in question.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The pod.
    pub pod: Arc<Pod>,
    /// Bytes, inodes or processes in use.
    pub used: u64,
    /// The same of each container, by name.
    pub containers: Vec<(String, u64)>,
}

impl Candidate {
    fn requested(&self, signal: Signal) -> u64 {
        let bytes = match signal {
            Signal::Memory => resources::pod_request_milli(&self.pod, "memory"),
            Signal::NodeDisk | Signal::ImageDisk => {
                resources::pod_request_milli(&self.pod, "ephemeral-storage")
            }
            _ => 0,
        };
        u64::try_from(bytes / 1_000).unwrap_or(u64::MAX)
    }
}

/// A pod the node keeps whatever it lacks.
pub fn is_critical(of: &Pod) -> bool {
    pod::is_static(of)
        || of
            .spec
            .as_ref()
            .and_then(|s| s.priority)
            .is_some_and(|priority| priority >= 2_000_000_000)
}

/// The pods in the order in which they are ended.
pub fn order(signal: Signal, mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    candidates.retain(|c| !is_critical(&c.pod));
    candidates.sort_by_key(|c| {
        let requested = c.requested(signal);
        let over = i128::from(c.used) - i128::from(requested);
        let priority = c.pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        // Processes have no requests.
        let exceeds = signal != Signal::Pids && over > 0;
        (!exceeds, priority, Reverse(over))
    });
    candidates
}

/// What an ended pod is told.
pub fn message(signal: Signal, reading: Reading, threshold: u64, victim: &Candidate) -> String {
    let resource = signal.resource();
    let amount = |n: u64| {
        if matches!(signal.resource(), "memory" | "ephemeral-storage") {
            human(n)
        } else {
            n.to_string()
        }
    };
    let mut out = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        amount(threshold),
        amount(reading.available)
    );
    if !matches!(resource, "memory" | "ephemeral-storage") {
        return out;
    }
    for (name, used) in &victim.containers {
        let Some((_, container)) = pod::find_container(&victim.pod, name) else { continue };
        let request = resources::request_milli(&container, resource).unwrap_or(0) / 1_000;
        let request = u64::try_from(request).unwrap_or(0);
        if *used > request {
            let _ = write!(
                out,
                "Container {name} was using {}, request is {}, has larger consumption of {resource}. ",
                amount(*used),
                if request == 0 { "0".to_owned() } else { binary(request) }
            );
        }
    }
    out
}

fn human(bytes: u64) -> String {
    if bytes != 0 && bytes.is_multiple_of(1 << 20) {
        binary(bytes)
    } else {
        format!("{}Ki", bytes >> 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, priority: i32, request: &str, used: u64) -> Candidate {
        let pod = serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "spec": {
            "priority": priority, "containers": [{"name": "c", "resources": {"requests": {"memory": request}}}]}}))
        .unwrap();
        Candidate { pod: Arc::new(pod), used, containers: vec![("c".into(), used)] }
    }

    #[test]
    fn those_above_their_requests_go_first_then_by_priority_then_by_excess() {
        let all = vec![
            candidate("within", 0, "1Gi", 512 << 20),
            candidate("important", 10, "1Mi", 900 << 20),
            candidate("little", 0, "1Mi", 2 << 20),
            candidate("much", 0, "1Mi", 800 << 20),
            candidate("critical", 2_000_001_000, "1Mi", 900 << 20),
        ];
        let names: Vec<String> =
            order(Signal::Memory, all).iter().map(|c| pod::name(&c.pod).to_owned()).collect();
        assert_eq!(names, ["much", "little", "important", "within"]);
    }

    #[test]
    fn messages_are_upstreams() {
        let reading = Reading { available: 50 << 20, capacity: 1 << 30 };
        let victim = candidate("p", 0, "100Mi", 200 << 20);
        assert_eq!(
            message(Signal::Memory, reading, 100 << 20, &victim),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was \
             using 200Mi, request is 100Mi, has larger consumption of memory. "
        );
        let reading = Reading { available: 5, capacity: 100 };
        assert_eq!(
            message(Signal::Pids, reading, 10, &victim),
            "The node was low on resource: pids. Threshold quantity: 10, available: 5. "
        );
    }
}
