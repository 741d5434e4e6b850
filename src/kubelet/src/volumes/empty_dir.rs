//! emptyDir volumes: a directory, or a tmpfs for `medium: Memory`.
//!
//! Source of behaviour: `pkg/volume/emptydir/empty_dir.go`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};

use crate::{pod, quantity, resources};

/// Makes the directory, and mounts memory on it if asked. Does nothing the second time.
pub fn set_up(path: &Path, source: &EmptyDirVolumeSource, of: &Pod) -> io::Result<()> {
    let fresh = !path.exists();
    fs::create_dir_all(path)?;
    if fresh {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    if source.medium.as_deref() == Some("Memory") && !is_mounted(path)? {
        let options = match size_bytes(source, of) {
            Some(bytes) => format!("mode=1777,size={bytes}"),
            None => "mode=1777".to_owned(),
        };
        let data = std::ffi::CString::new(options)?;
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("tmpfs", path, "tmpfs", flags, data.as_c_str())?;
    }
    Ok(())
}

/// The size of the memory: the limit of the volume or of the pod's memory, whichever is smaller.
fn size_bytes(source: &EmptyDirVolumeSource, of: &Pod) -> Option<i128> {
    let own = source.size_limit.as_ref().and_then(quantity::milli).filter(|v| *v > 0);
    let of_pod = pod::containers(of)
        .iter()
        .map(|c| resources::limit_milli(c, "memory"))
        .try_fold(0, |sum, limit| limit.map(|l| sum + l))
        .filter(|v| *v > 0);
    match (own, of_pod) {
        (Some(a), Some(b)) => Some(a.min(b) / 1_000),
        (one, other) => one.or(other).map(|v| v / 1_000),
    }
}

/// Whether something is mounted exactly here.
pub fn is_mounted(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let here = fs::metadata(path)?;
    let Some(parent) = path.parent() else { return Ok(true) };
    Ok(here.dev() != fs::metadata(parent)?.dev())
}
