//! Rules for the small core kinds, for priority classes and for RBAC.

use std::collections::HashMap;

use apimachinery::field::{Error, ErrorList, Path, ordered};
use apimachinery::names;
use apimachinery::quantity::Quantity;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{affinity, container, ip, label_selector, mistakes, one_of};
use crate::zero::Zero;

/// ConfigMaps and Secrets hold no more.
const DATA_MAX_BYTES: usize = 1 << 20;
const RBAC: &str = "rbac.authorization.k8s.io";

/// A field that keeps its value.
pub fn immutable(path: &Path, new: &Value, old: &Value, errors: &mut ErrorList) {
    if new != old {
        errors.push(Error::invalid(path, new.clone(), "field is immutable"));
    }
}

/// Keys, and the size of all values.
pub fn config_map(map: &Value, errors: &mut ErrorList) {
    let mut bytes = 0;
    for field in ["data", "binaryData"] {
        let path = Path::new(field);
        for (key, value) in map[field].entries() {
            let at = path.key(key);
            mistakes(errors, &at, key, names::config_map_key(key));
            if field == "data" && map["binaryData"].get(key).is_some() {
                let mut error =
                    Error::invalid(&at, key.as_str(), "duplicate of key present in binaryData");
                error.value = Some(key.as_str().into());
                errors.push(error);
            }
            bytes += size(field, value.text());
        }
    }
    if bytes > DATA_MAX_BYTES {
        // Upstream names no field here.
        errors.push(Error::too_long(&Path::new(""), DATA_MAX_BYTES));
    }
}

/// How many bytes the text in base64 stands for.
fn decoded_bytes(text: &str) -> usize {
    let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}

fn size(field: &str, text: &str) -> usize {
    if field == "data" { text.len() } else { decoded_bytes(text) }
}

/// Keys, size, and what the type asks for.
pub fn secret(secret: &Value, errors: &mut ErrorList) {
    let path = Path::new("data");
    let data = &secret["data"];
    let mut bytes = 0;
    for (key, value) in data.entries() {
        mistakes(errors, &path.key(key), key, names::config_map_key(key));
        bytes += decoded_bytes(value.text());
    }
    if bytes > DATA_MAX_BYTES {
        errors.push(Error::too_long(&path, DATA_MAX_BYTES));
    }
    let required = |key: &str, errors: &mut ErrorList| {
        if data.get(key).is_none() {
            errors.push(Error::required(&path.key(key), ""));
        }
    };
    match secret["type"].text() {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if secret["metadata"]["annotations"][key].text().is_empty() {
                let path = Path::new("metadata").child("annotations").key(key);
                errors.push(Error::required(&path, ""));
            }
        }
        "kubernetes.io/dockercfg" => json_value(data, ".dockercfg", errors),
        "kubernetes.io/dockerconfigjson" => json_value(data, ".dockerconfigjson", errors),
        "kubernetes.io/basic-auth"
            if data.get("username").is_none() && data.get("password").is_none() =>
        {
            required("username", errors);
            required("password", errors);
        }
        "kubernetes.io/ssh-auth" => required("ssh-privatekey", errors),
        "kubernetes.io/tls" => {
            required("tls.crt", errors);
            required("tls.key", errors);
        }
        _ => {}
    }
}

fn json_value(data: &Value, key: &str, errors: &mut ErrorList) {
    let path = Path::new("data").key(key);
    let Some(value) = data.get(key) else {
        errors.push(Error::required(&path, ""));
        return;
    };
    let bytes = STANDARD.decode(value.text()).unwrap_or_default();
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes) {
        errors.push(Error::invalid(&path, "<secret contents redacted>", error.to_string()));
    }
}

