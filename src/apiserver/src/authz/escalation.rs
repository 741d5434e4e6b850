//! Nobody grants what they do not have: roles and bindings are written only by those who hold all
//! their rules, or who may `escalate` or `bind`.
//!
//! Source: `pkg/registry/rbac/escalation_check.go`.

use apimachinery::Status;
use serde_json::Value;

use super::Authorizer;
use super::rbac::{GROUP, RoleRef};
use super::rules::Rule;
use crate::attributes::RequestContext;
use crate::zero::Zero;

/// Checks a role or binding that `ctx.user` is about to write; `old` is the stored one.
pub fn check(
    authorizer: &Authorizer,
    ctx: &RequestContext,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if ctx.user.in_group("system:masters") {
        return Ok(());
    }
    let may = |verb: &'static str, plural: &str, name: &str| {
        let asked = RequestContext {
            user: ctx.user.clone(),
            verb,
            group: GROUP.into(),
            version: "v1".into(),
            plural: plural.into(),
            namespace: ctx.namespace.clone(),
            name: name.into(),
            ..RequestContext::default()
        };
        authorizer.authorize(&asked).allowed()
    };
    let rules = match ctx.plural.as_str() {
        "roles" | "clusterroles" => {
            let unchanged = old.is_some_and(|old| {
                old["rules"] == object["rules"]
                    && old["aggregationRule"] == object["aggregationRule"]
            });
            if unchanged || may("escalate", &ctx.plural, object["metadata"]["name"].text()) {
                return Ok(());
            }
            if object["aggregationRule"].is_object() {
                // What it will gather is unknown, so it may be anything.
                vec![Rule::from_line("* * *"), Rule::from_line("* url *")]
            } else {
                serde_json::from_value(object["rules"].clone()).unwrap_or_default()
            }
        }
        "rolebindings" | "clusterrolebindings" => {
            let unchanged = old.is_some_and(|old| {
                old["roleRef"] == object["roleRef"] && old["subjects"] == object["subjects"]
            });
            let role = RoleRef {
                kind: object["roleRef"]["kind"].text().to_owned(),
                name: object["roleRef"]["name"].text().to_owned(),
            };
            let plural = if role.kind == "Role" { "roles" } else { "clusterroles" };
            if unchanged || may("bind", plural, &role.name) {
                return Ok(());
            }
            let Some(rules) = authorizer.rbac().rules_of(&ctx.namespace, &role) else {
                return Err(Status::not_found(GROUP, plural, &role.name));
            };
            rules
        }
        _ => return Ok(()),
    };
    let (held, _) = authorizer.rbac().rules_for(&ctx.user, &ctx.namespace);
    let missing: Vec<String> = rules
        .iter()
        .flat_map(Rule::split)
        .filter(|part| !held.iter().any(|rule| rule.covers(part)))
        .map(|part| part.describe())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let user = &ctx.user;
    let why = format!(
        "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        user.groups,
        missing.join("\n")
    );
    Err(Status::forbidden(GROUP, &ctx.plural, object["metadata"]["name"].text(), &why))
}
