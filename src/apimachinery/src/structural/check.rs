//! The rules a schema itself must obey.
//!
//! Source: `apiserver/schema/validation.go`, `apis/apiextensions/validation/validation.go` and
//! `apiserver/schema/defaulting/validation.go` of apiextensions-apiserver.

use serde_json::{Map, Value, json};

use super::Structural;
use crate::cel::rules::Rules;
use crate::field::{Error, ErrorList, Path};

const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What is wrong with the `openAPIV3Schema` at `path`.
pub fn check(schema: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    plain(schema, path, &mut errors);
    // What cannot be brought into structural form at all is not looked at as such.
    if convertible(schema) {
        invariants(schema, Level::Root, path, &mut errors);
        completeness(schema, path, &mut errors);
    }
    if errors.is_empty() {
        defaults(schema, path, true, &mut errors);
    }
    errors.sort_by_key(ToString::to_string);
    errors
}

fn text<'v>(schema: &'v Value, key: &str) -> &'v str {
    schema.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(schema: &Value, key: &str) -> bool {
    schema.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn entries<'v>(schema: &'v Value, key: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    schema.get(key).and_then(Value::as_object).into_iter().flat_map(Map::iter)
}

fn items<'v>(schema: &'v Value, key: &str) -> impl Iterator<Item = (usize, &'v Value)> {
    schema.get(key).and_then(Value::as_array).into_iter().flatten().enumerate()
}

/// What OpenAPI v3 for CRDs does not have, anywhere in the schema.
fn plain(schema: &Value, path: &Path, errors: &mut ErrorList) {
    for key in [
        "id",
        "additionalItems",
        "patternProperties",
        "definitions",
        "dependencies",
        "$ref",
        "$schema",
    ] {
        if schema.get(key).is_some() {
            errors.push(Error::forbidden(&path.child(key), format!("{key} is not supported")));
        }
    }
    if schema.get("items").is_some_and(Value::is_array) {
        let detail = "items must be a schema object and not an array";
        errors.push(Error::forbidden(&path.child("items"), detail));
    }
    if schema["x-kubernetes-preserve-unknown-fields"] == false {
        let field = path.child("x-kubernetes-preserve-unknown-fields");
        errors.push(Error::invalid(&field, false, "must be true or undefined"));
    }
    let kind = text(schema, "type");
    if !kind.is_empty() && !TYPES.contains(&kind) {
        errors.push(Error::not_supported(&path.child("type"), kind, &TYPES));
    }
    if kind == "null" {
        let detail = "type cannot be set to null, use nullable as an alternative";
        errors.push(Error::forbidden(&path.child("type"), detail));
    }
    if flag(schema, "uniqueItems") {
        let detail =
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        errors.push(Error::forbidden(&path.child("uniqueItems"), detail));
    }
    if let Some(additional) = schema.get("additionalProperties")
        && entries(schema, "properties").next().is_some()
        && *additional != Value::Bool(true)
    {
        let detail = "additionalProperties and properties are mutual exclusive";
        errors.push(Error::forbidden(&path.child("additionalProperties"), detail));
    }
    list_type(schema, path, errors);
    map_type(schema, path, errors);
    for (key, below) in below(schema) {
        plain(below, &key.iter().fold(path.clone(), |p, step| step.on(&p)), errors);
    }
}

/// Whether there is a structural form, whatever is wrong with it.
fn convertible(schema: &Value) -> bool {
    const UNKNOWN: [&str; 7] = [
        "id",
        "$schema",
        "$ref",
        "patternProperties",
        "dependencies",
        "additionalItems",
        "definitions",
    ];
    !UNKNOWN.iter().any(|key| schema.get(key).is_some())
        && !schema["items"].is_array()
        && schema["x-kubernetes-preserve-unknown-fields"] != false
        && below(schema).into_iter().all(|(_, below)| convertible(below))
}

