//! Which pods make room for a critical one that the node could not take otherwise. Pure.
//!
//! Source of behaviour: `pkg/kubelet/preemption/preemption.go`, the page about guaranteed scheduling of
//! critical add-on pods in the Kubernetes documentation.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::admission::Shortage;
use crate::eviction::is_critical;
use crate::resources;

/// Why a pod that makes room has failed.
pub const REASON: &str = "Preempting";
/// What it is told.
pub const MESSAGE: &str = "Preempted in order to admit critical pod";
/// What its condition says.
pub const DISRUPTED: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";

/// What is still missing, in thousandths, by resource.
type Missing = BTreeMap<String, i128>;

/// The pods among `others` whose end leaves room for `of`; none if that cannot be had.
pub fn victims(of: &Pod, others: &[Arc<Pod>], shortages: &[Shortage]) -> Option<Vec<Arc<Pod>>> {
    let missing: Missing = shortages.iter().map(|s| (s.resource.clone(), s.missing())).collect();
    let class = |class: &str| -> Vec<Arc<Pod>> {
        let lesser = others.iter().filter(|p| yields(p, of) && resources::qos_class(p) == class);
        lesser.cloned().collect()
    };
    let [best_effort, burstable, guaranteed] = ["BestEffort", "Burstable", "Guaranteed"].map(class);
    // Of the better classes only those go without whom all of the lesser would not do.
    let guaranteed = nearest(guaranteed, without(&missing, [&best_effort, &burstable]))?;
    let burstable = nearest(burstable, without(&missing, [&best_effort, &guaranteed]))?;
    let best_effort = nearest(best_effort, without(&missing, [&burstable, &guaranteed]))?;
    Some([best_effort, burstable, guaranteed].concat())
}

fn yields(other: &Pod, to: &Pod) -> bool {
    let priority = |p: &Pod| p.spec.as_ref().and_then(|s| s.priority);
    let more = priority(to).zip(priority(other)).is_some_and(|(own, its)| own > its);
    (is_critical(to) && !is_critical(other)) || more
}

fn held(by: &Pod, resource: &str) -> i128 {
    if resource == "pods" { 1_000 } else { resources::pod_request_milli(by, resource) }
}

/// What is missing once `gone` are.
fn without<const N: usize>(missing: &Missing, gone: [&Vec<Arc<Pod>>; N]) -> Missing {
    let left = missing.iter().map(|(resource, amount)| {
        let freed: i128 = gone.iter().flat_map(|pods| pods.iter()).map(|p| held(p, resource)).sum();
        (resource.clone(), amount - freed)
    });
    left.filter(|(_, amount)| *amount > 0).collect()
}

/// As few of `pods` as free what is missing: always the one that comes nearest to it, and of several such
/// the one that holds the least.
fn nearest(mut pods: Vec<Arc<Pod>>, mut missing: Missing) -> Option<Vec<Arc<Pod>>> {
    let mut chosen = Vec::new();
    while !missing.is_empty() {
        let rank = |p: &Arc<Pod>| (distance(p, &missing), sizes(p));
        let ranked = pods.iter().enumerate().map(|(at, p)| (rank(p), at));
        let least = ranked.min_by(|((a, x), _), ((b, y), _)| a.total_cmp(b).then(x.cmp(y)));
        let next = pods.swap_remove(least?.1);
        missing = without(&missing, [&vec![next.clone()]]);
        chosen.push(next);
    }
    Some(chosen)
}

/// How much would still be missing without the pod: each resource counts alike, whatever its amount.
fn distance(of: &Pod, missing: &Missing) -> f64 {
    let parts = missing.iter().map(|(resource, amount)| {
        let left = (amount - held(of, resource)).max(0);
        (left as f64 / *amount as f64).powi(2)
    });
    parts.sum()
}

/// Memory weighs more than processors: it cannot be taken back.
fn sizes(of: &Pod) -> (i128, i128) {
    let size = |resource| resources::pod_request_milli(of, resource);
    (size("memory"), size("cpu"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission, pod};
    use serde_json::json;

    fn of(name: &str, priority: i32, class: &str, cpu: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "uid": name}, "status": {"qosClass": class},
            "spec": {"priority": priority, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_least_and_the_fewest_make_room() {
        let critical = 2_000_000_000;
        let all = [
            of("free", 0, "BestEffort", "0"),
            of("small", 0, "Burstable", "200m"),
            of("big", 0, "Burstable", "800m"),
            of("sure", 0, "Guaranteed", "500m"),
            of("system", critical, "Burstable", "500m"),
        ];
        let cases = [
            ("100m", "6", Some("")),
            ("100m", "5", Some("free")),
            ("100m", "2", Some("free small big sure")),
            ("100m", "1", None),
            ("150m", "6", Some("small")),
            ("500m", "6", Some("big")),
            ("950m", "6", Some("small big")),
            ("1500m", "6", Some("small big sure")),
            ("1700m", "6", None),
            ("150m", "5", Some("small")),
        ];
        for (wanted, pods, names) in cases {
            let quantity =
                |text: &str| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.into());
            let allocatable =
                [("cpu".to_owned(), quantity("2100m")), ("pods".to_owned(), quantity(pods))];
            let allocatable = allocatable.into();
            let preemptor = of("critical", critical, "Burstable", wanted);
            let short = admission::shortages(&preemptor, &allocatable, &all);
            let chosen = victims(&preemptor, &all, &short);
            let told = chosen.map(|pods| {
                let mut pods: Vec<_> = pods.iter().map(|p| pod::name(p).to_owned()).collect();
                pods.sort_by_key(|name| all.iter().position(|p| pod::name(p) == name));
                pods.join(" ")
            });
            assert_eq!(told.as_deref(), names, "{wanted} of {pods}");
        }
    }
}
