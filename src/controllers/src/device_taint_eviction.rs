//! Pods leave devices with taints of effect NoExecute, at once or when the tolerations of their claims end.
//!
//! Only the taints that drivers publish count: DeviceTaintRules are of a version that is not served by default.
//!
//! Source: `pkg/controller/devicetainteviction/device_taint_eviction.go`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use client::{Informer, Informers, Recorder, object_reference};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{
    DeviceRequestAllocationResult, DeviceTaint, DeviceToleration, ResourceClaim, ResourceSlice,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::ownership::{self, Key};
use crate::queue::{self, Next};
use crate::{pods, touched};

const NO_EXECUTE: &str = "NoExecute";

/// The devices that the claim has.
fn devices(claim: &ResourceClaim) -> &[DeviceRequestAllocationResult] {
    let allocation = claim.status.as_ref().and_then(|status| status.allocation.as_ref());
    let devices = allocation.and_then(|allocation| allocation.devices.as_ref());
    devices.and_then(|devices| devices.results.as_deref()).unwrap_or_default()
}

/// The taints of a device for which pods leave, as the newest slices of its pool tell them.
fn taints<'a>(
    device: &DeviceRequestAllocationResult,
    slices: &'a [Arc<ResourceSlice>],
) -> impl Iterator<Item = &'a DeviceTaint> {
    let of_pool: Vec<&ResourceSlice> = slices
        .iter()
        .map(AsRef::as_ref)
        .filter(|slice| slice.spec.driver == device.driver && slice.spec.pool.name == device.pool)
        .collect();
    let newest = of_pool.iter().map(|slice| slice.spec.pool.generation).max();
    let current = of_pool.into_iter().filter(move |s| Some(s.spec.pool.generation) == newest);
    let offered = current.flat_map(|slice| slice.spec.devices.iter().flatten());
    let name = device.device.clone();
    let same = offered.filter(move |offered| offered.name == name);
    let taints = same.flat_map(|offered| offered.taints.iter().flatten());
    taints.filter(|taint| taint.effect == NO_EXECUTE)
}

/// Whether the toleration bears a taint for which pods leave: one that does not speak of them bears what keeps pods from
/// being scheduled only.
fn bears(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    toleration.effect.as_deref() == Some(NO_EXECUTE) && client::tolerates_device(toleration, taint)
}

/// When the users of the claim have to go, if they have to. Taints that do not tell when they were added count from
/// `now` on.
fn deadline(
    claim: &ResourceClaim,
    slices: &[Arc<ResourceSlice>],
    now: Timestamp,
) -> Option<Timestamp> {
    let of_device = |device: &DeviceRequestAllocationResult| {
        let tolerations = device.tolerations.as_deref().unwrap_or_default();
        let ends = taints(device, slices).filter_map(|taint| {
            let bearing: Vec<Option<i64>> = tolerations
                .iter()
                .filter(|toleration| bears(toleration, taint))
                .map(|toleration| toleration.toleration_seconds)
                .collect();
            if bearing.contains(&None) {
                return None;
            }
            let seconds = bearing.into_iter().flatten().min().unwrap_or(0).max(0);
            let added = taint.time_added.as_ref().map_or(now, |time| time.0);
            // Any number of seconds may be borne.
            let end = added.saturating_add(SignedDuration::from_secs(seconds));
            Some(end.unwrap_or(Timestamp::MAX))
        });
        ends.min()
    };
    devices(claim).iter().filter_map(of_device).min()
}

/// Whether the claim is reserved for the pod.
fn is_user(claim: &ResourceClaim, pod: &Pod) -> bool {
    let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
    users.into_iter().any(|user| user.resource == "pods" && Some(&user.uid) == pod.uid().as_ref())
}

/// The names of the pod's claims, with whether each was made for it.
fn claims_of(pod: &Pod) -> Vec<(String, bool)> {
    let made = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    let made: Vec<_> = made.collect();
    let entries = pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let name = |entry: &k8s_openapi::api::core::v1::PodResourceClaim| {
        if let Some(name) = &entry.resource_claim_name {
            return Some((name.clone(), false));
        }
        let status = made.iter().find(|status| status.name == entry.name)?;
        Some((status.resource_claim_name.clone()?, true))
    };
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let extended = extended.map(|status| (status.resource_claim_name.clone(), true));
    entries.filter_map(name).chain(extended).collect()
}

