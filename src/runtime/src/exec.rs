//! Further processes in containers: ExecSync, and the sessions behind Exec.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use bytes::BytesMut;
use k8s_cri::v1;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::error::Error;
use crate::link::Session;
use crate::runtime::Runtime;
use crate::shim::protocol::{Exec, Reply, Request};
use crate::state::Phase;

/// Most output that ExecSync returns of each stream (CRI: ExecSyncResponse).
const MAX_OUTPUT_BYTES: usize = 16 * 1024 * 1024;

/// How long a killed process may keep its caller.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// A process started in a container.
#[derive(Debug)]
pub struct Process {
    session: Session,
    /// The terminal's master, when it has one.
    pub terminal: Option<OwnedFd>,
}

impl Process {
    /// Waits for its end; returns the exit code.
    pub async fn wait(&self) -> Result<i32, Error> {
        match self.session.expect().await {
            Ok((Reply::Exited { code }, _)) => Ok(code),
            Ok((other, _)) => {
                Err(Error::Failed(format!("unexpected answer of the shim: {other:?}")))
            }
            Err(error) => Err(Error::Failed(format!("the shim is gone: {error}"))),
        }
    }
}

impl Process {
    /// Kills it, and waits until it is gone.
    async fn kill(&self) {
        let request = Request::SignalExec { signal: libc::SIGKILL };
        if self.session.send(&request, &[]).await.is_ok() {
            // Processes in the kernel's hands may take longer; they have their signal.
            let _ = tokio::time::timeout(KILL_WAIT, self.wait()).await;
        }
    }
}

impl Runtime {
    /// Starts a process in a running container. Without `tty`, `stdio` are the ends it gets.
    /// It is killed when the returned value is dropped.
    pub(crate) async fn spawn_exec(
        &self,
        container_id: &str,
        args: Vec<String>,
        tty: bool,
        stdio: &[OwnedFd],
    ) -> Result<Process, Error> {
        let record = self.state().container(container_id)?.record();
        if record.phase != Phase::Running {
            return Err(Error::FailedPrecondition("container is not running".into()));
        }
        let shim = |source| Error::Shim { id: record.sandbox_id.clone(), source };
        let session = self.link(&record.sandbox_id).connect().map_err(shim)?;
        let descriptors: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
        let command = args.join(" ");
        let request = Request::Exec(Exec { id: record.id.clone(), args, tty });
        session.send(&request, &descriptors).await.map_err(shim)?;
        match session.expect().await {
            Ok((Reply::Started { .. }, descriptors)) => {
                Ok(Process { session, terminal: descriptors.into_iter().next() })
            }
            Ok((other, _)) => {
                Err(Error::Failed(format!("unexpected answer of the shim: {other:?}")))
            }
            Err(error) => Err(Error::Failed(format!(
                "failed to exec in container: failed to start exec {command:?}: unable to start container process: {error}"
            ))),
        }
    }

    /// Runs a command to its end.
    pub(crate) async fn exec_sync(
        &self,
        request: v1::ExecSyncRequest,
    ) -> Result<v1::ExecSyncResponse, Error> {
        if request.cmd.is_empty() {
            return Err(Error::InvalidArgument("no command specified".into()));
        }
        let null: OwnedFd = std::fs::OpenOptions::new()
            .read(true)
            .open("/dev/null")
            .map_err(Error::io("open /dev/null"))?
            .into();
        let (out, out_write) = output()?;
        let (err, err_write) = output()?;
        let stdio = [null, out_write, err_write];
        let process =
            self.spawn_exec(&request.container_id, request.cmd.clone(), false, &stdio).await?;
        drop(stdio);
        let run = async {
            let (mut out, mut err) = (Capture::new(out), Capture::new(err));
            // What leaves processes behind with its output open must not keep us: after its end
            // only what is in the pipes already counts.
            let code = {
                let mut ended = std::pin::pin!(process.wait());
                loop {
                    tokio::select! {
                        code = &mut ended => break code?,
                        () = out.read(), if out.open => {}
                        () = err.read(), if err.open => {}
                    }
                }
            };
            out.drain();
            err.drain();
            Ok(v1::ExecSyncResponse { stdout: out.bytes, stderr: err.bytes, exit_code: code })
        };
        let timeout = u64::try_from(request.timeout).unwrap_or(0);
        if timeout == 0 {
            return run.await;
        }
        let Ok(response) = tokio::time::timeout(Duration::from_secs(timeout), run).await else {
            process.kill().await;
            return Err(Error::DeadlineExceeded(format!(
                "failed to exec in container: timeout {timeout}s exceeded: context deadline exceeded"
            )));
        };
        response
    }
}

/// A pipe whose reading end is ours.
pub fn output() -> Result<(pipe::Receiver, OwnedFd), Error> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| Error::Io { step: "make a pipe".into(), source: error.into() })?;
    let read = pipe::Receiver::from_owned_fd(read).map_err(Error::io("make a pipe"))?;
    Ok((read, write))
}

struct Capture {
    pipe: pipe::Receiver,
    bytes: Vec<u8>,
    buffer: BytesMut,
    open: bool,
}

/// Reads what is in the pipe by now; false when that is nothing. It asks the kernel: that a process has
/// ended can be known before the reactor has told of what it wrote.
pub(crate) fn read_now(pipe: &pipe::Receiver, buffer: &mut BytesMut, most_bytes: usize) -> bool {
    buffer.clear();
    buffer.resize(most_bytes, 0);
    loop {
        match rustix::io::read(pipe, &mut buffer[..]) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => {
                buffer.truncate(outcome.unwrap_or(0));
                return !buffer.is_empty();
            }
        }
    }
}

impl Capture {
    fn new(pipe: pipe::Receiver) -> Self {
        Self { pipe, bytes: Vec::new(), buffer: BytesMut::with_capacity(16 * 1024), open: true }
    }

    /// Reads once. Safe to cancel.
    async fn read(&mut self) {
        self.buffer.clear();
        self.buffer.reserve(16 * 1024);
        match self.pipe.read_buf(&mut self.buffer).await {
            Ok(0) | Err(_) => self.open = false,
            Ok(_) => self.keep(),
        }
    }

    fn drain(&mut self) {
        while read_now(&self.pipe, &mut self.buffer, 16 * 1024) {
            self.keep();
        }
    }

    fn keep(&mut self) {
        let room = MAX_OUTPUT_BYTES - self.bytes.len();
        self.bytes.extend_from_slice(&self.buffer[..self.buffer.len().min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use rustix::fd::AsFd;

    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read_before_the_reactor_tells() {
        let (pipe, write) = output().unwrap();
        rustix::io::write(write.as_fd(), b"hello").unwrap();
        // Nothing was awaited, so the reactor had no turn.
        let mut buffer = BytesMut::new();
        assert!(read_now(&pipe, &mut buffer, 1024));
        assert_eq!(&buffer[..], b"hello");
        assert!(!read_now(&pipe, &mut buffer, 1024), "it is empty");
        drop(write);
        assert!(!read_now(&pipe, &mut buffer, 1024), "it is over");
    }
}
