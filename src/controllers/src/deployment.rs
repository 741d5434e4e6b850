//! Deployments: ReplicaSets that follow a template, rolled over step by step.
//!
//! Source: `pkg/controller/deployment` (`sync.go`, `rolling.go`, `recreate.go`, `progress.go`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetSpec,
};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Failure, Next};
use crate::{history, ownership, pods, share, touched, unless_code};

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a set was before it was rolled back to.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The length of that list.
const HISTORY_MAX: usize = 2000;
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations that say something about the Deployment itself and are not handed to its sets.
const OWN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
];

/// The template without the label that tells sets apart.
fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

/// A short name for a template.
fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    history::hash(&serde_json::to_string(&bare(template)).unwrap_or_default(), collisions)
}

/// How many pods more, and how many fewer, than asked for there may be while rolling.
fn bounds(spec: &DeploymentSpec) -> (i32, i32) {
    let replicas = replicas(spec);
    if is_recreate(spec) || replicas == 0 {
        return (0, 0);
    }
    let rolling = spec.strategy.as_ref().and_then(|s| s.rolling_update.clone()).unwrap_or_default();
    let share = Some(IntOrString::String("25%".into()));
    let surge = share::of(rolling.max_surge.as_ref().or(share.as_ref()), replicas, true);
    let down = share::of(rolling.max_unavailable.as_ref().or(share.as_ref()), replicas, false);
    // Without room in either direction nothing could ever move.
    if surge == 0 && down == 0 { (0, 1) } else { (surge, down.min(replicas)) }
}

fn replicas(spec: &DeploymentSpec) -> i32 {
    spec.replicas.unwrap_or(1).max(0)
}

fn is_recreate(spec: &DeploymentSpec) -> bool {
    spec.strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("Recreate"))
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0)
}

fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The list of revisions that a set was, with one more; the oldest make way where it grows too long.
fn remembered(known: &str, revision: &str) -> String {
    let mut all = format!("{known},{revision}");
    if known.is_empty() {
        revision.clone_into(&mut all);
    }
    while all.len() > HISTORY_MAX
        && let Some(comma) = all.find(',')
    {
        all.drain(..=comma);
    }
    all
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn sum(sets: &[&ReplicaSet], of: fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().map(|set| of(set)).sum()
}

fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.annotations().get(annotation)?.parse().ok()
}

/// Whether the Deployment's size was changed while its sets were of another.
fn is_resized(spec: &DeploymentSpec, all: &[&ReplicaSet]) -> bool {
    let wanted = replicas(spec);
    all.iter().any(|set| size(set) > 0 && number(set, DESIRED).is_some_and(|known| known != wanted))
}

/// A change of size alone: what is there grows or shrinks in proportion, without rolling on.
fn resized(
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
) -> BTreeMap<String, i32> {
    let wanted = replicas(spec);
    let all: Vec<&ReplicaSet> = new.into_iter().chain(old.iter().copied()).collect();
    let mut active: Vec<&ReplicaSet> = all.iter().copied().filter(|set| size(set) > 0).collect();
    let latest = || new.or_else(|| old.iter().copied().max_by_key(|set| revision(set)));
    let only = match active.as_slice() {
        [] => latest(),
        [one] => Some(*one),
        _ => None,
    };
    if let Some(set) = only {
        return BTreeMap::from([(set.name_any(), wanted)]);
    }
    let saturated = |set: &&ReplicaSet| {
        size(set) == wanted && number(set, DESIRED) == Some(wanted) && available(set) == wanted
    };
    if new.as_ref().is_some_and(saturated) {
        return old.iter().map(|set| (set.name_any(), 0)).collect();
    }
    if is_recreate(spec) {
        return BTreeMap::new();
    }
    let most = if wanted > 0 { wanted + bounds(spec).0 } else { 0 };
    let add = most - sum(&active, size);
    let created = |set: &ReplicaSet| set.metadata.creation_timestamp.as_ref().map(|time| time.0);
    active.sort_by(|a, b| {
        let by_age = created(a).cmp(&created(b));
        size(b).cmp(&size(a)).then(if add > 0 { by_age.reverse() } else { by_age })
    });
    let mut added = 0;
    let mut sizes = BTreeMap::new();
    for set in &active {
        let share = share_of(spec, set, add, added);
        added += share;
        sizes.insert(set.name_any(), size(set) + share);
    }
    // What rounding leaves goes to the largest.
    if let Some(first) = active.first() {
        sizes.entry(first.name_any()).and_modify(|size| *size = (*size + add - added).max(0));
    }
    sizes
}

