//! What is to be done about a Job: a pure function of the Job, its pods and the time.
//!
//! A pod that ends is first named in `status.uncountedTerminatedPods`, then loses its finalizer, and is
//! counted when it is seen without: so that a crash in between counts nothing twice and misses nothing.
//!
//! Source: `pkg/controller/job/job_controller.go` (`syncJob`, `manageJob`,
//! `trackJobStatusAndRemoveFinalizers`), `backoff_utils.go`, `success_policy.go`.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::failure_policy::{self, Verdict};
use super::indexes::{self, Indexes};
use crate::pods;

/// Holds a pod until its end is counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Delay before a pod is replaced after the first failure; it doubles with each.
const BACKOFF_MIN_S: i64 = 10;
const BACKOFF_MAX_S: i64 = 600;
/// Most pods made or deleted in one go.
const BURST: usize = 500;
/// Most ends noted in the status at one time, so that it stays small.
const UNCOUNTED_MAX: usize = 500;

/// A pod to be made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Its completion index.
    pub index: Option<i32>,
    /// Failures of the index so far: counted and ignored ones.
    pub failures: Option<(i32, i32)>,
}

/// An event about the Job.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// What is to be done, in the order of the fields.
#[derive(Debug, Default)]
pub struct Plan {
    /// Pods to delete, by name.
    pub delete: Vec<String>,
    /// Whether the deleted pods go uncounted: they are too many, and have not failed.
    pub uncounted: bool,
    /// Pods to make.
    pub create: Vec<Wanted>,
    /// The status to write.
    pub status: JobStatus,
    /// Pods that may lose their finalizer once the status is written, by name.
    pub release: Vec<String>,
    /// Events, once the status is written.
    pub events: Vec<Told>,
    /// When to look again although nothing changed.
    pub again: Option<Duration>,
}

/// The condition of this type, when it holds.
pub fn holds<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind && c.status == "True")
}

/// Whether the Job has come to its end.
pub fn is_finished(job: &Job) -> bool {
    let status = job.status.as_ref();
    status.is_some_and(|s| holds(s, "Complete").or(holds(s, "Failed")).is_some())
}

/// Whether pods are replaced only when they have failed, not when they are asked to go.
fn only_failed_are_replaced(spec: &JobSpec) -> bool {
    // What a policy says of failures can only be said of pods that have ended.
    spec.pod_replacement_policy.as_deref() == Some("Failed") || spec.pod_failure_policy.is_some()
}

fn has_failed(spec: &JobSpec, pod: &Pod) -> bool {
    match pods::phase(pod) {
        "Failed" => true,
        "Succeeded" => false,
        _ => !only_failed_are_replaced(spec) && pod.metadata.deletion_timestamp.is_some(),
    }
}

