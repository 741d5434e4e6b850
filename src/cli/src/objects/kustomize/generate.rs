//! Config maps and secrets made from literals and files.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::Layer;
use super::entry::{Entry, add};
use super::file::{Generator, Options};
use crate::objects::error::Error;

/// kustomize writes long base64 in lines of so many letters.
const LINE: usize = 70;

/// Adds what the kustomization generates.
pub fn run(layer: &Layer, entries: &mut Vec<Entry>) -> Result<(), Error> {
    for (kind, generators) in [
        ("ConfigMap", &layer.kustomization.config_map_generator),
        ("Secret", &layer.kustomization.secret_generator),
    ] {
        for generator in generators {
            let made = make(layer, kind, generator)?;
            absorb(entries, made, &generator.behavior)?;
        }
    }
    Ok(())
}

fn make(layer: &Layer, kind: &str, of: &Generator) -> Result<Entry, Error> {
    if of.name.is_empty() {
        return Err(Error::Wrong(format!("a {kind} generator has no name")));
    }
    let options = options(&layer.kustomization.generator_options, &of.options);
    let mut value = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": of.name}});
    if !of.namespace.is_empty() {
        value["metadata"]["namespace"] = of.namespace.clone().into();
    }
    for (field, pairs) in [("labels", &options.labels), ("annotations", &options.annotations)] {
        if !pairs.is_empty() {
            value["metadata"][field] = json!(pairs);
        }
    }
    if kind == "Secret" {
        value["type"] = if of.of.is_empty() { "Opaque" } else { &of.of }.into();
    }
    for (key, bytes) in pairs(layer, of)? {
        let (field, text) = match (kind, String::from_utf8(bytes)) {
            ("ConfigMap", Ok(text)) => ("data", text),
            ("ConfigMap", Err(binary)) => ("binaryData", encode(binary.as_bytes())),
            (_, Ok(text)) => ("data", encode(text.as_bytes())),
            (_, Err(binary)) => ("data", encode(binary.as_bytes())),
        };
        if value[field].is_null() {
            value[field] = json!({});
        }
        let twice = value["data"].get(&key).or_else(|| value["binaryData"].get(&key)).is_some();
        if twice {
            return Err(Error::Wrong(format!(
                "{} {}: cannot add key {key:?}, another key by that name already exists",
                kind, of.name
            )));
        }
        value[field][key] = text.into();
    }
    if options.immutable {
        value["immutable"] = true.into();
    }
    let mut entry = Entry::new(value)?;
    entry.hashed = !options.disable_name_suffix_hash;
    Ok(entry)
}

/// A generator's own options before those of all.
fn options(all: &Options, own: &Options) -> Options {
    let both = |all: &BTreeMap<String, String>, own: &BTreeMap<String, String>| {
        let mut both = all.clone();
        both.extend(own.clone());
        both
    };
    Options {
        labels: both(&all.labels, &own.labels),
        annotations: both(&all.annotations, &own.annotations),
        disable_name_suffix_hash: all.disable_name_suffix_hash || own.disable_name_suffix_hash,
        immutable: all.immutable || own.immutable,
    }
}

fn pairs(layer: &Layer, of: &Generator) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut pairs = Vec::new();
    let env = (!of.env.is_empty()).then_some(&of.env);
    for file in of.envs.iter().chain(env) {
        for line in layer.read(file)?.trim_start_matches('\u{feff}').lines() {
            pairs.extend(env_line(line)?.map(|(key, value)| (key, value.into_bytes())));
        }
    }
    for literal in &of.literals {
        let (key, value) =
            literal.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                Error::Wrong(format!("invalid literal source {literal:?}, expected key=value"))
            })?;
        pairs.push((key.to_owned(), unquoted(value).as_bytes().to_vec()));
    }
    for file in &of.files {
        let (key, path) = match file.split_once('=') {
            Some((key, path)) if !key.is_empty() && !path.is_empty() && !path.contains('=') => {
                (key, path)
            }
            Some(_) => {
                return Err(Error::Wrong(format!(
                    "invalid file source {file:?}, expected [key=]path"
                )));
            }
            None => (file.rsplit('/').next().unwrap_or(file), file.as_str()),
        };
        pairs.push((key.to_owned(), layer.read_bytes(path)?));
    }
    Ok(pairs)
}

