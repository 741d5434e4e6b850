//! Users by the tokens of OpenID Connect issuers.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>
//! and `k8s.io/apiserver/plugin/pkg/authenticator/token/oidc`.

mod keys;
mod mapping;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::attributes::UserInfo;
use crate::body::Body;
use crate::pki::tls::Bundle;
use crate::registry::Registry;
use crate::webhook::{Target, client_config};
use crate::zero::Zero;

use keys::Key;
use mapping::{Mapping, Rule, Source};

const FETCH_TIMEOUT: Duration = Duration::from_secs(30);
/// Unknown keys make the set be fetched again, but not more often than this.
const REFETCH_AFTER: Duration = Duration::from_secs(10);
/// Keys that an issuer takes back are forgotten within this time.
const KEEP: Duration = Duration::from_mins(10);

/// One entry of `jwt`.
pub struct Issuer {
    url: String,
    discovery: String,
    audiences: Vec<String>,
    trust: Arc<Bundle>,
    mapping: Mapping,
    keys: Mutex<Option<(Instant, Arc<[Key]>)>>,
}

impl Issuer {
    /// Reads an entry; `path` is where it stands, for the mistakes in it.
    pub fn parse(entry: &Value, path: &str) -> Result<Self, String> {
        let issuer = &entry["issuer"];
        let url = issuer["url"].text();
        https(url, &format!("{path}.issuer.url"))?;
        let discovery = match issuer["discoveryURL"].text() {
            "" => format!("{}/.well-known/openid-configuration", url.trim_end_matches('/')),
            other => {
                https(other, &format!("{path}.issuer.discoveryURL"))?;
                if other.trim_end_matches('/') == url.trim_end_matches('/') {
                    return Err(format!("{path}.issuer.discoveryURL: must be different from URL"));
                }
                other.to_owned()
            }
        };
        let audiences: Vec<String> = issuer["audiences"].texts().map(str::to_owned).collect();
        if audiences.is_empty() {
            return Err(format!("{path}.issuer.audiences: at least one audience is required"));
        }
        if audiences.len() > 1 && issuer["audienceMatchPolicy"] != "MatchAny" {
            return Err(format!(
                "{path}.issuer.audienceMatchPolicy: must be MatchAny for multiple audiences"
            ));
        }
        let trust = match issuer["certificateAuthority"].text() {
            "" => Bundle::of_host(),
            pem => Bundle::new(pem.as_bytes())
                .map_err(|error| format!("{path}.issuer.certificateAuthority: {error}"))?,
        };
        Ok(Self {
            url: url.to_owned(),
            discovery,
            audiences,
            trust: Arc::new(trust),
            mapping: mapping_of(entry, path)?,
            keys: Mutex::new(None),
        })
    }

    /// Its name.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The user whose token it is and the audiences that it shares with `wanted`; nothing when another
    /// issued it.
    pub async fn authenticate(
        &self,
        registry: &Registry,
        token: &str,
        now: i64,
    ) -> Result<Option<UserInfo>, String> {
        let Some((header, claims)) = parts(token) else { return Ok(None) };
        if claims["iss"] != self.url.as_str() {
            return Ok(None);
        }
        self.verify(registry, token, &header).await.map_err(|e| format!("oidc: {e}"))?;
        self.judge(&claims, now).map(Some).map_err(|error| format!("oidc: {error}"))
    }

    fn judge(&self, claims: &Value, now: i64) -> Result<UserInfo, String> {
        let audiences: Vec<&str> = match &claims["aud"] {
            Value::String(one) => vec![one.as_str()],
            many => many.texts().collect(),
        };
        if !audiences.iter().any(|audience| self.audiences.iter().any(|own| own == audience)) {
            return Err(format!(
                "verify token: oidc: expected audience in {:?} got {audiences:?}",
                self.audiences
            ));
        }
        let seconds = |name: &str| claims[name].as_f64().map(|seconds| seconds as i64);
        match seconds("exp") {
            None => return Err("verify token: oidc: token has no expiry".into()),
            Some(end) if end <= now => {
                return Err("verify token: oidc: token is expired".into());
            }
            Some(_) => {}
        }
        // Clocks may differ by this much, as upstream's library has it.
        if seconds("nbf").is_some_and(|begin| begin > now + 300) {
            return Err("verify token: oidc: current time is before the nbf time".into());
        }
        self.mapping.user(claims)
    }

