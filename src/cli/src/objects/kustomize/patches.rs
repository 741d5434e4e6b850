//! Patches: strategic ones, and those of RFC 6902.

use serde_json::Value;

use apimachinery::labels::Selector as Labels;
use apimachinery::{patch, schema};

use super::Layer;
use super::entry::{Entry, Id};
use super::file::{Patch, Selector};
use super::merge;
use crate::objects::error::Error;
use crate::objects::manifest;

/// `patchesStrategicMerge`: files, or patches themselves.
pub fn strategic(layer: &Layer, entries: &mut Vec<Entry>) -> Result<(), Error> {
    for given in &layer.kustomization.patches_strategic_merge {
        let text = if given.contains('\n') { given.clone() } else { layer.read(given)? };
        for patch in manifest::documents(given, &text)? {
            by_name(&patch.value, entries)?;
        }
    }
    Ok(())
}

/// `patches` and `patchesJson6902`.
pub fn both(layer: &Layer, patches: &[Patch], entries: &mut Vec<Entry>) -> Result<(), Error> {
    for patch in patches {
        let text = match (patch.patch.is_empty(), patch.path.is_empty()) {
            (false, true) => patch.patch.clone(),
            (true, false) => layer.read(&patch.path)?,
            _ => {
                return Err(Error::wrong("patch must specify one of patch and path, and not both"));
            }
        };
        one(patch, &text, entries)?;
    }
    Ok(())
}

fn one(patch: &Patch, text: &str, entries: &mut Vec<Entry>) -> Result<(), Error> {
    let parts: Vec<Value> = manifest::parts(text)
        .map(|(_, part)| apimachinery::decode::yaml_unstructured(&part).map(|(value, _)| value))
        .collect::<Result<_, _>>()
        .map_err(|error| {
            Error::Wrong(format!("unable to parse SM or JSON patch from [{text}]: {error}"))
        })?;
    let mut operations = Vec::new();
    let mut objects = Vec::new();
    for part in parts {
        match part {
            Value::Array(more) => operations.extend(more),
            other => objects.push(other),
        }
    }
    if operations.is_empty() {
        for object in &objects {
            match &patch.target {
                None => by_name(object, entries)?,
                Some(target) => selected(patch, target, object, entries)?,
            }
        }
        return Ok(());
    }
    let Some(target) = &patch.target else {
        return Err(Error::wrong("must specify a target for JSON patch"));
    };
    let body = Value::Array(operations).to_string();
    for entry in entries.iter_mut() {
        if !selects(target, entry)? {
            continue;
        }
        let patched = patch::json(&entry.value, body.as_bytes())
            .map_err(|error| Error::Wrong(format!("cannot patch {}: {error}", entry.id())))?;
        entry.remember();
        entry.value = patched;
    }
    Ok(())
}

/// A patch that names what it is for.
fn by_name(object: &Value, entries: &mut Vec<Entry>) -> Result<(), Error> {
    let id = Id::of(object);
    if id.kind.is_empty() || id.name.is_empty() {
        return Err(Error::Wrong(format!(
            "a patch has neither a target nor kind and name of one: {object}"
        )));
    }
    let found: Vec<usize> =
        entries.iter().enumerate().filter(|(_, entry)| entry.was(&id)).map(|(at, _)| at).collect();
    let &[at] = found.as_slice() else {
        let why = if found.is_empty() { "no matches" } else { "multiple matches" };
        return Err(Error::Wrong(format!(
            "{why} for Id {id}; failed to find unique target for patch {id}"
        )));
    };
    let keep = entries[at].value["metadata"].clone();
    match merged(&entries[at], object) {
        Some(mut value) => {
            // The patch says whom it is for by a name of that time.
            for field in ["name", "namespace"] {
                restore(&mut value, field, &keep);
            }
            entries[at].value = value;
        }
        None => {
            entries.remove(at);
        }
    }
    Ok(())
}

/// A patch for all that a target selects.
fn selected(
    patch: &Patch,
    target: &Selector,
    object: &Value,
    entries: &mut Vec<Entry>,
) -> Result<(), Error> {
    let allowed = |option: &str| patch.options.get(option).copied().unwrap_or_default();
    let mut kept = Vec::new();
    for mut entry in std::mem::take(entries) {
        if !selects(target, &entry)? {
            kept.push(entry);
            continue;
        }
        let (meta, kind) = (entry.value["metadata"].clone(), entry.value["kind"].clone());
        let Some(mut value) = merged(&entry, object) else { continue };
        if allowed("allowNameChange") {
            entry.remember();
        } else {
            restore(&mut value, "name", &meta);
        }
        restore(&mut value, "namespace", &meta);
        if !allowed("allowKindChange") {
            value["kind"] = kind;
        }
        entry.value = value;
        kept.push(entry);
    }
    *entries = kept;
    Ok(())
}

fn merged(entry: &Entry, object: &Value) -> Option<Value> {
    let id = entry.id();
    let of = schema::builtin().kind(&id.group, &id.version, &id.kind);
    merge::strategic(schema::builtin(), of, entry.value.clone(), object)
}

fn restore(value: &mut Value, field: &str, from: &Value) {
    match from.get(field) {
        Some(old) => value["metadata"][field] = old.clone(),
        None => {
            if let Some(meta) = value["metadata"].as_object_mut() {
                meta.remove(field);
            }
        }
    }
}

/// Whether the selector means this object, by what it is called or was.
pub fn selects(selector: &Selector, entry: &Entry) -> Result<bool, Error> {
    let id = entry.id();
    let whole = |pattern: &str, text: &str| -> Result<bool, Error> {
        if pattern.is_empty() {
            return Ok(true);
        }
        let found = regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|error| {
            Error::Wrong(format!("{pattern:?} is no regular expression: {error}"))
        })?;
        Ok(found.is_match(text))
    };
    for (pattern, text) in
        [(&selector.group, &id.group), (&selector.version, &id.version), (&selector.kind, &id.kind)]
    {
        if !whole(pattern, text)? {
            return Ok(false);
        }
    }
    let mut named = false;
    for called in std::iter::once(&id).chain(&entry.before) {
        named |= whole(&selector.name, &called.name)?
            && whole(&selector.namespace, called.place())?
            || whole(&selector.name, &called.name)?
                && whole(&selector.namespace, &called.namespace)?;
    }
    if !named {
        return Ok(false);
    }
    for (text, field) in
        [(&selector.label_selector, "labels"), (&selector.annotation_selector, "annotations")]
    {
        let pairs = Labels::parse(text).map_err(|error| Error::wrong(error.to_string()))?;
        if !pairs.matches_by(|key| entry.pair(field, key)) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An object that only says which it is, for selectors of replacements.
pub fn selector(group: &str, version: &str, kind: &str, name: &str, namespace: &str) -> Selector {
    let exact = |text: &str| if text.is_empty() { String::new() } else { regex::escape(text) };
    Selector {
        group: exact(group),
        version: exact(version),
        kind: exact(kind),
        name: exact(name),
        namespace: exact(namespace),
        ..Selector::default()
    }
}
