//! hostPath volumes: a path of the node, checked or made as its type says.
//!
//! Source of behaviour: `pkg/volume/hostpath/host_path.go`.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Why a host path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is not of the type asked for.
    #[error("hostPath type check failed: {path} is not a {expected}")]
    Type {
        /// The path.
        path: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The path could not be made.
    #[error("cannot create hostPath {path}: {source}")]
    Create {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Checks that `path` is what `kind` says, making it where the type asks for that.
pub fn check(path: &Path, kind: &str) -> Result<(), Error> {
    let found = fs::metadata(path).map(|m| m.file_type()).ok();
    let failed = |expected| Err(Error::Type { path: path.display().to_string(), expected });
    let create = |source| Error::Create { path: path.display().to_string(), source };
    match kind {
        "DirectoryOrCreate" => match found {
            None => fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(create),
            Some(t) if t.is_dir() => Ok(()),
            Some(_) => failed("directory"),
        },
        "FileOrCreate" => match found {
            None => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map(drop)
                .map_err(create),
            Some(t) if t.is_file() => Ok(()),
            Some(_) => failed("file"),
        },
        "Directory" if !found.is_some_and(|t| t.is_dir()) => failed("directory"),
        "File" if !found.is_some_and(|t| t.is_file()) => failed("file"),
        "Socket" if !found.is_some_and(|t| t.is_socket()) => failed("socket"),
        "CharDevice" if !found.is_some_and(|t| t.is_char_device()) => failed("character device"),
        "BlockDevice" if !found.is_some_and(|t| t.is_block_device()) => failed("block device"),
        _ => Ok(()),
    }
}
