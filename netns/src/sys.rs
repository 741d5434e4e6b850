//! System calls that no safe crate offers. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use socket2::Socket;
use tokio::io::unix::AsyncFd;

use crate::family::Family;

fn set_int(fd: impl AsFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `netlink(7)`: switches a NETLINK_* socket option on.
pub(crate) fn set_netlink_flag(fd: impl AsFd, option: i32) -> io::Result<()> {
    set_int(fd, libc::SOL_NETLINK, option, 1)
}

/// `ip(7)`, `ipv6(7)`: the socket may have an address that is not of this machine.
pub(crate) fn set_transparent(fd: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::SOL_IP, libc::IP_TRANSPARENT, 1),
        Family::V6 => {
            set_int(fd.as_fd(), libc::SOL_IPV6, libc::IPV6_V6ONLY, 1)?;
            set_int(fd, libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)
        }
    }
}

/// `ip(7)`: an address that is bound without a port gets one when the socket connects, so that it is only taken
/// towards that destination.
pub(crate) fn choose_port_late(fd: impl AsFd) -> io::Result<()> {
    // Of IPv6 sockets too.
    set_int(fd, libc::SOL_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)
}

/// `splice(2)`: at most `bytes` from one to the other, of which one is a pipe; never waits for the pipe.
pub(crate) fn splice(from: impl AsFd, to: impl AsFd, bytes: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    let (null, flags) = (std::ptr::null_mut(), libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK);
    // SAFETY: no memory is passed; both descriptors are borrowed for the call.
    let moved = unsafe { libc::splice(from, null, to, null, bytes, flags) };
    usize::try_from(moved).map_err(|_| io::Error::last_os_error())
}

/// `ip(7)`: datagrams come with the address that they were sent to.
pub(crate) fn receive_original_destination(fd: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1),
        Family::V6 => set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1),
    }
}

/// `ip(7)`, `ipv6(7)`: what is received comes with the hops that it had left.
pub(crate) fn receive_hops(fd: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::SOL_IP, libc::IP_RECVTTL, 1),
        Family::V6 => set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVHOPLIMIT, 1),
    }
}

/// `ip(7)`, `ipv6(7)`: how many hops what is sent may make.
pub(crate) fn set_hops(fd: impl AsFd, family: Family, hops: u8) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::SOL_IP, libc::IP_TTL, hops.into()),
        Family::V6 => set_int(fd, libc::SOL_IPV6, libc::IPV6_UNICAST_HOPS, hops.into()),
    }
}

/// `ip(7)`, `ipv6(7)`: errors are kept for [`reported`], with who told of them.
pub(crate) fn keep_errors(fd: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::SOL_IP, libc::IP_RECVERR, 1),
        Family::V6 => set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVERR, 1),
    }
}

/// `ipv6(7)`: what a raw socket receives comes with the address that it was sent to.
pub(crate) fn receive_destination6(fd: impl AsFd) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)
}

