//! The three kinds of PATCH body: JSON patch, JSON merge patch, strategic merge patch.
//!
//! Sources: RFC 6902, RFC 7396, `k8s.io/apimachinery/pkg/util/strategicpatch`.

mod diff;
mod order;
mod strategic;

use serde_json::Value;

pub use diff::{three_way, three_way_json};
pub use strategic::strategic;

/// Operations a JSON patch may have (`maxJSONPatchOperations` of the API server).
const MAX_OPERATIONS: usize = 10_000;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed but does not fit the object: 422.
    #[error("{0}")]
    Inapplicable(String),
    /// The object does not have a value that the patch tests: 422.
    #[error("{0}")]
    TestFailed(String),
    /// The patch has too many operations: 413.
    #[error("the allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
}

/// Copies may not add more than this: each could double the object.
const COPIED_MAX_BYTES: usize = 3 << 20;

/// Why a JSON patch cannot be read, as upstream tells it.
fn undecodable(body: &[u8], error: &serde_json::Error) -> String {
    const OPERATIONS: [&str; 6] = ["add", "remove", "replace", "move", "copy", "test"];
    let operations = match serde_json::from_slice(body) {
        Ok(Value::Array(operations)) => operations,
        Ok(other) => {
            let kind = crate::decode::json_kind(&other);
            return format!(
                "error decoding patch: json: cannot unmarshal {kind} into Go value of type []handlers.jsonPatchOp"
            );
        }
        Err(_) => return format!("error decoding patch: {error}"),
    };
    let unknown = operations
        .iter()
        .find(|one| one["op"].as_str().is_some_and(|name| !OPERATIONS.contains(&name)));
    match unknown {
        Some(one) => format!("invalid operation {one}: unsupported operation"),
        None => format!("error decoding patch: {error}"),
    }
}

/// Applies a JSON patch (RFC 6902); `original` is left alone when it fails.
pub fn json(original: &Value, body: &[u8]) -> Result<Value, Error> {
    let patch: json_patch::Patch = serde_json::from_slice(body)
        .or_else(|error| with_nulls(body).ok_or(error))
        .map_err(|e| Error::Malformed(undecodable(body, &e)))?;
    if patch.0.len() > MAX_OPERATIONS {
        return Err(Error::TooManyOperations(patch.0.len()));
    }
    let mut patched = original.clone();
    let mut copied = 0;
    for operation in &patch.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += patched.pointer(copy.from.as_str()).map_or(0, size);
            if copied > COPIED_MAX_BYTES {
                return Err(Error::Inapplicable(format!(
                    "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {COPIED_MAX_BYTES}"
                )));
            }
        }
        let told = words(&patched, operation);
        // Upstream's library adds to what is in the document, and has no other document for it.
        let replaces = match operation {
            json_patch::PatchOperation::Add(add) => add.path.is_root(),
            json_patch::PatchOperation::Move(moved) => moved.path.is_root(),
            json_patch::PatchOperation::Copy(copy) => copy.path.is_root(),
            _ => false,
        };
        let one = json_patch::Patch(vec![operation.clone()]);
        if replaces || json_patch::patch(&mut patched, &one).is_err() {
            return Err(match operation {
                json_patch::PatchOperation::Test(_) => Error::TestFailed(told),
                _ => Error::Inapplicable(told),
            });
        }
    }
    Ok(patched)
}

/// About how many bytes a value takes as JSON.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item) + 1).sum::<usize>() + 2,
        Value::Object(map) => {
            map.iter().map(|(key, value)| key.len() + size(value) + 4).sum::<usize>() + 2
        }
    }
}

/// The patch with `null` for values that are left out, as clients do which omit empty ones.
fn with_nulls(body: &[u8]) -> Option<json_patch::Patch> {
    let mut patch: Value = serde_json::from_slice(body).ok()?;
    for operation in patch.as_array_mut()?.iter_mut().filter_map(Value::as_object_mut) {
        if matches!(operation.get("op")?.as_str()?, "add" | "replace" | "test") {
            operation.entry("value").or_insert(Value::Null);
        }
    }
    serde_json::from_value(patch).ok()
}

