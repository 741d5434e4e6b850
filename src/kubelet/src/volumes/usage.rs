//! How much a pod's volumes, logs and containers' layers hold, for limits and for those who ask.
//!
//! Source of behaviour: `localStorageEviction` in `pkg/kubelet/eviction/eviction_manager.go`.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::directory;
use crate::{pod, quantity};

/// A volume on the node that can be measured.
pub struct Place {
    /// The volume's name in the pod.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The claim it is for.
    pub claim: Option<String>,
    /// Whether it is a file system of its own, such as memory.
    pub own_file_system: bool,
    /// Whether it counts as the pod's ephemeral storage.
    pub ephemeral: bool,
}

/// The volumes of the pod that are below the kubelet's directory.
pub fn places(root: &Path, of: &Pod) -> Vec<Place> {
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let base = directory(root, pod::uid(of)).join("volumes");
    let mut out = Vec::new();
    for volume in volumes {
        let plugin = if volume.empty_dir.is_some() {
            "empty-dir"
        } else if volume.config_map.is_some() {
            "configmap"
        } else if volume.secret.is_some() {
            "secret"
        } else if volume.downward_api.is_some() {
            "downward-api"
        } else if volume.projected.is_some() {
            "projected"
        } else {
            continue;
        };
        let path = base.join(format!("kubernetes.io~{plugin}")).join(&volume.name);
        if !path.exists() {
            continue;
        }
        let memory = volume.empty_dir.as_ref().is_some_and(|e| {
            e.medium.as_deref().is_some_and(|m| m == "Memory" || m.starts_with("HugePages"))
        });
        out.push(Place {
            name: volume.name.clone(),
            path,
            claim: None,
            own_file_system: memory,
            ephemeral: !memory,
        });
    }
    out
}

/// The volumes of the pod's claims, which are at `paths`: each is told of as its file system is. They are not looked
/// at, since one whose server is gone would never answer.
pub fn claimed(of: &Pod, paths: &BTreeMap<String, PathBuf>) -> Vec<Place> {
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    let place = |volume: &Volume| {
        let claim = match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(source), _) => source.claim_name.clone(),
            (None, Some(_)) => format!("{}-{}", pod::name(of), volume.name),
            (None, None) => return None,
        };
        let path = paths.get(&volume.name)?.clone();
        Some(Place {
            name: volume.name.clone(),
            path,
            claim: Some(claim),
            own_file_system: true,
            ephemeral: false,
        })
    };
    volumes.iter().filter_map(place).collect()
}

/// Signal and message of the eviction, if the pod holds more than it may: in an emptyDir, in a container's layer
/// and logs, or in all. `layers` has the bytes of each container's writable layer.
pub fn over_limit(
    root: &Path,
    logs: &Path,
    of: &Pod,
    layers: &[(String, u64)],
) -> Option<(&'static str, String)> {
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    for volume in volumes {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else {
            continue;
        };
        let Some(bytes) = quantity::value(limit).filter(|b| *b > 0) else { continue };
        let path = directory(root, pod::uid(of))
            .join("volumes/kubernetes.io~empty-dir")
            .join(&volume.name);
        if used(&path).0 > bytes as u64 {
            let message = format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, limit.0
            );
            return Some(("emptydirfs.limit", message));
        }
    }
    let of_container = |name: &str| {
        let layer = layers.iter().find(|(n, _)| n == name).map_or(0, |(_, bytes)| *bytes);
        layer + used(&logs.join(name)).0
    };
    if let Some((total, limit)) = pod_limit(of) {
        let containers = pod::all_containers(of);
        let held: u64 = containers.iter().map(|(_, c)| of_container(&c.name)).sum();
        let local = places(root, of).into_iter().filter(|place| place.ephemeral);
        let held = held + local.map(|place| used(&place.path).0).sum::<u64>();
        if held > total {
            let message = format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "
            );
            return Some(("ephemeralpodfs.limit", message));
        }
    }
    for (_, container) in pod::all_containers(of) {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let Some(limit) = limits.and_then(|l| l.get("ephemeral-storage")) else { continue };
        let Some(bytes) = quantity::value(limit).filter(|b| *b > 0) else { continue };
        if of_container(&container.name) > bytes as u64 {
            let message = format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name, limit.0
            );
            return Some(("ephemeralcontainerfs.limit", message));
        }
    }
    None
}

/// The sum of the containers' limits of ephemeral storage, if each has one: bytes, and as it is told.
fn pod_limit(of: &Pod) -> Option<(u64, String)> {
    let limit = |c: &k8s_openapi::api::core::v1::Container| {
        let limits = c.resources.as_ref()?.limits.as_ref()?;
        quantity::value(limits.get("ephemeral-storage")?)
    };
    let sum: Option<i64> =
        pod::containers(of).iter().map(limit).try_fold(0, |sum, limit| limit.map(|l| sum + l));
    let sum = u64::try_from(sum?).ok().filter(|bytes| *bytes > 0)?;
    Some((sum, quantity::binary(sum)))
}

/// Whether the pod has a limit to watch at all.
pub fn is_limited(of: &Pod) -> bool {
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
        || pod::all_containers(of).iter().any(|(_, c)| {
            let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
            limits.is_some_and(|l| l.contains_key("ephemeral-storage"))
        })
}

/// Bytes and inodes at and below `path`, without following links; a file that has several names counts once.
pub fn used(path: &Path) -> (u64, u64) {
    let mut total = (0, 0);
    let mut seen = std::collections::HashSet::new();
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Not following links: only what is in the volume counts.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert(metadata.ino()) {
                continue;
            }
            total = (total.0 + metadata.blocks() * 512, total.1 + 1);
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_too_much_is_told_in_upstreams_words() {
        let folder = tempfile::tempdir().unwrap();
        let (root, logs) = (folder.path().join("root"), folder.path().join("logs"));
        std::fs::create_dir_all(logs.join("c")).unwrap();
        std::fs::write(logs.join("c/0.log"), vec![b'x'; 64 << 10]).unwrap();
        let volume = root.join("pods/u/volumes/kubernetes.io~empty-dir/v");
        std::fs::create_dir_all(&volume).unwrap();
        std::fs::write(volume.join("f"), vec![b'x'; 64 << 10]).unwrap();
        let message = |size: &str, storage: &str, layer: u64| {
            let of: Pod = serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": {
                "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": storage}}}, {"name": "d"}],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": size}}]}}))
            .unwrap();
            over_limit(&root, &logs, &of, &[("c".to_owned(), layer)]).map(|(_, message)| message)
        };
        assert_eq!(message("1Mi", "1Mi", 0), None);
        assert_eq!(
            message("32Ki", "1Mi", 0).unwrap(),
            "Usage of EmptyDir volume \"v\" exceeds the limit \"32Ki\". "
        );
        assert_eq!(
            message("1Mi", "1Mi", 1 << 20).unwrap(),
            "Container c exceeded its local ephemeral storage limit \"1Mi\". "
        );
        let of: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"uid": "u"}, "spec": {
            "containers": [{"name": "c", "resources": {"limits": {"ephemeral-storage": "100Ki"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}]}}))
            .unwrap();
        assert_eq!(
            over_limit(&root, &logs, &of, &[]).unwrap().1,
            "Pod ephemeral local storage usage exceeds the total limit of containers 100Ki. "
        );
    }
}
