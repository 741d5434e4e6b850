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
    if let Some(whole) = of_pod(pod) {
        // What is asked for the pod as a whole counts instead of the containers'.
        for resource in ["cpu", "memory"] {
            let request = read(whole.requests.as_ref(), resource);
            let limit = read(whole.limits.as_ref(), resource);
            best_effort &= request.is_none() && limit.is_none();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
        return class(best_effort, guaranteed);
    }
    for container in pod::init_containers(pod).iter().chain(pod::containers(pod)) {
        for resource in ["cpu", "memory"] {
            let request = request_milli(container, resource);
            let limit = limit_milli(container, resource);
            best_effort &= request.is_none() && limit.is_none();
            guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    class(best_effort, guaranteed)
}

fn class(best_effort: bool, guaranteed: bool) -> &'static str {
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

/// What of the node and its configuration the limits of containers follow from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// The node's memory, bytes.
    pub memory_bytes: i64,
    /// Its swap, bytes.
    pub swap_bytes: i64,
    /// The kernel can limit it.
    pub swap_limits: bool,
    /// What is configured.
    pub terms: Terms,
}

/// How containers are limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Limits of processor time are quotas.
    pub cpu_quotas: bool,
    /// The period of these, microseconds.
    pub cpu_period_us: i64,
    /// Burstable pods may swap, each container in proportion to the memory it asks for.
    pub swap: bool,
    /// Out of memory, one process of a container ends and not all.
    pub single_process_ends: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self { cpu_quotas: true, cpu_period_us: 100_000, swap: false, single_process_ends: false }
    }
}

impl Basis {
    /// The quota of processor time that is a limit of thousandths, and its period.
    fn quota(self, limit: i128) -> (i64, i64) {
        if !self.terms.cpu_quotas {
            return (0, 0);
        }
        let period = self.terms.cpu_period_us;
        let quota = i64::try_from(limit * i128::from(period) / 1_000).unwrap_or(i64::MAX);
        // The kernel knows no less than a millisecond.
        (quota.max(1_000), period)
    }

    /// How much of its memory a container may have swapped out, bytes.
    fn swap(self, pod: &Pod, container: &Container) -> i64 {
        let request = request_milli(container, "memory");
        let fixed = request.is_none() || request == limit_milli(container, "memory");
        if !self.terms.swap || fixed || is_critical(pod) || qos_class(pod) != "Burstable" {
            return 0;
        }
        let asked = request.unwrap_or(0) / 1_000;
        let part = asked * i128::from(self.swap_bytes) / i128::from(self.memory_bytes.max(1));
        i64::try_from(part).unwrap_or(0)
    }
}

/// Whether the container's limit is that of its pod as a whole.
pub fn inherits(pod: &Pod, container: &Container, resource: &str) -> bool {
    limit_milli(container, resource).is_none() && limit_or_whole(pod, container, resource).is_some()
}

/// A limit of the container, or else of its pod as a whole.
fn limit_or_whole(pod: &Pod, container: &Container, resource: &str) -> Option<i128> {
    let whole = || read(of_pod(pod).and_then(|r| r.limits.as_ref()), resource);
    limit_milli(container, resource).or_else(whole)
}

