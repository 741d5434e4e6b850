//! NodeResourcesFit: what the pod asks for must be free; among nodes, the emptiest, the fullest, or what a
//! function says.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::cluster::Cluster;
use crate::configuration::{Resources, Scoring, Strategy, UtilizationPoint};
use crate::extended_resources::{backed, may_be_backed};
use crate::framework::{Event, Filter, MAX_NODE_SCORE, Plugin, Point, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeResourcesFit(pub Resources);

struct Request<'a> {
    pod: &'a PodInfo,
    arguments: &'a Resources,
    /// The resources that devices may stand in for: where the node has none of its own, these are claimed.
    backed: BTreeSet<String>,
}

/// The best score of a point of a scoring function.
const MAX_POINT_SCORE: i64 = 10;

/// Whether nodes need not have the resource.
fn is_ignored(name: &str, arguments: &Resources) -> bool {
    let group = || name.split_once('/').map_or("", |(group, _)| group);
    arguments.ignored.iter().any(|ignored| ignored == name)
        || arguments.ignored_groups.iter().any(|ignored| ignored == group())
}

/// What the node lacks for the pod, apart from what devices stand in for.
fn shortages(
    pod: &PodInfo,
    node: &NodeInfo,
    arguments: &Resources,
    backed: impl Fn(&str) -> bool,
) -> Option<Rejection> {
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
        if is_ignored(name, arguments) {
            continue;
        }
        let amount = |of: &crate::resource::Resource| of.scalars.get(name).copied().unwrap_or(0);
        if amount(all) == 0 && backed(name) {
            continue;
        }
        lacks(format!("Insufficient {name}").into(), *asked, amount(used), amount(all));
    }
    (!reasons.is_empty()).then_some(Rejection { resolvable, reasons })
}

fn least_requested(requested: i64, all: i64) -> i64 {
    if all == 0 || requested > all { 0 } else { (all - requested) * MAX_NODE_SCORE / all }
}

fn most_requested(requested: i64, all: i64) -> i64 {
    if all == 0 { 0 } else { requested.min(all) * MAX_NODE_SCORE / all }
}

/// The value at `use_` percent of the line through the points, scaled to a node's score.
fn along(shape: &[UtilizationPoint], use_: i64) -> i64 {
    let scaled = |point: &UtilizationPoint| point.score * (MAX_NODE_SCORE / MAX_POINT_SCORE);
    let Some(at) = shape.iter().position(|point| use_ <= point.utilization) else {
        return shape.last().map_or(0, scaled);
    };
    let Some(before) = at.checked_sub(1) else { return scaled(&shape[0]) };
    let (from, to) = (&shape[before], &shape[at]);
    let rise = (scaled(to) - scaled(from)) * (use_ - from.utilization);
    scaled(from) + rise / (to.utilization - from.utilization)
}

/// The score of a node on which `requested` of `all` would be used, resource by resource.
fn rate(scoring: &Scoring, uses: impl Iterator<Item = (i64, i64, i64)>) -> i64 {
    let (mut sum, mut weights) = (0, 0);
    for (weight, requested, all) in uses {
        let score = match scoring.strategy {
            Strategy::LeastAllocated => least_requested(requested, all),
            Strategy::MostAllocated => most_requested(requested, all),
            Strategy::RequestedToCapacityRatio => {
                let use_ = if all == 0 || requested > all { 100 } else { requested * 100 / all };
                let score = along(&scoring.shape, use_);
                if score == 0 {
                    continue;
                }
                score
            }
        };
        sum += score * weight;
        weights += weight;
    }
    match (weights, scoring.strategy) {
        (0, _) => 0,
        (_, Strategy::RequestedToCapacityRatio) => (sum as f64 / weights as f64).round() as i64,
        _ => sum / weights,
    }
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let backed = backed(pod, &cluster.devices);
        Ok(Some(Box::new(Request { pod, arguments: &self.0, backed })))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(Request { pod, arguments: &self.0, backed: BTreeSet::new() }))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            // The node is looked at empty: what is on it changes by other events.
            Event::NodeAdded(node) => {
                shortages(pod, &NodeInfo::new(node.clone()), &self.0, may_be_backed).is_none()
            }
            Event::NodeUpdated { old, new } => {
                let allocatable = |node: &k8s_openapi::api::core::v1::Node| {
                    node.status.as_ref().and_then(|status| status.allocatable.clone())
                };
                allocatable(old) != allocatable(new)
                    && shortages(pod, &NodeInfo::new(new.clone()), &self.0, may_be_backed).is_none()
            }
            Event::AssignedPodRemoved(_) => true,
            // A class may stand for a resource from now on.
            Event::DevicesChanged => pod.requests.scalars.keys().any(|name| may_be_backed(name)),
            Event::AssignedPodUpdated { old, new } | Event::Itself { old, new } => {
                old.requests != new.requests
            }
            _ => false,
        }
    }
}

impl Filter for Request<'_> {
    fn is_local(&self) -> bool {
        // Which resources have devices behind them changes with the classes of devices.
        !self.pod.requests.scalars.keys().any(|name| may_be_backed(name))
    }

    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let backed = |name: &str| self.backed.contains(name);
        shortages(self.pod, node, self.arguments, backed).map_or(Ok(()), Err)
    }
}

impl Score for Request<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let (all, used, asked) = (&node.allocatable, &node.weighed, &self.pod.weighed);
        let scoring = &self.arguments.scoring;
        let uses = scoring.resources.iter().filter_map(|resource| {
            let name = resource.name.as_str();
            let (asked, all) = (asked.amount(name), all.amount(name));
            // What the pod does not ask for, and the node does not have, does not count.
            let counts =
                all != 0 && (asked != 0 || matches!(name, "cpu" | "memory" | "ephemeral-storage"));
            counts.then(|| (resource.weight, used.amount(name) + asked, all))
        });
        rate(scoring, uses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_rate_the_use_of_a_node() {
        let scoring = |strategy, points: &[(i64, i64)]| Scoring {
            strategy,
            shape: points
                .iter()
                .map(|(utilization, score)| UtilizationPoint {
                    utilization: *utilization,
                    score: *score,
                })
                .collect(),
            ..Scoring::default()
        };
        let least = scoring(Strategy::LeastAllocated, &[]);
        let most = scoring(Strategy::MostAllocated, &[]);
        let pack = scoring(Strategy::RequestedToCapacityRatio, &[(0, 0), (100, 10)]);
        let half = scoring(Strategy::RequestedToCapacityRatio, &[(0, 0), (50, 10), (100, 0)]);
        let cases = [
            (&least, vec![(1, 3, 4), (1, 5, 10)], 37),
            (&least, vec![(3, 1, 4), (1, 0, 10)], 81),
            (&least, vec![(1, 5, 4)], 0),
            (&most, vec![(1, 3, 4), (1, 5, 10)], 62),
            (&most, vec![(1, 9, 4)], 100),
            (&pack, vec![(1, 3, 4), (1, 5, 10)], 63),
            (&half, vec![(1, 3, 4)], 50),
            (&half, vec![(1, 1, 2)], 100),
        ];
        for (scoring, uses, want) in cases {
            let told = format!("{:?} {uses:?}", scoring.strategy);
            assert_eq!(rate(scoring, uses.into_iter()), want, "{told}");
        }
    }
}
