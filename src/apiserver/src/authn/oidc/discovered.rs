//! The keys of an issuer, as it publishes them, and what else is fetched from its servers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::keys::Key;
use crate::body::Body;
use crate::pki::tls::Bundle;
use crate::registry::Registry;
use crate::webhook::{Target, client_config};
use crate::zero::Zero;

const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Unknown keys make the set be fetched again, but not more often than this.
const REFETCH_AFTER: Duration = Duration::from_secs(10);
/// Keys that an issuer takes back are forgotten within this time.
const KEEP: Duration = Duration::from_mins(10);

/// An issuer by its name.
pub struct Discovered {
    /// Its name.
    pub url: String,
    discovery: String,
    /// Who vouches for its servers.
    pub trust: Arc<Bundle>,
    keys: Mutex<Option<(Instant, Arc<[Key]>)>>,
}

impl Discovered {
    /// The issuer `url`, whose document is at `discovery`, or where it usually is.
    pub fn new(url: &str, discovery: Option<&str>, trust: Arc<Bundle>) -> Self {
        let usual = || format!("{}/.well-known/openid-configuration", url.trim_end_matches('/'));
        Self {
            url: url.to_owned(),
            discovery: discovery.map_or_else(usual, str::to_owned),
            trust,
            keys: Mutex::new(None),
        }
    }

    /// Whether the token is signed by one of its keys.
    pub async fn verify(
        &self,
        registry: &Registry,
        token: &str,
        header: &Value,
    ) -> Result<(), String> {
        let (signed, signature) = token.rsplit_once('.').ok_or("malformed token")?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|error| error.to_string())?;
        let (id, algorithm) = (header["kid"].text(), header["alg"].text());
        let matches = |keys: &[Key]| {
            keys.iter()
                .filter(|key| id.is_empty() || key.id.is_empty() || key.id == id)
                .any(|key| key.verifies(algorithm, signed.as_bytes(), &signature))
        };
        let known = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let age = known.as_ref().map(|(at, _)| at.elapsed());
        if age.is_some_and(|age| age < KEEP)
            && let Some((_, keys)) = &known
            && matches(keys)
        {
            return Ok(());
        }
        if age.is_none_or(|age| age >= REFETCH_AFTER) {
            let keys: Arc<[Key]> = self.fetch_keys(registry).await?.into();
            let found = matches(&keys);
            *self.keys.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((Instant::now(), keys));
            if found {
                return Ok(());
            }
        }
        Err("verify token: failed to verify signature: failed to verify id token signature".into())
    }

    async fn fetch_keys(&self, registry: &Registry) -> Result<Vec<Key>, String> {
        let document = self.fetch_json(registry, &self.discovery).await?;
        if document["issuer"] != self.url.as_str() {
            return Err(format!(
                "issuer did not match the issuer returned by provider, expected {:?} got {}",
                self.url, document["issuer"]
            ));
        }
        let set = self.fetch_json(registry, document["jwks_uri"].text()).await?;
        Ok(Key::parse_all(&set))
    }

    async fn fetch_json(&self, registry: &Registry, url: &str) -> Result<Value, String> {
        let bytes = self.fetch(registry, url, "").await?;
        serde_json::from_slice(&bytes).map_err(|error| format!("{url}: {error}"))
    }

    /// What a server that is trusted as this issuer is answers at `url`; `token` may be empty.
    pub async fn fetch(
        &self,
        registry: &Registry,
        url: &str,
        token: &str,
    ) -> Result<bytes::Bytes, String> {
        let target = Target::of_url(url).map_err(|error| error.to_string())?;
        let tls = client_config(self.trust.clone()).map_err(|error| error.to_string())?;
        let accept = "application/json, application/jwt";
        let mut request = http::Request::get("/").header(http::header::ACCEPT, accept);
        if !token.is_empty() {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let (code, bytes) = registry
            .webhooks()
            .send(&target, tls, request, Body::Empty, FETCH_TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        if !code.is_success() {
            return Err(format!("{url}: {code}"));
        }
        Ok(bytes)
    }
}
