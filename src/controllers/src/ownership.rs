//! Whose an object is: controller references, adoption of orphans, release of what no longer matches.
//!
//! Source: `pkg/controller/controller_ref_manager.go`.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Namespace and name of an object.
pub type Key = (String, String);

/// The reference by which `owner` controls what it makes.
pub fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference of the object's controller.
pub fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true))
}

/// Whether `owner` controls the object.
pub fn is_controlled_by<K: Resource, O: Resource>(object: &K, owner: &O) -> bool {
    controller_of(object).is_some_and(|found| Some(&found.uid) == owner.meta().uid.as_ref())
}

/// The key of the object's controller when that is of `kind`.
pub fn controller_key<K: Resource>(object: &K, kind: &str) -> Option<Key> {
    let owner = controller_of(object).filter(|owner| owner.kind == kind)?;
    Some((object.namespace()?, owner.name.clone()))
}

/// Namespace and name of an object.
pub fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// What is to become of an object in view of an owner.
#[derive(Debug, PartialEq)]
enum Fate {
    /// It is the owner's.
    Own,
    /// It becomes the owner's, with these references.
    Adopt(Vec<OwnerReference>),
    /// It was the owner's and goes on with these references.
    Release(Vec<OwnerReference>),
    /// It is none of the owner's business.
    Leave,
}

fn fate<K: Resource, O: Resource<DynamicType = ()>>(
    owner: &O,
    object: &K,
    matches: bool,
    adoptable: bool,
) -> Fate {
    let ending = owner.meta().deletion_timestamp.is_some();
    match controller_of(object) {
        Some(_) if !is_controlled_by(object, owner) => Fate::Leave,
        Some(_) if matches || ending => Fate::Own,
        Some(mine) => {
            let others = object.owner_references().iter().filter(|o| o.uid != mine.uid);
            Fate::Release(others.cloned().collect())
        }
        None if !matches || !adoptable || ending => Fate::Leave,
        None => {
            let mut references = object.owner_references().to_vec();
            references.push(owner_reference(owner));
            Fate::Adopt(references)
        }
    }
}

/// What a change of owner writes. A `finalizer` goes with the ownership: it comes with an adoption and
/// leaves with a release, and the write then holds for the version that was looked at.
fn change_of_owner<K: Resource>(
    object: &K,
    references: &[OwnerReference],
    adopted: bool,
    finalizer: Option<&str>,
) -> Value {
    let mut metadata = json!({"uid": object.meta().uid, "ownerReferences": references});
    if let Some(finalizer) = finalizer {
        let kept = object.finalizers().iter().map(String::as_str).filter(|f| *f != finalizer);
        let finalizers: Vec<&str> = kept.chain(adopted.then_some(finalizer)).collect();
        metadata["finalizers"] = json!(finalizers);
        metadata["resourceVersion"] = json!(object.meta().resource_version);
    }
    json!({"metadata": metadata})
}

/// The objects among `all` that `owner` controls, by name. Orphans of its namespace that it `picks` are
/// adopted where `adoptable` allows, and bear `finalizer` from then on; objects it no longer picks are let go.
pub async fn claim<K, O>(
    client: &Client,
    owner: &O,
    all: Vec<Arc<K>>,
    picks: impl Fn(&K) -> bool,
    adoptable: impl Fn(&K) -> bool,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let mut own = Vec::new();
    let mut alive = None;
    for object in all {
        if object.meta().namespace.as_deref() != Some(&namespace) {
            continue;
        }
        let (references, adopted) =
            match fate(owner, object.as_ref(), picks(&object), adoptable(&object)) {
                Fate::Leave => continue,
                Fate::Own => {
                    own.push(object);
                    continue;
                }
                Fate::Adopt(references) => (references, true),
                Fate::Release(references) => (references, false),
            };
        if adopted {
            // The cache may be behind: nothing is adopted for an owner that is gone or going.
            if alive.is_none() {
                let owners: Api<O> = Api::namespaced(client.clone(), &namespace);
                let fresh = owners.get_opt(&owner.name_any()).await?;
                alive = Some(fresh.is_some_and(|fresh| {
                    fresh.uid() == owner.uid() && fresh.meta().deletion_timestamp.is_none()
                }));
            }
            if alive == Some(false) {
                continue;
            }
        }
        let patch = change_of_owner(object.as_ref(), &references, adopted, finalizer);
        match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(patched) if adopted => own.push(Arc::new(patched)),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
            Err(error) => return Err(error),
        }
    }
    own.sort_by_key(|object| object.name_any());
    Ok(own)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    #[test]
    fn orphans_are_adopted_and_strangers_left() {
        let owner: ReplicaSet = serde_json::from_value(
            json!({"metadata": {"name": "s", "namespace": "n", "uid": "u"}}),
        )
        .expect("a set");
        let pod = |owners: serde_json::Value| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": "p", "namespace": "n", "ownerReferences": owners}}),
            )
            .expect("a pod")
        };
        let reference = |uid: &str| json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "s", "uid": uid, "controller": true}]);
        assert_eq!(fate(&owner, &pod(reference("u")), true, true), Fate::Own);
        assert_eq!(fate(&owner, &pod(reference("v")), true, true), Fate::Leave);
        assert_eq!(fate(&owner, &pod(reference("u")), false, true), Fate::Release(Vec::new()));
        assert_eq!(fate(&owner, &pod(json!([])), false, true), Fate::Leave);
        assert_eq!(fate(&owner, &pod(json!([])), true, false), Fate::Leave);
        let adopted = Fate::Adopt(vec![owner_reference(&owner)]);
        assert_eq!(fate(&owner, &pod(json!([])), true, true), adopted);
    }

    #[test]
    fn a_finalizer_comes_and_goes_with_the_owner() {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "resourceVersion": "7", "finalizers": ["a", "b"]}}),
        )
        .expect("a pod");
        for (adopted, finalizer, want) in [
            (true, None, json!(null)),
            (true, Some("c"), json!(["a", "b", "c"])),
            (true, Some("b"), json!(["a", "b"])),
            (false, Some("b"), json!(["a"])),
        ] {
            let written = change_of_owner(&pod, &[], adopted, finalizer);
            assert_eq!(written["metadata"]["finalizers"], want, "{adopted} {finalizer:?}");
        }
    }
}
