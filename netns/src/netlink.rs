//! Netlink messages: written into one buffer, sent in one call, answered by acknowledgements.
//!
//! Formats: `netlink(7)`, `rtnetlink(7)` and the kernel's `include/uapi/linux/netlink.h`.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send,
    socket,
};

use crate::Error;

mod answer;

use answer::{Header, parse_error};
pub(crate) use answer::{attributes, messages, u32_at};

const RECEIVE_BYTES: usize = 64 << 10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Attributes of one message, or of one nest.
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
}

impl<'a> Attributes<'a> {
    pub fn of(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes }
    }

    /// Attributes encoded elsewhere.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attributes are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        pad(self.bytes);
        self
    }

    pub fn flag(&mut self, kind: u16, value: bool) -> &mut Self {
        self.bytes(kind, &[u8::from(value)])
    }

    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// In network byte order, as every nf_tables number is.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub fn string(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An attribute whose value is `prefix` and then attributes.
    pub fn nest_after(
        &mut self,
        kind: u16,
        prefix: &[u8],
        write: impl FnOnce(&mut Attributes),
    ) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(prefix);
        write(&mut Attributes { bytes: self.bytes });
        let length = u16::try_from(self.bytes.len() - start).expect("nests are kept short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        let kind = kind | libc::NLA_F_NESTED as u16;
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self
    }

    pub fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes)) -> &mut Self {
        self.nest_after(kind, &[], write)
    }

    /// Bytes written so far in the whole buffer; lets callers split long lists.
    pub fn written(&self) -> usize {
        self.bytes.len()
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Several messages that travel in one `send`. Message n has sequence number n, from 1.
#[derive(Default)]
pub(crate) struct Requests {
    bytes: Vec<u8>,
    names: Vec<Cow<'static, str>>,
    last_start: usize,
    acknowledged: u32,
}

impl Requests {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a message; `name` says in errors what it was for ("create bridge").
    pub fn push(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        kind: u16,
        flags: i32,
        header: &[u8],
        write: impl FnOnce(&mut Attributes),
    ) {
        self.names.push(name.into());
        self.last_start = self.bytes.len();
        let flags = flags as u16 | libc::NLM_F_REQUEST as u16;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        let sequence = self.names.len() as u32;
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(header);
        pad(&mut self.bytes);
        write(&mut Attributes { bytes: &mut self.bytes });
        let length = (self.bytes.len() - self.last_start) as u32;
        let start = self.last_start;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        if flags & libc::NLM_F_ACK as u16 != 0 {
            self.acknowledged = sequence;
        }
    }

    /// Asks for an acknowledgement of the message written last.
    pub fn acknowledge_last(&mut self) {
        let at = self.last_start + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]);
        let flags = flags | libc::NLM_F_ACK as u16;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        self.acknowledged = self.names.len() as u32;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn name(&self, sequence: u32) -> String {
        let index = (sequence as usize).wrapping_sub(1);
        self.names.get(index).map_or_else(|| "talk to netlink".to_owned(), ToString::to_string)
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub fn route() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    pub fn netfilter() -> Result<Self, Error> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self, Error> {
        let open = || -> nix::Result<OwnedFd> {
            let fd =
                socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
            connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
            Ok(fd)
        };
        let fd = open().map_err(|e| Error::netlink("open a netlink socket", e.into(), ""))?;
        // Both only improve error texts; old kernels lack them.
        let _ = crate::sys::set_netlink_flag(&fd, libc::NETLINK_EXT_ACK);
        let _ = crate::sys::set_netlink_flag(&fd, libc::NETLINK_CAP_ACK);
        // Long rule batches are one message each; the kernel caps this at net.core.wmem_max.
        let _ = nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::SndBuf, &(4 << 20));
        Ok(Self { fd })
    }

    /// The descriptor, for those who wait for messages.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends everything and waits for the last acknowledgement asked for. The first refusal is
    /// the error; route messages after it were still tried, nf_tables batches were not applied.
    pub fn execute(&self, requests: &Requests) -> Result<(), Error> {
        self.transmit(requests)?;
        let mut first: Option<Error> = None;
        let mut done = requests.acknowledged == 0;
        while !done {
            done = self.receive(|header, payload| {
                if header.kind != NLMSG_ERROR {
                    return false;
                }
                if let Some((errno, text)) = parse_error(header.flags, payload) {
                    let source = io::Error::from_raw_os_error(errno);
                    let name = requests.name(header.sequence);
                    first.get_or_insert_with(|| Error::netlink(name, source, &text));
                }
                header.sequence >= requests.acknowledged
                    // A batch refused as a whole is answered at its first message only.
                    || (header.sequence == 1 && first.is_some() && requests.acknowledged > 1)
            })?;
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends one dump request and hands every answer (payload after the header) to `each`.
    pub fn dump(&self, requests: &Requests, mut each: impl FnMut(u16, &[u8])) -> Result<(), Error> {
        self.transmit(requests)?;
        let mut failure = None;
        let mut done = false;
        while !done {
            done = self.receive(|header, payload| match header.kind {
                NLMSG_DONE => true,
                NLMSG_ERROR => {
                    if let Some((errno, text)) = parse_error(header.flags, payload) {
                        let source = io::Error::from_raw_os_error(errno);
                        failure = Some(Error::netlink(requests.name(1), source, &text));
                    }
                    true
                }
                kind => {
                    each(kind, payload);
                    false
                }
            })?;
        }
        failure.map_or(Ok(()), Err)
    }

    fn transmit(&self, requests: &Requests) -> Result<(), Error> {
        send(self.fd.as_raw_fd(), &requests.bytes, MsgFlags::empty())
            .map_err(|e| Error::netlink(requests.name(1), e.into(), ""))?;
        Ok(())
    }

    /// Receives once and walks the messages; true as soon as `each` returned true for any.
    fn receive(&self, mut each: impl FnMut(&Header, &[u8]) -> bool) -> Result<bool, Error> {
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(Error::netlink("read netlink answers", e.into(), "")),
                Ok(length) => break length,
            }
        };
        let mut done = false;
        for (header, payload) in messages(&buffer[..length]) {
            done |= each(&header, payload);
        }
        Ok(done)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut requests = Requests::new();
        requests.push("test", 16, libc::NLM_F_ACK, &[1, 2, 3, 4], |a| {
            a.string(3, "br0")
                .nest(18, |a| {
                    a.be32(1, 7);
                })
                .flag(5, true);
        });
        let expected: Vec<u8> = [
            &48u32.to_ne_bytes()[..],
            &16u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &1u32.to_ne_bytes(),
            &0u32.to_ne_bytes(),
            &[1, 2, 3, 4],
            &[8, 0, 3, 0, b'b', b'r', b'0', 0],
            &[12, 0, 18, 0x80, 8, 0, 1, 0, 0, 0, 0, 7],
            &[5, 0, 5, 0, 1, 0, 0, 0],
        ]
        .concat();
        assert_eq!(requests.bytes(), expected);
        assert_eq!(requests.acknowledged, 1);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut requests = Requests::new();
        requests.push("a", 1, 0, &[], |a| {
            a.bytes(1, &[9]).u32(2, 3);
        });
        requests.push("b", 2, 0, &[], |_| {});
        requests.acknowledge_last();
        let read: Vec<_> = messages(requests.bytes()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].0.flags, 5);
        let values: Vec<_> = attributes(read[0].1).collect();
        assert_eq!(values, [(1, &[9u8][..]), (2, &3u32.to_ne_bytes()[..])]);
    }
}
