//! Which images there are and what they are called: one small file, replaced whole at each change.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::durable;
use crate::error::Error;

const VERSION: u32 = 1;

/// What is kept of one image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    /// Blob of its manifest.
    pub manifest: Digest,
    /// Diff IDs, lowest first.
    pub layers: Vec<Digest>,
    /// Bytes of manifest, configuration and layers as they were transferred, which is what CRI reports.
    pub size_bytes: u64,
    /// Stays when room is made.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// The boot during which its layers were written, until they are known to be on the disk: after a
    /// power cut such an image is not trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsynced_boot: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Catalog {
    version: u32,
    /// By image ID, the digest of the configuration.
    pub images: BTreeMap<Digest, ImageRecord>,
    /// `domain/path:tag` to image ID.
    pub tags: BTreeMap<String, Digest>,
    /// `domain/path@digest` to image ID.
    pub digests: BTreeMap<String, Digest>,
}

impl Catalog {
    pub fn path(root: &Path) -> PathBuf {
        root.join("catalog.json")
    }

    /// Reads the catalog; none yet is an empty one.
    pub fn read(root: &Path) -> Result<Self, Error> {
        let path = Self::path(root);
        if !path.exists() {
            return Ok(Self { version: VERSION, ..Self::default() });
        }
        let catalog: Self = durable::read_json(&path).map_err(|error| match error {
            Error::Corrupt { what, reason } => Error::Corrupt {
                what,
                reason: format!(
                    "{reason}; remove the file to start with no images, they can be pulled again"
                ),
            },
            other => other,
        })?;
        if catalog.version != VERSION {
            return Err(Error::unsupported(
                path.display().to_string(),
                format!("written by another version of this program (format {})", catalog.version),
            ));
        }
        Ok(catalog)
    }

    pub fn write(&self, root: &Path) -> Result<(), Error> {
        let path = Self::path(root);
        durable::write_synced(&path, &durable::encode_json(&path, self)?)
    }

    /// Diff IDs some image needs.
    pub fn layers(&self) -> BTreeSet<Digest> {
        self.images.values().flat_map(|image| image.layers.iter().cloned()).collect()
    }

    /// Blobs some image needs.
    pub fn blobs(&self) -> BTreeSet<Digest> {
        self.images.iter().flat_map(|(id, image)| [id.clone(), image.manifest.clone()]).collect()
    }

    pub fn forget(&mut self, id: &Digest) {
        self.images.remove(id);
        self.tags.retain(|_, other| other != id);
        self.digests.retain(|_, other| other != id);
    }
}
