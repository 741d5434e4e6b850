//! What becomes of a StatefulSet's claims when it is deleted or made smaller: owner references that the
//! garbage collector follows.
//!
//! Source: `pkg/controller/statefulset/stateful_set_utils.go` (`isClaimOwnerUpToDate`,
//! `updateClaimOwnerRefForSetAndPod`).

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource, ResourceExt};

use crate::ownership::owner_reference;

/// Whether claims go with the set, and with a pod that is more than the set asks for.
fn policy(set: &StatefulSet) -> (bool, bool) {
    let policy = set
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_claim_retention_policy.clone())
        .unwrap_or_default();
    let deletes = |field: Option<String>| field.as_deref() == Some("Delete");
    (deletes(policy.when_deleted), deletes(policy.when_scaled))
}

/// Whether the reference is to an object of kind `K` and of this name, whichever it was.
fn is_to<K: Resource<DynamicType = ()>>(reference: &OwnerReference, name: &str) -> bool {
    reference.kind == K::kind(&())
        && reference.api_version == K::api_version(&())
        && reference.name == name
}

/// What is to be written to a claim.
#[derive(Debug, PartialEq)]
pub struct Change {
    pub owners: Vec<OwnerReference>,
    /// Somebody else controls the claim: it is theirs, and the policy is left aside.
    pub conflict: bool,
}

/// A claim's owners as one pod of the set sees them.
struct Look<'a> {
    set: &'a StatefulSet,
    owners: &'a [OwnerReference],
    name: &'a str,
    pod: Option<&'a Pod>,
}

impl Look<'_> {
    fn is_set(&self, owner: &OwnerReference) -> bool {
        is_to::<StatefulSet>(owner, &self.set.name_any())
    }

    fn is_pod(&self, owner: &OwnerReference) -> bool {
        is_to::<Pod>(owner, self.name)
    }

    fn pod_uid(&self) -> Option<&String> {
        self.pod.and_then(|pod| pod.metadata.uid.as_ref())
    }

    fn has(&self, uid: Option<&String>) -> bool {
        uid.is_some() && self.owners.iter().any(|owner| Some(&owner.uid) == uid)
    }

    /// Whether a set or pod that went by the same name owns it: the garbage collector's business.
    fn is_of_old(&self) -> bool {
        self.owners.iter().any(|owner| {
            (self.is_set(owner) && Some(&owner.uid) != self.set.metadata.uid.as_ref())
                || (self.is_pod(owner) && Some(&owner.uid) != self.pod_uid())
        })
    }

    fn has_other_controller(&self) -> bool {
        let ours = |owner: &OwnerReference| self.is_set(owner) || self.is_pod(owner);
        self.owners.iter().any(|owner| !ours(owner) && owner.controller == Some(true))
    }
}

/// What is to be written to the claim of the pod called `name`, if anything. `condemned` tells that the pod is
/// more than the set asks for.
pub fn change(
    set: &StatefulSet,
    claim: &PersistentVolumeClaim,
    (name, pod): (&str, Option<&Pod>),
    condemned: bool,
) -> Option<Change> {
    let (when_deleted, when_scaled) = policy(set);
    let look = Look { set, owners: claim.owner_references(), name, pod };
    if look.is_of_old() {
        return None;
    }
    let (by_set, by_pod) = (look.has(set.metadata.uid.as_ref()), look.has(look.pod_uid()));
    // Where everything is kept, it may well be another's.
    let conflict = (when_deleted || when_scaled) && look.has_other_controller();
    let (set_owns, pod_owns) = if conflict {
        (false, false)
    } else {
        (when_deleted && !(when_scaled && condemned), when_scaled && condemned)
    };
    let ours = |owner: &&OwnerReference| look.is_set(owner) || look.is_pod(owner);
    let controlled = look.owners.iter().filter(ours).all(|owner| owner.controller == Some(true));
    let pod_due = pod_owns && pod.is_some();
    if (by_set, by_pod) == (set_owns, pod_due) && (conflict || controlled) {
        return None;
    }
    let mut owners: Vec<_> = look.owners.iter().filter(|owner| !ours(owner)).cloned().collect();
    owners.extend(pod.filter(|_| pod_owns).map(owner_reference));
    owners.extend(set_owns.then(|| owner_reference(set)));
    Some(Change { owners, conflict })
}

/// Whether the claim goes with a pod of this name that is gone already, so that no new one may count on it.
pub fn is_stale(set: &StatefulSet, claim: &PersistentVolumeClaim, name: &str) -> bool {
    policy(set).1 && claim.owner_references().iter().any(|owner| is_to::<Pod>(owner, name))
}
