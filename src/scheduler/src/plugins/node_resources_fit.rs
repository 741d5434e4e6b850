//! NodeResourcesFit: what the pod asks for must be free; among nodes, the emptiest (LeastAllocated).

use std::borrow::Cow;

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, MAX_NODE_SCORE, Plugin, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeResourcesFit;

struct Request<'a>(&'a PodInfo);

/// What the node lacks for the pod.
fn shortages(pod: &PodInfo, node: &NodeInfo) -> Option<Rejection> {
    let mut resolvable = true;
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    if node.pods.len() as i64 + 1 > node.pods_max {
        reasons.push("Too many pods".into());
    }
    let request = &pod.requests;
    let mut lacks = |reason: Cow<'static, str>, asked: i64, used: i64, all: i64| {
        if asked > 0 && asked > all - used {
            reasons.push(reason);
            resolvable &= asked <= all;
        }
    };
    let (used, all) = (&node.requested, &node.allocatable);
    lacks("Insufficient cpu".into(), request.milli_cpu, used.milli_cpu, all.milli_cpu);
    lacks("Insufficient memory".into(), request.memory_bytes, used.memory_bytes, all.memory_bytes);
    lacks(
        "Insufficient ephemeral-storage".into(),
        request.ephemeral_bytes,
        used.ephemeral_bytes,
        all.ephemeral_bytes,
    );
    for (name, asked) in &request.scalars {
        let amount = |of: &crate::resource::Resource| of.scalars.get(name).copied().unwrap_or(0);
        lacks(format!("Insufficient {name}").into(), *asked, amount(used), amount(all));
    }
    (!reasons.is_empty()).then_some(Rejection { resolvable, reasons })
}

fn least_requested(requested: i64, all: i64) -> i64 {
    if all == 0 || requested > all { 0 } else { (all - requested) * MAX_NODE_SCORE / all }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        Ok(Some(Box::new(Request(pod))))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Request(pod)))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            // The node is looked at empty: what is on it changes by other events.
            Event::NodeAdded(node) => shortages(pod, &NodeInfo::new(node.clone())).is_none(),
            Event::NodeUpdated { old, new } => {
                let allocatable = |node: &k8s_openapi::api::core::v1::Node| {
                    node.status.as_ref().and_then(|status| status.allocatable.clone())
                };
                allocatable(old) != allocatable(new)
                    && shortages(pod, &NodeInfo::new(new.clone())).is_none()
            }
            Event::AssignedPodRemoved(_) => true,
            Event::AssignedPodUpdated { old, new } | Event::Itself { old, new } => {
                old.requests != new.requests
            }
            _ => false,
        }
    }
}

impl Filter for Request<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        shortages(self.0, node).map_or(Ok(()), Err)
    }
}

impl Score for Request<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (all, used, asked) = (&node.allocatable, &node.weighed, &self.0.weighed);
        let shares = [
            (all.milli_cpu, used.milli_cpu + asked.milli_cpu),
            (all.memory_bytes, used.memory_bytes + asked.memory_bytes),
        ];
        let shares: Vec<i64> = shares
            .into_iter()
            .filter(|(all, _)| *all != 0)
            .map(|(all, requested)| least_requested(requested, all))
            .collect();
        if shares.is_empty() { 0 } else { shares.iter().sum::<i64>() / shares.len() as i64 }
    }
}
