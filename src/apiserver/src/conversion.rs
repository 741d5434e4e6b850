//! Kinds served at a second version whose shape differs from the stored one.
//!
//! Sources: `pkg/apis/core/v1/conversion.go` and `pkg/apis/events/v1` (one storage for both groups'
//! events), what is in `autoscaler`.

mod autoscaler;

use apimachinery::{decode, meta};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::resource::Resource;

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
    if served.is("", "secrets") {
        secret_text(object);
    } else if served.is("", "nodes") {
        first_and_all(object.get_mut("spec"), "podCIDR", "podCIDRs", None);
    } else if served.is("", "pods") {
        first_and_all(object.get_mut("status"), "podIP", "podIPs", Some("ip"));
        first_and_all(object.get_mut("status"), "hostIP", "hostIPs", Some("ip"));
    }
    match stored_as(&served.group, &served.version, &served.plural) {
        Some(["", ..]) => {
            rename(object, EVENT_FIELDS.iter().copied());
            meta::set_type(object, "v1", "Event");
        }
        Some(_) => autoscaler::to_v2(object),
        None => {}
    }
}

/// Brings a field into line with the list that has it first: the field decides, for the older clients that know
/// it alone. The items of the list are texts, or have theirs under `key`.
fn first_and_all(part: Option<&mut Value>, field: &str, list: &str, key: Option<&str>) {
    let Some(part) = part.and_then(Value::as_object_mut) else { return };
    let text = |part: &serde_json::Map<String, Value>| {
        part.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let first = part.get(list).and_then(|all| all.get(0)).map(|item| match key {
        Some(key) => item[key].as_str().unwrap_or_default().to_owned(),
        None => item.as_str().unwrap_or_default().to_owned(),
    });
    match (text(part), first) {
        (one, None) if one.is_empty() => {}
        (one, Some(first)) if one.is_empty() => {
            part.insert(field.to_owned(), first.into());
        }
        (one, Some(first)) if one == first => {}
        (one, _) => {
            let item = match key {
                Some(key) => serde_json::json!({key: one}),
                None => one.into(),
            };
            part.insert(list.to_owned(), vec![item].into());
        }
    }
}

/// Turns a stored object into the form of the served resource.
pub fn to_served(served: &Resource, object: &mut Value) {
    match stored_as(&served.group, &served.version, &served.plural) {
        Some(["", ..]) => {
            rename(object, EVENT_FIELDS.iter().map(|(new, core)| (*core, *new)));
            meta::set_type(object, "events.k8s.io/v1", "Event");
        }
        Some(_) => autoscaler::to_v1(object),
        None => return,
    }
    if let Some((schema, of)) = crate::protobuf::type_of(served) {
        decode::complete(schema, of, object);
    }
}

/// `stringData` is for writing only: it goes over `data`.
fn secret_text(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    let Some(Value::Object(texts)) = map.remove("stringData") else { return };
    if texts.is_empty() {
        return;
    }
    let data = meta::child_mut(object, "data");
    for (key, text) in texts {
        data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
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

#[cfg(test)]
mod tests {
    #[test]
    fn a_field_and_the_first_of_its_list_go_together() {
        use serde_json::json;
        for (before, after) in [
            (json!({}), json!({})),
            (
                json!({"podIP": "1.1.1.1"}),
                json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]}),
            ),
            (
                json!({"podIPs": [{"ip": "1.1.1.1"}]}),
                json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]}),
            ),
            (
                json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "2.2.2.2"}, {"ip": "fd00::1"}]}),
                json!({"podIP": "1.1.1.1", "podIPs": [{"ip": "1.1.1.1"}]}),
            ),
        ] {
            let mut status = before.clone();
            super::first_and_all(Some(&mut status), "podIP", "podIPs", Some("ip"));
            assert_eq!(status, after, "{before}");
        }
    }

    use serde_json::json;

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
    fn texts_of_a_secret_become_data() {
        let mut secret =
            json!({"data": {"a": "eA==", "b": "eA=="}, "stringData": {"a": "y", "c": ""}});
        to_stored(&resource("", "secrets"), &mut secret);
        assert_eq!(secret, json!({"data": {"a": "eQ==", "b": "eA==", "c": ""}}));
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
