//! The daemon's side of a shim's socket.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::shim::protocol::{Boot, Mapped, Reply, Request};
use crate::wire::Socket;

/// How to reach a shim.
#[derive(Debug, Clone)]
pub struct Link {
    path: PathBuf,
}

/// One connection to a shim.
#[derive(Debug)]
pub struct Session(AsyncFd<Socket>);

impl Link {
    /// The shim whose socket is at `path`.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Opens a connection.
    pub fn connect(&self) -> io::Result<Session> {
        Session::new(Socket::connect(&self.path)?)
    }

    /// Sends one request and returns its answer.
    pub async fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<(Reply, Vec<OwnedFd>)> {
        let session = self.connect()?;
        session.send(request, descriptors).await?;
        session.expect().await
    }
}

impl Session {
    fn new(socket: Socket) -> io::Result<Self> {
        socket.set_nonblocking()?;
        Ok(Self(crate::sys::register(socket)?))
    }

    /// Sends a message.
    pub async fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |socket| socket.send(message, descriptors)).await
    }

    /// Receives a message; `None` when the shim has gone.
    pub async fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        self.0.async_io(Interest::READABLE, Socket::recv).await
    }

    /// Receives an answer; its absence and [`Reply::Failed`] are errors.
    pub async fn expect(&self) -> io::Result<(Reply, Vec<OwnedFd>)> {
        match self.recv().await? {
            Some((Reply::Failed { message }, _)) => Err(io::Error::other(message)),
            Some(reply) => Ok(reply),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Starts a shim and waits until it serves; returns its id and that of the pod's init.
pub async fn spawn(
    executable: &std::path::Path,
    boot: &Boot,
    node_netns: Option<BorrowedFd<'_>>,
) -> io::Result<(i32, Option<i32>)> {
    let (ours, theirs) = Socket::pair()?;
    // Without pre_exec this is posix_spawn, which is safe in a threaded process.
    let mut child = tokio::process::Command::new(executable)
        .arg("shim")
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .kill_on_drop(false)
        .spawn()?;
    let session = Session::new(ours)?;
    let descriptors: Vec<BorrowedFd<'_>> = node_netns.into_iter().collect();
    session.send(boot, &descriptors).await?;
    let answer = match session.expect().await {
        Ok((Reply::Unshared { pid }, _)) => {
            map_ids(pid)?;
            session.send(&Mapped, &[]).await?;
            session.expect().await
        }
        answer => answer,
    };
    tokio::spawn(async move {
        // Reaps it, for as long as this daemon is its parent.
        let _ = child.wait().await;
    });
    match answer? {
        (Reply::Ready { pid, pod_pid }, _) => Ok((pid, pod_pid)),
        (other, _) => Err(io::Error::other(format!("unexpected answer {other:?}"))),
    }
}

/// Maps the ids that this process has into the new user namespace of process `pid`, to themselves: files have the same
/// owners in it (user_namespaces(7)).
fn map_ids(pid: i32) -> io::Result<()> {
    for name in ["uid_map", "gid_map"] {
        let own = std::fs::read_to_string(format!("/proc/self/{name}"))?;
        std::fs::write(format!("/proc/{pid}/{name}"), identity(&own))?;
    }
    Ok(())
}

/// A map of all ids that a map of this process's names, to themselves.
fn identity(own: &str) -> String {
    let lines = own.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (first, count) = (fields.next()?, fields.nth(1)?);
        Some(format!("{first} {first} {count}\n"))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_to_themselves() {
        let own = "         0       1500          1\n         1     100000      65536\n";
        assert_eq!(identity(own), "0 0 1\n1 1 65536\n");
    }
}
