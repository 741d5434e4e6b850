//! The patch of `kubectl apply`: what was applied last time and is not any more goes, what is applied now comes,
//! and what others set stays.
//!
//! Sources: `k8s.io/apimachinery/pkg/util/strategicpatch` (`CreateThreeWayMergePatch`) and
//! `pkg/util/jsonmergepatch` (`CreateThreeWayJSONMergePatch`).

use serde_json::{Map, Value, json};

use super::Error;
use super::order::{self, same};
use super::strategic::{DELETE_FROM, DIRECTIVE, ORDER, RETAIN_KEYS};
use crate::schema::{Field, Schema, Shape, Type, TypeId};

/// The strategic merge patch that takes `current` to what `modified` says, and takes away what `original`, applied
/// before, said besides; empty when there is nothing to change.
pub fn three_way(
    schema: &Schema,
    of: TypeId,
    original: &Value,
    modified: &Value,
    current: &Value,
) -> Result<Value, Error> {
    let of = Some(schema.get(of));
    let map = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let (original, modified, current) = (map(original), map(modified), map(current));
    let changes = Diff { schema, additions: true, deletions: false };
    let changes = changes.maps(&current, &modified, of, false)?;
    let deletions = Diff { schema, additions: false, deletions: true };
    let deletions = deletions.maps(&original, &modified, of, false)?;
    Ok(Value::Object(join(schema, deletions, changes, of)))
}

/// The same as a JSON merge patch, for objects without a schema.
pub fn three_way_json(original: &Value, modified: &Value, current: &Value) -> Value {
    let mut patch = nulls(&merge_patch(original, modified), true).unwrap_or_else(|| json!({}));
    let changes = nulls(&merge_patch(current, modified), false).unwrap_or_else(|| json!({}));
    overlay(&mut patch, changes);
    patch
}

