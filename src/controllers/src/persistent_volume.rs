//! Claims and the volumes they are bound to; the built-in provisioner; what becomes of a volume
//! afterwards.
//!
//! Source: `pkg/controller/volume/persistentvolume/pv_controller.go` (`syncClaim`, `syncVolume`),
//! `pkg/controller/volume/expand`.

mod decide;
mod matching;
pub mod provision;
mod recycle;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Informer, Informers, Recorder, object_reference};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::decide::{Fate, Step, decide, default_class, fate, freed};
use self::matching::class_of;
use self::recycle::Progress;
use crate::queue::{self, Failure, Next};
use crate::{ownership, pods, touched, unless_code};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const STORAGE_PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
/// How often it is looked how far the emptying of a volume has got.
const RECYCLE: Duration = Duration::from_secs(1);
/// How often it is looked whether a volume that is to be emptied is still used.
const USED: Duration = Duration::from_secs(15);
/// Provisioners that were part of Kubernetes; `no-provisioner` never was one.
const IN_TREE: &str = "kubernetes.io/";

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(String, String),
    Volume(String),
}

struct Controller {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    events: Recorder,
    /// The pods of which was told that they keep a volume from being emptied, by the volume's name.
    told_users: Mutex<HashMap<String, Vec<String>>>,
    /// Where the built-in provisioner makes its folders.
    base: PathBuf,
}

impl Controller {
    async fn sync_claim(&self, claim: &PersistentVolumeClaim) -> Result<Next, Failure> {
        let class = self.classes.get("", class_of(claim));
        let late = class.as_ref().is_some_and(|class| {
            class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
        });
        let volumes = self.volumes.store().state();
        let step = decide(claim, &volumes, late, &self.waiting_pods(claim));
        if claim.metadata.deletion_timestamp.is_some() && !matches!(step, Step::Bind(_)) {
            return Ok(Next::Done);
        }
        let about = object_reference(claim);
        if matches!(step, Step::Quiet | Step::Wait(..) | Step::Provision)
            && claim
                .spec
                .as_ref()
                .is_some_and(|s| s.volume_name.as_ref().is_none_or(String::is_empty))
            && self.give_class(claim).await?
        {
            return Ok(Next::Done);
        }
        match step {
            Step::Quiet => self.tell_unbound(claim, "Pending").await?,
            Step::Wait(warning, reason, message) => {
                if warning {
                    self.events.warning(about, reason, message);
                } else {
                    self.events.normal(about, reason, message);
                }
                self.tell_unbound(claim, "Pending").await?;
            }
            Step::Lost(reason, message) => {
                let told = claim.status.as_ref().and_then(|status| status.phase.as_deref());
                if told != Some("Lost") {
                    self.tell_unbound(claim, "Lost").await?;
                    self.events.warning(about, reason, message);
                }
            }
            Step::Provision => return Box::pin(self.provision(claim, class.as_deref())).await,
            Step::Bind(name) => {
                let Some(volume) = volumes.iter().find(|volume| volume.name_any() == name) else {
                    return Ok(Next::Done);
                };
                self.bind(claim, volume).await?;
            }
        }
        Ok(Next::Done)
    }

    /// Gives a claim without a class the default one, if there is one. Returns whether it did.
    async fn give_class(&self, claim: &PersistentVolumeClaim) -> Result<bool, Failure> {
        let classes = self.classes.store().state();
        let Some(class) = default_class(claim, &classes) else { return Ok(false) };
        let (namespace, name) = ownership::key(claim);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let mut told = claim.clone();
        told.spec.get_or_insert_default().storage_class_name = Some(class.name_any());
        api.replace(&name, &PostParams::default(), &told).await?;
        Ok(true)
    }

