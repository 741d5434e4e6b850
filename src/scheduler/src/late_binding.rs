//! Claims that are bound when their first pod has a node: to a volume that is there, or to one that is
//! then made.
//!
//! Source: `pkg/scheduler/framework/plugins/volumebinding/binder.go` (`FindPodVolumes`,
//! `BindPodVolumes`), `k8s.io/component-helpers/storage/volume` (`FindMatchingVolume`).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use client::Informer;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::{CSIStorageCapacity, StorageClass};
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::affinity::selector;
use crate::node::NodeInfo;
use crate::plugins::selects;
use crate::volumes::Volumes;

const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// How a claim comes to its volume.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The claim.
    pub claim: Arc<PersistentVolumeClaim>,
    /// The volume that is set aside for it; without one the class' provisioner makes one.
    pub volume: Option<Arc<PersistentVolume>>,
}

/// Why claims could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("binding volumes: {0}")]
    Api(#[from] kube::Error),
    /// Nobody bound them in time.
    #[error("binding volumes: context deadline exceeded")]
    Timeout,
    /// A claim went away.
    #[error("binding volumes: persistentvolumeclaim {0:?} is gone")]
    Gone(String),
}

/// Whether the claim has its volume for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    let done = claim.metadata.annotations.as_ref();
    done.is_some_and(|all| all.contains_key(BIND_COMPLETED)) && !volume_name(claim).is_empty()
}

/// The name of the claim's volume; empty while it has none.
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    name.unwrap_or_default()
}

fn bytes(text: Option<&str>) -> i64 {
    text.and_then(|text| text.parse::<Quantity>().ok()).map_or(0, |quantity| quantity.value())
}

fn capacity(volume: &PersistentVolume) -> i64 {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    bytes(capacity.and_then(|all| all.get("storage")).map(|size| size.0.as_str()))
}

fn request(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    bytes(requests.and_then(|all| all.get("storage")).map(|size| size.0.as_str()))
}

fn is_for(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_ref().filter(|uid| !uid.is_empty());
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
}

/// Whether the volume can be used on the node.
pub fn is_reachable(volume: &PersistentVolume, node: &NodeInfo) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    required.is_none_or(|required| selects(&required.node_selector_terms, node))
}

/// Whether the volume is what the claim wants, as far as that holds for one that is set aside for it too.
fn suits(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offered), Some(wanted)) = (volume.spec.as_ref(), claim.spec.as_ref()) else {
        return false;
    };
    let mode = |mode: &Option<String>| mode.clone().unwrap_or_else(|| "Filesystem".into());
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    volume.metadata.deletion_timestamp.is_none()
        && mode(&offered.volume_mode) == mode(&wanted.volume_mode)
        && text(&offered.volume_attributes_class_name) == text(&wanted.volume_attributes_class_name)
        && capacity(volume) >= request(claim)
}

/// Whether the volume is set aside for the claim.
fn is_kept_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| is_for(reference, claim))
}

/// Whether the volume is free, and of the class, with the labels and the access that the claim wants.
fn is_offered(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let (Some(offered), Some(wanted)) = (volume.spec.as_ref(), claim.spec.as_ref()) else {
        return false;
    };
    let modes = offered.access_modes.as_deref().unwrap_or_default();
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let picked = wanted.selector.as_ref().is_none_or(|wanted| {
        selector(Some(wanted)).matches(&volume.metadata.labels.clone().unwrap_or_default())
    });
    // What is in no phase yet may turn out as no good.
    phase == Some("Available")
        && offered.claim_ref.is_none()
        && picked
        && offered.storage_class_name.as_deref().unwrap_or_default()
            == wanted.storage_class_name.as_deref().unwrap_or_default()
        && wanted.access_modes.iter().flatten().all(|mode| modes.contains(mode))
}

/// The volume for the claim, were its pod on the node: what is set aside for the claim and nothing else where there is
/// such a volume, else the smallest that will do. `taken` are those of the pod's other claims.
fn found<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a Volumes,
    node: &NodeInfo,
    taken: impl Fn(&Arc<PersistentVolume>) -> bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let suiting = || volumes.volumes.values().filter(|v| suits(v, claim) && !taken(v));
    let name = |volume: &&Arc<PersistentVolume>| volume.metadata.name.clone();
    if let Some(kept) = suiting().filter(|volume| is_kept_for(volume, claim)).min_by_key(name) {
        return Some(kept).filter(|volume| is_reachable(volume, node));
    }
    let offered = suiting().filter(|v| is_offered(v, claim) && is_reachable(v, node));
    offered.min_by_key(|volume| (capacity(volume), name(volume)))
}

/// No volume is there, and none can be made.
const NO_VOLUME: &str = "node(s) didn't find available persistent volumes to bind";
/// One could be made, were there room.
const NO_ROOM: &str = "node(s) did not have enough free storage";