/// The formats in a schema that nobody checks.
pub fn unrecognized_formats(schema: &Value) -> Vec<&str> {
    let format = text(schema, "format");
    let known = match text(schema, "type") {
        "" | "string" => super::format::is_known(format),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    };
    let mut found = Vec::new();
    if !known && !format.is_empty() {
        found.push(format);
    }
    for (_, below) in below(schema) {
        found.extend(unrecognized_formats(below));
    }
    found
}

enum Step<'v> {
    Child(&'v str),
    Key(&'v str),
    Index(usize),
}

impl Step<'_> {
    fn on(&self, path: &Path) -> Path {
        match self {
            Self::Child(name) => path.child(name),
            Self::Key(name) => path.key(name),
            Self::Index(index) => path.index(*index),
        }
    }
}

/// Every schema directly below this one, with the way to it.
fn below(schema: &Value) -> Vec<(Vec<Step<'_>>, &Value)> {
    let mut all = Vec::new();
    for (name, schema) in entries(schema, "properties") {
        all.push((vec![Step::Child("properties"), Step::Key(name)], schema));
    }
    for key in ["additionalProperties", "items", "not"] {
        if let Some(schema) = schema.get(key).filter(|v| v.is_object()) {
            all.push((vec![Step::Child(key)], schema));
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, schema) in items(schema, key) {
            all.push((vec![Step::Child(key), Step::Index(index)], schema));
        }
    }
    all
}

