//! System calls that no safe crate offers. The only unsafe code of this crate.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
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

/// `ip(7)`: datagrams come with the address that they were sent to.
pub(crate) fn receive_original_destination(fd: impl AsFd, family: Family) -> io::Result<()> {
    match family {
        Family::V4 => set_int(fd, libc::SOL_IP, libc::IP_RECVORIGDSTADDR, 1),
        Family::V6 => set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR, 1),
    }
}

/// `ipv6(7)`: what a raw socket receives comes with the address that it was sent to.
pub(crate) fn receive_destination6(fd: impl AsFd) -> io::Result<()> {
    set_int(fd, libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)
}

/// One datagram with its source and, with [`receive_original_destination`] or
/// [`receive_destination6`], its destination.
pub(crate) fn receive_with_destination(
    fd: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    #[repr(C, align(8))]
    struct Control([u8; 128]);
    let mut control = Control([0; 128]);
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
    // SAFETY: every pointer in `message` refers to a live local with the length given.
    let length =
        unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut destination = None;
    // SAFETY: the kernel filled `message`; the CMSG macros stay within msg_controllen, and what
    // these messages carry is the structure of their type.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let data = libc::CMSG_DATA(header);
            match ((*header).cmsg_level, (*header).cmsg_type) {
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
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    let missing = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let destination = destination.ok_or_else(|| missing("no original destination"))?;
    let source = from_storage(&source).ok_or_else(|| missing("no source"))?;
    Ok((length as usize, source, destination))
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
