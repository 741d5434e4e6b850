//! Claims and the volumes they are bound to; the built-in provisioner; what becomes of a volume
//! afterwards.
//!
//! Source: `pkg/controller/volume/persistentvolume/pv_controller.go` (`syncClaim`, `syncVolume`),
//! `pkg/controller/volume/expand`.

mod matching;
pub mod provision;

use std::path::PathBuf;
use std::sync::Arc;

use client::{Informer, Informers, Recorder, object_reference};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimStatus, Pod,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::matching::{best, class_of, mismatch, names};
use crate::queue::{self, Failure, Next};
use crate::{ownership, pods, touched, unless_code};

const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
pub const STORAGE_PROVISIONER: [&str; 2] =
    ["volume.beta.kubernetes.io/storage-provisioner", "volume.kubernetes.io/storage-provisioner"];
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(String, String),
    Volume(String),
}

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
enum Step {
    /// It becomes, or is, the volume's.
    Bind(String),
    /// A volume is to be made by the class' provisioner.
    Provision,
    /// It waits; an event says for what.
    Wait(&'static str, String),
    /// It waits without a word.
    Quiet,
    /// Its volume is gone.
    Lost(&'static str, &'static str),
}

/// Decides about a claim. `late` tells that its class waits for the first consumer.
fn decide(
    claim: &PersistentVolumeClaim,
    volumes: &[impl AsRef<PersistentVolume>],
    late: bool,
    waiting_pod: Option<&str>,
) -> Step {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let mut all = volumes.iter().map(AsRef::as_ref);
    let mut find = |name: &str| all.find(|volume| volume.name_any() == name);
    let reference =
        |volume: &PersistentVolume| volume.spec.as_ref().and_then(|s| s.claim_ref.clone());
    if claim.annotations().contains_key(BIND_COMPLETED) {
        let lost = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
        let misbound = "Two claims are bound to the same volume, this one is bound incorrectly";
        return match find(named) {
            _ if named.is_empty() => Step::Lost(
                "ClaimLost",
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
            ),
            None => Step::Lost("ClaimLost", lost),
            Some(volume) => match reference(volume) {
                Some(reference) if !names(&reference, claim) => {
                    Step::Lost("ClaimMisbound", misbound)
                }
                _ => Step::Bind(named.to_owned()),
            },
        };
    }
    if !named.is_empty() {
        let Some(volume) = find(named) else { return Step::Quiet };
        return match (reference(volume), mismatch(claim, volume)) {
            (Some(reference), _) if names(&reference, claim) => Step::Bind(named.to_owned()),
            (Some(_), _) => {
                let message = format!("volume {named:?} already bound to a different claim.");
                Step::Wait("FailedBinding", message)
            }
            (None, Some(problem)) => {
                let message = format!("Cannot bind to requested volume {named:?}: {problem}");
                Step::Wait("VolumeMismatch", message)
            }
            (None, None) => Step::Bind(named.to_owned()),
        };
    }
    let selected = claim.annotations().contains_key(SELECTED_NODE);
    if let Some(volume) = best(claim, volumes, late) {
        return Step::Bind(volume.name_any());
    }
    if late && !selected {
        let waits = match waiting_pod {
            Some(pod) => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            None => (
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".into(),
            ),
        };
        return Step::Wait(waits.0, waits.1);
    }
    if class_of(claim).is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return Step::Wait("FailedBinding", message.into());
    }
    Step::Provision
}

/// The phase of a volume, and whether it is to be reclaimed.
fn phase(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> (&'static str, bool) {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match (reference, claim) {
        (None, _) => ("Available", false),
        (Some(reference), _) if reference.uid.as_ref().is_none_or(String::is_empty) => {
            ("Available", false)
        }
        (Some(reference), Some(claim)) if names(reference, claim) => {
            let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
            if named.as_ref() == volume.metadata.name.as_ref() {
                return ("Bound", false);
            }
            // It was made for a claim that has found another, or the claim does not know yet.
            let elsewhere = named.is_some_and(|named| !named.is_empty());
            if elsewhere { ("Released", true) } else { ("Available", false) }
        }
        (Some(_), _) => ("Released", true),
    }
}

