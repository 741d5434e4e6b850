//! Images as volumes: their root file systems, or something in them, mounted read-only.

use std::path::Path;

use k8s_cri::v1;

use crate::error::Error;
use crate::oci::launch::{Root, Volume};
use crate::runtime::Runtime;

/// The snapshot of the `index`th image volume of a container.
fn key(container_id: &str, index: usize) -> String {
    format!("{container_id}-volume-{index}")
}

/// The container that a snapshot was made for, if it was made for one.
pub fn container_of(key: &str) -> Option<&str> {
    let id = key.split("-volume-").next()?;
    crate::state::is_id(id).then_some(id)
}

impl Runtime {
    /// Makes ready the image volumes of a container, in the order of its mounts.
    pub(crate) async fn image_volumes(
        &self,
        container_id: &str,
        config: &v1::ContainerConfig,
    ) -> Result<Vec<Volume>, Error> {
        let mut volumes = Vec::new();
        let wanted = config.mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)));
        for (index, (mount, spec)) in wanted.enumerate() {
            let image = self
                .images()
                .get(&spec.image)
                .ok_or_else(|| Error::NotFound { kind: "image", id: spec.image.clone() })?;
            let root = self.images().snapshot(&image.id, &key(container_id, index)).await?;
            let sub_path = mount.image_sub_path.clone();
            if !sub_path.is_empty() && !exists(&root, Path::new(&sub_path)) {
                return Err(Error::InvalidArgument(format!(
                    "ImageVolumeMountFailed: image volume {:?}: {sub_path:?} is not in image {:?}",
                    mount.container_path, spec.user_specified_image
                )));
            }
            volumes.push(Volume { root, sub_path });
        }
        Ok(volumes)
    }

    /// Removes a container's writable layer and those of its image volumes.
    pub(crate) async fn remove_snapshots(&self, id: &str, volumes: usize) -> Result<(), Error> {
        for index in 0..volumes {
            self.images().remove_snapshot(&key(id, index)).await?;
        }
        self.images().remove_snapshot(id).await
    }

    /// The mounts of a container as its status tells them: image volumes with the image's id.
    pub(crate) fn mounts_of(&self, config: &v1::ContainerConfig) -> Vec<v1::Mount> {
        let mut mounts = config.mounts.clone();
        for spec in mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            if let Some(image) = self.images().get(&spec.image) {
                spec.image_ref = image.id;
            }
        }
        mounts
    }
}

/// Whether a path is there in a root file system that is not mounted: the topmost layer that knows
/// it decides. Links in the path are followed only once it is mounted.
fn exists(root: &Root, path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Root::Overlay { lower, .. } = root else { return true };
    let relative = path.strip_prefix("/").unwrap_or(path);
    let mut walked = std::path::PathBuf::new();
    for component in relative.components() {
        let std::path::Component::Normal(name) = component else { return false };
        walked.push(name);
        let found = lower.iter().find_map(|layer| layer.join(&walked).symlink_metadata().ok());
        match found {
            None => return false,
            // How overlayfs marks what a layer has removed.
            Some(found) if found.file_type().is_char_device() && found.rdev() == 0 => return false,
            Some(found) if found.is_symlink() => return true,
            Some(_) => {}
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_looked_for_in_all_layers() {
        let directory = tempfile::tempdir().unwrap();
        let (upper, lower) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::create_dir_all(upper.join("etc/only")).unwrap();
        std::fs::create_dir_all(lower.join("usr")).unwrap();
        std::os::unix::fs::symlink("usr", lower.join("lib")).unwrap();
        let root = Root::Overlay {
            lower: vec![upper, lower],
            upper: directory.path().join("u"),
            work: directory.path().join("w"),
        };
        for (path, there) in [
            ("etc", true),
            ("/etc/only/", true),
            ("usr", true),
            ("lib/anything", true),
            ("none", false),
            ("etc/none", false),
            ("../a", false),
        ] {
            assert_eq!(exists(&root, Path::new(path)), there, "{path}");
        }
    }
}
