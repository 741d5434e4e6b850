//! The store: images, their blobs, layers and snapshots below one directory.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::blob::Blobs;
use crate::catalog::{Catalog, ImageRecord};
use crate::digest::Digest;
use crate::durable;
use crate::error::Error;
use crate::image::{Image, ImageLayer};
use crate::layer::{Layers, Lease};
use crate::limits::Limits;
use crate::pull::Pulls;
use crate::reference::Reference;
use crate::snapshot::Snapshots;
use crate::unpack::Ownership;

const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Everything is below here.
    pub root: PathBuf,
    /// `registries.yaml`, if there is one.
    pub registries: Option<PathBuf>,
    pub limits: Limits,
    /// Whether the ids in layers are kept.
    pub ownership: Ownership,
    /// Docker's and Podman's credential files, the first with an entry counts.
    pub auth_files: Vec<PathBuf>,
}

impl Config {
    /// Defaults: no `registries.yaml`, [`Limits::default`], ownership as this process can have
    /// it, the credential files of the user in the environment.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            registries: None,
            limits: Limits::default(),
            ownership: Ownership::detect(),
            auth_files: crate::registry::credentials::default_files(),
        }
    }
}

/// An image store. Clones share it; the directory is locked against other processes.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: Config,
    pub blobs: Blobs,
    pub layers: Arc<Layers>,
    pub snapshots: Snapshots,
    pub pulls: Pulls,
    catalog: Mutex<Catalog>,
    /// Parsed configurations of the images in the catalog.
    configs: Mutex<HashMap<Digest, Arc<ImageConfiguration>>>,
    boot: String,
    _lock: File,
}

/// An image about to be committed: everything it needs is already in the store.
pub(crate) struct Candidate {
    pub id: Digest,
    pub manifest: Digest,
    pub layers: Vec<Digest>,
    pub size_bytes: u64,
    pub tags: Vec<String>,
    pub digests: Vec<String>,
}

impl Store {
    /// Opens or makes the store at `config.root`, and sweeps what an earlier process left half done.
    /// Blocks.
    pub fn open(config: Config) -> Result<Self, Error> {
        let root = std::path::absolute(&config.root)
            .map_err(|error| Error::io("resolve", &config.root, error))?;
        let config = Config { root, ..config };
        let root = config.root.as_path();
        let tmp = root.join("tmp");
        for name in ["blobs/sha256", "blobs/sha512", "layers", "snapshots", "tmp"] {
            durable::make_directory(&root.join(name))?;
        }
        let lock = lock(root)?;
        // The mounts below are reachable by containers' ids only through their own mount.
        durable::set_mode(root, 0o711)?;
        sweep(root, &tmp)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let layers = Arc::new(Layers::open(root.join("layers"), tmp.clone())?);
        let blobs = Blobs::open(root.join("blobs"))?;
        let mut catalog = Catalog::read(root)?;
        let before = catalog.images.len();
        let configs = check_catalog(&mut catalog, &blobs, &layers, &boot);
        if catalog.images.len() != before {
            catalog.write(root)?;
        }
        let snapshots = Snapshots::open(root.join("snapshots"), tmp)?;
        let store = Self {
            inner: Arc::new(Inner {
                config,
                blobs,
                layers,
                snapshots,
                pulls: Pulls::default(),
                catalog: Mutex::new(catalog),
                configs: Mutex::new(configs),
                boot,
                _lock: lock,
            }),
        };
        store.collect()?;
        store.sync_later();
        Ok(store)
    }

    /// All images, in order of their IDs.
    pub fn list(&self) -> Vec<Image> {
        let catalog = self.catalog().clone();
        catalog.images.iter().filter_map(|(id, record)| self.image(&catalog, id, record)).collect()
    }

    /// The image `name`: a reference, `repository@digest`, an image ID, or the start of one (at least
    /// twelve hex digits).
    pub fn get(&self, name: &str) -> Option<Image> {
        let catalog = self.catalog().clone();
        let id = find(&catalog, name)?;
        let record = catalog.images.get(&id)?;
        self.image(&catalog, &id, record)
    }

    /// Gives the image `name` the further name `reference`.
    pub fn tag(&self, name: &str, reference: &str) -> Result<(), Error> {
        let parsed: Reference = reference.parse()?;
        let tag = parsed.tagged().ok_or_else(|| Error::InvalidReference {
            reference: reference.to_owned(),
            reason: "a tag is needed".to_owned(),
        })?;
        self.update(|catalog| {
            let id = find(catalog, name).ok_or_else(|| not_found(name))?;
            catalog.tags.insert(tag, id);
            Ok(())
        })
    }

    /// Says whether the image `name` stays when room is made.
    pub fn pin(&self, name: &str, pinned: bool) -> Result<(), Error> {
        self.update(|catalog| {
            let id = find(catalog, name).ok_or_else(|| not_found(name))?;
            let record = catalog.images.get_mut(&id).ok_or_else(|| not_found(name))?;
            record.pinned = pinned;
            Ok(())
        })
    }

