//! The points at which plugins take part in a decision, under upstream's names.
//!
//! A plugin is configuration; what it works out once for a pod (upstream's PreFilter and PreScore
//! state) is the [`Filter`] or [`Score`] that it returns, which then judges node after node.
//!
//! Source: `k8s.io/kube-scheduler/framework`.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::cluster::Cluster;
use crate::node::NodeInfo;
use crate::pod::PodInfo;

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
    /// A volume, claim or storage class has come or changed.
    StorageChanged,
}

/// One plugin. Every method stands for an extension point and does nothing by default.
pub trait Plugin: Send + Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;

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

    /// Does the pod fit on `node`?
    fn check(&self, node: &NodeInfo) -> Result<(), Rejection>;
}

/// Rates nodes for one pod.
pub trait Score {
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

/// A plugin with what its score counts.
pub struct Weighted {
    /// The plugin.
    pub plugin: Box<dyn Plugin>,
    /// The factor of its scores.
    pub weight: i64,
}

/// A scheduler's name and its plugins, in the order in which they are asked.
pub struct Profile {
    /// The `schedulerName` of the pods that it serves.
    pub scheduler_name: String,
    /// The plugins.
    pub plugins: Vec<Weighted>,
}

impl Profile {
    /// May the pod enter the queue? If not, which plugin holds it, and why.
    pub fn pre_enqueue(&self, pod: &PodInfo) -> Result<(), (&'static str, Rejection)> {
        for Weighted { plugin, .. } in &self.plugins {
            plugin.pre_enqueue(pod).map_err(|rejection| (plugin.name(), rejection))?;
        }
        Ok(())
    }

    /// The plugin called `name`.
    pub fn plugin(&self, name: &str) -> Option<&dyn Plugin> {
        let found = self.plugins.iter().find(|weighted| weighted.plugin.name() == name)?;
        Some(found.plugin.as_ref())
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
