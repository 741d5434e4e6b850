//! Flags about who may come in and who may do what: kube-apiserver's own.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

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
    /// Which requests are recorded (audit.k8s.io/v1 Policy).
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where they are recorded; `-` is the daemon's output.
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// Days after which old audit logs are removed [default: never].
    #[arg(long, value_name = "DAYS")]
    pub audit_log_maxage: Option<u64>,
    /// How many old audit logs are kept [default: all].
    #[arg(long, value_name = "N")]
    pub audit_log_maxbackup: Option<usize>,
    /// Megabytes of an audit log before the next is begun [default: 100].
    #[arg(long, value_name = "MB")]
    pub audit_log_maxsize: Option<u64>,
    /// Compress old audit logs with gzip.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "true|false")]
    pub audit_log_compress: Option<bool>,
    /// Another server that is told what is recorded (a kubeconfig).
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Whether requests wait until it is told [possible values: batch, blocking] [default: batch].
    #[arg(long, value_name = "MODE", value_parser = ["batch", "blocking"])]
    pub audit_webhook_mode: Option<String>,
    /// How many events wait for it at most [default: 10000].
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_buffer_size: Option<usize>,
    /// How many events it is told at once [default: 400].
    #[arg(long, value_name = "N")]
    pub audit_webhook_batch_max_size: Option<usize>,
    /// How many seconds an event waits for others [default: 30].
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub audit_webhook_batch_max_wait: Option<u64>,
    /// How many seconds pass before it is told again after a failure [default: 10].
    #[arg(long, value_name = "DURATION", value_parser = seconds)]
    pub audit_webhook_initial_backoff: Option<u64>,
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

impl Access {
    /// These flags, and where they say nothing, those of the last time.
    #[must_use]
    pub fn or(&self, last: &Self) -> Self {
        let file = |now: &Option<PathBuf>, then: &Option<PathBuf>| match now {
            Some(path) if path.as_os_str().is_empty() => None,
            Some(path) if path.as_os_str() == "-" => Some(path.clone()),
            Some(path) => Some(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            None => then.clone(),
        };
        let text = |now: &Option<String>, then: &Option<String>| now.clone().or(then.clone());
        Self {
            token_auth_file: file(&self.token_auth_file, &last.token_auth_file),
            authentication_config: file(&self.authentication_config, &last.authentication_config),
            authorization_config: file(&self.authorization_config, &last.authorization_config),
            encryption_provider_config: file(
                &self.encryption_provider_config,
                &last.encryption_provider_config,
            ),
            encryption_provider_config_automatic_reload: self
                .encryption_provider_config_automatic_reload
                .or(last.encryption_provider_config_automatic_reload),
            audit_policy_file: file(&self.audit_policy_file, &last.audit_policy_file),
            audit_log_path: file(&self.audit_log_path, &last.audit_log_path),
            audit_log_maxage: self.audit_log_maxage.or(last.audit_log_maxage),
            audit_log_maxbackup: self.audit_log_maxbackup.or(last.audit_log_maxbackup),
            audit_log_maxsize: self.audit_log_maxsize.or(last.audit_log_maxsize),
            audit_log_compress: self.audit_log_compress.or(last.audit_log_compress),
            authorization_mode: match &self.authorization_mode[..] {
                [] => last.authorization_mode.clone(),
                // An empty word forgets it.
                modes => modes.iter().filter(|mode| !mode.is_empty()).cloned().collect(),
            },
            authorization_policy_file: file(
                &self.authorization_policy_file,
                &last.authorization_policy_file,
            ),
            authorization_webhook_config_file: file(
                &self.authorization_webhook_config_file,
                &last.authorization_webhook_config_file,
            ),
            authorization_webhook_cache_authorized_ttl: text(
                &self.authorization_webhook_cache_authorized_ttl,
                &last.authorization_webhook_cache_authorized_ttl,
            ),
            authorization_webhook_cache_unauthorized_ttl: text(
                &self.authorization_webhook_cache_unauthorized_ttl,
                &last.authorization_webhook_cache_unauthorized_ttl,
            ),
            audit_webhook_config_file: file(
                &self.audit_webhook_config_file,
                &last.audit_webhook_config_file,
            ),
            audit_webhook_mode: text(&self.audit_webhook_mode, &last.audit_webhook_mode),
            audit_webhook_batch_buffer_size: self
                .audit_webhook_batch_buffer_size
                .or(last.audit_webhook_batch_buffer_size),
            audit_webhook_batch_max_size: self
                .audit_webhook_batch_max_size
                .or(last.audit_webhook_batch_max_size),
            audit_webhook_batch_max_wait: self
                .audit_webhook_batch_max_wait
                .or(last.audit_webhook_batch_max_wait),
            audit_webhook_initial_backoff: self
                .audit_webhook_initial_backoff
                .or(last.audit_webhook_initial_backoff),
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