struct Controller {
    client: Client,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    events: Recorder,
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
        let user = self.waiting_pod(claim);
        let step = decide(claim, &volumes, late, user.as_deref());
        if claim.metadata.deletion_timestamp.is_some() && !matches!(step, Step::Bind(_)) {
            return Ok(Next::Done);
        }
        let about = object_reference(claim);
        match step {
            Step::Quiet => {}
            Step::Wait(reason, message) => self.events.normal(about, reason, message),
            Step::Lost(reason, message) => {
                let told = claim.status.as_ref().and_then(|status| status.phase.as_deref());
                if told != Some("Lost") {
                    self.events.warning(about, reason, message);
                    let mut status = claim.status.clone().unwrap_or_default();
                    status.phase = Some("Lost".into());
                    self.tell_claim(claim, status).await?;
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

    /// A pod that uses the claim and has no node yet.
    fn waiting_pod(&self, claim: &PersistentVolumeClaim) -> Option<String> {
        let (namespace, name) = ownership::key(claim);
        let all = self.pods.store().state_filter(|pod| {
            pod.metadata.namespace.as_ref() == Some(&namespace)
                && pods::node(pod).is_empty()
                && pods::is_active(pod)
                && pods::claims(pod).any(|used| used == name)
        });
        all.first().map(|pod| pod.name_any())
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
        self.tell_volume(&bound, "Bound").await?;
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
        status.phase = Some("Bound".into());
        status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
        // A volume that was made larger is told by whoever made it so.
        if status.capacity.is_none() {
            status.capacity = spec.and_then(|spec| spec.capacity.clone());
        }
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
        if class.provisioner == NO_PROVISIONER {
            return Ok(Next::Done);
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

    async fn tell_volume(&self, volume: &PersistentVolume, phase: &str) -> Result<(), Failure> {
        let mut status = volume.status.clone().unwrap_or_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(());
        }
        status.phase = Some(phase.into());
        status.last_phase_transition_time = Some(Time(Timestamp::now()));
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let told = PersistentVolume { status: Some(status), ..volume.clone() };
        unless_code(
            api.replace_status(&volume.name_any(), &PostParams::default(), &told).await,
            404,
        )?;
        Ok(())
    }

    async fn sync_volume(&self, volume: &PersistentVolume) -> Result<Next, Failure> {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
        let key = reference.map(|r| (r.namespace.unwrap_or_default(), r.name.unwrap_or_default()));
        let mut claim = key.as_ref().and_then(|(namespace, name)| self.claims.get(namespace, name));
        if let (Some((namespace, name)), None) = (&key, &claim)
            && phase(volume, None).1
        {
            // Data is at stake: the cache's word is not enough.
            let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
            claim = api.get_opt(name).await?.map(Arc::new);
        }
        let (phase, reclaim) = phase(volume, claim.as_deref());
        if !(volume.metadata.deletion_timestamp.is_some() && phase == "Available") {
            self.tell_volume(volume, phase).await?;
        }
        let policy =
            volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        if !reclaim || policy != Some("Delete") || !provision::is_ours(volume) {
            return Ok(Next::Done);
        }
        if let Err(error) = provision::remove(volume, &self.base).await {
            let message = error.to_string();
            self.events.warning(object_reference(volume), "VolumeFailedDelete", message);
            return Err(error.into());
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let preconditions = Preconditions { uid: volume.uid(), ..Preconditions::default() };
        let parameters = DeleteParams::default().preconditions(preconditions);
        unless_code(api.delete(&volume.name_any(), &parameters).await, 404)?;
        Ok(Next::Done)
    }
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
    let controller =
        Arc::new(Controller { client, claims, volumes, classes, nodes, pods, events, base });
    queue::run("persistentvolume", changes.boxed(), shutdown, |key: Key| {
        let controller = controller.clone();
        Box::pin(async move {
            match key {
                Key::Claim(namespace, name) => match controller.claims.get(&namespace, &name) {
                    Some(claim) => Box::pin(controller.sync_claim(&claim)).await,
                    None => Ok(Next::Done),
                },
                Key::Volume(name) => match controller.volumes.get("", &name) {
                    Some(volume) => controller.sync_volume(&volume).await,
                    None => Ok(Next::Done),
                },
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u",
            "annotations": annotations}, "spec": spec}))
        .expect("a claim")
    }

    fn volume(name: &str, claim_uid: Option<&str>) -> Box<PersistentVolume> {
        let reference = claim_uid.map(|uid| json!({"name": "c", "namespace": "n", "uid": uid}));
        Box::new(
            serde_json::from_value(json!({"metadata": {"name": name},
                "spec": {"claimRef": reference}, "status": {"phase": "Available"}}))
            .expect("a volume"),
        )
    }

    #[test]
    fn claims_find_their_volumes() {
        let done = json!({BIND_COMPLETED: "yes"});
        let bind = |name: &str| Step::Bind(name.into());
        let reason = |step: Step| match step {
            Step::Wait(reason, _) | Step::Lost(reason, _) => reason,
            _ => "none",
        };
        let none: [Box<PersistentVolume>; 0] = [];
        let plain = claim(json!({}), json!({}));
        assert_eq!(decide(&plain, &[volume("v", None)], false, None), bind("v"));
        assert_eq!(reason(decide(&plain, &none, false, None)), "FailedBinding");
        let classy = claim(json!({}), json!({"storageClassName": "k"}));
        assert_eq!(decide(&classy, &none, false, None), Step::Provision);
        assert_eq!(reason(decide(&classy, &none, true, None)), "WaitForFirstConsumer");
        assert_eq!(reason(decide(&classy, &none, true, Some("p"))), "WaitForPodScheduled");
        let selected = claim(json!({SELECTED_NODE: "m"}), json!({"storageClassName": "k"}));
        assert_eq!(decide(&selected, &none, true, None), Step::Provision);
        let named = claim(json!({}), json!({"volumeName": "v"}));
        assert_eq!(decide(&named, &[volume("v", None)], false, None), bind("v"));
        assert_eq!(reason(decide(&named, &[volume("v", Some("x"))], false, None)), "FailedBinding");
        assert_eq!(decide(&named, &none, false, None), Step::Quiet);
        let bound = claim(done, json!({"volumeName": "v"}));
        assert_eq!(decide(&bound, &[volume("v", Some("u"))], false, None), bind("v"));
        assert_eq!(reason(decide(&bound, &none, false, None)), "ClaimLost");
        assert_eq!(reason(decide(&bound, &[volume("v", Some("x"))], false, None)), "ClaimMisbound");
    }

    #[test]
    fn a_volume_follows_its_claim() {
        let bound = claim(json!({}), json!({"volumeName": "v"}));
        let other = claim(json!({}), json!({"volumeName": "w"}));
        for (volume, claim, want) in [
            (volume("v", None), None, ("Available", false)),
            (volume("v", Some("u")), Some(&bound), ("Bound", false)),
            (volume("v", Some("u")), None, ("Released", true)),
            (volume("v", Some("x")), Some(&bound), ("Released", true)),
            (volume("v", Some("u")), Some(&other), ("Released", true)),
        ] {
            assert_eq!(phase(&volume, claim), want);
        }
    }
}
