//! Jobs: pods that run to completion, counted exactly once.
//!
//! Source: `pkg/controller/job`.

mod decide;
mod failure_policy;
mod indexes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::decide::{FINALIZER, Wanted, decide};
use self::indexes::{FAILURES, IGNORED, INDEX};
use crate::ownership::{self, Key};
use crate::pods::{self, Hands};
use crate::queue::{self, Failure, Next};
use crate::{touched, unless_code};

pub use self::decide::{holds, is_finished};

/// Another controller looks after Jobs with another value of `spec.managedBy`.
const OURSELVES: &str = "kubernetes.io/job-controller";

fn is_ours(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_none_or(|manager| manager == OURSELVES)
}

/// The pod for one place in the Job.
fn pod(job: &Job, wanted: &Wanted) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let name = job.name_any();
    let prefix = match wanted.index {
        // The API server cuts names at 63; the index shall stay readable.
        Some(index) => format!("{}-{index}-", &name[..name.len().min(50)]),
        None => format!("{name}-"),
    };
    let mut pod = pods::from_template(&template, ownership::owner_reference(job), Some(prefix));
    let finalizers = pod.finalizers_mut();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.into());
    }
    let Some(index) = wanted.index else { return pod };
    pod.annotations_mut().insert(INDEX.into(), index.to_string());
    pod.labels_mut().insert(INDEX.into(), index.to_string());
    if let Some((failures, ignored)) = wanted.failures {
        pod.annotations_mut().insert(FAILURES.into(), failures.to_string());
        if ignored > 0 {
            pod.annotations_mut().insert(IGNORED.into(), ignored.to_string());
        }
    }
    let Some(spec) = pod.spec.as_mut() else { return pod };
    spec.hostname = Some(format!("{name}-{index}"));
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let env = container.env.get_or_insert_default();
        if env.iter().any(|variable| variable.name == "JOB_COMPLETION_INDEX") {
            continue;
        }
        env.push(EnvVar {
            name: "JOB_COMPLETION_INDEX".into(),
            value_from: Some(EnvVarSource {
                field_ref: Some(ObjectFieldSelector {
                    api_version: Some("v1".into()),
                    field_path: format!("metadata.labels['{INDEX}']"),
                }),
                ..EnvVarSource::default()
            }),
            ..EnvVar::default()
        });
    }
    pod
}

/// Lets a pod go: nothing waits for its count any more.
async fn release(api: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
    let left: Vec<&String> =
        pod.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).collect();
    let patch = json!({"metadata": {
        "uid": pod.uid(), "resourceVersion": pod.resource_version(), "finalizers": left}});
    unless_code(
        api.patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await,
        404,
    )
}

async fn sync(job: &Job, hands: &Hands<'_>) -> Result<Next, Failure> {
    if is_finished(job) || !is_ours(job) {
        return Ok(Next::Done);
    }
    let Some(spec) = job.spec.as_ref() else { return Ok(Next::Done) };
    let picks = pods::selector(&spec.selector.clone().unwrap_or_default());
    let own = hands.claim(job, &picks).await?;
    let mut plan = decide(job, &own, Timestamp::now());
    let wanted: Vec<Pod> = plan.create.iter().map(|wanted| pod(job, wanted)).collect();
    let unwanted: Vec<&Pod> =
        own.iter().map(AsRef::as_ref).filter(|p| plan.delete.contains(&p.name_any())).collect();
    let namespace = job.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(hands.client.clone(), &namespace);
    if plan.uncounted {
        for pod in &unwanted {
            release(&api, pod).await?;
        }
    }
    let count = wanted.len();
    let (made, outcome) = hands.change(job, wanted, &unwanted).await;
    let active = plan.status.active.unwrap_or(0) - (count - made) as i32;
    plan.status.active = (active > 0).then_some(active);
    if job.status.as_ref() != Some(&plan.status) {
        let mut told = job.clone();
        told.status = Some(plan.status);
        let jobs: Api<Job> = Api::namespaced(hands.client.clone(), &namespace);
        jobs.replace_status(&job.name_any(), &PostParams::default(), &told).await?;
    }
    for event in plan.events {
        let about = object_reference(job);
        if event.warning {
            hands.events.warning(about, &event.reason, event.message);
        } else {
            hands.events.normal(about, &event.reason, event.message);
        }
    }
    let going = own.iter().filter(|pod| plan.release.contains(&pod.name_any()));
    let releases = going.map(|pod| release(&api, pod));
    for released in futures::future::join_all(releases).await {
        released?;
    }
    outcome?;
    Ok(plan.again.map_or(Next::Done, Next::After))
}

/// Frees the pods of a Job that is gone or finished: nobody will count them.
async fn forget(key: &Key, hands: &Hands<'_>, jobs: &client::Informer<Job>) -> Result<(), Failure> {
    let (namespace, name) = key;
    let api: Api<Pod> = Api::namespaced(hands.client.clone(), namespace);
    for pod in hands.pods.store().state() {
        let held = pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
        if !held || ownership::controller_key(pod.as_ref(), "Job").as_ref() != Some(key) {
            continue;
        }
        let owner = ownership::controller_of(pod.as_ref()).map(|owner| owner.uid.clone());
        if jobs.get(namespace, name).is_none_or(|job| job.uid() != owner || is_finished(&job)) {
            release(&api, &pod).await?;
        }
    }
    Ok(())
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let (jobs, pods) = (informers.get::<Job>(), informers.get::<Pod>());
    let events = Recorder::new(client.clone(), "job-controller", "");
    jobs.ready().await;
    pods.ready().await;
    let of_pod = {
        let jobs = jobs.clone();
        move |pod: &Pod| {
            pods::owners(pod, "Job", &jobs, |job: &Job| job.spec.as_ref()?.selector.clone())
        }
    };
    let changes = futures::stream::select(
        touched(&jobs, |job| vec![ownership::key(job)]),
        touched(&pods, of_pod),
    );
    queue::run("job", changes, shutdown, |key: Key| {
        let (client, pods, events) = (client.clone(), pods.clone(), events.clone());
        let jobs = jobs.clone();
        Box::pin(async move {
            let hands = Hands { client: &client, pods: &pods, events: &events };
            let job: Option<Arc<Job>> = jobs.get(&key.0, &key.1);
            let stale = job.as_ref().is_none_or(|job| is_finished(job));
            if stale {
                forget(&key, &hands, &jobs).await?;
            }
            match job {
                Some(job) => sync(&job, &hands).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}
