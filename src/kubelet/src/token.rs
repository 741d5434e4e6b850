//! Service account tokens for projected volumes: asked for with TokenRequest, kept, renewed in time.
//!
//! Source of behaviour: `pkg/kubelet/token/token_manager.go`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client};

use crate::pod;

/// A token is renewed at this age at the latest.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
/// How soon a renewal that failed is tried again.
const RETRY: SignedDuration = SignedDuration::from_secs(10);

/// A token and when to renew it.
#[derive(Clone, Debug)]
pub struct Token {
    /// The JWT.
    pub token: String,
    /// When a new one is due.
    pub renew_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    uid: String,
    audience: Option<String>,
    expiration_seconds: i64,
}

/// Tokens by pod, audience and lifetime.
pub struct Tokens {
    client: Client,
    kept: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    /// No tokens yet.
    pub fn new(client: Client) -> Self {
        Self { client, kept: Mutex::default() }
    }

    /// A token of the pod's service account, bound to the pod. One that cannot be renewed is used up.
    pub async fn get(
        &self,
        of: &Pod,
        audience: Option<&str>,
        expiration_seconds: i64,
        now: Timestamp,
    ) -> Result<Token, kube::Error> {
        let key = Key {
            uid: pod::uid(of).into(),
            audience: audience.filter(|a| !a.is_empty()).map(str::to_owned),
            expiration_seconds,
        };
        let kept = self.lock().get(&key).cloned();
        if let Some(token) = kept.clone().filter(|kept| now < kept.renew_at) {
            return Ok(token);
        }
        match self.request(of, &key, now).await {
            Ok(token) => {
                self.lock().insert(key, token.clone());
                Ok(token)
            }
            Err(error) => {
                let kept = kept.filter(|kept| now < kept.expires_at).ok_or(error)?;
                tracing::warn!(pod = pod::full_name(of), "a token could not be renewed yet");
                Ok(Token { renew_at: now + RETRY, ..kept })
            }
        }
    }

    async fn request(&self, of: &Pod, key: &Key, now: Timestamp) -> Result<Token, kube::Error> {
        let account =
            of.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: key.audience.clone().map(|a| vec![a]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod::name(of).into()),
                    uid: Some(pod::uid(of).into()),
                }),
                expiration_seconds: Some(key.expiration_seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), pod::namespace(of));
        let response = api.create_token_request(account, &PostParams::default(), &request).await?;
        let status = response.status.unwrap_or_default();
        let life = status.expiration_timestamp.map_or_else(
            || SignedDuration::from_secs(key.expiration_seconds),
            |at| at.0.duration_since(now),
        );
        // At four fifths of its life; one whose life is over at once is asked for again.
        let renew_at = now + (life * 4 / 5).min(MAX_AGE);
        let token = status.token.unwrap_or_default();
        Ok(Token { token, renew_at, expires_at: now + life })
    }

    /// Forgets the tokens of the pod with this uid.
    pub fn release(&self, uid: &str) {
        self.lock().retain(|key, _| key.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Token>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
