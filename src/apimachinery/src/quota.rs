//! What an object counts for against a ResourceQuota, and which quotas count it.
//!
//! Sources: `pkg/quota/v1/evaluator/core` (`pods.go`, `services.go`, `persistent_volume_claims.go`),
//! `k8s.io/apiserver/pkg/quota/v1/generic` (object counts).

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::labels::{Operator, Requirement};
use crate::quantity::{Format, Quantity};

/// Amounts by resource name, such as `requests.cpu`.
pub type Usage = BTreeMap<String, Quantity>;

/// Kinds that have a name of their own besides `count/…`.
const COUNTED: &[&str] = &[
    "pods",
    "services",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
];
/// What may be asked for under its plain name as well as under `requests.`.
const PLAIN: &[&str] = &["cpu", "memory", "ephemeral-storage"];
/// Of the devices of one class.
const DEVICES: &str = ".deviceclass.resource.k8s.io/devices";
/// As many devices as one claim can get, for claims that take all that there are.
const DEVICES_MAX: i64 = 32;
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";

fn one(count: i64) -> Quantity {
    Quantity::new(count, Format::DecimalSi)
}

fn quantities(list: &Value) -> impl Iterator<Item = (&String, Quantity)> {
    let entries = list.as_object().into_iter().flatten();
    entries.filter_map(|(name, text)| {
        let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
        Some((name, text.parse().ok()?))
    })
}

/// Adds `more` to `usage`.
pub fn add(usage: &mut Usage, more: &Usage) {
    for (name, amount) in more {
        let sum = usage.get(name).map_or_else(|| amount.clone(), |known| known.plus(amount));
        usage.insert(name.clone(), sum);
    }
}

fn raise(usage: &mut Usage, more: &Usage) {
    for (name, amount) in more {
        if usage.get(name).is_none_or(|known| known < amount) {
            usage.insert(name.clone(), amount.clone());
        }
    }
}

/// What the pod needs at most at one time of `requests` or `limits`.
fn pod_resources(spec: &Value, which: &str) -> Usage {
    let of = |container: &Value| -> Usage {
        quantities(&container["resources"][which]).map(|(n, q)| (n.clone(), q)).collect()
    };
    let items = |key: &str| spec[key].as_array().cloned().unwrap_or_default();
    let mut total = Usage::new();
    for container in items("containers") {
        add(&mut total, &of(&container));
    }
    let (mut sidecars, mut starting) = (Usage::new(), Usage::new());
    for container in items("initContainers") {
        let own = of(&container);
        let mut here = sidecars.clone();
        add(&mut here, &own);
        raise(&mut starting, &here);
        if container["restartPolicy"] == "Always" {
            add(&mut total, &own);
            sidecars = here;
        }
    }
    raise(&mut total, &starting);
    for (name, amount) in quantities(&spec["resources"][which]) {
        total.insert(name.clone(), amount);
    }
    for (name, amount) in quantities(&spec["overhead"]) {
        if which == "requests" || total.contains_key(name) {
            add(&mut total, &Usage::from([(name.clone(), amount)]));
        }
    }
    total
}

/// The pod has run to its end, or should have: nothing is charged for one that nobody removes.
fn is_over(pod: &Value, now: Timestamp) -> bool {
    let meta = &pod["metadata"];
    let deleted = meta["deletionTimestamp"].as_str().and_then(|text| text.parse().ok());
    let overdue = |(deleted, grace_s): (Timestamp, i64)| {
        now.duration_since(deleted) > SignedDuration::from_secs(grace_s)
    };
    matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"))
        || deleted.zip(meta["deletionGracePeriodSeconds"].as_i64()).is_some_and(overdue)
}

fn pod(pod: &Value) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one(1))]);
    if is_over(pod, Timestamp::now()) {
        return usage;
    }
    usage.insert("pods".into(), one(1));
    for (name, amount) in pod_resources(&pod["spec"], "requests") {
        let extended = name.contains('/');
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount.clone());
        }
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") || extended {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in pod_resources(&pod["spec"], "limits") {
        if PLAIN.contains(&name.as_str()) {
            usage.insert(format!("limits.{name}"), amount);
        }
    }
    usage
}

fn service(service: &Value) -> Usage {
    let spec = &service["spec"];
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let (balancers, node_ports) = match spec["type"].as_str() {
        Some("NodePort") => (0, ports.len()),
        Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
            let asked = ports.iter().filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0);
            (1, asked.count())
        }
        Some("LoadBalancer") => (1, ports.len()),
        _ => (0, 0),
    };
    Usage::from([
        ("services".to_owned(), one(1)),
        ("services.loadbalancers".to_owned(), one(balancers)),
        ("services.nodeports".to_owned(), one(node_ports as i64)),
    ])
}

