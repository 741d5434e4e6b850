//! The plugins, one file each, and upstream's default choice of them.

mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use crate::framework::{Plugin, Profile, Weighted};

pub(crate) use node_affinity::selects;
pub(crate) use volume_binding::{claim_names, late_claims};

/// The profile of `default-scheduler`.
///
/// Source: `pkg/scheduler/apis/config/v1/default_plugins.go`.
pub fn default_profile() -> Profile {
    let plugins: [(Box<dyn Plugin>, i64); 14] = [
        (Box::new(scheduling_gates::SchedulingGates), 0),
        (Box::new(node_unschedulable::NodeUnschedulable), 0),
        (Box::new(node_name::NodeName), 0),
        (Box::new(taint_toleration::TaintToleration), 3),
        (Box::new(node_affinity::NodeAffinity), 2),
        (Box::new(node_ports::NodePorts), 0),
        (Box::new(node_resources_fit::NodeResourcesFit), 1),
        (Box::new(volume_restrictions::VolumeRestrictions), 0),
        (Box::new(volume_binding::VolumeBinding), 0),
        (Box::new(volume_zone::VolumeZone), 0),
        (Box::new(pod_topology_spread::PodTopologySpread), 2),
        (Box::new(inter_pod_affinity::InterPodAffinity), 2),
        (Box::new(node_resources_balanced_allocation::NodeResourcesBalancedAllocation), 1),
        (Box::new(image_locality::ImageLocality), 1),
    ];
    let plugins = plugins.into_iter().map(|(plugin, weight)| Weighted { plugin, weight }).collect();
    Profile { scheduler_name: "default-scheduler".into(), plugins }
}
