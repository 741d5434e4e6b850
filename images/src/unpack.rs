//! A layer's archive to an overlay directory.
//!
//! Removals become what overlayfs reads: a `.wh.NAME` entry a whiteout, `.wh..wh..opq` an opaque
//! directory. Overlayfs is mounted with `userxattr`, so its marks live in `user.overlay.*`.
//!
//! Source: OCI image spec, "Image Layer Filesystem Changeset"; kernel documentation, "Overlay Filesystem".

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::error::Error;
use crate::limits::Limits;
use crate::skeleton::Recorder;
use crate::tarball::{Entry, Kind, Tarball};
use crate::tree::{Tree, TreePath, proc_path, refuse};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS: &[u8] = b".wh..wh.";
/// Set on a directory: nothing below it shows through.
pub(crate) const OPAQUE_XATTR: &str = "user.overlay.opaque";
const WHITEOUT_XATTR: &str = "user.overlay.whiteout";
const COPY_BYTES: usize = 256 << 10;
const NOTES: usize = 50;

/// Who owns the files of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The ids in the layer: they must be mapped in this user namespace.
    Preserve,
    /// This process's own id, whatever the layer says: all that one mapped id allows.
    Squash,
}

impl Ownership {
    /// What this process may do: `Preserve` as root of the host or of a namespace with many ids.
    pub fn detect() -> Self {
        let mapped = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let ids: u64 = mapped
            .lines()
            .filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok())
            .sum();
        if rustix::process::geteuid().is_root() && ids > 1 { Self::Preserve } else { Self::Squash }
    }
}

/// What became of a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes of files, holes left out.
    pub bytes: u64,
    pub entries: u64,
    /// Directories the archive never named itself, only as parents of others.
    pub implied: Vec<String>,
    /// What could not be kept, told to people.
    pub notes: Vec<String>,
    /// The skeleton and the files make the archive again.
    pub reproducible: bool,
}

/// Unpacks the archive `reader` into the empty directory `target`, writes its skeleton to `skeleton`, and
/// reads `reader` to its end.
pub(crate) fn unpack<R: Read>(
    reader: R,
    target: &Path,
    skeleton: File,
    limits: &Limits,
    ownership: Ownership,
) -> Result<Unpacked, Error> {
    let mut unpacker = Unpacker {
        tree: Tree::open(target)?,
        limits,
        ownership,
        directories: HashMap::new(),
        implied: BTreeSet::from([TreePath::default()]),
        whiteouts: HashSet::new(),
        apparent_bytes: 0,
        replaced: false,
        done: Unpacked::default(),
        buffer: vec![0; COPY_BYTES],
    };
    let cannot_write = |error| Error::io("write the skeleton of", target, error);
    let recorder = Recorder::new(reader, skeleton).map_err(cannot_write)?;
    let mut archive = Tarball::new(recorder, limits);
    while let Some(entry) = archive.next()? {
        unpacker.entry(entry, &mut archive)?;
    }
    unpacker.finish_directories()?;
    let mut reader = archive.into_inner();
    // The digest covers what follows the end mark; nothing there counts, but it must not be endless.
    let mut trailing = 0_u64;
    loop {
        let got =
            reader.read(&mut unpacker.buffer).map_err(|error| Error::corrupt("archive", error))?;
        if got == 0 {
            break;
        }
        trailing += got as u64;
        if trailing > limits.layer_bytes {
            return Err(too_large(limits));
        }
    }
    reader.finish().map_err(cannot_write)?;
    unpacker.done.reproducible = !unpacker.replaced;
    unpacker.done.implied =
        unpacker.implied.iter().map(|path| path.as_path().to_string_lossy().into_owned()).collect();
    Ok(unpacker.done)
}

type Archive<'l, R> = Tarball<'l, Recorder<R>>;

