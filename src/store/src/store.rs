//! The handle that everybody holds, and how it is opened.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;

use crate::engine::Engine;
use crate::lease::Leases;
use crate::local::Local;
use crate::log::{Embedded, Memory};
use crate::state::Snapshot;
use crate::{
    Compare, Error, KeyValue, LeaseId, Op, Range, RangeResponse, Revision, Txn, TxnOutcome,
    WatchBatch,
};

/// The file that holds the store.
const FILE: &str = "store.redb";
/// The file whose lock says that a process has the store open.
const LOCK: &str = "store.lock";

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Memory for pages of the file. Current values are held beside it, so only history needs it.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { cache_bytes: 2 << 20 }
    }
}

/// Opens the store in the directory `dir`, which is made if need be.
///
/// # Errors
/// [`Error::Locked`] while another process has it open, [`Error::Corrupt`] for a damaged file,
/// [`Error::Full`] when recovery finds no room, [`Error::Io`] for the rest.
pub fn open(dir: &Path, options: Options) -> Result<Store, Error> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { operation, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("create the directory", dir))?;
    let lock = lock(&dir.join(LOCK))?;
    let (log, current, leases) = Embedded::open(&dir.join(FILE), options.cache_bytes, Some(lock))?;
    let engine = Local::start(Box::new(log.0), Arc::new(log.1), current, leases)
        .map_err(failed("start the writer of", dir))?;
    Ok(Store(Arc::new(engine)))
}

/// Takes the lock, without waiting for another process.
fn lock(path: &Path) -> Result<File, Error> {
    let failed = |source| Error::Io { operation: "lock", path: path.to_owned(), source };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// A store that lives and ends with the process.
pub fn memory() -> Store {
    let log = Memory::new();
    let engine =
        Local::start(Box::new(log.clone()), Arc::new(log), Snapshot::empty(), Leases::default());
    Store(Arc::new(engine.expect("a process can start threads")))
}

/// A store: a handle that can be cloned and shared. The methods are [`Engine`]'s.
#[derive(Clone)]
pub struct Store(Arc<dyn Engine>);

impl Store {
    /// A store on another engine.
    pub fn new(engine: impl Engine) -> Self {
        Self(Arc::new(engine))
    }

    /// See [`Engine::revision`].
    pub async fn revision(&self) -> Result<Revision, Error> {
        self.0.revision().await
    }

    /// See [`Engine::get`].
    pub async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error> {
        self.0.get(key, at).await
    }

    /// See [`Engine::range`].
    pub async fn range(&self, range: Range) -> Result<RangeResponse, Error> {
        self.0.range(range).await
    }

    /// See [`Engine::txn`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        self.0.txn(txn).await
    }

    /// See [`Engine::largest_txn`].
    pub fn largest_txn(&self) -> usize {
        self.0.largest_txn()
    }

    /// Writes `key`, whatever it held; returns the new revision.
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<Revision, Error> {
        let op = Op::Put { key: key.into(), value: value.into(), lease: None };
        self.always(op).await
    }

    /// Removes `key` if it is there; returns the store's revision after that.
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Revision, Error> {
        self.always(Op::Delete { key: key.into() }).await
    }

    async fn always(&self, op: Op) -> Result<Revision, Error> {
        let compares: Vec<Compare> = Vec::new();
        match self.txn(Txn { compares, ops: vec![op] }).await? {
            TxnOutcome::Committed { revision } | TxnOutcome::Conflict { revision, .. } => {
                Ok(revision)
            }
        }
    }

    /// See [`Engine::watch`].
    pub fn watch(
        &self,
        start: impl Into<Bytes>,
        end: impl Into<Bytes>,
        from: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, Error>> {
        self.0.watch(start.into(), end.into(), from)
    }

    /// See [`Engine::compact`].
    pub async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.0.compact(revision).await
    }

    /// See [`Engine::lease_grant`].
    pub async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseId, Error> {
        self.0.lease_grant(ttl_s).await
    }

    /// See [`Engine::lease_keep_alive`].
    pub async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error> {
        self.0.lease_keep_alive(id).await
    }

    /// See [`Engine::lease_revoke`].
    pub async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error> {
        self.0.lease_revoke(id).await
    }

    /// See [`Engine::close`].
    pub async fn close(&self) -> Result<(), Error> {
        self.0.close().await
    }
}
