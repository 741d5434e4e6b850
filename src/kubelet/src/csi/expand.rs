//! Growing a volume that a pod has: what the controller has made larger, the driver makes usable on the node.
//!
//! Source of behaviour: `pkg/volume/util/operationexecutor/node_expander.go`, the Container Storage Interface
//! specification.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeSpec, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::{Error, Places, Volume, secrets};
use crate::context::Context;
use crate::{pod, quantity, volumes};
use plugin::Plugin;
use plugin::proto::{self, CapacityRange, Empty, Expand, NodeCapabilities};

/// That a claim's volume is larger than what its claim was told to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The claim.
    pub claim: String,
    /// The volume's size, as the API has it.
    pub capacity: String,
    bytes: i64,
}

impl Growth {
    /// What has grown, if anything.
    pub fn of(claim: &PersistentVolumeClaim, spec: &PersistentVolumeSpec) -> Option<Self> {
        let volume = spec.capacity.as_ref()?.get("storage")?;
        let told = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
        let (bytes, before) = (quantity::value(volume)?, quantity::value(told)?);
        let name = claim.metadata.name.clone()?;
        (bytes > before).then(|| Self { claim: name, capacity: volume.0.clone(), bytes })
    }

    /// The claim's status once it is done.
    fn patch(&self, claim: &PersistentVolumeClaim) -> Value {
        let conditions =
            claim.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        let left: Vec<_> = conditions
            .into_iter()
            .filter(|c| c.type_ != "FileSystemResizePending" && c.type_ != "Resizing")
            .collect();
        json!({"status": {"capacity": {"storage": self.capacity}, "conditions": left,
            "allocatedResourceStatuses": null}})
    }
}

/// Has the driver make the growth usable, and tells the claim. A driver that does nothing for it on nodes has done it.
pub async fn expand(
    context: &Context,
    of: &Pod,
    volume: &Volume,
    growth: &Growth,
) -> Result<(), Error> {
    let endpoint = context.drivers.endpoint(&volume.driver);
    let endpoint = endpoint.ok_or_else(|| Error::NoDriver(volume.driver.clone()))?;
    let plugin = Plugin::connect(&endpoint).await?;
    let capabilities: NodeCapabilities =
        plugin.call("/csi.v1.Node/NodeGetCapabilities", Empty {}).await?;
    let can = |kind: i32| {
        capabilities.capabilities.iter().any(|c| c.rpc.as_ref().is_some_and(|r| r.r#type == kind))
    };
    if can(proto::EXPAND) {
        let places = Places::of(context);
        let folder = places.volume(pod::uid(of), &volume.spec_name);
        let target = folder.join(if volume.block { "device" } else { "mount" });
        let staged = places.staging(&volume.driver, &volume.handle);
        let group = volumes::fs_group(of).filter(|_| can(proto::MOUNT_GROUP));
        let request = Expand {
            volume_id: volume.handle.clone(),
            volume_path: places.outside(&target),
            capacity_range: Some(CapacityRange { required_bytes: growth.bytes, limit_bytes: 0 }),
            staging_target_path: if can(proto::STAGE) {
                places.outside(&staged)
            } else {
                String::new()
            },
            volume_capability: Some(volume.capability(group)),
            secrets: secrets(context, of, volume.expand_secret.as_ref()).await?,
        };
        let _one_at_a_time = context.staging.lock().await;
        // What it answers is the size it has now; the claim is told what was promised.
        let _: Empty = plugin.call("/csi.v1.Node/NodeExpandVolume", request).await?;
        let message = format!(
            "MountVolume.NodeExpandVolume succeeded for volume \"{}\" {}",
            volume.spec_name, context.node_name
        );
        context.normal(of, None, "FileSystemResizeSuccessful", message);
    }
    let claims: Api<PersistentVolumeClaim> =
        Api::namespaced(context.client.clone(), pod::namespace(of));
    let failed =
        |source| Error::Fetch { what: format!("persistentvolumeclaim {:?}", growth.claim), source };
    let claim = claims.get(&growth.claim).await.map_err(failed)?;
    let patch = Patch::Merge(growth.patch(&claim));
    claims.patch_status(&growth.claim, &PatchParams::default(), &patch).await.map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_the_claim_has_not_been_told() {
        let spec = |size: &str| -> PersistentVolumeSpec {
            serde_json::from_value(json!({"capacity": {"storage": size}})).unwrap()
        };
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({"metadata": {"name": "c"},
            "status": {"capacity": {"storage": "1Gi"}, "conditions": [
                {"type": "FileSystemResizePending", "status": "True"}, {"type": "Other", "status": "True"}]}}))
        .unwrap();
        for (size, grown) in
            [("1Gi", None), ("1024Mi", None), ("512Mi", None), ("2Gi", Some(1_i64 << 31))]
        {
            assert_eq!(Growth::of(&claim, &spec(size)).map(|growth| growth.bytes), grown, "{size}");
        }
        let patch = Growth::of(&claim, &spec("2Gi")).unwrap().patch(&claim);
        assert_eq!(patch["status"]["capacity"]["storage"], "2Gi");
        assert_eq!(patch["status"]["conditions"].as_array().unwrap().len(), 1);
        let unbound = PersistentVolumeClaim::default();
        assert_eq!(Growth::of(&unbound, &spec("2Gi")), None);
    }
}
