//! Deployments: ReplicaSets that follow a template, rolled over step by step.
//!
//! Source: `pkg/controller/deployment` (`deployment_controller.go`, `sync.go`).

mod progress;
mod revision;
mod rolling;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::progress::{condition, deadline_s, is_rolled_out, set_condition, status};
use self::revision::{HISTORY, OWN, REVISION, bare, new_set, outdated, remembered, revision};
use self::rolling::{DESIRED, MAX, bounds, is_recreate, replicas, size, sizes};
use crate::queue::{self, Failure, Next};
use crate::{ownership, pods, touched, unless_code};

struct Controller {
    client: Client,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: Recorder,
}

impl Controller {
    async fn sync(&self, deployment: &Deployment) -> Result<Next, Failure> {
        let Some(spec) = deployment.spec.as_ref() else { return Ok(Next::Done) };
        if deployment.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Done);
        }
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &namespace);
        let picks = pods::selector(&spec.selector);
        let matches = |set: &ReplicaSet| picks.matches(set.labels());
        let all = self.sets.store().state();
        let own = ownership::claim(&self.client, deployment, all, matches, |_| true, None).await?;
        let wanted = bare(&spec.template);
        let is_new = |set: &ReplicaSet| {
            set.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| bare(t) == wanted)
        };
        let mut new = own
            .iter()
            .filter(|set| is_new(set))
            .min_by_key(|set| set.metadata.creation_timestamp.as_ref().map(|t| t.0))
            .cloned();
        let newest = own.iter().map(|set| revision(set)).max().unwrap_or(0);
        let mut noted = None;
        if new.is_none() && spec.paused != Some(true) {
            let changes = self.sets.subscribe();
            let made = new_set(deployment, spec, newest + 1);
            let made = match api.create(&PostParams::default(), &made).await {
                Ok(made) => made,
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    return self.collision(deployment, &api, &made, &is_new).await;
                }
                Err(error) => {
                    let name = made.name_any();
                    let why = pods::text(&error);
                    let message = format!("Failed to create new replica set \"{name}\": {why}");
                    let reason = "ReplicaSetCreateError";
                    let told = self.note(deployment, spec, ("False", reason), message.clone());
                    // That there is no set is the greater trouble.
                    drop(told.await);
                    self.events.warning(object_reference(deployment), reason, message);
                    return Err(error.into());
                }
            };
            let uid = made.uid().unwrap_or_default();
            pods::settle(&self.sets, changes, vec![uid], Vec::new()).await;
            let message = format!("Created new replica set \"{}\"", made.name_any());
            noted = self.note(deployment, spec, ("True", "NewReplicaSetCreated"), message).await?;
            new = Some(Arc::new(made));
        }
        let deployment = noted.as_ref().unwrap_or(deployment);
        let old: Vec<&ReplicaSet> = own
            .iter()
            .map(AsRef::as_ref)
            .filter(|set| new.as_ref().is_none_or(|new| new.uid() != set.uid()))
            .collect();
        let old_pods_run = is_recreate(spec)
            && self.pods.store().state().iter().any(|pod| {
                !pods::is_finished(pod)
                    && old.iter().any(|set| ownership::is_controlled_by(pod.as_ref(), *set))
            });
        let sizes = sizes(spec, new.as_deref(), &old, old_pods_run);
        for set in new.as_deref().into_iter().chain(old.iter().copied()) {
            let to = sizes.get(&set.name_any()).copied().unwrap_or_else(|| size(set));
            let current = new.as_ref().is_some_and(|new| new.uid() == set.uid());
            let revision = (current && revision(set) < newest).then_some(newest + 1);
            self.resize(deployment, spec, &api, set, to, (current, revision)).await?;
        }
        if spec.paused == Some(true) || is_rolled_out(deployment, spec) {
            for name in outdated(spec, &old) {
                unless_code(api.delete(&name, &DeleteParams::background()).await, 404)?;
            }
        }
        self.tell(deployment, spec, new.as_deref(), &old, newest).await
    }

    /// Tells at once what became of a new set. Returns the Deployment as it now is, if it was told.
    async fn note(
        &self,
        deployment: &Deployment,
        spec: &DeploymentSpec,
        (status, reason): (&str, &str),
        message: String,
    ) -> Result<Option<Deployment>, kube::Error> {
        if deadline_s(spec).is_none() {
            return Ok(None);
        }
        let mut told = deployment.clone();
        let conditions = &mut told.status.get_or_insert_default().conditions;
        let kind = ("Progressing", status, reason);
        set_condition(conditions.get_or_insert_default(), kind, message, Timestamp::now(), false);
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        api.replace_status(&deployment.name_any(), &PostParams::default(), &told).await.map(Some)
    }

    /// A set of the wanted name exists: it is ours and the cache is behind, or another template has
    /// the same hash and the next try takes another.
    async fn collision(
        &self,
        deployment: &Deployment,
        api: &Api<ReplicaSet>,
        made: &ReplicaSet,
        is_new: &(impl Fn(&ReplicaSet) -> bool + Sync),
    ) -> Result<Next, Failure> {
        let found = api.get_opt(&made.name_any()).await?;
        let ours =
            found.is_none_or(|set| ownership::is_controlled_by(&set, deployment) && is_new(&set));
        if ours {
            return Err("the set is there, but the cache does not show it yet".into());
        }
        let mut told = deployment.clone();
        let status = told.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        api.replace_status(&deployment.name_any(), &PostParams::default(), &told).await?;
        Ok(Next::Done)
    }

    async fn resize(
        &self,
        deployment: &Deployment,
        spec: &DeploymentSpec,
        api: &Api<ReplicaSet>,
        set: &ReplicaSet,
        to: i32,
        (current, revision): (bool, Option<i64>),
    ) -> Result<(), Failure> {
        let from = size(set);
        let mut changed = set.clone();
        changed.spec.get_or_insert_default().replicas = Some(to);
        let annotations = changed.annotations_mut();
        annotations.insert(DESIRED.into(), replicas(spec).to_string());
        annotations.insert(MAX.into(), (replicas(spec) + bounds(spec).0).to_string());
        if let Some(revision) = revision
            && let Some(before) = annotations.insert(REVISION.into(), revision.to_string())
        {
            let known = annotations.get(HISTORY).map_or("", String::as_str);
            let known = remembered(known, &before);
            annotations.insert(HISTORY.into(), known);
        }
        if current {
            let own =
                deployment.annotations().iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
            annotations.extend(own.map(|(key, value)| (key.clone(), value.clone())));
            changed.spec.get_or_insert_default().min_ready_seconds = spec.min_ready_seconds;
        }
        if &changed == set {
            return Ok(());
        }
        // The resourceVersion makes this fail when the cache was behind.
        let name = set.name_any();
        api.replace(&name, &PostParams::default(), &changed).await?;
        if from != to {
            let way = if to > from { "up" } else { "down" };
            let message = format!("Scaled {way} replica set {name} from {from} to {to}");
            self.events.normal(object_reference(deployment), "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn tell(
        &self,
        deployment: &Deployment,
        spec: &DeploymentSpec,
        new: Option<&ReplicaSet>,
        old: &[&ReplicaSet],
        newest: i64,
    ) -> Result<Next, Failure> {
        let namespace = deployment.namespace().unwrap_or_default();
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
        let (name, parameters) = (deployment.name_any(), PostParams::default());
        let number = new.map_or(newest, |set| revision(set).max(newest)).to_string();
        if deployment.annotations().get(REVISION) != Some(&number) {
            let mut told = deployment.clone();
            told.annotations_mut().insert(REVISION.into(), number);
            api.replace(&name, &parameters, &told).await?;
            return Ok(Next::Done);
        }
        let status = status(deployment, spec, new, old, Timestamp::now());
        let over = ["NewReplicaSetAvailable", "ProgressDeadlineExceeded", "DeploymentPaused"];
        let waiting = condition(&status, "Progressing")
            .is_some_and(|c| c.reason.as_deref().is_some_and(|reason| !over.contains(&reason)));
        if deployment.status.as_ref() != Some(&status) {
            let mut told = deployment.clone();
            told.status = Some(status);
            unless_code(api.replace_status(&name, &parameters, &told).await, 404)?;
        }
        match deadline_s(spec).filter(|_| waiting) {
            Some(seconds) => Ok(Next::After(Duration::from_secs(seconds.max(0) as u64 + 1))),
            None => Ok(Next::Done),
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let deployments = informers.get::<Deployment>();
    let events = Recorder::new(client.clone(), "deployment-controller", "");
    let (sets, pods) = (informers.get::<ReplicaSet>(), informers.get::<Pod>());
    deployments.ready().await;
    sets.ready().await;
    pods.ready().await;
    let of_pod = {
        let (sets, deployments) = (sets.clone(), deployments.clone());
        // Only Recreate waits for pods to be gone.
        move |pod: &Pod| {
            let set =
                ownership::controller_key(pod, "ReplicaSet").and_then(|(ns, n)| sets.get(&ns, &n));
            let key = set.and_then(|set| ownership::controller_key(set.as_ref(), "Deployment"));
            let recreates = |(ns, n): &(String, String)| {
                deployments.get(ns, n).is_some_and(|d| d.spec.as_ref().is_some_and(is_recreate))
            };
            key.filter(recreates).into_iter().collect()
        }
    };
    let of_set = {
        let deployments = deployments.clone();
        move |set: &ReplicaSet| -> Vec<ownership::Key> {
            if ownership::controller_of(set).is_some() {
                return ownership::controller_key(set, "Deployment").into_iter().collect();
            }
            let all = deployments.store().state();
            let picking = all.iter().filter(|deployment| {
                deployment.namespace() == set.namespace()
                    && deployment
                        .spec
                        .as_ref()
                        .is_some_and(|spec| pods::selector(&spec.selector).matches(set.labels()))
            });
            picking.map(|deployment| ownership::key(deployment.as_ref())).collect()
        }
    };
    let changes = futures::stream::select(
        touched(&deployments, |deployment| vec![ownership::key(deployment)]),
        futures::stream::select(touched(&sets, of_set), touched(&pods, of_pod)),
    );
    let controller = Arc::new(Controller { client, sets, pods, events });
    queue::run("deployment", changes, shutdown, |(namespace, name): (String, String)| {
        let (controller, found) = (controller.clone(), deployments.get(&namespace, &name));
        Box::pin(async move {
            match found {
                Some(deployment) => Box::pin(controller.sync(&deployment)).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}
