//! An image whose parts are at hand in an archive: unpacked in parallel and entered.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::task::JoinSet;

use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::image::Image;
use crate::load::join;
use crate::manifest::{Descriptor, check_layer};
use crate::source::Source;
use crate::store::{Candidate, Store};

/// An image in an archive.
pub(crate) struct Parts {
    pub source: Arc<Source>,
    pub id: Digest,
    pub config: Vec<u8>,
    pub layers: Vec<PartLayer>,
    pub manifest: Vec<u8>,
    pub manifest_digest: Digest,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
}

/// A layer's file in the archive.
pub(crate) struct PartLayer {
    pub path: String,
    /// What the manifest says of it; Docker's archives say nothing.
    pub descriptor: Option<Descriptor>,
}

/// The diff IDs of configuration `bytes`, one for each of the `layers` layers.
pub(crate) fn diff_ids(
    id: &Digest,
    bytes: &[u8],
    layers: usize,
    limit: usize,
) -> Result<Vec<Digest>, Error> {
    let what = || format!("image configuration {id}");
    let config: oci_spec::image::ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| Error::corrupt(what(), error))?;
    let diff_ids = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| text.parse::<Digest>())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Error::corrupt(what(), error))?;
    if diff_ids.len() != layers {
        let reason = format!("it lists {} layers, the manifest {layers}", diff_ids.len());
        return Err(Error::corrupt(what(), reason));
    }
    if layers > limit {
        return Err(Error::TooLarge {
            what: format!("image {id}"),
            limit: format!("{layers} layers, {limit} are allowed"),
        });
    }
    Ok(diff_ids)
}

impl Store {
    /// Unpacks what is missing of `parts` and enters the image.
    pub(crate) async fn install(&self, parts: Parts) -> Result<Image, Error> {
        let diff_ids =
            diff_ids(&parts.id, &parts.config, parts.layers.len(), self.limits().layers)?;
        let leases = diff_ids.iter().map(|diff_id| self.inner.layers.lease(diff_id)).collect();
        let mut size_bytes = (parts.config.len() + parts.manifest.len()) as u64;
        let permits = Arc::new(tokio::sync::Semaphore::new(self.limits().parallel_layers));
        let mut tasks = JoinSet::new();
        for (layer, diff_id) in parts.layers.into_iter().zip(diff_ids.iter().cloned()) {
            if let Some(descriptor) = &layer.descriptor {
                check_layer(descriptor)?;
                size_bytes += descriptor.size;
            } else if let Some(content) = parts.source.open(&layer.path)? {
                size_bytes += content.size();
            }
            let store = self.clone();
            let source = Arc::clone(&parts.source);
            let permits = Arc::clone(&permits);
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                let _made = store.inner.layers.lock(&diff_id).await;
                if store.inner.layers.get(&diff_id).is_some() {
                    return Ok(());
                }
                join(tokio::task::spawn_blocking(move || {
                    store.unpack_part(&source, &layer, &diff_id)
                }))
                .await
            });
        }
        while let Some(result) = tasks.join_next().await {
            result.map_err(|error| Error::io("finish", "unpacking", io::Error::other(error)))??;
        }
        let store = self.clone();
        join(tokio::task::spawn_blocking(move || {
            let blobs = [parts.id.clone(), parts.manifest_digest.clone()];
            store.inner.blobs.write(&parts.id, &parts.config)?;
            store.inner.blobs.write(&parts.manifest_digest, &parts.manifest)?;
            let candidate = Candidate {
                id: parts.id,
                manifest: parts.manifest_digest,
                layers: diff_ids,
                size_bytes,
                tags: parts.tags,
                digests: parts.digests,
            };
            let image = store.commit(candidate, leases);
            store.inner.blobs.settle(&blobs);
            image
        }))
        .await
    }

    fn unpack_part(
        &self,
        source: &Source,
        layer: &PartLayer,
        diff_id: &Digest,
    ) -> Result<(), Error> {
        let content = source
            .open(&layer.path)?
            .ok_or_else(|| Error::corrupt("archive", format!("{} is missing", layer.path)))?;
        let digest = layer.descriptor.as_ref().map(|descriptor| &descriptor.digest);
        let (reader, check) = Checked::new(content, layer.descriptor.as_ref());
        let result = self.inner.layers.make(
            reader,
            diff_id,
            digest,
            self.limits(),
            self.inner.config.ownership,
            || check.verify(),
        );
        result.map(drop).map_err(|error| error.context(format!("layer {diff_id}")))
    }
}

/// Reads a blob, and knows afterwards whether it was what its descriptor says.
pub(crate) struct Checked<R> {
    inner: R,
    state: Arc<Mutex<Option<(Hasher, u64)>>>,
}

/// The other half of [`Checked`].
pub(crate) struct Check {
    descriptor: Option<Descriptor>,
    state: Arc<Mutex<Option<(Hasher, u64)>>>,
}

impl<R> Checked<R> {
    pub fn new(inner: R, descriptor: Option<&Descriptor>) -> (Self, Check) {
        let start = descriptor.map(|descriptor| (Hasher::new(descriptor.digest.algorithm()), 0));
        let state = Arc::new(Mutex::new(start));
        let check = Check { descriptor: descriptor.cloned(), state: Arc::clone(&state) };
        (Self { inner, state }, check)
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((hasher, read)) = state.as_mut() {
            hasher.update(&buffer[..got]);
            *read += got as u64;
        }
        Ok(got)
    }
}

impl Check {
    /// Whether everything that was read has the promised size and digest. To be asked once.
    pub fn verify(&self) -> Result<(), Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Some((hasher, read)), Some(descriptor)) = (state, &self.descriptor) else {
            return Ok(());
        };
        if read != descriptor.size {
            return Err(Error::corrupt(
                format!("blob {}", descriptor.digest),
                format!("it has {read} bytes, its descriptor says {}", descriptor.size),
            ));
        }
        let found = hasher.finish();
        if found != descriptor.digest {
            return Err(Error::corrupt(
                format!("blob {}", descriptor.digest),
                format!("its digest is {found}"),
            ));
        }
        Ok(())
    }
}