fn claim(claim: &Value) -> Usage {
    let mut usage = Usage::from([("persistentvolumeclaims".to_owned(), one(1))]);
    let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
    if !class.is_empty() {
        usage.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), one(1));
    }
    let wanted = quantities(&claim["spec"]["resources"]["requests"]).find(|(n, _)| *n == "storage");
    let given = quantities(&claim["status"]["allocatedResources"]).find(|(n, _)| *n == "storage");
    let amount = match (wanted.map(|(_, q)| q), given.map(|(_, q)| q)) {
        (Some(wanted), Some(given)) => wanted.max(given),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return usage,
    };
    usage.insert("requests.storage".into(), amount.clone());
    if !class.is_empty() {
        usage.insert(format!("{class}{STORAGE_CLASS}requests.storage"), amount);
    }
    usage
}

/// What the claim of devices gets at most of each class.
fn device_claim(claim: &Value) -> Usage {
    let of = |request: &Value| {
        let class = request["deviceClassName"].as_str()?;
        let count = match request["allocationMode"].as_str().unwrap_or("ExactCount") {
            "ExactCount" => request["count"].as_i64().unwrap_or(1),
            "All" => DEVICES_MAX,
            _ => return None,
        };
        Some((format!("{class}{DEVICES}"), one(count)))
    };
    let mut usage = Usage::new();
    for request in claim["spec"]["devices"]["requests"].as_array().into_iter().flatten() {
        // Of several ways to satisfy a request the dearest counts, class by class.
        let mut dearest = Usage::new();
        let ways = request["firstAvailable"].as_array().into_iter().flatten();
        for (name, amount) in ways.chain([&request["exactly"]]).filter_map(of) {
            raise(&mut dearest, &Usage::from([(name, amount)]));
        }
        add(&mut usage, &dearest);
    }
    usage
}

/// What an object of the resource counts for.
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = match (group, plural) {
        ("", "pods") => return pod(object),
        ("", "services") => service(object),
        ("", "persistentvolumeclaims") => claim(object),
        ("resource.k8s.io", "resourceclaims") => device_claim(object),
        ("", _) if COUNTED.contains(&plural) => Usage::from([(plural.to_owned(), one(1))]),
        _ => Usage::new(),
    };
    usage.insert(count_name(group, plural), one(1));
    usage
}

/// `count/deployments.apps`, `count/pods`.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// The resource whose objects a quota's entry counts: group and plural. `None` for names that no
/// built-in evaluator knows.
pub fn counted_by(name: &str) -> Option<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(match counted.split_once('.') {
            Some((plural, group)) => (group, plural),
            None => ("", counted),
        });
    }
    if name.ends_with(DEVICES) {
        return Some(("resource.k8s.io", "resourceclaims"));
    }
    if name.contains(STORAGE_CLASS) || name == "requests.storage" {
        return Some(("", "persistentvolumeclaims"));
    }
    if name.starts_with("services.") {
        return Some(("", "services"));
    }
    if let Some(plural) = COUNTED.iter().find(|plural| **plural == name) {
        return Some(("", plural));
    }
    let bare = name.strip_prefix("requests.").or(name.strip_prefix("limits.")).unwrap_or(name);
    let known = PLAIN.contains(&bare) || bare.starts_with("hugepages-") || bare.contains('/');
    known.then_some(("", "pods"))
}

/// Whether the pod asks for nothing at all (QoS class BestEffort).
fn is_best_effort(pod: &Value) -> bool {
    let spec = &pod["spec"];
    let lists = [&spec["containers"], &spec["initContainers"]];
    let mut all = lists.into_iter().filter_map(Value::as_array).flatten().chain([spec]);
    !all.any(|holder| {
        ["requests", "limits"].iter().any(|which| {
            quantities(&holder["resources"][*which]).any(|(name, amount)| {
                matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero()
            })
        })
    })
}

fn has_cross_namespace_terms(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    let foreign = |term: &Value| {
        term["namespaces"].as_array().is_some_and(|names| !names.is_empty())
            || term["namespaceSelector"].is_object()
    };
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let lists = &affinity[*kind];
        let required = lists["requiredDuringSchedulingIgnoredDuringExecution"].as_array();
        let preferred = lists["preferredDuringSchedulingIgnoredDuringExecution"].as_array();
        required.into_iter().flatten().any(foreign)
            || preferred.into_iter().flatten().any(|term| foreign(&term["podAffinityTerm"]))
    })
}

fn scope_holds(scope: &str, operator: &str, values: &Value, object: &Value) -> bool {
    let spec = &object["spec"];
    let named = |field: &str| {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => Operator::Exists,
        };
        let values = values.as_array().into_iter().flatten().filter_map(Value::as_str);
        let values = values.map(str::to_owned).collect();
        let found = spec[field].as_str().filter(|name| !name.is_empty());
        Requirement { key: field.to_owned(), operator, values }.matches(found)
    };
    match scope {
        "Terminating" => spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0),
        "NotTerminating" => spec["activeDeadlineSeconds"].as_i64().is_none_or(|s| s < 0),
        "BestEffort" => is_best_effort(object),
        "NotBestEffort" => !is_best_effort(object),
        "PriorityClass" => named("priorityClassName"),
        "CrossNamespacePodAffinity" => has_cross_namespace_terms(object),
        "VolumeAttributesClass" => named("volumeAttributesClassName"),
        _ => false,
    }
}

