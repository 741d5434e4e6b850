//! `rootlet ci`: a cluster around a command.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use crate::control::{self, Client};
use crate::paths::Paths;
use crate::{lock, up, userns};

/// Exit codes of shells for commands that cannot be run.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Shells add the signal's number to this.
const SIGNALLED: u8 = 128;
/// That of programs which run others, env(1) among them, when the failure is their own.
const OWN_FAILURE: u8 = 125;
/// How often the guard tries again to remove a cluster, and what it waits before.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// Brings a cluster up, runs the command, takes the cluster down, and returns the command's exit code.
pub fn run(arguments: &cli::args::Ci) -> ExitCode {
    around(arguments).unwrap_or_else(|error| {
        let _ = crate::tell(&error);
        ExitCode::from(OWN_FAILURE)
    })
}

fn around(arguments: &cli::args::Ci) -> anyhow::Result<ExitCode> {
    let name = arguments.name.clone().unwrap_or_else(|| format!("ci-{}", std::process::id()));
    let paths = Paths::of(&name)?;
    if lock::holder(&paths.lock("daemon")).is_some() {
        bail!(
            "cluster {name:?} is running already; `rootlet ci` wants one of its own: use another --name"
        );
    }
    let guard = Guard::start(&name)?;
    let outcome = inside(arguments, &paths);
    let deleted = up::delete(&paths);
    drop(guard);
    let code = outcome?;
    deleted.context("the cluster is not fully removed")?;
    Ok(ExitCode::from(code))
}

fn inside(arguments: &cli::args::Ci, paths: &Paths) -> anyhow::Result<u8> {
    let flags = cli::args::Up {
        cluster: cli::args::Cluster { name: paths.name.clone() },
        ephemeral: true,
        registries: arguments.registries.clone(),
        controllers: vec!["*".to_owned()],
        ..cli::args::Up::default()
    };
    drop(up::launch(&flags, paths).context("cannot bring up a cluster for the command")?);
    let client = Client::new(paths);
    for image in &arguments.load {
        client.bring(image).with_context(|| format!("--load {image}"))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        if !arguments.apply.is_empty() {
            let api = control::api(paths).await?;
            cli::apply::apply(&api, &arguments.apply, |line| eprintln!("{line}")).await?;
        }
        let code = command(&arguments.command, paths).await?;
        if code != 0 {
            tell(paths, code).await;
        }
        anyhow::Ok(code)
    });
    runtime.shutdown_background();
    code
}

/// Runs the command; what would end this process ends the command instead.
async fn command(words: &[OsString], paths: &Paths) -> anyhow::Result<u8> {
    let Some((program, rest)) = words.split_first() else { bail!("COMMAND is missing") };
    let mut terminated = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let started = tokio::process::Command::new(program)
        .args(rest)
        .env("KUBECONFIG", paths.kubeconfig())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            eprintln!("error: cannot run {}: {error}", program.display());
            let absent = error.kind() == std::io::ErrorKind::NotFound;
            return Ok(if absent { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    loop {
        let number = tokio::select! {
            status = child.wait() => return Ok(code(status.context("cannot wait for the command")?)),
            _ = terminated.recv() => Signal::SIGTERM,
            _ = hung_up.recv() => Signal::SIGHUP,
            _ = interrupted.recv() => Signal::SIGINT,
        };
        if number == Signal::SIGINT && at_terminal() {
            // The terminal has sent it to the command as well; twice may mean more than once.
            continue;
        }
        if let Some(pid) = pid {
            // It may have ended just now.
            let _ = kill(pid, number);
        }
    }
}

/// Whether this process is in the foreground of a terminal.
fn at_terminal() -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return false };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => SIGNALLED + signal as u8,
        (None, None) => 1,
    }
}

/// What a person would ask next.
async fn tell(paths: &Paths, code: u8) {
    eprintln!("\nrootlet: the command ended with exit code {code}; the cluster at that time:");
    let report = async {
        let api = control::api(paths).await?;
        anyhow::Ok(cli::report::report(&api).await?)
    };
    match report.await {
        Ok(text) if text.is_empty() => eprintln!("every pod is well, and there was no warning"),
        Ok(text) => eprint!("{text}"),
        Err(error) => eprintln!("it cannot be asked: {error:#}"),
    }
}

/// A process that removes the cluster when this one is gone, however it went.
struct Guard(Child);

impl Guard {
    fn start(name: &str) -> anyhow::Result<Self> {
        let child = Command::new("/proc/self/exe")
            .args(["guard", name])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start a process that cleans up")?;
        Ok(Self(child))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // It finds nothing to do, and ends.
        let _ = self.0.wait();
    }
}

/// The guard's process: waits for the end of its parent.
pub fn guard(name: &str) -> anyhow::Result<()> {
    let paths = Paths::of(name)?;
    userns::detach()?;
    let _ = std::io::stdin().read(&mut [0]);
    if !paths.data.exists() && !paths.run.exists() {
        return Ok(());
    }
    let held = up::hold(&paths)?;
    let mut deleted = up::delete(&paths);
    // A process that its parent had just started may come in between, until it finds that nobody waits for it.
    for _ in 0..ATTEMPTS {
        if deleted.is_ok() && !paths.data.exists() && !paths.run.exists() {
            break;
        }
        std::thread::sleep(PAUSE);
        deleted = up::delete(&paths);
    }
    drop(held);
    deleted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_a_shells() {
        for (raw, want) in [(0, 0), (3 << 8, 3), (255 << 8, 255), (15, 143), (9, 137)] {
            assert_eq!(code(ExitStatus::from_raw(raw)), want);
        }
    }
}
