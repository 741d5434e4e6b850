//! Requests to registries: TLS, credentials, retries, errors.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::challenge::{self, Challenge};
use super::credentials::Auth;
use super::endpoint::Endpoint;
use super::registries::TlsConfig;
use super::token::{Tokens, Wanted};
use crate::error::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte for so long a connection is taken for dead.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(30);
const REDIRECTS: usize = 10;
const ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longer than this nobody waits for a registry that asks for patience; the caller backs off instead.
const LONGEST_DELAY: Duration = Duration::from_secs(10);
const ERROR_BYTES: u64 = 64 << 10;

/// Whose authorization is remembered: host, repository, credentials.
type SessionKey = (String, String, Option<Auth>);

/// The client of all registries.
#[derive(Default)]
pub(crate) struct Client {
    http: Mutex<HashMap<Option<TlsConfig>, reqwest::Client>>,
    /// Hosts on loopback that turned out to speak plain HTTP.
    plain: Mutex<HashSet<String>>,
    sessions: Mutex<HashMap<SessionKey, HeaderValue>>,
    tokens: Tokens,
}

/// One request to an endpoint.
pub(crate) struct Ask<'a> {
    pub endpoint: &'a Endpoint,
    pub method: Method,
    /// `manifests` or `blobs`.
    pub kind: &'static str,
    /// Tag or digest.
    pub name: &'a str,
    pub headers: HeaderMap,
    /// What is being done, for errors, e.g. `failed to resolve reference "…"`.
    pub what: &'a str,
}

