//! The decision: on which node does a pod go? A pure function of the pod and the cluster.
//!
//! Source: `pkg/scheduler/schedule_one.go`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::cluster::Cluster;
use crate::framework::{Filter, Plugin, Point, Profile, Rejection, Score};
use crate::judgements::{Judgements, Kind, SCORES_MAX};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Below this number of nodes all are looked at.
const NODES_MIN: usize = 100;

/// Pods for which preemption has made room, by node.
pub type Nominated = HashMap<String, Vec<Arc<PodInfo>>>;

/// The node for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Its name.
    pub node: String,
    /// How many nodes were looked at.
    pub evaluated: usize,
    /// How many of them would do.
    pub feasible: usize,
}

/// Why there is no node for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// There are no nodes at all.
    NoNodes,
    /// No node would do.
    Unfit(Unfit),
}

/// What was wrong with each node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unfit {
    /// The number of nodes.
    pub nodes: usize,
    /// What was wrong with all of them at once, so that none was looked at.
    pub pre_filter: Option<Rejection>,
    /// What was wrong with each that was looked at, by its name.
    pub rejections: BTreeMap<String, Rejection>,
    /// The plugins that rejected it.
    pub plugins: BTreeSet<&'static str>,
    /// What preemption had to say.
    pub post_filter: String,
}

impl Unfit {
    /// Whether the removal of other pods could change what was wrong with the node.
    pub fn is_resolvable(&self, node: &str) -> bool {
        let rejection = self.pre_filter.as_ref().or_else(|| self.rejections.get(node));
        rejection.is_some_and(|rejection| rejection.resolvable)
    }
}

/// How often each thing is wrong with some node.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<Cow<'static, str>, usize>);

impl Tally {
    /// Counts `rejection` for `nodes` of them.
    pub fn add(&mut self, rejection: &Rejection, nodes: usize) {
        for reason in rejection.reasons.iter().filter(|_| nodes > 0) {
            *self.0.entry(reason.clone()).or_default() += nodes;
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut reasons: Vec<String> =
            self.0.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        if reasons.is_empty() { Ok(()) } else { write!(f, " {}.", reasons.join(", ")) }
    }
}

impl std::fmt::Display for Unfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0/{} nodes are available:", self.nodes)?;
        if let Some(rejection) = &self.pre_filter {
            write!(f, " {}.", rejection.reasons.join(", "))?;
        } else {
            let mut tally = Tally::default();
            self.rejections.values().for_each(|rejection| tally.add(rejection, 1));
            tally.fmt(f)?;
        }
        if !self.post_filter.is_empty() {
            write!(f, " {}", self.post_filter)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoNodes => f.write_str("no nodes available to schedule pods"),
            Self::Unfit(unfit) => unfit.fmt(f),
        }
    }
}

/// A plugin's judgement of nodes for the pod at hand.
pub type NamedFilter<'a> = (&'static str, Box<dyn Filter + 'a>);

/// What plugins have worked out about the pod at hand.
#[derive(Default)]
pub struct Filters<'a> {
    /// Those that are asked about each node, in their order.
    pub asked: Vec<NamedFilter<'a>>,
    /// Those that only name the nodes that may do.
    named_only: Vec<NamedFilter<'a>>,
    /// Some of those that are asked judge by more than the node.
    pub any_of_others: bool,
}

/// Runs PreFilter: the filters of all plugins that have something to say, or who rejected the pod.
pub fn pre_filter<'a>(
    profile: &'a Profile,
    pod: &'a PodInfo,
    cluster: &'a Cluster,
) -> Result<Filters<'a>, (&'static str, Rejection)> {
    let mut made: HashMap<&'static str, Box<dyn Filter + 'a>> = HashMap::new();
    let mut seen: BTreeSet<&'static str> = BTreeSet::new();
    // Some plugins do all their work at Filter.
    for (plugin, _) in profile.at(Point::PreFilter).chain(profile.at(Point::Filter)) {
        if !seen.insert(plugin.name()) {
            continue;
        }
        match plugin.pre_filter(pod, cluster) {
            Ok(Some(filter)) => drop(made.insert(plugin.name(), filter)),
            Ok(None) => {}
            Err(rejection) => return Err((plugin.name(), rejection)),
        }
    }
    let mut filters = Filters::default();
    for (plugin, _) in profile.at(Point::Filter) {
        filters.asked.extend(made.remove_entry(plugin.name()));
    }
    filters.any_of_others = filters.asked.iter().any(|(_, filter)| !filter.is_local());
    filters.named_only.extend(made);
    Ok(filters)
}

/// Asks the filters about one node; the first that rejects it has the word.
pub fn check(filters: &Filters<'_>, node: &NodeInfo) -> Result<(), (&'static str, Rejection)> {
    for (name, filter) in &filters.asked {
        filter.check(node).map_err(|rejection| (*name, rejection))?;
    }
    Ok(())
}

