//! Kinds served at a second version whose shape differs from the stored one.
//!
//! Sources: `pkg/apis/core/v1/conversion.go` and `pkg/apis/events/v1` (one storage for both groups'
//! events), `pkg/apis/autoscaling/v1/conversion.go`.

use apimachinery::meta;
use serde_json::{Map, Value, json};

use crate::resource::Resource;

/// Where `autoscaling/v1` keeps the metrics it has no fields for.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

/// Fields of `events.k8s.io/v1` and what they are called in the core group.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The group, version, plural and kind that objects of this resource are stored as, where that is
/// another one.
pub fn stored_as(group: &str, version: &str, plural: &str) -> Option<[&'static str; 4]> {
    match (group, version, plural) {
        ("events.k8s.io", "v1", "events") => Some(["", "v1", "events", "Event"]),
        ("autoscaling", "v1", "horizontalpodautoscalers") => {
            Some(["autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"])
        }
        _ => None,
    }
}

/// Whether the resource is a view of another one.
pub fn is_view(resource: &Resource) -> bool {
    stored_as(&resource.group, &resource.version, &resource.plural).is_some()
}

/// Turns an object of the served resource into the stored form.
pub fn to_stored(served: &Resource, object: &mut Value) {
    match stored_as(&served.group, &served.version, &served.plural) {
        Some(["", ..]) => {
            rename(object, EVENT_FIELDS.iter().copied());
            meta::set_type(object, "v1", "Event");
        }
        Some(_) => autoscaler_to_v2(object),
        None => {}
    }
}

/// Turns a stored object into the form of the served resource.
pub fn to_served(served: &Resource, object: &mut Value) {
    match stored_as(&served.group, &served.version, &served.plural) {
        Some(["", ..]) => {
            rename(object, EVENT_FIELDS.iter().map(|(new, core)| (*core, *new)));
            meta::set_type(object, "events.k8s.io/v1", "Event");
        }
        Some(_) => autoscaler_to_v1(object),
        None => {}
    }
}

fn rename(object: &mut Value, names: impl Iterator<Item = (&'static str, &'static str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

fn is_cpu(metric: &Value) -> bool {
    metric["resource"]["name"] == "cpu" && metric["type"] == "Resource"
}

fn autoscaler_to_v1(object: &mut Value) {
    meta::set_type(object, "autoscaling/v1", "HorizontalPodAutoscaler");
    let spec = meta::child_mut(object, "spec");
    let metrics = match spec.remove("metrics") {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    let target = |m: &Value| m.pointer("/resource/target/averageUtilization").cloned();
    let percentage = metrics.iter().filter(|m| is_cpu(m)).find_map(target);
    let others: Vec<&Value> =
        metrics.iter().filter(|m| !(is_cpu(m) && target(m).is_some())).collect();
    if let Some(percentage) = percentage {
        spec.insert("targetCPUUtilizationPercentage".into(), percentage);
    }
    if !others.is_empty() {
        let text = json!(others).to_string();
        let metadata = meta::metadata_mut(object);
        let annotations =
            metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        annotations[METRICS] = text.into();
    }
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else { return };
    status.remove("conditions");
    if let Some(Value::Array(current)) = status.remove("currentMetrics") {
        let used = |m: &Value| m.pointer("/resource/current/averageUtilization").cloned();
        if let Some(used) = current.iter().filter(|m| is_cpu(m)).find_map(used) {
            status.insert("currentCPUUtilizationPercentage".into(), used);
        }
    }
}

fn autoscaler_to_v2(object: &mut Value) {
    meta::set_type(object, "autoscaling/v2", "HorizontalPodAutoscaler");
    let kept = meta::metadata_mut(object)
        .get_mut("annotations")
        .and_then(Value::as_object_mut)
        .and_then(|annotations| annotations.remove(METRICS));
    let mut metrics: Vec<Value> = kept
        .as_ref()
        .and_then(Value::as_str)
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let spec = meta::child_mut(object, "spec");
    if let Some(percentage) = spec.remove("targetCPUUtilizationPercentage") {
        let target = json!({"type": "Utilization", "averageUtilization": percentage});
        metrics.push(json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        spec.insert("metrics".into(), metrics.into());
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        && let Some(used) = status.remove("currentCPUUtilizationPercentage")
    {
        let current = json!({"averageUtilization": used});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "current": current}});
        status.insert("currentMetrics".into(), json!([metric]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, plural: &str) -> Resource {
        Resource {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            ..Resource::default()
        }
    }

    #[test]
    fn an_autoscaler_comes_back() {
        let v1 = json!({"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let served = resource("autoscaling", "horizontalpodautoscalers");
        let mut object = v1.clone();
        to_stored(&served, &mut object);
        assert_eq!(object["apiVersion"], "autoscaling/v2");
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        to_served(&served, &mut object);
        assert_eq!(object, v1);
    }

    #[test]
    fn an_event_is_one_in_both_groups() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n",
            "regarding": {"kind": "Pod"}, "reason": "r"});
        let served = resource("events.k8s.io", "events");
        let mut object = event.clone();
        to_stored(&served, &mut object);
        assert_eq!((&object["message"], &object["apiVersion"]), (&json!("n"), &json!("v1")));
        assert_eq!(object["involvedObject"]["kind"], "Pod");
        to_served(&served, &mut object);
        assert_eq!(object, event);
    }
}
