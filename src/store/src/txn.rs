//! Transactions: compares that guard operations.

use bytes::Bytes;

use crate::{KeyValue, LeaseId, Revision};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Write a value.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
        /// The lease whose end deletes the key again.
        lease: Option<LeaseId>,
    },
    /// Remove a key; nothing happens when it is absent.
    Delete {
        /// The key.
        key: Bytes,
    },
}

/// A condition: `key` was last changed at `mod_revision`; 0 means that it must be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// The expected revision of its last change.
    pub mod_revision: Revision,
}

/// All operations happen in one new revision if all compares hold; else none does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions.
    pub compares: Vec<Compare>,
    /// The changes, applied in order.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Creates `key`, which must be absent.
    pub fn create(key: Bytes, value: Bytes) -> Self {
        Self::swap(key, value, 0)
    }

    /// Replaces the value of `key`, last changed at `mod_revision`.
    pub fn swap(key: Bytes, value: Bytes, mod_revision: Revision) -> Self {
        Self {
            compares: vec![Compare { key: key.clone(), mod_revision }],
            ops: vec![Op::Put { key, value, lease: None }],
        }
    }

    /// Removes `key`, last changed at `mod_revision`.
    pub fn remove(key: Bytes, mod_revision: Revision) -> Self {
        Self {
            compares: vec![Compare { key: key.clone(), mod_revision }],
            ops: vec![Op::Delete { key }],
        }
    }
}

/// How a transaction went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// The operations are durable.
    Committed {
        /// The revision they made; the current one when they changed nothing.
        revision: Revision,
    },
    /// A compare did not hold; nothing was changed.
    Conflict {
        /// For each compare, in order, what the store holds.
        current: Vec<Option<KeyValue>>,
        /// The current revision.
        revision: Revision,
    },
}