/// Where the last decision ended, so that the next one begins with other nodes, the state of the tie-breaker,
/// and what was judged before. The last changes no decision.
#[derive(Debug, Default)]
pub struct Rotation {
    next: usize,
    random: u64,
    judgements: Judgements,
}

impl Rotation {
    /// The same without what was judged before.
    #[must_use]
    pub fn afresh(&self) -> Self {
        Self { next: self.next, random: self.random, judgements: Judgements::default() }
    }
}

impl Rotation {
    /// A number below `bound`, evenly spread (splitmix64).
    pub fn below(&mut self, bound: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound.max(1) as u64) as usize
    }
}

/// How many feasible nodes are enough to choose from: all of few, a share of many that shrinks unless it is
/// given.
fn enough_nodes(all: usize, percent: Option<usize>) -> usize {
    if all < NODES_MIN {
        return all;
    }
    let percent = percent.unwrap_or_else(|| 50_usize.saturating_sub(all / 125).max(5));
    (all * percent / 100).max(NODES_MIN)
}

/// The nodes that would do for a pod.
#[derive(Debug)]
pub struct Found<'a> {
    /// They.
    pub feasible: Vec<&'a NodeInfo>,
    /// How many were looked at.
    pub evaluated: usize,
    /// What was wrong with the others.
    pub unfit: Unfit,
}

/// Looks for nodes that would do for `pod`.
pub fn find<'a>(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &'a Cluster,
    nominated: &Nominated,
    rotation: &mut Rotation,
) -> Result<Found<'a>, Failure> {
    if cluster.nodes().is_empty() {
        return Err(Failure::NoNodes);
    }
    let mut unfit = Unfit { nodes: cluster.nodes().len(), ..Unfit::default() };
    let filters = match pre_filter(profile, pod, cluster) {
        Ok(filters) => filters,
        Err((plugin, rejection)) => {
            unfit.plugins.insert(plugin);
            unfit.pre_filter = Some(rejection);
            return Err(Failure::Unfit(unfit));
        }
    };
    let mut found = Found { feasible: Vec::new(), evaluated: 0, unfit };
    // Where preemption has made room, the pod goes if it can.
    if let Some(node) = pod.nominated_node().and_then(|name| cluster.node(name))
        && restricted(&filters).is_none_or(|(names, _)| names.contains(&node.name))
        && fits(&filters, pod, node, nominated).is_ok()
    {
        found.feasible.push(node);
        found.evaluated = 1;
        return Ok(found);
    }
    let candidates = candidates(&filters, cluster, &mut found.unfit);
    let enough = enough_nodes(candidates.len(), profile.percentage_of_nodes);
    let mut known = rotation.judgements.of(pod);
    for step in 0..candidates.len() {
        let node = candidates.at(rotation.next + step);
        found.evaluated += 1;
        let promised = !nominated.is_empty() && nominated.contains_key(&node.name);
        let judged = match known.as_deref_mut() {
            Some(known) if !promised => known.check(&filters, node),
            _ => fits(&filters, pod, node, nominated),
        };
        match judged {
            Ok(()) => found.feasible.push(node),
            Err((plugin, rejection)) => {
                found.unfit.plugins.insert(plugin);
                found.unfit.rejections.insert(node.name.clone(), rejection);
            }
        }
        if found.feasible.len() >= enough {
            break;
        }
    }
    if let Some(next) = (rotation.next + found.evaluated).checked_rem(candidates.len()) {
        rotation.next = next;
    }
    Ok(found)
}

/// Chooses a node for `pod`.
pub fn schedule(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    nominated: &Nominated,
    rotation: &mut Rotation,
) -> Result<Placement, Failure> {
    let found = find(profile, pod, cluster, nominated, rotation)?;
    let Some(node) = best(profile, pod, cluster, &found.feasible, &BTreeMap::new(), rotation)
    else {
        return Err(Failure::Unfit(found.unfit));
    };
    let feasible = found.feasible.len();
    Ok(Placement { node: node.name.clone(), evaluated: found.evaluated, feasible })
}

/// The nodes that are looked at, in a circle.
enum Candidates<'a> {
    All(&'a [Arc<NodeInfo>]),
    Some(Vec<&'a NodeInfo>),
}

impl<'a> Candidates<'a> {
    fn len(&self) -> usize {
        match self {
            Self::All(all) => all.len(),
            Self::Some(some) => some.len(),
        }
    }

    fn at(&self, step: usize) -> &'a NodeInfo {
        match self {
            Self::All(all) => &all[step % all.len()],
            Self::Some(some) => some[step % some.len()],
        }
    }
}

/// The only nodes that can pass, and who says so.
fn restricted(filters: &Filters<'_>) -> Option<(BTreeSet<String>, BTreeSet<&'static str>)> {
    let mut names: Option<BTreeSet<String>> = None;
    let mut plugins = BTreeSet::new();
    for (plugin, filter) in filters.asked.iter().chain(&filters.named_only) {
        let Some(own) = filter.nodes() else { continue };
        plugins.insert(*plugin);
        names = Some(match names {
            Some(names) => names.intersection(&own).cloned().collect(),
            None => own,
        });
    }
    names.map(|names| (names, plugins))
}