/// `immutable: true` holds for ever, and for all data.
pub fn immutable_data(new: &Value, old: &Value, errors: &mut ErrorList) {
    if !old["immutable"].flag() {
        return;
    }
    let detail = "field is immutable when `immutable` is set";
    if !new["immutable"].flag() {
        errors.push(Error::forbidden(&Path::new("immutable"), detail));
    }
    for field in ["data", "binaryData"] {
        if new[field] != old[field] {
            errors.push(Error::forbidden(&Path::new(field), detail));
        }
    }
}

/// Taints, pod CIDRs, amounts.
pub fn node(node: &Value, errors: &mut ErrorList) {
    let (spec, path) = (&node["spec"], Path::new("spec"));
    taints(node, errors);
    node_resources(node, errors);
    let cidrs = spec["podCIDRs"].items();
    let path = path.child("podCIDRs");
    for (index, cidr) in cidrs.iter().enumerate() {
        ip::range(cidr.text(), std::iter::empty(), &path.index(index), errors);
    }
    if cidrs.len() < 2 {
        return;
    }
    let of_six = cidrs.iter().filter(|cidr| cidr.text().contains(':')).count();
    if cidrs.len() > 2 || of_six != 1 {
        let detail = "may specify no more than one CIDR for each IP family";
        errors.push(Error::invalid(&path, spec["podCIDRs"].clone(), detail));
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        if cidrs[..index].contains(cidr) {
            errors.push(Error::duplicate(&path.index(index), cidr.clone()));
        }
    }
}

/// Upstream tells of them below the metadata.
fn taints(node: &Value, errors: &mut ErrorList) {
    let path = Path::new("metadata").child("taints");
    affinity::taints(node["spec"]["taints"].items(), &path, errors);
}

fn node_resources(node: &Value, errors: &mut ErrorList) {
    for list in ["capacity", "allocatable"] {
        for (name, value) in node["status"][list].entries() {
            let path = Path::new("status").child(list).child(name);
            let Some(amount) = value.as_str().and_then(|text| text.parse::<Quantity>().ok()) else {
                continue;
            };
            if amount.signum() < 0 {
                let detail = "must be greater than or equal to 0";
                errors.push(Error::invalid(&path, amount.to_string(), detail));
            }
            if (name == "pods" || container::is_counted(name)) && !amount.is_whole() {
                errors.push(Error::invalid(&path, amount.to_string(), "must be an integer"));
            }
        }
    }
}

/// Pod CIDRs and the provider's id are set once; addresses are each there once.
pub fn node_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    node_resources(new, errors);
    let addresses = new["status"]["addresses"].items();
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            let path = Path::new("status").child("addresses").index(index);
            let mut error = Error::duplicate(&path, address.clone());
            error.shown = Some(ordered(&[
                ("Type", address["type"].clone()),
                ("Address", address["address"].clone()),
            ]));
            errors.push(error);
        }
    }
    let path = Path::new("spec");
    let once = [
        ("podCIDRs", "node updates may not change podCIDR except from \"\" to valid"),
        ("providerID", "node updates may not change providerID except from \"\" to valid"),
    ];
    for (key, detail) in once {
        let before = &old["spec"][key];
        let was_set = !before.text().is_empty() || !before.items().is_empty();
        if was_set && new["spec"][key] != *before {
            errors.push(Error::forbidden(&path.child(key), detail));
        }
    }
    taints(new, errors);
    if new["spec"]["externalID"].text() != old["spec"]["externalID"].text() {
        errors.push(Error::forbidden(&path.child("externalID"), "may not be updated"));
    }
}

/// Values of people's classes stay below the system's.
pub fn priority_class(class: &Value, errors: &mut ErrorList) {
    let name = class["metadata"]["name"].text();
    let system = HashMap::from([
        ("system-cluster-critical", 2_000_000_000),
        ("system-node-critical", 2_000_001_000),
    ]);
    let path = Path::new("metadata").child("name");
    if name.starts_with("system-") {
        if system.get(name).copied() != Some(class["value"].int()) {
            let why = match system.get(name) {
                Some(value) => format!("value of PriorityClass {name} must be {value}"),
                None => format!("{name} is not a known system priority class"),
            };
            let detail = format!(
                "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
            );
            errors.push(Error::forbidden(&path, detail));
        }
    } else if class["value"].int() > 1_000_000_000 {
        let detail = "maximum allowed value of a user defined priority is 1000000000";
        errors.push(Error::forbidden(&Path::new("value"), detail));
    }
    let policy = class["preemptionPolicy"].text();
    if !policy.is_empty() {
        let known = ["Never", "PreemptLowerPriority"];
        one_of(errors, &Path::new("preemptionPolicy"), policy, &known);
    }
}

