//! The store: opaque bytes under opaque keys, with etcd's semantics. One revision counts every
//! change of the whole store; a transaction compares and swaps on modification revisions; a range
//! can be read as of an older revision, and a watch can start at one, until compaction forgets it.
//!
//! It knows nothing of Kubernetes. Only the API server uses it.
//!
//! Two engines share one state machine ([`local`]): the current values live in a persistent ordered
//! map, so that every read is a snapshot that touches no disk; one writer thread applies whatever
//! has queued and hands it to a [`log`] as one commit. The log is a redb file with a journal before it
//! ([`open`]), or memory ([`memory`]). Start at [`Store`], then `local`, then `writer`. A third engine
//! ([`Etcd`]) speaks to an etcd that already runs.
//!
//! Source of the behaviour: etcd's API guarantees and `etcdserverpb` (Range, Txn, Watch, Lease).

mod engine;
mod error;
pub mod etcd;
mod hub;
mod key_value;
mod lease;
mod local;
mod log;
pub mod snapshot;
mod state;
mod store;
mod txn;
mod watch;
mod writer;

pub use engine::Engine;
pub use error::Error;
pub use etcd::Etcd;
pub use key_value::{KeyValue, LeaseId, Range, RangeResponse, Revision};
pub use store::{Options, Store, memory, open};
pub use txn::{Compare, Op, Txn, TxnOutcome};
pub use watch::{Event, EventKind, WatchBatch};
