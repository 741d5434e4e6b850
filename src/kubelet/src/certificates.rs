//! Certificates of pods, for projected volumes: a key is made here, a signer asked with a `PodCertificateRequest`, and
//! again before what it issued expires.
//!
//! Source of behaviour: `pkg/kubelet/podcertificate`, KEP 4317.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1beta1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SignatureAlgorithm};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::pod;
use crate::volumes::trust::pem;

/// How long the first certificate is waited for before the pod is told that it is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a request that nobody has answered is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// When to look at a renewal again.
const SOON: SignedDuration = SignedDuration::from_secs(5);

/// Why a pod has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kind of key that is not made here.
    #[error(
        "key type {0:?} is not supported by this node: it makes ECDSAP256, ECDSAP384 and ED25519 keys"
    )]
    KeyType(String),
    /// The key or the request could not be made.
    #[error("make a key and a request")]
    Key(#[source] rcgen::Error),
    /// The API did not answer as needed.
    #[error("{what}: {}", crate::api::text(source))]
    Api {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: kube::Error,
    },
    /// The signer has not answered yet.
    #[error("PodCertificateRequest {0:?} has not been issued yet")]
    Pending(String),
    /// The signer will not issue it.
    #[error("PodCertificateRequest {name:?} is {what}: {reason}: {message}")]
    Refused {
        /// The request.
        name: String,
        /// Denied, or failed.
        what: &'static str,
        /// The signer's word.
        reason: String,
        /// The signer's sentence.
        message: String,
    },
}

/// A key with its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The key, PKCS #8 in PEM.
    pub key: String,
    /// The certificate and what leads to its authority, PEM.
    pub chain: String,
    /// When a new one is due.
    pub renew_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    volume: String,
    index: usize,
}

/// A request on its way.
#[derive(Clone, Debug)]
struct Asked {
    name: String,
    key: String,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    bundle: Option<Bundle>,
    asked: Option<Asked>,
}

/// Certificates by pod, volume and place in it.
pub struct Certificates {
    client: Client,
    kept: Mutex<HashMap<Key, Kept>>,
}

impl Certificates {
    /// No certificates yet.
    pub fn new(client: Client) -> Self {
        Self { client, kept: Mutex::default() }
    }

    /// The certificate of a projection, the `index`th source of the volume.
    pub async fn get(
        &self,
        of: &Pod,
        (volume, index): (&str, usize),
        wanted: &PodCertificateProjection,
        node: &str,
        now: Timestamp,
    ) -> Result<Bundle, Error> {
        let key = Key { uid: pod::uid(of).into(), volume: volume.into(), index };
        let mut kept = self.lock().get(&key).cloned().unwrap_or_default();
        if let Some(bundle) = kept.bundle.as_ref().filter(|bundle| now < bundle.renew_at) {
            return Ok(bundle.clone());
        }
        let asked = if let Some(asked) = kept.asked.clone() {
            asked
        } else {
            let asked = self.ask(of, wanted, node).await?;
            kept.asked = Some(asked.clone());
            self.lock().insert(key.clone(), kept.clone());
            asked
        };
        // Where there is one that serves, nobody need wait for the next.
        let patience = if kept.bundle.is_some() { Duration::ZERO } else { PATIENCE };
        match self.answer(of, &asked, patience).await {
            Ok(bundle) => {
                let bundle = Bundle { renew_at: bundle.renew_at.max(now + SOON), ..bundle };
                let done = Kept { bundle: Some(bundle.clone()), asked: None };
                self.lock().insert(key, done);
                Ok(bundle)
            }
            Err(error) => {
                if matches!(&error, Error::Api { source: kube::Error::Api(status), .. } if status.code == 404)
                {
                    // Whoever tidies up has removed it: another is needed.
                    self.lock().insert(key, Kept { asked: None, ..kept.clone() });
                }
                let Some(bundle) = kept.bundle else { return Err(error) };
                tracing::info!(pod = pod::full_name(of), %error, "no new certificate yet");
                Ok(Bundle { renew_at: now + SOON, ..bundle })
            }
        }
    }