/// Without quotes around the whole.
fn unquoted(text: &str) -> &str {
    let within = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    within('"').or_else(|| within('\'')).unwrap_or(text)
}

/// `KEY=VALUE`, or a key whose value is in this process's environment.
fn env_line(line: &str) -> Result<Option<(String, String)>, Error> {
    let line = line.trim_start();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (key, value) = match line.split_once('=') {
        Some((key, value)) => (key, value.to_owned()),
        None => (line, std::env::var(line).unwrap_or_default()),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if key.is_empty() || !key.chars().all(legal) {
        return Err(Error::Wrong(format!("{key:?} is not a valid key name")));
    }
    Ok(Some((key.to_owned(), value)))
}

fn encode(bytes: &[u8]) -> String {
    let text = STANDARD.encode(bytes);
    if text.len() < LINE {
        return text;
    }
    let mut lines = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, next) = rest.split_at(rest.len().min(LINE));
        lines.push_str(line);
        lines.push('\n');
        rest = next;
    }
    lines
}

/// Adds what was made, or puts it into what a base made under that name.
fn absorb(entries: &mut Vec<Entry>, made: Entry, behavior: &str) -> Result<(), Error> {
    let id = made.id();
    let merge = match behavior {
        "" | "create" => return add(entries, made),
        "merge" => true,
        "replace" => false,
        other => return Err(Error::Wrong(format!("unknown behavior {other:?} of a generator"))),
    };
    let mut found = entries.iter_mut().filter(|entry| entry.was(&id));
    let Some(old) = found.next() else {
        return Err(Error::Wrong(format!("id {id} does not exist; cannot merge or replace")));
    };
    let mut value = made.value;
    for field in ["labels", "annotations"] {
        let mut pairs = old.value["metadata"].get(field).cloned().unwrap_or_else(|| json!({}));
        extend(&mut pairs, value["metadata"].get(field));
        if pairs.as_object().is_some_and(|pairs| !pairs.is_empty()) {
            value["metadata"][field] = pairs;
        }
    }
    value["metadata"]["name"] = old.value["metadata"]["name"].clone();
    if let Some(namespace) = old.value["metadata"].get("namespace") {
        value["metadata"]["namespace"] = namespace.clone();
    }
    if merge {
        for field in ["data", "binaryData"] {
            let mut pairs = old.value.get(field).cloned().unwrap_or_else(|| json!({}));
            extend(&mut pairs, value.get(field));
            if pairs.as_object().is_some_and(|pairs| !pairs.is_empty()) {
                value[field] = pairs;
            }
        }
    }
    old.value = value;
    old.hashed |= made.hashed;
    Ok(())
}

fn extend(pairs: &mut Value, more: Option<&Value>) {
    let more: Map<String, Value> = more.and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(pairs) = pairs.as_object_mut() {
        pairs.extend(more);
    }
}

/// SHA-256, as letters.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_environment_files() {
        let cases = [
            ("A=b", Some(("A", "b"))),
            ("  A= b ", Some(("A", " b "))),
            ("A=b=c", Some(("A", "b=c"))),
            ("# A=b", None),
            ("", None),
        ];
        for (line, want) in cases {
            let found = env_line(line).unwrap();
            assert_eq!(found, want.map(|(k, v)| (k.to_owned(), v.to_owned())), "{line}");
        }
        assert!(env_line("a b=c").is_err());
    }

    #[test]
    fn long_values_are_broken_into_lines() {
        assert_eq!(encode(b"abc"), "YWJj");
        let long = encode(&[b'a'; 60]);
        assert_eq!(long.lines().map(str::len).collect::<Vec<_>>(), [70, 10]);
        assert!(long.ends_with('\n'));
    }
}
