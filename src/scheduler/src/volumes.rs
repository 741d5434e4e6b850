//! Claims, volumes and storage classes as plugins need them.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use client::{Change, Key};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};

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
    /// How much room drivers have, and where; by namespace and name.
    pub capacities: HashMap<(String, String), Arc<CSIStorageCapacity>>,
    /// Which volumes are attached to nodes, by the attachments' names.
    pub attachments: HashMap<String, Arc<VolumeAttachment>>,
}

/// What the API server tells of storage.
pub enum Told {
    /// Of a claim.
    Claim(Change<PersistentVolumeClaim>),
    /// Of a volume.
    Volume(Change<PersistentVolume>),
    /// Of a storage class.
    Class(Change<StorageClass>),
    /// Of a node's drivers.
    Node(Change<CSINode>),
    /// Of a driver.
    Driver(Change<CSIDriver>),
    /// Of a driver's room.
    Capacity(Change<CSIStorageCapacity>),
    /// Of a volume that is attached to a node.
    Attachment(Change<VolumeAttachment>),
}

impl Told {
    /// Everything may have changed.
    pub fn is_resync(&self) -> bool {
        match self {
            Self::Claim(change) => matches!(change, Change::Synced),
            Self::Volume(change) => matches!(change, Change::Synced),
            Self::Class(change) => matches!(change, Change::Synced),
            Self::Node(change) => matches!(change, Change::Synced),
            Self::Driver(change) => matches!(change, Change::Synced),
            Self::Capacity(change) => matches!(change, Change::Synced),
            Self::Attachment(change) => matches!(change, Change::Synced),
        }
    }
}

/// An object that has come or changed.
#[derive(Clone, Debug)]
pub struct Changed<K> {
    /// As it was, if it was there.
    pub old: Option<Arc<K>>,
    /// As it is.
    pub new: Arc<K>,
}

/// What has come or changed of storage.
#[derive(Clone, Debug)]
pub enum StorageChange {
    /// A claim.
    Claim(Changed<PersistentVolumeClaim>),
    /// A volume.
    Volume(Changed<PersistentVolume>),
    /// A storage class.
    Class(Changed<StorageClass>),
    /// What drivers say about a node.
    Node(Changed<CSINode>),
    /// A driver.
    Driver(Changed<CSIDriver>),
    /// How much room a driver has.
    Capacity(Changed<CSIStorageCapacity>),
    /// A volume is attached to a node no more.
    Detached,
    /// Whatever it was.
    Any,
}

/// Takes a change over into `known`; says what has come or changed.
pub(crate) fn follow<K, Q: Eq + Hash>(
    known: &mut HashMap<Q, Arc<K>>,
    key: Q,
    change: Change<K>,
) -> Option<Changed<K>> {
    match change {
        Change::Applied(new) => Some(Changed { old: known.insert(key, Arc::clone(&new)), new }),
        Change::Deleted(_) => {
            known.remove(&key);
            None
        }
        Change::Synced => None,
    }
}

impl Volumes {
    /// Takes over what was told; says what has come or changed. A volume that is set aside in `reserved` stays so
    /// until the API server says whose it is.
    pub fn follow(
        &mut self,
        told: Told,
        reserved: &HashMap<String, Arc<PersistentVolume>>,
    ) -> Option<StorageChange> {
        let key = |key: Option<Key>| key.unwrap_or_default();
        match told {
            Told::Claim(change) => {
                let changed = follow(&mut self.claims, key(change.key()), change);
                changed.map(StorageChange::Claim)
            }
            Told::Volume(change) => {
                let name = key(change.key()).1;
                let changed = follow(&mut self.volumes, name.clone(), change)?;
                let claimed =
                    changed.new.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
                if let Some(kept) = reserved.get(&name).filter(|_| !claimed) {
                    self.volumes.insert(name, Arc::clone(kept));
                }
                Some(StorageChange::Volume(changed))
            }
            Told::Class(change) => {
                let changed = follow(&mut self.classes, key(change.key()).1, change);
                changed.map(StorageChange::Class)
            }
            Told::Node(change) => {
                let changed = follow(&mut self.nodes, key(change.key()).1, change);
                changed.map(StorageChange::Node)
            }
            Told::Driver(change) => {
                let changed = follow(&mut self.drivers, key(change.key()).1, change);
                changed.map(StorageChange::Driver)
            }
            Told::Capacity(change) => {
                let changed = follow(&mut self.capacities, key(change.key()), change);
                changed.map(StorageChange::Capacity)
            }
            Told::Attachment(change) => {
                let gone = matches!(change, Change::Deleted(_));
                follow(&mut self.attachments, key(change.key()).1, change);
                gone.then_some(StorageChange::Detached)
            }
        }
    }

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
