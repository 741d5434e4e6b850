//! Rules for admission policies and their bindings, beside those for their expressions.
//!
//! Source: `pkg/apis/admissionregistration/validation/validation.go`.

use std::collections::BTreeSet;

use apimachinery::cel::is_identifier;
use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::{label_selector, mistakes, one_of, required_one_of, webhooks};
use crate::zero::Zero;

const ANNOTATIONS_MAX: usize = 20;
const ANNOTATION_EXPRESSION_MAX: usize = 5 << 10;
const REASONS: [&str; 4] = ["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];

/// A policy or a binding, by the plural of its kind.
pub fn validate(plural: &str, object: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if plural.ends_with("bindings") {
        binding(plural, spec, &path, errors);
        return;
    }
    let failure = spec["failurePolicy"].text();
    required_one_of(errors, &path.child("failurePolicy"), failure, &["Fail", "Ignore"]);
    if spec["paramKind"].is_set() {
        param_kind(&spec["paramKind"], &path.child("paramKind"), errors);
    }
    match_resources(&spec["matchConstraints"], &path.child("matchConstraints"), errors);
    for (index, variable) in spec["variables"].items().iter().enumerate() {
        let (name, at) = (variable["name"].text(), path.child("variables").index(index));
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), "name is not specified"));
        } else if !is_identifier(name) {
            let detail = "name is not a valid CEL identifier";
            errors.push(Error::invalid(&at.child("name"), name, detail));
        }
    }
    if plural.starts_with("mutating") {
        let again = spec["reinvocationPolicy"].text();
        let at = path.child("reinvocationPolicy");
        required_one_of(errors, &at, again, &["IfNeeded", "Never"]);
        for (index, mutation) in spec["mutations"].items().iter().enumerate() {
            let at = path.child("mutations").index(index);
            let known = ["ApplyConfiguration", "JSONPatch"];
            required_one_of(errors, &at.child("patchType"), mutation["patchType"].text(), &known);
        }
        return;
    }
    for (index, validation) in spec["validations"].items().iter().enumerate() {
        told(validation, &path.child("validations").index(index), errors);
    }
    audit_annotations(meta::name(object), spec, &path.child("auditAnnotations"), errors);
}

fn param_kind(kind: &Value, path: &Path, errors: &mut ErrorList) {
    let (version, at) = (kind["apiVersion"].text(), path.child("apiVersion"));
    match version.split('/').collect::<Vec<_>>().as_slice() {
        [""] => errors.push(Error::required(&at, "")),
        [only] => group_version("", only, &at, errors),
        [group, version] => group_version(group, version, &at, errors),
        _ => {
            let detail = format!("unexpected GroupVersion string: {version}");
            errors.push(Error::invalid(&at, version, detail));
        }
    }
    let (kind, at) = (kind["kind"].text(), path.child("kind"));
    let sentences = names::dns_1035_label(&kind.to_lowercase());
    if kind.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if !sentences.is_empty() {
        let detail =
            format!("may have mixed case, but should otherwise match: {}", sentences.join(","));
        errors.push(Error::invalid(&at, kind, detail));
    }
}

fn group_version(group: &str, version: &str, path: &Path, errors: &mut ErrorList) {
    let mut joined = |text: &str, sentences: Vec<String>| {
        if !sentences.is_empty() {
            errors.push(Error::invalid(path, text, sentences.join(",")));
        }
    };
    if !group.is_empty() {
        joined(group, names::dns_subdomain(group));
    }
    if version.is_empty() {
        joined(version, vec!["version must be specified".into()]);
    } else {
        joined(version, names::dns_1035_label(version));
    }
}

