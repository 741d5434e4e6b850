//! What is stored of a value: its cipher text, with the encrypted source of its key.

use std::collections::BTreeMap;
use std::fmt::Write;

use apimachinery::names;
use prost::Message;
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

use crate::encryption::provider::{Error, Key, Kind};

/// The source of a value's key is that key itself: what kube-apiserver wrote before 1.29.
pub const KEY: i32 = 0;
/// The source is a seed, from which each value's key is derived.
pub const SEED: i32 = 1;
/// The length of seeds, of the random part of each derivation, and of the derived keys.
const LENGTH: usize = 32;
const KEY_ID_MAX: usize = 1024;
const SOURCE_MAX: usize = 1024;
const ANNOTATIONS_MAX: usize = 32 * 1024;

/// `v2.EncryptedObject`
#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub kind: i32,
}

impl Envelope {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    /// Reads what is stored.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let envelope = <Self as Message>::decode(bytes).map_err(|error| error.to_string())?;
        if envelope.data.is_empty() {
            return Err("encrypted data is empty".into());
        }
        envelope.validate()?;
        Ok(envelope)
    }

    /// Whether the plugin kept to its bounds.
    pub fn validate(&self) -> Result<(), String> {
        if !matches!(self.kind, KEY | SEED) {
            return Err(format!("unknown encryptedDEKSourceType: {}", self.kind));
        }
        let invalid =
            |problem: &str| Err(format!("failed to validate encrypted DEK source: {problem}"));
        match self.source.len() {
            0 => return invalid("encrypted DEK source is empty"),
            length if length > SOURCE_MAX => {
                return invalid(&format!(
                    "encrypted DEK source is {length} bytes, which exceeds the max size of {SOURCE_MAX}"
                ));
            }
            _ => {}
        }
        valid_key_id(&self.key_id)
            .map_err(|problem| format!("failed to validate key id: {problem}"))?;
        self.valid_annotations()
            .map_err(|problem| format!("failed to validate annotations: {problem}"))
    }

    fn valid_annotations(&self) -> Result<(), String> {
        for name in self.annotations.keys() {
            let domain = name.strip_suffix('.').unwrap_or(name);
            let mut mistakes = names::dns_subdomain(domain);
            if !domain.contains('.') {
                mistakes
                    .push("should be a domain with at least two segments separated by dots".into());
            }
            if let Some(mistake) = mistakes.first() {
                return Err(format!("annotations: Invalid value: {name:?}: {mistake}"));
            }
        }
        let total: usize =
            self.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        if total > ANNOTATIONS_MAX {
            return Err(format!(
                "total size of annotations is {total}, which exceeds the max size of {ANNOTATIONS_MAX}"
            ));
        }
        Ok(())
    }
}

/// Whether a key may have this id.
pub fn valid_key_id(id: &str) -> Result<(), String> {
    match id.len() {
        0 => Err("keyID is empty".into()),
        length if length > KEY_ID_MAX => {
            Err(format!("keyID is {length} bytes, which exceeds the max size of {KEY_ID_MAX}"))
        }
        _ => Ok(()),
    }
}

/// What is told of a key's id, which may say more than a log should.
pub fn hash(id: &str) -> String {
    if id.is_empty() {
        return String::new();
    }
    Sha256::digest(id).iter().fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The random bytes of a new seed.
pub fn new_seed() -> Result<Vec<u8>, Error> {
    random().map(|seed| seed.to_vec())
}

fn random() -> Result<[u8; LENGTH], Error> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

/// What the keys of values come from.
pub enum Source {
    /// One key for all.
    Key(Key),
    /// A key for each value.
    Seed(hkdf::Prk),
}

impl Source {
    /// The decrypted source of an envelope of `kind`.
    pub fn new(kind: i32, secret: Vec<u8>) -> Result<Self, Error> {
        if kind == KEY {
            return Key::new(Kind::AesGcm, secret).map(Self::Key);
        }
        if secret.len() < LENGTH {
            return Err(Error::Length(secret.len()));
        }
        Ok(Self::Seed(hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &secret)))
    }

    /// The key that goes with the random bytes `info`.
    fn derived(seed: &hkdf::Prk, info: &[u8]) -> Result<Key, Error> {
        let mut key = [0; LENGTH];
        seed.expand(&[info], hkdf::HKDF_SHA256)
            .and_then(|out| out.fill(&mut key))
            .map_err(|_| Error::Length(LENGTH))?;
        Key::new(Kind::AesGcm, key.to_vec())
    }

    /// Encrypts `plain`, the value of the store's key `context`.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Self::Key(key) => key.seal(context, plain),
            Self::Seed(seed) => {
                let info = random()?;
                let sealed = Self::derived(seed, &info)?.seal(context, plain)?;
                Ok([info.as_slice(), &sealed].concat())
            }
        }
    }

    /// Decrypts what [`Self::seal`] made for the same `context`.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Self::Key(key) => key.open(context, sealed),
            Self::Seed(seed) => {
                let (info, sealed) = sealed.split_at_checked(LENGTH).ok_or(Error::Foreign)?;
                Self::derived(seed, info)?.open(context, sealed)
            }
        }
    }
}
