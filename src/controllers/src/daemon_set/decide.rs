//! What is to be done about a DaemonSet: which nodes get a pod, which pods go, how a new template
//! spreads.
//!
//! Source: `pkg/controller/daemon/daemon_controller.go` (`NodeShouldRunDaemonPod`,
//! `podsShouldBeOnNode`), `update.go` (`rollingUpdate`), `util/daemonset_util.go`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod,
    PodSpec, Toleration,
};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::history::HASH;
use crate::{node_selector, pods, share};

const NAME_FIELD: &str = "metadata.name";

/// Taints that do not keep daemons away: key and effect.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
const NETWORK_UNAVAILABLE: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// The pod's tolerations and those every daemon has.
fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host = (spec.host_network == Some(true)).then_some(&NETWORK_UNAVAILABLE);
    for (key, effect) in TOLERATED.iter().chain(host) {
        let toleration = Toleration {
            key: Some((*key).into()),
            operator: Some("Exists".into()),
            effect: Some((*effect).into()),
            ..Toleration::default()
        };
        let same = |other: &&mut Toleration| {
            other.key == toleration.key
                && other.effect == toleration.effect
                && other.operator == toleration.operator
                && other.value.as_deref().is_none_or(str::is_empty)
        };
        match all.iter_mut().find(same) {
            // A time that it is meant to end after is none for a daemon.
            Some(known) => *known = toleration,
            None => all.push(toleration),
        }
    }
    all
}

/// Makes the scheduler put the pod on `node` alone: every required term gets the node's name.
pub fn pin(spec: &mut PodSpec, node: &str) {
    spec.tolerations = Some(tolerations(spec));
    let name = NodeSelectorRequirement {
        key: NAME_FIELD.into(),
        operator: "In".into(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let affinity: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    // The other terms were looked at when the node was chosen.
    affinity.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![name]),
            ..NodeSelectorTerm::default()
        }],
    });
}

/// The node a daemon is on or meant for.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
    let fields = required.node_selector_terms.iter().flat_map(|t| t.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == NAME_FIELD && field.operator == "In");
    named.next()?.values.as_ref()?.first().map(String::as_str)
}

/// Whether a daemon shall be put on the node, and whether one that is there may stay.
fn runs_on(spec: &DaemonSetSpec, node: &Node) -> (bool, bool) {
    let pod = spec.template.spec.clone().unwrap_or_default();
    let named = pod.node_name.as_deref().filter(|name| !name.is_empty());
    if named.is_some_and(|name| name != node.name_any()) || !node_selector::fits(&pod, node) {
        return (false, false);
    }
    let tolerations = tolerations(&pod);
    let taints = node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    let untolerated =
        |effects: &[&str]| node_selector::untolerated(&tolerations, taints, effects).is_some();
    (!untolerated(&["NoSchedule", "NoExecute"]), !untolerated(&["NoExecute"]))
}

/// One node and the daemons on it or meant for it: those that are there before those that wait, and the
/// oldest first.
struct Place<'a> {
    name: String,
    /// Whether there is such a node.
    is_known: bool,
    wanted: bool,
    may_stay: bool,
    pods: Vec<&'a Pod>,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod, in order; one may be named once only.
    pub create: Vec<String>,
    /// Pods that go, by name.
    pub delete: BTreeSet<String>,
    /// Pods that have ended, by name, with their node, and whether they failed. They go too.
    pub ended: Vec<(String, String, bool)>,
}

/// How many nodes may be without an available pod, and with one too many, during an update.
fn bounds(spec: &DaemonSetSpec, desired: usize) -> (usize, usize) {
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.clone());
    let Some(rolling) = rolling else { return (1, 0) };
    let of = |value| share::of(value, desired as i32, true).max(0) as usize;
    let (down, surge) = (of(rolling.max_unavailable.as_ref()), of(rolling.max_surge.as_ref()));
    if down == 0 && surge == 0 { (1, 0) } else { (down, surge) }
}

fn is_rolling(spec: &DaemonSetSpec) -> bool {
    spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
}

fn is_new(pod: &Pod, hash: &str) -> bool {
    pod.labels().get(HASH).is_some_and(|found| found == hash)
}

