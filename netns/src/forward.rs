//! Listeners in the node network whose connections go to servers of the host.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::relay::{relay, reset_on_close};

/// One TCP forward from the node network to the host network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Forward {
    /// Address and port in the node network.
    pub node: SocketAddr,
    /// Where the connections go, usually on the host's loopback.
    pub host: SocketAddr,
}

/// The forwards in force.
#[derive(Default)]
pub(crate) struct Forwards {
    active: HashMap<Forward, CancellationToken>,
}

impl Forwards {
    /// Ends the forwards that are not wanted; returns those that are to be begun.
    pub fn retain(&mut self, wanted: &[Forward]) -> Vec<Forward> {
        self.active.retain(|forward, token| {
            let keep = wanted.contains(forward);
            if !keep {
                token.cancel();
            }
            keep
        });
        let new = wanted.iter().filter(|f| !self.active.contains_key(f));
        new.copied().collect()
    }

    pub fn begin(
        &mut self,
        forward: Forward,
        listener: TcpListener,
        tasks: &TaskTracker,
        token: CancellationToken,
    ) {
        self.active.insert(forward, token.clone());
        let connections = tasks.clone();
        tasks.spawn(async move {
            let accept = accept(listener, forward.host, connections, token.clone());
            token.run_until_cancelled(accept).await;
        });
    }
}

async fn accept(
    listener: TcpListener,
    host: SocketAddr,
    tasks: TaskTracker,
    token: CancellationToken,
) {
    loop {
        let (client, _) = crate::gateway::accept(&listener).await;
        let token = token.clone();
        tasks.spawn(async move {
            let forward = async {
                match TcpStream::connect(host).await {
                    Ok(server) => {
                        let _ = (client.set_nodelay(true), server.set_nodelay(true));
                        relay(client, server).await;
                    }
                    Err(_) => reset_on_close(&client),
                }
            };
            token.run_until_cancelled(forward).await;
        });
    }
}
