//! What claimed volumes hold, as metrics: what alerts on volumes that fill up look at.
//!
//! Source of names: `pkg/kubelet/metrics/collectors/volume_stats.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::metrics::{Text, float};
use crate::node::machine::{self, Disk};
use crate::{pod, volumes};

/// Namespace and name of a claim, and the file system of its volume.
type Row = (String, String, Disk);

fn rows(pods: &[(Arc<Pod>, BTreeMap<String, PathBuf>)]) -> Vec<Row> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for (of, paths) in pods {
        for place in volumes::usage::claimed(of, paths) {
            let (namespace, claim) =
                (pod::namespace(of).to_owned(), place.claim.unwrap_or_default());
            // Pods may share one.
            if !seen.insert((namespace.clone(), claim.clone())) {
                continue;
            }
            let disk = machine::disk(&place.path);
            out.extend(disk.map(|disk| (namespace, claim, disk)));
        }
    }
    out
}

/// Writes the metrics of the claims that `pods` use.
pub fn write(text: &mut Text, pods: &[(Arc<Pod>, BTreeMap<String, PathBuf>)]) {
    let rows = rows(pods);
    let metrics: [(&str, &str, fn(&Disk) -> u64); 6] = [
        ("capacity_bytes", "Capacity in bytes of the volume", |disk| disk.bytes),
        ("available_bytes", "Number of available bytes in the volume", |disk| disk.available_bytes),
        ("used_bytes", "Number of used bytes in the volume", |disk| {
            disk.bytes.saturating_sub(disk.free_bytes)
        }),
        ("inodes", "Maximum number of inodes in the volume", |disk| disk.inodes),
        ("inodes_free", "Number of free inodes in the volume", |disk| disk.inodes_free),
        ("inodes_used", "Number of used inodes in the volume", |disk| {
            disk.inodes.saturating_sub(disk.inodes_free)
        }),
    ];
    for (name, help, value) in metrics.into_iter().filter(|_| !rows.is_empty()) {
        let name = format!("kubelet_volume_stats_{name}");
        text.family(&name, "gauge", &format!("[ALPHA] {help}"));
        for (namespace, claim, disk) in &rows {
            let names =
                [("namespace", namespace.as_str()), ("persistentvolumeclaim", claim.as_str())];
            text.sample(&name, &names, float(value(disk)), None);
        }
    }
}
