//! `AuthenticationConfiguration`: issuers of tokens, and where anonymous requests may go.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration>.

use serde_json::Value;

use super::oidc::Issuer;
use crate::pki::jwt;
use crate::zero::Zero;

/// What the file says.
#[derive(Default)]
pub struct Configuration {
    /// In the order in which they are asked.
    pub issuers: Vec<Issuer>,
    /// Whether, and where, requests without credentials are let in.
    pub anonymous: Anonymous,
}

/// Where requests without credentials may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Anonymous {
    /// Wherever authorisation lets them.
    #[default]
    Everywhere,
    /// To these paths alone.
    Only(Vec<String>),
    /// Nowhere.
    Nowhere,
}

impl Anonymous {
    /// Whether a request for `path` may come from nobody.
    pub fn allows(&self, path: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::Only(paths) => paths.iter().any(|allowed| allowed == path),
            Self::Nowhere => false,
        }
    }

    fn parse(value: &Value) -> Result<Self, String> {
        if !value.is_object() {
            return Ok(Self::default());
        }
        let paths: Vec<String> = value["conditions"]
            .items()
            .iter()
            .map(|condition| condition["path"].text().to_owned())
            .collect();
        match (value["enabled"].flag(), paths.is_empty()) {
            (false, false) => Err(
                "anonymous.conditions: enabled should be set to true when conditions are defined"
                    .into(),
            ),
            (false, true) => Ok(Self::Nowhere),
            (true, true) => Ok(Self::Everywhere),
            (true, false) => match paths.iter().position(|path| !path.starts_with('/')) {
                Some(index) => {
                    Err(format!("anonymous.conditions[{index}].path: must begin with '/'"))
                }
                None => Ok(Self::Only(paths)),
            },
        }
    }
}

impl Configuration {
    /// Reads the text of the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value =
            apimachinery::decode::yaml_to_value(text).map_err(|error| error.to_string())?;
        let version = value["apiVersion"].text();
        let known = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"];
        if value["kind"] != "AuthenticationConfiguration" || !known.contains(&version) {
            return Err(
                "want apiVersion apiserver.config.k8s.io/v1 and kind AuthenticationConfiguration"
                    .into(),
            );
        }
        let mut issuers: Vec<Issuer> = Vec::new();
        for (index, entry) in value["jwt"].items().iter().enumerate() {
            let issuer = Issuer::parse(entry, &format!("jwt[{index}]"))?;
            if issuers.iter().any(|known| known.url() == issuer.url()) {
                return Err(format!(
                    "jwt[{index}].issuer.url: Duplicate value: {:?}",
                    issuer.url()
                ));
            }
            if issuer.url() == jwt::ISSUER {
                return Err(format!(
                    "jwt[{index}].issuer.url: URL must not overlap with disallowed issuers: {:?}",
                    jwt::ISSUER
                ));
            }
            issuers.push(issuer);
        }
        Ok(Self { issuers, anonymous: Anonymous::parse(&value["anonymous"])? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(rest: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n{rest}"
        );
        Configuration::parse(&text).err().unwrap_or_default()
    }

    #[test]
    fn mistakes_are_named() {
        let issuer = |rest: &str| {
            format!("jwt:\n- issuer: {{url: 'https://a.io', audiences: [x]}}\n  {rest}\n")
        };
        let cases = [
            (issuer("claimMappings: {username: {claim: sub, prefix: ''}}"), ""),
            (
                issuer("claimMappings: {}"),
                "jwt[0].claimMappings.username: claim or expression is required",
            ),
            (
                issuer("claimMappings: {username: {claim: sub}}"),
                "jwt[0].claimMappings.username.prefix: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
            (
                "jwt:\n- issuer: {url: 'http://a.io'}\n".into(),
                "jwt[0].issuer.url: URL scheme must be https",
            ),
            (
                "anonymous: {enabled: false, conditions: [{path: /livez}]}\n".into(),
                "anonymous.conditions: enabled should be set to true when conditions are defined",
            ),
        ];
        for (text, want) in cases {
            assert_eq!(error(&text), want, "{text}");
        }
        let mail = issuer("claimMappings: {username: {expression: 'claims.email'}}");
        assert!(error(&mail).contains("claims.email_verified must be used"), "{}", error(&mail));
    }

    #[test]
    fn anonymous_requests_may_be_limited() {
        let anonymous = |text: &str| Anonymous::parse(&serde_json::from_str(text).expect("JSON"));
        let cases = [
            ("null", "/api", true),
            (r#"{"enabled": true}"#, "/api", true),
            (r#"{"enabled": false}"#, "/livez", false),
            (r#"{"enabled": true, "conditions": [{"path": "/livez"}]}"#, "/livez", true),
            (r#"{"enabled": true, "conditions": [{"path": "/livez"}]}"#, "/livez/ping", false),
        ];
        for (text, path, want) in cases {
            assert_eq!(anonymous(text).expect("sound").allows(path), want, "{text} {path}");
        }
    }
}