    async fn verify(&self, registry: &Registry, token: &str, header: &Value) -> Result<(), String> {
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
        let document = self.fetch(registry, &self.discovery).await?;
        if document["issuer"] != self.url.as_str() {
            return Err(format!(
                "issuer did not match the issuer returned by provider, expected {:?} got {}",
                self.url, document["issuer"]
            ));
        }
        let set = self.fetch(registry, document["jwks_uri"].text()).await?;
        Ok(Key::parse_all(&set))
    }

    async fn fetch(&self, registry: &Registry, url: &str) -> Result<Value, String> {
        let target = Target::of_url(url).map_err(|error| error.to_string())?;
        let tls = client_config(self.trust.clone()).map_err(|error| error.to_string())?;
        let request = http::Request::get("/").header(http::header::ACCEPT, "application/json");
        let (code, bytes) = registry
            .webhooks()
            .send(&target, tls, request, Body::Empty, FETCH_TIMEOUT)
            .await
            .map_err(|error| error.to_string())?;
        if !code.is_success() {
            return Err(format!("{url}: {code}"));
        }
        serde_json::from_slice(&bytes).map_err(|error| format!("{url}: {error}"))
    }
}

/// Header and claims of a JWT that nobody has verified.
fn parts(token: &str) -> Option<(Value, Value)> {
    let mut parts = token.split('.');
    let (header, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let decode = |part: &str| -> Option<Value> {
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    };
    parts.next().is_none().then_some(())?;
    Some((decode(header)?, decode(payload)?))
}

fn https(url: &str, path: &str) -> Result<(), String> {
    let parsed = url::Url::parse(url).map_err(|error| format!("{path}: {error}"))?;
    if parsed.scheme() != "https" {
        return Err(format!("{path}: URL scheme must be https"));
    }
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err(format!("{path}: URL must not contain a username or password"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() {
        return Err(format!("{path}: URL must not contain a query or a fragment"));
    }
    Ok(())
}

fn mapping_of(entry: &Value, path: &str) -> Result<Mapping, String> {
    let mappings = &entry["claimMappings"];
    let at = |name: &str| format!("{path}.claimMappings.{name}");
    for name in ["username", "groups"] {
        if mappings[name]["claim"].is_set() && !mappings[name]["prefix"].is_string() {
            return Err(format!(
                "{}.prefix: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
                at(name)
            ));
        }
    }
    let username = Source::parse(&mappings["username"], &at("username"))?;
    if username.is_none() {
        return Err(format!("{}: claim or expression is required", at("username")));
    }
    let rules = |key: &str, name: &str| -> Result<Vec<Rule>, String> {
        let list = entry[key].items().iter().enumerate();
        list.map(|(index, rule)| Rule::parse(rule, name, &format!("{path}.{key}[{index}]")))
            .collect()
    };
    let claim_rules = rules("claimValidationRules", "claims")?;
    let mut extra = Vec::new();
    for (index, item) in mappings["extra"].items().iter().enumerate() {
        let (key, path) = (item["key"].text(), format!("{}[{index}]", at("extra")));
        if key != key.to_lowercase() || !key.contains('/') {
            return Err(format!("{path}.key: must be a lowercase domain-prefixed path"));
        }
        if key.split('/').next().is_some_and(|domain| {
            domain == "kubernetes.io"
                || domain == "k8s.io"
                || domain.ends_with(".kubernetes.io")
                || domain.ends_with(".k8s.io")
        }) {
            return Err(format!(
                "{path}.key: k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use"
            ));
        }
        let source =
            Source::expression(item["valueExpression"].text(), &format!("{path}.valueExpression"))?;
        extra.push((key.to_owned(), source));
    }
    let mapping = Mapping {
        groups: Source::parse(&mappings["groups"], &at("groups"))?,
        uid: Source::parse(&mappings["uid"], &at("uid"))?,
        extra,
        claim_rules,
        user_rules: rules("userValidationRules", "user")?,
        username,
    };
    let checked = mapping
        .username
        .iter()
        .chain(mapping.extra.iter().map(|(_, source)| source))
        .any(|s| s.reads("email_verified"))
        || entry["claimValidationRules"]
            .items()
            .iter()
            .any(|rule| rule["expression"].text().contains("claims.email_verified"));
    if let Some(source @ Source::Expression(..)) = &mapping.username
        && source.reads("email")
        && !checked
    {
        return Err(format!(
            "{}.expression: claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            at("username")
        ));
    }
    Ok(mapping)
}
