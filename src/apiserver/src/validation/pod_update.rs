//! What may change of a pod that exists (`ValidatePodUpdate`).

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::{affinity, pod};
use crate::zero::Zero;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A changed pod.
pub fn validate(new: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec");
    let (spec, before) = (&new["spec"], &old["spec"]);
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
    let munged = munge(spec, before);
    if errors.is_empty() && munged != *before {
        let detail = format!(
            "pod updates may not change fields other than {UPDATABLE}\n{}",
            difference(before, &munged).join("\n")
        );
        errors.push(Error::forbidden(&path, detail));
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
    if !old["schedulingGates"].items().is_empty() && selector_grows(new, old) {
        keep.push("nodeSelector");
    }
    for key in keep {
        match old.get(key) {
            Some(value) => drop(map.insert(key.into(), value.clone())),
            None => drop(map.remove(key)),
        }
    }
    munged
}

fn selector_grows(new: &Value, old: &Value) -> bool {
    old["nodeSelector"].entries().all(|(key, value)| new["nodeSelector"].get(key) == Some(value))
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

/// Ephemeral containers are added and never changed.
pub fn ephemeral_containers(new: &Value, old: &Value, errors: &mut ErrorList) {
    let path = Path::new("spec").child("ephemeralContainers");
    pod::spec(&new["spec"], &Path::new("spec"), errors);
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
