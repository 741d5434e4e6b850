//! TaintToleration: nodes repel pods that do not tolerate their taints.

use k8s_openapi::api::core::v1::Taint;

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection, Score, normalize};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct TaintToleration;

struct Tolerations<'a>(&'a PodInfo);

/// The pod tolerates `taint`.
pub fn tolerated(pod: &PodInfo, taint: &Taint) -> bool {
    pod.spec().tolerations.iter().flatten().any(|toleration| client::tolerates(toleration, taint))
}

/// No taint of the node keeps the pod away.
pub fn tolerates_node(pod: &PodInfo, taints: &[Taint]) -> bool {
    taints.iter().all(|taint| taint.effect == "PreferNoSchedule" || tolerated(pod, taint))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        Ok(Some(Box::new(Tolerations(pod))))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Tolerations(pod)))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        let taints = |node: &k8s_openapi::api::core::v1::Node| {
            node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default()
        };
        match event {
            Event::NodeAdded(node) => tolerates_node(pod, &taints(node)),
            Event::NodeUpdated { old, new } => {
                !tolerates_node(pod, &taints(old)) && tolerates_node(pod, &taints(new))
            }
            Event::Itself { old, new } => old.spec().tolerations != new.spec().tolerations,
            _ => false,
        }
    }
}

impl Filter for Tolerations<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if tolerates_node(self.0, node.taints()) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) had untolerated taint(s)"))
    }
}

impl Score for Tolerations<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let unwanted = node
            .taints()
            .iter()
            .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerated(self.0, taint));
        unwanted.count() as i64
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, true);
    }
}
