//! Threads for the pods' connections to the outside.
//!
//! Each has a runtime of its own: a connection is accepted, connected and carried by one thread, so that
//! none of these steps has to wake another. Most connections are short, and where a machine has few CPUs
//! those wake-ups cost more than the rest.

use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::attention::attend;

/// More threads carry no more: the host's side of the connections is work for other CPUs.
const MOST: usize = 4;

/// How many threads there are to be.
pub(crate) fn count() -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    (cpus / 2).clamp(1, MOST)
}

/// A thread that runs tasks.
pub(crate) struct Front {
    runtime: Handle,
    thread: JoinHandle<()>,
}

impl Front {
    /// Starts one. It runs until `shutdown`, and then until `tasks` has ended.
    pub fn start(shutdown: CancellationToken, tasks: TaskTracker) -> Result<Self, Error> {
        let failed = |e| Error::system("start a gateway thread", e);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        // With one CPU whoever is to be waited for could not run meanwhile.
        let attends = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() > 1);
        let until_done = async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = attend(), if attends => {}
            }
            tasks.wait().await;
        };
        let thread = std::thread::Builder::new()
            .name("gateway".into())
            .spawn(move || runtime.block_on(until_done))
            .map_err(failed)?;
        Ok(Self { runtime: handle, thread })
    }

    /// Its runtime.
    pub fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Waits until it has ended.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a gateway thread has panicked");
        }
    }
}
