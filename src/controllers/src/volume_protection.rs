//! Claims, volumes and their classes of attributes that are deleted stay while they are in use.
//!
//! Source: `pkg/controller/volume/` (`pvcprotection`, `pvprotection`, `vacprotection`).

use std::sync::Arc;

use client::{Informer, Informers, Watched};
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{pods, touched, unless_code};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES: &str = "kubernetes.io/vac-protection";

/// Whether the kubelet is done with the pod, or it was deleted by force.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
        && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// Whether the pod uses the claim. A pod without a node does not yet; one that has ended does as long as it is there,
/// since it may be looked into.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if pods::node(pod).is_empty() || pod.metadata.namespace != claim.metadata.namespace {
        return false;
    }
    let name = claim.name_any();
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| match &volume.persistent_volume_claim {
        Some(source) => source.claim_name == name,
        None => {
            volume.ephemeral.is_some()
                && !is_shut_down(pod)
                && format!("{}-{}", pod.name_any(), volume.name) == name
                && ownership::is_controlled_by(claim, pod)
        }
    })
}

fn is_used<'a>(claim: &PersistentVolumeClaim, mut pods: impl Iterator<Item = &'a Pod>) -> bool {
    pods.any(|pod| uses(pod, claim))
}

/// What is to be done about a finalizer.
#[derive(Debug, PartialEq)]
enum Step {
    Leave,
    /// It was made when nobody put the finalizer on.
    Add,
    Remove,
}

fn step<K: Resource>(object: &K, finalizer: &str, used: impl FnOnce() -> bool) -> Step {
    let held = object.meta().finalizers.iter().flatten().any(|held| held == finalizer);
    match (object.meta().deletion_timestamp.is_some(), held) {
        (false, false) => Step::Add,
        (true, true) if !used() => Step::Remove,
        _ => Step::Leave,
    }
}

/// The object with the step done.
fn changed<K: Resource + Clone>(object: &K, finalizer: &str, step: &Step) -> K {
    let mut changed = object.clone();
    let all = changed.meta_mut().finalizers.get_or_insert_default();
    all.retain(|held| held != finalizer);
    if *step == Step::Add {
        all.push(finalizer.to_owned());
    }
    changed
}

fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"))
}

/// Whether the claim has, or shall have, the attributes of the class called `name`.
fn claims_attributes(claim: &PersistentVolumeClaim, name: &str) -> bool {
    let spec = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref());
    let status = claim.status.as_ref();
    let current = status.and_then(|s| s.current_volume_attributes_class_name.as_ref());
    let target = status.and_then(|s| s.modify_volume_status.as_ref());
    let target = target.and_then(|target| target.target_volume_attributes_class_name.as_ref());
    [spec, current, target].into_iter().flatten().any(|class| class == name)
}

fn has_attributes(volume: &PersistentVolume, name: &str) -> bool {
    let class = volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_ref());
    class.is_some_and(|class| class == name)
}

/// Objects of one kind that stay while they are used.
struct Guard<K> {
    /// The controller's name.
    name: &'static str,
    finalizer: &'static str,
    objects: Informer<K>,
    client: Client,
    shutdown: CancellationToken,
}

impl<K: Watched + Serialize> Guard<K> {
    /// Looks after the objects that `changes` names. `used` says whether one is used as far as the caches know,
    /// `look_again` whether it is after all, before it may go.
    async fn run(
        self,
        changes: impl Stream<Item = Vec<Key>> + Send,
        api: fn(Client, &str) -> Api<K>,
        used: impl Fn(&K) -> bool + Send,
        look_again: impl Fn(Arc<K>) -> BoxFuture<'static, Result<bool, Failure>> + Send,
    ) {
        let Self { name, finalizer, objects, client, shutdown } = self;
        queue::run(name, changes, shutdown, move |key: Key| {
            let found = objects.get(&key.0, &key.1).map(|object| {
                let step = step(object.as_ref(), finalizer, || used(&object));
                (object, step)
            });
            let api = api(client.clone(), &key.0);
            let Some((object, step)) = found.filter(|(_, step)| *step != Step::Leave) else {
                return async { Ok(Next::Done) }.boxed();
            };
            let last = (step == Step::Remove).then(|| look_again(object.clone()));
            Box::pin(async move {
                if let Some(used) = last
                    && used.await?
                {
                    return Ok(Next::Done);
                }
                let changed = changed(object.as_ref(), finalizer, &step);
                unless_code(api.replace(&key.1, &PostParams::default(), &changed).await, 404)?;
                Ok(Next::Done)
            })
        })
        .await;
    }
}