/// The failure of `operation` on `document`, as upstream's JSON patch library words it.
fn words(document: &Value, operation: &json_patch::PatchOperation) -> String {
    use json_patch::PatchOperation as Op;
    // Whether the value is looked for in an object that is there, and under which key.
    let absent_key = |pointer: &json_patch::jsonptr::Pointer| {
        let (parent, key) = pointer.split_back()?;
        document.pointer(parent.as_str())?.is_object().then(|| key.decoded().into_owned())
    };
    match operation {
        Op::Test(test) => format!("testing value {} failed: test failed", test.path),
        Op::Add(add) => format!(
            "add operation does not apply: doc is missing path: {:?}: missing value",
            add.path.as_str()
        ),
        Op::Replace(replace) => format!(
            "replace operation does not apply: doc is missing key: {}: missing value",
            replace.path
        ),
        Op::Remove(remove) => match absent_key(&remove.path) {
            Some(key) => format!(
                "error in remove for path: '{}': unable to remove nonexistent key: {key}: missing value",
                remove.path
            ),
            None => format!(
                "remove operation does not apply: doc is missing path: {:?}: missing value",
                remove.path.as_str()
            ),
        },
        Op::Move(json_patch::MoveOperation { path, .. }) if path.is_root() => {
            "move operation does not apply: doc is missing destination path: : missing value".into()
        }
        Op::Copy(json_patch::CopyOperation { path, .. }) if path.is_root() => {
            "copy operation does not apply: doc is missing destination path: : missing value".into()
        }
        Op::Move(moved) => match absent_key(&moved.from) {
            Some(key) => format!(
                "error in move for path: '{key}': unable to get nonexistent key: {key}: missing value"
            ),
            None => format!(
                "move operation does not apply: doc is missing from path: {}: missing value",
                moved.from
            ),
        },
        Op::Copy(copy) => match absent_key(&copy.from) {
            Some(key) => format!(
                "error in copy for from: '{}': unable to get nonexistent key: {key}: missing value",
                copy.from
            ),
            None => format!(
                "copy operation does not apply: doc is missing from path: {}: missing value",
                copy.from
            ),
        },
    }
}

/// Applies a JSON merge patch (RFC 7396).
pub fn merge(original: &mut Value, patch: &Value) {
    json_patch::merge(original, patch);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_patches() {
        let original = json!({"a": {"b": [1, 2]}});
        let body = br#"[{"op":"test","path":"/a/b/0","value":1},{"op":"add","path":"/a/b/-","value":3},
            {"op":"remove","path":"/a/b/0"},{"op":"replace","path":"/a/b/0","value":9},{"op":"add","path":"/c~1d","value":{}}]"#;
        assert_eq!(json(&original, body), Ok(json!({"a": {"b": [9, 3]}, "c/d": {}})));
        let tested = br#"[{"op":"test","path":"/a","value":1}]"#;
        let failed = Error::TestFailed("testing value /a failed: test failed".into());
        assert_eq!(json(&original, tested), Err(failed));
        let cases: [(&[u8], &str); 8] = [
            (
                br#"[{"op":"move","from":"/a","path":""}]"#,
                "move operation does not apply: doc is missing destination path: : missing value",
            ),
            (
                br#"[{"op":"copy","from":"/a","path":""}]"#,
                "copy operation does not apply: doc is missing destination path: : missing value",
            ),
            (
                br#"[{"op":"replace","path":"/x","value":1}]"#,
                "replace operation does not apply: doc is missing key: /x: missing value",
            ),
            (
                br#"[{"op":"remove","path":"/x"}]"#,
                "error in remove for path: '/x': unable to remove nonexistent key: x: missing value",
            ),
            (
                br#"[{"op":"remove","path":"/x/y"}]"#,
                "remove operation does not apply: doc is missing path: \"/x/y\": missing value",
            ),
            (
                br#"[{"op":"move","from":"/x","path":"/y"}]"#,
                "error in move for path: 'x': unable to get nonexistent key: x: missing value",
            ),
            (
                br#"[{"op":"copy","from":"/x","path":"/y"}]"#,
                "error in copy for from: '/x': unable to get nonexistent key: x: missing value",
            ),
            (
                br#"[{"op":"add","path":"","value":{}}]"#,
                "add operation does not apply: doc is missing path: \"\": missing value",
            ),
        ];
        for (body, want) in cases {
            assert_eq!(json(&original, body), Err(Error::Inapplicable(want.into())));
        }
        assert!(matches!(json(&original, b"{}"), Err(Error::Malformed(_))));
        assert!(matches!(json(&original, br#"[{"op":"add"}]"#), Err(Error::Malformed(_))));
        let emptied = json(&original, br#"[{"op":"replace","path":"/a"}]"#);
        assert_eq!(emptied, Ok(json!({"a": null})));
    }

    #[test]
    fn merge_patches() {
        let mut value = json!({"a": "b", "c": {"d": "e", "f": "g"}});
        merge(&mut value, &json!({"a": "z", "c": {"f": null}}));
        assert_eq!(value, json!({"a": "z", "c": {"d": "e"}}));
    }
}