impl Client {
    /// Sends the request, as often as it makes sense; the answer is a success or 416.
    pub async fn send(&self, ask: &Ask<'_>) -> Result<Response, Error> {
        let mut attempt = 0;
        let mut authenticated = false;
        loop {
            attempt += 1;
            let (failure, wait) = match self.try_once(ask).await {
                Ok(response) => {
                    let status = response.status();
                    if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                        return Ok(response);
                    }
                    if status == StatusCode::UNAUTHORIZED && !authenticated {
                        authenticated = true;
                        attempt -= 1;
                        self.authenticate(ask, &response).await?;
                        continue;
                    }
                    let wait = retry_after(&response);
                    let retry = status.is_server_error()
                        || matches!(
                            status,
                            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                        );
                    let failure = refusal(ask, response).await;
                    if !retry {
                        return Err(failure);
                    }
                    (failure, wait)
                }
                Err(error) => {
                    let failure = Error::Unreachable {
                        what: ask.what.to_owned(),
                        reason: format!("failed to do request: {}", describe(&error)),
                    };
                    // Asking again does not make a certificate better.
                    if speaks_tls(&error) {
                        return Err(failure);
                    }
                    (failure, None)
                }
            };
            let wait = wait.unwrap_or(FIRST_DELAY * 2_u32.pow(attempt - 1));
            if attempt >= ATTEMPTS || wait > LONGEST_DELAY {
                return Err(failure);
            }
            tracing::debug!(error = %failure, attempt, "asking the registry again");
            tokio::time::sleep(jitter(wait)).await;
        }
    }

    async fn try_once(&self, ask: &Ask<'_>) -> reqwest::Result<Response> {
        let endpoint = ask.endpoint;
        let client = self.http(endpoint.tls.as_ref())?;
        let url = endpoint.url(ask.kind, ask.name);
        let host = endpoint.host();
        if endpoint.plain_allowed && self.plain().contains(&host) {
            return self.request(&client, ask, plain(url)).send().await;
        }
        let result = self.request(&client, ask, url.clone()).send().await;
        match result {
            Err(error) if endpoint.plain_allowed && error.is_connect() && !speaks_tls(&error) => {
                let response = self.request(&client, ask, plain(url)).send().await?;
                self.plain().insert(host);
                Ok(response)
            }
            Err(error) => {
                // A new client looks at resolv.conf again: the network may have changed.
                if error.is_connect() {
                    self.clients().clear();
                }
                Err(error)
            }
            result => result,
        }
    }

    fn request(
        &self,
        client: &reqwest::Client,
        ask: &Ask<'_>,
        url: Url,
    ) -> reqwest::RequestBuilder {
        let mut request = client.request(ask.method.clone(), url).headers(ask.headers.clone());
        let remembered = self.sessions().get(&session_key(ask.endpoint)).cloned();
        let authorization = match (&ask.endpoint.auth, remembered) {
            (_, Some(value)) => Some(value),
            (Some(Auth::RegistryToken(token)), None) => bearer(token),
            _ => None,
        };
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request
    }

    /// Does what a 401 asks for, and remembers it for the requests that follow.
    async fn authenticate(&self, ask: &Ask<'_>, response: &Response) -> Result<(), Error> {
        let endpoint = ask.endpoint;
        let key = session_key(endpoint);
        if let Some(old) = self.sessions().remove(&key)
            && let Some(token) = old.to_str().ok().and_then(|value| value.strip_prefix("Bearer "))
        {
            self.tokens.forget(token);
        }
        let unauthorized = |reason: &str| Error::Unauthorized {
            what: ask.what.to_owned(),
            reason: reason.to_owned(),
        };
        let offered: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let bearer_offer = offered.iter().find(|offer| matches!(offer, Challenge::Bearer { .. }));
        let value = match (bearer_offer.or(offered.first()), &endpoint.auth) {
            (None, _) => {
                return Err(unauthorized(
                    "authorization failed: the registry does not say what it wants",
                ));
            }
            (_, Some(Auth::RegistryToken(_))) => {
                return Err(unauthorized(
                    "authorization failed: the registry refuses the given token",
                ));
            }
            (Some(Challenge::Basic), Some(Auth::Basic { username, password })) => {
                let text = base64::engine::general_purpose::STANDARD
                    .encode(format!("{username}:{password}"));
                HeaderValue::from_str(&format!("Basic {text}")).ok()
            }
            (Some(Challenge::Basic), _) => {
                return Err(unauthorized("authorization failed: no basic auth credentials"));
            }
            (Some(Challenge::Bearer { realm, service, scope }), auth) => {
                let wanted = Wanted {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope: scope
                        .clone()
                        .unwrap_or_else(|| format!("repository:{}:pull", endpoint.repository)),
                    auth: auth.clone(),
                };
                let client = self.http(endpoint.tls.as_ref()).map_err(|error| {
                    Error::Unreachable { what: ask.what.to_owned(), reason: describe(&error) }
                })?;
                let secure = response.url().scheme() == "https";
                let token = self.tokens.get(&client, wanted, secure).await;
                bearer(&token.map_err(|error| error.context(ask.what))?)
            }
        };
        let mut value = value.ok_or_else(|| {
            unauthorized("authorization failed: the credentials have odd characters")
        })?;
        value.set_sensitive(true);
        self.sessions().insert(key, value);
        Ok(())
    }

    fn http(&self, tls: Option<&TlsConfig>) -> reqwest::Result<reqwest::Client> {
        let mut clients = self.clients();
        if let Some(client) = clients.get(&tls.cloned()) {
            return Ok(client.clone());
        }
        // The binary installs it; a library user may not have.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = build(tls, false).or_else(|error| {
            // A machine without root certificates can still pull over plain HTTP or from a private CA.
            tracing::debug!(
                error = describe(&error),
                "building an HTTP client without the system's roots"
            );
            build(tls, true)
        })?;
        clients.insert(tls.cloned(), client.clone());
        Ok(client)
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Option<TlsConfig>, reqwest::Client>> {
        self.http.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plain(&self) -> MutexGuard<'_, HashSet<String>> {
        self.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionKey, HeaderValue>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn build(tls: Option<&TlsConfig>, without_roots: bool) -> reqwest::Result<reqwest::Client> {
    // HTTP/1.1: several connections carry several layers faster than one.
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("rootlet/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .redirect(redirects())
        .http1_only();
    let mut roots = Vec::new();
    if let Some(tls) = tls {
        if let Some(path) = &tls.ca_file {
            let pem = read_or_warn(path);
            roots = reqwest::Certificate::from_pem_bundle(&pem)?;
        }
        if let (Some(certificate), Some(key)) = (&tls.cert_file, &tls.key_file) {
            let mut pem = read_or_warn(certificate);
            pem.push(b'\n');
            pem.extend(read_or_warn(key));
            builder = builder.identity(reqwest::Identity::from_pem(&pem)?);
        }
        builder = builder.tls_danger_accept_invalid_certs(tls.insecure_skip_verify);
    }
    builder =
        if without_roots { builder.tls_certs_only(roots) } else { builder.tls_certs_merge(roots) };
    builder.build()
}

fn read_or_warn(path: &std::path::Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| {
        tracing::warn!(path = %path.display(), %error, "cannot read a TLS file of registries.yaml");
        Vec::new()
    })
}

/// Blobs are often redirected to another host; reqwest leaves the credentials behind. Never from TLS to
/// plain HTTP.
fn redirects() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::custom(|attempt| {
        let downgrade = attempt.url().scheme() == "http"
            && attempt.previous().last().is_some_and(|previous| previous.scheme() == "https");
        if downgrade {
            return attempt.error("the registry redirects from https to http");
        }
        if attempt.previous().len() > REDIRECTS {
            return attempt.error("too many redirects");
        }
        attempt.follow()
    })
}

