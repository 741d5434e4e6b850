//! Volumes of CSI drivers: staged on the node, published to the pod, taken back after it.
//!
//! Attaching is the controllers' and the driver's sidecars' part; the node waits for the VolumeAttachment.
//!
//! Source of behaviour: `pkg/volume/csi`, the Container Storage Interface specification.

mod expand;
pub(crate) mod place;
mod plugins;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolumeSpec, Pod, SecretReference,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec, VolumeAttachment};
use kube::Api;
use serde::{Deserialize, Serialize};

use plugin::Plugin;

use crate::context::Context;
use crate::{pod, volumes};
use plugin::proto::{
    self, AccessMode, Empty, MountVolume, NodeCapabilities, Publish, Stage, Undo, VolumeCapability,
};

pub use expand::{Growth, expand};
pub use place::Places;
pub use plugin::Drivers;
pub use plugins::run;

/// What says of a published volume whose it is.
const DATA: &str = "vol_data.json";

/// Why a driver's volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver has not registered on this node.
    #[error(
        "kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name {0} not found in the list of registered CSI drivers"
    )]
    NoDriver(String),
    /// The driver refused.
    #[error("kubernetes.io/csi: {0}")]
    Call(#[from] plugin::call::Error),
    /// The API server did not answer as needed.
    #[error("failed to fetch {what}: {}", crate::api::text(source))]
    Fetch {
        /// The object.
        what: String,
        /// Why.
        source: kube::Error,
    },
    /// A secret the volume needs is not there.
    #[error("kubernetes.io/csi: failed to find the secret {name} in the namespace {namespace}")]
    NoSecret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The volume is to be attached first, and is not.
    #[error("kubernetes.io/csi: attachment for {0} is not ready")]
    NotAttached(String),
    /// A folder cannot be used.
    #[error("kubernetes.io/csi: {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The driver is not for volumes of this kind.
    #[error(
        "kubernetes.io/csi: volume mode \"Ephemeral\" not supported by driver {0} (only supports {1:?})"
    )]
    Mode(String, Vec<String>),
}

/// A volume of a driver, wherever it was described.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    driver: String,
    handle: String,
    /// The persistent volume's name, or the volume's in the pod.
    spec_name: String,
    read_only: bool,
    fs_type: String,
    attributes: BTreeMap<String, String>,
    stage_secret: Option<SecretReference>,
    publish_secret: Option<SecretReference>,
    expand_secret: Option<SecretReference>,
    access_mode: i32,
    mount_options: Vec<String>,
    block: bool,
    ephemeral: bool,
}

impl Volume {
    /// The volume of a claim.
    pub fn persistent(
        name: &str,
        spec: &PersistentVolumeSpec,
        source: &CSIPersistentVolumeSource,
    ) -> Self {
        let mode = spec.access_modes.iter().flatten().next().map(String::as_str);
        Self {
            driver: source.driver.clone(),
            handle: source.volume_handle.clone(),
            spec_name: name.to_owned(),
            read_only: source.read_only.unwrap_or(false),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            stage_secret: source.node_stage_secret_ref.clone(),
            publish_secret: source.node_publish_secret_ref.clone(),
            expand_secret: source.node_expand_secret_ref.clone(),
            access_mode: match mode {
                Some("ReadOnlyMany") => 3,
                Some("ReadWriteMany") => 5,
                _ => 1,
            },
            mount_options: spec.mount_options.clone().unwrap_or_default(),
            block: spec.volume_mode.as_deref() == Some("Block"),
            ephemeral: false,
        }
    }

    /// A volume that lives and ends with its pod.
    pub fn inline(of: &Pod, name: &str, source: &CSIVolumeSource) -> Self {
        let parts = [pod::namespace(of), pod::name(of), pod::uid(of), name];
        Self {
            driver: source.driver.clone(),
            handle: format!("csi-{}", place::hex(&parts)),
            spec_name: name.to_owned(),
            read_only: source.read_only.unwrap_or(false),
            fs_type: source.fs_type.clone().unwrap_or_default(),
            attributes: source.volume_attributes.clone().unwrap_or_default(),
            publish_secret: source.node_publish_secret_ref.as_ref().map(|r| SecretReference {
                name: Some(r.name.clone()),
                namespace: Some(pod::namespace(of).to_owned()),
            }),
            access_mode: 1,
            ephemeral: true,
            ..Self::default()
        }
    }

