//! What claimed volumes hold, as metrics: what alerts on volumes that fill up look at.
//!
//! Source of names: `pkg/kubelet/metrics/collectors/volume_stats.go`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::metrics::{Text, float};
use crate::node::machine::{self, Disk};
use crate::{pod, volumes};

/// A claim's volume: namespace, name, its file system, and bytes and inodes that are used of it.
type Row = (String, String, Disk, (u64, u64));

fn rows(root: &Path, pods: &[Arc<Pod>]) -> Vec<Row> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for of in pods {
        for place in volumes::usage::places(root, of) {
            let Some(claim) = place.claim else { continue };
            let namespace = pod::namespace(of).to_owned();
            // Pods may share one.
            if !seen.insert((namespace.clone(), claim.clone())) {
                continue;
            }
            let Some(disk) = machine::disk(&place.path) else { continue };
            let used = if place.own_file_system {
                let free = (disk.free_bytes, disk.inodes_free);
                (disk.bytes.saturating_sub(free.0), disk.inodes.saturating_sub(free.1))
            } else {
                volumes::usage::used(&place.path)
            };
            out.push((namespace, claim, disk, used));
        }
    }
    out
}

/// Writes the metrics of the claims that `pods` use; walks their folders.
pub fn write(text: &mut Text, root: &Path, pods: &[Arc<Pod>]) {
    let rows = rows(root, pods);
    let metrics: [(&str, &str, fn(&Row) -> u64); 6] = [
        ("capacity_bytes", "Capacity in bytes of the volume", |row| row.2.bytes),
        ("available_bytes", "Number of available bytes in the volume", |row| row.2.available_bytes),
        ("used_bytes", "Number of used bytes in the volume", |row| row.3.0),
        ("inodes", "Maximum number of inodes in the volume", |row| row.2.inodes),
        ("inodes_free", "Number of free inodes in the volume", |row| row.2.inodes_free),
        ("inodes_used", "Number of used inodes in the volume", |row| row.3.1),
    ];
    for (name, help, value) in metrics.into_iter().filter(|_| !rows.is_empty()) {
        let name = format!("kubelet_volume_stats_{name}");
        text.family(&name, "gauge", &format!("[ALPHA] {help}"));
        for row in &rows {
            let names = [("namespace", row.0.as_str()), ("persistentvolumeclaim", row.1.as_str())];
            text.sample(&name, &names, float(value(row)), None);
        }
    }
}
