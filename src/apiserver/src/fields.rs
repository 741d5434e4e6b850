//! The field labels that a field selector may name, kind by kind, and their values in an object.
//!
//! Source: the `AddFieldLabelConversionFunc` calls of `k8s.io/kubernetes/pkg/apis/*/*/conversion.go` and
//! the `ToSelectableFields` functions of `pkg/registry`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use apimachinery::meta;
use serde_json::Value;

use crate::resource::Resource;
use crate::texts::{Labels, Texts};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A field label beyond `metadata.name` and `metadata.namespace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selectable {
    /// The label: `spec.nodeName`.
    pub label: Cow<'static, str>,
    /// Where its value is, dotted.
    path: Cow<'static, str>,
    /// The value when the field is absent.
    absent: &'static str,
    /// The label whose value is taken when the field is absent.
    instead: &'static str,
}

impl Selectable {
    /// A field of a custom resource, at the simple path `.spec.color`.
    pub fn custom(path: &str) -> Self {
        let label = Cow::<'static, str>::Owned(path.trim_start_matches('.').to_owned());
        Self { path: label.clone(), label, absent: "", instead: "" }
    }
}

const fn text(label: &'static str) -> Selectable {
    at(label, label)
}

const fn flag(label: &'static str) -> Selectable {
    field(label, label, "false", "")
}

const fn number(label: &'static str) -> Selectable {
    field(label, label, "0", "")
}

const fn at(label: &'static str, path: &'static str) -> Selectable {
    field(label, path, "", "")
}

const fn field(
    label: &'static str,
    path: &'static str,
    absent: &'static str,
    instead: &'static str,
) -> Selectable {
    Selectable { label: Cow::Borrowed(label), path: Cow::Borrowed(path), absent, instead }
}

const EVENT: &[Selectable] = &[
    text("involvedObject.kind"),
    text("involvedObject.namespace"),
    text("involvedObject.name"),
    text("involvedObject.uid"),
    text("involvedObject.apiVersion"),
    text("involvedObject.resourceVersion"),
    text("involvedObject.fieldPath"),
    text("reason"),
    text("reportingComponent"),
    field("source", "source.component", "", "reportingComponent"),
    text("type"),
];

/// Labels of core events and what `events.k8s.io` calls them.
const EVENT_NAMES: [(&str, &str); 10] = [
    ("involvedObject.kind", "regarding.kind"),
    ("involvedObject.namespace", "regarding.namespace"),
    ("involvedObject.name", "regarding.name"),
    ("involvedObject.uid", "regarding.uid"),
    ("involvedObject.apiVersion", "regarding.apiVersion"),
    ("involvedObject.resourceVersion", "regarding.resourceVersion"),
    ("involvedObject.fieldPath", "regarding.fieldPath"),
    ("reason", "reason"),
    ("reportingComponent", "reportingController"),
    ("type", "type"),
];

/// Group, resource, labels. Kinds that are not listed know name and namespace only.
const TABLE: &[(&str, &str, &[Selectable])] = &[
    (
        "",
        "pods",
        &[
            text("spec.nodeName"),
            text("spec.restartPolicy"),
            text("spec.schedulerName"),
            text("spec.serviceAccountName"),
            flag("spec.hostNetwork"),
            text("status.phase"),
            text("status.podIP"),
            at("status.podIPs", "status.podIP"),
            text("status.nominatedNodeName"),
        ],
    ),
    ("", "nodes", &[flag("spec.unschedulable")]),
    ("", "namespaces", &[text("status.phase"), at("name", "metadata.name")]),
    ("", "secrets", &[text("type")]),
    ("", "services", &[text("spec.clusterIP"), text("spec.type")]),
    ("", "replicationcontrollers", &[number("status.replicas")]),
    ("", "events", EVENT),
    ("apps", "replicasets", &[number("status.replicas")]),
    ("batch", "jobs", &[number("status.successful")]),
    ("certificates.k8s.io", "certificatesigningrequests", &[text("spec.signerName")]),
    ("certificates.k8s.io", "clustertrustbundles", &[text("spec.signerName")]),
    (
        "certificates.k8s.io",
        "podcertificaterequests",
        &[text("spec.signerName"), text("spec.podName"), text("spec.nodeName")],
    ),
    ("resource.k8s.io", "resourceslices", &[text("spec.nodeName"), text("spec.driver")]),
];

/// The selectable fields of a resource.
pub fn of(group: &str, plural: &str) -> &'static [Selectable] {
    TABLE.iter().find(|(g, p, _)| *g == group && *p == plural).map_or(&[], |(_, _, list)| list)
}

/// The labels of the stored kind as the served resource calls them; those that it does not know are empty.
pub fn served<'a>(resource: &'a Resource, stored: &'a [Selectable]) -> Cow<'a, [Selectable]> {
    if let Some(custom) = &resource.custom {
        return Cow::Borrowed(&custom.selectable);
    }
    if !resource.is("events.k8s.io", "events") {
        return Cow::Borrowed(stored);
    }
    let rename = |field: &Selectable| {
        let name = EVENT_NAMES.iter().find(|(stored, _)| *stored == field.label);
        Selectable { label: Cow::Borrowed(name.map_or("", |(_, name)| name)), ..field.clone() }
    };
    stored.iter().map(rename).collect()
}

/// What lookups and selectors need of an object, read in one go.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The values of the selectable fields, in their order.
    pub fields: Texts,
}

/// Reads the object `raw`, whose selectable fields are `selectable`.
pub fn read(raw: &[u8], selectable: &[Selectable]) -> Result<Read, serde_json::Error> {
    let mut read = Read::default();
    let mut values = vec![None; selectable.len()];
    let paths =
        selectable.iter().enumerate().map(|(at, field)| (at, field.path.as_ref())).collect();
    let mut deserializer = serde_json::Deserializer::from_slice(raw);
    let root = Root { of: Paths { paths, values: &mut values }, read: &mut read };
    root.deserialize(&mut deserializer)?;
    deserializer.end()?;
    for (value, field) in values.iter_mut().zip(selectable) {
        if field.path == "metadata.name" {
            *value = Some(read.name.clone());
        }
    }
    read.fields = chosen(selectable, |at| values[at].as_deref());
    Ok(read)
}

/// The same of an object that is at hand.
pub fn of_value(object: &Value, selectable: &[Selectable]) -> Read {
    let scalar = |field: &Selectable| match meta::at(object, &field.path)? {
        Value::String(text) => Some(Cow::Borrowed(text.as_str())),
        Value::Bool(true) => Some("true".into()),
        Value::Bool(false) => Some("false".into()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string().into()),
        _ => None,
    };
    let values: Vec<Option<Cow<'_, str>>> = selectable.iter().map(scalar).collect();
    let labels = meta::metadata(object).get("labels").and_then(Value::as_object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Read {
        name: meta::name(object).to_owned(),
        namespace: meta::namespace(object).to_owned(),
        uid: meta::uid(object).to_owned(),
        labels: labels.into_iter().flatten().map(|(key, value)| (key, text(value))).collect(),
        fields: chosen(selectable, |at| values[at].as_deref()),
    }
}

/// The values of the fields, with what stands for absent ones.
fn chosen<'a>(selectable: &'a [Selectable], value: impl Fn(usize) -> Option<&'a str>) -> Texts {
    let found = |at: usize| value(at).unwrap_or(selectable[at].absent);
    let fields = selectable.iter().enumerate().map(|(at, field)| match found(at) {
        "" => selectable
            .iter()
            .position(|other| !field.instead.is_empty() && other.label == field.instead)
            .map_or("", found),
        value => value,
    });
    fields.collect()
}

/// The values of `selectable` in the object `raw`, in that order.
pub fn extract(raw: &[u8], selectable: &[Selectable]) -> Result<Texts, serde_json::Error> {
    read(raw, selectable).map(|read| read.fields)
}

/// An object: its metadata is read here, the rest by its paths.
struct Root<'a> {
    of: Paths<'a>,
    read: &'a mut Read,
}

impl<'de> DeserializeSeed<'de> for Root<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Root<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(below) = map.next_key_seed(Below(&self.of.paths))? {
            match below {
                Next::Metadata => {
                    let Head { name, namespace, uid, labels } = map.next_value()?;
                    self.read.name = name.unwrap_or_default();
                    self.read.namespace = namespace.unwrap_or_default();
                    self.read.uid = uid.unwrap_or_default();
                    self.read.labels = labels.unwrap_or_default().into_iter().collect();
                }
                Next::Nothing => drop(map.next_value::<IgnoredAny>()?),
                Next::Paths(paths) => {
                    map.next_value_seed(Paths { paths, values: &mut *self.of.values })?;
                }
            }
        }
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Head {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
}

/// What is to be read of the value of a key.
enum Next<'a> {
    Metadata,
    Nothing,
    Paths(Vec<(usize, &'a str)>),
}

/// Reads a key: which of the paths go on below it.
struct Below<'p, 'a>(&'p [(usize, &'a str)]);

impl<'de, 'a> DeserializeSeed<'de> for Below<'_, 'a> {
    type Value = Next<'a>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Next<'a>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'_> for Below<'_, 'a> {
    type Value = Next<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Next<'a>, E> {
        if key == "metadata" {
            return Ok(Next::Metadata);
        }
        let rest = |(at, path): &(usize, &'a str)| {
            let rest = path.strip_prefix(key)?;
            Some((*at, if rest.is_empty() { rest } else { rest.strip_prefix('.')? }))
        };
        let paths: Vec<(usize, &str)> = self.0.iter().filter_map(rest).collect();
        Ok(if paths.is_empty() { Next::Nothing } else { Next::Paths(paths) })
    }
}

/// Picks the scalars at `paths` out of a document and skips the rest unparsed.
struct Paths<'a> {
    paths: Vec<(usize, &'a str)>,
    values: &'a mut [Option<String>],
}

impl<'de> DeserializeSeed<'de> for Paths<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Paths<'_> {
    fn scalar(self, text: &str) {
        for (index, path) in self.paths {
            if path.is_empty() {
                self.values[index] = Some(text.to_owned());
            }
        }
    }
}

impl<'de> Visitor<'de> for Paths<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(below) = map.next_key_seed(Below(&self.paths))? {
            match below {
                Next::Paths(paths) => {
                    map.next_value_seed(Paths { paths, values: &mut *self.values })?;
                }
                // Only a whole object has metadata.
                Next::Metadata | Next::Nothing => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_str<E>(self, v: &str) -> Result<(), E> {
        self.scalar(v);
        Ok(())
    }

    fn visit_bool<E>(self, v: bool) -> Result<(), E> {
        self.scalar(if v { "true" } else { "false" });
        Ok(())
    }

    fn visit_u64<E>(self, v: u64) -> Result<(), E> {
        self.scalar(&v.to_string());
        Ok(())
    }

    fn visit_i64<E>(self, v: i64) -> Result<(), E> {
        self.scalar(&v.to_string());
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_picked_and_defaulted() {
        let raw = br#"{"metadata":{"name":"a"},"spec":{"nodeName":"n1","containers":[{"x":1}]},"status":{"phase":"Running","podIP":null}}"#;
        let pods = of("", "pods");
        let values = extract(raw, pods).expect("parses");
        let get =
            |label: &str| values.get(pods.iter().position(|s| s.label == label).expect("known"));
        assert_eq!(get("spec.nodeName"), Some("n1"));
        assert_eq!(get("status.phase"), Some("Running"));
        assert_eq!(get("spec.hostNetwork"), Some("false"));
        assert_eq!(get("status.podIP"), Some(""));
        let sets = of("apps", "replicasets");
        let values = extract(br#"{"status":{"replicas":3}}"#, sets).expect("parses");
        assert_eq!(values.get(0), Some("3"));
        let raw = br#"{"metadata":{"name":"a","uid":"u","labels":{"x":"y"},"z":{"name":"b"}},"status":{"phase":"Active","metadata":{"name":"c"}}}"#;
        let read = read(raw, of("", "namespaces")).expect("parses");
        assert_eq!((&*read.name, &*read.namespace, &*read.uid), ("a", "", "u"));
        assert_eq!(read.labels.get("x"), Some("y"));
        assert_eq!(read.fields.iter().collect::<Vec<_>>(), ["Active", "a"]);
        for (raw, group, plural) in [
            (raw.as_slice(), "", "namespaces"),
            (br#"{"status":{"replicas":3}}"#, "apps", "replicasets"),
            (br#"{"metadata":{"name":"p","namespace":"n","labels":{"b":"1","a":""}},"spec":{"hostNetwork":true,"nodeName":""}}"#, "", "pods"),
            (br#"{"source":{},"reportingComponent":"x","reason":null}"#, "", "events"),
        ] {
            let value: Value = serde_json::from_slice(raw).expect("parses");
            let parsed = super::read(raw, of(group, plural)).expect("parses");
            assert_eq!(of_value(&value, of(group, plural)), parsed, "{plural}");
        }
        let events = of("", "events");
        let source = events.iter().position(|s| s.label == "source").expect("known");
        for raw in [
            r#"{"source":{"component":"x"},"reportingComponent":"y"}"#,
            r#"{"source":{},"reportingComponent":"x"}"#,
        ] {
            let values = extract(raw.as_bytes(), events).expect("parses");
            assert_eq!(values.get(source), Some("x"), "{raw}");
        }
    }
}
