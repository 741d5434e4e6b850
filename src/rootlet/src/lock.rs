//! One process per role and cluster: a locked file with its pid in it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
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

/// How long a process that is dying may hold its locks.
const DYING: Duration = Duration::from_secs(5);

/// Waits for the end of a holder that is dying already: a killed process keeps its locks until the kernel has
/// taken it apart. Who lives is not waited for.
pub fn await_dying(path: &Path) {
    let until = Instant::now() + DYING;
    while holder(path).is_some_and(is_dying) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether the process is gone, a zombie, on its way out, or killed without having noticed (proc(5)).
fn is_dying(pid: u32) -> bool {
    /// `PF_EXITING` of the kernel's `linux/sched.h`.
    const EXITING: u64 = 0x4;
    const SIGKILL_PENDING: u64 = 1 << 8;
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
    let (Ok(stat), Ok(status)) = (read("stat"), read("status")) else { return true };
    // The name, in parentheses, may contain anything.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ended = fields.first().is_none_or(|state| matches!(*state, "Z" | "X" | "x"));
    let flags = fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).unwrap_or_default();
    let killed = status.lines().any(|line| {
        let pending = line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        pending.is_some_and(|mask| mask & SIGKILL_PENDING != 0)
    });
    ended || flags & EXITING != 0 || killed
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

/// The process that holds the lock, to be waited for: it gives the lock up a little before it ends.
pub fn process(path: &Path) -> Option<OwnedFd> {
    let pid = Pid::from_raw(holder(path)? as i32)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for the end of a process; whether it came in time.
pub fn wait_exit(process: &impl std::os::fd::AsFd, patience: Duration) -> io::Result<bool> {
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

    #[test]
    fn the_dying_are_waited_for_and_the_living_are_not() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("role.pid");
        let held = take(&path).unwrap();
        assert!(!is_dying(std::process::id()));
        await_dying(&path);
        assert!(holder(&path).is_some(), "this process lives");

        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(&path, child.id().to_string()).unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        assert!(is_dying(child.id()), "killed, a zombie at last");
        let freed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                await_dying(&path);
                freed.load(Ordering::SeqCst)
            });
            freed.store(true, Ordering::SeqCst);
            drop(held);
            assert!(waits.join().unwrap(), "it returned before the lock was free");
        });
        child.wait().unwrap();
    }
}
