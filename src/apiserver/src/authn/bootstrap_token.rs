//! Users by bootstrap token: a Secret in kube-system that lets a new node introduce itself.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>.

use std::collections::BTreeMap;

use base64::Engine as _;
use sha2::{Digest, Sha256};

use crate::attributes::UserInfo;
use crate::registry::Registry;
use crate::zero::Zero;

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";

/// The id and the secret in a token of the form `abcdef.0123456789abcdef`.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let fits = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (fits(id, 6) && fits(secret, 16)).then_some((id, secret))
}

/// The user of a token whose Secret says that it is good for this.
pub fn user(registry: &Registry, token: &str, now: i64) -> Option<UserInfo> {
    let (id, secret) = split(token)?;
    let found = registry.get("", "secrets", NAMESPACE, &format!("bootstrap-token-{id}"))?;
    let found = found.to_value();
    let data = |key: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(found["data"][key].text());
        bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    let good = found["type"] == TYPE
        && !found["metadata"]["deletionTimestamp"].is_string()
        // Of digests, so that the time it takes says nothing about the secret.
        && Sha256::digest(data("token-secret")) == Sha256::digest(secret)
        && data("token-id") == id
        && data("usage-bootstrap-authentication") == "true"
        && !expired(&data("expiration"), now);
    if !good {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in data("auth-extra-groups").split(',').filter(|group| !group.is_empty()) {
        // A Secret that claims other groups than its kind may give is no token at all.
        let rest = group.strip_prefix("system:bootstrappers:")?;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-:".contains(c);
        if rest.is_empty() || rest.len() > 256 || !rest.chars().all(fits) {
            return None;
        }
        if !groups.iter().any(|known| known == group) {
            groups.push(group.to_owned());
        }
    }
    Some(UserInfo {
        name: format!("system:bootstrap:{id}"),
        uid: String::new(),
        groups,
        extra: BTreeMap::new(),
    })
}

fn expired(expiration: &str, now: i64) -> bool {
    if expiration.is_empty() {
        return false;
    }
    expiration.parse::<jiff::Timestamp>().map_or(true, |at| at.as_second() <= now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_one_form() {
        let cases = [
            ("abcdef.0123456789abcdef", true),
            ("abcdeF.0123456789abcdef", false),
            ("abcde.0123456789abcdef", false),
            ("abcdef.0123456789abcde", false),
            ("abcdef0123456789abcdef", false),
        ];
        for (token, want) in cases {
            assert_eq!(split(token).is_some(), want, "{token}");
        }
        assert!(!expired("", 5) && expired("nonsense", 5));
        assert!(expired("1970-01-01T00:00:05Z", 5) && !expired("1970-01-01T00:00:06Z", 5));
    }
}
