//! What the model does not cover: leases, slow watchers, the lock, closing.

mod support;

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use store::{Error, EventKind, Op, Options, Range, Store, Txn, TxnOutcome};

/// Longer than anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);

async fn put_leased(store: &Store, key: &'static str, lease: i64) -> Result<TxnOutcome, Error> {
    let op = Op::Put { key: key.into(), value: "v".into(), lease: Some(lease) };
    store.txn(Txn { compares: vec![], ops: vec![op] }).await
}

/// Runs what holds on every engine on each of them.
macro_rules! on_every_engine {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(store::memory()).await;
            })*
        }
        mod etcd {
            $(#[tokio::test]
            async fn $name() {
                let Some(server) = super::support::Server::start().await else { return };
                super::$name(server.store("test").await).await;
            })*
        }
    };
}

on_every_engine! {
    the_end_of_a_lease_deletes_its_keys
    a_revoked_lease_deletes_its_keys_at_once
    progress_is_told_to_those_who_see_nothing
    closing_ends_watches_and_refuses_work
    the_future_and_the_forgotten_are_refused
}

/// The keys that the next batch with events deletes.
async fn next_deleted(store: &Store, from: u64) -> Vec<Bytes> {
    let mut watch = store.watch("", "", from);
    let deleted = async {
        while let Some(batch) = watch.next().await {
            let batch = batch.expect("no error");
            if batch.events.iter().any(|event| event.kind == EventKind::Delete) {
                return batch.events.into_iter().map(|event| event.kv.key).collect();
            }
        }
        Vec::new()
    };
    tokio::time::timeout(DEADLINE, deleted).await.expect("in time")
}

async fn the_end_of_a_lease_deletes_its_keys(store: Store) {
    let lease = store.lease_grant(1).await.expect("granted");
    put_leased(&store, "a", lease).await.expect("put");
    put_leased(&store, "b", lease).await.expect("put");
    // A key that lost its lease stays.
    store.put("b", "again").await.expect("put");
    let revision = store.revision().await.expect("open");
    assert_eq!(next_deleted(&store, revision + 1).await, ["a"]);
    assert!(matches!(
        store.lease_keep_alive(lease).await,
        Err(Error::LeaseNotFound { id }) if id == lease
    ));
    assert!(matches!(put_leased(&store, "c", lease).await, Err(Error::LeaseNotFound { .. })));
    assert!(store.get(b"b", None).await.expect("open").is_some());
}

async fn a_revoked_lease_deletes_its_keys_at_once(store: Store) {
    let lease = store.lease_grant(3600).await.expect("granted");
    put_leased(&store, "a", lease).await.expect("put");
    assert_eq!(store.lease_keep_alive(lease).await.expect("alive"), 3600);
    store.lease_revoke(lease).await.expect("revoked");
    assert!(store.get(b"a", None).await.expect("open").is_none());
    assert!(matches!(store.lease_revoke(lease).await, Err(Error::LeaseNotFound { .. })));
}

#[tokio::test]
async fn leases_survive_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store::open(dir.path(), Options::default()).expect("a new store");
    let lease = store.lease_grant(1).await.expect("granted");
    put_leased(&store, "a", lease).await.expect("put");
    let revision = store.revision().await.expect("open");
    store.close().await.expect("healthy");
    let store = store::open(dir.path(), Options::default()).expect("a store");
    assert_eq!(next_deleted(&store, revision + 1).await, ["a"]);
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = store::open(dir.path(), Options::default()).expect("a new store");
    let refused = store::open(dir.path(), Options::default()).err().expect("locked");
    assert!(matches!(refused, Error::Locked { .. }), "{refused:?}");
    store.close().await.expect("healthy");
    let again = store::open(dir.path(), Options::default()).expect("free again");
    again.close().await.expect("healthy");
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_can_go_on_from_the_log() {
    let store = store::memory();
    let mut slow = store.watch("", "", 2);
    let mut revision = 1;
    for _ in 0..20_000 {
        revision = store.put("a", "v").await.expect("writers do not wait");
    }
    let mut seen = 1;
    let error = loop {
        match slow.next().await.expect("an error before the end") {
            Ok(batch) if batch.events.is_empty() => {}
            Ok(batch) => {
                assert_eq!(batch.revision, seen + 1);
                seen = batch.revision;
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::WatcherLagged), "{error:?}");
    assert!(slow.next().await.is_none());
    let mut again = store.watch("", "", seen + 1);
    while seen < revision {
        let batch = again.next().await.expect("not over").expect("no error");
        assert_eq!(batch.revision, seen + 1);
        seen = batch.revision;
    }
}

async fn progress_is_told_to_those_who_see_nothing(store: Store) {
    let mut watch = store.watch("b", "c", 2);
    let revision = store.put("a", "v").await.expect("put");
    let told = async {
        loop {
            let batch = watch.next().await.expect("not over").expect("no error");
            assert!(batch.events.is_empty());
            if batch.revision == revision {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, told).await.expect("in time");
}

async fn closing_ends_watches_and_refuses_work(store: Store) {
    let mut watch = store.watch("", "", 2);
    assert!(watch.next().await.expect("progress").is_ok());
    store.close().await.expect("healthy");
    assert!(matches!(watch.next().await, Some(Err(Error::Closed))));
    assert!(watch.next().await.is_none());
    assert!(matches!(store.put("a", "v").await, Err(Error::Closed)));
    assert!(matches!(store.range(Range::prefix("")).await, Err(Error::Closed)));
}

async fn the_future_and_the_forgotten_are_refused(store: Store) {
    for _ in 0..5 {
        store.put("a", "v").await.expect("put");
    }
    let at = |at| Range { at: Some(at), ..Range::prefix("") };
    assert!(matches!(
        store.range(at(7)).await,
        Err(Error::FutureRevision { requested: 7, current: 6 })
    ));
    store.compact(4).await.expect("compacted");
    assert!(matches!(
        store.range(at(3)).await,
        Err(Error::Compacted { requested: 3, compacted: 4 })
    ));
    assert_eq!(store.range(at(4)).await.expect("kept").kvs[0].version, 3);
    assert!(matches!(store.compact(7).await, Err(Error::FutureRevision { .. })));
    assert!(matches!(store.watch("", "", 4).next().await, Some(Err(Error::Compacted { .. }))));
    assert_eq!(store.watch("", "", 5).next().await.expect("not over").expect("kept").revision, 5);
}
