//! The objects a controller writes, as it last knows them: its cache may be behind its own last write, and what is
//! worked out from an older version is refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Informer, Watched};

use crate::ownership::{self, Key};

/// See the module. Clones share what was written.
pub struct Latest<K> {
    seen: Informer<K>,
    written: Arc<Mutex<HashMap<Key, Arc<K>>>>,
}

impl<K> Clone for Latest<K> {
    fn clone(&self) -> Self {
        Self { seen: self.seen.clone(), written: self.written.clone() }
    }
}

fn version<K: Watched>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}

/// The newer of what was seen of an object and what was written of it.
fn newer<K: Watched>(seen: Arc<K>, written: Arc<K>) -> Arc<K> {
    let same = seen.meta().uid == written.meta().uid;
    if same && version(written.as_ref()) > version(seen.as_ref()) { written } else { seen }
}

impl<K: Watched> Latest<K> {
    /// Of what `seen` shows.
    pub fn new(seen: Informer<K>) -> Self {
        Self { seen, written: Arc::default() }
    }

    /// The object as last seen or written.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let written = all.remove(&key);
        let seen = self.seen.get(namespace, name)?;
        let Some(written) = written else { return Some(seen) };
        let latest = newer(seen, written.clone());
        if Arc::ptr_eq(&latest, &written) {
            all.insert(key, written);
        }
        Some(latest)
    }

    /// Takes note of what the API server answered to a write. That the object is gone is fine.
    pub fn wrote(&self, answer: Result<K, kube::Error>) -> Result<(), kube::Error> {
        match answer {
            Ok(object) => {
                let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(ownership::key(&object), Arc::new(object));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newer_version_of_the_same_object_counts() {
        let set = |uid: &str, version: &str| -> Arc<ReplicaSet> {
            let set = json!({"metadata": {"uid": uid, "resourceVersion": version}});
            Arc::new(serde_json::from_value(set).expect("a set"))
        };
        for (seen, written, want) in [
            (set("u", "9"), set("u", "10"), "10"),
            (set("u", "10"), set("u", "10"), "10"),
            (set("u", "11"), set("u", "10"), "11"),
            (set("v", "9"), set("u", "10"), "9"),
        ] {
            let latest = newer(seen, written);
            assert_eq!(latest.metadata.resource_version.as_deref(), Some(want));
        }
    }
}
