//! Sequences of operations on one object, and who owns what after them: what the tests of
//! `structured-merge-diff/merge` pin down, told in custom kinds.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::structural::{Compiled, Names, Structural};

/// A kind with some versions; a field that ends in a version's name has that of the version asked for.
struct Custom {
    served: Vec<(&'static str, Compiled)>,
}

impl Custom {
    /// The same fields in all versions.
    fn new(versions: &[&'static str], properties: &Value) -> Self {
        let schema = json!({"type": "object", "properties": properties});
        Self::of(versions, |_| schema.clone())
    }

    fn of(versions: &[&'static str], schema: impl Fn(&str) -> Value) -> Self {
        let compile = |version: &&'static str| {
            let names = Names { group: "g.io", version, kind: "T" };
            (*version, Structural::parse(&schema(version)).compile(names))
        };
        Self { served: versions.iter().map(compile).collect() }
    }
}

fn renamed(value: &Value, from: &str, to: &str) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| {
                if key == "metadata" {
                    return (key.clone(), value.clone());
                }
                let key = key.strip_suffix(from).map_or(key.clone(), |stem| format!("{stem}{to}"));
                (key, renamed(value, from, to))
            })
            .collect(),
        Value::Array(items) => items.iter().map(|item| renamed(item, from, to)).collect(),
        other => other.clone(),
    }
}

impl Versions for Custom {
    fn root(&self, api_version: &str) -> Option<Typed<'_>> {
        let (_, compiled) = self.served.iter().find(|(version, _)| at(version) == api_version)?;
        Some(Typed::kind(&compiled.schema, compiled.of))
    }

    fn convert<'v>(&self, object: &'v Value, api_version: &str) -> Option<Cow<'v, Value>> {
        self.root(api_version)?;
        let suffix = |version: &str| format!("_{}", meta::split_api_version(version).1);
        let (from, to) = (suffix(meta::api_version(object)), suffix(api_version));
        let mut converted = renamed(object, &from, &to);
        meta::set_type(&mut converted, api_version, "T");
        Some(Cow::Owned(converted))
    }

    fn ignored(&self, _: &str) -> Option<&Set> {
        None
    }
}

fn at(version: &str) -> String {
    format!("g.io/{version}")
}

/// What somebody does in a version.
enum Op {
    Apply(&'static str, &'static str, Value),
    Force(&'static str, &'static str, Value),
    /// An apply that meets the other's field.
    Refused(&'static str, &'static str, Value, &'static [(&'static str, &'static str)]),
    Update(&'static str, &'static str, Value),
}
use Op::{Apply, Force, Refused, Update};

fn typed(mut object: Value, version: &str) -> Value {
    meta::set_type(&mut object, &at(version), "T");
    object
}

/// Does all of `ops`; the object in the version of the last, and what each manager owns in which version.
fn done(kind: &Custom, ops: &[Op]) -> (Value, BTreeMap<String, Value>) {
    carry_out(|_| kind, ops)
}

/// The same, with the kind as it is at each step.
fn carry_out<'k>(
    kind: impl Fn(usize) -> &'k Custom,
    ops: &[Op],
) -> (Value, BTreeMap<String, Value>) {
    let mut live = json!({});
    for (step, op) in ops.iter().enumerate() {
        let kind = kind(step);
        let (Apply(manager, version, object)
        | Force(manager, version, object)
        | Refused(manager, version, object, _)
        | Update(manager, version, object)) = op;
        let by = Operation {
            manager,
            api_version: &at(version),
            subresource: "",
            now: "2026-01-01T00:00:00Z",
        };
        let mut object = typed(object.clone(), version);
        live = if live["apiVersion"].is_null() {
            typed(json!({}), version)
        } else {
            kind.convert(&live, &at(version)).expect("a way").into_owned()
        };
        live = match op {
            Update(..) => {
                update(kind, by, &live, &mut object);
                object
            }
            Refused(.., want) => {
                let Err(Error::Conflicts(told)) = apply(kind, by, &live, &object, false) else {
                    panic!("step {step}: no conflict");
                };
                let told: Vec<(&str, &str)> =
                    told.iter().map(|c| (c.manager.name.as_str(), c.path.as_str())).collect();
                assert_eq!(&told, want, "step {step}");
                live
            }
            _ => {
                let force = matches!(op, Force(..));
                apply(kind, by, &live, &object, force)
                    .unwrap_or_else(|e| panic!("step {step}: {e}"))
            }
        };
        meta::set(&mut live, "uid", "u");
    }
    let owned = live["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let owned = owned.into_iter().map(|entry| {
        let version = entry["apiVersion"].as_str().unwrap_or_default().replace("g.io/", "");
        (
            entry["manager"].as_str().unwrap_or_default().to_owned(),
            json!([version, entry["fieldsV1"]]),
        )
    });
    let owned = owned.collect();
    let map = live.as_object_mut().expect("an object");
    map.retain(|key, _| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata"));
    (live, owned)
}

