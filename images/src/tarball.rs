//! A streaming reader of tar archives, with bounds.
//!
//! The `tar` crate decodes the header fields; the walk over entries is ours, because extension headers
//! must be bounded before they are read into memory, and because pax `size` records (files over 8 GiB)
//! decide where the next header is.
//!
//! Source: POSIX pax(1) "pax Interchange Format", GNU tar manual "Basic Tar Format" and "Sparse Formats".

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::error::Error;
use crate::limits::Limits;
use crate::pax::{self, Records};

pub(crate) const BLOCK: usize = 512;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// One entry, its extension headers applied. Names are bytes as in the archive, not yet checked.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: Timestamp,
    /// Length of the file it makes, holes included.
    pub size: u64,
    pub device: (u32, u32),
    pub xattrs: pax::Xattrs,
    /// Offset and length of each piece of data, for a sparse file.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Reads entries one after another; the data of the current one are read with [`Tarball::read_data`].
pub(crate) struct Tarball<'l, R> {
    reader: R,
    limits: &'l Limits,
    /// Bytes of the current entry not yet read.
    data_left: u64,
    /// Zero bytes after them, up to the next block.
    padding: usize,
    global: Records,
    /// Offset of the next byte, from the start of the archive.
    position: u64,
}

/// Extension headers gathered before the entry they belong to.
#[derive(Default)]
struct Pending {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    records: Records,
}

impl<'l, R: Read> Tarball<'l, R> {
    pub fn new(reader: R, limits: &'l Limits) -> Self {
        Self { reader, limits, data_left: 0, padding: 0, global: Records::default(), position: 0 }
    }

    /// Offset of the current entry's data, right after [`Tarball::next`].
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn into_inner(self) -> R {
        self.reader
    }

    pub fn get_mut(&mut self) -> &mut R {
        &mut self.reader
    }

