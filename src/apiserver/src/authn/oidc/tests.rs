//! An issuer of the tests' own on loopback.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::json;

use super::*;
use crate::tests::{Fixture, https};

struct Provider {
    url: String,
    ca: String,
    key: EcdsaKeyPair,
}

impl Provider {
    async fn start() -> Self {
        let random = SystemRandom::new();
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
                .expect("a key");
        let point = key.public_key().as_ref().to_vec();
        // The server must know its own port, which it does not before it has one.
        let (port, ca) = https::serve(None, move |request, _| {
            let host = request.headers["host"].to_str().unwrap_or_default();
            document(request.uri.path(), &format!("https://{host}/issuer"), &point)
        })
        .await;
        Self { url: format!("https://localhost:{port}/issuer"), ca, key }
    }

    fn token(&self, more: &Value) -> String {
        let mut claims = json!({"iss": self.url, "aud": "app", "exp": crate::authn::now() + 600});
        for (key, value) in more.entries() {
            claims[key] = value.clone();
        }
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "k"})), part(&claims));
        let signature =
            self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }

    fn configuration(&self, rest: &str) -> String {
        let ca = self.ca.replace('\n', "\n        ");
        format!(
            "apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions: [{{path: /livez}}]
jwt:
- issuer:
    url: {}
    certificateAuthority: |
        {ca}
    audiences: [app, other]
    audienceMatchPolicy: MatchAny
{rest}",
            self.url
        )
    }
}

fn document(path: &str, issuer: &str, point: &[u8]) -> Value {
    match path {
        "/issuer/.well-known/openid-configuration" => {
            json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")})
        }
        "/issuer/keys" => json!({"keys": [{"kty": "EC", "use": "sig", "alg": "ES256", "kid": "k",
            "crv": "P-256", "x": URL_SAFE_NO_PAD.encode(&point[1..33]),
            "y": URL_SAFE_NO_PAD.encode(&point[33..])}]}),
        _ => json!({}),
    }
}

const RULES: &str = r#"
  claimMappings:
    username: {expression: '"sso:" + claims.sub'}
    groups: {claim: roles, prefix: "sso:"}
    uid: {claim: oid}
    extra:
    - {key: example.com/tenant, valueExpression: 'claims.?tenant.orValue("")'}
  claimValidationRules:
  - {claim: hd, requiredValue: example.com}
  - {expression: 'claims.level > 1', message: the level is too low}
  userValidationRules:
  - {expression: "!user.username.startsWith('sso:system:')", message: reserved}
"#;

#[tokio::test]
async fn tokens_of_an_issuer_become_users() {
    let provider = Provider::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("authentication.yaml");
    std::fs::write(&file, provider.configuration(RULES)).expect("written");
    let access = crate::Access { authentication: Some(file), ..crate::Access::default() };
    let f = Fixture::with_access(access).await;
    let good = json!({"sub": "jane", "roles": ["dev", "ops"], "oid": "7", "hd": "example.com",
        "level": 2, "tenant": "acme", "jti": "x"});
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        claims[key] = value;
        claims
    };
    let review = async |claims: &Value| {
        let body = json!({"spec": {"token": provider.token(claims)}});
        f.post("/apis/authentication.k8s.io/v1/tokenreviews", &body).await.body["status"].clone()
    };
    let status = review(&good).await;
    assert_eq!(
        status["user"],
        json!({"username": "sso:jane", "uid": "7",
            "groups": ["sso:dev", "sso:ops", "system:authenticated"],
            "extra": {"example.com/tenant": ["acme"],
                "authentication.kubernetes.io/credential-id": ["JTI=x"]}}),
        "{status}"
    );
    let cases = [
        (with("hd", "other.com".into()), "required claim hd value does not match"),
        (with("level", 1.into()), "failed: the level is too low"),
        (with("sub", "system:root".into()), "failed: reserved"),
        (with("exp", 5.into()), "token is expired"),
        (with("aud", "elsewhere".into()), "expected audience in"),
    ];
    for (claims, want) in cases {
        let status = review(&claims).await;
        let error = status["error"].text();
        assert!(error.contains(want), "{claims}: {status}");
    }
    let (mut forged, other) = (provider.token(&good), Provider::start().await);
    let signature = other.token(&good);
    forged.truncate(forged.rfind('.').expect("a dot"));
    forged.push_str(&signature[signature.rfind('.').expect("a dot")..]);
    let body = json!({"spec": {"token": forged}});
    let status = f.post("/apis/authentication.k8s.io/v1/tokenreviews", &body).await.body;
    assert!(status["status"]["error"].text().contains("failed to verify"), "{status}");
}

#[tokio::test]
async fn groups_may_be_told_elsewhere() {
    let provider = Provider::start().await;
    // Whoever keeps the groups signs with the same key here, and is trusted by the same authority.
    let groups = provider.token(&json!({"roles": ["dev", "ops"]}));
    let short = provider.token(&json!({"roles": ["dev"], "exp": 5}));
    let (port, ca) = https::serve(None, move |request, _| {
        let path = request.uri.path();
        match (path, request.headers.get("authorization").and_then(|v| v.to_str().ok())) {
            ("/groups", Some("Bearer secret")) => groups.clone().into(),
            ("/expired", _) => short.clone().into(),
            _ => json!({}),
        }
    })
    .await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("authentication.yaml");
    let rules = r#"
  claimMappings:
    username: {claim: sub, prefix: ""}
    groups: {claim: roles, prefix: ""}
"#;
    let both = format!("{}\n{ca}", provider.ca);
    let configuration = Provider { ca: both, ..provider };
    std::fs::write(&file, configuration.configuration(rules)).expect("written");
    let provider = configuration;
    let access = crate::Access { authentication: Some(file), ..crate::Access::default() };
    let f = Fixture::with_access(access).await;
    let review = async |path: &str| {
        let claims = json!({"sub": "jane", "_claim_names": {"roles": "elsewhere"},
            "_claim_sources": {"elsewhere": {
                "endpoint": format!("https://localhost:{port}{path}"), "access_token": "secret"}}});
        let body = json!({"spec": {"token": provider.token(&claims)}});
        f.post("/apis/authentication.k8s.io/v1/tokenreviews", &body).await.body["status"].clone()
    };
    let status = review("/groups").await;
    assert_eq!(status["user"]["groups"], json!(["dev", "ops", "system:authenticated"]), "{status}");
    for (path, want) in [("/expired", "token is expired"), ("/other", "the answer is no token")] {
        let status = review(path).await;
        assert!(status["error"].text().contains(want), "{status}");
    }
}
