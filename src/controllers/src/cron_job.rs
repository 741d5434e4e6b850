//! CronJobs: Jobs at the times of a schedule.
//!
//! Source: `pkg/controller/cronjob` (`cronjob_controllerv2.go`, `utils.go`).

mod schedule;

use std::sync::Arc;
use std::time::Duration;

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::tz::{Offset, TimeZone};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::schedule::Schedule;
use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{job, pods, touched, unless_code};

/// Names the time a Job was made for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// So many missed times are more likely a wrong clock than a long sleep.
const MISSED_MAX: usize = 100;
/// Looks are a little late, so that the time has come for certain.
const SLACK: Duration = Duration::from_millis(100);

/// An event: whether it is a warning, its reason and its message.
type Told = (bool, &'static str, String);

/// What is to be done about a CronJob.
#[derive(Debug, Default)]
struct Plan {
    status: CronJobStatus,
    /// Jobs that make way for the new one.
    replace: Vec<String>,
    /// The time for which a Job is to be made.
    start: Option<Timestamp>,
    /// Finished Jobs beyond the history limits.
    cleanup: Vec<String>,
    events: Vec<Told>,
    again: Option<Duration>,
}

fn zone(spec: &CronJobSpec) -> Result<TimeZone, String> {
    match spec.time_zone.as_deref().filter(|name| !name.is_empty()) {
        // The daemon's own zone, as upstream takes the controller manager's.
        None => Ok(TimeZone::system()),
        Some(name) => {
            TimeZone::get(name).map_err(|error| format!("invalid timeZone: {name:?}: {error}"))
        }
    }
}

/// Whether the caches may be behind: a Job runs that the status does not name, or one that it names is
/// not there.
fn is_doubtful(cron: &CronJob, own: &[Arc<Job>]) -> bool {
    let active = cron.status.as_ref().and_then(|status| status.active.as_deref());
    let active = active.unwrap_or_default();
    own.iter().any(|job| {
        !job::is_finished(job) && !active.iter().any(|known| known.uid == job.metadata.uid)
    }) || active.iter().any(|known| !own.iter().any(|job| job.metadata.uid == known.uid))
}

/// Brings `status.active` up to date with the Jobs that there are.
fn observe(own: &[Arc<Job>], plan: &mut Plan) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in own {
        let listed = active.iter().any(|reference| reference.uid == job.metadata.uid);
        let finished = job::is_finished(job);
        if !listed && !finished {
            let message = format!(
                "Saw a job that the controller did not create or forgot: {}",
                job.name_any()
            );
            plan.events.push((true, "UnexpectedJob", message));
        } else if listed && finished {
            active.retain(|reference| reference.uid != job.metadata.uid);
            let status = job.status.clone().unwrap_or_default();
            let complete = job::holds(&status, "Complete").is_some();
            let kind = if complete { "Complete" } else { "Failed" };
            let message = format!("Saw completed job: {}, condition: {kind}", job.name_any());
            plan.events.push((false, "SawCompletedJob", message));
        }
        if finished
            && let Some(end) = job.status.as_ref().and_then(|s| s.completion_time.clone())
            && plan.status.last_successful_time.as_ref().is_none_or(|known| known.0 < end.0)
        {
            plan.status.last_successful_time = Some(end);
        }
    }
    active.retain(|reference| {
        let there = own.iter().any(|job| job.metadata.uid == reference.uid);
        if !there {
            let name = reference.name.clone().unwrap_or_default();
            plan.events.push((false, "MissingJob", format!("Active job went missing: {name}")));
        }
        there
    });
    plan.status.active = Some(active).filter(|active| !active.is_empty());
}

/// Finished Jobs beyond the limits, oldest first.
fn history(spec: &CronJobSpec, own: &[Arc<Job>]) -> Vec<String> {
    let mut unwanted = Vec::new();
    for (kind, limit) in [
        ("Complete", spec.successful_jobs_history_limit),
        ("Failed", spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit else { continue };
        let ended = |job: &&Arc<Job>| {
            job.status.as_ref().is_some_and(|status| job::holds(status, kind).is_some())
        };
        let mut jobs: Vec<&Arc<Job>> = own.iter().filter(ended).collect();
        jobs.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
            // What was never started counts as the youngest.
            (started.is_none(), started, job.name_any())
        });
        let surplus = jobs.len().saturating_sub(limit.max(0) as usize);
        unwanted.extend(jobs[..surplus].iter().map(|job| job.name_any()));
    }
    unwanted
}

fn job_name(cron: &CronJob, time: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), time.as_second().div_euclid(60))
}

