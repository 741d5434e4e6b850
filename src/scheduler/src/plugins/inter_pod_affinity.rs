//! InterPodAffinity: pods that want to be near other pods, or far from them.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Node;

use crate::affinity::AffinityTerm;
use crate::cluster::Cluster;
use crate::framework::{Event, Filter, MAX_NODE_SCORE, Plugin, Point, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct InterPodAffinity(pub crate::configuration::InterPodAffinity);

/// Numbers by topology: label key, then value.
type Topology = HashMap<String, HashMap<String, i64>>;

fn count(topology: &mut Topology, node: &NodeInfo, key: &str, amount: i64) {
    let Some(value) = node.label(key) else { return };
    if !topology.contains_key(key) {
        topology.insert(key.to_owned(), HashMap::new());
    }
    let Some(values) = topology.get_mut(key) else { return };
    match values.get_mut(value) {
        Some(known) => *known += amount,
        None => drop(values.insert(value.to_owned(), amount)),
    }
}

fn counted(topology: &Topology, node: &NodeInfo, key: &str) -> i64 {
    let Some(values) = topology.get(key) else { return 0 };
    node.label(key).and_then(|value| values.get(value)).copied().unwrap_or(0)
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
        self.repelling.keys().any(|key| counted(&self.repelling, node, key) > 0)
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
        self.0.keys().map(|key| counted(&self.0, node, key)).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        let min = scores.iter().copied().min().unwrap_or(0);
        let span = scores.iter().copied().max().unwrap_or(0) - min;
        for score in scores {
            *score = if span == 0 { 0 } else { MAX_NODE_SCORE * (*score - min) / span };
        }
    }
}

/// Whether the node is in a place of which the pod's terms speak; a pod without any is kept away by others, by
/// whatever label that may be.
fn may_take(pod: &PodInfo, node: &Node) -> bool {
    let own = &pod.affinities;
    let mut keys = own.required.iter().chain(&own.required_anti).map(|term| &term.topology_key);
    let labels = node.metadata.labels.as_ref();
    (own.required.is_empty() && own.required_anti.is_empty())
        || keys.any(|key| labels.is_some_and(|labels| labels.contains_key(key)))
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

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        let all = |terms: &[AffinityTerm], of: &PodInfo| {
            !terms.is_empty() && terms.iter().all(|term| term.may_select(of))
        };
        let any = |terms: &[AffinityTerm], of: &PodInfo| terms.iter().any(|t| t.may_select(of));
        let own = &pod.affinities;
        match event {
            Event::PodAssigned(new) => all(&own.required, new),
            // Without the last of those it wants, a pod that wants its like may begin anywhere.
            Event::AssignedPodRemoved(gone) => {
                any(&own.required_anti, gone)
                    || any(&gone.affinities.required_anti, pod)
                    || all(&own.required, gone)
            }
            Event::AssignedPodUpdated { old, new } => {
                let left = |term: &AffinityTerm| term.may_select(old) && !term.may_select(new);
                (all(&own.required, new) && !all(&own.required, old))
                    || own.required_anti.iter().any(left)
            }
            Event::Itself { old, new } => old.labels != new.labels,
            Event::NodeUpdated { old, new } => {
                old.metadata.labels != new.metadata.labels && may_take(pod, new)
            }
            Event::NodeAdded(node) => may_take(pod, node),
            Event::NamespaceChanged => true,
            Event::NodeRemoved(_)
            | Event::StorageChanged(_)
            | Event::DeviceClaimChanged(_)
            | Event::DevicesChanged => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod(namespace: &str, app: &str, affinity: Value) -> Arc<PodInfo> {
        let pod = json!({"metadata": {"namespace": namespace, "labels": {"app": app}},
            "spec": {"containers": [], "affinity": affinity}});
        Arc::new(PodInfo::new(Arc::new(serde_json::from_value(pod).expect("a pod"))))
    }

    fn terms(kind: &str, apps: &[&str], namespaces: Value) -> Value {
        let term = |app: &&str| {
            json!({"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}},
                "namespaceSelector": namespaces})
        };
        let terms: Vec<Value> = apps.iter().map(term).collect();
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
    }

    #[test]
    fn pods_wait_for_those_that_they_are_told_of() {
        let plugin = InterPodAffinity(crate::configuration::InterPodAffinity::default());
        let (near, far) = ("podAffinity", "podAntiAffinity");
        let own = |kind: &str, apps: &[&str]| pod("n", "me", terms(kind, apps, json!(null)));
        let plain = |namespace: &str, app: &str| pod(namespace, app, json!(null));
        let everywhere = pod("n", "me", terms(near, &["a"], json!({})));
        let repelling = pod("n", "a", terms(far, &["me"], json!(null)));
        for (waiting, other, comes, goes) in [
            (own(near, &["a"]), plain("n", "a"), true, true),
            (own(near, &["a"]), plain("n", "b"), false, false),
            (own(near, &["a"]), plain("m", "a"), false, false),
            (own(near, &["a", "b"]), plain("n", "a"), false, false),
            (everywhere, plain("m", "a"), true, true),
            (own(far, &["a"]), plain("n", "a"), false, true),
            (own(far, &["a"]), plain("n", "b"), false, false),
            (plain("n", "me"), repelling, false, true),
        ] {
            let helps = |event: &Event| plugin.may_help(event, &waiting);
            let got = (
                helps(&Event::PodAssigned(Arc::clone(&other))),
                helps(&Event::AssignedPodRemoved(Arc::clone(&other))),
            );
            assert_eq!(got, (comes, goes), "{:?} {:?}", waiting.affinities, other.labels);
        }
    }
}
