//! All watch caches, and the one store watch that keeps them current.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use apimachinery::trace;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use store::{Event, EventKind, Range, Store, WatchBatch};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Objects};
use crate::encryption;
use crate::fields::Read;
use crate::object::Object;
use crate::resource::ResourceRef;

/// Everything the API stores lies below this key.
pub const ROOT: &[u8] = b"/registry/";
const LOAD_PAGE: usize = 2000;
/// Store batches taken in before watchers are woken.
const INGEST_BATCHES: usize = 512;

type Decoded = (Arc<str>, Option<Arc<Object>>, u64);

/// An object on its way through the store to the caches.
pub struct Writing<'a> {
    caches: &'a Caches,
    place: usize,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Nothing was written, or it came back in other bytes.
        self.caches.lock_written().remove(&self.place);
    }
}

/// The caches by resource.
pub struct Caches {
    store: Store,
    by_prefix: RwLock<HashMap<String, Arc<Cache>>>,
    applied: watch::Sender<u64>,
    /// Cancelled when nobody follows the store any more.
    ended: CancellationToken,
    /// What is known of objects that are being written, by the place of their bytes.
    written: Mutex<HashMap<usize, (Bytes, Read)>>,
    /// Held while changes are taken in, so that a cache can be exchanged between two of them.
    ingesting: Mutex<()>,
}

impl Caches {
    /// Caches of `resources` without content.
    pub fn empty(store: Store, resources: &[ResourceRef]) -> Self {
        let caches = Self {
            store,
            by_prefix: RwLock::default(),
            applied: watch::Sender::new(0),
            ended: CancellationToken::new(),
            written: Mutex::default(),
            ingesting: Mutex::default(),
        };
        for resource in resources {
            let cache = Arc::new(Cache::new(resource.clone(), 0));
            caches.write().insert(resource.key_prefix.clone(), cache);
        }
        caches
    }

