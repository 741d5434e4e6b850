//! Who may call: client certificates of the cluster's authority, or bearer tokens the API server
//! vouches for; then the API server's own client and masters, or whoever the API server says may.
//!
//! Source of behaviour: `pkg/kubelet/server/auth.go`, the kubelet authentication/authorization page
//! of the Kubernetes documentation.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::refuse;
use crate::context::Context;

/// The certificate the connection's client has shown, DER, verified against the authority.
#[derive(Clone)]
pub struct Peer(pub Option<Arc<[u8]>>);

#[derive(Debug, Default, PartialEq, Eq)]
struct User {
    name: String,
    groups: Vec<String>,
}

/// What of a request decides; its body cannot be shared between threads.
pub struct Asked {
    method: Method,
    path: String,
    token: Option<String>,
}

impl Asked {
    /// What `request` asks.
    pub fn new(request: &Request) -> Self {
        let header = request.headers().get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        let token = header.and_then(|h| h.strip_prefix("Bearer ")).map(|t| t.trim().to_owned());
        Self { method: request.method().clone(), path: request.uri().path().to_owned(), token }
    }
}

/// Lets the request pass, or says what to answer instead.
pub async fn check(context: &Context, peer: &Peer, asked: Asked) -> Result<(), Response> {
    let Some(user) = authenticate(context, peer, asked.token.as_deref()).await else {
        return Err(refuse(StatusCode::UNAUTHORIZED, "Unauthorized"));
    };
    let trusted = user.name == "kube-apiserver-kubelet-client"
        || user.groups.iter().any(|g| g == "system:masters");
    if trusted {
        return Ok(());
    }
    let verb = match asked.method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let subresource = match asked.path.split('/').nth(1) {
        Some("stats") => "stats",
        Some("metrics") => "metrics",
        Some("logs") => "log",
        Some("healthz") => "healthz",
        Some("pods" | "runningpods" | "runningPods") => "pods",
        Some("configz") => "configz",
        _ => "proxy",
    };
    if allowed(context, &user, verb, subresource).await {
        return Ok(());
    }
    // What has a word of its own now was asked as `proxy` before.
    let fine = matches!(subresource, "healthz" | "pods" | "configz");
    if fine && allowed(context, &user, verb, "proxy").await {
        return Ok(());
    }
    let subresource = if fine { format!("{subresource} proxy") } else { subresource.to_owned() };
    let message = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{subresource}])\n",
        user.name
    );
    Err(refuse(StatusCode::FORBIDDEN, message))
}

async fn authenticate(context: &Context, peer: &Peer, token: Option<&str>) -> Option<User> {
    if let Some(der) = &peer.0 {
        return subject(der);
    }
    let review = TokenReview {
        spec: TokenReviewSpec { token: token?.to_owned(), audiences: None },
        ..TokenReview::default()
    };
    let api: Api<TokenReview> = Api::all(context.client.clone());
    let status = api.create(&PostParams::default(), &review).await.ok()?.status?;
    let user = status.user.filter(|_| status.authenticated == Some(true))?;
    Some(User { name: user.username?, groups: user.groups.unwrap_or_default() })
}

/// User and groups of a certificate: common name and organisations.
fn subject(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(User { name, groups })
}

async fn allowed(context: &Context, user: &User, verb: &str, subresource: &str) -> bool {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            groups: Some(user.groups.clone()),
            extra: Some(BTreeMap::new()),
            resource_attributes: Some(ResourceAttributes {
                verb: Some(verb.into()),
                version: Some("v1".into()),
                resource: Some("nodes".into()),
                subresource: Some(subresource.into()),
                name: Some(context.node_name.clone()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(context.client.clone());
    match api.create(&PostParams::default(), &review).await {
        Ok(review) => review.status.is_some_and(|s| s.allowed && s.denied != Some(true)),
        Err(error) => {
            tracing::debug!(user = user.name, %error, "access review failed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_name_user_and_groups() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let certificate = params.self_signed(&key).unwrap();
        let user = subject(certificate.der()).unwrap();
        assert_eq!(user, User { name: "admin".into(), groups: vec!["system:masters".into()] });
    }
}
