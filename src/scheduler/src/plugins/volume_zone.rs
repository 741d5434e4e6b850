//! VolumeZone: a pod goes to the zone of its volumes, where their labels name one.
//!
//! Source: `pkg/scheduler/framework/plugins/volumezone/volume_zone.go`.

use k8s_openapi::api::core::v1::PersistentVolume;

use super::volume_binding::{claim_names, uses};
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::late_binding::volume_name;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::StorageChange;

pub struct VolumeZone;

const LABELS: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];
/// Between the zones of a volume that is in several.
const SEPARATOR: &str = "__";

/// A label that a node must have, and the values that will do.
type Zone = (&'static str, Vec<String>);

/// Labels of the pod's volumes that a node must have.
struct Zones(Vec<Zone>);

/// Where the volume is, as its labels say. A label that names an empty zone says nothing.
fn zones(volume: &PersistentVolume) -> Vec<Zone> {
    let labels = volume.metadata.labels.as_ref();
    let zone = |key: &'static str| {
        let values = labels?.get(key)?.split(SEPARATOR).map(|value| value.trim().to_owned());
        let values: Vec<String> = values.collect();
        values.iter().all(|value| !value.is_empty()).then_some((key, values))
    };
    LABELS.into_iter().filter_map(zone).collect()
}

/// The node's label `key`; of an old one also what it is called today.
fn found<'a>(node: &'a NodeInfo, key: &str) -> Option<&'a str> {
    let today = key.strip_prefix("failure-domain.beta.kubernetes.io/");
    node.label(key).or_else(|| node.label(&format!("topology.kubernetes.io/{}", today?)))
}

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
        let mut all = Vec::new();
        for (name, ephemeral) in claim_names(pod) {
            let claim = cluster.volumes.claim(&pod.namespace, &name).filter(|_| !ephemeral);
            // What is not bound yet is VolumeBinding's business.
            let Some(volume) = claim.map(|claim| volume_name(claim)).filter(|v| !v.is_empty())
            else {
                continue;
            };
            let Some(known) = cluster.volumes.volumes.get(volume) else {
                let reason = format!("persistentvolume {volume:?} not found");
                return Err(Rejection::unresolvable(reason));
            };
            all.extend(zones(known));
        }
        Ok((!all.is_empty()).then(|| Box::new(Zones(all)) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::StorageChanged(StorageChange::Claim(claim)) => uses(pod, &claim.new),
            Event::StorageChanged(StorageChange::Volume(volume)) => {
                volume.old.as_ref().is_none_or(|old| zones(old) != zones(&volume.new))
            }
            Event::StorageChanged(StorageChange::Class(class)) => {
                class.old.is_none()
                    && class.new.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
            }
            Event::StorageChanged(StorageChange::Any) | Event::NodeAdded(_) => true,
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
            found(node, key).is_some_and(|found| values.iter().any(|value| value == found))
        };
        if self.0.iter().all(right) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) had no available volume zone"))
    }
}
