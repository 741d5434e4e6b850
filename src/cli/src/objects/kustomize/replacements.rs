//! Replacements: a value of one object that goes into others.

use serde_json::{Value, json};

use super::Layer;
use super::entry::Entry;
use super::file::{FieldOptions, Replacement, Source, Target};
use super::patches::{selector, selects};
use super::path::parts;
use crate::objects::error::Error;

/// Carries all of them out.
pub fn run(layer: &Layer, entries: &mut [Entry]) -> Result<(), Error> {
    for replacement in &layer.kustomization.replacements {
        if replacement.path.is_empty() {
            one(replacement, entries)?;
            continue;
        }
        let text = layer.read(&replacement.path)?;
        let (value, _) = apimachinery::decode::yaml_unstructured(&text)
            .map_err(|error| Error::Wrong(format!("{}: {error}", replacement.path)))?;
        let several = if value.is_array() { value } else { json!([value]) };
        let read: Vec<Replacement> = serde_json::from_value(several)
            .map_err(|error| Error::Wrong(format!("{}: {error}", replacement.path)))?;
        for replacement in &read {
            one(replacement, entries)?;
        }
    }
    Ok(())
}

fn one(replacement: &Replacement, entries: &mut [Entry]) -> Result<(), Error> {
    let value = match (&replacement.source, &replacement.source_value) {
        (Some(source), None) => find(source, entries)?,
        (None, Some(text)) => text.clone().into(),
        _ => return Err(Error::wrong("replacements must specify one of source and sourceValue")),
    };
    for target in &replacement.targets {
        for entry in entries.iter_mut() {
            let mut rejected = false;
            for reject in &target.reject {
                rejected |= selects(&exact(reject), entry)?;
            }
            if !rejected && selects(&exact(&target.select), entry)? {
                put(target, entry, &value)?;
            }
        }
    }
    Ok(())
}

/// Selectors of replacements are no expressions.
fn exact(of: &super::file::Selector) -> super::file::Selector {
    let mut exact = selector(&of.group, &of.version, &of.kind, &of.name, &of.namespace);
    exact.label_selector = of.label_selector.clone();
    exact.annotation_selector = of.annotation_selector.clone();
    exact
}

fn find(source: &Source, entries: &[Entry]) -> Result<Value, Error> {
    let wanted =
        selector(&source.group, &source.version, &source.kind, &source.name, &source.namespace);
    let mut found = Vec::new();
    for entry in entries {
        if selects(&wanted, entry)? {
            found.push(entry);
        }
    }
    let called = || format!("{}/{}", source.kind, source.name);
    let [entry] = found.as_slice() else {
        let many = if found.is_empty() { "nothing" } else { "multiple matches" };
        return Err(Error::Wrong(format!("{many} selected by replacement source {}", called())));
    };
    let path = if source.field_path.is_empty() { "metadata.name" } else { &source.field_path };
    let mut value = entry.value.clone();
    let mut taken = None;
    let steps = parts(path, '.');
    walk(&mut value, &steps, false, &mut |found| taken = Some(found.clone()))?;
    let Some(value) = taken else {
        return Err(Error::Wrong(format!(
            "fieldPath `{path}` is missing for replacement source {}",
            called()
        )));
    };
    let Some(options) = source.options.as_ref().filter(|options| !options.delimiter.is_empty())
    else {
        return Ok(value);
    };
    let text = scalar(&value);
    let part = text
        .split(options.delimiter.as_str())
        .nth(usize::try_from(options.index).unwrap_or(usize::MAX));
    part.map(Value::from).ok_or_else(|| {
        Error::Wrong(format!("options.index {} is out of bounds for value {text}", options.index))
    })
}

fn put(target: &Target, entry: &mut Entry, value: &Value) -> Result<(), Error> {
    let none = FieldOptions::default();
    let options = target.options.as_ref().unwrap_or(&none);
    if !options.encoding.is_empty() {
        return Err(Error::wrong("options.encoding of replacements is not covered"));
    }
    let name_only = ["metadata.name".to_owned()];
    let paths = if target.field_paths.is_empty() { &name_only[..] } else { &target.field_paths };
    entry.remember();
    let id = entry.id();
    for path in paths {
        let steps = parts(path, '.');
        let mut there = false;
        let mut outcome = Ok(());
        walk(&mut entry.value, &steps, options.create, &mut |found| {
            there = true;
            if let Err(error) = set(found, value, options) {
                outcome = Err(error);
            }
        })?;
        outcome?;
        if !there {
            return Err(Error::Wrong(format!(
                "unable to find field {path:?} in replacement target {id}"
            )));
        }
    }
    Ok(())
}

fn set(found: &mut Value, value: &Value, options: &FieldOptions) -> Result<(), Error> {
    if options.delimiter.is_empty() {
        // A field's kind of scalar stays what it is.
        *found = match (&*found, value) {
            (Value::String(_), Value::Number(_) | Value::Bool(_)) => scalar(value).into(),
            _ => value.clone(),
        };
        return Ok(());
    }
    let old = scalar(found);
    let mut parts: Vec<String> = old.split(options.delimiter.as_str()).map(str::to_owned).collect();
    let text = scalar(value);
    match usize::try_from(options.index) {
        Err(_) => parts.insert(0, text),
        Ok(at) if at < parts.len() => parts[at] = text,
        Ok(_) => parts.push(text),
    }
    *found = parts.join(&options.delimiter).into();
    Ok(())
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Goes down a path whose steps are fields, `*`, indexes, or `[name=x]` of a list.
fn walk(
    value: &mut Value,
    steps: &[String],
    create: bool,
    change: &mut dyn FnMut(&mut Value),
) -> Result<(), Error> {
    let Some((step, rest)) = steps.split_first() else {
        change(value);
        return Ok(());
    };
    if let Some(condition) = step.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
        let (key, wanted) = condition
            .split_once('=')
            .ok_or_else(|| Error::Wrong(format!("{step:?} is no condition of a field path")))?;
        for item in value.as_array_mut().into_iter().flatten() {
            let is = if key.is_empty() { Some(scalar(item)) } else { item.get(key).map(scalar) };
            if is.as_deref() == Some(wanted) {
                walk(item, rest, create, change)?;
            }
        }
        return Ok(());
    }
    match value {
        Value::Array(items) if step == "*" => {
            for item in items {
                walk(item, rest, create, change)?;
            }
        }
        Value::Array(items) => {
            if let Some(item) = step.parse::<usize>().ok().and_then(|at| items.get_mut(at)) {
                walk(item, rest, create, change)?;
            }
        }
        Value::Object(map) => {
            if create && !map.contains_key(step) {
                map.insert(step.clone(), if rest.is_empty() { "".into() } else { json!({}) });
            }
            if let Some(next) = map.get_mut(step) {
                walk(next, rest, create, change)?;
            }
        }
        _ => {}
    }
    Ok(())
}
