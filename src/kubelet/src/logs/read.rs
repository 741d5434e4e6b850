//! Reading a log: the past as asked for, then what is being written.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{parse, rotate};

/// How often a followed log is looked at. A watch would cost one of the user's few inotify
/// instances.
const POLL: Duration = Duration::from_millis(100);
/// Chunks on their way to the client.
const CHUNK_BYTES: usize = 32 << 10;

/// What of a log is wanted (`PodLogOptions`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on with what is being written.
    pub follow: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<usize>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// Each line with its time.
    pub timestamps: bool,
    /// Only so many bytes.
    pub limit_bytes: Option<usize>,
    /// Only `stdout` or `stderr`.
    pub stream: Option<String>,
}

/// Sends the log at `path` into `out` until all is told, or, following, until `ended` says that the
/// container has stopped and the rest is told. Blocks; give it a thread of its own.
pub fn send(
    path: &Path,
    options: &Options,
    out: &mpsc::Sender<std::io::Result<Bytes>>,
    ended: impl Fn() -> bool,
) -> std::io::Result<()> {
    let mut sink = Sink {
        options: options.clone(),
        left: options.limit_bytes,
        buffer: Vec::new(),
        out,
        fresh: true,
    };
    let mut files = rotate::rotated(path);
    files.push(path.to_owned());
    let (skip_files, offset) = match options.tail_lines {
        Some(lines) => beginning(&files, lines, options)?,
        None => (0, 0),
    };
    let mut offset = offset;
    for file in &files[skip_files..files.len() - 1] {
        let mut reader = BufReader::new(File::open(file)?);
        reader.seek(SeekFrom::Start(offset))?;
        offset = 0;
        if !copy(&mut reader, &mut sink)? {
            return Ok(());
        }
    }
    let file = File::open(path)?;
    let mut inode = file.metadata()?.ino();
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(offset))?;
    loop {
        // Asked before reading, so that what was written before the end is read after it.
        let last = !options.follow || ended();
        if !copy(&mut reader, &mut sink)? || !sink.flush() {
            return Ok(());
        }
        let current = std::fs::metadata(path).map(|m| m.ino()).ok();
        if current.is_some_and(|i| i != inode) {
            // Rotated: the rest of the old file is told, the new one follows.
            copy(&mut reader, &mut sink)?;
            let file = File::open(path)?;
            inode = file.metadata()?.ino();
            reader = BufReader::new(file);
            continue;
        }
        if last {
            return Ok(());
        }
        if out.is_closed() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// Copies whole lines; false once the client has enough.
fn copy(reader: &mut BufReader<File>, sink: &mut Sink<'_>) -> std::io::Result<bool> {
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(true);
        }
        if line.last() != Some(&b'\n') {
            // Half a line: its writer is still at it.
            reader.seek_relative(-(read as i64))?;
            return Ok(true);
        }
        if !sink.line(&line) {
            sink.flush();
            return Ok(false);
        }
    }
}

/// File index and offset from which `lines` lines remain: just behind the line before them, so that
/// the parts of a long line stay together.
fn beginning(files: &[PathBuf], lines: usize, options: &Options) -> std::io::Result<(usize, u64)> {
    let mut left = lines + 1;
    for (index, path) in files.iter().enumerate().rev() {
        let mut file = File::open(path)?;
        let mut end = file.metadata()?.len();
        let mut after: Vec<u8> = Vec::new();
        // Backwards in blocks.
        while end > 0 {
            let size = (64 << 10).min(end);
            end -= size;
            let mut block = vec![0; size as usize];
            file.seek(SeekFrom::Start(end))?;
            file.read_exact(&mut block)?;
            block.extend_from_slice(&after);
            let mut upper = block.len();
            loop {
                let newline = block[..upper.saturating_sub(1)].iter().rposition(|b| *b == b'\n');
                // The block's first piece is a line only at the beginning of the file.
                let Some(start) = newline.map(|n| n + 1).or((end == 0 && upper > 0).then_some(0))
                else {
                    break;
                };
                left -= usize::from(counts(&block[start..upper], options));
                if left == 0 {
                    return Ok((index, end + upper as u64));
                }
                upper = start;
                if start == 0 {
                    break;
                }
            }
            after = block[..upper].to_vec();
        }
    }
    Ok((0, 0))
}

