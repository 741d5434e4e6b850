//! VolumeZone: a pod goes to the zone of its volumes, where their labels name one.
//!
//! Source: `pkg/scheduler/framework/plugins/volumezone/volume_zone.go`.

use super::volume_binding::claim_names;
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::late_binding::volume_name;
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct VolumeZone;

const LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// Between the zones of a volume that is in several.
const SEPARATOR: &str = "__";

/// Labels of the pod's volumes that a node must have, each with the values that will do.
struct Zones(Vec<(&'static str, Vec<String>)>);

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let mut zones = Vec::new();
        for (name, _) in claim_names(pod) {
            // What is not bound yet is VolumeBinding's business.
            let claim = cluster.volumes.claim(&pod.namespace, &name);
            let volume = claim.and_then(|claim| cluster.volumes.volumes.get(volume_name(claim)));
            let Some(labels) = volume.and_then(|volume| volume.metadata.labels.as_ref()) else {
                continue;
            };
            zones.extend(LABELS.into_iter().filter_map(|key| {
                let values = labels.get(key)?.split(SEPARATOR).map(str::to_owned).collect();
                Some((key, values))
            }));
        }
        Ok((!zones.is_empty()).then(|| Box::new(Zones(zones)) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, _: &PodInfo) -> bool {
        match event {
            Event::StorageChanged | Event::NodeAdded(_) => true,
            Event::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
            _ => false,
        }
    }
}

impl Filter for Zones {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        // A cluster without zones has no wrong ones.
        if LABELS.into_iter().all(|key| node.label(key).is_none()) {
            return Ok(());
        }
        let right = |(key, values): &(&str, Vec<String>)| {
            node.label(key).is_some_and(|found| values.iter().any(|value| value == found))
        };
        if self.0.iter().all(right) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) had no available volume zone"))
    }
}
