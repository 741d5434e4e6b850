//! Volumes made for claims, and deleted after them.
//!
//! Source: `external-provisioner/pkg/controller/controller.go`,
//! `sig-storage-lib-external-provisioner/controller/controller.go`.

use std::collections::BTreeMap;

use apimachinery::quantity::{Format, Quantity};
use client::object_reference;
use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
    SecretReference,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use plugin::call::Code;
use plugin::proto::{
    self, CapacityRange, ContentSource, CreateVolume, CreatedVolume, DeleteVolume, Empty,
    MadeVolume, VolumeId,
};
use serde_json::json;

use super::parameters::{Parameters, Purpose};
use super::{Controller, Error, Key, Served, topology, usage};
use crate::persistent_volume::provision::{
    FINALIZER, PROVISIONED_BY, finalizers, reference, volume_name,
};
use crate::persistent_volume::{SELECTED_NODE, STORAGE_PROVISIONER};
use crate::queue::{Failure, Next};
use crate::unless_code;

const SECRET_NAME: &str = "volume.kubernetes.io/provisioner-deletion-secret-name";
const SECRET_NAMESPACE: &str = "volume.kubernetes.io/provisioner-deletion-secret-namespace";

/// The class of a claim that waits for its driver to make it a volume.
fn waits<'a>(
    claim: &PersistentVolumeClaim,
    class: Option<&'a StorageClass>,
) -> Option<&'a StorageClass> {
    let asked = STORAGE_PROVISIONER.iter().rev().find_map(|key| claim.annotations().get(*key));
    let class = class.filter(|class| asked == Some(&class.provisioner))?;
    let late = class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer");
    let selected = claim.annotations().get(SELECTED_NODE).is_some_and(|node| !node.is_empty());
    (claim.metadata.deletion_timestamp.is_none() && (selected || !late)).then_some(class)
}

fn requested(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let storage = resources.and_then(|resources| resources.requests.as_ref()?.get("storage"));
    storage.and_then(|text| text.0.parse::<Quantity>().ok()).map_or(0, |size| size.value())
}

/// The claim whose content the new volume begins with; an error for other sources.
fn source(claim: &PersistentVolumeClaim) -> Result<Option<String>, Option<String>> {
    let Some(spec) = &claim.spec else { return Ok(None) };
    let (group, kind, name) = match (&spec.data_source_ref, &spec.data_source) {
        (Some(named), _) => (named.api_group.clone(), named.kind.clone(), named.name.clone()),
        (None, Some(named)) => (named.api_group.clone(), named.kind.clone(), named.name.clone()),
        (None, None) => return Ok(None),
    };
    match (group.unwrap_or_default().as_str(), kind.as_str()) {
        ("", "PersistentVolumeClaim") => Ok(Some(name)),
        ("snapshot.storage.k8s.io", _) => Err(Some(
            "volumes from snapshots are not made in process: run the driver's own external-provisioner".into(),
        )),
        // Others fill such volumes.
        _ => Err(None),
    }
}

