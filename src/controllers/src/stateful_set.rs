//! StatefulSets: pods with names, order and claims of their own.
//!
//! Source: `pkg/controller/statefulset`.

mod decide;
mod identity;
mod retention;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::decide::{Plan, Revisions, decide, status};
use self::identity::ordinal;
use crate::history::{self, History, Outcome};
use crate::latest::Latest;
use crate::ownership::{self, Key};
use crate::pods;
use crate::queue::{self, Failure, Next};
use crate::{touched, unless_code};

struct Controller {
    client: Client,
    sets: Latest<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    events: Recorder,
}

/// The revision that a roll-out starts from: the one told last, while it is known.
fn current<'a>(set: &StatefulSet, history: &'a History) -> &'a ControllerRevision {
    let told = set.status.as_ref().and_then(|status| status.current_revision.as_deref());
    let mut all = history.old.iter().chain([&history.current]);
    all.find(|revision| Some(revision.name_any().as_str()) == told).unwrap_or(&history.current)
}

impl Controller {
    async fn sync(&self, set: &StatefulSet) -> Result<Next, Failure> {
        let Some(spec) = set.spec.as_ref() else { return Ok(Next::Done) };
        let picks = pods::selector(&spec.selector);
        let matches = |pod: &Pod| picks.matches(pod.labels()) && ordinal(set, pod).is_some();
        let all = self.pods.store().state();
        let own = ownership::claim(&self.client, set, all, matches, pods::is_active, None).await?;
        let own: Vec<&Pod> = own.iter().map(AsRef::as_ref).collect();
        self.retain_claims(set, &own).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return self.tell_of_end(set, &own).await;
        }
        let collisions = set.status.as_ref().and_then(|s| s.collision_count);
        let template = &spec.template;
        let count = collisions.unwrap_or(0);
        let known = history::sync(&self.client, &self.revisions, set, &picks, template, count);
        let history = match known.await? {
            Outcome::Known(history) => history,
            Outcome::Collision => {
                let mut told = set.status.clone().unwrap_or_default();
                told.collision_count = Some(count + 1);
                self.tell(set, told).await?;
                return Ok(Next::Done);
            }
        };
        let current = current(set, &history);
        let (from, to) = (current.name_any(), history.current.name_any());
        let revisions = Revisions { current: &from, update: &to };
        let plan = decide(set, &own, revisions, Timestamp::now());
        let old_template = history::template(current).unwrap_or_else(|| spec.template.clone());
        let outcome = self.act(set, &plan, &own, &old_template, revisions).await;
        let now = Timestamp::now();
        let seen = self.pods.store().state_filter(|pod| ownership::is_controlled_by(pod, set));
        let seen: Vec<&Pod> = seen.iter().map(AsRef::as_ref).collect();
        let told = status(set, &seen, revisions, collisions, now);
        let waiting = told.ready_replicas.unwrap_or(0) > told.available_replicas.unwrap_or(0);
        self.tell(set, told).await?;
        outcome?;
        let limit = spec.revision_history_limit.unwrap_or(10);
        let mut live: HashSet<String> =
            seen.iter().map(|pod| identity::revision(pod).to_owned()).collect();
        live.extend([from, to]);
        let namespace = set.namespace().unwrap_or_default();
        history::truncate(&self.client, &namespace, &history, limit, &live).await?;
        Ok(if waiting { Next::After(Duration::from_secs(1)) } else { Next::Done })
    }

    async fn act(
        &self,
        set: &StatefulSet,
        plan: &Plan,
        own: &[&Pod],
        old_template: &PodTemplateSpec,
        revisions: Revisions<'_>,
    ) -> Result<(), Failure> {
        let changes = self.pods.subscribe();
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        let mut outcome = Ok(());
        let going = (plan.restart.iter().map(|(n, _)| n)).chain(&plan.condemn).chain(&plan.update);
        let going: Vec<i32> = going.copied().collect();
        for pod in own.iter().filter(|pod| pods::is_active(pod)) {
            let missing = ordinal(set, pod).and_then(|n| identity::missing_labels(pod, n));
            let Some(labels) = missing else { continue };
            let api: Api<Pod> =
                Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
            let patch = Patch::Merge(json!({"metadata": {"uid": pod.uid(), "labels": labels}}));
            let told = api.patch(&pod.name_any(), &PatchParams::default(), &patch).await;
            self.told("update", set, &pod.name_any(), &told);
            unless_code(told, 404)?;
        }
        // A pod that waits for a claim that somebody has deleted would wait for ever.
        for pod in own.iter().filter(|p| pods::is_active(p) && pods::phase(p) == "Pending") {
            if let Some(number) = ordinal(set, pod) {
                self.make_claims(set, &pod.name_any(), number).await?;
            }
        }
        for (number, failed) in &plan.restart {
            let told =
                format!("{}/{}-{number}", set.namespace().unwrap_or_default(), set.name_any());
            let (reason, state) = if *failed {
                ("RecreatingFailedPod", "failed")
            } else {
                ("RecreatingTerminatedPod", "terminated")
            };
            let message =
                format!("StatefulSet {told} is recreating {state} Pod {}-{number}", set.name_any());
            if *failed {
                self.events.warning(object_reference(set), reason, message);
            } else {
                self.events.normal(object_reference(set), reason, message);
            }
        }
        for pod in own.iter().filter(|pod| ordinal(set, pod).is_some_and(|n| going.contains(&n))) {
            match self.delete(set, pod).await {
                Ok(()) => deleted.extend(pod.uid()),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for (number, anew) in &plan.create {
            let spec = set.spec.as_ref().map(|spec| &spec.template);
            let (template, name) = match spec {
                Some(template) if *anew => (template, revisions.update),
                _ => (old_template, revisions.current),
            };
            let pod = identity::pod(set, template, name, *number);
            match self.create(set, &pod, *number).await {
                Ok(uid) => created.extend(uid),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        pods::settle(&self.pods, changes, created, deleted).await;
        outcome
    }

    /// Makes the claims of a pod that are missing.
    async fn make_claims(&self, set: &StatefulSet, name: &str, number: i32) -> Result<(), Failure> {
        let namespace = set.namespace().unwrap_or_default();
        let about = || object_reference(set);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        for claim in identity::claims(set, number) {
            let claim_name = claim.name_any();
            if let Some(known) = self.claims.get(&namespace, &claim_name) {
                if known.metadata.deletion_timestamp.is_some() {
                    return Err(format!("pvc {claim_name} is being deleted").into());
                }
                continue;
            }
            match claims.create(&PostParams::default(), &claim).await {
                Ok(_) => {
                    let message = format!(
                        "create Claim {claim_name} Pod {name} in StatefulSet {} success",
                        set.name_any()
                    );
                    self.events.normal(about(), "SuccessfulCreate", message);
                }
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => {
                    let message = format!(
                        "create Claim {claim_name} for Pod {name} in StatefulSet {} failed error: {}",
                        set.name_any(),
                        pods::text(&error)
                    );
                    self.events.warning(about(), "FailedCreate", message);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Tells of what was done to a pod, or could not be.
    fn told<T>(&self, verb: &str, set: &StatefulSet, pod: &str, outcome: &Result<T, kube::Error>) {
        let (first, rest) = verb.split_at(1);
        let title = format!("{}{rest}", first.to_uppercase());
        let message = format!("{verb} Pod {pod} in StatefulSet {}", set.name_any());
        let about = object_reference(set);
        match outcome {
            Ok(_) => {
                let message = format!("{message} successful");
                self.events.normal(about, &format!("Successful{title}"), message);
            }
            Err(error) => {
                let message = format!("{message} failed error: {}", pods::text(error));
                self.events.warning(about, &format!("Failed{title}"), message);
            }
        }
    }

    /// Makes a pod and, before it, the claims it needs. Returns its uid.
    async fn create(
        &self,
        set: &StatefulSet,
        pod: &Pod,
        number: i32,
    ) -> Result<Option<String>, Failure> {
        let (namespace, name) = (set.namespace().unwrap_or_default(), pod.name_any());
        for claim in identity::claims(set, number) {
            let claim = self.claims.get(&namespace, &claim.name_any());
            if let Some(claim) = claim.filter(|claim| retention::is_stale(set, claim, &name)) {
                return Err(format!("pvc {} goes with a pod before", claim.name_any()).into());
            }
        }
        if let Err(error) = self.make_claims(set, &name, number).await {
            let message = format!(
                "create Pod {name} in StatefulSet {} failed error: {error}",
                set.name_any()
            );
            self.events.warning(object_reference(set), "FailedCreate", message);
            return Err(error);
        }
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let made = api.create(&PostParams::default(), pod).await;
        // It is there, only not yet seen: no failure.
        if !matches!(&made, Err(kube::Error::Api(status)) if status.code == 409) {
            self.told("create", set, &name, &made);
        }
        Ok(made?.uid())
    }

    async fn delete(&self, set: &StatefulSet, pod: &Pod) -> Result<(), Failure> {
        let (namespace, name) = ownership::key(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let preconditions = Preconditions { uid: pod.uid(), ..Preconditions::default() };
        let parameters = DeleteParams::default().preconditions(preconditions);
        let deleted = api.delete(&name, &parameters).await.map(drop);
        if matches!(&deleted, Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409)) {
            return Ok(());
        }
        self.told("delete", set, &name, &deleted);
        Ok(deleted?)
    }

    /// Tells how many pods are left of a set that is being deleted. Nothing else is done about it.
    async fn tell_of_end(&self, set: &StatefulSet, own: &[&Pod]) -> Result<Next, Failure> {
        let Some(before) = set.status.as_ref() else { return Ok(Next::Done) };
        let name = |known: &Option<String>| known.clone().unwrap_or_default();
        let (from, to) = (name(&before.current_revision), name(&before.update_revision));
        if !from.is_empty() && !to.is_empty() {
            let revisions = Revisions { current: &from, update: &to };
            let told = status(set, own, revisions, before.collision_count, Timestamp::now());
            self.tell(set, told).await?;
        }
        Ok(Next::Done)
    }

    /// Gives the claims the owners that the retention policy asks for.
    async fn retain_claims(&self, set: &StatefulSet, own: &[&Pod]) -> Result<(), Failure> {
        let Some(spec) = set.spec.as_ref() else { return Ok(()) };
        let namespace = set.namespace().unwrap_or_default();
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let wanted = identity::ordinals(spec);
        let known = own.iter().filter_map(|pod| ordinal(set, pod));
        let numbers: std::collections::BTreeSet<i32> = known.chain(wanted.clone()).collect();
        for number in numbers {
            let pod = own.iter().find(|pod| ordinal(set, pod) == Some(number)).copied();
            for template in spec.volume_claim_templates.iter().flatten() {
                let name = identity::claim_name(set, &template.name_any(), number);
                let Some(claim) = self.claims.get(&namespace, &name) else { continue };
                let condemned = !wanted.contains(&number);
                let pod_name = format!("{}-{number}", set.name_any());
                let change = retention::change(set, &claim, (&pod_name, pod), condemned);
                let Some(change) = change else { continue };
                if change.conflict {
                    let message = format!(
                        "PersistentVolumeClaim {name} has a conflicting OwnerReference that acts as a manging controller, the retention policy is ignored for this claim"
                    );
                    self.events.warning(object_reference(set), "ConflictingController", message);
                }
                let mut owned = PersistentVolumeClaim::clone(&claim);
                owned.metadata.owner_references = Some(change.owners);
                unless_code(api.replace(&name, &PostParams::default(), &owned).await, 404)?;
            }
        }
        Ok(())
    }

    async fn tell(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), Failure> {
        if set.status.as_ref() != Some(&status) {
            let mut told = set.clone();
            told.status = Some(status);
            let namespace = set.namespace().unwrap_or_default();
            let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &namespace);
            let parameters = PostParams::default();
            self.sets.wrote(api.replace_status(&set.name_any(), &parameters, &told).await)?;
        }
        Ok(())
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let (sets, pods) = (informers.get::<StatefulSet>(), informers.get::<Pod>());
    let claims = informers.get::<PersistentVolumeClaim>();
    let revisions = informers.get::<ControllerRevision>();
    let events = Recorder::new(client.clone(), "statefulset-controller", "");
    sets.ready().await;
    pods.ready().await;
    claims.ready().await;
    revisions.ready().await;
    let of_pod = {
        let sets = sets.clone();
        move |pod: &Pod| {
            pods::owners(pod, "StatefulSet", &sets, |set| {
                set.spec.as_ref().map(|s| s.selector.clone())
            })
        }
    };
    let changes = futures::stream::select(
        touched(&sets, |set| vec![ownership::key(set)]),
        touched(&pods, of_pod),
    );
    let sets = Latest::new(sets);
    let controller = Arc::new(Controller { client, sets, pods, claims, revisions, events });
    queue::run("statefulset", changes, shutdown, |key: Key| {
        let (controller, found) = (controller.clone(), controller.sets.get(&key.0, &key.1));
        Box::pin(async move {
            match found {
                Some(set) => controller.sync(&set).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}
