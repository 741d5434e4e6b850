//! The names of logs that collectors look for, `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log`: links to the files in
//! `/var/log/pods`. Host paths that say these two folders lead to the kubelet's own.
//!
//! Source: `pkg/kubelet/kuberuntime/legacy.go`.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::{pod, sandbox};

/// Where pods' logs are everywhere else.
pub const PODS: &str = "/var/log/pods";
/// Where the links are everywhere else.
pub const CONTAINERS: &str = "/var/log/containers";

/// The folder of links of the kubelet with this folder.
pub fn folder(root: &Path) -> PathBuf {
    root.join("log/containers")
}

/// Makes the link of a container that starts for the `attempt`th time.
pub fn make(root: &Path, of: &Pod, container: &str, id: &str, attempt: u32) -> std::io::Result<()> {
    let target = sandbox::log_directory(Path::new(PODS), of);
    let target = target.join(crate::container::log_path(container, attempt));
    let name = format!("{}_{}_{container}-{id}", pod::name(of), pod::namespace(of));
    let name: String = name.chars().take(251).collect();
    let folder = folder(root);
    std::fs::create_dir_all(&folder)?;
    match std::os::unix::fs::symlink(target, folder.join(format!("{name}.log"))) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Removes links whose file is gone from `logs`, where pods' logs are.
pub fn sweep(root: &Path, logs: &Path) {
    for entry in std::fs::read_dir(folder(root)).into_iter().flatten().flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.strip_prefix(PODS).is_ok_and(|file| !logs.join(file).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_go_with_their_files() {
        let top = tempfile::tempdir().unwrap();
        let (root, logs) = (top.path().join("kubelet"), top.path().join("logs"));
        let of: Pod = serde_json::from_value(serde_json::json!(
            {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}}))
        .unwrap();
        let file = logs.join("ns_p_u/main/1.log");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        make(&root, &of, "main", "abc", 1).unwrap();
        make(&root, &of, "main", "abc", 1).unwrap();
        let link = folder(&root).join("p_ns_main-abc.log");
        assert_eq!(
            std::fs::read_link(&link).unwrap(),
            Path::new("/var/log/pods/ns_p_u/main/1.log")
        );
        sweep(&root, &logs);
        assert!(link.is_symlink());
        std::fs::remove_file(&file).unwrap();
        sweep(&root, &logs);
        assert!(!link.is_symlink());
    }
}
