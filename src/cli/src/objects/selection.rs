//! Which objects the words of a command line mean: `pods`, `pod a b`, `pod,svc`, `pod/a svc/b`, `all`.
//!
//! Source: `k8s.io/cli-runtime/pkg/resource/builder.go`.

use clap::Args;

use super::error::Error;
use super::kinds::{Kinds, Resource, escape};
use super::session::Session;

/// The flag that chooses by labels.
#[derive(Args, Clone, Debug, Default)]
pub struct Labels {
    /// Only what has these labels, such as `app=web,tier in (a,b)`.
    #[arg(
        short = 'l',
        long,
        value_name = "SELECTOR",
        default_value = "",
        hide_default_value = true
    )]
    pub selector: String,
}

/// Flags that choose among the objects of a type.
#[derive(Args, Clone, Debug, Default)]
pub struct Scope {
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// By labels.
    #[command(flatten)]
    pub labels: Labels,
    /// Only objects with these fields, such as `status.phase=Running`.
    #[arg(long, value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub field_selector: String,
}

impl Scope {
    /// Whether labels or fields choose.
    pub fn is_selective(&self) -> bool {
        !(self.labels.selector.is_empty() && self.field_selector.is_empty())
    }

    /// The one namespace that is meant; `None` for all.
    pub fn namespace<'s>(&self, session: &'s Session) -> Option<&'s str> {
        (!self.all_namespaces).then_some(session.namespace.as_str())
    }

    /// What is asked of a list.
    pub fn query(&self) -> Query {
        Query::default()
            .with("labelSelector", &self.labels.selector)
            .with("fieldSelector", &self.field_selector)
    }
}

/// Some objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// Their resource.
    pub resource: Resource,
    /// One object's name; `None` for all of them.
    pub name: Option<String>,
}

/// Reads the words. Whether all objects of a type are meant when no name is given is the caller's to say.
pub fn select(kinds: &Kinds, words: &[String]) -> Result<Vec<Selected>, Error> {
    let slashed = words.iter().filter(|word| word.contains('/')).count();
    if slashed > 0 {
        if slashed < words.len() {
            return Err(Error::wrong(
                "there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'kubectl get resource/<resource_name>' instead of 'kubectl get resource resource/<resource_name>'",
            ));
        }
        return words.iter().map(|word| one(kinds, word)).collect();
    }
    let Some((types, names)) = words.split_first() else { return Ok(Vec::new()) };
    let mut resources = Vec::new();
    for called in types.split(',') {
        if called.is_empty() {
            return Err(Error::wrong(format!(
                "the server doesn't have a resource type {called:?}"
            )));
        }
        let members = kinds.category(called);
        if members.is_empty() {
            resources.push(kinds.find(called)?);
        } else {
            resources.extend(members);
        }
    }
    let mut selected: Vec<Selected> = Vec::new();
    for resource in resources {
        let names: Vec<Option<String>> =
            if names.is_empty() { vec![None] } else { names.iter().cloned().map(Some).collect() };
        for name in names {
            if name.as_deref() == Some("") {
                return Err(Error::wrong("resource name may not be empty"));
            }
            let one = Selected { resource: resource.clone(), name };
            if !selected.contains(&one) {
                selected.push(one);
            }
        }
    }
    Ok(selected)
}

fn one(kinds: &Kinds, word: &str) -> Result<Selected, Error> {
    let mut parts = word.split('/');
    let (called, name, more) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    match (name, more) {
        (Some(name), None) if !called.is_empty() && !name.is_empty() => {
            Ok(Selected { resource: kinds.find(called)?.clone(), name: Some(name.to_owned()) })
        }
        (Some(_), None) => Err(Error::wrong(
            "arguments in resource/name form must have a single resource and name",
        )),
        _ => Err(Error::wrong("arguments in resource/name form may not have more than one slash")),
    }
}

/// What is asked of a list.
#[derive(Clone, Debug, Default)]
pub struct Query(String);

impl Query {
    /// Adds `key=value`; nothing when the value is empty.
    #[must_use]
    pub fn with(self, key: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.with_empty(key, value) }
    }

    /// Adds `key=value`, an empty value too.
    #[must_use]
    pub fn with_empty(mut self, key: &str, value: &str) -> Self {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(&format!("{key}={}", escape(value)));
        self
    }

    /// Adds `key=true`.
    #[must_use]
    pub fn flag(self, key: &str, value: bool) -> Self {
        if value { self.with(key, "true") } else { self }
    }

    /// From the `?` on; empty when nothing is asked.
    pub fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_escaped() {
        let query = Query::default()
            .with("labelSelector", "a in (b),c!=d")
            .with("limit", "")
            .flag("watch", true);
        assert_eq!(query.text(), "?labelSelector=a%20in%20%28b%29%2Cc%21%3Dd&watch=true");
    }
}
