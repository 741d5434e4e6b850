//! What the sidecars external-provisioner, external-attacher and external-resizer do beside a CSI driver, for
//! drivers of this node that say so: their CSIDriver has the annotation [`SERVED_BY`] with the node's name. Where
//! it is absent a driver brings its own sidecars, and nothing here touches its objects.
//!
//! Source of behaviour: `kubernetes-csi/external-provisioner`, `external-attacher`, `external-resizer`,
//! `sig-storage-lib-external-provisioner`. Snapshots and modifying volumes stay with sidecars.

mod attach;
mod capacity;
mod parameters;
mod provision;
mod resize;
mod topology;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use client::{Informer, Informers, Recorder};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Node, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Secret, SecretReference,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass, VolumeAttachment};
use kube::{Api, Client, ResourceExt};
use plugin::call::{self, Plugin};
use plugin::proto::{
    self, AccessMode, ControllerCapabilities, Empty, MountVolume, PluginCapabilities,
    VolumeCapability,
};
use tokio_util::sync::CancellationToken;

use crate::ownership;
use crate::queue::{self, Failure, Next};
use crate::touched;

/// Names, at a CSIDriver, the node whose socket of the driver is asked to make, attach and enlarge volumes.
pub const SERVED_BY: &str = "rootlet.dev/csi-controller";
/// How often it is asked what room there is.
const CAPACITY_PERIOD: Duration = Duration::from_mins(1);
/// First and longest wait after a failure, as the sidecars have it.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_mins(5);

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(String, String),
    Volume(String),
    Attachment(String),
    Capacity,
}