    fn capability(&self, group: Option<u32>) -> VolumeCapability {
        let mount = || MountVolume {
            fs_type: self.fs_type.clone(),
            mount_flags: self.mount_options.clone(),
            volume_mount_group: group.map(|gid| gid.to_string()).unwrap_or_default(),
        };
        VolumeCapability {
            block: self.block.then(Empty::default),
            mount: (!self.block).then(mount),
            access_mode: Some(AccessMode { mode: self.access_mode }),
        }
    }

    /// Whether the kubelet gives the volume's files to the pod's group.
    fn takes_group(&self, driver: &CSIDriverSpec) -> bool {
        match driver.fs_group_policy.as_deref() {
            Some("File") => true,
            Some("None") => false,
            // By default what has a file system and one writer.
            _ => !self.fs_type.is_empty() && self.access_mode == 1 && !self.read_only,
        }
    }
}

/// What is kept beside a published volume.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    driver_name: String,
    volume_handle: String,
    #[serde(rename = "specVolID")]
    spec_name: String,
    #[serde(default)]
    block: bool,
    #[serde(default)]
    ephemeral: bool,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}

/// A volume that its pod can use.
pub struct Published {
    /// Where it is.
    pub path: PathBuf,
    /// Whether the driver wants to be asked again from time to time, to bring its content up to date.
    pub again: bool,
}

