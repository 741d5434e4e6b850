//! Images nobody uses go when their disk fills up.
//!
//! Source of behaviour: `pkg/kubelet/images/image_gc_manager.go`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1 as cri;
use tokio::time::Instant;

use crate::context::Context;
use crate::node::machine;

/// Above this share of the disk images are collected.
pub const HIGH_PERCENT: u64 = 85;
/// Down to this.
pub const LOW_PERCENT: u64 = 80;
/// A laptop's disk is not ours alone: on a large one it is enough that so much is free.
const HIGH_FREE_BYTES: u64 = 1 << 30;
const LOW_FREE_BYTES: u64 = 2 << 30;
/// An image is kept at least this long.
const MINIMUM_AGE: Duration = Duration::from_mins(2);
/// How often the disk is looked at.
const PERIOD: Duration = Duration::from_mins(5);

struct Record {
    first_seen: Instant,
    last_used: Instant,
}

/// What is known of the node's images.
#[derive(Default)]
pub struct Images {
    records: HashMap<String, Record>,
    looked: Option<Instant>,
}

/// Where the runtime keeps images.
pub async fn place(context: &Context) -> Option<PathBuf> {
    let info = context.cri.image_fs_info(cri::ImageFsInfoRequest {}).await.ok()?;
    let place = info.image_filesystems.first()?.fs_id.as_ref()?.mountpoint.clone();
    (!place.is_empty()).then(|| PathBuf::from(place))
}

/// Bytes to free, if the disk is too full.
fn wanted(disk: &machine::Disk) -> u64 {
    let free = |percent: u64, at_most: u64| (disk.bytes / 100 * (100 - percent)).min(at_most);
    if disk.available_bytes >= free(HIGH_PERCENT, HIGH_FREE_BYTES) {
        return 0;
    }
    free(LOW_PERCENT, LOW_FREE_BYTES).saturating_sub(disk.available_bytes)
}

impl Images {
    /// Removes unused images, the least recently used first: as many as the disk needs, or `all`.
    pub async fn collect(&mut self, context: &Context, place: Option<&Path>, all: bool) {
        if !all && self.looked.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        self.looked = Some(Instant::now());
        let disk = machine::disk(place.unwrap_or(&context.root_dir));
        let mut missing = if all { u64::MAX } else { disk.as_ref().map_or(0, wanted) };
        let Some(unused) = self.unused(context).await else { return };
        for image in unused {
            if missing == 0 {
                return;
            }
            let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
            match context.cri.remove_image(cri::RemoveImageRequest { image: Some(spec) }).await {
                Ok(_) => {
                    tracing::info!(image = image.id, bytes = image.size, "removed an unused image");
                    self.records.remove(&image.id);
                    missing = missing.saturating_sub(image.size);
                }
                Err(error) => tracing::warn!(image = image.id, %error, "cannot remove an image"),
            }
        }
        if !all && missing > 0 {
            tracing::warn!(
                missing_bytes = missing,
                "the disk is too full, and no more images can go"
            );
        }
    }

    async fn unused(&mut self, context: &Context) -> Option<Vec<cri::Image>> {
        let images =
            context.cri.list_images(cri::ListImagesRequest { filter: None }).await.ok()?.images;
        let request = cri::ListContainersRequest { filter: None };
        let containers = context.cri.list_containers(request).await.ok()?.containers;
        let in_use: HashSet<&str> = containers
            .iter()
            .flat_map(|c| [c.image_ref.as_str(), c.image_id.as_str()])
            .filter(|name| !name.is_empty())
            .collect();
        let now = Instant::now();
        self.records.retain(|id, _| images.iter().any(|image| &image.id == id));
        context.images.retain(&images.iter().map(|image| image.id.as_str()).collect());
        let mut out = Vec::new();
        for image in images {
            let record = self
                .records
                .entry(image.id.clone())
                .or_insert(Record { first_seen: now, last_used: now });
            let names =
                std::iter::once(&image.id).chain(&image.repo_digests).chain(&image.repo_tags);
            if image.pinned || names.into_iter().any(|name| in_use.contains(name.as_str())) {
                record.last_used = now;
            } else if now.duration_since(record.first_seen) >= MINIMUM_AGE {
                out.push((record.last_used, image));
            }
        }
        out.sort_by_key(|(last_used, _)| *last_used);
        Some(out.into_iter().map(|(_, image)| image).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_is_freed_as_the_disk_needs() {
        let disk = |gigabytes: u64, available_mib: u64| machine::Disk {
            bytes: gigabytes << 30,
            available_bytes: available_mib << 20,
            free_bytes: available_mib << 20,
            inodes: 0,
            inodes_free: 0,
        };
        assert_eq!(wanted(&disk(4, 1000)), 0);
        assert_eq!(wanted(&disk(4, 600)) >> 20, 219, "down to four fifths");
        assert_eq!(wanted(&disk(500, 1100)), 0, "a large disk may be nearly full");
        assert_eq!(wanted(&disk(500, 1000)) >> 20, 1048);
    }
}
