//! How many replicas the use of a resource asks for.
//!
//! Source: `pkg/controller/podautoscaler/replica_calculator.go`.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::pods;

/// Deviations smaller than this are left alone.
pub const TOLERANCE: f64 = 0.1;
/// After their start pods use more than they will: they are not counted before they are ready.
const INITIALISATION_S: i64 = 300;
const FIRST_READINESS_S: i64 = 30;

/// What is aimed at.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// Percent of what the pods ask for.
    Utilization(i64),
    /// Thousandths, for each pod.
    Average(i64),
}

impl Target {
    /// The use that is aimed at for a pod that asks for so much.
    fn of(self, asked: i64) -> f64 {
        match self {
            Self::Utilization(percent) => asked as f64 * percent as f64 / 100.0,
            Self::Average(milli) => milli as f64,
        }
    }
}

/// What came out: the replicas, the present use in percent of requests, and per pod in thousandths.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    pub replicas: i32,
    pub utilization: Option<i64>,
    pub average: i64,
}

/// Thousandths that the pod, or one container of it, asks for.
fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Option<i64> {
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut sum = 0;
    for found in spec.containers.iter().chain(sidecars) {
        if container.is_none_or(|name| name == found.name) {
            let text = found.resources.as_ref()?.requests.as_ref()?.get(resource)?;
            sum += text.0.parse::<Quantity>().ok()?.milli_value();
        }
    }
    Some(sum)
}

/// Whether a pod's use says nothing yet.
fn is_unready(pod: &Pod, resource: &str, now: Timestamp) -> bool {
    if resource != "cpu" || pods::phase(pod) == "Pending" {
        return pods::phase(pod) == "Pending";
    }
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else {
        return true;
    };
    let changed = ready.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    let young = now.duration_since(started.0).as_secs() < INITIALISATION_S;
    let never = changed.duration_since(started.0).as_secs() < FIRST_READINESS_S;
    ready.status == "False" && (young || never)
}

/// Computes the replicas. `used` holds thousandths by pod; `container` narrows the look to one.
pub fn replicas(
    pods: &[impl AsRef<Pod>],
    used: &BTreeMap<String, i64>,
    (resource, container): (&str, Option<&str>),
    target: Target,
    current: i32,
    now: Timestamp,
) -> Result<Outcome, String> {
    let alive = pods.iter().map(AsRef::as_ref).filter(|pod: &&Pod| {
        pod.metadata.deletion_timestamp.is_none() && pods::phase(pod) != "Failed"
    });
    let (mut measured, mut unready, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for pod in alive {
        let asked = match (target, request(pod, resource, container)) {
            (Target::Utilization(_), None) => {
                let place = container.map_or(String::new(), |name| format!(" in container {name}"));
                return Err(format!(
                    "missing request for {resource}{place} of Pod {}",
                    pod.name_any()
                ));
            }
            (_, asked) => asked.unwrap_or(0),
        };
        match used.get(&pod.name_any()) {
            _ if is_unready(pod, resource, now) => unready.push(asked),
            Some(used) => measured.push((*used, asked)),
            None => missing.push(asked),
        }
    }
    if measured.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let ratio = |pods: &[(i64, i64)]| -> f64 {
        let used: i64 = pods.iter().map(|(used, _)| used).sum();
        let wanted: f64 = pods.iter().map(|(_, asked)| target.of(*asked)).sum();
        if wanted == 0.0 { 1.0 } else { used as f64 / wanted }
    };
    let first = ratio(&measured);
    let sum: i64 = measured.iter().map(|(used, _)| used).sum();
    let asked: i64 = measured.iter().map(|(_, asked)| asked).sum();
    let outcome = |replicas: i32| Outcome {
        replicas,
        utilization: matches!(target, Target::Utilization(_))
            .then(|| (sum * 100).checked_div(asked).unwrap_or(0)),
        average: sum / measured.len() as i64,
    };
    let small = |ratio: f64| (ratio - 1.0).abs() <= TOLERANCE;
    if missing.is_empty() && (unready.is_empty() || first <= 1.0) {
        let wanted = (first * measured.len() as f64).ceil() as i32;
        return Ok(outcome(if small(first) { current } else { wanted }));
    }
    // What is not known is taken to speak against a change.
    let mut all = measured.clone();
    if first < 1.0 {
        let due = |asked: i64| match target {
            Target::Utilization(percent) => asked * percent.max(100) / 100,
            Target::Average(milli) => milli,
        };
        all.extend(missing.iter().map(|asked| (due(*asked), *asked)));
    } else if first > 1.0 {
        all.extend(missing.iter().chain(&unready).map(|asked| (0, *asked)));
    }
    let second = ratio(&all);
    let wanted = (second * all.len() as f64).ceil() as i32;
    let turned = (first < 1.0) != (second < 1.0);
    let backwards = (second < 1.0 && wanted > current) || (second > 1.0 && wanted < current);
    Ok(outcome(if small(second) || turned || backwards { current } else { wanted }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: &str) -> Box<Pod> {
        Box::new(
            serde_json::from_value(json!({"metadata": {"name": name},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {"phase": "Running", "startTime": "2026-01-01T00:00:00Z", "conditions": [
                    {"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:10Z"}]}}))
            .expect("a pod"),
        )
    }

    fn run(pods: &[Box<Pod>], used: &[(&str, i64)], target: Target) -> Result<Outcome, String> {
        let used = used.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect();
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        replicas(pods, &used, ("cpu", None), target, pods.len() as i32, now)
    }

    #[test]
    fn use_decides_the_size() {
        let three = [pod("a", "True"), pod("b", "True"), pod("c", "True")];
        let half = Target::Utilization(50);
        for (used, target, want) in [
            (vec![("a", 500), ("b", 500), ("c", 520)], half, 3),
            (vec![("a", 1000), ("b", 1000), ("c", 1000)], half, 6),
            (vec![("a", 100), ("b", 100), ("c", 100)], half, 1),
            // One is missing: it is taken to need nothing when growing, and its due when shrinking.
            (vec![("a", 1000), ("b", 1000)], half, 4),
            (vec![("a", 100), ("b", 100)], half, 3),
            (vec![("a", 300), ("b", 300), ("c", 300)], Target::Average(100), 9),
        ] {
            assert_eq!(run(&three, &used, target).expect("metrics").replicas, want, "{used:?}");
        }
        let outcome = run(&three, &[("a", 900), ("b", 0), ("c", 0)], half).expect("metrics");
        assert_eq!((outcome.utilization, outcome.average), (Some(30), 300));
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut plain = pod("a", "True");
        plain.spec.as_mut().expect("a spec").containers[0].resources = None;
        let problem = run(&[plain], &[("a", 1)], Target::Utilization(50)).expect_err("no request");
        assert_eq!(problem, "missing request for cpu of Pod a");
        assert!(run(&[pod("a", "False")], &[("a", 1)], Target::Utilization(50)).is_err());
    }
}
