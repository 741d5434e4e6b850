//! What an engine can do.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{
    Error, KeyValue, LeaseId, Range, RangeResponse, Revision, Txn, TxnOutcome, WatchBatch,
};

/// A store's engine. The methods behave as etcd's requests of the same names.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// The current revision.
    async fn revision(&self) -> Result<Revision, Error>;

    /// One key, now or as of the revision `at`.
    async fn get(&self, key: &[u8], at: Option<Revision>) -> Result<Option<KeyValue>, Error>;

    /// The keys of a range.
    async fn range(&self, range: Range) -> Result<RangeResponse, Error>;

    /// Applies a transaction. When this returns `Committed` the change is durable, and lies in the
    /// channels of the watchers that it concerns.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error>;

    /// The most operations of one transaction.
    fn largest_txn(&self) -> usize {
        usize::MAX
    }

    /// The changes of the keys in `[start, end)` (no bound when `end` is empty) from revision
    /// `from` on, in order, none left out, one batch for each revision that touched the range.
    /// An empty batch says that all changes up to its revision have been told; the first one comes
    /// as soon as the past has been caught up with. After an error the stream ends.
    fn watch(
        &self,
        start: Bytes,
        end: Bytes,
        from: Revision,
    ) -> BoxStream<'static, Result<WatchBatch, Error>>;

    /// Forgets what was superseded at or before `revision`.
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// A new lease that ends `ttl_s` seconds after it was last kept alive.
    async fn lease_grant(&self, ttl_s: i64) -> Result<LeaseId, Error>;

    /// Starts the lease's time anew and returns its length in seconds.
    async fn lease_keep_alive(&self, id: LeaseId) -> Result<i64, Error>;

    /// Ends the lease: its keys are deleted.
    async fn lease_revoke(&self, id: LeaseId) -> Result<(), Error>;

    /// Finishes what was begun, ends the watches and releases the files. Later calls fail.
    async fn close(&self) -> Result<(), Error>;
}
