//! Which build of rootlet a process runs.

use std::fs;
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;

/// The version, as people know it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether process `pid` runs another build than this process. Copies of one file are one build.
pub fn differs(pid: u32) -> bool {
    let theirs = format!("/proc/{pid}/exe");
    let (Ok(own), Ok(other)) = (fs::metadata("/proc/self/exe"), fs::metadata(&theirs)) else {
        // A process that is gone, or somebody else's, is not told about.
        return false;
    };
    if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
        return false;
    }
    own.len() != other.len() || !same("/proc/self/exe", &theirs).unwrap_or(true)
}

fn same(one: &str, other: &str) -> std::io::Result<bool> {
    let open = |path| fs::File::open(path).map(|file| BufReader::with_capacity(1 << 20, file));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = one.read(&mut left)?;
        if read == 0 {
            return Ok(other.read(&mut right)? == 0);
        }
        if other.read_exact(&mut right[..read]).is_err() || left[..read] != right[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_told_apart_by_their_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let long = vec![7; 200_000];
        let mut other = long.clone();
        other[150_000] = 8;
        let (one, copy) = (file("one", &long), file("copy", &long));
        assert!(same(&one, &copy).unwrap());
        assert!(!same(&one, &file("other", &other)).unwrap());
        assert!(!same(&one, &file("short", &long[..100])).unwrap());
        assert!(!differs(std::process::id()));
        let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(differs(sleeper.id()));
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(!differs(sleeper.id()), "it is gone");
    }
}
