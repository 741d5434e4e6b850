//! What an object counts for against a ResourceQuota, and which quotas count it.
//!
//! Sources: `pkg/quota/v1/evaluator/core` (`pods.go`, `services.go`, `persistent_volume_claims.go`),
//! `k8s.io/apiserver/pkg/quota/v1/generic` (object counts).

mod devices;

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use self::devices::{DEVICES, IMPLICIT};
use crate::labels::{Operator, Requirement};
use crate::quantity::{Format, Quantity};

pub use self::devices::{Surroundings, add_extended};

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
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// The annotation that named a claim's class before there was a field for it.
const STORAGE_CLASS_OLD: &str = "volume.beta.kubernetes.io/storage-class";

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

fn listed(list: &Value) -> Usage {
    quantities(list).map(|(name, amount)| (name.clone(), amount)).collect()
}

/// What `wanted` comes to while it is resized: as much as is wanted and as what `status` says it still has. What can
/// not be given on its node does not count.
fn held(wanted: &Value, status: &Value, which: &str, infeasible: bool) -> Usage {
    if !status["resources"].is_object() {
        return listed(&wanted["resources"][which]);
    }
    let mut all = if infeasible { Usage::new() } else { listed(&wanted["resources"][which]) };
    raise(&mut all, &listed(&status["resources"][which]));
    if which == "requests" {
        raise(&mut all, &listed(&status["allocatedResources"]));
    }
    all
}

/// A resize of the pod can not be done on its node.
fn is_resize_infeasible(pod: &Value) -> bool {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible")
}

/// What the pod needs at most at one time of `requests` or `limits`.
fn pod_resources(pod: &Value, which: &str) -> Usage {
    let (spec, infeasible) = (&pod["spec"], is_resize_infeasible(pod));
    let of = |container: &Value, statuses: &str| -> Usage {
        let mut all = pod["status"][statuses].as_array().into_iter().flatten();
        let status = all.find(|status| status["name"] == container["name"]);
        held(container, status.unwrap_or(&Value::Null), which, infeasible)
    };
    let items = |key: &str| spec[key].as_array().map_or(&[][..], Vec::as_slice);
    let mut total = Usage::new();
    for container in items("containers") {
        add(&mut total, &of(container, "containerStatuses"));
    }
    let (mut sidecars, mut starting) = (Usage::new(), Usage::new());
    for container in items("initContainers") {
        let sidecar = container["restartPolicy"] == "Always";
        let statuses = if sidecar { "initContainerStatuses" } else { "" };
        let own = of(container, statuses);
        let mut here = sidecars.clone();
        add(&mut here, &own);
        raise(&mut starting, &here);
        if sidecar {
            add(&mut total, &own);
            sidecars = here;
        }
    }
    raise(&mut total, &starting);
    total.extend(held(spec, &pod["status"], which, infeasible));
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
    for (name, amount) in pod_resources(pod, "requests") {
        let own = !name.contains("kubernetes.io/");
        let extended = name.contains('/') && (own || name.starts_with(IMPLICIT));
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") {
            usage.insert(name.clone(), amount.clone());
        }
        if PLAIN.contains(&name.as_str()) || name.starts_with("hugepages-") || extended {
            usage.insert(format!("requests.{name}"), amount);
        }
    }
    for (name, amount) in pod_resources(pod, "limits") {
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
    let annotated = claim["metadata"]["annotations"][STORAGE_CLASS_OLD].as_str();
    let class = annotated.or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default();
    if !class.is_empty() {
        usage.insert(format!("{class}{STORAGE_CLASS}persistentvolumeclaims"), one(1));
    }
    let storage = |list| quantities(list).find(|(name, _)| *name == "storage");
    let wanted = storage(&claim["spec"]["resources"]["requests"]);
    let Some((_, mut amount)) = wanted else { return usage };
    if let Some((_, given)) = storage(&claim["status"]["allocatedResources"]) {
        amount = amount.max(given);
    }
    // Quotas are of whole bytes.
    let amount = amount.rounded_up(0);
    usage.insert("requests.storage".into(), amount.clone());
    if !class.is_empty() {
        usage.insert(format!("{class}{STORAGE_CLASS}requests.storage"), amount);
    }
    usage
}