/// Whether the class' provisioner can make a volume for the node; if not, why.
fn can_provision(
    claim: &PersistentVolumeClaim,
    volumes: &Volumes,
    node: &NodeInfo,
) -> Result<(), &'static str> {
    let name = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    let Some(class) = name.and_then(|name| volumes.classes.get(name)) else {
        return Err(NO_VOLUME);
    };
    let topologies = class.allowed_topologies.as_deref().unwrap_or_default();
    let within = topologies.is_empty()
        || topologies.iter().any(|term| {
            let mut labels = term.match_label_expressions.iter().flatten();
            labels.all(|wanted| {
                node.label(&wanted.key)
                    .is_some_and(|value| wanted.values.iter().any(|known| known == value))
            })
        });
    if class.provisioner == NO_PROVISIONER || !within {
        return Err(NO_VOLUME);
    }
    if has_room(claim, class, volumes, node) { Ok(()) } else { Err(NO_ROOM) }
}

/// How large a volume the driver can make there. What is the largest one says more than all the room there is.
pub fn room(capacity: &CSIStorageCapacity) -> i64 {
    let room = capacity.maximum_volume_size.as_ref().or(capacity.capacity.as_ref());
    bytes(room.map(|room| room.0.as_str()))
}

/// Whether the driver has room for the claim there. One that does not tell is taken to have.
fn has_room(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    volumes: &Volumes,
    node: &NodeInfo,
) -> bool {
    let driver = volumes.drivers.get(&class.provisioner);
    if driver.is_none_or(|driver| driver.spec.storage_capacity != Some(true)) {
        return true;
    }
    let empty = std::collections::BTreeMap::new();
    volumes.capacities.values().any(|capacity| {
        Some(&capacity.storage_class_name) == class.metadata.name.as_ref()
            && room(capacity) >= request(claim)
            && capacity.node_topology.as_ref().is_some_and(|topology| {
                selector(Some(topology)).matches(node.labels().unwrap_or(&empty))
            })
    })
}

/// How the claims would be bound, were the pod on `node`; in upstream's words why they could not be.
pub fn promises(
    claims: &[Arc<PersistentVolumeClaim>],
    volumes: &Volumes,
    node: &NodeInfo,
) -> Result<Vec<Promise>, &'static str> {
    let mut promises: Vec<Promise> = Vec::with_capacity(claims.len());
    for claim in claims {
        let selected = claim.metadata.annotations.as_ref().and_then(|all| all.get(SELECTED_NODE));
        if selected.is_some_and(|selected| *selected != node.name) {
            return Err(NO_VOLUME);
        }
        let taken = |volume: &Arc<PersistentVolume>| {
            promises
                .iter()
                .filter_map(|p| p.volume.as_ref())
                .any(|known| Arc::ptr_eq(known, volume))
        };
        let found = found(claim, volumes, node, taken).cloned();
        if found.is_none() {
            can_provision(claim, volumes, node)?;
        }
        promises.push(Promise { claim: Arc::clone(claim), volume: found });
    }
    Ok(promises)
}

/// The volume with the claim's name on it.
pub fn reserved(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> PersistentVolume {
    let mut volume = volume.clone();
    volume.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        ..ObjectReference::default()
    });
    volume
}

/// Has the promises kept (PreBind): tells the API server of them, and waits until the claims are bound, for
/// at most `timeout`.
pub async fn keep(
    client: Client,
    claims: &Informer<PersistentVolumeClaim>,
    promises: &[Promise],
    node: &str,
    timeout: Duration,
) -> Result<(), Error> {
    let changes = claims.subscribe();
    let parameters = PatchParams::default();
    for Promise { claim, volume } in promises {
        let (namespace, name) = key(claim);
        if let Some(volume) = volume {
            let api: Api<PersistentVolume> = Api::all(client.clone());
            let reserved = reserved(volume, claim);
            let patch = json!({
                "metadata": {"resourceVersion": volume.metadata.resource_version,
                    "annotations": {BOUND_BY_CONTROLLER: "yes"}},
                "spec": {"claimRef": reserved.spec.and_then(|spec| spec.claim_ref)},
            });
            let name = volume.metadata.name.as_deref().unwrap_or_default();
            api.patch(name, &parameters, &Patch::Merge(patch)).await?;
        } else {
            let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid, "annotations": {SELECTED_NODE: node}}});
            api.patch(name, &parameters, &Patch::Merge(patch)).await?;
        }
    }
    let mut changes = std::pin::pin!(changes);
    let wait = async {
        loop {
            let mut open = false;
            for Promise { claim, .. } in promises {
                let (namespace, name) = key(claim);
                match claims.get(namespace, name) {
                    None => return Err(Error::Gone(name.to_owned())),
                    Some(now) => open |= !is_bound(&now),
                }
            }
            if !open {
                return Ok(());
            }
            if changes.next().await.is_none() {
                return Err(Error::Timeout);
            }
        }
    };
    tokio::time::timeout(timeout, wait).await.unwrap_or(Err(Error::Timeout))
}

fn key(claim: &PersistentVolumeClaim) -> (&str, &str) {
    (
        claim.metadata.namespace.as_deref().unwrap_or_default(),
        claim.metadata.name.as_deref().unwrap_or_default(),
    )
}
