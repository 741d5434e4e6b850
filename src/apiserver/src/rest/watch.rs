//! `watch`: events from the cache's history, pulled by each watcher at its own pace.
//!
//! Source: "Efficient detection of changes" and "Streaming lists" of the API concepts page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use apimachinery::protobuf::watch_frame;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::Call;
use crate::body::{Body, BoxError, Response};
use crate::cache::{Cache, Change, Transition, frame};
use crate::conversion;
use crate::fields;
use crate::metrics::Guard;
use crate::negotiate::{Accepted, Format, Shape};
use crate::object::Object;
use crate::options::{ListOptions, Query};
use crate::printers;
use crate::protobuf;
use crate::registry::Registry;
use crate::resource::Resource;
use crate::respond;
use crate::selection::Selection;
use crate::server::Server;
use crate::websocket;

/// A bookmark comes this often (`defaultBookmarkFrequency`), and shortly before the end.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);
/// `--min-request-timeout`: the end is drawn between this and twice this.
const MIN_TIMEOUT: Duration = Duration::from_mins(30);
/// Nobody waits longer; the clock could not count much longer times either.
const LONGEST: Duration = Duration::from_hours(24 * 365);
const INITIAL_END: &str = "k8s.io/initial-events-end";
/// Events that are ready together are sent together, up to this size.
const COALESCE_BYTES: usize = 32 << 10;
/// Where so many watch the same resource, what a change costs is telling all of them.
const CROWD: usize = 32;
/// In a crowd a watcher is told of all that changed meanwhile after a pause of so much for each of the crowd, so that
/// telling them leaves time for the changes; what comes alone is told at once.
const CROWD_PAUSE: Duration = Duration::from_micros(100);
const CROWD_PAUSE_MAX: Duration = Duration::from_millis(20);

/// Begins a watch.
pub async fn serve(call: &mut Call) -> Result<Response, Status> {
    let options = ListOptions::parse(&call.query, true)?;
    if call.accepted.format == Format::Yaml {
        return Err(crate::negotiate::no_such_stream());
    }
    let registry = &call.server.registry;
    let cache = registry.cache(&call.resource).ok_or_else(super::not_found_path)?;
    let mut field_selector = options.field_selector.clone();
    if !call.ctx.name.is_empty() {
        field_selector = format!("metadata.name={}", call.ctx.name);
    }
    let selection = Selection::parse(
        &call.ctx.namespace,
        &options.label_selector,
        &field_selector,
        &fields::served(&call.resource, &cache.selectable),
        call.resource.namespaced,
    )?;
    let start = Start::choose(call, &cache, &options).await?;
    let deadline = Instant::now() + timeout(&options);
    let watcher = Watcher::new(call, cache, selection, &options, start, deadline);
    let body = stream::unfold(watcher, |mut watcher| async move {
        watcher.next().await.map(|bytes| (Ok::<Bytes, BoxError>(bytes), watcher))
    });
    if websocket::is_asked(&call.parts.headers) {
        let protobuf = call.accepted.format == Format::Protobuf;
        let stopping = call.server.stopping.clone();
        return websocket::watch(&mut call.parts, protobuf, body, stopping);
    }
    let content_type = if call.accepted.format == Format::Protobuf {
        "application/vnd.kubernetes.protobuf;stream=watch"
    } else {
        "application/json"
    };
    Ok(respond::answer(StatusCode::OK, content_type, Body::stream(body)))
}

fn timeout(options: &ListOptions) -> Duration {
    match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(LONGEST),
        _ => {
            let part = u64::from(uuid::Uuid::new_v4().as_fields().0) % 1000;
            MIN_TIMEOUT + MIN_TIMEOUT * u32::try_from(part).unwrap_or(0) / 1000
        }
    }
}

/// Where a watch begins.
struct Start {
    /// Objects that are told as added first.
    initial: Vec<Arc<Object>>,
    /// Events after this revision follow.
    revision: u64,
    /// A bookmark marks the end of the initial events.
    announce: bool,
}

