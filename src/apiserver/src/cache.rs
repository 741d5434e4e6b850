//! The watch cache of one resource: a persistent ordered map of the current objects, and the recent
//! changes that watchers replay.
//!
//! Watchers pull: each holds the revision it has seen and reads the shared history from there, so a
//! change costs one wake-up per watcher and no copy, and a watcher that falls behind the history is
//! told 410 instead of slowing anybody.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use rpds::RedBlackTreeMapSync;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::fields::{self, Selectable};
use crate::object::Object;
use crate::resource::ResourceRef;

/// Changes older than this are forgotten, once there are more than `HISTORY_MIN`
/// (`eventFreshDuration` of upstream's watch cache).
const HISTORY_AGE: Duration = Duration::from_secs(75);
const HISTORY_MIN: usize = 100;
const HISTORY_MAX: usize = 100 * 1024;
const HISTORY_MAX_BYTES: usize = 24 << 20;
/// So many of the last changes are kept as they were written for watchers.
const FRAMED: usize = 1024;

/// Objects by key below the resource's prefix: `namespace/name` or `name`.
pub type Objects = RedBlackTreeMapSync<Arc<str>, Arc<Object>>;

/// What a watcher is told about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It came into view.
    Added,
    /// It changed.
    Modified,
    /// It left the view.
    Deleted,
}

impl Transition {
    /// `ADDED`, `MODIFIED`, `DELETED`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object.
#[derive(Debug)]
pub struct Change {
    /// The revision that made it.
    pub revision: u64,
    /// The object after it; of a deletion, nothing.
    pub current: Option<Arc<Object>>,
    /// The object before it.
    pub previous: Option<Arc<Object>>,
    at: Instant,
    /// As watchers were told it.
    frames: Mutex<Vec<(Transition, Form, Bytes)>>,
}

/// How a watch stream is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Protobuf,
}

impl Change {
    /// The object as a watcher sees it at `transition`: what left the view is shown as it was, at the
    /// revision of its leaving.
    pub fn object(&self, transition: Transition) -> Option<Arc<Object>> {
        match transition {
            Transition::Added | Transition::Modified => self.current.clone(),
            Transition::Deleted => self.previous.as_ref().map(|p| Arc::new(p.at(self.revision))),
        }
    }

    /// The JSON line of a watch stream, encoded once for all watchers.
    pub fn frame(&self, transition: Transition) -> Bytes {
        self.framed(transition, Form::Json, frame)
    }

    /// The frame of a watch stream in protobuf, made by `encode` once for all watchers.
    pub fn frame_protobuf(
        &self,
        transition: Transition,
        encode: impl FnOnce(&str, &Object) -> Bytes,
    ) -> Bytes {
        self.framed(transition, Form::Protobuf, encode)
    }

    fn framed(
        &self,
        transition: Transition,
        form: Form,
        encode: impl FnOnce(&str, &Object) -> Bytes,
    ) -> Bytes {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let known = frames.iter().find(|(t, f, _)| (*t, *f) == (transition, form));
        if let Some((.., bytes)) = known {
            return bytes.clone();
        }
        let bytes =
            self.object(transition).map_or_else(Bytes::new, |o| encode(transition.name(), &o));
        frames.push((transition, form, bytes.clone()));
        bytes
    }

    /// Gives back the memory of what watchers were told: hardly any has still to hear of it.
    fn forget_frames(&self) {
        *self.frames.lock().unwrap_or_else(PoisonError::into_inner) = Vec::new();
    }

    fn bytes(&self) -> usize {
        self.current.as_ref().or(self.previous.as_ref()).map_or(0, |o| o.raw.len())
    }
}

/// `{"type":"ADDED","object":{…}}` and a newline.
pub fn frame(kind: &str, object: &Object) -> Bytes {
    let mut out = BytesMut::with_capacity(object.written_len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    object.write(&mut out);
    out.put_slice(b"}\n");
    out.freeze()
}

/// A consistent view of a resource.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The objects.
    pub objects: Objects,
    /// The store revision that this is the state of, at least.
    pub revision: u64,
}

impl Snapshot {
    /// The objects of one namespace, or all, after the key `after`.
    pub fn select(&self, namespace: &str, after: Option<&str>) -> Vec<(&str, &Arc<Object>)> {
        let prefix = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        let low = match after {
            Some(after) if after >= prefix.as_str() => Bound::Excluded(after),
            _ => Bound::Included(prefix.as_str()),
        };
        self.objects
            .range::<str, _>((low, Bound::Unbounded))
            .map(|(key, object)| (key.as_ref(), object))
            .take_while(|(key, _)| key.starts_with(&prefix))
            .collect()
    }
}

struct State {
    objects: Objects,
    /// The last change of this resource, or the revision it was loaded at.
    revision: u64,
    history: VecDeque<Arc<Change>>,
    history_bytes: usize,
    /// The history is complete after this revision.
    complete_after: u64,
}

