//! `rootlet up --foreground`: from the start to the end that somebody asks for.

use anyhow::bail;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::paths::Paths;
use crate::{lock, service, up};

/// Signals that ask for the cluster's end, from the first moment on: one that comes during the start waits for it.
pub struct Foreground {
    runtime: tokio::runtime::Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl Foreground {
    /// Listens for the signals from now on.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let (terminate, interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(entered);
        Ok(Self { runtime, terminate, interrupt })
    }

    /// Tells a service manager that the cluster is there; then waits for a signal and stops it, or for its end by
    /// another hand.
    pub fn wait(mut self, paths: &Paths) -> anyhow::Result<()> {
        service::notify("READY=1");
        let (daemon, up) = (paths.lock("daemon"), paths.lock("up"));
        let asked = self.runtime.block_on(async {
            let ended = tokio::task::spawn_blocking(move || {
                loop {
                    lock::wait(&daemon)?;
                    // Who upgrades the cluster holds this one meanwhile.
                    lock::wait(&up)?;
                    if lock::holder(&daemon).is_none() {
                        return std::io::Result::Ok(());
                    }
                }
            });
            tokio::select! {
                _ = self.terminate.recv() => true,
                _ = self.interrupt.recv() => true,
                _ = ended => false,
            }
        });
        // The thread that waits for the lock ends with the process.
        self.runtime.shutdown_background();
        service::notify("STOPPING=1");
        if asked {
            return up::down(paths);
        }
        if paths.stopped().exists() {
            // `rootlet down` asked for it: no failure, and no reason to start it again.
            return Ok(());
        }
        bail!("the daemon has ended; see {}", paths.log("daemon").display())
    }
}
