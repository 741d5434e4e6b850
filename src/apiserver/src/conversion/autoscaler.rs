//! `autoscaling/v1`, which has fields for one metric only and keeps the rest in annotations.
//!
//! Source: `pkg/apis/autoscaling/v1/conversion.go` and `pkg/apis/autoscaling/annotations.go`.

use apimachinery::meta;
use serde_json::{Map, Value, json};

use crate::zero::Zero;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// Where a field lies in version 2, and its name in version 1.
type Names = &'static [(&'static str, &'static str)];

/// The sources of metrics: their names, and the fields of specs and statuses.
const SOURCES: &[(&str, Names, Names)] = &[
    (
        "resource",
        &[
            ("/name", "name"),
            ("/target/averageUtilization", "targetAverageUtilization"),
            ("/target/averageValue", "targetAverageValue"),
        ],
        &[
            ("/name", "name"),
            ("/current/averageUtilization", "currentAverageUtilization"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "containerResource",
        &[
            ("/name", "name"),
            ("/container", "container"),
            ("/target/averageUtilization", "targetAverageUtilization"),
            ("/target/averageValue", "targetAverageValue"),
        ],
        &[
            ("/name", "name"),
            ("/container", "container"),
            ("/current/averageUtilization", "currentAverageUtilization"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "pods",
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/target/averageValue", "targetAverageValue"),
        ],
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
    (
        "object",
        &[
            ("/describedObject", "target"),
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/target/value", "targetValue"),
            ("/target/averageValue", "averageValue"),
        ],
        &[
            ("/describedObject", "target"),
            ("/metric/name", "metricName"),
            ("/metric/selector", "selector"),
            ("/current/value", "currentValue"),
            ("/current/averageValue", "averageValue"),
        ],
    ),
    (
        "external",
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "metricSelector"),
            ("/target/value", "targetValue"),
            ("/target/averageValue", "targetAverageValue"),
        ],
        &[
            ("/metric/name", "metricName"),
            ("/metric/selector", "metricSelector"),
            ("/current/value", "currentValue"),
            ("/current/averageValue", "currentAverageValue"),
        ],
    ),
];

fn names(source: &(&str, Names, Names), status: bool) -> Names {
    if status { source.2 } else { source.1 }
}

/// A metric of version 2 as version 1 writes it.
fn metric_to_v1(metric: &Value, status: bool) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in SOURCES {
        let Some(found) = metric.get(source.0).filter(|found| found.is_object()) else { continue };
        let mut fields = Map::new();
        for (path, name) in names(source, status) {
            if let Some(value) = found.pointer(path) {
                fields.insert((*name).to_owned(), value.clone());
            }
        }
        // Version 1 has no way to leave this out.
        if source.0 == "object" {
            let key = if status { "currentValue" } else { "targetValue" };
            fields.entry(key).or_insert_with(|| "0".into());
        }
        out[source.0] = fields.into();
    }
    out
}

/// A metric of version 1 as version 2 writes it.
fn metric_to_v2(metric: &Value, status: bool) -> Value {
    let mut out = json!({"type": metric["type"]});
    for source in SOURCES {
        let Some(found) = metric.get(source.0).filter(|found| found.is_object()) else { continue };
        let mut fields = json!({});
        for (path, name) in names(source, status) {
            let Some(value) = found.get(*name) else { continue };
            match path[1..].split_once('/') {
                Some((outer, inner)) => fields[outer][inner] = value.clone(),
                None => fields[&path[1..]] = value.clone(),
            }
        }
        if !status {
            let target = &fields["target"];
            let kind = if target["averageUtilization"].is_set() {
                "Utilization"
            } else if target["averageValue"].is_set() || source.0 == "pods" {
                "AverageValue"
            } else {
                "Value"
            };
            fields["target"]["type"] = kind.into();
        }
        out[source.0] = fields;
    }
    out
}

/// Where the utilisation stands that version 1 has a field for: wanted, and seen.
const TARGET: &str = "/target/averageUtilization";
const USED: &str = "/current/averageUtilization";

/// The one metric that version 1 has a field for.
fn utilization(metric: &Value, path: &str) -> Option<Value> {
    let cpu = metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
    metric["resource"].pointer(path).filter(|value| cpu && value.is_set()).cloned()
}

fn take(object: &mut Value, part: &str, key: &str) -> Value {
    let found = object.get_mut(part).and_then(Value::as_object_mut).and_then(|m| m.remove(key));
    found.unwrap_or(Value::Null)
}

pub(super) fn to_v1(object: &mut Value) {
    meta::set_type(object, "autoscaling/v1", "HorizontalPodAutoscaler");
    let metrics = take(object, "spec", "metrics");
    let behavior = take(object, "spec", "behavior");
    let current = take(object, "status", "currentMetrics");
    let conditions = take(object, "status", "conditions");
    if let Some(percentage) = metrics.items().iter().find_map(|m| utilization(m, TARGET)) {
        meta::child_mut(object, "spec").insert("targetCPUUtilizationPercentage".into(), percentage);
    }
    if let Some(used) = current.items().iter().find_map(|m| utilization(m, USED)) {
        meta::child_mut(object, "status").insert("currentCPUUtilizationPercentage".into(), used);
    }
    let list = |values: Vec<Value>| (!values.is_empty()).then(|| Value::from(values).to_string());
    let others = metrics.items().iter().filter(|m| utilization(m, TARGET).is_none());
    let kept = [
        (METRICS, list(others.map(|m| metric_to_v1(m, false)).collect())),
        (CURRENT_METRICS, list(current.items().iter().map(|m| metric_to_v1(m, true)).collect())),
        (CONDITIONS, list(conditions.items().to_vec())),
        (BEHAVIOR, behavior.is_object().then(|| behavior.to_string())),
    ];
    for (key, text) in kept {
        let Some(text) = text else { continue };
        let annotations = meta::metadata_mut(object).entry("annotations").or_insert(json!({}));
        annotations[key] = text.into();
    }
}

pub(super) fn to_v2(object: &mut Value) {
    meta::set_type(object, "autoscaling/v2", "HorizontalPodAutoscaler");
    let mut kept = |key: &str| {
        let annotations = meta::metadata_mut(object).get_mut("annotations")?.as_object_mut()?;
        let text = annotations.remove(key)?;
        serde_json::from_str::<Value>(text.as_str()?).ok()
    };
    let [metrics, current, conditions, behavior] =
        [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR].map(|key| kept(key).unwrap_or_default());
    if let Some(annotations) = meta::metadata(object).get("annotations").and_then(Value::as_object)
        && annotations.is_empty()
    {
        meta::remove(object, "annotations");
    }
    let mut metrics: Vec<Value> =
        metrics.items().iter().map(|metric| metric_to_v2(metric, false)).collect();
    let percentage = take(object, "spec", "targetCPUUtilizationPercentage");
    if percentage.is_set() {
        let target = json!({"type": "Utilization", "averageUtilization": percentage});
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        meta::child_mut(object, "spec").insert("metrics".into(), metrics.into());
    }
    if behavior.is_object() {
        meta::child_mut(object, "spec").insert("behavior".into(), behavior);
    }
    let used = take(object, "status", "currentCPUUtilizationPercentage");
    let mut current: Vec<Value> =
        current.items().iter().map(|metric| metric_to_v2(metric, true)).collect();
    if current.is_empty() && used.is_set() {
        let used = json!({"averageUtilization": used});
        current.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": used}}));
    }
    if !current.is_empty() {
        meta::child_mut(object, "status").insert("currentMetrics".into(), current.into());
    }
    if !conditions.items().is_empty() {
        meta::child_mut(object, "status").insert("conditions".into(), conditions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_version_one_cannot_say_is_kept_in_annotations() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}, "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                {"type": "External", "external": {"metric": {"name": "e", "selector": {}}, "target": {"type": "Value", "value": "1"}}},
                {"type": "Object", "object": {"describedObject": {"kind": "S", "name": "s"}, "metric": {"name": "o"},
                    "target": {"type": "Value", "value": "2"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
            "status": {"currentReplicas": 1, "desiredReplicas": 1, "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu",
                    "current": {"averageUtilization": 7, "averageValue": "10m"}}}]}});
        let mut object = v2.clone();
        to_v1(&mut object);
        assert_eq!(object["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert_eq!(
            object["status"],
            json!({"currentReplicas": 1, "desiredReplicas": 1, "currentCPUUtilizationPercentage": 7})
        );
        let annotations = &object["metadata"]["annotations"];
        let read = |key: &str| -> Value {
            serde_json::from_str(annotations[key].as_str().expect(key)).expect(key)
        };
        assert_eq!(
            read(METRICS),
            json!([{"type": "Pods", "pods": {"metricName": "q", "targetAverageValue": "5"}},
                {"type": "External", "external": {"metricName": "e", "metricSelector": {}, "targetValue": "1"}},
                {"type": "Object", "object": {"target": {"kind": "S", "name": "s"}, "metricName": "o", "targetValue": "2"}}])
        );
        assert_eq!(
            read(CURRENT_METRICS),
            json!([{"type": "Resource", "resource": {"name": "cpu", "currentAverageUtilization": 7,
                "currentAverageValue": "10m"}}])
        );
        to_v2(&mut object);
        assert_eq!(object, v2);
    }
}
