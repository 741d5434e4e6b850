//! ClusterRoles that are made of others.
//!
//! Source: `pkg/controller/clusterroleaggregation/clusterroleaggregation_controller.go`.

use std::sync::Arc;

use client::Informers;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{pods, touched, unless_code};

/// In whose name rules are applied.
const MANAGER: &str = "clusterrole-aggregation-controller";

/// The rules an aggregated role shall have; `None` for any other.
fn rules(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref()?;
    let mut wanted: Vec<PolicyRule> = Vec::new();
    for selector in selectors.iter().map(pods::selector) {
        let mut picked: Vec<_> = all
            .iter()
            .filter(|other| other.name_any() != role.name_any() && selector.matches(other.labels()))
            .collect();
        picked.sort_by_key(|other| other.name_any());
        for rule in picked.iter().flat_map(|other| other.rules.iter().flatten()) {
            if !wanted.contains(rule) {
                wanted.push(rule.clone());
            }
        }
    }
    Some(wanted)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let roles = informers.get::<ClusterRole>();
    roles.ready().await;
    let known = roles.store();
    let changes = touched(&roles, move |_| {
        let all = known.state();
        let aggregated = all.iter().filter(|role| role.aggregation_rule.is_some());
        aggregated.map(|role| role.name_any()).collect()
    });
    queue::run("clusterrole-aggregation", changes, shutdown, |key: String| {
        let role = roles.get("", &key);
        let wanted = role.as_ref().and_then(|role| rules(role, &roles.store().state()));
        let api: Api<ClusterRole> = Api::all(client.clone());
        Box::pin(async move {
            let (Some(role), Some(wanted)) = (role, wanted) else { return Ok(Next::Done) };
            if role.rules.as_deref().unwrap_or_default() != wanted {
                // Applied, so that whoever applies the rest of the role does not find its rules another's.
                let applied = json!({"apiVersion": "rbac.authorization.k8s.io/v1",
                    "kind": "ClusterRole", "metadata": {"name": key, "uid": role.uid()},
                    "rules": wanted});
                let parameters = PatchParams::apply(MANAGER).force();
                unless_code(api.patch(&key, &parameters, &Patch::Apply(&applied)).await, 404)?;
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_gathered_once() {
        let role = |name: &str, label: &str, verb: &str| -> Arc<ClusterRole> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "labels": {"to": label}},
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": [verb]}]}))
                .expect("a role"),
            )
        };
        let all = [
            role("b", "view", "list"),
            role("a", "view", "get"),
            role("c", "view", "get"),
            role("d", "edit", "update"),
        ];
        let view: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "view"},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]}}))
        .expect("a role");
        let verbs: Vec<String> =
            rules(&view, &all).expect("rules").into_iter().flat_map(|r| r.verbs).collect();
        assert_eq!(verbs, ["get", "list"]);
        assert_eq!(rules(&all[0], &all), None);
    }
}
