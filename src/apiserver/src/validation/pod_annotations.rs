//! Rules for the annotations of pods that mean something, and for those that have become fields.
//!
//! Source: `ValidatePodSpecificAnnotations` and what it calls in `pkg/apis/core/validation`.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::meta;
use serde_json::{Map, Value};

use super::container::local_path;
use crate::zero::Zero;

const MIRROR: &str = "kubernetes.io/config.mirror";
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// Before a container's name: its AppArmor profile.
pub const APPARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Before a profile of the node.
pub const LOCALHOST: &str = "localhost/";
const LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

fn all_of(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    let annotations = pod["metadata"]["annotations"].as_object();
    annotations.into_iter().flat_map(Map::iter).map(|(key, value)| (key.as_str(), value.text()))
}

/// The annotations of a pod or of a template, at `path`.
pub fn validate(pod: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("annotations");
    for (key, value) in all_of(pod) {
        if key == MIRROR && pod["spec"]["nodeName"].text().is_empty() {
            let detail = "must set spec.nodeName if mirror pod annotation is set";
            errors.push(Error::invalid(&at.key(key), value, detail));
        }
        if key == DELETION_COST && !is_cost(value) {
            errors.push(Error::invalid(&at.key(key), value, "must be a 32bit integer"));
        }
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            // Upstream names these as if they were fields.
            seccomp_profile(value, &at.child(key), errors);
        }
        if let Some(name) = key.strip_prefix(APPARMOR) {
            let mut containers = LISTS.iter().flat_map(|list| pod["spec"][*list].items());
            if !containers.any(|container| container["name"] == name) {
                errors.push(Error::invalid(&at.key(key), name, "container not found"));
            }
            let known = matches!(value, "" | "runtime/default" | "unconfined");
            if !known && !value.starts_with(LOCALHOST) {
                let detail = format!("invalid AppArmor profile name: {value:?}");
                errors.push(Error::invalid(&at.key(key), value, detail));
            }
        }
    }
}

/// What may not be taken from a pod that exists, or given to it.
pub fn validate_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    let at = Path::new("metadata").child("annotations");
    if new["metadata"]["annotations"] == old["metadata"]["annotations"] {
        return;
    }
    for (key, value) in all_of(old) {
        if meta::annotation(new, key) == Some(value) {
            continue;
        }
        if key.starts_with(APPARMOR) {
            let detail = "may not remove or update AppArmor annotations";
            errors.push(Error::forbidden(&at.key(key), detail));
        }
        if key == MIRROR {
            let detail = "may not remove or update mirror pod annotation";
            errors.push(Error::forbidden(&at.key(key), detail));
        }
    }
    for (key, _) in all_of(new).filter(|(key, _)| meta::annotation(old, key).is_none()) {
        if key.starts_with(APPARMOR) {
            errors.push(Error::forbidden(&at.key(key), "may not add AppArmor annotations"));
        }
        if key == MIRROR {
            errors.push(Error::forbidden(&at.key(key), "may not add mirror pod annotation"));
        }
    }
    validate(new, &Path::new("metadata"), errors);
}

/// An integer without a plus sign; zeros may lead only behind a minus sign, as upstream has it.
fn is_cost(text: &str) -> bool {
    let begins = text == "0" || text.starts_with(|first| matches!(first, '-' | '1'..='9'));
    begins && text.parse::<i32>().is_ok()
}

fn seccomp_profile(profile: &str, path: &Path, errors: &mut ErrorList) {
    if matches!(profile, "runtime/default" | "docker/default" | "unconfined") {
        return;
    }
    match profile.strip_prefix(LOCALHOST) {
        Some(file) => local_path(file, path, errors),
        None => errors.push(Error::invalid(path, profile, "must be a valid seccomp profile")),
    }
}

/// A profile that is both in an annotation and in a field is the same in both.
pub fn match_fields(pod: &Value, path: &Path, errors: &mut ErrorList) {
    let own = &pod["spec"]["securityContext"];
    let told = |key: &str| meta::annotation(pod, key);
    if let Some(annotation) = told(SECCOMP_POD) {
        let at = path.child("securityContext").child("seccompProfile");
        same("seccomp", annotation, &own["seccompProfile"], &at, errors);
    }
    let containers = || {
        LISTS.iter().flat_map(|list| {
            let items = pod["spec"][*list].items().iter().enumerate();
            items.map(move |(index, container)| (container, path.child(list).index(index)))
        })
    };
    for (container, at) in containers() {
        let key = format!("{SECCOMP_CONTAINER}{}", container["name"].text());
        if let Some(annotation) = told(&key) {
            let at = at.child("securityContext").child("seccompProfile");
            let profile = &container["securityContext"]["seccompProfile"];
            same("seccomp", annotation, profile, &at, errors);
        }
    }
    if pod["spec"]["os"]["name"] == "windows" {
        return;
    }
    for (container, at) in containers() {
        let key = format!("{APPARMOR}{}", container["name"].text());
        if let Some(annotation) = told(&key) {
            let at = at.child("securityContext").child("appArmorProfile");
            let profile = &container["securityContext"]["appArmorProfile"];
            let profile = if profile.is_set() { profile } else { &own["appArmorProfile"] };
            same("apparmor", annotation, profile, &at, errors);
        }
    }
}