/// What the caches know is enough.
fn trust<K>(_: Arc<K>) -> BoxFuture<'static, Result<bool, Failure>> {
    futures::future::ready(Ok(false)).boxed()
}

/// Looks after claims until `shutdown`.
pub async fn run_claims(client: Client, informers: Informers, shutdown: CancellationToken) {
    let claims = informers.get::<PersistentVolumeClaim>();
    let pods = informers.get::<Pod>();
    claims.ready().await;
    pods.ready().await;
    let of_pod = |pod: &Pod| {
        let namespace = pod.namespace().unwrap_or_default();
        pods::claims(pod).map(|name| (namespace.clone(), name)).collect()
    };
    let changes = futures::stream::select(
        touched(&claims, |claim| vec![ownership::key(claim)]),
        touched(&pods, of_pod),
    );
    let (name, objects) = ("persistentvolumeclaim-protection", claims);
    let guard = Guard { name, finalizer: CLAIM, objects, client: client.clone(), shutdown };
    // Data is at stake: the cache's word is not enough.
    let look_again = move |claim: Arc<PersistentVolumeClaim>| {
        let namespace = claim.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        async move {
            let live = pods.list(&ListParams::default()).await?.items;
            Ok(is_used(&claim, live.iter()))
        }
        .boxed()
    };
    let used = move |claim: &PersistentVolumeClaim| {
        let all = pods.store().state();
        is_used(claim, all.iter().map(AsRef::as_ref))
    };
    guard.run(changes, Api::namespaced, used, look_again).await;
}

/// Looks after volumes until `shutdown`.
pub async fn run_volumes(client: Client, informers: Informers, shutdown: CancellationToken) {
    let objects = informers.get::<PersistentVolume>();
    objects.ready().await;
    let changes = touched(&objects, |volume| vec![ownership::key(volume)]);
    let name = "persistentvolume-protection";
    let guard = Guard { name, finalizer: VOLUME, objects, client, shutdown };
    guard.run(changes, |client, _| Api::all(client), is_bound, trust).await;
}