/// The claims of devices: group and plural.
pub const DEVICE_CLAIMS: (&str, &str) = ("resource.k8s.io", "resourceclaims");

/// What an object of the resource counts for, as far as the object itself tells; see [`add_extended`].
pub fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let mut usage = match (group, plural) {
        ("", "pods") => return pod(object),
        ("", "services") => service(object),
        ("", "persistentvolumeclaims") => claim(object),
        ("resource.k8s.io", "resourceclaims") => devices::claim(object),
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

/// The resources whose objects a quota's entry counts: group and plural. None for names that no built-in evaluator
/// knows.
pub fn counted_by(name: &str) -> Vec<(&str, &str)> {
    if let Some(counted) = name.strip_prefix("count/") {
        return vec![match counted.split_once('.') {
            Some((plural, group)) => (group, plural),
            None => ("", counted),
        }];
    }
    if name.ends_with(DEVICES) {
        return vec![DEVICE_CLAIMS];
    }
    if name.contains(STORAGE_CLASS) || name == "requests.storage" {
        return vec![("", "persistentvolumeclaims")];
    }
    if name.starts_with("services.") {
        return vec![("", "services")];
    }
    if let Some(plural) = COUNTED.iter().find(|plural| **plural == name) {
        return vec![("", plural)];
    }
    let bare = name.strip_prefix("requests.").or(name.strip_prefix("limits.")).unwrap_or(name);
    if bare.contains('/') {
        // A class of devices may stand for it.
        return vec![("", "pods"), DEVICE_CLAIMS];
    }
    let known = PLAIN.contains(&bare) || bare.starts_with("hugepages-");
    if known { vec![("", "pods")] } else { Vec::new() }
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

/// The classes of attributes that the claim of a volume has, or shall have.
pub fn attributes_classes(claim: &Value) -> Vec<&str> {
    let status = &claim["status"];
    let all = [
        &claim["spec"]["volumeAttributesClassName"],
        &status["currentVolumeAttributesClassName"],
        &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ];
    all.into_iter().filter_map(Value::as_str).filter(|name| !name.is_empty()).collect()
}

fn scope_holds(scope: &str, operator: &str, values: &Value, object: &Value) -> bool {
    let spec = &object["spec"];
    let named = |found: &[&str]| {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => Operator::Exists,
        };
        let values = values.as_array().into_iter().flatten().filter_map(Value::as_str);
        let values = values.map(str::to_owned).collect();
        let wanted = Requirement { key: scope.to_owned(), operator, values };
        match found {
            [] => wanted.matches(None),
            found => found.iter().any(|name| wanted.matches(Some(name))),
        }
    };
    let priority = || spec["priorityClassName"].as_str().filter(|name| !name.is_empty());
    match scope {
        "Terminating" => spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0),
        "NotTerminating" => spec["activeDeadlineSeconds"].as_i64().is_none_or(|s| s < 0),
        "BestEffort" => is_best_effort(object),
        "NotBestEffort" => !is_best_effort(object),
        "PriorityClass" => named(priority().as_slice()),
        "CrossNamespacePodAffinity" => has_cross_namespace_terms(object),
        "VolumeAttributesClass" => named(&attributes_classes(object)),
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
                "",
                "persistentvolumeclaims",
                json!({"metadata": {"annotations": {STORAGE_CLASS_OLD: "old"}},
                    "spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1500m"}}},
                    "status": {"allocatedResources": {"storage": "1"}}}),
                "count/persistentvolumeclaims=1 old.storageclass.storage.k8s.io/persistentvolumeclaims=1 old.storageclass.storage.k8s.io/requests.storage=2 persistentvolumeclaims=1 requests.storage=2",
            ),
            (
                "",
                "persistentvolumeclaims",
                json!({"spec": {"resources": {"requests": {"storage": "5Gi"}}}, "status": {"allocatedResources": {"storage": "9Gi"}}}),
                "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=9Gi",
            ),
            (
                "",
                "pods",
                json!({"spec": {"containers": [{"resources": {"requests": {"example.com/gpu": "1", "kubernetes.io/x": "1", "hugepages-2Mi": "4Mi"}}}]}}),
                "count/pods=1 hugepages-2Mi=4Mi pods=1 requests.example.com/gpu=1 requests.hugepages-2Mi=4Mi",
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
    fn a_pod_that_is_resized_counts_for_the_larger() {
        let cpu = |requests: &str, limits: &str| json!({"requests": {"cpu": requests}, "limits": {"cpu": limits}});
        let pending = json!([{"type": "PodResizePending", "reason": "Infeasible"}]);
        for (wanted, has, allocated, conditions, want) in [
            (cpu("1", "2"), json!(null), "3", json!([]), "limits.cpu=2 requests.cpu=1"),
            (cpu("1", "2"), cpu("2", "3"), "1", json!([]), "limits.cpu=3 requests.cpu=2"),
            (cpu("1", "2"), cpu("1", "2"), "3", json!([]), "limits.cpu=2 requests.cpu=3"),
            (cpu("5", "5"), cpu("1", "2"), "1", json!([]), "limits.cpu=5 requests.cpu=5"),
            (cpu("5", "5"), cpu("1", "2"), "1", pending, "limits.cpu=2 requests.cpu=1"),
        ] {
            let status =
                json!({"name": "c", "resources": has, "allocatedResources": {"cpu": allocated}});
            let container = json!({"name": "c", "resources": wanted});
            for (list, statuses, more) in [
                ("containers", "containerStatuses", json!(null)),
                ("initContainers", "initContainerStatuses", json!("Always")),
            ] {
                let mut container = container.clone();
                container["restartPolicy"] = more;
                let pod = json!({"spec": {list: [container]},
                    "status": {statuses: [status], "conditions": conditions}});
                let usage = usage("", "pods", &pod);
                let some = usage.into_iter().filter(|(name, _)| name.ends_with("s.cpu"));
                assert_eq!(told(&some.collect()), want, "{wanted} {has} {list}");
            }
            let pod = json!({"spec": {"resources": wanted}, "status": {
                "resources": has, "allocatedResources": {"cpu": allocated}, "conditions": conditions}});
            let some =
                usage("", "pods", &pod).into_iter().filter(|(name, _)| name.ends_with("s.cpu"));
            assert_eq!(told(&some.collect()), want, "{wanted} {has}");
        }
    }

    #[test]
    fn names_lead_to_what_they_count() {
        let (pods, claims) = (("", "pods"), ("", "persistentvolumeclaims"));
        for (name, want) in [
            ("pods", vec![pods]),
            ("limits.memory", vec![pods]),
            ("requests.example.com/gpu", vec![pods, DEVICE_CLAIMS]),
            ("requests.deviceclass.resource.kubernetes.io/gpu", vec![pods, DEVICE_CLAIMS]),
            ("count/jobs.batch", vec![("batch", "jobs")]),
            ("services.nodeports", vec![("", "services")]),
            ("fast.storageclass.storage.k8s.io/requests.storage", vec![claims]),
            ("gpu.deviceclass.resource.k8s.io/devices", vec![DEVICE_CLAIMS]),
            ("unknown", vec![]),
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
        let gold = |operator: &str| {
            json!({"scopeSelector": {"matchExpressions": [
            {"scopeName": "VolumeAttributesClass", "operator": operator, "values": ["gold"]}]}})
        };
        let changing = json!({"spec": {"volumeAttributesClassName": "gold"},
            "status": {"currentVolumeAttributesClassName": "iron"}});
        let changed = json!({"spec": {"volumeAttributesClassName": "iron"},
            "status": {"modifyVolumeStatus": {"targetVolumeAttributesClassName": "gold"}}});
        let none = json!({"spec": {}});
        for (operator, claim, want) in [
            ("In", &changing, true),
            ("In", &changed, true),
            ("NotIn", &changing, true),
            ("In", &none, false),
            ("NotIn", &none, true),
            ("Exists", &none, false),
            ("Exists", &changed, true),
            ("DoesNotExist", &none, true),
            ("DoesNotExist", &changed, false),
        ] {
            let got = counts(&gold(operator), "", "persistentvolumeclaims", claim);
            assert_eq!(got, want, "{operator} {claim}");
        }
    }
}
