//! Rules for webhook configurations.
//!
//! Source: `pkg/apis/admissionregistration/validation/validation.go`.

use std::collections::BTreeSet;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::names;
use serde_json::Value;

use super::{label_selector, mistakes, one_of};
use crate::admission::dynamic::check_webhook_conditions;
use crate::webhook;
use crate::zero::Zero;

const REVIEWS: [&str; 2] = ["v1", "v1beta1"];
const SIDE_EFFECTS: [&str; 2] = ["None", "NoneOnDryRun"];
const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const TIMEOUT_MAX_SECONDS: i64 = 30;

/// A configuration of validating or mutating webhooks.
pub fn validate(configuration: &Value, errors: &mut ErrorList) {
    let path = Path::new("webhooks");
    let mut seen = BTreeSet::new();
    for (index, hook) in configuration["webhooks"].items().iter().enumerate() {
        let at = path.index(index);
        one(hook, &at, errors);
        review_versions(&hook["admissionReviewVersions"], &at, errors);
        let name = hook["name"].text();
        if !seen.insert(name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
    }
}

fn one(hook: &Value, path: &Path, errors: &mut ErrorList) {
    qualified(hook["name"].text(), &path.child("name"), errors);
    for (index, item) in hook["rules"].items().iter().enumerate() {
        rule(item, &path.child("rules").index(index), errors);
    }
    for (key, known) in [
        ("failurePolicy", ["Fail", "Ignore"]),
        ("matchPolicy", ["Equivalent", "Exact"]),
        ("reinvocationPolicy", ["IfNeeded", "Never"]),
        ("sideEffects", SIDE_EFFECTS),
    ] {
        if hook[key].is_set() {
            one_of(errors, &path.child(key), hook[key].text(), &known);
        }
    }
    if hook["sideEffects"].is_null() {
        let detail = format!("must specify one of {}", SIDE_EFFECTS.join(", "));
        errors.push(Error::required(&path.child("sideEffects"), &detail));
    }
    let timeout = &hook["timeoutSeconds"];
    if timeout.is_set() && !(1..=TIMEOUT_MAX_SECONDS).contains(&timeout.int()) {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.push(Error::invalid(&path.child("timeoutSeconds"), timeout.int(), detail));
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector(errors, &path.child(key), &hook[key]);
    }
    check_webhook_conditions(&hook["matchConditions"], &path.child("matchConditions"), errors);
    webhook::validate_client(&hook["clientConfig"], &path.child("clientConfig"), errors);
}

/// A domain of at least three parts (`IsFullyQualifiedName`).
fn qualified(name: &str, path: &Path, errors: &mut ErrorList) {
    if name.is_empty() {
        errors.push(Error::required(path, ""));
        return;
    }
    let sentences = names::dns_subdomain(name);
    if !sentences.is_empty() {
        errors.push(Error::invalid(path, name, sentences.join(",")));
    } else if name.split('.').count() < 3 {
        let detail = "should be a domain with at least three segments separated by dots";
        errors.push(Error::invalid(path, name, detail));
    }
}

/// What a rule must name, and the words for a wildcard that is not alone.
const NAMED: [(&str, &str); 3] =
    [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")];

/// Which requests a rule is about.
pub fn rule(rule: &Value, path: &Path, errors: &mut ErrorList) {
    for (key, what) in NAMED {
        let (list, at) = (rule[key].items(), path.child(key));
        if list.is_empty() {
            errors.push(Error::required(&at, ""));
        }
        if list.len() > 1 && list.iter().any(|item| item == "*") {
            let detail = format!("if '*' is present, must not specify other {what}");
            errors.push(Error::invalid(&at, rule[key].clone(), detail));
        }
    }
    for (index, operation) in rule["operations"].texts().enumerate() {
        one_of(errors, &path.child("operations").index(index), operation, &OPERATIONS);
    }
    for (index, version) in rule["apiVersions"].texts().enumerate() {
        if version.is_empty() {
            errors.push(Error::required(&path.child("apiVersions").index(index), ""));
        }
    }
    resources(&rule["resources"], &path.child("resources"), errors);
    if rule["scope"].is_set() {
        let known = ["*", "Cluster", "Namespaced"];
        one_of(errors, &path.child("scope"), rule["scope"].text(), &known);
    }
}

/// Resources and subresources; what a wildcard says is not said again.
fn resources(list: &Value, path: &Path, errors: &mut ErrorList) {
    if list.items().is_empty() {
        errors.push(Error::required(path, ""));
    }
    let (mut all_of, mut of_all) = (BTreeSet::new(), BTreeSet::new());
    for (index, text) in list.texts().enumerate() {
        let at = path.index(index);
        if text.is_empty() {
            errors.push(Error::required(&at, ""));
        }
        let Some((resource, sub)) = text.split_once('/') else { continue };
        for (known, wildcard) in [
            (all_of.contains(resource), format!("{resource}/*")),
            (of_all.contains(sub), format!("*/{sub}")),
        ] {
            if known {
                let detail = format!("if '{wildcard}' is present, must not specify {text}");
                errors.push(Error::invalid(&at, text, detail));
            }
        }
        if sub == "*" {
            all_of.insert(resource);
        }
        if resource == "*" {
            of_all.insert(sub);
        }
    }
    let has = |wanted: &str| list.texts().any(|text| text == wanted);
    if list.items().len() > 1 && has("*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.push(Error::invalid(path, list.clone(), detail));
    }
    if has("*") && list.texts().any(|text| text != "*" && !text.contains('/')) {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(path, list.clone(), detail));
    }
}

fn review_versions(versions: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("admissionReviewVersions");
    if versions.items().is_empty() {
        let detail = format!("must specify one of {}", REVIEWS.join(", "));
        errors.push(Error::required(&at, &detail));
        return;
    }
    let mut seen = BTreeSet::new();
    for (index, version) in versions.texts().enumerate() {
        if seen.insert(version) {
            mistakes(errors, &at.index(index), version, names::dns_1035_label(version));
        } else {
            errors.push(Error::invalid(&at.index(index), version, "duplicate version"));
        }
    }
    if !versions.texts().any(|version| REVIEWS.contains(&version)) {
        let detail = format!("must include at least one of {}", REVIEWS.join(", "));
        errors.push(Error::invalid(&at, versions.clone(), detail));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told;

    #[test]
    fn conditions_compile() {
        let hook = json!({"webhooks": [{"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://example.com/x"},
            "matchConditions": [{"name": "a", "expression": "... [] bad expression"}]}]});
        let told = told(|e| validate(&hook, e)).join("; ");
        assert!(told.starts_with("webhooks[0].matchConditions[0].expression: Invalid value: \"... [] bad expression\": compilation failed: "), "{told}");
    }

    #[test]
    fn webhooks_are_checked() {
        let hook = |extra: Value| {
            let mut hook = json!({"name": "a.b.c", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://example.com/x"}, "rules": [{"operations": ["CREATE"],
                    "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
            for (key, value) in extra.as_object().unwrap() {
                hook[key] = value.clone();
            }
            json!({"webhooks": [hook]})
        };
        let rule = |extra: Value| {
            let mut object = hook(json!({}));
            for (key, value) in extra.as_object().unwrap() {
                object["webhooks"][0]["rules"][0][key] = value.clone();
            }
            object
        };
        for (object, want) in [
            (hook(json!({})), ""),
            (
                hook(json!({"name": "a.b"})),
                "name: Invalid value: \"a.b\": should be a domain with at least three segments separated by dots",
            ),
            (
                hook(json!({"sideEffects": null})),
                "sideEffects: Required value: must specify one of None, NoneOnDryRun",
            ),
            (
                hook(json!({"sideEffects": "Some"})),
                "sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ),
            (
                hook(json!({"timeoutSeconds": 31})),
                "timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ),
            (
                hook(json!({"failurePolicy": "X"})),
                "failurePolicy: Unsupported value: \"X\": supported values: \"Fail\", \"Ignore\"",
            ),
            (
                hook(json!({"admissionReviewVersions": []})),
                "admissionReviewVersions: Required value: must specify one of v1, v1beta1",
            ),
            (
                hook(json!({"admissionReviewVersions": ["v2"]})),
                "admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
            ),
            (
                rule(json!({"operations": ["GET"]})),
                "rules[0].operations[0]: Unsupported value: \"GET\": supported values: \"*\", \"CONNECT\", \"CREATE\", \"DELETE\", \"UPDATE\"",
            ),
            (
                rule(json!({"apiGroups": ["*", "apps"]})),
                "rules[0].apiGroups: Invalid value: [\"*\",\"apps\"]: if '*' is present, must not specify other API groups",
            ),
            (rule(json!({"resources": []})), "rules[0].resources: Required value"),
            (
                hook(
                    json!({"matchConditions": [{"name": "a", "expression": "object.kind == 'A'"}, {"expression": "true"}]}),
                ),
                "matchConditions[1].name: Required value",
            ),
            (
                hook(
                    json!({"matchConditions": [{"name": "a", "expression": "1"}, {"name": "a", "expression": "true"}]}),
                ),
                "matchConditions[0].expression: Invalid value: \"1\": must evaluate to bool; webhooks[0].matchConditions[1].name: Duplicate value: \"a\"",
            ),
        ] {
            let want = if want.is_empty() { String::new() } else { format!("webhooks[0].{want}") };
            assert_eq!(told(|e| validate(&object, e)).join("; "), want);
        }
    }
}
