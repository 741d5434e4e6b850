//! Claims, volumes and storage classes as plugins need them.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};

/// What there is of storage, by name; of claims by namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    /// The claims.
    pub claims: HashMap<(String, String), Arc<PersistentVolumeClaim>>,
    /// The volumes.
    pub volumes: HashMap<String, Arc<PersistentVolume>>,
    /// The storage classes.
    pub classes: HashMap<String, Arc<StorageClass>>,
    /// What CSI drivers say about nodes, by the node's name.
    pub nodes: HashMap<String, Arc<CSINode>>,
    /// The CSI drivers, by name.
    pub drivers: HashMap<String, Arc<CSIDriver>>,
    /// How much room drivers have, and where.
    pub capacities: Vec<Arc<CSIStorageCapacity>>,
}

impl Volumes {
    /// The claim `name` of `namespace`.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<PersistentVolumeClaim>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The claim waits for a pod before it is bound (`WaitForFirstConsumer`).
    pub fn binds_late(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
        let class = class.and_then(|name| self.classes.get(name));
        class.is_some_and(|class| {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        })
    }
}