/// What a driver cannot be asked, or refused.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Call(#[from] call::Error),
    #[error("error getting secret {name} in namespace {namespace}: {reason}")]
    Secret { name: String, namespace: String, reason: String },
    #[error(transparent)]
    Parameters(#[from] parameters::Error),
    #[error(transparent)]
    Topology(#[from] topology::Error),
    #[error("{0}")]
    Refused(String),
}

impl Error {
    fn code(&self) -> Option<call::Code> {
        match self {
            Self::Call(call::Error::Refused { code, .. }) => Some(*code),
            _ => None,
        }
    }
}

/// A driver that is served here, and what it can do.
struct Served {
    name: String,
    plugin: Plugin,
    /// Its controller's capabilities, by number.
    controller: Vec<i32>,
    /// Whether its volumes are not to be had everywhere.
    constrained: bool,
}

impl Served {
    fn can(&self, capability: i32) -> bool {
        self.controller.contains(&capability)
    }

    /// How a volume of these access modes is used, each mode by itself.
    fn mode(&self, mode: &str) -> i32 {
        let writers = self.can(proto::SINGLE_NODE_MULTI_WRITER);
        match mode {
            "ReadWriteMany" => 5,
            "ReadOnlyMany" => 3,
            "ReadWriteOncePod" if writers => 6,
            _ if writers => 7,
            _ => 1,
        }
    }

    /// How the volume is used, in the widest of its access modes.
    fn capability(&self, spec: &PersistentVolumeSpec) -> VolumeCapability {
        let modes = spec.access_modes.iter().flatten();
        let order = |mode: &&String| match mode.as_str() {
            "ReadWriteMany" => 0,
            "ReadOnlyMany" => 1,
            _ => 2,
        };
        let mode = modes.min_by_key(order).map_or("ReadWriteOnce", String::as_str);
        let fs_type = spec.csi.as_ref().and_then(|csi| csi.fs_type.clone());
        usage(
            spec.volume_mode.as_deref() == Some("Block"),
            fs_type.unwrap_or_default(),
            spec.mount_options.clone().unwrap_or_default(),
            self.mode(mode),
        )
    }
}

fn usage(block: bool, fs_type: String, mount_flags: Vec<String>, mode: i32) -> VolumeCapability {
    let mount = MountVolume { fs_type, mount_flags, volume_mount_group: String::new() };
    VolumeCapability {
        block: block.then_some(Empty {}),
        mount: (!block).then_some(mount),
        access_mode: Some(AccessMode { mode }),
    }
}

/// A failure.
struct Failed {
    /// What was asked for.
    wish: String,
    /// How often in a row.
    count: u32,
    /// When to try again.
    again: Instant,
}

struct Controller {
    client: Client,
    node: String,
    registered: Arc<plugin::Drivers>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    attachments: Informer<VolumeAttachment>,
    drivers: Informer<CSIDriver>,
    nodes: Informer<Node>,
    csi_nodes: Informer<CSINode>,
    events: Recorder,
    /// What has failed.
    failures: Mutex<HashMap<Key, Failed>>,
}

impl Controller {
    /// Whether this node is named as the one to ask.
    fn is_served(&self, driver: &str) -> bool {
        let about = self.drivers.get("", driver);
        about.is_some_and(|driver| driver.annotations().get(SERVED_BY) == Some(&self.node))
    }

    /// The driver, when it is served here and has a controller.
    async fn serve(&self, name: &str) -> Result<Option<Served>, Error> {
        let registered = self.registered.endpoint(name).filter(|_| self.is_served(name));
        let Some(endpoint) = registered else { return Ok(None) };
        let plugin = Plugin::connect(&endpoint).await?;
        let of_plugin: PluginCapabilities =
            plugin.call("/csi.v1.Identity/GetPluginCapabilities", Empty {}).await?;
        let services: Vec<i32> = of_plugin
            .capabilities
            .iter()
            .filter_map(|capability| Some(capability.service.as_ref()?.r#type))
            .collect();
        if !services.contains(&proto::CONTROLLER_SERVICE) {
            return Ok(None);
        }
        let of_controller: ControllerCapabilities =
            plugin.call("/csi.v1.Controller/ControllerGetCapabilities", Empty {}).await?;
        let controller = of_controller.capabilities.into_iter();
        Ok(Some(Served {
            name: name.to_owned(),
            plugin,
            controller: controller.filter_map(|known| Some(known.rpc?.r#type)).collect(),
            constrained: services.contains(&proto::ACCESSIBILITY_CONSTRAINTS),
        }))
    }

    async fn secrets(
        &self,
        reference: Option<&SecretReference>,
    ) -> Result<HashMap<String, String>, Error> {
        let Some(reference) = reference else { return Ok(HashMap::new()) };
        let name = reference.name.clone().unwrap_or_default();
        let namespace = reference.namespace.clone().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &namespace);
        let secret = api.get(&name).await.map_err(|error| Error::Secret {
            name,
            namespace,
            reason: crate::pods::text(&error),
        })?;
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data.map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect())
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<Key, Failed>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When to try again what has failed once more; `wish` is what was asked for.
    fn later(&self, key: &Key, wish: &str) -> Next {
        let mut failures = self.failures();
        let known = failures.remove(key).filter(|known| known.wish == wish);
        let count = known.map_or(0, |known| known.count);
        let wait = RETRY_MIN.saturating_mul(1 << count.min(20)).min(RETRY_MAX);
        let again = Instant::now() + wait;
        failures.insert(key.clone(), Failed { wish: wish.to_owned(), count: count + 1, again });
        Next::After(wait)
    }

    /// How long what has failed waits yet: that the failure is written down at the object is no reason to try again,
    /// another wish is.
    fn held_back(&self, key: &Key, wish: &str) -> Option<Next> {
        let failures = self.failures();
        let known = failures.get(key).filter(|known| known.wish == wish)?;
        let left = known.again.checked_duration_since(Instant::now())?;
        Some(Next::After(left))
    }

    async fn sync(&self, key: Key) -> Result<Next, Failure> {
        let next = match &key {
            Key::Claim(namespace, name) => match self.claims.get(namespace, name) {
                Some(claim) => self.sync_claim(&key, &claim).await?,
                None => Next::Done,
            },
            Key::Volume(name) => match self.volumes.get("", name) {
                Some(volume) => self.sync_volume(&key, &volume).await?,
                None => Next::Done,
            },
            Key::Attachment(name) => match self.attachments.get("", name) {
                Some(attachment) => self.sync_attachment(&key, &attachment).await?,
                None => Next::Done,
            },
            Key::Capacity => self.sync_capacity().await?,
        };
        if next == Next::Done {
            self.failures().remove(&key);
        }
        Ok(next)
    }

    async fn sync_claim(&self, key: &Key, claim: &PersistentVolumeClaim) -> Result<Next, Failure> {
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        match named.filter(|name| !name.is_empty()) {
            None => self.provision(key, claim).await,
            Some(name) => match self.volumes.get("", name) {
                Some(volume) => self.resize(key, claim, &volume).await,
                None => Ok(Next::Done),
            },
        }
    }

    /// Everything there is: a driver has come.
    fn all(&self) -> Vec<Key> {
        let claims = self.claims.store().state();
        let mut keys: Vec<Key> = claims.iter().map(|claim| of_claim(claim)).collect();
        keys.extend(self.volumes.store().state().iter().map(|v| Key::Volume(v.name_any())));
        let attachments = self.attachments.store().state();
        keys.extend(attachments.iter().map(|known| Key::Attachment(known.name_any())));
        keys.push(Key::Capacity);
        keys
    }
}

fn of_claim(claim: &PersistentVolumeClaim) -> Key {
    let (namespace, name) = ownership::key(claim);
    Key::Claim(namespace, name)
}

fn of_volume(volume: &PersistentVolume) -> Vec<Key> {
    let mut keys = vec![Key::Volume(volume.name_any())];
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.clone());
    keys.extend(reference.map(|claim| {
        Key::Claim(claim.namespace.unwrap_or_default(), claim.name.unwrap_or_default())
    }));
    keys
}

fn of_attachment(attachment: &VolumeAttachment) -> Vec<Key> {
    let volume = attachment.spec.source.persistent_volume_name.clone();
    let mut keys = vec![Key::Attachment(attachment.name_any())];
    // A volume whose last attachment goes may go, too.
    keys.extend(volume.map(Key::Volume));
    keys
}

/// The controller, once all that it looks at is known.
async fn set_up(
    client: Client,
    informers: &Informers,
    node: String,
    registered: Arc<plugin::Drivers>,
) -> Arc<Controller> {
    let controller = Arc::new(Controller {
        claims: informers.get(),
        volumes: informers.get(),
        classes: informers.get(),
        attachments: informers.get(),
        drivers: informers.get(),
        nodes: informers.get(),
        csi_nodes: informers.get(),
        events: Recorder::new(client.clone(), "csi-controller", &node),
        failures: Mutex::default(),
        client,
        node,
        registered,
    });
    tokio::join!(
        controller.claims.ready(),
        controller.volumes.ready(),
        controller.classes.ready(),
        controller.attachments.ready(),
        controller.drivers.ready(),
        controller.nodes.ready(),
        controller.csi_nodes.ready(),
    );
    controller
}

/// Runs until `shutdown`, for drivers that register on the node with this name.
pub async fn run(
    client: Client,
    informers: Informers,
    node: String,
    registered: Arc<plugin::Drivers>,
    shutdown: CancellationToken,
) {
    let mut arrivals = registered.subscribe();
    // Nodes without drivers watch nothing for them.
    while registered.all().is_empty() {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = arrivals.changed() => if changed.is_err() { return },
        }
    }
    let controller = set_up(client, &informers, node, registered).await;
    let everything = {
        let controller = controller.clone();
        move |_: &CSIDriver| controller.all()
    };
    let of_node = {
        let controller = controller.clone();
        move |_: &CSINode| controller.all()
    };
    let of_class = |_: &StorageClass| vec![Key::Capacity];
    let objects = futures::stream::select(
        futures::stream::select(
            touched(&controller.claims, |claim| vec![of_claim(claim)]),
            touched(&controller.volumes, of_volume),
        ),
        futures::stream::select(
            touched(&controller.attachments, of_attachment),
            futures::stream::select(
                touched(&controller.drivers, everything),
                futures::stream::select(
                    touched(&controller.csi_nodes, of_node),
                    touched(&controller.classes, of_class),
                ),
            ),
        ),
    );
    let registrations = {
        let controller = controller.clone();
        futures::stream::unfold(arrivals, |mut arrivals| async {
            arrivals.changed().await.ok()?;
            Some(((), arrivals))
        })
        .map(move |()| {
            // A driver that is back is asked at once.
            controller.failures().clear();
            controller.all()
        })
    };
    let changes = futures::stream::select(objects, Box::pin(registrations));
    let worker = controller.clone();
    queue::run("csi-controller", changes, shutdown, move |key| {
        let controller = worker.clone();
        Box::pin(async move { Box::pin(controller.sync(key)).await })
    })
    .await;
}
