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
use crate::schedule::{Filters, Nominated, Tally, Unfit, fits as fits_with, pre_filter};

/// How many candidates are enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of many nodes, this share in percent.
    pub percent: usize,
    /// But at least so many, if there are so many.
    pub least: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { percent: 10, least: 100 }
    }
}

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
    /// It is not for this pod, or not now, and why. A promise that it has stands.
    Ineligible(String),
}

/// The pods that would have to leave one node.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The node.
    pub node: String,
    /// The pods.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them a disruption budget protects.
    pub violations: usize,
}

/// What a decision about preemption looks at besides the pod.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The pod's profile.
    pub profile: &'a Profile,
    /// The nodes with their pods.
    pub cluster: &'a Cluster,
    /// What preemption has promised others.
    pub nominated: &'a Nominated,
    /// The disruption budgets.
    pub budgets: &'a [Arc<PodDisruptionBudget>],
    /// A number at random: with which of the nodes that may help the search begins, so that it is not always the
    /// same ones' pods that make way.
    pub start: usize,
}

/// Decides for `pod`, which fits nowhere for the reasons in `unfit`.
pub fn preempt(view: View<'_>, pod: &PodInfo, unfit: &Unfit) -> Preemption {
    match candidates(view, pod, unfit) {
        Ok(candidates) => choose(candidates),
        Err(outcome) => outcome,
    }
}

/// The cheapest of `candidates`, of which there is at least one.
pub fn choose(candidates: Vec<Candidate>) -> Preemption {
    match candidates.into_iter().min_by_key(cost) {
        Some(Candidate { node, victims, .. }) => Preemption::Nominate { node, victims },
        None => Preemption::Helpless(String::new()),
    }
}

/// The nodes that would take `pod` after some of their pods have gone; without any, what comes of that.
pub fn candidates(
    view: View<'_>,
    pod: &PodInfo,
    unfit: &Unfit,
) -> Result<Vec<Candidate>, Preemption> {
    let Some(limits) = view.profile.preemption else {
        return Err(Preemption::Ineligible(String::new()));
    };
    let cluster = view.cluster;
    if let Some(reason) = ineligible(pod, cluster, unfit) {
        return Err(Preemption::Ineligible(format!("preemption: {reason}")));
    }
    let nodes = cluster.nodes().iter().enumerate();
    let helpful = nodes.filter(|(_, node)| unfit.is_resolvable(&node.name));
    let mut helpful: Vec<usize> = helpful.map(|(place, _)| place).collect();
    let mut told = Tally::default();
    let unhelpful = cluster.nodes().len() - helpful.len();
    told.add(&Rejection::unresolvable("Preemption is not helpful for scheduling"), unhelpful);
    // Those that look at nothing but the node need not be prepared for each choice of victims.
    let filters = pre_filter(view.profile, pod, cluster).ok();
    let filters = filters.filter(|filters| !filters.any_of_others);
    let enough = (helpful.len() * limits.percent / 100).max(limits.least).min(helpful.len());
    let mut candidates: Vec<Candidate> = Vec::new();
    if !helpful.is_empty() {
        let start = view.start % helpful.len();
        helpful.rotate_left(start);
    }
    for place in helpful {
        match candidate(view, pod, place, filters.as_ref()) {
            Ok(candidate) => candidates.push(candidate),
            Err(rejection) => told.add(&rejection, 1),
        }
        // While all would break a budget, another may not.
        if candidates.len() >= enough && candidates.iter().any(|c| c.violations == 0) {
            break;
        }
    }
    if candidates.is_empty() {
        let message = format!("preemption: 0/{} nodes are available:{told}", unfit.nodes);
        return Err(Preemption::Helpless(message));
    }
    Ok(candidates)
}

/// Is the pod on its way out because of a more important one?
fn is_preempted(pod: &PodInfo) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let by_scheduler = conditions.into_iter().flatten().any(|condition| {
        condition.type_ == "DisruptionTarget"
            && condition.status == "True"
            && condition.reason.as_deref() == Some("PreemptionByScheduler")
    });
    pod.is_terminating() && by_scheduler
}

fn ineligible(pod: &PodInfo, cluster: &Cluster, unfit: &Unfit) -> Option<&'static str> {
    if pod.spec().preemption_policy.as_deref() == Some("Never") {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    let node = cluster.node(pod.nominated_node()?)?;
    // Where the pod can no longer go, nobody is waited for.
    let was_rejected = unfit.pre_filter.is_some() || unfit.rejections.contains_key(&node.name);
    if was_rejected && !unfit.is_resolvable(&node.name) {
        return None;
    }
    let leaving = |other: &Arc<PodInfo>| other.priority < pod.priority && is_preempted(other);
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
    view: View<'_>,
    pod: &PodInfo,
    place: usize,
    filters: Option<&Filters<'_>>,
) -> Result<Candidate, Rejection> {
    let mut node: NodeInfo = view.cluster.nodes()[place].as_ref().clone();
    let mut lesser: Vec<_> =
        node.pods.iter().filter(|other| other.priority < pod.priority).cloned().collect();
    if lesser.is_empty() {
        return Err(Rejection::unresolvable("No preemption victims found for incoming pod"));
    }
    for other in &lesser {
        node.remove_pod(&other.uid);
    }
    let fits = |node: &NodeInfo| match filters {
        Some(filters) => {
            fits_with(filters, pod, node, view.nominated).map_err(|(_, rejection)| rejection)
        }
        None => fits_anew(view, pod, place, node),
    };
    fits(&node)?;
    // The most important are spared first, and before them those that a budget protects.
    lesser.sort_by_key(|other| (Reverse(other.priority), started(other)));
    let (protected, free) = protected(&lesser, view.budgets);
    let mut victims = Vec::new();
    let mut violations = 0;
    for (other, protected) in
        protected.into_iter().map(|p| (p, true)).chain(free.into_iter().map(|p| (p, false)))
    {
        let mut fuller = node.clone();
        fuller.add_pod(Arc::clone(&other));
        if fits(&fuller).is_ok() {
            node = fuller;
        } else {
            violations += usize::from(protected);
            victims.push(other);
        }
    }
    victims.sort_by_key(|other| (Reverse(other.priority), started(other)));
    Ok(Candidate { node: node.name, victims, violations })
}

/// The same with all that plugins work out about the cluster, were `node` its node at `place`.
fn fits_anew(
    view: View<'_>,
    pod: &PodInfo,
    place: usize,
    node: &NodeInfo,
) -> Result<(), Rejection> {
    let then = view.cluster.with(place, node.clone());
    let filters = pre_filter(view.profile, pod, &then).map_err(|(_, rejection)| rejection)?;
    fits_with(&filters, pod, node, view.nominated).map_err(|(_, rejection)| rejection)
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
            // Of pods without labels no budget speaks.
            if pod.labels.is_empty() || !covers(budget, pod) {
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