fn is_held(pod: &Pod) -> bool {
    pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

fn condition(kind: &str, reason: &str, message: impl Into<String>, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// The delay after `failures` failures in a row.
fn backoff_s(failures: i32) -> i64 {
    if failures <= 0 {
        return 0;
    }
    (BACKOFF_MIN_S << (failures - 1).min(20)).min(BACKOFF_MAX_S)
}

/// Everything one decision looks at.
struct View<'a> {
    spec: &'a JobSpec,
    deleted: bool,
    pods: Vec<&'a Pod>,
    active: Vec<&'a Pod>,
    terminating: usize,
    completions: Option<i32>,
    indexed: bool,
    now: Timestamp,
}

impl<'a> View<'a> {
    fn index(&self, pod: &Pod) -> Option<i32> {
        indexes::of(pod).filter(|index| Some(*index) < self.completions)
    }

    fn per_index(&self) -> Option<i32> {
        self.spec.backoff_limit_per_index.filter(|_| self.indexed)
    }

    fn judge(&self, pod: &Pod) -> Verdict {
        failure_policy::judge(self.spec.pod_failure_policy.as_ref(), pod)
    }

    /// Whether a pod that runs on after failures has used up the limit (`restartPolicy: OnFailure`).
    fn restarts_exceed(&self) -> bool {
        let policy = self.spec.template.spec.as_ref().and_then(|s| s.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        let restarts: i32 = self
            .pods
            .iter()
            .filter(|pod| matches!(pods::phase(pod), "Pending" | "Running"))
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten())
            .map(|status| status.restart_count)
            .sum();
        if limit == 0 { restarts > 0 } else { restarts >= limit }
    }

    /// For each index the failed pod that knows most about its failures: it keeps its finalizer until a
    /// successor carries the count on.
    fn last_failures(&self, done: &Indexes) -> BTreeMap<i32, &'a Pod> {
        let mut last: BTreeMap<i32, &'a Pod> = BTreeMap::new();
        for pod in self.pods.iter().copied().filter(|pod| has_failed(self.spec, pod)) {
            let Some(index) = self.index(pod).filter(|index| !done.contains(index)) else {
                continue;
            };
            let rank = |pod: &Pod| indexes::failures(pod) + indexes::ignored(pod);
            let known = last.entry(index).or_insert(pod);
            if rank(pod) > rank(known) {
                *known = pod;
            }
        }
        let alive: Indexes = self.active.iter().filter_map(|pod| self.index(pod)).collect();
        last.retain(|index, _| !alive.contains(index));
        last
    }
}

/// The Job's progress as counted in this decision.
struct Counts {
    succeeded: i32,
    failed: i32,
    succeeded_indexes: Indexes,
    failed_indexes: Indexes,
}

