//! Flags about who may come in and who may do what: kube-apiserver's own.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

/// Files that the API server reads. Each is kept for later starts; an empty name forgets it.
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
        Self {
            token_auth_file: file(&self.token_auth_file, &last.token_auth_file),
            authentication_config: file(&self.authentication_config, &last.authentication_config),
            authorization_config: file(&self.authorization_config, &last.authorization_config),
            audit_policy_file: file(&self.audit_policy_file, &last.audit_policy_file),
            audit_log_path: file(&self.audit_log_path, &last.audit_log_path),
            audit_log_maxage: self.audit_log_maxage.or(last.audit_log_maxage),
            audit_log_maxbackup: self.audit_log_maxbackup.or(last.audit_log_maxbackup),
            audit_log_maxsize: self.audit_log_maxsize.or(last.audit_log_maxsize),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
