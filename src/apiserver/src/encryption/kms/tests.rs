//! A small plugin of the tests' own, over a real socket, and servers that use it.

use std::path::Path;
use std::sync::Arc;

use ::plugin::serve::{self, Body, Handler, Status};
use http::{Method, Request, Response};
use serde_json::json;

use super::service::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use super::*;
use crate::Access;
use crate::tests::Fixture;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
/// `swordfish`
const WORD: &str = "c3dvcmRmaXNo";
/// A value whose key is derived from a seed, and one whose key is the source itself.
const SEEDED: &str = "6465666768696a6b6c6d6e6f707172737475767778797a7b7c7d7e7f80818283000102030405060708090a0bd751beb3cd7def4a24c97646346faac487eac0a89de84f49fe8ac0aa2c11174bbd";
const KEYED: &str = "000102030405060708090a0b3c7f07e9fc40b22913c11252a9209bca0f0e";

/// What the plugin says of itself, and how often it was asked to decrypt.
struct Says {
    health: &'static str,
    version: &'static str,
    key: &'static str,
    decrypted: usize,
}

/// Encrypts by turning bytes over, with the name of its key beside them.
#[derive(Clone)]
struct Vault(Arc<Mutex<Says>>);

impl Vault {
    fn listen(socket: &Path) -> Self {
        let says = Says { health: "ok", version: "v2", key: "1", decrypted: 0 };
        let vault = Self(Arc::new(Mutex::new(says)));
        let folder = socket.parent().expect("a folder");
        let listener = serve::bind(folder, socket.file_name().expect("a name")).expect("a socket");
        let served = vault.clone();
        let handler: Handler = Arc::new(move |request| Box::pin(served.clone().serve(request)));
        tokio::spawn(serve::serve(listener, handler));
        vault
    }

    fn says(&self) -> std::sync::MutexGuard<'_, Says> {
        self.0.lock().expect("whole")
    }

    async fn serve(self, request: Request<Body>) -> Response<Body> {
        let turned = |bytes: Vec<u8>| bytes.into_iter().map(|byte| !byte).collect::<Vec<u8>>();
        let says = self.0.clone();
        match request.uri().path() {
            "/v2.KeyManagementService/Status" => {
                serve::unary(request, move |_: StatusRequest| {
                    let says = says.lock().expect("whole");
                    Ok(StatusResponse {
                        version: says.version.into(),
                        healthz: says.health.into(),
                        key_id: says.key.into(),
                    })
                })
                .await
            }
            "/v2.KeyManagementService/Encrypt" => {
                serve::unary(request, move |asked: EncryptRequest| {
                    let key_id = says.lock().expect("whole").key.to_owned();
                    let annotations = [("key.example.com".to_owned(), b"kept".to_vec())].into();
                    Ok(EncryptResponse { ciphertext: turned(asked.plaintext), key_id, annotations })
                })
                .await
            }
            "/v2.KeyManagementService/Decrypt" => {
                serve::unary(request, move |asked: DecryptRequest| {
                    if asked.annotations.get("key.example.com") != Some(&b"kept".to_vec()) {
                        return Err(Status::invalid_argument("no annotation"));
                    }
                    says.lock().expect("whole").decrypted += 1;
                    Ok(DecryptResponse { plaintext: turned(asked.ciphertext) })
                })
                .await
            }
            other => panic!("{other}"),
        }
    }
}

fn plugin(socket: &Path) -> Plugin {
    let endpoint = format!("unix://{}", socket.display());
    let value = json!({"name": "vault", "apiVersion": "v2", "endpoint": endpoint});
    Plugin::parse(&value, "kms").expect("sound")
}

