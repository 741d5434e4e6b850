//! NodeVolumeLimits: a CSI driver can attach only so many volumes to a node.
//!
//! Source: `pkg/scheduler/framework/plugins/nodevolumelimits/csi.go`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::storage::v1::CSINode;

use super::volume_binding::{claim_names, uses};
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::late_binding::volume_name;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::{Changed, StorageChange, Volumes};

pub struct NodeVolumeLimits;

/// Driver and volume.
type Attached = (String, String);

/// The volumes of CSI drivers that the pod has, or will have.
fn attached(pod: &PodInfo, volumes: &Volumes) -> BTreeSet<Attached> {
    let mut all = BTreeSet::new();
    for (name, _) in claim_names(pod) {
        let Some(claim) = volumes.claim(&pod.namespace, &name) else { continue };
        let volume = volumes.volumes.get(volume_name(claim));
        if let Some(volume) = volume {
            let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
            all.extend(csi.map(|csi| (csi.driver.clone(), csi.volume_handle.clone())));
            continue;
        }
        // What is yet to be made counts for the driver that will make it.
        let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
        if let Some(class) = class.and_then(|class| volumes.classes.get(class)) {
            let place = format!("{}/{name}", pod.namespace);
            all.insert((class.provisioner.clone(), place));
        }
    }
    all
}

/// The volumes that are attached to each node, whether pods use them or not.
fn attached_to(volumes: &Volumes) -> BTreeMap<&str, BTreeSet<Attached>> {
    let mut all: BTreeMap<&str, BTreeSet<Attached>> = BTreeMap::new();
    for attachment in volumes.attachments.values() {
        let source = &attachment.spec.source;
        let named = source.persistent_volume_name.as_ref();
        let named = named.and_then(|name| volumes.volumes.get(name)?.spec.as_ref());
        let spec = named.or(source.inline_volume_spec.as_ref());
        let Some(csi) = spec.and_then(|spec| spec.csi.as_ref()) else { continue };
        let place = (csi.driver.clone(), csi.volume_handle.clone());
        all.entry(&attachment.spec.node_name).or_default().insert(place);
    }
    all
}

struct Limited<'a> {
    pod: &'a PodInfo,
    wanted: BTreeSet<Attached>,
    volumes: &'a Volumes,
    attached: BTreeMap<&'a str, BTreeSet<Attached>>,
}

/// Whether a driver can attach more to the node than before.
fn takes_more(node: &Changed<CSINode>) -> bool {
    let Some(old) = &node.old else { return true };
    node.new.spec.drivers.iter().any(|driver| {
        let count = |driver: &k8s_openapi::api::storage::v1::CSINodeDriver| {
            driver.allocatable.as_ref().and_then(|all| all.count).unwrap_or(0)
        };
        let before = old.spec.drivers.iter().find(|known| known.name == driver.name);
        before.is_none_or(|before| count(driver) > count(before))
    })
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let volumes = cluster.volumes.as_ref();
        let wanted = attached(pod, volumes);
        if wanted.is_empty() {
            return Ok(None);
        }
        let attached = attached_to(volumes);
        Ok(Some(Box::new(Limited { pod, wanted, volumes, attached })))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::AssignedPodRemoved(gone) => claim_names(gone).next().is_some(),
            Event::StorageChanged(StorageChange::Node(node)) => takes_more(node),
            Event::StorageChanged(StorageChange::Claim(claim)) => {
                claim.old.is_none() && uses(pod, &claim.new)
            }
            Event::StorageChanged(StorageChange::Detached) => claim_names(pod).next().is_some(),
            Event::StorageChanged(StorageChange::Any) | Event::NodeAdded(_) => true,
            _ => false,
        }
    }
}

impl Filter for Limited<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let Some(told) = self.volumes.nodes.get(&node.name) else { return Ok(()) };
        let limits: BTreeMap<&str, i64> = told
            .spec
            .drivers
            .iter()
            .filter_map(|driver| {
                let count = driver.allocatable.as_ref()?.count?;
                Some((driver.name.as_str(), i64::from(count)))
            })
            .collect();
        if !self.wanted.iter().any(|(driver, _)| limits.contains_key(driver.as_str())) {
            return Ok(());
        }
        let others = node.pods.iter().filter(|other| other.uid != self.pod.uid);
        let mut there: BTreeSet<Attached> =
            others.flat_map(|other| attached(other, self.volumes)).collect();
        // Those of pods that are gone may still be there.
        there.extend(self.attached.get(node.name.as_str()).into_iter().flatten().cloned());
        for (driver, limit) in limits {
            let of = |all: &BTreeSet<Attached>| all.iter().filter(|(of, _)| of == driver).count();
            let new = self.wanted.difference(&there).filter(|(of, _)| of == driver).count();
            if new > 0 && (of(&there) + new) as i64 > limit {
                return Err(Rejection::unschedulable("node(s) exceed max volume count"));
            }
        }
        Ok(())
    }
}
