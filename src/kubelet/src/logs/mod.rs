//! Container logs in CRI's format: reading them as `kubectl logs` asks, and rotating them.
//!
//! Source of behaviour: `pkg/kubelet/kuberuntime/logs/logs.go`; a line is
//! `<RFC 3339 time> <stdout|stderr> <P|F> <content>`.

pub mod links;
pub mod read;
pub mod rotate;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use jiff::Timestamp;

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// When it was written, as written.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// Whether the container's line goes on in the next one.
    pub partial: bool,
    /// The content, with the newline unless partial.
    pub content: &'a [u8],
}

impl Line<'_> {
    /// When it was written.
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

/// Parses one line of a file, newline included; `None` if it is not CRI's format.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = std::str::from_utf8(parts.next()?).ok()?;
    let content = parts.next()?;
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    let partial = tags.split(':').next() == Some("P");
    let content = if partial { content.strip_suffix(b"\n").unwrap_or(content) } else { content };
    Some(Line { time, stream, partial, content })
}

/// The end of a container's output: at most so many lines and bytes.
pub fn tail(path: &Path, max_lines: usize, max_bytes: usize) -> String {
    let Ok(mut file) = File::open(path) else { return String::new() };
    let length = file.metadata().map_or(0, |m| m.len());
    // Each line carries some 45 bytes of its own beside the content.
    let window = (max_bytes + max_lines * 64) as u64;
    let from = length.saturating_sub(window);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut bytes)).is_err() {
        return String::new();
    }
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
    if from > 0 && !lines.is_empty() {
        lines.remove(0);
    }
    let start = lines.len().saturating_sub(max_lines);
    let content: Vec<u8> =
        lines[start..].iter().filter_map(|l| parse(l)).flat_map(|l| l.content.to_vec()).collect();
    let start = content.len().saturating_sub(max_bytes);
    String::from_utf8_lossy(&content[start..]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = parse(b"2016-10-06T00:17:09.669794202Z stdout F log content\n").unwrap();
        assert_eq!(
            (line.stream, line.partial, line.content),
            ("stdout", false, b"log content\n".as_slice())
        );
        assert!(line.timestamp().is_some());
        let line = parse(b"2016-10-06T00:17:09.669794202Z stderr P part\n").unwrap();
        assert_eq!((line.partial, line.content), (true, b"part".as_slice()));
        for bad in [b"".as_slice(), b"x y z", b"2016 stdin F x\n"] {
            assert_eq!(parse(bad), None);
        }
    }
}
