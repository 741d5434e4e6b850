//! How much an emptyDir holds, for its `sizeLimit`.
//!
//! Source of behaviour: `localStorageEviction` in `pkg/kubelet/eviction/eviction_manager.go`.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use super::directory;
use crate::{pod, quantity};

/// The message of the eviction, if an emptyDir of the pod holds more than it may.
pub fn over_limit(root: &Path, of: &Pod) -> Option<String> {
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    for volume in volumes {
        let Some(limit) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else {
            continue;
        };
        let Some(bytes) = quantity::value(limit).filter(|b| *b > 0) else { continue };
        let path = directory(root, pod::uid(of))
            .join("volumes/kubernetes.io~empty-dir")
            .join(&volume.name);
        if used_bytes(&path) > bytes as u64 {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, limit.0
            ));
        }
    }
    None
}

/// Whether the pod has a limit to watch at all.
pub fn is_limited(of: &Pod) -> bool {
    let volumes = of.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|v| v.empty_dir.as_ref().is_some_and(|e| e.size_limit.is_some()))
}

fn used_bytes(path: &Path) -> u64 {
    let mut total = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            // Not following links: only what is in the volume counts.
            let Ok(metadata) = entry.metadata() else { continue };
            total += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}