fn check(kind: &Custom, ops: &[Op], object: &Value, owned: &Value) {
    let (got, owners) = done(kind, ops);
    assert_eq!(&got, object, "the object");
    assert_eq!(&json!(owners), owned, "who owns what of {object}");
}

const A: &str = "k:{\"name\":\"a\"}";
const B: &str = "k:{\"name\":\"b\"}";
const C: &str = "k:{\"name\":\"c\"}";
const D: &str = "k:{\"name\":\"d\"}";

fn nested() -> Custom {
    let text = json!({"type": "string"});
    let set = json!({"type": "array", "x-kubernetes-list-type": "set", "items": text});
    let numbers =
        json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "integer"}});
    let map = json!({"type": "object", "additionalProperties": text});
    let by_name = |value: &Value| {
        json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": text, "value": value}}})
    };
    let pair =
        json!({"type": "object", "properties": {"name": text, "value": {"type": "integer"}}});
    let mut atomic = pair.clone();
    atomic["x-kubernetes-map-type"] = "atomic".into();
    Custom::new(
        &["v1", "v2", "v3"],
        &json!({
            "set": set, "numbers": numbers, "plain": {"type": "array", "items": text}, "struct": pair, "atomic": atomic,
            "list": by_name(&json!({"type": "integer"})), "listOfLists": by_name(&set), "listOfMaps": by_name(&map),
            "mapOfLists": {"type": "object", "additionalProperties": set},
            "mapOfMaps": {"type": "object", "additionalProperties": map},
            "mapOfAtomics": {"type": "object", "additionalProperties": atomic},
            "mapOfMapsOfLists": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": set}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }),
    )
}

#[test]
fn what_is_nested_is_taken_apart_all_the_way() {
    let one = |first: Value, second: Value, owned: Value| {
        let ops = [Apply("one", "v1", first), Apply("one", "v1", second.clone())];
        check(&nested(), &ops, &second, &json!({"one": ["v1", owned]}));
    };
    one(
        json!({"listOfLists": [{"name": "a", "value": ["b", "c"]}]}),
        json!({"listOfLists": [{"name": "a", "value": ["a", "c"]}]}),
        json!({"f:listOfLists": {A: {".": {}, "f:name": {}, "f:value": {"v:\"a\"": {}, "v:\"c\"": {}}}}}),
    );
    one(
        json!({"listOfLists": [{"name": "a", "value": ["b", "c"]}]}),
        json!({"listOfLists": [{"name": "b", "value": ["a", "c"]}]}),
        json!({"f:listOfLists": {B: {".": {}, "f:name": {}, "f:value": {"v:\"a\"": {}, "v:\"c\"": {}}}}}),
    );
    one(
        json!({"listOfMaps": [{"name": "a", "value": {"b": "x", "c": "y"}}]}),
        json!({"listOfMaps": [{"name": "b", "value": {"a": "x", "c": "z"}}]}),
        json!({"f:listOfMaps": {B: {".": {}, "f:name": {}, "f:value": {"f:a": {}, "f:c": {}}}}}),
    );
    one(
        json!({"mapOfLists": {"a": ["b", "c"]}}),
        json!({"mapOfLists": {"a": ["a", "c"]}}),
        json!({"f:mapOfLists": {"f:a": {".": {}, "v:\"a\"": {}, "v:\"c\"": {}}}}),
    );
    one(
        json!({"mapOfLists": {"a": ["b", "c"]}}),
        json!({"mapOfLists": {"b": ["a", "c"]}}),
        json!({"f:mapOfLists": {"f:b": {".": {}, "v:\"a\"": {}, "v:\"c\"": {}}}}),
    );
    one(
        json!({"mapOfMapsOfLists": {"a": {"b": ["c"]}}}),
        json!({"mapOfMapsOfLists": {"a": {"d": ["c"]}}}),
        json!({"f:mapOfMapsOfLists": {"f:a": {".": {}, "f:d": {".": {}, "v:\"c\"": {}}}}}),
    );
    one(
        json!({"mapOfMaps": {"a": {"b": "x", "c": "y"}}}),
        json!({"mapOfMaps": {"b": {"a": "x", "c": "z"}}}),
        json!({"f:mapOfMaps": {"f:b": {".": {}, "f:a": {}, "f:c": {}}}}),
    );
    one(
        json!({"mapOfAtomics": {"a": {"name": "x", "value": 1}}}),
        json!({"mapOfAtomics": {"a": {"name": "y"}}}),
        json!({"f:mapOfAtomics": {"f:a": {}}}),
    );
}

#[test]
fn what_an_applier_leaves_out_stays_with_others() {
    let (apply_a, update) =
        (json!({"struct": {"name": "a"}}), json!({"struct": {"name": "a", "value": 1}}));
    let left = json!({"struct": {"value": 1}});
    let value = json!({"f:struct": {"f:value": {}}});
    for (second, owned) in [
        (json!({}), json!({"controller": ["v1", value]})),
        (
            json!({"struct": {}}),
            json!({"one": ["v1", {"f:struct": {}}], "controller": ["v1", value]}),
        ),
        (
            json!({"struct": null}),
            json!({"one": ["v1", {"f:struct": {}}], "controller": ["v1", value]}),
        ),
    ] {
        let ops = [
            Apply("one", "v1", apply_a.clone()),
            Update("controller", "v1", update.clone()),
            Apply("one", "v1", second),
        ];
        check(&nested(), &ops, &left, &owned);
    }
    let taken = json!({"struct": {"name": "b", "value": 1}});
    let ops = [
        Apply("one", "v1", apply_a.clone()),
        Update("controller", "v1", taken.clone()),
        Apply("one", "v1", json!({"struct": null})),
    ];
    let both = json!({"f:struct": {"f:name": {}, "f:value": {}}});
    check(
        &nested(),
        &ops,
        &taken,
        &json!({"one": ["v1", {"f:struct": {}}], "controller": ["v1", both]}),
    );
    let ops = [Apply("one", "v1", update), Apply("one", "v1", json!({}))];
    check(&nested(), &ops, &json!({}), &json!({}));
}

#[test]
fn several_appliers_share_a_list() {
    let named = |names: &[&str]| {
        let items: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"list": items})
    };
    let item = || json!({".": {}, "f:name": {}});
    let ops = [
        Apply("one", "v1", named(&["a", "b", "c"])),
        Apply("two", "v2", named(&["c", "d"])),
        Apply("one", "v3", named(&["a"])),
    ];
    let owned = json!({"one": ["v3", {"f:list": {A: item()}}], "two": ["v2", {"f:list": {C: item(), D: item()}}]});
    check(&nested(), &ops, &named(&["a", "c", "d"]), &owned);
    let with = |value: i64| json!({"list": [{"name": "a", "value": value}]});
    let whole = json!({"f:list": {A: {".": {}, "f:name": {}, "f:value": {}}}});
    let ops = [Apply("one", "v1", with(0)), Apply("two", "v2", with(0))];
    check(&nested(), &ops, &with(0), &json!({"one": ["v1", whole], "two": ["v2", whole]}));
    let ops = [
        Apply("one", "v1", with(0)),
        Refused("two", "v2", with(1), &[("one", ".list[name=\"a\"].value")]),
    ];
    check(&nested(), &ops, &with(0), &json!({"one": ["v1", whole]}));
    let ops = [Apply("one", "v1", with(0)), Force("two", "v2", with(1))];
    let part = json!({"f:list": {A: {".": {}, "f:name": {}}}});
    check(&nested(), &ops, &with(1), &json!({"one": ["v1", part], "two": ["v2", whole]}));
}