    /// The next entry; `None` at the end of the archive.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_data()?;
        let mut pending = Pending::default();
        loop {
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let kind = header.entry_type();
            match kind.as_byte() {
                b'L' => pending.long_path = Some(self.read_long_name(&header)?),
                b'K' => pending.long_link = Some(self.read_long_name(&header)?),
                b'x' | b'X' => {
                    let body = self.read_extension(&header)?;
                    pending.records = pax::parse(&body)?;
                }
                b'g' => {
                    let body = self.read_extension(&header)?;
                    self.global.merge(pax::parse(&body)?);
                    self.global.check_size(self.limits.extension_bytes)?;
                }
                // A volume label describes the archive, not a file.
                b'V' => {
                    self.begin_data(size(&header.as_old().size)?)?;
                    self.skip_data()?;
                }
                _ => return self.finish_entry(&header, kind, pending).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end.
    pub fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let want = self.data_left.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let got = self.reader.read(&mut buffer[..want]).map_err(broken)?;
        if got == 0 {
            return Err(truncated());
        }
        self.data_left -= got as u64;
        self.position += got as u64;
        Ok(got)
    }

    /// Leaves the current entry's data unread, for a caller that seeks past them itself; returns how far.
    pub fn give_up_data(&mut self) -> u64 {
        let distance = self.data_left + self.padding as u64;
        self.data_left = 0;
        self.padding = 0;
        self.position += distance;
        distance
    }

    fn skip_data(&mut self) -> Result<(), Error> {
        let mut scratch = [0_u8; 16 << 10];
        while self.read_data(&mut scratch)? > 0 {}
        let padding = std::mem::take(&mut self.padding);
        if padding > 0 {
            self.fill(&mut scratch[..padding])?;
        }
        Ok(())
    }

    fn begin_data(&mut self, size: u64) -> Result<(), Error> {
        if size > i64::MAX as u64 - 2 * BLOCK as u64 {
            return Err(Error::corrupt("archive", "an entry's size is out of range"));
        }
        self.data_left = size;
        self.padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(buffer).map_err(broken)?;
        self.position += buffer.len() as u64;
        Ok(())
    }

    /// The next header block; `None` at the end-of-archive mark, or at the end of input, as GNU tar has it.
    fn read_header(&mut self) -> Result<Option<Header>, Error> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]).map_err(broken)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                got => filled += got,
            }
        }
        self.position += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = |signed: bool| -> i64 {
            let bytes = header.as_bytes();
            (0..BLOCK)
                .map(|i| match (bytes[i], signed) {
                    _ if (148..156).contains(&i) => i64::from(b' '),
                    (byte, true) => i64::from(byte as i8),
                    (byte, false) => i64::from(byte),
                })
                .sum()
        };
        let stated = number(&header.as_old().cksum, "checksum")?;
        if stated != sum(false) && stated != sum(true) {
            return Err(Error::corrupt("archive", "a tar header has a wrong checksum"));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, header: &Header) -> Result<Vec<u8>, Error> {
        let size = size(&header.as_old().size)?;
        if size > self.limits.extension_bytes {
            return Err(Error::TooLarge {
                what: "tar extension header".to_owned(),
                limit: format!("{size} bytes, {} are allowed", self.limits.extension_bytes),
            });
        }
        self.begin_data(size)?;
        let mut body = vec![0; size as usize];
        self.data_left = 0;
        self.fill(&mut body)?;
        self.skip_data()?;
        Ok(body)
    }

    fn read_long_name(&mut self, header: &Header) -> Result<Vec<u8>, Error> {
        let mut name = self.read_extension(header)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn finish_entry(
        &mut self,
        header: &Header,
        kind: EntryType,
        pending: Pending,
    ) -> Result<Entry, Error> {
        let Pending { long_path, long_link, records } = pending;
        let get = |key: &str| records.get(key).or_else(|| self.global.get(key));
        let record = |key: &str| get(key).map(|value| pax::number(key, value)).transpose();

        let mut path = long_path.unwrap_or_else(|| header.path_bytes().into_owned());
        if let Some(value) = get("GNU.sparse.name").or_else(|| get("path")) {
            path = value.to_vec();
        }
        let mut link = long_link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        if let Some(value) = get("linkpath") {
            link = value.to_vec();
        }
        let kind = match kind.as_byte() {
            // Before POSIX, a trailing slash was all that told a directory.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(Error::unsupported(
                    format!("archive entry {:?}", String::from_utf8_lossy(&path)),
                    format!("unknown tar entry type {:?}", char::from(other)),
                ));
            }
        };
        let stored = if kind == Kind::File {
            match record("size")? {
                Some(size) => size,
                None => size(&header.as_old().size)?,
            }
        } else {
            0
        };
        let mtime = match get("mtime") {
            Some(value) => pax::timestamp(value)?,
            None => Timestamp { seconds: number(&header.as_old().mtime, "mtime")?, nanoseconds: 0 },
        };
        let uid = record("uid")?
            .map_or_else(|| number(&header.as_old().uid, "uid"), |id| Ok(id as i64))?
            as u64;
        let gid = record("gid")?
            .map_or_else(|| number(&header.as_old().gid, "gid"), |id| Ok(id as i64))?
            as u64;
        let device = match kind {
            Kind::CharacterDevice | Kind::BlockDevice => device(header)?,
            _ => (0, 0),
        };
        let pax_map = pax::sparse_map(&records)?;
        let in_data = get("GNU.sparse.major") == Some(b"1");
        let real_size = record("GNU.sparse.realsize")?.or(record("GNU.sparse.size")?);
        let xattrs = records.xattrs(self.limits.xattr_bytes)?;

        let mut entry = Entry {
            path,
            link,
            kind,
            mode: (number(&header.as_old().mode, "mode")? & 0o7777) as u32,
            uid,
            gid,
            mtime,
            size: stored,
            device,
            xattrs,
            sparse: None,
        };
        if header.entry_type().as_byte() == b'S' {
            let (map, size) = self.read_gnu_sparse(header)?;
            self.begin_data(stored)?;
            entry.sparse = Some(map);
            entry.size = size;
        } else if let Some(map) = pax_map {
            self.begin_data(stored)?;
            entry.sparse = Some(map);
            entry.size = real_size.unwrap_or(stored);
        } else if in_data && kind == Kind::File {
            self.begin_data(stored)?;
            entry.sparse = Some(self.read_sparse_map_from_data()?);
            entry.size = real_size.unwrap_or(stored);
        } else {
            self.begin_data(stored)?;
        }
        if let Some(map) = &entry.sparse {
            check_sparse(map, entry.size, self.data_left)?;
        }
        Ok(entry)
    }

    /// GNU's old sparse format: the map is in the header and in blocks after it.
    fn read_gnu_sparse(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Error> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| Error::corrupt("archive", "a sparse entry without GNU header"))?;
        let mut map = Vec::new();
        let mut add = |piece: &tar::GnuSparseHeader| -> Result<(), Error> {
            if !piece.is_empty() {
                map.push((size(&piece.offset)?, size(&piece.numbytes)?));
            }
            Ok(())
        };
        for piece in &gnu.sparse {
            add(piece)?;
        }
        let mut more = gnu.is_extended();
        let mut read = 0_u64;
        while more {
            let mut extension = GnuExtSparseHeader::new();
            self.fill(extension.as_mut_bytes())?;
            read += BLOCK as u64;
            if read > self.limits.extension_bytes {
                return Err(sparse_too_large());
            }
            for piece in extension.sparse() {
                add(piece)?;
            }
            more = extension.is_extended();
        }
        Ok((map, size(&gnu.realsize)?))
    }

    /// Pax sparse format 1.0: the map is decimal lines at the start of the data, padded to a block.
    fn read_sparse_map_from_data(&mut self) -> Result<Vec<(u64, u64)>, Error> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut digits = String::new();
        let mut read = 0_u64;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0_u8; BLOCK];
            if self.data_left < BLOCK as u64 {
                return Err(Error::corrupt("archive", "a sparse map is cut short"));
            }
            self.fill(&mut block)?;
            self.data_left -= BLOCK as u64;
            read += BLOCK as u64;
            if read > self.limits.extension_bytes {
                return Err(sparse_too_large());
            }
            for byte in block {
                match byte {
                    b'\n' => {
                        let number = pax::number("GNU.sparse.map", digits.as_bytes())?;
                        digits.clear();
                        match wanted {
                            None => {
                                if number > self.limits.extension_bytes {
                                    return Err(sparse_too_large());
                                }
                                wanted = Some(number as usize * 2);
                            }
                            Some(_) => numbers.push(number),
                        }
                    }
                    b'0'..=b'9' if digits.len() < 20 => digits.push(char::from(byte)),
                    0 => break,
                    _ => return Err(Error::corrupt("archive", "a sparse map has odd bytes")),
                }
                if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
                    break;
                }
            }
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// The pieces must ascend, lie within the file, and add up to the data stored.
fn check_sparse(map: &[(u64, u64)], size: u64, stored: u64) -> Result<(), Error> {
    let mut end = 0_u64;
    let mut sum = 0_u64;
    for (offset, length) in map {
        let next = offset.checked_add(*length);
        match next {
            Some(next) if *offset >= end && next <= size => end = next,
            _ => return Err(Error::corrupt("archive", "a sparse map is out of order")),
        }
        sum += length;
    }
    if sum > stored {
        return Err(Error::corrupt("archive", "a sparse map promises more data than there is"));
    }
    Ok(())
}

