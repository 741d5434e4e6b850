//! Egress: what pods send beyond the cluster is carried by ordinary sockets of the host.

mod hold;
mod icmp;
mod tcp;
mod udp;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

pub(crate) use hold::{Held, open as open_queue, serve as serve_queue};
pub(crate) use icmp::{Ping, open as open_icmp};
pub(crate) use tcp::{listen, serve as serve_tcp};
pub(crate) use udp::{Context, bind as bind_udp, serve as serve_udp};

/// After running out of descriptors or memory, some time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts the next connection, whatever goes wrong on the way.
pub(crate) async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The flows of each pod, so that they end with it: a pod that is gone sends no FIN.
pub(crate) struct Flows {
    root: CancellationToken,
    pods: Mutex<HashMap<IpAddr, CancellationToken>>,
}

impl Flows {
    pub fn new(root: CancellationToken) -> Self {
        Self { root, pods: Mutex::default() }
    }

    /// Cancelled when the pod with this address goes away.
    pub fn of(&self, pod: IpAddr) -> CancellationToken {
        let mut pods = self.pods.lock().expect("never held across a panic");
        let token = pods.entry(pod).or_insert_with(|| self.root.child_token());
        token.child_token()
    }

    /// Ends all flows of a pod.
    pub fn end(&self, pod: IpAddr) {
        let mut pods = self.pods.lock().expect("never held across a panic");
        if let Some(token) = pods.remove(&pod) {
            token.cancel();
        }
    }
}
