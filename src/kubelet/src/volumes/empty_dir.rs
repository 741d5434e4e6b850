//! emptyDir volumes: a directory, a tmpfs for `medium: Memory`, or huge pages.
//!
//! Source of behaviour: `pkg/volume/emptydir/empty_dir.go`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{pod, quantity, resources};

/// Makes the directory, and mounts memory on it if asked. Does nothing the second time.
pub fn set_up(path: &Path, source: &EmptyDirVolumeSource, of: &Pod) -> io::Result<()> {
    let fresh = !path.exists();
    fs::create_dir_all(path)?;
    if fresh {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    }
    if source.medium.as_deref() == Some("Memory") {
        mount_memory(path, size_bytes(source, of))?;
    }
    let huge = source.medium.as_deref().and_then(|medium| medium.strip_prefix("HugePages"));
    if let Some(size) = huge
        && !is_mounted(path)?
    {
        mount_huge_pages(path, size.trim_start_matches('-'), of)?;
    }
    Ok(())
}

/// Mounts memory of this size, if any, unless something is mounted there.
pub fn mount_memory(path: &Path, size_bytes: Option<i128>) -> io::Result<()> {
    if is_mounted(path)? {
        return Ok(());
    }
    let options = match size_bytes {
        Some(bytes) => format!("mode=1777,size={bytes}"),
        None => "mode=1777".to_owned(),
    };
    let data = std::ffi::CString::new(options)?;
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", path, "tmpfs", flags, data.as_c_str())?)
}

/// Mounts huge pages of the size that the medium names, else of the one that the pod asks for.
fn mount_huge_pages(path: &Path, size: &str, of: &Pod) -> io::Result<()> {
    let page_bytes = page_bytes(size, of).map_err(io::Error::other)?;
    let data = std::ffi::CString::new(format!("pagesize={page_bytes},mode=1777"))?;
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    match rustix::mount::mount("nodev", path, "hugetlbfs", flags, data.as_c_str()) {
        Err(rustix::io::Errno::PERM) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "huge pages can be mounted by root only, and this node is an ordinary user's",
        )),
        mounted => Ok(mounted?),
    }
}

/// The size of pages (`pkg/volume/emptydir`, `getPageSizeMountOption`).
fn page_bytes(size: &str, of: &Pod) -> Result<i64, String> {
    let value = |size: &str| {
        let read = quantity::value(&Quantity(size.to_owned()));
        read.ok_or_else(|| format!("medium HugePages-{size}: no such page size"))
    };
    let asked: BTreeSet<String> = pod::all_containers(of)
        .into_iter()
        .filter_map(|(_, c)| c.resources?.requests)
        .flatten()
        .filter_map(|(name, _)| Some(name.strip_prefix("hugepages-")?.to_owned()))
        .collect();
    if !size.is_empty() {
        return if asked.contains(size) {
            value(size)
        } else {
            Err(format!("medium HugePages-{size}: the pod requests no such huge pages"))
        };
    }
    let mut asked = asked.iter();
    match (asked.next(), asked.next()) {
        (Some(one), None) => value(one),
        (None, _) => Err("medium HugePages: no container requests huge pages".into()),
        _ => Err("medium HugePages: use HugePages-<size> where several sizes are requested".into()),
    }
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_have_the_size_that_is_asked_for() {
        let pod = |requests: &[&str]| -> Pod {
            let requests: serde_json::Map<_, _> = requests
                .iter()
                .map(|size| (format!("hugepages-{size}"), json!("4Mi")))
                .chain([("memory".to_owned(), json!("1Gi"))])
                .collect();
            let containers = json!([{"name": "a", "resources": {"requests": requests}}]);
            serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
        };
        for (size, requests, want) in [
            ("", &["2Mi"][..], Ok(1 << 21)),
            ("1Gi", &["1Gi", "2Mi"], Ok(1 << 30)),
            ("", &[], Err("no container requests")),
            ("", &["1Gi", "2Mi"], Err("several sizes")),
            ("1Gi", &["2Mi"], Err("requests no such")),
        ] {
            let found = page_bytes(size, &pod(requests));
            match want {
                Ok(bytes) => assert_eq!(found, Ok(bytes)),
                Err(part) => assert!(found.as_ref().unwrap_err().contains(part), "{found:?}"),
            }
        }
    }
}
