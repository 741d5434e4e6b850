//! A key management service, as a plugin offers it on a unix socket: its key encrypts the seeds that this
//! server makes, and keys derived from a seed encrypt the values. What is written can be read by
//! kube-apiserver with the same plugin, and the other way round.
//!
//! Source: `k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2` and
//! `k8s.io/apiserver/pkg/server/options/encryptionconfig`.

pub mod envelope;
mod service;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use self::envelope::{Envelope, SEED, Source};
use self::service::Service;
use super::provider::Error;
use crate::zero::Zero;

/// What the values of all plugins begin with, before the plugin's name.
pub const PREFIX: &str = "k8s:enc:kms:v2:";
/// How often a plugin is asked for its key while all is well, and while it is not.
const HEALTHY_INTERVAL: Duration = Duration::from_mins(1);
const UNHEALTHY_INTERVAL: Duration = Duration::from_secs(10);
/// How long an answer about its health is good for whoever asks.
const HEALTHY_TTL: Duration = Duration::from_secs(20);
const UNHEALTHY_TTL: Duration = Duration::from_secs(3);
/// How long the last seed may be written with while the plugin is not well.
const WRITE_MAX: Duration = Duration::from_mins(3);
/// How long a seed that nobody reads with is kept in memory.
const SEED_TTL: Duration = Duration::from_hours(24);
/// How long a plugin's request may take where the configuration does not say.
const TIMEOUT: &str = "3s";

/// What is written with now.
struct Current {
    source: Arc<Source>,
    header: Envelope,
    expires: Instant,
}

/// What the plugin said of itself last.
struct Checked {
    at: Instant,
    outcome: Result<(), String>,
}

/// One plugin, under the name that the configuration gives it.
pub struct Plugin {
    name: String,
    prefix: String,
    service: Service,
    current: RwLock<Option<Current>>,
    /// The seeds of values that were read, by their envelopes.
    known: Mutex<HashMap<Vec<u8>, (Arc<Source>, Instant)>>,
    /// One check at a time; with the version that the plugin had first.
    checking: tokio::sync::Mutex<(Option<String>, Option<Checked>)>,
}