/// Views kept for the next chunks of lists.
const KEPT: usize = 16;
const KEPT_AGE: Duration = Duration::from_mins(5);

/// The watch cache of one resource.
pub struct Cache {
    /// The resource.
    pub resource: ResourceRef,
    /// Its selectable fields.
    pub selectable: Arc<[Selectable]>,
    state: RwLock<State>,
    changed: watch::Sender<u64>,
    kept: Mutex<VecDeque<(Instant, Snapshot)>>,
    closed: CancellationToken,
}

/// The history no longer reaches back to the revision asked for; the oldest that would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld(pub u64);

impl Cache {
    /// An empty cache, loaded at `revision`.
    pub fn new(resource: ResourceRef, revision: u64) -> Self {
        let selectable = match &resource.custom {
            Some(custom) => custom.selectable.clone(),
            None => fields::of(&resource.group, &resource.plural).into(),
        };
        let state = State {
            objects: Objects::new_sync(),
            revision,
            history: VecDeque::new(),
            history_bytes: 0,
            complete_after: revision,
        };
        Self {
            resource,
            selectable,
            state: RwLock::new(state),
            changed: watch::Sender::new(revision),
            kept: Mutex::default(),
            closed: CancellationToken::new(),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decodes stored bytes of this resource.
    pub fn decode(&self, raw: Bytes, revision: u64) -> Result<Object, serde_json::Error> {
        let raw = match &self.resource.custom {
            Some(custom) => custom.refreshed(raw)?,
            None => raw,
        };
        Object::from_stored(raw, revision, &self.selectable)
    }

    /// Replaces the whole content; watchers have to start anew.
    pub fn reset(&self, objects: Objects, revision: u64) {
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.objects = objects;
            state.revision = revision;
            state.history.clear();
            state.history_bytes = 0;
            state.complete_after = revision;
        }
        self.changed.send_replace(revision);
    }

    /// Takes in changes, in revision order: key, new object or `None` for a deletion, revision.
    pub fn apply(&self, changes: impl IntoIterator<Item = (Arc<str>, Option<Arc<Object>>, u64)>) {
        let now = Instant::now();
        let mut last = 0;
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for (key, current, revision) in changes {
                let previous = state.objects.get(&key).cloned();
                match &current {
                    Some(object) => state.objects.insert_mut(key, object.clone()),
                    None => {
                        state.objects.remove_mut(&key);
                    }
                }
                last = revision;
                state.revision = revision;
                if current.is_none() && previous.is_none() {
                    continue;
                }
                let change = Arc::new(Change {
                    revision,
                    current,
                    previous,
                    at: now,
                    frames: Mutex::default(),
                });
                state.history_bytes += change.bytes();
                state.history.push_back(change);
                if let Some(at) = state.history.len().checked_sub(FRAMED) {
                    state.history[at].forget_frames();
                }
            }
            state.trim(now);
        }
        if last > 0 {
            self.changed.send_replace(last);
        }
    }

    /// One object.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    /// The last change of this resource, or the revision it was loaded at.
    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// The current objects; the caller raises `revision` to what it knows to be applied.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.read();
        Snapshot { objects: state.objects.clone(), revision: state.revision }
    }

    /// Keeps a view, so that a list can go on where it stopped.
    pub fn keep(&self, snapshot: &Snapshot) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(at, _)| at.elapsed() < KEPT_AGE);
        if kept.iter().any(|(_, s)| s.revision == snapshot.revision) {
            return;
        }
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back((Instant::now(), snapshot.clone()));
    }

    /// A kept view.
    pub fn kept(&self, revision: u64) -> Option<Snapshot> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(_, s)| s.revision == revision).map(|(_, s)| s.clone())
    }

    /// A receiver that is marked changed by each change of this resource.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many wait for changes of this resource.
    pub fn watchers(&self) -> usize {
        self.changed.receiver_count()
    }

    /// Ends all watches: the resource is no longer served as it was.
    pub fn close(&self) {
        self.closed.cancel();
    }

    /// Waits until [`Cache::close`].
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// The changes after `revision`.
    pub fn since(&self, revision: u64) -> Result<Vec<Arc<Change>>, TooOld> {
        let state = self.read();
        if revision < state.complete_after {
            return Err(TooOld(state.complete_after));
        }
        let from = state.history.partition_point(|c| c.revision <= revision);
        Ok(state.history.range(from..).cloned().collect())
    }
}

impl State {
    fn trim(&mut self, now: Instant) {
        while let Some(oldest) = self.history.front() {
            let old = self.history.len() > HISTORY_MIN
                && now.saturating_duration_since(oldest.at) > HISTORY_AGE;
            let full = self.history.len() > HISTORY_MAX || self.history_bytes > HISTORY_MAX_BYTES;
            if !old && !full {
                return;
            }
            if let Some(gone) = self.history.pop_front() {
                self.complete_after = gone.revision;
                self.history_bytes = self.history_bytes.saturating_sub(gone.bytes());
            }
        }
    }
}
