//! Images nobody uses go when their disk fills up.
//!
//! Source of behaviour: `pkg/kubelet/images/image_gc_manager.go`.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1 as cri;
use tokio::time::Instant;

use crate::configuration::ImageLimits;
use crate::context::Context;
use crate::node::machine;

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
fn wanted(disk: &machine::Disk, limits: &ImageLimits) -> u64 {
    let free = |percent: u64, at_most: Option<u64>| {
        (disk.bytes / 100 * (100 - percent)).min(at_most.unwrap_or(u64::MAX))
    };
    let (high, low) = limits.percent;
    let (begin, end) = limits.free_bytes.unzip();
    if disk.available_bytes >= free(high, begin) {
        return 0;
    }
    free(low, end).saturating_sub(disk.available_bytes)
}

impl Images {
    /// Removes unused images, the least recently used first: as many as the disk needs, or `all`.
    pub async fn collect(&mut self, context: &Context, place: Option<&Path>, all: bool) {
        if !all && self.looked.is_some_and(|at| at.elapsed() < PERIOD) {
            return;
        }
        self.looked = Some(Instant::now());
        let disk = machine::disk(place.unwrap_or(&context.root_dir));
        let limits = &context.limits.images;
        let needed = disk.as_ref().map_or(0, |disk| wanted(disk, limits));
        let mut missing = if all { u64::MAX } else { needed };
        let Some(unused) = self.unused(context).await else { return };
        for (last_used, image) in unused {
            // The rest was used later still.
            if missing == 0 && limits.maximum_age.is_none_or(|age| last_used.elapsed() <= age) {
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

    /// The images that may go, with when each was last used; the least recently used first.
    async fn unused(&mut self, context: &Context) -> Option<Vec<(Instant, cri::Image)>> {
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
            } else if now.duration_since(record.first_seen) >= context.limits.images.minimum_age {
                out.push((record.last_used, image));
            }
        }
        out.sort_by_key(|(last_used, _)| *last_used);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Limits;

    #[test]
    fn as_much_is_freed_as_the_disk_needs() {
        let disk = |gigabytes: u64, available_mib: u64| machine::Disk {
            bytes: gigabytes << 30,
            available_bytes: available_mib << 20,
            free_bytes: available_mib << 20,
            inodes: 0,
            inodes_free: 0,
        };
        let usual = Limits::default().images;
        let strict = ImageLimits { percent: (50, 40), free_bytes: None, ..usual.clone() };
        for (limits, disk, want_mib, why) in [
            (&usual, disk(4, 1000), 0, "there is room"),
            (&usual, disk(4, 600), 219, "down to four fifths"),
            (&usual, disk(500, 1100), 0, "a large disk may be nearly full"),
            (&usual, disk(500, 1000), 1048, "but not quite"),
            (&strict, disk(500, 256 << 10), 0, "less than half is used"),
            (&strict, disk(500, 245 << 10), 56_320, "down to two fifths, of a large disk too"),
        ] {
            assert_eq!(wanted(&disk, limits) >> 20, want_mib, "{why}");
        }
    }
}