    /// Removes one name, and the image with its last name; an image ID removes all its names. Layers
    /// go when no image and no snapshot needs them. Returns the bytes freed. Blocks.
    pub fn remove(&self, name: &str) -> Result<u64, Error> {
        self.update(|catalog| {
            let id = find(catalog, name).ok_or_else(|| not_found(name))?;
            let tag =
                name.parse::<Reference>().ok().and_then(|reference| match reference.digest() {
                    Some(digest) => Some(reference.with_digest(digest)),
                    None => reference.tagged(),
                });
            let by_name = tag.is_some_and(|tag| {
                catalog.tags.remove(&tag).is_some() || catalog.digests.remove(&tag).is_some()
            });
            let has_tags = catalog.tags.values().any(|other| *other == id);
            if !by_name || !has_tags {
                catalog.forget(&id);
            }
            Ok(())
        })?;
        self.collect()
    }

    /// Bytes of unpacked layers and their number of entries, all images together.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for diff_id in self.catalog().layers() {
            if let Some(layer) = self.inner.layers.get(&diff_id) {
                usage.bytes += layer.record.bytes;
                usage.inodes += layer.record.entries;
            }
        }
        usage
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.inner.config.root
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.config.limits
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.inner.config.root.join("tmp")
    }

    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.inner.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, change: impl FnOnce(&mut Catalog) -> Result<T, Error>) -> Result<T, Error> {
        let mut current = self.catalog();
        let mut next = current.clone();
        let result = change(&mut next)?;
        next.write(&self.inner.config.root)?;
        *current = next;
        Ok(result)
    }

    /// Enters an image whose blobs and layers are in place. The leases end once it is entered.
    pub(crate) fn commit(&self, candidate: Candidate, leases: Vec<Lease>) -> Result<Image, Error> {
        let Candidate { id, manifest, layers, size_bytes, tags, digests } = candidate;
        let config = read_config(&self.inner.blobs, &id)?;
        self.configs().insert(id.clone(), config);
        let boot = self.inner.boot.clone();
        self.update(|catalog| {
            catalog.images.entry(id.clone()).or_insert(ImageRecord {
                manifest,
                layers,
                size_bytes,
                pinned: false,
                unsynced_boot: Some(boot),
            });
            for tag in tags {
                catalog.tags.insert(tag, id.clone());
            }
            for digest in digests {
                catalog.digests.insert(digest, id.clone());
            }
            Ok(())
        })?;
        drop(leases);
        self.sync_later();
        self.get(&id.to_string()).ok_or_else(|| not_found(&id.to_string()))
    }

    /// Adds names to an image that is already there.
    pub(crate) fn name(
        &self,
        id: &Digest,
        tag: Option<String>,
        digest: Option<String>,
    ) -> Result<Image, Error> {
        let known = {
            let catalog = self.catalog();
            let same = |map: &std::collections::BTreeMap<String, Digest>, name: &Option<String>| {
                name.as_ref().is_none_or(|name| map.get(name) == Some(id))
            };
            same(&catalog.tags, &tag) && same(&catalog.digests, &digest)
        };
        if !known {
            self.update(|catalog| {
                if !catalog.images.contains_key(id) {
                    return Err(not_found(&id.to_string()));
                }
                catalog.tags.extend(tag.map(|tag| (tag, id.clone())));
                catalog.digests.extend(digest.map(|digest| (digest, id.clone())));
                Ok(())
            })?;
        }
        self.get(&id.to_string()).ok_or_else(|| not_found(&id.to_string()))
    }

    /// Removes layers, blobs and parsed configurations nobody needs; returns bytes freed.
    pub(crate) fn collect(&self) -> Result<u64, Error> {
        let (retired, mut freed) = {
            // Held throughout, so that no image is entered between the decision and the removal.
            let catalog = self.catalog();
            let mut used = catalog.layers();
            used.extend(self.inner.snapshots.layers());
            self.configs().retain(|id, _| catalog.images.contains_key(id));
            let freed = self.inner.blobs.collect(&catalog.blobs())?;
            (self.inner.layers.retire(&used)?, freed)
        };
        for (path, bytes) in retired {
            durable::remove_tree(&path)?;
            freed += bytes;
        }
        Ok(freed)
    }

    fn configs(&self) -> MutexGuard<'_, HashMap<Digest, Arc<ImageConfiguration>>> {
        self.inner.configs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn image(&self, catalog: &Catalog, id: &Digest, record: &ImageRecord) -> Option<Image> {
        let config = self.configs().get(id).cloned()?;
        let named = |map: &std::collections::BTreeMap<String, Digest>| -> Vec<String> {
            map.iter().filter(|(_, other)| *other == id).map(|(name, _)| name.clone()).collect()
        };
        let layers = record
            .layers
            .iter()
            .map(|diff_id| ImageLayer {
                diff_id: diff_id.clone(),
                unpacked_bytes: self
                    .inner
                    .layers
                    .get(diff_id)
                    .map_or(0, |layer| layer.record.bytes),
            })
            .collect();
        Some(Image {
            id: id.to_string(),
            tags: named(&catalog.tags),
            digests: named(&catalog.digests),
            size_bytes: record.size_bytes,
            pinned: record.pinned,
            config,
            layers,
        })
    }

    /// Brings new layers to the disk in the background, then trusts them across a power cut.
    fn sync_later(&self) {
        let pending = |catalog: &Catalog| -> Vec<Digest> {
            catalog
                .images
                .iter()
                .filter(|(_, image)| image.unsynced_boot.is_some())
                .map(|(id, _)| id.clone())
                .collect()
        };
        let ids = pending(&self.catalog());
        if ids.is_empty() {
            return;
        }
        let weak = Arc::downgrade(&self.inner);
        let root = self.inner.config.root.clone();
        let sync = move || {
            let result = durable::sync_file_system(&root).and_then(|()| {
                let Some(inner) = weak.upgrade() else {
                    return Ok(());
                };
                Store { inner }.update(|catalog| {
                    for id in &ids {
                        if let Some(image) = catalog.images.get_mut(id) {
                            image.unsynced_boot = None;
                        }
                    }
                    Ok(())
                })
            });
            if let Err(error) = result {
                tracing::warn!(%error, "cannot sync image layers to the disk");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("image-sync".to_owned()).spawn(sync) {
            tracing::warn!(%error, "cannot start the thread that syncs image layers");
        }
    }
}

/// Space taken by unpacked layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// Removes what an earlier process was about to write.
fn sweep(root: &Path, tmp: &Path) -> Result<(), Error> {
    let unfinished =
        |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with(".new-");
    let mut leftovers = durable::entries(tmp)?;
    leftovers.extend(durable::entries(root)?.into_iter().filter(unfinished));
    for leftover in leftovers {
        let path = leftover.path();
        if path.is_dir() {
            durable::remove_tree(&path)?;
        } else {
            std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}

/// Locks the directory. An earlier user may be about to let go: it is given a moment.
fn lock(root: &Path) -> Result<File, Error> {
    let path = root.join("lock");
    let file = File::create(&path).map_err(|error| Error::io("create", &path, error))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(LOCK_PATIENCE / 50);
            }
            Err(Errno::WOULDBLOCK) => return Err(Error::Locked { path: root.to_owned() }),
            Err(error) => return Err(Error::io("lock", &path, error)),
        }
    }
}