    /// Loads `resources` from the store.
    pub async fn load(store: Store, resources: &[ResourceRef]) -> Result<Self, store::Error> {
        let caches = Self::empty(store, resources);
        // A server without the right keys must not start and find a cluster that has lost its secrets.
        caches.reload(true).await?;
        Ok(caches)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, Arc<Cache>>> {
        self.by_prefix.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many objects there are of each resource, in the order of their names.
    pub fn counts(&self) -> Vec<(ResourceRef, usize)> {
        let caches = self.by_prefix.read().unwrap_or_else(PoisonError::into_inner);
        let mut counts: Vec<(ResourceRef, usize)> = caches
            .values()
            .map(|cache| (cache.resource.clone(), cache.snapshot().objects.size()))
            .collect();
        drop(caches);
        counts.sort_by(|(a, _), (b, _)| (&a.group, &a.plural).cmp(&(&b.group, &b.plural)));
        counts
    }

    /// The cache of a resource.
    pub fn get(&self, key_prefix: &str) -> Option<Arc<Cache>> {
        self.by_prefix.read().unwrap_or_else(PoisonError::into_inner).get(key_prefix).cloned()
    }

    /// Begins to cache a resource, or caches it anew because its definition changed. Watches of the
    /// old cache end.
    pub async fn replace(&self, resource: ResourceRef) -> Result<(), store::Error> {
        let prefix = resource.key_prefix.clone();
        loop {
            // Until the new one is complete, the old one (or an empty one) collects what happens.
            let old = self
                .write()
                .entry(prefix.clone())
                .or_insert_with(|| Arc::new(Cache::new(resource.clone(), self.applied())))
                .clone();
            let revision = self.store.revision().await?;
            let mut range = Range::prefix(prefix.as_bytes());
            range.at = Some(revision);
            let cache = Cache::new(resource.clone(), revision);
            let mut objects = Objects::new_sync();
            for kv in self.store.range(range).await?.kvs {
                let key = String::from_utf8_lossy(&kv.key[prefix.len()..]).into_owned();
                match cache.decode(kv.value, kv.mod_revision) {
                    Ok(object) => objects.insert_mut(Arc::from(key), Arc::new(object)),
                    Err(error) => {
                        tracing::error!(key, %error, "a stored object is not JSON; it is not served");
                    }
                }
            }
            cache.reset(objects, revision);
            let _ingesting = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
            let Ok(missed) = old.since(revision) else { continue };
            cache.apply(missed.into_iter().filter_map(|change| {
                let object = change.current.as_ref().or(change.previous.as_ref())?;
                let key: Arc<str> = Arc::from(crate::registry::cache_key(
                    &resource,
                    &object.namespace,
                    &object.name,
                ));
                let current = match &change.current {
                    Some(object) => {
                        Some(Arc::new(cache.decode(object.raw.clone(), change.revision).ok()?))
                    }
                    None => None,
                };
                Some((key, current, change.revision))
            }));
            self.write().insert(prefix, Arc::new(cache));
            old.close();
            return Ok(());
        }
    }

    /// Forgets a resource that is no longer served.
    pub fn remove(&self, key_prefix: &str) {
        if let Some(cache) = self.write().remove(key_prefix) {
            cache.close();
        }
    }

    /// The revision up to which all caches are complete.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    /// A receiver of [`Caches::applied`].
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Waits until the caches are complete up to `revision`, or will never be, as the server stops.
    pub async fn reached(&self, revision: u64) {
        if self.applied() >= revision {
            return;
        }
        // The sender lives in self, so this cannot fail.
        let mut applied = self.applied.subscribe();
        let reached = applied.wait_for(|applied| *applied >= revision);
        let _ = self.ended.run_until_cancelled(reached).await;
    }

    /// The cache a key belongs to, and the key below the resource's prefix.
    fn route<'k>(&self, key: &'k [u8]) -> Option<(Arc<Cache>, &'k str)> {
        let key = std::str::from_utf8(key).ok()?;
        let below = key.strip_prefix("/registry/")?;
        let first = below.find('/')? + "/registry/".len() + 1;
        let by_prefix = self.by_prefix.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = by_prefix.get(&key[..first]) {
            return Some((cache.clone(), &key[first..]));
        }
        let second = key[first..].find('/')? + first + 1;
        by_prefix.get(&key[..second]).map(|cache| (cache.clone(), &key[second..]))
    }

    /// Reads everything anew from the store; fails where a value cannot be decrypted, if that is asked for.
    async fn reload(&self, strict: bool) -> Result<u64, store::Error> {
        let mut loaded: HashMap<String, Objects> = HashMap::new();
        let mut range = Range { limit: LOAD_PAGE, ..Range::prefix(ROOT) };
        let revision = self.store.revision().await?;
        range.at = Some(revision);
        loop {
            let page = self.store.range(range.clone()).await?;
            if let Some(last) = page.kvs.last() {
                let mut start = last.key.to_vec();
                start.push(0);
                range.start = start.into();
            }
            for kv in page.kvs {
                let Some((cache, key)) = self.route(&kv.key) else { continue };
                if strict && encryption::is_sealed(&kv.value) {
                    return Err(encryption::unreadable(&kv.key));
                }
                match cache.decode(kv.value, kv.mod_revision) {
                    Ok(object) => loaded
                        .entry(cache.resource.key_prefix.clone())
                        .or_insert_with(Objects::new_sync)
                        .insert_mut(Arc::from(key), Arc::new(object)),
                    Err(error) => {
                        tracing::error!(key, %error, "a stored object is not JSON; it is not served");
                    }
                }
            }
            if !page.more {
                break;
            }
        }
        let caches: Vec<Arc<Cache>> = self
            .by_prefix
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect();
        for cache in caches {
            let objects =
                loaded.remove(&cache.resource.key_prefix).unwrap_or_else(Objects::new_sync);
            cache.reset(objects, revision);
        }
        self.applied.send_replace(revision);
        Ok(revision)
    }

    /// Follows the store until `shutdown` or until the store is closed.
    pub async fn follow(self: Arc<Self>, shutdown: CancellationToken) {
        let _ended = self.ended.clone().drop_guard();
        let end = Range::prefix(ROOT).end;
        while !shutdown.is_cancelled() {
            let from = self.applied() + 1;
            let mut stream = self.store.watch(Bytes::from_static(ROOT), end.clone(), from);
            let mut ready = Vec::new();
            let error = loop {
                let mut next = tokio::select! {
                    () = shutdown.cancelled() => return,
                    next = stream.next() => next,
                };
                // What has come meanwhile is taken in with it.
                let ended = loop {
                    match next {
                        Some(Ok(batch)) => ready.push(batch),
                        Some(Err(error)) => break Some(Some(error)),
                        None => break Some(None),
                    }
                    if ready.len() == INGEST_BATCHES {
                        break None;
                    }
                    let Some(more) = stream.next().now_or_never() else { break None };
                    next = more;
                };
                self.ingest(ready.drain(..));
                if let Some(error) = ended {
                    break error;
                }
            };
            match error {
                None | Some(store::Error::Closed) => return,
                Some(store::Error::WatcherLagged) => {}
                Some(error) => {
                    tracing::warn!(%error, "the watch of the store broke off; reading everything anew");
                    if let Err(error) = self.reload(false).await {
                        tracing::error!(%error, "cannot read the store");
                        tokio::select! {
                            () = shutdown.cancelled() => return,
                            () = tokio::time::sleep(Duration::from_secs(1)) => {}
                        }
                    }
                }
            }
        }
    }

    /// Spares the caches reading an object anew that is about to be written as `raw`, while what is returned is kept.
    pub fn writing(&self, raw: &Bytes, read: Read) -> Writing<'_> {
        let place = raw.as_ptr() as usize;
        self.lock_written().insert(place, (raw.clone(), read));
        Writing { caches: self, place }
    }

