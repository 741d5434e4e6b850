//! PodTopologySpread: pods of one kind spread evenly over zones, nodes, or any other node label.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use apimachinery::labels::Selector;
use k8s_openapi::api::core::v1::{Node, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::{node_affinity, taint_toleration};
use crate::affinity;
use crate::cluster::Cluster;
use crate::configuration::{Defaulting, PodTopologySpread as Arguments};
use crate::framework::{Event, Filter, MAX_NODE_SCORE, Plugin, Point, Rejection, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// What pods of a Service or a set without constraints of their own would rather have.
const SYSTEM_DEFAULTS: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];

pub struct PodTopologySpread(pub Arguments);

struct Constraint {
    key: String,
    selector: Selector,
    max_skew: i64,
    min_domains: i64,
    honour_affinity: bool,
    honour_taints: bool,
    /// Groups of pods, and whether it is about them; all are asked for in the pod's namespace.
    known: RefCell<HashMap<u64, bool>>,
}

impl Constraint {
    fn new(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Self {
        let honours = |policy: &Option<String>, default| {
            policy.as_deref().map_or(default, |policy| policy == "Honor")
        };
        let mut selector: Option<LabelSelector> = constraint.label_selector.clone();
        for key in constraint.match_label_keys.iter().flatten() {
            // A key that the pod lacks is ignored; one that the selector has already is harmless.
            let Some(value) = pod.labels.get(key) else { continue };
            let requirement = LabelSelectorRequirement {
                key: key.clone(),
                operator: "In".into(),
                values: Some(vec![value.clone()]),
            };
            let selector = selector.get_or_insert_default();
            selector.match_expressions.get_or_insert_default().push(requirement);
        }
        Self {
            key: constraint.topology_key.clone(),
            selector: affinity::selector(selector.as_ref()),
            max_skew: i64::from(constraint.max_skew),
            min_domains: i64::from(constraint.min_domains.unwrap_or(1)),
            honour_affinity: honours(&constraint.node_affinity_policy, true),
            honour_taints: honours(&constraint.node_taints_policy, false),
            known: RefCell::default(),
        }
    }

    /// Pods on `node` count.
    fn includes(&self, node: &NodeInfo, pod: &PodInfo) -> bool {
        (!self.honour_affinity || node_affinity::matches_node(pod, node))
            && (!self.honour_taints || taint_toleration::tolerates_node(pod, node.taints()))
    }

    /// How many pods on `node` it is about.
    fn matching(&self, node: &NodeInfo, namespace: &str) -> i64 {
        // One that picks everything counts nothing, as upstream has it.
        if self.selector.is_everything() {
            return 0;
        }
        let mut known = self.known.borrow_mut();
        let mut about = |pod: &PodInfo| {
            *known
                .entry(pod.group)
                .or_insert_with(|| pod.namespace == namespace && self.selector.matches(&pod.labels))
        };
        node.groups.iter().filter(|group| about(&group.sample)).map(|group| group.count).sum()
    }
}

/// The pod's constraints, or those that the profile gives to pods without any. Says whether nodes must have
/// all their keys to be rated.
fn constraints(
    pod: &PodInfo,
    cluster: &Cluster,
    arguments: &Arguments,
    when_unsatisfiable: &str,
) -> (Vec<Constraint>, bool) {
    let own = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
    if !own.is_empty() {
        let own = own.iter().filter(|c| c.when_unsatisfiable == when_unsatisfiable);
        return (own.map(|constraint| Constraint::new(constraint, pod)).collect(), true);
    }
    let system = arguments.defaulting == Defaulting::System;
    if system && when_unsatisfiable != "ScheduleAnyway" {
        return (Vec::new(), false);
    }
    let Some(selector) = cluster.owners.selector(pod) else { return (Vec::new(), !system) };
    let given = |key: &str, max_skew: i64| Constraint {
        key: key.to_owned(),
        selector: selector.clone(),
        max_skew,
        min_domains: 1,
        honour_affinity: true,
        honour_taints: false,
        known: RefCell::default(),
    };
    if system {
        return (SYSTEM_DEFAULTS.map(|(key, max_skew)| given(key, max_skew)).into(), false);
    }
    let listed = arguments.constraints.iter();
    let listed = listed.filter(|c| c.when_unsatisfiable == when_unsatisfiable);
    let made = listed.map(|constraint| Constraint {
        selector: selector.clone(),
        ..Constraint::new(constraint, pod)
    });
    (made.collect(), true)
}

fn has_all_keys(constraints: &[Constraint], node: &NodeInfo) -> bool {
    constraints.iter().all(|constraint| node.label(&constraint.key).is_some())
}

/// A constraint with the number of pods in each domain.
struct Counted {
    constraint: Constraint,
    domains: HashMap<String, i64>,
    fewest: i64,
    /// The pod itself adds to its domain.
    own: i64,
}

struct Required(Vec<Counted>);

fn required(pod: &PodInfo, cluster: &Cluster, arguments: &Arguments) -> Required {
    let (constraints, _) = constraints(pod, cluster, arguments, "DoNotSchedule");
    if constraints.is_empty() {
        return Required(Vec::new());
    }
    let nodes: Vec<_> =
        cluster.nodes().iter().filter(|node| has_all_keys(&constraints, node)).collect();
    let count = |constraint: Constraint| {
        let mut domains: HashMap<String, i64> = HashMap::new();
        for node in nodes.iter().filter(|node| constraint.includes(node, pod)) {
            let Some(value) = node.label(&constraint.key) else { continue };
            *domains.entry(value.to_owned()).or_default() +=
                constraint.matching(node, &pod.namespace);
        }
        let fewest = domains.values().copied().min().unwrap_or(i64::MAX / 2);
        let too_few_domains = (domains.len() as i64) < constraint.min_domains;
        let fewest = if too_few_domains { 0 } else { fewest };
        let own = i64::from(constraint.selector.matches(&pod.labels));
        Counted { constraint, domains, fewest, own }
    };
    Required(constraints.into_iter().map(count).collect())
}

impl Filter for Required {
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        for Counted { constraint, domains, fewest, own } in &self.0 {
            let Some(value) = node.label(&constraint.key) else {
                return Err(Rejection::unresolvable(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            };
            let here = domains.get(value).copied().unwrap_or(0);
            if here + own - fewest > constraint.max_skew {
                let reason = "node(s) didn't match pod topology spread constraints";
                return Err(Rejection::unschedulable(reason));
            }
        }
        Ok(())
    }
}

struct Preferred<'a> {
    pod: &'a PodInfo,
    /// Nodes without all the keys are not rated.
    all_keys: bool,
    /// With the weight of each: more domains make each of them matter more.
    constraints: Vec<(Constraint, HashMap<String, i64>, f64)>,
}

fn preferred<'a>(
    pod: &'a PodInfo,
    cluster: &Cluster,
    nodes: &[&NodeInfo],
    arguments: &Arguments,
) -> Option<Preferred<'a>> {
    let (constraints, all_keys) = constraints(pod, cluster, arguments, "ScheduleAnyway");
    if constraints.is_empty() {
        return None;
    }
    let rated = |node: &NodeInfo| !all_keys || has_all_keys(&constraints, node);
    let usable: Vec<_> = nodes.iter().filter(|node| rated(node)).collect();
    let domains_of = |constraint: &Constraint| -> HashSet<&str> {
        usable.iter().filter_map(|node| node.label(&constraint.key)).collect()
    };
    let counted = constraints.iter().map(|constraint| {
        let domains = domains_of(constraint);
        let size = if constraint.key == HOSTNAME { usable.len() } else { domains.len() };
        let mut counts: HashMap<String, i64> = HashMap::new();
        // The pods of a node are counted when the node is rated.
        if constraint.key != HOSTNAME && !domains.is_empty() {
            for node in cluster.nodes() {
                let value = node.label(&constraint.key).filter(|value| domains.contains(value));
                if let Some(value) = value
                    && rated(node)
                    && constraint.includes(node, pod)
                {
                    *counts.entry(value.to_owned()).or_default() +=
                        constraint.matching(node, &pod.namespace);
                }
            }
        }
        (counts, (size as f64 + 2.0).ln())
    });
    let counted: Vec<_> = counted.collect();
    let constraints = constraints.into_iter().zip(counted);
    let constraints =
        constraints.map(|(constraint, (counts, weight))| (constraint, counts, weight));
    Some(Preferred { pod, all_keys, constraints: constraints.collect() })
}