#[tokio::test]
async fn a_new_key_is_taken_up_and_the_old_one_still_reads() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("kms.sock");
    let plugin = plugin(&socket);
    let context = b"/registry/secrets/a/b";
    let unwell = plugin.probe(&mut None).await.expect_err("nobody listens");
    assert!(unwell.starts_with("failed to perform status section of the healthz check for KMS Provider vault, error: rpc error: code = Unavailable"), "{unwell}");
    assert!(plugin.seal(context, b"{}").is_err());

    let vault = Vault::listen(&socket);
    let mut version = None;
    plugin.probe(&mut version).await.expect("well");
    let sealed = plugin.seal(context, b"{}").expect("sealed");
    assert!(sealed.starts_with(b"k8s:enc:kms:v2:vault:"));
    assert_eq!(plugin.open(context, &sealed), Some((Bytes::from_static(b"{}"), false)));
    assert_eq!(plugin.open(b"/registry/secrets/a/c", &sealed), None, "it belongs to its key");

    vault.says().key = "2";
    plugin.probe(&mut version).await.expect("well");
    assert_eq!(plugin.open(context, &sealed), Some((Bytes::from_static(b"{}"), true)));
    let again = plugin.seal(context, b"{}").expect("sealed");
    assert_eq!(plugin.open(context, &again), Some((Bytes::from_static(b"{}"), false)));
    assert_eq!(vault.says().decrypted, 0, "what was made here is known here");

    // Another server has to ask once for each seed.
    let other = super::tests::plugin(&socket);
    for value in [&sealed, &again, &sealed] {
        if let Some(header) = other.missing(value) {
            other.learn(&header).await.expect("decrypted");
        }
        assert!(other.open(context, value).is_some());
    }
    assert_eq!(vault.says().decrypted, 2);

    vault.says().health = "sealed";
    vault.says().version = "v2beta1";
    assert_eq!(
        plugin.probe(&mut version).await.expect_err("unwell"),
        "kmsv2 Provider vault is not healthy, error: [got unexpected healthz status: sealed, KMSv2 API version should not change after the initial status response version v2, got v2beta1]"
    );
}

#[tokio::test]
async fn an_old_seed_is_not_written_with() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("kms.sock");
    let _vault = Vault::listen(&socket);
    let plugin = plugin(&socket);
    plugin.probe(&mut None).await.expect("well");
    let sealed = plugin.seal(b"a", b"{}").expect("sealed");
    if let Some(current) = plugin.current.write().expect("whole").as_mut() {
        current.expires = Instant::now().checked_sub(Duration::from_secs(5)).expect("a while ago");
    }
    let error = plugin.seal(b"a", b"{}").expect_err("too old").to_string();
    assert!(error.contains("\"sha256:6b86b273") && error.contains("expired 5 s ago"), "{error}");
    assert!(plugin.open(b"a", &sealed).is_some(), "but read with");
    // The plugin is well again.
    plugin.probe(&mut None).await.expect("well");
    assert!(plugin.seal(b"a", b"{}").is_ok());
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digit).collect()
}

