//! Threads that live in a network namespace.
//!
//! A socket belongs to the namespace of the thread that made it, for ever, whichever thread uses
//! it (`network_namespaces(7)`). So one thread in the node network makes the sockets there, and
//! all other threads stay in the host network.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns, unshare};
use tokio::sync::{mpsc, oneshot};

use crate::Error;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

const QUEUE: usize = 256;

/// A thread in its own network namespace. It owns a state and runs what it is given on it, in
/// order.
pub(crate) struct NetnsThread<S> {
    jobs: mpsc::Sender<Job<S>>,
}

impl<S> Clone for NetnsThread<S> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone() }
    }
}

impl<S: 'static> NetnsThread<S> {
    /// Starts the thread in a new namespace, or in `existing`, and makes the state there. The
    /// thread ends when the last handle is dropped.
    pub fn start(
        existing: Option<OwnedFd>,
        init: impl FnOnce() -> Result<S, Error> + Send + 'static,
    ) -> Result<(Self, JoinHandle<()>), Error> {
        let (jobs, mut queue) = mpsc::channel::<Job<S>>(QUEUE);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("node-network".into())
            .spawn(move || match enter(existing).and_then(|()| init()) {
                Ok(mut state) => {
                    let _ = ready.send(Ok(()));
                    while let Some(job) = queue.blocking_recv() {
                        job(&mut state);
                    }
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            })
            .map_err(|e| Error::system("start the node network thread", e))?;
        started.recv().map_err(|_| Error::Closed)??;
        Ok((Self { jobs }, thread))
    }

    /// Runs `job` there and returns its result.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, result) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let _ = answer.send(job(state));
        });
        self.jobs.send(job).await.map_err(|_| Error::Closed)?;
        result.await.map_err(|_| Error::Closed)
    }
}

fn enter(existing: Option<OwnedFd>) -> Result<(), Error> {
    match existing {
        Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::system("enter the node's network namespace", e.into())),
        None => unshare(CloneFlags::CLONE_NEWNET).map_err(|e| {
            let operation = "make a network namespace (needs CAP_SYS_ADMIN in the user namespace)";
            Error::system(operation, e.into())
        }),
    }
}

/// The network namespace of the calling thread.
pub(crate) fn current_namespace() -> Result<OwnedFd, Error> {
    File::open("/proc/thread-self/ns/net")
        .map(OwnedFd::from)
        .map_err(|e| Error::system("open /proc/thread-self/ns/net", e))
}

/// Runs `job` on a thread of its own inside `namespace`.
///
/// The thread ends with the job: coming back would need the way back to be open, which it is not
/// for the host's namespace.
pub(crate) fn inside<T: Send>(
    namespace: &OwnedFd,
    job: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("pod-network".into())
            .spawn_scoped(scope, || {
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(|e| Error::system("enter the pod's network namespace", e.into()))?;
                job()
            })
            .map_err(|e| Error::system("start a pod network thread", e))?;
        thread.join().map_err(|_| Error::Closed)?
    })
}
