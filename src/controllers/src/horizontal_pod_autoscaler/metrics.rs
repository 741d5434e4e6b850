//! How many replicas the use of a resource asks for.
//!
//! Source: `pkg/controller/podautoscaler/replica_calculator.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::pods;

/// Deviations smaller than this are left alone, where the autoscaler does not say otherwise.
const TOLERANCE: f64 = 0.1;

/// How far the use may be from what is aimed at, downwards and upwards, before the size changes.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    down: f64,
    up: f64,
}

impl Tolerances {
    /// Those that the behaviour asks for.
    pub fn new(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Self {
        let of = |rules: Option<&HPAScalingRules>| {
            let text = rules.and_then(|rules| rules.tolerance.as_ref());
            text.map_or(TOLERANCE, |text| super::milli(text) as f64 / 1000.0)
        };
        Self {
            down: of(behavior.and_then(|b| b.scale_down.as_ref())),
            up: of(behavior.and_then(|b| b.scale_up.as_ref())),
        }
    }

    /// Whether a ratio of use to aim is left alone.
    pub fn allow(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}
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

/// Thousandths that the pod, or one container of it, asks for; or the container that asks for nothing.
fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, String> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(0) };
    let asked = |list: Option<&BTreeMap<String, Text>>| list?.get(resource).map(super::milli);
    let whole = spec.resources.as_ref().and_then(|all| asked(all.requests.as_ref()));
    if let (None, Some(whole)) = (container, whole) {
        return Ok(whole);
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut sum = 0;
    for found in spec.containers.iter().chain(sidecars) {
        if container.is_none_or(|name| name == found.name) {
            let own = found.resources.as_ref().and_then(|all| asked(all.requests.as_ref()));
            sum += own.ok_or_else(|| found.name.clone())?;
        }
    }
    Ok(sum)
}

/// Whether a pod's use says nothing yet.
fn is_unready(pod: &Pod, resource: &str, now: Timestamp) -> bool {
    if resource != "cpu" {
        return false;
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
    (current, tolerances): (i32, Tolerances),
    now: Timestamp,
) -> Result<Outcome, String> {
    let alive = pods.iter().map(AsRef::as_ref).filter(|pod: &&Pod| {
        pod.metadata.deletion_timestamp.is_none() && pods::phase(pod) != "Failed"
    });
    let (mut measured, mut unready, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for pod in alive {
        let asked = match (target, request(pod, resource, container)) {
            (Target::Utilization(_), Err(silent)) => {
                return Err(format!(
                    "missing request for {resource} in container {silent} of Pod {}",
                    pod.name_any()
                ));
            }
            (_, asked) => asked.unwrap_or(0),
        };
        match used.get(&pod.name_any()) {
            _ if pods::phase(pod) == "Pending" => unready.push(asked),
            None => missing.push(asked),
            Some(_) if is_unready(pod, resource, now) => unready.push(asked),
            Some(used) => measured.push((*used, asked)),
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
    if missing.is_empty() && (unready.is_empty() || first <= 1.0) {
        let wanted = (first * measured.len() as f64).ceil() as i32;
        return Ok(outcome(if tolerances.allow(first) { current } else { wanted }));
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
    let stays = tolerances.allow(second) || turned || backwards;
    Ok(outcome(if stays { current } else { wanted }))
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
        let current = (pods.len() as i32, Tolerances::new(None));
        replicas(pods, &used, ("cpu", None), target, current, now)
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
    fn a_pod_may_ask_as_a_whole() {
        let mut whole = pod("a", "True");
        let spec = whole.spec.as_mut().expect("a spec");
        spec.containers[0].resources = None;
        spec.resources = serde_json::from_value(json!({"requests": {"cpu": "2"}})).expect("some");
        let outcome = run(&[whole], &[("a", 1000)], Target::Utilization(50)).expect("metrics");
        assert_eq!((outcome.utilization, outcome.replicas), (Some(50), 1));
    }

    #[test]
    fn each_direction_has_a_tolerance_of_its_own() {
        let behavior = serde_json::from_value(
            json!({"scaleUp": {"tolerance": "50m"}, "scaleDown": {"tolerance": "0.3"}}),
        )
        .expect("a behaviour");
        let (plain, own) = (Tolerances::new(None), Tolerances::new(Some(&behavior)));
        for (ratio, usual, special) in [
            (1.0, true, true),
            (1.07, true, false),
            (1.2, false, false),
            (0.85, false, true),
            (0.6, false, false),
        ] {
            assert_eq!((plain.allow(ratio), own.allow(ratio)), (usual, special), "{ratio}");
        }
    }

    #[test]
    fn a_pod_that_is_not_measured_is_missing_before_it_is_unready() {
        // Shrinking, what is missing is taken to use its due; what is not ready is left out.
        let pods = [pod("a", "True"), pod("b", "True"), pod("c", "False")];
        let used = [("a", 100), ("b", 100)];
        assert_eq!(run(&pods, &used, Target::Utilization(50)).expect("metrics").replicas, 3);
        let used = [("a", 100), ("b", 100), ("c", 0)];
        assert_eq!(run(&pods, &used, Target::Utilization(50)).expect("metrics").replicas, 1);
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut plain = pod("a", "True");
        plain.spec.as_mut().expect("a spec").containers[0].resources = None;
        let problem = run(&[plain], &[("a", 1)], Target::Utilization(50)).expect_err("no request");
        assert_eq!(problem, "missing request for cpu in container c of Pod a");
        assert!(run(&[pod("a", "False")], &[("a", 1)], Target::Utilization(50)).is_err());
    }
}
