//! Who has which device, on disk: containers outlive the kubelet, and their devices are theirs all the time.
//!
//! Source of shape: `pkg/kubelet/cm/devicemanager/checkpoint`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use plugin::device::Edits;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::{Given, Key, State};

const FILE: &str = "kubelet_internal_checkpoint";
/// The only NUMA node told apart here.
const NODE: &str = "-1";

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Data,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Data {
    pod_device_entries: Vec<Entry>,
    registered_devices: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "PodUID")]
    pod_uid: String,
    container_name: String,
    resource_name: String,
    #[serde(rename = "DeviceIDs")]
    device_ids: BTreeMap<String, Vec<String>>,
    alloc_resp: String,
}

/// What was written down.
pub struct Kept {
    pub given: BTreeMap<Key, Given>,
    pub registered: BTreeMap<String, Vec<String>>,
}

/// Reads it; a file that is not readable is none.
pub fn read(folder: &Path) -> Option<Kept> {
    let file: File = serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()?;
    let entries = file.data.pod_device_entries.into_iter();
    let given = entries.filter_map(|entry| {
        let edits = Edits::decode(STANDARD.decode(entry.alloc_resp).ok()?.as_slice()).ok()?;
        let devices: BTreeSet<String> = entry.device_ids.into_values().flatten().collect();
        let key = (entry.pod_uid, entry.container_name, entry.resource_name);
        Some((key, Given { devices, edits }))
    });
    Some(Kept { given: given.collect(), registered: file.data.registered_devices })
}

/// Writes it, as a whole or not at all.
pub fn write(folder: &Path, state: &State) -> std::io::Result<()> {
    let entries = state.given.iter().map(|((pod, container, resource), given)| Entry {
        pod_uid: pod.clone(),
        container_name: container.clone(),
        resource_name: resource.clone(),
        device_ids: [(NODE.to_owned(), given.devices.iter().cloned().collect())].into(),
        alloc_resp: STANDARD.encode(given.edits.encode_to_vec()),
    });
    let registered = state.resources.iter();
    let registered =
        registered.map(|(name, known)| (name.clone(), known.devices.keys().cloned().collect()));
    let data =
        Data { pod_device_entries: entries.collect(), registered_devices: registered.collect() };
    let text = serde_json::to_vec(&File { data })?;
    std::fs::create_dir_all(folder)?;
    let new = folder.join(format!(".{FILE}"));
    std::fs::write(&new, text)?;
    std::fs::rename(new, folder.join(FILE))
}
