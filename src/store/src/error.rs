//! What can go wrong.

use std::io;
use std::path::PathBuf;

use crate::{LeaseId, Revision};

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The revision has been compacted away.
    #[error("revision {requested} was compacted: the oldest that can be read is {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The revision of the last compaction.
        compacted: Revision,
    },
    /// The revision does not exist yet.
    #[error("revision {requested} is in the future: the current one is {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The current revision.
        current: Revision,
    },
    /// There is no such lease, or it has ended.
    #[error("lease {id} not found")]
    LeaseNotFound {
        /// The lease asked for.
        id: LeaseId,
    },
    /// A watcher did not take its events in time and was cut off, so that it would not hold up
    /// writers. Watch again from the revision after the last one seen.
    #[error("the watcher fell behind and was cut off: watch again from the last revision seen")]
    WatcherLagged,
    /// No room on the file system. Nothing that was acknowledged is lost, and writes work again
    /// once there is room.
    #[error("no space left to write {}: free space on its file system; nothing was lost, and writes resume by themselves", path.display())]
    Full {
        /// The store's file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The file is not a store, or was damaged.
    #[error("the store {} is damaged ({detail}): restore it from a copy, or move it away to begin with an empty cluster", path.display())]
    Corrupt {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by another process: stop that one first, or choose another cluster name", path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// The address names no store.
    #[error(
        "{address:?} is no address of a store: write etcd://HOST:PORT, or etcd://HOST:PORT,HOST:PORT/PREFIX"
    )]
    Address {
        /// What was given.
        address: String,
    },
    /// etcd refused, or did not answer. Whether a write happened is not known then.
    #[error("could not {operation} etcd at {address}: {detail}")]
    Remote {
        /// What was tried.
        operation: &'static str,
        /// The members.
        address: String,
        /// What they said.
        detail: String,
    },
    /// A value cannot be encrypted, or not be decrypted.
    #[error("the value of {key} cannot be read or written: {detail}")]
    Unreadable {
        /// The key.
        key: String,
        /// Why.
        detail: String,
    },
    /// Reading or writing failed. A write that fails like this did not happen.
    #[error("could not {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The same error once more, for the other requests that shared a failed commit.
    pub(crate) fn duplicate(&self) -> Self {
        let again = |source: &io::Error| match source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(source.kind(), source.to_string()),
        };
        match self {
            Self::Compacted { requested, compacted } => {
                Self::Compacted { requested: *requested, compacted: *compacted }
            }
            Self::FutureRevision { requested, current } => {
                Self::FutureRevision { requested: *requested, current: *current }
            }
            Self::LeaseNotFound { id } => Self::LeaseNotFound { id: *id },
            Self::WatcherLagged => Self::WatcherLagged,
            Self::Full { path, source } => Self::Full { path: path.clone(), source: again(source) },
            Self::Corrupt { path, detail } => {
                Self::Corrupt { path: path.clone(), detail: detail.clone() }
            }
            Self::Locked { path } => Self::Locked { path: path.clone() },
            Self::Closed => Self::Closed,
            Self::Address { address } => Self::Address { address: address.clone() },
            Self::Unreadable { key, detail } => {
                Self::Unreadable { key: key.clone(), detail: detail.clone() }
            }
            Self::Remote { operation, address, detail } => {
                Self::Remote { operation, address: address.clone(), detail: detail.clone() }
            }
            Self::Io { operation, path, source } => {
                Self::Io { operation, path: path.clone(), source: again(source) }
            }
        }
    }
}
