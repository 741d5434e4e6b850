//! The ReplicaSets of a Deployment as its revisions: which template each is of, and which are kept.
//!
//! Source: `pkg/controller/deployment/util/deployment_util.go`, `sync.go`.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::rolling::{DESIRED, MAX, bounds, replicas, size};
use crate::{history, ownership};

pub(super) const HASH: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a set was before it was rolled back to.
pub(super) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The length of that list.
pub(super) const HISTORY_MAX: usize = 2000;
/// Asks for the template of an earlier revision, as clients of `extensions/v1beta1` did.
pub(super) const ROLLBACK: &str = "deprecated.deployment.rollback.to";
/// Annotations that say something about the Deployment itself and are not handed to its sets.
pub(super) const OWN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    ROLLBACK,
    REVISION,
    HISTORY,
    DESIRED,
    MAX,
];

/// The template without the label that tells sets apart.
pub(super) fn bare(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
        labels.remove(HASH);
    }
    template
}

/// A short name for a template.
pub(super) fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    history::hash(&serde_json::to_string(&bare(template)).unwrap_or_default(), collisions)
}

pub(super) fn created(set: &ReplicaSet) -> Option<Timestamp> {
    set.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

pub(super) fn revision(set: &ReplicaSet) -> i64 {
    set.annotations().get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The list of revisions that a set was, with one more; the oldest make way where it grows too long.
pub(super) fn remembered(known: &str, revision: &str) -> String {
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

/// What the set of the present template needs to say of the Deployment: its annotations, how long pods have to be
/// ready, and that it is at least of revision `number` (`SetNewReplicaSetAnnotations`).
pub(super) fn kept_up(
    set: &ReplicaSet,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    number: i64,
) -> ReplicaSet {
    let mut set = set.clone();
    let annotations = set.annotations_mut();
    let handed_on = deployment.annotations().iter().filter(|(key, _)| !OWN.contains(&key.as_str()));
    annotations.extend(handed_on.map(|(key, value)| (key.clone(), value.clone())));
    let before = annotations.get(REVISION).cloned();
    // A number that cannot be read is left alone.
    let known = before.as_ref().map_or(Some(0), |before| before.parse::<i64>().ok());
    if known.is_some_and(|known| known < number) {
        annotations.insert(REVISION.into(), number.to_string());
        if let Some(before) = before {
            let earlier = annotations.get(HISTORY).map_or("", String::as_str);
            let earlier = remembered(earlier, &before);
            annotations.insert(HISTORY.into(), earlier);
        }
    }
    set.spec.get_or_insert_default().min_ready_seconds = spec.min_ready_seconds;
    set
}

/// The set with `size` pods, and of how large a Deployment that is a part.
pub(super) fn scaled(set: &ReplicaSet, spec: &DeploymentSpec, size: i32) -> ReplicaSet {
    let mut set = set.clone();
    set.spec.get_or_insert_default().replicas = Some(size);
    let annotations = set.annotations_mut();
    annotations.insert(DESIRED.into(), replicas(spec).to_string());
    annotations.insert(MAX.into(), (replicas(spec) + bounds(spec).0).to_string());
    set
}

/// The set a Deployment's present template asks for, with `size` pods.
pub(super) fn new_set(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    (revision, size): (i64, i32),
) -> ReplicaSet {
    let collisions = deployment.status.as_ref().and_then(|s| s.collision_count).unwrap_or(0);
    let hash = hash(&spec.template, collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.into(), hash.clone());
    let made = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![ownership::owner_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            min_ready_seconds: spec.min_ready_seconds,
            replicas: Some(size),
            selector,
            template: Some(template),
        }),
        status: None,
    };
    scaled(&kept_up(&made, deployment, spec, revision), spec, size)
}

/// Old sets beyond the history limit, oldest revision first; those that are not empty are spared.
pub(super) fn outdated(spec: &DeploymentSpec, old: &[&ReplicaSet]) -> Vec<String> {
    let limit = spec.revision_history_limit.unwrap_or(10).max(0) as usize;
    let mut sets: Vec<&&ReplicaSet> =
        old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    sets.sort_by_key(|set| (revision(set), created(set), set.name_any()));
    let surplus = sets.len().saturating_sub(limit);
    let is_empty = |set: &&&&ReplicaSet| {
        let status = set.status.as_ref();
        let seen = status.and_then(|s| s.observed_generation).unwrap_or(0);
        size(set) == 0
            && status.is_none_or(|s| s.replicas == 0)
            && set.metadata.generation.unwrap_or(0) <= seen
    };
    sets[..surplus].iter().filter(is_empty).map(|set| set.name_any()).collect()
}
