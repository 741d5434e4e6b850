//! OpenAPI definitions of custom kinds.
//!
//! Source: `pkg/controller/openapi/builder` of apiextensions-apiserver.

use apimachinery::structural::Names;
use serde_json::{Value, json};

use super::Custom;
use crate::resource::Resource;

const API_VERSION: &str = "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const KIND: &str = "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const OBJECT_META: &str = "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
const LIST_META: &str = "Standard list metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";
const EMBEDDED_API_VERSION: &str = "apiVersion defines the versioned schema of this representation of an object. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources";
const EMBEDDED_KIND: &str = "kind is a string value representing the type of this object. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds";

/// The name of the definition of a resource's kind.
pub fn definition_name(resource: &Resource, kind: &str) -> String {
    Names { group: &resource.group, version: &resource.version, kind }.definition()
}

/// The definition of a custom kind. `meta` refers to `ObjectMeta`; `plain` leaves out what OpenAPI v2
/// does not have.
pub fn definition(resource: &Resource, custom: &Custom, meta: Value, plain: bool) -> Value {
    let mut schema = custom.source.clone();
    if !schema.is_object() || plain && custom.schema.preserve_unknown {
        // To a client that reads properties, any that is not among them would be unknown.
        schema = json!({"type": "object"});
        add_type(&mut schema, resource, &resource.kind);
        return schema;
    }
    if plain {
        simplify(&mut schema);
    }
    embed(&mut schema, &meta, plain);
    add_type(&mut schema, resource, &resource.kind);
    let properties = &mut schema["properties"];
    if !properties.is_object() {
        *properties = json!({});
    }
    properties["apiVersion"] = text(API_VERSION);
    properties["kind"] = text(KIND);
    properties["metadata"] = described(meta, OBJECT_META);
    schema
}

/// The definition of a list of them.
pub fn list(resource: &Resource, item: Value, meta: Value) -> Value {
    let conventions =
        "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";
    let items = format!("List of {}. More info: {conventions}", resource.plural);
    let mut schema = json!({
        "type": "object",
        "required": ["items"],
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "properties": {
            "apiVersion": text(API_VERSION),
            "kind": text(KIND),
            "metadata": described(meta, LIST_META),
            "items": {"type": "array", "items": item, "description": items},
        },
    });
    add_type(&mut schema, resource, &resource.list_kind);
    schema
}

/// Objects within objects have the properties that every object has, described in words of their own.
fn embed(schema: &mut Value, meta: &Value, plain: bool) {
    let Some(map) = schema.as_object_mut() else { return };
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(|below| embed(below, meta, plain));
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(key) {
            embed(below, meta, plain);
        }
    }
    let is = |key: &str| map.get(key) == Some(&Value::Bool(true));
    // As for the whole object: clients of OpenAPI v2 would take what is not among properties for unknown.
    let open = plain && is("x-kubernetes-preserve-unknown-fields");
    if !is("x-kubernetes-embedded-resource") || open {
        return;
    }
    let properties = &mut schema["properties"];
    if !properties.is_object() {
        *properties = json!({});
    }
    properties["apiVersion"] = text(EMBEDDED_API_VERSION);
    properties["kind"] = text(EMBEDDED_KIND);
    properties["metadata"] = described(meta.clone(), OBJECT_META);
    let required = &mut schema["required"];
    if !required.is_array() {
        *required = json!([]);
    }
    for key in ["kind", "apiVersion"] {
        let required = required.as_array_mut().filter(|all| all.iter().all(|name| name != key));
        if let Some(all) = required {
            all.push(key.into());
        }
    }
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

/// A reference, with what it is for.
fn described(mut reference: Value, description: &str) -> Value {
    reference["description"] = description.into();
    reference
}

fn add_type(schema: &mut Value, resource: &Resource, kind: &str) {
    schema["x-kubernetes-group-version-kind"] =
        json!([{"group": resource.group, "version": resource.version, "kind": kind}]);
}

/// What OpenAPI v2 and the clients that read it cannot say is left out.
fn simplify(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for key in ["oneOf", "anyOf", "allOf", "not", "default"] {
        map.remove(key);
    }
    let flag =
        |map: &serde_json::Map<String, Value>, key: &str| map.get(key) == Some(&Value::Bool(true));
    if flag(map, "x-kubernetes-preserve-unknown-fields") {
        map.retain(|key, _| key == "description" || key.starts_with("x-kubernetes-"));
        return;
    }
    if map.remove("nullable") == Some(Value::Bool(true)) {
        map.retain(|key, _| !matches!(key.as_str(), "type" | "items" | "properties"));
    }
    if flag(map, "x-kubernetes-int-or-string") {
        map.remove("type");
    }
    for key in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(key) {
            simplify(below);
        }
    }
    if let Some(properties) = map.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(simplify);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_within_objects_are_described() {
        let meta = json!({"$ref": "#/meta"});
        let mut schema = json!({"type": "object", "properties": {
            "all": {"type": "array", "items": {"type": "object", "x-kubernetes-embedded-resource": true, "required": ["kind", "a"]}},
            "open": {"x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}}});
        let mut plain = schema.clone();
        embed(&mut schema, &meta, false);
        embed(&mut plain, &meta, true);
        let one = &schema["properties"]["all"]["items"];
        assert_eq!(one["required"], json!(["kind", "a", "apiVersion"]));
        assert_eq!(one["properties"]["metadata"]["$ref"], "#/meta");
        assert_eq!(one["properties"]["kind"]["description"], EMBEDDED_KIND);
        assert_eq!(schema["properties"]["open"]["required"], json!(["kind", "apiVersion"]));
        assert_eq!(plain["properties"]["all"], schema["properties"]["all"]);
        assert_eq!(plain["properties"]["open"].get("properties"), None);
    }

    #[test]
    fn version_two_says_less() {
        let mut schema = json!({"type": "object", "oneOf": [], "properties": {
            "a": {"type": "string", "nullable": true}, "b": {"x-kubernetes-int-or-string": true, "anyOf": []},
            "c": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "description": "d"}}});
        simplify(&mut schema);
        assert_eq!(
            schema,
            json!({"type": "object", "properties": {"a": {}, "b": {"x-kubernetes-int-or-string": true},
                "c": {"x-kubernetes-preserve-unknown-fields": true, "description": "d"}}})
        );
    }
}