#[test]
fn parts_of_dropped_items_go_with_them_unless_somebody_applied_them() {
    let lists = |items: Value| json!({"listOfLists": items});
    let name = || json!({".": {}, "f:name": {}});
    let with =
        |value: &str| json!({".": {}, "f:name": {}, "f:value": {format!("v:\"{value}\""): {}}});
    let first = lists(json!([{"name": "a"}, {"name": "b", "value": ["c"]}]));
    let last = lists(json!([{"name": "a"}]));
    let b = lists(json!([{"name": "b", "value": ["d"]}]));
    let ops = [
        Apply("one", "v1", first.clone()),
        Apply("two", "v2", b.clone()),
        Update(
            "controller",
            "v2",
            lists(json!([{"name": "a"}, {"name": "b", "value": ["c", "d", "e"]}])),
        ),
        Apply("one", "v3", last.clone()),
    ];
    check(
        &nested(),
        &ops,
        &lists(json!([{"name": "a"}, {"name": "b", "value": ["d", "e"]}])),
        &json!({"one": ["v3", {"f:listOfLists": {A: name()}}], "two": ["v2", {"f:listOfLists": {B: with("d")}}],
            "controller": ["v2", {"f:listOfLists": {B: {"f:value": {"v:\"e\"": {}}}}}]}),
    );
    let ops = [
        Apply("one", "v1", first),
        Apply("two", "v2", lists(json!([{"name": "a", "value": ["b"]}]))),
        Update(
            "controller",
            "v2",
            lists(json!([{"name": "a", "value": ["b"]}, {"name": "b", "value": ["c", "d"]}])),
        ),
        Apply("one", "v3", last),
    ];
    check(
        &nested(),
        &ops,
        &lists(json!([{"name": "a", "value": ["b"]}])),
        &json!({"one": ["v3", {"f:listOfLists": {A: name()}}], "two": ["v2", {"f:listOfLists": {A: with("b")}}]}),
    );
}

