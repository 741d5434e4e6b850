//! OpenAPI definitions of custom kinds.
//!
//! Source: `pkg/controller/openapi/builder` of apiextensions-apiserver.

use apimachinery::structural::Names;
use serde_json::{Value, json};

use super::Custom;
use crate::resource::Resource;

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
    add_type(&mut schema, resource, &resource.kind);
    let properties = &mut schema["properties"];
    if !properties.is_object() {
        *properties = json!({});
    }
    properties["apiVersion"] = text(
        "APIVersion defines the versioned schema of this representation of an object. Servers should convert recognized schemas to the latest internal value, and may reject unrecognized values. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#resources",
    );
    properties["kind"] = text(
        "Kind is a string value representing the REST resource this object represents. Servers may infer this from the endpoint the client submits requests to. Cannot be updated. In CamelCase. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#types-kinds",
    );
    properties["metadata"] = meta;
    schema
}

/// The definition of a list of them.
pub fn list(resource: &Resource, item: Value, meta: Value) -> Value {
    let mut schema = json!({
        "type": "object",
        "required": ["items"],
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": meta,
            "items": {"type": "array", "items": item},
        },
    });
    add_type(&mut schema, resource, &resource.list_kind);
    schema
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
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