/// The merge patch (RFC 7396) from one to the other.
fn merge_patch(from: &Value, to: &Value) -> Value {
    let (Some(from), Some(to)) = (from.as_object(), to.as_object()) else { return to.clone() };
    let mut patch = Map::new();
    for (key, new) in to {
        match from.get(key) {
            Some(old) if old == new => {}
            Some(old) if old.is_object() && new.is_object() => {
                patch.insert(key.clone(), merge_patch(old, new));
            }
            _ => {
                patch.insert(key.clone(), new.clone());
            }
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Only the deletions of a merge patch, or only the rest.
fn nulls(patch: &Value, keep: bool) -> Option<Value> {
    match patch {
        Value::Null => keep.then_some(Value::Null),
        Value::Object(map) => {
            let kept: Map<String, Value> = map
                .iter()
                .filter_map(|(key, value)| nulls(value, keep).map(|value| (key.clone(), value)))
                .collect();
            // An empty object is something to set, where it is not what is left of a larger one.
            (!kept.is_empty() || !keep && map.is_empty()).then_some(Value::Object(kept))
        }
        other => (!keep).then(|| other.clone()),
    }
}

fn overlay(patch: &mut Value, with: Value) {
    match (patch, with) {
        (Value::Object(patch), Value::Object(with)) => {
            for (key, value) in with {
                match patch.get_mut(&key) {
                    Some(before) => overlay(before, value),
                    None => {
                        patch.insert(key, value);
                    }
                }
            }
        }
        (patch, with) => *patch = with,
    }
}

/// What is looked for between two objects.
#[derive(Clone, Copy)]
struct Diff<'s> {
    schema: &'s Schema,
    /// Values that are new or other.
    additions: bool,
    /// Values that are not there any more.
    deletions: bool,
}

fn struct_of<'s>(schema: &'s Schema, field: Option<&'s Field>) -> Option<&'s Type> {
    match field.map(|f| &f.shape) {
        Some(Shape::Object(id)) => Some(schema.get(*id)),
        Some(Shape::List(item)) => match item.as_ref() {
            Shape::Object(id) => Some(schema.get(*id)),
            _ => None,
        },
        _ => None,
    }
}

impl Diff<'_> {
    fn maps(
        self,
        from: &Map<String, Value>,
        to: &Map<String, Value>,
        of: Option<&Type>,
        retain: bool,
    ) -> Result<Map<String, Value>, Error> {
        let mut patch = Map::new();
        for (key, new) in to {
            let field = of.and_then(|t| t.field(key));
            match (from.get(key), new) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    let rule = field.map(|f| f.patch);
                    if rule.is_some_and(|r| r.replace) {
                        if self.additions {
                            patch.insert(key.clone(), Value::Object(new.clone()));
                        }
                        continue;
                    }
                    let inner = struct_of(self.schema, field);
                    let retain = rule.is_some_and(|r| r.retain_keys);
                    let inner = self.maps(old, new, inner, retain)?;
                    if !inner.is_empty() {
                        patch.insert(key.clone(), Value::Object(inner));
                    }
                }
                (Some(Value::Array(old)), Value::Array(new))
                    if field.is_some_and(|f| f.patch.merge) =>
                {
                    self.lists(key, old, new, field, &mut patch)?;
                }
                (Some(old), new) if old == new => {}
                (_, new) if self.additions => {
                    patch.insert(key.clone(), new.clone());
                }
                _ => {}
            }
        }
        if self.deletions {
            for key in from.keys().filter(|key| !to.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
        }
        let more = || from.iter().any(|(key, value)| !value.is_null() && !to.contains_key(key));
        if retain && (!patch.is_empty() || more()) {
            let mut keys: Vec<&String> =
                to.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key).collect();
            keys.sort();
            if !keys.is_empty() {
                patch.insert(RETAIN_KEYS.into(), json!(keys));
            }
        }
        Ok(patch)
    }

    fn lists(
        self,
        name: &str,
        from: &[Value],
        to: &[Value],
        field: Option<&Field>,
        patch: &mut Map<String, Value>,
    ) -> Result<(), Error> {
        if from.is_empty() {
            if !to.is_empty() && self.additions {
                patch.insert(name.to_owned(), json!(to));
            }
            return Ok(());
        }
        let objects = from.first().is_some_and(Value::is_object);
        if from.iter().chain(to).any(|item| item.is_object() != objects) {
            return Err(Error::Inapplicable(format!(
                "list element types are not identical: {name}"
            )));
        }
        if !objects {
            self.scalars(name, from, to, patch);
            return Ok(());
        }
        let Some(key) = field.and_then(|f| f.merge_key.as_deref()) else {
            return Err(Error::Inapplicable(format!(
                "cannot merge lists without merge key for {name}"
            )));
        };
        if let Some(item) = from.iter().chain(to).find(|item| item.get(key).is_none()) {
            return Err(Error::Malformed(format!(
                "map: {item} does not contain declared merge key: {key}"
            )));
        }
        let retain = field.is_some_and(|f| f.patch.retain_keys);
        let inner = struct_of(self.schema, field);
        let mut items = Vec::new();
        for new in to {
            let old = from.iter().find(|old| same(old, new, Some(key)));
            match (old.and_then(Value::as_object), new.as_object()) {
                (Some(old), Some(map)) => {
                    let mut item = self.maps(old, map, inner, retain)?;
                    if !item.is_empty() {
                        item.insert(key.to_owned(), new[key].clone());
                        items.push(Value::Object(item));
                    }
                }
                _ if self.additions => items.push(new.clone()),
                _ => {}
            }
        }
        if self.deletions {
            let gone = from.iter().filter(|old| !to.iter().any(|new| same(old, new, Some(key))));
            items.extend(gone.map(|old| json!({key: old[key], DIRECTIVE: "delete"})));
        }
        let moved = from.len() != to.len()
            || from.iter().zip(to).any(|(old, new)| !same(old, new, Some(key)));
        if !items.is_empty() || self.additions && moved {
            let order: Vec<Value> = to.iter().map(|item| json!({key: item[key]})).collect();
            if !order.is_empty() {
                patch.insert(format!("{ORDER}{name}"), Value::Array(order));
            }
        }
        if !items.is_empty() {
            patch.insert(name.to_owned(), Value::Array(items));
        }
        Ok(())
    }

    fn scalars(self, name: &str, from: &[Value], to: &[Value], patch: &mut Map<String, Value>) {
        let new: Vec<&Value> =
            to.iter().filter(|item| self.additions && !from.contains(item)).collect();
        let gone: Vec<&Value> =
            from.iter().filter(|item| self.deletions && !to.contains(item)).collect();
        if (!gone.is_empty() || self.additions && from != to) && !to.is_empty() {
            patch.insert(format!("{ORDER}{name}"), json!(to));
        }
        if !new.is_empty() {
            patch.insert(name.to_owned(), json!(new));
        }
        if !gone.is_empty() {
            patch.insert(format!("{DELETE_FROM}{name}"), json!(gone));
        }
    }
}

/// One patch of two: that of the deletions, and over it that of the changes.
fn join(
    schema: &Schema,
    mut deletions: Map<String, Value>,
    changes: Map<String, Value>,
    of: Option<&Type>,
) -> Map<String, Value> {
    for (key, change) in changes {
        let field = of.and_then(|t| t.field(&key));
        let joined = match (deletions.remove(&key), change) {
            (Some(Value::Object(before)), Value::Object(change)) => {
                Value::Object(join(schema, before, change, struct_of(schema, field)))
            }
            (Some(Value::Array(before)), Value::Array(change))
                if field.is_some_and(|f| f.patch.merge) && !key.starts_with('$') =>
            {
                Value::Array(join_lists(schema, before, change, field))
            }
            (_, change) => change,
        };
        deletions.insert(key, joined);
    }
    deletions
}