#[test]
fn nothing_is_a_value_below_what_nobody_described() {
    let ops = [
        Apply("one", "v1", json!({"open": {"a": {"b": null}, "c": {"d": null}}})),
        Apply("two", "v2", json!({"open": {"a": null, "c": {"d": null}}})),
        Update("first", "v3", json!({"open": {"a": {"b": {"c": null}}, "c": {"d": {"e": null}}}})),
        Update(
            "second",
            "v2",
            json!({"open": {"a": {"b": {"c": {"d": null}}}, "c": {"d": {"e": {"f": null}}}}}),
        ),
        Apply("one", "v3", json!({"open": null})),
    ];
    check(
        &nested(),
        &ops,
        &json!({"open": {"a": null, "c": {"d": {"e": {"f": null}}}}}),
        &json!({"one": ["v3", {"f:open": {}}],
            "two": ["v2", {"f:open": {"f:a": {}, "f:c": {".": {}, "f:d": {}}}}],
            "first": ["v3", {"f:open": {"f:c": {"f:d": {"f:e": {}}}}}],
            "second": ["v2", {"f:open": {"f:c": {"f:d": {"f:e": {"f:f": {}}}}}}]}),
    );
}

#[test]
fn sets_are_owned_by_value() {
    let set = |values: &[&str]| json!({"set": values});
    let owned = |values: &[&str]| {
        let values: serde_json::Map<String, Value> =
            values.iter().map(|value| (format!("v:{value:?}"), json!({}))).collect();
        json!({"f:set": values})
    };
    let first =
        [Apply("one", "v1", set(&["a", "c"])), Update("two", "v1", set(&["a", "b", "c", "d"]))];
    let [apply, update] = first;
    let ops = [apply, update, Apply("one", "v1", set(&["a", "aprime", "c", "cprime"]))];
    check(
        &nested(),
        &ops,
        &set(&["a", "b", "aprime", "c", "d", "cprime"]),
        &json!({"one": ["v1", owned(&["a", "aprime", "c", "cprime"])], "two": ["v1", owned(&["b", "d"])]}),
    );
    let ops = [
        Apply("one", "v1", set(&["a", "b", "c", "d"])),
        Update("two", "v1", set(&["a", "d", "c", "b"])),
        Apply("one", "v1", set(&["a", "b", "c", "d"])),
    ];
    let all = owned(&["a", "b", "c", "d"]);
    check(&nested(), &ops, &set(&["a", "b", "c", "d"]), &json!({"one": ["v1", all]}));
    let ops =
        [Apply("one", "v1", set(&["a", "b", "c", "d"])), Apply("one", "v1", set(&["a", "c"]))];
    check(&nested(), &ops, &set(&["a", "c"]), &json!({"one": ["v1", owned(&["a", "c"])]}));
}

