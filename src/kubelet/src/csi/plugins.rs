//! Which drivers have registered: sockets in the folder `plugins_registry`, the node's CSINode, annotation and
//! labels.
//!
//! Source of behaviour: `pkg/kubelet/pluginmanager`, `pkg/volume/csi/nodeinfomanager`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::place::Places;
use crate::context::Context;
use plugin::Driver;
use plugin::call::{Error, Plugin};
use plugin::device;
use plugin::proto::{Empty, NodeInfo, PluginInfo, RegistrationStatus};

/// How often the folder is read. A watch would cost one of the user's few inotify instances.
const PERIOD: Duration = Duration::from_secs(2);
const NODE_ID: &str = "csi.volume.kubernetes.io/nodeid";

/// A plugin that has registered, by what it has.
#[derive(Debug)]
enum Known {
    Volumes(String),
    Devices,
    Claims(String),
}

/// Watches the folder until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let folder = context.root_dir.join("plugins_registry");
    if let Err(error) = std::fs::create_dir_all(&folder)
        .and_then(|()| std::fs::create_dir_all(context.root_dir.join("plugins")))
    {
        tracing::warn!(%error, "no CSI driver can register");
        return;
    }
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut known: HashMap<PathBuf, Known> = HashMap::new();
    let mut told = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let sockets = sockets(&folder);
        known.retain(|path, plugin| {
            let there = sockets.contains(path);
            if !there {
                tracing::info!(?plugin, "a plugin is gone");
                match plugin {
                    Known::Volumes(name) => context.drivers.remove(name),
                    Known::Claims(name) => context.claims.lose(name),
                    // It is listened to, and tells of its end itself.
                    Known::Devices => {}
                }
            }
            there
        });
        for path in
            sockets.iter().filter(|path| !known.contains_key(*path)).cloned().collect::<Vec<_>>()
        {
            match register(&context, &path).await {
                Ok(Some(plugin)) => {
                    tracing::info!(?plugin, "a plugin has registered");
                    known.insert(path, plugin);
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(socket = %path.display(), %error, "a plugin has not registered");
                }
            }
        }
        let drivers = context.drivers.all();
        if told.as_ref() != Some(&drivers) {
            match tell(&context, &drivers).await {
                Ok(()) => told = Some(drivers),
                Err(error) => tracing::debug!(%error, "CSINode not told, trying again"),
            }
        }
    }
}

fn sockets(folder: &Path) -> Vec<PathBuf> {
    use std::os::unix::fs::FileTypeExt as _;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let socket = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|t| t.is_socket());
    entries.filter(socket).map(|entry| entry.path()).collect()
}

/// Asks a plugin who it is, and takes it in if it is of a kind that is known here.
async fn register(context: &Arc<Context>, socket: &Path) -> Result<Option<Known>, Error> {
    let registrar = Plugin::connect(socket).await?;
    let info: PluginInfo =
        registrar.call("/pluginregistration.Registration/GetInfo", Empty {}).await?;
    let path = if info.endpoint.is_empty() {
        socket.to_owned()
    } else {
        Places::of(context).inside(Path::new(&info.endpoint))
    };
    let name = info.name.clone();
    let outcome = match info.r#type.as_str() {
        "CSIPlugin" => take_driver(context, &info, path).await.map(|()| Known::Volumes(name)),
        "DRAPlugin" => context
            .claims
            .register(&info.name, path, &info.supported_versions)
            .map(|()| Known::Claims(name)),
        "DevicePlugin" if info.supported_versions.iter().any(|v| v == device::VERSION) => {
            crate::device::follow(context, info.name.clone(), path, None);
            Ok(Known::Devices)
        }
        other => Err(format!(
            "plugins of type {other:?} in versions {:?} are not supported by this node",
            info.supported_versions
        )),
    };
    let status = RegistrationStatus {
        plugin_registered: outcome.is_ok(),
        error: outcome.as_ref().err().cloned().unwrap_or_default(),
    };
    let _: Empty =
        registrar.call("/pluginregistration.Registration/NotifyRegistrationStatus", status).await?;
    match outcome {
        Ok(plugin) => Ok(Some(plugin)),
        Err(reason) => {
            tracing::warn!(plugin = info.name, reason, "a plugin is not used");
            Ok(None)
        }
    }
}

/// Takes in a CSI driver.
async fn take_driver(context: &Context, info: &PluginInfo, path: PathBuf) -> Result<(), String> {
    if !info.supported_versions.iter().any(|v| v.trim_start_matches('v').starts_with("1.")) {
        return Err(format!("CSI driver {} speaks no version of CSI 1", info.name));
    }
    let driver = Plugin::connect(&path).await.map_err(|e| e.to_string())?;
    let of_node: NodeInfo =
        driver.call("/csi.v1.Node/NodeGetInfo", Empty {}).await.map_err(|e| e.to_string())?;
    if of_node.node_id.is_empty() {
        return Err("the driver names no node".to_owned());
    }
    context.drivers.insert(info.name.clone(), Driver { endpoint: path, info: of_node });
    Ok(())
}

/// Tells the API which drivers the node has.
async fn tell(context: &Context, drivers: &BTreeMap<String, Driver>) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let node = nodes.get(&context.node_name).await?;
    let wanted = drivers.iter().map(|(name, driver)| {
        let mut keys: Vec<String> = segments(driver).keys().cloned().collect();
        keys.sort();
        CSINodeDriver {
            name: name.clone(),
            node_id: driver.info.node_id.clone(),
            topology_keys: (!keys.is_empty()).then_some(keys),
            allocatable: (driver.info.max_volumes_per_node > 0).then(|| VolumeNodeResources {
                count: i32::try_from(driver.info.max_volumes_per_node).ok(),
            }),
        }
    });
    let spec = CSINodeSpec { drivers: wanted.collect() };
    let api: Api<CSINode> = Api::all(context.client.clone());
    if let Some(mut found) = api.get_opt(&context.node_name).await? {
        // What is said of a driver does not change, so all of them are replaced.
        if found.spec != spec {
            found.spec = spec;
            api.replace(&context.node_name, &PostParams::default(), &found).await?;
        }
    } else {
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: context.node_name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        let metadata = ObjectMeta {
            name: Some(context.node_name.clone()),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        };
        api.create(&PostParams::default(), &CSINode { metadata, spec }).await?;
    }
    let ids: BTreeMap<&String, &String> =
        drivers.iter().map(|(n, d)| (n, &d.info.node_id)).collect();
    let annotation = if ids.is_empty() { json!(null) } else { json!(json!(ids).to_string()) };
    let labels: HashMap<String, String> = drivers.values().flat_map(segments).collect();
    let body = json!({"metadata": {"annotations": {NODE_ID: annotation}, "labels": labels}});
    nodes.patch(&context.node_name, &PatchParams::default(), &Patch::Merge(body)).await?;
    Ok(())
}

fn segments(driver: &Driver) -> HashMap<String, String> {
    driver.info.accessible_topology.clone().unwrap_or_default().segments
}
