//! Volumes made larger for their claims.
//!
//! Source: `external-resizer/pkg/controller/controller.go`, `expand_and_recover.go`.

use apimachinery::quantity::Quantity;
use client::object_reference;
use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimCondition,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use plugin::call::Code;
use plugin::proto::{self, CapacityRange, ControllerExpand, ControllerExpanded};
use serde_json::json;

use super::{Controller, Error, Key, Served};
use crate::ownership;
use crate::queue::{Failure, Next};

/// What a volume had before it was made larger; the node's part is over when its claim is told the new size.
const BEFORE: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";
const RESIZING: &str = "Resizing";
const PENDING: &str = "FileSystemResizePending";
const FAILED: &str = "ControllerResizeError";

fn storage(list: Option<&std::collections::BTreeMap<String, Text>>) -> Option<&Text> {
    list?.get("storage")
}

fn size(text: Option<&Text>) -> Option<Quantity> {
    text?.0.parse().ok()
}

/// How large the volume is to be, when that is more than it is.
fn wanted(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<Text> {
    let bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let asked = storage(resources.and_then(|resources| resources.requests.as_ref()));
    let has = storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()));
    let larger = size(asked)? > size(has)?;
    (bound && larger && claim.metadata.deletion_timestamp.is_none()).then(|| asked.cloned())?
}

/// The claim's conditions with these in the place of those of a resize.
fn conditions(
    claim: &PersistentVolumeClaim,
    now: &[(&str, &str, String)],
) -> Vec<PersistentVolumeClaimCondition> {
    let known = claim.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut all: Vec<PersistentVolumeClaimCondition> = known
        .filter(|condition| ![RESIZING, PENDING, FAILED].contains(&condition.type_.as_str()))
        .cloned()
        .collect();
    all.extend(now.iter().map(|(kind, reason, message)| PersistentVolumeClaimCondition {
        type_: (*kind).to_owned(),
        status: "True".into(),
        reason: Some((*reason).to_owned()).filter(|reason| !reason.is_empty()),
        message: Some(message.clone()).filter(|message| !message.is_empty()),
        last_transition_time: Some(Time(Timestamp::now())),
        ..PersistentVolumeClaimCondition::default()
    }));
    all
}

/// Whether the driver will give the same answer until something else is asked.
fn is_infeasible(error: &Error) -> bool {
    let codes = [Code::InvalidArgument, Code::OutOfRange, Code::NotFound];
    error.code().is_some_and(|code| codes.contains(&code))
}

impl Controller {
    pub(super) async fn resize(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
    ) -> Result<Next, Failure> {
        if wanted(claim, volume).is_none() || !self.is_ours(volume) {
            return Ok(Next::Done);
        }
        // What the cache has may be from before the last growth.
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let volume = api.get(&volume.name_any()).await?;
        let volume = &volume;
        let Some(wanted) = wanted(claim, volume) else { return Ok(Next::Done) };
        if let Some(later) = self.held_back(key, &wanted.0) {
            return Ok(later);
        }
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        let Some(csi) = csi else { return Ok(Next::Done) };
        let driver = match self.serve(&csi.driver).await {
            Ok(Some(driver)) => driver,
            Ok(None) => return Ok(Next::Done),
            Err(error) => {
                tracing::debug!(%error, driver = csi.driver, "a CSI driver does not answer");
                return Ok(self.later(key, &wanted.0));
            }
        };
        let name = volume.name_any();
        let begun = json!({"allocatedResources": {"storage": wanted},
            "allocatedResourceStatuses": {"storage": "ControllerResizeInProgress"},
            "conditions": conditions(claim, &[(RESIZING, "", String::new())])});
        self.tell_claim(claim, begun).await?;
        let message = format!("External resizer is resizing volume {name}");
        self.events.normal(object_reference(claim), "Resizing", message);
        match Box::pin(self.enlarge(&driver, volume, &wanted)).await {
            Ok(done) => {
                let node_part = done.node_expansion_required;
                self.tell_volume(claim, volume, &wanted, node_part).await?;
                self.resized(claim, &wanted, node_part).await?;
                Ok(Next::Done)
            }
            Err(error) => {
                let driver = &csi.driver;
                let message =
                    format!("resize volume {name:?} by resizer {driver:?} failed: {error}");
                self.resize_failed(claim, is_infeasible(&error), message).await?;
                Ok(self.later(key, &wanted.0))
            }
        }
    }

