//! Service-account tokens: signed with ES256, with the claims of upstream's
//! `pkg/serviceaccount/claims.go`.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Error, files};

/// The issuer of every token, and the audience of those meant for the API server.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// An object that a token names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid; nodes known by name alone have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The `kubernetes.io` part of the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// Namespace of the service account.
    pub namespace: String,
    /// The node of the bound pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// The pod to which the token is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// The secret to which the token is bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// The service account.
    pub serviceaccount: Reference,
    /// When a token with extended lifetime should have been renewed, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// The claims of a token. Times are seconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// For whom it is.
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// When it ends.
    pub exp: i64,
    /// When it was issued.
    pub iat: i64,
    /// Who issued it.
    pub iss: String,
    /// Unique id of the token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub jti: String,
    /// What Kubernetes adds.
    #[serde(rename = "kubernetes.io")]
    pub private: Private,
    /// When it begins.
    pub nbf: i64,
    /// `system:serviceaccount:<namespace>:<name>`.
    pub sub: String,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(from)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// Why a token is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It is not one of ours: another issuer's, or no JWT at all.
    #[error("not a token of this cluster")]
    Foreign,
    /// The signature does not fit.
    #[error("invalid signature")]
    Signature,
    /// It is over.
    #[error("service account token has expired")]
    Expired,
    /// It is not valid yet.
    #[error("service account token is not valid yet")]
    Early,
}

/// Signs and verifies tokens with one key.
pub struct Signer {
    key: EcdsaKeyPair,
    key_id: String,
    random: SystemRandom,
}

impl Signer {
    /// Loads the key from `path`, or makes one there.
    pub fn load_or_create(path: &Path) -> Result<Self, Error> {
        let corrupt = || Error::Corrupt { path: path.to_owned(), what: "service-account key" };
        let pem = if let Some(pem) = files::read(path)? {
            pem
        } else {
            let failed = |source| Error::Issue { name: "service accounts".into(), source };
            let pem = rcgen::KeyPair::generate().map_err(failed)?.serialize_pem();
            files::write(path, &pem)?;
            pem
        };
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| corrupt())?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            der.secret_pkcs8_der(),
            &random,
        )
        .map_err(|_| corrupt())?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key().as_ref());
        Ok(Self { key, key_id: URL_SAFE_NO_PAD.encode(digest), random })
    }

    /// The token with `claims`.
    pub fn sign(&self, claims: &Claims) -> Result<String, Error> {
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let claims =
            serde_json::to_vec(claims).map_err(|_| Error::Crypto("encode a token's claims"))?;
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self
            .key
            .sign(&self.random, token.as_bytes())
            .map_err(|_| Error::Crypto("sign a token"))?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }

    /// The claims of `token`, when it is ours and valid at `now` (seconds since the epoch).
    /// Audiences and bound objects are the caller's to judge.
    pub fn verify(&self, token: &str, now: i64) -> Result<Claims, Rejection> {
        let (signed, signature) = token.rsplit_once('.').ok_or(Rejection::Foreign)?;
        let (header, payload) = signed.split_once('.').ok_or(Rejection::Foreign)?;
        let decode = |part: &str| -> Result<Value, Rejection> {
            let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Foreign)?;
            serde_json::from_slice(&bytes).map_err(|_| Rejection::Foreign)
        };
        let claims: Claims =
            serde_json::from_value(decode(payload)?).map_err(|_| Rejection::Foreign)?;
        if claims.iss != ISSUER {
            return Err(Rejection::Foreign);
        }
        // The algorithm is ours to choose, never the token's.
        if decode(header)?["alg"] != "ES256" {
            return Err(Rejection::Signature);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Rejection::Signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| Rejection::Signature)?;
        if now >= claims.exp {
            return Err(Rejection::Expired);
        }
        if now < claims.nbf {
            return Err(Rejection::Early);
        }
        Ok(claims)
    }

    /// The content of `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        // An uncompressed point: 0x04, x, y.
        let point = self.key.public_key().as_ref();
        let half = (point.len() - 1) / 2;
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(&point[1..=half]),
            "y": URL_SAFE_NO_PAD.encode(&point[half + 1..]),
        }]})
    }
}

/// The content of `/.well-known/openid-configuration`; `advertise` is `host:port` of this server.
pub fn openid_configuration(advertise: &str) -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("https://{advertise}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        Claims {
            aud: vec![ISSUER.into()],
            exp: 2_000,
            iat: 1_000,
            iss: ISSUER.into(),
            jti: "id".into(),
            private: Private {
                namespace: "default".into(),
                pod: Some(Reference { name: "p".into(), uid: "u".into() }),
                serviceaccount: Reference { name: "sa".into(), uid: "v".into() },
                ..Private::default()
            },
            nbf: 1_000,
            sub: "system:serviceaccount:default:sa".into(),
        }
    }

    #[test]
    fn tokens_verify_within_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let signer = Signer::load_or_create(&dir.path().join("sa.key")).unwrap();
        let token = signer.sign(&claims()).unwrap();
        assert_eq!(signer.verify(&token, 1_500), Ok(claims()));
        assert_eq!(signer.verify(&token, 2_000), Err(Rejection::Expired));
        assert_eq!(signer.verify(&token, 999), Err(Rejection::Early));
        assert_eq!(signer.verify("a.b.c", 1_500), Err(Rejection::Foreign));
        assert_eq!(signer.verify("", 1_500), Err(Rejection::Foreign));
    }

    #[test]
    fn forgeries_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Signer::load_or_create(&dir.path().join("a.key")).unwrap();
        let other = Signer::load_or_create(&dir.path().join("b.key")).unwrap();
        let foreign = other.sign(&claims()).unwrap();
        assert_eq!(ours.verify(&foreign, 1_500), Err(Rejection::Signature));
        let token = ours.sign(&claims()).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        parts[0] = &none;
        assert_eq!(ours.verify(&parts.join("."), 1_500), Err(Rejection::Signature));
        let mut root = claims();
        root.sub = "system:serviceaccount:kube-system:root".into();
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&root).unwrap());
        let parts: Vec<&str> = token.split('.').collect();
        let forged = format!("{}.{payload}.{}", parts[0], parts[2]);
        assert_eq!(ours.verify(&forged, 1_500), Err(Rejection::Signature));
    }
}
