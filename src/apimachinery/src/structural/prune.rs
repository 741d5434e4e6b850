//! Removing what a schema does not name.
//!
//! Source: `apiserver/schema/pruning`.

use serde_json::{Map, Value};

use super::{Additional, Structural};
use crate::schema;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

impl Structural {
    /// Removes unknown fields; tells their paths, such as `spec.list[0].x`. At a resource's root
    /// `apiVersion`, `kind` and `metadata` are known.
    pub fn prune(&self, value: &mut Value, is_root: bool) -> Vec<String> {
        let mut unknown = Vec::new();
        self.prune_at(value, is_root, "", &mut unknown);
        unknown.sort();
        unknown
    }

    fn prune_at(&self, value: &mut Value, is_root: bool, path: &str, unknown: &mut Vec<String>) {
        let is_root = is_root || self.embedded;
        match value {
            Value::Object(map) => {
                let join = |name: &str| {
                    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
                };
                let own =
                    |name: &str| is_root && matches!(name, "apiVersion" | "kind" | "metadata");
                let known = |name: &str| {
                    own(name)
                        || self.preserve_unknown
                        || self.properties.contains_key(name)
                        || match &self.additional {
                            Some(Additional::Any(any)) => *any,
                            Some(Additional::Of(_)) => true,
                            None => false,
                        }
                };
                map.retain(|name, _| {
                    let known = known(name);
                    if !known {
                        unknown.push(join(name));
                    }
                    known
                });
                if self.embedded
                    && let Some(Value::Object(metadata)) = map.get_mut("metadata")
                {
                    prune_metadata(metadata, &join("metadata"), unknown);
                }
                for (name, value) in map.iter_mut().filter(|(name, _)| !own(name)) {
                    if let Some(schema) = self.child(name) {
                        schema.prune_at(value, false, &join(name), unknown);
                    }
                }
            }
            Value::Array(list) => {
                let nothing = Self::default();
                let schema = match &self.items {
                    Some(schema) => schema,
                    None if self.preserve_unknown => return,
                    None => &nothing,
                };
                for (index, item) in list.iter_mut().enumerate() {
                    schema.prune_at(item, false, &format!("{path}[{index}]"), unknown);
                }
            }
            _ => {}
        }
    }
}

/// Removes what the metadata of no object has.
fn prune_metadata(metadata: &mut Map<String, Value>, path: &str, unknown: &mut Vec<String>) {
    let schema = schema::builtin();
    let Some(of) = schema.named(OBJECT_META).map(|id| schema.get(id)) else { return };
    metadata.retain(|name, _| {
        let known = of.fields.iter().any(|field| field.name.as_ref() == name);
        if !known {
            unknown.push(format!("{path}.{name}"));
        }
        known
    });
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_named_goes() {
        let schema = Structural::parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "a": {"type": "string"},
                "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "string"}}}},
                "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {}}}},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"strict": {"type": "object"}}},
                "pod": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}}}}));
        let mut object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "other": 1,
            "spec": {"a": "1", "b": 2, "list": [{"x": "1", "y": 2}], "map": {"k": {"x": 1, "z": 1}},
                "free": {"any": {"thing": 1}, "strict": {"gone": 1}},
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "nick": "q"}, "status": {}}}});
        let unknown = schema.prune(&mut object, true);
        assert_eq!(
            unknown,
            [
                "other",
                "spec.b",
                "spec.free.strict.gone",
                "spec.list[0].y",
                "spec.map.k.z",
                "spec.pod.metadata.nick",
                "spec.pod.status"
            ]
        );
        assert_eq!(
            object,
            json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"},
                "spec": {"a": "1", "list": [{"x": "1"}], "map": {"k": {"x": 1}},
                    "free": {"any": {"thing": 1}, "strict": {}},
                    "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}}})
        );
    }
}
