//! Rules for where pods go: node selectors, affinity, tolerations, spreading.

use std::collections::HashSet;

use apimachinery::field::{Error, ErrorList, Path, ordered};
use apimachinery::names;
use serde_json::Value;

use super::{label_selector, mistakes, one_of, required_one_of};
use crate::zero::Zero;

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// `spec.affinity`
pub fn validate(affinity: &Value, path: &Path, errors: &mut ErrorList) {
    let node = &affinity["nodeAffinity"];
    let at = path.child("nodeAffinity");
    let required = &node["requiredDuringSchedulingIgnoredDuringExecution"];
    if required.is_set() {
        let path = at.child("requiredDuringSchedulingIgnoredDuringExecution");
        node_selector(required, &path, errors);
    }
    let preferred = node["preferredDuringSchedulingIgnoredDuringExecution"].items();
    for (index, term) in preferred.iter().enumerate() {
        let path = at.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
        weight(&term["weight"], &path, errors);
        node_selector_term(&term["preference"], &path.child("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (pods, at) = (&affinity[kind], path.child(kind));
        let required = pods["requiredDuringSchedulingIgnoredDuringExecution"].items();
        for (index, term) in required.iter().enumerate() {
            let path = at.child("requiredDuringSchedulingIgnoredDuringExecution").index(index);
            pod_term(term, &path, errors);
        }
        let preferred = pods["preferredDuringSchedulingIgnoredDuringExecution"].items();
        for (index, term) in preferred.iter().enumerate() {
            let path = at.child("preferredDuringSchedulingIgnoredDuringExecution").index(index);
            weight(&term["weight"], &path, errors);
            pod_term(&term["podAffinityTerm"], &path.child("podAffinityTerm"), errors);
        }
    }
}

fn weight(weight: &Value, path: &Path, errors: &mut ErrorList) {
    if !(1..=100).contains(&weight.int()) {
        let detail = "must be in the range 1-100";
        errors.push(Error::invalid(&path.child("weight"), weight.int(), detail));
    }
}

/// A node selector; it has terms.
pub fn node_selector(selector: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("nodeSelectorTerms");
    let terms = selector["nodeSelectorTerms"].items();
    if terms.is_empty() {
        errors.push(Error::required(&path, "must have at least one node selector term"));
    }
    for (index, term) in terms.iter().enumerate() {
        node_selector_term(term, &path.index(index), errors);
    }
}

fn node_selector_term(term: &Value, path: &Path, errors: &mut ErrorList) {
    for list in ["matchExpressions", "matchFields"] {
        for (index, item) in term[list].items().iter().enumerate() {
            let path = path.child(list).index(index);
            let (key, operator) = (item["key"].text(), item["operator"].text());
            let values = item["values"].items().len();
            if list == "matchFields" {
                if !matches!(operator, "In" | "NotIn") {
                    let detail = "not a valid selector operator";
                    errors.push(Error::invalid(&path.child("operator"), operator, detail));
                } else if values != 1 {
                    let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                    errors.push(Error::required(&path.child("values"), detail));
                }
                if key == "metadata.name" {
                    for (index, name) in item["values"].texts().enumerate() {
                        let at = path.child("values").index(index);
                        mistakes(errors, &at, name, names::dns_subdomain(name));
                    }
                } else {
                    let detail = "not a valid field selector key";
                    errors.push(Error::invalid(&path.child("key"), key, detail));
                }
                continue;
            }
            match operator {
                "In" | "NotIn" if values == 0 => errors.push(Error::required(
                    &path.child("values"),
                    "must be specified when `operator` is 'In' or 'NotIn'",
                )),
                "Exists" | "DoesNotExist" if values > 0 => errors.push(Error::forbidden(
                    &path.child("values"),
                    "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                )),
                "Gt" | "Lt" if values != 1 => errors.push(Error::required(
                    &path.child("values"),
                    "must be specified single value when `operator` is 'Lt' or 'Gt'",
                )),
                "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
                other => errors.push(Error::invalid(
                    &path.child("operator"),
                    other,
                    "not a valid selector operator",
                )),
            }
            mistakes(errors, &path.child("key"), key, names::qualified_name(key));
            if matches!(operator, "In" | "NotIn") {
                for (index, value) in item["values"].texts().enumerate() {
                    let at = path.child("values").index(index);
                    mistakes(errors, &at, value, names::label_value(value));
                }
            }
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut ErrorList) {
    for selector in ["labelSelector", "namespaceSelector"] {
        label_selector(errors, &path.child(selector), &term[selector]);
    }
    for namespace in term["namespaces"].texts() {
        mistakes(errors, &path.child("namespace"), namespace, names::dns_label(namespace));
    }
    label_keys(term, path, errors);
    topology_key(&term["topologyKey"], path, errors);
}

fn topology_key(key: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("topologyKey");
    if key.text().is_empty() {
        errors.push(Error::required(&path, "can not be empty"));
    }
    mistakes(errors, &path, key.text(), names::qualified_name(key.text()));
}

/// The keys of labels that a pod's own values stand for (`validateMatchLabelKeysAndMismatchLabelKeys`).
fn label_keys(term: &Value, path: &Path, errors: &mut ErrorList) {
    let mut seen: HashSet<&str> = HashSet::new();
    for list in ["matchLabelKeys", "mismatchLabelKeys"] {
        let at = path.child(list);
        if term["labelSelector"].is_null() && !term[list].items().is_empty() {
            let detail = "must not be specified when labelSelector is not set";
            errors.push(Error::forbidden(&at, detail));
        }
        for (index, key) in term[list].texts().enumerate() {
            mistakes(errors, &at.index(index), key, names::qualified_name(key));
            if !seen.insert(key) && list == "mismatchLabelKeys" {
                let detail = "exists in both matchLabelKeys and mismatchLabelKeys";
                errors.push(Error::invalid(&at.index(index), key, detail));
            }
        }
    }
}

/// `spec.tolerations`
pub fn tolerations(tolerations: &[Value], path: &Path, errors: &mut ErrorList) {
    for (index, toleration) in tolerations.iter().enumerate() {
        let path = path.index(index);
        let (key, operator) = (toleration["key"].text(), toleration["operator"].text());
        let (value, effect) = (toleration["value"].text(), toleration["effect"].text());
        if !key.is_empty() {
            mistakes(errors, &path.child("key"), key, names::qualified_name(key));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(Error::invalid(&path.child("operator"), operator, detail));
        }
        if toleration["tolerationSeconds"].is_set() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(Error::invalid(&path.child("effect"), effect, detail));
        }
        let at = path.child("operator");
        match operator {
            "" | "Equal" => mistakes(errors, &at, value, names::label_value(value)),
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                errors.push(Error::invalid(&at, toleration.clone(), detail));
            }
            "Exists" => {}
            "Lt" | "Gt" => {
                if value.parse::<i64>().is_err() {
                    let detail = "must be an integer when `operator` is 'Lt' or 'Gt'";
                    errors.push(Error::invalid(&path.child("value"), value, detail));
                }
            }
            other => errors.push(Error::not_supported(&at, other, &["Equal", "Exists"])),
        }
        if !effect.is_empty() {
            one_of(errors, &path.child("effect"), effect, &EFFECTS);
        }
    }
}

/// `spec.taints` of nodes.
pub fn taints(taints: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, taint) in taints.iter().enumerate() {
        let path = path.index(index);
        let (key, value, effect) =
            (taint["key"].text(), taint["value"].text(), taint["effect"].text());
        mistakes(errors, &path.child("key"), key, names::qualified_name(key));
        mistakes(errors, &path.child("value"), value, names::label_value(value));
        required_one_of(errors, &path.child("effect"), effect, &EFFECTS);
        if !seen.insert((key, effect)) {
            let mut error = Error::duplicate(&path, taint.clone());
            error.shown = Some(ordered(&[
                ("Key", key.into()),
                ("Value", value.into()),
                ("Effect", effect.into()),
                ("TimeAdded", taint["timeAdded"].clone()),
            ]));
            error.detail = "taints must be unique by key and effect pair".into();
            errors.push(error);
        }
    }
}

/// `spec.topologySpreadConstraints`
pub fn spread(constraints: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut seen = HashSet::new();
    for (index, constraint) in constraints.iter().enumerate() {
        let path = path.index(index);
        let (skew, when) = (constraint["maxSkew"].int(), constraint["whenUnsatisfiable"].text());
        if skew <= 0 {
            errors.push(Error::invalid(&path.child("maxSkew"), skew, "must be greater than zero"));
        }
        topology_key(&constraint["topologyKey"], &path, errors);
        one_of(
            errors,
            &path.child("whenUnsatisfiable"),
            when,
            &["DoNotSchedule", "ScheduleAnyway"],
        );
        let key = constraint["topologyKey"].text();
        if !seen.insert((key, when)) {
            let at = path.child("{topologyKey, whenUnsatisfiable}");
            errors.push(Error::duplicate(&at, format!("{{{key}, {when}}}")));
        }
        let domains = &constraint["minDomains"];
        if domains.is_set() {
            if domains.int() <= 0 {
                let path = path.child("minDomains");
                errors.push(Error::invalid(&path, domains.int(), "must be greater than zero"));
            }
            if when != "DoNotSchedule" {
                let detail = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway";
                errors.push(Error::invalid(&path.child("minDomains"), domains.int(), detail));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if constraint[policy].is_set() {
                let at = path.child(policy);
                one_of(errors, &at, constraint[policy].text(), &["Honor", "Ignore"]);
            }
        }
        label_selector(errors, &path.child("labelSelector"), &constraint["labelSelector"]);
        label_keys(constraint, &path, errors);
    }
}
