//! Bearer tokens from a registry's token server, kept until shortly before they expire.
//!
//! Source: distribution's "Token Authentication Specification" and "OAuth2 Token Authentication".

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde::Deserialize;
use url::Url;

use super::client::{describe, read_limited};
use super::credentials::Auth;
use super::endpoint::is_loopback;
use crate::error::Error;

/// What the specification says when the server does not.
const DEFAULT_LIFETIME_S: u64 = 60;
/// A token is not used in its last seconds: the request would arrive too late.
const MARGIN: Duration = Duration::from_secs(10);
const ANSWER_BYTES: u64 = 256 << 10;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    pub realm: String,
    pub service: Option<String>,
    pub scope: String,
    pub auth: Option<Auth>,
}

#[derive(Default)]
pub(crate) struct Tokens(Mutex<HashMap<Wanted, (String, Instant)>>);

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Tokens {
    fn cache(&self) -> MutexGuard<'_, HashMap<Wanted, (String, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token was refused: do not offer it again.
    pub fn forget(&self, token: &str) {
        self.cache().retain(|_, (other, _)| other != token);
    }

    /// A token as `wanted`, from the cache or the server. `secure` tells whether the registry itself was
    /// reached over TLS: then credentials are not sent in the clear either.
    pub async fn get(
        &self,
        client: &reqwest::Client,
        wanted: Wanted,
        secure: bool,
    ) -> Result<String, Error> {
        let now = Instant::now();
        {
            let mut cache = self.cache();
            cache.retain(|_, (_, expires)| *expires > now);
            if let Some((token, _)) = cache.get(&wanted) {
                return Ok(token.clone());
            }
        }
        let unauthorized = |reason: String| Error::Unauthorized {
            what: "failed to fetch a token".to_owned(),
            reason,
        };
        let realm = Url::parse(&wanted.realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| {
                unauthorized(format!("the token server {:?} is not a URL", wanted.realm))
            })?;
        if wanted.auth.is_some() && secure && realm.scheme() == "http" && !is_loopback(&realm) {
            return Err(unauthorized(format!("the token server {realm} does not use TLS")));
        }
        let request = request(client, realm.clone(), &wanted);
        let response = request.send().await.map_err(|error| Error::Unreachable {
            what: "failed to fetch a token".to_owned(),
            reason: describe(&error),
        })?;
        let status = response.status();
        let body = read_limited(response, ANSWER_BYTES, "token").await?;
        if !status.is_success() {
            let host = realm.host_str().unwrap_or_default();
            return Err(match status {
                _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    Error::Unreachable {
                        what: "failed to fetch a token".to_owned(),
                        reason: format!("unexpected status from {host}: {status}"),
                    }
                }
                _ => unauthorized(format!("unexpected status from {host}: {status}")),
            });
        }
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|error| unauthorized(format!("odd answer: {error}")))?;
        let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
        if token.is_empty() {
            return Err(unauthorized("the answer has no token".to_owned()));
        }
        let lifetime =
            Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFETIME_S).min(86_400));
        self.cache().insert(wanted, (token.clone(), now + lifetime.saturating_sub(MARGIN)));
        Ok(token)
    }
}

fn request(client: &reqwest::Client, mut realm: Url, wanted: &Wanted) -> reqwest::RequestBuilder {
    if let Some(Auth::IdentityToken(refresh)) = &wanted.auth {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", refresh)
            .append_pair("client_id", "rootlet")
            .append_pair("scope", &wanted.scope);
        if let Some(service) = &wanted.service {
            form.append_pair("service", service);
        }
        return client
            .post(realm)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.finish());
    }
    {
        let mut query = realm.query_pairs_mut();
        if let Some(service) = &wanted.service {
            query.append_pair("service", service);
        }
        // One parameter for each scope the registry asked for.
        for scope in wanted.scope.split(' ').filter(|scope| !scope.is_empty()) {
            query.append_pair("scope", scope);
        }
    }
    let request = client.get(realm);
    match &wanted.auth {
        Some(Auth::Basic { username, password }) => request.basic_auth(username, Some(password)),
        _ => request,
    }
}
