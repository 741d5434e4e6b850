//! Messages between daemon, shim and container process: one JSON value and some file descriptors
//! per packet of a `SOCK_SEQPACKET` unix socket (unix(7)), so that framing and descriptor
//! passing need no code of their own.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Packets above this size travel in a memfd, since a packet must fit the socket's send buffer.
const MAX_INLINE_BYTES: usize = 64 * 1024;
/// Most descriptors that one message carries: three of stdio, the memfd, and room.
const MAX_DESCRIPTORS: usize = 8;
/// What an out-of-line packet holds instead of JSON.
const OUT_OF_LINE: &[u8] = b"@";

/// One end of a connection, or a listener.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A connected pair; both ends close on exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Takes over a descriptor that is such a socket already.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The descriptor itself, to hand to a child.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Listens at `path`; its directory may be deeper than the 108 bytes of `sun_path`.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let socket = Self::unconnected()?;
        let (_directory, address) = address(path)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, 64)?;
        Ok(Self(socket))
    }

    /// Connects to the listener at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = Self::unconnected()?;
        let (_directory, address) = address(path)?;
        rustix::net::connect(&socket, &address)?;
        Ok(Self(socket))
    }

    fn unconnected() -> io::Result<OwnedFd> {
        Ok(rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?)
    }

    /// Accepts one connection.
    pub fn accept(&self) -> io::Result<Self> {
        Ok(Self(rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC)?))
    }

    /// Makes every later call return `WouldBlock` rather than wait.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, true)?)
    }

    /// Sends one message.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let json = serde_json::to_vec(message)?;
        if json.len() <= MAX_INLINE_BYTES {
            return self.send_bytes(&json, descriptors);
        }
        let memfd = memory_file(&json)?;
        let mut all = vec![memfd.as_fd()];
        all.extend_from_slice(descriptors);
        self.send_bytes(OUT_OF_LINE, &all)
    }

    fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        rustix::net::sendmsg(
            &self.0,
            &[io::IoSlice::new(bytes)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Receives one message; `None` when the peer has gone.
    pub fn recv<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0u8; MAX_INLINE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::net::recvmsg(
            &self.0,
            &mut [io::IoSliceMut::new(&mut buffer)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        if received.bytes == 0 {
            return Ok(None);
        }
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                descriptors.extend(received);
            }
        }
        let bytes = &buffer[..received.bytes];
        if bytes != OUT_OF_LINE {
            return Ok(Some((serde_json::from_slice(bytes)?, descriptors)));
        }
        if descriptors.is_empty() {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let file = std::fs::File::from(descriptors.remove(0));
        let length = file.metadata()?.len();
        let mut json = vec![0; usize::try_from(length).unwrap_or(0)];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut json, 0)?;
        Ok(Some((serde_json::from_slice(&json)?, descriptors)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// An anonymous file holding `bytes`.
pub fn memory_file(bytes: &[u8]) -> io::Result<OwnedFd> {
    let memfd = rustix::fs::memfd_create("message", MemfdFlags::CLOEXEC)?;
    let file = std::fs::File::from(memfd);
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
    Ok(file.into())
}

/// An address for `path` that is short whatever the length of its directory, with the directory
/// it goes through, which must stay open until the address has been used.
fn address(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let short = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name.to_string_lossy());
    Ok((directory, SocketAddrUnix::new(short)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_crosses_with_its_descriptors() {
        let (a, b) = Socket::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        for size in [1usize, MAX_INLINE_BYTES, 1024 * 1024] {
            let text = "x".repeat(size);
            a.send(&text, &[writer.as_fd()]).unwrap();
            let (received, descriptors): (String, _) = b.recv().unwrap().unwrap();
            assert_eq!(received.len(), size);
            assert_eq!(descriptors.len(), 1);
            rustix::io::write(&descriptors[0], b"!").unwrap();
            let mut byte = [0];
            rustix::io::read(&reader, &mut byte).unwrap();
            assert_eq!(&byte, b"!");
        }
        drop(a);
        assert!(b.recv::<String>().unwrap().is_none());
    }

    #[test]
    fn long_paths_can_be_listened_at() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = Socket::listen(&deep.join("socket")).unwrap();
        let client = Socket::connect(&deep.join("socket")).unwrap();
        client.send(&1u8, &[]).unwrap();
        assert_eq!(listener.accept().unwrap().recv::<u8>().unwrap().unwrap().0, 1);
    }
}
