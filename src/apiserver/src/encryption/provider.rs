//! How values are encrypted. What is written can be read by kube-apiserver with the same keys, and the other
//! way round.
//!
//! Source: `k8s.io/apiserver/pkg/storage/value/encrypt/{aes,secretbox,identity}`.

use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use poly1305::Poly1305;
use poly1305::universal_hash::KeyInit;
use ring::aead::{self, Aad, LessSafeKey, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use salsa20::XSalsa20;
use salsa20::cipher::StreamCipher;

/// What all encrypted values begin with.
pub const ENCRYPTED: &[u8] = b"k8s:enc:";
/// The length of AES' blocks.
const BLOCK: usize = 16;
/// The length of what AES-GCM and secretbox add for authenticity.
const TAG: usize = 16;
/// The length of secretbox' nonces.
const BOX_NONCE: usize = 24;

/// Why a value cannot be read or written.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The random number generator failed.
    #[error("no random numbers")]
    Random,
    /// The value is not what this key wrote.
    #[error("the value was not written with this key, or was changed")]
    Foreign,
    /// The key has a length that the cipher does not take.
    #[error("a key of {0} bytes cannot be used")]
    Length(usize),
    /// The plugin that has the key is not well, and what it said before is too old.
    #[error("the key management service {name} is not ready: {detail}")]
    Plugin {
        /// The name that the configuration gives it.
        name: String,
        /// What is wrong.
        detail: String,
    },
}

/// The ciphers of `EncryptionConfiguration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `aescbc`
    AesCbc,
    /// `aesgcm`
    AesGcm,
    /// `secretbox`
    Secretbox,
}

impl Kind {
    /// What the values of this cipher begin with, before the name of the key.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::AesCbc => "k8s:enc:aescbc:v1:",
            Self::AesGcm => "k8s:enc:aesgcm:v1:",
            Self::Secretbox => "k8s:enc:secretbox:v1:",
        }
    }

    /// The lengths of its keys, in bytes.
    pub fn lengths(self) -> &'static [usize] {
        match self {
            Self::AesCbc => &[16, 24, 32],
            // ring has no AES-192.
            Self::AesGcm => &[16, 32],
            Self::Secretbox => &[32],
        }
    }
}

/// A cipher with its key.
pub struct Key {
    kind: Kind,
    secret: Vec<u8>,
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

impl Key {
    /// A key of `kind`.
    pub fn new(kind: Kind, secret: Vec<u8>) -> Result<Self, Error> {
        if !kind.lengths().contains(&secret.len()) {
            return Err(Error::Length(secret.len()));
        }
        Ok(Self { kind, secret })
    }