    /// Makes a key, and a request for it.
    async fn ask(
        &self,
        of: &Pod,
        wanted: &PodCertificateProjection,
        node: &str,
    ) -> Result<Asked, Error> {
        let (key, request) = key_and_request(&wanted.key_type)?;
        let namespace = pod::namespace(of);
        let account =
            of.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let failed = |what| move |source| Error::Api { what, source };
        let uid = |meta: ObjectMeta| meta.uid.unwrap_or_default();
        let request = PodCertificateRequest {
            metadata: ObjectMeta {
                namespace: Some(namespace.into()),
                generate_name: Some(format!("req-{}-", pod::name(of))),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: pod::name(of).into(),
                    uid: pod::uid(of).into(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodCertificateRequestSpec {
                signer_name: wanted.signer_name.clone(),
                pod_name: pod::name(of).into(),
                pod_uid: pod::uid(of).into(),
                service_account_name: account.into(),
                service_account_uid: uid(accounts
                    .get(account)
                    .await
                    .map_err(failed("read the pod's service account"))?
                    .metadata),
                node_name: node.into(),
                node_uid: uid(nodes.get(node).await.map_err(failed("read the node"))?.metadata),
                max_expiration_seconds: wanted.max_expiration_seconds,
                stub_pkc_s10_request: ByteString(request),
                unverified_user_annotations: wanted.user_annotations.clone(),
                ..PodCertificateRequestSpec::default()
            },
            status: None,
        };
        let api: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace);
        let made = api.create(&PostParams::default(), &request).await;
        let made = made.map_err(failed("create a PodCertificateRequest"))?;
        Ok(Asked { name: made.metadata.name.unwrap_or_default(), key })
    }

    /// What the signer has answered.
    async fn answer(&self, of: &Pod, asked: &Asked, patience: Duration) -> Result<Bundle, Error> {
        let api: Api<PodCertificateRequest> =
            Api::namespaced(self.client.clone(), pod::namespace(of));
        let until = tokio::time::Instant::now() + patience;
        loop {
            let found = api.get(&asked.name).await;
            let found = found
                .map_err(|source| Error::Api { what: "read a PodCertificateRequest", source })?;
            match outcome(asked, &found.status.unwrap_or_default()) {
                Err(Error::Pending(_)) if tokio::time::Instant::now() < until => {
                    tokio::time::sleep(LOOK).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Forgets the keys of the pod with this uid.
    pub fn release(&self, uid: &str) {
        self.lock().retain(|key, _| key.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn outcome(asked: &Asked, status: &PodCertificateRequestStatus) -> Result<Bundle, Error> {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    for (kind, what) in [("Denied", "denied"), ("Failed", "failed")] {
        if let Some(told) = conditions.iter().find(|c| c.type_ == kind) {
            return Err(Error::Refused {
                name: asked.name.clone(),
                what,
                reason: told.reason.clone(),
                message: told.message.clone(),
            });
        }
    }
    let issued = conditions.iter().any(|c| c.type_ == "Issued");
    let Some(chain) = status.certificate_chain.as_ref().filter(|_| issued) else {
        return Err(Error::Pending(asked.name.clone()));
    };
    // What stands between the certificates is left out.
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).flatten();
    let chain = chain.map(|certificate| pem("CERTIFICATE", &certificate)).collect();
    let renew_at = status.begin_refresh_at.as_ref().or(status.not_after.as_ref());
    let renew_at = renew_at.map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    Ok(Bundle { key: asked.key.clone(), chain, renew_at })
}

/// A new key in PEM, and an empty certificate request that it has signed.
fn key_and_request(kind: &str) -> Result<(String, Vec<u8>), Error> {
    let algorithm: &'static SignatureAlgorithm = match kind {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        other => return Err(Error::KeyType(other.to_owned())),
    };
    let key = KeyPair::generate_for(algorithm).map_err(Error::Key)?;
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    let request = parameters.serialize_request(&key).map_err(Error::Key)?;
    Ok((pem("PRIVATE KEY", &key.serialize_der()), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    use super::*;

    #[test]
    fn keys_sign_empty_requests() {
        for kind in ["ECDSAP256", "ECDSAP384", "ED25519"] {
            let (key, request) = key_and_request(kind).unwrap();
            let (_, parsed) = X509CertificationRequest::from_der(&request).unwrap();
            let info = &parsed.certification_request_info;
            assert_eq!(info.subject.iter().count(), 0, "{kind}");
            let key = KeyPair::from_pem(&key).unwrap();
            assert_eq!(key.public_key_raw(), info.subject_pki.subject_public_key.data.as_ref());
        }
        let error = key_and_request("RSA4096").unwrap_err().to_string();
        assert!(error.contains("\"RSA4096\" is not supported"), "{error}");
    }

    #[test]
    fn answers_are_understood() {
        let asked = Asked { name: "r".into(), key: "K".into() };
        let certificate = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
        let with = |condition: &str, more: Value| {
            let mut status = json!({"conditions": [{"type": condition, "status": "True", "reason": "R",
                "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
            for (key, value) in more.as_object().unwrap() {
                status[key] = value.clone();
            }
            outcome(&asked, &serde_json::from_value(status).unwrap())
        };
        let issued = with(
            "Issued",
            json!({"certificateChain": format!("words\n{certificate}"),
            "notAfter": "2026-01-03T00:00:00Z", "beginRefreshAt": "2026-01-02T00:00:00Z"}),
        );
        let bundle = issued.unwrap();
        assert_eq!(bundle.renew_at.to_string(), "2026-01-02T00:00:00Z");
        assert_eq!((bundle.key.as_str(), bundle.chain), ("K", certificate.replace("\r\n", "\n")));
        for (condition, text) in [
            ("Denied", "PodCertificateRequest \"r\" is denied: R: M"),
            ("Failed", "PodCertificateRequest \"r\" is failed: R: M"),
            ("Other", "PodCertificateRequest \"r\" has not been issued yet"),
        ] {
            assert_eq!(with(condition, json!({})).unwrap_err().to_string(), text);
        }
    }
}