fn list_type(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let field = path.child("x-kubernetes-list-type");
    let keys_field = path.child("x-kubernetes-list-map-keys");
    let keys: Vec<&str> =
        items(schema, "x-kubernetes-list-map-keys").filter_map(|(_, k)| k.as_str()).collect();
    let Some(kind) = schema.get("x-kubernetes-list-type").and_then(Value::as_str) else {
        if !keys.is_empty() {
            errors.push(Error::required(
                &field,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            ));
        }
        return;
    };
    match text(schema, "type") {
        "array" => {}
        "" => errors.push(Error::required(
            &path.child("type"),
            "must be array if x-kubernetes-list-type is specified",
        )),
        other => errors.push(Error::invalid(
            &path.child("type"),
            other,
            "must be array if x-kubernetes-list-type is specified",
        )),
    }
    let item = &schema["items"];
    match kind {
        "atomic" | "set" | "map" => {}
        other => {
            errors.push(Error::not_supported_of(&field, other, &["atomic", "set", "map"]));
        }
    }
    if kind != "map" {
        if !keys.is_empty() {
            errors.push(Error::invalid(
                &field,
                kind,
                "must be map if x-kubernetes-list-map-keys is non-empty",
            ));
        }
        if kind == "set" && item.is_object() {
            set_items(item, path, errors);
        }
        return;
    }
    if keys.is_empty() {
        errors.push(Error::required(
            &keys_field,
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    if !item.is_object() {
        errors.push(Error::required(
            &path.child("items"),
            "must have a schema if x-kubernetes-list-type is map",
        ));
        return;
    }
    if text(item, "type") != "object" {
        errors.push(Error::invalid(
            &path.child("items").child("type"),
            text(item, "type"),
            "must be object if parent array's x-kubernetes-list-type is map",
        ));
        return;
    }
    if flag(item, "nullable") {
        errors.push(Error::forbidden(
            &path.child("items").child("nullable"),
            "cannot be nullable when x-kubernetes-list-type is map",
        ));
    }
    map_keys(&keys, item, path, errors);
}

fn set_items(item: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("items");
    if flag(item, "nullable") {
        errors.push(Error::forbidden(
            &path.child("nullable"),
            "cannot be nullable when x-kubernetes-list-type is set",
        ));
    }
    match text(item, "type") {
        "array"
            if text(item, "x-kubernetes-list-type") != "atomic"
                && item.get("x-kubernetes-list-type").is_some() =>
        {
            errors.push(Error::invalid(
                &path.child("x-kubernetes-list-type"),
                text(item, "x-kubernetes-list-type"),
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ));
        }
        "object" if text(item, "x-kubernetes-map-type") != "atomic" => errors.push(Error::invalid(
            &path.child("x-kubernetes-map-type"),
            item["x-kubernetes-map-type"].clone(),
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        )),
        _ => {}
    }
}

fn map_keys(keys: &[&str], item: &Value, path: &Path, errors: &mut ErrorList) {
    let keys_field = path.child("x-kubernetes-list-map-keys");
    let properties = path.child("items").child("properties");
    let required: Vec<&str> = items(item, "required").filter_map(|(_, v)| v.as_str()).collect();
    for (index, key) in keys.iter().enumerate() {
        if keys[..index].contains(key) {
            let detail = "must not contain duplicate entries";
            errors.push(Error::invalid(&keys_field, keys, detail));
            continue;
        }
        let Some(property) = item["properties"].get(*key) else {
            let detail = "entries must all be names of item properties";
            errors.push(Error::invalid(&keys_field, keys, detail));
            continue;
        };
        if matches!(text(property, "type"), "array" | "object") {
            errors.push(Error::invalid(
                &properties.key(key).child("type"),
                text(property, "type"),
                "must be a scalar type if parent array's x-kubernetes-list-type is map",
            ));
        }
        if flag(property, "nullable") {
            errors.push(Error::forbidden(
                &properties.key(key).child("nullable"),
                "this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
            ));
        }
        if property.get("default").is_none() && !required.contains(key) {
            errors.push(Error::required(
                &properties.key(key).child("default"),
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ));
        }
    }
}

fn map_type(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(kind) = schema.get("x-kubernetes-map-type").and_then(Value::as_str) else { return };
    if !matches!(kind, "atomic" | "granular") {
        errors.push(Error::not_supported(
            &path.child("x-kubernetes-map-type"),
            kind,
            &["atomic", "granular"],
        ));
    }
    match text(schema, "type") {
        "object" => {}
        "" => errors.push(Error::required(
            &path.child("type"),
            "must be object if x-kubernetes-map-type is specified",
        )),
        other => errors.push(Error::invalid(
            &path.child("type"),
            other,
            "must be object if x-kubernetes-map-type is specified",
        )),
    }
}

fn int_or_string(schema: &Value) -> bool {
    *schema == json!([{"type": "integer"}, {"type": "string"}])
}

fn invariants(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    if kind == "array" && !schema["items"].is_object() {
        errors.push(Error::required(&path.child("items"), "must be specified"));
    }
    if schema["items"].is_object() {
        invariants(&schema["items"], Level::Item, &path.child("items"), errors);
    }
    for (name, below) in entries(schema, "properties") {
        let path = path.child("properties").key(name);
        if name == "metadata"
            && (level == Level::Root || flag(schema, "x-kubernetes-embedded-resource"))
        {
            metadata(below, level, &path, errors);
            continue;
        }
        invariants(below, Level::Field, &path, errors);
    }
    if let Some(additional) = schema.get("additionalProperties") {
        let path = path.child("additionalProperties");
        if level == Level::Root {
            errors.push(Error::forbidden(&path, "must not be used at the root"));
        }
        if additional.is_object() {
            invariants(additional, Level::Field, &path, errors);
        }
    }
    let (either, preserve, embedded) = (
        flag(schema, "x-kubernetes-int-or-string"),
        flag(schema, "x-kubernetes-preserve-unknown-fields"),
        flag(schema, "x-kubernetes-embedded-resource"),
    );
    let why = "must be false if x-kubernetes-int-or-string is true";
    if either && preserve {
        errors.push(Error::invalid(&path.child("x-kubernetes-preserve-unknown-fields"), true, why));
    }
    if either && embedded {
        errors.push(Error::invalid(&path.child("x-kubernetes-embedded-resource"), true, why));
    }
    value_validation(schema, path, errors);
    kind_rules(schema, level, path, errors);
    for name in ["kind", "apiVersion"] {
        let found = &schema["properties"][name];
        if found.is_object()
            && (level == Level::Root || embedded)
            && text(found, "type") != "string"
        {
            let path = path.child("properties").key(name).child("type");
            errors.push(Error::invalid(&path, text(found, "type"), "must be string"));
        }
    }
    if embedded && !preserve && entries(schema, "properties").next().is_none() {
        errors.push(Error::required(
            &path.child("properties"),
            "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ));
    }
}

fn kind_rules(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    let kind = text(schema, "type");
    let field = path.child("type");
    let embedded = flag(schema, "x-kubernetes-embedded-resource");
    let free = flag(schema, "x-kubernetes-int-or-string")
        || flag(schema, "x-kubernetes-preserve-unknown-fields");
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        errors.push(if kind.is_empty() {
            Error::required(&field, detail)
        } else {
            Error::invalid(&field, kind, detail)
        });
    } else if kind.is_empty() && !free {
        errors.push(Error::required(
            &field,
            match level {
                Level::Root => "must not be empty at the root",
                Level::Item => "must not be empty for specified array items",
                Level::Field => "must not be empty for specified object fields",
            },
        ));
    }
    if embedded && schema.get("additionalProperties").is_some() {
        let detail = "must not be used if x-kubernetes-embedded-resource is set";
        errors.push(Error::forbidden(&path.child("additionalProperties"), detail));
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        errors.push(Error::invalid(&field, kind, "must be object at the root"));
    }
}

/// At the root only name and generateName may be restricted.
fn metadata(schema: &Value, level: Level, path: &Path, errors: &mut ErrorList) {
    if text(schema, "type") != "object" {
        errors.push(Error::invalid(&path.child("type"), text(schema, "type"), "must be object"));
    }
    let allowed = |key: &String| match key.as_str() {
        "type" | "description" => true,
        "properties" => entries(schema, "properties")
            .all(|(name, _)| matches!(name.as_str(), "name" | "generateName")),
        _ => false,
    };
    if level == Level::Root && !schema.as_object().is_none_or(|map| map.keys().all(allowed)) {
        errors.push(Error::forbidden(
            path,
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ));
    }
}

fn value_validation(schema: &Value, path: &Path, errors: &mut ErrorList) {
    if !int_or_string(&schema["anyOf"]) {
        for (index, below) in items(schema, "anyOf") {
            nested(below, false, &path.child("anyOf").index(index), errors);
        }
    }
    for (index, below) in items(schema, "allOf") {
        let skip = index == 0 && int_or_string(&below["anyOf"]);
        nested(below, skip, &path.child("allOf").index(index), errors);
    }
    for (index, below) in items(schema, "oneOf") {
        nested(below, false, &path.child("oneOf").index(index), errors);
    }
    if schema["not"].is_object() {
        nested(&schema["not"], false, &path.child("not"), errors);
    }
    let pattern = text(schema, "pattern");
    if !pattern.is_empty()
        && let Err(error) = crate::pattern::compile(pattern)
    {
        let detail = format!("must be a valid regular expression, but isn't: {error}");
        errors.push(Error::invalid(&path.child("pattern"), pattern, detail));
    }
}

fn nested(schema: &Value, skip_any_of: bool, path: &Path, errors: &mut ErrorList) {
    const FORBIDDEN: [(&str, &str); 13] = [
        ("type", "must be empty to be structural"),
        ("additionalProperties", "must be undefined to be structural"),
        ("default", "must be undefined to be structural"),
        ("title", "must be empty to be structural"),
        ("description", "must be empty to be structural"),
        ("nullable", "must be false to be structural"),
        ("x-kubernetes-preserve-unknown-fields", "must be false to be structural"),
        ("x-kubernetes-embedded-resource", "must be false to be structural"),
        ("x-kubernetes-int-or-string", "must be false to be structural"),
        ("x-kubernetes-list-map-keys", "must be empty to be structural"),
        ("x-kubernetes-list-type", "must be undefined to be structural"),
        ("x-kubernetes-map-type", "must be undefined to be structural"),
        ("x-kubernetes-validations", "must be empty to be structural"),
    ];
    if skip_any_of {
        let mut without = schema.clone();
        if let Some(map) = without.as_object_mut() {
            map.remove("anyOf");
        }
        value_validation(&without, path, errors);
    } else {
        value_validation(schema, path, errors);
    }
    if schema["items"].is_object() {
        nested(&schema["items"], false, &path.child("items"), errors);
    }
    for (name, below) in entries(schema, "properties") {
        let path = path.child("properties").key(name);
        if name == "metadata" {
            errors.push(Error::forbidden(&path, "must not be specified in a nested context"));
        }
        nested(below, false, &path, errors);
    }
    for (key, why) in FORBIDDEN {
        let set = match schema.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(_) => true,
        };
        if set {
            errors.push(Error::forbidden(&path.child(key), why));
        }
    }
}

/// What a restriction below `allOf` and its like names must exist in the schema proper.
fn completeness(schema: &Value, path: &Path, errors: &mut ErrorList) {
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, below) in items(schema, key) {
            complete(below, schema, path, &path.child(key).index(index), errors);
        }
    }
    if schema["not"].is_object() {
        complete(&schema["not"], schema, path, &path.child("not"), errors);
    }
}

fn complete(part: &Value, proper: &Value, at: &Path, path: &Path, errors: &mut ErrorList) {
    let why = |place: &Path| format!("because it is defined in {place}");
    for (name, below) in entries(part, "properties") {
        let place = path.child("properties").key(name);
        if let Some(found) = proper["properties"].get(name) {
            complete(below, found, &at.child("properties").key(name), &place, errors);
        } else {
            let field = at.child("properties").key(name);
            errors.push(Error::required(&field, &why(&place)));
        }
    }
    if part["items"].is_object() {
        let place = path.child("items");
        if proper["items"].is_object() {
            complete(&part["items"], &proper["items"], &at.child("items"), &place, errors);
        } else {
            errors.push(Error::required(&at.child("items"), &why(&place)));
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, below) in items(part, key) {
            complete(below, proper, at, &path.child(key).index(index), errors);
        }
    }
    if part["not"].is_object() {
        complete(&part["not"], proper, at, &path.child("not"), errors);
    }
}

/// Defaults must be valid themselves.
fn defaults(schema: &Value, path: &Path, is_root: bool, errors: &mut ErrorList) {
    if let Some(default) = schema.get("default").filter(|v| !v.is_null()) {
        let structural = Structural::parse(schema);
        let field = path.child("default");
        let mut pruned = default.clone();
        structural.prune(&mut pruned, structural.embedded);
        if pruned != *default {
            errors.push(Error::invalid(&field, default.clone(), "must not have unknown fields"));
        }
        // What is absent in a default gets its own default before it is validated.
        structural.set_defaults(&mut pruned);
        let mut found = structural.validate_default(&pruned, &field);
        if found.is_empty() {
            found = Rules::compile(&structural).validate(&structural, &pruned, None);
            for error in &mut found {
                error.field = match error.field.as_str() {
                    "" | "<nil>" => field.clone(),
                    below => field.child(below),
                };
            }
        }
        errors.extend(found);
    }
    if let Some(additional) = schema.get("additionalProperties").filter(|v| v.is_object()) {
        forbid_defaults(additional, &path.child("additionalProperties"), errors);
    }
    if schema["items"].is_object() {
        defaults(&schema["items"], &path.child("items"), false, errors);
    }
    for (name, below) in entries(schema, "properties") {
        if is_root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
            continue;
        }
        defaults(below, &path.child("properties").key(name), false, errors);
    }
}

