//! The sizes that a Deployment's ReplicaSets shall have: while one template takes another's place, and
//! when the Deployment grows or shrinks.
//!
//! Source: `pkg/controller/deployment` (`rolling.go`, `recreate.go`, `sync.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision::created;
use crate::share;

pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// How many pods more, and how many fewer, than asked for there may be while rolling.
pub(super) fn bounds(spec: &DeploymentSpec) -> (i32, i32) {
    let replicas = replicas(spec);
    if is_recreate(spec) || replicas == 0 {
        return (0, 0);
    }
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.clone()).unwrap_or_default();
    let share = Some(IntOrString::String("25%".into()));
    let surge = share::of(rolling.max_surge.as_ref().or(share.as_ref()), replicas, true);
    let down = share::of(rolling.max_unavailable.as_ref().or(share.as_ref()), replicas, false);
    // Without room in either direction nothing could ever move.
    if surge == 0 && down == 0 { (0, 1) } else { (surge, down.min(replicas)) }
}

pub(super) fn replicas(spec: &DeploymentSpec) -> i32 {
    spec.replicas.unwrap_or(1).max(0)
}

pub(super) fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("Recreate"))
}

pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
}

pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

pub(super) fn sum(sets: &[&ReplicaSet], of: fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().map(|set| of(set)).sum()
}

pub(super) fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.annotations().get(annotation)?.parse().ok()
}

/// Whether the Deployment's size was changed while its sets were of another.
pub(super) fn is_resized(spec: &DeploymentSpec, all: &[&ReplicaSet]) -> bool {
    let wanted = replicas(spec);
    all.iter().any(|set| size(set) > 0 && number(set, DESIRED).is_some_and(|known| known != wanted))
}

/// The sets that are to be scaled, by name and with their size. One that is named with the size it has, is told of
/// the Deployment's.
pub(super) type Sizes = BTreeMap<String, i32>;

/// What the sets of a Deployment look like.
#[derive(Clone, Copy)]
pub(super) struct Sets<'a> {
    pub new: Option<&'a ReplicaSet>,
    /// By name.
    pub old: &'a [&'a ReplicaSet],
    /// Whether pods of old sets have not ended.
    pub old_pods_run: bool,
    /// How many pods the Deployment's status tells of.
    pub told: i32,
}

impl<'a> Sets<'a> {
    fn all(self) -> Vec<&'a ReplicaSet> {
        self.old.iter().copied().chain(self.new).collect()
    }
}

/// The set that changes alone with the Deployment's size: the only one that has pods, or the latest where none has
/// (`FindActiveOrLatest`).
fn only(sets: Sets<'_>) -> Option<&ReplicaSet> {
    let mut active = sets.all().into_iter().filter(|set| size(set) > 0);
    match (active.next(), active.next()) {
        (None, _) => {
            let age = |set: &&ReplicaSet| (created(set), std::cmp::Reverse(set.name_any()));
            sets.new.or_else(|| sets.old.iter().copied().max_by_key(age))
        }
        (Some(one), None) => Some(one),
        _ => None,
    }
}

/// A change of size alone: what is there grows or shrinks in proportion, without rolling on.
pub(super) fn resized(spec: &DeploymentSpec, sets: Sets<'_>) -> Sizes {
    let wanted = replicas(spec);
    if let Some(set) = only(sets) {
        let changed = size(set) != wanted;
        return changed.then(|| (set.name_any(), wanted)).into_iter().collect();
    }
    let saturated = |set: &ReplicaSet| {
        size(set) == wanted && number(set, DESIRED) == Some(wanted) && available(set) == wanted
    };
    if sets.new.is_some_and(saturated) {
        return emptied(sets.old);
    }
    if is_recreate(spec) {
        return Sizes::new();
    }
    let most = if wanted > 0 { wanted + bounds(spec).0 } else { 0 };
    let mut active: Vec<&ReplicaSet> = sets.all().into_iter().filter(|set| size(set) > 0).collect();
    let add = most - sum(&active, size);
    active.sort_by(|a, b| {
        let by_age = (created(a), a.name_any()).cmp(&(created(b), b.name_any()));
        size(b).cmp(&size(a)).then(if add > 0 { by_age.reverse() } else { by_age })
    });
    let mut added = 0;
    let mut sizes = Sizes::new();
    for set in &active {
        let share = share_of(spec, set, sets.told, (add, added));
        added += share;
        sizes.insert(set.name_any(), size(set) + share);
    }
    // What rounding leaves goes to the largest.
    if let Some(first) = active.first() {
        sizes.entry(first.name_any()).and_modify(|size| *size = (*size + add - added).max(0));
    }
    sizes
}

