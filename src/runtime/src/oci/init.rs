//! The first process of a pod whose containers share one pid namespace: it reaps what is left
//! to it, and does nothing else.

use std::process::{Command, ExitCode, Stdio};

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};

use crate::shim::protocol::{Identity, Reply};
use crate::wire::Socket;

/// The argument that tells the second half apart.
const ARGUMENT: &str = "init";

/// Makes a pid namespace, starts its first process and reports that process' id to the shim,
/// whose child it becomes when this process ends.
pub fn become_init(control: &Socket) -> ExitCode {
    let started = nix::sched::unshare(CloneFlags::CLONE_NEWPID)
        .map_err(std::io::Error::from)
        .and_then(|()| {
            Command::new("/proc/self/exe")
                .args(["container", ARGUMENT])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .env_clear()
                .spawn()
        });
    let reply = match started {
        Ok(child) => Reply::Started {
            pid: child.id().cast_signed(),
            at_ns: 0,
            identity: Identity::default(),
        },
        Err(error) => Reply::Failed { message: error.to_string() },
    };
    if control.send(&reply, &[]).is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Kills a pod's init whose shim is gone; it would look after nothing for ever. Whoever else has the number now is
/// left alone.
pub fn kill_left(pid: i32) {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if command.starts_with(format!("/proc/self/exe\0container\0{ARGUMENT}\0").as_bytes()) {
        let _ = crate::sys::kill(pid, libc::SIGKILL);
    }
}

/// Whether this process was started as the pod's init.
pub fn is_init() -> bool {
    std::env::args_os().nth(2).is_some_and(|argument| argument == ARGUMENT)
}

/// Reaps until asked to terminate.
pub fn run() -> ExitCode {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    if signals.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    let _ = rustix::thread::set_name(c"pause");
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG)
                {
                }
            }
            Ok(_) => return ExitCode::SUCCESS,
            Err(_) => {}
        }
    }
}
