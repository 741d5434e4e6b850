//! What becomes of a StatefulSet's claims when it is deleted or made smaller: owner references that the
//! garbage collector follows.
//!
//! Source: `pkg/controller/statefulset/stateful_set_utils.go` (`claimOwnerMatchesSetAndPod`,
//! `updateClaimOwnerRefForSetAndPod`).

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_claim_retention_policy.clone())
        .unwrap_or_default();
    let deletes = |field: Option<String>| field.as_deref() == Some("Delete");
    (deletes(policy.when_deleted), deletes(policy.when_scaled))
}

fn reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        ..OwnerReference::default()
    }
}

/// The owner references the claim of `pod` shall have, or nothing when it has them. `condemned` tells that
/// the pod is more than the set asks for.
pub fn owners(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    pod: Option<&Pod>,
    condemned: bool,
) -> Option<Vec<OwnerReference>> {
    let (when_deleted, when_scaled) = policy(set);
    let found = claim.owner_references();
    // Somebody else controls it: their business.
    let foreign = |owner: &OwnerReference| {
        owner.controller == Some(true) && Some(&owner.uid) != set.metadata.uid.as_ref()
    };
    if found.iter().any(foreign) {
        return None;
    }
    let set_owns = when_deleted && !(when_scaled && condemned);
    let pod_owns = when_scaled && condemned;
    let pod_kind = |owner: &OwnerReference| owner.kind == "Pod" && owner.api_version == "v1";
    let is_set = |owner: &OwnerReference| Some(&owner.uid) == set.metadata.uid.as_ref();
    let mut wanted: Vec<OwnerReference> = found
        .iter()
        .filter(|owner| !is_set(owner) || set_owns)
        .filter(|owner| !pod_kind(owner) || pod_owns)
        .cloned()
        .collect();
    if set_owns && !wanted.iter().any(is_set) {
        wanted.push(reference(set));
    }
    if let Some(pod) = pod.filter(|_| pod_owns)
        && !wanted.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())
    {
        wanted.push(reference(pod));
    }
    (wanted != found).then_some(wanted)
}
