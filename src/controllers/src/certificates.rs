//! CertificateSigningRequests: approving those of kubelets, signing what is approved, clearing away.
//!
//! Source: `pkg/controller/certificates` (`approver/sarapprove.go`, `signer/signer.go`,
//! `cleaner/cleaner.go`), `pkg/apis/certificates/helpers.go`.

use std::sync::Arc;
use std::time::Duration;

use client::Informers;
use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::queue::{self, Failure, Next};
use crate::{name, touched, unless_code};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// How long certificates are valid when the request does not say (`--cluster-signing-duration`).
const DURATION: Duration = Duration::from_hours(8760);
/// Nobody gets a shorter one.
const DURATION_MIN_S: i32 = 600;
const HOUR_S: i64 = 3600;
/// How long requests stay: settled ones, and ones that nobody settles.
const SETTLED_S: i64 = HOUR_S;
const PENDING_S: i64 = 24 * HOUR_S;

/// A certificate to be signed by the cluster's authority.
pub struct Order<'a> {
    /// The request as PEM.
    pub request_pem: &'a str,
    /// For clients, servers, or both.
    pub client: bool,
    /// See `client`.
    pub server: bool,
    /// How long it is to be valid.
    pub validity: Duration,
}

/// Signs with the cluster's authority; the error is for people.
pub type Sign = dyn Fn(&Order<'_>) -> Result<String, String> + Send + Sync;

/// What a request asks for.
#[derive(Debug, Default, PartialEq)]
struct Subject {
    name: String,
    organisations: Vec<String>,
    dns_names: usize,
    addresses: usize,
    others: usize,
}

fn subject(request: &[u8]) -> Result<Subject, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(request)
        .map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|error| format!("unable to parse csr: {error}"))?;
    let names = &request.certification_request_info.subject;
    let mut subject = Subject {
        name: names.iter_common_name().find_map(|cn| cn.as_str().ok()).unwrap_or_default().into(),
        organisations: names
            .iter_organization()
            .filter_map(|o| Some(o.as_str().ok()?.into()))
            .collect(),
        ..Subject::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(alternatives) = extension else { continue };
        for name in &alternatives.general_names {
            match name {
                GeneralName::DNSName(_) => subject.dns_names += 1,
                GeneralName::IPAddress(_) => subject.addresses += 1,
                _ => subject.others += 1,
            }
        }
    }
    Ok(subject)
}

fn usages(request: &CertificateSigningRequest) -> Vec<&str> {
    request.spec.usages.iter().flatten().map(String::as_str).collect()
}

/// Whether the usages are the wanted one, with or without those for keys.
fn used_for(request: &CertificateSigningRequest, purpose: &str) -> bool {
    let all = usages(request);
    all.contains(&purpose)
        && all.contains(&"digital signature")
        && all.iter().all(|u| [purpose, "digital signature", "key encipherment"].contains(u))
}

fn is_node(subject: &Subject) -> bool {
    subject.organisations == ["system:nodes"] && subject.name.starts_with("system:node:")
}

fn asks_for_kubelet_client(request: &CertificateSigningRequest, subject: &Subject) -> bool {
    request.spec.signer_name == KUBELET_CLIENT
        && is_node(subject)
        && subject.dns_names + subject.addresses + subject.others == 0
        && used_for(request, "client auth")
}

/// What keeps the signer from signing, if anything.
fn refusal(request: &CertificateSigningRequest, subject: &Subject) -> Option<&'static str> {
    match request.spec.signer_name.as_str() {
        KUBELET_CLIENT if !asks_for_kubelet_client(request, subject) => {
            Some("invalid usages or subject for a kubelet client certificate")
        }
        KUBELET_SERVING if !is_node(subject) => Some(
            "organization in CSR was not system:nodes or common name not prefixed with system:node:",
        ),
        KUBELET_SERVING if subject.dns_names + subject.addresses == 0 => {
            Some("DNS or IP SAN is required for a serving certificate")
        }
        KUBELET_SERVING if subject.others > 0 => Some("only DNS and IP SANs are allowed"),
        KUBELET_SERVING if !used_for(request, "server auth") => {
            Some("usages did not match server auth")
        }
        CLIENT if !usages(request).contains(&"client auth") => {
            Some("invalid usages for client certificate")
        }
        _ => None,
    }
}