    /// Tells the claim that its volume is larger, or will be when the node has done its part.
    async fn resized(
        &self,
        claim: &PersistentVolumeClaim,
        wanted: &Text,
        node_part: bool,
    ) -> Result<(), Failure> {
        let about = object_reference(claim);
        if node_part {
            let message = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
            let status = json!({"allocatedResourceStatuses": {"storage": "NodeResizePending"},
                "conditions": conditions(claim, &[(PENDING, "", message.to_owned())])});
            self.tell_claim(claim, status).await?;
            let message = "Require file system resize of volume on node";
            self.events.normal(about, "FileSystemResizeRequired", message);
        } else {
            let status = json!({"capacity": {"storage": wanted}, "allocatedResourceStatuses": null,
                "conditions": conditions(claim, &[])});
            self.tell_claim(claim, status).await?;
            self.events.normal(about, "VolumeResizeSuccessful", "Resize volume succeeded");
        }
        Ok(())
    }

    async fn resize_failed(
        &self,
        claim: &PersistentVolumeClaim,
        infeasible: bool,
        message: String,
    ) -> Result<(), Failure> {
        self.events.warning(object_reference(claim), "VolumeResizeFailed", message.clone());
        let state =
            if infeasible { "ControllerResizeInfeasible" } else { "ControllerResizeInProgress" };
        let told = conditions(claim, &[(RESIZING, "", String::new()), (FAILED, "", message)]);
        let status = json!({"allocatedResourceStatuses": {"storage": state}, "conditions": told});
        self.tell_claim(claim, status).await?;
        Ok(())
    }

    fn is_ours(&self, volume: &PersistentVolume) -> bool {
        let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
        csi.is_some_and(|csi| self.is_served(&csi.driver))
    }

    async fn enlarge(
        &self,
        driver: &Served,
        volume: &PersistentVolume,
        wanted: &Text,
    ) -> Result<ControllerExpanded, Error> {
        let spec = volume.spec.clone().unwrap_or_default();
        let csi = spec.csi.clone().unwrap_or_default();
        let bytes = size(Some(wanted)).map_or(0, |size| size.value());
        if !driver.can(proto::CONTROLLER_EXPAND) {
            // Whatever is to be done is done on the node.
            return Ok(ControllerExpanded { capacity_bytes: bytes, node_expansion_required: true });
        }
        let request = ControllerExpand {
            volume_id: csi.volume_handle,
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            secrets: self.secrets(csi.controller_expand_secret_ref.as_ref()).await?,
            volume_capability: Some(driver.capability(&spec)),
        };
        let method = "/csi.v1.Controller/ControllerExpandVolume";
        Ok(driver.plugin.call(method, request).await?)
    }

    async fn tell_volume(
        &self,
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        wanted: &Text,
        node_part: bool,
    ) -> Result<(), Failure> {
        let before = storage(claim.status.as_ref().and_then(|status| status.capacity.as_ref()));
        let mut patch = json!({"spec": {"capacity": {"storage": wanted}},
            "metadata": {"resourceVersion": volume.resource_version()}});
        if let Some(before) = before.filter(|_| node_part) {
            patch["metadata"]["annotations"] = json!({BEFORE: before});
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        api.patch(&volume.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn tell_claim(
        &self,
        claim: &PersistentVolumeClaim,
        status: serde_json::Value,
    ) -> Result<(), Failure> {
        let (namespace, name) = ownership::key(claim);
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &namespace);
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(&name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_that_asks_for_more_is_served() {
        let volume: PersistentVolume =
            serde_json::from_value(json!({"spec": {"capacity": {"storage": "1Gi"}}})).unwrap();
        for (asked, phase, want) in [
            ("2Gi", "Bound", Some("2Gi")),
            ("1024Mi", "Bound", None),
            ("2Gi", "Pending", None),
            ("512Mi", "Bound", None),
        ] {
            let claim = serde_json::from_value(json!({
                "spec": {"resources": {"requests": {"storage": asked}}}, "status": {"phase": phase}}))
            .unwrap();
            let told = wanted(&claim, &volume).map(|text| text.0);
            assert_eq!(told.as_deref(), want, "{asked} {phase}");
        }
    }

    #[test]
    fn conditions_of_others_stay() {
        let claim = serde_json::from_value(json!({"status": {"conditions": [
            {"type": "Resizing", "status": "True"}, {"type": "Other", "status": "True"}]}}))
        .unwrap();
        let told = conditions(&claim, &[(PENDING, "", "wait".into())]);
        let kinds: Vec<&str> = told.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, ["Other", PENDING]);
    }
}