/// The values of a map have no default of their own; what is below them may.
fn forbid_defaults(schema: &Value, path: &Path, errors: &mut ErrorList) {
    let mut without = schema.clone();
    if let Some(map) = without.as_object_mut() {
        map.remove("default");
    }
    defaults(&without, path, false, errors);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(schema: Value) -> Vec<String> {
        let root = json!({"type": "object", "properties": {"spec": schema}});
        check(&root, &Path::new("s")).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn broken_schemas_are_told_in_upstreams_words() {
        let cases = [
            (
                json!({"properties": {}}),
                "s.properties[spec].type: Required value: must not be empty for specified object fields",
            ),
            (
                json!({"type": "array"}),
                "s.properties[spec].items: Required value: must be specified",
            ),
            (
                json!({"type": "array", "items": {}}),
                "s.properties[spec].items.type: Required value: must not be empty for specified array items",
            ),
            (
                json!({"type": "text"}),
                r#"s.properties[spec].type: Unsupported value: "text": supported values: "array", "boolean", "integer", "number", "object", "string""#,
            ),
            (
                json!({"type": "object", "$ref": "x"}),
                "s.properties[spec].$ref: Forbidden: $ref is not supported",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
                "s.properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ),
            (
                json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
                "s.properties[spec].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ),
            (
                json!({"type": "string", "anyOf": [{"type": "string"}]}),
                "s.properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"type": "array", "items": [{"type": "string"}]}),
                "s.properties[spec].items: Forbidden: items must be a schema object and not an array",
            ),
            (
                json!({"x-kubernetes-preserve-unknown-fields": false}),
                "s.properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
            ),
            (
                json!({"type": "object", "x-kubernetes-list-type": "set"}),
                r#"s.properties[spec].type: Invalid value: "object": must be array if x-kubernetes-list-type is specified"#,
            ),
            (
                json!({"type": "array", "items": {"type": "object"}, "x-kubernetes-list-type": "map"}),
                "s.properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
            ),
            (
                json!({"type": "object", "x-kubernetes-embedded-resource": true}),
                "s.properties[spec].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            ),
            (
                json!({"type": "string", "default": 1}),
                r#"s.properties[spec].default: Invalid value: "integer":  in body must be of type string: "integer""#,
            ),
            (
                json!({"type": "object", "default": {"x": 1}}),
                r#"s.properties[spec].default: Invalid value: {"x":1}: must not have unknown fields"#,
            ),
        ];
        for (schema, want) in cases {
            let told = told(schema.clone());
            assert_eq!(told, [want], "{schema}");
        }
        let root = check(&json!({}), &Path::new("s"));
        assert_eq!(root[0].to_string(), "s.type: Required value: must not be empty at the root");
        let root = json!({"type": "object", "oneOf": [{"properties": {"x": {}}}]});
        let told = check(&root, &Path::new("s"));
        assert_eq!(
            told[0].to_string(),
            "s.properties[x]: Required value: because it is defined in s.oneOf[0].properties[x]"
        );
    }

    #[test]
    fn defaults_keep_the_rules() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"a": {"type": "string"}}, "default": {"a": "y"},
            "x-kubernetes-validations": [{"rule": "self.a == 'x'"}]}}});
        let mut errors = ErrorList::new();
        defaults(&schema, &Path::new("s"), true, &mut errors);
        let told: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["s.properties[spec].default: Invalid value: failed rule: self.a == 'x'"]);
    }

    #[test]
    fn formats_that_nobody_checks_are_known() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "string", "format": "date-time"}, "b": {"type": "string", "format": "colour"},
            "c": {"type": "integer", "format": "int64"}, "d": {"type": "integer", "format": "int16"},
            "e": {"type": "array", "format": "x", "items": {"format": "int-or-string"}},
            "f": {"type": "string", "format": "k8s-short-name"}}});
        assert_eq!(unrecognized_formats(&schema), ["colour", "int16", "x", "int-or-string"]);
    }

    #[test]
    fn good_schemas_pass() {
        for schema in [
            json!({"type": "object", "properties": {"a": {"type": "string", "default": "x"}}, "default": {}}),
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"enum": [1]}]}),
            json!({"x-kubernetes-preserve-unknown-fields": true}),
            // Upstream looks for what restrictions speak of at the root alone.
            json!({"type": "object", "oneOf": [{"properties": {"x": {}}}]}),
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"],
                "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}}),
        ] {
            assert_eq!(told(schema.clone()), [""; 0], "{schema}");
        }
    }
}
