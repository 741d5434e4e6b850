//! Strategic merge patch: lists are merged by key as the schema says, and directives (`$patch`,
//! `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`) steer the merge.

use serde_json::{Map, Value};

use super::{Error, order};
use crate::schema::{Field, Schema, Shape, Type, TypeId};

pub(super) const DIRECTIVE: &str = "$patch";
pub(super) const RETAIN_KEYS: &str = "$retainKeys";
pub(super) const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
pub(super) const ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of type `of`.
pub fn strategic(
    schema: &Schema,
    of: TypeId,
    original: Value,
    patch: Value,
) -> Result<Value, Error> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Error::Malformed("invalid JSON document".into()));
    };
    let merge = Merge { schema };
    merge.maps(original, patch, Some(schema.get(of))).map(Value::Object)
}

struct Merge<'s> {
    schema: &'s Schema,
}

/// How a list field merges: by key, as a set of scalars, or not at all.
struct ListRule<'s> {
    merges: bool,
    key: Option<&'s str>,
    items: Option<&'s Type>,
}

fn bad_directive(directive: &Value, map: &Map<String, Value>) -> Error {
    Error::Malformed(format!(
        "unknown patch type: {} in map: {}",
        directive.as_str().map_or_else(|| directive.to_string(), str::to_owned),
        Value::Object(map.clone())
    ))
}

fn no_merge_key(item: &Value, key: &str) -> Error {
    Error::Malformed(format!("map: {item} does not contain declared merge key: {key}"))
}

/// What a patch value that meets nothing becomes: directives and nulls are dropped; `None` where it
/// only asked for a deletion.
fn bare(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) => {
            if map.get(DIRECTIVE).is_some_and(|d| d == "delete") {
                return None;
            }
            let kept = map
                .into_iter()
                .filter(|(k, v)| {
                    !(v.is_null()
                        || k == DIRECTIVE
                        || k == RETAIN_KEYS
                        || k.starts_with(DELETE_FROM)
                        || k.starts_with(ORDER))
                })
                .filter_map(|(k, v)| bare(v).map(|v| (k, v)))
                .collect();
            Some(Value::Object(kept))
        }
        Value::Array(list) => {
            // An element that only says `$patch: replace` speaks of the list, which is not there.
            let only_replaces = |item: &Value| {
                item.as_object().is_some_and(|map| {
                    map.len() == 1 && map.get(DIRECTIVE).is_some_and(|d| d == "replace")
                })
            };
            let items = list.into_iter().filter(|item| !only_replaces(item));
            Some(Value::Array(items.filter_map(bare).collect()))
        }
        other => Some(other),
    }
}