impl Plugin {
    /// Reads the `kms` of a provider; `path` is where it stands.
    pub fn parse(value: &Value, path: &str) -> Result<Self, String> {
        let name = value["name"].text();
        if name.is_empty() {
            return Err(format!(
                "{path}.name: Required value: name is a mandatory field for a provider"
            ));
        }
        match value["apiVersion"].text() {
            "v2" => {}
            "" | "v1" => {
                return Err(
                    "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.".into(),
                );
            }
            other => {
                return Err(format!(
                    "{path}.apiVersion: Invalid value: {other:?}: unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported"
                ));
            }
        }
        if name.contains(':') {
            return Err(format!(
                "{path}.name: Invalid value: {name:?}: invalid KMS provider name {name}, must not contain ':'"
            ));
        }
        let timeout = if value["timeout"].is_set() { value["timeout"].text() } else { TIMEOUT };
        let timeout = apimachinery::time::duration(timeout)
            .filter(|timeout| !timeout.is_zero())
            .ok_or_else(|| {
                format!(
                    "{path}.timeout: Invalid value: {timeout:?}: timeout should be a positive value"
                )
            })?;
        let socket = service::socket(value["endpoint"].text()).map_err(|problem| {
            format!("{path}.endpoint: Invalid value: {:?}: {problem}", value["endpoint"].text())
        })?;
        if !value["cachesize"].is_null() {
            return Err(format!(
                "{path}.cachesize: Invalid value: {}: cachesize is not supported in v2",
                value["cachesize"]
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            prefix: format!("{PREFIX}{name}:"),
            service: Service::new(socket, timeout),
            current: RwLock::default(),
            known: Mutex::default(),
            checking: tokio::sync::Mutex::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Encrypts `plain`, the value of the store's key `context`.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Bytes, Error> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let Some(Current { source, header, expires }) = current.as_ref() else {
            return Err(Error::Plugin { name: self.name.clone(), detail: "it never was".into() });
        };
        let late = Instant::now().saturating_duration_since(*expires);
        if !late.is_zero() {
            let hash = envelope::hash(&header.key_id);
            let detail = format!(
                "encryptedDEKSource with keyID hash {hash:?} expired {} s ago",
                late.as_secs()
            );
            return Err(Error::Plugin { name: self.name.clone(), detail });
        }
        let sealed = Envelope { data: source.seal(context, plain)?, ..header.clone() };
        Ok([self.prefix.as_bytes(), &sealed.encode()].concat().into())
    }

    /// The plain value, if this wrote it and its seed is known, and whether it would be written otherwise
    /// now.
    pub fn open(&self, context: &[u8], value: &[u8]) -> Option<(Bytes, bool)> {
        let mut envelope = self.envelope(value)?;
        let data = std::mem::take(&mut envelope.data);
        let source = self.source(&envelope)?;
        let plain = source.open(context, &data).ok()?;
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let same = current.as_ref().is_some_and(|current| {
            (&current.header.key_id, current.header.kind) == (&envelope.key_id, envelope.kind)
        });
        Some((plain.into(), !same))
    }

    /// The envelope around a value of this plugin.
    fn envelope(&self, value: &[u8]) -> Option<Envelope> {
        Envelope::decode(value.strip_prefix(self.prefix.as_bytes())?).ok()
    }

    /// The envelope, without its data, of a value of this plugin whose seed is not known yet.
    pub fn missing(&self, value: &[u8]) -> Option<Envelope> {
        let envelope = Envelope { data: Vec::new(), ..self.envelope(value)? };
        self.source(&envelope).is_none().then_some(envelope)
    }

    fn source(&self, header: &Envelope) -> Option<Arc<Source>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (source, used) = known.get_mut(&header.encode())?;
        *used = Instant::now();
        Some(source.clone())
    }

    fn remember(&self, header: &Envelope, source: &Arc<Source>) {
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, used)| now.saturating_duration_since(*used) < SEED_TTL);
        known.insert(header.encode(), (source.clone(), now));
    }

    /// Has the plugin decrypt the seed of `header`.
    pub async fn learn(&self, header: &Envelope) -> Result<(), String> {
        let seed = self.service.decrypt(header).await?;
        let source = Source::new(header.kind, seed).map_err(|error| error.to_string())?;
        self.remember(header, &Arc::new(source));
        Ok(())
    }

    /// Asks the plugin how it is, if that was not done a moment ago, and takes up its key.
    pub async fn check(&self) -> Result<(), String> {
        let mut checking = self.checking.lock().await;
        if let Some(checked) = &checking.1 {
            let ttl = if checked.outcome.is_ok() { HEALTHY_TTL } else { UNHEALTHY_TTL };
            if checked.at.elapsed() < ttl {
                return checked.outcome.clone();
            }
        }
        let outcome = self.probe(&mut checking.0).await;
        if let Err(error) = &outcome {
            tracing::warn!(
                name = self.name,
                error,
                "the plugin of a key management service is not well"
            );
        }
        checking.1 = Some(Checked { at: Instant::now(), outcome: outcome.clone() });
        outcome
    }

    /// Checks the plugin where it is time to.
    pub async fn keep(&self) {
        let due = match &self.checking.lock().await.1 {
            None => true,
            Some(Checked { at, outcome: Ok(()) }) => at.elapsed() >= HEALTHY_INTERVAL,
            Some(Checked { at, .. }) => at.elapsed() >= UNHEALTHY_INTERVAL,
        };
        if due {
            // Told by the check itself.
            let _ = self.check().await;
        }
    }

    async fn probe(&self, first: &mut Option<String>) -> Result<(), String> {
        let name = &self.name;
        let status = self.service.status().await.map_err(|error| {
            format!("failed to perform status section of the healthz check for KMS Provider {name}, error: {error}")
        })?;
        let mut problems = Vec::new();
        if status.healthz != "ok" {
            problems.push(format!("got unexpected healthz status: {}", status.healthz));
        }
        if matches!(status.version.as_str(), "v2" | "v2beta1") {
            let first = first.get_or_insert_with(|| status.version.clone());
            if *first != status.version {
                problems.push(format!("KMSv2 API version should not change after the initial status response version {first}, got {}", status.version));
            }
        } else {
            problems.push(format!("expected KMSv2 API version v2, got {}", status.version));
        }
        if let Err(problem) = envelope::valid_key_id(&status.key_id) {
            let hash = envelope::hash(&status.key_id);
            problems.push(format!("got invalid KMSv2 KeyID hash {hash:?}: {problem}"));
        } else if let Err(problem) = self.rotate(&status.key_id).await {
            problems.push(problem);
        }
        match &problems[..] {
            [] => Ok(()),
            [one] => Err(format!("kmsv2 Provider {name} is not healthy, error: {one}")),
            many => {
                Err(format!("kmsv2 Provider {name} is not healthy, error: [{}]", many.join(", ")))
            }
        }
    }

    /// Makes a new seed where the plugin has another key than the last seed was encrypted with; the last one
    /// stays in use as long as it may where that fails.
    async fn rotate(&self, key_id: &str) -> Result<(), String> {
        // From before the plugin is asked: this is the upper bound.
        let expires = Instant::now() + WRITE_MAX;
        if let Some(current) = self.current.write().unwrap_or_else(PoisonError::into_inner).as_mut()
            && current.header.key_id == key_id
        {
            current.expires = expires;
            return Ok(());
        }
        let made = self.seed().await;
        let failed = |problem: &str| format!("failed to rotate DEK: {problem}");
        let (source, header) = made.map_err(|problem| failed(&problem))?;
        if header.key_id != key_id {
            return Err(failed(&format!(
                "statusKeyIDHash={:?}, encryptKeyIDHash={:?}",
                envelope::hash(key_id),
                envelope::hash(&header.key_id)
            )));
        }
        self.remember(&header, &source);
        let current = Current { source, header, expires };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(current);
        Ok(())
    }

    /// A new seed, encrypted by the plugin.
    async fn seed(&self) -> Result<(Arc<Source>, Envelope), String> {
        let seed = envelope::new_seed().map_err(|error| error.to_string())?;
        let sealed = self.service.encrypt(seed.clone()).await;
        let sealed = sealed.map_err(|error| format!("failed to encrypt DEK, error: {error}"))?;
        let header = Envelope {
            key_id: sealed.key_id,
            source: sealed.ciphertext,
            annotations: sealed.annotations,
            kind: SEED,
            ..Envelope::default()
        };
        header.validate()?;
        let source = Source::new(SEED, seed).map_err(|error| error.to_string())?;
        Ok((Arc::new(source), header))
    }
}
