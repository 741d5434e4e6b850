//! The opaque `continue` of a chunked list: a revision and the last key that was sent.
//!
//! Source: `k8s.io/apiserver/pkg/storage/continue.go`.

use apimachinery::Status;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Wire {
    v: String,
    rv: i64,
    start: String,
}

const VERSION: &str = "meta.k8s.io/v1";

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The revision of the first chunk; `None` when the list goes on at whatever is current.
    pub revision: Option<u64>,
    /// The last key sent, below the resource's prefix.
    pub after: String,
}

impl Token {
    /// Reads a token.
    pub fn decode(text: &str) -> Result<Self, Status> {
        let invalid = |why: &str| {
            Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|e| invalid(&e.to_string()))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|e| invalid(&e.to_string()))?;
        if wire.v != VERSION || wire.rv == 0 || wire.start.is_empty() {
            return Err(invalid(
                "incorrect encoded start resourceVersion or key (version meta.k8s.io/v1)",
            ));
        }
        let after = wire.start.trim_end_matches('\0').trim_start_matches('/').to_owned();
        Ok(Self { revision: u64::try_from(wire.rv).ok(), after })
    }

    /// Writes the token.
    pub fn encode(&self) -> String {
        let rv = self.revision.map_or(-1, |r| r as i64);
        let wire = Wire { v: VERSION.into(), rv, start: format!("{}\0", self.after) };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for revision in [Some(42), None] {
            let token = Token { revision, after: "default/a".into() };
            assert_eq!(Token::decode(&token.encode()).expect("decodes"), token);
        }
        assert_eq!(Token::decode("%%%").expect_err("refused").code, 400);
        assert_eq!(Token::decode("e30").expect_err("refused").code, 400);
    }
}
