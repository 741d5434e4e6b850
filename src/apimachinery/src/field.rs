//! Field paths and validation errors, worded as Kubernetes words them.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation/field`.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// So long a path is kept in place, without memory of its own: validation makes a hundred of them for every object, and
/// needs hardly any.
const SHORT: usize = 63;

/// A path into an object, such as `spec.containers[0].name` or `metadata.labels[app]`.
#[derive(Clone)]
pub struct Path(Text);

#[derive(Clone)]
enum Text {
    Short([u8; SHORT], u8),
    Long(String),
}

impl Text {
    fn as_str(&self) -> &str {
        match self {
            // What was put in is whole strings.
            Self::Short(bytes, length) => {
                std::str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default()
            }
            Self::Long(text) => text,
        }
    }

    fn push(&mut self, part: &str) {
        match self {
            Self::Short(bytes, length) => {
                let (from, until) = (usize::from(*length), usize::from(*length) + part.len());
                if let Some(place) = bytes.get_mut(from..until) {
                    place.copy_from_slice(part.as_bytes());
                    *length = until as u8;
                } else {
                    *self = Self::Long([self.as_str(), part].concat());
                }
            }
            Self::Long(text) => text.push_str(part),
        }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.push(part);
        Ok(())
    }
}

impl Default for Path {
    fn default() -> Self {
        Self(Text::Short([0; SHORT], 0))
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Path({:?})", self.as_str())
    }
}

impl PartialEq for Path {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Path {}

impl Path {
    /// The path of a top-level field.
    pub fn new(name: &str) -> Self {
        Self::default().with(&[name])
    }

    fn with(&self, parts: &[&str]) -> Self {
        let mut path = self.clone();
        for part in parts {
            path.0.push(part);
        }
        path
    }

    /// The field `name` below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        let is_empty = matches!(self.0, Text::Short(_, 0));
        self.with(&[if is_empty { "" } else { "." }, name])
    }

