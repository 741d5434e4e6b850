//! Images from archives: `docker save`, OCI archives, OCI layout directories, compressed or not.
//!
//! Source: OCI image spec, "Image Layout"; Docker "Image Tarball"; containerd's annotation
//! `io.containerd.image.name`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::blob::verify;
use crate::channel;
use crate::decompress::{decompress, is_compressed};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::Image;
use crate::install::{PartLayer, Parts};
use crate::manifest::{Descriptor, Document, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::source::Source;
use crate::store::Store;

const CHUNK_BYTES: usize = 256 << 10;

/// An entry of `manifest.json` in Docker's archives.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The part of a configuration that tells its layers.
#[derive(Deserialize)]
struct DockerConfig {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl Store {
    /// Loads all images of the archive `reader` that run on this platform; of their names those that the
    /// archive gives are told. It is spooled to the store's directory first, because its table of contents
    /// may come last.
    pub async fn load(
        &self,
        mut reader: impl AsyncRead + Send + Unpin,
    ) -> Result<Vec<Image>, Error> {
        let (sender, receiver) = channel::pipe();
        let store = self.clone();
        let spool = tokio::task::spawn_blocking(move || store.spool(receiver));
        loop {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
            match reader.read_buf(&mut chunk).await {
                Ok(0) => break,
                // Refused only when the other end has failed, which says why.
                Ok(_) if sender.send(Ok(chunk.freeze())).await.is_err() => break,
                Ok(_) => {}
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    break;
                }
            }
        }
        drop(sender);
        let source = join(spool).await?;
        self.load_source(source).await
    }

    /// Loads all images of the archive or OCI layout directory at `path`.
    pub async fn load_path(&self, path: &Path) -> Result<Vec<Image>, Error> {
        let store = self.clone();
        let owned = path.to_owned();
        let open = tokio::task::spawn_blocking(move || {
            if owned.is_dir() {
                return Source::directory(&owned);
            }
            let mut file = File::open(&owned).map_err(|error| Error::io("open", &owned, error))?;
            let mut start = [0; 8];
            let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
            if !regular {
                return store.spool(file);
            }
            let got = file.read(&mut start).map_err(|error| Error::io("read", &owned, error))?;
            if !is_compressed(&start[..got]) {
                return Source::tar(file, store.limits());
            }
            file.seek(SeekFrom::Start(0)).map_err(|error| Error::io("read", &owned, error))?;
            store.spool(file)
        });
        let source = join(open).await.map_err(|error| error.context(path.display().to_string()))?;
        let loaded = self.load_source(source).await;
        loaded.map_err(|error| error.context(path.display().to_string()))
    }

    /// Writes the uncompressed archive to a file without a name.
    fn spool(&self, reader: impl Read + Send) -> Result<Source, Error> {
        let tmp = self.tmp();
        let mut file = tempfile::tempfile_in(&tmp)
            .map_err(|error| Error::io("create a file in", &tmp, error))?;
        let mut reader = decompress(reader)?;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let got = reader.read(&mut buffer).map_err(|error| Error::corrupt("archive", error))?;
            if got == 0 {
                break;
            }
            std::io::Write::write_all(&mut file, &buffer[..got])
                .map_err(|error| Error::io("write to", &tmp, error))?;
        }
        Source::tar(file, self.limits())
    }

    async fn load_source(&self, source: Source) -> Result<Vec<Image>, Error> {
        let source = Arc::new(source);
        let store = self.clone();
        let reading = Arc::clone(&source);
        let parts = join(tokio::task::spawn_blocking(move || {
            Archive { source: reading, store: &store, platform: Platform::host() }.parts()
        }))
        .await?;
        let mut images: Vec<Image> = Vec::new();
        for part in parts {
            let names = part.tags.clone();
            let mut image = self.install(part).await?;
            image.tags.retain(|tag| names.contains(tag));
            if let Some(at) = images.iter().position(|other| other.id == image.id) {
                image.tags.splice(0..0, images.remove(at).tags);
            }
            images.push(image);
        }
        Ok(images)
    }
}

/// An archive whose images are being found.
struct Archive<'s> {
    source: Arc<Source>,
    store: &'s Store,
    platform: Platform,
}