impl Start {
    async fn choose(
        call: &Call,
        cache: &Arc<Cache>,
        options: &ListOptions,
    ) -> Result<Self, Status> {
        let registry = &call.server.registry;
        let initial = match (options.initial_events, options.resource_version) {
            (Some(wanted), _) => wanted,
            (None, None | Some(0)) => true,
            (None, Some(_)) => false,
        };
        if !initial {
            let revision = match options.resource_version {
                Some(revision) if revision > 0 => revision,
                _ => registry.sync().await?,
            };
            return Ok(Self { initial: Vec::new(), revision, announce: false });
        }
        match options.resource_version {
            None => {
                registry.sync().await?;
            }
            Some(revision) => {
                super::list::wait_for(call, revision).await?;
            }
        }
        let snapshot = registry.snapshot(cache);
        let objects = snapshot.select(&call.ctx.namespace, None);
        Ok(Self {
            initial: objects.into_iter().map(|(_, o)| o.clone()).collect(),
            revision: snapshot.revision,
            announce: options.initial_events == Some(true) && options.bookmarks,
        })
    }
}

/// How a watcher wants its objects.
struct Form {
    resource: Arc<Resource>,
    accepted: Accepted,
    query: Query,
    /// The stored bytes are of another version than the one served.
    is_view: bool,
    /// Custom objects may be stored at another version, and converting them may take a webhook.
    is_foreign: bool,
    /// Only the first table of a stream tells its columns.
    columns_told: bool,
}

impl Form {
    fn event(&mut self, kind: &str, object: Value) -> Bytes {
        if self.accepted.format == Format::Protobuf {
            return watch_frame(kind, &protobuf::value(&object).unwrap_or_default()).into();
        }
        let mut line =
            serde_json::to_vec(&json!({"type": kind, "object": object})).unwrap_or_default();
        line.push(b'\n');
        line.into()
    }

    fn transformed(&mut self, kind: &str, object: &Object) -> Bytes {
        let value = match self.accepted.shape {
            Shape::Metadata | Shape::MetadataList => {
                super::partial_metadata(object, self.accepted.meta_version())
            }
            Shape::Object => {
                let mut value = object.to_value();
                conversion::to_served(&self.resource, &mut value);
                value
            }
            Shape::Table => {
                let mut table =
                    printers::table(&self.resource, &[object], &self.query, self.accepted);
                if std::mem::replace(&mut self.columns_told, true) {
                    table["columnDefinitions"] = json!([]);
                }
                table
            }
        };
        self.event(kind, value)
    }

    /// A stored object in protobuf; nothing if it cannot be written.
    fn framed(resource: &Resource, kind: &str, object: &Object) -> Bytes {
        match protobuf::object(resource, object) {
            Ok(body) => watch_frame(kind, &body).into(),
            Err(status) => {
                tracing::error!(error = %status, name = object.name, "an event has no protobuf form");
                Bytes::new()
            }
        }
    }

    fn initial(&mut self, object: &Object) -> Bytes {
        match self.accepted.shape {
            Shape::Object if !self.is_view && self.accepted.format == Format::Protobuf => {
                Self::framed(&self.resource, "ADDED", object)
            }
            Shape::Object if !self.is_view => frame("ADDED", object),
            _ => self.transformed("ADDED", object),
        }
    }

    fn change(&mut self, change: &Change, transition: Transition) -> Bytes {
        if self.accepted.shape == Shape::Object && !self.is_view {
            if self.accepted.format == Format::Protobuf {
                return change.frame_protobuf(transition, |kind, object| {
                    Self::framed(&self.resource, kind, object)
                });
            }
            return change.frame(transition);
        }
        change
            .object(transition)
            .map_or_else(Bytes::new, |object| self.transformed(transition.name(), &object))
    }

    fn bookmark(&mut self, revision: u64, end_of_initial: bool) -> Bytes {
        let (kind, api_version) = match self.accepted.shape {
            Shape::Object => (self.resource.kind.as_str(), self.resource.api_version()),
            Shape::Metadata | Shape::MetadataList => {
                ("PartialObjectMetadata", self.accepted.meta_version().to_owned())
            }
            Shape::Table => ("Table", self.accepted.meta_version().to_owned()),
        };
        let mut object = json!({
            "kind": kind,
            "apiVersion": api_version,
            "metadata": {"resourceVersion": revision.to_string()},
        });
        if end_of_initial {
            object["metadata"]["annotations"] = json!({INITIAL_END: "true"});
        }
        if self.accepted.shape == Shape::Table {
            object["columnDefinitions"] = json!([]);
            object["rows"] = json!([]);
        }
        self.event("BOOKMARK", object)
    }
}

/// The object as the field selectors see it.
async fn view(
    registry: &Registry,
    resource: &Resource,
    object: Option<Arc<Object>>,
) -> Result<Option<Arc<Object>>, Status> {
    let (Some(object), Some(custom)) = (object, &resource.custom) else { return Ok(None) };
    let seen = custom.select_all(registry, resource, vec![object]).await?;
    Ok(seen.into_iter().next())
}

