//! Snapshots: the writable layer of one container above the layers of an image.
//!
//! `snapshots/<key>/` has `upper` and `work` for overlayfs, and `snapshot.json`, written last, which keeps
//! the layers from being collected even after their image was removed.
//!
//! Source: kernel documentation, "Overlay Filesystem".

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::durable;
use crate::error::Error;
use crate::implied::{self, Level, Mend};
use crate::store::Store;

/// One page less the terminator: what mount(2) takes as options.
const OPTIONS_BYTES: usize = 4095;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    image: Digest,
    /// Diff IDs, lowest first.
    layers: Vec<Digest>,
}

pub(crate) struct Snapshots {
    directory: PathBuf,
    tmp: PathBuf,
    records: Mutex<BTreeMap<String, Record>>,
    mends: Mutex<BTreeMap<Digest, Arc<[Mend]>>>,
}

impl Snapshots {
    pub fn open(directory: PathBuf, tmp: PathBuf) -> Result<Self, Error> {
        let mut records = BTreeMap::new();
        for entry in durable::entries(&directory)? {
            let key = entry.file_name().to_string_lossy().into_owned();
            match durable::read_json(&entry.path().join("snapshot.json")) {
                Ok(record) => {
                    records.insert(key, record);
                }
                Err(error) => {
                    tracing::warn!(%error, "dropping a container's snapshot without a readable record");
                    durable::discard(&entry.path(), &tmp)?;
                }
            }
        }
        Ok(Self { directory, tmp, records: Mutex::new(records), mends: Mutex::default() })
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Diff IDs some snapshot needs.
    pub fn layers(&self) -> BTreeSet<Digest> {
        self.records().values().flat_map(|record| record.layers.iter().cloned()).collect()
    }
}

/// A container's root file system, ready to be mounted.
#[derive(Clone, Debug)]
pub struct Snapshot {
    key: String,
    image_id: String,
    directory: PathBuf,
    layers_directory: PathBuf,
    /// Names below `layers_directory`, topmost first, as overlayfs wants them.
    lower: Vec<String>,
}

impl Store {
    /// The snapshot `key` of image `image_id` (any name [`Store::get`] takes), made if it is not there.
    ///
    /// An existing snapshot is returned as it is if it is of the same image. Keys are file names.
    pub fn snapshot(&self, image_id: &str, key: &str) -> Result<Snapshot, Error> {
        check_key(key)?;
        let image = self
            .get(image_id)
            .ok_or_else(|| Error::NotFound { what: format!("image {image_id:?}") })?;
        let id = image.id.parse::<Digest>().map_err(|error| Error::corrupt("image", error))?;
        let snapshots = &self.inner.snapshots;
        let mut records = snapshots.records();
        if let Some(record) = records.get(key) {
            if record.image != id {
                return Err(Error::InUse {
                    what: format!("snapshot {key:?}"),
                    user: format!("image {}", record.image),
                });
            }
            return self.open_snapshot(key, record);
        }
        let record = Record {
            image: id,
            layers: image.layers.into_iter().map(|layer| layer.diff_id).collect(),
        };
        // The image may have been removed since it was looked up.
        let leases: Vec<_> =
            record.layers.iter().map(|diff_id| self.inner.layers.lease(diff_id)).collect();
        let snapshot = self.open_snapshot(key, &record)?;
        let temporary = durable::temporary_directory(&snapshots.tmp)?;
        self.fill(temporary.path(), &record)?;
        durable::set_mode(temporary.path(), 0o711)?;
        std::fs::rename(temporary.path(), &snapshot.directory)
            .map_err(|error| Error::io("rename to", &snapshot.directory, error))?;
        let _ = temporary.keep();
        records.insert(key.to_owned(), record);
        drop(leases);
        Ok(snapshot)
    }

    /// The snapshot `key`, if it was made.
    pub fn existing_snapshot(&self, key: &str) -> Result<Option<Snapshot>, Error> {
        let record = self.inner.snapshots.records().get(key).cloned();
        record.map(|record| self.open_snapshot(key, &record)).transpose()
    }

    /// Keys of all snapshots and the image each is of.
    pub fn snapshots(&self) -> Vec<(String, String)> {
        let records = self.inner.snapshots.records();
        let pair = |(key, record): (&String, &Record)| (key.clone(), record.image.to_string());
        records.iter().map(pair).collect()
    }

    /// Removes the snapshot `key`, which must not be mounted any more; one that is not there is fine.
    /// Layers only it needed go too. Blocks.
    pub fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        check_key(key)?;
        let snapshots = &self.inner.snapshots;
        let grave = {
            let mut records = snapshots.records();
            let directory = snapshots.directory.join(key);
            let grave = if directory.exists() {
                Some(durable::retire(&directory, &snapshots.tmp)?)
            } else {
                None
            };
            records.remove(key);
            grave
        };
        if let Some(grave) = grave {
            durable::remove_tree(&grave)?;
        }
        self.collect().map(drop)
    }

    fn open_snapshot(&self, key: &str, record: &Record) -> Result<Snapshot, Error> {
        let mut lower = Vec::with_capacity(record.layers.len());
        for diff_id in record.layers.iter().rev() {
            let layer = self.inner.layers.get(diff_id).ok_or_else(|| {
                Error::corrupt(
                    format!("image {}", record.image),
                    format!("its layer {diff_id} is gone; pull it again"),
                )
            })?;
            lower.push(layer.name().to_owned());
        }
        Ok(Snapshot {
            key: key.to_owned(),
            image_id: record.image.to_string(),
            directory: self.inner.snapshots.directory.join(key),
            layers_directory: self.inner.layers.directory().to_owned(),
            lower,
        })
    }

