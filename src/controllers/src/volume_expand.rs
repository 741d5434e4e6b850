//! Claims that ask for more than their volume has: of CSI drivers the resizer beside the driver sees to it,
//! which is told at the claim.
//!
//! Source: `pkg/controller/volume/expand/expand_controller.go`.

use apimachinery::quantity::Quantity;
use client::{Informers, Recorder, object_reference};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Next};
use crate::touched;

fn storage(list: Option<&std::collections::BTreeMap<String, Text>>) -> Option<Quantity> {
    list?.get("storage")?.0.parse().ok()
}

/// Whether the claim waits for somebody outside to enlarge its volume.
fn waits(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> bool {
    let status = claim.status.as_ref();
    let bound = status.and_then(|status| status.phase.as_deref()) == Some("Bound");
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let wanted = storage(resources.and_then(|resources| resources.requests.as_ref()));
    let given = storage(status.and_then(|status| status.capacity.as_ref()));
    let csi = volume.and_then(|volume| volume.spec.as_ref()?.csi.as_ref()).is_some();
    bound && csi && matches!((wanted, given), (Some(wanted), Some(given)) if wanted > given)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let claims = informers.get::<PersistentVolumeClaim>();
    let volumes = informers.get::<PersistentVolume>();
    let events = Recorder::new(client, "volume_expand", "");
    claims.ready().await;
    volumes.ready().await;
    // A claim is told once for each size that it asks for.
    let told = std::sync::Mutex::new(std::collections::HashMap::<Key, Option<i64>>::new());
    let changes = touched(&claims, |claim| vec![ownership::key(claim)]);
    queue::run("volume-expand", changes, shutdown, |key: Key| {
        let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match claims.get(&key.0, &key.1) {
            Some(claim) => {
                let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone());
                let volume = name.and_then(|name| volumes.get("", &name));
                let generation = claim.metadata.generation;
                if !waits(&claim, volume.as_deref()) {
                    told.remove(&key);
                } else if told.insert(key, generation) != Some(generation) {
                    let message = "waiting for an external controller to expand this PVC";
                    events.normal(object_reference(claim.as_ref()), "ExternalExpanding", message);
                }
            }
            None => drop(told.remove(&key)),
        }
        Box::pin(async { Ok(Next::Done) })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_claims_of_csi_drivers_that_want_more_wait() {
        let claim = |wanted: &str, given: &str, phase: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({"spec": {"resources": {"requests": {"storage": wanted}}},
                "status": {"phase": phase, "capacity": {"storage": given}}}))
            .expect("a claim")
        };
        let volume = |spec: Value| -> PersistentVolume {
            serde_json::from_value(json!({"spec": spec})).expect("a volume")
        };
        let csi = volume(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        let other = volume(json!({"hostPath": {"path": "/"}}));
        for (claim, volume, want) in [
            (claim("2Gi", "1Gi", "Bound"), Some(&csi), true),
            (claim("1Gi", "1024Mi", "Bound"), Some(&csi), false),
            (claim("2Gi", "1Gi", "Pending"), Some(&csi), false),
            (claim("2Gi", "1Gi", "Bound"), Some(&other), false),
            (claim("2Gi", "1Gi", "Bound"), None, false),
        ] {
            assert_eq!(waits(&claim, volume), want);
        }
    }
}
