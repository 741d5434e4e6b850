//! Who watches, and the snapshot that everybody reads. Both change together under one lock, so that
//! a watcher is registered exactly between two revisions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::key_value::within;
use crate::state::Snapshot;
use crate::watch::Live;
use crate::{Error, Revision, WatchBatch};

/// How many batches a watcher may leave unread before it is cut off.
const CHANNEL_BATCHES: usize = 16_384;

#[derive(Debug)]
struct Watcher {
    start: Bytes,
    end: Bytes,
    /// Earlier revisions do not interest it.
    from: Revision,
    /// The last revision it was told of.
    told: Revision,
    batches: mpsc::Sender<WatchBatch>,
    lagged: Arc<AtomicBool>,
}

impl Watcher {
    /// Hands over `batch`; false when the watcher is gone or cut off.
    fn send(&mut self, batch: WatchBatch) -> bool {
        let revision = batch.revision;
        match self.batches.try_send(batch) {
            Ok(()) => {
                self.told = revision;
                true
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.lagged.store(true, Ordering::Release);
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        }
    }

    fn tell(&mut self, batch: &WatchBatch) -> bool {
        if batch.revision < self.from {
            return !self.batches.is_closed();
        }
        let concerns = |key: &[u8]| within(key, &self.start, &self.end);
        let events: Vec<_> =
            batch.events.iter().filter(|event| concerns(&event.kv.key)).cloned().collect();
        events.is_empty() || self.send(WatchBatch { revision: batch.revision, events })
    }
}

#[derive(Debug)]
struct Published {
    /// Absent once the store is closed.
    snapshot: Option<Snapshot>,
    watchers: Vec<Watcher>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub(Mutex<Published>);

impl Hub {
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Mutex::new(Published { snapshot: Some(snapshot), watchers: Vec::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Published> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is committed.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        self.lock().snapshot.clone().ok_or(Error::Closed)
    }

    /// Makes `snapshot` what everybody reads, and tells the watchers how it came about.
    pub fn publish(&self, snapshot: Snapshot, batches: &[WatchBatch]) {
        let mut published = self.lock();
        published.watchers.retain_mut(|watcher| batches.iter().all(|batch| watcher.tell(batch)));
        let before = published.snapshot.replace(snapshot);
        drop(published);
        // The nodes of the old map that nobody shares are freed here, outside of the lock.
        drop(before);
    }

    /// Tells every watcher that has missed nothing but other ranges' changes how far the store is.
    pub fn progress(&self) {
        let mut published = self.lock();
        let Some(revision) = published.snapshot.as_ref().map(|snapshot| snapshot.revision) else {
            return;
        };
        published.watchers.retain_mut(|watcher| {
            if watcher.told >= revision || watcher.from > revision {
                return !watcher.batches.is_closed();
            }
            // A watcher with a full channel has no need to be told that time passes.
            watcher.batches.capacity() == 0
                || watcher.send(WatchBatch { revision, events: Vec::new() })
        });
    }

    /// Adds a watcher for `[start, end)` that needs nothing before `next`, or does not when the
    /// store is already past that. A closed store gives a channel without a sender.
    pub fn register(&self, start: Bytes, end: Bytes, next: Revision) -> Option<Live> {
        let mut published = self.lock();
        let (sender, receiver) = mpsc::channel(CHANNEL_BATCHES);
        let lagged = Arc::new(AtomicBool::new(false));
        if let Some(snapshot) = &published.snapshot {
            let revision = snapshot.revision;
            if next <= revision {
                return None;
            }
            let mut watcher = Watcher {
                start,
                end,
                from: next,
                told: 0,
                batches: sender,
                lagged: lagged.clone(),
            };
            watcher.send(WatchBatch { revision, events: Vec::new() });
            published.watchers.push(watcher);
        }
        Some(Live { batches: receiver, lagged })
    }

    /// Ends all watches and reads.
    pub fn close(&self) {
        let mut published = self.lock();
        published.snapshot = None;
        published.watchers.clear();
    }
}
