//! Manifests and configurations, verbatim, by digest. Layers are not kept as blobs: see the crate's text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::digest::{Digest, Hasher};
use crate::durable;
use crate::error::Error;

pub(crate) struct Blobs {
    directory: PathBuf,
    /// Written for images that are not entered yet, and for how many.
    fresh: Mutex<BTreeMap<Digest, usize>>,
}

impl Blobs {
    pub fn open(directory: PathBuf) -> Result<Self, Error> {
        for name in ["sha256", "sha512"] {
            durable::make_directory(&directory.join(name))?;
        }
        Ok(Self { directory, fresh: Mutex::default() })
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Reads a blob, checking it: they are small.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.path(digest);
        let bytes = std::fs::read(&path).map_err(|error| Error::io("read", &path, error))?;
        verify(&path.display().to_string(), digest, &bytes)?;
        Ok(bytes)
    }

    /// Keeps `bytes`, which must be `digest`, until an image names it or [`Blobs::settle`] is told.
    pub fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        verify("blob", digest, bytes)?;
        *self.fresh().entry(digest.clone()).or_default() += 1;
        let path = self.path(digest);
        if path.exists() {
            return Ok(());
        }
        durable::write(&path, bytes)
    }

    /// The blobs are named by an image now, or given up.
    pub fn settle(&self, digests: &[Digest]) {
        let mut fresh = self.fresh();
        for digest in digests {
            if let Some(count) = fresh.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    fresh.remove(digest);
                }
            }
        }
    }

    /// Removes all blobs but `used` and the fresh ones; returns bytes freed.
    pub fn collect(&self, used: &BTreeSet<Digest>) -> Result<u64, Error> {
        let fresh = self.fresh();
        let mut freed = 0;
        for algorithm in ["sha256", "sha512"] {
            for entry in durable::entries(&self.directory.join(algorithm))? {
                let name = entry.file_name();
                let digest = format!("{algorithm}:{}", name.to_string_lossy()).parse::<Digest>();
                let wanted = digest
                    .is_ok_and(|digest| used.contains(&digest) || fresh.contains_key(&digest));
                if !wanted {
                    let path = entry.path();
                    freed += entry.metadata().map_or(0, |metadata| metadata.len());
                    std::fs::remove_file(&path)
                        .map_err(|error| Error::io("remove", &path, error))?;
                }
            }
        }
        Ok(freed)
    }

    fn fresh(&self) -> std::sync::MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.fresh.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that `bytes` are what `digest` says.
pub(crate) fn verify(what: &str, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(bytes);
    let found = hasher.finish();
    if found == *digest {
        return Ok(());
    }
    Err(Error::corrupt(what, format!("its digest is {found}, not {digest}")))
}
