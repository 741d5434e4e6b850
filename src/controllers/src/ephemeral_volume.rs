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

/// The claims that the pod's ephemeral volumes ask for.
fn claims(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    if pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
        return Vec::new();
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| {
            let template = volume.ephemeral.as_ref()?.volume_claim_template.as_ref()?;
            let meta = template.metadata.clone().unwrap_or_default();
            Some(PersistentVolumeClaim {
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
            })
        })
        .collect()
}

async fn sync(
    client: &Client,
    pod: &Pod,
    known: &client::Informer<PersistentVolumeClaim>,
    events: &Recorder,
) -> Result<Next, Failure> {
    let namespace = pod.namespace().unwrap_or_default();
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    for claim in claims(pod) {
        let name = claim.name_any();
        let foreign = match known.get(&namespace, &name) {
            Some(known) => !ownership::is_controlled_by(known.as_ref(), pod),
            None => match api.create(&PostParams::default(), &claim).await {
                Ok(_) => false,
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    return Err("the claim is there, but the cache does not show it yet".into());
                }
                Err(error) => {
                    let message = format!("ephemeral volume claim {name}: {}", pods::text(&error));
                    events.warning(object_reference(pod), "FailedCreate", message);
                    return Err(error.into());
                }
            },
        };
        if foreign {
            let message = format!(
                "PVC {namespace}/{name} was not created for pod {namespace}/{} (pod is not owner)",
                pod.name_any()
            );
            return Err(message.into());
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
    let changes = touched(&pods, of_pod);
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
        assert_eq!((made.len(), made[0].name_any().as_str()), (1, "p-v"));
        assert!(ownership::is_controlled_by(&made[0], &pod) && made[0].labels()["a"] == "b");
    }
}
