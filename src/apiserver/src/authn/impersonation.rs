//! Acting as somebody else: `Impersonate-*` headers, each of which needs the right to impersonate.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>.

use std::collections::BTreeMap;

use apimachinery::Status;
use http::HeaderMap;

use crate::attributes::{RequestContext, UserInfo};
use crate::authn::service_account;
use crate::authz::Authorizer;
use crate::subresources::verb_of;

const EXTRA: &str = "impersonate-extra-";

/// The user that `headers` ask to act as in the request `ctx`, if they do and the client may.
pub fn impersonate(
    authorizer: &Authorizer,
    ctx: &RequestContext,
    headers: &HeaderMap,
) -> Result<Option<UserInfo>, Status> {
    let Some(wanted) = wanted(headers)? else { return Ok(None) };
    if may_for_this(authorizer, ctx, &wanted) {
        return Ok(Some(completed(wanted)));
    }
    let actor = ctx.user.clone();
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

/// Whether the client may act as `wanted` for what this request does: the right to be that user, and the
/// right to do this as such a user (constrained impersonation, KEP-5284).
fn may_for_this(authorizer: &Authorizer, ctx: &RequestContext, wanted: &UserInfo) -> bool {
    let ask = |verb: &str, resource: &str, namespace: &str, name: &str| {
        let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let asked = RequestContext {
            user: ctx.user.clone(),
            verb: verb_of(verb),
            group: "authentication.k8s.io".into(),
            version: "v1".into(),
            plural: plural.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestContext::default()
        };
        authorizer.authorize(&asked).allowed()
    };
    let on_this = |mode: &str| {
        let verb = verb_of(&format!("impersonate-on:{mode}:{}", ctx.verb));
        let asked = RequestContext { verb, audit: None, ..ctx.clone() };
        authorizer.authorize(&asked).allowed()
    };
    let alone = wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty();
    if let Some((namespace, name)) = service_account_parts(&wanted.name) {
        return alone
            && ask("impersonate:serviceaccount", "serviceaccounts", namespace, name)
            && on_this("serviceaccount");
    }
    if let Some(node) = wanted.name.strip_prefix("system:node:") {
        let own = ctx.user.extra.get("authentication.kubernetes.io/node-name");
        let associated = own.is_some_and(|names| names.iter().any(|name| name == node));
        return alone
            && ((associated
                && ask("impersonate:associated-node", "nodes", "", "*")
                && on_this("associated-node"))
                || (ask("impersonate:arbitrary-node", "nodes", "", node)
                    && on_this("arbitrary-node")));
    }
    let verb = "impersonate:user-info";
    let extra = |(key, values): (&String, &Vec<String>)| {
        values.iter().all(|value| ask(verb, &format!("userextras/{key}"), "", value))
    };
    ask(verb, "users", "", &wanted.name)
        && wanted.groups.iter().all(|group| ask(verb, "groups", "", group))
        && (wanted.uid.is_empty() || ask(verb, "uids", "", &wanted.uid))
        && wanted.extra.iter().all(extra)
        && on_this("user-info")
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

/// Text with its `%` escapes resolved.
pub fn percent_decoded(text: &str) -> String {
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
    use std::sync::Arc;

    use crate::registry::Registry;

    fn by(user: UserInfo) -> RequestContext {
        RequestContext { user: Arc::new(user), verb: "get", ..RequestContext::default() }
    }

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
        let root = by(UserInfo::new("root", &["system:masters"]));
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
        let user = by(UserInfo::new("eve", &[]));
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

    #[tokio::test]
    async fn acting_as_somebody_may_be_for_some_things_only() {
        use serde_json::json;

        let f = crate::tests::Fixture::new().await;
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let role = json!({"metadata": {"name": "as-bob"}, "rules": [
            {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["bob"],
                "verbs": ["impersonate:user-info"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]}]});
        let made = f.post(&format!("{rbac}/clusterroles"), &role).await;
        assert_eq!(made.code, 201, "{}", made.body);
        for (user, role) in [("eve", "as-bob"), ("bob", "view")] {
            let binding = json!({"metadata": {"name": user},
                "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
                "roleRef": {"kind": "ClusterRole", "name": role,
                    "apiGroup": "rbac.authorization.k8s.io"}});
            let made = f.post(&format!("{rbac}/clusterrolebindings"), &binding).await;
            assert_eq!(made.code, 201, "{}", made.body);
        }
        let eve = f.seen_by(UserInfo::new("eve", &[]));
        for (path, user, want) in [
            ("/api/v1/namespaces/default/pods", "bob", 200),
            ("/api/v1/namespaces/default/configmaps", "bob", 403),
            ("/api/v1/namespaces/default/pods", "alice", 403),
        ] {
            let request = http::Request::get(path).header("impersonate-user", user);
            let answer = eve.send(request, crate::body::Body::Empty).await;
            assert_eq!(answer.code.as_u16(), want, "{path} as {user}: {}", answer.body);
        }
    }
}
