//! What a Deployment says of itself: how many pods there are, whether they are enough, and how its
//! roll-out gets on.
//!
//! Source: `pkg/controller/deployment/progress.go`, `sync.go` (`calculateStatus`).

use std::time::Duration;

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::rolling::{available, bounds, replicas, size, sum};

const PROGRESSING: &str = "Progressing";
const LATE: &str = "ProgressDeadlineExceeded";

/// What a look at a Deployment was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// One template takes another's place, or has done.
    Rollout,
    /// It is paused, or only its size was changed: progress is not judged.
    Scale,
    /// It is being deleted: nothing is done any more.
    Ending,
}

pub(super) fn condition<'a>(
    status: &'a DeploymentStatus,
    kind: &str,
) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

/// A condition as of `now`.
fn made(
    (kind, status, reason): (&str, &str, &str),
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// Puts the condition into the place of the one of its type, unless that has its status and reason
/// (`SetDeploymentCondition`); with `again` even then.
fn put(all: &mut Vec<DeploymentCondition>, mut condition: DeploymentCondition, again: bool) {
    if let Some(old) = all.iter().find(|c| c.type_ == condition.type_)
        && old.status == condition.status
    {
        if old.reason == condition.reason && !again {
            return;
        }
        condition.last_transition_time.clone_from(&old.last_transition_time);
    }
    all.retain(|c| c.type_ != condition.type_);
    all.push(condition);
}

pub(super) fn set_condition(
    all: &mut Vec<DeploymentCondition>,
    kind: (&str, &str, &str),
    message: String,
    now: Timestamp,
) {
    put(all, made(kind, message, now), false);
}

/// How many pods there are of all sets.
#[derive(Clone, Copy)]
struct Counts {
    wanted: i32,
    total: i32,
    updated: i32,
    available: i32,
}

impl Counts {
    fn of(status: &DeploymentStatus, spec: &DeploymentSpec) -> Self {
        let was = |number: Option<i32>| number.unwrap_or(0);
        Self {
            wanted: replicas(spec),
            total: was(status.replicas),
            updated: was(status.updated_replicas),
            available: was(status.available_replicas),
        }
    }

    /// Whether the new set has taken over altogether.
    fn are_complete(self) -> bool {
        let Self { wanted, total, updated, available } = self;
        updated == wanted && total == wanted && available == wanted
    }
}

/// Whether there is more of the new, or less of the old, than `before` (`DeploymentProgressing`).
fn has_moved(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let old = |status: &DeploymentStatus| {
        status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
    };
    now.updated_replicas > before.updated_replicas
        || old(now) < old(before)
        || now.ready_replicas > before.ready_replicas
        || now.available_replicas > before.available_replicas
}

/// The deadline of a roll-out's progress, unless there is none.
pub(super) fn deadline_s(spec: &DeploymentSpec) -> Option<i32> {
    Some(spec.progress_deadline_seconds.unwrap_or(600)).filter(|seconds| *seconds != i32::MAX)
}

/// Tells that the Deployment is paused, is no more, or that a set was found where progress was not yet told of
/// (`checkPausedConditions`, `getNewReplicaSet`).
fn begin(
    conditions: &mut Vec<DeploymentCondition>,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    mode: Mode,
    now: Timestamp,
) {
    if deadline_s(spec).is_none() {
        return;
    }
    let known = conditions.iter().find(|c| c.type_ == PROGRESSING);
    let reason = known.and_then(|c| c.reason.clone());
    let was_paused = reason.as_deref() == Some("DeploymentPaused");
    let paused = spec.paused == Some(true);
    let mut tell = |status: &str, reason: &str, message: String| {
        set_condition(conditions, (PROGRESSING, status, reason), message, now);
    };
    if mode != Mode::Ending && reason.as_deref() != Some(LATE) && paused != was_paused {
        if paused {
            tell("Unknown", "DeploymentPaused", "Deployment is paused".into());
        } else {
            tell("Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
    } else if let Some(new) = new
        && reason.is_none()
    {
        let message = format!("Found new replica set \"{}\"", new.name_any());
        tell("True", "FoundNewReplicaSet", message);
    }
}

/// Judges the roll-out's progress (`syncRolloutStatus`); `before` is as it was at the beginning of the look.
fn judge(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    status: &mut DeploymentStatus,
    now: Timestamp,
) {
    let counts = Counts::of(status, spec);
    let moved = has_moved(&deployment.status.clone().unwrap_or_default(), status);
    let conditions = status.conditions.get_or_insert_default();
    let Some(deadline_s) = deadline_s(spec) else {
        conditions.retain(|c| c.type_ != PROGRESSING);
        return;
    };
    let known = conditions.iter().find(|c| c.type_ == PROGRESSING);
    let is = |reason: &str| known.is_some_and(|c| c.reason.as_deref() == Some(reason));
    // What has been rolled out already is only told of again when there is another template.
    if is("NewReplicaSetAvailable") && counts.total == counts.updated {
        return;
    }
    let last = known.and_then(|c| c.last_update_time.as_ref());
    let deadline = SignedDuration::from_secs(deadline_s.into());
    let late = last.is_some_and(|last| now.duration_since(last.0) > deadline);
    let late = (late || is(LATE)) && !is("NewReplicaSetAvailable");
    let subject = new.map_or_else(
        || format!("Deployment \"{}\"", deployment.name_any()),
        |new| format!("ReplicaSet \"{}\"", new.name_any()),
    );
    let mut tell = |status: &str, reason: &str, message: String, again: bool| {
        put(conditions, made((PROGRESSING, status, reason), message, now), again);
    };
    if counts.are_complete() {
        let message = format!("{subject} has successfully progressed.");
        tell("True", "NewReplicaSetAvailable", message, false);
    } else if moved {
        tell("True", "ReplicaSetUpdated", format!("{subject} is progressing."), true);
    } else if late {
        tell("False", LATE, format!("{subject} has timed out progressing."), false);
    }
}

/// Why pods cannot be made: for the new set, or else for any (`getReplicaFailures`).
fn failure(new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|c| c.type_ == "ReplicaFailure").cloned()
    };
    let found = new.and_then(of).or_else(|| old.iter().find_map(|set| of(set)))?;
    Some(DeploymentCondition {
        type_: found.type_,
        status: found.status,
        reason: found.reason,
        message: found.message,
        last_transition_time: found.last_transition_time.clone(),
        last_update_time: found.last_transition_time,
    })
}

/// The counts, and what follows from them whatever is done (`calculateStatus`).
fn count(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
) -> DeploymentStatus {
    let all: Vec<&ReplicaSet> = old.iter().copied().chain(new).collect();
    let some = |number: i32| (number > 0).then_some(number);
    let actual = |set: &ReplicaSet| set.status.as_ref().map_or(0, |status| status.replicas);
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0);
    let usable = sum(&all, available);
    let before = deployment.status.as_ref();
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(&all, actual)),
        updated_replicas: some(new.map_or(0, actual)),
        ready_replicas: some(sum(&all, ready)),
        available_replicas: some(usable),
        unavailable_replicas: some(sum(&all, size) - usable),
        // Unknown as long as it is unknown of one.
        terminating_replicas: all.iter().map(|set| set.status.as_ref()?.terminating_replicas).sum(),
        collision_count: before.and_then(|before| before.collision_count),
        conditions: before.and_then(|before| before.conditions.clone()),
    }
}

