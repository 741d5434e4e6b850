//! Rules for workloads, and for the kinds that go with them.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::labels::Selector;
use apimachinery::meta;
use serde_json::Value;

use super::core::immutable;
use super::{label_selector, non_negative, one_of, pod, policy, required_one_of};
use crate::zero::Zero;

/// A workload, new or changed.
pub fn validate(group: &str, plural: &str, object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    match (group, plural) {
        ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets") => {
            selected_template(plural, spec, &path, errors);
            for key in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
                non_negative(errors, &path.child(key), &spec[key]);
            }
            strategy(plural, spec, &path, errors);
        }
        ("", "replicationcontrollers") => {
            non_negative(errors, &path.child("replicas"), &spec["replicas"]);
            non_negative(errors, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
            let at = path.child("selector");
            if spec["selector"].entries().next().is_none() {
                errors.push(Error::required(&at, ""));
            }
            let labels = meta::labels(&spec["template"]);
            let found = |(key, value): (&String, &Value)| {
                labels.get(key).is_some_and(|label| label == value.text())
            };
            if spec["template"].is_null() {
                errors.push(Error::required(&path.child("template"), ""));
                return;
            }
            if !spec["selector"].entries().all(found) {
                errors.push(Error::invalid(
                    &path.child("template").child("metadata").child("labels"),
                    spec["template"]["metadata"]["labels"].clone(),
                    "`selector` does not match template `labels`",
                ));
            }
            pod::template(&spec["template"], &path.child("template"), &["Always"], errors);
        }
        ("", "podtemplates") => {
            const ANY: [&str; 3] = ["Always", "Never", "OnFailure"];
            pod::template(&object["template"], &Path::new("template"), &ANY, errors);
        }
        _ => {}
    }
}

/// Selectors and what depends on them stay.
pub fn validate_update(
    group: &str,
    plural: &str,
    object: &Value,
    old: &Value,
    errors: &mut ErrorList,
) {
    let path = Path::new("spec");
    let (new, before) = (&object["spec"], &old["spec"]);
    let keep = |key: &str, errors: &mut ErrorList| {
        immutable(&path.child(key), &new[key], &before[key], errors);
    };
    match (group, plural) {
        ("apps", "statefulsets") => {
            let free = [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
            ];
            let fixed = |spec: &Value| -> serde_json::Map<String, Value> {
                let fields = spec.entries().filter(|(key, _)| !free.contains(&key.as_str()));
                fields.map(|(key, value)| (key.clone(), value.clone())).collect()
            };
            if fixed(new) != fixed(before) {
                let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
                errors.push(Error::forbidden(&path, detail));
            }
        }
        ("apps", _) => keep("selector", errors),
        _ => {}
    }
}

/// A revision of a workload: what it holds stays.
pub fn revision(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    if object["data"].is_null() {
        errors.push(Error::required(&Path::new("data"), "data is mandatory"));
    }
    non_negative(errors, &Path::new("revision"), &object["revision"]);
    if let Some(old) = old {
        immutable(&Path::new("data"), &object["data"], &old["data"], errors);
    }
}

/// The template must be what the selector finds.
fn selected_template(plural: &str, spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (selector, at) = (&spec["selector"], path.child("selector"));
    let template = path.child("template");
    // None selects nothing, so that the template does not match it either.
    let mut matches = false;
    if !selector.is_null() {
        label_selector(errors, &at, selector);
        let parsed = Selector::from_label_selector(Some(selector));
        if parsed.as_ref().is_ok_and(Selector::is_everything) {
            // Upstream says so of replica sets too.
            let kind = match plural {
                "statefulsets" => "statefulset",
                "daemonsets" => "daemonset",
                _ => "deployment",
            };
            let detail = format!("empty selector is invalid for {kind}");
            errors.push(Error::invalid(&at, selector.clone(), detail));
        }
        matches = parsed.map_or(true, |s| s.matches(&meta::labels(&spec["template"])));
    } else if plural != "daemonsets" {
        errors.push(Error::required(&at, ""));
    }
    if !matches {
        errors.push(Error::invalid(
            &template.child("metadata").child("labels"),
            spec["template"]["metadata"]["labels"].clone(),
            "`selector` does not match template `labels`",
        ));
    }
    pod::template(&with_claims(spec), &template, &["Always"], errors);
    if spec["template"]["spec"]["activeDeadlineSeconds"].is_set() {
        let kind = match plural {
            "statefulsets" => "StatefulSet",
            "daemonsets" => "DaemonSet",
            _ => "ReplicaSet",
        };
        let at = template.child("spec").child("activeDeadlineSeconds");
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(Error::forbidden(&at, detail));
    }
}

/// The template with the volumes that a stateful set's claim templates stand for.
fn with_claims(spec: &Value) -> Value {
    let mut template = spec["template"].clone();
    let claims = spec["volumeClaimTemplates"].items();
    if claims.is_empty() || !template["spec"].is_object() {
        return template;
    }
    if !template["spec"]["volumes"].is_array() {
        template["spec"]["volumes"] = serde_json::json!([]);
    }
    if let Some(volumes) = template["spec"]["volumes"].as_array_mut() {
        for name in claims.iter().map(|claim| &claim["metadata"]["name"]) {
            // The claim takes the place of a volume of the same name.
            volumes.retain(|volume| volume["name"] != *name);
            let source = serde_json::json!({"claimName": name});
            volumes.push(serde_json::json!({"name": name, "persistentVolumeClaim": source}));
        }
    }
    template
}

