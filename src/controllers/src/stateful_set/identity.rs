//! What makes the pods of a StatefulSet individuals: ordinals, names, claims.
//!
//! Source: `pkg/controller/statefulset/stateful_set_utils.go`.

use std::collections::BTreeMap;
use std::ops::Range;

use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec};
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::history::HASH;
use crate::{ownership, pods};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinals the set shall have.
pub fn ordinals(spec: &StatefulSetSpec) -> Range<i32> {
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    start..start + spec.replicas.unwrap_or(1).max(0)
}

/// The ordinal in a pod's name, when it is of the set by name.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let name = pod.name_any();
    let (parent, ordinal) = name.rsplit_once('-')?;
    if parent != set.name_any() || (ordinal.len() > 1 && ordinal.starts_with('0')) {
        return None;
    }
    ordinal.parse().ok().filter(|ordinal| *ordinal >= 0)
}

/// The claim names of a pod, by template.
pub fn claim_name(set: &StatefulSet, template: &str, ordinal: i32) -> String {
    format!("{template}-{}-{ordinal}", set.name_any())
}

fn claim_volumes(set: &StatefulSet, ordinal: i32) -> Vec<Volume> {
    let templates = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
    templates
        .map(|template| {
            let name = template.name_any();
            Volume {
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim_name(set, &name, ordinal),
                    read_only: None,
                }),
                name,
                ..Volume::default()
            }
        })
        .collect()
}

/// The pod of one ordinal at the revision called `revision`.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let name = format!("{}-{ordinal}", set.name_any());
    let mut pod = pods::from_template(template, ownership::owner_reference(set), None);
    pod.metadata.name = Some(name.clone());
    pod.metadata.namespace = set.namespace();
    let labels = pod.labels_mut();
    labels.insert(POD_NAME.into(), name.clone());
    labels.insert(POD_INDEX.into(), ordinal.to_string());
    labels.insert(HASH.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let claims = claim_volumes(set, ordinal);
    let volumes = spec.volumes.get_or_insert_default();
    volumes.retain(|volume| !claims.iter().any(|claim| claim.name == volume.name));
    volumes.extend(claims);
    pod
}

/// The labels that tell who the pod is, unless it has them.
pub fn missing_labels(pod: &Pod, ordinal: i32) -> Option<Value> {
    let (name, index) = (pod.name_any(), ordinal.to_string());
    let has = |key: &str, value: &str| pod.labels().get(key).is_some_and(|found| found == value);
    let known = has(POD_NAME, &name) && has(POD_INDEX, &index);
    (!known).then(|| json!({POD_NAME: name, POD_INDEX: index}))
}

/// The claims of one ordinal.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let Some(spec) = set.spec.as_ref() else { return Vec::new() };
    let templates = spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(set, &template.name_any(), ordinal));
            claim.metadata.namespace = set.namespace();
            let labels: &mut BTreeMap<String, String> = claim.labels_mut();
            // The set's own labels win, so that its selector finds the claim.
            labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
            claim.status = None;
            claim
        })
        .collect()
}

/// The name of the revision a pod is of.
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)).map_or("", String::as_str)
}
