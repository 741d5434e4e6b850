//! Files that are there whole or not at all, whenever the process dies.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// Makes `path` and its parents.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|error| Error::io("create", path, error))
}

pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|error| Error::io("set the mode of", path, error))
}

/// Writes `bytes` under a temporary name, syncs, renames to `path`, and syncs the directory: for what must
/// outlive a power cut.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(Path::new("."));
    replace(path, bytes, true)
        .and_then(|()| File::open(directory)?.sync_all())
        .map_err(|error| Error::io("write", path, error))
}

/// Writes `bytes` under a temporary name and renames to `path`: for what is whole whenever the process
/// dies, and is checked before it is trusted after a power cut.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    replace(path, bytes, false).map_err(|error| Error::io("write", path, error))
}

fn replace(path: &Path, bytes: &[u8], sync: bool) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
    file.write_all(bytes)?;
    if sync {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

pub(crate) fn encode_json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value)
        .map_err(|error| Error::io("encode", path, std::io::Error::other(error)))
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(|error| Error::io("read", path, error))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::corrupt(path.display().to_string(), error))
}

/// Flushes everything of the file system `path` is on.
pub(crate) fn sync_file_system(path: &Path) -> Result<(), Error> {
    let directory = File::open(path).map_err(|error| Error::io("open", path, error))?;
    rustix::fs::syncfs(&directory).map_err(|error| Error::io("sync", path, error))
}

pub(crate) fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    fs::read_dir(directory)
        .and_then(Iterator::collect)
        .map_err(|error| Error::io("list", directory, error))
}

/// A directory in `tmp` that goes away with the value, and at the next start if the process dies first.
pub(crate) fn temporary_directory(tmp: &Path) -> Result<tempfile::TempDir, Error> {
    tempfile::Builder::new()
        .prefix("new-")
        .tempdir_in(tmp)
        .map_err(|error| Error::io("create a directory in", tmp, error))
}

/// Moves `path` out of sight in one step; returns where it is now.
pub(crate) fn retire(path: &Path, tmp: &Path) -> Result<PathBuf, Error> {
    let grave = temporary_directory(tmp)?.keep();
    let target = grave.join("old");
    fs::rename(path, &target).map_err(|error| Error::io("remove", path, error))?;
    Ok(grave)
}

/// Removes `path` so that nobody ever sees it half removed.
pub(crate) fn discard(path: &Path, tmp: &Path) -> Result<(), Error> {
    remove_tree(&retire(path, tmp)?)
}

pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            // Without privileges a directory its owner may not write must be opened first.
            open_up(path);
            fs::remove_dir_all(path).map_err(|error| Error::io("remove", path, error))
        }
        _ => Ok(()),
    }
}

fn open_up(path: &Path) {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if !is_directory {
        return;
    }
    let _ = set_mode(path, 0o700);
    for entry in entries(path).unwrap_or_default() {
        open_up(&entry.path());
    }
}
