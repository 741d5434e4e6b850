//! Strategic merge as kustomize has it: what is new comes first in a list, and a list's items keep the patch's order.

use serde_json::{Map, Value};

use apimachinery::schema::{Field, Schema, Shape, Type, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Puts `patch` into `base`, of a type of the API or of an unknown one, whose lists are replaced. `None` when the
/// patch deletes the object.
pub fn strategic(schema: &Schema, of: Option<TypeId>, base: Value, patch: &Value) -> Option<Value> {
    Merge { schema }.value(of.map(|id| schema.get(id)), base, patch)
}

struct Merge<'s> {
    schema: &'s Schema,
}

impl<'s> Merge<'s> {
    fn value(&self, of: Option<&'s Type>, base: Value, patch: &Value) -> Option<Value> {
        match (base, patch) {
            (Value::Object(base), Value::Object(patch)) => match directive(patch) {
                Some("delete") => None,
                Some("replace") => clean(&Value::Object(patch.clone())),
                _ => Some(Value::Object(self.maps(of, base, patch))),
            },
            _ => clean(patch),
        }
    }

    fn maps(
        &self,
        of: Option<&'s Type>,
        mut base: Map<String, Value>,
        patch: &Map<String, Value>,
    ) -> Map<String, Value> {
        if let Some(Value::Array(keep)) = patch.get(RETAIN) {
            base.retain(|key, _| keep.iter().any(|kept| kept == key));
        }
        for (key, value) in patch {
            if let Some(field) = key.strip_prefix(DELETE_FROM) {
                if let (Some(Value::Array(items)), Value::Array(gone)) =
                    (base.get_mut(field), value)
                {
                    items.retain(|item| !gone.contains(item));
                }
                continue;
            }
            if key == DIRECTIVE || key == RETAIN || key.starts_with(ORDER) {
                continue;
            }
            if value.is_null() {
                base.remove(key);
                continue;
            }
            let field = of.and_then(|of| of.field(key));
            let merged = match (base.remove(key), value) {
                (Some(Value::Array(items)), Value::Array(new)) => {
                    self.lists(field, items, new).map(Value::Array)
                }
                (Some(old), new) => {
                    self.value(field.and_then(|field| self.object(&field.shape)), old, new)
                }
                (None, new) => clean(new),
            };
            if let Some(merged) = merged {
                base.insert(key.clone(), merged);
            }
        }
        base
    }

    fn object(&self, shape: &Shape) -> Option<&'s Type> {
        match shape {
            Shape::Object(id) => Some(self.schema.get(*id)),
            _ => None,
        }
    }

    fn lists(
        &self,
        field: Option<&'s Field>,
        base: Vec<Value>,
        patch: &[Value],
    ) -> Option<Vec<Value>> {
        if patch.iter().any(|item| item.as_object().and_then(directive) == Some("replace")) {
            let rest =
                patch.iter().filter(|item| item.as_object().and_then(directive) != Some("replace"));
            return Some(rest.filter_map(clean).collect());
        }
        let Some(field) = field.filter(|field| field.patch.merge) else {
            return Some(patch.iter().filter_map(clean).collect());
        };
        let keys: Vec<&str> = if field.list_map_keys.is_empty() {
            field.merge_key.iter().map(AsRef::as_ref).collect()
        } else {
            field.list_map_keys.iter().map(AsRef::as_ref).collect()
        };
        if keys.is_empty() {
            let mut all = patch.to_vec();
            all.extend(base.into_iter().filter(|item| !patch.contains(item)));
            return Some(all);
        }
        let of = match &field.shape {
            Shape::List(item) => self.object(item),
            _ => None,
        };
        let mut rest: Vec<Option<Value>> = base.into_iter().map(Some).collect();
        let mut merged = Vec::new();
        for item in patch {
            let same = rest
                .iter_mut()
                .find(|old| old.as_ref().is_some_and(|old| alike(of, old, item, &keys)));
            merged.extend(match same.and_then(Option::take) {
                Some(old) => self.value(of, old, item),
                None => clean(item),
            });
        }
        merged.extend(rest.into_iter().flatten());
        Some(merged)
    }
}

/// Whether two items of a list are the same one. A key that one of them leaves out is what it is by default.
fn alike(of: Option<&Type>, a: &Value, b: &Value, keys: &[&str]) -> bool {
    let of = |item: &Value, key: &str| match item.get(key) {
        Some(value) => Some(value.clone()),
        None if key == "protocol" => Some("TCP".into()),
        None => of.and_then(|of| of.field(key)).and_then(|field| field.default.clone()),
    };
    keys.iter().all(|key| of(a, key) == of(b, key)) && keys.iter().any(|key| a.get(key).is_some())
}

fn directive(map: &Map<String, Value>) -> Option<&str> {
    map.get(DIRECTIVE).and_then(Value::as_str)
}

/// A patch's value where there is nothing to be patched: without what only directs.
fn clean(value: &Value) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(map) => {
            if directive(map) == Some("delete") {
                return None;
            }
            let kept = map.iter().filter(|(key, _)| !key.starts_with('$'));
            Some(Value::Object(
                kept.filter_map(|(key, value)| Some((key.clone(), clean(value)?))).collect(),
            ))
        }
        Value::Array(items) => Some(Value::Array(items.iter().filter_map(clean).collect())),
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_merged_with_what_is_new_in_front() {
        let schema = apimachinery::schema::builtin();
        let pod = schema.kind("", "v1", "Pod");
        let base = json!({"spec": {"containers": [{"name": "a", "args": ["1"], "env": [{"name": "A", "value": "1"}]}, {"name": "b"}],
            "tolerations": [{"key": "x"}], "hostNetwork": true}});
        let cases = [
            (
                json!({"spec": {"containers": [{"name": "c"}, {"name": "a", "env": [{"name": "B", "value": "2"}]}]}}),
                json!([{"name": "c"}, {"name": "a", "args": ["1"], "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "1"}]}, {"name": "b"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
                json!([{"name": "b"}]),
            ),
            (
                json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}),
                json!([{"name": "z"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": null}]}}),
                json!([{"name": "a", "env": [{"name": "A", "value": "1"}]}, {"name": "b"}]),
            ),
        ];
        for (patch, want) in cases {
            let merged = strategic(schema, pod, base.clone(), &patch).unwrap();
            assert_eq!(merged["spec"]["containers"], want, "{patch}");
            assert_eq!(merged["spec"]["hostNetwork"], true);
        }
        assert_eq!(strategic(schema, pod, base.clone(), &json!({"$patch": "delete"})), None);
        // What is of no known type has no keys to merge by.
        let merged = strategic(
            schema,
            None,
            json!({"a": [1], "b": {"c": 1}}),
            &json!({"a": [2], "b": {"d": 2}}),
        );
        assert_eq!(merged, Some(json!({"a": [2], "b": {"c": 1, "d": 2}})));
    }
}
