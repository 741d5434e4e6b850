//! The one thread that changes the store: it takes whatever has queued, applies it to a copy of the
//! current values, makes it durable as one commit, publishes it, and then answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::hub::Hub;
use crate::lease::Leases;
use crate::log::{Commit, Log};
use crate::state::Snapshot;
use crate::{Error, LeaseId, Op, Revision, Txn, TxnOutcome, WatchBatch};

/// The most requests that share one commit.
const COMMIT_REQUESTS: usize = 1024;

/// How long after a change the watchers of other ranges are told that nothing of theirs changed.
const PROGRESS_AFTER: Duration = Duration::from_millis(100);

/// The wait before an ended lease is tried again, when its keys could not be deleted.
const EXPIRY_RETRY: Duration = Duration::from_secs(1);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer can be asked.
pub(crate) enum Request {
    Txn(Txn, Reply<TxnOutcome>),
    Compact(Revision, Reply<()>),
    Grant(LeaseId, i64, Reply<LeaseId>),
    Revoke(LeaseId, Reply<()>),
    Close(Reply<()>),
}

/// An answer that waits for its commit.
enum Pending {
    Txn(Reply<TxnOutcome>, TxnOutcome),
    Grant(Reply<LeaseId>, LeaseId),
    Revoke(Reply<()>),
}

impl Pending {
    fn answer(self, result: Result<(), Error>) {
        // A requester that has gone away no longer needs its answer.
        match self {
            Self::Txn(reply, outcome) => drop(reply.send(result.map(|()| outcome))),
            Self::Grant(reply, id) => drop(reply.send(result.map(|()| id))),
            Self::Revoke(reply) => drop(reply.send(result)),
        }
    }
}

/// What has been applied but is not durable yet.
struct Batch {
    working: Snapshot,
    commit: Commit,
    told: Vec<WatchBatch>,
    pending: Vec<Pending>,
}

impl Batch {
    fn apply(&mut self, ops: Vec<Op>) {
        self.told.extend(self.working.apply(ops, &mut self.commit.records));
    }
}

/// See the module.
pub(crate) struct Writer {
    pub log: Box<dyn Log>,
    pub hub: Arc<Hub>,
    pub leases: Arc<Mutex<Leases>>,
    pub current: Snapshot,
    pub requests: mpsc::Receiver<Request>,
}

