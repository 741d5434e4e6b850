//! hostPath volumes: a path of the node, checked or made as its type says.
//!
//! Source of behaviour: `pkg/volume/hostpath/host_path.go`.
//!
//! Manifests ask for folders that only root may make, such as `/opt/local-path-provisioner` or
//! `/run/xtables.lock`. On a node of an ordinary user these lie in a folder of the kubelet instead, the same for
//! every pod; what the host has itself is always used.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

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

/// Where a host path lies: on the host, or, when it is not there and this user may not make it, beneath `shadow`.
pub fn place(path: PathBuf, kind: &str, shadow: &Path) -> Result<PathBuf, Error> {
    if fs::symlink_metadata(&path).is_ok() || !path.is_absolute() {
        return Ok(path);
    }
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_)));
    let instead = shadow.join(parts.collect::<PathBuf>());
    if instead.exists() {
        return Ok(instead);
    }
    // Without a type the runtime would make a folder.
    let makes = if kind.is_empty() { "DirectoryOrCreate" } else { kind };
    let Err(Error::Create { source, .. }) = check(&path, makes) else { return Ok(path) };
    if !matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
    {
        return Ok(path);
    }
    let above = instead.parent().unwrap_or(shadow);
    let create = |source| Error::Create { path: above.display().to_string(), source };
    fs::create_dir_all(above).map_err(create)?;
    Ok(instead)
}

/// Whether this user may not even see what the host has at `path`, so that something else is in its place.
pub fn is_hidden(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_root_may_make_lies_elsewhere() {
        let scratch = tempfile::tempdir().unwrap();
        let (host, shadow) = (scratch.path().join("host"), scratch.path().join("shadow"));
        fs::create_dir(&host).unwrap();
        fs::write(host.join("there"), b"").unwrap();
        // Nobody, not even root, may make anything in sysfs.
        let closed = Path::new("/sys");
        let beneath = |path: &Path| shadow.join(path.strip_prefix("/").unwrap());
        for (path, kind, want) in [
            (host.join("there"), "", host.join("there")),
            (host.join("new"), "DirectoryOrCreate", host.join("new")),
            (host.join("a/b"), "", host.join("a/b")),
            (closed.join("rootlet-a"), "Directory", closed.join("rootlet-a")),
            (closed.join("rootlet-a"), "DirectoryOrCreate", beneath(&closed.join("rootlet-a"))),
            (closed.join("rootlet-lock"), "FileOrCreate", beneath(&closed.join("rootlet-lock"))),
            (closed.join("rootlet-b/c"), "", beneath(&closed.join("rootlet-b/c"))),
        ] {
            let got = place(path.clone(), kind, &shadow).unwrap();
            assert_eq!(got, want, "{} {kind}", path.display());
            if kind.ends_with("OrCreate") {
                check(&got, kind).unwrap();
            }
        }
        // What one pod made is there for the others, however they ask for it.
        let made = place(closed.join("rootlet-lock"), "File", &shadow).unwrap();
        assert_eq!(made, beneath(&closed.join("rootlet-lock")));
        check(&made, "File").unwrap();
    }
}
