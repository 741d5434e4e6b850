//! VolumeBinding: a pod goes where its volumes can be reached, or where those can be had that its claims
//! still wait for.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::CSINode;

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::late_binding::{is_bound, is_reachable, promises, room, volume_name};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::{StorageChange, Volumes};

pub struct VolumeBinding;

/// The bound volumes of the pod, and the claims that wait for their first consumer.
struct Claimed<'a> {
    volumes: Vec<&'a Arc<PersistentVolume>>,
    /// A claim is bound to a volume that is not there.
    astray: bool,
    late: Vec<Arc<PersistentVolumeClaim>>,
    storage: &'a Volumes,
}

/// The names of the pod's claims, and whether each is made for the pod itself (ephemeral).
pub fn claim_names(pod: &PodInfo) -> impl Iterator<Item = (String, bool)> {
    pod.spec().volumes.iter().flatten().filter_map(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some((source.claim_name.clone(), false));
        }
        volume.ephemeral.as_ref().map(|_| (format!("{}-{}", pod.name, volume.name), true))
    })
}

/// Whether the pod uses the claim.
pub fn uses(pod: &PodInfo, claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.namespace.as_deref() == Some(&pod.namespace)
        && claim_names(pod).any(|(name, _)| claim.metadata.name.as_deref() == Some(&name))
}

fn usable<'a>(
    pod: &PodInfo,
    cluster: &'a Cluster,
    name: &str,
    ephemeral: bool,
) -> Result<&'a Arc<PersistentVolumeClaim>, Rejection> {
    let Some(claim) = cluster.volumes.claim(&pod.namespace, name) else {
        let reason = if ephemeral {
            format!(
                "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
            )
        } else {
            format!("persistentvolumeclaim {name:?} not found")
        };
        return Err(Rejection::unresolvable(reason));
    };
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Lost") {
        let reason = format!(
            "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}",
            volume_name(claim)
        );
        return Err(Rejection::unresolvable(reason));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        let reason = format!("persistentvolumeclaim {name:?} is being deleted");
        return Err(Rejection::unresolvable(reason));
    }
    let owners = claim.metadata.owner_references.iter().flatten();
    if ephemeral && !owners.into_iter().any(|owner| owner.uid == pod.uid) {
        let reason = format!(
            "PVC {}/{name} was not created for pod {} (pod is not owner)",
            pod.namespace,
            pod.key()
        );
        return Err(Rejection::unresolvable(reason));
    }
    Ok(claim)
}

/// The claims of the pod that are to be bound when it has a node.
pub fn late_claims(pod: &PodInfo, cluster: &Cluster) -> Vec<Arc<PersistentVolumeClaim>> {
    claimed(pod, cluster).map(|claimed| claimed.late).unwrap_or_default()
}

fn claimed<'a>(pod: &PodInfo, cluster: &'a Cluster) -> Result<Claimed<'a>, Rejection> {
    let storage = &cluster.volumes;
    let mut claimed = Claimed { volumes: Vec::new(), astray: false, late: Vec::new(), storage };
    for (name, ephemeral) in claim_names(pod) {
        let claim = usable(pod, cluster, &name, ephemeral)?;
        if !is_bound(claim) {
            // A claim that names a volume is bound by the controller, whatever its class says.
            if volume_name(claim).is_empty() && storage.binds_late(claim) {
                claimed.late.push(Arc::clone(claim));
                continue;
            }
            let reason = "pod has unbound immediate PersistentVolumeClaims";
            return Err(Rejection::unresolvable(reason));
        }
        match storage.volumes.get(volume_name(claim)) {
            Some(volume) => claimed.volumes.push(volume),
            None => claimed.astray = true,
        }
    }
    Ok(claimed)
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::Reserve, Point::PreBind]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let claimed = claimed(pod, cluster)?;
        let any = claimed.astray || !(claimed.late.is_empty() && claimed.volumes.is_empty());
        Ok(any.then(|| Box::new(claimed) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::StorageChanged(change) => storage_may_help(change, pod),
            Event::NodeAdded(_) => true,
            Event::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
            _ => false,
        }
    }
}

/// The drivers into which a node's volumes of older kinds have moved.
fn migrated(node: &CSINode) -> Option<&String> {
    node.metadata.annotations.as_ref()?.get("storage.alpha.kubernetes.io/migrated-plugins")
}

fn storage_may_help(change: &StorageChange, pod: &PodInfo) -> bool {
    match change {
        StorageChange::Claim(claim) => uses(pod, &claim.new),
        StorageChange::Volume(_) | StorageChange::Any => true,
        StorageChange::Detached => false,
        // How a class binds cannot be changed.
        StorageChange::Class(class) => class
            .old
            .as_ref()
            .is_none_or(|old| old.allowed_topologies != class.new.allowed_topologies),
        StorageChange::Node(node) => {
            node.old.as_ref().is_none_or(|old| migrated(old) != migrated(&node.new))
        }
        // Room that a driver no longer tells of is taken to be there.
        StorageChange::Driver(driver) => driver.old.as_ref().is_some_and(|old| {
            old.spec.storage_capacity == Some(true)
                && driver.new.spec.storage_capacity != Some(true)
        }),
        StorageChange::Capacity(capacity) => {
            capacity.old.as_ref().is_none_or(|old| room(&capacity.new) > room(old))
        }
    }
}

impl Filter for Claimed<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self.astray {
            let reason =
                "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
            return Err(Rejection::unresolvable(reason));
        }
        if !self.volumes.iter().all(|volume| is_reachable(volume, node)) {
            let reason = "node(s) didn't match PersistentVolume's node affinity";
            return Err(Rejection::unresolvable(reason));
        }
        if !self.late.is_empty() {
            promises(&self.late, self.storage, node).map_err(Rejection::unresolvable)?;
        }
        Ok(())
    }
}
