//! Who asks: a client certificate, a service-account token, a static token; else nobody in particular.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/>.

pub mod bootstrap_token;
pub mod certificate;
pub mod configuration;
pub mod impersonation;
mod oidc;
mod request_header;
pub mod service_account;
pub mod static_tokens;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use apimachinery::Status;
use http::request::Parts;

use crate::access::Reloaded;
use crate::attributes::UserInfo;
use crate::pki::{Pki, jwt};
use crate::registry::Registry;

/// Finds out who sent a request. Cheap to clone.
#[derive(Clone)]
pub struct Authenticator {
    pki: Pki,
    registry: Registry,
    static_tokens: Arc<static_tokens::StaticTokens>,
    configuration: Arc<Reloaded<configuration::Configuration>>,
    /// As it was at the start: a changed file changes the issuers alone.
    anonymous: configuration::Anonymous,
}

/// Why a bearer token is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// As a service account's.
    #[error(transparent)]
    ServiceAccount(#[from] service_account::Error),
    /// By the issuer that it names.
    #[error("{0}")]
    Issuer(String),
}

/// An accepted bearer token.
pub struct Authenticated {
    /// Whose it is.
    pub user: UserInfo,
    /// For whom it is meant.
    pub audiences: Vec<String>,
}

/// Seconds since the epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl Authenticator {
    /// An authenticator that trusts `pki` and checks what tokens are bound to in `registry`.
    pub fn new(
        pki: Pki,
        registry: Registry,
        static_tokens: static_tokens::StaticTokens,
        configuration: Reloaded<configuration::Configuration>,
    ) -> Self {
        let anonymous = configuration.get().anonymous.clone();
        let (static_tokens, configuration) = (Arc::new(static_tokens), Arc::new(configuration));
        Self { pki, registry, static_tokens, configuration, anonymous }
    }

    /// The issuers of tokens, which a changed file changes.
    pub fn configuration(&self) -> Arc<Reloaded<configuration::Configuration>> {
        self.configuration.clone()
    }

    /// The keys that tokens are signed with.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The user whom a connection's certificate proves by itself, whatever its requests say.
    pub fn certified(&self, der: &[u8]) -> Option<UserInfo> {
        if self.pki.verifies_client(der) { certificate::user(der) } else { None }
    }

    /// The user behind a request, `system:anonymous` when it presents nothing. Something presented
    /// that nobody accepts is an error 401, as upstream has it.
    pub async fn authenticate(
        &self,
        parts: &Parts,
        peer_cert_der: Option<&[u8]>,
    ) -> Result<UserInfo, Status> {
        let mut refused = false;
        if let Some(der) = peer_cert_der {
            if self.pki.verifies_front_proxy(der)
                && let Some(user) = request_header::user(der, &parts.headers)
            {
                return Ok(with_group(user));
            }
            match self.pki.verifies_client(der).then(|| certificate::user(der)) {
                Some(Some(user)) => return Ok(user),
                Some(None) => {}
                None => refused = true,
            }
        }
        if let Some(token) = bearer_token(parts) {
            match self.authenticate_token(&token, &[]).await {
                Ok(authenticated) => return Ok(with_group(authenticated.user)),
                Err(error) => {
                    tracing::debug!(%error, "bearer token refused");
                    refused = true;
                }
            }
        }
        if refused || !self.anonymous.allows(parts.uri.path()) {
            return Err(Status::unauthorized());
        }
        Ok(UserInfo::anonymous())
    }

    /// The user of a bearer token that is meant for one of `audiences`; none given means this server.
    pub async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Authenticated, Refusal> {
        let own = [jwt::ISSUER.to_owned()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let known = self
            .static_tokens
            .user(token)
            .or_else(|| bootstrap_token::user(&self.registry, token, now()));
        if let Some(user) = known {
            return Ok(Authenticated { user: with_group(user), audiences: wanted.to_vec() });
        }
        for issuer in &self.configuration.get().issuers {
            match issuer.authenticate(&self.registry, token, now()).await {
                Ok(None) => {}
                Ok(Some(user)) => {
                    return Ok(Authenticated {
                        user: with_group(user),
                        audiences: wanted.to_vec(),
                    });
                }
                Err(error) => return Err(Refusal::Issuer(error)),
            }
        }
        let claims =
            self.pki.tokens().verify(token, now()).map_err(service_account::Error::from)?;
        let shared: Vec<String> =
            wanted.iter().filter(|audience| claims.aud.contains(audience)).cloned().collect();
        if shared.is_empty() {
            return Err(Refusal::ServiceAccount(service_account::Error::Audience {
                token: claims.aud,
                wanted: wanted.to_vec(),
            }));
        }
        let user = service_account::user(&self.registry, &claims, now())?;
        Ok(Authenticated { user: with_group(user), audiences: shared })
    }
}