/// Decides.
pub fn decide(job: &Job, own: &[impl AsRef<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = job.spec.as_ref() else { return Plan::default() };
    let pods: Vec<&Pod> = own.iter().map(AsRef::as_ref).collect();
    let view = View {
        spec,
        deleted: job.metadata.deletion_timestamp.is_some(),
        active: pods.iter().copied().filter(|pod| pods::is_active(pod)).collect(),
        terminating: pods.iter().filter(|pod| pods::is_terminating(pod)).count(),
        pods,
        completions: spec.completions,
        indexed: spec.completion_mode.as_deref() == Some("Indexed"),
        now,
    };
    let mut plan = Plan { status: job.status.clone().unwrap_or_default(), ..Plan::default() };
    let suspended = spec.suspend == Some(true);
    if plan.status.start_time.is_none() && !suspended {
        plan.status.start_time = Some(Time(now));
    }
    count_released(&view, &mut plan.status);
    let counts = count(&view, &plan.status);
    let mut end = end(&view, &plan.status, &counts);
    let mut active = view.active.len();
    if end.is_some() {
        plan.delete = view.active.iter().map(|pod| pod.name_any()).collect();
        active = 0;
    } else {
        if !view.deleted {
            populate(&view, &counts, &mut plan);
            active = active + plan.create.len() - plan.delete.len();
        }
        let complete = match spec.completions {
            None => counts.succeeded > 0 && active == 0,
            Some(completions) => counts.succeeded >= completions && active == 0,
        };
        if complete {
            let message = "Reached expected number of succeeded pods";
            end = Some(condition("SuccessCriteriaMet", "CompletionsReached", message, now));
        } else if !view.deleted {
            tell_suspension(&mut plan, suspended, now);
        }
        if let Some(rest) = deadline_s(spec, &plan.status, now).filter(|_| !suspended) {
            let rest = Duration::from_secs(rest.max(0) as u64);
            plan.again = Some(plan.again.map_or(rest, |known| known.min(rest)));
        }
    }
    let leaving = plan.delete.len();
    // Pods that are about to be deleted count as active no more, so they do not count as ready either.
    let stays = |pod: &&&Pod| !plan.delete.contains(&pod.name_any());
    let ready =
        view.active.iter().filter(stays).filter(|pod| pods::ready_since(pod).is_some()).count();
    plan.status.active = (active > 0).then_some(active as i32);
    plan.status.ready = Some(ready as i32);
    plan.status.terminating = Some((view.terminating + leaving) as i32);
    track(&view, &counts, end.as_ref(), &mut plan);
    if let Some(end) = end {
        finish(&view, spec, end, active + view.terminating + leaving == 0, &mut plan);
    }
    plan
}

/// Counts the pods whose end was noted and that have lost their finalizer since.
fn count_released(view: &View<'_>, status: &mut JobStatus) {
    let held: HashSet<&str> = view
        .pods
        .iter()
        .filter(|pod| is_held(pod))
        .filter_map(|pod| pod.metadata.uid.as_deref())
        .collect();
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let take = |list: &mut Option<Vec<String>>| -> i32 {
        let before = list.as_ref().map_or(0, Vec::len);
        if let Some(uids) = list.as_mut() {
            uids.retain(|uid| held.contains(uid.as_str()));
        }
        let after = list.as_ref().map_or(0, Vec::len);
        if after == 0 {
            *list = None;
        }
        (before - after) as i32
    };
    let (succeeded, failed) = (take(&mut uncounted.succeeded), take(&mut uncounted.failed));
    let add = |number: &mut Option<i32>, more: i32| {
        if more > 0 {
            *number = Some(number.unwrap_or(0) + more);
        }
    };
    add(&mut status.succeeded, succeeded);
    add(&mut status.failed, failed);
}

/// Whether a pod's failure counts towards the limits.
fn counts_as_failure(view: &View<'_>, pod: &Pod) -> bool {
    (!view.indexed || view.index(pod).is_some()) && view.judge(pod) != Verdict::Ignore
}

fn count(view: &View<'_>, status: &JobStatus) -> Counts {
    let uncounted = status.uncounted_terminated_pods.clone().unwrap_or_default();
    let (succeeded, failed) =
        (uncounted.succeeded.unwrap_or_default(), uncounted.failed.unwrap_or_default());
    let known = |list: &[String], pod: &Pod| {
        pod.metadata.uid.as_ref().is_some_and(|uid| list.contains(uid))
    };
    let new = |list: &[String], pod: &Pod| is_held(pod) && !known(list, pod);
    let mut counts = Counts {
        succeeded: status.succeeded.unwrap_or(0) + succeeded.len() as i32,
        failed: status.failed.unwrap_or(0) + failed.len() as i32,
        succeeded_indexes: Indexes::new(),
        failed_indexes: Indexes::new(),
    };
    for pod in view.pods.iter().filter(|pod| has_failed(view.spec, pod)) {
        counts.failed += i32::from(new(&failed, pod) && counts_as_failure(view, pod));
    }
    let has_succeeded = |pod: &&&Pod| pods::phase(pod) == "Succeeded";
    if !view.indexed {
        let fresh = view.pods.iter().filter(has_succeeded).filter(|p| new(&succeeded, p));
        counts.succeeded += fresh.count() as i32;
        return counts;
    }
    let completions = view.completions.unwrap_or(0);
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    counts.succeeded_indexes = indexes::parse(&text(&status.completed_indexes), completions);
    let fresh = view.pods.iter().filter(has_succeeded).filter(|pod| is_held(pod));
    counts.succeeded_indexes.extend(fresh.filter_map(|pod| view.index(pod)));
    counts.succeeded = counts.succeeded_indexes.len() as i32;
    if let Some(limit) = view.per_index() {
        counts.failed_indexes = indexes::parse(&text(&status.failed_indexes), completions);
        for pod in view.pods.iter().filter(|pod| is_held(pod) && has_failed(view.spec, pod)) {
            let Some(index) = view.index(pod) else { continue };
            let gone = match view.judge(pod) {
                Verdict::Ignore => false,
                Verdict::FailIndex => true,
                _ => indexes::failures(pod) >= limit,
            };
            if gone && !counts.succeeded_indexes.contains(&index) {
                counts.failed_indexes.insert(index);
            }
        }
    }
    counts
}

/// Seconds until the Job has been active for too long.
fn deadline_s(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> Option<i64> {
    let allowed = spec.active_deadline_seconds?;
    let started = status.start_time.as_ref()?.0;
    Some(allowed - now.duration_since(started).as_secs())
}

/// Why the Job is to end although pods may still run, if it is.
fn end(view: &View<'_>, status: &JobStatus, counts: &Counts) -> Option<JobCondition> {
    if let Some(known) = holds(status, "FailureTarget").or(holds(status, "SuccessCriteriaMet")) {
        return Some(known.clone());
    }
    let spec = view.spec;
    let failure =
        |reason: &str, message: String| Some(condition("FailureTarget", reason, message, view.now));
    for pod in view.pods.iter().filter(|pod| has_failed(spec, pod)) {
        if let Verdict::FailJob(message) = view.judge(pod) {
            return failure("PodFailurePolicy", message);
        }
    }
    if counts.failed > spec.backoff_limit.unwrap_or(6) || view.restarts_exceed() {
        let message = "Job has reached the specified backoff limit";
        return failure("BackoffLimitExceeded", message.into());
    }
    if spec.suspend != Some(true) && deadline_s(spec, status, view.now).is_some_and(|s| s <= 0) {
        let message = "Job was active longer than specified deadline";
        return failure("DeadlineExceeded", message.into());
    }
    if view.per_index().is_some() {
        let failed = counts.failed_indexes.len() as i32;
        if spec.max_failed_indexes.is_some_and(|max| failed > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return failure("MaxFailedIndexesExceeded", message.into());
        }
        if failed > 0 && Some(failed + counts.succeeded) >= view.completions {
            return failure("FailedIndexes", "Job has failed indexes".into());
        }
    }
    let rule = success_rule(view, counts)?;
    let message = format!("Matched rules at index {rule}");
    Some(condition("SuccessCriteriaMet", "SuccessPolicy", message, view.now))
}

/// The first rule of the success policy that is met.
fn success_rule(view: &View<'_>, counts: &Counts) -> Option<usize> {
    let rules = &view.spec.success_policy.as_ref().filter(|_| view.indexed)?.rules;
    let completions = view.completions.unwrap_or(0);
    rules.iter().position(|rule| {
        let wanted = rule.succeeded_indexes.as_ref().map(|text| indexes::parse(text, completions));
        let met = match &wanted {
            Some(wanted) => counts.succeeded_indexes.intersection(wanted).count(),
            None => counts.succeeded_indexes.len(),
        };
        match (rule.succeeded_count, &wanted) {
            (Some(count), _) => met as i32 >= count,
            (None, Some(wanted)) => met >= wanted.len(),
            (None, None) => false,
        }
    })
}

/// Pods to make or delete, so that as many run as should.
fn populate(view: &View<'_>, counts: &Counts, plan: &mut Plan) {
    let spec = view.spec;
    plan.uncounted = true;
    if spec.suspend == Some(true) {
        plan.delete = superfluous(view, view.active.len());
        return;
    }
    let active = view.active.len();
    let parallelism = spec.parallelism.unwrap_or(1).max(0) as usize;
    let wanted = match spec.completions {
        None if counts.succeeded > 0 => active,
        None => parallelism,
        Some(completions) => ((completions - counts.succeeded).max(0) as usize).min(parallelism),
    };
    plan.delete = superfluous(view, active.saturating_sub(wanted));
    if !plan.delete.is_empty() {
        plan.delete.truncate(BURST);
        return;
    }
    let replaced_late = if only_failed_are_replaced(spec) { view.terminating } else { 0 };
    let missing = wanted.saturating_sub(active + replaced_late).min(BURST);
    if missing == 0 {
        return;
    }
    if view.per_index().is_none() {
        let rest = backoff_rest_s(view);
        if rest > 0 {
            plan.again = Some(Duration::from_secs(rest as u64));
            return;
        }
    }
    if !view.indexed {
        plan.create = vec![Wanted::default(); missing];
        return;
    }
    let mut taken = counts.succeeded_indexes.clone();
    taken.extend(&counts.failed_indexes);
    taken.extend(view.active.iter().filter_map(|pod| view.index(pod)));
    if only_failed_are_replaced(spec) {
        let going = view.pods.iter().filter(|pod| pods::is_terminating(pod));
        taken.extend(going.filter_map(|pod| view.index(pod)));
    }
    let last = view.last_failures(&counts.succeeded_indexes);
    let free = (0..view.completions.unwrap_or(0)).filter(|index| !taken.contains(index));
    // An index that waits after a failure keeps its place: none beyond takes it.
    for index in free.take(missing) {
        let mut wanted = Wanted { index: Some(index), failures: None };
        if view.per_index().is_some() {
            let Some(failures) = successor(view, last.get(&index).copied(), plan) else { continue };
            wanted.failures = Some(failures);
        }
        plan.create.push(wanted);
    }
}

/// The failures a new pod of an index starts with, or nothing while it must wait.
fn successor(view: &View<'_>, last: Option<&Pod>, plan: &mut Plan) -> Option<(i32, i32)> {
    let Some(last) = last else { return Some((0, 0)) };
    let (failed, ignored) = (indexes::failures(last), indexes::ignored(last));
    let counted = counts_as_failure(view, last);
    let next = (failed + i32::from(counted), ignored + i32::from(!counted));
    let since =
        pods::finished_at(last).map_or(i64::MAX, |end| view.now.duration_since(end).as_secs());
    let rest = backoff_s(next.0 + next.1) - since;
    if rest > 0 {
        let rest = Duration::from_secs(rest as u64);
        plan.again = Some(plan.again.map_or(rest, |known| known.min(rest)));
        return None;
    }
    Some(next)
}

/// Seconds for which no pod is made after failures in a row.
fn backoff_rest_s(view: &View<'_>) -> i64 {
    let ends = |wanted: fn(&JobSpec, &Pod) -> bool| {
        let pods = view.pods.iter().filter(move |pod| wanted(view.spec, pod));
        pods.filter_map(|pod| pods::finished_at(pod)).collect::<Vec<_>>()
    };
    let success = ends(|_, pod| pods::phase(pod) == "Succeeded").into_iter().max();
    let mut failures = ends(has_failed);
    failures.retain(|end| success.is_none_or(|success| *end > success));
    let Some(last) = failures.iter().max() else { return 0 };
    backoff_s(failures.len() as i32) - view.now.duration_since(*last).as_secs()
}

/// The active pods that go: doubles of an index and those of no valid one, and as many of the others, the
/// least useful first, as it takes to make `count`.
fn superfluous(view: &View<'_>, count: usize) -> Vec<String> {
    let mut left = view.active.clone();
    left.sort_by(|a, b| pods::deletion_order(a, b));
    let mut gone: Vec<&Pod> = Vec::new();
    if view.indexed {
        let mut seen = Indexes::new();
        // From the most useful down: the first of an index stays.
        let (kept, doubles): (Vec<&Pod>, Vec<&Pod>) = left
            .iter()
            .rev()
            .partition(|pod| view.index(pod).is_some_and(|index| seen.insert(index)));
        (left, gone) = (kept.into_iter().rev().collect(), doubles);
    }
    let more = count.saturating_sub(gone.len());
    gone.iter().chain(left.iter().take(more)).map(|pod| pod.name_any()).collect()
}

fn tell_suspension(plan: &mut Plan, suspended: bool, now: Timestamp) {
    let conditions = plan.status.conditions.get_or_insert_default();
    let known = conditions.iter().find(|c| c.type_ == "Suspended").map(|c| c.status == "True");
    let (reason, message, event) = match (known, suspended) {
        (Some(true), true) | (Some(false) | None, false) => {
            if conditions.is_empty() {
                plan.status.conditions = None;
            }
            return;
        }
        (_, true) => ("JobSuspended", "Job suspended", "Suspended"),
        (_, false) => ("JobResumed", "Job resumed", "Resumed"),
    };
    let status = if suspended { "True" } else { "False" };
    let made =
        JobCondition { status: status.into(), ..condition("Suspended", reason, message, now) };
    match conditions.iter_mut().find(|c| c.type_ == "Suspended") {
        Some(known) => *known = made,
        None => conditions.push(made),
    }
    plan.status.start_time = (!suspended).then_some(Time(now));
    plan.events.push(Told { warning: false, reason: event.into(), message: message.into() });
}

/// Notes the pods that have ended, and says which may go.
fn track(view: &View<'_>, counts: &Counts, end: Option<&JobCondition>, plan: &mut Plan) {
    let failing = end.is_some_and(|end| end.type_ != "SuccessCriteriaMet");
    let over = view.deleted || end.is_some();
    let kept = match view.per_index() {
        Some(_) if !over => {
            let mut done = counts.succeeded_indexes.clone();
            done.extend(&counts.failed_indexes);
            view.last_failures(&done)
        }
        _ => BTreeMap::new(),
    };
    let uncounted = plan.status.uncounted_terminated_pods.get_or_insert_default();
    for pod in view.pods.iter().filter(|pod| is_held(pod)) {
        let succeeded = pods::phase(pod) == "Succeeded";
        let failed = has_failed(view.spec, pod);
        if !(over || succeeded || failed) {
            continue;
        }
        let uid = pod.uid().unwrap_or_default();
        if kept.values().any(|last| last.metadata.uid == pod.metadata.uid) {
            continue;
        }
        if plan.release.len() >= UNCOUNTED_MAX {
            // The others follow when these are counted: the write makes the next look.
            break;
        }
        plan.release.push(pod.name_any());
        let (list, counted) = if succeeded {
            (&mut uncounted.succeeded, !view.indexed)
        } else if failed || failing {
            (&mut uncounted.failed, counts_as_failure(view, pod))
        } else {
            continue;
        };
        let list = list.get_or_insert_default();
        if counted && !list.contains(&uid) {
            list.push(uid);
        }
    }
    let none_if_empty = |list: &mut Option<Vec<String>>| {
        if list.as_ref().is_some_and(Vec::is_empty) {
            *list = None;
        }
    };
    none_if_empty(&mut uncounted.succeeded);
    none_if_empty(&mut uncounted.failed);
    if view.indexed {
        let done = &counts.succeeded_indexes;
        plan.status.completed_indexes = (!done.is_empty()).then(|| indexes::format(done));
        plan.status.succeeded = (counts.succeeded > 0).then_some(counts.succeeded);
        if view.per_index().is_some() {
            plan.status.failed_indexes = Some(indexes::format(&counts.failed_indexes));
        }
    }
}

/// Tells the end: at first that it is coming, then, when no pod is left and all are counted, that it has
/// come.
fn finish(view: &View<'_>, spec: &JobSpec, end: JobCondition, quiet: bool, plan: &mut Plan) {
    let status = &mut plan.status;
    let counted = status
        .uncounted_terminated_pods
        .as_ref()
        .is_none_or(|u| u.succeeded.is_none() && u.failed.is_none());
    let known = holds(status, &end.type_).is_some();
    let succeeded = end.type_ == "SuccessCriteriaMet";
    let conditions = status.conditions.get_or_insert_default();
    if !known {
        conditions.push(end.clone());
    }
    if !(quiet && counted) {
        return;
    }
    let kind = if succeeded { "Complete" } else { "Failed" };
    let time = Some(Time(view.now));
    let last = JobCondition {
        type_: kind.into(),
        last_probe_time: time.clone(),
        last_transition_time: time.clone(),
        ..end
    };
    let told = if succeeded {
        status.completion_time = time;
        if spec.completions.is_some_and(|wanted| status.succeeded.unwrap_or(0) > wanted) {
            let message = "Too many succeeded pods running after completion count reached".into();
            let reason = "TooManySucceededPods".into();
            plan.events.push(Told { warning: true, reason, message });
        }
        Told { warning: false, reason: "Completed".into(), message: "Job completed".into() }
    } else {
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        Told { warning: true, reason: text(&last.reason), message: text(&last.message) }
    };
    conditions.push(last);
    plan.events.push(told);
    plan.again = None;
}
