//! Files of variables that a container wrote into a volume for the containers after it.
//!
//! A line is `NAME='value'`; the value may span lines and stands for itself. Blank lines and lines that begin with
//! `#` say nothing; after the closing quote a comment may follow.
//!
//! Source of behaviour: `ParseEnv` in `pkg/kubelet/util/env/env_util.go`; the page of the documentation about
//! environment variables by file.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// No file of variables is longer: a container that writes without an end takes no memory of the node.
const BYTES_MAX: u64 = 1 << 20;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid environment variable format at line {line}: {what}")]
pub struct Error {
    line: usize,
    what: &'static str,
}

/// The text of a file in a volume, whose links lead nowhere out of it.
///
/// # Errors
/// Whatever reading it gives, and text that is not UTF-8 or too long.
pub fn read(volume: &Path, path: &str) -> io::Result<String> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::openat(CWD, volume, directory, Mode::empty())?;
    // Not to wait for a writer, should the container have made a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(rustix::fs::openat2(base, path, flags, Mode::empty(), inside)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = String::new();
    if file.take(BYTES_MAX + 1).read_to_string(&mut text)? as u64 > BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than 1 MiB"));
    }
    Ok(text)
}

/// The value of `key`; empty when nothing is said of it. Nothing after it is read.
///
/// # Errors
/// When a line before it cannot be understood.
pub fn value(text: &str, key: &str) -> Result<String, Error> {
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let fail = |what| Error { line: index + 1, what };
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or(fail("missing '='"))?;
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return Err(fail("empty variable name"));
        }
        if name.ends_with([' ', '\t']) {
            return Err(fail("whitespace before '=' is not allowed"));
        }
        if rest.starts_with([' ', '\t']) {
            // To a shell the variable is empty, and what follows is a command.
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let quoted = rest.strip_prefix('\'');
        let mut rest = quoted.ok_or(fail("value must be enclosed in single quotes"))?;
        let mut value = String::new();
        let after = loop {
            if let Some((last, after)) = rest.split_once('\'') {
                value.push_str(last);
                break after;
            }
            value.push_str(rest);
            value.push('\n');
            rest = lines.next().ok_or(fail("unclosed single quote"))?.1;
        };
        let after = after.trim_start_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with('#') {
            return Err(fail("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_what_stands_between_quotes() {
        for (text, want) in [
            ("A='1'\nK='v'", "v"),
            ("  K='v w'  # said\n", "v w"),
            ("# K='no'\n\nK='$HOME \\n'", "$HOME \\n"),
            ("K='one\ntwo'\n", "one\ntwo"),
            ("K= 'v'", ""),
            ("K=''", ""),
            ("A='1'", ""),
            ("K='first'\nK='second'\nnonsense", "first"),
        ] {
            assert_eq!(value(text, "K").as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_told() {
        for (text, want) in [
            ("nonsense", "line 1: missing '='"),
            ("\nK ='v'", "line 2: whitespace before '=' is not allowed"),
            ("='v'", "line 1: empty variable name"),
            ("K=v", "line 1: value must be enclosed in single quotes"),
            ("K='v", "line 1: unclosed single quote"),
            ("K='v' w", "line 1: unexpected content after closing quote"),
        ] {
            let told = value(text, "K").unwrap_err().to_string();
            assert_eq!(told, format!("invalid environment variable format at {want}"), "{text}");
        }
    }

    #[test]
    fn files_are_read_within_their_volume() {
        let scratch = tempfile::tempdir().unwrap();
        let volume = scratch.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(scratch.path().join("secret"), "K='secret'").unwrap();
        std::fs::write(volume.join("a.env"), "K='v'").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        assert_eq!(read(&volume, "a.env").unwrap(), "K='v'");
        for path in ["out", "../secret", "missing", "."] {
            assert!(read(&volume, path).is_err(), "{path}");
        }
    }
}
