//! What only the engine on etcd has: TLS, neighbours in the same etcd, a lost connection.

mod support;

use std::time::Duration;

use futures::StreamExt;
use store::etcd::TlsFiles;
use store::{Range, Txn, TxnOutcome};
use support::Server;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn two_handles_see_one_store() {
    let Some(server) = Server::start().await else { return };
    let (one, other) = (server.store("a").await, server.store("a").await);
    let mut watch = other.watch("", "", 2);
    let revision = one.put("k", "v").await.expect("put");
    let told = async {
        loop {
            let batch = watch.next().await.expect("not over").expect("no error");
            if let Some(event) = batch.events.first() {
                return (batch.revision, event.kv.key.clone());
            }
        }
    };
    let told = tokio::time::timeout(DEADLINE, told).await.expect("in time");
    assert_eq!(told, (revision, "k".into()));
    // Both swap on the same revision: one of them loses.
    let swap = |value: &'static str| Txn::swap("k".into(), value.into(), revision);
    let outcomes = [one.txn(swap("x")).await, other.txn(swap("y")).await].map(Result::unwrap);
    assert!(matches!(outcomes[0], TxnOutcome::Committed { .. }));
    let TxnOutcome::Conflict { current, .. } = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(current[0].as_ref().expect("it is there").value, "x");
}

#[tokio::test]
async fn neighbours_are_not_seen_and_do_not_hold_anybody_up() {
    let Some(server) = Server::start().await else { return };
    let (ours, theirs) = (server.store("ours").await, server.store("theirs").await);
    ours.put("k", "v").await.expect("put");
    let mut watch = ours.watch("", "", 3);
    theirs.put("k", "w").await.expect("put");
    // A revision that none of our changes made is reached all the same.
    let wanted = ours.revision().await.expect("open");
    let reached = async {
        loop {
            let batch = watch.next().await.expect("not over").expect("no error");
            assert!(batch.events.is_empty(), "{batch:?}");
            if batch.revision >= wanted {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, reached).await.expect("in time");
    let all = ours.range(Range::prefix("")).await.expect("open");
    assert_eq!((all.kvs.len(), all.count), (1, 1));
    assert_eq!(all.kvs[0].value, "v");
}

#[tokio::test]
async fn certificates_are_asked_for_and_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let authority = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("good names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).expect("signed");
    let issuer = rcgen::Issuer::from_params(&params, &authority);
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("good names");
    leaf.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let leaf = leaf.signed_by(&key, &issuer).expect("signed");
    let files = TlsFiles {
        ca: Some(write("ca.pem", &root.pem())),
        cert: Some(write("cert.pem", &leaf.pem())),
        key: Some(write("key.pem", &key.serialize_pem())),
    };
    let path = |name: &str| dir.path().join(name).display().to_string();
    let arguments = [
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", path("ca.pem")),
        format!("--cert-file={}", path("cert.pem")),
        format!("--key-file={}", path("key.pem")),
    ];
    let Some(server) = Server::start_with(files, &arguments).await else { return };
    let store = server.store("a").await;
    store.put("k", "v").await.expect("put");
    assert_eq!(store.get(b"k", None).await.expect("open").expect("there").value, "v");
}
