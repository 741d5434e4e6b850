//! From client-side to server-side apply: the fields that kubectl owned by updates become those it owns by applying,
//! so that what a manifest does not say any more goes.
//!
//! Source: `k8s.io/client-go/util/csaupgrade`, and kubectl's `apply.go` (`migrateToSSAIfNecessary`).

use serde_json::{Value, json};

const ANNOTATION: &str = "f:kubectl.kubernetes.io/last-applied-configuration";

/// The JSON patch that hands the fields over to `manager`; `None` when nobody applied on the client's side.
pub fn patch(object: &Value, manager: &str) -> Option<Value> {
    let meta = &object["metadata"];
    let fields: Vec<Value> = meta["managedFields"].as_array()?.clone();
    let names: Vec<String> = fields
        .iter()
        .filter(|entry| is_update(entry) && notes(entry))
        .filter_map(|entry| entry["manager"].as_str().map(str::to_owned))
        .collect();
    if names.is_empty() {
        return None;
    }
    let named = |entry: &Value| {
        entry["manager"].as_str().is_some_and(|name| names.iter().any(|n| n == name))
    };
    let (old, mut kept): (Vec<Value>, Vec<Value>) =
        fields.into_iter().partition(|entry| is_update(entry) && named(entry));
    let applies = |entry: &&mut Value| {
        entry["manager"] == manager && entry["operation"] == "Apply" && is_whole(entry)
    };
    let gather = |own: &mut Value| {
        for entry in &old {
            join(&mut own["fieldsV1"], &entry["fieldsV1"]);
        }
    };
    if let Some(own) = kept.iter_mut().find(applies) {
        gather(own);
    } else {
        let mut own = old.first()?.clone();
        gather(&mut own);
        own["manager"] = manager.into();
        own["operation"] = "Apply".into();
        kept.push(own);
    }
    Some(json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": kept},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
    ]))
}

/// Whether somebody who applies on the server's side owns the note of what was applied.
pub fn is_noted(object: &Value) -> bool {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries.filter(|entry| entry["operation"] == "Apply").any(notes)
}

fn notes(entry: &Value) -> bool {
    !entry["fieldsV1"]["f:metadata"]["f:annotations"][ANNOTATION].is_null()
}

fn is_whole(entry: &Value) -> bool {
    entry["subresource"].as_str().unwrap_or_default().is_empty()
}

fn is_update(entry: &Value) -> bool {
    entry["operation"] == "Update" && is_whole(entry)
}

/// Adds a set of fields to another.
fn join(fields: &mut Value, more: &Value) {
    let (Some(fields), Some(more)) = (fields.as_object_mut(), more.as_object()) else { return };
    for (key, value) in more {
        match fields.get_mut(key) {
            Some(known) => join(known, value),
            None => {
                fields.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_updates_become_applied_ones() {
        let entry = |manager: &str, operation: &str, fields: Value| json!({"manager": manager, "operation": operation, "fieldsV1": fields});
        let applied =
            json!({"f:metadata": {"f:annotations": {ANNOTATION: {}}}, "f:data": {"f:old": {}}});
        let object = json!({"metadata": {"resourceVersion": "7", "managedFields": [
            entry("kubectl-client-side-apply", "Update", applied.clone()),
            entry("kubectl", "Apply", json!({"f:data": {"f:new": {}}})),
            entry("other", "Update", json!({"f:data": {"f:theirs": {}}}))]}});
        let patch = patch(&object, "kubectl").expect("there is something to hand over");
        let want = json!({"f:metadata": {"f:annotations": {ANNOTATION: {}}}, "f:data": {"f:old": {}, "f:new": {}}});
        assert_eq!(patch[0]["value"][0]["fieldsV1"], want);
        assert_eq!(patch[0]["value"].as_array().map(Vec::len), Some(2));
        assert_eq!(patch[1]["value"], "7");
        assert!(!is_noted(&object), "an update is no application");
        let none = json!({"metadata": {"managedFields": [entry("kubectl", "Apply", json!({}))]}});
        assert_eq!(super::patch(&none, "kubectl"), None);
        let alone = json!({"metadata": {"managedFields": [entry("x", "Update", applied.clone())]}});
        assert_eq!(
            super::patch(&alone, "kubectl").expect("there is something")[0]["value"],
            json!([entry("kubectl", "Apply", applied)])
        );
    }
}
