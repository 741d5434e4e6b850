//! Who may do what: members of `system:masters` everything, nodes what their pods need, the rest by
//! RBAC.
//!
//! Source: upstream's union of the node and RBAC authorisers
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authorization/>).

pub mod escalation;
pub mod node;
pub mod rbac;
pub mod rules;

use std::sync::Arc;

use apimachinery::Status;

use crate::attributes::RequestContext;
use crate::registry::Registry;

/// The answer of one authoriser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Permitted.
    Allow {
        /// Why, as reviews show it.
        reason: String,
    },
    /// Forbidden, whatever later authorisers might say.
    Deny {
        /// Why.
        reason: String,
    },
    /// Nothing permits it; at the end of the chain that means no.
    NoOpinion {
        /// What the authorisers had to say, possibly nothing.
        reason: String,
    },
}

impl Decision {
    /// Whether the request may proceed.
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// The text of the decision.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow { reason } | Self::Deny { reason } | Self::NoOpinion { reason } => reason,
        }
    }
}

/// Decides on requests. Cheap to clone; reads the registry's cache only.
#[derive(Clone)]
pub struct Authorizer {
    registry: Registry,
    rbac: Arc<rbac::Rbac>,
}

impl Authorizer {
    /// An authoriser by the RBAC objects and pods in `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { rbac: Arc::new(rbac::Rbac::new(registry.clone())), registry }
    }

    /// The RBAC part, for questions about rules rather than requests.
    pub fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }

    /// Decides on `ctx`.
    pub fn authorize(&self, ctx: &RequestContext) -> Decision {
        if ctx.user.in_group("system:masters") {
            return Decision::Allow { reason: String::new() };
        }
        let mut said = Vec::new();
        match node::authorize(&self.registry, ctx) {
            Decision::NoOpinion { reason } => said.push(reason),
            decision => return decision,
        }
        match self.rbac.authorize(ctx) {
            Decision::NoOpinion { reason } => said.push(reason),
            decision => return decision,
        }
        said.retain(|reason| !reason.is_empty());
        Decision::NoOpinion { reason: said.join("\n") }
    }

    /// Decides on `ctx`, and words a refusal as upstream does.
    pub fn require(&self, ctx: &RequestContext) -> Result<(), Status> {
        let decision = self.authorize(ctx);
        if decision.allowed() { Ok(()) } else { Err(forbidden(ctx, decision.reason())) }
    }
}

/// The 403 for `ctx`, worded as upstream words it; `reason` may be empty.
pub fn forbidden(ctx: &RequestContext, reason: &str) -> Status {
    let user = &ctx.user.name;
    let verb = ctx.verb;
    let mut why = if ctx.is_resource_request() {
        let mut resource = ctx.plural.clone();
        if !ctx.subresource.is_empty() {
            resource = format!("{resource}/{}", ctx.subresource);
        }
        let group = &ctx.group;
        let scope = if ctx.namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace {:?}", ctx.namespace)
        };
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}")
    } else {
        format!("User {user:?} cannot {verb} path {:?}", ctx.path)
    };
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    if ctx.is_resource_request() {
        Status::forbidden(&ctx.group, &ctx.plural, &ctx.name, &why)
    } else {
        let mut status = Status::forbidden("", "", "", &why);
        status.message = format!("forbidden: {why}");
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::UserInfo;

    #[test]
    fn refusals_read_as_upstreams() {
        let ctx = |namespace: &str, subresource: &str| RequestContext {
            user: Arc::new(UserInfo::new("x", &[])),
            verb: "list",
            plural: "pods".into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            ..RequestContext::default()
        };
        let cases = [
            (
                ctx("default", ""),
                r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                ctx("", "log"),
                r#"pods is forbidden: User "x" cannot list resource "pods/log" in API group "" at the cluster scope"#,
            ),
            (
                RequestContext {
                    user: Arc::new(UserInfo::anonymous()),
                    verb: "get",
                    path: "/metrics".into(),
                    ..RequestContext::default()
                },
                r#"forbidden: User "system:anonymous" cannot get path "/metrics""#,
            ),
        ];
        for (ctx, want) in cases {
            assert_eq!(forbidden(&ctx, "").message, want);
        }
        let reason = forbidden(&ctx("a", ""), "RBAC: gone").message;
        assert!(reason.ends_with(r#"in the namespace "a": RBAC: gone"#), "{reason}");
    }
}
