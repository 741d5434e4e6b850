//! Validating objects, in the words of upstream's OpenAPI validator.
//!
//! Source: `k8s.io/kube-openapi/pkg/validation` and `apiserver/validation` and `apiserver/schema/listtype`
//! of apiextensions-apiserver. On updates, what did not change is not judged anew (ratcheting).

use std::collections::HashSet;

use serde_json::Value;

use super::table::keys_of;
use super::{Additional, Structural, format};
use crate::field::{Error, ErrorList, Path};
use crate::names;
use crate::schema::ListType;

/// The JSON schema type of a value.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Errors that no field carries are told at Go's nil path.
fn nowhere() -> Path {
    Path::new("<nil>")
}

/// A number as Go's `%v` prints it.
fn number(n: f64) -> String {
    if n.fract() == 0.0 && n.abs() < 1e21 { format!("{n:.0}") } else { n.to_string() }
}

impl Structural {
    /// What is wrong with `value`; parts equal to those of `old` are not looked at.
    pub fn validate(&self, value: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        self.validate_at(value, old, &Path::default(), &mut errors);
        self.validate_lists(value, old, &Path::default(), &mut errors);
        errors
    }

    /// What is wrong with a default value, told at `path`.
    pub(super) fn validate_default(&self, value: &Value, path: &Path) -> ErrorList {
        let mut errors = ErrorList::new();
        self.validate_at(value, None, &Path::default(), &mut errors);
        for error in &mut errors {
            let below = error.field.as_str();
            error.field = match below {
                "" | "<nil>" => path.clone(),
                below => path.child(below),
            };
        }
        errors
    }

    fn validate_at(&self, value: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
        if old == Some(value) {
            return;
        }
        self.validate_type(value, path, errors);
        if value.is_null() {
            if !self.nullable {
                self.validate_enum(value, path, errors);
            }
            return;
        }
        self.validate_combinations(value, path, errors);
        match value {
            Value::String(text) => self.validate_text(text, path, errors),
            Value::Number(_) => self.validate_number(value, path, errors),
            Value::Array(list) => self.validate_items(list, old, path, errors),
            _ => {}
        }
        self.validate_enum(value, path, errors);
        if let Value::Object(map) = value {
            self.validate_entries(map, old, path, errors);
        }
    }

    /// What is of another type is still held against the rules for its own.
    fn validate_type(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let found = kind_of(value);
        let wanted = if self.int_or_string { "integer,string" } else { self.kind.as_str() };
        let whole = || value.as_f64().is_some_and(|n| n.fract() == 0.0);
        let fits = wanted.is_empty()
            || wanted == found
            || (value.is_null() && self.nullable)
            || (self.int_or_string && matches!(found, "integer" | "string"))
            || (wanted == "number" && found == "integer")
            || (wanted == "integer" && found == "number" && whole());
        if fits {
            return;
        }
        // A format is named in the place of the type, and formats of text let lists through.
        let (wanted, found) = match found {
            "null" => (wanted, found),
            "array" if self.has_format() && wanted == "string" => return,
            "string" | "array" => (wanted, found),
            _ if !self.has_format() => (wanted, found),
            "integer" => (self.format.as_str(), "int64"),
            "number" => (self.format.as_str(), "float64"),
            _ => (self.format.as_str(), ""),
        };
        let detail = format!("{path} in body must be of type {wanted}: {found:?}");
        errors.push(Error::type_invalid(path, found, detail));
    }

    /// Whether the schema's format is one of those that its type has.
    fn has_format(&self) -> bool {
        match self.kind.as_str() {
            "integer" => matches!(self.format.as_str(), "int32" | "int64"),
            "number" => matches!(self.format.as_str(), "float" | "double"),
            "" | "string" => format::is_known(&self.format),
            _ => false,
        }
    }

    fn validate_enum(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        if self.values.is_empty() || self.values.contains(value) {
            return;
        }
        let names: Vec<String> = self
            .values
            .iter()
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errors.push(Error::not_supported_of(path, value.clone(), &names));
    }

