//! DefaultPreemption: which less important pods have to go so that a pod fits. A pure decision.
//!
//! Source: `pkg/scheduler/framework/preemption`, `plugins/defaultpreemption`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;

use crate::affinity;
use crate::cluster::Cluster;
use crate::framework::{Profile, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;
use crate::schedule::{Unfit, check, pre_filter};

/// At least so many nodes are tried, if there are so many.
const NODES_MIN: usize = 100;
/// Of more nodes, this share.
const NODES_PERCENT: usize = 10;

/// What preemption comes to.
#[derive(Clone, Debug)]
pub enum Preemption {
    /// The pod will fit on `node` once `victims` are gone.
    Nominate {
        /// The node.
        node: String,
        /// Who has to go.
        victims: Vec<Arc<PodInfo>>,
    },
    /// It does not help, and why.
    Helpless(String),
}

/// The pods that would have to leave one node.
struct Candidate {
    node: String,
    victims: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget protects.
    violations: usize,
}

/// Decides for `pod`, which fits nowhere for the reasons in `unfit`.
pub fn preempt(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    budgets: &[Arc<PodDisruptionBudget>],
    unfit: &Unfit,
) -> Preemption {
    if let Some(reason) = ineligible(pod, cluster) {
        return Preemption::Helpless(format!("preemption: {reason}"));
    }
    let mut told = Unfit { nodes: unfit.nodes, ..Unfit::default() };
    let mut helpful: Vec<usize> = Vec::new();
    for (place, node) in cluster.nodes().iter().enumerate() {
        if unfit.rejections.get(&node.name).is_some_and(|rejection| rejection.resolvable) {
            helpful.push(place);
        } else {
            let reason = Rejection::unresolvable("Preemption is not helpful for scheduling");
            told.rejections.insert(node.name.clone(), reason);
        }
    }
    helpful.truncate((cluster.nodes().len() * NODES_PERCENT / 100).max(NODES_MIN));
    let mut candidates = Vec::new();
    for place in helpful {
        match candidate(profile, pod, cluster, budgets, place) {
            Ok(candidate) => candidates.push(candidate),
            Err(rejection) => {
                told.rejections.insert(cluster.nodes()[place].name.clone(), rejection);
            }
        }
    }
    match candidates.into_iter().min_by_key(cost) {
        Some(Candidate { node, victims, .. }) => Preemption::Nominate { node, victims },
        None => Preemption::Helpless(format!("preemption: {told}")),
    }
}

fn ineligible(pod: &PodInfo, cluster: &Cluster) -> Option<&'static str> {
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node = cluster.node(pod.nominated_node()?)?;
    let leaving = |other: &Arc<PodInfo>| other.priority < pod.priority && other.is_terminating();
    node.pods
        .iter()
        .any(leaving)
        .then_some("not eligible due to a terminating pod on the nominated node.")
}

/// When the pod started; one that has not is the youngest.
fn started(pod: &PodInfo) -> Timestamp {
    let status = pod.pod.status.as_ref();
    status.and_then(|status| status.start_time.as_ref()).map_or(Timestamp::MAX, |time| time.0)
}

fn candidate(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    budgets: &[Arc<PodDisruptionBudget>],
    place: usize,
) -> Result<Candidate, Rejection> {
    let mut node: NodeInfo = cluster.nodes()[place].as_ref().clone();
    let mut lesser: Vec<_> =
        node.pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        return Err(Rejection::unresolvable("No preemption victims found for incoming pod"));
    }
    for other in &lesser {
        node.remove_pod(&other.uid);
    }
    fits(profile, pod, cluster, place, &node)?;
    // The most important are spared first, and before them those that a budget protects.
    lesser.sort_by_key(|other| (Reverse(other.priority), started(other)));
    let (protected, free) = protected(&lesser, budgets);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (other, protected) in
        protected.into_iter().map(|p| (p, true)).chain(free.into_iter().map(|p| (p, false)))
    {
        let mut fuller = node.clone();
        fuller.add_pod(Arc::clone(&other));
        if fits(profile, pod, cluster, place, &fuller).is_ok() {
            node = fuller;
        } else {
            violations += usize::from(protected);
            victims.push(other);
        }
    }
    victims.sort_by_key(|other| (Reverse(other.priority), started(other)));
    Ok(Candidate { node: node.name, victims, violations })
}

fn fits(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    place: usize,
    node: &NodeInfo,
) -> Result<(), Rejection> {
    let then = cluster.with(place, node.clone());
    let filters = pre_filter(profile, pod, &then).map_err(|(_, rejection)| rejection)?;
    check(&filters, node).map_err(|(_, rejection)| rejection)
}

/// Splits `pods` into those whose removal would break a disruption budget, and the others.
fn protected(
    pods: &[Arc<PodInfo>],
    budgets: &[Arc<PodDisruptionBudget>],
) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: BTreeMap<usize, i32> = BTreeMap::new();
    pods.iter().cloned().partition(|pod| {
        let mut breaks = false;
        for (at, budget) in budgets.iter().enumerate() {
            if !covers(budget, pod) {
                continue;
            }
            let status = budget.status.as_ref();
            let allowed = left.entry(at).or_insert_with(|| {
                status.and_then(|status| status.disruptions_allowed).unwrap_or(0)
            });
            *allowed -= 1;
            breaks |= *allowed < 0;
        }
        breaks
    })
}

fn covers(budget: &PodDisruptionBudget, pod: &PodInfo) -> bool {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let selector = affinity::selector(selector);
    let disrupted = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref());
    budget.metadata.namespace.as_deref() == Some(&pod.namespace)
        && !selector.is_everything()
        && selector.matches(&pod.labels)
        // One that is about to go has been subtracted from the budget already.
        && disrupted.is_none_or(|disrupted| !disrupted.contains_key(&pod.name))
}

/// Orders candidates: the fewest broken budgets, the least important victims, the fewest of them,
/// and of those the youngest.
fn cost(candidate: &Candidate) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
    let victims = &candidate.victims;
    let highest = victims.first().map_or(i32::MIN, |pod| pod.priority);
    // Shifted, so that one more victim never lowers the sum, as upstream does.
    let sum = victims.iter().map(|pod| i64::from(pod.priority) + i64::from(i32::MAX) + 1).sum();
    let among = victims.iter().filter(|pod| pod.priority == highest);
    let earliest = among.map(|pod| started(pod)).min().unwrap_or(Timestamp::MAX);
    (candidate.violations, highest, sum, victims.len(), Reverse(earliest))
}
