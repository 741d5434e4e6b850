//! One watch per kind and process, shared by every component in it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

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

/// The objects of one kind, kept current.
pub struct Informer<K: Resource<DynamicType = ()> + Clone + 'static> {
    store: Store<K>,
    changes: broadcast::Sender<Change<K>>,
    synced: watch::Receiver<bool>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            changes: self.changes.clone(),
            synced: self.synced.clone(),
        }
    }
}

impl<K> Informer<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// Watches the objects that `api` and `config` select. The task ends when it is aborted or every
    /// informer and subscriber is gone.
    pub fn spawn(api: Api<K>, config: watcher::Config) -> (Self, JoinHandle<()>) {
        let (store, writer) = reflector::store();
        let (changes, _) = broadcast::channel(BACKLOG);
        let (synced_sender, synced) = watch::channel(false);
        let informer = Self { store: store.clone(), changes: changes.clone(), synced };
        let task = tokio::spawn(follow(api, config, store, writer, changes, synced_sender));
        (informer, task)
    }

    /// The objects as last seen.
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    /// Object `name` in `namespace` (`""` for cluster-scoped kinds) as last seen.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let mut key = ObjectRef::new(name);
        if !namespace.is_empty() {
            key = key.within(namespace);
        }
        self.store.get(&key)
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
    config: watcher::Config,
    store: Store<K>,
    mut writer: reflector::store::Writer<K>,
    changes: broadcast::Sender<Change<K>>,
    synced: watch::Sender<bool>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(kind = %K::kind(&()), %error, "watch interrupted, trying again");
                continue;
            }
        };
        writer.apply_watcher_event(&event);
        let change = match event {
            watcher::Event::Apply(object) => {
                let key = ObjectRef::from_obj(&object);
                Change::Applied(store.get(&key).unwrap_or_else(|| Arc::new(object)))
            }
            watcher::Event::Delete(object) => Change::Deleted(Arc::new(object)),
            watcher::Event::InitDone => {
                synced.send_replace(true);
                Change::Synced
            }
            watcher::Event::Init | watcher::Event::InitApply(_) => continue,
        };
        // No subscriber is no error: some only read the store.
        let _ = changes.send(change);
    }
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
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Hash + Eq,
    {
        let mut kinds = self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kinds.get(&TypeId::of::<K>()).and_then(|any| any.downcast_ref::<Informer<K>>());
        if let Some(informer) = known {
            return informer.clone();
        }
        let (informer, task) =
            Informer::spawn(Api::all(self.0.client.clone()), watcher::Config::default());
        kinds.insert(TypeId::of::<K>(), Box::new(informer.clone()));
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
        informer
    }
}
