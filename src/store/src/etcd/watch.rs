//! Watches: one stream of etcd's over all our keys for each watcher, begun again when it breaks.
//!
//! All keys are watched and what is outside the watcher's range is left out here, so that every change
//! of ours tells how far the watcher has come.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic_prost::ProstCodec;

use super::{Shared, wire};
use crate::key_value::within;
use crate::{Error, Event, EventKind, Revision, WatchBatch};

/// Batches that wait for the watcher; etcd keeps what comes after them.
const QUEUE: usize = 1024;
/// How long a revision that was told to somebody may be missing before a change is made to see it.
const PATIENCE: Duration = Duration::from_millis(250);
const RECONNECT_AFTER: Duration = Duration::from_millis(500);

type Sender = mpsc::Sender<Result<WatchBatch, Error>>;

/// See [`crate::Engine::watch`].
pub(super) fn watch(
    shared: Arc<Shared>,
    start: Bytes,
    end: Bytes,
    from: Revision,
) -> BoxStream<'static, Result<WatchBatch, Error>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let watcher = Watcher { shared, start, end, told: from.saturating_sub(1), sender };
    tokio::spawn(watcher.run());
    let next = |mut receiver: mpsc::Receiver<_>| async move {
        let batch = receiver.recv().await?;
        Some((batch, receiver))
    };
    stream::unfold(receiver, next).boxed()
}

struct Watcher {
    shared: Arc<Shared>,
    start: Bytes,
    end: Bytes,
    /// All up to here has been told.
    told: Revision,
    sender: Sender,
}

/// Why a stream is left.
enum End {
    /// Nobody listens any more.
    Gone,
    /// The stream broke: it is begun again from where it was.
    Broken(String),
    /// The watch is over.
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::Remote { detail, .. } => Self::Broken(detail),
            error => Self::Failed(error),
        }
    }
}

impl Watcher {
    async fn run(mut self) {
        loop {
            let Err(end) = self.follow().await;
            match end {
                End::Gone => return,
                End::Failed(error) => {
                    let _ = self.sender.send(Err(error)).await;
                    return;
                }
                End::Broken(detail) => {
                    let address = &self.shared.address;
                    tracing::warn!(address, detail, "a watch broke off and is begun again");
                    tokio::time::sleep(RECONNECT_AFTER).await;
                }
            }
        }
    }

    async fn send(&self, revision: Revision, events: Vec<Event>) -> Result<(), End> {
        let batch = Ok(WatchBatch { revision, events });
        self.sender.send(batch).await.map_err(|_| End::Gone)
    }

    /// Whether the revision before the first one to tell can still be read: else some are lost.
    async fn check_history(&self, current: Revision) -> Result<(), Error> {
        if self.told == 0 || self.told > current {
            return Ok(());
        }
        let request = wire::RangeRequest {
            key: self.shared.prefix.clone(),
            revision: self.told as i64,
            count_only: true,
            ..wire::RangeRequest::default()
        };
        self.shared.read(request).await.map(drop)
    }

    async fn open(&self) -> Result<tonic::Streaming<wire::WatchResponse>, tonic::Status> {
        let create = wire::WatchCreateRequest {
            key: self.shared.prefix.clone(),
            range_end: self.shared.end.clone(),
            start_revision: (self.told + 1) as i64,
            prev_kv: true,
        };
        let request = wire::WatchRequest { create: Some(create) };
        // The stream of requests stays open: its end would be the watch's.
        let requests = stream::once(async move { request }).chain(stream::pending());
        let mut grpc = self.shared.grpc();
        grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let codec = ProstCodec::<wire::WatchRequest, wire::WatchResponse>::default();
        let response = grpc.streaming(tonic::Request::new(requests), path, codec).await?;
        Ok(response.into_inner())
    }

    /// Tells changes until the stream ends.
    async fn follow(&mut self) -> Result<std::convert::Infallible, End> {
        let current = self.shared.head().await?;
        self.check_history(current).await?;
        let broken = |status: tonic::Status| End::Broken(status.message().to_owned());
        let mut stream = self.open().await.map_err(broken)?;
        let mut closed = self.shared.closed.subscribe();
        let mut wanted = self.shared.wanted.subscribe();
        let mut caught_up = self.told >= current;
        if caught_up {
            self.send(current, Vec::new()).await?;
        }
        let mut missing_since: Option<Instant> = None;
        loop {
            let target = current.max(*wanted.borrow_and_update());
            if target > self.told {
                missing_since.get_or_insert_with(Instant::now);
            } else {
                missing_since = None;
            }
            let patience = async {
                match missing_since {
                    Some(since) => tokio::time::sleep_until(since + PATIENCE).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = ended(&mut closed) => return Err(End::Failed(Error::Closed)),
                () = self.sender.closed() => return Err(End::Gone),
                response = stream.message() => {
                    let response = response.map_err(broken)?;
                    let response = response.ok_or_else(|| End::Broken("the stream ended".into()))?;
                    let before = self.told;
                    let quiet = self.take(response).await?;
                    if self.told > before {
                        missing_since = None;
                    }
                    let now = self.told >= current;
                    if now && (quiet || !caught_up) {
                        self.send(self.told, Vec::new()).await?;
                    }
                    caught_up = caught_up || now;
                }
                () = patience => {
                    self.shared.mark().await.map_err(broken)?;
                    missing_since = Some(Instant::now());
                }
                _ = wanted.changed() => {}
            }
        }
    }

    /// Tells the changes of one response; whether the last of them were not of this range.
    async fn take(&mut self, response: wire::WatchResponse) -> Result<bool, End> {
        if response.compact_revision != 0 {
            let compacted = response.compact_revision as Revision;
            self.shared.compacted.fetch_max(compacted, Ordering::Relaxed);
            let requested = self.told + 1;
            return Err(End::Failed(Error::Compacted { requested, compacted }));
        }
        if response.canceled {
            return Err(End::Broken(response.cancel_reason));
        }
        let mut changes = response.events.into_iter().peekable();
        let mut quiet = false;
        while let Some(first) = changes.peek() {
            let revision = revision_of(first);
            let mut events = Vec::new();
            while let Some(change) = changes.next_if(|change| revision_of(change) == revision) {
                events.extend(self.event(change));
            }
            quiet = events.is_empty();
            if !quiet {
                self.send(revision, events).await?;
            }
            self.told = self.told.max(revision);
        }
        Ok(quiet)
    }

    /// The event of a change, if it lies in the range.
    fn event(&self, change: wire::Change) -> Option<Event> {
        let kv = self.shared.pair(change.kv?);
        if kv.key.is_empty() || !within(&kv.key, &self.start, &self.end) {
            return None;
        }
        let kind = if change.kind == 1 { EventKind::Delete } else { EventKind::Put };
        let previous = change.prev_kv.map(|pair| self.shared.pair(pair));
        Some(Event { kind, kv, previous })
    }
}

/// Until the store is closed.
async fn ended(closed: &mut tokio::sync::watch::Receiver<bool>) {
    // The sender lives as long as the watcher's share of the engine.
    drop(closed.wait_for(|closed| *closed).await);
}

fn revision_of(change: &wire::Change) -> Revision {
    change.kv.as_ref().map_or(0, |kv| kv.mod_revision as Revision)
}