fn places<'a>(spec: &DaemonSetSpec, nodes: &[impl AsRef<Node>], own: &[&'a Pod]) -> Vec<Place<'a>> {
    let mut by_node: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in own {
        // What has ended and goes stands in nobody's way, whatever holds it back.
        if !(pods::is_finished(pod) && pod.metadata.deletion_timestamp.is_some()) {
            by_node.entry(target(pod).unwrap_or_default()).or_default().push(pod);
        }
    }
    for pods in by_node.values_mut() {
        pods.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
            (pods::node(pod).is_empty(), created, pod.name_any())
        });
    }
    let mut places: Vec<Place<'_>> = nodes
        .iter()
        .map(|node| {
            let (wanted, may_stay) = runs_on(spec, node.as_ref());
            let name = node.as_ref().name_any();
            let pods = by_node.remove(name.as_str()).unwrap_or_default();
            Place { name, is_known: true, wanted, may_stay, pods }
        })
        .collect();
    // Pods of nodes that are gone: the scheduler will never place those that wait for them.
    places.extend(by_node.into_iter().map(|(name, pods)| Place {
        name: name.to_owned(),
        is_known: false,
        wanted: false,
        may_stay: false,
        pods: pods.into_iter().filter(|pod| pods::node(pod).is_empty()).collect(),
    }));
    places.sort_by(|a, b| a.name.cmp(&b.name));
    places
}

/// Decides for a DaemonSet whose present template has `hash`.
pub fn decide(
    set: &DaemonSet,
    nodes: &[impl AsRef<Node>],
    own: &[&Pod],
    hash: &str,
    now: Timestamp,
) -> Plan {
    let Some(spec) = set.spec.as_ref() else { return Plan::default() };
    let places = places(spec, nodes, own);
    let desired = places.iter().filter(|place| place.wanted).count();
    let (down, surge) = if is_rolling(spec) { bounds(spec, desired) } else { (0, 0) };
    let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
    let available = |pod: &Pod| pods::is_available(pod, min_ready_s, now);
    let mut plan = Plan::default();
    for place in &places {
        keep_one(place, hash, surge > 0, &available, &mut plan);
    }
    if is_rolling(spec) && set.metadata.deletion_timestamp.is_none() {
        if surge > 0 {
            surge_update(&places, hash, (surge, desired), &available, &mut plan);
        } else {
            update(&places, hash, down, &available, &mut plan);
        }
    }
    plan
}

/// Sees to it that there is a pod where one should be, and none where not.
fn keep_one(
    place: &Place<'_>,
    hash: &str,
    surging: bool,
    available: &impl Fn(&Pod) -> bool,
    plan: &mut Plan,
) {
    if place.wanted && place.pods.is_empty() {
        plan.create.push(place.name.clone());
        return;
    }
    if !place.may_stay {
        let going = place.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        plan.delete.extend(going.map(|pod| pod.name_any()));
        return;
    }
    let mut running: Vec<&Pod> = Vec::new();
    for pod in place.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        match pods::phase(pod) {
            phase @ ("Failed" | "Succeeded") => {
                plan.ended.push((pod.name_any(), place.name.clone(), phase == "Failed"));
            }
            _ => running.push(pod),
        }
    }
    if running.len() < 2 {
        return;
    }
    if !surging {
        plan.delete.extend(running[1..].iter().map(|pod| pod.name_any()));
        return;
    }
    // The oldest of each template stays; the old one only while the new one is not available.
    let mut new = running.iter().filter(|pod| is_new(pod, hash));
    let mut old = running.iter().filter(|pod| !is_new(pod, hash));
    let (first_new, first_old) = (new.next(), old.next());
    plan.delete.extend(new.chain(old).map(|pod| pod.name_any()));
    if let (Some(old), Some(new)) = (first_old, first_new)
        && (available(new) || pods::ready_since(old).is_none())
    {
        plan.delete.insert(old.name_any());
    }
}

