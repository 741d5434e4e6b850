//! The informers behind the parts of the picture that change seldom: namespaces, storage, devices, and what
//! pods belong to.

use std::collections::HashMap;
use std::sync::Arc;

use client::{Change, Informer, Informers};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, PersistentVolume, PersistentVolumeClaim, ReplicationController, Service,
};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use k8s_openapi::api::storage::v1::{
    CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use crate::affinity::NamespaceLabels;
use crate::devices::Devices;
use crate::extended_resources::IN_MEMORY;
use crate::owners::{Key, Owners};
use crate::scheduler::Input;
use crate::volumes::{Told, Volumes};

/// See the module.
pub struct Pictures {
    namespaces: Informer<Namespace>,
    /// The claims of volumes.
    pub claims: Informer<PersistentVolumeClaim>,
    /// The volumes.
    pub volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    csi_nodes: Informer<CSINode>,
    drivers: Informer<CSIDriver>,
    capacities: Informer<CSIStorageCapacity>,
    attachments: Informer<VolumeAttachment>,
    services: Informer<Service>,
    controllers: Informer<ReplicationController>,
    sets: Informer<ReplicaSet>,
    stateful: Informer<StatefulSet>,
    /// The claims of devices.
    pub device_claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    device_classes: Informer<DeviceClass>,
}

/// What happened to something that pods belong to.
pub enum Owner {
    /// A Service selects pods by these labels, or is gone.
    Service(Key, Option<std::collections::BTreeMap<String, String>>),
    /// A set of this kind selects pods so, or is gone.
    Set(&'static str, Key, Option<LabelSelector>),
    /// Everything may have changed.
    All,
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn named<K>(informer: &Informer<K>, name: impl Fn(&K) -> Option<String>) -> HashMap<String, Arc<K>>
where
    K: client::Watched,
{
    let all = informer.store().state().into_iter();
    all.filter_map(|object| Some((name(&object)?, object))).collect()
}

fn of_set(set: &ReplicaSet) -> Option<LabelSelector> {
    set.spec.as_ref().map(|spec| spec.selector.clone())
}

fn of_stateful(set: &StatefulSet) -> Option<LabelSelector> {
    set.spec.as_ref().map(|spec| spec.selector.clone())
}

fn of_controller(controller: &ReplicationController) -> Option<LabelSelector> {
    let labels = controller.spec.as_ref()?.selector.clone()?;
    Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
}

fn of_service(service: &Service) -> Option<std::collections::BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.clone()
}

impl Pictures {
    pub fn new(informers: &Informers) -> Self {
        Self {
            namespaces: informers.get(),
            claims: informers.get(),
            volumes: informers.get(),
            classes: informers.get(),
            csi_nodes: informers.get(),
            drivers: informers.get(),
            capacities: informers.get(),
            attachments: informers.get(),
            services: informers.get(),
            controllers: informers.get(),
            sets: informers.get(),
            stateful: informers.get(),
            device_claims: informers.get(),
            slices: informers.get(),
            device_classes: informers.get(),
        }
    }

    /// Adds what happens to `inputs`.
    pub fn subscribe(&self, inputs: &mut SelectAll<BoxStream<'static, Input>>) {
        inputs.push(self.namespaces.subscribe().map(|_| Input::Namespace).boxed());
        inputs.push(stored(&self.claims, Told::Claim));
        inputs.push(stored(&self.volumes, Told::Volume));
        inputs.push(stored(&self.classes, Told::Class));
        inputs.push(stored(&self.csi_nodes, Told::Node));
        inputs.push(stored(&self.drivers, Told::Driver));
        inputs.push(stored(&self.capacities, Told::Capacity));
        inputs.push(stored(&self.attachments, Told::Attachment));
        inputs.push(self.device_claims.subscribe().map(Input::DeviceClaim).boxed());
        inputs.push(self.slices.subscribe().map(|_| Input::Devices).boxed());
        inputs.push(self.device_classes.subscribe().map(|_| Input::Devices).boxed());
        let services = self.services.subscribe().map(|change| match change {
            Change::Applied(service) => {
                Owner::Service(key(&service.metadata), of_service(&service))
            }
            Change::Deleted(service) => Owner::Service(key(&service.metadata), None),
            Change::Synced => Owner::All,
        });
        inputs.push(services.map(Input::Owner).boxed());
        inputs.push(followed(&self.sets, "ReplicaSet", |set| &set.metadata, of_set));
        inputs.push(followed(&self.stateful, "StatefulSet", |set| &set.metadata, of_stateful));
        let kind = "ReplicationController";
        inputs.push(followed(&self.controllers, kind, |set| &set.metadata, of_controller));
    }

    /// Ends when the first complete lists are there.
    pub fn ready(&self) -> impl Future<Output = ()> + Send + use<> {
        let (namespaces, claims) = (self.namespaces.clone(), self.claims.clone());
        let (volumes, classes) = (self.volumes.clone(), self.classes.clone());
        let (csi_nodes, services) = (self.csi_nodes.clone(), self.services.clone());
        let (drivers, capacities) = (self.drivers.clone(), self.capacities.clone());
        let (sets, stateful) = (self.sets.clone(), self.stateful.clone());
        let attachments = self.attachments.clone();
        let (device_claims, slices) = (self.device_claims.clone(), self.slices.clone());
        let (controllers, device_classes) = (self.controllers.clone(), self.device_classes.clone());
        async move {
            namespaces.ready().await;
            claims.ready().await;
            volumes.ready().await;
            classes.ready().await;
            csi_nodes.ready().await;
            drivers.ready().await;
            capacities.ready().await;
            attachments.ready().await;
            services.ready().await;
            controllers.ready().await;
            sets.ready().await;
            stateful.ready().await;
            device_claims.ready().await;
            slices.ready().await;
            device_classes.ready().await;
        }
    }

    /// The labels of the namespaces.
    pub fn namespaces(&self) -> NamespaceLabels {
        let all = self.namespaces.store().state();
        let labels = all.iter().filter_map(|namespace| {
            let labels = namespace.metadata.labels.clone().unwrap_or_default();
            Some((namespace.metadata.name.clone()?, labels))
        });
        labels.collect()
    }

    /// Storage, with the volumes that are set aside.
    pub fn storage(&self, reserved: &HashMap<String, Arc<PersistentVolume>>) -> Volumes {
        let claims = self.claims.store().state().into_iter();
        let claims = claims.map(|claim| (key(&claim.metadata), claim));
        let capacities = self.capacities.store().state().into_iter();
        let mut volumes = named(&self.volumes, |volume| volume.metadata.name.clone());
        for (name, reserved) in reserved {
            let claimed = |volume: &PersistentVolume| {
                volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some())
            };
            if let Some(known) = volumes.get_mut(name).filter(|known| !claimed(known)) {
                *known = Arc::clone(reserved);
            }
        }
        Volumes {
            claims: claims.collect(),
            volumes,
            classes: named(&self.classes, |class| class.metadata.name.clone()),
            nodes: named(&self.csi_nodes, |node| node.metadata.name.clone()),
            drivers: named(&self.drivers, |driver| driver.metadata.name.clone()),
            capacities: capacities.map(|capacity| (key(&capacity.metadata), capacity)).collect(),
            attachments: named(&self.attachments, |attachment| attachment.metadata.name.clone()),
        }
    }

    /// Devices, with the claims as decisions under way will leave them.
    pub fn devices(&self, reserved: &HashMap<Key, Arc<ResourceClaim>>) -> Devices {
        let claims = self.device_claims.store().state().into_iter();
        let mut claims: HashMap<Key, _> =
            claims.map(|claim| (key(&claim.metadata), claim)).collect();
        for (key, reserved) in reserved {
            // One for extended resources is still to be made.
            if claims.contains_key(key) || key.1.starts_with(IN_MEMORY) {
                claims.insert(key.clone(), Arc::clone(reserved));
            }
        }
        let mut slices = self.slices.store().state();
        slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        Devices {
            claims,
            slices,
            classes: named(&self.device_classes, |class| class.metadata.name.clone()),
        }
    }

    /// Everything that pods belong to.
    pub fn owners(&self) -> Owners {
        let mut owners = Owners::default();
        for service in self.services.store().state() {
            owners.set_service(key(&service.metadata), of_service(&service));
        }
        for set in self.sets.store().state() {
            owners.set("ReplicaSet", key(&set.metadata), of_set(&set));
        }
        for set in self.stateful.store().state() {
            owners.set("StatefulSet", key(&set.metadata), of_stateful(&set));
        }
        for set in self.controllers.store().state() {
            owners.set("ReplicationController", key(&set.metadata), of_controller(&set));
        }
        owners
    }
}

fn stored<K>(informer: &Informer<K>, told: fn(Change<K>) -> Told) -> BoxStream<'static, Input>
where
    K: client::Watched,
{
    informer.subscribe().map(move |change| Input::Storage(told(change))).boxed()
}

fn followed<K>(
    informer: &Informer<K>,
    kind: &'static str,
    meta: fn(&K) -> &ObjectMeta,
    selector: fn(&K) -> Option<LabelSelector>,
) -> BoxStream<'static, Input>
where
    K: client::Watched,
{
    let changes = informer.subscribe().map(move |change| match change {
        Change::Applied(set) => Owner::Set(kind, key(meta(&set)), selector(&set)),
        Change::Deleted(set) => Owner::Set(kind, key(meta(&set)), None),
        Change::Synced => Owner::All,
    });
    changes.map(Input::Owner).boxed()
}