struct Controller {
    client: Client,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    slices: Informer<ResourceSlice>,
    events: Recorder,
    /// The pods that are to leave, by their uids, and since when that is known.
    leaving: Mutex<HashMap<Key, (Option<String>, Timestamp)>>,
}

impl Controller {
    /// When the pod has to go, if it has to.
    fn deadline(&self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        if pods::node(pod).is_empty() || !pods::is_active(pod) {
            return None;
        }
        let namespace = pod.namespace().unwrap_or_default();
        let slices = self.slices.store().state();
        let claims = claims_of(pod).into_iter().filter_map(|(name, made)| {
            let claim = self.claims.get(&namespace, &name)?;
            let own = !made || ownership::is_controlled_by(claim.as_ref(), pod);
            (own && is_user(&claim, pod)).then_some(claim)
        });
        claims.filter_map(|claim| deadline(&claim, &slices, now)).min()
    }

    /// Takes note of the pod's deadline; says when it goes, and whether it was to go and now may stay.
    fn judge(&self, key: &Key, pod: &Pod, now: Timestamp) -> (Option<Timestamp>, bool) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        let known = leaving.get(key).filter(|(uid, _)| *uid == pod.uid()).map(|(_, since)| *since);
        let since = known.unwrap_or(now);
        let deadline = self.deadline(pod, since);
        if deadline.is_some() {
            leaving.insert(key.clone(), (pod.uid(), since));
        } else {
            leaving.remove(key);
        }
        (deadline, deadline.is_none() && known.is_some())
    }

    fn forget(&self, key: &Key) {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    async fn sync(&self, key: &Key) -> Result<Next, queue::Failure> {
        let Some(pod) = self.pods.get(&key.0, &key.1) else {
            self.forget(key);
            return Ok(Next::Done);
        };
        let now = Timestamp::now();
        let (deadline, spared) = self.judge(key, &pod, now);
        let about = || object_reference(pod.as_ref());
        if spared && pods::is_active(&pod) {
            self.events.normal(about(), "DeviceTaintManagerEviction", "Cancelling deletion");
        }
        let Some(deadline) = deadline else { return Ok(Next::Done) };
        let rest_ms = deadline.duration_since(now).as_millis();
        if rest_ms > 0 {
            return Ok(Next::After(Duration::from_millis(rest_ms as u64)));
        }
        self.events.normal(about(), "DeviceTaintManagerEviction", "Marking for deletion");
        let why = "Device Taint manager: deleting due to NoExecute taint";
        pods::disrupt(&self.client, &pod, "DeletionByDeviceTaintManager", why).await?;
        self.forget(key);
        Ok(Next::Done)
    }

    /// The users of the claim, and those of its namespace that may have been.
    fn users(&self, claim: &ResourceClaim) -> Vec<Key> {
        let namespace = claim.namespace().unwrap_or_default();
        let users = claim.status.iter().flat_map(|status| status.reserved_for.iter().flatten());
        let users = users.filter(|user| user.resource == "pods");
        let mut keys: Vec<Key> = users.map(|user| (namespace.clone(), user.name.clone())).collect();
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        keys.extend(leaving.keys().filter(|key| key.0 == namespace).cloned());
        keys
    }

    /// The users of devices of the slice's pool.
    fn users_of_pool(&self, slice: &ResourceSlice) -> Vec<Key> {
        let (driver, pool) = (&slice.spec.driver, &slice.spec.pool.name);
        let holding = self.claims.store().state_filter(|claim| {
            devices(claim).iter().any(|device| device.driver == *driver && device.pool == *pool)
        });
        holding.iter().flat_map(|claim| self.users(claim)).collect()
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let controller = Arc::new(Controller {
        pods: informers.get(),
        claims: informers.get(),
        slices: informers.get(),
        events: Recorder::new(client.clone(), "device-taint-eviction-controller", ""),
        leaving: Mutex::default(),
        client,
    });
    controller.pods.ready().await;
    controller.claims.ready().await;
    controller.slices.ready().await;
    let of_pod =
        |pod: &Pod| (!claims_of(pod).is_empty()).then(|| ownership::key(pod)).into_iter().collect();
    let (of_claim, of_slice) = (controller.clone(), controller.clone());
    let changes = futures::stream::select(
        touched(&controller.pods, of_pod),
        futures::stream::select(
            touched(&controller.claims, move |claim| of_claim.users(claim)),
            touched(&controller.slices, move |slice| of_slice.users_of_pool(slice)),
        ),
    );
    queue::run("device-taint-eviction", changes, shutdown, |key: Key| {
        let controller = controller.clone();
        Box::pin(async move { controller.sync(&key).await })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(generation: i64, taints: &Value) -> Arc<ResourceSlice> {
        let slice = json!({"metadata": {"name": format!("s{generation}")}, "spec": {
            "driver": "d", "pool": {"name": "p", "generation": generation, "resourceSliceCount": 1},
            "devices": [{"name": "gpu", "taints": taints}, {"name": "other"}]}});
        Arc::new(serde_json::from_value(slice).expect("a slice"))
    }

    fn claim(devices: &[&str], tolerations: &Value) -> ResourceClaim {
        let results: Vec<Value> = devices
            .iter()
            .map(|device| {
                json!({"driver": "d", "pool": "p", "device": device, "request": "r",
                    "tolerations": tolerations})
            })
            .collect();
        let claim =
            json!({"spec": {}, "status": {"allocation": {"devices": {"results": results}}}});
        serde_json::from_value(claim).expect("a claim")
    }

    #[test]
    fn users_of_tainted_devices_have_to_go() {
        let added: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let now = added + SignedDuration::from_secs(1000);
        let taint = |effect: &str| json!([{"key": "k", "value": "v", "effect": effect, "timeAdded": "2026-01-01T00:00:00Z"}]);
        let (tainted, untimed) = (taint("NoExecute"), json!([{"key": "k", "effect": "NoExecute"}]));
        let exists = |seconds: Option<i64>| json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        let equal = |value: &str| json!({"key": "k", "operator": "Equal", "value": value, "effect": "NoExecute"});
        let gpu = &["gpu"][..];
        let none = json!([]);
        let after = |seconds| Some(added + SignedDuration::from_secs(seconds));
        for (taints, devices, tolerations, want) in [
            (&none, gpu, json!([]), None),
            (&tainted, &[][..], json!([]), None),
            (&tainted, &["other"][..], json!([]), None),
            (&taint("NoSchedule"), gpu, json!([]), None),
            (&taint("None"), gpu, json!([]), None),
            (&tainted, gpu, json!([]), after(0)),
            (&tainted, &["other", "gpu"][..], json!([]), after(0)),
            (&tainted, gpu, json!([exists(None)]), None),
            (&tainted, gpu, json!([exists(Some(60))]), after(60)),
            (&tainted, gpu, json!([exists(Some(-1))]), after(0)),
            (&tainted, gpu, json!([exists(Some(60)), exists(Some(30))]), after(30)),
            (&tainted, gpu, json!([exists(Some(60)), exists(None)]), None),
            (&tainted, gpu, json!([exists(Some(i64::MAX))]), Some(Timestamp::MAX)),
            (&tainted, gpu, json!([equal("v")]), None),
            (&tainted, gpu, json!([equal("w")]), after(0)),
            // One without an effect bears what keeps pods from being scheduled only.
            (&tainted, gpu, json!([{"operator": "Exists"}]), after(0)),
            (&untimed, gpu, json!([exists(Some(5))]), after(1005)),
        ] {
            let got = deadline(&claim(devices, &tolerations), &[slice(1, taints)], now);
            assert_eq!(got, want, "{taints} {devices:?} {tolerations}");
        }
        // What an older generation of the pool says is past.
        let slices = [slice(1, &tainted), slice(2, &none)];
        assert_eq!(deadline(&claim(gpu, &none), &slices, now), None);
    }

    #[test]
    fn a_pod_names_its_claims() {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"containers": [], "resourceClaims": [
                {"name": "a", "resourceClaimName": "shared"},
                {"name": "b", "resourceClaimTemplateName": "t"},
                {"name": "c", "resourceClaimTemplateName": "t"},
                {"name": "d", "resourceClaimTemplateName": "t"}]},
            "status": {"resourceClaimStatuses": [
                {"name": "b", "resourceClaimName": "made"}, {"name": "c"}],
                "extendedResourceClaimStatus": {"resourceClaimName": "extended",
                    "requestMappings": []}}}))
        .expect("a pod");
        let want = [("shared", false), ("made", true), ("extended", true)];
        let want = want.map(|(name, made)| (name.to_owned(), made));
        assert_eq!(claims_of(&pod), want);
    }
}