/// Which objects a policy is about.
fn match_resources(constraints: &Value, path: &Path, errors: &mut ErrorList) {
    if constraints.is_null() {
        return;
    }
    let policy = constraints["matchPolicy"].text();
    required_one_of(errors, &path.child("matchPolicy"), policy, &["Equivalent", "Exact"]);
    for key in ["namespaceSelector", "objectSelector"] {
        let at = path.child(key);
        if constraints[key].is_null() {
            errors.push(Error::required(&at, ""));
        } else {
            label_selector(errors, &at, &constraints[key]);
        }
    }
    for list in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in constraints[list].items().iter().enumerate() {
            let at = path.child(list).index(index);
            let mut seen = BTreeSet::new();
            for (index, name) in rule["resourceNames"].texts().enumerate() {
                let at = at.child("resourceNames").index(index);
                mistakes(errors, &at, name, names::path_segment(name));
                if !seen.insert(name) {
                    errors.push(Error::duplicate(&at, name));
                }
            }
            webhooks::rule(rule, &at, errors);
        }
    }
}

/// What a validation says to whom it refuses.
fn told(validation: &Value, path: &Path, errors: &mut ErrorList) {
    let (message, at) = (validation["message"].text(), path.child("message"));
    if !message.is_empty() && message.trim().is_empty() {
        let detail = "message must be non-empty if specified";
        errors.push(Error::invalid(&at, message, detail));
    } else if message.trim().contains(['\n', '\r']) {
        errors.push(Error::invalid(&at, message, "message must not contain line breaks"));
    } else if message.is_empty() && validation["expression"].text().trim().contains(['\n', '\r']) {
        let detail = "message must be specified if expression contains line breaks";
        errors.push(Error::required(&at, detail));
    }
    let (made, at) = (validation["messageExpression"].text(), path.child("messageExpression"));
    if !made.is_empty() && made.trim().is_empty() {
        errors.push(Error::invalid(&at, made, "must be non-empty if specified"));
    }
    if let Some(reason) = validation["reason"].as_str() {
        one_of(errors, &path.child("reason"), reason, &REASONS);
    }
}

fn audit_annotations(policy: &str, spec: &Value, path: &Path, errors: &mut ErrorList) {
    let annotations = spec["auditAnnotations"].items();
    if annotations.len() > ANNOTATIONS_MAX {
        let detail = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        errors.push(Error::invalid(path, spec["auditAnnotations"].clone(), detail));
    }
    let mut seen = BTreeSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let (key, at) = (annotation["key"].text(), path.index(index));
        if !policy.is_empty() {
            let whole = format!("{policy}/{key}");
            mistakes(errors, &at.child("key"), key, names::qualified_name(&whole));
        }
        if !seen.insert(key) {
            errors.push(Error::duplicate(&at.child("key"), key));
        }
        if annotation["valueExpression"].text().trim().len() > ANNOTATION_EXPRESSION_MAX {
            let detail = format!("must not exceed {ANNOTATION_EXPRESSION_MAX} bytes in length");
            errors.push(Error::required(&at.child("valueExpression"), &detail));
        }
    }
}