/// `socket(7)`: of the sockets that share an address, a datagram comes to one that its source address alone
/// chooses, among `count` of them.
pub(crate) fn share_by_source(fd: impl AsFd, family: Family, count: u32) -> io::Result<()> {
    // Where the last four bytes of the source are in the network header, by `SKF_NET_OFF` (linux/filter.h).
    let source = match family {
        Family::V4 => 12,
        Family::V6 => 20,
    };
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut program = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (libc::SKF_NET_OFF + source) as u32),
        step(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        step(libc::BPF_RET | BPF_A, 0),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the pointer and the length describe `program`, and that describes an array; the kernel
    // copies both before the call returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            std::ptr::from_ref(&program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `linux/filter.h`: returns what is in the accumulator.
const BPF_A: u32 = 0x10;

/// A datagram, and what the socket was asked to tell of it.
pub(crate) struct Received {
    pub length: usize,
    pub source: SocketAddr,
    /// With [`receive_original_destination`] or [`receive_destination6`].
    pub destination: SocketAddr,
    /// With [`receive_hops`].
    pub hops: Option<u8>,
}

/// One datagram with its source and its destination.
pub(crate) fn receive_with_destination(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let (mut destination, mut hops) = (None, None);
    let (length, source) = receive(fd, buffer, 0, |level, kind, data| {
        // SAFETY: what these messages carry is the structure of their type.
        unsafe {
            match (level, kind) {
                (libc::SOL_IP, libc::IP_ORIGDSTADDR) => {
                    let raw: libc::sockaddr_in = std::ptr::read_unaligned(data.cast());
                    destination = Some(SocketAddr::V4(from_raw(raw)));
                }
                (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR) => {
                    let raw: libc::sockaddr_in6 = std::ptr::read_unaligned(data.cast());
                    destination = Some(SocketAddr::V6(from_raw6(raw)));
                }
                (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    let raw: libc::in6_pktinfo = std::ptr::read_unaligned(data.cast());
                    let ip = Ipv6Addr::from(raw.ipi6_addr.s6_addr);
                    destination = Some(SocketAddr::V6(SocketAddrV6::new(ip, 0, 0, 0)));
                }
                (libc::SOL_IP, libc::IP_TTL) | (libc::SOL_IPV6, libc::IPV6_HOPLIMIT) => {
                    hops = u8::try_from(std::ptr::read_unaligned(data.cast::<i32>())).ok();
                }
                _ => {}
            }
        }
    })?;
    let missing = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let destination = destination.ok_or_else(|| missing("no original destination"))?;
    let source = source.ok_or_else(|| missing("no source"))?;
    Ok(Received { length, source, destination, hops })
}

/// An error that the network reported of something sent.
#[derive(Debug)]
pub(crate) struct Reported {
    pub error: io::Error,
    /// The time to live ended on the way.
    pub expired: bool,
    /// Who told of it, if that was not this machine.
    pub by: Option<IpAddr>,
    /// How much of the packet's payload is in the buffer.
    pub length: usize,
}

/// The next error that [`keep_errors`] has kept (`ip(7)`, `IP_RECVERR`).
pub(crate) fn reported(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Reported> {
    let mut told: Option<(libc::sock_extended_err, Option<SocketAddr>)> = None;
    let (length, _) = receive(fd, buffer, libc::MSG_ERRQUEUE, |level, kind, data| {
        let errors = [(libc::SOL_IP, libc::IP_RECVERR), (libc::SOL_IPV6, libc::IPV6_RECVERR)];
        if errors.contains(&(level, kind)) {
            // SAFETY: such a message is this structure, and the offender's address is behind it, in the
            // structure of the socket's family.
            told = Some(unsafe {
                let error: libc::sock_extended_err = std::ptr::read_unaligned(data.cast());
                let behind = data.add(size_of::<libc::sock_extended_err>());
                let family: libc::sa_family_t = std::ptr::read_unaligned(behind.cast());
                let offender = match i32::from(family) {
                    libc::AF_INET => {
                        let raw: libc::sockaddr_in = std::ptr::read_unaligned(behind.cast());
                        Some(SocketAddr::V4(from_raw(raw)))
                    }
                    libc::AF_INET6 => {
                        let raw: libc::sockaddr_in6 = std::ptr::read_unaligned(behind.cast());
                        Some(SocketAddr::V6(from_raw6(raw)))
                    }
                    _ => None,
                };
                (error, offender)
            });
        }
    })?;
    let (error, offender) = told.ok_or(io::ErrorKind::InvalidData)?;
    // Time exceeded in transit: RFC 792, RFC 4443.
    let expired = matches!(
        (error.ee_origin, error.ee_type, error.ee_code),
        (libc::SO_EE_ORIGIN_ICMP, 11, 0) | (libc::SO_EE_ORIGIN_ICMP6, 3, 0)
    );
    let by = offender.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    let error = io::Error::from_raw_os_error(error.ee_errno as i32);
    Ok(Reported { error, expired, by, length })
}

/// `recvmsg(2)`: the length, the source, and each control message by its level and type.
fn receive(
    fd: impl AsFd,
    buffer: &mut [u8],
    flags: i32,
    mut told: impl FnMut(i32, i32, *const u8),
) -> io::Result<(usize, Option<SocketAddr>)> {
    #[repr(C, align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    // SAFETY: all-zero bytes are valid values of these plain C structures.
    let (mut source, mut message): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (zeroed(), zeroed()) };
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    message.msg_name = std::ptr::from_mut(&mut source).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = libc::MSG_DONTWAIT | flags;
    // SAFETY: every pointer in `message` refers to a live local with the length given.
    let length = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, flags) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel filled `message`; the CMSG macros stay within msg_controllen.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            told((*header).cmsg_level, (*header).cmsg_type, libc::CMSG_DATA(header));
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    Ok((length as usize, from_storage(&source)))
}

fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let raw = std::ptr::from_ref(storage);
    match i32::from(storage.ss_family) {
        // SAFETY: the family says which structure the storage holds, and it is large enough.
        libc::AF_INET => Some(SocketAddr::V4(from_raw(unsafe { *raw.cast() }))),
        // SAFETY: as above.
        libc::AF_INET6 => Some(SocketAddr::V6(from_raw6(unsafe { *raw.cast() }))),
        _ => None,
    }
}

fn from_raw(address: libc::sockaddr_in) -> SocketAddrV4 {
    let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
    SocketAddrV4::new(ip, u16::from_be(address.sin_port))
}

fn from_raw6(address: libc::sockaddr_in6) -> SocketAddrV6 {
    let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
    SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, 0)
}

/// Takes over a descriptor that was just received in a message.
pub(crate) fn adopt(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for us in recvmsg and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Puts a socket under the current tokio runtime.
pub(crate) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, returns the same one always, and closes it only
    // when it is dropped.
    unsafe { AsyncFd::register(socket) }.map_err(|error| error.into_parts().1)
}
