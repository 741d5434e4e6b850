//! Log rotation: a file grows to so many bytes, and so many are kept.
//!
//! Source of behaviour: `pkg/kubelet/logs/container_log_manager.go` (without compression, so that
//! what is being read stays readable).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_cri::v1 as cri;
use tokio_util::sync::CancellationToken;

use crate::context::Context;

/// Rotates the logs of running containers until `shutdown`.
pub async fn run(context: Arc<Context>, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(context.limits.log_period);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if let Err(error) = round(&context).await {
            tracing::warn!(%error, "cannot rotate logs");
        }
    }
}

async fn round(context: &Context) -> Result<(), crate::cri::Error> {
    // Looking at the directory is cheap; the runtime is only asked when something is too large.
    let logs = context.pod_log_dir.clone();
    let root = context.root_dir.clone();
    let most = context.limits.log_bytes;
    let look = move || {
        super::links::sweep(&root, &logs);
        too_large(&logs, most)
    };
    let large = tokio::task::spawn_blocking(look).await.unwrap_or_default();
    if large.is_empty() {
        return Ok(());
    }
    let state =
        Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 });
    let filter = Some(cri::ContainerFilter { state, ..Default::default() });
    for container in
        context.cri.list_containers(cri::ListContainersRequest { filter }).await?.containers
    {
        let request =
            cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
        let Some(status) = context.cri.container_status(request).await?.status else { continue };
        let path = PathBuf::from(status.log_path);
        if !large.contains(&path) {
            continue;
        }
        let stamp = context.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
        match rotate(&path, &stamp, context.limits.log_files) {
            Ok(moved) => {
                let request = cri::ReopenContainerLogRequest { container_id: container.id };
                if let Err(error) = context.cri.reopen_container_log(request).await {
                    // Without a new file the container's output would go on into the old one.
                    let _ = fs::rename(&moved, &path);
                    return Err(error);
                }
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot rotate a log"),
        }
    }
    Ok(())
}

fn too_large(logs: &Path, most: u64) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for pod in fs::read_dir(logs).into_iter().flatten().flatten() {
        for container in fs::read_dir(pod.path()).into_iter().flatten().flatten() {
            for file in fs::read_dir(container.path()).into_iter().flatten().flatten() {
                let current = file.path().extension().is_some_and(|e| e == "log");
                if current && file.metadata().is_ok_and(|m| m.len() > most) {
                    out.push(file.path());
                }
            }
        }
    }
    out
}

/// Moves the file aside and drops the oldest ones, so that with the next one there are `most`. Returns where it went.
fn rotate(path: &Path, stamp: &str, most: usize) -> io::Result<PathBuf> {
    let mut old = rotated(path);
    while !old.is_empty() && old.len() + 2 > most {
        fs::remove_file(old.remove(0))?;
    }
    let mut moved = path.as_os_str().to_owned();
    moved.push(format!(".{stamp}"));
    let moved = PathBuf::from(moved);
    fs::rename(path, &moved)?;
    Ok(moved)
}

/// The files a log was rotated into, oldest first.
pub fn rotated(path: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str()))
    else {
        return Vec::new();
    };
    let prefix = format!("{name}.");
    let mut out: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.starts_with(&prefix)))
        .map(|e| e.path())
        .collect();
    out.sort();
    out
}

/// Removes a log and what it was rotated into.
pub fn remove(path: &Path) {
    for file in rotated(path).iter().map(PathBuf::as_path).chain([path]) {
        if let Err(error) = fs::remove_file(file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(path = %file.display(), %error, "cannot remove a log");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_files_are_kept() {
        for (most, oldest) in [(2, "7"), (3, "6"), (5, "4")] {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("0.log");
            for round in 0..8 {
                fs::write(&log, round.to_string()).unwrap();
                rotate(&log, &format!("2026010{round}-000000"), most).unwrap();
            }
            fs::write(&log, "now").unwrap();
            let old = rotated(&log);
            assert_eq!(old.len(), most - 1);
            assert_eq!(fs::read_to_string(&old[0]).unwrap(), oldest);
            remove(&log);
            assert!(rotated(&log).is_empty() && !log.exists());
        }
    }
}