fn join_lists(
    schema: &Schema,
    before: Vec<Value>,
    changes: Vec<Value>,
    field: Option<&Field>,
) -> Vec<Value> {
    let key = field.and_then(|f| f.merge_key.as_deref());
    let mut rest = before;
    let mut joined = Vec::new();
    for change in changes {
        match (rest.iter().position(|item| order::same(item, &change, key)), change) {
            (Some(at), Value::Object(change)) => {
                let Value::Object(item) = rest.remove(at) else { continue };
                let of = struct_of(schema, field);
                joined.push(Value::Object(join(schema, item, change, of)));
            }
            (Some(_), _) => {}
            (None, change) => joined.push(change),
        }
    }
    joined.extend(rest);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch::strategic;
    use crate::schema::builtin;

    fn pod(original: Value, modified: Value, current: Value) -> (Value, Value) {
        let of = builtin().kind("", "v1", "Pod").expect("a built-in kind");
        let wrap = |spec: Value| json!({"spec": spec});
        let patch =
            three_way(builtin(), of, &wrap(original), &wrap(modified), &wrap(current.clone()))
                .expect("it can be made");
        let applied =
            strategic(builtin(), of, wrap(current), patch.clone()).expect("it can be applied");
        (patch, applied["spec"].clone())
    }

    #[test]
    fn what_others_set_stays_and_what_was_applied_goes() {
        let applied = json!({"nodeSelector": {"a": "1", "b": "2"}, "hostname": "h"});
        let now = json!({"nodeSelector": {"a": "3"}});
        let live = json!({"nodeSelector": {"a": "1", "b": "2", "c": "4"}, "hostname": "h", "restartPolicy": "Always"});
        let (patch, result) = pod(applied, now, live);
        assert_eq!(
            patch,
            json!({"spec": {"nodeSelector": {"a": "3", "b": null}, "hostname": null}})
        );
        assert_eq!(
            result,
            json!({"nodeSelector": {"a": "3", "c": "4"}, "restartPolicy": "Always"})
        );
    }

    #[test]
    fn nothing_new_is_no_patch() {
        let spec =
            json!({"containers": [{"name": "a", "image": "i"}], "tolerations": [{"key": "k"}]});
        let live = json!({"containers": [{"name": "a", "image": "i", "imagePullPolicy": "Always"}],
            "tolerations": [{"key": "k"}], "dnsPolicy": "Default"});
        assert_eq!(pod(spec.clone(), spec, live).0, json!({}));
    }

    #[test]
    fn lists_are_patched_by_key() {
        let applied = json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]});
        let now = json!({"containers": [{"name": "c", "image": "1"}, {"name": "a", "image": "2"}]});
        let live = json!({"containers": [{"name": "a", "image": "1", "args": ["x"], "tty": true}, {"name": "b", "image": "1"}]});
        let (patch, result) = pod(applied, now, live);
        assert_eq!(
            patch["spec"],
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [
                {"name": "c", "image": "1"}, {"name": "a", "image": "2", "args": null}, {"name": "b", "$patch": "delete"}]})
        );
        assert_eq!(
            result,
            json!({"containers": [{"name": "c", "image": "1"}, {"name": "a", "image": "2", "tty": true}]})
        );
    }

    #[test]
    fn a_volume_changes_its_kind() {
        let applied = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let now = json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]});
        let live = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let (_, result) = pod(applied, now, live);
        assert_eq!(result, json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}]}));
    }

    #[test]
    fn sets_of_scalars_are_patched_by_value() {
        let of = builtin().kind("", "v1", "ConfigMap").expect("a built-in kind");
        let meta = |finalizers: &[&str]| json!({"metadata": {"finalizers": finalizers}});
        let patch = three_way(
            builtin(),
            of,
            &meta(&["a", "b"]),
            &meta(&["a", "c"]),
            &meta(&["a", "b", "d"]),
        );
        let patch = patch.expect("it can be made");
        assert_eq!(
            patch["metadata"],
            json!({"$setElementOrder/finalizers": ["a", "c"], "finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["b"]})
        );
        let applied =
            strategic(builtin(), of, meta(&["a", "b", "d"]), patch).expect("it can be applied");
        let mut left: Vec<&str> = applied["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        left.sort_unstable();
        assert_eq!(left, ["a", "c", "d"]);
    }

    #[test]
    fn objects_without_a_schema_are_merged_as_json() {
        let patch = three_way_json(
            &json!({"spec": {"a": 1, "gone": {"x": 1}, "same": 1}}),
            &json!({"spec": {"a": 2, "list": [1], "empty": {}, "same": 1}}),
            &json!({"spec": {"a": 1, "gone": {"x": 1}, "theirs": 5, "same": 1}, "status": {}}),
        );
        assert_eq!(patch, json!({"spec": {"a": 2, "gone": null, "list": [1], "empty": {}}}));
    }
}
