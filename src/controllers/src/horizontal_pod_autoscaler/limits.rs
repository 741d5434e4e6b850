//! How fast a size may change: stabilisation windows and policies.
//!
//! Source: `pkg/controller/podautoscaler/horizontal.go` (`normalizeDesiredReplicasWithBehaviors`,
//! `convertDesiredReplicasWithBehaviorRate`).

use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
};

/// Upstream's default for `--horizontal-pod-autoscaler-downscale-stabilization`.
const DOWN_WINDOW_S: i64 = 300;

/// A point in time, in seconds, and a number of replicas: a recommendation, or a change.
pub type Point = (i64, i32);

/// What was recommended and done lately.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Sizes that the metrics asked for.
    pub recommended: Vec<Point>,
    /// By how much it grew.
    pub grown: Vec<Point>,
    /// By how much it shrank.
    pub shrunk: Vec<Point>,
}

/// A condition: type, status, reason, message.
pub type Told = (&'static str, bool, &'static str, &'static str);

const READY: Told =
    ("AbleToScale", true, "ReadyForNewScale", "recommended size matches current size");
const HELD_UP: Told = (
    "AbleToScale",
    true,
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const HELD_DOWN: Told = (
    "AbleToScale",
    true,
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: Told = (
    "ScalingLimited",
    false,
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const FEW: Told = (
    "ScalingLimited",
    true,
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const MANY: Told = (
    "ScalingLimited",
    true,
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const FAST_UP: Told = (
    "ScalingLimited",
    true,
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const FAST_DOWN: Told = (
    "ScalingLimited",
    true,
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);

fn policies(rules: Option<&HPAScalingRules>, up: bool) -> Vec<HPAScalingPolicy> {
    let policy =
        |kind: &str, value| HPAScalingPolicy { period_seconds: 15, type_: kind.into(), value };
    match rules.and_then(|rules| rules.policies.clone()) {
        Some(policies) if !policies.is_empty() => policies,
        _ if up => vec![policy("Pods", 4), policy("Percent", 100)],
        _ => vec![policy("Percent", 100)],
    }
}

/// The furthest size that the policies allow from `current`.
fn bound(rules: Option<&HPAScalingRules>, past: &Past, current: i32, now: i64, up: bool) -> i32 {
    let select = rules.and_then(|rules| rules.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let within = |points: &[Point], period: i32| -> i32 {
        points.iter().filter(|(at, _)| now - at < i64::from(period)).map(|(_, n)| n).sum()
    };
    let bounds = policies(rules, up).into_iter().map(|policy| {
        let period = policy.period_seconds;
        let start = current - within(&past.grown, period) + within(&past.shrunk, period);
        let share = f64::from(start) * f64::from(policy.value) / 100.0;
        match (policy.type_.as_str(), up) {
            ("Pods", true) => start + policy.value,
            (_, true) => start + share.ceil() as i32,
            ("Pods", false) => start - policy.value,
            (_, false) => (f64::from(start) - share) as i32,
        }
    });
    // "Max" means the largest change, up or down.
    let chosen = if (select == "Max") == up { bounds.max() } else { bounds.min() };
    chosen.unwrap_or(current)
}

/// Holds a recommendation back while recent ones were more careful.
fn stabilised(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    past: &Past,
    (wanted, current): (i32, i32),
    now: i64,
) -> (i32, Told) {
    let window = |rules: Option<&HPAScalingRules>, default: i64| {
        rules.and_then(|r| r.stabilization_window_seconds).map_or(default, i64::from)
    };
    let up = window(behavior.and_then(|b| b.scale_up.as_ref()), 0);
    let down = window(behavior.and_then(|b| b.scale_down.as_ref()), DOWN_WINDOW_S);
    let recent = |window: i64| {
        past.recommended.iter().filter(move |(at, _)| now - at < window).map(|(_, n)| *n)
    };
    let low = recent(up).chain([wanted]).min().unwrap_or(wanted);
    let high = recent(down).chain([wanted]).max().unwrap_or(wanted);
    // Without behaviours the highest recommendation counts in either direction.
    let held = if behavior.is_none() { high } else { current.max(low).min(high) };
    let told = match held.cmp(&wanted) {
        std::cmp::Ordering::Equal => READY,
        std::cmp::Ordering::Greater => HELD_UP,
        std::cmp::Ordering::Less => HELD_DOWN,
    };
    (held, told)
}

/// The size to take where no behaviour is asked for: it may double, and go from few to four, at every look.
fn plainly_limited(held: i32, current: i32, (min, max): (i32, i32)) -> (i32, Told) {
    let fast = (2 * current).max(4);
    let (most, over) = if max > fast { (fast, FAST_UP) } else { (max, MANY) };
    match held {
        held if held < min => (min, FEW),
        held if held > most => (most, over),
        held => (held, WITHIN),
    }
}

/// The size to take now, given the size that the metrics ask for and the present one.
pub fn limited(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    past: &Past,
    (wanted, current): (i32, i32),
    (min, max): (i32, i32),
    now: i64,
) -> (i32, [Told; 2]) {
    let (held, able) = stabilised(behavior, past, (wanted, current), now);
    if behavior.is_none() {
        let (size, told) = plainly_limited(held, current, (min, max));
        return (size, [able, told]);
    }
    if held > current {
        let rules = behavior.and_then(|b| b.scale_up.as_ref());
        let rate = bound(rules, past, current, now, true).max(current);
        if held > rate.min(max) {
            return (rate.min(max), [able, if rate < max { FAST_UP } else { MANY }]);
        }
    } else if held < current {
        let rules = behavior.and_then(|b| b.scale_down.as_ref());
        let rate = bound(rules, past, current, now, false).min(current);
        if held < rate.max(min) {
            return (rate.max(min), [able, if rate > min { FAST_DOWN } else { FEW }]);
        }
    }
    match held {
        held if held < min => (min, [able, FEW]),
        held if held > max => (max, [able, MANY]),
        held => (held, [able, WITHIN]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_keep_within_their_bounds() {
        let parse = |value| -> HorizontalPodAutoscalerBehavior {
            serde_json::from_value(value).expect("a behaviour")
        };
        let quick = parse(json!({"scaleDown": {"stabilizationWindowSeconds": 0}}));
        let slow = parse(
            json!({"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}]}}),
        );
        let down = |rules| parse(json!({"scaleDown": rules}));
        let gentle = down(json!({"stabilizationWindowSeconds": 0,
            "policies": [{"type": "Percent", "value": 10, "periodSeconds": 60}]}));
        let still = down(json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Disabled"}));
        let both = json!([{"type": "Percent", "value": 50, "periodSeconds": 60},
            {"type": "Pods", "value": 1, "periodSeconds": 60}]);
        let least = parse(json!({
            "scaleDown": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": both},
            "scaleUp": {"selectPolicy": "Min", "policies": both}}));
        for (behavior, wanted, current, want, reason) in [
            (None, 3, 2, 3, "DesiredWithinRange"),
            (None, 50, 1, 4, "ScaleUpLimit"),
            (None, 50, 3, 6, "ScaleUpLimit"),
            (None, 50, 8, 10, "TooManyReplicas"),
            (None, 0, 8, 1, "TooFewReplicas"),
            (Some(&quick), 50, 2, 6, "ScaleUpLimit"),
            (Some(&quick), 0, 5, 1, "TooFewReplicas"),
            (Some(&quick), 3, 5, 3, "DesiredWithinRange"),
            (Some(&slow), 9, 2, 3, "ScaleUpLimit"),
            (Some(&gentle), 1, 5, 4, "ScaleDownLimit"),
            (Some(&gentle), 4, 5, 4, "DesiredWithinRange"),
            (Some(&still), 1, 5, 5, "ScaleDownLimit"),
            (Some(&least), 1, 10, 9, "ScaleDownLimit"),
            (Some(&least), 9, 2, 3, "ScaleUpLimit"),
        ] {
            let (got, told) = limited(behavior, &Past::default(), (wanted, current), (1, 10), 1000);
            assert_eq!((got, told[1].2), (want, reason), "{wanted} of {current}");
        }
    }

    #[test]
    fn the_past_slows_down() {
        let past = Past { recommended: vec![(600, 9), (900, 6)], ..Past::default() };
        let (got, told) = limited(None, &past, (2, 8), (1, 10), 1000);
        assert_eq!((got, told[0].2), (6, "ScaleDownStabilized"));
        // 4 of the 8 came just now: the start of the period had 4, which may double.
        let past = Past { grown: vec![(995, 4)], ..Past::default() };
        let usual = HorizontalPodAutoscalerBehavior::default();
        assert_eq!(limited(Some(&usual), &past, (20, 8), (1, 99), 1000).0, 8);
    }
}