fn plain(mut url: Url) -> Url {
    let port = url.port();
    // Both schemes are special ones, so this cannot fail; the default port differs.
    let _ = url.set_scheme("http");
    let _ = url.set_port(port);
    url
}

/// Whether the other side did answer in TLS, only with a certificate we do not trust.
fn speaks_tls(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return !matches!(tls, rustls::Error::InvalidMessage(_));
        }
        // An I/O error names the cause of what it wraps, not what it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn session_key(endpoint: &Endpoint) -> SessionKey {
    (endpoint.host(), endpoint.repository.clone(), endpoint.auth.clone())
}

fn bearer(token: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(&format!("Bearer {token}")).ok()
}

fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Half to all of `wait`, so that many who were refused together do not come back together.
fn jitter(wait: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0) % 1000;
    wait / 2 + wait.mul_f64(random as f64 / 2000.0)
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    errors: Vec<RefusalEntry>,
}

#[derive(Deserialize)]
struct RefusalEntry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The error a registry's answer stands for.
async fn refusal(ask: &Ask<'_>, response: Response) -> Error {
    let status = response.status();
    let host = ask.endpoint.host();
    let body = read_limited(response, ERROR_BYTES, "error").await.unwrap_or_default();
    let said = serde_json::from_slice::<Refusal>(&body)
        .ok()
        .and_then(|refusal| refusal.errors.into_iter().next())
        .map(|entry| format!(": {}: {}", entry.code.to_lowercase(), entry.message))
        .unwrap_or_default();
    let what = ask.what.to_owned();
    match status {
        StatusCode::NOT_FOUND => Error::NotFound { what },
        StatusCode::UNAUTHORIZED => Error::Unauthorized {
            what,
            reason: format!(
                "pull access denied, repository does not exist or may require authorization: authorization failed{said}"
            ),
        },
        StatusCode::FORBIDDEN => Error::Unauthorized {
            what,
            reason: format!("pull access denied: {host} answers 403 Forbidden{said}"),
        },
        _ => Error::Unreachable {
            what,
            reason: format!(
                "unexpected status from {} request to {host}: {status}{said}",
                ask.method
            ),
        },
    }
}

/// Reads a body of at most `limit` bytes.
pub(crate) async fn read_limited(
    mut response: Response,
    limit: u64,
    what: &str,
) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(body),
            Ok(Some(chunk)) => {
                if body.len() as u64 + chunk.len() as u64 > limit {
                    return Err(Error::TooLarge {
                        what: what.to_owned(),
                        limit: format!("more than {limit} bytes"),
                    });
                }
                body.extend_from_slice(&chunk);
            }
            Err(error) => {
                return Err(Error::Unreachable { what: what.to_owned(), reason: describe(&error) });
            }
        }
    }
}

/// An error with its causes, without the URL, which may carry a signature.
pub(crate) fn describe(error: &reqwest::Error) -> String {
    let mut parts = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        parts.push(error.to_string());
        cause = error.source();
    }
    if error.is_timeout() {
        parts.push("timed out".to_owned());
    }
    parts.dedup();
    let host = error.url().and_then(Url::host_str).unwrap_or_default();
    if parts.is_empty() {
        let bare = if error.is_status() { "unexpected status" } else { "request failed" };
        parts.push(bare.to_owned());
    }
    format!("{host}: {}", parts.join(": "))
}
