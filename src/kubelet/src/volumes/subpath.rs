//! A path below a volume, made if absent and resolved by the kernel so that it cannot leave the
//! volume; then held by a bind mount, so that nobody can exchange it before the runtime mounts it.
//!
//! Source of behaviour: `pkg/volume/util/subpath/subpath_linux.go`; openat2(2).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};

/// Why a sub-path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path is absolute or climbs.
    #[error("subPath {0:?} must be a relative path without '..'")]
    Climbs(String),
    /// The kernel refused: most often a symlink that leaves the volume.
    #[error("failed to prepare subPath {path:?} of the volume: {source}")]
    Resolve {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The bind mount failed.
    #[error("failed to bind subPath {path:?}: {source}")]
    Bind {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Resolves `sub_path` below `volume` and binds it on `hold`. Returns the path to give to the
/// runtime.
pub fn prepare(volume: &Path, sub_path: &str, hold: &Path) -> Result<PathBuf, Error> {
    let components = Path::new(sub_path).components();
    if !components.clone().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(Error::Climbs(sub_path.into()));
    }
    let fail = |source: io::Error| Error::Resolve { path: sub_path.into(), source };
    let base = File::open(volume).map_err(fail)?;
    if !base.metadata().map_err(fail)?.is_dir() {
        // A file as a volume: only itself can be meant.
        return Err(fail(io::ErrorKind::NotADirectory.into()));
    }
    let parent_mode = base.metadata().map_err(fail)?.permissions().mode() & 0o7777;
    let target = match open(&base, Path::new(sub_path)) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(&base, Path::new(sub_path), parent_mode).map_err(fail)?;
            open(&base, Path::new(sub_path)).map_err(fail)?
        }
        Err(error) => return Err(fail(error)),
    };
    bind(&target, hold).map_err(|source| Error::Bind { path: sub_path.into(), source })?;
    Ok(hold.to_owned())
}

/// Releases what [`prepare`] holds below `directory`.
pub fn release(directory: &Path) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else { return };
    let held = mounts.lines().filter_map(|l| l.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = held.filter(|p| p.starts_with(directory)).collect();
    below.reverse();
    for path in below {
        if let Err(error) = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH) {
            tracing::warn!(path = %path.display(), %error, "cannot unmount");
        }
    }
}

fn unescape(path: &str) -> PathBuf {
    PathBuf::from(path.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
}

fn open(base: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(base, path, flags, Mode::empty(), resolve)?)
}

fn make(base: &File, path: &Path, mode: u32) -> io::Result<()> {
    let mut at: OwnedFd = base.as_fd().try_clone_to_owned()?;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        let mode = Mode::from_raw_mode(mode);
        match rustix::fs::mkdirat(&at, name, mode) {
            // The umask does not concern a folder that users are shown.
            Ok(()) => rustix::fs::chmodat(&at, name, mode, AtFlags::empty())?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = open(&at, Path::new(name))?;
    }
    Ok(())
}

fn bind(target: &OwnedFd, hold: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", target.as_raw_fd());
    let is_dir = fs::metadata(&source)?.is_dir();
    if let Some(parent) = hold.parent() {
        fs::create_dir_all(parent)?;
    }
    if is_dir {
        fs::create_dir_all(hold)?;
    } else if !hold.exists() {
        File::create(hold)?;
    }
    if mounted(hold)? {
        rustix::mount::unmount(hold, rustix::mount::UnmountFlags::DETACH)?;
    }
    rustix::mount::mount_bind_recursive(&source, hold)?;
    Ok(())
}

fn mounted(path: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().filter_map(|l| l.split(' ').nth(4)).any(|p| unescape(p) == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn climbing_and_escaping_paths_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("../..", volume.join("up")).unwrap();
        let hold = dir.path().join("hold");
        assert!(matches!(prepare(&volume, "../x", &hold), Err(Error::Climbs(_))));
        assert!(matches!(prepare(&volume, "/x", &hold), Err(Error::Climbs(_))));
        assert!(matches!(prepare(&volume, "out/passwd", &hold), Err(Error::Resolve { .. })));
        assert!(matches!(prepare(&volume, "up/x", &hold), Err(Error::Resolve { .. })));
    }

    #[test]
    fn a_folder_that_is_made_is_as_open_as_the_volume() {
        let dir = tempfile::tempdir().unwrap();
        make(&File::open(dir.path()).unwrap(), Path::new("a/b"), 0o777).unwrap();
        let mode = fs::metadata(dir.path().join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o777);
    }
}