    /// Encrypts `plain`, the value of the store's key `context`.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        match self.kind {
            Kind::AesCbc => self.seal_cbc(random::<BLOCK>()?, plain),
            Kind::AesGcm => self.seal_gcm(random::<{ aead::NONCE_LEN }>()?, context, plain),
            Kind::Secretbox => self.seal_box(random::<BOX_NONCE>()?, plain),
        }
    }

    /// Decrypts what [`Self::seal`] made for the same `context`.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        match self.kind {
            Kind::AesCbc => self.open_cbc(sealed),
            Kind::AesGcm => self.open_gcm(context, sealed),
            Kind::Secretbox => self.open_box(sealed),
        }
    }

    fn seal_cbc(&self, iv: [u8; BLOCK], plain: &[u8]) -> Result<Vec<u8>, Error> {
        fn sealed<C>(secret: &[u8], iv: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error>
        where
            C: KeyIvInit + BlockModeEncrypt,
        {
            let cipher = C::new_from_slices(secret, iv).map_err(|_| Error::Length(secret.len()))?;
            Ok(cipher.encrypt_padded_vec::<Pkcs7>(plain))
        }
        let text = match self.secret.len() {
            16 => sealed::<cbc::Encryptor<aes::Aes128>>(&self.secret, &iv, plain)?,
            24 => sealed::<cbc::Encryptor<aes::Aes192>>(&self.secret, &iv, plain)?,
            _ => sealed::<cbc::Encryptor<aes::Aes256>>(&self.secret, &iv, plain)?,
        };
        Ok([iv.as_slice(), &text].concat())
    }

    fn open_cbc(&self, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        fn opened<C>(secret: &[u8], iv: &[u8], text: &[u8]) -> Result<Vec<u8>, Error>
        where
            C: KeyIvInit + BlockModeDecrypt,
        {
            let cipher = C::new_from_slices(secret, iv).map_err(|_| Error::Length(secret.len()))?;
            cipher.decrypt_padded_vec::<Pkcs7>(text).map_err(|_| Error::Foreign)
        }
        let (iv, text) = sealed.split_at_checked(BLOCK).ok_or(Error::Foreign)?;
        match self.secret.len() {
            16 => opened::<cbc::Decryptor<aes::Aes128>>(&self.secret, iv, text),
            24 => opened::<cbc::Decryptor<aes::Aes192>>(&self.secret, iv, text),
            _ => opened::<cbc::Decryptor<aes::Aes256>>(&self.secret, iv, text),
        }
    }

    fn gcm(&self) -> Result<LessSafeKey, Error> {
        let algorithm =
            if self.secret.len() == 16 { &aead::AES_128_GCM } else { &aead::AES_256_GCM };
        let key = UnboundKey::new(algorithm, &self.secret);
        key.map(LessSafeKey::new).map_err(|_| Error::Length(self.secret.len()))
    }

    fn seal_gcm(
        &self,
        nonce: [u8; aead::NONCE_LEN],
        context: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let mut text = plain.to_vec();
        let unique = aead::Nonce::assume_unique_for_key(nonce);
        self.gcm()?
            .seal_in_place_append_tag(unique, Aad::from(context), &mut text)
            .map_err(|_| Error::Foreign)?;
        Ok([nonce.as_slice(), &text].concat())
    }

    fn open_gcm(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (nonce, text) = sealed.split_at_checked(aead::NONCE_LEN).ok_or(Error::Foreign)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Foreign)?;
        let mut text = text.to_vec();
        let opened = self.gcm()?.open_in_place(nonce, Aad::from(context), &mut text);
        let length = opened.map_err(|_| Error::Foreign)?.len();
        text.truncate(length);
        Ok(text)
    }

    /// NaCl's `secretbox`: the first 32 bytes of XSalsa20's stream are the key of Poly1305, the rest
    /// encrypts.
    fn box_stream(&self, nonce: &[u8]) -> Result<(Poly1305, XSalsa20), Error> {
        let mut stream = XSalsa20::new_from_slices(&self.secret, nonce)
            .map_err(|_| Error::Length(self.secret.len()))?;
        let mut once = [0; 32];
        stream.apply_keystream(&mut once);
        let mac = Poly1305::new_from_slice(&once).map_err(|_| Error::Length(once.len()))?;
        Ok((mac, stream))
    }

    fn seal_box(&self, nonce: [u8; BOX_NONCE], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let (mac, mut stream) = self.box_stream(&nonce)?;
        let mut text = plain.to_vec();
        stream.apply_keystream(&mut text);
        let tag = mac.compute_unpadded(&text);
        Ok([nonce.as_slice(), tag.as_slice(), &text].concat())
    }

    fn open_box(&self, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        let (nonce, rest) = sealed.split_at_checked(BOX_NONCE).ok_or(Error::Foreign)?;
        let (tag, text) = rest.split_at_checked(TAG).ok_or(Error::Foreign)?;
        let (mac, mut stream) = self.box_stream(nonce)?;
        let expected = mac.compute_unpadded(text);
        // In constant time: a comparison that ends early tells how much was guessed right.
        let differing = expected.iter().zip(tag).fold(0, |sum, (a, b)| sum | (a ^ b));
        if differing != 0 {
            return Err(Error::Foreign);
        }
        let mut plain = text.to_vec();
        stream.apply_keystream(&mut plain);
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    /// The example of NaCl's own documentation (`tests/secretbox.c`).
    #[test]
    fn secretbox_is_nacls() {
        let key = bytes("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = bytes(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        );
        let sealed = bytes(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5",
        );
        let key = Key::new(Kind::Secretbox, key).expect("a key");
        let nonce: [u8; BOX_NONCE] = nonce.try_into().expect("its length");
        let made = key.seal_box(nonce, &plain).expect("sealed");
        assert_eq!(made[BOX_NONCE..], sealed);
        assert_eq!(key.open(b"", &made), Ok(plain));
    }

    /// NIST SP 800-38A, F.2.5, and case 16 of the GCM specification.
    #[test]
    fn aes_is_nists() {
        let key = bytes("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let iv: [u8; BLOCK] =
            bytes("000102030405060708090a0b0c0d0e0f").try_into().expect("its length");
        let key = Key::new(Kind::AesCbc, key).expect("a key");
        let made = key.seal_cbc(iv, &bytes("6bc1bee22e409f96e93d7e117393172a")).expect("sealed");
        assert_eq!(made[BLOCK..2 * BLOCK], bytes("f58c4c04d6e5f1ba779eabfb5f7bfbd6"));
        let key = bytes("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308");
        let nonce = bytes("cafebabefacedbaddecaf888").try_into().expect("its length");
        let context = bytes("feedfacedeadbeeffeedfacedeadbeefabaddad2");
        let plain = bytes(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39",
        );
        let key = Key::new(Kind::AesGcm, key).expect("a key");
        let made = key.seal_gcm(nonce, &context, &plain).expect("sealed");
        assert_eq!(made[made.len() - TAG..], bytes("76fc6ece0f4e1768cddf8853bb2d551b"));
        assert_eq!(key.open(&context, &made), Ok(plain));
    }

    #[test]
    fn what_was_changed_or_moved_is_not_opened() {
        for (kind, length) in [
            (Kind::AesCbc, 16),
            (Kind::AesCbc, 24),
            (Kind::AesCbc, 32),
            (Kind::AesGcm, 16),
            (Kind::AesGcm, 32),
            (Kind::Secretbox, 32),
        ] {
            let key = Key::new(kind, vec![7; length]).expect("a key");
            for plain in [&b""[..], b"{}", &[b'x'; 16], &[b'y'; 1000]] {
                let sealed = key.seal(b"/registry/secrets/a/b", plain).expect("sealed");
                let opened = key.open(b"/registry/secrets/a/b", &sealed);
                assert_eq!(opened.as_deref(), Ok(plain), "{kind:?}");
                for length in 0..sealed.len().min(40) {
                    assert_ne!(
                        key.open(b"/registry/secrets/a/b", &sealed[..length]).as_deref(),
                        Ok(plain)
                    );
                }
                if kind == Kind::AesCbc {
                    continue;
                }
                let mut changed = sealed.clone();
                *changed.last_mut().expect("a byte") ^= 1;
                assert_eq!(key.open(b"/registry/secrets/a/b", &changed), Err(Error::Foreign));
                if kind == Kind::AesGcm {
                    assert_eq!(key.open(b"/registry/secrets/a/c", &sealed), Err(Error::Foreign));
                }
            }
        }
        assert_eq!(Key::new(Kind::AesGcm, vec![0; 24]).err(), Some(Error::Length(24)));
    }
}