pub(super) fn status(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    mode: Mode,
    now: Timestamp,
) -> DeploymentStatus {
    let mut told = count(deployment, new, old);
    let conditions = told.conditions.get_or_insert_default();
    begin(conditions, spec, new, mode, now);
    let minimum = replicas(spec) - bounds(spec).1;
    let (state, reason, message) = if told.available_replicas.unwrap_or(0) >= minimum {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(conditions, ("Available", state, reason), message.into(), now);
    if mode == Mode::Rollout {
        judge(deployment, spec, new, &mut told, now);
        let conditions = told.conditions.get_or_insert_default();
        match failure(new, old) {
            Some(failure) => put(conditions, failure, false),
            None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
        }
    }
    told
}

/// Whether the status says that the present template has been rolled out (`DeploymentComplete`).
pub(super) fn is_rolled_out(deployment: &Deployment, spec: &DeploymentSpec) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    Counts::of(&status, spec).are_complete()
        && status.observed_generation >= deployment.metadata.generation
}

/// When the progress is to be judged again, if it has to be (`requeueStuckDeployment`).
pub(super) fn next_judgement(
    spec: &DeploymentSpec,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let deadline = SignedDuration::from_secs(deadline_s(spec)?.into());
    let known = condition(status, PROGRESSING)?;
    if Counts::of(status, spec).are_complete()
        || matches!(known.reason.as_deref(), Some(LATE | "NewReplicaSetAvailable"))
    {
        return None;
    }
    let passed = now.duration_since(known.last_update_time.as_ref()?.0);
    let left = (deadline - passed).max(SignedDuration::ZERO);
    // Another second, since the API's times are whole ones.
    Some(left.unsigned_abs() + Duration::from_secs(1))
}