/// The nodes that PreFilter leaves; the others are rejected in the name of who left them out.
fn candidates<'a>(
    filters: &Filters<'_>,
    cluster: &'a Cluster,
    unfit: &mut Unfit,
) -> Candidates<'a> {
    let Some((names, plugins)) = restricted(filters) else {
        return Candidates::All(cluster.nodes());
    };
    let all = cluster.nodes().iter().map(AsRef::as_ref);
    let listed: Vec<&str> = plugins.iter().copied().collect();
    let reason = format!("node(s) didn't satisfy plugin(s) [{}]", listed.join(" "));
    let (left, out): (Vec<&NodeInfo>, Vec<&NodeInfo>) =
        all.partition(|node| names.contains(&node.name));
    for node in &out {
        unfit.rejections.insert(node.name.clone(), Rejection::unresolvable(reason.clone()));
    }
    if !out.is_empty() {
        unfit.plugins.extend(plugins);
    }
    Candidates::Some(left)
}

/// The pod fits on `node`, both as it is and with the pods that preemption promised a place there
/// and that are at least as important.
pub fn fits(
    filters: &Filters<'_>,
    pod: &PodInfo,
    node: &NodeInfo,
    nominated: &Nominated,
) -> Result<(), (&'static str, Rejection)> {
    let promised: Vec<_> = nominated
        .get(&node.name)
        .into_iter()
        .flatten()
        .filter(|other| other.uid != pod.uid && other.priority >= pod.priority)
        .collect();
    if !promised.is_empty() {
        let mut fuller = node.clone();
        for other in promised {
            fuller.add_pod(Arc::clone(other));
        }
        check(filters, &fuller)?;
    }
    check(filters, node)
}

/// The feasible node with the highest sum of weighted scores, and of what `others` add to them by name; any
/// of several.
pub fn best<'a>(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    feasible: &[&'a NodeInfo],
    others: &BTreeMap<String, i64>,
    rotation: &mut Rotation,
) -> Option<&'a NodeInfo> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let known = rotation.judgements.known(pod);
    let mut totals = rate(profile, pod, cluster, feasible, known);
    if !others.is_empty() {
        for (total, node) in totals.iter_mut().zip(feasible) {
            *total += others.get(&node.name).copied().unwrap_or(0);
        }
    }
    let top = totals.iter().copied().max()?;
    let ties: Vec<_> =
        feasible.iter().zip(&totals).filter(|(_, total)| **total == top).map(|(n, _)| n).collect();
    let chosen = rotation.below(ties.len());
    ties.get(chosen).map(|node| **node)
}

/// The sum of weighted scores of each node, with the help of what is `known` for pods of this sort.
fn rate(
    profile: &Profile,
    pod: &PodInfo,
    cluster: &Cluster,
    nodes: &[&NodeInfo],
    mut known: Option<&mut Kind>,
) -> Vec<i64> {
    let pre_score = |plugin: &'_ dyn Plugin| plugin.points().contains(&Point::PreScore);
    let plugins = profile.at(Point::Score).filter(|(plugin, _)| {
        // Without its preparation the plugin knows nothing to score by.
        !pre_score(*plugin) || profile.asks(Point::PreScore, plugin.name())
    });
    let asked: Vec<(Box<dyn Score + '_>, i64)> = plugins
        .filter_map(|(plugin, weight)| Some((plugin.pre_score(pod, cluster, nodes)?, weight)))
        .collect();
    // Those whose scores are looked up come first.
    let (local, others): (Vec<_>, Vec<_>) = asked.iter().partition(|(score, _)| score.is_local());
    let looked_up = if known.is_some() { local.len().min(SCORES_MAX) } else { 0 };
    let asked: Vec<_> = local.into_iter().chain(others).collect();
    let local: Vec<&dyn Score> = asked[..looked_up].iter().map(|(score, _)| &**score).collect();
    let mut own: Vec<Vec<i64>> = asked.iter().map(|_| Vec::with_capacity(nodes.len())).collect();
    for node in nodes {
        if let Some(known) = known.as_deref_mut() {
            let scores = known.scores(&local, node);
            own.iter_mut().zip(&scores[..looked_up]).for_each(|(own, score)| own.push(*score));
        }
        for (own, (score, _)) in own.iter_mut().zip(&asked).skip(looked_up) {
            own.push(score.score(node));
        }
    }
    let mut totals = vec![0; nodes.len()];
    for ((score, weight), own) in asked.into_iter().zip(&mut own) {
        score.normalize(nodes, own);
        for (total, own) in totals.iter_mut().zip(own) {
            *total += *own * weight;
        }
    }
    totals
}