fn condition<'a>(
    request: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn certificate(request: &CertificateSigningRequest) -> Option<&ByteString> {
    request.status.as_ref()?.certificate.as_ref().filter(|bytes| !bytes.0.is_empty())
}

fn made(kind: &str, reason: &str, message: String) -> CertificateSigningRequestCondition {
    let now = Some(Time(Timestamp::now()));
    CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: now.clone(),
        last_transition_time: now,
    }
}

/// Whether the request's sender may have it approved as `subresource` says.
async fn may(
    client: &Client,
    request: &CertificateSigningRequest,
    subresource: &str,
) -> Result<bool, kube::Error> {
    let spec = &request.spec;
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            uid: spec.uid.clone(),
            groups: spec.groups.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(subresource.into()),
                verb: Some("create".into()),
                version: Some("*".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// Approves the client certificates of kubelets until `shutdown`.
pub async fn run_approving(client: Client, informers: Informers, shutdown: CancellationToken) {
    let requests = informers.get::<CertificateSigningRequest>();
    let changes = touched(&requests, name);
    queue::run("certificatesigningrequest-approving", changes, shutdown, |key: String| {
        let (client, found) = (client.clone(), requests.get("", &key));
        Box::pin(async move {
            let Some(request) = found else { return Ok(Next::Done) };
            let settled = certificate(&request).is_some()
                || ["Approved", "Denied"].iter().any(|kind| condition(&request, kind).is_some());
            let Ok(subject) = subject(&request.spec.request.0) else { return Ok(Next::Done) };
            if settled || !asks_for_kubelet_client(&request, &subject) {
                return Ok(Next::Done);
            }
            let own = request.spec.username.as_deref() == Some(&subject.name);
            for (subresource, holds, whose) in
                [("selfnodeclient", own, "self "), ("nodeclient", true, "")]
            {
                if !holds || !may(&client, &request, subresource).await? {
                    continue;
                }
                let message = format!(
                    "Auto approving {whose}kubelet client certificate after SubjectAccessReview."
                );
                let mut approved = CertificateSigningRequest::clone(&request);
                let status = approved.status.get_or_insert_default();
                let conditions = status.conditions.get_or_insert_default();
                conditions.push(made("Approved", "AutoApproved", message));
                let api: Api<CertificateSigningRequest> = Api::all(client.clone());
                api.replace_subresource("approval", &key, &PostParams::default(), &approved)
                    .await?;
                break;
            }
            Ok(Next::Done)
        })
    })
    .await;
}

async fn sign(
    client: &Client,
    request: &CertificateSigningRequest,
    sign: &Sign,
) -> Result<Next, Failure> {
    let known = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING, LEGACY];
    let ours = known.contains(&request.spec.signer_name.as_str());
    let open = certificate(request).is_none()
        && condition(request, "Approved").is_some()
        && ["Denied", "Failed"].iter().all(|kind| condition(request, kind).is_none());
    if !(ours && open) {
        return Ok(Next::Done);
    }
    let seconds = request.spec.expiration_seconds.map(|s| s.max(DURATION_MIN_S) as u64);
    let validity = seconds.map_or(DURATION, Duration::from_secs).min(DURATION);
    let has = |usage: &str| usages(request).contains(&usage);
    let text = String::from_utf8_lossy(&request.spec.request.0);
    let order = Order {
        request_pem: &text,
        client: has("client auth"),
        server: has("server auth"),
        validity,
    };
    let signed = match subject(&request.spec.request.0) {
        Err(problem) => Err(problem),
        Ok(subject) => match refusal(request, &subject) {
            Some(problem) => Err(problem.to_owned()),
            None => sign(&order),
        },
    };
    let mut told = request.clone();
    let status = told.status.get_or_insert_default();
    match signed {
        Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
        Err(problem) => {
            let conditions = status.conditions.get_or_insert_default();
            conditions.push(made("Failed", "SignerValidationFailure", problem));
        }
    }
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    unless_code(api.replace_status(&request.name_any(), &PostParams::default(), &told).await, 404)?;
    Ok(Next::Done)
}

/// Signs what is approved until `shutdown`.
pub async fn run_signing(
    client: Client,
    informers: Informers,
    signer: Arc<Sign>,
    shutdown: CancellationToken,
) {
    let requests = informers.get::<CertificateSigningRequest>();
    let changes = touched(&requests, name);
    queue::run("certificatesigningrequest-signing", changes, shutdown, |key: String| {
        let (client, signer, found) = (client.clone(), signer.clone(), requests.get("", &key));
        Box::pin(async move {
            match found {
                Some(request) => sign(&client, &request, signer.as_ref()).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}

/// Seconds until the request is cleared away.
fn rest_s(request: &CertificateSigningRequest, now: Timestamp) -> i64 {
    let since = |time: Option<&Time>| time.map_or(0, |time| now.duration_since(time.0).as_secs());
    let settled =
        ["Approved", "Denied", "Failed"].iter().filter_map(|kind| condition(request, kind));
    let settled = settled.map(|c| SETTLED_S - since(c.last_update_time.as_ref())).min();
    settled.unwrap_or_else(|| PENDING_S - since(request.metadata.creation_timestamp.as_ref()))
}

/// Clears requests away until `shutdown`.
pub async fn run_cleaning(client: Client, informers: Informers, shutdown: CancellationToken) {
    let requests = informers.get::<CertificateSigningRequest>();
    let changes = touched(&requests, name);
    queue::run("certificatesigningrequest-cleaner", changes, shutdown, |key: String| {
        let found = requests.get("", &key);
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        Box::pin(async move {
            let Some(request) = found else { return Ok(Next::Done) };
            let rest = rest_s(&request, Timestamp::now());
            if rest > 0 {
                return Ok(Next::After(Duration::from_secs(rest as u64)));
            }
            unless_code(api.delete(&key, &DeleteParams::default()).await, 404)?;
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(signer: &str, usages: &[&str], conditions: Value) -> CertificateSigningRequest {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"request": "", "signerName": signer, "usages": usages},
            "status": {"conditions": conditions}}))
        .expect("a request")
    }

    fn node(dns_names: usize) -> Subject {
        Subject {
            name: "system:node:n".into(),
            organisations: vec!["system:nodes".into()],
            dns_names,
            ..Subject::default()
        }
    }

    #[test]
    fn signers_have_their_rules() {
        let person = Subject { name: "jane".into(), ..Subject::default() };
        let (client, server) =
            (&["client auth", "digital signature"][..], &["server auth", "digital signature"][..]);
        for (signer, usages, subject, signs) in [
            (KUBELET_CLIENT, client, node(0), true),
            (KUBELET_CLIENT, server, node(0), false),
            (KUBELET_CLIENT, client, node(1), false),
            (KUBELET_SERVING, server, node(1), true),
            (KUBELET_SERVING, server, node(0), false),
            (CLIENT, client, person, true),
            (CLIENT, server, node(0), false),
        ] {
            let request = request(signer, usages, json!([]));
            assert_eq!(refusal(&request, &subject).is_none(), signs, "{signer} {subject:?}");
        }
    }

    #[test]
    fn settled_requests_go_after_an_hour() {
        let at = |text: &str| text.parse().expect("a time");
        let approved = json!([{"type": "Approved", "status": "True", "lastUpdateTime": "2026-01-01T00:30:00Z"}]);
        assert_eq!(rest_s(&request(CLIENT, &[], approved), at("2026-01-01T01:00:00Z")), 1800);
        assert_eq!(rest_s(&request(CLIENT, &[], json!([])), at("2026-01-02T00:00:00Z")), 0);
    }

    #[test]
    fn what_is_no_request_is_told() {
        assert!(subject(b"nonsense").is_err());
    }
}
