//! `rootlet up --foreground`: from the start to the end that somebody asks for.

use std::time::{Duration, Instant};

use anyhow::anyhow;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::paths::Paths;
use crate::{lock, scope, service, up};

/// So many deaths of the daemon within this time are not mended by another start.
const DEATHS_MAX: usize = 3;
const OFTEN: Duration = Duration::from_mins(2);

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
    /// another hand. As a service it starts a daemon that died again: systemd would end the pods with it.
    pub fn wait(mut self, paths: &Paths) -> anyhow::Result<()> {
        service::notify("READY=1");
        let mut deaths: Vec<Instant> = Vec::new();
        let ended = loop {
            if self.is_asked(paths) {
                service::notify("STOPPING=1");
                break up::down(paths);
            }
            if paths.stopped().exists() {
                // `rootlet down` asked for it: no failure, and no reason to start it again.
                service::notify("STOPPING=1");
                break Ok(());
            }
            deaths.retain(|death| death.elapsed() < OFTEN);
            if !scope::is_service(&paths.name) || deaths.len() >= DEATHS_MAX {
                service::notify("STOPPING=1");
                break Err(anyhow!("the daemon has ended; see {}", paths.log("daemon").display()));
            }
            deaths.push(Instant::now());
            eprintln!("the daemon has ended; it is started again");
            if let Err(error) = up::start_again(paths) {
                break Err(error);
            }
        };
        // The thread that waits for the lock ends with the process.
        self.runtime.shutdown_background();
        ended
    }

    /// Waits for a signal, or for the end of the cluster's daemon: `false`.
    fn is_asked(&mut self, paths: &Paths) -> bool {
        let (daemon, up) = (paths.lock("daemon"), paths.lock("up"));
        self.runtime.block_on(async {
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
        })
    }
}
