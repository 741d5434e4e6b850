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
        let one = json_patch::Patch(vec![operation.clone()]);
        json_patch::patch(&mut patched, &one).map_err(|e| Error::Inapplicable(words(&one, &e)))?;
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

/// The failure as upstream's JSON patch library words it.
fn words(patch: &json_patch::Patch, error: &json_patch::PatchError) -> String {
    use json_patch::PatchOperation as Op;
    let path = error.path.as_str();
    match patch.0.get(error.operation) {
        Some(Op::Test(_)) => format!("testing value {path} failed: test failed"),
        Some(Op::Add(_)) => {
            format!("add operation does not apply: doc is missing path: {path:?}: missing value")
        }
        Some(Op::Replace(_)) => {
            format!("replace operation does not apply: doc is missing key: {path}: missing value")
        }
        Some(Op::Remove(_)) => {
            format!("remove operation does not apply: doc is missing path: {path:?}: missing value")
        }
        Some(Op::Move(_)) => format!(
            "move operation does not apply: doc is missing from path: {path}: missing value"
        ),
        Some(Op::Copy(_)) => format!(
            "copy operation does not apply: doc is missing from path: {path}: missing value"
        ),
        None => error.to_string(),
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
        let cases: [(&[u8], &str); 3] = [
            (br#"[{"op":"test","path":"/a","value":1}]"#, "testing value /a failed: test failed"),
            (
                br#"[{"op":"replace","path":"/x","value":1}]"#,
                "replace operation does not apply: doc is missing key: /x: missing value",
            ),
            (
                br#"[{"op":"remove","path":"/x"}]"#,
                "remove operation does not apply: doc is missing path: \"/x\": missing value",
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