    fn lock_written(&self) -> std::sync::MutexGuard<'_, HashMap<usize, (Bytes, Read)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self, raw: &Bytes) -> Option<Read> {
        let (known, read) = self.lock_written().remove(&(raw.as_ptr() as usize))?;
        (known.len() == raw.len()).then_some(read)
    }

    fn ingest(&self, batches: std::vec::Drain<'_, WatchBatch>) {
        let Some(revision) = batches.as_slice().last().map(|batch| batch.revision) else { return };
        let _ingesting = self.ingesting.lock().unwrap_or_else(PoisonError::into_inner);
        let began = SystemTime::now();
        let mut created = Vec::new();
        let mut changes: Vec<(Arc<Cache>, Vec<Decoded>)> = Vec::new();
        for event in batches.flat_map(|batch| batch.events) {
            let new = event.kv.create_revision == event.kv.mod_revision;
            let Some((cache, decoded)) = self.decode(event) else { continue };
            if new && cache.resource.plural == "pods" {
                created.extend(decoded.1.clone());
            }
            match changes.iter_mut().find(|(c, _)| Arc::ptr_eq(c, &cache)) {
                Some((_, list)) => list.push(decoded),
                None => changes.push((cache, vec![decoded])),
            }
        }
        for (cache, list) in changes {
            cache.apply(list);
        }
        self.applied.send_if_modified(|applied| {
            let newer = revision > *applied;
            *applied = (*applied).max(revision);
            newer
        });
        for pod in created {
            trace::step("watch", &pod.uid, began, "offered to every watcher");
        }
    }

    fn decode(&self, event: Event) -> Option<(Arc<Cache>, Decoded)> {
        let (cache, key) = self.route(&event.kv.key)?;
        let revision = event.kv.mod_revision;
        let key: Arc<str> = Arc::from(key);
        if event.kind == EventKind::Delete {
            return Some((cache, (key, None, revision)));
        }
        let raw = event.kv.value;
        if let Some(read) = self.written(&raw)
            && let Some(object) = Object::from_parts(raw.clone(), revision, read)
        {
            return Some((cache, (key, Some(Arc::new(object)), revision)));
        }
        match cache.decode(raw, revision) {
            Ok(object) => Some((cache, (key, Some(Arc::new(object)), revision))),
            Err(error) => {
                tracing::error!(%key, %error, "a stored object is not JSON; it is not served");
                None
            }
        }
    }
}
