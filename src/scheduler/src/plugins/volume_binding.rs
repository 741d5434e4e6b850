//! VolumeBinding: a pod goes where its volumes can be reached, once its claims are bound.
//!
//! Claims that wait for their first consumer are not bound here yet: a pod with one waits, and says
//! so, until something else has bound the claim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::node_affinity::selects;
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct VolumeBinding;

/// The bound volumes of the pod, and whether a claim still waits for its first consumer.
struct Claimed<'a> {
    volumes: Vec<&'a Arc<PersistentVolume>>,
    waits: bool,
}

/// The names of the pod's claims, and whether each is made for the pod itself (ephemeral).
fn claim_names(pod: &PodInfo) -> impl Iterator<Item = (String, bool)> {
    pod.spec().volumes.iter().flatten().filter_map(|volume| {
        if let Some(source) = &volume.persistent_volume_claim {
            return Some((source.claim_name.clone(), false));
        }
        volume.ephemeral.as_ref().map(|_| (format!("{}-{}", pod.name, volume.name), true))
    })
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

fn claimed<'a>(pod: &PodInfo, cluster: &'a Cluster) -> Result<Claimed<'a>, Rejection> {
    let mut claimed = Claimed { volumes: Vec::new(), waits: false };
    for (name, ephemeral) in claim_names(pod) {
        let claim = usable(pod, cluster, &name, ephemeral)?;
        let bound = claim.metadata.annotations.as_ref();
        let bound = bound.is_some_and(|all| all.contains_key("pv.kubernetes.io/bind-completed"));
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        let Some(volume) = volume.filter(|volume| bound && !volume.is_empty()) else {
            if cluster.volumes.binds_late(claim) {
                claimed.waits = true;
                continue;
            }
            let reason = "pod has unbound immediate PersistentVolumeClaims";
            return Err(Rejection::unresolvable(reason));
        };
        let Some(volume) = cluster.volumes.volumes.get(volume) else {
            let reason = format!(
                "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
            );
            return Err(Rejection::unresolvable(reason));
        };
        claimed.volumes.push(volume);
    }
    Ok(claimed)
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let claimed = claimed(pod, cluster)?;
        let any = claimed.waits || !claimed.volumes.is_empty();
        Ok(any.then(|| Box::new(claimed) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, _: &PodInfo) -> bool {
        match event {
            Event::StorageChanged | Event::NodeAdded(_) => true,
            Event::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
            _ => false,
        }
    }
}

impl Filter for Claimed<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let reachable = |volume: &Arc<PersistentVolume>| {
            let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
            let required = affinity.and_then(|affinity| affinity.required.as_ref());
            required.is_none_or(|required| selects(&required.node_selector_terms, node))
        };
        if !self.volumes.iter().all(|volume| reachable(volume)) {
            let reason = "node(s) didn't match PersistentVolume's node affinity";
            return Err(Rejection::unresolvable(reason));
        }
        if self.waits {
            let reason = "node(s) didn't find available persistent volumes to bind";
            return Err(Rejection::unresolvable(reason));
        }
        Ok(())
    }
}
