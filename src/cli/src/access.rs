//! Flags about who may come in and who may do what: kube-apiserver's own.

pub mod audit;

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

use self::audit::Audit;

/// What the API server is told. Each is kept for later starts; an empty name forgets it.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[command(next_help_heading = "Access to the API")]
pub struct Access {
    /// Users by token: lines of `token,user,uid,"group,…"`.
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// OpenID Connect issuers, and where anonymous requests may go (AuthenticationConfiguration).
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// Who decides on requests: nodes, RBAC, webhooks (AuthorizationConfiguration).
    #[arg(long, value_name = "FILE")]
    pub authorization_config: Option<PathBuf>,
    /// Who decides on requests, in this order, in the place of that file [possible values: Node, RBAC, ABAC,
    /// Webhook, AlwaysAllow, AlwaysDeny] [default: Node,RBAC].
    #[arg(long, value_name = "MODES", value_delimiter = ',')]
    pub authorization_mode: Vec<String>,
    /// Policies of the mode ABAC, one in each line.
    #[arg(long, value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// Where the server of the mode Webhook is (a kubeconfig).
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// How long its consent is remembered [default: 5m].
    #[arg(long, value_name = "DURATION")]
    pub authorization_webhook_cache_authorized_ttl: Option<String>,
    /// How long its refusal is remembered [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub authorization_webhook_cache_unauthorized_ttl: Option<String>,
    /// Which resources are encrypted in the store, and by which keys (EncryptionConfiguration).
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Read that file anew when it changes.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub encryption_provider_config_automatic_reload: Option<bool>,
    /// What is recorded of requests.
    #[command(flatten)]
    #[serde(flatten)]
    pub audit: Audit,
    /// Versions of the API to serve that are off as they come, as `certificates.k8s.io/v1beta1`.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub runtime_config: Vec<String>,
}

/// Seconds, as a number or as Go writes a duration: `30s`, `1m`.
fn seconds(text: &str) -> Result<u64, String> {
    let mistake = || format!("{text:?} is not a duration such as 30s");
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(mistake)
}

/// A file's name as it is kept for later starts: an empty one forgets it.
fn kept(now: Option<&PathBuf>, last: Option<&PathBuf>) -> Option<PathBuf> {
    match now {
        Some(path) if path.as_os_str().is_empty() => None,
        Some(path) if path.as_os_str() == "-" => Some(path.clone()),
        Some(path) => Some(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
        None => last.cloned(),
    }
}

impl Access {
    /// These flags, and where they say nothing, those of the last time.
    #[must_use]
    pub fn or(&self, last: &Self) -> Self {
        let text = |now: &Option<String>, then: &Option<String>| now.clone().or(then.clone());
        Self {
            token_auth_file: kept(self.token_auth_file.as_ref(), last.token_auth_file.as_ref()),
            authentication_config: kept(
                self.authentication_config.as_ref(),
                last.authentication_config.as_ref(),
            ),
            authorization_config: kept(
                self.authorization_config.as_ref(),
                last.authorization_config.as_ref(),
            ),
            encryption_provider_config: kept(
                self.encryption_provider_config.as_ref(),
                last.encryption_provider_config.as_ref(),
            ),
            encryption_provider_config_automatic_reload: self
                .encryption_provider_config_automatic_reload
                .or(last.encryption_provider_config_automatic_reload),
            audit: self.audit.or(&last.audit),
            authorization_mode: match &self.authorization_mode[..] {
                [] => last.authorization_mode.clone(),
                // An empty word forgets it.
                modes => modes.iter().filter(|mode| !mode.is_empty()).cloned().collect(),
            },
            authorization_policy_file: kept(
                self.authorization_policy_file.as_ref(),
                last.authorization_policy_file.as_ref(),
            ),
            authorization_webhook_config_file: kept(
                self.authorization_webhook_config_file.as_ref(),
                last.authorization_webhook_config_file.as_ref(),
            ),
            authorization_webhook_cache_authorized_ttl: text(
                &self.authorization_webhook_cache_authorized_ttl,
                &last.authorization_webhook_cache_authorized_ttl,
            ),
            authorization_webhook_cache_unauthorized_ttl: text(
                &self.authorization_webhook_cache_unauthorized_ttl,
                &last.authorization_webhook_cache_unauthorized_ttl,
            ),
            runtime_config: match self.runtime_config.as_slice() {
                [] => last.runtime_config.clone(),
                [none] if none.is_empty() => Vec::new(),
                versions => versions.to_vec(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos_short_ones() {
        for (text, want) in [("30", 30), ("30s", 30), ("2m", 120)] {
            assert_eq!(seconds(text), Ok(want), "{text}");
        }
        assert!(seconds("1h").is_err() && seconds("").is_err());
    }

    #[test]
    fn flags_are_kept_until_others_are_given() {
        let path = |text: &str| Some(PathBuf::from(text));
        let last = Access { token_auth_file: path("/a"), ..Access::default() };
        let cases = [
            (None, path("/a")),
            (path("/b"), path("/b")),
            (path(""), None),
            (path("-"), path("-")),
        ];
        for (token_auth_file, want) in cases {
            let now = Access { token_auth_file, ..Access::default() };
            assert_eq!(now.or(&last).token_auth_file, want, "{now:?}");
        }
    }
}