impl<'s> Merge<'s> {
    fn object(&self, shape: &Shape) -> Option<&'s Type> {
        match shape {
            Shape::Object(id) => Some(self.schema.get(*id)),
            _ => None,
        }
    }

    fn list_rule(&self, field: Option<&'s Field>) -> ListRule<'s> {
        let Some(field) = field else { return ListRule { merges: false, key: None, items: None } };
        let items = match &field.shape {
            Shape::List(item) => self.object(item),
            _ => None,
        };
        ListRule { merges: field.patch.merge, key: field.merge_key.as_deref(), items }
    }

    fn maps(
        &self,
        mut original: Map<String, Value>,
        mut patch: Map<String, Value>,
        of: Option<&'s Type>,
    ) -> Result<Map<String, Value>, Error> {
        if let Some(directive) = patch.remove(DIRECTIVE) {
            return match directive.as_str() {
                Some("replace") => match bare(Value::Object(patch)) {
                    Some(Value::Object(map)) => Ok(map),
                    _ => Ok(Map::new()),
                },
                Some("delete") => Ok(Map::new()),
                _ => Err(bad_directive(&directive, &patch)),
            };
        }
        retain_keys(&mut original, &mut patch)?;
        self.ordered_lists(&mut original, &mut patch, of)?;
        for (key, value) in patch {
            if let Some(name) = key.strip_prefix(DELETE_FROM) {
                delete_from(&mut original, name, &value)?;
                continue;
            }
            if value.is_null() {
                original.remove(&key);
                continue;
            }
            let field = of.and_then(|t| t.field(&key));
            let merged = match (original.remove(&key), value) {
                (Some(Value::Object(from)), Value::Object(to)) => {
                    if field.is_some_and(|f| f.patch.replace) {
                        bare(Value::Object(to))
                    } else {
                        let of = field.and_then(|f| self.object(&f.shape));
                        Some(Value::Object(self.maps(from, to, of)?))
                    }
                }
                (Some(Value::Array(from)), Value::Array(to)) => {
                    let rule = self.list_rule(field);
                    if rule.merges {
                        Some(Value::Array(self.lists(from, to, &rule, &key)?))
                    } else {
                        // A list that is replaced may still hold directives inside.
                        bare(Value::Array(to))
                    }
                }
                (_, value) => bare(value),
            };
            if let Some(merged) = merged {
                original.insert(key, merged);
            }
        }
        Ok(original)
    }

    /// Lists with a `$setElementOrder` directive: merged, then put in that order.
    fn ordered_lists(
        &self,
        original: &mut Map<String, Value>,
        patch: &mut Map<String, Value>,
        of: Option<&'s Type>,
    ) -> Result<(), Error> {
        let directives: Vec<String> =
            patch.keys().filter(|k| k.starts_with(ORDER)).cloned().collect();
        for directive in directives {
            let name = &directive[ORDER.len()..];
            let Some(Value::Array(order)) = patch.remove(&directive) else {
                return Err(Error::Malformed(
                    "invalid patch format of setElementOrder list".into(),
                ));
            };
            let rule = self.list_rule(of.and_then(|t| t.field(name)));
            let server = list_of(original.remove(name), name)?;
            let patched = list_of(patch.remove(name), name)?;
            if let Some(patched) = &patched
                && !order::agrees(patched, &order, rule.key)
            {
                return Err(Error::Malformed(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    Value::Array(patched.clone()),
                    Value::Array(order)
                )));
            }
            let before = server.clone().unwrap_or_default();
            let merged = match (server, patched) {
                (None, None) => continue,
                (Some(server), None) => server,
                (None, Some(patched)) => patched.into_iter().filter_map(bare).collect(),
                (Some(server), Some(patched)) if rule.merges => {
                    self.lists(server, patched, &rule, name)?
                }
                (Some(_), Some(patched)) => patched,
            };
            let merged = order::arrange(merged, &order, &before, rule.key);
            original.insert(name.to_owned(), Value::Array(merged));
        }
        Ok(())
    }

    fn lists(
        &self,
        original: Vec<Value>,
        patch: Vec<Value>,
        rule: &ListRule<'s>,
        name: &str,
    ) -> Result<Vec<Value>, Error> {
        let objects = original.first().or(patch.first()).is_some_and(Value::is_object);
        if original.iter().chain(&patch).any(|item| item.is_object() != objects) {
            return Err(Error::Inapplicable(format!(
                "list element types are not identical: {name}"
            )));
        }
        if !objects {
            let mut merged: Vec<Value> = Vec::new();
            for item in original.iter().chain(&patch) {
                if !merged.contains(item) {
                    merged.push(item.clone());
                }
            }
            return Ok(order::arrange(merged, &patch, &original, None));
        }
        let Some(key) = rule.key else {
            return Err(Error::Inapplicable(format!(
                "cannot merge lists without merge key for {name}"
            )));
        };
        let (mut merged, patch) = special_items(original, patch, key)?;
        let before = merged.clone();
        for item in &patch {
            if item.get(key).is_none() {
                return Err(no_merge_key(item, key));
            }
            match merged.iter().position(|other| order::same(other, item, Some(key))) {
                Some(at) => {
                    let (Value::Object(from), Value::Object(to)) =
                        (merged[at].take(), item.clone())
                    else {
                        return Err(no_merge_key(item, key));
                    };
                    merged[at] = Value::Object(self.maps(from, to, rule.items)?);
                }
                None => merged.extend(bare(item.clone())),
            }
        }
        Ok(order::arrange(merged, &patch, &before, Some(key)))
    }
}

