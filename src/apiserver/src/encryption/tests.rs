//! A server over a store that holds no plain values.

use std::sync::Arc;

use http::Method;
use serde_json::{Value, json};

use crate::Access;
use crate::tests::Fixture;

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
/// `swordfish`
const WORD: &str = "c3dvcmRmaXNo";
const KEYS: [&str; 2] = [
    "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=",
];

fn configuration(providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: [{providers}]\n"
    )
}

fn by(cipher: &str, keys: &[usize]) -> String {
    let keys: Vec<String> =
        keys.iter().map(|key| format!("{{name: key{key}, secret: {}}}", KEYS[*key])).collect();
    format!("{{{cipher}: {{keys: [{}]}}}}", keys.join(", "))
}

async fn stored(store: &store::Store, name: &str) -> String {
    let key = format!("/registry/secrets/default/{name}");
    let kv = store.get(key.as_bytes(), None).await.expect("open").expect("it is there");
    String::from_utf8_lossy(&kv.value).into_owned()
}

async fn word(f: &Fixture, name: &str) -> Value {
    f.get(&format!("{SECRETS}/{name}")).await.body["data"]["word"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_encrypted_and_written_anew_by_the_next_key() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("encryption.yaml");
    let store = store::memory();
    let nowhere: crate::NodeAddress = Arc::new(|_, _| None);
    let start = async |providers: String, encryption_reload: bool| {
        std::fs::write(&file, configuration(&providers)).expect("written");
        let encryption = Some(file.clone());
        let access = Access { encryption, encryption_reload, ..Access::default() };
        Fixture::try_start(store.clone(), nowhere.clone(), access).await
    };
    let secret = |name: &str| json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": {"word": WORD}});
    let f = Fixture::over(store.clone(), nowhere.clone()).await;
    assert_eq!(f.post(SECRETS, &secret("old")).await.code, 201);
    f.api.shutdown().await;
    assert!(stored(&store, "old").await.contains(WORD));

    let f = start(format!("{}, {{identity: {{}}}}", by("aescbc", &[0])), true).await;
    let f = f.expect("starts");
    let mut watch = f.watch(&format!("{SECRETS}?watch=true&resourceVersion=0")).await;
    assert_eq!(watch.tell().await, "ADDED old");
    assert_eq!(f.post(SECRETS, &secret("new")).await.code, 201);
    assert_eq!(watch.tell().await, "ADDED new");
    let bytes = stored(&store, "new").await;
    assert!(bytes.starts_with("k8s:enc:aescbc:v1:key0:") && !bytes.contains(WORD), "{bytes}");
    assert_eq!(word(&f, "new").await, WORD);
    // A list at an older revision is read from the store.
    let list = f.get(&format!("{SECRETS}?limit=1")).await.body;
    let token = list["metadata"]["continue"].as_str().expect("more").to_owned();
    let rest = f.get(&format!("{SECRETS}?limit=1&continue={token}")).await.body;
    assert_eq!(rest["items"][0]["data"]["word"], WORD);
    // What is replaced by itself is written anew, once.
    let replace = async |f: &Fixture, name: &str| {
        let path = format!("{SECRETS}/{name}");
        let before = f.get(&path).await.body;
        let after = f.request(Method::PUT, &path, &before).await;
        assert_eq!(after.code, 200, "{}", after.body);
        before["metadata"]["resourceVersion"] != after.body["metadata"]["resourceVersion"]
    };
    assert!(replace(&f, "old").await);
    assert!(stored(&store, "old").await.starts_with("k8s:enc:aescbc:v1:key0:"));
    assert!(!replace(&f, "old").await);

    // The next key, while the server runs.
    let next = format!("{}, {}", by("secretbox", &[1]), by("aescbc", &[0]));
    std::fs::write(&file, configuration(&next)).expect("written");
    f.until_metric(
        r#"apiserver_encryption_config_controller_automatic_reloads_total{status="success"} 1"#,
    )
    .await;
    assert_eq!(word(&f, "old").await, WORD);
    assert!(replace(&f, "old").await);
    assert!(stored(&store, "old").await.starts_with("k8s:enc:secretbox:v1:key1:"));
    f.api.shutdown().await;

    // Without the key that one of them has, the server says so rather than to begin without it.
    let error = start(by("secretbox", &[1]), false).await.err().expect("no start");
    assert_eq!(
        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default(),
        "the value of /registry/secrets/default/new cannot be read or written: no provider of --encryption-provider-config can decrypt it"
    );
    // Back to plain values.
    let back = format!("{{identity: {{}}}}, {next}");
    let f = start(back, false).await.expect("starts");
    assert!(replace(&f, "old").await && replace(&f, "new").await);
    assert!(
        stored(&store, "old").await.contains(WORD) && stored(&store, "new").await.contains(WORD)
    );
}
