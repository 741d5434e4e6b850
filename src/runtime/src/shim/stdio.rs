//! The output of one container: read once, written to its log and to whoever is attached.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::log::{Lines, Log};

/// One stream of output: the reading end of a pipe, or the master of a terminal.
#[derive(Debug)]
pub struct Stream {
    pub source: OwnedFd,
    lines: Lines,
    sinks: Vec<Sink>,
}

/// An attached reader. Its pipe may be full: then the container waits, as it would for any
/// reader of its output.
#[derive(Debug)]
struct Sink {
    connection: u64,
    pipe: OwnedFd,
    pending: Vec<u8>,
}

/// What reading a stream came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There may be more later.
    Open,
    /// The writers have gone.
    Closed,
}

impl Stream {
    /// A stream whose descriptor becomes non-blocking.
    pub fn new(source: OwnedFd, name: &'static str) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&source, true)?;
        Ok(Self { source, lines: Lines::new(name), sinks: Vec::new() })
    }

    /// Adds a reader belonging to a connection.
    pub fn attach(&mut self, connection: u64, pipe: OwnedFd) {
        if rustix::io::ioctl_fionbio(&pipe, true).is_ok() {
            self.sinks.push(Sink { connection, pipe, pending: Vec::new() });
        }
    }

    /// Removes the readers of a connection.
    pub fn detach(&mut self, connection: u64) {
        self.sinks.retain(|sink| sink.connection != connection);
    }

    /// The first reader that still has to take what was read.
    pub fn blocked_on(&self) -> Option<BorrowedFd<'_>> {
        self.sinks.iter().find(|sink| !sink.pending.is_empty()).map(|sink| sink.pipe.as_fd())
    }

    /// Offers the readers again what they have not taken.
    pub fn flush(&mut self) {
        self.sinks.retain_mut(|sink| {
            let pending = std::mem::take(&mut sink.pending);
            sink.write(&pending)
        });
    }

    /// Reads what there is, at most a few buffers, so that other streams get their turn.
    pub fn read(&mut self, log: Option<&mut Log>, buffer: &mut [u8]) -> Progress {
        let mut log = log;
        for _ in 0..8 {
            if self.blocked_on().is_some() {
                return Progress::Open;
            }
            match rustix::io::read(&self.source, &mut *buffer) {
                // A terminal's master answers EIO once the last slave is closed.
                Ok(0) | Err(rustix::io::Errno::IO) => return Progress::Closed,
                Ok(length) => {
                    if let Some(log) = log.as_deref_mut() {
                        log.append(&mut self.lines, &buffer[..length]);
                    }
                    self.sinks.retain_mut(|sink| sink.write(&buffer[..length]));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Progress::Open,
            }
        }
        Progress::Open
    }

    /// Reads until nothing is left, for a container whose processes are all gone.
    pub fn drain(&mut self, mut log: Option<&mut Log>, buffer: &mut [u8]) {
        loop {
            match rustix::io::read(&self.source, &mut *buffer) {
                Ok(0) => break,
                Ok(length) => {
                    if let Some(log) = log.as_deref_mut() {
                        log.append(&mut self.lines, &buffer[..length]);
                    }
                    for sink in &mut self.sinks {
                        sink.write(&buffer[..length]);
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if let Some(log) = log {
            log.finish(&mut self.lines);
        }
    }
}

impl Sink {
    /// Writes now what fits and keeps the rest; false when the reader has gone.
    fn write(&mut self, mut bytes: &[u8]) -> bool {
        if !self.pending.is_empty() {
            self.pending.extend_from_slice(bytes);
            return true;
        }
        while !bytes.is_empty() {
            match rustix::io::write(&self.pipe, bytes) {
                Ok(length) => bytes = &bytes[length..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.pending.extend_from_slice(bytes);
                    return true;
                }
                Err(_) => return false,
            }
        }
        true
    }
}
