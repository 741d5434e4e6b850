//! Jobs: pods that run to completion, counted exactly once.
//!
//! Source: `pkg/controller/job`.

mod decide;
mod failure_policy;
mod indexes;
#[cfg(test)]
mod tests;

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
use crate::latest::Latest;
use crate::ownership::{self, Key};
use crate::pods::{self, Hands};
use crate::queue::{self, Failure, Next};
use crate::{touched, unless_code};

pub use self::decide::{holds, is_finished};

/// What the API server leaves of a `generateName`.
const PREFIX_MAX: usize = 58;
/// Another controller looks after Jobs with another value of `spec.managedBy`.
const OURSELVES: &str = "kubernetes.io/job-controller";

fn is_ours(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_none_or(|manager| manager == OURSELVES)
}

/// How the name of a pod of `index` begins. The API server would cut a longer one; the index shall stay
/// readable.
fn prefix(name: &str, index: i32) -> String {
    let end = format!("-{index}-");
    format!("{}{end}", &name[..name.len().min(PREFIX_MAX - end.len())])
}

/// The pod for one place in the Job.
fn pod(job: &Job, wanted: &Wanted) -> Pod {
    let template = job.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default();
    let name = job.name_any();
    let prefix = wanted.index.map_or_else(|| format!("{name}-"), |index| prefix(&name, index));
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

async fn sync(job: &Job, latest: &Latest<Job>, hands: &Hands<'_>) -> Result<Next, Failure> {
    if is_finished(job) || !is_ours(job) {
        return Ok(Next::Done);
    }
    let Some(spec) = job.spec.as_ref() else { return Ok(Next::Done) };
    let picks = pods::selector(&spec.selector.clone().unwrap_or_default());
    let own = ownership::claim(
        hands.client,
        job,
        hands.pods.store().state(),
        |pod| picks.matches(pod.labels()),
        |pod| pod.metadata.deletion_timestamp.is_none(),
        Some(FINALIZER),
    )
    .await?;
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
        latest.wrote(jobs.replace_status(&job.name_any(), &PostParams::default(), &told).await)?;
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

/// Whether nobody will count the pod's end: it has no Job, or one that is finished. The end of a pod of
/// somebody else's is somebody else's to count.
fn is_forsaken(pod: &Pod, jobs: &client::Informer<Job>) -> bool {
    if !pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        return false;
    }
    let Some(owner) = ownership::controller_of(pod) else { return true };
    if owner.kind != "Job" || !owner.api_version.starts_with("batch/") {
        return false;
    }
    let job = jobs.get(&pod.namespace().unwrap_or_default(), &owner.name);
    match job.filter(|job| job.uid().as_ref() == Some(&owner.uid)) {
        Some(job) => is_ours(&job) && is_finished(&job),
        None => true,
    }
}

/// What is looked after: a Job, or a pod whose end somebody waits for that may be nobody.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    Job(Key),
    Pod(Key),
}

/// The pods that a change of the Job concerns: those that wait for a count it will not make.
fn waiting(job: &Job, pods: &client::Informer<Pod>) -> Vec<Subject> {
    let held = |pod: &Pod| pod.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let own = pods.store().state_filter(|pod| held(pod) && ownership::is_controlled_by(pod, job));
    own.iter().map(|pod| Subject::Pod(ownership::key(pod.as_ref()))).collect()
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
            let owners =
                pods::owners(pod, "Job", &jobs, |job: &Job| job.spec.as_ref()?.selector.clone());
            let mut subjects: Vec<Subject> = owners.into_iter().map(Subject::Job).collect();
            if is_forsaken(pod, &jobs) {
                subjects.push(Subject::Pod(ownership::key(pod)));
            }
            subjects
        }
    };
    let of_job = {
        let (jobs, pods) = (jobs.clone(), pods.clone());
        move |job: &Job| {
            let key = ownership::key(job);
            let gone = jobs.get(&key.0, &key.1).is_none_or(|found| found.uid() != job.uid());
            let mut subjects = vec![Subject::Job(key)];
            if gone || is_finished(job) {
                subjects.extend(waiting(job, &pods));
            }
            subjects
        }
    };
    let changes = futures::stream::select(touched(&jobs, of_job), touched(&pods, of_pod));
    let latest = Latest::new(jobs.clone());
    queue::run("job", changes, shutdown, |subject: Subject| {
        let (client, pods, events) = (client.clone(), pods.clone(), events.clone());
        let (jobs, latest) = (jobs.clone(), latest.clone());
        Box::pin(async move {
            let hands = Hands { client: &client, pods: &pods, events: &events };
            match subject {
                Subject::Job(key) => match latest.get(&key.0, &key.1) {
                    Some(job) => sync(&job, &latest, &hands).await,
                    None => Ok(Next::Done),
                },
                Subject::Pod(key) => {
                    let pod = pods.get(&key.0, &key.1).filter(|pod| is_forsaken(pod, &jobs));
                    if let Some(pod) = pod {
                        let api: Api<Pod> = Api::namespaced(client.clone(), &key.0);
                        release(&api, &pod).await?;
                    }
                    Ok(Next::Done)
                }
            }
        })
    })
    .await;
}
