//! The plugins, one file each. Which of them are asked is the configuration's business.

mod dynamic_resources;
mod image_locality;
mod inter_pod_affinity;
mod node_affinity;
mod node_declared_features;
mod node_name;
mod node_ports;
mod node_resources_balanced_allocation;
mod node_resources_fit;
mod node_unschedulable;
mod node_volume_limits;
mod pod_topology_spread;
mod scheduling_gates;
mod taint_toleration;
mod volume_binding;
mod volume_restrictions;
mod volume_zone;

use crate::framework::{Plugin, Point, Profile};

pub(crate) use dynamic_resources::DynamicResources;
pub use dynamic_resources::{Reservation, give_back, plan};
pub(crate) use image_locality::ImageLocality;
pub(crate) use inter_pod_affinity::InterPodAffinity;
pub(crate) use node_affinity::{NodeAffinity, selects};
pub(crate) use node_declared_features::NodeDeclaredFeatures;
pub(crate) use node_name::NodeName;
pub(crate) use node_ports::NodePorts;
pub(crate) use node_resources_balanced_allocation::NodeResourcesBalancedAllocation;
pub(crate) use node_resources_fit::NodeResourcesFit;
pub(crate) use node_unschedulable::NodeUnschedulable;
pub(crate) use node_volume_limits::NodeVolumeLimits;
pub(crate) use pod_topology_spread::PodTopologySpread;
pub(crate) use scheduling_gates::SchedulingGates;
pub(crate) use taint_toleration::TaintToleration;
pub(crate) use volume_binding::{VolumeBinding, claim_names, late_claims};
pub(crate) use volume_restrictions::VolumeRestrictions;
pub(crate) use volume_zone::VolumeZone;

/// A plugin that is a part of the loop: it can be switched off, and has no code of its own.
pub(crate) struct Marker(pub &'static str, pub &'static [Point]);

impl Plugin for Marker {
    fn name(&self) -> &'static str {
        self.0
    }

    fn points(&self) -> &'static [Point] {
        self.1
    }
}

/// The profile of `default-scheduler`.
pub fn default_profile() -> Profile {
    crate::configuration::Configuration::default().profiles.remove(0)
}