/// The schedule and its zone, unless it is suspended.
fn timing(spec: &CronJobSpec) -> Result<Option<(TimeZone, Schedule)>, Told> {
    let zone = zone(spec).map_err(|problem| (true, "UnknownTimeZone", problem))?;
    if spec.suspend == Some(true) {
        return Ok(None);
    }
    let schedule = Schedule::parse(&spec.schedule).map_err(|problem| {
        let message = format!("unparseable schedule: {:?} : {problem}", spec.schedule);
        (true, "UnparseableSchedule", message)
    })?;
    Ok(Some((zone, schedule)))
}

fn decide(cron: &CronJob, own: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = &cron.spec;
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    observe(own, &mut plan);
    plan.cleanup = history(spec, own);
    if cron.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let (zone, schedule) = match timing(spec) {
        Ok(Some(timing)) => timing,
        Ok(None) => return plan,
        Err(told) => {
            plan.events.push(told);
            return plan;
        }
    };
    let again = |plan: &mut Plan| {
        let next = schedule.next(now, &zone).map(|next| next.duration_since(now).as_millis());
        plan.again = next.map(|ms| Duration::from_millis(ms.max(0) as u64) + SLACK);
    };
    let created = cron.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let mut since = plan.status.last_schedule_time.as_ref().map_or(created, |time| time.0);
    let deadline = spec.starting_deadline_seconds.map(SignedDuration::from_secs);
    if let Some(deadline) = deadline {
        // Any number of seconds may be asked for.
        since = since.max(now.checked_sub(deadline).unwrap_or(Timestamp::MIN));
    }
    if schedule.next(since, &zone).is_none() {
        // There is no such day.
        let problem = "time difference between two schedules is less than 1 second";
        let message = format!("invalid schedule: {} : {problem}", spec.schedule);
        plan.events.push((true, "InvalidSchedule", message));
        return plan;
    }
    let (due, missed) = schedule.latest(since, now, &zone);
    if missed > MISSED_MAX {
        let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.events.push((true, "TooManyMissedTimes", message.into()));
    }
    again(&mut plan);
    let Some(due) = due else { return plan };
    if deadline.is_some_and(|deadline| due.checked_add(deadline).is_ok_and(|end| end < now)) {
        let due = due.strftime("%a, %d %b %Y %H:%M:%S %z");
        let message = format!("Missed scheduled time to start a job: {due}");
        plan.events.push((true, "MissSchedule", message));
        return plan;
    }
    let name = job_name(cron, due);
    let active = plan.status.active.as_deref().unwrap_or_default();
    let made = active.iter().any(|reference| reference.name.as_deref() == Some(&name));
    if made || plan.status.last_schedule_time.as_ref().is_some_and(|time| time.0 == due) {
        return plan;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let message = "Not starting job because prior execution is running and concurrency policy is Forbid";
            plan.events.push((false, "JobAlreadyActive", message.into()));
            return plan;
        }
        Some("Replace") => {
            plan.replace = active.iter().filter_map(|reference| reference.name.clone()).collect();
        }
        _ => {}
    }
    plan.start = Some(due);
    plan
}

