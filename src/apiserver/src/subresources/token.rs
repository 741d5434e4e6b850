//! `serviceaccounts/token`: TokenRequest.
//!
//! Source: `TokenREST` of `pkg/registry/core/serviceaccount/storage`.

use apimachinery::field::{Error, Path};
use apimachinery::{Status, meta, time};
use serde_json::Value;
use uuid::Uuid;

use super::{created, read};
use crate::authn::{self, service_account};
use crate::body::{Body, Response};
use crate::codec::Expected;
use crate::gate::Operation;
use crate::pki::jwt::{Claims, ISSUER, Private, Reference};
use crate::registry::Registry;
use crate::rest::Call;
use crate::zero::Zero;

const TOKEN_REQUEST: Expected<'static> =
    Expected::builtin("authentication.k8s.io", "v1", "TokenRequest");
const DEFAULT_SECONDS: i64 = 3600;
const MIN_SECONDS: i64 = 600;
const MAX_SECONDS: i64 = 1 << 32;
/// The lifetime that admission asks for; such tokens work for a year and only warn after it, for the
/// sake of clients that never read the file again.
const PROJECTED_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;

/// Issues a token for the account.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let mut request = read(call, body, TOKEN_REQUEST).await?;
    let (namespace, name) = (call.ctx.namespace.clone(), call.ctx.name.clone());
    let registry = &call.server.registry;
    registry.sync().await?;
    let Some(account) = registry.get("", "serviceaccounts", &namespace, &name) else {
        return Err(Status::not_found("", "serviceaccounts", &name));
    };
    for (key, value, given) in [
        ("name", name.as_str(), meta::name(&request).to_owned()),
        ("namespace", namespace.as_str(), meta::namespace(&request).to_owned()),
    ] {
        if !given.is_empty() && given != value {
            return Err(Status::bad_request(format!(
                "{key} on the URL ({value}) does not match the {key} of the object ({given})"
            )));
        }
        meta::set(&mut request, key, value);
    }
    complete(&mut request["spec"]);
    let errors = validate(&request["spec"]);
    if !errors.is_empty() {
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", "", &errors));
    }
    let gate = call.server.gate();
    gate.validate(&call.ctx, Operation::Create, Some(&request), None).await?;
    let mut private = Private {
        namespace: namespace.clone(),
        serviceaccount: Reference { name: name.clone(), uid: account.uid.clone() },
        ..Private::default()
    };
    if request["spec"]["boundObjectRef"].is_object() {
        bind(registry, &request["spec"]["boundObjectRef"], &mut private)?;
    }
    let now = authn::now();
    let seconds = request["spec"]["expirationSeconds"].int();
    let audiences: Vec<String> = request["spec"]["audiences"].texts().map(str::to_owned).collect();
    let mut lasts = seconds;
    if seconds == PROJECTED_SECONDS && private.pod.is_some() && audiences == [ISSUER] {
        private.warnafter = Some(now + seconds);
        lasts = EXTENDED_SECONDS;
    }
    let claims = Claims {
        aud: audiences,
        exp: now + lasts,
        iat: now,
        iss: ISSUER.into(),
        jti: Uuid::new_v4().to_string(),
        private,
        nbf: now,
        sub: service_account::username(&namespace, &name),
    };
    let token = call.server.authenticator.pki().tokens().sign(&claims).map_err(Status::internal)?;
    let expires = jiff::Timestamp::from_second(now + seconds).map_err(Status::internal)?;
    request["status"]["token"] = token.into();
    request["status"]["expirationTimestamp"] = time::seconds(expires).into();
    if meta::creation_timestamp(&request).is_empty() {
        meta::set(&mut request, "creationTimestamp", time::now());
    }
    Ok(created(call, &request))
}

fn complete(spec: &mut Value) {
    if spec["audiences"].items().is_empty() {
        spec["audiences"] = vec![ISSUER].into();
    }
    if spec["expirationSeconds"].is_null() {
        spec["expirationSeconds"] = DEFAULT_SECONDS.into();
    }
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

fn validate(spec: &Value) -> Vec<Error> {
    let path = Path::new("spec").child("expirationSeconds");
    let seconds = spec["expirationSeconds"].int();
    let detail = if seconds < MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Vec::new();
    };
    vec![Error::invalid(&path, seconds, detail)]
}

/// Ties the token to an object, which must be the one that is meant.
fn bind(registry: &Registry, reference: &Value, private: &mut Private) -> Result<(), Status> {
    let (kind, name) = (reference["kind"].text(), reference["name"].text());
    let (plural, namespace) = match (reference["apiVersion"].text(), kind) {
        ("v1", "Pod") => ("pods", private.namespace.as_str()),
        ("v1", "Secret") => ("secrets", private.namespace.as_str()),
        ("v1", "Node") => ("nodes", ""),
        (version, kind) => {
            let (group, version) = meta::split_api_version(version);
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let Some(object) = registry.get("", plural, namespace, name) else {
        return Err(Status::not_found("", plural, name));
    };
    let uid = reference["uid"].text();
    if !uid.is_empty() && uid != object.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", kind, name, &why));
    }
    let found = Reference { name: name.to_owned(), uid: object.uid.clone() };
    match kind {
        "Pod" => {
            let pod = object.value();
            if pod["spec"]["serviceAccountName"].text() != private.serviceaccount.name {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    private.serviceaccount.name
                )));
            }
            let node = pod["spec"]["nodeName"].text();
            if !node.is_empty() {
                let uid = registry.get("", "nodes", "", node).map(|node| node.uid.clone());
                private.node =
                    Some(Reference { name: node.to_owned(), uid: uid.unwrap_or_default() });
            }
            private.pod = Some(found);
        }
        "Secret" => private.secret = Some(found),
        _ => private.node = Some(found),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn durations_are_bounded() {
        let cases = [
            (json!({}), 0),
            (json!({"expirationSeconds": 600}), 0),
            (json!({"expirationSeconds": 599}), 1),
        ];
        for (mut spec, want) in cases {
            complete(&mut spec);
            assert_eq!(validate(&spec).len(), want, "{spec}");
            assert_eq!(spec["audiences"], json!([ISSUER]));
        }
    }
}
