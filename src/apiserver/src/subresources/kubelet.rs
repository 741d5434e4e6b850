//! Requests to kubelets: HTTP/1.1 over TLS as `kube-apiserver-kubelet-client`; upgraded connections are
//! spliced to the client's.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::body::{Body, Response};
use crate::pki::{self, KeyPair, Pki};
use crate::registry::Registry;
use crate::start::NodeAddress;
use crate::zero::Zero;

/// The user as whom kubelets see this server; kubeadm's name for it.
pub const USER: &str = "kube-apiserver-kubelet-client";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in flight of a spliced connection, each way.
const SPLICE_BYTES: usize = 64 << 10;
/// The client's credentials are for this server alone.
const NOT_FORWARDED: [&str; 8] = [
    "authorization",
    "host",
    "transfer-encoding",
    "te",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "trailer",
];

/// Reaches the kubelets of nodes.
pub struct Kubelets {
    pki: Pki,
    pair: KeyPair,
    registry: Registry,
    address: NodeAddress,
    stopping: CancellationToken,
}

impl Kubelets {
    /// Dials nodes where `address` says, with a client certificate made now.
    pub fn new(
        pki: Pki,
        registry: Registry,
        address: NodeAddress,
        stopping: CancellationToken,
    ) -> Result<Self, pki::Error> {
        let pair = pki.issue_client(USER, &["system:masters"])?;
        Ok(Self { pki, pair, registry, address, stopping })
    }

    /// Sends a request for `path_and_query` to the kubelet of `node` and relays the answer. When both
    /// sides switch protocols, bytes flow between them until one ends.
    pub async fn relay(
        &self,
        node: &str,
        path_and_query: &str,
        mut parts: http::request::Parts,
        body: Body,
    ) -> Result<Response, Status> {
        let stream = self.connect(node).await?;
        let failed = |error: hyper::Error| unreachable_node(node, &error);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // The connection lives as long as the answer's body, or as the splice.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a kubelet ended");
            }
        });
        let client = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let mut request = Request::builder().method(parts.method).uri(path_and_query);
        if let Some(headers) = request.headers_mut() {
            *headers = forwarded(parts.headers);
            headers.insert(header::HOST, HeaderValue::from_static("kubelet"));
        }
        let request = request.body(body).map_err(|e| Status::bad_request(e.to_string()))?;
        let mut response = sender.send_request(request).await.map_err(failed)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let mut response = response.map(Body::wrap);
            response.headers_mut().remove(header::TRANSFER_ENCODING);
            response.headers_mut().remove(header::CONNECTION);
            return Ok(response);
        }
        let Some(client) = client else {
            return Err(Status::bad_request(
                "Upgrade request required: the connection cannot switch protocols",
            ));
        };
        let kubelet = hyper::upgrade::on(&mut response);
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let (Ok(client), Ok(kubelet)) = (client.await, kubelet.await) else { return };
            let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
            let splice = tokio::io::copy_bidirectional_with_sizes(
                &mut client,
                &mut kubelet,
                SPLICE_BYTES,
                SPLICE_BYTES,
            );
            tokio::select! {
                () = stopping.cancelled() => {}
                result = splice => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "spliced connection ended");
                    }
                }
            }
        });
        Ok(response.map(|_| Body::Empty))
    }

    async fn connect(
        &self,
        name: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Status> {
        let Some(node) = self.registry.get("", "nodes", "", name) else {
            return Err(Status::not_found("", "nodes", name));
        };
        let node = node.to_value();
        let Some(address) = (self.address)(name, &node) else {
            return Err(Status::unavailable(format!("node {name:?} has no known kubelet address")));
        };
        let config = self
            .pki
            .kubelet_client_config(&self.pair, names(name, &node, address))
            .map_err(Status::internal)?;
        let connect = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let host = ServerName::IpAddress(address.ip().into());
            TlsConnector::from(Arc::new(config)).connect(host, stream).await
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

fn forwarded(mut headers: HeaderMap) -> HeaderMap {
    for name in NOT_FORWARDED {
        headers.remove(name);
    }
    let impersonation: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in impersonation {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "impersonate-user", "upgrade", "sec-websocket-key"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        let left = forwarded(headers);
        assert_eq!(left.len(), 2);
        assert!(left.contains_key("upgrade") && left.contains_key("sec-websocket-key"));
    }
}
