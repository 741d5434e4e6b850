//! What a request is about: who, what, which object. Authorisation, admission, strategies and
//! validation all read the same [`RequestContext`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::audit::Record;
use crate::resource::ResourceRef;

/// An authenticated user, as `authentication.k8s.io/v1` `UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// Name, such as `system:node:rootlet`.
    pub name: String,
    /// Opaque uid; often empty.
    pub uid: String,
    /// Groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Further facts of the authenticator.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user in `groups` and `system:authenticated`.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        if !groups.iter().any(|g| g == "system:authenticated") {
            groups.push("system:authenticated".into());
        }
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The API server acting by itself: `system:apiserver` in `system:masters`.
    pub fn loopback() -> Self {
        Self::new("system:apiserver", &["system:masters"])
    }

    /// `system:anonymous` in `system:unauthenticated`.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// Whether the user is a member of `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Warnings for the client, sent as `Warning: 299 - "…"` headers; equal texts are kept once.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    /// Adds a warning.
    pub fn add(&self, text: impl Into<String>) {
        let text = text.into();
        let mut list = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if !list.contains(&text) {
            list.push(text);
        }
    }

    /// The warnings so far, in order.
    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }
}

/// One request after parsing, as seen by every later step.
#[derive(Clone, Debug, Default)]
pub struct RequestContext {
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// The API verb (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`),
    /// or the HTTP method in lower case for non-resource paths.
    pub verb: &'static str,
    /// API group from the path.
    pub group: String,
    /// API version from the path.
    pub version: String,
    /// Resource from the path; empty for non-resource paths.
    pub plural: String,
    /// Subresource from the path; empty when there is none.
    pub subresource: String,
    /// Namespace; for namespaces themselves their own name, as upstream's `RequestInfo` has it.
    pub namespace: String,
    /// Object name; empty for collections.
    pub name: String,
    /// The URL path.
    pub path: String,
    /// The resource in the table; absent for non-resource paths and unknown resources.
    pub resource: Option<ResourceRef>,
    /// `dryRun=All`.
    pub dry_run: bool,
    /// `fieldManager`, or the user agent's first word.
    pub field_manager: String,
    /// What to tell the client beside the answer.
    pub warnings: Warnings,
    /// The record of the request, when there is one.
    pub audit: Option<Arc<Record>>,
}

impl RequestContext {
    /// A request the server makes by itself on `resource`.
    pub fn internal(
        verb: &'static str,
        resource: &ResourceRef,
        namespace: &str,
        name: &str,
    ) -> Self {
        Self::of(UserInfo::loopback(), verb, resource, namespace, name)
    }

    /// A request by `user` on `resource`.
    pub fn of(
        user: UserInfo,
        verb: &'static str,
        resource: &ResourceRef,
        namespace: &str,
        name: &str,
    ) -> Self {
        Self {
            user: Arc::new(user),
            verb,
            group: resource.group.clone(),
            version: resource.version.clone(),
            plural: resource.plural.clone(),
            namespace: namespace.into(),
            name: name.into(),
            resource: Some(resource.clone()),
            ..Self::default()
        }
    }

    /// Adds an annotation to the request's record.
    pub fn annotate(&self, key: &str, value: impl Into<String>) {
        if let Some(record) = &self.audit {
            record.annotate(key, value);
        }
    }

    /// Whether this is about API objects rather than a path such as `/healthz`.
    pub fn is_resource_request(&self) -> bool {
        !self.plural.is_empty()
    }

    /// Whether the request is about `plural` of `group`, any subresource.
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}
