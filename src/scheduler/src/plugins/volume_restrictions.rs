//! VolumeRestrictions: a claim with access mode ReadWriteOncePod is one pod's alone.
//!
//! Source: `pkg/scheduler/framework/plugins/volumerestrictions/volume_restrictions.go`.

use std::collections::BTreeSet;

use super::volume_binding::claim_names;
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct VolumeRestrictions;

/// The pod's claims that nobody else may use.
struct Exclusive<'a> {
    pod: &'a PodInfo,
    claims: BTreeSet<String>,
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
        Ok((!claims.is_empty()).then(|| Box::new(Exclusive { pod, claims }) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::AssignedPodRemoved(gone) => gone.namespace == pod.namespace,
            Event::StorageChanged => true,
            _ => false,
        }
    }
}

impl Filter for Exclusive<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let uses = |other: &PodInfo| {
            other.namespace == self.pod.namespace
                && other.uid != self.pod.uid
                && claim_names(other).any(|(name, _)| self.claims.contains(&name))
        };
        if node.pods.iter().any(|other| uses(other)) {
            return Err(Rejection::unschedulable(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ));
        }
        Ok(())
    }
}