/// Drops images that lost something, and reads the configurations of the others.
fn check_catalog(
    catalog: &mut Catalog,
    blobs: &Blobs,
    layers: &Layers,
    boot: &str,
) -> HashMap<Digest, Arc<ImageConfiguration>> {
    let mut configs = HashMap::new();
    let mut lost = Vec::new();
    for (id, image) in &catalog.images {
        let power_cut = image.unsynced_boot.as_deref().is_some_and(|then| then != boot);
        let whole = image.layers.iter().all(|diff_id| layers.get(diff_id).is_some());
        match read_config(blobs, id) {
            Ok(config) if whole && !power_cut => {
                configs.insert(id.clone(), config);
            }
            result => lost.push((id.clone(), result.err(), power_cut)),
        }
    }
    for (id, error, power_cut) in lost {
        tracing::warn!(image = %id, ?error, power_cut, "dropping an image that is not whole; it will be pulled again");
        catalog.forget(&id);
    }
    configs
}

pub(crate) fn read_config(blobs: &Blobs, id: &Digest) -> Result<Arc<ImageConfiguration>, Error> {
    let bytes = blobs.read(id)?;
    let config = serde_json::from_slice(&bytes)
        .map_err(|error| Error::corrupt(format!("image configuration {id}"), error))?;
    Ok(Arc::new(config))
}

fn find(catalog: &Catalog, name: &str) -> Option<Digest> {
    if let Ok(id) = name.parse::<Digest>() {
        if catalog.images.contains_key(&id) {
            return Some(id);
        }
        let suffix = format!("@{id}");
        let mut named = catalog.digests.iter().filter(|(name, _)| name.ends_with(&suffix));
        return named.next().map(|(_, id)| id.clone());
    }
    if let Ok(reference) = name.parse::<Reference>() {
        let found = match reference.digest() {
            Some(digest) => catalog.digests.get(&reference.with_digest(digest)),
            None => reference.tagged().and_then(|tag| catalog.tags.get(&tag)),
        };
        if let Some(id) = found {
            return Some(id.clone());
        }
    }
    let hex = name.strip_prefix("sha256:").unwrap_or(name);
    if hex.len() < 12 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut matching = catalog.images.keys().filter(|id| id.hex().starts_with(hex));
    let id = matching.next()?;
    matching.next().is_none().then(|| id.clone())
}

fn not_found(name: &str) -> Error {
    Error::NotFound { what: format!("image {name:?}") }
}
