//! The field labels that a field selector may name, kind by kind, and their values in an object.
//!
//! Source: the `AddFieldLabelConversionFunc` calls of `k8s.io/kubernetes/pkg/apis/*/*/conversion.go` and
//! the `ToSelectableFields` functions of `pkg/registry`.

use std::borrow::Cow;
use std::fmt;

use crate::resource::Resource;
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

/// The values of `selectable` in the object `raw`, in that order.
pub fn extract(raw: &[u8], selectable: &[Selectable]) -> Result<Vec<String>, serde_json::Error> {
    let mut values: Vec<String> = selectable.iter().map(|s| s.absent.to_owned()).collect();
    if !selectable.is_empty() {
        let paths = selectable.iter().enumerate().map(|(i, s)| (i, s.path.as_ref())).collect();
        let mut deserializer = serde_json::Deserializer::from_slice(raw);
        Paths { paths, values: &mut values }.deserialize(&mut deserializer)?;
        for (at, field) in selectable.iter().enumerate() {
            if values[at].is_empty()
                && let Some(other) = selectable.iter().position(|s| s.label == field.instead)
            {
                values[at] = values[other].clone();
            }
        }
    }
    Ok(values)
}

/// Picks the scalars at `paths` out of a document and skips the rest unparsed.
struct Paths<'a> {
    paths: Vec<(usize, &'a str)>,
    values: &'a mut Vec<String>,
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
                text.clone_into(&mut self.values[index]);
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
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let below: Vec<(usize, &str)> = self
                .paths
                .iter()
                .filter_map(|(i, path)| {
                    let rest = path.strip_prefix(key.as_ref())?;
                    if rest.is_empty() {
                        Some((*i, rest))
                    } else {
                        Some((*i, rest.strip_prefix('.')?))
                    }
                })
                .collect();
            if below.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Paths { paths: below, values: self.values })?;
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
        let get = |label: &str| &values[pods.iter().position(|s| s.label == label).expect("known")];
        assert_eq!(get("spec.nodeName"), "n1");
        assert_eq!(get("status.phase"), "Running");
        assert_eq!(get("spec.hostNetwork"), "false");
        assert_eq!(get("status.podIP"), "");
        assert_eq!(
            extract(br#"{"status":{"replicas":3}}"#, of("apps", "replicasets")).expect("parses"),
            ["3"]
        );
        let events = of("", "events");
        let source = events.iter().position(|s| s.label == "source").expect("known");
        for raw in [
            r#"{"source":{"component":"x"},"reportingComponent":"y"}"#,
            r#"{"source":{},"reportingComponent":"x"}"#,
        ] {
            assert_eq!(extract(raw.as_bytes(), events).expect("parses")[source], "x", "{raw}");
        }
    }
}
