//! The engine of one process: reads from the published snapshot or the log, writes through the
//! writer thread. Memory and file differ only in the [`Log`] below it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::sync::{mpsc, oneshot};

use crate::engine::Engine;
use crate::hub::Hub;
use crate::key_value::within;
use crate::lease::Leases;
use crate::log::{History, Log};
use crate::state::{Snapshot, collect};
use crate::writer::{Reply, Request, Writer};
use crate::{
    Error, KeyValue, LeaseId, Range, RangeResponse, Revision, Txn, TxnOutcome, WatchBatch, watch,
};

/// How many requests may wait for the writer.
const QUEUE: usize = 4096;

/// See the module.
pub(crate) struct Local {
    hub: Arc<Hub>,
    history: Arc<dyn History>,
    leases: Arc<Mutex<Leases>>,
    next_lease: AtomicI64,
    requests: mpsc::Sender<Request>,
}

impl Local {
    /// Starts the writer thread over a log whose records make up `current`.
    pub fn start(
        log: Box<dyn Log>,
        history: Arc<dyn History>,
        current: Snapshot,
        mut leases: Leases,
    ) -> std::io::Result<Self> {
        for kv in current.all() {
            if let Some(id) = kv.lease {
                leases.attach(id, kv.key.clone());
            }
        }
        let hub = Arc::new(Hub::new(current.clone()));
        let leases = Arc::new(Mutex::new(leases));
        let (sender, requests) = mpsc::channel(QUEUE);
        let writer =
            Writer { log, hub: Arc::clone(&hub), leases: Arc::clone(&leases), current, requests };
        std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run())?;
        // Names of leases must not come back after a restart, when an old holder may still ask.
        let seed = RandomState::new().hash_one(std::process::id()) >> 2;
        let next_lease = AtomicI64::new(seed as i64);
        Ok(Self { hub, history, leases, next_lease, requests: sender })
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// The range as of `at`, or nothing when the current state serves it.
    async fn past(&self, range: &Range, at: Revision) -> Result<Option<RangeResponse>, Error> {
        let snapshot = self.hub.snapshot()?;
        if at > snapshot.revision {
            return Err(Error::FutureRevision { requested: at, current: snapshot.revision });
        }
        if at == snapshot.revision {
            return Ok(None);
        }
        let history = Arc::clone(&self.history);
        let range = range.clone();
        let read = move || read_past(history.as_ref(), &snapshot, &range, at);
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Closed)?.map(Some)
    }
}

/// Undoes, on the keys of `range`, what happened after `at`.
fn read_past(
    history: &dyn History,
    snapshot: &Snapshot,
    range: &Range,
    at: Revision,
) -> Result<RangeResponse, Error> {
    let view = history.view()?;
    if at < view.compacted() {
        return Err(Error::Compacted { requested: at, compacted: view.compacted() });
    }
    let mut superseded = BTreeMap::new();
    view.scan(at + 1, snapshot.revision, &mut |record| {
        if within(&record.kv.key, &range.start, &range.end) {
            superseded.entry(record.kv.key).or_insert(record.previous);
        }
        true
    })?;
    let mut then: BTreeMap<Bytes, KeyValue> = snapshot
        .iter(&range.start, &range.end)
        .filter(|kv| !superseded.contains_key(&kv.key))
        .map(|kv| (kv.key.clone(), kv.clone()))
        .collect();
    for (key, position) in superseded {
        let Some(position) = position else { continue };
        if let Some(record) = view.get(position)? {
            then.insert(key, record.kv);
        }
    }
    Ok(collect(range, then.values(), snapshot.revision))
}

#[async_trait]
impl Engine for Local {
    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.hub.snapshot()?.revision)
    }

    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        if at.is_some() {
            let found = self.range(Range { at, ..Range::key(key) }).await?;
            return Ok(found.kvs.into_iter().next());
        }
        Ok(self.hub.snapshot()?.get(key).cloned())
    }

    async fn range(&self, range: Range) -> Result<RangeResponse, Error> {
        if let Some(at) = range.at
            && let Some(past) = self.past(&range, at).await?
        {
            return Ok(past);
        }
        Ok(self.hub.snapshot()?.range(&range))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        self.ask(|reply| Request::Txn(txn, reply)).await
    }

    fn watch(
        &self,
        start: Bytes,
        end: Bytes,
        from: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, Error>> {
        watch::watch(Arc::clone(&self.hub), Arc::clone(&self.history), start, end, from)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask(|reply| Request::Compact(revision, reply)).await
    }

    async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseId, Error> {
        let id = self.next_lease.fetch_add(1, Ordering::Relaxed);
        self.ask(|reply| Request::Grant(id, ttl_s, reply)).await
    }

    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.keep_alive(id).ok_or(Error::LeaseNotFound { id })
    }

    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.ask(|reply| Request::Revoke(id, reply)).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.ask(Request::Close).await
    }
}
