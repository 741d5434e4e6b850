//! Users by the tokens of OpenID Connect issuers.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#openid-connect-tokens>
//! and `k8s.io/apiserver/plugin/pkg/authenticator/token/oidc`.

mod discovered;
mod keys;
mod mapping;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::attributes::UserInfo;
use crate::pki::tls::Bundle;
use crate::registry::Registry;
use crate::zero::Zero;

use discovered::Discovered;
use mapping::{Mapping, Rule, Source};

/// Issuers of distributed claims whose keys are remembered.
const DISTRIBUTORS_MAX: usize = 16;

/// One entry of `jwt`.
pub struct Issuer {
    discovered: Discovered,
    audiences: Vec<String>,
    mapping: Mapping,
    distributors: Mutex<Vec<Arc<Discovered>>>,
}

impl Issuer {
    /// Reads an entry; `path` is where it stands, for the mistakes in it.
    pub fn parse(entry: &Value, path: &str) -> Result<Self, String> {
        let issuer = &entry["issuer"];
        let url = issuer["url"].text();
        https(url, &format!("{path}.issuer.url"))?;
        let discovery = match issuer["discoveryURL"].text() {
            "" => None,
            other => {
                https(other, &format!("{path}.issuer.discoveryURL"))?;
                if other.trim_end_matches('/') == url.trim_end_matches('/') {
                    return Err(format!("{path}.issuer.discoveryURL: must be different from URL"));
                }
                Some(other)
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
            discovered: Discovered::new(url, discovery, Arc::new(trust)),
            audiences,
            mapping: mapping_of(entry, path)?,
            distributors: Mutex::default(),
        })
    }

    /// Its name.
    pub fn url(&self) -> &str {
        &self.discovered.url
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
        if claims["iss"] != self.url() {
            return Ok(None);
        }
        let user = async {
            self.discovered.verify(registry, token, &header).await?;
            self.check(&claims, now)?;
            let claims = self.resolved(registry, claims, now).await?;
            self.mapping.user(&claims)
        };
        user.await.map(Some).map_err(|error| format!("oidc: {error}"))
    }

    /// Whether claims are for this cluster, now.
    fn check(&self, claims: &Value, now: i64) -> Result<(), String> {
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
        Ok(())
    }

    /// The claims with the groups that another server tells, where the token says only where to ask.
    ///
    /// Source: OpenID Connect Core 1.0, section 5.6.2.
    async fn resolved(
        &self,
        registry: &Registry,
        mut claims: Value,
        now: i64,
    ) -> Result<Value, String> {
        let Some(Source::Claim(name, _)) = &self.mapping.groups else { return Ok(claims) };
        let source = claims["_claim_names"][name.as_str()].text();
        if claims.get(name).is_some() || source.is_empty() {
            return Ok(claims);
        }
        let endpoint = &claims["_claim_sources"][source];
        let url = endpoint["endpoint"].text();
        if url.is_empty() {
            return Err(format!("_claim_sources: no source {source:?} for the claim {name:?}"));
        }
        let access = endpoint["access_token"].text();
        let answer = self.discovered.fetch(registry, url, access).await?;
        let token = std::str::from_utf8(&answer).map_err(|error| error.to_string())?.trim();
        let (header, told) =
            parts(token).ok_or_else(|| format!("{url}: the answer is no token"))?;
        let issuer = told["iss"].text();
        https(issuer, "iss")?;
        self.distributor(issuer).verify(registry, token, &header).await?;
        self.check(&told, now)?;
        let groups = told.get(name).cloned();
        let groups = groups.ok_or_else(|| format!("{url}: the token has no claim {name:?}"))?;
        claims[name.as_str()] = groups;
        Ok(claims)
    }

    /// The issuer of a claim that is told elsewhere.
    fn distributor(&self, url: &str) -> Arc<Discovered> {
        let mut known = self.distributors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.iter().find(|found| found.url == url) {
            return found.clone();
        }
        // Tokens of the issuer name these; still they shall not fill the memory.
        if known.len() >= DISTRIBUTORS_MAX {
            known.clear();
        }
        let found = Arc::new(Discovered::new(url, None, self.discovered.trust.clone()));
        known.push(found.clone());
        found
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
