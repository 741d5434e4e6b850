//! Reading JSON as Go reads its structs: what is absent or null is the zero value.

use serde_json::{Map, Value};

/// Zero-value access; all decoded objects have been checked against the schema, so that another type
/// than the expected one means absent.
pub trait Zero {
    /// The string, or the empty one.
    fn text(&self) -> &str;
    /// The list's items, or none.
    fn items(&self) -> &[Value];
    /// The map's entries, or none.
    fn entries(&self) -> impl Iterator<Item = (&String, &Value)>;
    /// The number, or 0.
    fn int(&self) -> i64;
    /// The boolean, or false.
    fn flag(&self) -> bool;
    /// Whether there is a value.
    fn is_set(&self) -> bool;
    /// The list's strings.
    fn texts(&self) -> impl Iterator<Item = &str>;
}

impl Zero for Value {
    fn text(&self) -> &str {
        self.as_str().unwrap_or_default()
    }

    fn items(&self) -> &[Value] {
        self.as_array().map_or(&[], Vec::as_slice)
    }

    fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.as_object().into_iter().flat_map(Map::iter)
    }

    fn int(&self) -> i64 {
        self.as_i64().unwrap_or_default()
    }

    fn flag(&self) -> bool {
        self.as_bool().unwrap_or_default()
    }

    fn is_set(&self) -> bool {
        !self.is_null()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.items().iter().filter_map(Value::as_str)
    }
}

/// Removes nulls and sets `object[key]` to `value` when it is absent, null or the empty string.
pub fn default_to(object: &mut Value, key: &str, value: impl FnOnce() -> Value) {
    let Some(map) = object.as_object_mut() else { return };
    match map.get(key) {
        None | Some(Value::Null) => {
            map.insert(key.to_owned(), value());
        }
        Some(Value::String(text)) if text.is_empty() => {
            map.insert(key.to_owned(), value());
        }
        Some(_) => {}
    }
}
