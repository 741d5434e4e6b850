//! Mounts on their way into a container, in the mount namespace that only it will have: images are
//! mounted here, and each mount gets the propagation it was asked for. libcontainer ignores what a
//! spec says about that, but what it binds behaves as its source does (mount_namespaces(7)).

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use serde_json::Value;

use super::launch::{Launch, STAGE, Volume};
use super::{Error, at, rootfs};

/// Propagation, as an option of a mount of the spec.
const PRIVATE: &str = "rprivate";
const SLAVE: &str = "rslave";
const SHARED: &str = "rshared";

/// Mounts that stay in step with the node's, taken before this namespace lets go of those.
pub struct Shared(Vec<(usize, OwnedFd)>);

/// Leaves the node's mounts; to be called first in the new namespace.
pub fn leave_node(spec: &Value) -> Result<Shared, Error> {
    let mut shared = Vec::new();
    for (index, mount) in mounts(spec).enumerate().filter(|(_, mount)| has(mount, SHARED)) {
        let source = mount["source"].as_str().unwrap_or_default();
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, source, flags);
        shared.push((index, at(format!("take the mount of {source}"), tree)?));
    }
    // Where nothing follows the node, everything may be private at once.
    let follows = mounts(spec).any(|mount| has(mount, SLAVE) || has(mount, SHARED));
    let kind =
        if follows { MountPropagationFlags::DOWNSTREAM } else { MountPropagationFlags::PRIVATE };
    let changed = rustix::mount::mount_change("/", kind | MountPropagationFlags::REC);
    at("leave the node's mounts", changed)?;
    Ok(Shared(shared))
}

/// Mounts the container's images, and gives the mounts of the spec sources of the right propagation.
pub fn prepare(
    launch: &Launch,
    spec: &mut Value,
    bundle: &Path,
    shared: Shared,
) -> Result<(), Error> {
    for (index, volume) in launch.volumes.iter().enumerate() {
        mount_image(volume, &Volume::path(bundle, index))?;
    }
    let follows = mounts(spec).any(|mount| has(mount, SLAVE) || has(mount, SHARED));
    let mut shared = shared.0.into_iter().peekable();
    for (index, mount) in spec["mounts"].as_array_mut().into_iter().flatten().enumerate() {
        let source = PathBuf::from(mount["source"].as_str().unwrap_or_default());
        let stage = bundle.join(STAGE).join(index.to_string());
        let name = || format!("mount {}", source.display());
        if let Some((_, tree)) = shared.next_if(|(of, _)| *of == index) {
            make_target(&source, &stage)?;
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            at(name(), rustix::mount::move_mount(tree.as_fd(), "", CWD, &stage, flags))?;
            mount["source"] = stage.to_string_lossy().into();
        } else if follows && has(mount, PRIVATE) {
            make_target(&source, &stage)?;
            at(name(), rustix::mount::mount_bind_recursive(&source, &stage))?;
            let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            at(name(), rustix::mount::mount_change(&stage, flags))?;
            mount["source"] = stage.to_string_lossy().into();
        }
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| ![PRIVATE, SLAVE, SHARED].map(Value::from).contains(option));
        }
    }
    Ok(())
}

fn mounts(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["mounts"].as_array().into_iter().flatten()
}

fn has(mount: &Value, option: &str) -> bool {
    mount["options"].as_array().is_some_and(|options| options.iter().any(|known| known == option))
}

/// Mounts an image, or what is asked for of it, at `target`.
fn mount_image(volume: &Volume, target: &Path) -> Result<(), Error> {
    if volume.sub_path.is_empty() {
        return rootfs::mount(&volume.root, target, true);
    }
    let whole = target.with_extension("whole");
    rootfs::mount(&volume.root, &whole, true)?;
    let name = || format!("mount {:?} of an image", volume.sub_path);
    let part = at(name(), rootfs::open(&whole, Path::new(&volume.sub_path), OFlags::PATH))?;
    let part = PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd()));
    make_target(&part, target)?;
    at(name(), rustix::mount::mount_bind(&part, target))
}

/// Makes a directory, or a file, for `source` to be mounted at.
fn make_target(source: &Path, target: &Path) -> Result<(), Error> {
    let name = || format!("make a mount point for {}", source.display());
    let found = at(name(), std::fs::metadata(source))?;
    if found.is_dir() {
        return at(name(), std::fs::create_dir_all(target));
    }
    if let Some(parent) = target.parent() {
        at(name(), std::fs::create_dir_all(parent))?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(target);
    at(name(), file.map(drop))
}
