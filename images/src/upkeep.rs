//! Keeping a store in order: what nobody uses, what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind};
use crate::image::Image;
use crate::store::Store;

/// What [`Store::prune`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// IDs of the images.
    pub images: Vec<String>,
    pub bytes: u64,
}

/// What [`Store::check`] found.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    pub images: usize,
    pub layers: usize,
    /// Layers whose files cannot be compared with their digest: their archive named a file twice.
    pub uncheckable: Vec<Digest>,
    pub damaged: Vec<Damage>,
}

/// An image that is not what it was.
#[derive(Clone, Debug)]
pub struct Damage {
    pub image_id: String,
    pub tags: Vec<String>,
    pub reason: String,
}

impl Store {
    /// Removes the images no snapshot is of and nobody pinned: those without a tag, or with `all` every one. Blocks.
    pub fn prune(&self, all: bool) -> Result<Pruned, Error> {
        let used: BTreeSet<String> = self.snapshots().into_iter().map(|(_, image)| image).collect();
        let mut pruned = Pruned::default();
        for image in self.list() {
            if image.pinned || used.contains(&image.id) || !(all || image.tags.is_empty()) {
                continue;
            }
            match self.remove(&image.id) {
                Ok(bytes) => {
                    pruned.bytes += bytes;
                    pruned.images.push(image.id);
                }
                // Somebody else was quicker.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pruned)
    }

    /// Compares every configuration, manifest and file with the digests they came with. With `repair`,
    /// damaged images are removed, to be pulled again. Blocks, for as long as reading everything takes.
    pub fn check(&self, repair: bool) -> Result<Checked, Error> {
        let images = self.list();
        let mut checked = Checked { images: images.len(), ..Checked::default() };
        let mut layers: BTreeMap<Digest, Option<String>> = BTreeMap::new();
        for image in &images {
            for layer in &image.layers {
                if layers.contains_key(&layer.diff_id) {
                    continue;
                }
                let verdict = match self.check_layer(&layer.diff_id) {
                    Ok(()) => None,
                    Err(error) if error.kind() == ErrorKind::Unsupported => {
                        checked.uncheckable.push(layer.diff_id.clone());
                        None
                    }
                    Err(error) => Some(error.to_string()),
                };
                layers.insert(layer.diff_id.clone(), verdict);
            }
            let broken_layer =
                image.layers.iter().find_map(|layer| layers.get(&layer.diff_id).cloned().flatten());
            let reason = broken_layer
                .or_else(|| self.check_blobs(image).err().map(|error| error.to_string()));
            if let Some(reason) = reason {
                checked.damaged.push(Damage {
                    image_id: image.id.clone(),
                    tags: image.tags.clone(),
                    reason,
                });
            }
        }
        checked.layers = layers.len();
        if repair {
            for damage in &checked.damaged {
                self.remove(&damage.image_id)?;
            }
        }
        Ok(checked)
    }

    fn check_blobs(&self, image: &Image) -> Result<(), Error> {
        let id: Digest = image.id.parse().map_err(|error| Error::corrupt("image", error))?;
        let manifest = self.catalog().images.get(&id).map(|record| record.manifest.clone());
        self.inner.blobs.read(&id)?;
        manifest.map_or(Ok(()), |manifest| self.inner.blobs.read(&manifest).map(drop))
    }

    fn check_layer(&self, diff_id: &Digest) -> Result<(), Error> {
        let mut reader = self.rebuilt(diff_id)?;
        let mut hasher = Hasher::new(diff_id.algorithm());
        let mut buffer = vec![0; 256 << 10];
        let broken = |error: io::Error| Error::corrupt(format!("layer {diff_id}"), error);
        loop {
            match reader.read(&mut buffer).map_err(broken)? {
                0 => break,
                got => hasher.update(&buffer[..got]),
            }
        }
        if hasher.finish() == *diff_id {
            return Ok(());
        }
        Err(broken(io::Error::other("its files are not what they were when it was unpacked")))
    }
}