/// A class means the same for ever.
pub fn priority_class_update(new: &Value, old: &Value, errors: &mut ErrorList) {
    if new["value"] != old["value"] {
        errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
    }
    immutable(
        &Path::new("preemptionPolicy"),
        &new["preemptionPolicy"],
        &old["preemptionPolicy"],
        errors,
    );
}

/// Roles and bindings.
pub fn rbac(plural: &str, object: &Value, errors: &mut ErrorList) {
    if plural.ends_with("bindings") {
        binding(plural == "rolebindings", object, errors);
    } else {
        rules(plural == "roles", object, errors);
        let aggregation = &object["aggregationRule"];
        if plural == "clusterroles" && aggregation.is_set() {
            let path = Path::new("aggregationRule").child("clusterRoleSelectors");
            let selectors = aggregation["clusterRoleSelectors"].items();
            if selectors.is_empty() {
                let detail =
                    "at least one clusterRoleSelector required if aggregationRule is non-nil";
                errors.push(Error::required(&path, detail));
            }
            for (index, selector) in selectors.iter().enumerate() {
                label_selector(errors, &path.index(index), selector);
            }
        }
    }
}

fn rules(namespaced: bool, object: &Value, errors: &mut ErrorList) {
    for (index, rule) in object["rules"].items().iter().enumerate() {
        let path = Path::new("rules").index(index);
        let (urls, resources) = (rule["nonResourceURLs"].items(), rule["resources"].items());
        if rule["verbs"].items().is_empty() {
            errors.push(Error::required(
                &path.child("verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !urls.is_empty() {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                let value = rule["nonResourceURLs"].clone();
                errors.push(Error::invalid(&path.child("nonResourceURLs"), value, detail));
            }
            let others = ["apiGroups", "resources", "resourceNames"];
            if others.iter().any(|key| !rule[*key].items().is_empty()) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                let value = rule["nonResourceURLs"].clone();
                errors.push(Error::invalid(&path.child("nonResourceURLs"), value, detail));
            }
            continue;
        }
        if rule["apiGroups"].items().is_empty() {
            let detail = "resource rules must supply at least one api group";
            errors.push(Error::required(&path.child("apiGroups"), detail));
        }
        if resources.is_empty() {
            let detail = "resource rules must supply at least one resource";
            errors.push(Error::required(&path.child("resources"), detail));
        }
    }
}

fn binding(namespaced: bool, object: &Value, errors: &mut ErrorList) {
    let (role, path) = (&object["roleRef"], Path::new("roleRef"));
    one_of(errors, &path.child("apiGroup"), role["apiGroup"].text(), &[RBAC]);
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    one_of(errors, &path.child("kind"), role["kind"].text(), kinds);
    match role["name"].text() {
        "" => errors.push(Error::required(&path.child("name"), "")),
        name => mistakes(errors, &path.child("name"), name, names::path_segment(name)),
    }
    for (index, subject) in object["subjects"].items().iter().enumerate() {
        let path = Path::new("subjects").index(index);
        let (name, group) = (subject["name"].text(), subject["apiGroup"].text());
        if name.is_empty() {
            errors.push(Error::required(&path.child("name"), ""));
        }
        match subject["kind"].text() {
            "ServiceAccount" => {
                if !name.is_empty() {
                    mistakes(errors, &path.child("name"), name, names::dns_subdomain(name));
                }
                one_of(errors, &path.child("apiGroup"), group, &[""]);
                if !namespaced && subject["namespace"].text().is_empty() {
                    errors.push(Error::required(&path.child("namespace"), ""));
                }
            }
            "User" | "Group" => one_of(errors, &path.child("apiGroup"), group, &[RBAC]),
            kind => {
                let known = ["ServiceAccount", "User", "Group"];
                one_of(errors, &path.child("kind"), kind, &known);
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
    fn nodes_are_changed_within_limits() {
        let old = json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": "a"}});
        for (new, want) in [
            (old.clone(), &[][..]),
            (
                json!({"spec": {"podCIDRs": ["10.0.1.0/24"], "providerID": "b", "externalID": "e"}}),
                &[
                    "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
                    "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid",
                    "spec.externalID: Forbidden: may not be updated",
                ],
            ),
            (
                json!({"spec": {"podCIDRs": ["10.0.0.0/24"], "providerID": "a", "taints": [{"key": "a", "effect": "X"}]},
                    "status": {"capacity": {"cpu": "-1", "e.com/gpu": "500m", "pods": "1500m"},
                        "addresses": [{"type": "InternalIP", "address": "1.1.1.1"}, {"type": "InternalIP", "address": "1.1.1.1"}]}}),
                &[
                    "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0",
                    "status.capacity.e.com/gpu: Invalid value: \"500m\": must be an integer",
                    "status.capacity.pods: Invalid value: \"1500m\": must be an integer",
                    "status.addresses[1]: Duplicate value: {\"Type\":\"InternalIP\",\"Address\":\"1.1.1.1\"}",
                    "metadata.taints[0].effect: Unsupported value: \"X\": supported values: \"NoExecute\", \"NoSchedule\", \"PreferNoSchedule\"",
                ],
            ),
        ] {
            assert_eq!(told(|e| node_update(&new, &old, e)), want, "{new}");
        }
        let twice = json!({"spec": {"podCIDRs": ["10.0.0.0/24", "10.0.0.0/24"]}});
        assert_eq!(
            told(|e| node(&twice, e)),
            [
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.0.0/24\"]: may specify no more than one CIDR for each IP family",
                "spec.podCIDRs[1]: Duplicate value: \"10.0.0.0/24\"",
            ]
        );
    }

    #[test]
    fn data_is_checked_and_kept() {
        let bad = json!({"data": {"a/b": "x"}});
        let got = told(|e| config_map(&bad, e));
        assert!(
            got[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must"),
            "{got:?}"
        );
        let huge = json!({"data": {"a": "x".repeat(DATA_MAX_BYTES + 1)}});
        assert_eq!(told(|e| config_map(&huge, e)).len(), 1);
        let old = json!({"immutable": true, "data": {"a": "b"}});
        let new = json!({"data": {"a": "c"}});
        assert_eq!(
            told(|e| immutable_data(&new, &old, e)),
            [
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ]
        );
    }

    #[test]
    fn secrets_have_what_their_type_says() {
        let cases = [
            (json!({"type": "Opaque"}), vec![]),
            (
                json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
                vec!["data[tls.key]: Required value"],
            ),
            (
                json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}),
                vec![],
            ),
            (
                json!({"type": "kubernetes.io/dockerconfigjson"}),
                vec!["data[.dockerconfigjson]: Required value"],
            ),
        ];
        for (object, want) in cases {
            assert_eq!(told(|e| secret(&object, e)), want, "{object}");
        }
    }

    #[test]
    fn bindings_name_a_role_and_subjects() {
        let object = json!({"roleRef": {"apiGroup": RBAC, "kind": "Thing", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "a"}]});
        assert_eq!(
            told(|e| rbac("clusterrolebindings", &object, e)),
            [
                "roleRef.kind: Unsupported value: \"Thing\": supported values: \"ClusterRole\"",
                "subjects[0].namespace: Required value",
            ]
        );
    }
}
