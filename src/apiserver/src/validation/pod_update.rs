//! What may change of a pod that exists (`ValidatePodUpdate`).

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::meta;
use serde_json::Value;

use super::{affinity, pod, pod_annotations};
use crate::strategy::pod::qos_class;
use crate::zero::Zero;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A changed pod.
pub fn validate(new: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let (spec, before) = (&new["spec"], &old["spec"]);
    pod_annotations::validate_update(new, old, errors);
    for list in ["containers", "initContainers"] {
        if spec[list].items().len() != before[list].items().len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(Error::forbidden(&path.child(list), detail));
            return;
        }
        for (index, container) in spec[list].items().iter().enumerate() {
            let at = path.child(list).index(index).child("image");
            match container["image"].text() {
                "" => errors.push(Error::required(&at, "")),
                image if image.trim() != image => {
                    let detail = "must not have leading or trailing whitespace";
                    errors.push(Error::invalid(&at, image, detail));
                }
                _ => {}
            }
        }
    }
    deadline(spec, before, &path, errors);
    tolerations(spec, before, &path, errors);
    scheduling_gates(spec, before, &path, errors);
    narrowed(spec, before, &path, errors);
    // Most updates of a pod are of its metadata.
    if spec == before {
        return;
    }
    let munged = munge(spec, before);
    if errors.is_empty() && !alike(&munged, before) {
        let detail = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            difference(before, &munged).join("\n")
        );
        errors.push(Error::forbidden(&path, detail));
    }
}

/// Whether the values are the same to a client for whom what is absent is false, zero or empty.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).all(|key| {
            alike(a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null))
        }),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        _ => a == b || is_nothing(a) && is_nothing(b),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_nothing),
    }
}

/// `new` with all that may change as it was.
fn munge(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    let Some(map) = munged.as_object_mut() else { return munged };
    for list in ["containers", "initContainers"] {
        let containers = map.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, before) in containers.zip(old[list].items()) {
            container["image"] = before["image"].clone();
        }
    }
    let mut keep = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let grace = "terminationGracePeriodSeconds";
    if old[grace].int() < 0 && new[grace].int() == 1 {
        keep.push(grace);
    }
    // A pod that waits at a gate may still be told where to go.
    let gated = !old["schedulingGates"].items().is_empty();
    if gated {
        keep.push("nodeSelector");
    }
    for key in keep {
        match old.get(key) {
            Some(value) => drop(map.insert(key.into(), value.clone())),
            None => drop(map.remove(key)),
        }
    }
    if gated {
        keep_node_affinity(&mut munged, old);
    }
    munged
}

/// Gives `spec` the node affinity of `old`, and no affinity where that was all there is.
fn keep_node_affinity(spec: &mut Value, old: &Value) {
    let before = old["affinity"]["nodeAffinity"].clone();
    let Some(map) = spec.as_object_mut() else { return };
    let mut affinity = map.remove("affinity").unwrap_or_default();
    if !affinity.is_object() {
        affinity = serde_json::json!({});
    }
    if let Some(affinity) = affinity.as_object_mut() {
        affinity.remove("nodeAffinity");
        if before.is_set() {
            affinity.insert("nodeAffinity".into(), before);
        }
    }
    if affinity.entries().next().is_some() || old["affinity"].is_set() {
        map.insert("affinity".into(), affinity);
    }
}

/// Where a waiting pod may go can only be narrowed.
fn narrowed(new: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    if old["schedulingGates"].items().is_empty() {
        return;
    }
    let kept = |(key, value): (&String, &Value)| new["nodeSelector"].get(key) == Some(value);
    if !old["nodeSelector"].entries().all(kept) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        let value = new["nodeSelector"].clone();
        errors.push(Error::invalid(&path.child("nodeSelector"), value, detail));
    }
    let required = |spec: &Value| {
        spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"].clone()
    };
    let (new, old) = (required(new), required(old));
    let at = path
        .child("affinity")
        .child("nodeAffinity")
        .child("requiredDuringSchedulingIgnoredDuringExecution")
        .child("nodeSelectorTerms");
    let (terms, before) = (new["nodeSelectorTerms"].items(), old["nodeSelectorTerms"].items());
    if before.is_empty() {
        return;
    }
    if terms.len() != before.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        errors.push(Error::invalid(&at, new["nodeSelectorTerms"].clone(), detail));
        return;
    }
    for (index, (term, before)) in terms.iter().zip(before).enumerate() {
        let grows = |key: &str| term[key].items().starts_with(before[key].items());
        if !grows("matchExpressions") || !grows("matchFields") {
            let detail = "only additions are allowed (no mutations or deletions)";
            errors.push(Error::invalid(&at.index(index), term.clone(), detail));
        }
    }
}

