//! NodeAffinity: the pod's node selector and node affinity against the nodes' labels.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{
    NodeAffinity as Terms, NodeSelectorRequirement, NodeSelectorTerm,
};

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection, Score, normalize};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeAffinity(pub crate::configuration::NodeAffinity);

/// Source: `k8s.io/component-helpers/scheduling/corev1/nodeaffinity`.
fn requirement_holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |text: &str| text.parse::<i64>().ok();
    let compare = |holds: fn(&i64, &i64) -> bool| match (found.and_then(number), values) {
        (Some(found), [bound]) => number(bound).is_some_and(|bound| holds(&found, &bound)),
        _ => false,
    };
    let among = |text: &str| values.iter().any(|value| value == text);
    match requirement.operator.as_str() {
        "In" => found.is_some_and(among),
        "NotIn" => !found.is_some_and(among),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// A term without conditions matches no node.
fn term_holds(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(node.name.as_str());
    !(labels.is_empty() && fields.is_empty())
        && labels.iter().all(|r| requirement_holds(r, node.label(&r.key)))
        && fields.iter().all(|r| requirement_holds(r, field(&r.key)))
}

fn terms(pod: &PodInfo) -> Option<&Terms> {
    pod.spec().affinity.as_ref()?.node_affinity.as_ref()
}

fn required(pod: &PodInfo) -> Option<&[NodeSelectorTerm]> {
    let required = terms(pod)?.required_during_scheduling_ignored_during_execution.as_ref()?;
    Some(&required.node_selector_terms)
}

/// The node has the labels that the pod requires.
pub fn matches_node(pod: &PodInfo, node: &NodeInfo) -> bool {
    let mut wanted = pod.spec().node_selector.iter().flatten();
    wanted.all(|(key, value)| node.label(key) == Some(value))
        && required(pod).is_none_or(|terms| selects(terms, node))
}

/// One of the terms holds for the node.
pub fn selects(terms: &[NodeSelectorTerm], node: &NodeInfo) -> bool {
    terms.iter().any(|term| term_holds(term, node))
}

/// The nodes that the pod's terms name, when every term names some.
fn named_nodes(pod: &PodInfo) -> Option<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for term in required(pod)? {
        let named = term.match_fields.iter().flatten();
        let mut named = named.filter(|r| r.key == "metadata.name" && r.operator == "In");
        let first: BTreeSet<String> = named.next()?.values.iter().flatten().cloned().collect();
        all.extend(named.fold(first, |names, requirement| {
            let values = requirement.values.as_deref().unwrap_or_default();
            names.into_iter().filter(|name| values.contains(name)).collect()
        }));
    }
    Some(all)
}

impl NodeAffinity {
    /// What the profile requires of every node.
    fn added(&self) -> Option<&[NodeSelectorTerm]> {
        let added = self.0.added.as_ref()?;
        let required = added.required_during_scheduling_ignored_during_execution.as_ref()?;
        Some(&required.node_selector_terms)
    }
}

struct Required<'a> {
    pod: &'a PodInfo,
    added: Option<&'a [NodeSelectorTerm]>,
}

struct Preferred<'a>(Vec<(&'a NodeSelectorTerm, i64)>);

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let selects = pod.spec().node_selector.as_ref().is_some_and(|labels| !labels.is_empty());
        let added = self.added();
        if !selects && required(pod).is_none() && added.is_none() {
            return Ok(None);
        }
        if named_nodes(pod).is_some_and(|names| names.is_empty()) {
            return Err(Rejection::unresolvable("pod affinity terms conflict"));
        }
        Ok(Some(Box::new(Required { pod, added })))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let wishes: Vec<_> = terms(pod)
            .into_iter()
            .chain(self.0.added.as_ref())
            .flat_map(|terms| &terms.preferred_during_scheduling_ignored_during_execution)
            .flatten()
            .map(|wish| (&wish.preference, i64::from(wish.weight)))
            .collect();
        (!wishes.is_empty()).then(|| Box::new(Preferred(wishes)) as Box<dyn Score>)
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        let matches = |node: &std::sync::Arc<k8s_openapi::api::core::v1::Node>| {
            let node = NodeInfo::new(node.clone());
            self.added().is_none_or(|terms| selects(terms, &node)) && matches_node(pod, &node)
        };
        match event {
            Event::NodeAdded(node) => matches(node),
            Event::NodeUpdated { old, new } => {
                old.metadata.labels != new.metadata.labels && !matches(old) && matches(new)
            }
            // A pod that is gated may still be narrowed to other nodes.
            Event::Itself { old, new } => {
                old.spec().node_selector != new.spec().node_selector || terms(old) != terms(new)
            }
            _ => false,
        }
    }
}

impl Filter for Required<'_> {
    fn nodes(&self) -> Option<BTreeSet<String>> {
        named_nodes(self.pod)
    }

    fn is_local(&self) -> bool {
        true
    }

    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if self.added.is_some_and(|terms| !selects(terms, node)) {
            let reason = "node(s) didn't match scheduler-enforced node affinity";
            return Err(Rejection::unresolvable(reason));
        }
        if matches_node(self.pod, node) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for Preferred<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let holding = self.0.iter().filter(|(term, _)| term_holds(term, node));
        holding.map(|(_, weight)| weight).sum()
    }

    fn normalize(&self, _: &[&NodeInfo], scores: &mut [i64]) {
        normalize(scores, false);
    }
}
