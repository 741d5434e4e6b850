//! The root file system before libcontainer takes it over: mounting it, and touching files in it
//! without ever following a link of the image out of it (openat2(2), RESOLVE_IN_ROOT).

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

use super::launch::Root;
use super::{Error, at};

/// Mounts `root` at `target`, in the mount namespace of this process.
pub fn mount(root: &Root, target: &Path, read_only: bool) -> Result<(), Error> {
    at("make the mount point", std::fs::create_dir_all(target))?;
    match root {
        Root::Directory(path) => at(
            format!("mount {}", path.display()),
            rustix::mount::mount_bind_recursive(path, target),
        ),
        Root::Overlay { lower, upper, work } => {
            let lower: Vec<String> = lower.iter().map(|path| escape(path)).collect();
            let options = format!(
                "userxattr,lowerdir={},upperdir={},workdir={}",
                lower.join(":"),
                escape(upper),
                escape(work)
            );
            let options = at("name the layers", CString::new(options).map_err(io::Error::other))?;
            let mounted = rustix::mount::mount(
                "overlay",
                target,
                "overlay",
                if read_only { MountFlags::RDONLY } else { MountFlags::empty() },
                options.as_c_str(),
            );
            at("mount the layers", mounted)
        }
    }
}

/// Overlay's options separate paths by colons and options by commas.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// Opens `path` below `root`, whose links never lead out of it.
pub fn open(root: &Path, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let directory =
        rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    let flags = flags | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(&directory, relative, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
}

/// Reads a small text file of the root file system; `None` when there is none.
pub fn read(root: &Path, path: &str) -> Option<String> {
    let file =
        open(root, Path::new(path), OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK).ok()?;
    let mut bytes = Vec::new();
    std::fs::File::from(file).take(4 * 1024 * 1024).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes what the container expects: its working directory, which runc makes when it is missing.
pub fn prepare(spec: &Value, root: &Path) -> Result<(), Error> {
    let cwd = PathBuf::from(spec["process"]["cwd"].as_str().unwrap_or("/"));
    // A working directory inside of a volume has to be made there.
    let volume = spec["mounts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|mount| mount["type"] == "bind")
        .filter_map(|mount| {
            Some((Path::new(mount["destination"].as_str()?), mount["source"].as_str()?))
        })
        .filter(|(destination, _)| cwd.starts_with(destination))
        .max_by_key(|(destination, _)| destination.components().count());
    let made = match volume {
        Some((destination, source)) => {
            let rest = cwd.strip_prefix(destination).unwrap_or(Path::new(""));
            if rest.as_os_str().is_empty() {
                Ok(())
            } else {
                make_directories(Path::new(source), rest)
            }
        }
        None => make_directories(root, &cwd),
    };
    at(format!("make the working directory {}", cwd.display()), made)
}

/// Makes the folders that the image declares as volumes. They can be written to where the rest cannot: what they hold
/// goes to the container's own layer, as everything of theirs does, and ends with it.
pub fn declared(volumes: &[PathBuf], spec: &mut Value, root: &Path) -> Result<(), Error> {
    let read_only = spec["root"]["readonly"] == true;
    for path in volumes {
        let name = || format!("make the volume {}", path.display());
        at(name(), make_directories(root, path))?;
        if !read_only {
            continue;
        }
        // Links are followed now, inside of the root.
        let found = at(name(), open(root, path, OFlags::PATH | OFlags::DIRECTORY))?;
        let source =
            at(name(), std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())))?;
        let mount = json!({"type": "bind", "source": source, "destination": path,
            "options": ["rbind", "rw"]});
        insert(spec, mount, path);
    }
    Ok(())
}

/// Inserts a mount before those that lie below it, and after those of the system.
fn insert(spec: &mut Value, mount: Value, path: &Path) {
    let Some(mounts) = spec["mounts"].as_array_mut() else { return };
    let depth = |path: &Path| path.components().count();
    let destination =
        |mount: &Value| PathBuf::from(mount["destination"].as_str().unwrap_or_default());
    let system = mounts.iter().position(|mount| destination(mount) == Path::new("/sys"));
    let first = system.map_or(0, |at| at + 1);
    let later = mounts[first..].iter().position(|mount| depth(&destination(mount)) > depth(path));
    mounts.insert(later.map_or(mounts.len(), |at| first + at), mount);
}

/// Makes `path` below `root`, with its parents.
fn make_directories(root: &Path, path: &Path) -> io::Result<()> {
    let mut walked = PathBuf::new();
    let mut parent = open(root, Path::new("/"), OFlags::PATH | OFlags::DIRECTORY)?;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                walked.push(name);
                parent = match open(root, &walked, OFlags::PATH | OFlags::DIRECTORY) {
                    Ok(directory) => directory,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                        open(root, &walked, OFlags::PATH | OFlags::DIRECTORY)?
                    }
                    Err(error) => return Err(error),
                };
            }
            Component::ParentDir => {
                walked.pop();
                parent = open(root, &walked, OFlags::PATH | OFlags::DIRECTORY)?;
            }
            _ => {}
        }
    }
    drop(parent);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declared_volumes_come_before_what_is_mounted_in_them() {
        let root = tempfile::tempdir().unwrap();
        let mounts = ["/proc", "/dev", "/dev/pts", "/sys", "/a", "/data/deep", "/data/deep/er"];
        let mounts = mounts.map(|path| json!({"destination": path}));
        for (read_only, place) in [(true, Some(5)), (false, None)] {
            let mut spec = json!({"root": {"readonly": read_only}, "mounts": mounts});
            declared(&["/data".into()], &mut spec, root.path()).unwrap();
            let listed = spec["mounts"].as_array().unwrap();
            let found = listed.iter().position(|mount| mount["destination"] == "/data");
            assert_eq!(found, place);
            assert!(root.path().join("data").is_dir());
        }
    }

    #[test]
    fn links_of_the_image_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        let root = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        assert_eq!(read(root.path(), "link/secret"), None);
        assert!(make_directories(root.path(), Path::new("/link/made")).is_err());
        assert!(!outside.path().join("made").exists());
        make_directories(root.path(), Path::new("/a/b/../c")).unwrap();
        assert!(root.path().join("a/c").is_dir());
    }
}
