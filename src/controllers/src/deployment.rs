//! Deployments: ReplicaSets that follow a template, rolled over step by step.
//!
//! Source: `pkg/controller/deployment` (`deployment_controller.go`, `sync.go`).

mod progress;
mod revision;
mod rollback;
mod rolling;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;

use self::progress::{Mode, deadline_s, is_rolled_out, next_judgement, set_condition, status};
use self::revision::{REVISION, bare, created, kept_up, new_set, outdated, revision, scaled};
use self::rolling::{Sets, Sizes, is_recreate, is_resized, room_for_new, size, sizes};
use crate::latest::Latest;
use crate::queue::{self, Failure, Next};
use crate::{ownership, pods, touched, unless_code};

struct Controller {
    client: Client,
    deployments: Latest<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: Recorder,
}

/// A Deployment and its sets, as one look finds and leaves them.
struct Look {
    deployment: Deployment,
    spec: DeploymentSpec,
    /// The set of the present template.
    new: Option<Arc<ReplicaSet>>,
    /// By name.
    old: Vec<Arc<ReplicaSet>>,
    old_pods_run: bool,
}

impl Look {
    fn old(&self) -> Vec<&ReplicaSet> {
        self.old.iter().map(AsRef::as_ref).collect()
    }

    fn sets<'a>(&'a self, old: &'a [&'a ReplicaSet]) -> Sets<'a> {
        let told = self.deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        Sets { new: self.new.as_deref(), old, old_pods_run: self.old_pods_run, told }
    }

    fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).map(AsRef::as_ref).collect()
    }

    /// The revision of the present template.
    fn number(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
    }

    fn mode(&self) -> Mode {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            Mode::Ending
        } else if self.spec.paused == Some(true) || is_resized(&self.spec, &self.all()) {
            Mode::Scale
        } else {
            Mode::Rollout
        }
    }

    /// Where there is no set of the template yet: whether one is due.
    fn needs_set(&self, rolls_back: bool) -> bool {
        let waits = is_recreate(&self.spec)
            && !rolls_back
            && (self.old_pods_run || self.old.iter().any(|set| size(set) > 0));
        self.new.is_none() && !waits && (rolls_back || self.mode() == Mode::Rollout)
    }
}

fn is_of(set: &ReplicaSet, wanted: &PodTemplateSpec) -> bool {
    set.spec.as_ref().and_then(|s| s.template.as_ref()).is_some_and(|t| bare(t) == *wanted)
}

