//! Unpacked layers, one directory each, named by a short counter and known by their diff ID.
//!
//! `layers/<name>/fs` is the overlay directory, `layers/<name>/layer.json` says what it is. Both appear at
//! once by a rename from `tmp/`, so that a layer is there whole or not at all.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::decompress::decompress;
use crate::digest::{Digest, Hasher};
use crate::durable;
use crate::error::Error;
use crate::limits::Limits;
use crate::unpack::{Ownership, unpack};

/// What `layer.json` says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the uncompressed archive: the layer's identity.
    pub diff_id: Digest,
    /// Digest of the blob it came from.
    #[serde(default)]
    pub digest: Option<Digest>,
    /// Bytes of its files.
    pub bytes: u64,
    pub entries: u64,
    /// Directories whose attributes the archive does not tell.
    #[serde(default)]
    pub implied: Vec<String>,
    /// What could not be kept, for people.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// An unpacked layer.
#[derive(Debug)]
pub struct Layer {
    name: String,
    pub record: LayerRecord,
}

impl Layer {
    /// Its directory below `layers/`: short, so that many fit into one page of mount options.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[derive(Default)]
struct State {
    by_diff_id: HashMap<Digest, Arc<Layer>>,
    leases: HashMap<Digest, usize>,
    next_name: u64,
}

pub(crate) struct Layers {
    directory: PathBuf,
    tmp: PathBuf,
    state: Mutex<State>,
    working: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// Keeps a layer that no image names yet from being collected.
pub(crate) struct Lease {
    layers: Arc<Layers>,
    diff_id: Digest,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.layers.state();
        if let Some(count) = state.leases.get_mut(&self.diff_id) {
            *count -= 1;
            if *count == 0 {
                state.leases.remove(&self.diff_id);
            }
        }
    }
}

impl Layers {
    /// Reads the layers that are there. A directory without a readable record is an error of its own
    /// only for images that need it; it is collected with the unreferenced ones.
    pub fn open(directory: PathBuf, tmp: PathBuf) -> Result<Self, Error> {
        let mut state = State::default();
        for entry in durable::entries(&directory)? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Ok(number) = u64::from_str_radix(&name, 36) else {
                continue;
            };
            state.next_name = state.next_name.max(number + 1);
            let path = entry.path().join("layer.json");
            match durable::read_json::<LayerRecord>(&path) {
                Ok(record) => {
                    let layer = Layer { name, record };
                    let diff_id = layer.record.diff_id.clone();
                    state.by_diff_id.insert(diff_id, Arc::new(layer));
                }
                Err(error) => {
                    tracing::warn!(%error, "dropping an image layer without a readable record");
                    durable::discard(&entry.path(), &tmp)?;
                }
            }
        }
        Ok(Self { directory, tmp, state: Mutex::new(state), working: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, diff_id: &Digest) -> Option<Arc<Layer>> {
        self.state().by_diff_id.get(diff_id).cloned()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The overlay directory of `layer`.
    pub fn path(&self, layer: &Layer) -> PathBuf {
        self.directory.join(&layer.name).join("fs")
    }

    pub fn lease(self: &Arc<Self>, diff_id: &Digest) -> Lease {
        *self.state().leases.entry(diff_id.clone()).or_default() += 1;
        Lease { layers: Arc::clone(self), diff_id: diff_id.clone() }
    }

    /// Only one at a time makes a layer; who waited finds it made.
    pub async fn lock(&self, diff_id: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut working = self.working.lock().unwrap_or_else(PoisonError::into_inner);
            working.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(working.entry(diff_id.clone()).or_default())
        };
        lock.lock_owned().await
    }

    /// Unpacks the blob `reader`, of any compression, checks that it is `diff_id`, and keeps it.
    /// Blocks; call it while holding [`Layers::lock`].
    pub fn make(
        &self,
        reader: impl Read + Send,
        diff_id: &Digest,
        digest: Option<&Digest>,
        limits: &Limits,
        ownership: Ownership,
        verified: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Arc<Layer>, Error> {
        let temporary = durable::temporary_directory(&self.tmp)?;
        let fs = temporary.path().join("fs");
        std::fs::create_dir(&fs).map_err(|error| Error::io("create", &fs, error))?;
        durable::set_mode(&fs, 0o755)?;
        let mut hashing =
            Hashing { inner: decompress(reader)?, hasher: Hasher::new(diff_id.algorithm()) };
        let skeleton = temporary.path().join("skeleton");
        let file =
            File::create(&skeleton).map_err(|error| Error::io("create", &skeleton, error))?;
        let unpacked = unpack(&mut hashing, &fs, file, limits, ownership)?;
        if !unpacked.reproducible {
            std::fs::remove_file(&skeleton)
                .map_err(|error| Error::io("remove", &skeleton, error))?;
        }
        // The blob's own digest first: a damaged download should not be reported as a wrong image.
        verified()?;
        let found = hashing.hasher.finish();
        if found != *diff_id {
            return Err(Error::corrupt(
                "layer",
                format!("its content has digest {found}, the image says {diff_id}"),
            ));
        }
        for note in &unpacked.notes {
            tracing::info!(layer = %diff_id, "{note}");
        }
        let record = LayerRecord {
            diff_id: diff_id.clone(),
            digest: digest.cloned(),
            bytes: unpacked.bytes,
            entries: unpacked.entries,
            implied: unpacked.implied,
            notes: unpacked.notes,
        };
        let path = temporary.path().join("layer.json");
        durable::write(&path, &durable::encode_json(&path, &record)?)?;
        self.keep(temporary, record)
    }

    fn keep(&self, temporary: tempfile::TempDir, record: LayerRecord) -> Result<Arc<Layer>, Error> {
        let mut state = self.state();
        let name = base36(state.next_name);
        state.next_name += 1;
        let path = self.directory.join(&name);
        std::fs::rename(temporary.path(), &path)
            .map_err(|error| Error::io("rename to", &path, error))?;
        let _ = temporary.keep();
        let layer = Arc::new(Layer { name, record });
        let diff_id = layer.record.diff_id.clone();
        state.by_diff_id.insert(diff_id, Arc::clone(&layer));
        Ok(layer)
    }

    /// Moves all layers but `used` and the leased ones out of sight; returns where they are now, to be
    /// removed without a lock, and their bytes.
    pub fn retire(&self, used: &BTreeSet<Digest>) -> Result<Vec<(PathBuf, u64)>, Error> {
        let mut state = self.state();
        let unused: Vec<Digest> = state
            .by_diff_id
            .keys()
            .filter(|diff_id| !used.contains(diff_id) && !state.leases.contains_key(diff_id))
            .cloned()
            .collect();
        let mut retired = Vec::new();
        for diff_id in unused {
            if let Some(layer) = state.by_diff_id.remove(&diff_id) {
                let path = durable::retire(&self.directory.join(&layer.name), &self.tmp)?;
                retired.push((path, layer.record.bytes));
            }
        }
        Ok(retired)
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        Ok(got)
    }
}

fn base36(mut number: u64) -> String {
    let mut digits = Vec::new();
    loop {
        digits.push(char::from_digit((number % 36) as u32, 36).expect("a remainder below 36"));
        number /= 36;
        if number == 0 {
            return digits.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_read_back() {
        for number in [0, 9, 10, 35, 36, 46_655, 46_656, u64::MAX] {
            assert_eq!(u64::from_str_radix(&base36(number), 36), Ok(number));
        }
    }
}
