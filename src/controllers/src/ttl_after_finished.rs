//! Finished Jobs that are to go after a while.
//!
//! Source: `pkg/controller/ttlafterfinished/ttlafterfinished_controller.go`.

use std::time::Duration;

use client::Informers;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Next};
use crate::{job, touched, unless_code};

/// How long the Job may stay; `None` for ever, or until it is finished.
fn rest(job: &Job, now: Timestamp) -> Option<Duration> {
    let allowed = job.spec.as_ref()?.ttl_seconds_after_finished?;
    let status = job.status.as_ref()?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = job::holds(status, "Complete").or(job::holds(status, "Failed"))?;
    let end = end.last_transition_time.as_ref()?.0;
    let rest_ms = i64::from(allowed) * 1000 - now.duration_since(end).as_millis() as i64;
    Some(Duration::from_millis(rest_ms.max(0) as u64))
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let jobs = informers.get::<Job>();
    let limited = |job: &Job| {
        let limit = job.spec.as_ref().and_then(|spec| spec.ttl_seconds_after_finished);
        limit.map(|_| ownership::key(job)).into_iter().collect()
    };
    let changes = touched(&jobs, limited);
    queue::run("ttl-after-finished", changes, shutdown, |key: Key| {
        let found = jobs.get(&key.0, &key.1);
        let api: Api<Job> = Api::namespaced(client.clone(), &key.0);
        Box::pin(async move {
            let Some(job) = found else { return Ok(Next::Done) };
            let Some(rest) = rest(&job, Timestamp::now()) else { return Ok(Next::Done) };
            if !rest.is_zero() {
                return Ok(Next::After(rest));
            }
            let preconditions =
                Preconditions { uid: job.uid(), resource_version: job.resource_version() };
            let parameters = DeleteParams::foreground().preconditions(preconditions);
            unless_code(api.delete(&key.1, &parameters).await, 404)?;
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_finished_jobs_with_a_limit_go() {
        let job = |ttl: Option<i32>, kind: &str| -> Job {
            serde_json::from_value(json!({"spec": {"ttlSecondsAfterFinished": ttl, "template": {}},
                "status": {"conditions": [{"type": kind, "status": "True",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .expect("a job")
        };
        let at = |text: &str| text.parse().expect("a time");
        let early = at("2026-01-01T00:00:04Z");
        assert_eq!(rest(&job(Some(10), "Complete"), early), Some(Duration::from_secs(6)));
        assert_eq!(rest(&job(Some(3), "Failed"), early), Some(Duration::ZERO));
        assert_eq!(rest(&job(None, "Failed"), early), None);
        assert_eq!(rest(&job(Some(3), "Suspended"), early), None);
    }
}
