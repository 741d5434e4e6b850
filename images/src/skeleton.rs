//! What a layer's archive was beside the content of its files, so that the very same bytes can be made again.
//!
//! `layers/<name>/skeleton` is one zstd stream of records: a piece of the archive verbatim (headers,
//! padding, whiteouts), or the name of a file whose whole content stood there. With it an image is saved
//! with its own layer digests, and a layer's files are checked against the digest they came with.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use crate::error::Error;
use crate::tree::TreePath;

const VERBATIM: u8 = 0;
const FILE: u8 = 1;
/// Small pieces are gathered up to this.
const PIECE_BYTES: usize = 64 << 10;
const LEVEL: i32 = 1;

/// Passes an archive on and writes its skeleton.
pub(crate) struct Recorder<R> {
    inner: R,
    output: zstd::Encoder<'static, File>,
    piece: Vec<u8>,
    /// The bytes that pass are a file's, which will be found in the tree.
    in_file: bool,
    failure: Option<io::Error>,
}

impl<R: Read> Recorder<R> {
    pub fn new(inner: R, output: File) -> io::Result<Self> {
        Ok(Self {
            inner,
            output: zstd::Encoder::new(output, LEVEL)?,
            piece: Vec::with_capacity(PIECE_BYTES),
            in_file: false,
            failure: None,
        })
    }

    /// The next `length` bytes are the content of the file at `path`.
    pub fn begin_file(&mut self, path: &TreePath, length: u64) {
        self.flush_piece();
        self.in_file = true;
        let mut record = vec![FILE];
        record.extend_from_slice(&(path.as_bytes().len() as u32).to_le_bytes());
        record.extend_from_slice(path.as_bytes());
        record.extend_from_slice(&length.to_le_bytes());
        self.write(&record);
    }

    pub fn end_file(&mut self) {
        self.in_file = false;
    }

    /// Completes the skeleton; gives back the reader.
    pub fn finish(mut self) -> io::Result<R> {
        self.flush_piece();
        if let Some(error) = self.failure {
            return Err(error);
        }
        self.output.finish()?;
        Ok(self.inner)
    }

    fn flush_piece(&mut self) {
        if self.piece.is_empty() {
            return;
        }
        let piece = std::mem::take(&mut self.piece);
        let mut start = vec![VERBATIM];
        start.extend_from_slice(&(piece.len() as u32).to_le_bytes());
        self.write(&start);
        self.write(&piece);
        self.piece = piece;
        self.piece.clear();
    }

    /// A failure to write is told at the end: reading has no way to say whose fault it was.
    fn write(&mut self, bytes: &[u8]) {
        if self.failure.is_none() {
            self.failure = self.output.write_all(bytes).err();
        }
    }
}

impl<R: Read> Read for Recorder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        if !self.in_file {
            self.piece.extend_from_slice(&buffer[..got]);
            if self.piece.len() >= PIECE_BYTES {
                self.flush_piece();
            }
        }
        Ok(got)
    }
}

enum Record {
    Verbatim(u32),
    File { path: TreePath, length: u64 },
}

/// The archive, made again.
pub(crate) struct Rebuilt {
    records: BufReader<zstd::Decoder<'static, BufReader<File>>>,
    root: File,
    /// Bytes left of the piece in `records`.
    verbatim: u64,
    /// The file being read, and what is left of it.
    file: Option<(File, u64)>,
}

impl Rebuilt {
    /// Opens the layer at `directory`; `None` if it has no skeleton.
    pub fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join("skeleton");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let decoder = zstd::Decoder::new(file).map_err(|error| Error::io("read", &path, error))?;
        let fs = directory.join("fs");
        let root = File::open(&fs).map_err(|error| Error::io("open", &fs, error))?;
        Ok(Some(Self {
            records: BufReader::with_capacity(PIECE_BYTES, decoder),
            root,
            verbatim: 0,
            file: None,
        }))
    }

    /// Length of the whole archive in bytes; reads the skeleton through.
    pub fn length(mut self) -> io::Result<u64> {
        let mut total = 0;
        while let Some(record) = self.next_record()? {
            total += match record {
                Record::Verbatim(length) => {
                    let mut piece = Read::by_ref(&mut self.records).take(u64::from(length));
                    io::copy(&mut piece, &mut io::sink())?
                }
                Record::File { length, .. } => length,
            };
        }
        Ok(total)
    }

    fn next_record(&mut self) -> io::Result<Option<Record>> {
        let mut tag = [0];
        if self.records.read(&mut tag)? == 0 {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.records.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length);
        if tag[0] == VERBATIM {
            return Ok(Some(Record::Verbatim(length)));
        }
        let mut name = vec![0; length.min(1 << 16) as usize];
        self.records.read_exact(&mut name)?;
        let mut size = [0; 8];
        self.records.read_exact(&mut size)?;
        let path = TreePath::parse(&name, name.len()).map_err(io::Error::other)?;
        Ok(Some(Record::File { path, length: u64::from_le_bytes(size) }))
    }

    fn open_file(&self, path: &TreePath) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = openat2(&self.root, path.as_path(), flags, Mode::empty(), ResolveFlags::BENEATH)?;
        Ok(fd.into())
    }
}

impl Read for Rebuilt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.verbatim > 0 {
                let want = self.verbatim.min(buffer.len() as u64) as usize;
                let got = self.records.read(&mut buffer[..want])?;
                self.verbatim -= got as u64;
                return if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) };
            }
            if let Some((file, left)) = &mut self.file
                && *left > 0
            {
                let want = (*left).min(buffer.len() as u64) as usize;
                let got = file.read(&mut buffer[..want])?;
                *left -= got as u64;
                return if got == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(got) };
            }
            self.file = None;
            match self.next_record()? {
                None => return Ok(0),
                Some(Record::Verbatim(length)) => self.verbatim = u64::from(length),
                Some(Record::File { path, length }) => {
                    self.file = Some((self.open_file(&path)?, length));
                }
            }
        }
    }
}
