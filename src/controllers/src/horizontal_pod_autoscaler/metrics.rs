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
    fn aim(self) -> i64 {
        match self {
            Self::Utilization(percent) => percent,
            Self::Average(milli) => milli,
        }
    }

    /// The use of these pods in the target's unit, whole as upstream has it; each is what it uses and asks for.
    fn measure(self, pods: &[(i64, i64)]) -> Result<i64, String> {
        let used: i64 = pods.iter().map(|(used, _)| used).sum();
        match self {
            Self::Utilization(_) => {
                let asked: i64 = pods.iter().map(|(_, asked)| asked).sum();
                let whole = (used * 100).checked_div(asked);
                whole.ok_or_else(|| "no metrics returned matched known pods".into())
            }
            Self::Average(_) => Ok(used / pods.len().max(1) as i64),
        }
    }

    fn ratio(self, pods: &[(i64, i64)]) -> Result<f64, String> {
        Ok(self.measure(pods)? as f64 / self.aim().max(1) as f64)
    }
}

/// What was measured of a pod: thousandths, and of which time if that is told.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// How much.
    pub used: i64,
    /// When it was measured.
    pub at: Option<Timestamp>,
    /// Over how long.
    pub window_s: i64,
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
fn is_unready(pod: &Pod, sample: &Sample, resource: &str, now: Timestamp) -> bool {
    if resource != "cpu" {
        return false;
    }
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else {
        return true;
    };
    let changed = ready.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    if now.duration_since(started.0).as_secs() < INITIALISATION_S {
        // What was measured before it was ready, even in part, tells of its start.
        let early = |at: Timestamp| at.duration_since(changed).as_secs() < sample.window_s;
        return ready.status == "False" || sample.at.is_some_and(early);
    }
    let never = changed.duration_since(started.0).as_secs() < FIRST_READINESS_S;
    ready.status == "False" && never
}

/// Pods by what is known of them (`groupPods`): measured ones with use and request, and of the others,
/// which are not ready or have no metrics, the requests.
#[derive(Default)]
struct Groups {
    measured: Vec<(i64, i64)>,
    unready: Vec<i64>,
    missing: Vec<i64>,
}

impl Groups {
    fn of(
        pods: &[impl AsRef<Pod>],
        used: &BTreeMap<String, Sample>,
        (resource, container): (&str, Option<&str>),
        target: Target,
        now: Timestamp,
    ) -> Result<Self, String> {
        let mut groups = Self::default();
        for pod in pods.iter().map(AsRef::as_ref) {
            let asked = match (target, request(pod, resource, container)) {
                (Target::Utilization(_), Err(silent)) => {
                    return Err(format!(
                        "missing request for {resource} in container {silent} of Pod {}",
                        pod.name_any()
                    ));
                }
                (_, asked) => asked.unwrap_or(0),
            };
            if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
                continue;
            }
            match used.get(&pod.name_any()) {
                _ if pods::phase(pod) == "Pending" => groups.unready.push(asked),
                None => groups.missing.push(asked),
                Some(sample) if is_unready(pod, sample, resource, now) => {
                    groups.unready.push(asked);
                }
                Some(sample) => groups.measured.push((sample.used, asked)),
            }
        }
        Ok(groups)
    }
}

/// Computes the replicas. `used` holds what was measured by pod; `container` narrows the look to one.
pub fn replicas(
    pods: &[impl AsRef<Pod>],
    used: &BTreeMap<String, Sample>,
    what: (&str, Option<&str>),
    target: Target,
    (current, tolerances): (i32, Tolerances),
    now: Timestamp,
) -> Result<Outcome, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".into());
    }
    let Groups { measured, unready, missing } = Groups::of(pods, used, what, target, now)?;
    if measured.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".into());
    }
    let first = target.ratio(&measured)?;
    let sum: i64 = measured.iter().map(|(used, _)| used).sum();
    let percent = matches!(target, Target::Utilization(_)).then(|| target.measure(&measured));
    let utilization = percent.transpose()?;
    let outcome =
        |replicas: i32| Outcome { replicas, utilization, average: sum / measured.len() as i64 };
    let needed = |ratio: f64, pods: usize| (ratio * pods as f64).ceil() as i32;
    let rebalanced = !unready.is_empty() && first > 1.0;
    if missing.is_empty() && !rebalanced {
        let stays = tolerances.allow(first);
        return Ok(outcome(if stays { current } else { needed(first, measured.len()) }));
    }
    // What is not known is taken to speak against a change.
    let due = |asked: i64| match target {
        Target::Utilization(percent) => asked * percent.max(100) / 100,
        Target::Average(milli) => milli,
    };
    let is_average = matches!(target, Target::Average(_));
    let mut all = measured.clone();
    if first < 1.0 {
        all.extend(missing.iter().map(|asked| (due(*asked), *asked)));
    } else if first > 1.0 || is_average {
        all.extend(missing.iter().map(|asked| (0, *asked)));
    }
    if rebalanced {
        all.extend(unready.iter().map(|asked| (0, *asked)));
    }
    let second = target.ratio(&all)?;
    let wanted = needed(second, all.len());
    let turned = (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0);
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
        let sample = |used: i64| Sample { used, ..Sample::default() };
        let used = used.iter().map(|(name, used)| ((*name).to_owned(), sample(*used))).collect();
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
        for (pods, used, want) in [
            (
                vec![pod("a", "False")],
                vec![("a", 1)],
                "did not receive metrics for targeted pods (pods might be unready)",
            ),
            (
                vec![],
                vec![("a", 1)],
                "no pods returned by selector while calculating replica count",
            ),
        ] {
            assert_eq!(run(&pods, &used, Target::Utilization(50)).expect_err("none"), want);
        }
    }

    /// Upstream's documented cases: utilisation is a whole number before it is compared.
    #[test]
    fn use_is_compared_in_whole_percent() {
        let ten: Vec<_> = (0..10).map(|i| pod(&format!("p{i}"), "True")).collect();
        let each = |used: i64| -> Vec<(String, i64)> {
            (0..10).map(|i| (format!("p{i}"), used)).collect()
        };
        for (used, target, want) in [
            // 55.9 % is 55 %, just a tenth above 50 %.
            (559, Target::Utilization(50), 10),
            (560, Target::Utilization(50), 12),
            (549, Target::Utilization(50), 10),
            (459, Target::Utilization(50), 10),
            (449, Target::Utilization(50), 9),
            (1099, Target::Average(1000), 10),
            (1101, Target::Average(1000), 12),
        ] {
            let used = each(used);
            let used: Vec<_> = used.iter().map(|(name, used)| (name.as_str(), *used)).collect();
            assert_eq!(run(&ten, &used, target).expect("metrics").replicas, want, "{used:?}");
        }
    }

    #[test]
    fn what_was_measured_before_a_pod_was_ready_does_not_count() {
        let young = pod("a", "True");
        for (at, window_s, want) in [
            (Some("2026-01-01T00:00:20Z"), 30, true),
            (Some("2026-01-01T00:00:50Z"), 30, false),
            (None, 30, false),
        ] {
            let at = at.map(|text| text.parse().expect("a time"));
            let sample = Sample { used: 1, at, window_s };
            let now = "2026-01-01T00:01:00Z".parse().expect("a time");
            assert_eq!(is_unready(&young, &sample, "cpu", now), want, "{at:?}");
            let later = "2026-01-01T00:10:00Z".parse().expect("a time");
            assert!(!is_unready(&young, &sample, "cpu", later));
        }
    }
}