impl Preferred<'_> {
    fn usable(&self, node: &NodeInfo) -> bool {
        !self.all_keys
            || self
                .constraints
                .iter()
                .all(|(constraint, _, _)| node.label(&constraint.key).is_some())
    }
}

impl Score for Preferred<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        if !self.usable(node) {
            return 0;
        }
        let of = |(constraint, counts, weight): &(Constraint, HashMap<String, i64>, f64)| {
            let Some(value) = node.label(&constraint.key) else { return 0.0 };
            let count = if constraint.key == HOSTNAME {
                constraint.matching(node, &self.pod.namespace)
            } else {
                counts.get(value).copied().unwrap_or(0)
            };
            count as f64 * weight + (constraint.max_skew - 1) as f64
        };
        self.constraints.iter().map(of).sum::<f64>().round() as i64
    }

    fn normalize(&self, nodes: &[&NodeInfo], scores: &mut [i64]) {
        let rated: Vec<bool> = nodes.iter().map(|node| self.usable(node)).collect();
        let among = || scores.iter().zip(&rated).filter(|(_, rated)| **rated).map(|(s, _)| *s);
        let (min, max) = (among().min().unwrap_or(0), among().max().unwrap_or(0));
        for (score, rated) in scores.iter_mut().zip(&rated) {
            *score = match (rated, max) {
                (false, _) => 0,
                (true, 0) => MAX_NODE_SCORE,
                (true, _) => MAX_NODE_SCORE * (max + min - *score) / max,
            };
        }
    }
}

