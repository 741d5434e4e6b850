//! Rules for workloads, and for the kinds that go with them.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::labels::Selector;
use apimachinery::meta;
use serde_json::Value;

use super::core::immutable;
use super::{label_selector, non_negative, one_of, pod, policy, required_one_of};
use crate::zero::Zero;

const CRON_JOB_NAME_MAX: usize = 52;

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
            if spec["selector"].entries().next().is_none() {
                errors.push(Error::required(&path.child("selector"), ""));
            }
            pod::template(&spec["template"], &path.child("template"), &["Always"], errors);
        }
        ("batch", "jobs") => job(spec, &path, errors),
        ("batch", "cronjobs") => {
            // A job's name is the cron job's with eleven characters more.
            let (name, at) = (meta::name(object), Path::new("metadata").child("name"));
            if name.len() > CRON_JOB_NAME_MAX {
                let detail = format!("must be no more than {CRON_JOB_NAME_MAX} characters");
                errors.push(Error::invalid(&at, name, detail));
            }
            cron_job(spec, &path, errors);
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
        ("batch", "jobs") => {
            keep("selector", errors);
            if !new["suspend"].flag() && !before["suspend"].flag() {
                keep("template", errors);
            }
            keep("completionMode", errors);
            if new["completionMode"] != "Indexed" {
                keep("completions", errors);
            }
        }
        _ => {}
    }
}

/// The template must be what the selector finds.
fn selected_template(plural: &str, spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (selector, at) = (&spec["selector"], path.child("selector"));
    let template = path.child("template");
    if selector.is_null() {
        errors.push(Error::required(&at, ""));
    } else {
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
        } else if parsed.is_ok_and(|s| !s.matches(&meta::labels(&spec["template"]))) {
            let labels = spec["template"]["metadata"]["labels"].clone();
            let labels = if labels.is_null() { serde_json::json!({}) } else { labels };
            errors.push(Error::invalid(
                &template.child("metadata").child("labels"),
                labels,
                "`selector` does not match template `labels`",
            ));
        }
    }
    pod::template(&with_claims(spec), &template, &["Always"], errors);
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
    let zero = |value: &Value| matches!(value.as_str(), Some("0%")) || value.as_i64() == Some(0);
    if plural == "deployments" && zero(&rolling["maxSurge"]) && zero(&rolling["maxUnavailable"]) {
        let value = rolling["maxUnavailable"].clone();
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(Error::invalid(
            &at.child("rollingUpdate").child("maxUnavailable"),
            value,
            detail,
        ));
    }
    if plural == "statefulsets" {
        let policy = spec["podManagementPolicy"].text();
        let at = path.child("podManagementPolicy");
        required_one_of(errors, &at, policy, &["OrderedReady", "Parallel"]);
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

fn job(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for key in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        non_negative(errors, &path.child(key), &spec[key]);
    }
    let mode = spec["completionMode"].text();
    if !mode.is_empty() {
        one_of(errors, &path.child("completionMode"), mode, &["Indexed", "NonIndexed"]);
    }
    if mode == "Indexed" && spec["completions"].is_null() {
        let detail = "when completion mode is Indexed";
        errors.push(Error::required(&path.child("completions"), detail));
    }
    pod::template(&spec["template"], &path.child("template"), &["Never", "OnFailure"], errors);
}

fn cron_job(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let schedule = spec["schedule"].text();
    let at = path.child("schedule");
    if schedule.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(Error::invalid(&at, schedule, detail));
    } else if !schedule.starts_with('@') && schedule.split_whitespace().count() != 5 {
        let detail = format!(
            "expected exactly 5 fields, found {}: [{}]",
            schedule.split_whitespace().count(),
            schedule.split_whitespace().collect::<Vec<_>>().join(" ")
        );
        errors.push(Error::invalid(&at, schedule, detail));
    }
    required_one_of(
        errors,
        &path.child("concurrencyPolicy"),
        spec["concurrencyPolicy"].text(),
        &["Allow", "Forbid", "Replace"],
    );
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        non_negative(errors, &path.child(key), &spec[key]);
    }
    job(&spec["jobTemplate"]["spec"], &path.child("jobTemplate").child("spec"), errors);
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
    fn selectors_stay() {
        let old = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}});
        let new = json!({"spec": {"selector": {"matchLabels": {"a": "c"}}}});
        let got = told(|e| validate_update("apps", "deployments", &new, &old, e));
        assert!(got[0].ends_with("field is immutable"), "{got:?}");
    }
}
