//! Requests and limits: quality of service, and what the runtime is told of them.
//!
//! Source of behaviour: `pkg/apis/core/v1/helper/qos`, `kuberuntime_container_linux.go`,
//! `pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`.

use std::collections::BTreeMap;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{pod, quantity};

type List = BTreeMap<String, Quantity>;

/// The pod's quality of service class.
pub fn qos_class(pod: &Pod) -> &'static str {
    if let Some(class) = pod.status.as_ref().and_then(|s| s.qos_class.as_deref()) {
        return match class {
            "Guaranteed" => "Guaranteed",
            "Burstable" => "Burstable",
            _ => "BestEffort",
        };
    }
    let mut best_effort = true;
    let mut guaranteed = true;
    for container in pod::init_containers(pod).iter().chain(pod::containers(pod)) {
        for resource in ["cpu", "memory"] {
            let request = request_milli(container, resource);
            let limit = limit_milli(container, resource);
            best_effort &= request.is_none() && limit.is_none();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (best_effort, guaranteed) {
        (true, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}

/// A container's limit in thousandths; zero counts as none.
pub fn limit_milli(container: &Container, resource: &str) -> Option<i128> {
    read(container.resources.as_ref().and_then(|r| r.limits.as_ref()), resource)
}

/// A container's request in thousandths; zero counts as none.
pub fn request_milli(container: &Container, resource: &str) -> Option<i128> {
    read(container.resources.as_ref().and_then(|r| r.requests.as_ref()), resource)
}

fn read(list: Option<&List>, resource: &str) -> Option<i128> {
    list?.get(resource).and_then(quantity::milli).filter(|v| *v != 0)
}

/// What the pod as a whole requests of `resource`, in thousandths: the larger of what runs together
/// and what any init container needs beside the sidecars started before it, plus overhead.
pub fn pod_request_milli(pod: &Pod, resource: &str) -> i128 {
    let regular: i128 =
        pod::containers(pod).iter().map(|c| request_milli(c, resource).unwrap_or(0)).sum();
    let mut sidecars = 0;
    let mut peak = 0;
    for container in pod::init_containers(pod) {
        let own = request_milli(container, resource).unwrap_or(0);
        if pod::is_sidecar(container) {
            sidecars += own;
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + own);
        }
    }
    let overhead = pod.spec.as_ref().and_then(|s| s.overhead.as_ref());
    // What is asked for the pod as a whole counts instead of the containers'.
    if let Some(whole) = read(of_pod(pod).and_then(|r| r.requests.as_ref()), resource) {
        return whole + read(overhead, resource).unwrap_or(0);
    }
    (regular + sidecars).max(peak) + read(overhead, resource).unwrap_or(0)
}

/// Resources of the pod as a whole.
fn of_pod(pod: &Pod) -> Option<&ResourceRequirements> {
    pod.spec.as_ref()?.resources.as_ref()
}

/// The container's resources as CRI carries them.
pub fn for_container(
    pod: &Pod,
    container: &Container,
    memory_capacity: i64,
) -> cri::LinuxContainerResources {
    let mut out = cri::LinuxContainerResources {
        oom_score_adj: oom_score_adj(pod, container, memory_capacity),
        ..Default::default()
    };
    let cpu_limit = limit_milli(container, "cpu");
    out.cpu_shares = cpu_shares(request_milli(container, "cpu").or(cpu_limit).unwrap_or(0));
    if let Some(limit) = cpu_limit {
        out.cpu_period = 100_000;
        out.cpu_quota = i64::try_from(limit * 100).unwrap_or(i64::MAX).max(1_000);
    }
    if let Some(limit) = limit_milli(container, "memory") {
        out.memory_limit_in_bytes = i64::try_from(limit / 1_000).unwrap_or(i64::MAX);
    }
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    for (name, amount) in limits.into_iter().flatten() {
        let Some(size) = name.strip_prefix("hugepages-") else { continue };
        let Some(size_bytes) = quantity::value(&Quantity(size.into())) else { continue };
        out.hugepage_limits.push(cri::HugepageLimit {
            page_size: page_size(size_bytes),
            limit: quantity::value(amount).unwrap_or(0).max(0) as u64,
        });
    }
    out
}

/// The sum of the pod's resources, for the sandbox.
pub fn for_sandbox(pod: &Pod) -> cri::LinuxContainerResources {
    let sum = |f: &dyn Fn(&Container) -> Option<i128>| -> Option<i128> {
        let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
        pod::containers(pod)
            .iter()
            .chain(sidecars)
            .map(f)
            .try_fold(0, |total, v| v.map(|v| total + v))
    };
    let mut out = cri::LinuxContainerResources {
        cpu_shares: cpu_shares(pod_request_milli(pod, "cpu")),
        ..Default::default()
    };
    let whole = |resource: &str| read(of_pod(pod).and_then(|r| r.limits.as_ref()), resource);
    if let Some(limit) = whole("cpu").or_else(|| sum(&|c| limit_milli(c, "cpu"))) {
        out.cpu_period = 100_000;
        out.cpu_quota = i64::try_from(limit * 100).unwrap_or(i64::MAX).max(1_000);
    }
    if let Some(limit) = whole("memory").or_else(|| sum(&|c| limit_milli(c, "memory"))) {
        out.memory_limit_in_bytes = i64::try_from(limit / 1_000).unwrap_or(i64::MAX);
    }
    out
}

/// CPU shares for thousandths of a CPU.
pub fn cpu_shares(milli: i128) -> i64 {
    i64::try_from(milli * 1024 / 1000).unwrap_or(262_144).clamp(2, 262_144)
}

fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= 2_000_000_000 {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => return -997,
        "BestEffort" => return 1000,
        _ => {}
    }
    let request = request_milli(container, "memory").unwrap_or(0) / 1_000;
    let adjust =
        1000 - i64::try_from(1000 * request / i128::from(memory_capacity.max(1))).unwrap_or(1000);
    adjust.clamp(3, 999)
}

fn page_size(bytes: i64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{}GB", b >> 30),
        b if b >= 1 << 20 => format!("{}MB", b >> 20),
        b => format!("{}KB", b >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).unwrap()
    }

    fn with(resources: serde_json::Value) -> Pod {
        pod(serde_json::json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}))
    }

    #[test]
    fn classes() {
        for (resources, class) in [
            (serde_json::json!({}), "BestEffort"),
            (serde_json::json!({"requests": {"cpu": "1"}}), "Burstable"),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}),
                "Burstable",
            ),
        ] {
            assert_eq!(qos_class(&with(resources)), class);
        }
    }

    #[test]
    fn cri_resources() {
        let pod = with(serde_json::json!({"limits": {"cpu": "500m", "memory": "64Mi"}}));
        let r = for_container(&pod, &pod.spec.as_ref().unwrap().containers[0], 1 << 33);
        assert_eq!((r.cpu_quota, r.cpu_period, r.cpu_shares), (50_000, 100_000, 512));
        assert_eq!(r.memory_limit_in_bytes, 64 << 20);
        assert_eq!(r.oom_score_adj, -997);
    }

    #[test]
    fn requests_of_init_containers_count_by_their_peak() {
        let pod = pod(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "init", "resources": {"requests": {"cpu": "2"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}));
        assert_eq!(pod_request_milli(&pod, "cpu"), 2_100);
    }
}
