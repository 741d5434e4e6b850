//! An object on its way through a kustomization.

use serde_json::{Map, Value, json};

use apimachinery::schema;

use crate::objects::error::Error;
use crate::objects::print::json as text;

/// What tells objects apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

impl Id {
    /// The id of an object.
    pub fn of(value: &Value) -> Self {
        let text =
            |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
        let version = text(value.get("apiVersion"));
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: text(value.get("kind")),
            name: text(value.pointer("/metadata/name")),
            namespace: text(value.pointer("/metadata/namespace")),
        }
    }

    /// Whether both are of the same kind and name; no namespace and `default` are one.
    pub fn is(&self, other: &Self) -> bool {
        (&self.group, &self.version, &self.kind, &self.name)
            == (&other.group, &other.version, &other.kind, &other.name)
            && self.place() == other.place()
    }

    /// The namespace.
    pub fn place(&self) -> &str {
        if !self.is_namespaced() {
            return "";
        }
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    /// Whether such objects have a namespace; those of unknown kinds do.
    pub fn is_namespaced(&self) -> bool {
        let of = schema::builtin().resource_of_kind(&self.group, &self.version, &self.kind);
        of.is_none_or(|resource| resource.namespaced)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let or = |text: &str, none: &str| {
            if text.is_empty() { none.to_owned() } else { text.to_owned() }
        };
        write!(
            f,
            "{}.{}.{}/{}.{}",
            self.kind,
            or(&self.version, "[noVer]"),
            or(&self.group, "[noGrp]"),
            or(&self.name, "[noName]"),
            or(&self.namespace, "[noNs]")
        )
    }
}

/// An object, and what it was called before.
#[derive(Clone, Debug)]
pub struct Entry {
    pub value: Value,
    pub before: Vec<Id>,
    pub prefixes: Vec<String>,
    pub suffixes: Vec<String>,
    /// Whether its name is to tell what it holds.
    pub hashed: bool,
}

impl Entry {
    /// Of a manifest.
    pub fn new(value: Value) -> Result<Self, Error> {
        let id = Id::of(&value);
        if id.name.is_empty() {
            return Err(Error::Wrong(format!("missing metadata.name in object {id}")));
        }
        Ok(Self {
            value,
            before: Vec::new(),
            prefixes: Vec::new(),
            suffixes: Vec::new(),
            hashed: false,
        })
    }

    /// What it is called now.
    pub fn id(&self) -> Id {
        Id::of(&self.value)
    }

    /// Whether it is called so, or was.
    pub fn was(&self, id: &Id) -> bool {
        self.id().is(id) || self.before.iter().any(|before| before.is(id))
    }

    /// Remembers what it is called, before that changes.
    pub fn remember(&mut self) {
        self.before.push(self.id());
    }

    /// `metadata`, which is made where there is none.
    pub fn metadata(&mut self) -> &mut Map<String, Value> {
        if !self.value["metadata"].is_object() {
            self.value["metadata"] = json!({});
        }
        self.value["metadata"].as_object_mut().expect("it is an object now")
    }

    /// Gives it another name.
    pub fn rename(&mut self, name: String) {
        self.metadata().insert("name".into(), name.into());
    }

    /// A label or annotation map as pairs.
    pub fn pair(&self, of: &str, key: &str) -> Option<&str> {
        self.value.get("metadata")?.get(of)?.get(key)?.as_str()
    }
}

/// Adds an object to others; none may be there twice.
pub fn add(entries: &mut Vec<Entry>, entry: Entry) -> Result<(), Error> {
    let id = entry.id();
    if entries.iter().any(|other| other.id().is(&id)) {
        return Err(Error::Wrong(format!(
            "may not add resource with an already registered id: {id}"
        )));
    }
    entries.push(entry);
    Ok(())
}

/// Puts what they hold behind the names of those that ask for it, as a hash.
pub fn add_hashes(entries: &mut [Entry]) -> Result<(), Error> {
    for entry in entries.iter_mut().filter(|entry| entry.hashed) {
        entry.remember();
        let name = format!("{}-{}", entry.id().name, hash(&entry.value));
        entry.rename(name);
    }
    Ok(())
}

/// Ten letters that change with the content.
fn hash(value: &Value) -> String {
    let field = |name: &str| value.get(name).cloned().unwrap_or_else(|| "".into());
    let mut content = match value["kind"].as_str() {
        Some("Secret") => {
            json!({"kind": "Secret", "type": field("type"), "name": "", "data": field("data")})
        }
        Some("ConfigMap") => json!({"kind": "ConfigMap", "name": "", "data": field("data")}),
        _ => value.clone(),
    };
    for also in ["binaryData", "stringData"] {
        if let Some(more) = value.get(also).filter(|more| more.is_object()) {
            content[also] = more.clone();
        }
    }
    let hex = super::generate::sha256_hex(text::line(&content).as_bytes());
    // Letters that make no words.
    hex.chars()
        .take(10)
        .map(|c| match c {
            '0' => 'g',
            '1' => 'h',
            '3' => 'k',
            'a' => 'm',
            'e' => 't',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_content() {
        let cases = [
            (
                json!({"kind": "ConfigMap", "metadata": {"name": "p-cfg-s"}, "data": {"a": "b", "c": "d e"}}),
                "h6665gg887",
            ),
            (
                json!({"kind": "Secret", "metadata": {"name": "x"}, "type": "Opaque", "data": {"password": "YWJj"}}),
                "m7m6g5hc9f",
            ),
        ];
        for (value, want) in cases {
            assert_eq!(hash(&value), want, "{value}");
        }
    }

    #[test]
    fn no_namespace_is_the_default_one() {
        let id = |namespace: &str| {
            Id::of(
                &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": namespace}}),
            )
        };
        assert!(id("").is(&id("default")));
        assert!(!id("").is(&id("other")));
        assert_eq!(id("").to_string(), "Pod.v1.[noGrp]/x.[noNs]");
    }
}