fn same(kind: &str, annotation: &str, profile: &Value, path: &Path, errors: &mut ErrorList) {
    let file = annotation.strip_prefix(LOCALHOST);
    let same_type = match profile["type"].text() {
        "Unconfined" => annotation == "unconfined",
        "RuntimeDefault" if kind == "seccomp" && annotation == "docker/default" => true,
        "RuntimeDefault" => annotation == "runtime/default",
        "Localhost" => file.is_some(),
        _ => return,
    };
    if !same_type {
        let detail = format!("{kind} type in annotation and field must match");
        errors.push(Error::forbidden(&path.child("type"), detail));
    } else if file.is_some() && profile["localhostProfile"].as_str() != file {
        let detail = format!("{kind} profile in annotation and field must match");
        errors.push(Error::forbidden(&path.child("localhostProfile"), detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::told;
    use super::*;

    fn pod(annotations: &Value, profile: &Value) -> Value {
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": [
            {"name": "c", "securityContext": {"appArmorProfile": profile, "seccompProfile": profile}}]}})
    }

    #[test]
    fn annotations_are_checked() {
        let none = &Value::Null;
        let a = "metadata.annotations";
        for (annotations, want) in [
            (json!({}), String::new()),
            (json!({APPARMOR.to_owned() + "c": "runtime/default"}), String::new()),
            (json!({APPARMOR.to_owned() + "c": ""}), String::new()),
            (
                json!({APPARMOR.to_owned() + "d": "unconfined"}),
                format!("{a}[{APPARMOR}d]: Invalid value: \"d\": container not found"),
            ),
            (
                json!({APPARMOR.to_owned() + "c": "x"}),
                format!(
                    "{a}[{APPARMOR}c]: Invalid value: \"x\": invalid AppArmor profile name: \"x\""
                ),
            ),
            (
                json!({SECCOMP_POD: "x"}),
                format!("{a}.{SECCOMP_POD}: Invalid value: \"x\": must be a valid seccomp profile"),
            ),
            (json!({SECCOMP_POD: "localhost/a.json"}), String::new()),
            (
                json!({DELETION_COST: "+1"}),
                format!("{a}[{DELETION_COST}]: Invalid value: \"+1\": must be a 32bit integer"),
            ),
            (json!({DELETION_COST: "-100"}), String::new()),
            (
                json!({MIRROR: "x"}),
                format!(
                    "{a}[{MIRROR}]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set"
                ),
            ),
        ] {
            let pod = pod(&annotations, none);
            let got = told(|errors| validate(&pod, &Path::new("metadata"), errors)).join("; ");
            assert_eq!(got, want, "{annotations}");
        }
    }

    #[test]
    fn annotations_and_fields_are_the_same() {
        let at = "spec.containers[0].securityContext";
        for (key, annotation, profile, want) in [
            (APPARMOR, "unconfined", json!({"type": "Unconfined"}), String::new()),
            (APPARMOR, "unconfined", json!(null), String::new()),
            (
                APPARMOR,
                "unconfined",
                json!({"type": "RuntimeDefault"}),
                format!(
                    "{at}.appArmorProfile.type: Forbidden: apparmor type in annotation and field must match"
                ),
            ),
            (
                APPARMOR,
                "localhost/a",
                json!({"type": "Localhost", "localhostProfile": "b"}),
                format!(
                    "{at}.appArmorProfile.localhostProfile: Forbidden: apparmor profile in annotation and field must match"
                ),
            ),
            (SECCOMP_CONTAINER, "docker/default", json!({"type": "RuntimeDefault"}), String::new()),
            (
                SECCOMP_CONTAINER,
                "unconfined",
                json!({"type": "RuntimeDefault"}),
                format!(
                    "{at}.seccompProfile.type: Forbidden: seccomp type in annotation and field must match"
                ),
            ),
        ] {
            let pod = pod(&json!({format!("{key}c"): annotation}), &profile);
            let got = told(|errors| match_fields(&pod, &Path::new("spec"), errors)).join("; ");
            assert_eq!(got, want, "{annotation} {profile}");
        }
    }

    #[test]
    fn some_annotations_stay() {
        let key = format!("{APPARMOR}c");
        let with = |value: &str| pod(&json!({key.as_str(): value}), &Value::Null);
        let without = pod(&json!({"a": "b"}), &Value::Null);
        let at = format!("metadata.annotations[{key}]: Forbidden:");
        for (new, old, want) in [
            (&with("unconfined"), &with("unconfined"), String::new()),
            (
                &with("runtime/default"),
                &with("unconfined"),
                format!("{at} may not remove or update AppArmor annotations"),
            ),
            (
                &without,
                &with("unconfined"),
                format!("{at} may not remove or update AppArmor annotations"),
            ),
            (&with("unconfined"), &without, format!("{at} may not add AppArmor annotations")),
        ] {
            assert_eq!(told(|errors| validate_update(new, old, errors)).join("; "), want);
        }
    }
}
