//! What is to be done about a StatefulSet's pods, one step at a time.
//!
//! Source: `pkg/controller/statefulset/stateful_set_control.go` (`updateStatefulSet`, `processReplica`,
//! `processCondemned`).

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;

use super::identity::{ordinal, ordinals, revision};
use crate::{pods, share};

/// The names of the revisions that are rolled from and to.
#[derive(Clone, Copy, Debug)]
pub struct Revisions<'a> {
    pub current: &'a str,
    pub update: &'a str,
}

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Pods that have ended and make way for their successors, by ordinal, and whether they failed.
    pub restart: Vec<(i32, bool)>,
    /// Pods to make: ordinal, and whether at the update revision.
    pub create: Vec<(i32, bool)>,
    /// Pods that are more than the set asks for, by ordinal.
    pub condemn: Vec<i32>,
    /// Pods that are to be replaced by newer ones, by ordinal.
    pub update: Vec<i32>,
}

fn is_parallel(spec: &StatefulSetSpec) -> bool {
    spec.pod_management_policy.as_deref() == Some("Parallel")
}

fn is_rolling(spec: &StatefulSetSpec) -> bool {
    spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete")
}

/// The first ordinal that an update reaches.
fn partition(spec: &StatefulSetSpec) -> i32 {
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.partition).unwrap_or(0)
}

/// How many pods may be unavailable during an update, where that is said.
fn max_unavailable(spec: &StatefulSetSpec) -> Option<usize> {
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let bound = rolling.and_then(|rolling| rolling.max_unavailable.as_ref())?;
    let replicas = spec.replicas.unwrap_or(1);
    Some(share::of(Some(bound), replicas, false).max(1) as usize)
}

fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn is_ready(pod: &Pod) -> bool {
    pods::phase(pod) == "Running" && pods::ready_since(pod).is_some()
}

/// The set's pods by ordinal: those it asks for, and those it does not.
fn split<'a>(
    set: &StatefulSet,
    spec: &StatefulSetSpec,
    own: &[&'a Pod],
) -> (BTreeMap<i32, &'a Pod>, BTreeMap<i32, &'a Pod>) {
    let wanted = ordinals(spec);
    let by_ordinal = own.iter().filter_map(|pod| Some((ordinal(set, pod)?, *pod)));
    by_ordinal.partition(|(ordinal, _)| wanted.contains(ordinal))
}

/// Whether the pod of an ordinal is made at the update revision when it is missing
/// (`newVersionedStatefulSetPod`).
fn made_anew(
    spec: &StatefulSetSpec,
    status: &StatefulSetStatus,
    revisions: Revisions<'_>,
    ordinal: i32,
) -> bool {
    if revisions.current == revisions.update || !is_rolling(spec) {
        return true;
    }
    let rolling = spec.update_strategy.as_ref().and_then(|s| s.rolling_update.as_ref());
    let kept = match rolling {
        Some(_) => partition(spec),
        None => status.current_replicas.unwrap_or(0),
    };
    ordinal >= ordinals(spec).start + kept
}

/// Decides.
pub fn decide(set: &StatefulSet, own: &[&Pod], revisions: Revisions<'_>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let Some(spec) = set.spec.as_ref() else { return plan };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let status = set.status.clone().unwrap_or_default();
    let (replicas, condemned) = split(set, spec, own);
    let ordered = !is_parallel(spec);
    let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
    let available = |pod: &Pod| is_ready(pod) && pods::is_available(pod, min_ready_s, now);

    for ordinal in ordinals(spec) {
        let Some(pod) = replicas.get(&ordinal) else {
            plan.create.push((ordinal, made_anew(spec, &status, revisions, ordinal)));
            if ordered {
                return plan;
            }
            continue;
        };
        if pods::is_finished(pod) && !is_going(pod) {
            plan.restart.push((ordinal, pods::phase(pod) == "Failed"));
            if ordered {
                return plan;
            }
            continue;
        }
        // In order, each waits for the one before.
        if ordered && (is_going(pod) || !available(pod)) {
            return plan;
        }
    }
    if !condemn(&condemned, &replicas, ordered, &available, &mut plan) {
        return plan;
    }
    if !is_rolling(spec) {
        return plan;
    }
    plan.update = match max_unavailable(spec) {
        Some(most) => outdated(spec, &replicas, (revisions.update, most), &available),
        None => next_outdated(spec, &replicas, revisions.update, &available).into_iter().collect(),
    };
    plan
}