    fn validate_combinations(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let told = |schema: &Self| {
            let mut errors = ErrorList::new();
            schema.validate_at(value, None, path, &mut errors);
            errors
        };
        let said =
            |text: String| Error::invalid(&nowhere(), "", format!("{:?} {text}", path.as_str()));
        let mut found = ErrorList::new();
        if !self.any_of.is_empty() {
            let results: Vec<ErrorList> = self.any_of.iter().map(told).collect();
            if results.iter().all(|errors| !errors.is_empty()) {
                errors.push(said("must validate at least one schema (anyOf)".into()));
                found.extend(results.into_iter().min_by_key(Vec::len).unwrap_or_default());
            }
        }
        if !self.one_of.is_empty() {
            let mut results: Vec<ErrorList> = self.one_of.iter().map(told).collect();
            let valid = results.iter().filter(|errors| errors.is_empty()).count();
            if valid != 1 {
                let detail = match valid {
                    0 => "Found none valid".to_owned(),
                    n => format!("Found {n} valid alternatives"),
                };
                errors
                    .push(said(format!("must validate one and only one schema (oneOf). {detail}")));
                if valid == 0 {
                    results.sort_by_key(Vec::len);
                    found.extend(results.into_iter().next().unwrap_or_default());
                }
            }
        }
        if !self.all_of.is_empty() {
            let results: Vec<ErrorList> = self.all_of.iter().map(told).collect();
            let failed = results.iter().filter(|errors| !errors.is_empty()).count();
            if failed > 0 {
                let none =
                    if failed == results.len() && failed > 1 { ". None validated" } else { "" };
                errors.extend(results.into_iter().flatten());
                errors.push(said(format!("must validate all the schemas (allOf){none}")));
            }
        }
        if let Some(schema) = &self.not
            && told(schema).is_empty()
        {
            errors.push(said("must not validate the schema (not)".into()));
        }
        errors.extend(found);
    }

    fn validate_text(&self, text: &str, path: &Path, errors: &mut ErrorList) {
        let length = text.chars().count() as u64;
        if let Some(max) = self.max_length.filter(|max| length > *max) {
            errors.push(Error::too_long(path, usize::try_from(max).unwrap_or(usize::MAX)));
        } else if let Some(min) = self.min_length.filter(|min| length < *min) {
            let detail = format!("{path} in body should be at least {min} chars long");
            errors.push(Error::invalid(path, text, detail));
        } else if let Some(pattern) = &self.pattern
            && !pattern.regex.as_ref().is_none_or(|regex| regex.is_match(text))
        {
            let detail = format!("{path} in body should match '{}'", pattern.text);
            errors.push(Error::invalid(path, text, detail));
        }
        if !self.format.is_empty() && !format::is(&self.format, text) {
            let detail = format!("{path} in body must be of type {}: {text:?}", self.format);
            errors.push(Error::type_invalid(path, text, detail));
        }
    }

    fn validate_number(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let n = value.as_f64().unwrap_or_default();
        self.validate_range(value, path, errors);
        self.validate_factor(value, path, errors);
        let mut say = |text: String| {
            errors.push(Error::invalid(path, value.clone(), format!("{path} in body {text}")));
        };
        if let Some((max, exclusive)) = self.maximum
            && (n > max || (exclusive && n >= max))
        {
            let word = if exclusive { "less than" } else { "less than or equal to" };
            say(format!("should be {word} {}", number(max)));
        }
        if let Some((min, exclusive)) = self.minimum
            && (n < min || (exclusive && n <= min))
        {
            let word = if exclusive { "greater than" } else { "greater than or equal to" };
            say(format!("should be {word} {}", number(min)));
        }
    }

    /// Whether the number is one that its type and format can hold.
    fn validate_range(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let n = value.as_f64().unwrap_or_default();
        let fits = match (self.kind.as_str(), self.format.as_str()) {
            ("integer", "int32") => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            ("integer", _) => n.fract() == 0.0 && (value.is_i64() || n.abs() < 9.3e18),
            ("number", "float") => n.abs() <= f64::from(f32::MAX),
            _ => true,
        };
        if !fits {
            let (kind, told) = (&self.kind, self.has_format());
            let format = if told {
                format!("with format {}", self.format)
            } else {
                "(default format)".into()
            };
            let detail = format!("Checked value must be of type {kind} {format} in {path}");
            errors.push(Error::invalid(&nowhere(), "", detail));
        }
    }

