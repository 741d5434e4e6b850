//! Devices that are ready only some time after they were given to a claim: the pod is bound when their
//! conditions say so, and looks for others when they say that nothing comes of it.
//!
//! Source: `pkg/scheduler/framework/plugins/dynamicresources/dynamicresources.go`
//! (`isClaimReadyForBinding`), KEP 5007.

use std::sync::Arc;
use std::time::Duration;

use client::Informer;
use futures::StreamExt;
use k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, DeviceRequestAllocationResult, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// Why devices did not become ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A condition says that it failed.
    #[error("claim {claim} binding failed: reason={reason}, message={message:?}")]
    Failed {
        /// The claim's name.
        claim: String,
        /// Of the condition.
        reason: String,
        /// Of the condition.
        message: String,
    },
    /// Nobody has said anything in time.
    #[error("device binding timeout")]
    Timeout,
    /// The claim went away.
    #[error("resourceclaim {0:?} not found")]
    Gone(String),
}

fn results(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequestAllocationResult> {
    let given =
        claim.status.as_ref().and_then(|status| status.allocation.as_ref()?.devices.as_ref());
    given.into_iter().flat_map(|devices| devices.results.iter().flatten())
}

fn awaited(result: &DeviceRequestAllocationResult) -> &[String] {
    result.binding_conditions.as_deref().unwrap_or_default()
}

/// Whether the claim has devices whose conditions are to be waited for.
pub fn waits(claim: &ResourceClaim) -> bool {
    results(claim).any(|result| !awaited(result).is_empty())
}

/// What the driver says of the device.
fn told<'a>(
    claim: &'a ResourceClaim,
    result: &DeviceRequestAllocationResult,
) -> Option<&'a AllocatedDeviceStatus> {
    claim.status.as_ref()?.devices.iter().flatten().find(|told| {
        (&told.driver, &told.pool, &told.device, &told.share_id)
            == (&result.driver, &result.pool, &result.device, &result.share_id)
    })
}

/// Whether all devices of the claim are ready.
fn is_ready(claim: &ResourceClaim) -> Result<bool, Error> {
    let mut ready = true;
    for result in results(claim).filter(|result| !awaited(result).is_empty()) {
        let told = told(claim, result).and_then(|told| told.conditions.as_deref());
        let holds = |kind: &String| -> Option<&Condition> {
            told?.iter().find(|condition| condition.type_ == *kind && condition.status == "True")
        };
        let mut failures = result.binding_failure_conditions.iter().flatten();
        if let Some(failed) = failures.find_map(holds) {
            return Err(Error::Failed {
                claim: claim.metadata.name.clone().unwrap_or_default(),
                reason: failed.reason.clone(),
                message: failed.message.clone(),
            });
        }
        ready &= awaited(result).iter().all(|kind| holds(kind).is_some());
    }
    Ok(ready)
}

/// Waits until the devices of `claims`, by namespace and name, are ready.
pub async fn ready(
    informer: &Informer<ResourceClaim>,
    claims: &[(String, String)],
    timeout: Duration,
) -> Result<(), Error> {
    let mut changes = std::pin::pin!(informer.subscribe());
    let wait = async {
        loop {
            let mut open = false;
            for (namespace, name) in claims {
                let now: Option<Arc<ResourceClaim>> = informer.get(namespace, name);
                // What was just written may not have come back yet.
                let Some(now) = now.filter(|now| waits(now)) else {
                    open = true;
                    continue;
                };
                if now.metadata.deletion_timestamp.is_some() {
                    return Err(Error::Gone(name.clone()));
                }
                open |= !is_ready(&now)?;
            }
            if !open {
                return Ok(());
            }
            if changes.next().await.is_none() {
                return Err(Error::Timeout);
            }
        }
    };
    tokio::time::timeout(timeout, wait).await.unwrap_or(Err(Error::Timeout))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_claim_is_ready_when_its_devices_say_so() {
        let claim = |conditions: Value, told: Value| -> ResourceClaim {
            let result = json!({"request": "r", "driver": "d", "pool": "p", "device": "x",
                "bindingConditions": conditions, "bindingFailureConditions": ["Broken"]});
            serde_json::from_value(json!({"metadata": {"name": "c"}, "spec": {}, "status": {
                "allocation": {"devices": {"results": [result]}}, "devices": told}}))
            .expect("a claim")
        };
        let told = |device: &str, kinds: &[(&str, &str)]| {
            let conditions: Vec<Value> = kinds
                .iter()
                .map(|(kind, status)| {
                    json!({"type": kind, "status": status, "reason": "Why", "message": "so",
                        "lastTransitionTime": "2026-01-01T00:00:00Z"})
                })
                .collect();
            json!([{"driver": "d", "pool": "p", "device": device, "conditions": conditions}])
        };
        let two = json!(["Cabled", "Switched"]);
        let failed =
            Err(Error::Failed { claim: "c".into(), reason: "Why".into(), message: "so".into() });
        for (conditions, said, want) in [
            (json!(null), json!(null), Ok(true)),
            (two.clone(), json!(null), Ok(false)),
            (two.clone(), told("x", &[("Cabled", "True")]), Ok(false)),
            (two.clone(), told("x", &[("Cabled", "True"), ("Switched", "False")]), Ok(false)),
            (two.clone(), told("x", &[("Cabled", "True"), ("Switched", "True")]), Ok(true)),
            (two.clone(), told("y", &[("Cabled", "True"), ("Switched", "True")]), Ok(false)),
            (two.clone(), told("x", &[("Broken", "True")]), failed),
            (two, told("x", &[("Broken", "False")]), Ok(false)),
        ] {
            let claim = claim(conditions.clone(), said.clone());
            assert_eq!(waits(&claim), conditions.is_array());
            assert_eq!(is_ready(&claim), want, "{conditions} {said}");
        }
    }
}
