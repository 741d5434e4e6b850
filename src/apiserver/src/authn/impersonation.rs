//! Acting as somebody else: `Impersonate-*` headers, each of which needs the right to impersonate.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Status;
use http::HeaderMap;

use crate::attributes::{RequestContext, UserInfo};
use crate::authn::service_account;
use crate::authz::Authorizer;

const EXTRA: &str = "impersonate-extra-";

/// The user that `headers` ask to act as, if they do and `user` may.
pub fn impersonate(
    authorizer: &Authorizer,
    user: &UserInfo,
    headers: &HeaderMap,
) -> Result<Option<UserInfo>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    let actor = Arc::new(user.clone());
    let require = |group: &str, plural: &str, subresource: &str, namespace: &str, name: &str| {
        authorizer.require(&RequestContext {
            user: actor.clone(),
            verb: "impersonate",
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestContext::default()
        })
    };
    match service_account_parts(&wanted.name) {
        Some((namespace, name)) => require("", "serviceaccounts", "", namespace, name)?,
        None => require("", "users", "", "", &wanted.name)?,
    }
    for group in &wanted.groups {
        require("", "groups", "", "", group)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            require("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        require("authentication.k8s.io", "uids", "", "", &wanted.uid)?;
    }
    Ok(Some(completed(wanted)))
}

fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let all = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
    let (name, uid) = (first("impersonate-user"), first("impersonate-uid"));
    let groups = all("impersonate-group");
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for key in headers.keys() {
        if let Some(encoded) = key.as_str().strip_prefix(EXTRA) {
            extra.insert(percent_decoded(encoded), all(key.as_str()));
        }
    }
    if name.is_empty() {
        if groups.is_empty() && extra.is_empty() && uid.is_empty() {
            return Ok(None);
        }
        return Err(Status::internal(format!(
            "requested {:?} without impersonating a user",
            UserInfo { name, uid, groups, extra }
        )));
    }
    Ok(Some(UserInfo { name, uid, groups, extra }))
}

/// Adds the groups that the user would have had by authenticating.
fn completed(mut user: UserInfo) -> UserInfo {
    if let Some((namespace, _)) = service_account_parts(&user.name)
        && user.groups.is_empty()
    {
        user.groups = service_account::groups(namespace);
    }
    let state = if user.name == "system:anonymous" {
        "system:unauthenticated"
    } else {
        "system:authenticated"
    };
    if !user.in_group("system:authenticated") && !user.in_group("system:unauthenticated") {
        user.groups.push(state.into());
    }
    user
}

fn service_account_parts(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut decoded, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            decoded.push(byte);
            at += 3;
        } else {
            decoded.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in list {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn the_privileged_become_whom_they_ask() {
        let authorizer = Authorizer::new(Registry::default());
        let root = UserInfo::new("root", &["system:masters"]);
        let cases: [(&[(&str, &str)], Option<(&str, &[&str])>); 4] = [
            (&[], None),
            (&[("impersonate-user", "bob")], Some(("bob", &["system:authenticated"]))),
            (
                &[("impersonate-user", "bob"), ("impersonate-group", "dev")],
                Some(("bob", &["dev", "system:authenticated"])),
            ),
            (
                &[("impersonate-user", "system:serviceaccount:ns:sa")],
                Some((
                    "system:serviceaccount:ns:sa",
                    &[
                        "system:serviceaccounts",
                        "system:serviceaccounts:ns",
                        "system:authenticated",
                    ],
                )),
            ),
        ];
        for (list, want) in cases {
            let got = impersonate(&authorizer, &root, &headers(list)).unwrap();
            let want = want.map(|(name, groups)| {
                (name.to_owned(), groups.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>())
            });
            assert_eq!(got.map(|user| (user.name, user.groups)), want);
        }
        let got = impersonate(
            &authorizer,
            &root,
            &headers(&[("impersonate-user", "bob"), ("impersonate-extra-acme%2Fcost", "1")]),
        );
        assert_eq!(got.unwrap().unwrap().extra["acme/cost"], ["1"]);
    }

    #[test]
    fn others_are_told_what_they_lack() {
        let authorizer = Authorizer::new(Registry::default());
        let user = UserInfo::new("eve", &[]);
        let error =
            impersonate(&authorizer, &user, &headers(&[("impersonate-user", "bob")])).unwrap_err();
        assert_eq!(error.code, 403);
        assert_eq!(
            error.message,
            r#"users "bob" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
        let error =
            impersonate(&authorizer, &user, &headers(&[("impersonate-group", "x")])).unwrap_err();
        assert_eq!(error.code, 500);
    }
}
