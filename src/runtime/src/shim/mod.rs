//! The shim: one small single-threaded process per pod.
//!
//! It makes and holds the pod's namespaces, starts containers through short-lived `container`
//! processes, is the subreaper of everything in the pod, writes the logs and keeps exit codes. It
//! lives on when the daemon dies; the next daemon finds it by its socket.
//!
//! It never touches images, the network beyond `lo`, or the Kubernetes API.

pub mod log;
mod pod;
pub mod protocol;
mod stdio;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use nix::sched::CloneFlags;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::wire::Socket;
use protocol::{Boot, Mapped, Reply, Task};

/// The name of the shim's socket in its directory.
pub const SOCKET: &str = "shim.sock";
/// The name of the pod's shared memory in its directory.
pub const SHM: &str = "shm";

/// The re-exec role `shim`: to be called before any thread exists. Its configuration comes as a
/// message on standard input.
pub fn shim_main() -> ExitCode {
    let Ok(control) = take_stdin() else { return ExitCode::from(2) };
    match boot(&control) {
        Ok(pod) => {
            pod.run(control);
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = control.send(&Reply::Failed { message: error.to_string() }, &[]);
            ExitCode::FAILURE
        }
    }
}

/// What kept a shim from starting.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
struct BootError {
    step: String,
    source: io::Error,
}

/// Names the step that an error belongs to.
fn at<T, E: Into<io::Error>>(
    step: impl Into<String>,
    result: Result<T, E>,
) -> Result<T, BootError> {
    result.map_err(|source| BootError { step: step.into(), source: source.into() })
}

fn boot(control: &Socket) -> Result<pod::Pod, BootError> {
    at("setsid", rustix::process::setsid())?;
    // A runtime in the foreground has its caller's folder, and the pod outlives it.
    at("leave the caller's folder", rustix::process::chdir("/"))?;
    at("become subreaper", nix::sys::prctl::set_child_subreaper(true))?;
    let _ = rustix::thread::set_name(c"rootlet-shim");
    let (boot, descriptors): (Boot, _) =
        at("read configuration", control.recv())?.ok_or_else(|| BootError {
            step: "read configuration".into(),
            source: io::ErrorKind::UnexpectedEof.into(),
        })?;

    if let Some(bytes) = boot.shm_bytes {
        // Before the pod's users: their namespace mounts nothing in the node's.
        at("mount shared memory", mount_shm(&boot.dir.join(SHM), bytes))?;
    }
    if boot.own_users {
        enter_users(control)?;
    }
    let mut flags = CloneFlags::empty();
    flags.set(CloneFlags::CLONE_NEWNET, !boot.node_network);
    flags.set(CloneFlags::CLONE_NEWIPC, !boot.node_ipc);
    flags.set(CloneFlags::CLONE_NEWUTS, boot.hostname.is_some());
    at("make namespaces", nix::sched::unshare(flags))?;
    if let (true, Some(node)) = (boot.node_network, descriptors.first()) {
        at("join the node network", nix::sched::setns(node, CloneFlags::CLONE_NEWNET))?;
    }
    if !boot.node_network {
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::DGRAM,
            None,
        );
        at("set lo up", crate::sys::raise_loopback(&at("make a socket", socket)?))?;
    }
    if let Some(hostname) = &boot.hostname {
        at(format!("set host name {hostname}"), rustix::system::sethostname(hostname.as_bytes()))?;
    }
    for (name, value) in &boot.sysctls {
        at(format!("set sysctl {name}={value}"), std::fs::write(sysctl_path(name), value))?;
    }
    let pod_pid = if boot.pod_pid { Some(at("start the pod's init", start_init())?) } else { None };
    let path = boot.dir.join(SOCKET);
    let _ = std::fs::remove_file(&path);
    let listener = at(format!("listen at {}", path.display()), Socket::listen(&path))?;
    let pod = at("prepare to wait for children", pod::Pod::new(boot.dir, listener, pod_pid))?;
    let ready = Reply::Ready { pid: rustix::process::getpid().as_raw_nonzero().get(), pod_pid };
    at("report readiness", control.send(&ready, &[]))?;
    Ok(pod)
}

/// Enters a user namespace of the pod's own, whose ids the daemon maps.
fn enter_users(control: &Socket) -> Result<(), BootError> {
    at("make a user namespace", nix::sched::unshare(CloneFlags::CLONE_NEWUSER))?;
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    at("ask for ids", control.send(&Reply::Unshared { pid }, &[]))?;
    at("wait for ids", control.recv::<Mapped>())?.ok_or_else(|| BootError {
        step: "wait for ids".into(),
        source: io::ErrorKind::UnexpectedEof.into(),
    })?;
    Ok(())
}

/// The file of a sysctl: dots separate, and a slash stands for a dot in a name (sysctl(8)).
fn sysctl_path(name: &str) -> PathBuf {
    let swapped = name.chars().map(|c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    });
    Path::new("/proc/sys").join(swapped.collect::<String>())
}

fn mount_shm(path: &Path, bytes: u64) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    let options = std::ffi::CString::new(format!("mode=1777,size={bytes}"))?;
    rustix::mount::mount(
        "shm",
        path,
        "tmpfs",
        MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )?;
    Ok(())
}

/// Unmounts the pod's shared memory at `path`, wherever it is still mounted.
pub fn unmount_shm(path: &Path) {
    let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
}

fn start_init() -> io::Result<i32> {
    let helper = spawn_container(&Task::Init, &[])?;
    match helper.recv::<Reply>()? {
        Some((Reply::Started { pid, .. }, _)) => Ok(pid),
        Some((Reply::Failed { message }, _)) => Err(io::Error::other(message)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Starts a `container` process for `task` and returns its control socket. The process is our
/// child and is reaped like all others.
fn spawn_container(task: &Task, descriptors: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<Socket> {
    let (ours, theirs) = Socket::pair()?;
    // Without pre_exec this is posix_spawn: no copy of our page tables.
    Command::new("/proc/self/exe")
        .arg("container")
        .stdin(Stdio::from(theirs.into_fd()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .spawn()?;
    ours.send(task, descriptors)?;
    Ok(ours)
}

/// Takes the control socket from descriptor 0, and leaves /dev/null there.
pub fn take_stdin() -> io::Result<Socket> {
    let control: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(Socket::from_fd(control))
}