#[test]
fn lists_are_merged_in_the_order_of_what_is_applied() {
    let kind = nested();
    let root = kind.root("g.io/v1").expect("served");
    for (old, new, want) in [
        ("abc", "de", "abcde"),
        ("abc", "abd", "abcd"),
        ("abc", "bad", "bcad"),
        ("abc", "axyzb", "axyzbc"),
        ("abcd", "dba", "cdba"),
        ("abcde", "adbe", "acdbe"),
        ("", "ab", "ab"),
        ("ab", "", "ab"),
    ] {
        let set = |text: &str| {
            let items: Vec<String> = text.chars().map(String::from).collect();
            typed(json!({"set": items}), "v1")
        };
        assert_eq!(walk::merge(root, &set(old), &set(new)), set(want), "{old} {new}");
    }
}

#[test]
fn what_is_there_twice_is_owned_once() {
    let set = |values: &[i64]| json!({"numbers": values});
    let owned = |values: &[i64], itself: bool| {
        let mut all: serde_json::Map<String, Value> =
            values.iter().map(|value| (format!("v:{value}"), json!({}))).collect();
        if itself {
            all.insert(".".into(), json!({}));
        }
        json!(["v1", {"f:numbers": all}])
    };
    let twice = || Update("one", "v1", set(&[1, 1, 3, 4]));
    let three = owned(&[3, 4], true);
    let cases = [
        (vec![twice()], set(&[1, 1, 3, 4]), json!({"one": owned(&[1, 3, 4], true)})),
        (
            vec![Update("one", "v1", set(&[1, 3, 4])), Update("two", "v1", set(&[1, 1, 3, 4]))],
            set(&[1, 1, 3, 4]),
            json!({"one": three, "two": owned(&[1], false)}),
        ),
        (
            vec![twice(), Update("two", "v1", set(&[1, 3, 4]))],
            set(&[1, 3, 4]),
            json!({"one": three, "two": owned(&[1], false)}),
        ),
        (
            vec![
                twice(),
                Refused("two", "v1", set(&[1]), &[("one", ".numbers[=1]")]),
                Force("two", "v1", set(&[1])),
            ],
            set(&[1, 3, 4]),
            json!({"one": three, "two": owned(&[1], false)}),
        ),
        (
            vec![twice(), Apply("two", "v1", set(&[5]))],
            set(&[1, 1, 3, 4, 5]),
            json!({"one": owned(&[1, 3, 4], true), "two": owned(&[5], false)}),
        ),
    ];
    for (ops, object, owners) in cases {
        check(&nested(), &ops, &object, &owners);
    }
}