    /// The pods that use the claim and have no node yet, in order.
    fn waiting_pods(&self, claim: &PersistentVolumeClaim) -> Vec<String> {
        let (namespace, name) = ownership::key(claim);
        let all = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_ref() == Some(&namespace)
                && pods::node(pod).is_empty()
                && pods::is_active(pod)
                && pods::claims(pod).any(|used| used == name)
        });
        let mut names: Vec<String> = all.iter().map(|pod| pod.name_any()).collect();
        names.sort();
        names
    }

    /// Writes what both sides of a bond say of each other, as far as they do not say it yet.
    async fn bind(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Failure> {
        let (parameters, volumes) = (PostParams::default(), Api::all(self.client.clone()));
        let mut bound = volume.clone();
        let reference = bound.spec.get_or_insert_default().claim_ref.get_or_insert_default();
        if reference.uid.is_none() {
            let prebound = reference.name.is_some();
            *reference = provision::reference(claim);
            if !prebound {
                bound.annotations_mut().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
            }
            bound = volumes.replace(&bound.name_any(), &parameters, &bound).await?;
        }
        self.tell_volume(&bound, "Bound", "").await?;
        let (namespace, name) = ownership::key(claim);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let mut told = claim.clone();
        let spec = told.spec.get_or_insert_default();
        let chosen = spec.volume_name.as_ref().is_none_or(String::is_empty);
        if chosen {
            spec.volume_name = Some(volume.name_any());
            told.annotations_mut().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        }
        if chosen || !told.annotations().contains_key(BIND_COMPLETED) {
            told.annotations_mut().insert(BIND_COMPLETED.into(), "yes".into());
            told = claims.replace(&name, &parameters, &told).await?;
        }
        let mut status = told.status.clone().unwrap_or_default();
        let spec = volume.spec.as_ref();
        status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
        // What changes of it later is told by whoever changes it.
        if status.phase.as_deref() != Some("Bound") {
            status.capacity = spec.and_then(|spec| spec.capacity.clone());
            status.current_volume_attributes_class_name =
                spec.and_then(|spec| spec.volume_attributes_class_name.clone());
        }
        status.phase = Some("Bound".into());
        self.tell_claim(&told, status).await?;
        self.expand(&told, &bound).await
    }

    /// Folders have no size: what is asked for is given.
    async fn expand(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<(), Failure> {
        let wanted = matching::request(claim);
        if wanted <= matching::capacity(volume) || claim.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        if !provision::is_ours(volume) {
            // Somebody else does it; `volume_expand` tells.
            return Ok(());
        }
        let resources = claim.spec.as_ref().and_then(|spec| spec.resources.clone());
        let size = resources.and_then(|resources| resources.requests?.remove("storage"));
        let Some(size) = size else { return Ok(()) };
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let mut larger = volume.clone();
        let capacity = larger.spec.get_or_insert_default().capacity.get_or_insert_default();
        capacity.insert("storage".into(), size.clone());
        volumes.replace(&volume.name_any(), &PostParams::default(), &larger).await?;
        let (namespace, name) = ownership::key(claim);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let mut told = claims.get(&name).await?;
        let status = told.status.get_or_insert_default();
        status.capacity.get_or_insert_default().insert("storage".into(), size);
        claims.replace_status(&name, &PostParams::default(), &told).await?;
        self.events.normal(
            object_reference(claim),
            "VolumeResizeSuccessful",
            "ExpandVolume succeeded",
        );
        Ok(())
    }

    async fn provision(
        &self,
        claim: &PersistentVolumeClaim,
        class: Option<&StorageClass>,
    ) -> Result<Next, Failure> {
        let about = object_reference(claim);
        let Some(class) = class else {
            let message = format!("storageclass.storage.k8s.io {:?} not found", class_of(claim));
            self.events.warning(about, "ProvisioningFailed", message);
            return Ok(Next::Done);
        };
        if class.provisioner.starts_with(IN_TREE) {
            let message = format!("no volume plugin matched name: {}", class.provisioner);
            self.events.warning(about, "ProvisioningFailed", message);
            return self.tell_unbound(claim, "Pending").await.map(|()| Next::Done);
        }
        if class.provisioner != provision::PROVISIONER {
            let (namespace, name) = ownership::key(claim);
            let by = class.provisioner.clone();
            let message = format!(
                "Waiting for a volume to be created either by the external provisioner '{by}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            );
            self.events.normal(about, "ExternalProvisioning", message);
            let mut told = claim.clone();
            for key in STORAGE_PROVISIONER {
                told.annotations_mut().insert(key.into(), by.clone());
            }
            if told != *claim {
                let api: Api<PersistentVolumeClaim> =
                    Api::namespaced(self.client.clone(), &namespace);
                api.replace(&name, &PostParams::default(), &told).await?;
            }
            return Ok(Next::Done);
        }
        let selected = claim.annotations().get(SELECTED_NODE);
        let node = match selected {
            Some(name) => self.nodes.get("", name),
            None => self.nodes.store().state().into_iter().next(),
        };
        let made = match provision::volume(claim, class, node.as_deref(), &self.base) {
            Ok(volume) => provision::make(&volume).await.map(|()| volume),
            Err(error) => Err(error),
        };
        let volume = match made {
            Ok(volume) => volume,
            Err(error) => {
                let message = format!(
                    "failed to provision volume with StorageClass {:?}: {error}",
                    class.name_any()
                );
                self.events.warning(about, "ProvisioningFailed", message);
                return Err(error.into());
            }
        };
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.name_any();
        match api.create(&PostParams::default(), &volume).await {
            Ok(made) => {
                let message = format!("Successfully provisioned volume {name}");
                self.events.normal(about, "ProvisioningSucceeded", message);
                self.bind(claim, &made).await?;
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Next::Done)
    }

    async fn tell_claim(
        &self,
        claim: &PersistentVolumeClaim,
        status: PersistentVolumeClaimStatus,
    ) -> Result<(), Failure> {
        if claim.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let (namespace, name) = ownership::key(claim);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let told = PersistentVolumeClaim { status: Some(status), ..claim.clone() };
        unless_code(api.replace_status(&name, &PostParams::default(), &told).await, 404)?;
        Ok(())
    }

    /// Tells that the claim has no volume.
    async fn tell_unbound(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
    ) -> Result<(), Failure> {
        let mut status = claim.status.clone().unwrap_or_default();
        status.phase = Some(phase.into());
        (status.access_modes, status.capacity) = (None, None);
        self.tell_claim(claim, status).await
    }

    /// Returns whether that is news.
    async fn tell_volume(
        &self,
        volume: &PersistentVolume,
        phase: &str,
        message: &str,
    ) -> Result<bool, Failure> {
        let mut status = volume.status.clone().unwrap_or_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(false);
        }
        status.phase = Some(phase.into());
        status.message = (!message.is_empty()).then(|| message.to_owned());
        status.last_phase_transition_time = Some(Time(Timestamp::now()));
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let told = PersistentVolume { status: Some(status), ..volume.clone() };
        unless_code(
            api.replace_status(&volume.name_any(), &PostParams::default(), &told).await,
            404,
        )?;
        Ok(true)
    }

    /// Tells that the volume cannot be reclaimed, and why.
    async fn tell_failed(
        &self,
        volume: &PersistentVolume,
        reason: &str,
        message: &str,
    ) -> Result<(), Failure> {
        if self.tell_volume(volume, "Failed", message).await? {
            self.events.warning(object_reference(volume), reason, message);
        }
        Ok(())
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<Next, Failure> {
        if provision::is_ours(volume)
            && let Some(finalizers) = provision::finalizers(volume)
        {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let mut held = volume.clone();
            held.metadata.finalizers = Some(finalizers);
            unless_code(api.replace(&volume.name_any(), &PostParams::default(), &held).await, 404)?;
            // With the volume as it is now the rest follows.
            return Ok(Next::Done);
        }
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let key = reference.map(|r| (r.namespace.unwrap_or_default(), r.name.unwrap_or_default()));
        let mut claim = key.as_ref().and_then(|(namespace, name)| self.claims.get(namespace, name));
        if let Some((namespace, name)) = &key
            && fate(volume, claim.as_deref()) == Fate::Released
        {
            // Data is at stake: the cache's word is not enough.
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
            claim = api.get_opt(name).await?.map(Arc::new);
        }
        match fate(volume, claim.as_deref()) {
            Fate::Available if volume.metadata.deletion_timestamp.is_some() => {
                let held = volume.finalizers().iter().any(|held| held == provision::FINALIZER);
                if provision::is_ours(volume) && held {
                    return self.unmake(volume).await;
                }
            }
            Fate::Available => drop(self.tell_volume(volume, "Available", "").await?),
            Fate::Bound => drop(self.tell_volume(volume, "Bound", "").await?),
            Fate::Claims => {}
            Fate::Misfit => self.tell_misfit(volume, claim.as_deref()),
            Fate::Unbound => {
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                let parameters = PostParams::default();
                let free = api.replace(&volume.name_any(), &parameters, &freed(volume)).await?;
                self.tell_volume(&free, "Available", "").await?;
            }
            Fate::Released => return Box::pin(self.reclaim(volume)).await,
        }
        Ok(Next::Done)
    }

    fn tell_misfit(&self, volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) {
        let Some(claim) = claim else { return };
        let (volume_name, claim_name) = (volume.name_any(), claim.name_any());
        let message = format!(
            "Cannot bind PersistentVolume to requested PersistentVolumeClaim \"{claim_name}\" due to incompatible volumeMode."
        );
        self.events.warning(object_reference(volume), "VolumeMismatch", message);
        let message = format!(
            "Cannot bind PersistentVolume \"{volume_name}\" to requested PersistentVolumeClaim due to incompatible volumeMode."
        );
        self.events.warning(object_reference(claim), "VolumeMismatch", message);
    }

    /// Does with a volume whose claim is gone what its policy says.
    async fn reclaim(&self, volume: &PersistentVolume) -> Result<Next, Failure> {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        // What went wrong before stays told.
        if phase != Some("Failed") && self.tell_volume(volume, "Released", "").await? {
            // With the volume as it is now the rest follows.
            return Ok(Next::Done);
        }
        let policy =
            volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        match policy {
            Some("Delete") => {}
            Some("Recycle") => return Box::pin(self.recycle(volume)).await,
            _ => return Ok(Next::Done),
        }
        if !provision::is_ours(volume) {
            if !volume.annotations().contains_key(provision::PROVISIONED_BY) {
                let message = format!(
                    "error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched",
                    volume.name_any()
                );
                self.tell_failed(volume, "VolumeFailedDelete", &message).await?;
            }
            // Whoever made it deletes it.
            return Ok(Next::Done);
        }
        self.unmake(volume).await
    }

    /// Has a volume emptied, and then makes it free again.
    async fn recycle(&self, volume: &PersistentVolume) -> Result<Next, Failure> {
        const REASON: &str = "VolumeFailedRecycle";
        if volume.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let Some(pod) = recycle::pod(volume) else {
            let message = "No recycler plugin found for the volume!";
            return self.tell_failed(volume, REASON, message).await.map(|()| Next::Done);
        };
        let about = object_reference(volume);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), recycle::NAMESPACE);
        let found = pods.get_opt(&recycle::pod_name(volume)).await?;
        match recycle::progress(&pod, found.as_ref()) {
            Progress::Begin => {
                if !self.is_as_known(volume).await? {
                    // With the volume as it is now the rest follows.
                    return Ok(Next::Done);
                }
                let users = self.users(volume).await?;
                if self.are_new(volume, &users) {
                    let message = format!("Volume is used by pods: {}", users.join(","));
                    self.events.normal(about, REASON, message);
                }
                if !users.is_empty() {
                    return Ok(Next::After(USED));
                }
                unless_code(pods.create(&PostParams::default(), &pod).await, 409)?;
                Ok(Next::After(RECYCLE))
            }
            Progress::Wait => Ok(Next::After(RECYCLE)),
            Progress::Foreign => {
                remove(&pods, found.as_ref()).await?;
                Ok(Next::After(RECYCLE))
            }
            Progress::Done => {
                // A pod that outlasted this would pass for that of the next time.
                remove(&pods, found.as_ref()).await?;
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                let parameters = PostParams::default();
                let free = api.replace(&volume.name_any(), &parameters, &freed(volume)).await?;
                self.events.normal(about, "VolumeRecycled", "Volume recycled");
                self.tell_volume(&free, "Available", "").await?;
                Ok(Next::Done)
            }
            Progress::Failed(why) => {
                self.tell_failed(volume, REASON, &format!("Recycle failed: {why}")).await?;
                remove(&pods, found.as_ref()).await?;
                // It is tried again, ever later.
                Err(format!("recycle failed: {why}").into())
            }
        }
    }

    /// Whether the volume is still what the cache says: data is at stake.
    async fn is_as_known(&self, volume: &PersistentVolume) -> Result<bool, Failure> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let now = api.get_opt(&volume.name_any()).await?;
        Ok(now.is_some_and(|now| recycle::is_same(volume, &now)))
    }

    /// The pods that still use the claim of the volume, as `namespace/name`; the cache's word is not
    /// enough here either.
    async fn users(&self, volume: &PersistentVolume) -> Result<Vec<String>, Failure> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let Some(reference) = reference else { return Ok(Vec::new()) };
        let namespace = reference.namespace.unwrap_or_default();
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let mut all = api.list(&ListParams::default()).await?.items;
        all.retain(|pod| {
            !pods::is_finished(pod)
                && pods::claims(pod).any(|used| Some(&used) == reference.name.as_ref())
        });
        Ok(all.iter().map(|pod| format!("{namespace}/{}", pod.name_any())).collect())
    }

    /// Takes note of who uses a volume that is to be emptied; says whether there are others than before.
    fn are_new(&self, volume: &PersistentVolume, users: &[String]) -> bool {
        let mut told = self.told_users.lock().unwrap_or_else(PoisonError::into_inner);
        if users.is_empty() {
            told.remove(&volume.name_any());
            return false;
        }
        let before = told.insert(volume.name_any(), users.to_vec());
        before.is_none_or(|before| before != users)
    }

    /// Removes the folder of a volume that the built-in provisioner has made, and then the volume.
    async fn unmake(&self, volume: &PersistentVolume) -> Result<Next, Failure> {
        if let Err(error) = provision::remove(volume, &self.base).await {
            self.tell_failed(volume, "VolumeFailedDelete", &error.to_string()).await?;
            return Err(error.into());
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let preconditions = Preconditions { uid: volume.uid(), ..Preconditions::default() };
        let parameters = DeleteParams::default().preconditions(preconditions);
        let name = volume.name_any();
        unless_code(api.delete(&name, &parameters).await, 404)?;
        let left = api.get_opt(&name).await?.filter(|left| left.uid() == volume.uid());
        if let Some(mut left) = left {
            left.finalizers_mut().retain(|finalizer| finalizer != provision::FINALIZER);
            unless_code(api.replace(&name, &PostParams::default(), &left).await, 404)?;
        }
        Ok(Next::Done)
    }
}

