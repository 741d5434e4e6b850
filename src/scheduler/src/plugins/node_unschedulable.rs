//! NodeUnschedulable: cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerated;
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeUnschedulable;

struct Uncordoned {
    tolerates: bool,
}

fn tolerates(pod: &PodInfo) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    tolerated(pod, &taint)
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        Ok(Some(Box::new(Uncordoned { tolerates: tolerates(pod) })))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        let cordoned = |node: &k8s_openapi::api::core::v1::Node| {
            node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
        };
        match event {
            Event::NodeAdded(node) => !cordoned(node),
            Event::NodeUpdated { old, new } => cordoned(old) && !cordoned(new),
            Event::Itself { old, new } => {
                old.spec().tolerations != new.spec().tolerations && tolerates(pod)
            }
            _ => false,
        }
    }
}

impl Filter for Uncordoned {
    fn is_local(&self) -> bool {
        true
    }

    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !node.is_unschedulable() || self.tolerates {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) were unschedulable"))
    }
}