struct Watcher {
    server: Arc<Server>,
    cache: Arc<Cache>,
    selection: Selection,
    form: Form,
    changed: watch::Receiver<u64>,
    /// Objects still to be told as added; encoded only when there is room for them.
    initial: VecDeque<Arc<Object>>,
    announce: bool,
    ready: VecDeque<Bytes>,
    /// Only at the served version can be told which objects the field selectors choose.
    judged_by_view: bool,
    /// Changes of which that is still to be told: before, after, and at what revision.
    unjudged: VecDeque<(Option<Arc<Object>>, Option<Arc<Object>>, u64)>,
    /// What is to be converted before it is ready.
    foreign: VecDeque<(&'static str, Arc<Object>)>,
    /// Everything up to here was told or did not concern this watcher.
    seen: u64,
    /// When it was last told of changes.
    told: Instant,
    bookmarks: bool,
    next_bookmark: Instant,
    end: std::pin::Pin<Box<Sleep>>,
    deadline: Instant,
    ended: bool,
    _counted: Guard,
}

impl Watcher {
    fn new(
        call: &Call,
        cache: Arc<Cache>,
        selection: Selection,
        options: &ListOptions,
        start: Start,
        deadline: Instant,
    ) -> Self {
        let form = Form {
            is_view: conversion::is_view(&call.resource),
            is_foreign: call.resource.custom.is_some(),
            resource: call.resource.clone(),
            accepted: call.accepted,
            query: call.query.clone(),
            columns_told: false,
        };
        let judged_by_view = super::viewed(call, &selection).is_some();
        let passes = |object: &Arc<Object>| judged_by_view || selection.matches(object);
        let initial: VecDeque<Arc<Object>> = start.initial.into_iter().filter(passes).collect();
        let ready = VecDeque::new();
        Self {
            server: call.server.clone(),
            changed: cache.subscribe(),
            cache,
            selection,
            form,
            initial,
            announce: start.announce,
            ready,
            judged_by_view,
            unjudged: VecDeque::new(),
            foreign: VecDeque::new(),
            seen: start.revision,
            told: Instant::now(),
            bookmarks: options.bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            end: Box::pin(tokio::time::sleep_until(deadline)),
            deadline,
            ended: false,
            _counted: call.server.metrics.lasting(&crate::server::labels_of(&call.ctx)),
        }
    }