    fn fill(&self, directory: &Path, record: &Record) -> Result<(), Error> {
        let upper = directory.join("upper");
        durable::make_directory(&upper)?;
        durable::make_directory(&directory.join("work"))?;
        durable::set_mode(&upper, 0o755)?;
        // The merged root has the attributes of the upper directory: take the image's.
        let named = record.layers.iter().rev().find_map(|diff_id| {
            let layer = self.inner.layers.get(diff_id)?;
            let implied = layer.record.implied.iter().any(String::is_empty);
            (!implied).then(|| self.inner.layers.path(&layer))
        });
        implied::apply(&upper, &self.mends(record))?;
        if let Some(root) = named {
            implied::copy_attributes(&root, &upper)?;
        }
        let path = directory.join("snapshot.json");
        durable::write(&path, &durable::encode_json(&path, record)?)
    }
}

impl Store {
    /// Directories to be made in every upper directory of this image; found once.
    fn mends(&self, record: &Record) -> Arc<[Mend]> {
        let snapshots = &self.inner.snapshots;
        let mut known = snapshots.mends.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.entry(record.image.clone()).or_insert_with(|| {
            let layers: Vec<_> = record
                .layers
                .iter()
                .rev()
                .filter_map(|diff_id| self.inner.layers.get(diff_id))
                .collect();
            let levels: Vec<Level<'_>> = layers
                .iter()
                .map(|layer| Level {
                    root: self.inner.layers.path(layer),
                    implied: &layer.record.implied,
                })
                .collect();
            implied::mends(&levels).into()
        });
        Arc::clone(found)
    }
}

impl Snapshot {
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The image it is of.
    pub fn image_id(&self) -> &str {
        &self.image_id
    }

    /// What the container wrote: the upper directory of the overlay.
    pub fn upper(&self) -> PathBuf {
        self.directory.join("upper")
    }

    /// The overlay's work directory.
    pub fn work(&self) -> PathBuf {
        self.directory.join("work")
    }

    /// The overlay directories of the image, topmost first.
    pub fn lower(&self) -> Vec<PathBuf> {
        self.lower.iter().map(|name| self.layers_directory.join(name).join("fs")).collect()
    }

    /// Mounts it at `target`, an existing directory, in this process's mount namespace.
    ///
    /// Needs `CAP_SYS_ADMIN` in the user namespace that owns the mount namespace, and Linux 5.11.
    pub fn mount(&self, target: &Path) -> Result<(), Error> {
        self.mount_with(target, MountFlags::empty())
    }

    /// As [`Snapshot::mount`], and nothing can be written.
    pub fn mount_read_only(&self, target: &Path) -> Result<(), Error> {
        self.mount_with(target, MountFlags::RDONLY)
    }

    fn mount_with(&self, target: &Path, mount_flags: MountFlags) -> Result<(), Error> {
        let target =
            std::path::absolute(target).map_err(|error| Error::io("resolve", target, error))?;
        // A mark of an earlier `volatile` mount that was not unmounted cleanly: the content is still
        // what the container wrote as far as this kernel is concerned.
        let _ = std::fs::remove_dir_all(self.directory.join("work/work/incompat"));
        let mut result = self.try_mount(&target, mount_flags, ",userxattr,volatile");
        if matches!(result, Err(Errno::INVAL)) {
            result = self.try_mount(&target, mount_flags, ",userxattr");
        }
        result.map_err(|error| Error::io("mount the overlay at", &target, error))
    }

    fn try_mount(&self, target: &Path, mount_flags: MountFlags, flags: &str) -> Result<(), Errno> {
        // A single directory may not stand alone, so an image without layers gets an empty one.
        let lower = if self.lower.is_empty() {
            let empty = self.directory.join("empty");
            std::fs::create_dir_all(&empty)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            format!("../snapshots/{}/empty", self.key)
        } else {
            let names: Vec<String> = self.lower.iter().map(|name| format!("{name}/fs")).collect();
            names.join(":")
        };
        let own = format!("../snapshots/{}", self.key);
        let options = format!("lowerdir={lower},upperdir={own}/upper,workdir={own}/work{flags}");
        if options.len() > OPTIONS_BYTES {
            return Err(Errno::TOOBIG);
        }
        let options = CString::new(options).map_err(|_| Errno::INVAL)?;
        // Short relative names keep hundreds of layers within one page of options. The working
        // directory belongs to the process, so a thread that has its own does it.
        let mounter = || -> Result<(), Errno> {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)
                .map_err(|error| Errno::from_raw_os_error(error as i32))?;
            rustix::process::chdir(&self.layers_directory)?;
            mount("overlay", target, "overlay", mount_flags, Some(options.as_c_str()))
        };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("mount".to_owned())
                .spawn_scoped(scope, mounter)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?
                .join()
                .unwrap_or(Err(Errno::IO))
        })
    }

    /// Unmounts it from `target`; not mounted is fine. Still busy, it is detached at once and goes when
    /// its last user does.
    pub fn unmount(target: &Path) -> Result<(), Error> {
        match unmount(target, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
            Err(Errno::BUSY) => unmount(target, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                .map_err(|error| Error::io("unmount", target, error)),
            Err(error) => Err(Error::io("unmount", target, error)),
        }
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if key.is_empty() || key.len() > 200 || key.starts_with('.') || !key.bytes().all(allowed) {
        return Err(Error::InvalidReference {
            reference: key.chars().take(220).collect(),
            reason: "a snapshot key has letters, digits, '-', '_' and '.' only".to_owned(),
        });
    }
    Ok(())
}
