//! Images to an archive that Docker, Podman, containerd and this store load.
//!
//! An OCI layout with Docker's `manifest.json` beside it, as `docker save` writes since version 25. Layers
//! are uncompressed, under their diff IDs: the image keeps its ID.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::image::Image;
use crate::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::skeleton::Rebuilt;
use crate::store::Store;

/// An archive being written, and the blobs it has.
struct Archive<W: Write> {
    output: W,
    written: BTreeSet<Digest>,
}

impl Store {
    /// Writes the images `names` to `output`. Blocks.
    pub fn save(&self, names: &[&str], output: impl Write) -> Result<(), Error> {
        let mut archive = Archive { output, written: BTreeSet::new() };
        let mut index = Vec::new();
        let mut table = Vec::new();
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for name in names {
            let image = self
                .get(name)
                .ok_or_else(|| Error::NotFound { what: format!("image {name:?}") })?;
            let (descriptor, entry) = self.save_image(&mut archive, &image)?;
            let tags = if image.tags.is_empty() {
                vec![None]
            } else {
                image.tags.iter().map(Some).collect()
            };
            for tag in tags {
                let mut descriptor = descriptor.clone();
                if let Some(tag) = tag {
                    let short = tag.rsplit(':').next().unwrap_or(tag);
                    descriptor["annotations"] = json!({
                        "io.containerd.image.name": tag,
                        "org.opencontainers.image.ref.name": short,
                    });
                }
                index.push(descriptor);
            }
            table.push(entry);
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": index,
        });
        archive.file("index.json", index.to_string().as_bytes())?;
        archive.file("manifest.json", Value::Array(table).to_string().as_bytes())?;
        archive.write(&[0; 1024])?;
        archive.output.flush().map_err(|error| Error::io("write", "the archive", error))
    }

    /// Writes the blobs of `image`; returns its entries of `index.json` and `manifest.json`.
    fn save_image<W: Write>(
        &self,
        archive: &mut Archive<W>,
        image: &Image,
    ) -> Result<(Value, Value), Error> {
        let id: Digest = image.id.parse().map_err(|error| Error::corrupt("image", error))?;
        let config = self.inner.blobs.read(&id)?;
        archive.blob(&id, &config)?;
        let mut layers = Vec::new();
        let mut paths = Vec::new();
        for layer in &image.layers {
            let size = self.save_layer(archive, &layer.diff_id)?;
            layers.push(json!({"mediaType": OCI_LAYER, "digest": layer.diff_id, "size": size}));
            paths.push(path(&layer.diff_id));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": id, "size": config.len()},
            "layers": layers,
        })
        .to_string()
        .into_bytes();
        let digest = Digest::of(&manifest);
        archive.blob(&digest, &manifest)?;
        let descriptor = json!({
            "mediaType": OCI_MANIFEST,
            "digest": digest,
            "size": manifest.len(),
            "platform": {
                "os": image.config.os().to_string(),
                "architecture": image.config.architecture().to_string(),
            },
        });
        let entry = json!({"Config": path(&id), "RepoTags": image.tags, "Layers": paths});
        Ok((descriptor, entry))
    }

    fn save_layer<W: Write>(
        &self,
        archive: &mut Archive<W>,
        diff_id: &Digest,
    ) -> Result<u64, Error> {
        let broken = |error: io::Error| Error::corrupt(format!("layer {diff_id}"), error);
        let size = self.rebuilt(diff_id)?.length().map_err(broken)?;
        if !archive.written.insert(diff_id.clone()) {
            return Ok(size);
        }
        archive.header(&path(diff_id), size)?;
        let mut reader = self.rebuilt(diff_id)?;
        let mut hasher = Hasher::new(diff_id.algorithm());
        let mut buffer = vec![0; 256 << 10];
        loop {
            let got = reader.read(&mut buffer).map_err(broken)?;
            if got == 0 {
                break;
            }
            hasher.update(&buffer[..got]);
            archive.write(&buffer[..got])?;
        }
        if hasher.finish() != *diff_id {
            return Err(broken(io::Error::other(
                "its files are not what they were when it was unpacked",
            )));
        }
        archive.pad(size)?;
        Ok(size)
    }

    /// The uncompressed archive of a layer.
    pub(crate) fn rebuilt(&self, diff_id: &Digest) -> Result<Rebuilt, Error> {
        let layers = &self.inner.layers;
        let what = || format!("layer {diff_id}");
        let layer = layers.get(diff_id).ok_or_else(|| Error::NotFound { what: what() })?;
        Rebuilt::open(&layers.directory().join(layer.name()))?.ok_or_else(|| {
            Error::unsupported(
                what(),
                "its archive names a file twice, so that it cannot be made again",
            )
        })
    }
}

impl<W: Write> Archive<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.output.write_all(bytes).map_err(|error| Error::io("write", "the archive", error))
    }

    fn header(&mut self, path: &str, size: u64) -> Result<(), Error> {
        let mut header = Header::new_gnu();
        header.set_path(path).map_err(|error| Error::io("name", path, error))?;
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        header.set_mode(0o644);
        // The same images make the same archive.
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        self.write(&[0; 512][..(512 - (size % 512) as usize) % 512])
    }

    fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), Error> {
        self.header(path, bytes.len() as u64)?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        if self.written.insert(digest.clone()) {
            self.file(&path(digest), bytes)?;
        }
        Ok(())
    }
}

fn path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}
