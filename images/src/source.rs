//! Where an archive's files are read from: a tar archive, or a directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::Error;
use crate::limits::Limits;
use crate::tarball::{Kind, Tarball};
use crate::tree::TreePath;

/// The files of an image archive, by name.
pub(crate) enum Source {
    Tar { file: Arc<File>, entries: HashMap<Vec<u8>, Place> },
    Directory(OwnedFd),
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Data {
        offset: u64,
        size: u64,
    },
    /// Docker wrote a layer that two images share once, and a link for the other.
    Link(Vec<u8>),
}

impl Source {
    /// Indexes the uncompressed archive `file`.
    pub fn tar(mut file: File, limits: &Limits) -> Result<Self, Error> {
        let mut entries = HashMap::new();
        file.seek(SeekFrom::Start(0)).map_err(|error| Error::corrupt("archive", error))?;
        let end = file.metadata().map_or(u64::MAX, |metadata| metadata.len());
        let mut archive = Tarball::new(file, limits);
        while let Some(entry) = archive.next()? {
            let path = TreePath::parse(&entry.path, limits.path_bytes)?;
            let place = match entry.kind {
                Kind::File if entry.sparse.is_some() => {
                    return Err(Error::unsupported("archive", "it has sparse files"));
                }
                Kind::File => Some(Place::Data { offset: archive.position(), size: entry.size }),
                Kind::HardLink => Some(Place::Link(
                    TreePath::parse(&entry.link, limits.path_bytes)?.as_bytes().to_vec(),
                )),
                Kind::Symlink => resolve(&path, &entry.link).map(Place::Link),
                _ => None,
            };
            if let Some(place) = place {
                entries.insert(path.as_bytes().to_vec(), place);
            }
            if entries.len() as u64 > limits.layer_entries {
                return Err(Error::TooLarge {
                    what: "archive".to_owned(),
                    limit: format!("more than {} entries", limits.layer_entries),
                });
            }
            let skip = archive.give_up_data();
            if archive.position() > end {
                return Err(Error::corrupt("archive", "it ends in the middle of an entry"));
            }
            archive
                .get_mut()
                .seek(SeekFrom::Current(skip as i64))
                .map_err(|error| Error::corrupt("archive", error))?;
        }
        Ok(Self::Tar { file: Arc::new(archive.into_inner()), entries })
    }

    pub fn directory(path: &Path) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty())
            .map(Self::Directory)
            .map_err(|error| Error::io("open", path, error))
    }

    /// Opens the file `name`; `None` if there is none.
    pub fn open(&self, name: &str) -> Result<Option<Content>, Error> {
        let path = TreePath::parse(name.as_bytes(), 4096)?;
        match self {
            Self::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                match openat2(
                    directory,
                    path.as_path(),
                    flags,
                    Mode::empty(),
                    ResolveFlags::BENEATH,
                ) {
                    Ok(fd) => {
                        let file = File::from(fd);
                        let size = file
                            .metadata()
                            .map_err(|error| Error::io("look up", path.as_path(), error))?
                            .len();
                        Ok(Some(Content { file: Arc::new(file), offset: 0, left: size }))
                    }
                    Err(rustix::io::Errno::NOENT) => Ok(None),
                    Err(error) => Err(Error::io("open", path.as_path(), error)),
                }
            }
            Self::Tar { file, entries } => {
                let mut name = path.as_bytes();
                // Links of links are not made by anyone; a few steps are allowed, no more.
                for _ in 0..4 {
                    match entries.get(name) {
                        None => return Ok(None),
                        Some(Place::Link(target)) => name = target,
                        Some(Place::Data { offset, size }) => {
                            return Ok(Some(Content {
                                file: Arc::clone(file),
                                offset: *offset,
                                left: *size,
                            }));
                        }
                    }
                }
                Err(Error::corrupt("archive", format!("{path} is a loop of links")))
            }
        }
    }

    /// Reads the whole file `name`, at most `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(content) = self.open(name)? else {
            return Ok(None);
        };
        if content.left > limit {
            return Err(Error::TooLarge {
                what: name.to_owned(),
                limit: format!("{} bytes, {limit} are allowed", content.left),
            });
        }
        let mut bytes = Vec::new();
        let mut content = content;
        content.read_to_end(&mut bytes).map_err(|error| Error::corrupt(name, error))?;
        Ok(Some(bytes))
    }
}

/// A file of the archive, readable beside others at the same time.
pub(crate) struct Content {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Content {
    pub fn size(&self) -> u64 {
        self.left
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        let got = self.file.read_at(&mut buffer[..want], self.offset)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

/// Where a link at `path` leads, within the archive; `None` if out of it.
fn resolve(path: &TreePath, link: &[u8]) -> Option<Vec<u8>> {
    if link.starts_with(b"/") {
        return None;
    }
    let mut parts: Vec<&[u8]> = path.as_bytes().split(|byte| *byte == b'/').collect();
    parts.pop();
    for component in link.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            _ => parts.push(component),
        }
    }
    Some(parts.join(&b'/'))
}
