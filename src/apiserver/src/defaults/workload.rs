//! Defaults of workloads that depend on other fields.

use serde_json::{Value, json};

use crate::zero::{Zero, default_to};

fn spec_of(object: &mut Value) -> Option<&mut Value> {
    object.get_mut("spec").filter(|spec| spec.is_object())
}

/// Rolling updates get their bounds.
pub fn deployment(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    if spec["strategy"]["type"] == "RollingUpdate" {
        default_to(&mut spec["strategy"], "rollingUpdate", || json!({}));
        let bounds = &mut spec["strategy"]["rollingUpdate"];
        default_to(bounds, "maxUnavailable", || "25%".into());
        default_to(bounds, "maxSurge", || "25%".into());
    }
}

/// Rolling updates start at ordinal 0.
pub fn stateful_set(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        default_to(&mut spec["updateStrategy"], "rollingUpdate", || json!({}));
        default_to(&mut spec["updateStrategy"]["rollingUpdate"], "partition", || 0.into());
    }
}

/// Rolling updates take one node at a time.
pub fn daemon_set(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        default_to(&mut spec["updateStrategy"], "rollingUpdate", || json!({}));
        let bounds = &mut spec["updateStrategy"]["rollingUpdate"];
        default_to(bounds, "maxUnavailable", || 1.into());
        default_to(bounds, "maxSurge", || 0.into());
    }
}

/// Labels and selector come from the template.
pub fn replication_controller(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if !labels.is_object() {
        return;
    }
    if object["spec"]["selector"].entries().next().is_none() {
        object["spec"]["selector"] = labels.clone();
    }
    if object["metadata"].is_object() && object["metadata"]["labels"].entries().next().is_none() {
        object["metadata"]["labels"] = labels;
    }
}

/// A job without numbers runs one pod once.
pub fn job(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if labels.entries().next().is_some()
        && object["metadata"].is_object()
        && object["metadata"]["labels"].entries().next().is_none()
    {
        object["metadata"]["labels"] = labels;
    }
    if let Some(spec) = spec_of(object) {
        job_spec(spec);
    }
}

fn job_spec(spec: &mut Value) {
    let given = |spec: &Value, key: &str| spec.get(key).is_some_and(Zero::is_set);
    if !given(spec, "completions") && !given(spec, "parallelism") {
        default_to(spec, "completions", || 1.into());
    }
    default_to(spec, "parallelism", || 1.into());
    let limit = if given(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { 6 };
    default_to(spec, "backoffLimit", || limit.into());
    default_to(spec, "completionMode", || "NonIndexed".into());
    default_to(spec, "suspend", || false.into());
    let policy = if given(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    default_to(spec, "podReplacementPolicy", || policy.into());
}

/// Without metrics, a target of 80 % CPU; behaviour only where some is given.
pub fn autoscaler(object: &mut Value) {
    let Some(spec) = spec_of(object) else { return };
    if spec["metrics"].items().is_empty() {
        spec["metrics"] = json!([{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80},
        }}]);
    }
    if !spec["behavior"].is_object() {
        if let Some(map) = spec.as_object_mut() {
            map.remove("behavior");
        }
        return;
    }
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    let directions =
        [("scaleUp", Some(0), json!([pods, percent])), ("scaleDown", None, json!([percent]))];
    for (direction, window, policies) in directions {
        let behavior = &mut spec["behavior"];
        default_to(behavior, direction, || json!({}));
        let rules = &mut behavior[direction];
        default_to(rules, "selectPolicy", || "Max".into());
        default_to(rules, "policies", || policies);
        if let Some(window) = window {
            default_to(rules, "stabilizationWindowSeconds", || i64::into(window));
        }
    }
}
