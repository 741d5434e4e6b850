//! A cgroup of our own where no systemd gives one: a directory beside those that this process may already write.
//!
//! Root has the whole tree. An ordinary user has what somebody gave him: the directory itself, its `cgroup.procs` and its
//! `cgroup.subtree_control` (cgroups(7), "Cgroups delegation").

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// What a tree must be able to limit.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];

/// The directories above `own`, which is below `mount`, and itself; the nearest first.
fn around(mount: &Path, own: &str) -> Vec<PathBuf> {
    let place = mount.join(own.trim_start_matches('/'));
    place.ancestors().take_while(|folder| folder.starts_with(mount)).map(Path::to_owned).collect()
}

fn is_writable(folder: &Path) -> bool {
    [folder.to_owned(), folder.join("cgroup.procs"), folder.join("cgroup.subtree_control")]
        .iter()
        .all(|path| rustix::fs::access(path, Access::WRITE_OK).is_ok())
}

fn lists_all(file: &Path) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    WANTED.iter().all(|wanted| text.split_whitespace().any(|found| found == *wanted))
}

/// Switches on what pods are limited with for the directories below `folder`.
fn pass_on(folder: &Path) -> io::Result<()> {
    let file = folder.join("cgroup.subtree_control");
    if lists_all(&file) {
        return Ok(());
    }
    let all = WANTED.iter().map(|controller| format!("+{controller}")).collect::<Vec<_>>();
    fs::write(file, all.join(" "))
}

/// The directory that a cgroup of ours can be made in; `Err` says why there is none.
fn parent(mount: &Path, own: &str) -> Result<PathBuf, String> {
    let mut refusal = format!("{own} is not delegated to this user");
    for folder in around(mount, own) {
        if !is_writable(&folder) || !lists_all(&folder.join("cgroup.controllers")) {
            continue;
        }
        // Where processes are, what is below cannot be limited: the next one up may be better.
        match pass_on(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) => {
                refusal = format!("{}: {error}: processes are in it", folder.display());
            }
        }
    }
    Err(refusal)
}

/// Whether [`make`] would find a place.
pub fn offered(mount: &Path, own: &str) -> bool {
    around(mount, own)
        .iter()
        .any(|folder| is_writable(folder) && lists_all(&folder.join("cgroup.controllers")))
}

/// Makes the cgroup `unit` and moves this process to its top, where the node's cgroup namespace begins; or into its
/// leaf, when the cluster has it already.
pub fn make(mount: &Path, own: &str, unit: &str, leaf: &str) -> Result<(), String> {
    let folder = match existing(mount, own, unit) {
        Some(folder) => folder,
        None => parent(mount, own)?.join(unit),
    };
    let leaf = folder.join(leaf);
    let place = if leaf.is_dir() { leaf } else { folder };
    let procs = place.join("cgroup.procs");
    fs::create_dir_all(&place)
        .and_then(|()| fs::write(&procs, "0"))
        .map_err(|error| format!("{}: {error}", procs.display()))
}

fn existing(mount: &Path, own: &str, unit: &str) -> Option<PathBuf> {
    around(mount, own).into_iter().map(|folder| folder.join(unit)).find(|folder| folder.is_dir())
}

/// Removes the cgroup `unit` after its last process, if it was made here.
pub fn remove(mount: &Path, own: &str, unit: &str) {
    if let Some(folder) = existing(mount, own, unit) {
        remove_empty(&folder);
    }
}

/// What has processes stays; the kernel sees to that.
fn remove_empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as the kernel shows cgroups, without its refusals.
    fn cgroup(folder: &Path, controllers: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(folder).unwrap();
        for (name, text) in [
            ("cgroup.procs", ""),
            ("cgroup.subtree_control", ""),
            ("cgroup.controllers", controllers),
        ] {
            fs::write(folder.join(name), text).unwrap();
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    #[test]
    fn the_nearest_that_can_limit_is_taken() {
        let place = tempfile::tempdir().unwrap();
        let mount = place.path();
        cgroup(mount, "cpu io memory pids", 0o644);
        cgroup(&mount.join("given"), "cpu memory pids", 0o644);
        cgroup(&mount.join("given/shell"), "memory", 0o644);
        assert!(offered(mount, "/given/shell"));
        make(mount, "/given/shell", "x.scope", "init").unwrap();
        let (top, leaf) = (mount.join("given/x.scope"), mount.join("given/x.scope/init"));
        assert_eq!(fs::read_to_string(top.join("cgroup.procs")).unwrap(), "0");
        let on = fs::read_to_string(mount.join("given/cgroup.subtree_control")).unwrap();
        assert_eq!(on, "+cpu +memory +pids");
        // Another process of the cluster finds it, from elsewhere too.
        fs::create_dir(&leaf).unwrap();
        make(mount, "/given", "x.scope", "init").unwrap();
        assert_eq!(fs::read_to_string(leaf.join("cgroup.procs")).unwrap(), "0");
        assert!(!mount.join("x.scope").exists());
        for folder in [&leaf, &top] {
            fs::remove_file(folder.join("cgroup.procs")).unwrap();
        }
        remove(mount, "/given/shell", "x.scope");
        assert!(!mount.join("given/x.scope").exists());
        assert!(parent(&mount.join("nowhere"), "/").is_err());
    }
}