/// The volume as the API has it.
fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    parameters: &Parameters,
    made: MadeVolume,
) -> PersistentVolume {
    let spec = claim.spec.clone().unwrap_or_default();
    let bytes = if made.capacity_bytes == 0 { requested(claim) } else { made.capacity_bytes };
    let size = Text(Quantity::new(bytes, Format::BinarySi).to_string());
    let deletion = parameters.secret(Purpose::Provision).unwrap_or_default();
    let annotations = [
        (PROVISIONED_BY, class.provisioner.clone()),
        (SECRET_NAME, deletion.name.unwrap_or_default()),
        (SECRET_NAMESPACE, deletion.namespace.unwrap_or_default()),
    ];
    let policy = class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into());
    let attributes: BTreeMap<String, String> = made.volume_context.into_iter().collect();
    PersistentVolume {
        metadata: ObjectMeta {
            name: Some(volume_name(claim)),
            annotations: Some(annotations.map(|(key, value)| (key.to_owned(), value)).into()),
            finalizers: (policy == "Delete").then(|| vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: Some([("storage".to_owned(), size)].into()),
            claim_ref: Some(reference(claim)),
            csi: Some(CSIPersistentVolumeSource {
                driver: class.provisioner.clone(),
                volume_handle: made.volume_id,
                fs_type: parameters.fs_type.clone(),
                volume_attributes: (!attributes.is_empty()).then_some(attributes),
                controller_publish_secret_ref: parameters.secret(Purpose::Attach),
                node_stage_secret_ref: parameters.secret(Purpose::Stage),
                node_publish_secret_ref: parameters.secret(Purpose::Publish),
                controller_expand_secret_ref: parameters.secret(Purpose::Expand),
                node_expand_secret_ref: parameters.secret(Purpose::NodeExpand),
                ..CSIPersistentVolumeSource::default()
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: topology::affinity(&made.accessible_topology),
            persistent_volume_reclaim_policy: Some(policy),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    }
}

/// Whether the volume is to be deleted by the driver that made it.
fn is_over(volume: &PersistentVolume, driver: &str) -> bool {
    let spec = volume.spec.as_ref();
    let policy = spec.and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let ours = volume.annotations().get(PROVISIONED_BY).is_some_and(|by| by == driver);
    let ends = volume.metadata.deletion_timestamp.is_some();
    let held = volume.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    ours && policy == Some("Delete")
        && matches!(phase, Some("Released" | "Failed"))
        && (!ends || held)
}

impl Controller {
    pub(super) async fn provision(
        &self,
        key: &Key,
        claim: &PersistentVolumeClaim,
    ) -> Result<Next, Failure> {
        let name = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.clone());
        let class = self.classes.get("", &name.unwrap_or_default());
        let Some(class) = waits(claim, class.as_deref()) else { return Ok(Next::Done) };
        if self.volumes.get("", &volume_name(claim)).is_some() {
            return Ok(Next::Done);
        }
        let about = object_reference(claim);
        let served = match self.serve(&class.provisioner).await {
            Ok(served) => served.filter(|driver| driver.can(proto::CREATE_DELETE)),
            Err(error) => {
                tracing::debug!(%error, driver = class.provisioner, "a CSI driver does not answer");
                return Ok(self.later(key, ""));
            }
        };
        let Some(driver) = served else { return Ok(Next::Done) };
        let from = match source(claim) {
            Ok(from) => from,
            Err(None) => return Ok(Next::Done),
            Err(Some(reason)) => {
                self.events.warning(about, "ProvisioningFailed", reason);
                return Ok(self.later(key, ""));
            }
        };
        let (namespace, claim_name) = crate::ownership::key(claim);
        let message = format!(
            "External provisioner is provisioning volume for claim \"{namespace}/{claim_name}\""
        );
        self.events.normal(about.clone(), "Provisioning", message);
        match Box::pin(self.make(&driver, claim, class, from.as_deref())).await {
            Ok(made) => {
                let api: Api<PersistentVolume> = Api::all(self.client.clone());
                unless_code(api.create(&PostParams::default(), &made).await, 409)?;
                let message = format!("Successfully provisioned volume {}", made.name_any());
                self.events.normal(about, "ProvisioningSucceeded", message);
                Ok(Next::Done)
            }
            Err(error) => {
                let message = format!(
                    "failed to provision volume with StorageClass {:?}: {error}",
                    class.name_any()
                );
                self.events.warning(about, "ProvisioningFailed", message);
                let selected = claim.annotations().contains_key(SELECTED_NODE);
                if selected && driver.constrained && error.code() == Some(Code::ResourceExhausted) {
                    // The scheduler is to look for another node.
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(self.client.clone(), &namespace);
                    let patch = json!({"metadata": {"annotations": {SELECTED_NODE: null},
                        "resourceVersion": claim.resource_version()}});
                    api.patch(&claim_name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                    return Ok(Next::Done);
                }
                Ok(self.later(key, ""))
            }
        }
    }

    async fn make(
        &self,
        driver: &Served,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        from: Option<&str>,
    ) -> Result<PersistentVolume, Error> {
        let name = volume_name(claim);
        let all = class.parameters.clone().unwrap_or_default();
        let parameters = Parameters::read(&all, claim, &name)?;
        let spec = claim.spec.clone().unwrap_or_default();
        let block = spec.volume_mode.as_deref() == Some("Block");
        let flags = class.mount_options.clone().unwrap_or_default();
        let fs_type = parameters.fs_type.clone().unwrap_or_default();
        let modes = spec.access_modes.unwrap_or_default();
        let capabilities = modes
            .iter()
            .map(|mode| usage(block, fs_type.clone(), flags.clone(), driver.mode(mode)))
            .collect();
        let accessibility_requirements =
            if driver.constrained { self.requirement(driver, claim, class)? } else { None };
        let size = requested(claim);
        let request = CreateVolume {
            name,
            capacity_range: Some(CapacityRange { required_bytes: size, limit_bytes: 0 }),
            volume_capabilities: capabilities,
            parameters: parameters.driver.clone().into_iter().collect(),
            secrets: self.secrets(parameters.secret(Purpose::Provision).as_ref()).await?,
            volume_content_source: from
                .map(|from| self.clone_of(driver, claim, from))
                .transpose()?,
            accessibility_requirements,
        };
        let cloned = request.volume_content_source.is_some();
        let answer: CreatedVolume =
            driver.plugin.call("/csi.v1.Controller/CreateVolume", request).await?;
        let made = answer.volume.filter(|volume| !volume.volume_id.is_empty());
        let made = made.ok_or_else(|| Error::Refused("the driver names no volume".into()))?;
        let wrong = if made.capacity_bytes != 0 && made.capacity_bytes < size {
            Some(format!(
                "created volume capacity {} less than requested capacity {size}",
                made.capacity_bytes
            ))
        } else if cloned && made.content_source.is_none() {
            Some("volume content source missing".to_owned())
        } else {
            None
        };
        if let Some(wrong) = wrong {
            self.unmake(driver, &made.volume_id, parameters.secret(Purpose::Provision)).await?;
            return Err(Error::Refused(wrong));
        }
        Ok(volume(claim, class, &parameters, made))
    }

    fn requirement(
        &self,
        driver: &Served,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
    ) -> Result<Option<proto::TopologyRequirement>, topology::Error> {
        let uid = claim.uid().unwrap_or_default();
        let view = topology::View {
            driver: &driver.name,
            nodes: &self.nodes.store().state(),
            csi_nodes: &self.csi_nodes.store().state(),
            allowed: class.allowed_topologies.as_deref().unwrap_or_default(),
            selected: claim.annotations().get(SELECTED_NODE).map(String::as_str),
            seed: &uid,
        };
        view.requirement()
    }

    /// The volume of the claim `from`, as what another begins with.
    fn clone_of(
        &self,
        driver: &Served,
        claim: &PersistentVolumeClaim,
        from: &str,
    ) -> Result<ContentSource, Error> {
        let refused = |reason: String| Error::Refused(reason);
        if !driver.can(proto::CLONE) {
            let name = &driver.name;
            return Err(refused(format!(
                "CSI driver does not support clone operations: plugin {name:?}"
            )));
        }
        let namespace = claim.namespace().unwrap_or_default();
        let source = self.claims.get(&namespace, from);
        let source = source.ok_or_else(|| {
            refused(format!("error getting PVC {from} ({namespace}) from api server: not found"))
        })?;
        if source.metadata.deletion_timestamp.is_some() {
            return Err(refused(format!("the source PVC {from} is currently being deleted")));
        }
        let bound = source.status.as_ref().and_then(|status| status.phase.as_deref());
        if bound != Some("Bound") {
            return Err(refused(format!(
                "the PVC {from} in Namespace {namespace} has not been bound yet"
            )));
        }
        let volume = source.spec.as_ref().and_then(|spec| spec.volume_name.clone());
        let volume = volume.and_then(|name| self.volumes.get("", &name));
        let csi = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.csi.clone());
        let csi = csi.filter(|csi| csi.driver == driver.name).ok_or_else(|| {
            refused(format!("the source volume in PVC {from} is handled by a different CSI driver"))
        })?;
        if requested(claim) < requested(&source) {
            return Err(refused(format!(
                "error, new PVC request must be greater than or equal in size to the specified PVC data source, requested {} but source is {}",
                requested(claim),
                requested(&source)
            )));
        }
        Ok(ContentSource { volume: Some(VolumeId { volume_id: csi.volume_handle }) })
    }

    async fn unmake(
        &self,
        driver: &Served,
        volume: &str,
        secret: Option<SecretReference>,
    ) -> Result<(), Error> {
        let secrets = self.secrets(secret.as_ref()).await?;
        let request = DeleteVolume { volume_id: volume.to_owned(), secrets };
        let _: Empty = driver.plugin.call("/csi.v1.Controller/DeleteVolume", request).await?;
        Ok(())
    }

    pub(super) async fn sync_volume(
        &self,
        key: &Key,
        volume: &PersistentVolume,
    ) -> Result<Next, Failure> {
        let Some(csi) = volume.spec.as_ref().and_then(|spec| spec.csi.clone()) else {
            return Ok(Next::Done);
        };
        self.let_go(volume, &csi.driver).await?;
        let ours = volume.annotations().get(PROVISIONED_BY).is_some_and(|by| *by == csi.driver);
        if ours
            && self.is_served(&csi.driver)
            && let Some(wanted) = finalizers(volume)
        {
            let api: Api<PersistentVolume> = Api::all(self.client.clone());
            let held = wanted.iter().any(|finalizer| finalizer == FINALIZER);
            self.change_finalizers(&api, &volume.name_any(), |known| {
                let others = known.iter().filter(|finalizer| *finalizer != FINALIZER).cloned();
                others.chain(held.then(|| FINALIZER.to_owned())).collect()
            })
            .await?;
        }
        if !is_over(volume, &csi.driver) {
            return Ok(Next::Done);
        }
        let about = object_reference(volume);
        let gone = match self.serve(&csi.driver).await {
            Ok(Some(driver)) if driver.can(proto::CREATE_DELETE) => {
                self.delete(&driver, volume, &csi).await
            }
            Ok(_) => return Ok(Next::Done),
            Err(error) => Err(error),
        };
        if let Err(error) = gone {
            self.events.warning(about, "VolumeFailedDelete", error.to_string());
            return Ok(self.later(key, ""));
        }
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let name = volume.name_any();
        let preconditions = Preconditions { uid: volume.uid(), ..Preconditions::default() };
        let parameters = DeleteParams::default().preconditions(preconditions);
        unless_code(api.delete(&name, &parameters).await, 404)?;
        self.change_finalizers(&api, &name, |known| {
            known.iter().filter(|kept| *kept != FINALIZER).cloned().collect()
        })
        .await?;
        Ok(Next::Done)
    }

    async fn delete(
        &self,
        driver: &Served,
        volume: &PersistentVolume,
        csi: &CSIPersistentVolumeSource,
    ) -> Result<(), Error> {
        let name = volume.name_any();
        let attached = self.attachments.store().find(|attachment| {
            attachment.spec.source.persistent_volume_name.as_deref() == Some(&name)
        });
        if let Some(attached) = attached {
            let node = &attached.spec.node_name;
            return Err(Error::Refused(format!(
                "persistentvolume {name} is still attached to node {node}"
            )));
        }
        let part = |key: &str| volume.annotations().get(key).filter(|v| !v.is_empty()).cloned();
        let secret = part(SECRET_NAME).zip(part(SECRET_NAMESPACE)).map(|(name, namespace)| {
            SecretReference { name: Some(name), namespace: Some(namespace) }
        });
        self.unmake(driver, &csi.volume_handle, secret).await
    }

    /// Writes another set of finalizers at an object, unless it has it, or is gone.
    pub(super) async fn change_finalizers<K>(
        &self,
        api: &Api<K>,
        name: &str,
        change: impl Fn(&[String]) -> Vec<String>,
    ) -> Result<(), Failure>
    where
        K: client::Watched,
    {
        let Some(found) = api.get_opt(name).await? else { return Ok(()) };
        let wanted = change(found.finalizers());
        if wanted == found.finalizers() {
            return Ok(());
        }
        let patch = json!({"metadata": {"finalizers": wanted,
            "resourceVersion": found.resource_version()}});
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        Ok(unless_code(patched, 404)?)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u",
            "annotations": annotations}, "spec": spec}))
        .expect("a claim")
    }

    fn class(more: Value) -> StorageClass {
        let mut class = json!({"metadata": {"name": "k"}, "provisioner": "d"});
        for (key, value) in more.as_object().into_iter().flatten() {
            class[key] = value.clone();
        }
        serde_json::from_value(class).expect("a class")
    }

    #[test]
    fn claims_of_the_driver_wait_for_it_once_a_node_is_chosen() {
        let asked = json!({"volume.kubernetes.io/storage-provisioner": "d"});
        let late = class(json!({"volumeBindingMode": "WaitForFirstConsumer"}));
        let mut chosen = asked.clone();
        chosen[SELECTED_NODE] = json!("m");
        for (annotations, class, want) in [
            (&asked, &class(json!({})), true),
            (&json!({}), &class(json!({})), false),
            (&asked, &late, false),
            (&chosen, &late, true),
            (&asked, &class(json!({"provisioner": "e"})), false),
        ] {
            let claim = claim(annotations.clone(), json!({}));
            assert_eq!(waits(&claim, Some(class)).is_some(), want, "{annotations}");
        }
        assert!(waits(&claim(asked, json!({})), None).is_none());
    }

    #[test]
    fn a_volume_has_upstreams_shape() {
        let claim = claim(
            json!({}),
            json!({"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}),
        );
        let class = class(json!({"reclaimPolicy": "Delete", "mountOptions": ["noatime"]}));
        let parameters = [
            ("csi.storage.k8s.io/provisioner-secret-name", "s"),
            ("csi.storage.k8s.io/provisioner-secret-namespace", "n"),
        ];
        let parameters = parameters.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let parameters = Parameters::read(&parameters, &claim, "pvc-u").expect("good ones");
        let made = MadeVolume {
            volume_id: "h".into(),
            volume_context: [("a".to_owned(), "b".to_owned())].into(),
            ..MadeVolume::default()
        };
        let told = serde_json::to_value(volume(&claim, &class, &parameters, made)).expect("JSON");
        assert_eq!(told["metadata"]["name"], "pvc-u");
        assert_eq!(told["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(
            told["metadata"]["annotations"],
            json!({PROVISIONED_BY: "d", SECRET_NAME: "s", SECRET_NAMESPACE: "n"})
        );
        assert_eq!(told["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!(
            told["spec"]["csi"],
            json!({"driver": "d", "volumeHandle": "h", "volumeAttributes": {"a": "b"}})
        );
        assert_eq!(told["spec"]["claimRef"]["name"], "c");
    }

    #[test]
    fn released_volumes_go_when_their_class_said_so() {
        for (by, policy, phase, ends, finalizers, want) in [
            ("d", "Delete", "Released", false, json!([FINALIZER]), true),
            ("d", "Delete", "Released", true, json!([FINALIZER]), true),
            ("d", "Delete", "Released", true, json!(["other"]), false),
            ("d", "Retain", "Released", false, json!([]), false),
            ("d", "Delete", "Bound", false, json!([FINALIZER]), false),
            ("e", "Delete", "Released", false, json!([]), false),
        ] {
            let ends = ends.then_some("2026-01-01T00:00:00Z");
            let volume = serde_json::from_value(json!({"metadata": {"name": "v",
                "annotations": {PROVISIONED_BY: by}, "finalizers": finalizers,
                "deletionTimestamp": ends},
                "spec": {"persistentVolumeReclaimPolicy": policy}, "status": {"phase": phase}}))
            .expect("a volume");
            assert_eq!(is_over(&volume, "d"), want, "{by} {policy} {phase} {ends:?}");
        }
    }

    #[test]
    fn only_claims_are_cloned() {
        let of = |value: Value| source(&claim(json!({}), json!({"dataSource": value})));
        assert_eq!(of(json!({"kind": "PersistentVolumeClaim", "name": "a"})), Ok(Some("a".into())));
        let snapshot =
            json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "a"});
        assert!(matches!(of(snapshot), Err(Some(_))));
        assert_eq!(of(json!({"apiGroup": "x.org", "kind": "Fill", "name": "a"})), Err(None));
        assert_eq!(of(Value::Null), Ok(None));
    }
}