/// The constraints that keep the pod from nodes.
fn hard(pod: &PodInfo, own: &[TopologySpreadConstraint]) -> Vec<Constraint> {
    let hard = own.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule");
    hard.map(|constraint| Constraint::new(constraint, pod)).collect()
}

/// Whether the event changes what is counted by `constraints`.
fn may_help(constraints: &[Constraint], event: &Event) -> bool {
    let labels = |node: &Node| node.metadata.labels.clone().unwrap_or_default();
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    let counts = |node: &Node| {
        let labels = labels(node);
        constraints.iter().all(|constraint| labels.contains_key(&constraint.key))
    };
    let about = |pod: &PodInfo| constraints.iter().any(|c| c.selector.matches(&pod.labels));
    let moved = |old: &PodInfo, new: &PodInfo| {
        old.labels != new.labels
            && constraints
                .iter()
                .any(|c| c.selector.matches(&old.labels) != c.selector.matches(&new.labels))
    };
    match event {
        Event::PodAssigned(other) | Event::AssignedPodRemoved(other) => about(other),
        Event::AssignedPodUpdated { old, new } => moved(old, new),
        Event::Itself { old, new } => {
            let tolerates_more = old.spec().tolerations != new.spec().tolerations
                && constraints.iter().any(|constraint| constraint.honour_taints);
            tolerates_more || moved(old, new)
        }
        Event::NodeAdded(node) | Event::NodeRemoved(node) => counts(node),
        Event::NodeUpdated { old, new } => {
            let (before, after) = (labels(old), labels(new));
            let moves = || {
                constraints.iter().any(|c| before.get(&c.key) != after.get(&c.key))
                    || taints(old) != taints(new)
            };
            counts(old) != counts(new) || (counts(new) && moves())
        }
        _ => false,
    }
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter, Point::PreScore, Point::Score]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let required = required(pod, cluster, &self.0);
        Ok((!required.0.is_empty()).then(|| Box::new(required) as Box<dyn Filter>))
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        nodes: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        preferred(pod, cluster, nodes, &self.0).map(|score| Box::new(score) as Box<dyn Score>)
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        let near = match event {
            Event::PodAssigned(other)
            | Event::AssignedPodRemoved(other)
            | Event::AssignedPodUpdated { new: other, .. } => other.namespace == pod.namespace,
            Event::NodeAdded(_)
            | Event::NodeRemoved(_)
            | Event::NodeUpdated { .. }
            | Event::Itself { .. } => true,
            Event::NamespaceChanged
            | Event::StorageChanged(_)
            | Event::DeviceClaimChanged(_)
            | Event::DevicesChanged => false,
        };
        let own = pod.spec().topology_spread_constraints.as_deref().unwrap_or_default();
        // What a profile asks of all pods counts those of the pod's owner, who is not looked up here.
        near && (own.is_empty() || may_help(&hard(pod, own), event))
    }
}