fn counts(line: &[u8], options: &Options) -> bool {
    parse(line)
        .is_some_and(|l| !l.partial && options.stream.as_deref().is_none_or(|s| s == l.stream))
}

struct Sink<'a> {
    options: Options,
    left: Option<usize>,
    buffer: Vec<u8>,
    out: &'a mpsc::Sender<std::io::Result<Bytes>>,
    /// The next content begins a line of the container's.
    fresh: bool,
}

impl Sink<'_> {
    /// Takes one line; false once the limit is reached or nobody listens.
    fn line(&mut self, line: &[u8]) -> bool {
        let Some(line) = parse(line) else { return true };
        if self.options.stream.as_deref().is_some_and(|s| s != line.stream) {
            return true;
        }
        if let (Some(since), Some(at)) = (self.options.since, line.timestamp())
            && at < since
        {
            return true;
        }
        if self.options.timestamps && self.fresh {
            self.buffer.extend_from_slice(line.time.as_bytes());
            self.buffer.push(b' ');
        }
        self.buffer.extend_from_slice(line.content);
        self.fresh = !line.partial;
        if let Some(left) = self.left
            && self.buffer.len() >= left
        {
            self.buffer.truncate(left);
            return false;
        }
        if self.buffer.len() >= CHUNK_BYTES { self.flush() } else { true }
    }

    fn flush(&mut self) -> bool {
        if self.buffer.is_empty() {
            return true;
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(self.buffer.len());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        self.out.blocking_send(Ok(chunk)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str], rotated: &[&str], options: Options) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let join = |l: &[&str]| l.join("\n") + "\n";
        std::fs::write(&path, join(lines)).unwrap();
        if !rotated.is_empty() {
            std::fs::write(dir.path().join("0.log.20260101-000000"), join(rotated)).unwrap();
        }
        let (out, mut received) = mpsc::channel(16);
        send(&path, &options, &out, || true).unwrap();
        drop(out);
        let mut text = Vec::new();
        while let Some(chunk) = received.blocking_recv() {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    const A: &str = "2026-01-01T00:00:01Z stdout F a";
    const B: &str = "2026-01-01T00:00:02Z stderr F b";
    const C1: &str = "2026-01-01T00:00:03Z stdout P c";
    const C2: &str = "2026-01-01T00:00:03Z stdout F d";

    #[test]
    fn options() {
        let none = Options::default;
        for (options, expected) in [
            (none(), "a\nb\ncd\n"),
            (Options { tail_lines: Some(1), ..none() }, "cd\n"),
            (Options { tail_lines: Some(0), ..none() }, ""),
            (Options { tail_lines: Some(9), ..none() }, "a\nb\ncd\n"),
            (Options { limit_bytes: Some(3), ..none() }, "a\nb"),
            (Options { stream: Some("stderr".into()), ..none() }, "b\n"),
            (Options { since: "2026-01-01T00:00:02Z".parse().ok(), ..none() }, "b\ncd\n"),
            (
                Options { timestamps: true, tail_lines: Some(1), ..none() },
                "2026-01-01T00:00:03Z cd\n",
            ),
        ] {
            assert_eq!(read(&[A, B, C1, C2], &[], options.clone()), expected, "{options:?}");
        }
    }

    #[test]
    fn rotated_files_come_first() {
        assert_eq!(read(&[B], &[A], Options::default()), "a\nb\n");
        assert_eq!(
            read(&[B], &[A], Options { tail_lines: Some(2), ..Options::default() }),
            "a\nb\n"
        );
        assert_eq!(read(&[B], &[A], Options { tail_lines: Some(1), ..Options::default() }), "b\n");
    }
}