fn deadline(new: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("activeDeadlineSeconds");
    let (new, old) = (&new["activeDeadlineSeconds"], &old["activeDeadlineSeconds"]);
    if new.is_set() {
        if !(1..=i64::from(i32::MAX)).contains(&new.int()) {
            let detail = "must be between 1 and 2147483647, inclusive";
            errors.push(Error::invalid(&path, new.int(), detail));
        } else if old.is_set() && new.int() > old.int() {
            let detail = "must be less than or equal to previous value";
            errors.push(Error::invalid(&path, new.int(), detail));
        }
    } else if old.is_set() {
        let detail = "must not update from a positive integer to nil value";
        errors.push(Error::invalid(&path, Value::Null, detail));
    }
}

fn tolerations(new: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("tolerations");
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"].iter().all(|key| a[key].text() == b[key].text())
    };
    let kept = |before: &Value| new["tolerations"].items().iter().any(|other| same(before, other));
    if !old["tolerations"].items().iter().all(kept) {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(Error::forbidden(&path, detail));
    }
    if new["tolerations"] != old["tolerations"] {
        affinity::tolerations(new["tolerations"].items(), &path, errors);
    }
}

fn scheduling_gates(new: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let had = |name: &str| old["schedulingGates"].items().iter().any(|gate| gate["name"] == name);
    for gate in new["schedulingGates"].items() {
        let name = gate["name"].text();
        if !had(name) {
            let detail =
                format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(Error::forbidden(&path.child("schedulingGates"), detail));
        }
    }
}

/// The fields that differ, as lines with the old and the new value.
pub fn difference(old: &Value, new: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    walk("", old, new, &mut lines);
    lines
}

fn walk(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                walk(&format!("{path}.{key}"), &old[key], &new[key], lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                walk(&format!("{path}[{index}]"), a, b, lines);
            }
        }
        _ if old == new => {}
        _ => {
            let path = path.trim_start_matches('.');
            lines.push(format!("- {path}: {old}"));
            lines.push(format!("+ {path}: {new}"));
        }
    }
}

/// A resize changes amounts of CPU and memory, and nothing that a kubelet could not do to a running pod
/// (`ValidatePodResize`).
pub fn resize(new: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    pod::spec(&new["spec"], Some(meta::name(new)), &path, errors);
    if old["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_set() {
        errors.push(Error::forbidden(&Path::default(), "static pods cannot be resized"));
    }
    let class = qos_class(new);
    let before = old["status"]["qosClass"].text();
    if !before.is_empty() && class != before {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(Error::invalid(&path, class, detail));
    }
    let (mut munged, mut only) = (new["spec"].clone(), true);
    only &=
        amounts(&munged["resources"], &old["spec"]["resources"], &path.child("resources"), errors);
    if munged.get("resources").is_some() {
        munged["resources"] = old["spec"]["resources"].clone();
    }
    for list in ["containers", "initContainers"] {
        let containers = munged.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (index, (now, was)) in containers.zip(old["spec"][list].items()).enumerate() {
            let at = path.child(list).index(index).child("resources");
            only &= amounts(&now["resources"], &was["resources"], &at, errors);
            now["resources"] = was["resources"].clone();
        }
    }
    if !only || munged != munge_like(&old["spec"], &munged) {
        let detail = "only cpu and memory resources are mutable";
        errors.push(Error::forbidden(&path, detail));
    }
}

/// Tells of amounts that are removed; whether only those of CPU and memory changed.
fn amounts(now: &Value, was: &Value, at: &Path, errors: &mut ErrorList) -> bool {
    let mut only = true;
    for kind in ["limits", "requests"] {
        for name in ["cpu", "memory"] {
            if was[kind][name].is_set() && now[kind][name].is_null() {
                let detail = format!("resource {kind} cannot be removed");
                errors.push(Error::forbidden(&at.child(kind).key(name), detail));
            }
        }
        let others = |of: &Value| -> Vec<(String, Value)> {
            let other = of[kind].entries().filter(|(n, _)| !matches!(n.as_str(), "cpu" | "memory"));
            other.map(|(name, amount)| (name.clone(), amount.clone())).collect()
        };
        only &= others(now) == others(was);
    }
    only
}

/// `old` with a null for resources where `new` has one, so that the two can be compared.
fn munge_like(old: &Value, new: &Value) -> Value {
    let mut old = old.clone();
    if old["resources"].is_null() && new.get("resources").is_some() {
        old["resources"] = Value::Null;
    }
    for list in ["containers", "initContainers"] {
        let containers = old.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten();
        for (container, other) in containers.zip(new[list].items()) {
            if container["resources"].is_null() && other.get("resources").is_some() {
                container["resources"] = Value::Null;
            }
        }
    }
    old
}

