//! Who may do what: members of `system:masters` everything, nodes what their pods need, the rest by
//! RBAC.
//!
//! Source: upstream's union of the node and RBAC authorisers
//! (<https://kubernetes.io/docs/reference/access-authn-authz/authorization/>).

pub mod abac;
pub mod configuration;
pub mod escalation;
pub mod modes;
pub mod node;
pub mod rbac;
pub mod rules;
pub mod webhook;

use std::sync::Arc;

use apimachinery::Status;

use crate::access::Reloaded;
use crate::attributes::{RequestContext, UserInfo};
use crate::registry::Registry;
use configuration::Link;
use rules::Rule;

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

    /// The decision in one word, as metrics tell it.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Allow { .. } => "allowed",
            Self::Deny { .. } => "denied",
            Self::NoOpinion { .. } => "no-opinion",
        }
    }

    /// The text of the decision.
    pub fn reason(&self) -> &str {
        match self {
            Self::Allow { reason } | Self::Deny { reason } | Self::NoOpinion { reason } => reason,
        }
    }
}

/// Decides on requests. Cheap to clone; reads the registry's cache, and asks other servers where it is
/// configured to.
#[derive(Clone)]
pub struct Authorizer {
    registry: Registry,
    rbac: Arc<rbac::Rbac>,
    chain: Arc<Reloaded<Vec<Link>>>,
}

impl Authorizer {
    /// An authoriser by the RBAC objects and pods in `registry`, as a stock cluster has it.
    pub fn new(registry: Registry) -> Self {
        Self::with_chain(registry, Reloaded::fixed(configuration::usual()))
    }

    /// The authorisers of `chain`, the first to be asked first.
    pub fn with_chain(registry: Registry, chain: Reloaded<Vec<Link>>) -> Self {
        let rbac = Arc::new(rbac::Rbac::new(registry.clone()));
        Self { rbac, registry, chain: Arc::new(chain) }
    }

    /// The RBAC part, for questions about rules rather than requests.
    pub fn rbac(&self) -> &rbac::Rbac {
        &self.rbac
    }

    /// The authorisers, which a changed file changes.
    pub fn chain(&self) -> Arc<Reloaded<Vec<Link>>> {
        self.chain.clone()
    }

    /// What `user` may do in `namespace` as far as it can be listed, and what kept rules from being found.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for link in &*self.chain.get() {
            match link {
                Link::Rbac => {
                    let (more, failed) = self.rbac.rules_for(user, namespace);
                    rules.extend(more);
                    errors.extend(failed);
                }
                Link::Abac(policies) => rules.extend(policies.rules_for(user, namespace)),
                Link::AlwaysAllow => {
                    rules.extend([Rule::from_line("* * *"), Rule::from_line("* url *")]);
                }
                Link::AlwaysDeny | Link::Node | Link::Webhook(_) => {}
            }
        }
        (rules, errors)
    }

    /// Whether all rules that apply can be listed: not those of another server.
    pub fn lists_all_rules(&self) -> bool {
        !self.chain.get().iter().any(|link| matches!(link, Link::Webhook(_)))
    }

    fn ask(&self, link: &Link, ctx: &RequestContext) -> Decision {
        match link {
            Link::Node => node::authorize(&self.registry, ctx),
            Link::Rbac => self.rbac.authorize(ctx),
            Link::Abac(policies) => policies.authorize(ctx),
            Link::AlwaysAllow => Decision::Allow { reason: String::new() },
            Link::AlwaysDeny => {
                Decision::NoOpinion { reason: "Everything is forbidden.".to_owned() }
            }
            // Questions inside other work cannot wait by themselves; they take the thread along.
            Link::Webhook(webhook) => tokio::task::block_in_place(|| {
                let answer = webhook.authorize(&self.registry, ctx);
                tokio::runtime::Handle::current().block_on(answer)
            }),
        }
    }

    /// Decides on `ctx`; a question inside other work.
    pub fn authorize(&self, ctx: &RequestContext) -> Decision {
        let mut said = Said::default();
        if let Some(decision) = said.privileged(ctx) {
            return decision;
        }
        for link in &*self.chain.get() {
            if let Some(decision) = said.hear(self.ask(link, ctx)) {
                return decision;
            }
        }
        said.nothing()
    }

    /// Decides on `ctx`, without holding up a thread.
    pub async fn decide(&self, ctx: &RequestContext) -> Decision {
        let mut said = Said::default();
        if let Some(decision) = said.privileged(ctx) {
            return decision;
        }
        for link in &*self.chain.get() {
            let decision = match link {
                Link::Webhook(webhook) => webhook.authorize(&self.registry, ctx).await,
                link => self.ask(link, ctx),
            };
            if let Some(decision) = said.hear(decision) {
                return decision;
            }
        }
        said.nothing()
    }

    /// Decides on `ctx`, and words a refusal as upstream does.
    pub fn require(&self, ctx: &RequestContext) -> Result<(), Status> {
        let decision = self.authorize(ctx);
        if decision.allowed() { Ok(()) } else { Err(forbidden(ctx, decision.reason())) }
    }
}

/// What the authorisers without an opinion had to say.
#[derive(Default)]
struct Said(Vec<String>);

impl Said {
    fn privileged(&self, ctx: &RequestContext) -> Option<Decision> {
        ctx.user.in_group("system:masters").then(|| Decision::Allow { reason: String::new() })
    }

    fn hear(&mut self, decision: Decision) -> Option<Decision> {
        match decision {
            Decision::NoOpinion { reason } => {
                if !reason.is_empty() {
                    self.0.push(reason);
                }
                None
            }
            decision => Some(decision),
        }
    }

    fn nothing(self) -> Decision {
        Decision::NoOpinion { reason: self.0.join("\n") }
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
