//! Accessors for the parts every object has: `apiVersion`, `kind` and `metadata`.
//!
//! Absent text reads as empty, absent maps and lists as empty, so that callers need no `Option`s.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata`, empty when absent or not an object.
pub fn metadata(object: &Value) -> &Map<String, Value> {
    object.get("metadata").and_then(Value::as_object).unwrap_or(&EMPTY)
}

/// `metadata`, made when absent.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    child_mut(object, "metadata")
}

/// The object at `key`, made (or replaced, if it is something else) when absent.
pub fn child_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("made an object above");
    let child = map.entry(key).or_insert_with(|| Value::Object(Map::new()));
    if !child.is_object() {
        *child = Value::Object(Map::new());
    }
    child.as_object_mut().expect("made an object above")
}

fn of<'a>(object: &'a Value, key: &str) -> &'a str {
    metadata(object).get(key).and_then(Value::as_str).unwrap_or_default()
}

/// `apiVersion`.
pub fn api_version(object: &Value) -> &str {
    text(object, "apiVersion")
}

/// `kind`.
pub fn kind(object: &Value) -> &str {
    text(object, "kind")
}

/// Splits an `apiVersion` into group (empty for the core group) and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Sets `apiVersion` and `kind`.
pub fn set_type(object: &mut Value, api_version: &str, kind: &str) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), api_version.into());
        map.insert("kind".into(), kind.into());
    }
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    of(object, "name")
}

/// `metadata.generateName`.
pub fn generate_name(object: &Value) -> &str {
    of(object, "generateName")
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    of(object, "namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    of(object, "uid")
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    of(object, "resourceVersion")
}

/// `metadata.creationTimestamp`.
pub fn creation_timestamp(object: &Value) -> &str {
    of(object, "creationTimestamp")
}

/// `metadata.deletionTimestamp`, `None` while the object is not being deleted.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    metadata(object).get("deletionTimestamp").and_then(Value::as_str)
}

/// `metadata.generation`, 0 when absent.
pub fn generation(object: &Value) -> i64 {
    metadata(object).get("generation").and_then(Value::as_i64).unwrap_or(0)
}

fn strings(object: &Value, key: &str) -> BTreeMap<String, String> {
    let map = metadata(object).get(key).and_then(Value::as_object).unwrap_or(&EMPTY);
    map.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> BTreeMap<String, String> {
    strings(object, "labels")
}

/// `metadata.annotations`.
pub fn annotations(object: &Value) -> BTreeMap<String, String> {
    strings(object, "annotations")
}

/// The value of one label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object).get("labels")?.get(key)?.as_str()
}

/// The value of one annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    metadata(object).get("annotations")?.get(key)?.as_str()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = metadata(object).get("finalizers").and_then(Value::as_array);
    list.map(|l| l.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> &[Value] {
    metadata(object).get("ownerReferences").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The owner reference with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object).iter().find(|o| o.get("controller") == Some(&Value::Bool(true)))
}

/// Sets a text field of `metadata`.
pub fn set(object: &mut Value, key: &str, value: impl Into<Value>) {
    metadata_mut(object).insert(key.into(), value.into());
}

/// Removes a field of `metadata`.
pub fn remove(object: &mut Value, key: &str) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(key)
}

/// A copy without a field of `metadata`.
#[must_use]
pub fn copy_without(object: &Value, key: &str) -> Value {
    let Value::Object(map) = object else { return object.clone() };
    let copied = map.iter().map(|(name, value)| {
        let value = match value {
            Value::Object(fields) if name == "metadata" => {
                let kept = fields.iter().filter(|(field, _)| *field != key);
                kept.map(|(field, value)| (field.clone(), value.clone())).collect()
            }
            other => other.clone(),
        };
        (name.clone(), value)
    });
    copied.collect()
}

/// The value at a dotted path of plain field names, such as `spec.nodeName`.
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(object, |value, name| value.get(name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_absent_reads_as_empty() {
        let object = json!({"metadata": "not an object"});
        assert_eq!(name(&object), "");
        assert!(labels(&object).is_empty() && finalizers(&object).is_empty());
        assert_eq!(deletion_timestamp(&object), None);
    }

    #[test]
    fn setting_makes_metadata() {
        let mut object = json!({});
        set(&mut object, "name", "a");
        assert_eq!(object, json!({"metadata": {"name": "a"}}));
        assert_eq!(at(&object, "metadata.name"), Some(&json!("a")));
        object["spec"] = json!({"name": "b"});
        let copy = copy_without(&object, "name");
        assert_eq!(copy, json!({"metadata": {}, "spec": {"name": "b"}}));
        object = copy;
        remove(&mut object, "name");
        assert_eq!(object["metadata"], json!({}));
    }

    #[test]
    fn the_controller_is_found() {
        let object = json!({"metadata": {"ownerReferences": [
            {"name": "a"}, {"name": "b", "controller": true}]}});
        assert_eq!(controller_of(&object).expect("b")["name"], "b");
    }
}