/// Whether the quota with this `spec` counts the object: all of its scopes hold. Scopes are of pods,
/// `VolumeAttributesClass` is of claims.
pub fn counts(spec: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let of_kind = |scope: &str| match (group, plural) {
        ("", "pods") => scope != "VolumeAttributesClass",
        ("", "persistentvolumeclaims") => scope == "VolumeAttributesClass",
        _ => false,
    };
    let plain = spec["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut plain = plain.map(|scope| (scope, "Exists", &Value::Null));
    let selected = spec["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let mut selected = selected.map(|term| {
        let text = |key: &str| term[key].as_str().unwrap_or_default();
        (text("scopeName"), text("operator"), &term["values"])
    });
    let holds = |(scope, operator, values): (&str, &str, &Value)| {
        of_kind(scope) && scope_holds(scope, operator, values, object)
    };
    plain.all(holds) && selected.all(holds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(usage: &Usage) -> String {
        let all = usage.iter().map(|(name, amount)| format!("{name}={}", amount.canonical()));
        all.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn objects_count_for_what_they_ask() {
        let container = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": "2", "memory": "1Gi"}}});
        let cases = [
            (
                "",
                "pods",
                json!({"spec": {"containers": [container("100m"), container("200m")], "initContainers": [container("1")]}}),
                "count/pods=1 cpu=1 limits.cpu=4 limits.memory=2Gi pods=1 requests.cpu=1",
            ),
            (
                "",
                "pods",
                json!({"spec": {"containers": [container("1")]}, "status": {"phase": "Succeeded"}}),
                "count/pods=1",
            ),
            (
                "",
                "pods",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}}),
                "count/pods=1",
            ),
            (
                "",
                "pods",
                json!({"metadata": {"deletionTimestamp": "2999-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}}),
                "count/pods=1 pods=1",
            ),
            (
                "",
                "services",
                json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}}),
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2",
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}}),
                "count/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/persistentvolumeclaims=1 fast.storageclass.storage.k8s.io/requests.storage=5Gi persistentvolumeclaims=1 requests.storage=5Gi",
            ),
            (
                "resource.k8s.io",
                "resourceclaims",
                json!({"spec": {"devices": {"requests": [
                    {"name": "a", "exactly": {"deviceClassName": "gpu", "count": 2}},
                    {"name": "b", "exactly": {"deviceClassName": "net", "allocationMode": "All"}},
                    {"name": "c", "firstAvailable": [{"deviceClassName": "gpu", "count": 3},
                        {"deviceClassName": "gpu"}, {"deviceClassName": "old"}]}]}}}),
                "count/resourceclaims.resource.k8s.io=1 gpu.deviceclass.resource.k8s.io/devices=5 net.deviceclass.resource.k8s.io/devices=32 old.deviceclass.resource.k8s.io/devices=1",
            ),
            ("apps", "deployments", json!({}), "count/deployments.apps=1"),
            ("", "secrets", json!({}), "count/secrets=1 secrets=1"),
        ];
        for (group, plural, object, want) in cases {
            assert_eq!(told(&usage(group, plural, &object)), want);
        }
    }

    #[test]
    fn names_lead_to_what_they_count() {
        for (name, want) in [
            ("pods", Some(("", "pods"))),
            ("limits.memory", Some(("", "pods"))),
            ("requests.example.com/gpu", Some(("", "pods"))),
            ("count/jobs.batch", Some(("batch", "jobs"))),
            ("services.nodeports", Some(("", "services"))),
            (
                "fast.storageclass.storage.k8s.io/requests.storage",
                Some(("", "persistentvolumeclaims")),
            ),
            (
                "gpu.deviceclass.resource.k8s.io/devices",
                Some(("resource.k8s.io", "resourceclaims")),
            ),
            ("unknown", None),
        ] {
            assert_eq!(counted_by(name), want, "{name}");
        }
    }

    #[test]
    fn scopes_all_hold() {
        let pod = |spec: Value| json!({"spec": spec});
        let plain = pod(json!({"containers": [{}]}));
        let asking = pod(
            json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}], "activeDeadlineSeconds": 5}),
        );
        let class = |operator: &str| {
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "PriorityClass", "operator": operator, "values": ["high"]}]}})
        };
        let high = pod(json!({"containers": [{}], "priorityClassName": "high"}));
        for (spec, object, want) in [
            (json!({"scopes": ["BestEffort"]}), &plain, true),
            (json!({"scopes": ["BestEffort"]}), &asking, false),
            (json!({"scopes": ["NotBestEffort", "Terminating"]}), &asking, true),
            (json!({"scopes": ["NotTerminating"]}), &asking, false),
            (class("In"), &high, true),
            (class("In"), &plain, false),
            (class("NotIn"), &plain, true),
            (json!({}), &plain, true),
        ] {
            assert_eq!(counts(&spec, "", "pods", object), want, "{spec}");
        }
        assert!(!counts(&json!({"scopes": ["BestEffort"]}), "", "services", &json!({})));
    }
}