#[test]
fn items_of_one_name_are_owned_as_one() {
    let list = |items: &[(&str, i64)]| {
        let items: Vec<Value> =
            items.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        json!({"list": items})
    };
    let whole = || json!({".": {}, "f:name": {}, "f:value": {}});
    let twice = || list(&[("a", 1), ("a", 2), ("b", 3)]);
    let one = |owned: Value| json!(["v1", {"f:list": owned}]);
    let cases = [
        (
            vec![Update("one", "v1", twice())],
            twice(),
            json!({"one": one(json!({".": {}, A: {}, B: whole()}))}),
        ),
        (
            vec![
                Update("one", "v1", twice()),
                Update("two", "v1", list(&[("a", 1), ("a", 3), ("b", 3)])),
            ],
            list(&[("a", 1), ("a", 3), ("b", 3)]),
            json!({"one": one(json!({".": {}, B: whole()})), "two": one(json!({A: {}}))}),
        ),
        (
            vec![Update("one", "v1", list(&[("a", 1), ("a", 2)])), Update("two", "v1", twice())],
            twice(),
            json!({"one": one(json!({".": {}, A: {}})), "two": one(json!({B: whole()}))}),
        ),
        (
            vec![
                Update("one", "v1", twice()),
                Refused("two", "v1", list(&[("a", 3)]), &[("one", ".list[name=\"a\"]")]),
                Refused("two", "v1", list(&[("a", 2)]), &[("one", ".list[name=\"a\"]")]),
                Force("two", "v1", list(&[("a", 3)])),
            ],
            list(&[("a", 3), ("b", 3)]),
            json!({"one": one(json!({".": {}, B: whole()})), "two": one(json!({A: whole()}))}),
        ),
        (
            vec![Update("one", "v1", twice()), Force("two", "v1", list(&[("b", 4)]))],
            list(&[("a", 1), ("a", 2), ("b", 4)]),
            json!({"one": one(json!({".": {}, A: {}, B: {".": {}, "f:name": {}}})), "two": one(json!({B: whole()}))}),
        ),
        (
            vec![
                Apply("one", "v1", list(&[("a", 1), ("b", 3)])),
                Update("two", "v1", twice()),
                Apply("one", "v1", list(&[("b", 3)])),
            ],
            twice(),
            json!({"one": one(json!({B: whole()})), "two": one(json!({A: {}}))}),
        ),
    ];
    for (ops, object, owners) in cases {
        check(&nested(), &ops, &object, &owners);
    }
}

#[test]
fn fields_that_are_called_otherwise_in_other_versions_stay_the_same() {
    let versions = ["v1", "v2", "v3"];
    let kind = Custom::of(&versions, |version| {
        let name = json!({"type": "string"});
        json!({"type": "object", "properties": {"struct": {"type": "object", "properties": {
            "name": name, format!("scalar_{version}"): name,
            format!("complex_{version}"): {"type": "object", "properties": {"name": name}}}}}})
    });
    let scalar = |version: &str, value: &str| json!({"struct": {"name": "a", format!("scalar_{version}"): value}});
    let name = json!({"struct": {"name": "a"}});
    let owns_name = json!({"f:struct": {"f:name": {}}});
    for one in versions {
        for two in versions {
            check(
                &kind,
                &[Apply("one", one, scalar(one, "a")), Apply("one", two, name.clone())],
                &name,
                &json!({"one": [two, owns_name]}),
            );
            let complex = |version: &str| json!({"struct": {"name": "a", format!("complex_{version}"): {"name": "b"}}});
            check(
                &kind,
                &[Apply("one", one, complex(one)), Apply("one", two, name.clone())],
                &name,
                &json!({"one": [two, owns_name]}),
            );
            check(
                &kind,
                &[Apply("one", one, scalar(one, "a")), Update("two", two, scalar(two, "b"))],
                &scalar(two, "b"),
                &json!({"one": [one, owns_name], "two": [two, {"f:struct": {format!("f:scalar_{two}"): {}}}]}),
            );
            for three in versions {
                let only = json!({"struct": {format!("scalar_{two}"): "a"}});
                check(
                    &kind,
                    &[
                        Apply("one", one, scalar(one, "a")),
                        Apply("two", two, only),
                        Apply("one", three, name.clone()),
                    ],
                    &scalar(three, "a"),
                    &json!({"one": [three, owns_name], "two": [two, {"f:struct": {format!("f:scalar_{two}"): {}}}]}),
                );
            }
        }
    }
}

