//! The points at which plugins take part in a decision, under upstream's names.
//!
//! A plugin is configuration; what it works out once for a pod (upstream's PreFilter and PreScore
//! state) is the [`Filter`] or [`Score`] that it returns, which then judges node after node.
//!
//! Source: `k8s.io/kube-scheduler/framework`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::ResourceClaim;

use crate::cluster::Cluster;
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::volumes::{Changed, StorageChange};

/// The best score of one plugin for a node.
pub const MAX_NODE_SCORE: i64 = 100;

/// Why a node, or all nodes, are not for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The removal of other pods could change it.
    pub resolvable: bool,
    /// In upstream's words, one for each thing that is wrong.
    pub reasons: Vec<Cow<'static, str>>,
}

impl Rejection {
    /// What the removal of other pods could change.
    pub fn unschedulable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { resolvable: true, reasons: vec![reason.into()] }
    }

    /// What the removal of other pods does not change.
    pub fn unresolvable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self { resolvable: false, reasons: vec![reason.into()] }
    }
}

/// What may have made room for a pod that did not fit.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node has come.
    NodeAdded(Arc<Node>),
    /// A node has changed.
    NodeUpdated {
        /// As it was.
        old: Arc<Node>,
        /// As it is.
        new: Arc<Node>,
    },
    /// A node has gone.
    NodeRemoved(Arc<Node>),
    /// A pod has come to a node.
    PodAssigned(Arc<PodInfo>),
    /// A pod on a node has changed.
    AssignedPodUpdated {
        /// As it was.
        old: Arc<PodInfo>,
        /// As it is.
        new: Arc<PodInfo>,
    },
    /// A pod has left its node.
    AssignedPodRemoved(Arc<PodInfo>),
    /// The waiting pod itself has changed.
    Itself {
        /// As it was.
        old: Arc<PodInfo>,
        /// As it is.
        new: Arc<PodInfo>,
    },
    /// A namespace's labels have changed.
    NamespaceChanged,
    /// A volume, claim, storage class, driver, its room, or a node's limit of volumes has come or changed.
    StorageChanged(StorageChange),
    /// A claim of devices has come or changed.
    DeviceClaimChanged(Changed<ResourceClaim>),
    /// A slice of devices or a class has come or changed, or devices are free again.
    DevicesChanged,
}

/// Where in a decision plugins are asked. Names and order are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before a pod enters the queue.
    PreEnqueue,
    /// The order of the queue.
    QueueSort,
    /// Once for a pod, before nodes are looked at.
    PreFilter,
    /// For each node.
    Filter,
    /// When no node is left.
    PostFilter,
    /// Once for a pod and the nodes that are left.
    PreScore,
    /// For each node that is left.
    Score,
    /// When a node is chosen.
    Reserve,
    /// Before the binding, to delay it.
    Permit,
    /// Before the binding, to prepare it.
    PreBind,
    /// The binding.
    Bind,
    /// After the binding.
    PostBind,
}

/// One plugin. Every method stands for an extension point and does nothing by default.
pub trait Plugin: Send + Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;

    /// Where it has something to say.
    fn points(&self) -> &'static [Point];

    /// PreEnqueue: may the pod enter the queue?
    fn pre_enqueue(&self, _pod: &PodInfo) -> Result<(), Rejection> {
        Ok(())
    }

    /// PreFilter: `None` when no node can fail this plugin (upstream's Skip).
    fn pre_filter<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _cluster: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        Ok(None)
    }

    /// PreScore: `None` when the plugin has no preference among `nodes`, which all passed.
    fn pre_score<'a>(
        &'a self,
        _pod: &'a PodInfo,
        _cluster: &'a Cluster,
        _nodes: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// The queueing hint: may `event` have made `pod`, which this plugin rejected, schedulable?
    fn may_help(&self, _event: &Event, _pod: &PodInfo) -> bool {
        false
    }
}

/// Judges nodes for one pod.
pub trait Filter {
    /// The only nodes that can pass, when that is known beforehand.
    fn nodes(&self) -> Option<BTreeSet<String>> {
        None
    }

    /// Its judgement depends on nothing but the node and what [`PodInfo::is_alike`] compares.
    fn is_local(&self) -> bool {
        false
    }

