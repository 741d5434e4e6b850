//! A length in four bytes (little-endian), so many bytes of JSON, and perhaps a descriptor with
//! the first byte.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Far above the largest table of services; bounds what a broken peer can make us allocate.
const MAX_BYTES: usize = 64 << 20;

pub(super) async fn send(
    stream: &mut UnixStream,
    message: &impl Serialize,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(|_| too_long(body.len()))?;
    let header = length.to_le_bytes();
    let sent =
        stream.async_io(Interest::WRITABLE, || send_header(stream, &header, descriptor)).await?;
    stream.write_all(&header[sent..]).await?;
    stream.write_all(&body).await
}

fn send_header(
    stream: &UnixStream,
    header: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<usize> {
    let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
    let control = rights.as_ref().map_or(&[][..], |r| &r[..]);
    let parts = [IoSlice::new(header)];
    Ok(sendmsg::<()>(
        stream.as_raw_fd(),
        &parts,
        control,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )?)
}

pub(super) async fn receive<T: DeserializeOwned>(
    stream: &mut UnixStream,
) -> io::Result<(T, Option<OwnedFd>)> {
    let mut header = [0; 4];
    let (read, descriptor) =
        stream.async_io(Interest::READABLE, || receive_header(stream, &mut header)).await?;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut header[read..]).await?;
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_BYTES {
        return Err(too_long(length));
    }
    // Not trusted with an allocation of its size: grows as bytes arrive.
    let mut body = Vec::new();
    let read = (&mut *stream).take(length as u64).read_to_end(&mut body).await?;
    if read < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((serde_json::from_slice(&body)?, descriptor))
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes is too long"))
}

fn receive_header(stream: &UnixStream, header: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(header)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut first = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for fd in raw {
                let owned = crate::sys::adopt(fd);
                first.get_or_insert(owned);
            }
        }
    }
    Ok((message.bytes, first))
}
