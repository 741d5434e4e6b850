//! Events, and the stream that a watcher reads: first the past from the log, then the live channel.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;

use crate::hub::Hub;
use crate::key_value::within;
use crate::log::{History, Record};
use crate::{Error, KeyValue, Revision};

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was written.
    Put,
    /// It was removed.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The key as it is now; of a removed one only the key and the revision of its removal.
    pub kv: KeyValue,
    /// The key as it was before, if it was.
    pub previous: Option<KeyValue>,
}

/// The changes of one revision; none of them means progress (see [`crate::Engine::watch`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchBatch {
    /// The revision.
    pub revision: Revision,
    /// What it changed, in order.
    pub events: Vec<Event>,
}

/// How many records of the past are read in one go.
const CATCH_UP_RECORDS: usize = 1000;

/// Where a watcher stands.
struct Watch {
    hub: Arc<Hub>,
    history: Arc<dyn History>,
    start: Bytes,
    end: Bytes,
    /// The next revision to tell.
    next: Revision,
    /// Batches of the past that were read but not told yet.
    past: VecDeque<WatchBatch>,
    live: Option<Live>,
}

/// The receiving end of a registered watcher.
pub(crate) struct Live {
    pub batches: mpsc::Receiver<WatchBatch>,
    /// Set before the sender is dropped because the channel was full.
    pub lagged: Arc<AtomicBool>,
}

/// The stream of [`crate::Engine::watch`].
pub(crate) fn watch(
    hub: Arc<Hub>,
    history: Arc<dyn History>,
    start: Bytes,
    end: Bytes,
    from: Revision,
) -> BoxStream<'static, Result<WatchBatch, Error>> {
    let mut watch =
        Watch { hub, history, start, end, next: from.max(1), past: VecDeque::new(), live: None };
    // Registered at once when there is no past, so that nothing of the future has to be looked up.
    watch.register();
    stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.advance().await {
            Ok(batch) => Some((Ok(batch), Some(watch))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Watch {
    fn register(&mut self) {
        self.live = self.hub.register(self.start.clone(), self.end.clone(), self.next);
    }

    async fn advance(&mut self) -> Result<WatchBatch, Error> {
        loop {
            if let Some(batch) = self.past.pop_front() {
                return Ok(batch);
            }
            if let Some(live) = &mut self.live {
                return match live.batches.recv().await {
                    Some(batch) => Ok(batch),
                    None if live.lagged.load(Ordering::Acquire) => Err(Error::WatcherLagged),
                    None => Err(Error::Closed),
                };
            }
            self.catch_up().await?;
            if self.past.is_empty() {
                self.register();
            }
        }
    }

    /// Reads the next stretch of the past, up to what is published.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let until = self.hub.snapshot()?.revision;
        let (next, start, end) = (self.next, self.start.clone(), self.end.clone());
        let history = Arc::clone(&self.history);
        let read = move || read_past(history.as_ref(), &start, &end, next, until);
        let (past, next) = tokio::task::spawn_blocking(read).await.map_err(|_| Error::Closed)??;
        self.past = past;
        self.next = next;
        Ok(())
    }
}

/// The batches of `[from, until]`, at most some, and the revision after the last one read.
fn read_past(
    history: &dyn History,
    start: &[u8],
    end: &[u8],
    from: Revision,
    until: Revision,
) -> Result<(VecDeque<WatchBatch>, Revision), Error> {
    let view = history.view()?;
    if from <= view.compacted() && view.compacted() > 0 {
        return Err(Error::Compacted { requested: from, compacted: view.compacted() });
    }
    let mut records: Vec<Record> = Vec::new();
    let mut next = until + 1;
    view.scan(from, until, &mut |record| {
        let revision = record.position.revision;
        if records.len() >= CATCH_UP_RECORDS
            && records.last().is_some_and(|last| last.position.revision != revision)
        {
            next = revision;
            return false;
        }
        if within(&record.kv.key, start, end) {
            records.push(record);
        }
        true
    })?;
    let mut batches: VecDeque<WatchBatch> = VecDeque::new();
    for record in records {
        let previous = match record.previous {
            Some(position) => view.get(position)?.map(|before| before.kv),
            None => None,
        };
        let revision = record.position.revision;
        let event = Event { kind: record.kind, kv: record.kv, previous };
        match batches.back_mut() {
            Some(batch) if batch.revision == revision => batch.events.push(event),
            _ => batches.push_back(WatchBatch { revision, events: vec![event] }),
        }
    }
    Ok((batches, next))
}
