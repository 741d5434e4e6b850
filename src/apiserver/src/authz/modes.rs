//! The authorisers by flags: `--authorization-mode` and what belongs to it.
//!
//! Source: `pkg/kubeapiserver/options/authorization.go`.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::abac::Abac;
use super::configuration::Link;
use super::webhook::Webhook;

/// The flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// `--authorization-mode`, in the order in which they are asked.
    pub modes: Vec<String>,
    /// `--authorization-policy-file`, of the mode ABAC.
    pub policy_file: Option<PathBuf>,
    /// `--authorization-webhook-config-file`
    pub webhook_config_file: Option<PathBuf>,
    /// `--authorization-webhook-cache-authorized-ttl`
    pub webhook_authorized_ttl: Option<String>,
    /// `--authorization-webhook-cache-unauthorized-ttl`
    pub webhook_unauthorized_ttl: Option<String>,
}

/// How long the flag's webhook may take, as client-go's default has it.
const WEBHOOK_TIMEOUT: &str = "30s";

impl Modes {
    /// Whether any of them was given.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// The authorisers.
    pub fn links(&self) -> Result<Vec<Link>, String> {
        let has = |mode: &str| self.modes.iter().any(|given| given == mode);
        if self.modes.is_empty() {
            return Err("at least one authorization-mode must be passed".into());
        }
        if self.policy_file.is_some() && !has("ABAC") {
            return Err("cannot specify --authorization-policy-file without mode ABAC".into());
        }
        if self.webhook_config_file.is_some() && !has("Webhook") {
            return Err(
                "cannot specify --authorization-webhook-config-file without mode Webhook".into()
            );
        }
        let mut links = Vec::new();
        for (index, mode) in self.modes.iter().enumerate() {
            if self.modes[..index].contains(mode) {
                return Err(format!(
                    "authorization-mode {mode:?} has mode specified more than once"
                ));
            }
            links.push(match mode.as_str() {
                "AlwaysAllow" => Link::AlwaysAllow,
                "AlwaysDeny" => Link::AlwaysDeny,
                "Node" => Link::Node,
                "RBAC" => Link::Rbac,
                "ABAC" => Link::Abac(self.policies()?),
                "Webhook" => Link::Webhook(Box::new(self.webhook()?)),
                _ => return Err(format!("authorization-mode {mode:?} is not a valid mode")),
            });
        }
        Ok(links)
    }

    fn policies(&self) -> Result<Abac, String> {
        let Some(path) = &self.policy_file else {
            return Err("authorization-mode ABAC's authorization policy file not passed".into());
        };
        let at = |error: &dyn std::fmt::Display| {
            format!("error reading policy file {}, {error}", path.display())
        };
        let text = std::fs::read_to_string(path).map_err(|error| at(&error))?;
        Abac::parse(&text).map_err(|error| at(&error))
    }

    fn webhook(&self) -> Result<Webhook, String> {
        let Some(path) = &self.webhook_config_file else {
            return Err("authorization-mode Webhook's authorization config file not passed".into());
        };
        let mut webhook = json!({
            "timeout": WEBHOOK_TIMEOUT,
            "subjectAccessReviewVersion": "v1",
            "failurePolicy": "NoOpinion",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": path},
        });
        for (key, ttl) in [
            ("authorizedTTL", &self.webhook_authorized_ttl),
            ("unauthorizedTTL", &self.webhook_unauthorized_ttl),
        ] {
            if let Some(ttl) = ttl {
                webhook[key] = ttl.as_str().into();
            }
        }
        Webhook::parse("default", &webhook, Path::new("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_taken_in_their_order_and_mistakes_are_named() {
        let modes = |text: &str| Modes {
            modes: text.split(',').map(str::to_owned).collect(),
            ..Modes::default()
        };
        let names = |modes: Modes| {
            modes.links().map(|links| links.iter().map(Link::name).collect::<Vec<_>>().join(","))
        };
        for (text, want) in [
            ("Node,RBAC", Ok("Node,RBAC")),
            ("RBAC,AlwaysDeny,Node", Ok("RBAC,AlwaysDeny,Node")),
            ("RBAC,RBAC", Err("authorization-mode \"RBAC\" has mode specified more than once")),
            ("rbac", Err("authorization-mode \"rbac\" is not a valid mode")),
            ("ABAC", Err("authorization-mode ABAC's authorization policy file not passed")),
            ("Webhook", Err("authorization-mode Webhook's authorization config file not passed")),
        ] {
            let want = want.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(names(modes(text)), want, "{text}");
        }
        let stray = Modes { policy_file: Some("/x".into()), ..modes("RBAC") };
        assert!(names(stray).is_err_and(|error| error.contains("without mode ABAC")));
        assert!(!Modes::default().any() && modes("RBAC").any());
    }

    #[tokio::test]
    async fn a_cluster_of_policies_alone() {
        use crate::attributes::UserInfo;
        use crate::tests::Fixture;

        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("policies.jsonl");
        let line = r#"{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":"jane","namespace":"default","resource":"pods","readonly":true}}"#;
        std::fs::write(&file, line).expect("written");
        let modes = Modes {
            modes: vec!["ABAC".into(), "RBAC".into()],
            policy_file: Some(file),
            ..Modes::default()
        };
        let f = Fixture::with_access(crate::Access { modes, ..crate::Access::default() }).await;
        let f = f.seen_by(UserInfo::new("jane", &["system:authenticated"]));
        assert_eq!(f.get("/api/v1/namespaces/default/pods").await.code, 200);
        let refused = f.get("/api/v1/namespaces/default/secrets").await;
        assert_eq!(refused.code, 403);
        assert_eq!(
            refused.body["message"],
            "secrets is forbidden: User \"jane\" cannot list resource \"secrets\" in API group \"\" in the namespace \"default\": No policy matched."
        );
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
            "spec": {"namespace": "default"}});
        let answer = f.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review).await;
        let rules = answer.body["status"]["resourceRules"].to_string();
        assert!(rules.contains(r#"["pods"]"#), "{rules}");
    }
}
