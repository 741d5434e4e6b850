//! One watch per kind and process, shared by every component in it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::list_watch::{Event, Selection, list_watch};

/// Changes a subscriber may lag behind before it is told to read the store again.
const BACKLOG: usize = 4096;

/// What happened to the objects of a kind.
#[derive(Debug)]
pub enum Change<K> {
    /// An object was created or changed.
    Applied(Arc<K>),
    /// An object is gone; this is its last known state.
    Deleted(Arc<K>),
    /// The store is complete, at first or after changes were missed: reconcile everything in it.
    Synced,
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::Applied(object) => Self::Applied(object.clone()),
            Self::Deleted(object) => Self::Deleted(object.clone()),
            Self::Synced => Self::Synced,
        }
    }
}

impl<K: Resource> Change<K> {
    /// The object that changed; `None` stands for all of them.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Applied(object) | Self::Deleted(object) => Some(key(&**object)),
            Self::Synced => None,
        }
    }
}

/// Namespace (`""` for cluster-scoped kinds) and name.
pub type Key = (String, String);

type Objects<K> = HashMap<Key, Arc<K>>;

/// The objects of one kind as last seen. Clones share them.
pub struct Store<K>(Arc<RwLock<Objects<K>>>);

impl<K> Clone for Store<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Store<K> {
    fn read<T>(&self, look: impl FnOnce(&Objects<K>) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Objects<K>) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// All objects, in no order.
    pub fn state(&self) -> Vec<Arc<K>> {
        self.read(|objects| objects.values().cloned().collect())
    }

    /// How many objects there are.
    pub fn count(&self) -> usize {
        self.read(Objects::len)
    }

    /// The objects for which `holds` says yes, in no order.
    pub fn state_filter(&self, holds: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.read(|objects| objects.values().filter(|object| holds(object)).cloned().collect())
    }

    /// An object for which `holds` says yes.
    pub fn find(&self, holds: impl Fn(&K) -> bool) -> Option<Arc<K>> {
        self.read(|objects| objects.values().find(|object| holds(object)).cloned())
    }
}

/// The key of an object.
pub fn key<K: Resource>(object: &K) -> Key {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The objects of one kind, kept current.
pub struct Informer<K> {
    store: Store<K>,
    changes: broadcast::Sender<Change<K>>,
    synced: watch::Receiver<bool>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            changes: self.changes.clone(),
            synced: self.synced.clone(),
        }
    }
}

/// A kind that can be watched.
pub trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Informer<K>
where
    K: Watched,
{
    /// Watches those objects of `api` that are of `selection`, until the task is aborted.
    pub fn spawn(api: Api<K>, selection: Selection) -> (Self, JoinHandle<()>) {
        let store = Store::default();
        let (changes, _) = broadcast::channel(BACKLOG);
        let (synced_sender, synced) = watch::channel(false);
        let informer = Self { store: store.clone(), changes: changes.clone(), synced };
        let task = tokio::spawn(follow(api, selection, store, changes, synced_sender));
        (informer, task)
    }

    /// The objects as last seen.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Object `name` in `namespace` (`""` for cluster-scoped kinds) as last seen.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.store.read(|objects| objects.get(&key).cloned())
    }

    /// Waits until the first complete list is in the store.
    pub async fn ready(&self) {
        let mut synced = self.synced.clone();
        // An error means the watch ended, at shutdown; whoever waits is ending too.
        let _ = synced.wait_for(|done| *done).await;
    }

    /// Changes from now on, after a first `Synced` once the store is complete.
    pub fn subscribe(&self) -> impl Stream<Item = Change<K>> + Send + use<K> {
        let receiver = self.changes.subscribe();
        let informer = self.clone();
        let first = futures::stream::once(async move {
            informer.ready().await;
            Change::Synced
        });
        first.chain(futures::stream::unfold(receiver, |mut receiver| async move {
            match receiver.recv().await {
                Ok(change) => Some((change, receiver)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Change::Synced, receiver)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        }))
    }
}

async fn follow<K>(
    api: Api<K>,
    selection: Selection,
    store: Store<K>,
    changes: broadcast::Sender<Change<K>>,
    synced: watch::Sender<bool>,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = std::pin::pin!(list_watch(api, selection));
    let mut listed = Objects::new();
    while let Some(event) = events.next().await {
        let change = match event {
            Event::Init => {
                listed.clear();
                continue;
            }
            Event::InitApply(object) => {
                listed.insert(key(&object), Arc::new(object));
                continue;
            }
            Event::InitDone => {
                store.write(|objects| *objects = std::mem::take(&mut listed));
                synced.send_replace(true);
                Change::Synced
            }
            Event::Apply(object) => {
                let object = Arc::new(object);
                store.write(|objects| objects.insert(key(object.as_ref()), object.clone()));
                Change::Applied(object)
            }
            Event::Delete(object) => {
                store.write(|objects| objects.remove(&key(&object)));
                Change::Deleted(Arc::new(object))
            }
        };
        // No subscriber is no error: some only read the store.
        let _ = changes.send(change);
    }
}

/// Most of what watches cost is to read pods. Asked for here, that is compiled as this crate is, for speed,
/// whichever component is the first to ask.
fn spawn_pods(client: &Client) -> (Informer<Pod>, JoinHandle<()>) {
    Informer::spawn(Api::all(client.clone()), Selection::default().without_managers())
}

fn spawn_for<K>(client: &Client) -> (Informer<K>, JoinHandle<()>)
where
    K: Watched,
{
    if TypeId::of::<K>() == TypeId::of::<Pod>() {
        let (pods, task) = spawn_pods(client);
        if let Some(informer) = (&pods as &dyn Any).downcast_ref::<Informer<K>>() {
            return (informer.clone(), task);
        }
        task.abort();
    }
    Informer::spawn(Api::all(client.clone()), Selection::default())
}

struct Shared {
    client: Client,
    kinds: Mutex<HashMap<TypeId, Box<dyn Any + Send>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}

/// The informers of this process. Clones share them; the watches end with the last clone.
#[derive(Clone)]
pub struct Informers(Arc<Shared>);

impl Informers {
    /// Informers that read as `client`.
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Shared { client, kinds: Mutex::default(), tasks: Mutex::default() }))
    }

    /// The informer of kind `K` over all namespaces, started on first use.
    pub fn get<K>(&self) -> Informer<K>
    where
        K: Watched,
    {
        let mut kinds = self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kinds.get(&TypeId::of::<K>()).and_then(|any| any.downcast_ref::<Informer<K>>());
        if let Some(informer) = known {
            return informer.clone();
        }
        let (informer, task) = spawn_for(&self.0.client);
        kinds.insert(TypeId::of::<K>(), Box::new(informer.clone()));
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        informer
    }
}
