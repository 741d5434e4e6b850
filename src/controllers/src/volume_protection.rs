//! Claims and volumes that are deleted stay while they are in use.
//!
//! Source: `pkg/controller/volume/pvcprotection`, `pkg/controller/volume/pvprotection`.

use client::Informers;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Next};
use crate::{name, pods, touched, unless_code};

const CLAIM: &str = "kubernetes.io/pvc-protection";
const VOLUME: &str = "kubernetes.io/pv-protection";

/// Whether the pod holds claims: those of pods that have ended, or have no node yet, are free.
fn holds(pod: &Pod) -> bool {
    !pods::is_finished(pod) && !pods::node(pod).is_empty()
}

fn is_used(claim: &PersistentVolumeClaim, pods: &[impl AsRef<Pod>]) -> bool {
    let name = claim.name_any();
    let mut near = pods
        .iter()
        .map(AsRef::as_ref)
        .filter(|pod: &&Pod| pod.metadata.namespace == claim.metadata.namespace && holds(pod));
    near.any(|pod| pods::claims(pod).any(|used| used == name))
}

fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"))
}

fn without(finalizers: &mut Option<Vec<String>>, finalizer: &str) {
    if let Some(list) = finalizers.as_mut() {
        list.retain(|held| held != finalizer);
    }
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
    queue::run("persistentvolumeclaim-protection", changes, shutdown, |key: Key| {
        let found = claims.get(&key.0, &key.1).filter(|claim| {
            claim.metadata.deletion_timestamp.is_some()
                && claim.finalizers().iter().any(|held| held == CLAIM)
                && !is_used(claim, &pods.store().state())
        });
        let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &key.0);
        let pods: Api<Pod> = Api::namespaced(client.clone(), &key.0);
        Box::pin(async move {
            let Some(claim) = found else { return Ok(Next::Done) };
            // Data is at stake: the cache's word is not enough.
            let live: Vec<Box<Pod>> = pods
                .list(&kube::api::ListParams::default())
                .await?
                .items
                .into_iter()
                .map(Box::new)
                .collect();
            if is_used(&claim, &live) {
                return Ok(Next::Done);
            }
            let mut free = PersistentVolumeClaim::clone(&claim);
            without(&mut free.metadata.finalizers, CLAIM);
            unless_code(api.replace(&key.1, &PostParams::default(), &free).await, 404)?;
            Ok(Next::Done)
        })
    })
    .await;
}

/// Looks after volumes until `shutdown`.
pub async fn run_volumes(client: Client, informers: Informers, shutdown: CancellationToken) {
    let volumes = informers.get::<PersistentVolume>();
    volumes.ready().await;
    let changes = touched(&volumes, name);
    queue::run("persistentvolume-protection", changes, shutdown, |key: String| {
        let found = volumes.get("", &key).filter(|volume| {
            volume.metadata.deletion_timestamp.is_some()
                && volume.finalizers().iter().any(|held| held == VOLUME)
                && !is_bound(volume)
        });
        let api: Api<PersistentVolume> = Api::all(client.clone());
        Box::pin(async move {
            let Some(volume) = found else { return Ok(Next::Done) };
            let mut free = PersistentVolume::clone(&volume);
            without(&mut free.metadata.finalizers, VOLUME);
            unless_code(api.replace(&key, &PostParams::default(), &free).await, 404)?;
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_pods_that_run_hold_a_claim() {
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n"}}))
                .expect("one");
        let pod = |namespace: &str, node: Option<&str>, phase: &str| -> Vec<Box<Pod>> {
            vec![
                serde_json::from_value(json!({"metadata": {"name": "p", "namespace": namespace},
                "spec": {"containers": [], "nodeName": node, "volumes": [
                    {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]},
                "status": {"phase": phase}}))
                .expect("a pod"),
            ]
        };
        assert!(is_used(&claim, &pod("n", Some("m"), "Running")));
        assert!(!is_used(&claim, &pod("n", Some("m"), "Succeeded")));
        assert!(!is_used(&claim, &pod("n", None, "Pending")));
        assert!(!is_used(&claim, &pod("o", Some("m"), "Running")));
    }
}