    /// The next bytes of the stream; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.ready.is_empty() {
                return Some(self.take_ready());
            }
            let told = self.tell_initial();
            self.convert().await;
            if told {
                continue;
            }
            if self.ended {
                return None;
            }
            // Marked as seen before reading, so that nothing that comes meanwhile is missed.
            self.changed.borrow_and_update();
            self.collect();
            self.convert().await;
            if !self.ready.is_empty() {
                self.told = Instant::now();
                continue;
            }
            let bookmark = self.bookmark_at();
            tokio::select! {
                changed = self.changed.changed() => {
                    if changed.is_err() {
                        return None;
                    }
                    let crowd = self.cache.watchers();
                    if crowd > CROWD {
                        let pause = CROWD_PAUSE.saturating_mul(u32::try_from(crowd).unwrap_or(u32::MAX));
                        tokio::time::sleep_until(self.told + pause.min(CROWD_PAUSE_MAX)).await;
                    }
                }
                () = tokio::time::sleep_until(bookmark), if self.bookmarks => {
                    self.push_bookmark().await;
                }
                () = &mut self.end => self.ended = true,
                () = self.server.stopping.cancelled() => self.ended = true,
                () = self.cache.closed() => self.ended = true,
            }
        }
    }

    fn fail(&mut self, status: Status) {
        let status = serde_json::to_value(status).unwrap_or_default();
        let line = self.form.event("ERROR", status);
        self.ready.push_back(line);
        self.unjudged.clear();
        self.foreign.clear();
        self.ended = true;
    }

    /// Tells of changes by what is served before and after them.
    async fn judge(&mut self) -> Result<(), Status> {
        while let Some((before, after, revision)) = self.unjudged.pop_front() {
            let (registry, resource) = (&self.server.registry, &self.form.resource);
            let before = view(registry, resource, before).await?;
            let after = view(registry, resource, after).await?;
            let chosen = |object: Option<Arc<Object>>| object.filter(|o| self.selection.matches(o));
            let (transition, object) = match (chosen(before), chosen(after)) {
                (None, Some(after)) => (Transition::Added, after),
                (Some(_), Some(after)) => (Transition::Modified, after),
                (Some(before), None) => (Transition::Deleted, Arc::new(before.at(revision))),
                (None, None) => continue,
            };
            self.foreign.push_back((transition.name(), object));
        }
        Ok(())
    }

    /// Brings custom objects to the version that is watched.
    async fn convert(&mut self) {
        if let Err(status) = self.judge().await {
            self.fail(status);
            return;
        }
        while let Some((kind, object)) = self.foreign.pop_front() {
            let registry = &self.server.registry;
            match registry.at_version(&self.form.resource, object).await {
                Ok(object) => {
                    let line = match self.form.accepted.shape {
                        Shape::Object => frame(kind, &object),
                        _ => self.form.transformed(kind, &object),
                    };
                    self.ready.push_back(line);
                }
                Err(status) => self.fail(status),
            }
        }
    }

    /// Encodes the next of the initial events; tells whether there were any.
    fn tell_initial(&mut self) -> bool {
        let mut bytes = 0;
        while bytes < COALESCE_BYTES {
            let Some(object) = self.initial.pop_front() else { break };
            if self.judged_by_view {
                bytes += object.raw.len();
                let revision = object.revision;
                self.unjudged.push_back((None, Some(object), revision));
                continue;
            }
            if self.form.is_foreign {
                bytes += object.raw.len();
                self.foreign.push_back(("ADDED", object));
                continue;
            }
            let line = self.form.initial(&object);
            bytes += line.len();
            self.ready.push_back(line);
        }
        if !self.foreign.is_empty() || !self.unjudged.is_empty() {
            return true;
        }
        if self.initial.is_empty() && std::mem::take(&mut self.announce) {
            let line = self.form.bookmark(self.seen, true);
            self.ready.push_back(line);
        }
        !self.ready.is_empty()
    }

    fn take_ready(&mut self) -> Bytes {
        let Some(first) = self.ready.pop_front() else { return Bytes::new() };
        let fits = |next: Option<&Bytes>, sum: usize| {
            next.is_some_and(|b| sum + b.len() <= COALESCE_BYTES)
        };
        if !fits(self.ready.front(), first.len()) {
            return first;
        }
        let mut joined = Vec::with_capacity(COALESCE_BYTES);
        joined.extend_from_slice(&first);
        while fits(self.ready.front(), joined.len()) {
            if let Some(next) = self.ready.pop_front() {
                joined.extend_from_slice(&next);
            }
        }
        joined.into()
    }

    fn collect(&mut self) {
        let changes = match self.cache.since(self.seen) {
            Ok(changes) => changes,
            Err(oldest) => {
                let message = format!("too old resource version: {} ({})", self.seen, oldest.0);
                let status = serde_json::to_value(Status::expired(message)).unwrap_or_default();
                let line = self.form.event("ERROR", status);
                self.ready.push_back(line);
                self.ended = true;
                return;
            }
        };
        for change in changes {
            self.seen = change.revision;
            if self.judged_by_view {
                let (before, after) = (change.previous.clone(), change.current.clone());
                self.unjudged.push_back((before, after, change.revision));
                continue;
            }
            let shown =
                |o: &Option<Arc<Object>>| o.as_ref().is_some_and(|o| self.selection.matches(o));
            let transition = match (shown(&change.previous), shown(&change.current)) {
                (false, true) => Transition::Added,
                (true, true) => Transition::Modified,
                (true, false) => Transition::Deleted,
                (false, false) => continue,
            };
            if self.form.is_foreign {
                self.foreign.extend(change.object(transition).map(|o| (transition.name(), o)));
                continue;
            }
            let line = self.form.change(&change, transition);
            self.ready.push_back(line);
        }
    }

    fn bookmark_at(&self) -> Instant {
        let before_end = self.deadline.checked_sub(BOOKMARK_BEFORE_END).unwrap_or(self.deadline);
        if before_end > Instant::now() {
            self.next_bookmark.min(before_end)
        } else {
            self.next_bookmark
        }
    }

    async fn push_bookmark(&mut self) {
        // What is applied before the history is read has been told after it is read.
        let applied = self.server.registry.caches().applied();
        self.collect();
        self.convert().await;
        if self.ended {
            return;
        }
        self.seen = self.seen.max(applied);
        let line = self.form.bookmark(self.seen, false);
        self.ready.push_back(line);
        self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
    }
}
