//! What the scheduler tells the API server: bindings, conditions, nominations, evictions.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, core::Status};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::extended_resources::Extended;
use crate::pod::PodInfo;

/// Binds `pod` to `node`.
pub async fn bind(client: Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "target": {"kind": "Node", "name": node},
    });
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let params = PostParams::default();
    let bound = pods.create_subresource::<_, IgnoredAny>("binding", &pod.name, &params, &binding);
    bound.await.map(|_| ())
}

/// Why a pod is not scheduled, as its condition `PodScheduled` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unscheduled {
    /// `Unschedulable`, `SchedulerError` or `SchedulingGated`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Bytes that an event's note may have.
const NOTE_MAX: usize = 1024;

/// `message` as an event may say it.
pub fn note(message: &str) -> String {
    const CUT: &str = " ...";
    if message.len() <= NOTE_MAX {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(NOTE_MAX - CUT.len());
    format!("{}{CUT}", &message[..end])
}

/// The pod's condition says this already.
pub fn is_told(pod: &PodInfo, unscheduled: &Unscheduled) -> bool {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some(unscheduled.reason)
            && condition.message.as_deref() == Some(&unscheduled.message)
    })
}

/// Sets the condition `PodScheduled` to false, and the nominated node where there is a new one.
pub async fn tell_unscheduled(
    client: Client,
    pod: Arc<PodInfo>,
    unscheduled: Unscheduled,
    nominated: Option<String>,
) -> Result<(), kube::Error> {
    let mut status = json!({"conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": unscheduled.reason,
        "message": unscheduled.message,
        "lastProbeTime": null,
        "lastTransitionTime": transition_time(&pod),
        "observedGeneration": pod.pod.metadata.generation,
    }]});
    if let Some(node) = nominated {
        status["nominatedNodeName"] = Value::String(node);
    }
    patch_status(client, &pod, status).await
}

/// When the condition became false: it keeps its time while only the reason changes.
fn transition_time(pod: &PodInfo) -> Value {
    let conditions = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    let before = conditions.find(|c| c.type_ == "PodScheduled" && c.status == "False");
    match before.and_then(|condition| condition.last_transition_time.as_ref()) {
        Some(time) => json!(time),
        None => json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now())),
    }
}

/// Takes back the promise of a node.
pub async fn clear_nomination(client: Client, pod: &PodInfo) -> Result<(), kube::Error> {
    patch_status(client, pod, json!({"nominatedNodeName": null})).await
}

/// Holds a claim of devices while somebody has them.
const CLAIM_FINALIZER: &str = "resource.kubernetes.io/delete-protection";

/// Writes down which devices the claims have, and for whom (PreBind).
pub async fn claim(client: Client, claims: &[Arc<ResourceClaim>]) -> Result<(), kube::Error> {
    for claim in claims {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace);
        let mut version = claim.metadata.resource_version.clone();
        let mut finalizers = claim.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|held| held == CLAIM_FINALIZER) {
            finalizers.push(CLAIM_FINALIZER.into());
            let patch = json!({"metadata": {
                "uid": claim.metadata.uid, "resourceVersion": version, "finalizers": finalizers}});
            let held = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            version = held.metadata.resource_version;
        }
        // Of the version that was looked at: nobody else has taken the devices meanwhile.
        let patch = json!({
            "metadata": {"uid": claim.metadata.uid, "resourceVersion": version},
            "status": claim.status,
        });
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// Takes the devices of claims back from a pod that is not bound after all: what nobody else has is free
/// again.
pub async fn unclaim(
    client: Client,
    claims: &[Arc<ResourceClaim>],
    pod: &PodInfo,
) -> Result<(), kube::Error> {
    for claim in claims {
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let name = claim.metadata.name.as_deref().unwrap_or_default();
        let api: Api<ResourceClaim> = Api::namespaced(client.clone(), namespace);
        let Some(now) = api.get_opt(name).await? else { continue };
        let mut status = now.status.clone().unwrap_or_default();
        let users = status.reserved_for.get_or_insert_default();
        users.retain(|user| user.uid != pod.uid);
        if users.is_empty() {
            status.allocation = None;
            status.devices = None;
        }
        let mut patch = json!({
            "metadata": {"uid": now.metadata.uid, "resourceVersion": now.metadata.resource_version},
            "status": {"reservedFor": status.reserved_for},
        });
        if status.allocation.is_none() {
            patch["status"]["allocation"] = Value::Null;
            patch["status"]["devices"] = Value::Null;
        }
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    }
    Ok(())
}

