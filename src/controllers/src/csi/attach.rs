//! Volumes attached to nodes, as VolumeAttachments ask for it.
//!
//! Source: `external-attacher/pkg/controller/csi_handler.go`, `trivial_handler.go`.

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use plugin::proto::{self, ControllerPublish, ControllerPublished, ControllerUnpublish, Empty};
use serde_json::{Value, json};

use super::{Controller, Error, Key, Served};
use crate::queue::{Failure, Next};
use crate::unless_code;

/// Where the driver's name of the node is kept, for the time when the node is gone.
const NODE_ID: &str = "csi.alpha.kubernetes.io/node-id";

/// Keeps an attachment, and its volume, until it is taken back.
fn finalizer(driver: &str) -> String {
    format!("external-attacher/{}", driver.replace('/', "-"))
}

/// What is asked for.
fn wish(ends: bool) -> &'static str {
    if ends { "detach" } else { "attach" }
}

impl Controller {
    pub(super) async fn sync_attachment(
        &self,
        key: &Key,
        attachment: &VolumeAttachment,
    ) -> Result<Next, Failure> {
        let name = attachment.name_any();
        let ends = attachment.metadata.deletion_timestamp.is_some();
        let finalizer = finalizer(&attachment.spec.attacher);
        let held = attachment.finalizers().contains(&finalizer);
        let attached = attachment.status.as_ref().is_some_and(|status| status.attached);
        if (ends && !held) || (!ends && attached) {
            return Ok(Next::Done);
        }
        if let Some(later) = self.held_back(key, wish(ends)) {
            return Ok(later);
        }
        let driver = match self.serve(&attachment.spec.attacher).await {
            Ok(Some(driver)) => driver,
            Ok(None) => return Ok(Next::Done),
            Err(error) => return self.tell_error(key, &name, ends, &error).await,
        };
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        if !driver.can(proto::PUBLISH_UNPUBLISH) {
            // Nothing is to be done for it; that is told, so that nobody waits.
            if !ends {
                self.tell_status(&name, json!({"attached": true})).await?;
            }
            return Ok(Next::Done);
        }
        if ends {
            if let Err(error) = self.detach(&driver, attachment).await {
                return self.tell_error(key, &name, ends, &error).await;
            }
            let gone = json!({"attached": false, "attachError": null, "detachError": null,
                "attachmentMetadata": null});
            self.tell_status(&name, gone).await?;
            self.change_finalizers(&api, &name, |known| {
                known.iter().filter(|kept| **kept != finalizer).cloned().collect()
            })
            .await?;
            return Ok(Next::Done);
        }
        match Box::pin(self.attach(&driver, attachment, &finalizer)).await {
            Ok(told) => {
                let status = json!({"attached": true, "attachError": null,
                    "attachmentMetadata": told.publish_context});
                self.tell_status(&name, status).await?;
                Ok(Next::Done)
            }
            Err(error) => self.tell_error(key, &name, ends, &error).await,
        }
    }

    /// The volume, and what the driver calls the node.
    fn parts(
        &self,
        attachment: &VolumeAttachment,
    ) -> Result<(PersistentVolumeSpec, CSIPersistentVolumeSource, String), Error> {
        let refused = |reason: String| Error::Refused(reason);
        let name = attachment.spec.source.persistent_volume_name.clone().unwrap_or_default();
        let spec = match &attachment.spec.source.inline_volume_spec {
            Some(spec) => Some(spec.clone()),
            None => self.volumes.get("", &name).and_then(|volume| volume.spec.clone()),
        };
        let spec = spec.ok_or_else(|| refused(format!("persistentvolume {name:?} not found")))?;
        let csi = spec.csi.clone();
        let csi =
            csi.ok_or_else(|| refused(format!("persistent volume {name:?} is no CSI volume")))?;
        let (node, driver) = (&attachment.spec.node_name, &attachment.spec.attacher);
        let csi_node = self.csi_nodes.get("", node);
        let known = csi_node.and_then(|csi_node| {
            let mut drivers = csi_node.spec.drivers.iter();
            drivers.find(|known| known.name == *driver).map(|known| known.node_id.clone())
        });
        let id = known.or_else(|| attachment.annotations().get(NODE_ID).cloned());
        let id =
            id.ok_or_else(|| refused(format!("CSINode {node} does not contain driver {driver}")))?;
        Ok((spec, csi, id))
    }