/// Deletes the pod that was found, and no other of that name.
async fn remove(pods: &Api<Pod>, found: Option<&Pod>) -> Result<(), kube::Error> {
    let Some(found) = found else { return Ok(()) };
    let preconditions = Preconditions { uid: found.uid(), ..Preconditions::default() };
    let parameters = DeleteParams::default().preconditions(preconditions);
    unless_code(pods.delete(&found.name_any(), &parameters).await, 404)
}

/// Runs until `shutdown`; `base` is where the built-in provisioner makes its folders.
pub async fn run(client: Client, informers: Informers, base: PathBuf, shutdown: CancellationToken) {
    let claims = informers.get::<PersistentVolumeClaim>();
    let volumes = informers.get::<PersistentVolume>();
    let classes = informers.get::<StorageClass>();
    let (nodes, pods) = (informers.get::<Node>(), informers.get::<Pod>());
    let events = Recorder::new(client.clone(), "persistentvolume-controller", "");
    claims.ready().await;
    volumes.ready().await;
    classes.ready().await;
    nodes.ready().await;
    let of_claim = |claim: &PersistentVolumeClaim| {
        let (namespace, name) = ownership::key(claim);
        let mut keys = vec![Key::Claim(namespace, name)];
        keys.extend(claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).map(Key::Volume));
        keys
    };
    let of_volume = {
        let claims = claims.clone();
        move |volume: &PersistentVolume| {
            let mut keys = vec![Key::Volume(volume.name_any())];
            match volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) {
                Some(reference) => keys.push(Key::Claim(
                    reference.namespace.clone().unwrap_or_default(),
                    reference.name.clone().unwrap_or_default(),
                )),
                // A free volume may be what some claim waits for.
                None => keys.extend(unbound(&claims)),
            }
            keys
        }
    };
    let of_class = {
        let claims = claims.clone();
        move |_: &StorageClass| unbound(&claims)
    };
    let changes = futures::stream::select(
        touched(&claims, of_claim),
        futures::stream::select(touched(&volumes, of_volume), touched(&classes, of_class)),
    );
    let told_users = Mutex::default();
    let controller =
        Controller { client, claims, volumes, classes, nodes, pods, events, told_users, base };
    let controller = Arc::new(controller);
    queue::run("persistentvolume", changes.boxed(), shutdown, |key: Key| {
        let controller = controller.clone();
        Box::pin(async move {
            match key {
                Key::Claim(namespace, name) => match controller.claims.get(&namespace, &name) {
                    Some(claim) => Box::pin(controller.sync_claim(&claim)).await,
                    None => Ok(Next::Done),
                },
                Key::Volume(name) => {
                    if let Some(volume) = controller.volumes.get("", &name) {
                        return Box::pin(controller.sync_volume(&volume)).await;
                    }
                    let told = &controller.told_users;
                    told.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                    Ok(Next::Done)
                }
            }
        })
    })
    .await;
}

fn unbound(claims: &Informer<PersistentVolumeClaim>) -> Vec<Key> {
    let all = claims.store().state();
    let waiting = all.iter().filter(|claim| !claim.annotations().contains_key(BIND_COMPLETED));
    waiting
        .map(|claim| ownership::key(claim.as_ref()))
        .map(|(ns, name)| Key::Claim(ns, name))
        .collect()
}