fn with_group(mut user: UserInfo) -> UserInfo {
    if !user.in_group("system:authenticated") {
        user.groups.push("system:authenticated".into());
    }
    user
}

/// Before a token in the list of a WebSocket's subprotocols.
pub const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

/// The token of `Authorization: Bearer …`, or, for browsers' WebSockets that cannot set it, of the
/// subprotocol `base64url.bearer.authorization.k8s.io.…`.
fn bearer_token(parts: &Parts) -> Option<String> {
    if let Some(header) = parts.headers.get(http::header::AUTHORIZATION) {
        let (scheme, token) = header.to_str().ok()?.trim().split_once(' ')?;
        let token = token.trim();
        return (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
            .then(|| token.to_owned());
    }
    let protocols = parts.headers.get(http::header::SEC_WEBSOCKET_PROTOCOL)?.to_str().ok()?;
    let encoded = protocols.split(',').find_map(|p| p.trim().strip_prefix(TOKEN_PROTOCOL))?;
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(encoded).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator(dir: &std::path::Path) -> Authenticator {
        let tokens = static_tokens::StaticTokens::parse("secret,alice,1,\"dev,ops\"\n").unwrap();
        Authenticator::new(
            Pki::load_or_create(dir).unwrap(),
            Registry::default(),
            tokens,
            Reloaded::fixed(configuration::Configuration::default()),
        )
    }

    fn parts(authorization: Option<&str>) -> Parts {
        let mut request = http::Request::builder();
        if let Some(value) = authorization {
            request = request.header("Authorization", value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[tokio::test]
    async fn nothing_presented_is_anonymous_and_nonsense_is_401() {
        let dir = tempfile::tempdir().unwrap();
        let authenticator = authenticator(dir.path());
        let cases = [
            (None, Ok("system:anonymous")),
            (Some("Basic dTpw"), Ok("system:anonymous")),
            (Some("Bearer secret"), Ok("alice")),
            (Some("bearer secret"), Ok("alice")),
            (Some("Bearer wrong"), Err(401)),
        ];
        for (header, want) in cases {
            let got = authenticator.authenticate(&parts(header), None).await;
            assert_eq!(
                got.as_ref().map(|u| u.name.as_str()).map_err(|s| s.code),
                want,
                "{header:?}"
            );
        }
        let alice = authenticator.authenticate(&parts(Some("Bearer secret")), None).await.unwrap();
        assert_eq!(alice.groups, ["dev", "ops", "system:authenticated"]);
    }

    #[tokio::test]
    async fn a_certificate_names_user_and_groups() {
        use rustls_pki_types::pem::PemObject;
        let dir = tempfile::tempdir().unwrap();
        let authenticator = authenticator(dir.path());
        let pair = authenticator.pki.issue_client("system:node:a", &["system:nodes", "x"]).unwrap();
        let der =
            rustls_pki_types::CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
        let user = authenticator.authenticate(&parts(None), Some(&der)).await.unwrap();
        assert_eq!(user.name, "system:node:a");
        assert_eq!(user.groups, ["system:nodes", "x", "system:authenticated"]);
        let other = Pki::load_or_create(&dir.path().join("other")).unwrap();
        let pair = other.issue_client("kubernetes-admin", &["system:masters"]).unwrap();
        let der =
            rustls_pki_types::CertificateDer::from_pem_slice(pair.cert_pem.as_bytes()).unwrap();
        let refused = authenticator.authenticate(&parts(None), Some(&der)).await;
        assert_eq!(refused.unwrap_err().code, 401);
    }
}