/// Made with Python's hmac and cryptography.
#[test]
fn what_others_wrote_is_read() {
    let secret: Vec<u8> = (0..32).collect();
    let context = b"/registry/secrets/a/b";
    for (kind, sealed, want) in
        [(SEED, SEEDED, &br#"{"kind":"Secret"}"#[..]), (envelope::KEY, KEYED, &b"{}"[..])]
    {
        let source = Source::new(kind, secret.clone()).expect("a source");
        assert_eq!(source.open(context, &bytes(sealed)).expect("opened"), want, "{kind}");
        assert!(source.open(b"elsewhere", &bytes(sealed)).is_err());
    }
}

#[test]
fn envelopes_have_bounds() {
    let sound = Envelope {
        data: vec![0],
        key_id: "1".into(),
        source: vec![1],
        annotations: [("a.b".to_owned(), vec![2])].into(),
        kind: SEED,
    };
    assert_eq!(Envelope::decode(&sound.encode()), Ok(sound.clone()));
    for (envelope, want) in [
        (Envelope { data: vec![], ..sound.clone() }, "encrypted data is empty"),
        (Envelope { kind: 2, ..sound.clone() }, "unknown encryptedDEKSourceType: 2"),
        (
            Envelope { source: vec![0; 1025], ..sound.clone() },
            "failed to validate encrypted DEK source: encrypted DEK source is 1025 bytes, which exceeds the max size of 1024",
        ),
        (
            Envelope { key_id: String::new(), ..sound.clone() },
            "failed to validate key id: keyID is empty",
        ),
        (
            Envelope { annotations: [("a".to_owned(), vec![])].into(), ..sound.clone() },
            "failed to validate annotations: annotations: Invalid value: \"a\": should be a domain with at least two segments separated by dots",
        ),
        (
            Envelope { annotations: [("a.b".to_owned(), vec![0; 32 * 1024])].into(), ..sound },
            "failed to validate annotations: total size of annotations is 32771, which exceeds the max size of 32768",
        ),
    ] {
        assert_eq!(Envelope::decode(&envelope.encode()), Err(want.to_owned()));
    }
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let unix = "unix:///run/kms.sock";
    for (value, want) in [
        (
            json!({"apiVersion": "v2"}),
            "kms.name: Required value: name is a mandatory field for a provider",
        ),
        (
            json!({"name": "a"}),
            "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature.",
        ),
        (
            json!({"name": "a", "apiVersion": "v3"}),
            "kms.apiVersion: Invalid value: \"v3\": unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported",
        ),
        (
            json!({"name": "a:b", "apiVersion": "v2"}),
            "kms.name: Invalid value: \"a:b\": invalid KMS provider name a:b, must not contain ':'",
        ),
        (
            json!({"name": "a", "apiVersion": "v2", "timeout": "0s"}),
            "kms.timeout: Invalid value: \"0s\": timeout should be a positive value",
        ),
        (
            json!({"name": "a", "apiVersion": "v2", "endpoint": "tcp://a"}),
            "kms.endpoint: Invalid value: \"tcp://a\": unsupported scheme \"tcp\" for KMS provider, only unix is supported",
        ),
        (
            json!({"name": "a", "apiVersion": "v2", "endpoint": unix, "cachesize": 5}),
            "kms.cachesize: Invalid value: 5: cachesize is not supported in v2",
        ),
        (json!({"name": "a", "apiVersion": "v2", "endpoint": unix, "timeout": "1m30s"}), ""),
    ] {
        assert_eq!(Plugin::parse(&value, "kms").err().unwrap_or_default(), want, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_read_by_the_next_server_and_written_anew_with_the_next_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("kms.sock");
    let vault = Vault::listen(&socket);
    let file = dir.path().join("encryption.yaml");
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{{kms: {{apiVersion: v2, name: vault, endpoint: 'unix://{}'}}}}]\n",
        socket.display()
    );
    std::fs::write(&file, text).expect("written");
    let store = store::memory();
    let start = async || {
        let access = Access { encryption: Some(file.clone()), ..Access::default() };
        Fixture::try_start(store.clone(), Arc::new(|_, _| None), access).await.expect("starts")
    };
    let stored = async || {
        let kv = store.get(b"/registry/secrets/default/a", None).await.expect("open");
        kv.expect("it is there").value
    };
    let f = start().await;
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"word": WORD}});
    assert_eq!(f.post(SECRETS, &secret).await.code, 201);
    let first = stored().await;
    assert!(first.starts_with(b"k8s:enc:kms:v2:vault:"));
    assert!(!String::from_utf8_lossy(&first).contains(WORD));
    let report = f.get("/readyz/kms-providers").await;
    assert_eq!(report.code, 200, "{}", report.body);
    f.api.shutdown().await;

    vault.says().key = "2";
    let f = start().await;
    assert_eq!(vault.says().decrypted, 1, "one seed for all that the first server wrote");
    let path = format!("{SECRETS}/a");
    let before = f.get(&path).await.body;
    assert_eq!(before["data"]["word"], WORD);
    assert_eq!(f.request(Method::PUT, &path, &before).await.code, 200);
    let second = stored().await;
    let key = |value: &Bytes| {
        Envelope::decode(&value[b"k8s:enc:kms:v2:vault:".len()..]).expect("an envelope").key_id
    };
    assert_eq!((key(&first), key(&second)), ("1".into(), "2".into()));
    f.api.shutdown().await;
}
