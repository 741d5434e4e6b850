//! Making files beneath a directory that an attacker describes.
//!
//! Every parent is found by the kernel with `openat2(RESOLVE_BENEATH)`: relative links inside the tree
//! are followed, anything that would leave it is refused. The last component is never followed.
//!
//! Source: openat2(2).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::Error;

/// A checked name within the tree: no empty, `.` or `..` component, no NUL, not absolute.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct TreePath(Vec<u8>);

impl TreePath {
    /// Checks a name of an archive; the empty path is the root itself.
    pub fn parse(name: &[u8], limit: usize) -> Result<Self, Error> {
        let hostile = |reason: &str| Error::Hostile {
            entry: format!("{:?}", String::from_utf8_lossy(&name[..name.len().min(200)])),
            reason: reason.to_owned(),
        };
        if name.len() > limit {
            return Err(Error::TooLarge {
                what: format!("path {:?}…", String::from_utf8_lossy(&name[..name.len().min(60)])),
                limit: format!("{} bytes, {limit} are allowed", name.len()),
            });
        }
        if name.contains(&0) {
            return Err(hostile("the path has a NUL byte"));
        }
        if name.starts_with(b"/") {
            return Err(hostile("the path is absolute"));
        }
        let mut clean = Vec::with_capacity(name.len());
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(hostile("the path has a \"..\" component")),
                _ if component.len() > 255 => {
                    return Err(hostile("a component of the path is longer than 255 bytes"));
                }
                _ => {
                    if !clean.is_empty() {
                        clean.push(b'/');
                    }
                    clean.extend_from_slice(component);
                }
            }
        }
        Ok(Self(clean))
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory part and the last component; the root has none.
    pub fn split(&self) -> Option<(TreePath, &OsStr)> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => {
                (TreePath(self.0[..slash].to_vec()), OsStr::from_bytes(&self.0[slash + 1..]))
            }
            None => (TreePath::default(), OsStr::from_bytes(&self.0)),
        })
    }

    pub fn join(&self, name: &OsStr) -> TreePath {
        let mut bytes = self.0.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name.as_bytes());
        TreePath(bytes)
    }
}

impl std::fmt::Display for TreePath {
    /// Escaped: a layer may put control characters into names.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// An open directory tree.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    /// The parent of the entry before: neighbours in an archive share it.
    last: Option<(TreePath, Rc<OwnedFd>)>,
    /// Something made way for a parent directory.
    replaced: bool,
}

impl Tree {
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let root =
            fs::open(path, flags, Mode::empty()).map_err(|error| Error::io("open", path, error))?;
        Ok(Self { root: Rc::new(root), last: None, replaced: false })
    }

    /// Whether anything had to make way for a parent directory.
    pub fn has_replaced(&self) -> bool {
        self.replaced
    }

    /// Opens an existing directory beneath the root.
    pub fn open_directory(&self, path: &TreePath) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_root() {
            return Ok(Rc::clone(&self.root));
        }
        open_beneath(&self.root, path.as_path(), OFlags::DIRECTORY | OFlags::RDONLY).map(Rc::new)
    }

    /// Opens `path` as a directory, making it and its missing parents; `made` hears of each.
    pub fn ensure_directory(
        &mut self,
        path: &TreePath,
        made: &mut dyn FnMut(TreePath),
    ) -> Result<Rc<OwnedFd>, Error> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open_directory(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path, made)?,
            Err(error) => return Err(refuse(path, "open", error)),
        };
        self.last = Some((path.clone(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn make_directories(
        &mut self,
        path: &TreePath,
        made: &mut dyn FnMut(TreePath),
    ) -> Result<Rc<OwnedFd>, Error> {
        let mut done = TreePath::default();
        let mut fd = Rc::clone(&self.root);
        for component in path.as_path() {
            let next = done.join(component);
            fd = match self.open_directory(&next) {
                Ok(fd) => fd,
                Err(error @ (Errno::NOENT | Errno::NOTDIR)) => {
                    // A file, or a link to nowhere, where a directory must be: the later entry wins.
                    if error == Errno::NOTDIR || exists(&fd, component) {
                        self.remove(&fd, component, &next)?;
                        self.replaced = true;
                    }
                    fs::mkdirat(&fd, component, Mode::from_raw_mode(0o755))
                        .map_err(|error| refuse(&next, "create directory", error))?;
                    made(next.clone());
                    self.open_directory(&next).map_err(|error| refuse(&next, "open", error))?
                }
                Err(error) => return Err(refuse(&next, "open", error)),
            };
            done = next;
        }
        Ok(fd)
    }

    /// Removes whatever is at `name`, a whole tree if need be, never following a link.
    pub fn remove(&mut self, parent: &OwnedFd, name: &OsStr, path: &TreePath) -> Result<(), Error> {
        match fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) => {
                // It may have been a link that remembered parents were reached through.
                self.last = None;
                return Ok(());
            }
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(refuse(path, "remove", error)),
        }
        self.last = None;
        std::fs::remove_dir_all(proc_path(parent, name))
            .map_err(|error| Error::io("remove", path.as_path(), error))
    }
}

fn exists(parent: &OwnedFd, name: &OsStr) -> bool {
    fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

fn open_beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel asks to try again when a rename raced with the walk.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// A path of `name` in the open directory `parent`, for calls that take no descriptor.
pub(crate) fn proc_path(parent: &impl AsFd, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd()));
    path.push(name);
    path
}

/// Turns the kernel's refusal into ours: an escape is the layer's fault, the rest the machine's.
pub(crate) fn refuse(path: &TreePath, operation: &'static str, error: Errno) -> Error {
    let reason = match error {
        Errno::XDEV => "the path leads out of the layer through a symbolic link",
        Errno::LOOP => "the path has a loop of symbolic links",
        Errno::NAMETOOLONG => "the path is too long",
        _ => return Error::io(operation, path.as_path(), io::Error::from(error)),
    };
    Error::Hostile { entry: path.to_string(), reason: reason.to_owned() }
}
