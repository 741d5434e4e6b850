//! Bytes from one socket to another that stay in the kernel: pages pass through a pipe (`splice(2)`).

use std::cell::RefCell;
use std::io::{self, PipeReader, PipeWriter};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::sys;

/// `pipe(7)`: what an ordinary user may ask for, /proc/sys/fs/pipe-max-size. A pipe has a place for every 4 KiB
/// of it, and each segment that came takes one at least.
const PIPE_BYTES: usize = 1 << 20;
/// Pipes at a time: half of the memory for pipes that a user has (`pipe-user-pages-soft`), and few descriptors.
/// Connections beyond are copied.
const PIPES: usize = 32;
/// Pipes kept by each thread.
const SPARE_PIPES: usize = 4;

static PIPES_MADE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
}

struct Ends {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Ends {
    fn new() -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        // A smaller one does too.
        let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32));
        PIPES_MADE.fetch_add(1, Ordering::Relaxed);
        Ok(Self { reader, writer })
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        PIPES_MADE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An empty pipe, held only while data are in it.
pub(super) struct Pipe {
    ends: Option<Ends>,
}

impl Pipe {
    /// None if there are none to be had.
    pub fn take() -> Option<Self> {
        let ends = SPARE.with_borrow_mut(Vec::pop).or_else(|| {
            let free = PIPES_MADE.load(Ordering::Relaxed) < PIPES;
            free.then(Ends::new)?.ok()
        })?;
        Some(Self { ends: Some(ends) })
    }

    /// Passes on what there is to read; returns how much, 0 at the end. Waits only for `to`.
    pub async fn carry(mut self, from: &TcpStream, to: &TcpStream) -> io::Result<usize> {
        // What is not given back, because something failed or the future was dropped, is closed with what is
        // in it.
        let ends = self.ends.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let into_pipe = || sys::splice(from, &ends.writer, PIPE_BYTES);
        let length = match from.try_io(Interest::READABLE, into_pipe) {
            Ok(length) => length,
            Err(error) => {
                self.ends = Some(ends);
                return Err(error);
            }
        };
        let mut rest = length;
        while rest > 0 {
            match to.try_io(Interest::WRITABLE, || sys::splice(&ends.reader, to, rest)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => rest -= written,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    to.ready(Interest::WRITABLE).await?;
                }
                Err(e) => return Err(e),
            }
        }
        self.ends = Some(ends);
        Ok(length)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_PIPES
                && let Some(ends) = self.ends.take()
            {
                spare.push(ends);
            }
        });
    }
}