struct Unpacker<'l> {
    tree: Tree,
    limits: &'l Limits,
    ownership: Ownership,
    /// Set last, because making files in a directory changes its time and may need its mode.
    directories: HashMap<TreePath, Entry>,
    implied: BTreeSet<TreePath>,
    whiteouts: HashSet<TreePath>,
    apparent_bytes: u64,
    /// A file made way for another of this layer: its content is lost.
    replaced: bool,
    done: Unpacked,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: Entry, archive: &mut Archive<'_, R>) -> Result<(), Error> {
        self.done.entries += 1;
        if self.done.entries > self.limits.layer_entries {
            return Err(Error::TooLarge {
                what: "layer".to_owned(),
                limit: format!("more than {} entries", self.limits.layer_entries),
            });
        }
        self.apparent_bytes = self.apparent_bytes.saturating_add(entry.size);
        if self.apparent_bytes > self.limits.layer_bytes {
            return Err(too_large(self.limits));
        }
        let path = TreePath::parse(&entry.path, self.limits.path_bytes)?;
        let Some((parent_path, name)) = path.split() else {
            if entry.kind == Kind::Directory {
                self.implied.remove(&path);
                self.directories.insert(path, entry);
            }
            return Ok(());
        };
        let implied = &mut self.implied;
        let parent = self.tree.ensure_directory(&parent_path, &mut |made| {
            implied.insert(made);
        })?;
        self.replaced |= self.tree.has_replaced();
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            return self.removal(&parent_path, &parent, name.as_bytes(), hidden);
        }
        if entry.kind == Kind::Directory {
            return self.directory(path.clone(), &parent, name, entry);
        }
        self.forget(&path, &parent, name)?;
        match entry.kind {
            Kind::File => self.file(&path, &parent, name, &entry, archive),
            Kind::HardLink => self.hard_link(&path, &parent, name, &entry),
            Kind::Symlink => self.symlink(&path, &parent, name, &entry),
            Kind::Fifo => {
                fs::mkfifoat(&*parent, name, Mode::from_raw_mode(0o600))
                    .map_err(|error| refuse(&path, "create fifo", error))?;
                self.attributes_by_name(&path, &parent, name, &entry)
            }
            Kind::CharacterDevice | Kind::BlockDevice => self.device(&path, &parent, name, &entry),
            Kind::Directory => unreachable!("handled above"),
        }
    }

    /// A later entry replaces an earlier one of the same name.
    fn forget(&mut self, path: &TreePath, parent: &OwnedFd, name: &OsStr) -> Result<(), Error> {
        match fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(refuse(path, "look up", error)),
            Ok(stat) => {
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    let below = |other: &TreePath| other.as_path().starts_with(path.as_path());
                    self.directories.retain(|other, _| !below(other));
                    self.implied.retain(|other| !below(other));
                    self.whiteouts.retain(|other| !below(other));
                }
                self.whiteouts.remove(path);
                self.replaced = true;
                self.tree.remove(parent, name, path)
            }
        }
    }

    fn directory(
        &mut self,
        path: TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        entry: Entry,
    ) -> Result<(), Error> {
        let hidden = self.whiteouts.contains(&path);
        let exists = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !exists {
            self.forget(&path, parent, name)?;
            fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
                .map_err(|error| refuse(&path, "create directory", error))?;
        }
        if hidden {
            self.opaque(&path)?;
        }
        self.implied.remove(&path);
        self.directories.insert(path, entry);
        Ok(())
    }

    fn removal(
        &mut self,
        parent_path: &TreePath,
        parent: &OwnedFd,
        name: &[u8],
        hidden: &[u8],
    ) -> Result<(), Error> {
        if name == OPAQUE {
            return self.opaque(parent_path);
        }
        // Bookkeeping of aufs, which never was part of the image.
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::Hostile {
                entry: format!("{:?}", String::from_utf8_lossy(name)),
                reason: "a whiteout without a name".to_owned(),
            });
        }
        let hidden = OsStr::from_bytes(hidden);
        let path = parent_path.join(hidden);
        match fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            // A removal speaks of the layers below: what this layer adds itself stays.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.opaque(&path)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                make_whiteout(parent, hidden, &path)?;
                self.whiteouts.insert(path);
                Ok(())
            }
            Err(error) => Err(refuse(&path, "look up", error)),
        }
    }

    fn opaque(&mut self, path: &TreePath) -> Result<(), Error> {
        let directory =
            self.tree.open_directory(path).map_err(|error| refuse(path, "open", error))?;
        fs::fsetxattr(&*directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
            .map_err(|error| refuse(path, "mark as opaque", error))
    }

    fn file<R: Read>(
        &mut self,
        path: &TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), Error> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| refuse(path, "create", error))?;
        let mut file = File::from(fd);
        match &entry.sparse {
            None => {
                archive.get_mut().begin_file(path, entry.size);
                let written = self.copy(path, &mut file, archive, u64::MAX)?;
                archive.get_mut().end_file();
                self.done.bytes += written;
            }
            Some(map) => {
                for (offset, length) in map {
                    file.seek(SeekFrom::Start(*offset))
                        .map_err(|error| Error::io("seek", path.as_path(), error))?;
                    self.done.bytes += self.copy(path, &mut file, archive, *length)?;
                }
                file.set_len(entry.size)
                    .map_err(|error| Error::io("extend", path.as_path(), error))?;
            }
        }
        self.attributes(path, &file.into(), entry)
    }

    fn copy<R: Read>(
        &mut self,
        path: &TreePath,
        file: &mut File,
        archive: &mut Archive<'_, R>,
        length: u64,
    ) -> Result<u64, Error> {
        let mut copied = 0;
        while copied < length {
            let want = (length - copied).min(self.buffer.len() as u64) as usize;
            let got = archive.read_data(&mut self.buffer[..want])?;
            if got == 0 {
                break;
            }
            file.write_all(&self.buffer[..got])
                .map_err(|error| Error::io("write", path.as_path(), error))?;
            copied += got as u64;
        }
        Ok(copied)
    }

    fn hard_link(
        &mut self,
        path: &TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), Error> {
        // As Docker reads it: the target counts from the root of the image, with or without a slash.
        let relative = entry.link.strip_prefix(b"/").unwrap_or(&entry.link);
        let target = TreePath::parse(relative, self.limits.path_bytes)?;
        let refused = |reason: &str| Error::Hostile {
            entry: path.to_string(),
            reason: format!("hard link to {target}: {reason}"),
        };
        let Some((target_parent, target_name)) = target.split() else {
            return Err(refused("it is the root"));
        };
        let target_parent = match self.tree.open_directory(&target_parent) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(refused("not in this layer")),
            Err(error) => return Err(refuse(&target, "open", error)),
        };
        if self.whiteouts.contains(&target) {
            return Err(refused("this layer removes it"));
        }
        match fs::linkat(&*target_parent, target_name, parent, name, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => Err(refused("not in this layer")),
            Err(Errno::PERM) => Err(refused("not a file")),
            Err(error) => Err(refuse(path, "link", error)),
        }
    }

    fn symlink(
        &mut self,
        path: &TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), Error> {
        if entry.link.len() > self.limits.path_bytes || entry.link.contains(&0) {
            return Err(Error::Hostile {
                entry: path.to_string(),
                reason: "the target of the symbolic link is too long or has a NUL byte".to_owned(),
            });
        }
        // Where it points is the container's business: nothing here follows it out of the tree.
        fs::symlinkat(entry.link.as_slice(), parent, name)
            .map_err(|error| refuse(path, "create symbolic link", error))?;
        self.attributes_by_name(path, parent, name, entry)
    }

    fn device(
        &mut self,
        path: &TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), Error> {
        let (major, minor) = entry.device;
        let kind = match entry.kind {
            Kind::CharacterDevice => FileType::CharacterDevice,
            _ => FileType::BlockDevice,
        };
        // Overlayfs would take this one for a whiteout.
        if kind == FileType::CharacterDevice && (major, minor) == (0, 0) {
            self.note(format!("{path}: character device 0:0 left out"));
            return Ok(());
        }
        let device = fs::makedev(major, minor);
        match fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device) {
            Ok(()) => self.attributes_by_name(path, parent, name, entry),
            Err(Errno::PERM | Errno::ACCESS) => {
                self.note(format!(
                    "{path}: device {major}:{minor} left out, a user namespace may not make it"
                ));
                Ok(())
            }
            Err(error) => Err(refuse(path, "create device", error)),
        }
    }

    /// Owner first: changing it clears setuid bits and file capabilities.
    fn attributes(&mut self, path: &TreePath, fd: &OwnedFd, entry: &Entry) -> Result<(), Error> {
        if let Some((uid, gid)) = self.owner(path, entry)? {
            fs::fchown(fd, Some(uid), Some(gid)).map_err(|error| unmapped(path, entry, error))?;
        }
        for (name, value) in Self::wanted_xattrs(entry) {
            let result = fs::fsetxattr(fd, name, value, XattrFlags::empty());
            self.xattr_outcome(path, name, result)?;
        }
        fs::fchmod(fd, Mode::from_raw_mode(entry.mode))
            .map_err(|error| refuse(path, "set the mode of", error))?;
        fs::futimens(fd, &times(entry)).map_err(|error| refuse(path, "set the time of", error))
    }

    /// The same for what cannot be opened: links, fifos, devices.
    fn attributes_by_name(
        &mut self,
        path: &TreePath,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), Error> {
        if let Some((uid, gid)) = self.owner(path, entry)? {
            fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| unmapped(path, entry, error))?;
        }
        for (xattr, value) in Self::wanted_xattrs(entry) {
            let result = fs::lsetxattr(proc_path(parent, name), xattr, value, XattrFlags::empty());
            self.xattr_outcome(path, xattr, result)?;
        }
        if entry.kind != Kind::Symlink {
            fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(|error| refuse(path, "set the mode of", error))?;
        }
        fs::utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| refuse(path, "set the time of", error))
    }

    fn owner(&self, path: &TreePath, entry: &Entry) -> Result<Option<(Uid, Gid)>, Error> {
        if self.ownership == Ownership::Squash {
            return Ok(None);
        }
        match (u32::try_from(entry.uid), u32::try_from(entry.gid)) {
            (Ok(uid), Ok(gid)) if uid != u32::MAX && gid != u32::MAX => {
                Ok(Some((Uid::from_raw(uid), Gid::from_raw(gid))))
            }
            _ => Err(unmapped(path, entry, Errno::INVAL)),
        }
    }

    /// Overlayfs' own marks are never taken from an archive: they could reach into other layers.
    fn wanted_xattrs(entry: &Entry) -> Vec<(&OsStr, &[u8])> {
        entry
            .xattrs
            .iter()
            .filter(|(name, _)| {
                !name.starts_with(b"user.overlay.")
                    && !name.starts_with(b"trusted.")
                    && name != b"security.selinux"
                    && !name.is_empty()
            })
            .map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
            .collect()
    }

    fn xattr_outcome(
        &mut self,
        path: &TreePath,
        name: &OsStr,
        result: Result<(), Errno>,
    ) -> Result<(), Error> {
        match result {
            Ok(()) => Ok(()),
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                self.note(format!(
                    "{}: extended attribute {} left out",
                    path,
                    name.to_string_lossy()
                ));
                Ok(())
            }
            Err(error) => Err(refuse(path, "set an extended attribute of", error)),
        }
    }

    fn note(&mut self, note: String) {
        if self.done.notes.len() < NOTES {
            self.done.notes.push(note);
        }
    }

    fn finish_directories(&mut self) -> Result<(), Error> {
        for (path, entry) in std::mem::take(&mut self.directories) {
            let fd: Rc<OwnedFd> = match self.tree.open_directory(&path) {
                Ok(fd) => fd,
                // Replaced by something else since.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(refuse(&path, "open", error)),
            };
            self.attributes(&path, &fd, &entry)?;
        }
        Ok(())
    }
}