    async fn attach(
        &self,
        driver: &Served,
        attachment: &VolumeAttachment,
        finalizer: &str,
    ) -> Result<ControllerPublished, Error> {
        let (spec, csi, node_id) = self.parts(attachment)?;
        let name = attachment.name_any();
        let hold = |known: &[String]| {
            let mut all = known.to_vec();
            if !all.iter().any(|held| held == finalizer) {
                all.push(finalizer.to_owned());
            }
            all
        };
        let refused = |error: &dyn std::fmt::Display| Error::Refused(error.to_string());
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        if let Some(volume) = &attachment.spec.source.persistent_volume_name {
            let held = self.change_finalizers(&volumes, volume, hold).await;
            held.map_err(|error| {
                refused(&format!("could not add PersistentVolume finalizer: {error}"))
            })?;
        }
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let held = self.change_finalizers(&api, &name, hold).await;
        held.map_err(|error| {
            refused(&format!("could not add VolumeAttachment finalizer: {error}"))
        })?;
        let kept = Patch::Merge(json!({"metadata": {"annotations": {NODE_ID: node_id}}}));
        let kept = api.patch(&name, &PatchParams::default(), &kept).await;
        kept.map_err(|error| refused(&crate::pods::text(&error)))?;
        let request = ControllerPublish {
            volume_id: csi.volume_handle.clone(),
            node_id,
            volume_capability: Some(driver.capability(&spec)),
            readonly: csi.read_only == Some(true) && driver.can(proto::PUBLISH_READONLY),
            secrets: self.secrets(csi.controller_publish_secret_ref.as_ref()).await?,
            volume_context: csi.volume_attributes.clone().unwrap_or_default().into_iter().collect(),
        };
        Ok(driver.plugin.call("/csi.v1.Controller/ControllerPublishVolume", request).await?)
    }

    async fn detach(&self, driver: &Served, attachment: &VolumeAttachment) -> Result<(), Error> {
        let (_, csi, node_id) = self.parts(attachment)?;
        let request = ControllerUnpublish {
            volume_id: csi.volume_handle.clone(),
            node_id,
            secrets: self.secrets(csi.controller_publish_secret_ref.as_ref()).await?,
        };
        let method = "/csi.v1.Controller/ControllerUnpublishVolume";
        let _: Empty = driver.plugin.call(method, request).await?;
        Ok(())
    }

    async fn tell_status(&self, name: &str, status: Value) -> Result<(), Failure> {
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"status": status}));
        Ok(unless_code(api.patch_status(name, &PatchParams::default(), &patch).await, 404)?)
    }

    async fn tell_error(
        &self,
        key: &Key,
        name: &str,
        ends: bool,
        error: &Error,
    ) -> Result<Next, Failure> {
        let told = json!({"message": error.to_string(), "time": Timestamp::now()});
        let status = if ends {
            json!({"detachError": told})
        } else {
            json!({"attached": false, "attachError": told})
        };
        let next = self.later(key, wish(ends));
        self.tell_status(name, status).await?;
        Ok(next)
    }

    /// Lets a volume go that nothing is attached to any more.
    pub(super) async fn let_go(
        &self,
        volume: &PersistentVolume,
        driver: &str,
    ) -> Result<(), Failure> {
        let (name, finalizer) = (volume.name_any(), finalizer(driver));
        let ends = volume.metadata.deletion_timestamp.is_some();
        if !ends || !volume.finalizers().contains(&finalizer) || !self.is_served(driver) {
            return Ok(());
        }
        let attached = self.attachments.store().find(|attachment| {
            attachment.spec.source.persistent_volume_name.as_deref() == Some(&name)
        });
        if attached.is_some() {
            return Ok(());
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        self.change_finalizers(&api, &name, |known| {
            known.iter().filter(|kept| **kept != finalizer).cloned().collect()
        })
        .await
    }
}
