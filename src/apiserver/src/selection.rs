//! Which objects a list or watch shows: namespace, label selector, field selector.

use apimachinery::Status;
use apimachinery::labels::Selector;

use crate::fields::Selectable;
use crate::object::Object;

/// What a field requirement looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Name,
    Namespace,
    Field(usize),
}

#[derive(Clone, Debug)]
struct Requirement {
    source: Source,
    equal: bool,
    value: String,
}

/// A filter over the objects of one resource.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    namespace: Option<String>,
    labels: Selector,
    fields: Vec<Requirement>,
}

impl Selection {
    /// The filter of a request; `namespace` is empty for all.
    pub fn parse(
        namespace: &str,
        label_selector: &str,
        field_selector: &str,
        selectable: &[Selectable],
        namespaced: bool,
    ) -> Result<Self, Status> {
        let labels = Selector::parse(label_selector)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        let fields = parse_fields(field_selector, selectable, namespaced)?;
        let namespace = (!namespace.is_empty()).then(|| namespace.to_owned());
        Ok(Self { namespace, labels, fields })
    }

    /// Whether selectors narrow the choice beyond the namespace.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty()
    }

    /// Whether it looks at other fields than the name and the namespace.
    pub fn looks_at_fields(&self) -> bool {
        self.fields.iter().any(|requirement| matches!(requirement.source, Source::Field(_)))
    }

    /// Whether the object passes.
    pub fn matches(&self, object: &Object) -> bool {
        self.namespace.as_ref().is_none_or(|ns| *ns == object.namespace)
            && self.fields.iter().all(|f| {
                let value = match f.source {
                    Source::Name => object.name.as_str(),
                    Source::Namespace => &object.namespace,
                    Source::Field(index) => match object.fields.get(index) {
                        Some(value) => value,
                        None => return !f.equal,
                    },
                };
                (value == f.value) == f.equal
            })
            && (self.labels.is_everything() || self.labels.matches_by(|key| object.labels.get(key)))
    }
}

/// Parses `a=b,c!=d` with upstream's escapes (`fields.ParseSelector`).
fn parse_fields(
    text: &str,
    selectable: &[Selectable],
    namespaced: bool,
) -> Result<Vec<Requirement>, Status> {
    let mut requirements = Vec::new();
    for term in split_terms(text) {
        if term.is_empty() {
            continue;
        }
        let Some((key, equal, value)) = split_term(&term) else {
            let message = format!("invalid selector: '{text}'; can't understand '{term}'");
            return Err(Status::bad_request(message));
        };
        let value = unescape(value)?;
        let source = match key {
            "metadata.name" => Source::Name,
            "metadata.namespace" if namespaced || selectable.is_empty() => Source::Namespace,
            // The old name of spec.nodeName.
            "spec.host" if selectable.iter().any(|s| s.label == "spec.nodeName") => {
                Source::Field(0)
            }
            _ => match selectable.iter().position(|s| s.label == key) {
                Some(index) => Source::Field(index),
                None => return Err(Status::bad_request(unsupported(key, selectable))),
            },
        };
        requirements.push(Requirement { source, equal, value });
    }
    Ok(requirements)
}

fn unsupported(key: &str, selectable: &[Selectable]) -> String {
    if selectable.is_empty() {
        format!(
            "{key:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        )
    } else {
        format!("field label not supported: {key}")
    }
}

fn split_terms(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            terms.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        if let Some(last) = terms.last_mut() {
            last.push(c);
        }
    }
    terms
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.find('=')?;
    if term[..at].ends_with('!') {
        return Some((&term[..at - 1], false, &term[at + 1..]));
    }
    let value = &term[at + 1..];
    Some((&term[..at], true, value.strip_prefix('=').unwrap_or(value)))
}

fn unescape(value: &str) -> Result<String, Status> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let sequence: String = std::iter::once('\\').chain(other).collect();
                    return Err(Status::bad_request(format!(
                        "invalid field selector: invalid escape sequence: {sequence}"
                    )));
                }
            },
            ',' | '=' => {
                return Err(Status::bad_request(format!(
                    "invalid field selector: unescaped character in value: {c}"
                )));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields;

    fn pod(name: &str, node: &str) -> Object {
        let others = fields::of("", "pods").len() - 1;
        let fields = std::iter::once(node).chain(std::iter::repeat_n("", others)).collect();
        Object { name: name.into(), namespace: "default".into(), fields, ..Object::default() }
    }

    fn pods(field_selector: &str) -> Result<Selection, Status> {
        Selection::parse("", "", field_selector, fields::of("", "pods"), true)
    }

    #[test]
    fn fields_select() {
        let cases = [
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("metadata.name==a,spec.nodeName=n", true),
            ("spec.nodeName=", false),
            ("spec.host=n", true),
            ("metadata.namespace=kube-system", false),
        ];
        for (selector, want) in cases {
            assert_eq!(pods(selector).expect(selector).matches(&pod("a", "n")), want, "{selector}");
        }
    }

    #[test]
    fn unknown_labels_are_refused_in_upstreams_words() {
        let message = |s: Result<Selection, Status>| s.expect_err("refused").message;
        assert_eq!(message(pods("foo=bar")), "field label not supported: foo");
        assert_eq!(
            message(Selection::parse("", "", "spec.x=1", &[], true)),
            "\"spec.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(message(pods("foo")), "invalid selector: 'foo'; can't understand 'foo'");
    }
}