/// A set's part of `add` more pods, of which `added` are given out.
fn share_of(spec: &DeploymentSpec, set: &ReplicaSet, told: i32, (add, added): (i32, i32)) -> i32 {
    if add == 0 || add == added {
        return 0;
    }
    let wanted = replicas(spec);
    let before = number(set, MAX).filter(|most| *most != 0).unwrap_or(told);
    let fraction = if wanted == 0 {
        -size(set)
    } else if before == 0 {
        // Of what it was a part is not known, and no pods are there.
        0
    } else {
        let most = f64::from(wanted + bounds(spec).0);
        (f64::from(size(set)) * most / f64::from(before)).round() as i32 - size(set)
    };
    let rest = add - added;
    if add > 0 { fraction.min(rest) } else { fraction.max(rest) }
}

/// Those that have pods shall have none.
fn emptied(sets: &[&ReplicaSet]) -> Sizes {
    sets.iter().filter(|set| size(set) > 0).map(|set| (set.name_any(), 0)).collect()
}

/// How large the new set may be beside the old ones (`NewRSNewReplicas`).
pub(super) fn room_for_new(spec: &DeploymentSpec, new: i32, old: &[&ReplicaSet]) -> i32 {
    let wanted = replicas(spec);
    if is_recreate(spec) || new >= wanted {
        return wanted;
    }
    let room = wanted + bounds(spec).0 - sum(old, size) - new;
    new + room.max(0).min(wanted - new)
}

/// The sizes the sets shall have now; sets that stay as they are, are not named.
pub(super) fn sizes(spec: &DeploymentSpec, sets: Sets<'_>) -> Sizes {
    if spec.paused == Some(true) || is_resized(spec, &sets.all()) {
        return resized(spec, sets);
    }
    if is_recreate(spec) {
        let emptied = emptied(sets.old);
        if !emptied.is_empty() || sets.old_pods_run {
            return emptied;
        }
    }
    let Some(new) = sets.new else { return Sizes::new() };
    let target = room_for_new(spec, size(new), sets.old);
    if target != size(new) {
        // One step at a time: the next look, with the new pods, shrinks the old sets.
        return Sizes::from([(new.name_any(), target)]);
    }
    let minimum = replicas(spec) - bounds(spec).1;
    let total = sum(&sets.all(), size);
    let usable = sum(&sets.all(), available);
    shrunk(sets.old, total - minimum - (size(new) - available(new)), usable - minimum)
}

/// Old sets with `spare` fewer pods, at most `healthy` of which are available.
fn shrunk(old: &[&ReplicaSet], spare: i32, healthy: i32) -> Sizes {
    let mut by_age = old.to_vec();
    by_age.sort_by_key(|set| (created(set), set.name_any()));
    let mut spare = spare.max(0);
    // Old pods that never became available cost nobody anything; they go first.
    let mut left = Vec::new();
    for set in by_age {
        let broken = (size(set) - available(set)).max(0).min(spare);
        spare -= broken;
        left.push((set, size(set) - broken));
    }
    let mut spare = spare.min(healthy.max(0));
    for (_, size) in &mut left {
        let fewer = (*size).min(spare);
        *size -= fewer;
        spare -= fewer;
    }
    let changed = left.into_iter().filter(|(set, left)| *left != size(set));
    changed.map(|(set, left)| (set.name_any(), left)).collect()
}