fn sparse_too_large() -> Error {
    Error::TooLarge {
        what: "sparse map".to_owned(),
        limit: "it is longer than an extension header may be".to_owned(),
    }
}

/// A numeric field: octal digits between blanks, or GNU's base 256. Blank is zero, as in old archives.
fn number(field: &[u8], name: &str) -> Result<i64, Error> {
    let bad = || Error::corrupt("archive", format!("bad {name} in a tar header"));
    if field[0] & 0x80 != 0 {
        let first = if field[0] & 0x40 == 0 { i128::from(field[0] & 0x7f) } else { -1 };
        let value = field[1..]
            .iter()
            .try_fold(first, |value, byte| value.checked_mul(256)?.checked_add(i128::from(*byte)));
        return value.and_then(|value| i64::try_from(value).ok()).ok_or_else(bad);
    }
    let blank = |byte: &u8| matches!(byte, 0 | b' ');
    let digits = field.iter().skip_while(|byte| blank(byte)).take_while(|byte| !blank(byte));
    digits
        .copied()
        .try_fold(0_i64, |value, byte| match byte {
            b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
            _ => None,
        })
        .ok_or_else(bad)
}

fn size(field: &[u8]) -> Result<u64, Error> {
    u64::try_from(number(field, "size")?)
        .map_err(|_| Error::corrupt("archive", "negative size in a tar header"))
}

fn device(header: &Header) -> Result<(u32, u32), Error> {
    let (major, minor) = match (header.as_gnu(), header.as_ustar()) {
        (Some(gnu), _) => (&gnu.dev_major, &gnu.dev_minor),
        (None, Some(ustar)) => (&ustar.dev_major, &ustar.dev_minor),
        (None, None) => return Ok((0, 0)),
    };
    let part = |field| {
        u32::try_from(number(field, "device number")?)
            .map_err(|_| Error::corrupt("archive", "device number out of range"))
    };
    Ok((part(major)?, part(minor)?))
}

fn broken(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return truncated();
    }
    Error::corrupt("archive", error)
}

fn truncated() -> Error {
    Error::corrupt("archive", "it ends in the middle of an entry")
}
