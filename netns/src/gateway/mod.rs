//! Egress: what pods send beyond the cluster is carried by ordinary sockets of the host.

mod first_packet;
mod front;
mod hold;
mod icmp;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::relay::reset_on_close;

pub(crate) use front::{Front, count as fronts};
pub(crate) use hold::{Held, open as open_queue, serve as serve_queue};
pub(crate) use icmp::{Ping, Sockets as IcmpSockets, open as open_icmp};
pub(crate) use tcp::{listen, serve as serve_tcp};
pub(crate) use udp::{Context, bind as bind_udp, serve as serve_udp};

/// After running out of descriptors or memory, some time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What goes on happening is told once in so long.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// When something was told last.
#[derive(Default)]
pub(crate) struct Told(Mutex<Option<Instant>>);

impl Told {
    pub const fn new() -> Self {
        Self(Mutex::new(None))
    }

    /// Whether it is to be told now.
    pub fn again(&self, now: Instant) -> bool {
        let mut last = self.0.lock().expect("never held across a panic");
        let due = last.is_none_or(|last| now.duration_since(last) >= TOLD_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

static NOT_ACCEPTED: Told = Told::new();
static NO_DESCRIPTORS: Told = Told::new();
/// A descriptor that is given up for a connection that is then refused.
static SPARE: Mutex<Option<File>> = Mutex::new(None);

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Keeps a descriptor for the time when there are no more.
pub(crate) fn keep_spare() {
    let mut kept = SPARE.lock().expect("never held across a panic");
    *kept = kept.take().or_else(spare);
}

/// Whether an error says that this process, or the machine, has all the descriptors that it may have.
fn has_no_descriptors(error: &io::Error) -> bool {
    let none = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    if none && NO_DESCRIPTORS.again(Instant::now()) {
        tracing::warn!(%error, "no descriptors are left: new connections are refused (ulimit -Hn says how many there are)");
    }
    none
}

/// Refuses a connection that waits, as there are no descriptors to take it. Says whether there was one.
fn refuse(listener: &TcpListener) -> bool {
    let mut kept = SPARE.lock().expect("never held across a panic");
    drop(kept.take());
    let waiting = listener.poll_accept(&mut TaskContext::from_waker(Waker::noop()));
    let refused = if let Poll::Ready(Ok((stream, _))) = waiting {
        reset_on_close(&stream);
        true
    } else {
        false
    };
    *kept = spare();
    refused
}

/// Accepts the next connection, whatever goes wrong on the way; with who made it.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if has_no_descriptors(&error) && refuse(listener) => {
                tokio::task::yield_now().await;
            }
            Err(error) => {
                if NOT_ACCEPTED.again(Instant::now()) {
                    tracing::warn!(%error, "cannot accept connections, which have to wait");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections of one pod at a time, at most: two descriptors each, of which all pods together have what
/// the hard limit of the process allows.
const CONNECTIONS_PER_POD: usize = 16_384;
/// Descriptors that are not for flows.
const RESERVED_DESCRIPTORS: usize = 512;

/// How many flows one pod may have where `most` are allowed: half of what there are descriptors for.
pub(crate) fn share(most: usize) -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(_, hard)| hard);
    share_of(usize::try_from(limit).unwrap_or(usize::MAX), most)
}

fn share_of(descriptors: usize, most: usize) -> usize {
    (descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 4).clamp(128, most)
}

/// The flows of each pod, so that they end with it: a pod that is gone sends no FIN.
pub(crate) struct Flows {
    root: CancellationToken,
    connections_per_pod: usize,
    pods: Mutex<HashMap<IpAddr, PodFlows>>,
}

struct PodFlows {
    token: CancellationToken,
    connections: Arc<Semaphore>,
    full: Told,
}

impl Flows {
    pub fn new(root: CancellationToken) -> Self {
        let connections_per_pod = share(CONNECTIONS_PER_POD);
        Self { root, connections_per_pod, pods: Mutex::default() }
    }

    fn with<T>(&self, pod: IpAddr, read: impl FnOnce(&PodFlows) -> T) -> T {
        let mut pods = self.pods.lock().expect("never held across a panic");
        read(pods.entry(pod).or_insert_with(|| PodFlows {
            token: self.root.child_token(),
            connections: Arc::new(Semaphore::new(self.connections_per_pod)),
            full: Told::default(),
        }))
    }

    /// Cancelled when the pod with this address goes away.
    pub fn of(&self, pod: IpAddr) -> CancellationToken {
        self.with(pod, |flows| flows.token.child_token())
    }

    /// A place for one more connection of a pod; None when it has its share.
    pub fn admit(&self, pod: IpAddr) -> Option<OwnedSemaphorePermit> {
        let connections = self.with(pod, |flows| Arc::clone(&flows.connections));
        let place = connections.try_acquire_owned().ok();
        if place.is_none() {
            self.full(pod, "connections", self.connections_per_pod);
        }
        place
    }

    /// Tells that a pod has as many flows as it may have.
    fn full(&self, pod: IpAddr, what: &str, most: usize) {
        if self.with(pod, |flows| flows.full.again(Instant::now())) {
            tracing::warn!(%pod, "a pod has {most} {what} to the outside and gets no more");
        }
    }

    /// Ends all flows of a pod.
    pub fn end(&self, pod: IpAddr) {
        let mut pods = self.pods.lock().expect("never held across a panic");
        if let Some(flows) = pods.remove(&pod) {
            flows.token.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_its_share_of_connections_and_no_more() {
        let flows = Flows::new(CancellationToken::new());
        let (greedy, modest) = ([10, 42, 0, 2].into(), [10, 42, 0, 3].into());
        let most = flows.connections_per_pod;
        let held: Vec<_> = (0..most).map_while(|_| flows.admit(greedy)).collect();
        assert_eq!(held.len(), most);
        assert!(flows.admit(greedy).is_none());
        assert!(flows.admit(modest).is_some());
        drop(held);
        assert!(flows.admit(greedy).is_some());
    }

    #[test]
    fn what_goes_on_is_told_now_and_then() {
        let (told, begin) = (Told::default(), Instant::now());
        for (seconds, want) in [(0, true), (1, false), (59, false), (60, true), (61, false)] {
            assert_eq!(told.again(begin + Duration::from_secs(seconds)), want, "{seconds} s");
        }
    }

    #[test]
    fn shares_fit_the_descriptors() {
        for (descriptors, want) in [(1 << 20, 16_384), (20_512, 5000), (4096, 896), (256, 128)] {
            assert_eq!(share_of(descriptors, CONNECTIONS_PER_POD), want, "{descriptors}");
        }
    }
}
