//! What a Deployment says of itself: how many pods there are, whether they are enough, and how its
//! roll-out gets on.
//!
//! Source: `pkg/controller/deployment/progress.go`, `sync.go` (`calculateStatus`).

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::rolling::{available, bounds, replicas, size, sum};

pub(super) fn condition<'a>(
    status: &'a DeploymentStatus,
    kind: &str,
) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

pub(super) fn set_condition(
    all: &mut Vec<DeploymentCondition>,
    (kind, status, reason): (&str, &str, &str),
    message: String,
    now: Timestamp,
    moved: bool,
) {
    let old = all.iter().find(|c| c.type_ == kind);
    let same = old.is_some_and(|c| c.status == status);
    if let Some(old) = old
        && same
        && !moved
        && old.reason.as_deref() == Some(reason)
    {
        return;
    }
    let since = old.filter(|_| same).and_then(|c| c.last_transition_time.clone());
    let made = DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(since.unwrap_or(Time(now))),
        last_update_time: Some(Time(now)),
    };
    all.retain(|c| c.type_ != kind);
    all.push(made);
}

/// How many pods there are of all sets.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    wanted: i32,
    total: i32,
    updated: i32,
    ready: i32,
    available: i32,
}

impl Counts {
    /// Whether the new set has taken over altogether.
    fn are_complete(self) -> bool {
        let Self { wanted, total, updated, available, .. } = self;
        updated == wanted && total == wanted && available == wanted
    }

    /// Whether there is more of the new, or less of the old, than `before`.
    fn moved_since(self, before: &DeploymentStatus) -> bool {
        let was = |number: Option<i32>| number.unwrap_or(0);
        self.updated > was(before.updated_replicas)
            || self.total - self.updated < was(before.replicas) - was(before.updated_replicas)
            || self.ready > was(before.ready_replicas)
            || self.available > was(before.available_replicas)
    }
}

/// The deadline of a roll-out's progress, unless there is none.
pub(super) fn deadline_s(spec: &DeploymentSpec) -> Option<i32> {
    Some(spec.progress_deadline_seconds.unwrap_or(600)).filter(|seconds| *seconds != i32::MAX)
}

/// Tells of the roll-out's progress (`syncRolloutStatus`, `checkPausedConditions`, `getNewReplicaSet`).
pub(super) fn progress(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    counts: Counts,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) {
    const KIND: &str = "Progressing";
    let Some(deadline_s) = deadline_s(spec) else {
        conditions.retain(|c| c.type_ != KIND);
        return;
    };
    let before = deployment.status.clone().unwrap_or_default();
    let known = condition(&before, KIND);
    let is = |reason: &str| known.is_some_and(|c| c.reason.as_deref() == Some(reason));
    let name = new.map_or_else(|| deployment.name_any(), ResourceExt::name_any);
    let mut tell = |status: &str, reason: &str, message: String, moved: bool| {
        set_condition(conditions, (KIND, status, reason), message, now, moved);
    };
    if spec.paused == Some(true) {
        if !is("ProgressDeadlineExceeded") {
            tell("Unknown", "DeploymentPaused", "Deployment is paused".into(), false);
        }
        return;
    }
    // What has been rolled out already is only told of again when there is another template.
    if is("NewReplicaSetAvailable") && counts.total == counts.updated {
        return;
    }
    let last = known.and_then(|c| c.last_update_time.as_ref());
    let late = last.is_some_and(|t| now.duration_since(t.0).as_secs() > i64::from(deadline_s));
    if new.is_some() && counts.are_complete() {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        tell("True", "NewReplicaSetAvailable", message, false);
    } else if counts.moved_since(&before) {
        let message = format!("ReplicaSet \"{name}\" is progressing.");
        tell("True", "ReplicaSetUpdated", message, true);
    } else if is("DeploymentPaused") {
        tell("Unknown", "DeploymentResumed", "Deployment is resumed".into(), false);
    } else if known.is_none() && new.is_some() {
        let message = format!("Found new replica set \"{name}\"");
        tell("True", "FoundNewReplicaSet", message, false);
    } else if late && !is("NewReplicaSetAvailable") {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        tell("False", "ProgressDeadlineExceeded", message, false);
    }
}

pub(super) fn status(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let all: Vec<&ReplicaSet> = new.into_iter().chain(old.iter().copied()).collect();
    let before = deployment.status.clone().unwrap_or_default();
    let some = |number: i32| (number > 0).then_some(number);
    let count = |sets: &[&ReplicaSet]| -> i32 {
        sets.iter().filter_map(|set| set.status.as_ref()).map(|status| status.replicas).sum()
    };
    let (total, updated) = (count(&all), count(&new.into_iter().collect::<Vec<_>>()));
    let ready = sum(&all, |s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0));
    let usable = sum(&all, available);
    let wanted = replicas(spec);
    let mut conditions = before.conditions.clone().unwrap_or_default();
    let minimum = wanted - bounds(spec).1;
    let (state, reason, message) = if usable >= minimum {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut conditions, ("Available", state, reason), message.into(), now, false);
    let counts = Counts { wanted, total, updated, ready, available: usable };
    progress(deployment, spec, new, counts, &mut conditions, now);
    let failing = all.iter().find_map(|set| {
        set.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure")
    });
    match failing {
        Some(failure) => {
            let message = failure.message.clone().unwrap_or_default();
            set_condition(
                &mut conditions,
                ("ReplicaFailure", "True", "FailedCreate"),
                message,
                now,
                false,
            );
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(updated),
        ready_replicas: some(ready),
        available_replicas: some(usable),
        unavailable_replicas: some((sum(&all, size).max(wanted) - usable).max(0)),
        terminating_replicas: all
            .iter()
            .map(|set| set.status.as_ref().map_or(Some(0), |status| status.terminating_replicas))
            .sum(),
        collision_count: before.collision_count,
        conditions: Some(conditions),
    }
}

/// Whether the status says that the present template has been rolled out (`DeploymentComplete`).
pub(super) fn is_rolled_out(deployment: &Deployment, spec: &DeploymentSpec) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let counts = Counts {
        wanted: replicas(spec),
        total: status.replicas.unwrap_or(0),
        updated: status.updated_replicas.unwrap_or(0),
        ready: status.ready_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
    };
    counts.are_complete() && status.observed_generation >= deployment.metadata.generation
}