fn strategy(plural: &str, spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (key, kinds): (&str, &[&str]) = match plural {
        "deployments" => ("strategy", &["Recreate", "RollingUpdate"]),
        "statefulsets" | "daemonsets" => ("updateStrategy", &["OnDelete", "RollingUpdate"]),
        _ => return,
    };
    let (strategy, at) = (&spec[key], path.child(key));
    let kind = strategy["type"].text();
    required_one_of(errors, &at.child("type"), kind, kinds);
    let rolling = &strategy["rollingUpdate"];
    if plural == "deployments" && kind == "Recreate" && rolling.is_set() {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(Error::forbidden(&at.child("rollingUpdate"), detail));
    }
    for key in ["maxSurge", "maxUnavailable"] {
        if rolling[key].is_set() {
            let at = at.child("rollingUpdate").child(key);
            policy::amount_or_percent(&rolling[key], &at, errors);
            if key == "maxUnavailable" || plural == "daemonsets" {
                policy::at_most_all(&rolling[key], &at, errors);
            }
        }
    }
    let partition = at.child("rollingUpdate").child("partition");
    non_negative(errors, &partition, &rolling["partition"]);
    if plural == "deployments" && zero(&rolling["maxSurge"]) && zero(&rolling["maxUnavailable"]) {
        let value = rolling["maxUnavailable"].clone();
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(Error::invalid(
            &at.child("rollingUpdate").child("maxUnavailable"),
            value,
            detail,
        ));
    }
    if plural == "daemonsets" && kind == "RollingUpdate" {
        let (at, surge) = (at.child("rollingUpdate"), &rolling["maxSurge"]);
        match (zero(&rolling["maxUnavailable"]), surge.is_null() || zero(surge)) {
            (false, false) => {
                let detail = "may not be set when maxUnavailable is non-zero";
                errors.push(Error::invalid(&at.child("maxSurge"), surge.clone(), detail));
            }
            (true, true) => {
                let detail = "cannot be 0 when maxSurge is 0";
                errors.push(Error::required(&at.child("maxUnavailable"), detail));
            }
            _ => {}
        }
    }
    if plural == "statefulsets" {
        stateful_set(spec, path, errors);
    }
    let deadline = &spec["progressDeadlineSeconds"];
    if plural == "deployments"
        && deadline.is_set()
        && deadline.int() <= spec["minReadySeconds"].int()
    {
        let detail = "must be greater than minReadySeconds";
        errors.push(Error::invalid(&path.child("progressDeadlineSeconds"), deadline.int(), detail));
    }
}

fn stateful_set(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let policy = spec["podManagementPolicy"].text();
    let at = path.child("podManagementPolicy");
    required_one_of(errors, &at, policy, &["OrderedReady", "Parallel"]);
    non_negative(errors, &path.child("ordinals").child("start"), &spec["ordinals"]["start"]);
    let at = path.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let policy = &spec["persistentVolumeClaimRetentionPolicy"][key];
        if policy.is_set() {
            one_of(errors, &at.child(key), policy.text(), &["Delete", "Retain"]);
        }
    }
    let unavailable = &spec["updateStrategy"]["rollingUpdate"]["maxUnavailable"];
    if zero(unavailable) {
        let at = path.child("updateStrategy").child("rollingUpdate").child("maxUnavailable");
        errors.push(Error::invalid(&at, unavailable.clone(), "cannot be 0"));
    }
}

fn zero(value: &Value) -> bool {
    matches!(value.as_str(), Some("0%")) || value.as_i64() == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn templates_match_their_selectors() {
        let deployment = |labels: Value, policy: &str| {
            let mut object = json!({"spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}}}});
            let registry = crate::registry::Registry::default();
            let resource = registry.resource("apps", "deployments").unwrap();
            crate::defaults::set_defaults(&resource, &mut object);
            told(|e| validate("apps", "deployments", &object, e))
        };
        assert_eq!(deployment(json!({"a": "b"}), "Always"), Vec::<String>::new());
        assert_eq!(
            deployment(json!({"a": "c"}), "Always"),
            [
                r#"spec.template.metadata.labels: Invalid value: {"a":"c"}: `selector` does not match template `labels`"#
            ]
        );
        assert_eq!(
            deployment(json!({"a": "b"}), "Never"),
            [
                r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#
            ]
        );
    }

    #[test]
    fn no_selector_matches_nothing() {
        let object = json!({"spec": {"template": {"metadata": {}}}});
        let unmatched = "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`";
        for (plural, want) in [
            ("deployments", &["spec.selector: Required value", unmatched][..]),
            ("statefulsets", &["spec.selector: Required value", unmatched][..]),
            ("daemonsets", &[unmatched][..]),
        ] {
            let told = told(|e| validate("apps", plural, &object, e));
            assert_eq!(told[..want.len()], *want, "{plural}");
        }
    }

    #[test]
    fn selectors_stay() {
        let old = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        let new = json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}});
        let got = told(|e| validate_update("apps", "deployments", &new, &old, e));
        assert!(got[0].ends_with("field is immutable"), "{got:?}");
    }
}