/// The new and the old pod of a node; nothing while there are several of either.
fn generations<'a>(place: &Place<'a>, hash: &str) -> Option<(Option<&'a Pod>, Option<&'a Pod>)> {
    let staying = place.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let (new, old): (Vec<&Pod>, Vec<&Pod>) = staying.partition(|pod| is_new(pod, hash));
    if new.len() > 1 || old.len() > 1 {
        return None;
    }
    Some((new.first().copied(), old.first().copied()))
}

/// An update that takes the old pod away first.
fn update(
    places: &[Place<'_>],
    hash: &str,
    down: usize,
    available: &impl Fn(&Pod) -> bool,
    plan: &mut Plan,
) {
    let mut unavailable = 0;
    let (mut broken, mut candidates) = (Vec::new(), Vec::new());
    for place in places.iter().filter(|place| place.wanted || !place.pods.is_empty()) {
        match generations(place, hash) {
            None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
            Some((Some(new), None)) => unavailable += usize::from(!available(new)),
            Some((None, Some(old))) if !available(old) => {
                unavailable += 1;
                broken.push(old.name_any());
            }
            Some((None, Some(old))) => candidates.push(old.name_any()),
        }
    }
    candidates.truncate(down.saturating_sub(unavailable));
    plan.delete.extend(broken.into_iter().chain(candidates));
}

/// An update that puts the new pod beside the old one first. Where a daemon may stay but would not be put
/// any more, the old pod goes: at once when it does not serve, else when enough others do.
fn surge_update(
    places: &[Place<'_>],
    hash: &str,
    (surge, desired): (usize, usize),
    available: &impl Fn(&Pod) -> bool,
    plan: &mut Plan,
) {
    let (mut surging, mut serving) = (0, 0);
    let (mut broken, mut candidates, mut leaving) = (Vec::new(), Vec::new(), Vec::new());
    for place in places.iter().filter(|place| place.wanted || !place.pods.is_empty()) {
        let Some((new, old)) = generations(place, hash) else {
            surging += 1;
            continue;
        };
        serving += usize::from(old.or(new).is_some_and(available));
        match (new, old) {
            (_, None) => {}
            (None, Some(old)) if !place.wanted && !available(old) => {
                plan.delete.insert(old.name_any());
            }
            (None, Some(old)) if !place.wanted => leaving.push(old.name_any()),
            (None, Some(old)) if !available(old) => broken.push(place.name.clone()),
            (None, Some(_)) => candidates.push(place.name.clone()),
            (Some(new), Some(_)) if !available(new) => surging += 1,
            (Some(_), Some(old)) => drop(plan.delete.insert(old.name_any())),
        }
    }
    leaving.truncate(serving.saturating_sub(desired));
    plan.delete.extend(leaving);
    candidates.truncate(surge.saturating_sub(surging));
    plan.create.extend(broken.into_iter().chain(candidates));
}

/// The status that nodes and pods show.
pub fn status(
    set: &DaemonSet,
    nodes: &[impl AsRef<Node>],
    own: &[&Pod],
    hash: &str,
    now: Timestamp,
) -> DaemonSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let Some(spec) = set.spec.as_ref() else { return before };
    let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
    let mut told = DaemonSetStatus {
        observed_generation: set.metadata.generation,
        collision_count: before.collision_count,
        conditions: before.conditions,
        ..DaemonSetStatus::default()
    };
    let (mut available, mut updated) = (0, 0);
    for place in places(spec, nodes, own).into_iter().filter(|place| place.is_known) {
        let count = |some: bool| i32::from(some);
        if !place.wanted {
            told.number_misscheduled += count(!place.pods.is_empty());
            continue;
        }
        told.desired_number_scheduled += 1;
        let Some(first) = place.pods.first() else { continue };
        told.current_number_scheduled += 1;
        // Of two the older speaks for the node.
        told.number_ready += count(pods::ready_since(first).is_some());
        available += count(pods::is_available(first, min_ready_s, now));
        updated += count(is_new(first, hash));
    }
    let some = |number: i32| (number > 0).then_some(number);
    told.number_available = some(available);
    told.number_unavailable = some(told.desired_number_scheduled - available);
    told.updated_number_scheduled = some(updated);
    told
}