/// Ephemeral containers are added and never changed.
pub fn ephemeral_containers(new: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("ephemeralContainers");
    pod::spec(&new["spec"], Some(meta::name(new)), &Path::new("spec"), errors);
    let list = new["spec"]["ephemeralContainers"].items();
    for before in old["spec"]["ephemeralContainers"].items() {
        let name = before["name"].text();
        match list.iter().position(|container| container["name"] == name) {
            None => {
                let detail = format!("existing ephemeral containers {name:?} may not be removed\n");
                errors.push(Error::forbidden(&path, detail));
            }
            Some(index) if list[index] != *before => {
                let detail = format!("existing ephemeral containers {name:?} may not be changed\n");
                errors.push(Error::forbidden(&path.index(index), detail));
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn a_resize_changes_amounts() {
        let pod = |image: &str, resources: Value| {
            json!({"spec": {"restartPolicy": "Always", "dnsPolicy": "Default",
                "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": image,
                "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "resources": resources}]},
                "status": {"qosClass": "Burstable"}})
        };
        let old = pod("a", json!({"requests": {"cpu": "1"}}));
        let told = |image: &str, resources: Value| {
            told(|e| resize(&pod(image, resources.clone()), &old, e)).join("; ")
        };
        assert_eq!(told("a", json!({"requests": {"cpu": "2", "memory": "1Gi"}})), "");
        let of_pod = |was: Value, now: Value| {
            let with = |resources: Value| {
                let mut pod = old.clone();
                pod["spec"]["resources"] = resources;
                pod
            };
            crate::validation::told(|e| resize(&with(now.clone()), &with(was.clone()), e))
                .join("; ")
        };
        let (one, two) = (json!({"requests": {"cpu": "1"}}), json!({"requests": {"cpu": "2"}}));
        assert_eq!(of_pod(one.clone(), two.clone()), "");
        assert_eq!(of_pod(Value::Null, two), "");
        assert_eq!(
            of_pod(one, json!({"requests": {"memory": "1Gi"}})),
            "spec.resources.requests[cpu]: Forbidden: resource requests cannot be removed"
        );
        assert_eq!(
            told("b", json!({"requests": {"cpu": "1"}})),
            "spec: Forbidden: only cpu and memory resources are mutable"
        );
        assert_eq!(
            told("a", json!({"requests": {"memory": "1Gi"}})),
            "spec.containers[0].resources.requests[cpu]: Forbidden: resource requests cannot be removed"
        );
        let both = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(
            told("a", json!({"requests": both, "limits": both})),
            "spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing"
        );
    }

    #[test]
    fn a_waiting_pod_may_be_sent_somewhere_narrower() {
        let required = |terms: Value| json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}});
        let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
        let more = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}]});
        let pod = |extra: Value| {
            let mut spec = json!({"containers": [{"name": "c", "image": "a"}],
                "schedulingGates": [{"name": "g"}], "nodeSelector": {"x": "y"}});
            for (key, value) in extra.as_object().unwrap() {
                spec[key] = value.clone();
            }
            json!({"spec": spec})
        };
        let told = |new: &Value, old: &Value| told(|e| validate(new, old, e)).join("; ");
        let (bare, narrow) = (pod(json!({})), pod(json!({"affinity": required(json!([term]))})));
        let narrower =
            pod(json!({"affinity": required(json!([more])), "nodeSelector": {"x": "y", "z": ""}}));
        assert_eq!(told(&narrow, &bare), "");
        assert_eq!(told(&narrower, &narrow), "");
        assert!(told(&narrow, &narrower).contains("only additions are allowed"));
        assert_eq!(
            told(&pod(json!({"nodeSelector": {}})), &bare),
            "spec.nodeSelector: Invalid value: {}: only additions to spec.nodeSelector are allowed (no mutations or deletions)"
        );
    }

    #[test]
    fn little_may_change() {
        let old = json!({"spec": {"containers": [{"name": "c", "image": "a"}], "nodeName": "n",
            "tolerations": [{"key": "a", "operator": "Exists"}]}});
        let change = |change: &dyn Fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new["spec"]);
            told(|errors| validate(&new, &old, errors))
        };
        let fine = Vec::<String>::new();
        assert_eq!(change(&|s| s["containers"][0]["image"] = "b".into()), fine);
        assert_eq!(change(&|s| s["activeDeadlineSeconds"] = 5.into()), fine);
        // Clients that know types leave such fields out, or fill them in.
        assert_eq!(change(&|s| s["hostNetwork"] = false.into()), fine);
        assert_eq!(
            change(&|s| s["tolerations"] =
                json!([{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}])),
            fine
        );
        assert_eq!(
            change(&|s| s["nodeName"] = "m".into()),
            [format!(
                "spec: Forbidden: pod updates may not change fields other than {UPDATABLE}\n- nodeName: \"n\"\n+ nodeName: \"m\""
            )]
        );
        assert_eq!(
            change(&|s| s["containers"] = json!([])),
            ["spec.containers: Forbidden: pod updates may not add or remove containers"]
        );
        assert_eq!(
            change(&|s| s["tolerations"] = json!([])),
            [
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
            ]
        );
        assert_eq!(
            change(&|s| s["schedulingGates"] = json!([{"name": "g"}])),
            [
                "spec.schedulingGates: Forbidden: only deletion is allowed, but found new scheduling gate 'g'"
            ]
        );
    }
}