    /// Element `index` of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut path = self.clone();
        // Writing into it does not fail.
        let _ = write!(path.0, "[{index}]");
        path
    }

    /// Entry `key` of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.with(&["[", key, "]"])
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wrong with a field; the text is the `reason` of a `StatusCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// `FieldValueNotFound`
    NotFound,
    /// `FieldValueRequired`
    Required,
    /// `FieldValueDuplicate`
    Duplicate,
    /// `FieldValueInvalid`
    Invalid,
    /// `FieldValueNotSupported`
    NotSupported,
    /// `FieldValueForbidden`
    Forbidden,
    /// `FieldValueTooLong`
    TooLong,
    /// `FieldValueTooMany`
    TooMany,
    /// `InternalError`
    Internal,
    /// `FieldValueTypeInvalid`
    TypeInvalid,
}

impl ErrorType {
    /// The machine-readable reason, as `StatusCause.reason` carries it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One invalid field.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What kind of mistake it is.
    pub kind: ErrorType,
    /// Where.
    pub field: Path,
    /// The offending value, absent where the message does not show one.
    pub value: Option<Value>,
    /// How the value is shown, where that is not its JSON.
    pub shown: Option<String>,
    /// The explanation; may be empty.
    pub detail: String,
}

/// JSON as Go writes it, with the characters escaped that HTML has a meaning for.
fn go_json(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return text;
    }
    // They can only be within strings.
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// An object whose fields are told in their order, each a name and a value.
pub fn ordered(fields: &[(&str, Value)]) -> String {
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name:?}:{}", go_json(value))).collect();
    format!("{{{}}}", fields.join(","))
}

impl Error {
    /// The value is not allowed, and is shown as `shown` says: what Go holds is not always what JSON has.
    pub fn invalid_shown(field: &Path, shown: String, detail: impl Into<String>) -> Self {
        let error = Self::invalid(field, Value::Null, detail);
        Self { shown: Some(shown), ..error }
    }

    /// The field must be set.
    pub fn required(field: &Path, detail: &str) -> Self {
        Self {
            kind: ErrorType::Required,
            field: field.clone(),
            value: None,
            shown: None,
            detail: detail.into(),
        }
    }

    /// The value breaks a rule.
    pub fn invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::Invalid,
            field: field.clone(),
            value: Some(value.into()),
            shown: None,
            detail: detail.into(),
        }
    }

    /// The value occurs twice where it must be unique.
    pub fn duplicate(field: &Path, value: impl Into<Value>) -> Self {
        Self {
            kind: ErrorType::Duplicate,
            field: field.clone(),
            value: Some(value.into()),
            shown: None,
            detail: String::new(),
        }
    }

    /// The value refers to something that is not there.
    pub fn not_found(field: &Path, value: impl Into<Value>) -> Self {
        Self {
            kind: ErrorType::NotFound,
            field: field.clone(),
            value: Some(value.into()),
            shown: None,
            detail: String::new(),
        }
    }

    /// The value is none of `supported`.
    pub fn not_supported(field: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut supported = supported.to_vec();
        supported.sort_unstable();
        Self::not_supported_of(field, value, &supported)
    }

    /// The same, with the known values in the order in which they are given.
    pub fn not_supported_of(field: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let names: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if names.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", names.join(", "))
        };
        Self {
            kind: ErrorType::NotSupported,
            field: field.clone(),
            value: Some(value.into()),
            shown: None,
            detail,
        }
    }

    /// The field may not be set, or not be changed.
    pub fn forbidden(field: &Path, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::Forbidden,
            field: field.clone(),
            value: None,
            shown: None,
            detail: detail.into(),
        }
    }

    /// The value has more than `max_bytes` bytes.
    pub fn too_long(field: &Path, max_bytes: usize) -> Self {
        Self {
            kind: ErrorType::TooLong,
            field: field.clone(),
            value: None,
            shown: None,
            detail: format!("may not be more than {max_bytes} bytes"),
        }
    }

    /// The list has `actual` items, more than `max`.
    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        Self {
            kind: ErrorType::TooMany,
            field: field.clone(),
            value: Some(Value::from(actual)),
            shown: None,
            detail: format!("must have at most {max} items"),
        }
    }

    /// The value is of the wrong type.
    pub fn type_invalid(field: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self {
            kind: ErrorType::TypeInvalid,
            field: field.clone(),
            value: Some(value.into()),
            shown: None,
            detail: detail.into(),
        }
    }

    /// The message without the field, as `StatusCause.message` carries it.
    pub fn body(&self) -> String {
        let mut text = self.kind.title().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            match (&self.shown, value) {
                (Some(shown), _) => text.push_str(shown),
                (None, Value::String(s)) => text.push_str(&format!("{s:?}")),
                (None, other) => text.push_str(&go_json(other)),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// All that is wrong with an object, in the order it was found.
pub type ErrorList = Vec<Error>;

/// The errors in one line: bare when there is one, bracketed when there are several
/// (`utilerrors.Aggregate`); equal messages are told once.
pub fn aggregate(errors: &[Error]) -> String {
    let mut seen: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    if seen.len() == 1 { seen.remove(0) } else { format!("[{}]", seen.join(", ")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_paths_are_as_whole_as_short_ones() {
        let (mut path, mut text) = (Path::new("spec"), "spec".to_owned());
        for index in 0..20 {
            path = path.child("größe").index(index).key("ключ");
            text.push_str(&format!(".größe[{index}][ключ]"));
            assert_eq!(path.as_str(), text);
            assert_eq!(path, path.clone());
        }
        assert_eq!(Path::default().child("a"), Path::new("a"));
        assert_ne!(Path::new("a"), Path::new("b"));
    }

    #[test]
    fn messages_are_upstreams() {
        let name = Path::new("spec").child("containers").index(0).child("name");
        let cases = [
            (Error::required(&name, ""), "spec.containers[0].name: Required value"),
            (
                Error::invalid(&name, "A", "bad"),
                "spec.containers[0].name: Invalid value: \"A\": bad",
            ),
            (Error::duplicate(&name, "a"), "spec.containers[0].name: Duplicate value: \"a\""),
            (
                Error::not_supported(&name, "x", &["b", "a"]),
                "spec.containers[0].name: Unsupported value: \"x\": supported values: \"a\", \"b\"",
            ),
            (Error::forbidden(&name, "no"), "spec.containers[0].name: Forbidden: no"),
            (
                Error::invalid(&name, vec!["a", "b"], "bad"),
                "spec.containers[0].name: Invalid value: [\"a\",\"b\"]: bad",
            ),
            (Error::invalid(&name, 3, "bad"), "spec.containers[0].name: Invalid value: 3: bad"),
            (
                Error::invalid(&name, json!({"a": "<b>&"}), "bad"),
                "spec.containers[0].name: Invalid value: {\"a\":\"\\u003cb\\u003e\\u0026\"}: bad",
            ),
            (
                Error::invalid_shown(&name, ordered(&[("B", 1.into()), ("A", "x".into())]), "bad"),
                "spec.containers[0].name: Invalid value: {\"B\":1,\"A\":\"x\"}: bad",
            ),
        ];
        for (error, want) in cases {
            assert_eq!(error.to_string(), want);
        }
    }

    #[test]
    fn several_errors_are_bracketed_once_each() {
        let path = Path::new("a");
        let one = Error::required(&path, "");
        assert_eq!(aggregate(std::slice::from_ref(&one)), "a: Required value");
        let two = Error::forbidden(&path, "x");
        assert_eq!(aggregate(&[one.clone(), two, one]), "[a: Required value, a: Forbidden: x]");
    }
}
