//! Container logs in CRI format: `<RFC 3339 with nanoseconds> <stream> <F|P> <line>`.
//! (kubernetes/design-proposals: CRI logging; the tag P marks a line that goes on.)

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

/// Longer lines are written in parts of this many bytes, as containerd does.
const MAX_LINE_BYTES: usize = 16 * 1024;

/// An open container log.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
    /// Formatted lines that one `write` will carry, kept to reuse its memory.
    batch: Vec<u8>,
}

impl Log {
    /// Opens the file at `path`, making its directory if need be.
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(Self { path: path.to_owned(), file: open(path)?, batch: Vec::new() })
    }

    /// Opens the path anew, after the file there was renamed.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = open(&self.path)?;
        Ok(())
    }

    /// Appends what `lines` makes of `bytes`. A log that cannot be written (a full disk) must not
    /// stop the container, so its lines are lost.
    pub fn append(&mut self, lines: &mut Lines, bytes: &[u8]) {
        self.batch.clear();
        lines.push(bytes, Timestamp::now(), &mut self.batch);
        self.flush();
    }

    /// Writes the beginning of a line whose end will never come.
    pub fn finish(&mut self, lines: &mut Lines) {
        self.batch.clear();
        lines.finish(Timestamp::now(), &mut self.batch);
        self.flush();
    }

    fn flush(&mut self) {
        if !self.batch.is_empty() {
            let _ = self.file.write_all(&self.batch);
        }
        self.batch.shrink_to(4 * MAX_LINE_BYTES);
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Cuts one stream into log lines.
#[derive(Debug)]
pub struct Lines {
    stream: &'static str,
    partial: Vec<u8>,
}

impl Lines {
    /// For the stream of this name, `stdout` or `stderr`.
    pub fn new(stream: &'static str) -> Self {
        Self { stream, partial: Vec::new() }
    }

    fn push(&mut self, mut bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let (line, rest) = match newline {
                Some(at) => (&bytes[..at], &bytes[at + 1..]),
                None => (bytes, &bytes[bytes.len()..]),
            };
            let mut line = line;
            while self.partial.len() + line.len() > MAX_LINE_BYTES {
                let (part, tail) = line.split_at(MAX_LINE_BYTES - self.partial.len());
                self.write(now, b'P', part, out);
                line = tail;
            }
            if newline.is_some() {
                self.write(now, b'F', line, out);
            } else {
                self.partial.extend_from_slice(line);
            }
            bytes = rest;
        }
    }

    fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.write(now, b'P', &[], out);
        }
    }

    fn write(&mut self, now: Timestamp, tag: u8, line: &[u8], out: &mut Vec<u8>) {
        // Writing into a Vec cannot fail.
        let _ = write!(out, "{now:.9} {} {} ", self.stream, tag as char);
        out.extend_from_slice(&self.partial);
        out.extend_from_slice(line);
        out.push(b'\n');
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&str]) -> String {
        let mut lines = Lines::new("stdout");
        let mut out = Vec::new();
        let now = Timestamp::from_second(0).unwrap();
        for chunk in chunks {
            lines.push(chunk.as_bytes(), now, &mut out);
        }
        lines.finish(now, &mut out);
        String::from_utf8(out).unwrap().replace("1970-01-01T00:00:00.000000000Z stdout ", "")
    }

    #[test]
    fn lines_are_cut_as_they_come() {
        for (chunks, expected) in [
            (vec!["a\nb\n"], "F a\nF b\n"),
            (vec!["a", "b\n"], "F ab\n"),
            (vec!["\n\n"], "F \nF \n"),
            (vec!["unfinished"], "P unfinished\n"),
            (vec![""], ""),
        ] {
            assert_eq!(cut(&chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn long_lines_are_written_in_parts() {
        let long = format!("{}tail\n", "x".repeat(2 * MAX_LINE_BYTES));
        let expected = format!("P {0}\nP {0}\nF tail\n", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(cut(&[&long]), expected);
        let pieces: Vec<&str> =
            long.as_bytes().chunks(1000).map(|c| std::str::from_utf8(c).unwrap()).collect();
        assert_eq!(cut(&pieces), expected);
    }

    #[test]
    fn the_log_follows_a_rename() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod/c/0.log");
        let mut lines = Lines::new("stderr");
        let mut log = Log::open(&path).unwrap();
        log.append(&mut lines, b"one\n");
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        log.append(&mut lines, b"two\n");
        log.reopen().unwrap();
        log.append(&mut lines, b"three\n");
        assert_eq!(std::fs::read_to_string(path.with_extension("old")).unwrap().lines().count(), 2);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with(" stderr F three\n"));
    }
}