    fn validate_factor(&self, value: &Value, path: &Path, errors: &mut ErrorList) {
        let Some(factor) = self.multiple_of else { return };
        // A whole number is divided as one, by what is whole of the factor.
        let (factor, rest) = match value.as_i64() {
            Some(n) if factor < 1.0 => (0.0, n as f64),
            Some(n) => (factor.trunc(), n as f64 % factor.trunc()),
            None => {
                let n = value.as_f64().unwrap_or_default();
                let times = if factor < 1.0 { 1.0 / factor * n } else { n / factor };
                (factor, times.fract())
            }
        };
        if factor <= 0.0 {
            let detail = format!("factor MultipleOf declared for {path} must be positive: 0");
            errors.push(Error::invalid(path, 0, detail));
        } else if rest != 0.0 {
            let detail = format!("{path} in body should be a multiple of {}", number(factor));
            errors.push(Error::invalid(path, value.clone(), detail));
        }
    }

    fn validate_items(
        &self,
        list: &[Value],
        old: Option<&Value>,
        path: &Path,
        errors: &mut ErrorList,
    ) {
        if let Some(schema) = &self.items {
            for (index, item) in list.iter().enumerate() {
                let before = self.correlated(item, old);
                schema.validate_at(item, before, &path.index(index), errors);
            }
        }
        let count = list.len() as u64;
        if let Some(min) = self.min_items.filter(|min| count < *min) {
            let detail = format!("{path} in body should have at least {min} items");
            errors.push(Error::invalid(path, count, detail));
        }
        if let Some(max) = self.max_items.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            errors.push(Error::too_many(path, list.len(), max));
        }
        if self.unique_items {
            let unique: HashSet<String> = list.iter().map(Value::to_string).collect();
            if unique.len() < list.len() {
                let detail = format!("{path} in body shouldn't contain duplicates");
                errors.push(Error::invalid(path, "", detail));
            }
        }
    }

    /// The item of the old list that is the same by the keys of a list-type map.
    pub(crate) fn correlated<'v>(&self, item: &Value, old: Option<&'v Value>) -> Option<&'v Value> {
        if self.list_type != Some(ListType::Map) {
            return None;
        }
        let keys = keys_of(&self.list_map_keys, item);
        old?.as_array()?.iter().find(|other| keys_of(&self.list_map_keys, other) == keys)
    }

    fn validate_entries(
        &self,
        map: &serde_json::Map<String, Value>,
        old: Option<&Value>,
        path: &Path,
        errors: &mut ErrorList,
    ) {
        let count = map.len() as u64;
        if let Some(min) = self.min_properties.filter(|min| count < *min) {
            let detail = format!("{path} in body should have at least {min} properties");
            errors.push(Error::invalid(path, count, detail));
        }
        if let Some(max) = self.max_properties.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            errors.push(Error::too_many(path, map.len(), max));
        }
        if self.embedded {
            validate_embedded(map, path, errors);
        }
        for (name, value) in map {
            let before = old.and_then(|old| old.get(name));
            if let Some(schema) = self.properties.get(name) {
                schema.validate_at(value, before, &path.child(name), errors);
            } else if let Some(Additional::Of(schema)) = &self.additional {
                schema.validate_at(value, before, &path.child(name), errors);
            }
        }
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            errors.push(Error::required(&path.child(name), ""));
        }
    }

    /// Sets and maps hold no item twice.
    fn validate_lists(
        &self,
        value: &Value,
        old: Option<&Value>,
        path: &Path,
        errors: &mut ErrorList,
    ) {
        if old == Some(value) {
            return;
        }
        match value {
            Value::Array(list) => {
                let mut seen = HashSet::new();
                for (index, item) in list.iter().enumerate() {
                    let key = match self.list_type {
                        Some(ListType::Set) => item.clone(),
                        Some(ListType::Map) => keys_of(&self.list_map_keys, item),
                        _ => break,
                    };
                    if !seen.insert(key.to_string()) {
                        errors.push(Error::duplicate(&path.index(index), key));
                    }
                }
                let Some(schema) = &self.items else { return };
                for (index, item) in list.iter().enumerate() {
                    let before = self.correlated(item, old);
                    schema.validate_lists(item, before, &path.index(index), errors);
                }
            }
            Value::Object(map) => {
                for (name, value) in map {
                    if let Some(schema) = self.child(name) {
                        let before = old.and_then(|old| old.get(name));
                        let path = if self.properties.contains_key(name) {
                            path.child(name)
                        } else {
                            path.key(name)
                        };
                        schema.validate_lists(value, before, &path, errors);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The version, the kind and the metadata of an object within another.
fn validate_embedded(map: &serde_json::Map<String, Value>, path: &Path, errors: &mut ErrorList) {
    for name in ["apiVersion", "kind"] {
        let at = path.child(name);
        match map.get(name) {
            None => errors.push(Error::required(&at, "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(Error::invalid(&at, "", "must not be empty"));
            }
            Some(Value::String(_)) => {}
            Some(value) => errors.push(Error::invalid(&at, value.clone(), "must be a string")),
        }
    }
    let version = map.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    if version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {version}");
        errors.push(Error::invalid(&path.child("apiVersion"), version, detail));
    }
    let kind = map.get("kind").and_then(Value::as_str).unwrap_or_default();
    let sentences = names::dns_1035_label(&kind.to_lowercase());
    if !kind.is_empty() && !sentences.is_empty() {
        let detail =
            format!("may have mixed case, but should otherwise match: {}", sentences.join(","));
        errors.push(Error::invalid(&path.child("kind"), kind, detail));
    }
    let Some(metadata) = map.get("metadata") else { return };
    let at = path.child("metadata");
    let name = metadata["name"].as_str().unwrap_or_default();
    for sentence in names::path_segment(name) {
        errors.push(Error::invalid(&at.child("name"), name, sentence));
    }
    let labels = at.child("labels");
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        let of_key =
            names::qualified_name(key).into_iter().map(|sentence| (key.as_str(), sentence));
        let of_value = names::label_value(value).into_iter().map(|sentence| (value, sentence));
        for (text, sentence) in of_key.chain(of_value) {
            errors.push(Error::invalid(&labels, text, sentence));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(schema: &Value, spec: &Value) -> Vec<String> {
        let schema = json!({"type": "object", "properties": {"spec": schema}});
        let errors = Structural::parse(&schema).validate(&json!({"spec": spec}), None);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_rule_is_told_in_upstreams_words() {
        let cases = [
            (
                json!({"type": "integer"}),
                json!("a"),
                r#"spec: Invalid value: "string": spec in body must be of type integer: "string""#,
            ),
            (
                json!({"type": "string"}),
                json!(null),
                r#"spec: Invalid value: "null": spec in body must be of type string: "null""#,
            ),
            (
                json!({"type": "object"}),
                json!([]),
                r#"spec: Invalid value: "array": spec in body must be of type object: "array""#,
            ),
            (
                json!({"x-kubernetes-int-or-string": true}),
                json!({}),
                r#"spec: Invalid value: "object": spec in body must be of type integer,string: "object""#,
            ),
            (
                json!({"type": "integer"}),
                json!(2.5),
                r#"spec: Invalid value: "number": spec in body must be of type integer: "number"; <nil>: Invalid value: "": Checked value must be of type integer (default format) in spec"#,
            ),
            (
                json!({"type": "number", "format": "float"}),
                json!(1e300),
                r#"<nil>: Invalid value: "": Checked value must be of type number with format float in spec"#,
            ),
            (
                json!({"type": "string", "format": "date"}),
                json!(5),
                r#"spec: Invalid value: "int64": spec in body must be of type date: "int64""#,
            ),
            (
                json!({"type": "object", "x-kubernetes-embedded-resource": true}),
                json!({"apiVersion": "a/b/c"}),
                r#"spec.kind: Required value; spec.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c"#,
            ),
            (
                json!({"type": "integer", "maximum": 10}),
                json!(15),
                "spec: Invalid value: 15: spec in body should be less than or equal to 10",
            ),
            (
                json!({"type": "integer", "minimum": 1}),
                json!(0),
                "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
            ),
            (
                json!({"type": "number", "minimum": 1, "exclusiveMinimum": true}),
                json!(1),
                "spec: Invalid value: 1: spec in body should be greater than 1",
            ),
            (
                json!({"type": "number", "maximum": 1.5, "exclusiveMaximum": true}),
                json!(1.5),
                "spec: Invalid value: 1.5: spec in body should be less than 1.5",
            ),
            (
                json!({"type": "integer", "multipleOf": 5}),
                json!(7),
                "spec: Invalid value: 7: spec in body should be a multiple of 5",
            ),
            (
                json!({"type": "string", "pattern": "^a+$"}),
                json!("b"),
                r#"spec: Invalid value: "b": spec in body should match '^a+$'"#,
            ),
            (
                json!({"type": "string", "minLength": 2}),
                json!("b"),
                r#"spec: Invalid value: "b": spec in body should be at least 2 chars long"#,
            ),
            (
                json!({"type": "string", "maxLength": 2}),
                json!("abc"),
                "spec: Too long: may not be more than 2 bytes",
            ),
            (
                json!({"type": "string", "enum": ["b", "a"]}),
                json!("c"),
                r#"spec: Unsupported value: "c": supported values: "b", "a""#,
            ),
            (
                json!({"type": "string", "format": "ipv4"}),
                json!("x"),
                r#"spec: Invalid value: "x": spec in body must be of type ipv4: "x""#,
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
                json!(["a", "b"]),
                "spec: Too many: 2: must have at most 1 items",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
                json!([]),
                "spec: Invalid value: 0: spec in body should have at least 1 items",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}}),
                json!(["a", 1]),
                r#"spec[1]: Invalid value: "integer": spec[1] in body must be of type string: "integer""#,
            ),
            (json!({"type": "object", "required": ["a"]}), json!({}), "spec.a: Required value"),
            (
                json!({"type": "object", "minProperties": 1}),
                json!({}),
                "spec: Invalid value: 0: spec in body should have at least 1 properties",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}}),
                json!({"k": 1}),
                r#"spec.k: Invalid value: "integer": spec.k in body must be of type string: "integer""#,
            ),
            (
                json!({"type": "string", "not": {"enum": ["x"]}}),
                json!("x"),
                r#"<nil>: Invalid value: "": "spec" must not validate the schema (not)"#,
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"}),
                json!(["a", "a"]),
                r#"spec[1]: Duplicate value: "a""#,
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                    "items": {"type": "object", "properties": {"n": {"type": "string"}}}}),
                json!([{"n": "a"}, {"n": "a"}]),
                r#"spec[1]: Duplicate value: {"n":"a"}"#,
            ),
        ];
        for (schema, spec, want) in cases {
            assert_eq!(told(&schema, &spec).join("; "), want, "{schema}");
        }
    }

    #[test]
    fn right_values_pass() {
        let cases = [
            (json!({"type": "integer"}), json!(3.0)),
            (json!({"type": "number"}), json!(3)),
            (json!({"type": "string", "nullable": true}), json!(null)),
            (json!({"x-kubernetes-int-or-string": true}), json!("50%")),
            (
                json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
                json!({"a": 1}),
            ),
            (json!({"type": "integer", "enum": [1, 2]}), json!(2)),
            (json!({"x-kubernetes-preserve-unknown-fields": true}), json!([1])),
        ];
        for (schema, spec) in cases {
            assert!(told(&schema, &spec).is_empty(), "{schema} {spec}");
        }
    }

    #[test]
    fn combinations_count_alternatives() {
        let one_of = json!({"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]});
        assert_eq!(
            told(&one_of, &json!({})),
            [
                r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found none valid"#,
                "spec.a: Required value"
            ]
        );
        assert_eq!(
            told(&one_of, &json!({"a": 1, "b": 1})),
            [
                r#"<nil>: Invalid value: "": "spec" must validate one and only one schema (oneOf). Found 2 valid alternatives"#
            ]
        );
        let any_of = json!({"type": "string", "anyOf": [{"minLength": 3}, {"enum": ["x"]}]});
        assert_eq!(
            told(&any_of, &json!("y"))[0],
            r#"<nil>: Invalid value: "": "spec" must validate at least one schema (anyOf)"#
        );
    }

    #[test]
    fn what_did_not_change_is_not_judged() {
        let schema = Structural::parse(
            &json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1}}}}}),
        );
        let old = json!({"spec": {"a": "long"}});
        assert!(schema.validate(&json!({"spec": {"a": "long", "b": "x"}}), Some(&old)).is_empty());
        assert_eq!(schema.validate(&json!({"spec": {"a": "longer"}}), Some(&old)).len(), 1);
    }
}