/// The container's resources as CRI carries them.
pub fn for_container(
    pod: &Pod,
    container: &Container,
    basis: Basis,
) -> cri::LinuxContainerResources {
    let mut out = cri::LinuxContainerResources {
        oom_score_adj: oom_score_adj(pod, container, basis.memory_bytes),
        ..Default::default()
    };
    let cpu_limit = limit_or_whole(pod, container, "cpu");
    out.cpu_shares = cpu_shares(request_milli(container, "cpu").or(cpu_limit).unwrap_or(0));
    if let Some(limit) = cpu_limit {
        (out.cpu_quota, out.cpu_period) = basis.quota(limit);
    }
    let swap = basis.swap(pod, container);
    if let Some(limit) = limit_or_whole(pod, container, "memory") {
        out.memory_limit_in_bytes = i64::try_from(limit / 1_000).unwrap_or(i64::MAX);
        out.memory_swap_limit_in_bytes = out.memory_limit_in_bytes.saturating_add(swap);
    }
    let ends = if basis.terms.single_process_ends { "0" } else { "1" };
    out.unified.insert("memory.oom.group".to_owned(), ends.to_owned());
    // A runtime that cannot limit it would not start the container.
    if basis.swap_limits {
        out.unified.insert("memory.swap.max".to_owned(), swap.to_string());
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
pub fn for_sandbox(pod: &Pod, basis: Basis) -> cri::LinuxContainerResources {
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
        (out.cpu_quota, out.cpu_period) = basis.quota(limit);
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

fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0) >= 2_000_000_000
}

fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i64 {
    if is_critical(pod) {
        return -997;
    }
    match qos_class(pod) {
        "Guaranteed" => return -997,
        "BestEffort" => return 1000,
        _ => {}
    }
    let request = |c: &Container| request_milli(c, "memory").unwrap_or(0) / 1_000;
    let share = unclaimed_share(pod);
    let adjust = |request: i128| {
        let part = 1000 * (request + share) / i128::from(memory_capacity.max(1));
        1000 - i64::try_from(part).unwrap_or(1000)
    };
    let mut score = adjust(request(container));
    if pod::is_sidecar(container)
        && pod::init_containers(pod).iter().any(|c| c.name == container.name)
    {
        // A sidecar outlives those it is there for.
        let least = pod::containers(pod).iter().map(request).min().unwrap_or(0);
        score = score.min(adjust(least));
    }
    score.clamp(3, 999)
}

/// What of the memory asked for the pod as a whole no container asks for, evenly for each of them.
fn unclaimed_share(pod: &Pod) -> i128 {
    let Some(whole) = read(of_pod(pod).and_then(|r| r.requests.as_ref()), "memory") else {
        return 0;
    };
    let sidecars = pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c));
    let all: Vec<&Container> = pod::containers(pod).iter().chain(sidecars).collect();
    let claimed: i128 = all.iter().map(|c| request_milli(c, "memory").unwrap_or(0)).sum();
    (whole - claimed).max(0) / 1_000 / (all.len().max(1) as i128)
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

    fn basis() -> Basis {
        let terms = Terms::default();
        Basis { memory_bytes: 1 << 33, swap_bytes: 1 << 32, swap_limits: true, terms }
    }

    #[test]
    fn what_is_asked_for_the_pod_counts_for_its_containers() {
        let of = pod(serde_json::json!({"spec": {
            "resources": {"requests": {"memory": "4Gi"}, "limits": {"cpu": "1", "memory": "5Gi"}},
            "initContainers": [{"name": "side", "restartPolicy": "Always"}],
            "containers": [
                {"name": "a", "resources": {"requests": {"memory": "1Gi"}}},
                {"name": "b", "resources": {"limits": {"cpu": "500m", "memory": "1Gi"},
                    "requests": {"memory": "1Gi"}}}]}}));
        assert_eq!(qos_class(&of), "Burstable");
        let told = |container: &Container| {
            let r = for_container(&of, container, basis());
            (r.cpu_quota, r.memory_limit_in_bytes >> 20, r.oom_score_adj)
        };
        // Two of four Gi are nobody's, so each has 682 Mi more; and the sidecar ends no earlier than the others.
        assert_eq!(told(&pod::containers(&of)[0]), (100_000, 5120, 792));
        assert_eq!(told(&pod::containers(&of)[1]), (50_000, 1024, 792));
        assert_eq!(told(&pod::init_containers(&of)[0]), (100_000, 5120, 792));
        let guaranteed = serde_json::json!({"spec": {"containers": [{"name": "c"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}});
        assert_eq!(qos_class(&pod(guaranteed)), "Guaranteed");
    }

    #[test]
    fn terms_of_limits() {
        let limited = serde_json::json!({"requests": {"memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "2Gi"}});
        let fixed = serde_json::json!({"requests": {"memory": "1Gi"}, "limits": {"memory": "1Gi"}});
        let swap = Terms { swap: true, ..Terms::default() };
        let loose = Terms { cpu_quotas: false, single_process_ends: true, ..Terms::default() };
        let short = Terms { cpu_period_us: 10_000, ..Terms::default() };
        for (resources, terms, quota, swap, ends) in [
            (&limited, Terms::default(), 50_000, 0, "1"),
            (&limited, short, 5_000, 0, "1"),
            (&limited, loose, 0, 0, "0"),
            (&limited, swap, 50_000, 1 << 29, "1"),
            (&fixed, swap, 0, 0, "1"),
        ] {
            let of = with(resources.clone());
            let r = for_container(&of, &pod::containers(&of)[0], Basis { terms, ..basis() });
            assert_eq!((r.cpu_quota, r.unified["memory.oom.group"].as_str()), (quota, ends));
            assert_eq!(r.unified["memory.swap.max"], swap.to_string());
            assert_eq!(r.memory_swap_limit_in_bytes - r.memory_limit_in_bytes, swap);
            let without = Basis { terms, swap_limits: false, ..basis() };
            let r = for_container(&of, &pod::containers(&of)[0], without);
            assert_eq!(r.unified.keys().collect::<Vec<_>>(), ["memory.oom.group"]);
        }
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
        let r = for_container(&pod, &pod.spec.as_ref().unwrap().containers[0], basis());
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