#[test]
fn who_owns_in_a_version_that_is_gone_owns_nothing() {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let before = Custom::of(&["v1", "v2"], |_| open.clone());
    let after = Custom::of(&["v2", "v3"], |_| open.clone());
    let ops = [
        Update("one", "v1", json!({"one": 0})),
        Update("two", "v2", json!({"one": 0, "two": 0})),
        Update("three", "v3", json!({"one": 0, "two": 0, "three": 0})),
    ];
    let (_, owned) = carry_out(|step| if step < 2 { &before } else { &after }, &ops);
    assert_eq!(
        json!(owned),
        json!({"two": ["v2", {"f:two": {}}], "three": ["v3", {"f:three": {}}]})
    );
    let set = json!({"set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}});
    let (first, second) = (Custom::new(&["v1"], &set), Custom::new(&["v2"], &set));
    let ops =
        [Apply("one", "v1", json!({"set": ["a", "b"]})), Apply("one", "v2", json!({"set": ["a"]}))];
    let (object, _) = carry_out(|step| if step < 1 { &first } else { &second }, &ops);
    assert_eq!(object, json!({"set": ["a", "b"]}));
}

#[test]
fn owners_follow_a_schema_that_becomes_atomic_or_granular() {
    let schema = |atomic: bool| {
        let kind = if atomic { "atomic" } else { "granular" };
        Custom::new(
            &["v1"],
            &json!({"struct": {"type": "object", "x-kubernetes-map-type": kind, "properties": {
            "number": {"type": "integer"}, "text": {"type": "string"}}}}),
        )
    };
    let (granular, atomic) = (schema(false), schema(true));
    let number = |number: i64| json!({"struct": {"number": number}});
    let text = |text: &str| json!({"struct": {"text": text}});
    let ops = [
        Apply("one", "v1", number(1)),
        Refused("two", "v1", text("a"), &[("one", ".struct")]),
        Force("two", "v1", text("a")),
    ];
    let (object, owned) = carry_out(|step| if step < 1 { &granular } else { &atomic }, &ops);
    assert_eq!((object, json!(owned)), (text("a"), json!({"two": ["v1", {"f:struct": {}}]})));
    let ops = [
        Apply("one", "v1", number(1)),
        Force("two", "v1", number(2)),
        Refused("three", "v1", text("a"), &[("two", ".struct")]),
        Force("two", "v1", text("a")),
    ];
    let (object, owned) = carry_out(|step| if step < 2 { &granular } else { &atomic }, &ops);
    assert_eq!((object, json!(owned)), (text("a"), json!({"two": ["v1", {"f:struct": {}}]})));
    // The owner of what was one is the owner of the whole, and of none of its parts.
    let both = json!({"struct": {"number": 1, "text": "a"}});
    let ops = [
        Apply("one", "v1", both),
        Refused("two", "v1", text("b"), &[("one", ".struct")]),
        Apply("two", "v1", text("b")),
    ];
    let (object, owned) = carry_out(|step| if step < 2 { &atomic } else { &granular }, &ops);
    assert_eq!(object, json!({"struct": {"number": 1, "text": "b"}}));
    let want =
        json!({"one": ["v1", {"f:struct": {}}], "two": ["v1", {"f:struct": {"f:text": {}}}]});
    assert_eq!(json!(owned), want);
}

#[test]
fn atomic_lists_and_maps_have_one_owner() {
    let ops = [
        Apply("one", "v1", json!({"plain": ["a"], "atomic": {"name": "a"}})),
        Refused("two", "v1", json!({"plain": ["b"]}), &[("one", ".plain")]),
        Refused("two", "v1", json!({"atomic": {"value": 2}}), &[("one", ".atomic")]),
        Force("two", "v1", json!({"plain": ["b"]})),
    ];
    check(
        &nested(),
        &ops,
        &json!({"plain": ["b"], "atomic": {"name": "a"}}),
        &json!({"one": ["v1", {"f:atomic": {}}], "two": ["v1", {"f:plain": {}}]}),
    );
}

#[test]
fn absent_keys_are_their_defaults() {
    let kind = Custom::new(
        &["v1"],
        &json!({"ports": {"type": "array", "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["port", "protocol"], "items": {"type": "object", "properties": {
            "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}, "name": {"type": "string"}}}}}),
    );
    let tcp = "k:{\"port\":80,\"protocol\":\"TCP\"}";
    let udp = "k:{\"port\":80,\"protocol\":\"UDP\"}";
    let both = json!({"ports": [{"port": 80}, {"port": 80, "protocol": "UDP"}]});
    check(
        &kind,
        &[Apply("one", "v1", both.clone())],
        &both,
        &json!({"one": ["v1", {"f:ports": {tcp: {".": {}, "f:port": {}},
            udp: {".": {}, "f:port": {}, "f:protocol": {}}}}]}),
    );
    let named = json!({"ports": [{"port": 80, "protocol": "TCP", "name": "a"}]});
    let told = &[("one", ".ports[port=80,protocol=\"TCP\"].name")];
    let ops = [
        Apply("one", "v1", named.clone()),
        Refused("two", "v1", json!({"ports": [{"port": 80, "name": "b"}]}), told),
    ];
    let whole = json!({".": {}, "f:port": {}, "f:protocol": {}, "f:name": {}});
    check(&kind, &ops, &named, &json!({"one": ["v1", {"f:ports": {tcp: whole}}]}));
    for wrong in [
        json!([null]),
        json!([{"port": 80}, {"port": 80}]),
        json!([{"port": 80}, {"port": 80, "protocol": "TCP"}]),
    ] {
        let config = typed(json!({"ports": wrong}), "v1");
        let by = Operation {
            manager: "one",
            api_version: "g.io/v1",
            subresource: "",
            now: "2026-01-01T00:00:00Z",
        };
        assert!(apply(&kind, by, &typed(json!({}), "v1"), &config, false).is_err(), "{config}");
    }
}

#[test]
fn a_part_without_a_type_may_take_another_form() {
    let kind = Custom::new(
        &["v1"],
        &json!({"open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}),
    );
    // What was below it is nobody's any more.
    check(
        &kind,
        &[
            Apply("one", "v1", json!({"open": {"a": {"b": 1}, "c": 2}})),
            Update("two", "v1", json!({"open": {"a": 3, "c": 2}})),
        ],
        &json!({"open": {"a": 3, "c": 2}}),
        &json!({"one": ["v1", {"f:open": {"f:c": {}}}], "two": ["v1", {"f:open": {"f:a": {}}}]}),
    );
    check(
        &kind,
        &[
            Apply("one", "v1", json!({"open": {"a": 3, "c": 2}})),
            Update("two", "v1", json!({"open": {"a": {"b": 1}, "c": 2}})),
        ],
        &json!({"open": {"a": {"b": 1}, "c": 2}}),
        &json!({
            "one": ["v1", {"f:open": {"f:c": {}}}],
            "two": ["v1", {"f:open": {"f:a": {".": {}, "f:b": {}}}}],
        }),
    );
}
