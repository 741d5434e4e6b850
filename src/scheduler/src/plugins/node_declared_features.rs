//! NodeDeclaredFeatures: a pod that needs something new goes where the node says that it can do it.
//!
//! Source: `pkg/scheduler/framework/plugins/nodedeclaredfeatures`,
//! `k8s.io/component-helpers/nodedeclaredfeatures/features`.

use k8s_openapi::api::core::v1::Node;

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeDeclaredFeatures;

/// What the pod needs.
struct Needs(Vec<&'static str>);

/// A rule of a container that begins the whole pod anew.
const RESTART_ALL: &str = "RestartAllContainersOnContainerExits";

fn needs(pod: &PodInfo) -> Vec<&'static str> {
    let spec = pod.spec();
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut rules =
        containers.flat_map(|container| container.restart_policy_rules.iter().flatten());
    if rules.any(|rule| rule.action == "RestartAllContainers") {
        vec![RESTART_ALL]
    } else {
        Vec::new()
    }
}

/// What of it the node does not declare.
fn missing(needs: &[&'static str], node: &Node) -> Vec<&'static str> {
    let declared = node.status.as_ref().and_then(|status| status.declared_features.as_deref());
    let declared = declared.unwrap_or_default();
    needs.iter().copied().filter(|need| !declared.iter().any(|known| known == need)).collect()
}

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let needs = needs(pod);
        Ok((!needs.is_empty()).then(|| Box::new(Needs(needs)) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        let fits = |node: &Node| missing(&needs(pod), node).is_empty();
        match event {
            Event::NodeAdded(node) => fits(node),
            Event::NodeUpdated { old, new } => !fits(old) && fits(new),
            Event::Itself { old, new } => needs(old) != needs(new),
            _ => false,
        }
    }
}

impl Filter for Needs {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let missing = missing(&self.0, &node.node);
        if missing.is_empty() {
            return Ok(());
        }
        Err(Rejection::unresolvable(format!(
            "node declared features check failed - unsatisfied requirements: {}",
            missing.join(", ")
        )))
    }
}
