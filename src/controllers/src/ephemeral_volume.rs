//! Claims for the ephemeral volumes of pods: each is its pod's and goes with it.
//!
//! Source: `pkg/controller/volume/ephemeral/controller.go`.

use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Failure, Next};
use crate::{pods, touched};

/// The claims that the pod's ephemeral volumes ask for, each with the volume's name.
fn claims(pod: &Pod) -> Vec<(String, PersistentVolumeClaim)> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
        return Vec::new();
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
            let meta = template.metadata.clone().unwrap_or_default();
            let claim = PersistentVolumeClaim {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{}", pod.name_any(), volume.name)),
                    namespace: pod.namespace(),
                    labels: meta.labels,
                    annotations: meta.annotations,
                    owner_references: Some(vec![ownership::owner_reference(pod)]),
                    ..ObjectMeta::default()
                },
                spec: Some(template.spec.clone()),
                status: None,
            };
            Some((volume.name.clone(), claim))
        })
        .collect()
}

/// Makes the claim, if it is not there; what is there has to be the pod's.
async fn make(
    api: &Api<PersistentVolumeClaim>,
    pod: &Pod,
    claim: &PersistentVolumeClaim,
    known: Option<&PersistentVolumeClaim>,
) -> Result<(), Failure> {
    let name = claim.name_any();
    if let Some(known) = known {
        let namespace = pod.namespace().unwrap_or_default();
        if ownership::is_controlled_by(known, pod) {
            return Ok(());
        }
        let message = format!(
            "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
            pod.name_any()
        );
        return Err(message.into());
    }
    let made = api.create(&PostParams::default(), claim).await;
    made.map(drop).map_err(|error| format!("create PVC {name}: {}", pods::text(&error)).into())
}

async fn sync(
    client: &Client,
    pod: &Pod,
    known: &client::Informer<PersistentVolumeClaim>,
    events: &Recorder,
) -> Result<Next, Failure> {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    for (volume, claim) in claims(pod) {
        let known = known.get(&namespace, &claim.name_any());
        if let Err(error) = make(&api, pod, &claim, known.as_deref()).await {
            let message = format!("ephemeral volume {volume}: {error}");
            events.warning(object_reference(pod), "FailedBinding", message);
            return Err(error);
        }
    }
    Ok(Next::Done)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let pods = informers.get::<Pod>();
    let known = informers.get::<PersistentVolumeClaim>();
    let events = Recorder::new(client.clone(), "ephemeral_volume", "");
    known.ready().await;
    let of_pod = |pod: &Pod| {
        let any = !claims(pod).is_empty();
        any.then(|| ownership::key(pod)).into_iter().collect()
    };
    // A claim that was deleted is made again while its pod is there.
    let of_claim = |claim: &PersistentVolumeClaim| {
        ownership::controller_key(claim, "Pod").into_iter().collect()
    };
    let changes = futures::stream::select(touched(&pods, of_pod), touched(&known, of_claim));
    queue::run("ephemeral-volume", changes, shutdown, |key: Key| {
        let (client, known, events) = (client.clone(), known.clone(), events.clone());
        let pod = pods.get(&key.0, &key.1);
        Box::pin(async move {
            match pod {
                Some(pod) => sync(&client, &pod, &known, &events).await,
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

    #[test]
    fn a_claim_is_named_after_pod_and_volume() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [], "volumes": [{"name": "plain", "emptyDir": {}},
                {"name": "v", "ephemeral": {"volumeClaimTemplate": {"metadata": {"labels": {"a": "b"}},
                    "spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}))
        .expect("a pod");
        let made = claims(&pod);
        let [(volume, claim)] = made.as_slice() else { panic!("{made:?}") };
        assert_eq!((volume.as_str(), claim.name_any().as_str()), ("v", "p-v"));
        assert!(ownership::is_controlled_by(claim, &pod) && claim.labels()["a"] == "b");
    }
}