/// Brings the volume to the pod.
pub async fn publish(context: &Context, of: &Pod, volume: &Volume) -> Result<Published, Error> {
    let endpoint = context.drivers.endpoint(&volume.driver);
    let endpoint = endpoint.ok_or_else(|| Error::NoDriver(volume.driver.clone()))?;
    let about = describe(context, &volume.driver).await?;
    if volume.ephemeral {
        let modes =
            about.volume_lifecycle_modes.clone().unwrap_or_else(|| vec!["Persistent".into()]);
        if !modes.iter().any(|mode| mode == "Ephemeral") {
            return Err(Error::Mode(volume.driver.clone(), modes));
        }
    }
    let publish_context = attachment(context, volume, &about).await?;
    let plugin = Plugin::connect(&endpoint).await?;
    let capabilities: NodeCapabilities =
        plugin.call("/csi.v1.Node/NodeGetCapabilities", Empty {}).await?;
    let can = |kind: i32| {
        capabilities.capabilities.iter().any(|c| c.rpc.as_ref().is_some_and(|r| r.r#type == kind))
    };
    let group = volumes::fs_group(of);
    let capability = volume.capability(group.filter(|_| can(proto::MOUNT_GROUP)));
    let _one_at_a_time = context.staging.lock().await;
    let places = Places::of(context);
    let mut staged = String::new();
    if can(proto::STAGE) && !volume.ephemeral {
        let path = places.staging(&volume.driver, &volume.handle);
        staged = places.outside(&path);
        stage(context, of, volume, &plugin, &path, &capability, &publish_context).await?;
    }
    let folder = places.volume(pod::uid(of), &volume.spec_name);
    let target = folder.join(if volume.block { "device" } else { "mount" });
    std::fs::create_dir_all(&folder).map_err(io(&folder))?;
    let kept = Kept {
        driver_name: volume.driver.clone(),
        volume_handle: volume.handle.clone(),
        spec_name: volume.spec_name.clone(),
        block: volume.block,
        ephemeral: volume.ephemeral,
    };
    let data = folder.join(DATA);
    let text = serde_json::to_vec(&kept).unwrap_or_default();
    std::fs::write(&data, text).map_err(io(&data))?;
    let mut volume_context: HashMap<String, String> =
        volume.attributes.clone().into_iter().collect();
    volume_context.extend(of_pod(context, of, volume, &about).await?);
    let request = Publish {
        volume_id: volume.handle.clone(),
        publish_context,
        staging_target_path: staged,
        target_path: places.outside(&target),
        volume_capability: Some(capability),
        readonly: volume.read_only,
        secrets: secrets(context, of, volume.publish_secret.as_ref()).await?,
        volume_context,
    };
    let _: Empty = plugin.call("/csi.v1.Node/NodePublishVolume", request).await?;
    if let Some(gid) = group.filter(|_| volume.takes_group(&about) && !can(proto::MOUNT_GROUP)) {
        let (path, always) = (target.clone(), volumes::changes_always(of));
        let owned = tokio::task::spawn_blocking(move || volumes::own_all(&path, gid, always)).await;
        owned.unwrap_or_else(|e| Err(std::io::Error::other(e))).map_err(io(&target))?;
    }
    Ok(Published { path: target, again: about.requires_republish == Some(true) })
}

async fn stage(
    context: &Context,
    of: &Pod,
    volume: &Volume,
    plugin: &Plugin,
    path: &Path,
    capability: &VolumeCapability,
    publish_context: &HashMap<String, String>,
) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(io(path))?;
    let request = Stage {
        volume_id: volume.handle.clone(),
        publish_context: publish_context.clone(),
        staging_target_path: Places::of(context).outside(path),
        volume_capability: Some(capability.clone()),
        secrets: secrets(context, of, volume.stage_secret.as_ref()).await?,
        volume_context: volume.attributes.clone().into_iter().collect(),
    };
    // Staging what is staged does nothing, says the specification.
    let _: Empty = plugin.call("/csi.v1.Node/NodeStageVolume", request).await?;
    Ok(())
}

async fn describe(context: &Context, driver: &str) -> Result<CSIDriverSpec, Error> {
    let api: Api<CSIDriver> = Api::all(context.client.clone());
    let found = api.get_opt(driver).await;
    let found =
        found.map_err(|source| Error::Fetch { what: format!("CSIDriver {driver:?}"), source })?;
    Ok(found.map(|d| d.spec).unwrap_or_default())
}

/// What attaching the volume has told; an error until it is attached.
async fn attachment(
    context: &Context,
    volume: &Volume,
    about: &CSIDriverSpec,
) -> Result<HashMap<String, String>, Error> {
    if volume.ephemeral || about.attach_required == Some(false) {
        return Ok(HashMap::new());
    }
    let name = format!("csi-{}", place::hex(&[&volume.handle, &volume.driver, &context.node_name]));
    let api: Api<VolumeAttachment> = Api::all(context.client.clone());
    let found = api.get_opt(&name).await;
    let found = found
        .map_err(|source| Error::Fetch { what: format!("volumeattachment {name:?}"), source })?;
    let status = found.and_then(|a| a.status).filter(|s| s.attached);
    let status = status.ok_or_else(|| Error::NotAttached(volume.spec_name.clone()))?;
    Ok(status.attachment_metadata.unwrap_or_default().into_iter().collect())
}

/// What the driver wants to know of the pod.
async fn of_pod(
    context: &Context,
    of: &Pod,
    volume: &Volume,
    about: &CSIDriverSpec,
) -> Result<HashMap<String, String>, Error> {
    let mut out = HashMap::new();
    let account = of.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    if about.pod_info_on_mount == Some(true) {
        for (key, value) in [
            ("pod.name", pod::name(of).to_owned()),
            ("pod.namespace", pod::namespace(of).to_owned()),
            ("pod.uid", pod::uid(of).to_owned()),
            ("serviceAccount.name", account),
            ("ephemeral", volume.ephemeral.to_string()),
        ] {
            out.insert(format!("csi.storage.k8s.io/{key}"), value);
        }
    }
    let wanted = about.token_requests.as_deref().unwrap_or_default();
    let mut tokens = serde_json::Map::new();
    for request in wanted {
        let audience = Some(request.audience.as_str()).filter(|a| !a.is_empty());
        let seconds = request.expiration_seconds.unwrap_or(3600);
        let now = context.clock.now();
        let token = context.tokens.get(of, audience, seconds, now).await;
        let token = token.map_err(|source| Error::Fetch { what: "token".into(), source })?;
        let expires = now + jiff::SignedDuration::from_secs(seconds);
        tokens.insert(
            request.audience.clone(),
            serde_json::json!({"token": token.token, "expirationTimestamp": expires}),
        );
    }
    if !tokens.is_empty() {
        let text = serde_json::Value::Object(tokens).to_string();
        out.insert("csi.storage.k8s.io/serviceAccount.tokens".into(), text);
    }
    Ok(out)
}

async fn secrets(
    context: &Context,
    of: &Pod,
    reference: Option<&SecretReference>,
) -> Result<HashMap<String, String>, Error> {
    let Some(reference) = reference else { return Ok(HashMap::new()) };
    let name = reference.name.clone().unwrap_or_default();
    let namespace = reference.namespace.clone().unwrap_or_default();
    let found = context.objects.secrets.get(&namespace, &name, pod::uid(of)).await;
    let what = format!("secret {namespace}/{name}");
    let found = found.map_err(|source| Error::Fetch { what, source })?;
    let secret = found.ok_or(Error::NoSecret { namespace, name })?;
    let data = secret.data.iter().flatten();
    Ok(data.map(|(k, v)| (k.clone(), String::from_utf8_lossy(&v.0).into_owned())).collect())
}

fn kept(root: &Path, uid: &str) -> Vec<(PathBuf, Kept)> {
    let folder = volumes::directory(root, uid).join("volumes/kubernetes.io~csi");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let read = |path: PathBuf| {
        let kept = serde_json::from_slice(&std::fs::read(path.join(DATA)).ok()?).ok()?;
        Some((path, kept))
    };
    entries.filter_map(|entry| read(entry.path())).collect()
}

/// Gives back all volumes of the pod with this uid; those nobody uses any more are unstaged.
pub async fn give_back(context: &Context, uid: &str) -> Result<(), Error> {
    let places = Places::of(context);
    for (folder, volume) in kept(&context.root_dir, uid) {
        let endpoint = context.drivers.endpoint(&volume.driver_name);
        let endpoint = endpoint.ok_or_else(|| Error::NoDriver(volume.driver_name.clone()))?;
        let plugin = Plugin::connect(&endpoint).await?;
        let target = folder.join(if volume.block { "device" } else { "mount" });
        let _one_at_a_time = context.staging.lock().await;
        let request =
            Undo { volume_id: volume.volume_handle.clone(), path: places.outside(&target) };
        let _: Empty = plugin.call("/csi.v1.Node/NodeUnpublishVolume", request).await?;
        // The driver removes it; what is left is an empty folder, or the driver's fault.
        let _ = std::fs::remove_dir(&target);
        let data = folder.join(DATA);
        std::fs::remove_file(&data).map_err(io(&data))?;
        std::fs::remove_dir(&folder).map_err(io(&folder))?;
        unstage(context, &plugin, &volume).await?;
    }
    Ok(())
}

async fn unstage(context: &Context, plugin: &Plugin, volume: &Kept) -> Result<(), Error> {
    let staged = Places::of(context).staging(&volume.driver_name, &volume.volume_handle);
    if !staged.exists() || in_use(&context.root_dir, volume) {
        return Ok(());
    }
    let path = Places::of(context).outside(&staged);
    let request = Undo { volume_id: volume.volume_handle.clone(), path };
    let _: Empty = plugin.call("/csi.v1.Node/NodeUnstageVolume", request).await?;
    let _ = std::fs::remove_dir(&staged);
    if let Some(parent) = staged.parent() {
        let _ = std::fs::remove_dir(parent);
    }
    Ok(())
}

fn in_use(root: &Path, volume: &Kept) -> bool {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let same = |other: &(PathBuf, Kept)| {
        other.1.driver_name == volume.driver_name && other.1.volume_handle == volume.volume_handle
    };
    pods.map(|entry| entry.file_name().to_string_lossy().into_owned())
        .any(|uid| kept(root, &uid).iter().any(same))
}

/// The volumes that pods hold, as the node tells them: what is in use is not detached.
pub fn held(root: &Path) -> Vec<String> {
    let pods = std::fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let all = pods.flat_map(|entry| kept(root, &entry.file_name().to_string_lossy()));
    let names = all.filter(|(_, volume)| !volume.ephemeral).map(|(_, volume)| {
        format!("kubernetes.io/csi/{}^{}", volume.driver_name, volume.volume_handle)
    });
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// Whether the pod with this uid still holds volumes of drivers.
pub fn holds(root: &Path, uid: &str) -> bool {
    !kept(root, uid).is_empty()
}
