//! OpenAPI documents with the other servers' among this one's.
//!
//! Source: `kube-aggregator/pkg/controllers/openapi{,v3}/aggregator`.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Map, Value};

use super::{Aggregator, Remote};
use crate::body::Response;
use crate::openapi::Foreign;
use crate::served::Served;
use crate::zero::Zero;

impl Aggregator {
    /// Answers what lies below `/openapi`.
    pub fn openapi(
        &self,
        served: &Arc<Served>,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response> {
        match self.merged(served) {
            Some(merged) => merged.openapi.answer(served, &foreign(&merged.remotes), path, headers),
            None => served.openapi().answer(served, &[], path, headers),
        }
    }
}

fn foreign(remotes: &[Remote]) -> Vec<Foreign<'_>> {
    remotes
        .iter()
        .map(|remote| Foreign {
            root: remote.root(),
            v2: remote.described.v2.as_ref(),
            v3: remote.described.v3.as_ref(),
        })
        .collect()
}

/// Adds to `document` (version 2) what `other` says of the paths below `root`.
pub fn merge_v2(document: &mut Value, other: &Value, root: &str) {
    let prefix = format!("{root}/");
    let paths: Vec<(&String, &Value)> = other["paths"]
        .entries()
        .filter(|(path, _)| *path == root || path.starts_with(&prefix))
        .collect();
    let definitions = &other["definitions"];
    let mut wanted = Vec::new();
    for (_, path) in &paths {
        references(path, &mut wanted);
    }
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let mut added = Map::new();
    while let Some(name) = wanted.pop() {
        if names.contains_key(&name) {
            continue;
        }
        let Some(definition) = definitions.get(&name) else { continue };
        references(definition, &mut wanted);
        let here = &document["definitions"];
        // What Kubernetes itself defines is the same everywhere, whatever is said about it.
        if name.starts_with("io.k8s.api") && here.get(&name).is_some() {
            names.insert(name.clone(), name);
            continue;
        }
        let mut free = name.clone();
        let mut number = 2;
        while here.get(&free).is_some_and(|known| known != definition) {
            free = format!("{name}_v{number}");
            number += 1;
        }
        added.insert(free.clone(), definition.clone());
        names.insert(name, free);
    }
    for definition in added.values_mut() {
        rename(definition, &names);
    }
    if let Some(map) = document["definitions"].as_object_mut() {
        map.extend(added);
    }
    for (path, value) in paths {
        let mut value = value.clone();
        rename(&mut value, &names);
        document["paths"][path] = value;
    }
}

const PLACE: &str = "#/definitions/";

fn references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                into.extend(name.strip_prefix(PLACE).map(str::to_owned));
            }
            map.values().for_each(|value| references(value, into));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, into)),
        _ => {}
    }
}

fn rename(value: &mut Value, names: &BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(text)) = map.get_mut("$ref")
                && let Some(new) = text.strip_prefix(PLACE).and_then(|name| names.get(name))
            {
                *text = format!("{PLACE}{new}");
            }
            map.values_mut().for_each(|value| rename(value, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| rename(value, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn definitions_of_one_name_are_told_apart() {
        let mut document = json!({"paths": {}, "definitions": {
            "a.Foo": {"type": "object"}, "io.k8s.apimachinery.Meta": {"type": "object"}}});
        let other = json!({
            "paths": {"/apis/g/v1/foos": {"$ref": "#/definitions/a.Foo"}, "/apis/h/v1/x": {}},
            "definitions": {
                "a.Foo": {"properties": {"bar": {"$ref": "#/definitions/a.Bar"},
                    "meta": {"$ref": "#/definitions/io.k8s.apimachinery.Meta"}}},
                "a.Bar": {"type": "string"}, "a.Unused": {},
                "io.k8s.apimachinery.Meta": {"description": "…"},
            },
        });
        merge_v2(&mut document, &other, "/apis/g/v1");
        let expected = json!({
            "paths": {"/apis/g/v1/foos": {"$ref": "#/definitions/a.Foo_v2"}},
            "definitions": {
                "a.Foo": {"type": "object"},
                "a.Foo_v2": {"properties": {"bar": {"$ref": "#/definitions/a.Bar"},
                    "meta": {"$ref": "#/definitions/io.k8s.apimachinery.Meta"}}},
                "a.Bar": {"type": "string"},
                "io.k8s.apimachinery.Meta": {"type": "object"},
            },
        });
        assert_eq!(document, expected);
    }
}