/// The pod that makes way for a newer one: the highest that is old, whether it serves or not, once all above it do.
fn next_outdated(
    spec: &StatefulSetSpec,
    replicas: &BTreeMap<i32, &Pod>,
    revision_name: &str,
    available: &impl Fn(&Pod) -> bool,
) -> Option<i32> {
    let wanted = ordinals(spec);
    let reached = wanted.start.saturating_add(partition(spec))..wanted.end;
    for ordinal in reached.rev() {
        // One that is missing is about to come.
        let pod = replicas.get(&ordinal)?;
        if is_going(pod) {
            return None;
        }
        if revision(pod) != revision_name {
            return Some(ordinal);
        }
        if !available(pod) {
            return None;
        }
    }
    None
}

/// Which pods make way for newer ones, from the highest ordinal down, so that no more than `most` are unavailable.
/// Side by side, those go whatever happens that are of the old revision and do not serve: they may never do.
fn outdated(
    spec: &StatefulSetSpec,
    replicas: &BTreeMap<i32, &Pod>,
    (revision_name, most): (&str, usize),
    available: &impl Fn(&Pod) -> bool,
) -> Vec<i32> {
    let wanted = ordinals(spec);
    let serving = replicas.values().filter(|pod| !is_going(pod) && available(pod)).count();
    let unavailable = wanted.len() - serving;
    let room = most.saturating_sub(unavailable);
    let is_old = |pod: &Pod| revision(pod) != revision_name && !is_going(pod);
    let reached = replicas.range(wanted.start.saturating_add(partition(spec))..).rev();
    let old = || reached.clone().filter(|(_, pod)| is_old(pod));
    if !is_parallel(spec) {
        return old().take(room).map(|(ordinal, _)| *ordinal).collect();
    }
    let broken = old().filter(|(_, pod)| !available(pod));
    let serving = old().filter(|(_, pod)| available(pod)).take(room);
    broken.chain(serving).map(|(ordinal, _)| *ordinal).collect()
}

/// Takes the highest ordinals away first; in order, one at a time, and only while the others serve.
/// Says whether the work may go on.
fn condemn(
    condemned: &BTreeMap<i32, &Pod>,
    replicas: &BTreeMap<i32, &Pod>,
    ordered: bool,
    available: &impl Fn(&Pod) -> bool,
    plan: &mut Plan,
) -> bool {
    if !ordered {
        plan.condemn =
            condemned.iter().rev().filter(|(_, p)| !is_going(p)).map(|(n, _)| *n).collect();
        return true;
    }
    let all = replicas.iter().chain(condemned);
    let first_unhealthy = all.filter(|(_, p)| is_going(p) || !available(p)).map(|(n, _)| *n).min();
    let Some((ordinal, pod)) = condemned.last_key_value() else { return true };
    if is_going(pod) {
        return false;
    }
    let blocked = !available(pod) && first_unhealthy.is_some_and(|first| first != *ordinal);
    if !blocked {
        plan.condemn.push(*ordinal);
    }
    false
}

/// The status that the pods show.
pub fn status(
    set: &StatefulSet,
    own: &[&Pod],
    revisions: Revisions<'_>,
    collisions: Option<i32>,
    now: Timestamp,
) -> StatefulSetStatus {
    let before = set.status.clone().unwrap_or_default();
    let Some(spec) = set.spec.as_ref() else { return before };
    let min_ready_s = spec.min_ready_seconds.unwrap_or(0);
    let (mut ready, mut available, mut current, mut updated, mut total) = (0, 0, 0, 0, 0);
    for pod in own.iter().filter(|pod| ordinal(set, pod).is_some()) {
        total += 1;
        if is_ready(pod) {
            ready += 1;
            available += i32::from(pods::is_available(pod, min_ready_s, now));
        }
        if !is_going(pod) {
            current += i32::from(revision(pod) == revisions.current);
            updated += i32::from(revision(pod) == revisions.update);
        }
    }
    let some = |number: i32| (number > 0).then_some(number);
    let mut told = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: total,
        ready_replicas: some(ready),
        available_replicas: Some(available),
        current_replicas: some(current),
        updated_replicas: some(updated),
        current_revision: Some(revisions.current.to_owned()),
        update_revision: Some(revisions.update.to_owned()),
        collision_count: collisions.or(Some(0)),
        conditions: before.conditions,
    };
    // The update is complete: what was rolled to is what there is.
    let done = is_rolling(spec)
        && revisions.current != revisions.update
        && updated == total
        && ready == total;
    if done {
        told.current_replicas = told.updated_replicas;
        told.current_revision = told.update_revision.clone();
    }
    told
}