impl Writer {
    /// Works until it is told to close, or nobody can ask any more.
    pub fn run(mut self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the store's writer could not start");
                self.hub.close();
                return;
            }
        };
        let reply = runtime.block_on(self.work());
        self.hub.close();
        // What is still queued fails with Closed, because its reply is dropped.
        self.requests.close();
        let closed = self.log.close();
        if let Some(reply) = reply {
            drop(reply.send(closed));
        }
    }

    async fn work(&mut self) -> Option<Reply<()>> {
        let mut queue = Vec::with_capacity(COMMIT_REQUESTS);
        let mut progress_at: Option<Instant> = None;
        let mut expire_not_before = Instant::now();
        let mut sweeping = true;
        loop {
            let lease_end = self.lock_leases().next_end().map(|end| end.max(expire_not_before));
            let sweep_at = sweeping.then(Instant::now);
            let wake = [progress_at, lease_end, sweep_at].into_iter().flatten().min();
            let received = self.requests.recv_many(&mut queue, COMMIT_REQUESTS);
            let abandoned = match wake {
                Some(at) => timeout_at(at, received).await == Ok(0),
                None => received.await == 0,
            };
            if abandoned {
                return None;
            }
            let before = self.current.revision;
            let closing = self.serve(&mut queue, &mut sweeping);
            if !self.expire_leases() {
                expire_not_before = Instant::now() + EXPIRY_RETRY;
            }
            if closing.is_some() {
                return closing;
            }
            if self.current.revision != before {
                progress_at.get_or_insert_with(|| Instant::now() + PROGRESS_AFTER);
            }
            if progress_at.is_some_and(|at| at <= Instant::now()) {
                self.hub.progress();
                progress_at = None;
            }
            if sweeping {
                sweeping = self.log.sweep().unwrap_or_else(|error| {
                    tracing::warn!(%error, "could not remove compacted revisions; trying again at the next compaction");
                    false
                });
            }
        }
    }

    /// Handles what has queued: transactions and leases in one commit.
    fn serve(&mut self, queue: &mut Vec<Request>, sweeping: &mut bool) -> Option<Reply<()>> {
        let mut batch = self.batch();
        let mut compactions = Vec::new();
        let mut closing = None;
        for request in queue.drain(..) {
            match request {
                Request::Txn(txn, reply) => self.txn(&mut batch, txn, reply),
                Request::Compact(at, reply) => compactions.push((at, reply)),
                Request::Grant(id, ttl_s, reply) => {
                    batch.commit.granted.push((id, ttl_s));
                    batch.pending.push(Pending::Grant(reply, id));
                }
                Request::Revoke(id, reply) => self.revoke(&mut batch, id, reply),
                Request::Close(reply) => closing = Some(reply),
            }
        }
        self.commit(batch);
        for (at, reply) in compactions {
            let compacted = self.compact(at);
            *sweeping |= compacted.is_ok();
            drop(reply.send(compacted));
        }
        closing
    }

    fn batch(&self) -> Batch {
        Batch {
            working: self.current.clone(),
            commit: Commit::default(),
            told: Vec::new(),
            pending: Vec::new(),
        }
    }

    fn txn(&self, batch: &mut Batch, txn: Txn, reply: Reply<TxnOutcome>) {
        let revision = batch.working.revision;
        if let Some(current) = batch.working.conflict(&txn.compares) {
            batch.pending.push(Pending::Txn(reply, TxnOutcome::Conflict { current, revision }));
            return;
        }
        if let Some(id) = self.missing_lease(batch, &txn.ops) {
            drop(reply.send(Err(Error::LeaseNotFound { id })));
            return;
        }
        batch.apply(txn.ops);
        let revision = batch.working.revision;
        batch.pending.push(Pending::Txn(reply, TxnOutcome::Committed { revision }));
    }

    fn missing_lease(&self, batch: &Batch, ops: &[Op]) -> Option<LeaseId> {
        ops.iter().find_map(|op| match op {
            Op::Put { lease: Some(id), .. } if !self.lease_lives(batch, *id) => Some(*id),
            _ => None,
        })
    }

    fn lease_lives(&self, batch: &Batch, id: LeaseId) -> bool {
        let granted = batch.commit.granted.iter().any(|(granted, _)| *granted == id);
        (granted || self.lock_leases().contains(id)) && !batch.commit.revoked.contains(&id)
    }

    fn revoke(&self, batch: &mut Batch, id: LeaseId, reply: Reply<()>) {
        if !self.lease_lives(batch, id) {
            drop(reply.send(Err(Error::LeaseNotFound { id })));
            return;
        }
        self.end_lease(batch, id);
        batch.pending.push(Pending::Revoke(reply));
    }

    fn end_lease(&self, batch: &mut Batch, id: LeaseId) {
        // Keys that this very batch attached or detached are not in the table yet, so the batch's
        // own state has the last word.
        let mut keys = self.lock_leases().keys(id);
        keys.extend(batch.commit.records.iter().map(|record| record.kv.key.clone()));
        keys.sort();
        keys.dedup();
        keys.retain(|key| batch.working.get(key).is_some_and(|kv| kv.lease == Some(id)));
        batch.apply(keys.into_iter().map(|key| Op::Delete { key }).collect());
        batch.commit.revoked.push(id);
    }

    /// Ends the leases whose time is over; false when that failed.
    fn expire_leases(&mut self) -> bool {
        let ended = self.lock_leases().ended();
        if ended.is_empty() {
            return true;
        }
        let mut batch = self.batch();
        for id in ended {
            self.end_lease(&mut batch, id);
        }
        self.commit(batch)
    }

    /// Makes the batch durable, publishes it and answers; false when it came to nothing.
    fn commit(&mut self, batch: Batch) -> bool {
        let Batch { working, mut commit, told, pending } = batch;
        let result = if commit.is_empty() { Ok(()) } else { self.log.commit(&mut commit) };
        if let Err(error) = &result {
            tracing::error!(%error, "a commit failed");
            for pending in pending {
                pending.answer(Err(error.duplicate()));
            }
            return false;
        }
        {
            let mut leases = self.lock_leases();
            for (id, ttl_s) in &commit.granted {
                leases.insert(*id, *ttl_s);
            }
            for event in told.iter().flat_map(|batch| &batch.events) {
                leases.follow(event);
            }
            for id in &commit.revoked {
                leases.remove(*id);
            }
        }
        if !told.is_empty() {
            self.current = working;
            self.hub.publish(self.current.clone(), &told);
        }
        for pending in pending {
            pending.answer(Ok(()));
        }
        if let Err(error) = self.log.settle() {
            tracing::warn!(%error, "the store's journal could not be emptied; the next write tries again");
        }
        true
    }

    fn compact(&mut self, at: Revision) -> Result<(), Error> {
        let (current, compacted) = (self.current.revision, self.current.compacted);
        if at > current {
            return Err(Error::FutureRevision { requested: at, current });
        }
        if at <= compacted {
            return Err(Error::Compacted { requested: at, compacted });
        }
        self.log.compact(at)?;
        self.current.compacted = at;
        self.hub.publish(self.current.clone(), &[]);
        Ok(())
    }

    fn lock_leases(&self) -> std::sync::MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