/// A character device 0:0, which an unprivileged user may make since Linux 5.8; where the file system
/// or a filter forbids it, a marked empty file, which overlayfs understands since 6.7.
fn make_whiteout(parent: &OwnedFd, name: &OsStr, path: &TreePath) -> Result<(), Error> {
    let mode = Mode::from_raw_mode(0o600);
    match fs::mknodat(parent, name, FileType::CharacterDevice, mode, 0) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {}
        Err(error) => return Err(refuse(path, "create whiteout", error)),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(parent, name, flags, mode)
        .map_err(|error| refuse(path, "create whiteout", error))?;
    fs::fsetxattr(&file, WHITEOUT_XATTR, b"y", XattrFlags::empty())
        .map_err(|error| refuse(path, "mark as whiteout", error))?;
    // The parent must say that it has such files. A real opaque mark stays as it is.
    match fs::fsetxattr(parent, OPAQUE_XATTR, b"x", XattrFlags::CREATE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(refuse(path, "mark the directory of", error)),
    }
}

fn times(entry: &Entry) -> Timestamps {
    let time =
        Timespec { tv_sec: entry.mtime.seconds, tv_nsec: i64::from(entry.mtime.nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

fn unmapped(path: &TreePath, entry: &Entry, error: Errno) -> Error {
    if error != Errno::INVAL {
        return refuse(path, "set the owner of", error);
    }
    Error::unsupported(
        format!("layer entry {path}"),
        format!(
            "its owner {}:{} is not mapped in this user namespace; give the user more subordinate ids in /etc/subuid and /etc/subgid",
            entry.uid, entry.gid
        ),
    )
}

fn too_large(limits: &Limits) -> Error {
    Error::TooLarge {
        what: "layer".to_owned(),
        limit: format!("it unpacks to more than {} bytes", limits.layer_bytes),
    }
}

#[cfg(test)]
mod properties;