fn binding(plural: &str, spec: &Value, path: &Path, errors: &mut ErrorList) {
    let policy = spec["policyName"].text();
    if !policy.is_empty() {
        mistakes(errors, &path.child("policyName"), policy, names::dns_subdomain(policy));
    }
    if spec["paramRef"].is_set() {
        param_ref(&spec["paramRef"], &path.child("paramRef"), errors);
    }
    match_resources(&spec["matchResources"], &path.child("matchResources"), errors);
    if plural.starts_with("mutating") {
        return;
    }
    let (actions, at) = (&spec["validationActions"], path.child("validationActions"));
    let mut seen = BTreeSet::new();
    for (index, action) in actions.texts().enumerate() {
        one_of(errors, &at.index(index), action, &["Audit", "Deny", "Warn"]);
        if !seen.insert(action) {
            errors.push(Error::duplicate(&at.index(index), action));
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        errors.push(Error::invalid(&at, actions.clone(), detail));
    }
}

fn param_ref(reference: &Value, path: &Path, errors: &mut ErrorList) {
    const EITHER: &str = "name and selector are mutually exclusive";
    let (name, selector) = (reference["name"].text(), &reference["selector"]);
    if !name.is_empty() {
        mistakes(errors, &path.child("name"), name, names::path_segment(name));
        if selector.is_set() {
            errors.push(Error::forbidden(&path.child("name"), EITHER));
        }
    }
    if selector.is_set() {
        label_selector(errors, &path.child("selector"), selector);
        if !name.is_empty() {
            errors.push(Error::forbidden(&path.child("selector"), EITHER));
        }
    } else if name.is_empty() {
        errors.push(Error::required(path, "one of name or selector must be specified"));
    }
    let (action, at) =
        (reference["parameterNotFoundAction"].text(), path.child("parameterNotFoundAction"));
    required_one_of(errors, &at, action, &["Allow", "Deny"]);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::validation::told as said;

    #[test]
    fn policies_are_checked() {
        let policy = |change: fn(&mut Value)| {
            let mut policy = json!({"metadata": {"name": "p"}, "spec": {"failurePolicy": "Fail",
                "matchConstraints": {"matchPolicy": "Exact", "namespaceSelector": {}, "objectSelector": {},
                    "resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
                        "resources": ["pods"]}]},
                "validations": [{"expression": "true"}]}});
            change(&mut policy["spec"]);
            said(|errors| validate("validatingadmissionpolicies", &policy, errors))
        };
        type Case = (fn(&mut Value), &'static str);
        let cases: [Case; 10] = [
            (|_| (), ""),
            (
                |s| s["failurePolicy"] = "Maybe".into(),
                "spec.failurePolicy: Unsupported value: \"Maybe\": supported values: \"Fail\", \"Ignore\"",
            ),
            (
                |s| s["paramKind"] = json!({"apiVersion": "a/b/c", "kind": "K"}),
                "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
            ),
            (
                |s| s["paramKind"] = json!({"apiVersion": "v1"}),
                "spec.paramKind.kind: Required value",
            ),
            (
                |s| s["matchConstraints"]["objectSelector"] = Value::Null,
                "spec.matchConstraints.objectSelector: Required value",
            ),
            (
                |s| {
                    s["matchConstraints"]["resourceRules"][0]["resources"] =
                        json!(["pods/*", "pods/log"]);
                },
                "spec.matchConstraints.resourceRules[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
            ),
            (
                |s| s["variables"] = json!([{"name": "a-b", "expression": "1"}]),
                "spec.variables[0].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
            ),
            (
                |s| s["validations"][0]["reason"] = "Why".into(),
                "spec.validations[0].reason: Unsupported value: \"Why\": supported values: \"Forbidden\", \"Invalid\", \"RequestEntityTooLarge\", \"Unauthorized\"",
            ),
            (
                |s| s["validations"][0]["message"] = " ".into(),
                "spec.validations[0].message: Invalid value: \" \": message must be non-empty if specified",
            ),
            (
                |s| s["auditAnnotations"] = json!([{"key": "a", "valueExpression": "'x'"}, {"key": "a", "valueExpression": "'x'"}]),
                "spec.auditAnnotations[1].key: Duplicate value: \"a\"",
            ),
        ];
        for (change, want) in cases {
            assert_eq!(policy(change).first().map_or("", String::as_str), want);
        }
    }

    #[test]
    fn bindings_are_checked() {
        for (spec, want) in [
            (json!({"policyName": "p", "validationActions": ["Deny"]}), ""),
            (
                json!({"policyName": "p", "validationActions": ["Deny", "Warn"]}),
                "spec.validationActions: Invalid value: [\"Deny\",\"Warn\"]: must not contain both Deny and Warn",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Deny", "Deny"]}),
                "spec.validationActions[1]: Duplicate value: \"Deny\"",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"parameterNotFoundAction": "Deny"}}),
                "spec.paramRef: Required value: one of name or selector must be specified",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "a", "selector": {}, "parameterNotFoundAction": "Deny"}}),
                "spec.paramRef.name: Forbidden: name and selector are mutually exclusive",
            ),
            (
                json!({"policyName": "p", "validationActions": ["Deny"], "paramRef": {"name": "a"}}),
                "spec.paramRef.parameterNotFoundAction: Required value",
            ),
        ] {
            let got = said(|errors| {
                validate("validatingadmissionpolicybindings", &json!({"spec": spec}), errors);
            });
            assert!(
                got.first().map_or("", String::as_str).starts_with(want)
                    && got.is_empty() == want.is_empty(),
                "{want}: {got:?}"
            );
        }
    }
}