fn list_of(value: Option<Value>, name: &str) -> Result<Option<Vec<Value>>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(Error::Malformed(format!(
            "expected a list for {name} to set the order of, but received {other}"
        ))),
    }
}

/// `$retainKeys`: whatever of the original it does not name is dropped.
fn retain_keys(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
) -> Result<(), Error> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || Error::Malformed("invalid patch format of retainKeys".into());
    let Value::Array(keys) = directive else { return Err(bad()) };
    let retained = |key: &str| keys.iter().any(|k| k == key);
    let named = patch.iter().all(|(k, v)| {
        v.is_null() || k.starts_with(DELETE_FROM) || k.starts_with(ORDER) || retained(k)
    });
    if !named {
        return Err(bad());
    }
    original.retain(|k, _| retained(k));
    Ok(())
}

fn delete_from(original: &mut Map<String, Value>, name: &str, items: &Value) -> Result<(), Error> {
    let Value::Array(items) = items else {
        return Err(Error::Malformed("invalid patch format of primitive list".into()));
    };
    if let Some(Value::Array(list)) = original.get_mut(name) {
        list.retain(|item| !items.contains(item));
    }
    Ok(())
}

/// Carries out `$patch` items of a list of objects; returns the original and the patch without them.
fn special_items(
    mut original: Vec<Value>,
    patch: Vec<Value>,
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let mut ordinary = Vec::new();
    let mut replace = false;
    for item in patch {
        let Some(map) = item.as_object() else { return Err(no_merge_key(&item, key)) };
        match map.get(DIRECTIVE).map(|d| (d, d.as_str())) {
            None => ordinary.push(item),
            Some((_, Some("delete"))) => {
                if map.get(key).is_none() {
                    return Err(no_merge_key(&item, key));
                }
                original.retain(|other| !order::same(other, &item, Some(key)));
            }
            Some((_, Some("replace"))) => replace = true,
            Some((_, Some("merge"))) => {
                return Err(Error::Inapplicable(
                    "merging lists cannot yet be specified in the patch".into(),
                ));
            }
            Some((directive, _)) => return Err(bad_directive(directive, map)),
        }
    }
    if replace {
        return Ok((ordinary.into_iter().filter_map(bare).collect(), Vec::new()));
    }
    Ok((original, ordinary))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::builtin;

    fn apply(kind: (&str, &str, &str), original: Value, patch: Value) -> Result<Value, Error> {
        let of = builtin().kind(kind.0, kind.1, kind.2).expect("a built-in kind");
        strategic(builtin(), of, original, patch)
    }

    fn pod(original: Value, patch: Value) -> Value {
        apply(("", "v1", "Pod"), json!({"spec": original}), json!({"spec": patch}))
            .expect("applies")["spec"]
            .take()
    }

    #[test]
    fn lists_of_objects_merge_by_key() {
        let merged = pod(
            json!({"containers": [{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b"}]}),
            json!({"containers": [{"name": "c"}, {"name": "a", "image": "2", "ports": [{"containerPort": 81}]}]}),
        );
        assert_eq!(
            merged,
            json!({"containers": [{"name": "c"},
                {"name": "a", "image": "2", "ports": [{"containerPort": 81}, {"containerPort": 80}]}, {"name": "b"}]})
        );
    }

    #[test]
    fn items_and_maps_are_deleted_and_replaced() {
        let containers = || json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(
            pod(containers(), json!({"containers": [{"name": "a", "$patch": "delete"}]})),
            json!({"containers": [{"name": "b"}]})
        );
        assert_eq!(
            pod(containers(), json!({"containers": [{"$patch": "replace"}, {"name": "x"}]})),
            json!({"containers": [{"name": "x"}]})
        );
        assert_eq!(
            pod(
                json!({"nodeSelector": {"a": "1"}}),
                json!({"nodeSelector": {"b": "2", "$patch": "replace"}})
            ),
            json!({"nodeSelector": {"b": "2"}})
        );
        assert_eq!(
            pod(
                json!({"nodeSelector": {"a": "1", "b": "2"}}),
                json!({"nodeSelector": {"a": null}})
            ),
            json!({"nodeSelector": {"b": "2"}})
        );
        // Atomic lists are replaced.
        assert_eq!(
            pod(json!({"tolerations": [{"key": "a"}]}), json!({"tolerations": [{"key": "b"}]})),
            json!({"tolerations": [{"key": "b"}]})
        );
    }

    #[test]
    fn volumes_retain_only_named_keys() {
        let merged = pod(
            json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "hostPath": {"path": "/"}}]}),
            json!({"volumes": [{"$retainKeys": ["name", "configMap"], "name": "v", "configMap": {"name": "c"}}]}),
        );
        assert_eq!(
            merged,
            json!({"volumes": [{"name": "v", "configMap": {"name": "c"}}, {"name": "w", "hostPath": {"path": "/"}}]})
        );
        let strategy = |patch| {
            apply(
                ("apps", "v1", "Deployment"),
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": patch}}),
            )
        };
        assert_eq!(
            strategy(json!({"$retainKeys": ["type"], "type": "Recreate"})),
            Ok(json!({"spec": {"strategy": {"type": "Recreate"}}}))
        );
        assert_eq!(
            strategy(json!({"$retainKeys": ["type"], "rollingUpdate": {}})),
            Err(Error::Malformed("invalid patch format of retainKeys".into()))
        );
    }

    #[test]
    fn sets_of_scalars() {
        let object = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
        let merged = apply(
            ("", "v1", "Pod"),
            object(json!(["a", "b"])),
            json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"],
                "$setElementOrder/finalizers": ["c", "b"]}}),
        );
        assert_eq!(merged, Ok(object(json!(["c", "b"]))));
        let merged = apply(("", "v1", "Pod"), object(json!(["a"])), object(json!(["b", "a"])));
        assert_eq!(merged, Ok(object(json!(["b", "a"]))));
    }

    #[test]
    fn the_order_directive_keeps_the_servers_own_items_in_place() {
        let names = |list: &[&str]| Value::Array(list.iter().map(|n| json!({"name": n})).collect());
        for (server, order, patch, want) in [
            (&["a", "x", "b"][..], &["b", "a"][..], &[][..], &["x", "b", "a"][..]),
            (&["x", "a", "b"], &["a", "b", "c"], &["c"], &["x", "a", "b", "c"]),
            (&["a", "b", "x"], &["a", "c", "b"], &["c"], &["a", "c", "b", "x"]),
        ] {
            let mut body = json!({"$setElementOrder/containers": names(order)});
            if !patch.is_empty() {
                body["containers"] = names(patch);
            }
            assert_eq!(
                pod(json!({"containers": names(server)}), body),
                json!({"containers": names(want)})
            );
        }
        let wrong = apply(
            ("", "v1", "Pod"),
            json!({"spec": {"containers": names(&["a"])}}),
            json!({"spec": {"$setElementOrder/containers": names(&["a", "b"]), "containers": names(&["b", "a"])}}),
        );
        assert!(
            matches!(wrong, Err(Error::Malformed(text)) if text.starts_with("The order in patch list"))
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for patch in [
            json!({"spec": {"containers": [{"image": "no-name"}]}}),
            json!({"spec": {"containers": [{"name": "a", "$patch": "explode"}]}}),
            json!({"spec": {"$patch": "explode"}}),
            json!({"spec": {"containers": ["a"]}}),
        ] {
            let original = json!({"spec": {"containers": [{"name": "a"}]}});
            assert!(apply(("", "v1", "Pod"), original, patch.clone()).is_err(), "{patch}");
        }
    }

    #[test]
    fn what_is_new_loses_its_nulls_and_directives() {
        assert_eq!(
            pod(
                json!({}),
                json!({"containers": [{"name": "a", "image": null}, {"name": "b", "$patch": "delete"}],
                "$setElementOrder/containers": [{"name": "a"}]})
            ),
            json!({"containers": [{"name": "a"}]})
        );
    }
}
