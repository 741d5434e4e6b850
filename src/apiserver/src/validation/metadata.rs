//! Rules for `metadata`, whatever the kind (`ValidateObjectMeta`).

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{meta, names};
use serde_json::Value;

use super::mistakes;
use crate::resource::Resource;
use crate::zero::Zero;

const ANNOTATIONS_MAX_BYTES: usize = 256 << 10;

type NameRule = fn(&str) -> Vec<String>;

fn name_rule(resource: &Resource) -> NameRule {
    match (resource.group.as_str(), resource.plural.as_str()) {
        // Of services since `RelaxedServiceNameValidation` (KEP-5311).
        ("", "namespaces" | "services") => names::dns_label,
        ("rbac.authorization.k8s.io", _) => names::path_segment,
        // Names of theirs are made of others' names, and checked by nobody upstream.
        ("", "events") | ("events.k8s.io", _) => |_| Vec::new(),
        ("networking.k8s.io", "ipaddresses") | ("apiregistration.k8s.io", _) => names::path_segment,
        ("apps" | "batch" | "" | "policy" | "autoscaling", _) => names::dns_subdomain,
        ("certificates.k8s.io", _) => names::path_segment,
        _ => names::dns_subdomain,
    }
}

/// The rules for a new object's metadata.
pub fn validate(resource: &Resource, object: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    let rule = name_rule(resource);
    let generate = meta::generate_name(object);
    if !generate.is_empty() {
        let sentences = rule(&names::mask_trailing_dash(generate));
        mistakes(&mut errors, &path.child("generateName"), generate, sentences);
    }
    let name = meta::name(object);
    if !name.is_empty() {
        mistakes(&mut errors, &path.child("name"), name, rule(name));
    }
    common(object, &path, &mut errors);
    errors
}

/// The rules for a changed object's metadata, beside what may not change at all: what is as it was is
/// not looked at again.
pub fn validate_changed(object: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if meta::metadata(object) != meta::metadata(old) {
        common(object, &Path::new("metadata"), &mut errors);
    }
    errors
}

fn common(object: &Value, path: &Path, errors: &mut ErrorList) {
    let metadata = &object["metadata"];
    labels(&metadata["labels"], &path.child("labels"), errors);
    annotations(&metadata["annotations"], &path.child("annotations"), errors);
    owner_references(metadata["ownerReferences"].items(), &path.child("ownerReferences"), errors);
    let finalizers: Vec<&str> = metadata["finalizers"].texts().collect();
    for name in &finalizers {
        mistakes(errors, &path.child("finalizers"), name, names::qualified_name(name));
    }
    if finalizers.contains(&"orphan") && finalizers.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(Error::invalid(
            &path.child("finalizers"),
            metadata["finalizers"].clone(),
            detail,
        ));
    }
}

/// Label keys and values.
pub fn labels(labels: &Value, path: &Path, errors: &mut ErrorList) {
    for (key, value) in labels.entries() {
        mistakes(errors, path, key, names::qualified_name(key));
        mistakes(errors, path, value.text(), names::label_value(value.text()));
    }
}

/// Annotation keys and the size of all.
pub fn annotations(annotations: &Value, path: &Path, errors: &mut ErrorList) {
    let mut bytes = 0;
    for (key, value) in annotations.entries() {
        mistakes(errors, path, key, names::qualified_name(&key.to_lowercase()));
        bytes += key.len() + value.text().len();
    }
    if bytes > ANNOTATIONS_MAX_BYTES {
        errors.push(Error::too_long(path, ANNOTATIONS_MAX_BYTES));
    }
}

fn owner_references(references: &[Value], path: &Path, errors: &mut ErrorList) {
    let mut controller: Option<&Value> = None;
    // Upstream does not tell which of them.
    for reference in references {
        for (key, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if reference[key].text().is_empty() {
                errors.push(Error::invalid(&path.child(key), reference[key].text(), detail));
            }
        }
        if reference["apiVersion"] == "v1" && reference["kind"] == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(Error::invalid(path, reference.clone(), detail));
        }
        if reference["controller"].flag() {
            if let Some(first) = controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    first["kind"].text(),
                    first["name"].text(),
                    reference["kind"].text(),
                    reference["name"].text()
                );
                errors.push(Error::invalid(path, Value::from(references.to_vec()), detail));
            }
            controller.get_or_insert(reference);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::validation::told;
    use serde_json::json;

    #[test]
    fn names_labels_and_owners_are_checked() {
        let registry = Registry::default();
        let cases = [
            ("pods", json!({"name": "a"}), None),
            (
                "pods",
                json!({"name": "A"}),
                Some("metadata.name: Invalid value: \"A\": a lowercase RFC 1123 subdomain must"),
            ),
            (
                "services",
                json!({"name": "a.b"}),
                Some("metadata.name: Invalid value: \"a.b\": must not contain dots"),
            ),
            ("services", json!({"name": "1a"}), None),
            (
                "namespaces",
                json!({"name": "a.b"}),
                Some("metadata.name: Invalid value: \"a.b\": must not contain dots"),
            ),
            (
                "pods",
                json!({"name": "a", "generateName": "B-"}),
                Some("metadata.generateName: Invalid value: \"B-\""),
            ),
            (
                "pods",
                json!({"name": "a", "labels": {"x": "a b"}}),
                Some("metadata.labels: Invalid value: \"a b\": a valid label must"),
            ),
            (
                "pods",
                json!({"name": "a", "annotations": {"/": ""}}),
                Some("metadata.annotations: Invalid value: \"/\": prefix part must be non-empty"),
            ),
            (
                "pods",
                json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "b"}]}),
                Some("metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"),
            ),
        ];
        for (plural, metadata, want) in cases {
            let resource = registry.resource("", plural).unwrap();
            let object = json!({"metadata": metadata});
            let got = told(|errors| errors.extend(validate(&resource, &object)));
            match want {
                None => assert!(got.is_empty(), "{got:?}"),
                Some(want) => assert!(got[0].starts_with(want), "{got:?}"),
            }
        }
    }
}
