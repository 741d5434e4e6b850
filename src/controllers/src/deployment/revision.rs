//! The ReplicaSets of a Deployment as its revisions: which template each is of, and which are kept.
//!
//! Source: `pkg/controller/deployment/util/deployment_util.go`, `sync.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::rolling::{DESIRED, MAX, size};
use crate::{history, ownership};

pub(super) const HASH: &str = "pod-template-hash";
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions that a set was before it was rolled back to.
pub(super) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The length of that list.
pub(super) const HISTORY_MAX: usize = 2000;
/// Annotations that say something about the Deployment itself and are not handed to its sets.
pub(super) const OWN: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
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

/// The set a Deployment's present template asks for.
pub(super) fn new_set(deployment: &Deployment, spec: &DeploymentSpec, revision: i64) -> ReplicaSet {
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

/// Old sets beyond the history limit, oldest revision first; those that are not empty are spared.
pub(super) fn outdated(spec: &DeploymentSpec, old: &[&ReplicaSet]) -> Vec<String> {
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
