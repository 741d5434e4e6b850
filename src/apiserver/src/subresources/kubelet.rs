//! Requests to kubelets: HTTP/1.1 over TLS as `kube-apiserver-kubelet-client`; upgraded connections are
//! spliced to the client's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::Status;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::relay;
use crate::body::{Body, Response};
use crate::pki::{self, KeyPair, Pki};
use crate::registry::Registry;
use crate::start::{KubeletAddress, NodeAddress};
use crate::zero::Zero;

/// The user as whom kubelets see this server; kubeadm's name for it.
pub const USER: &str = "kube-apiserver-kubelet-client";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions with one kubelet that can be taken up again.
const SESSIONS_MAX: usize = 8;

/// Reaches the kubelets of nodes.
pub struct Kubelets {
    pki: Pki,
    pair: KeyPair,
    registry: Registry,
    address: NodeAddress,
    stopping: CancellationToken,
    /// By node, what its kubelet may call itself, and how it is spoken with.
    known: Mutex<HashMap<String, (Names, Arc<ClientConfig>)>>,
}

type Names = Option<Vec<ServerName<'static>>>;

impl Kubelets {
    /// Dials nodes where `address` says, with a client certificate made now.
    pub fn new(
        pki: Pki,
        registry: Registry,
        address: NodeAddress,
        stopping: CancellationToken,
    ) -> Result<Self, pki::Error> {
        let pair = pki.issue_client(USER, &["system:masters"])?;
        Ok(Self { pki, pair, registry, address, stopping, known: Mutex::default() })
    }

    /// Sends a request for `path_and_query` to the kubelet of `node` and relays the answer. When both
    /// sides switch protocols, bytes flow between them until one ends.
    pub async fn relay(
        &self,
        node: &str,
        path_and_query: &str,
        parts: http::request::Parts,
        body: Body,
    ) -> Result<Response, Status> {
        let stream = self.connect(node).await?;
        let failed = |error: hyper::Error| unreachable_node(node, &error);
        relay::relay(stream, path_and_query, "kubelet", parts, body, self.stopping.clone(), failed)
            .await
    }

    /// The same as long as the kubelet may call itself the same, so that sessions are resumed.
    fn config(&self, name: &str, expected: Names) -> Result<Arc<ClientConfig>, Status> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((names, config)) = known.get(name)
            && *names == expected
        {
            return Ok(config.clone());
        }
        let made = self.pki.kubelet_client_config(&self.pair, expected.clone());
        let mut config = made.map_err(Status::internal)?;
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        let config = Arc::new(config);
        known.insert(name.to_owned(), (expected, config.clone()));
        Ok(config)
    }

    async fn connect(
        &self,
        name: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Status> {
        let Some(node) = self.registry.get("", "nodes", "", name) else {
            return Err(Status::not_found("", "nodes", name));
        };
        let node = node.to_value();
        let Some(KubeletAddress { address, ours }) = (self.address)(name, &node) else {
            return Err(Status::unavailable(format!("node {name:?} has no known kubelet address")));
        };
        let expected = ours.then(|| names(name, &node, address));
        let config = self.config(name, expected)?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let host = ServerName::IpAddress(address.ip().into());
            TlsConnector::from(config).connect(host, stream).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(unreachable_node(name, &error)),
            Err(_) => Err(unreachable_node(name, &"dial timed out")),
        }
    }
}

fn unreachable_node(node: &str, error: &dyn std::fmt::Display) -> Status {
    Status::failure(
        500,
        "InternalError",
        format!("Internal error occurred: error dialing the kubelet of node {node:?}: {error}"),
    )
}

/// All that the kubelet's certificate may call itself.
fn names(name: &str, node: &Value, address: SocketAddr) -> Vec<ServerName<'static>> {
    let mut names = vec![ServerName::IpAddress(address.ip().into())];
    let reported =
        node["status"]["addresses"].items().iter().map(|address| address["address"].text());
    for text in std::iter::once(name).chain(reported) {
        names.extend(ServerName::try_from(text.to_owned()).ok());
    }
    names
}