impl Archive<'_> {
    fn parts(&self) -> Result<Vec<Parts>, Error> {
        let limit = self.store.limits().manifest_bytes;
        let docker = match self.source.read("manifest.json", limit)? {
            Some(bytes) => serde_json::from_slice::<Vec<DockerEntry>>(&bytes)
                .map_err(|error| Error::corrupt("manifest.json of the archive", error))?,
            None => Vec::new(),
        };
        // Docker writes both tables since version 25; the OCI one knows digests and platforms.
        if let Some(bytes) = self.source.read("index.json", limit)? {
            return match Document::parse("index.json of the archive", &bytes)? {
                Document::Index(index) => self.layout(&index, &docker),
                Document::Manifest(_) => {
                    Err(Error::corrupt("index.json of the archive", "it is not an index"))
                }
            };
        }
        if docker.is_empty() {
            return Err(Error::unsupported(
                "archive",
                "it has neither index.json nor manifest.json: not an image archive of docker save, OCI archive or OCI layout",
            ));
        }
        docker.iter().map(|entry| self.docker_image(entry)).collect()
    }

    fn layout(&self, index: &Index, docker: &[DockerEntry]) -> Result<Vec<Parts>, Error> {
        let mut groups: BTreeMap<Option<String>, Vec<&Descriptor>> = BTreeMap::new();
        for descriptor in &index.manifests {
            groups.entry(name(descriptor)).or_default().push(descriptor);
        }
        let mut found = Vec::new();
        for (name, descriptors) in groups {
            let what = name.clone().unwrap_or_else(|| "image of the archive".to_owned());
            // Several of one name are one image for several platforms, if they say for which.
            let chosen = if descriptors.iter().any(|descriptor| descriptor.platform.is_some()) {
                let group = Index { manifests: descriptors.into_iter().cloned().collect() };
                vec![group.choose(&what, &self.platform)?.clone()]
            } else {
                descriptors.into_iter().cloned().collect()
            };
            for descriptor in chosen {
                let (manifest, bytes, digest) = self.resolve(&what, &descriptor, 0)?;
                let mut tags: Vec<String> = name.iter().cloned().collect();
                if tags.is_empty() {
                    tags = docker_tags(docker, &manifest.config.digest);
                }
                found.push(self.oci_image(&tags, &descriptor.digest, manifest, bytes, digest)?);
            }
        }
        if found.is_empty() {
            return Err(Error::NotFound { what: "archive: an image in its index".to_owned() });
        }
        Ok(found)
    }

    /// Follows indexes down to the manifest for our platform.
    fn resolve(
        &self,
        what: &str,
        descriptor: &Descriptor,
        depth: usize,
    ) -> Result<(Manifest, Vec<u8>, Digest), Error> {
        let limits = self.store.limits();
        if depth > limits.index_depth {
            return Err(Error::corrupt(what, "its indexes are nested too deeply"));
        }
        let bytes = self.blob(&descriptor.digest, limits.manifest_bytes)?;
        match Document::parse(what, &bytes)? {
            Document::Manifest(manifest) => Ok((manifest, bytes, descriptor.digest.clone())),
            Document::Index(index) => {
                self.resolve(what, index.choose(what, &self.platform)?, depth + 1)
            }
        }
    }

    fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let path = blob_path(digest);
        let bytes = self.source.read(&path, limit)?.ok_or_else(|| missing(&path))?;
        verify(&path, digest, &bytes)?;
        Ok(bytes)
    }

    fn oci_image(
        &self,
        tags: &[String],
        target: &Digest,
        manifest: Manifest,
        manifest_bytes: Vec<u8>,
        manifest_digest: Digest,
    ) -> Result<Parts, Error> {
        let config = self.blob(&manifest.config.digest, self.store.limits().config_bytes)?;
        let mut names = Vec::new();
        let mut digests = Vec::new();
        for tag in tags {
            let reference: Reference = tag.parse()?;
            digests.push(reference.with_digest(target));
            names.extend(reference.tagged());
        }
        let layers = manifest.layers.iter().map(|descriptor| PartLayer {
            path: blob_path(&descriptor.digest),
            descriptor: Some(descriptor.clone()),
        });
        Ok(Parts {
            source: Arc::clone(&self.source),
            id: manifest.config.digest.clone(),
            config,
            layers: layers.collect(),
            manifest: manifest_bytes,
            manifest_digest,
            tags: names,
            digests,
        })
    }

    /// Docker's archive has no manifest of the registry's kind; one is written for it.
    fn docker_image(&self, entry: &DockerEntry) -> Result<Parts, Error> {
        let limit = self.store.limits().config_bytes;
        let config =
            self.source.read(&entry.config, limit)?.ok_or_else(|| missing(&entry.config))?;
        let id = Digest::of(&config);
        let stated = entry.config.strip_suffix(".json").unwrap_or(&entry.config);
        let stated = stated.rsplit('/').next().unwrap_or(stated);
        if stated.len() == 64 && stated != id.hex() {
            return Err(Error::corrupt(&entry.config, format!("its digest is {id}")));
        }
        let parsed: DockerConfig = serde_json::from_slice(&config)
            .map_err(|error| Error::corrupt(&entry.config, error))?;
        let mut described = Vec::new();
        for (diff_id, path) in parsed.rootfs.diff_ids.iter().zip(&entry.layers) {
            let size = self.source.open(path)?.ok_or_else(|| missing(path))?.size();
            described.push(serde_json::json!({
                "mediaType": OCI_LAYER, "digest": diff_id, "size": size,
            }));
        }
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": id, "size": config.len() },
            "layers": described,
        })
        .to_string()
        .into_bytes();
        let mut tags = Vec::new();
        for tag in entry.repo_tags.iter().flatten() {
            tags.extend(tag.parse::<Reference>()?.tagged());
        }
        let layers =
            entry.layers.iter().map(|path| PartLayer { path: path.clone(), descriptor: None });
        Ok(Parts {
            source: Arc::clone(&self.source),
            id,
            config,
            layers: layers.collect(),
            manifest_digest: Digest::of(&manifest),
            manifest,
            tags,
            digests: Vec::new(),
        })
    }
}

/// The image's name in an OCI index. A lone tag such as `latest` names nothing.
fn name(descriptor: &Descriptor) -> Option<String> {
    let candidates = [
        descriptor.annotation("io.containerd.image.name"),
        descriptor.annotation("org.opencontainers.image.ref.name"),
    ];
    let name = candidates.into_iter().flatten().next()?;
    if name == "latest" {
        return None;
    }
    name.parse::<Reference>().ok().map(|reference| reference.to_string())
}

fn docker_tags(docker: &[DockerEntry], config: &Digest) -> Vec<String> {
    docker
        .iter()
        .filter(|entry| entry.config.contains(config.hex()))
        .flat_map(|entry| entry.repo_tags.iter().flatten().cloned())
        .collect()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn missing(path: &str) -> Error {
    Error::corrupt("archive", format!("{path} is missing"))
}

pub(crate) async fn join<T>(handle: tokio::task::JoinHandle<Result<T, Error>>) -> Result<T, Error> {
    match handle.await {
        Ok(result) => result,
        Err(error) => Err(Error::io("finish", "a background task", std::io::Error::other(error))),
    }
}