/// Looks after classes of attributes until `shutdown`.
pub async fn run_attributes(client: Client, informers: Informers, shutdown: CancellationToken) {
    let classes = informers.get::<VolumeAttributesClass>();
    let claims = informers.get::<PersistentVolumeClaim>();
    let volumes = informers.get::<PersistentVolume>();
    classes.ready().await;
    claims.ready().await;
    volumes.ready().await;
    // What an object referred to before it changed is not told: all that wait for their end are looked at.
    let ending = || {
        let classes = classes.store();
        move || {
            let ending = classes.state_filter(|class| class.metadata.deletion_timestamp.is_some());
            ending.iter().map(|class| ownership::key(class.as_ref())).collect()
        }
    };
    let (of_claim, of_volume) = (ending(), ending());
    let changes = futures::stream::select(
        touched(&classes, |class| vec![ownership::key(class)]),
        futures::stream::select(
            touched(&claims, move |_| of_claim()),
            touched(&volumes, move |_| of_volume()),
        ),
    );
    let used = move |class: &VolumeAttributesClass| {
        let name = class.name_any();
        claims.store().find(|claim| claims_attributes(claim, &name)).is_some()
            || volumes.store().find(|volume| has_attributes(volume, &name)).is_some()
    };
    let (name, objects) = ("vacprotection", classes);
    let guard = Guard { name, finalizer: ATTRIBUTES, objects, client, shutdown };
    guard.run(changes, |client, _| Api::all(client), used, trust).await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pods_that_are_on_a_node_hold_their_claims() {
        let claim = |owner: Value| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"metadata": {"name": "p-v", "namespace": "n",
                "ownerReferences": owner}}))
            .expect("one")
        };
        let theirs = json!([]);
        let its = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u",
            "controller": true}]);
        let named = json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-v"}});
        let other = json!({"name": "v", "persistentVolumeClaim": {"claimName": "q"}});
        let ephemeral = json!({"name": "v", "ephemeral": {}});
        let (here, nowhere) = (json!("m"), json!(null));
        for (owner, volume, namespace, node, phase, grace, want) in [
            (&theirs, &named, "n", &here, "Running", None, true),
            (&theirs, &named, "n", &here, "Succeeded", None, true),
            (&theirs, &named, "n", &here, "Running", Some(0), true),
            (&theirs, &named, "n", &nowhere, "Pending", None, false),
            (&theirs, &named, "o", &here, "Running", None, false),
            (&theirs, &other, "n", &here, "Running", None, false),
            (&its, &ephemeral, "n", &here, "Running", None, true),
            (&its, &ephemeral, "n", &here, "Running", Some(30), true),
            (&its, &ephemeral, "n", &here, "Running", Some(0), false),
            (&theirs, &ephemeral, "n", &here, "Running", None, false),
        ] {
            let deleted = grace.map(|_| "2026-01-01T00:00:00Z");
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u",
                    "namespace": namespace, "deletionTimestamp": deleted,
                    "deletionGracePeriodSeconds": grace},
                "spec": {"containers": [], "nodeName": node, "volumes": [volume]},
                "status": {"phase": phase}}))
            .expect("a pod");
            let case = format!("{owner} {volume} {namespace} {node} {phase} {grace:?}");
            assert_eq!(uses(&pod, &claim(owner.clone())), want, "{case}");
        }
    }

    #[test]
    fn claims_and_volumes_refer_to_classes_of_attributes() {
        for (claim, want) in [
            (json!({}), false),
            (json!({"spec": {"volumeAttributesClassName": "gold"}}), true),
            (json!({"spec": {"volumeAttributesClassName": "iron"}}), false),
            (json!({"status": {"currentVolumeAttributesClassName": "gold"}}), true),
            (
                json!({"status": {"modifyVolumeStatus":
                    {"status": "Pending", "targetVolumeAttributesClassName": "gold"}}}),
                true,
            ),
        ] {
            let parsed = serde_json::from_value(claim.clone()).expect("a claim");
            assert_eq!(claims_attributes(&parsed, "gold"), want, "{claim}");
        }
        for (class, want) in [(json!(null), false), (json!("gold"), true), (json!("iron"), false)] {
            let volume = json!({"spec": {"volumeAttributesClassName": class}});
            let volume = serde_json::from_value(volume).expect("a volume");
            assert_eq!(has_attributes(&volume, "gold"), want, "{class}");
        }
    }

    #[test]
    fn finalizers_come_and_go() {
        for (deleted, finalizers, used, want, left) in [
            (false, vec![], false, Step::Add, vec![CLAIM]),
            (false, vec!["a"], true, Step::Add, vec!["a", CLAIM]),
            (false, vec![CLAIM], false, Step::Leave, vec![CLAIM]),
            (true, vec![], false, Step::Leave, vec![]),
            (true, vec![CLAIM], true, Step::Leave, vec![CLAIM]),
            (true, vec!["a", CLAIM], false, Step::Remove, vec!["a"]),
        ] {
            let deleted = deleted.then_some("2026-01-01T00:00:00Z");
            let claim: PersistentVolumeClaim = serde_json::from_value(
                json!({"metadata": {"deletionTimestamp": deleted, "finalizers": finalizers}}),
            )
            .expect("a claim");
            let step = step(&claim, CLAIM, || used);
            assert_eq!(step, want, "{finalizers:?} {used}");
            if step != Step::Leave {
                assert_eq!(changed(&claim, CLAIM, &step).finalizers(), left);
            }
        }
    }
}
