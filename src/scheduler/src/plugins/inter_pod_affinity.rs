//! InterPodAffinity: pods that want to be near other pods, or far from them.

use std::collections::HashMap;

use crate::affinity::AffinityTerm;
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, MAX_NODE_SCORE, Plugin, Point, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct InterPodAffinity(pub crate::configuration::InterPodAffinity);

/// Numbers by topology: label key and value.
type Topology = HashMap<(String, String), i64>;

fn count(topology: &mut Topology, node: &NodeInfo, key: &str, amount: i64) {
    if let Some(value) = node.label(key) {
        *topology.entry((key.to_owned(), value.to_owned())).or_default() += amount;
    }
}

fn counted(topology: &Topology, node: &NodeInfo, key: &str) -> i64 {
    let place = |value: &str| topology.get(&(key.to_owned(), value.to_owned())).copied();
    node.label(key).and_then(place).unwrap_or(0)
}

struct Required<'a> {
    pod: &'a PodInfo,
    /// Pods that match all the pod's affinity terms.
    near: Topology,
    /// The pod would satisfy its own affinity terms.
    attracts_itself: bool,
    /// Pods that the pod repels.
    far: Topology,
    /// Pods that repel the pod.
    repelling: Topology,
}

fn required<'a>(pod: &'a PodInfo, cluster: &Cluster) -> Option<Required<'a>> {
    let own = &pod.affinities;
    let wants = !own.required.is_empty() || !own.required_anti.is_empty();
    if !wants && !cluster.has_anti_affine_pods() {
        return None;
    }
    let names = &cluster.namespaces;
    let all = |other: &PodInfo| own.required.iter().all(|term| term.selects(other, names));
    let (mut near, mut far, mut repelling) = (Topology::new(), Topology::new(), Topology::new());
    for node in cluster.nodes() {
        for other in &node.pods {
            for term in &other.affinities.required_anti {
                if term.selects(pod, names) {
                    count(&mut repelling, node, &term.topology_key, 1);
                }
            }
            if !own.required.is_empty() && all(other) {
                for term in &own.required {
                    count(&mut near, node, &term.topology_key, 1);
                }
            }
            for term in &own.required_anti {
                if term.selects(other, names) {
                    count(&mut far, node, &term.topology_key, 1);
                }
            }
        }
    }
    (wants || !repelling.is_empty()).then(|| Required {
        pod,
        near,
        attracts_itself: all(pod),
        far,
        repelling,
    })
}

impl Required<'_> {
    fn attracted(&self, node: &NodeInfo) -> bool {
        let terms = &self.pod.affinities.required;
        let labelled = terms.iter().all(|term| node.label(&term.topology_key).is_some());
        let near = |term: &AffinityTerm| counted(&self.near, node, &term.topology_key) > 0;
        // The first of a group of pods that want each other has to start somewhere.
        labelled && (terms.iter().all(near) || (self.near.is_empty() && self.attracts_itself))
    }

    fn repelled(&self, node: &NodeInfo) -> bool {
        let mut labels = node.labels().into_iter().flatten();
        !self.repelling.is_empty() && labels.any(|(key, _)| counted(&self.repelling, node, key) > 0)
    }
}

impl Filter for Required<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if !self.attracted(node) {
            return Err(Rejection::unresolvable("node(s) didn't match pod affinity rules"));
        }
        let mut terms = self.pod.affinities.required_anti.iter();
        if terms.any(|term| counted(&self.far, node, &term.topology_key) > 0) {
            return Err(Rejection::unschedulable("node(s) didn't match pod anti-affinity rules"));
        }
        if self.repelled(node) {
            let reason = "node(s) didn't satisfy existing pods anti-affinity rules";
            return Err(Rejection::unschedulable(reason));
        }
        Ok(())
    }
}

struct Preferred(Topology);

fn preferred(
    pod: &PodInfo,
    cluster: &Cluster,
    arguments: &crate::configuration::InterPodAffinity,
) -> Option<Preferred> {
    let own = &pod.affinities;
    let wishes = !own.preferred.is_empty() || !own.preferred_anti.is_empty();
    if !wishes && (arguments.ignore_preferred_of_existing || !cluster.has_affine_pods()) {
        return None;
    }
    let hard = arguments.hard_weight;
    let names = &cluster.namespaces;
    let mut scores = Topology::new();
    for node in cluster.nodes() {
        let mut rate = |term: &AffinityTerm, selected: &PodInfo, weight: i64| {
            if term.selects(selected, names) {
                count(&mut scores, node, &term.topology_key, weight);
            }
        };
        for other in &node.pods {
            let its = &other.affinities;
            own.preferred.iter().for_each(|wish| rate(&wish.term, other, wish.weight));
            own.preferred_anti.iter().for_each(|wish| rate(&wish.term, other, -wish.weight));
            if hard > 0 {
                its.required.iter().for_each(|term| rate(term, pod, hard));
            }
            its.preferred.iter().for_each(|wish| rate(&wish.term, pod, wish.weight));
            its.preferred_anti.iter().for_each(|wish| rate(&wish.term, pod, -wish.weight));
        }
    }
    (!scores.is_empty()).then_some(Preferred(scores))
}

impl Score for Preferred {
    fn score(&self, node: &NodeInfo) -> i64 {
        let scores = self.0.iter().filter(|((key, value), _)| node.label(key) == Some(value));
        scores.map(|(_, score)| score).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let span = scores.iter().copied().max().unwrap_or(0) - min;
        for score in scores {
            *score = if span == 0 { 0 } else { MAX_NODE_SCORE * (*score - min) / span };
        }
    }
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        Ok(required(pod, cluster).map(|filter| Box::new(filter) as Box<dyn Filter>))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        preferred(pod, cluster, &self.0).map(|score| Box::new(score) as Box<dyn Score>)
    }

    fn may_help(&self, event: &Event, _: &PodInfo) -> bool {
        match event {
            Event::NodeUpdated { old, new } => old.metadata.labels != new.metadata.labels,
            Event::AssignedPodUpdated { old, new } | Event::Itself { old, new } => {
                old.labels != new.labels
            }
            Event::NodeAdded(_)
            | Event::PodAssigned(_)
            | Event::AssignedPodRemoved(_)
            | Event::NamespaceChanged => true,
            Event::StorageChanged | Event::DevicesChanged => false,
        }
    }
}
