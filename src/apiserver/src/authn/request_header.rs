//! Users by what a trusted proxy says in headers.
//!
//! Source: `k8s.io/apiserver/pkg/authentication/request/headerrequest`.

use std::collections::BTreeMap;

use http::HeaderMap;

use super::certificate;
use super::impersonation::percent_decoded;
use crate::attributes::UserInfo;
use crate::pki::FRONT_PROXY;

/// The user whom a proxy with the (already verified) certificate names; nobody when it is no proxy, or
/// names none.
pub fn user(der: &[u8], headers: &HeaderMap) -> Option<UserInfo> {
    if certificate::user(der)?.name != FRONT_PROXY {
        return None;
    }
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect()
    };
    let first = |name: &str| all(name).into_iter().find(|value| !value.is_empty());
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in headers.keys() {
        if let Some(encoded) = key.as_str().strip_prefix("x-remote-extra-") {
            extra.insert(percent_decoded(encoded), all(key.as_str()));
        }
    }
    Some(UserInfo {
        name: first("x-remote-user")?,
        uid: first("x-remote-uid").unwrap_or_default(),
        groups: all("x-remote-group"),
        extra,
    })
}
