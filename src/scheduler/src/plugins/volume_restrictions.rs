//! VolumeRestrictions: a claim with access mode ReadWriteOncePod is one pod's alone, and some disks are one
//! writer's.
//!
//! Source: `pkg/scheduler/framework/plugins/volumerestrictions/volume_restrictions.go`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Volume;

use super::volume_binding::{claim_names, uses};
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::StorageChange;

pub struct VolumeRestrictions;

/// What the pod wants for itself.
struct Exclusive<'a> {
    pod: &'a PodInfo,
    /// Its claims that nobody else may use, wherever they are.
    claims: BTreeSet<String>,
    /// The nodes where somebody uses one of them.
    used_on: BTreeSet<&'a str>,
    /// Its disks that cannot be on one node twice.
    disks: Vec<&'a Volume>,
}

/// Whether both are the same disk, and one of them would write.
fn clash(one: &Volume, other: &Volume) -> bool {
    let reads = |flag: Option<bool>| flag == Some(true);
    if let (Some(a), Some(b)) = (&one.gce_persistent_disk, &other.gce_persistent_disk) {
        return a.pd_name == b.pd_name && !(reads(a.read_only) && reads(b.read_only));
    }
    if let (Some(a), Some(b)) = (&one.aws_elastic_block_store, &other.aws_elastic_block_store) {
        return a.volume_id == b.volume_id;
    }
    if let (Some(a), Some(b)) = (&one.iscsi, &other.iscsi) {
        return a.iqn == b.iqn && !(reads(a.read_only) && reads(b.read_only));
    }
    if let (Some(a), Some(b)) = (&one.rbd, &other.rbd) {
        return a.monitors.iter().any(|monitor| b.monitors.contains(monitor))
            && a.pool == b.pool
            && a.image == b.image
            && !(reads(a.read_only) && reads(b.read_only));
    }
    false
}

fn disks(pod: &PodInfo) -> impl Iterator<Item = &Volume> {
    pod.spec().volumes.iter().flatten().filter(|volume| {
        volume.gce_persistent_disk.is_some()
            || volume.aws_elastic_block_store.is_some()
            || volume.iscsi.is_some()
            || volume.rbd.is_some()
    })
}

impl Exclusive<'_> {
    fn uses(&self, other: &PodInfo) -> bool {
        other.namespace == self.pod.namespace
            && other.uid != self.pod.uid
            && claim_names(other).any(|(name, _)| self.claims.contains(&name))
    }
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let exclusive = |name: &String| {
            let claim = cluster.volumes.claim(&pod.namespace, name);
            let modes = claim.and_then(|claim| claim.spec.as_ref()?.access_modes.as_ref());
            modes.is_some_and(|modes| modes.iter().any(|mode| mode == "ReadWriteOncePod"))
        };
        let claims: BTreeSet<String> =
            claim_names(pod).map(|(name, _)| name).filter(exclusive).collect();
        let disks: Vec<&Volume> = disks(pod).collect();
        if claims.is_empty() && disks.is_empty() {
            return Ok(None);
        }
        let mut made = Exclusive { pod, claims, used_on: BTreeSet::new(), disks };
        if !made.claims.is_empty() {
            let nodes = cluster.nodes().iter();
            let used = nodes.filter(|node| node.pods.iter().any(|other| made.uses(other)));
            made.used_on = used.map(|node| node.name.as_str()).collect();
        }
        Ok(Some(Box::new(made)))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::AssignedPodRemoved(gone) => {
                let clashes = |own: &Volume| disks(gone).any(|theirs| clash(own, theirs));
                let shared = || {
                    let theirs: BTreeSet<String> =
                        claim_names(gone).map(|(name, _)| name).collect();
                    claim_names(pod).any(|(name, _)| theirs.contains(&name))
                };
                gone.namespace == pod.namespace && (disks(pod).any(clashes) || shared())
            }
            Event::StorageChanged(StorageChange::Claim(claim)) => {
                claim.old.is_none() && uses(pod, &claim.new)
            }
            Event::StorageChanged(StorageChange::Any) => true,
            _ => false,
        }
    }
}

impl Filter for Exclusive<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let clashes = |other: &PodInfo| {
            disks(other).any(|theirs| self.disks.iter().any(|ours| clash(ours, theirs)))
        };
        if !self.disks.is_empty() && node.pods.iter().any(|other| clashes(other)) {
            return Err(Rejection::unschedulable("node(s) had no available disk"));
        }
        // The node itself may have more or fewer pods than the cluster knows of.
        let elsewhere = self.used_on.iter().any(|name| *name != node.name);
        if !self.claims.is_empty() && (elsewhere || node.pods.iter().any(|other| self.uses(other)))
        {
            return Err(Rejection::unschedulable(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn disks_have_one_writer() {
        let volume = |source: Value| -> Volume {
            let mut all = source;
            all["name"] = json!("v");
            serde_json::from_value(all).expect("a volume")
        };
        let gce = |name: &str, reads: bool| {
            volume(json!({"gcePersistentDisk": {"pdName": name, "readOnly": reads}}))
        };
        let ebs =
            |id: &str| volume(json!({"awsElasticBlockStore": {"volumeID": id, "readOnly": true}}));
        let iscsi = |iqn: &str, reads: bool| {
            volume(json!({"iscsi": {"iqn": iqn, "lun": 0, "targetPortal": "p", "readOnly": reads}}))
        };
        let rbd = |monitor: &str, image: &str| {
            volume(json!({"rbd": {"monitors": ["m", monitor], "image": image, "pool": "rbd"}}))
        };
        let cases = vec![
            (gce("a", false), gce("a", true), true),
            (gce("a", true), gce("a", true), false),
            (gce("a", false), gce("b", false), false),
            (ebs("a"), ebs("a"), true),
            (iscsi("a", false), iscsi("a", true), true),
            (iscsi("a", true), iscsi("a", true), false),
            (rbd("x", "i"), rbd("y", "i"), true),
            (rbd("x", "i"), rbd("y", "j"), false),
            (gce("a", false), ebs("a"), false),
        ];
        for (one, other, want) in cases {
            assert_eq!(clash(&one, &other), want, "{one:?} {other:?}");
        }
    }
}