impl Controller {
    fn api<K>(&self, deployment: &Deployment) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default())
    }

    async fn look(&self, deployment: &Deployment, spec: &DeploymentSpec) -> Result<Look, Failure> {
        let picks = pods::selector(&spec.selector);
        let matches = |set: &ReplicaSet| picks.matches(set.labels());
        let all = self.sets.store().state();
        let own = ownership::claim(&self.client, deployment, all, matches, |_| true, None).await?;
        let wanted = bare(&spec.template);
        let new = own.iter().filter(|set| is_of(set, &wanted)).min_by_key(|set| created(set));
        let new = new.cloned();
        let is_new = |set: &ReplicaSet| new.as_ref().is_some_and(|new| new.uid() == set.uid());
        let old: Vec<_> = own.into_iter().filter(|set| !is_new(set)).collect();
        let old_pods_run = is_recreate(spec) && self.do_old_pods_run(&old);
        let (deployment, spec) = (deployment.clone(), spec.clone());
        Ok(Look { deployment, spec, new, old, old_pods_run })
    }

    /// Whether pods of these sets have not ended (`oldPodsRunning`).
    fn do_old_pods_run(&self, old: &[Arc<ReplicaSet>]) -> bool {
        let told = |set: &Arc<ReplicaSet>| set.status.as_ref().is_some_and(|s| s.replicas > 0);
        let runs = |pod: &Pod| {
            !pods::is_finished(pod)
                && old.iter().any(|set| ownership::is_controlled_by(pod, set.as_ref()))
        };
        old.iter().any(told) || self.pods.store().find(runs).is_some()
    }

    async fn sync(&self, deployment: &Deployment) -> Result<Next, Failure> {
        let Some(spec) = deployment.spec.as_ref() else { return Ok(Next::Done) };
        let mut look = self.look(deployment, spec).await?;
        let mode = look.mode();
        let asked = rollback::asked(deployment)
            .filter(|_| mode != Mode::Ending && spec.paused != Some(true));
        if look.needs_set(asked.is_some()) && !self.create(&mut look).await? {
            return Ok(Next::Done);
        }
        if let Some(asked) = asked {
            return self.roll_back(&look, asked).await;
        }
        let sizes = match mode {
            Mode::Ending => Sizes::new(),
            _ => sizes(spec, look.sets(&look.old())),
        };
        for set in look.new.iter().chain(&look.old) {
            let current = look.new.as_ref().is_some_and(|new| new.uid() == set.uid());
            let (to, number) = (sizes.get(&set.name_any()), current.then(|| look.number()));
            self.adjust(&look, set, to.copied(), number).await?;
        }
        let done = mode == Mode::Rollout && is_rolled_out(&look.deployment, spec);
        if done || (mode == Mode::Scale && spec.paused == Some(true)) {
            let api: Api<ReplicaSet> = self.api(deployment);
            for name in outdated(spec, &look.old()) {
                unless_code(api.delete(&name, &DeleteParams::background()).await, 404)?;
            }
        }
        self.tell(&look, mode).await
    }

    /// Makes the set of the present template, and tells of it at once. Returns whether there is one now: another
    /// template may have the same hash, and the next look then takes another.
    async fn create(&self, look: &mut Look) -> Result<bool, Failure> {
        let (deployment, spec) = (&look.deployment, &look.spec);
        let size = room_for_new(spec, 0, &look.old());
        let made = new_set(deployment, spec, (look.number(), size));
        let (name, changes) = (made.name_any(), self.sets.subscribe());
        let api: Api<ReplicaSet> = self.api(deployment);
        let made = match api.create(&PostParams::default(), &made).await {
            Ok(made) => made,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                return self.collide(look, &name).await;
            }
            // The end of a namespace is no failure of anybody's.
            Err(error) if pods::is_ending(&error) => return Err(error.into()),
            Err(error) => {
                let message =
                    format!("Failed to create new replica set \"{name}\": {}", pods::text(&error));
                let reason = "ReplicaSetCreateError";
                let told = self.note(look, ("False", reason), message.clone(), None);
                // That there is no set is the greater trouble.
                drop(told.await);
                self.events.warning(object_reference(deployment), reason, message);
                return Err(error.into());
            }
        };
        let uid = made.uid().unwrap_or_default();
        pods::settle(&self.sets, changes, vec![uid], Vec::new()).await;
        if size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.events.normal(object_reference(deployment), "ScalingReplicaSet", message);
        }
        let message = format!("Created new replica set \"{name}\"");
        let noted = self.note(look, ("True", "NewReplicaSetCreated"), message, Some(look.number()));
        look.deployment = noted.await?;
        look.new = Some(Arc::new(made));
        Ok(true)
    }

    /// Tells at once what became of a new set. Returns the Deployment as it now is.
    async fn note(
        &self,
        look: &Look,
        (status, reason): (&str, &str),
        message: String,
        number: Option<i64>,
    ) -> Result<Deployment, kube::Error> {
        let mut told = look.deployment.clone();
        if deadline_s(&look.spec).is_some() {
            let conditions = &mut told.status.get_or_insert_default().conditions;
            let kind = ("Progressing", status, reason);
            set_condition(conditions.get_or_insert_default(), kind, message, Timestamp::now());
        }
        if let Some(number) = number {
            told.annotations_mut().insert(REVISION.into(), number.to_string());
        }
        let api: Api<Deployment> = self.api(&told);
        let now = api.replace_status(&told.name_any(), &PostParams::default(), &told).await?;
        self.deployments.wrote(Ok(now.clone()))?;
        Ok(now)
    }

    /// A set of the wanted name exists: it is ours and the cache is behind, or another template has
    /// the same hash and the next try takes another.
    async fn collide(&self, look: &Look, name: &str) -> Result<bool, Failure> {
        let deployment = &look.deployment;
        let found = self.api::<ReplicaSet>(deployment).get_opt(name).await?;
        let ours = |set: ReplicaSet| {
            ownership::is_controlled_by(&set, deployment) && is_of(&set, &bare(&look.spec.template))
        };
        if found.is_none_or(ours) {
            return Err("the set is there, but the cache does not show it yet".into());
        }
        let mut told = deployment.clone();
        let status = told.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        let api: Api<Deployment> = self.api(deployment);
        let parameters = PostParams::default();
        let answer = api.replace_status(&deployment.name_any(), &parameters, &told).await;
        self.deployments.wrote(answer)?;
        Ok(false)
    }

    async fn roll_back(&self, look: &Look, asked: i64) -> Result<Next, Failure> {
        let all = look.all();
        let rollback = rollback::decide(&look.deployment, asked, &all);
        let name = look.deployment.name_any();
        let (kind, reason, message) = rollback.event(&name);
        let (about, failed) = (object_reference(&look.deployment), kind == "Warning");
        if failed {
            self.events.warning(about.clone(), reason, message.clone());
        }
        let api: Api<Deployment> = self.api(&look.deployment);
        let granted = rollback::granted(&look.deployment, &rollback);
        api.replace(&name, &PostParams::default(), &granted).await?;
        if !failed {
            self.events.normal(about, reason, message);
        }
        Ok(Next::Done)
    }

    /// Gives a set its size where that is named; the one of the present template also what it has to say of the
    /// Deployment, and its number.
    async fn adjust(
        &self,
        look: &Look,
        set: &ReplicaSet,
        to: Option<i32>,
        number: Option<i64>,
    ) -> Result<(), Failure> {
        let (deployment, spec, name) = (&look.deployment, &look.spec, set.name_any());
        let mut changed = set.clone();
        if let Some(number) = number {
            changed = kept_up(&changed, deployment, spec, number);
        }
        if let Some(to) = to {
            changed = scaled(&changed, spec, to);
        }
        if &changed == set {
            return Ok(());
        }
        // The resourceVersion makes this fail when the cache was behind.
        let api: Api<ReplicaSet> = self.api(deployment);
        api.replace(&name, &PostParams::default(), &changed).await?;
        let (from, to) = (size(set), size(&changed));
        if from != to {
            let way = if to > from { "up" } else { "down" };
            let message = format!("Scaled {way} replica set {name} from {from} to {to}");
            self.events.normal(object_reference(deployment), "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn tell(&self, look: &Look, mode: Mode) -> Result<Next, Failure> {
        let (deployment, new, now) = (&look.deployment, look.new.as_deref(), Timestamp::now());
        let status = status(deployment, &look.spec, new, &look.old(), mode, now);
        let again = next_judgement(&look.spec, &status, now).filter(|_| mode == Mode::Rollout);
        let mut told = deployment.clone();
        told.status = Some(status);
        if let Some(new) = new {
            let number = revision(new).max(look.number()).to_string();
            told.annotations_mut().insert(REVISION.into(), number);
        }
        if told != *deployment {
            // A write of the status may carry annotations, and is no change of what is wanted.
            let api: Api<Deployment> = self.api(deployment);
            let (name, parameters) = (told.name_any(), PostParams::default());
            self.deployments.wrote(api.replace_status(&name, &parameters, &told).await)?;
        }
        Ok(again.map_or(Next::Done, Next::After))
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
    let deployments = Latest::new(deployments);
    let controller = Arc::new(Controller { client, deployments, sets, pods, events });
    queue::run("deployment", changes, shutdown, |(namespace, name): (String, String)| {
        let controller = controller.clone();
        let found = controller.deployments.get(&namespace, &name);
        Box::pin(async move {
            match found {
                Some(deployment) => Box::pin(controller.sync(&deployment)).await,
                None => Ok(Next::Done),
            }
        })
    })
    .await;
}