    /// Does the pod fit on `node`?
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection>;
}

/// Rates nodes for one pod.
pub trait Score {
    /// The score depends on nothing but the node and what [`PodInfo::is_alike`] compares.
    fn is_local(&self) -> bool {
        false
    }

    /// The node's score, of any size.
    fn score(&self, node: &NodeInfo) -> i64;

    /// Brings the scores of all `nodes` between 0 and [`MAX_NODE_SCORE`], if they are not.
    fn normalize(&self, _nodes: &[&NodeInfo], _scores: &mut [i64]) {}
}

/// Scales scores so that the highest is [`MAX_NODE_SCORE`]; `reverse` makes the lowest the best.
/// Upstream's `DefaultNormalizeScore`.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { MAX_NODE_SCORE * *score / max };
        *score = if reverse { MAX_NODE_SCORE - scaled } else { scaled };
    }
}

/// A scheduler's name and its plugins.
pub struct Profile {
    /// The `schedulerName` of the pods that it serves.
    pub scheduler_name: String,
    /// The share of the nodes, in percent, that is enough to choose from; by default it shrinks as nodes
    /// become more.
    pub percentage_of_nodes: Option<usize>,
    /// How many nodes preemption tries; `None` leaves every pod where it is.
    pub preemption: Option<crate::preemption::Limits>,
    /// How long the binding of a pod's volumes may take.
    pub volume_timeout: std::time::Duration,
    /// How long the binding of a pod's devices may take.
    pub device_timeout: std::time::Duration,
    plugins: Vec<Box<dyn Plugin>>,
    /// For each point the plugins in the order in which they are asked, with the factor of their scores.
    order: BTreeMap<Point, Vec<(usize, i64)>>,
}

impl Profile {
    /// A profile with `plugins`, none of which is asked anywhere yet.
    pub fn new(scheduler_name: impl Into<String>, plugins: Vec<Box<dyn Plugin>>) -> Self {
        Self {
            scheduler_name: scheduler_name.into(),
            percentage_of_nodes: None,
            preemption: None,
            volume_timeout: std::time::Duration::from_mins(10),
            device_timeout: std::time::Duration::from_mins(10),
            plugins,
            order: BTreeMap::new(),
        }
    }

    /// Has `names` asked at `point`, in this order, their scores multiplied by these weights.
    pub fn ask<'a>(&mut self, point: Point, names: impl IntoIterator<Item = (&'a str, i64)>) {
        let place = |name: &str| self.plugins.iter().position(|plugin| plugin.name() == name);
        let order = names.into_iter().filter_map(|(name, weight)| Some((place(name)?, weight)));
        let order = order.collect();
        self.order.insert(point, order);
    }

    /// The plugins asked at `point`, with the factor of their scores.
    pub fn at(&self, point: Point) -> impl Iterator<Item = (&dyn Plugin, i64)> {
        let order = self.order.get(&point).map(Vec::as_slice).unwrap_or_default();
        order.iter().map(|(place, weight)| (self.plugins[*place].as_ref(), *weight))
    }

    /// Whether the plugin called `name` is asked at `point`.
    pub fn asks(&self, point: Point, name: &str) -> bool {
        self.at(point).any(|(plugin, _)| plugin.name() == name)
    }

    /// May the pod enter the queue? If not, which plugin holds it, and why.
    pub fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), (&'static str, Rejection)> {
        for (plugin, _) in self.at(Point::PreEnqueue) {
            plugin.pre_enqueue(pod).map_err(|rejection| (plugin.name(), rejection))?;
        }
        Ok(())
    }

    /// The plugin called `name`.
    pub fn plugin(&self, name: &str) -> Option<&dyn Plugin> {
        self.plugins.iter().find(|plugin| plugin.name() == name).map(AsRef::as_ref)
    }
}

/// The profiles by which one process schedules.
pub struct Profiles(pub Vec<Profile>);

impl Profiles {
    /// The profile that `pod` asks for.
    pub fn of(&self, pod: &PodInfo) -> Option<&Profile> {
        self.0.iter().find(|profile| profile.scheduler_name == pod.scheduler_name())
    }
}
