//! Config maps and secrets that pods of this node refer to: one watch per object while somebody
//! uses it, as the node authoriser allows a kubelet no more than that.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Event, Selection, list_watch};
use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::task::AbortOnDropHandle;

/// Called with a pod's uid when something it uses has changed.
pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

type Key = (String, String);

struct Entry<K> {
    value: Option<Arc<K>>,
    users: HashSet<String>,
    _watch: AbortOnDropHandle<()>,
}

/// The objects of one kind in use.
pub struct Watched<K> {
    client: Client,
    wake: Wake,
    entries: Arc<Mutex<HashMap<Key, Entry<K>>>>,
}

/// Config maps and secrets in use.
pub struct Objects {
    /// Config maps.
    pub config_maps: Watched<ConfigMap>,
    /// Secrets.
    pub secrets: Watched<Secret>,
}

impl Objects {
    /// No object is watched yet; `wake` hears of changes.
    pub fn new(client: &Client, wake: Wake) -> Self {
        Self {
            config_maps: Watched::new(client.clone(), wake.clone()),
            secrets: Watched::new(client.clone(), wake),
        }
    }

    /// The pod with this uid uses nothing any more.
    pub fn release(&self, uid: &str) {
        self.config_maps.release(uid);
        self.secrets.release(uid);
    }
}

impl<K> Watched<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static,
{
    fn new(client: Client, wake: Wake) -> Self {
        Self { client, wake, entries: Arc::default() }
    }

    /// The object, or `None` if there is none; from now on changes to it wake the pod `uid`.
    pub async fn get(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
    ) -> Result<Option<Arc<K>>, kube::Error> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(entry) = lock(&self.entries).get_mut(&key) {
            entry.users.insert(uid.to_owned());
            return Ok(entry.value.clone());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let value = api.get_opt(name).await?.map(Arc::new);
        let mut entries = lock(&self.entries);
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            value: value.clone(),
            users: HashSet::new(),
            _watch: AbortOnDropHandle::new(tokio::spawn(follow(
                api,
                key,
                Arc::downgrade(&self.entries),
                self.wake.clone(),
            ))),
        });
        entry.users.insert(uid.to_owned());
        Ok(value)
    }

    fn release(&self, uid: &str) {
        lock(&self.entries).retain(|_, entry| {
            entry.users.remove(uid);
            !entry.users.is_empty()
        });
    }
}

async fn follow<K>(
    api: Api<K>,
    key: Key,
    entries: std::sync::Weak<Mutex<HashMap<Key, Entry<K>>>>,
    wake: Wake,
) where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let selection = Selection::fields(format!("metadata.name={}", key.1));
    let mut events = std::pin::pin!(list_watch(api, selection));
    let mut listed: Option<Arc<K>> = None;
    while let Some(event) = events.next().await {
        let value = match event {
            Event::Init => {
                listed = None;
                continue;
            }
            Event::InitApply(object) => {
                listed = Some(Arc::new(object));
                continue;
            }
            Event::InitDone => listed.take(),
            Event::Apply(object) => Some(Arc::new(object)),
            Event::Delete(_) => None,
        };
        let Some(entries) = entries.upgrade() else { return };
        let users: Vec<String> = {
            let mut entries = lock(&entries);
            let Some(entry) = entries.get_mut(&key) else { return };
            if version(entry.value.as_deref()) == version(value.as_deref()) {
                continue;
            }
            entry.value = value;
            entry.users.iter().cloned().collect()
        };
        for uid in users {
            wake(&uid);
        }
    }
}

fn version<K: Resource<DynamicType = ()>>(
    object: Option<&K>,
) -> Option<(Option<String>, Option<String>)> {
    object.map(|o| (o.meta().uid.clone(), o.meta().resource_version.clone()))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
