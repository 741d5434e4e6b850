//! The keys of an issuer, and signatures by them.
//!
//! Source: RFC 7515, 7517, 7518.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde_json::Value;

use crate::zero::Zero;

/// A public key that tokens may be signed by.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its id.
    pub id: String,
    algorithm: String,
    material: Material,
}

#[derive(Clone, Debug)]
enum Material {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Curve { name: String, point: Vec<u8> },
}

impl Key {
    /// The keys of a JWK set that can be used here.
    pub fn parse_all(set: &Value) -> Vec<Self> {
        set["keys"].items().iter().filter_map(Self::parse).collect()
    }

    fn parse(key: &Value) -> Option<Self> {
        if !matches!(key["use"].text(), "" | "sig") {
            return None;
        }
        let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].text()).ok();
        let material = match key["kty"].text() {
            "RSA" => Material::Rsa { n: part("n")?, e: part("e")? },
            "EC" => {
                let mut point = vec![4];
                point.extend(part("x")?);
                point.extend(part("y")?);
                Material::Curve { name: key["crv"].text().to_owned(), point }
            }
            _ => return None,
        };
        Some(Self {
            id: key["kid"].text().to_owned(),
            algorithm: key["alg"].text().to_owned(),
            material,
        })
    }

    /// Whether `signature` over `signed` by `algorithm` is this key's.
    pub fn verifies(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        if !self.algorithm.is_empty() && self.algorithm != algorithm {
            return false;
        }
        match &self.material {
            Material::Rsa { n, e } => {
                let parameters: &RsaParameters = match algorithm {
                    "RS256" => &RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &RSA_PSS_2048_8192_SHA256,
                    "PS384" => &RSA_PSS_2048_8192_SHA384,
                    "PS512" => &RSA_PSS_2048_8192_SHA512,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok()
            }
            Material::Curve { name, point } => match (algorithm, name.as_str()) {
                ("ES256", "P-256") => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok(),
                ("ES384", "P-384") => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                    .verify(signed, signature)
                    .is_ok(),
                _ => false,
            },
        }
    }
}
