//! The system calls that no safe crate offers; the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Installs one classic BPF program as a seccomp filter of the calling thread (seccomp(2)).
///
/// Unlike most crates this does not set `no_new_privs`: the caller decides, and needs
/// `CAP_SYS_ADMIN` in its user namespace when it leaves that unset.
pub fn install_seccomp_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let length =
        u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let fprog = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: `fprog` points at `length` valid instructions for the duration of the call; the
    // kernel copies them and writes nothing back.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&fprog),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the loopback interface of the calling thread's network namespace up (netdevice(7)).
pub fn raise_loopback(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: an all-zero ifreq is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq through the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends any signal, real-time ones included, to the process behind a pidfd (pidfd_send_signal(2)).
pub fn pidfd_send_signal(pidfd: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed: the siginfo pointer is null, which the kernel allows.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<u8>(),
            0,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends any signal, real-time ones included, to a process (kill(2)).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes plain integers.
    if unsafe { libc::kill(pid, signal) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Undoes what Rust's runtime did to SIGPIPE, which execve would hand down as ignored.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL installs no handler of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Registers a socket with the runtime's reactor.
pub fn register(
    socket: crate::wire::Socket,
) -> io::Result<tokio::io::unix::AsyncFd<crate::wire::Socket>> {
    // SAFETY: a `Socket` owns its descriptor, always answers the same one, and closes it only when
    // it is dropped, which `AsyncFd` does after deregistering it.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(socket) }?)
}
