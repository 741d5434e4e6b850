//! Rules for resource quotas.
//!
//! Source: `ValidateResourceQuotaSpec` of `pkg/apis/core/validation/validation.go`.

use apimachinery::field::{Error, ErrorList, Path};
use serde_json::Value;

use super::container::{any_resource_name, quantity};
use super::core::immutable;
use crate::zero::Zero;

const STANDARD: [&str; 18] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
];
const WHOLE: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
const SCOPES: [&str; 7] = [
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
    "VolumeAttributesClass",
];
/// What counts compute resources, which scopes that are about running pods can limit.
const COMPUTE: [&str; 11] = [
    "pods",
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "requests.hugepages",
];

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name)
        || name == "services.loadbalancers"
        || name.starts_with("hugepages-")
        || name.starts_with("requests.hugepages-")
}

/// A quota, new (`old` is absent) or changed.
pub fn quota(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    amounts(&spec["hard"], &path.child("hard"), errors);
    scopes(spec, &path, errors);
    scope_selector(spec, &path.child("scopeSelector"), errors);
    if let Some(old) = old {
        for key in ["scopes", "scopeSelector"] {
            immutable(&path.child(key), &spec[key], &old["spec"][key], errors);
        }
    }
}

/// The status of a quota: what is counted, and how much of it there is.
pub fn status(object: &Value, errors: &mut ErrorList) {
    for key in ["hard", "used"] {
        amounts(&object["status"][key], &Path::new("status").child(key), errors);
    }
}

fn amounts(amounts: &Value, path: &Path, errors: &mut ErrorList) {
    for (name, value) in amounts.entries() {
        let at = path.key(name);
        any_resource_name(name, &at, errors);
        if !name.contains('/') && !is_standard(name) {
            let detail = "must be a standard resource for quota";
            errors.push(Error::invalid(&at, name.as_str(), detail));
        }
        let Some(amount) = quantity(value) else { continue };
        if amount.signum() < 0 {
            let detail = "must be greater than or equal to 0";
            errors.push(Error::invalid(&at, amount.to_string(), detail));
        }
        let whole = WHOLE.contains(&name.as_str()) || name.starts_with("count/");
        if whole && amount.milli_value() % 1000 != 0 {
            errors.push(Error::invalid(&at, amount.to_string(), "must be an integer"));
        }
    }
}

fn can_limit(scope: &str, resource: &str) -> bool {
    let compute = COMPUTE.contains(&resource) || resource.contains("hugepages-");
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        _ => compute,
    }
}

fn scopes(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let (list, at) = (&spec["scopes"], path.child("scopes"));
    for scope in list.texts() {
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&at, list.clone(), "unsupported scope"));
        }
        let limited = spec["hard"].entries().map(|(name, _)| name);
        for _ in limited.filter(|name| is_standard(name) && !can_limit(scope, name)) {
            let detail = "unsupported scope applied to resource";
            errors.push(Error::invalid(&at, list.clone(), detail));
        }
    }
    for (one, other) in [("BestEffort", "NotBestEffort"), ("Terminating", "NotTerminating")] {
        if list.texts().any(|scope| scope == one) && list.texts().any(|scope| scope == other) {
            errors.push(Error::invalid(&at, list.clone(), "conflicting scopes"));
        }
    }
}

fn scope_selector(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("matchExpressions");
    let requirements = &spec["scopeSelector"]["matchExpressions"];
    for requirement in requirements.items() {
        let scope = requirement["scopeName"].text();
        if !SCOPES.contains(&scope) {
            errors.push(Error::invalid(&at.child("scopeName"), scope, "unsupported scope"));
        }
        let limited = spec["hard"].entries().map(|(name, _)| name);
        for _ in limited.filter(|name| is_standard(name) && !can_limit(scope, name)) {
            let detail = "unsupported scope applied to resource";
            errors.push(Error::invalid(&at, requirements.clone(), detail));
        }
        let (operator, values) = (requirement["operator"].text(), requirement["values"].items());
        let exists_only = !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if exists_only && operator != "Exists" {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";
            errors.push(Error::invalid(&at.child("operator"), operator, detail));
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                errors.push(Error::required(&at.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                let value = requirement["values"].clone();
                errors.push(Error::invalid(&at.child("values"), value, detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                let detail = "not a valid selector operator";
                errors.push(Error::invalid(&at.child("operator"), other, detail));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn quotas_are_checked() {
        let hard = |hard: Value| json!({"spec": {"hard": hard}});
        for (object, want) in [
            (
                hard(
                    json!({"pods": "3", "requests.cpu": "1", "count/deployments.apps": "2", "requests.nvidia.com/gpu": "1"}),
                ),
                "",
            ),
            (
                hard(json!({"apples": "3"})),
                "spec.hard[apples]: Invalid value: \"apples\": must be a standard resource type or fully qualified; spec.hard[apples]: Invalid value: \"apples\": must be a standard resource for quota",
            ),
            (
                hard(json!({"pods": "-1"})),
                "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                hard(json!({"pods": "500m"})),
                "spec.hard[pods]: Invalid value: \"500m\": must be an integer",
            ),
            (
                json!({"spec": {"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}}),
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
            ),
            (
                json!({"spec": {"hard": {"secrets": "1"}, "scopes": ["Terminating"]}}),
                "spec.scopes: Invalid value: [\"Terminating\"]: unsupported scope applied to resource",
            ),
            (
                json!({"spec": {"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"}]}}}),
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
        ] {
            assert_eq!(told(|e| quota(&object, None, e)).join("; "), want);
        }
        let scoped = json!({"spec": {"scopes": ["Terminating"]}});
        let got = told(|e| quota(&json!({"spec": {}}), Some(&scoped), e));
        assert_eq!(got, ["spec.scopes: Invalid value: null: field is immutable"]);
    }
}
