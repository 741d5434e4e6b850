//! One process per role and cluster: a locked file with its pid in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal};

/// A role's lock; released when dropped, or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Locks `path` and writes this process' pid into it. `None` when somebody else holds it.
pub fn take(path: &Path) -> io::Result<Option<Lock>> {
    let mut file = open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    write!(file, "{}", std::process::id())?;
    Ok(Some(Lock { _file: file }))
}

/// Locks `path`, waiting for whoever holds it.
pub fn wait(path: &Path) -> io::Result<Lock> {
    let file = open(path)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(Lock { _file: file })
}

/// The pid of the process that holds `path`, if one does.
pub fn holder(path: &Path) -> Option<u32> {
    let mut file = File::open(path).ok()?;
    if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
        return None;
    }
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Ends the holder of `path` with SIGTERM, and with SIGKILL if it still holds it after `grace`.
pub fn end_holder(path: &Path, grace: Duration) -> io::Result<()> {
    let Some(pid) = holder(path) else { return Ok(()) };
    let gone = |error: rustix::io::Errno| error == rustix::io::Errno::SRCH;
    let Some(pid) = Pid::from_raw(pid as i32) else { return Ok(()) };
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(error) if gone(error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // The descriptor names one process for good; that it still holds the lock says it is the right one.
    if holder(path) != Some(pid.as_raw_nonzero().get() as u32) {
        return Ok(());
    }
    for (signal, patience) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(5))] {
        match rustix::process::pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(error) if gone(error) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if wait_exit(&process, patience)? {
            return Ok(());
        }
    }
    let path: PathBuf = path.to_owned();
    Err(io::Error::other(format!("the process named in {} does not end", path.display())))
}

fn wait_exit(process: &impl std::os::fd::AsFd, patience: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let until = Instant::now() + patience;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_once_and_names_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("role.pid");
        assert_eq!(holder(&path), None);
        let held = take(&path).unwrap();
        assert!(held.is_some());
        assert!(take(&path).unwrap().is_none());
        assert_eq!(holder(&path), Some(std::process::id()));
        drop(held);
        assert_eq!(holder(&path), None);
        assert!(take(&path).unwrap().is_some());
    }
}
