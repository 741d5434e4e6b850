//! Users by service-account token: the claims are right only while what they name still exists.
//!
//! Source: `pkg/serviceaccount/claims.go`.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::attributes::UserInfo;
use crate::object::Object;
use crate::pki::jwt::{Claims, Reference, Rejection};
use crate::registry::Registry;

/// A deleted object still vouches for its tokens for so long, so that a pod can say good-bye.
const DELETION_LEEWAY_S: i64 = 60;

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// By what it says.
    #[error(transparent)]
    Token(#[from] Rejection),
    /// It is for somebody else.
    #[error("token audiences {token:?} is invalid for the target audiences {wanted:?}")]
    Audience {
        /// For whom it is.
        token: Vec<String>,
        /// For whom it should be.
        wanted: Vec<String>,
    },
    /// The account, or the object it is bound to, is gone or is another one of the same name.
    #[error("{kind} {namespace}/{name} of the token does not exist any more")]
    Gone {
        /// What.
        kind: &'static str,
        /// Where.
        namespace: String,
        /// Which.
        name: String,
    },
}

#[derive(Deserialize)]
struct Body {
    metadata: Meta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    deletion_timestamp: Option<String>,
}

/// The name of a service account as a user.
pub fn username(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The groups of the service accounts of `namespace`.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

/// The user that verified `claims` name, while account and bound object exist.
pub fn user(registry: &Registry, claims: &Claims, now: i64) -> Result<UserInfo, Error> {
    let private = &claims.private;
    let namespace = &private.namespace;
    let check = |kind, plural, namespace: &str, reference: &Reference| {
        let found = registry.get("", plural, namespace, &reference.name);
        match found {
            Some(object) if vouches(&object, reference, now) => Ok(()),
            _ => Err(Error::Gone {
                kind,
                namespace: namespace.to_owned(),
                name: reference.name.clone(),
            }),
        }
    };
    check("service account", "serviceaccounts", namespace, &private.serviceaccount)?;
    let mut extra = BTreeMap::new();
    if let Some(secret) = &private.secret {
        check("secret", "secrets", namespace, secret)?;
    }
    if let Some(pod) = &private.pod {
        check("pod", "pods", namespace, pod)?;
        extra.insert("authentication.kubernetes.io/pod-name".into(), vec![pod.name.clone()]);
        extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![pod.uid.clone()]);
    }
    if let Some(node) = &private.node {
        // A token bound to the node itself dies with it; one bound to a pod lives as the pod does.
        if private.pod.is_none() {
            check("node", "nodes", "", node)?;
        }
        extra.insert("authentication.kubernetes.io/node-name".into(), vec![node.name.clone()]);
        if !node.uid.is_empty() {
            extra.insert("authentication.kubernetes.io/node-uid".into(), vec![node.uid.clone()]);
        }
    }
    if !claims.jti.is_empty() {
        extra.insert(
            "authentication.kubernetes.io/credential-id".into(),
            vec![format!("JTI={}", claims.jti)],
        );
    }
    Ok(UserInfo {
        name: username(namespace, &private.serviceaccount.name),
        uid: private.serviceaccount.uid.clone(),
        groups: groups(namespace),
        extra,
    })
}

fn vouches(object: &Object, reference: &Reference, now: i64) -> bool {
    if object.uid != reference.uid {
        return false;
    }
    let Ok(body) = object.parse::<Body>() else { return false };
    let Some(at) = body.metadata.deletion_timestamp else { return true };
    at.parse::<jiff::Timestamp>().is_ok_and(|at| at.as_second() + DELETION_LEEWAY_S > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_vouch_by_uid_until_they_are_gone() {
        let object = |meta: &str| {
            let json = format!("{{\"metadata\":{{\"name\":\"a\",\"uid\":\"u\"{meta}}}}}");
            Object::from_stored(json.into(), 2, &[]).unwrap()
        };
        let deleted = r#","deletionTimestamp":"1970-01-01T00:01:00Z""#;
        let cases = [
            (object(""), "u", 0, true),
            (object(""), "v", 0, false),
            (object(deleted), "u", 119, true),
            (object(deleted), "u", 120, false),
        ];
        for (object, uid, now, want) in cases {
            let reference = Reference { name: "a".into(), uid: uid.into() };
            assert_eq!(vouches(&object, &reference, now), want);
        }
    }
}
