//! `AuthorizationConfiguration`: which authorisers decide, in which order.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authorization/#using-configuration-file-for-authorization>.

use std::path::Path;

use serde_json::Value;

use super::abac::Abac;
use super::webhook::Webhook;
use crate::zero::Zero;

/// One authoriser of the chain.
pub enum Link {
    /// What nodes need.
    Node,
    /// Roles and bindings.
    Rbac,
    /// Policies of a file, where flags and not a configuration name the authorisers.
    Abac(Abac),
    /// Everybody, everything.
    AlwaysAllow,
    /// Nobody, nothing.
    AlwaysDeny,
    /// Another server.
    Webhook(Box<Webhook>),
}

/// The authorisers of a stock cluster.
pub fn usual() -> Vec<Link> {
    vec![Link::Node, Link::Rbac]
}

/// Whether `new` may take the place of `old` while the server runs: the authorisers within this server are
/// set up once, so that those there were must be there still.
pub fn may_replace(old: &[Link], new: &[Link]) -> Result<(), String> {
    let gone = old.iter().find(|link| {
        let same = |other: &&Link| std::mem::discriminant(*other) == std::mem::discriminant(*link);
        !matches!(link, Link::Webhook(_)) && !new.iter().any(|other| same(&other))
    });
    match gone {
        Some(link) => Err(format!("authorizers: must contain {}", link.name())),
        None => Ok(()),
    }
}

impl Link {
    /// Its type, as the file has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Rbac => "RBAC",
            Self::Abac(_) => "ABAC",
            Self::AlwaysAllow => "AlwaysAllow",
            Self::AlwaysDeny => "AlwaysDeny",
            Self::Webhook(_) => "Webhook",
        }
    }
}

/// Reads the text of the file; relative paths in it begin at `base`.
pub fn parse(text: &str, base: &Path) -> Result<Vec<Link>, String> {
    let value: Value =
        apimachinery::decode::yaml_to_value(text).map_err(|error| error.to_string())?;
    let known = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
    if value["kind"] != "AuthorizationConfiguration" || !known.contains(&value["apiVersion"].text())
    {
        return Err(
            "want apiVersion apiserver.config.k8s.io/v1 and kind AuthorizationConfiguration".into(),
        );
    }
    let entries = value["authorizers"].items();
    if entries.is_empty() {
        return Err("authorizers: at least one authorization mode must be defined".into());
    }
    let (mut links, mut types, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for (index, entry) in entries.iter().enumerate() {
        let path = format!("authorizers[{index}]");
        let (kind, name) = (entry["type"].text(), entry["name"].text());
        if name.is_empty() {
            return Err(format!("{path}.name: required"));
        }
        if names.contains(&name) {
            return Err(format!("{path}.name: Duplicate value: {name:?}"));
        }
        if kind != "Webhook" && types.contains(&kind) {
            return Err(format!("{path}.type: Duplicate value: {kind:?}"));
        }
        if kind != "Webhook" && entry["webhook"].is_object() {
            return Err(format!("{path}.webhook: may only be specified when type=Webhook"));
        }
        names.push(name);
        types.push(kind);
        links.push(match kind {
            "Node" => Link::Node,
            "RBAC" => Link::Rbac,
            "AlwaysAllow" => Link::AlwaysAllow,
            "AlwaysDeny" => Link::AlwaysDeny,
            "Webhook" => Webhook::parse(name, &entry["webhook"], base)
                .map(|webhook| Link::Webhook(Box::new(webhook)))
                .map_err(|error| format!("{path}.{error}"))?,
            other => {
                return Err(format!(
                    "{path}.type: Unsupported value: {other:?}: supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
                ));
            }
        });
    }
    Ok(links)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named() {
        let error = |rest: &str| {
            let text = format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n{rest}"
            );
            parse(&text, Path::new("/")).err().unwrap_or_default()
        };
        let cases = [
            ("authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]", ""),
            ("authorizers: []", "authorizers: at least one authorization mode must be defined"),
            ("authorizers: [{type: RBAC}]", "authorizers[0].name: required"),
            (
                "authorizers: [{type: RBAC, name: a}, {type: RBAC, name: b}]",
                "authorizers[1].type: Duplicate value: \"RBAC\"",
            ),
            (
                "authorizers: [{type: Webhook, name: a, webhook: {}}]",
                "authorizers[0].webhook.timeout: required",
            ),
            (
                "authorizers: [{type: X, name: a}]",
                "authorizers[0].type: Unsupported value: \"X\": supported values: \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\"",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(error(text), want, "{text}");
        }
    }
}
