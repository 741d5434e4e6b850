//! Where things are: drivers come with manifests that say `/var/lib/kubelet`, which on a node of an ordinary user is
//! another folder. In host paths and in what is said to drivers the two stand for each other.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::context::Context;
use crate::logs::links;
use crate::volumes;

/// The kubelet's folder everywhere else.
const USUAL: &str = "/var/lib/kubelet";

/// The folders of volumes.
pub struct Places {
    root: PathBuf,
    /// Where pods' logs are.
    logs: PathBuf,
}

impl Places {
    /// Of this kubelet.
    pub fn of(context: &Context) -> Self {
        Self { root: context.root_dir.clone(), logs: context.pod_log_dir.clone() }
    }

    /// A path as drivers and manifests say it, on the node.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let links = links::folder(&self.root);
        let usual = [(USUAL, &self.root), (links::PODS, &self.logs), (links::CONTAINERS, &links)];
        let found = usual.into_iter().find_map(|(usual, here)| {
            let rest = path.strip_prefix(usual).ok()?;
            Some(if rest.as_os_str().is_empty() { here.clone() } else { here.join(rest) })
        });
        found.unwrap_or_else(|| path.to_owned())
    }

    /// A path of the node, as it is said to drivers.
    pub fn outside(&self, path: &Path) -> String {
        match path.strip_prefix(&self.root) {
            Ok(rest) => Path::new(USUAL).join(rest).display().to_string(),
            Err(_) => path.display().to_string(),
        }
    }

    /// Where a volume of the driver is staged.
    pub fn staging(&self, driver: &str, handle: &str) -> PathBuf {
        self.root
            .join("plugins/kubernetes.io/csi")
            .join(driver)
            .join(hex(&[handle]))
            .join("globalmount")
    }

    /// The folder of one pod's volume of a driver; it holds the volume as `mount` or `device`, and what is needed to
    /// give it back.
    pub fn volume(&self, uid: &str, spec_name: &str) -> PathBuf {
        volumes::directory(&self.root, uid).join("volumes/kubernetes.io~csi").join(spec_name)
    }
}

/// SHA-256 of the parts, as text.
pub fn hex<T: AsRef<[u8]>>(parts: &[T]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_folder_is_this_one() {
        let places = Places { root: "/home/u/kubelet".into(), logs: "/home/u/logs".into() };
        assert_eq!(
            places.inside(Path::new("/var/lib/kubelet/plugins/x")),
            Path::new("/home/u/kubelet/plugins/x")
        );
        assert_eq!(places.inside(Path::new("/var/lib/kubelet/")), Path::new("/home/u/kubelet"));
        assert_eq!(places.inside(Path::new("/var/lib/kubelets")), Path::new("/var/lib/kubelets"));
        assert_eq!(places.inside(Path::new("/var/log/pods/x")), Path::new("/home/u/logs/x"));
        assert_eq!(places.inside(Path::new("/var/log")), Path::new("/var/log"));
        assert_eq!(places.outside(Path::new("/home/u/kubelet/pods/a")), "/var/lib/kubelet/pods/a");
        assert_eq!(places.outside(Path::new("/srv")), "/srv");
    }
}
