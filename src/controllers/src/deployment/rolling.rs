//! The sizes that a Deployment's ReplicaSets shall have: while one template takes another's place, and
//! when the Deployment grows or shrinks.
//!
//! Source: `pkg/controller/deployment` (`rolling.go`, `recreate.go`, `sync.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::revision::revision;
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

/// A change of size alone: what is there grows or shrinks in proportion, without rolling on.
pub(super) fn resized(
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
) -> BTreeMap<String, i32> {
    let wanted = replicas(spec);
    let all: Vec<&ReplicaSet> = new.into_iter().chain(old.iter().copied()).collect();
    let mut active: Vec<&ReplicaSet> = all.iter().copied().filter(|set| size(set) > 0).collect();
    let latest = || new.or_else(|| old.iter().copied().max_by_key(|set| revision(set)));
    let only = match active.as_slice() {
        [] => latest(),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = only {
        return BTreeMap::from([(set.name_any(), wanted)]);
    }
    let saturated = |set: &&ReplicaSet| {
        size(set) == wanted && number(set, DESIRED) == Some(wanted) && available(set) == wanted
    };
    if new.as_ref().is_some_and(saturated) {
        return old.iter().map(|set| (set.name_any(), 0)).collect();
    }
    if is_recreate(spec) {
        return BTreeMap::new();
    }
    let most = if wanted > 0 { wanted + bounds(spec).0 } else { 0 };
    let add = most - sum(&active, size);
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    active.sort_by(|a, b| {
        let by_age = created(a).cmp(&created(b));
        size(b).cmp(&size(a)).then(if add > 0 { by_age.reverse() } else { by_age })
    });
    let mut added = 0;
    let mut sizes = BTreeMap::new();
    for set in &active {
        let share = share_of(spec, set, add, added);
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
pub(super) fn share_of(spec: &DeploymentSpec, set: &ReplicaSet, add: i32, added: i32) -> i32 {
    let wanted = replicas(spec);
    if add == 0 || add == added {
        return 0;
    }
    let fraction = if wanted == 0 {
        -size(set)
    } else {
        let most = f64::from(wanted + bounds(spec).0);
        let before = f64::from(number(set, MAX).unwrap_or_else(|| size(set)).max(1));
        (f64::from(size(set)) * most / before).round() as i32 - size(set)
    };
    let rest = add - added;
    if add > 0 { fraction.min(rest) } else { fraction.max(rest) }
}

/// The sizes the sets shall have now, by name; sets that stay as they are, are not named.
pub(super) fn sizes(
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    old_pods_run: bool,
) -> BTreeMap<String, i32> {
    let mut sizes = BTreeMap::new();
    let wanted = replicas(spec);
    let (surge, down) = bounds(spec);
    let all: Vec<&ReplicaSet> = new.into_iter().chain(old.iter().copied()).collect();
    if spec.paused == Some(true) || is_resized(spec, &all) {
        return resized(spec, new, old);
    }
    if is_recreate(spec) {
        sizes.extend(old.iter().map(|set| (set.name_any(), 0)));
        if let Some(set) = new.filter(|_| sum(old, size) == 0 && !old_pods_run) {
            sizes.insert(set.name_any(), wanted);
        }
        return sizes;
    }
    let Some(new) = new else { return sizes };
    let total = sum(&all, size);
    let room = wanted + surge - total;
    let target =
        if size(new) > wanted { wanted } else { size(new) + room.max(0).min(wanted - size(new)) };
    sizes.insert(new.name_any(), target);
    if target > size(new) {
        // Growth first: the next look, with the new pods, shrinks the old sets.
        return sizes;
    }
    let minimum = wanted - down;
    let unready_new = size(new) - available(new);
    let mut spare = (total - minimum - unready_new).max(0);
    let mut by_age = old.to_vec();
    by_age.sort_by_key(|set| set.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let mut left: BTreeMap<String, i32> = by_age.iter().map(|s| (s.name_any(), size(s))).collect();
    // Old pods that never became available cost nobody anything; they go first.
    for set in &by_age {
        let broken = (size(set) - available(set)).clamp(0, spare);
        left.entry(set.name_any()).and_modify(|n| *n -= broken);
        spare -= broken;
    }
    let healthy_spare = (sum(&all, available) - minimum).max(0);
    let mut spare = spare.min(healthy_spare);
    for set in &by_age {
        let entry = left.entry(set.name_any()).or_default();
        let fewer = (*entry).min(spare);
        *entry -= fewer;
        spare -= fewer;
    }
    sizes.extend(left);
    sizes
}
