//! Leases: how long they last, and which keys end with them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::{Event, EventKind, LeaseId};

#[derive(Debug)]
struct Lease {
    ttl_s: i64,
    deadline: Instant,
    keys: BTreeSet<Bytes>,
}

/// All live leases. A restart gives each its full time again, as etcd does.
#[derive(Debug, Default)]
pub(crate) struct Leases(BTreeMap<LeaseId, Lease>);

fn deadline(ttl_s: i64) -> Instant {
    Instant::now() + Duration::from_secs(ttl_s.max(1).unsigned_abs())
}

impl Leases {
    pub fn contains(&self, id: LeaseId) -> bool {
        self.0.contains_key(&id)
    }

    pub fn insert(&mut self, id: LeaseId, ttl_s: i64) {
        self.0.insert(id, Lease { ttl_s, deadline: deadline(ttl_s), keys: BTreeSet::new() });
    }

    pub fn remove(&mut self, id: LeaseId) {
        self.0.remove(&id);
    }

    /// Starts the lease's time anew; its length in seconds, if it exists.
    pub fn keep_alive(&mut self, id: LeaseId) -> Option<i64> {
        let lease = self.0.get_mut(&id)?;
        lease.deadline = deadline(lease.ttl_s);
        Some(lease.ttl_s)
    }

    pub fn keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.0.get(&id).map(|lease| lease.keys.iter().cloned().collect()).unwrap_or_default()
    }

    pub fn attach(&mut self, id: LeaseId, key: Bytes) {
        if let Some(lease) = self.0.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    /// Follows the leases of the keys that `event` changed.
    pub fn follow(&mut self, event: &Event) {
        let before = event.previous.as_ref().and_then(|kv| kv.lease);
        if let Some(lease) = before.and_then(|id| self.0.get_mut(&id)) {
            lease.keys.remove(&event.kv.key);
        }
        if let (EventKind::Put, Some(id)) = (event.kind, event.kv.lease) {
            self.attach(id, event.kv.key.clone());
        }
    }

    /// The leases that have ended.
    pub fn ended(&self) -> Vec<LeaseId> {
        let now = Instant::now();
        self.0.iter().filter(|(_, lease)| lease.deadline <= now).map(|(id, _)| *id).collect()
    }

    /// When the next lease ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.0.values().map(|lease| lease.deadline).min()
    }
}