/// A set's part of `add` more pods, of which `added` are given out.
fn share_of(spec: &DeploymentSpec, set: &ReplicaSet, add: i32, added: i32) -> i32 {
    let wanted = replicas(spec);
    if add == 0 || add == added {
        return 0;
    }
    let fraction = if wanted == 0 {
        -size(set)
    } else {
        let most = f64::from(wanted + bounds(spec).0);
        let before = f64::from(number(set, MAX).unwrap_or_else(|| size(set)).max(1));
        (f64::from(size(set)) * most / before).round() as i32 - size(set)
    };
    let rest = add - added;
    if add > 0 { fraction.min(rest) } else { fraction.max(rest) }
}

/// The sizes the sets shall have now, by name; sets that stay as they are, are not named.
fn sizes(
    spec: &DeploymentSpec,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    old_pods_run: bool,
) -> BTreeMap<String, i32> {
    let mut sizes = BTreeMap::new();
    let wanted = replicas(spec);
    let (surge, down) = bounds(spec);
    let all: Vec<&ReplicaSet> = new.into_iter().chain(old.iter().copied()).collect();
    if spec.paused == Some(true) || is_resized(spec, &all) {
        return resized(spec, new, old);
    }
    if is_recreate(spec) {
        sizes.extend(old.iter().map(|set| (set.name_any(), 0)));
        if let Some(set) = new.filter(|_| sum(old, size) == 0 && !old_pods_run) {
            sizes.insert(set.name_any(), wanted);
        }
        return sizes;
    }
    let Some(new) = new else { return sizes };
    let total = sum(&all, size);
    let room = wanted + surge - total;
    let target =
        if size(new) > wanted { wanted } else { size(new) + room.max(0).min(wanted - size(new)) };
    sizes.insert(new.name_any(), target);
    if target > size(new) {
        // Growth first: the next look, with the new pods, shrinks the old sets.
        return sizes;
    }
    let minimum = wanted - down;
    let unready_new = size(new) - available(new);
    let mut spare = (total - minimum - unready_new).max(0);
    let mut by_age = old.to_vec();
    by_age.sort_by_key(|set| set.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let mut left: BTreeMap<String, i32> = by_age.iter().map(|s| (s.name_any(), size(s))).collect();
    // Old pods that never became available cost nobody anything; they go first.
    for set in &by_age {
        let broken = (size(set) - available(set)).clamp(0, spare);
        left.entry(set.name_any()).and_modify(|n| *n -= broken);
        spare -= broken;
    }
    let healthy_spare = (sum(&all, available) - minimum).max(0);
    let mut spare = spare.min(healthy_spare);
    for set in &by_age {
        let entry = left.entry(set.name_any()).or_default();
        let fewer = (*entry).min(spare);
        *entry -= fewer;
        spare -= fewer;
    }
    sizes.extend(left);
    sizes
}

/// The set a Deployment's present template asks for.
fn new_set(deployment: &Deployment, spec: &DeploymentSpec, revision: i64) -> ReplicaSet {
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let mut annotations: BTreeMap<String, String> = deployment.annotations().clone();
    annotations.retain(|key, _| !OWN.contains(&key.as_str()));
    annotations.insert(REVISION.into(), revision.to_string());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![ownership::owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(0),
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|c| c.type_ == kind)
}

fn set_condition(
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
struct Counts {
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
fn deadline_s(spec: &DeploymentSpec) -> Option<i32> {
    Some(spec.progress_deadline_seconds.unwrap_or(600)).filter(|seconds| *seconds != i32::MAX)
}

/// Tells of the roll-out's progress (`syncRolloutStatus`, `checkPausedConditions`, `getNewReplicaSet`).
fn progress(
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

fn status(
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
fn is_rolled_out(deployment: &Deployment, spec: &DeploymentSpec) -> bool {
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

/// Old sets beyond the history limit, oldest revision first; those that are not empty are spared.
fn outdated(spec: &DeploymentSpec, old: &[&ReplicaSet]) -> Vec<String> {
    let limit = spec.revision_history_limit.unwrap_or(10).max(0) as usize;
    let mut sets: Vec<&&ReplicaSet> =
        old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    sets.sort_by_key(|set| revision(set));
    let surplus = sets.len().saturating_sub(limit);
    let is_empty = |set: &&&&ReplicaSet| {
        let status = set.status.as_ref();
        let seen = status.and_then(|s| s.observed_generation);
        size(set) == 0
            && status.is_none_or(|s| s.replicas == 0)
            && seen.is_none_or(|seen| set.metadata.generation.is_none_or(|now| now <= seen))
    };
    sets[..surplus].iter().filter(is_empty).map(|set| set.name_any()).collect()
}

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(replicas: i32, strategy: serde_json::Value) -> DeploymentSpec {
        serde_json::from_value(
            json!({"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy}),
        )
        .expect("a spec")
    }

    fn rolling(surge: &str, down: &str) -> serde_json::Value {
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": down}})
    }

    fn set(name: &str, size: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": {REVISION: size.to_string()}},
            "spec": {"replicas": size, "selector": {}},
            "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available}}))
        .expect("a set")
    }

    #[test]
    fn earlier_revisions_are_remembered() {
        let long = "1234567,".repeat(250);
        for (known, want) in [
            ("", "3".to_owned()),
            ("1", "1,3".to_owned()),
            ("1,2", "1,2,3".to_owned()),
            (long.trim_end_matches(','), format!("{}3", &long[8..])),
        ] {
            assert_eq!(remembered(known, "3"), want);
        }
    }

    #[test]
    fn a_roll_out_moves_within_its_bounds() {
        let cases = [
            // (new size/available, old size/available) → (new, old)
            ((0, 0), (4, 4), (1, 4)),
            ((1, 0), (4, 4), (1, 3)),
            ((1, 1), (4, 4), (1, 2)),
            ((1, 1), (3, 3), (2, 3)),
            ((2, 2), (3, 1), (2, 1)),
            ((4, 4), (0, 0), (4, 0)),
            ((4, 4), (1, 1), (4, 0)),
        ];
        for ((size, ready), (old_size, old_ready), (want, old_want)) in cases {
            let (new, old) = (set("new", size, ready), set("old", old_size, old_ready));
            let sizes = sizes(&spec(4, rolling("25%", "25%")), Some(&new), &[&old], false);
            let got = (sizes["new"], sizes.get("old").copied().unwrap_or(old_size));
            assert_eq!(got, (want, old_want), "new {size}/{ready}, old {old_size}/{old_ready}");
        }
    }

    #[test]
    fn a_change_of_size_is_shared_in_proportion() {
        let marked = |name: &str, size: i32, desired: i32, most: i32| {
            let mut set = set(name, size, size);
            set.annotations_mut().insert(DESIRED.into(), desired.to_string());
            set.annotations_mut().insert(MAX.into(), most.to_string());
            set
        };
        for (replicas, new, old, want) in [
            // 10 with surge 3 grow to 20 with surge 5.
            (20, 5, 8, (10, 15)),
            (5, 5, 8, (3, 4)),
            (0, 5, 8, (0, 0)),
        ] {
            let (new, old) = (marked("new", new, 10, 13), marked("old", old, 10, 13));
            let sizes = sizes(&spec(replicas, rolling("25%", "25%")), Some(&new), &[&old], false);
            let sum = sizes["new"] + sizes["old"];
            let most = if replicas > 0 { replicas + (replicas + 3) / 4 } else { 0 };
            assert_eq!(((sizes["new"], sizes["old"]), sum), (want, most), "{replicas}");
        }
        let mut paused = spec(3, rolling("1", "0%"));
        paused.paused = Some(true);
        let (new, empty) = (marked("new", 2, 2, 3), set("old", 0, 0));
        assert_eq!(resized(&paused, Some(&new), &[&empty]), BTreeMap::from([("new".into(), 3)]));
    }

    #[test]
    fn recreate_waits_for_the_old_pods_to_be_gone() {
        let recreate = spec(2, json!({"type": "Recreate"}));
        let (new, old, empty) = (set("new", 0, 0), set("old", 2, 2), set("old", 0, 0));
        assert_eq!(sizes(&recreate, Some(&new), &[&old], true).get("new"), None);
        assert_eq!(sizes(&recreate, Some(&new), &[&empty], true).get("new"), None);
        assert_eq!(sizes(&recreate, Some(&new), &[&empty], false).get("new"), Some(&2));
    }

    #[test]
    fn bounds_are_rounded_as_upstream() {
        for (replicas, surge, down, want) in [
            (10, "25%", "25%", (3, 2)),
            (1, "25%", "25%", (1, 0)),
            (4, "0%", "0%", (0, 1)),
            (0, "1%", "1%", (0, 0)),
        ] {
            assert_eq!(bounds(&spec(replicas, rolling(surge, down))), want);
        }
    }

    #[test]
    fn history_is_limited_to_empty_sets() {
        let mut spec = spec(1, json!({}));
        spec.revision_history_limit = Some(1);
        let (a, b, c) = (set("a", 0, 0), set("b", 0, 0), set("c", 1, 1));
        assert_eq!(outdated(&spec, &[&a, &b, &c]), ["a", "b"]);
        spec.revision_history_limit = Some(10);
        assert!(outdated(&spec, &[&a, &b]).is_empty());
    }

    #[test]
    fn a_finished_roll_out_is_told() {
        let deployment: Deployment =
            serde_json::from_value(json!({"metadata": {"name": "d", "generation": 3}}))
                .expect("one");
        let (new, spec) = (set("d-1", 2, 2), spec(2, rolling("1", "0%")));
        let told = status(&deployment, &spec, Some(&new), &[], Timestamp::UNIX_EPOCH);
        let reason = |kind| condition(&told, kind).and_then(|c| c.reason.clone());
        assert_eq!(reason("Available").as_deref(), Some("MinimumReplicasAvailable"));
        assert_eq!(reason("Progressing").as_deref(), Some("NewReplicaSetAvailable"));
        assert_eq!(
            (told.replicas, told.unavailable_replicas, told.observed_generation),
            (Some(2), None, Some(3))
        );
    }

    #[test]
    fn progress_is_told_as_upstream_tells_it() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let told = |before: serde_json::Value, spec: &DeploymentSpec, new: &ReplicaSet, now| {
            let deployment = json!({"metadata": {"name": "d"}, "status": before});
            let deployment: Deployment = serde_json::from_value(deployment).expect("one");
            let told = status(&deployment, spec, Some(new), &[], at(now));
            condition(&told, "Progressing").and_then(|c| c.reason.clone())
        };
        let known = |reason: &str, replicas: i32| {
            json!({"replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
                "availableReplicas": replicas, "conditions": [{"type": "Progressing", "status": "True",
                    "reason": reason, "lastUpdateTime": "1970-01-01T00:00:00Z"}]})
        };
        let plain = spec(3, rolling("1", "0%"));
        let (mut paused, mut patient) = (plain.clone(), plain.clone());
        paused.paused = Some(true);
        patient.progress_deadline_seconds = Some(i32::MAX);
        let (some, all) = (set("d-1", 2, 2), set("d-1", 3, 3));
        for (before, spec, new, now, reason) in [
            (json!({}), &plain, &set("d-1", 0, 0), 0, Some("FoundNewReplicaSet")),
            (known("NewReplicaSetCreated", 0), &plain, &some, 1, Some("ReplicaSetUpdated")),
            (known("NewReplicaSetCreated", 2), &plain, &some, 1, Some("NewReplicaSetCreated")),
            (known("ReplicaSetUpdated", 2), &plain, &some, 601, Some("ProgressDeadlineExceeded")),
            (known("ReplicaSetUpdated", 2), &plain, &all, 601, Some("NewReplicaSetAvailable")),
            // It was rolled out, and only grows: that is not held to the deadline.
            (
                known("NewReplicaSetAvailable", 1),
                &plain,
                &some,
                601,
                Some("NewReplicaSetAvailable"),
            ),
            (known("ReplicaSetUpdated", 2), &paused, &some, 1, Some("DeploymentPaused")),
            (
                known("ProgressDeadlineExceeded", 2),
                &paused,
                &some,
                1,
                Some("ProgressDeadlineExceeded"),
            ),
            (known("DeploymentPaused", 2), &plain, &some, 601, Some("DeploymentResumed")),
            (known("ReplicaSetUpdated", 2), &patient, &some, 1, None),
        ] {
            assert_eq!(told(before.clone(), spec, new, now).as_deref(), reason, "{before}");
        }
    }

    #[test]
    fn the_hash_ignores_itself() {
        let template = |labels| -> PodTemplateSpec {
            serde_json::from_value(json!({"metadata": {"labels": labels}})).expect("a template")
        };
        let plain = hash(&template(json!({"a": "b"})), 0);
        assert_eq!(plain, hash(&template(json!({"a": "b", HASH: plain})), 0));
        assert_ne!(plain, hash(&template(json!({"a": "c"})), 0));
        assert_ne!(plain, hash(&template(json!({"a": "b"})), 1));
    }
}
