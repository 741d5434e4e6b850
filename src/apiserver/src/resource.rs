//! A resource as this server serves it: built-in kinds from the fact table today, custom resources
//! made at run time in the same shape.

use std::sync::Arc;

use apimachinery::schema;

use crate::conversion;
use crate::custom::Custom;

/// Groups whose names are no domains.
const PLAIN_GROUPS: [&str; 5] = ["apps", "autoscaling", "batch", "extensions", "policy"];

/// The group and the plural name of the resource that a key of the store belongs to.
pub fn of_key(key: &[u8]) -> Option<(&str, &str)> {
    let mut segments = std::str::from_utf8(key).ok()?.strip_prefix("/registry/")?.split('/');
    let first = segments.next().filter(|first| !first.is_empty())?;
    if first.contains('.') || PLAIN_GROUPS.contains(&first) {
        return Some((first, segments.next()?));
    }
    Some(("", first))
}

/// A subresource of a [`Resource`], such as `status` or `binding`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// The last path segment: `status`, `scale`, `log`, …
    pub name: String,
    /// The API's verbs: `get`, `update`, `patch`, `create`.
    pub verbs: Vec<String>,
    /// Group of the body's kind.
    pub group: String,
    /// Version of the body's kind.
    pub version: String,
    /// The body's kind.
    pub kind: String,
    /// Whether it is a tunnel (`exec`, `proxy`, …) rather than an object.
    pub connect: bool,
}

/// What the server knows of one resource at one version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: String,
    /// API version, such as `v1`.
    pub version: String,
    /// Plural name, the path segment.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Kind of one object.
    pub kind: String,
    /// Kind of a list.
    pub list_kind: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// The API's verbs: `create`, `get`, `list`, `watch`, `update`, `patch`, `delete`, `deletecollection`.
    pub verbs: Vec<String>,
    /// Short names, as kubectl takes them.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// What hangs below an object.
    pub subresources: Vec<Subresource>,
    /// Key prefix in the store, with a trailing slash: `/registry/pods/`.
    pub key_prefix: String,
    /// What its definition says, of a custom resource.
    pub custom: Option<Arc<Custom>>,
}

impl Resource {
    /// A resource of the fact table.
    pub fn from_facts(facts: &schema::Resource) -> Self {
        let texts = |list: &[schema::Text]| list.iter().map(ToString::to_string).collect();
        // Two versions or groups of one kind share the keys of the stored one.
        let (group, plural) =
            match conversion::stored_as(&facts.group, &facts.version, &facts.plural) {
                Some([group, _, plural, _]) => (group, plural),
                None => (facts.group.as_ref(), facts.plural.as_ref()),
            };
        let key_prefix = if group.is_empty() {
            format!("/registry/{plural}/")
        } else {
            format!("/registry/{group}/{plural}/")
        };
        Self {
            group: facts.group.to_string(),
            version: facts.version.to_string(),
            plural: facts.plural.to_string(),
            singular: facts.singular.to_string(),
            kind: facts.kind.to_string(),
            list_kind: facts.list_kind(),
            namespaced: facts.namespaced,
            verbs: texts(&facts.verbs),
            short_names: texts(&facts.short_names),
            categories: texts(&facts.categories),
            subresources: facts
                .subresources
                .iter()
                .map(|s| Subresource {
                    name: s.name.to_string(),
                    verbs: texts(&s.verbs),
                    group: s.group.to_string(),
                    version: s.version.to_string(),
                    kind: s.kind.to_string(),
                    connect: s.connect,
                })
                .collect(),
            key_prefix,
            custom: None,
        }
    }

    /// Whether objects of this resource are kept, rather than only answered (`tokenreviews`).
    pub fn is_stored(&self) -> bool {
        self.allows("get")
            && !self.is("", "componentstatuses")
            && self.group != crate::subresources::metrics::GROUP
    }

    /// Whether `verb` is served.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `deployments.apps`, as messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether this is `plural` of `group`, at whatever version.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// The subresource `name`.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The store key of an object; `namespace` is ignored by cluster-scoped resources.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{}{namespace}/{name}", self.key_prefix)
        } else {
            format!("{}{name}", self.key_prefix)
        }
    }
}

/// Shared handle; the table is made once and read by every request.
pub type ResourceRef = Arc<Resource>;