/// The Job for one time.
fn new_job(cron: &CronJob, spec: &CronJobSpec, time: Timestamp) -> Job {
    let meta = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = meta.annotations.unwrap_or_default();
    let offset = match zone(spec) {
        Ok(zone) if spec.time_zone.is_some() => zone.to_offset(time),
        _ => Offset::UTC,
    };
    // Go writes no offset at all as `Z`.
    let told = match offset {
        Offset::UTC => time.to_string(),
        offset => time.display_with_offset(offset).to_string(),
    };
    annotations.insert(SCHEDULED.into(), told);
    Job {
        metadata: ObjectMeta {
            name: Some(job_name(cron, time)),
            namespace: cron.namespace(),
            labels: meta.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::owner_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// The Job that was made before, if that was not noted; it may also be another's, which is not noted here.
async fn forgotten(
    cron: &CronJob,
    plan: &Plan,
    api: &Api<Job>,
    name: &str,
) -> Result<Option<Job>, kube::Error> {
    let noted = |job: &Job| {
        let mut active = plan.status.active.iter().flatten();
        active.any(|reference| reference.uid == job.metadata.uid)
    };
    let found = api.get_opt(name).await?;
    Ok(found.filter(|job| ownership::is_controlled_by(job, cron) && !noted(job)))
}

struct Controller {
    client: Client,
    jobs: client::Informer<Job>,
    events: Recorder,
}

impl Controller {
    fn tell(&self, cron: &CronJob, (warning, reason, message): Told) {
        if warning {
            self.events.warning(object_reference(cron), reason, message);
        } else {
            self.events.normal(object_reference(cron), reason, message);
        }
    }

    async fn delete(&self, cron: &CronJob, api: &Api<Job>, name: &str) -> Result<(), Failure> {
        match api.delete(name, &DeleteParams::background()).await {
            Ok(_) => {
                self.tell(cron, (false, "SuccessfulDelete", format!("Deleted job {name}")));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => {
                let message = format!("Deleted job: {}", pods::text(&error));
                self.tell(cron, (true, "FailedDelete", message));
                Err(error.into())
            }
        }
    }

    async fn sync(&self, cron: &CronJob) -> Result<Next, Failure> {
        let spec = &cron.spec;
        let namespace = cron.namespace().unwrap_or_default();
        let api: Api<Job> = Api::namespaced(self.client.clone(), &namespace);
        let crons: Api<CronJob> = Api::namespaced(self.client.clone(), &namespace);
        let mut own = self.jobs.store().state_filter(|job| ownership::is_controlled_by(job, cron));
        let fresh;
        let mut cron = cron;
        if is_doubtful(cron, &own) {
            let Some(found) = crons.get_opt(&cron.name_any()).await? else { return Ok(Next::Done) };
            fresh = found;
            cron = &fresh;
            let all = api.list(&ListParams::default()).await?.items.into_iter().map(Arc::new);
            own = all.filter(|job| ownership::is_controlled_by(job.as_ref(), cron)).collect();
        }
        let mut plan = decide(cron, &own, Timestamp::now());
        for name in &plan.cleanup {
            self.delete(cron, &api, name).await?;
        }
        for name in &plan.replace {
            self.delete(cron, &api, name).await?;
            let active = plan.status.active.get_or_insert_default();
            active.retain(|reference| reference.name.as_ref() != Some(name));
        }
        if let Some(time) = plan.start {
            let wanted = new_job(cron, spec, time);
            let made = match api.create(&PostParams::default(), &wanted).await {
                Ok(made) => {
                    let message = format!("Created job {}", made.name_any());
                    plan.events.push((false, "SuccessfulCreate", message));
                    Some(made)
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let Some(known) = forgotten(cron, &plan, &api, &wanted.name_any()).await?
                    else {
                        self.note(cron, &crons, plan.status).await?;
                        return Ok(plan.again.map_or(Next::Done, Next::After));
                    };
                    Some(known).filter(|job| !job::is_finished(job))
                }
                Err(error) => {
                    if !pods::is_ending(&error) {
                        let message = format!("Error creating job: {}", pods::text(&error));
                        self.tell(cron, (true, "FailedCreate", message));
                    }
                    return Err(error.into());
                }
            };
            plan.status.last_schedule_time = Some(Time(time));
            if let Some(made) = made {
                plan.status.active.get_or_insert_default().push(ObjectReference {
                    namespace: Some(namespace.clone()),
                    ..object_reference(&made)
                });
            }
        }
        self.note(cron, &crons, plan.status).await?;
        for told in plan.events {
            self.tell(cron, told);
        }
        Ok(plan.again.map_or(Next::Done, Next::After))
    }

    /// Writes the status, if it is another than before.
    async fn note(
        &self,
        cron: &CronJob,
        crons: &Api<CronJob>,
        mut status: CronJobStatus,
    ) -> Result<(), Failure> {
        status.active = status.active.filter(|active| !active.is_empty());
        if cron.status.clone().unwrap_or_default() != status {
            let mut told = cron.clone();
            told.status = Some(status);
            let parameters = PostParams::default();
            unless_code(crons.replace_status(&cron.name_any(), &parameters, &told).await, 404)?;
        }
        Ok(())
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let (crons, jobs) = (informers.get::<CronJob>(), informers.get::<Job>());
    let events = Recorder::new(client.clone(), "cronjob-controller", "");
    crons.ready().await;
    jobs.ready().await;
    let of_job = |job: &Job| ownership::controller_key(job, "CronJob").into_iter().collect();
    let changes = futures::stream::select(
        touched(&crons, |cron| vec![ownership::key(cron)]),
        touched(&jobs, of_job),
    );
    let controller = Arc::new(Controller { client, jobs, events });
    queue::run("cronjob", changes, shutdown, |key: Key| {
        let (controller, found) = (controller.clone(), crons.get(&key.0, &key.1));
        Box::pin(async move {
            match found {
                Some(cron) => controller.sync(&cron).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut all = json!({"schedule": "*/10 * * * *", "timeZone": "Etc/UTC", "jobTemplate": {},
            "successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1});
        for (key, value) in spec.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u",
            "creationTimestamp": "2026-01-01T00:05:00Z"}, "spec": all, "status": status}))
        .expect("a cron job")
    }

    fn job(name: &str, end: Option<&str>) -> Arc<Job> {
        let conditions: Vec<Value> =
            end.into_iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name},
                "status": {"conditions": conditions, "startTime": "2026-01-01T00:00:00Z"}}))
            .expect("a job"),
        )
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn reasons(plan: &Plan) -> Vec<&str> {
        plan.events.iter().map(|(_, reason, _)| *reason).collect()
    }

    #[test]
    fn a_job_starts_when_its_time_has_come() {
        let early = decide(&cron(json!({}), json!({})), &[], at("2026-01-01T00:09:00Z"));
        assert_eq!((early.start, early.again), (None, Some(Duration::from_millis(60_100))));
        let due = decide(&cron(json!({}), json!({})), &[], at("2026-01-01T00:10:01Z"));
        assert_eq!(due.start, Some(at("2026-01-01T00:10:00Z")));
        let done = json!({"lastScheduleTime": "2026-01-01T00:10:00Z"});
        assert_eq!(decide(&cron(json!({}), done), &[], at("2026-01-01T00:10:02Z")).start, None);
        let asleep =
            decide(&cron(json!({"suspend": true}), json!({})), &[], at("2026-01-01T00:10:01Z"));
        assert_eq!((asleep.start, asleep.again), (None, None));
    }

    #[test]
    fn only_the_latest_missed_time_is_made_up_for() {
        let plan = decide(&cron(json!({}), json!({})), &[], at("2026-01-01T05:01:00Z"));
        assert_eq!(plan.start, Some(at("2026-01-01T05:00:00Z")));
        let strict = cron(json!({"startingDeadlineSeconds": 30}), json!({}));
        assert_eq!(decide(&strict, &[], at("2026-01-01T05:01:00Z")).start, None);
        let lax = cron(json!({"startingDeadlineSeconds": i64::MAX}), json!({}));
        assert!(decide(&lax, &[], at("2026-01-01T05:01:00Z")).start.is_some());
    }

    #[test]
    fn a_job_names_its_time_in_the_zone_of_the_schedule() {
        for (zone, want) in [
            (json!(null), "2026-01-01T05:00:00Z"),
            (json!("Etc/UTC"), "2026-01-01T05:00:00Z"),
            (json!("America/New_York"), "2026-01-01T00:00:00-05:00"),
        ] {
            let cron = cron(json!({"timeZone": zone}), json!({}));
            let job = new_job(&cron, &cron.spec, at("2026-01-01T05:00:00Z"));
            assert_eq!(job.annotations()[SCHEDULED], want);
        }
    }

    #[test]
    fn what_the_caches_may_not_show_yet_is_asked_for() {
        let status = json!({"active": [{"name": "a", "uid": "a"}]});
        for (jobs, want) in [
            (vec![job("a", None)], false),
            (vec![job("a", Some("Complete")), job("b", Some("Failed"))], false),
            (vec![], true),
            (vec![job("a", None), job("b", None)], true),
        ] {
            assert_eq!(is_doubtful(&cron(json!({}), status.clone()), &jobs), want);
        }
    }

    #[test]
    fn concurrency_follows_its_policy() {
        let status = json!({"active": [{"name": "old", "uid": "old"}]});
        let now = at("2026-01-01T00:10:01Z");
        for (policy, start, replaced) in
            [("Allow", true, 0), ("Forbid", false, 0), ("Replace", true, 1)]
        {
            let cron = cron(json!({"concurrencyPolicy": policy}), status.clone());
            let plan = decide(&cron, &[job("old", None)], now);
            assert_eq!((plan.start.is_some(), plan.replace.len()), (start, replaced), "{policy}");
        }
    }

    #[test]
    fn ends_are_seen_and_history_is_short() {
        let status = json!({"active": [{"name": "a", "uid": "a"}, {"name": "x", "uid": "x"}]});
        let jobs = [
            job("a", Some("Complete")),
            job("b", Some("Complete")),
            job("c", Some("Failed")),
            job("d", None),
        ];
        let plan = decide(&cron(json!({}), status), &jobs, at("2026-01-01T00:06:00Z"));
        assert_eq!(reasons(&plan), ["SawCompletedJob", "UnexpectedJob", "MissingJob"]);
        assert_eq!((plan.status.active, plan.cleanup), (None, vec!["a".to_owned()]));
    }

    #[test]
    fn mistakes_are_told() {
        for (spec, reason) in [
            (json!({"timeZone": "Nowhere/None"}), "UnknownTimeZone"),
            (json!({"timeZone": "Nowhere/None", "suspend": true}), "UnknownTimeZone"),
            (json!({"schedule": "x"}), "UnparseableSchedule"),
            (json!({"schedule": "59 23 31 2 *"}), "InvalidSchedule"),
        ] {
            let plan = decide(&cron(spec, json!({})), &[], at("2026-01-01T00:06:00Z"));
            assert_eq!((reasons(&plan), plan.start), (vec![reason], None));
        }
    }
}