/// Takes the devices of a claim back that nobody else has.
pub async fn deallocate(client: Client, claim: &ResourceClaim) -> Result<(), kube::Error> {
    let meta = &claim.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let api: Api<ResourceClaim> = Api::namespaced(client, namespace);
    let patch = Patch::Merge(json!({
        "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
        "status": {"allocation": null, "reservedFor": null},
    }));
    let name = meta.name.as_deref().unwrap_or_default();
    api.patch_status(name, &PatchParams::default(), &patch).await.map(|_| ())
}

/// Makes the claim for the pod's extended resources, and tells the pod of it. Returns the claim's name.
pub async fn claim_extended(
    client: Client,
    pod: &PodInfo,
    extended: &Extended,
) -> Result<String, kube::Error> {
    let api: Api<ResourceClaim> = Api::namespaced(client.clone(), &pod.namespace);
    let mut wanted = extended.claim.clone();
    let status = wanted.status.take();
    wanted.metadata.name = None;
    wanted.metadata.finalizers = Some(vec![CLAIM_FINALIZER.to_owned()]);
    let made = api.create(&PostParams::default(), &wanted).await?;
    let name = made.metadata.name.clone().unwrap_or_default();
    let told = async {
        let patch = Patch::Merge(json!({"metadata": {"uid": made.metadata.uid}, "status": status}));
        api.patch_status(&name, &PatchParams::default(), &patch).await?;
        let told = json!({"extendedResourceClaimStatus": {
            "resourceClaimName": name, "requestMappings": extended.mappings}});
        patch_status(client.clone(), pod, told).await
    };
    match told.await {
        Ok(()) => Ok(name),
        Err(error) => {
            release(client.clone(), &pod.namespace, &name).await?;
            Err(error)
        }
    }
}

/// Removes a claim that was made for extended resources.
pub async fn release(client: Client, namespace: &str, name: &str) -> Result<(), kube::Error> {
    let api: Api<ResourceClaim> = Api::namespaced(client, namespace);
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let freed = api.patch(name, &PatchParams::default(), &free).await;
    freed.map(drop).or_else(absent_is_fine)?;
    let gone = api.delete(name, &DeleteParams::default()).await;
    gone.map(drop).or_else(absent_is_fine)
}

async fn patch_status(client: Client, pod: &PodInfo, status: Value) -> Result<(), kube::Error> {
    let pods: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid}, "status": status}));
    pods.patch_status(&pod.name, &PatchParams::default(), &patch).await.map(|_| ())
}

/// Removes `victim` to make room for a more important pod of the scheduler called `scheduler`.
pub async fn evict(client: Client, victim: &PodInfo, scheduler: &str) -> Result<(), kube::Error> {
    let status = json!({"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler}: preempting to accommodate a higher priority pod"),
        "observedGeneration": victim.pod.metadata.generation,
        "lastTransitionTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::now()),
    }]});
    patch_status(client.clone(), victim, status).await.or_else(absent_is_fine)?;
    let pods: Api<Pod> = Api::namespaced(client, &victim.namespace);
    let same = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
    pods.delete(&victim.name, &params).await.map(|_| ()).or_else(absent_is_fine)
}

fn absent_is_fine(error: kube::Error) -> Result<(), kube::Error> {
    match error {
        kube::Error::Api(status) if is_absent(&status) => Ok(()),
        other => Err(other),
    }
}

fn is_absent(status: &Status) -> bool {
    // A conflict means that another pod has taken the name: the victim is gone.
    status.code == 404 || status.code == 409
}

/// Binding failed because the pod is gone or was bound meanwhile; the watch will tell.
pub fn is_settled(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if is_absent(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_as_much_as_it_may() {
        for (length, want) in [(1024, 1024), (1025, 1024), (5000, 1024)] {
            let note = note(&"x".repeat(length));
            assert_eq!((note.len(), note.ends_with(" ...")), (want, length > 1024), "{length}");
        }
        assert!(note(&"é".repeat(600)).ends_with("é ..."));
    }
}
