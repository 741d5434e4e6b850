//! The streaming server behind Exec, Attach and PortForward: CRI answers with a URL that holds a token
//! good for one use, and the bytes then go over a WebSocket or SPDY/3.1 between client and container.
//!
//! Source: `k8s.io/kubelet/pkg/cri/streaming` (URLs, tokens) and
//! `k8s.io/apimachinery/pkg/util/remotecommand` (the protocols).

mod forward;
mod message;
mod session;
mod socket;
mod spdy;
mod websocket;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpListener;

use crate::backend::Network;
use crate::error::Error;
use crate::runtime::Runtime;

/// How long a URL is good for.
const TOKEN_TTL: Duration = Duration::from_mins(1);
/// URLs that may wait to be used.
const TOKENS_MAX: usize = 1000;
/// How many ports are tried until one is free on both loopbacks.
const PORT_TRIES: u32 = 10;

/// The first part of the path of port-forward URLs.
const PORT_FORWARD: &str = "portforward";

type Body = Full<bytes::Bytes>;

/// What a URL stands for.
pub enum Wanted {
    /// A further process.
    Exec(v1::ExecRequest),
    /// The container's own streams.
    Attach(v1::AttachRequest),
    /// Connections to ports of the pod.
    PortForward(v1::PortForwardRequest),
}

/// The server's address and the URLs that are out.
pub struct Streams {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Instant, Wanted)>>,
}

impl Streams {
    /// A URL for `wanted`.
    pub fn url(&self, wanted: Wanted) -> Result<String, Error> {
        let kind = match wanted {
            Wanted::Exec(_) => "exec",
            Wanted::Attach(_) => "attach",
            Wanted::PortForward(_) => PORT_FORWARD,
        };
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (made, _)| made.elapsed() < TOKEN_TTL);
        if waiting.len() >= TOKENS_MAX {
            return Err(Error::Failed("too many streaming sessions are being started".into()));
        }
        waiting.insert(token.clone(), (Instant::now(), wanted));
        Ok(format!("http://{}/{kind}/{token}", self.address))
    }

    fn take(&self, path: &str) -> Option<Wanted> {
        let token = path.rsplit('/').next()?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (made, wanted) = waiting.remove(token)?;
        (made.elapsed() < TOKEN_TTL).then_some(wanted)
    }
}

/// Binds the server's sockets: on the host's loopback, and with the same port on that of the pods' network, where who
/// calls from among them looks for it.
pub async fn bind(network: &dyn Network) -> Result<(Vec<TcpListener>, Streams), Error> {
    let failed = "listen for streaming sessions";
    let node = network.pods_netns().await?;
    let mut tries = 0;
    loop {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::io(failed))?;
        let address = listener.local_addr().map_err(Error::io(failed))?;
        let streams = Streams { address, waiting: Mutex::default() };
        let Some(node) = &node else { return Ok((vec![listener], streams)) };
        let node = node.try_clone().map_err(Error::io(failed))?;
        match bind_within(node, address).await {
            Ok(within) => return Ok((vec![listener, within], streams)),
            // A pod in the node's network may have this port.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < PORT_TRIES => {
                tries += 1;
            }
            Err(error) => {
                tracing::warn!(%error, "streaming sessions cannot be asked for among the pods");
                return Ok((vec![listener], streams));
            }
        }
    }
}

/// A socket at `address` in a network namespace: it belongs to that of the thread that makes it, whichever uses it
/// (network_namespaces(7)).
async fn bind_within(namespace: OwnedFd, address: SocketAddr) -> io::Result<TcpListener> {
    let (answer, bound) = tokio::sync::oneshot::channel();
    // A thread of its own: one of the pool would take others' work there.
    std::thread::Builder::new().name("streaming-socket".into()).spawn(move || {
        let bind = || -> io::Result<_> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let _ = answer.send(bind());
    })?;
    TcpListener::from_std(bound.await.map_err(io::Error::other)??)
}

/// Serves on all of the sockets until the runtime's tasks are ended.
pub async fn serve(runtime: Runtime, listeners: Vec<TcpListener>) {
    let serving = listeners.into_iter().map(|listener| serve_one(&runtime, listener));
    futures::future::join_all(serving).await;
}

async fn serve_one(runtime: &Runtime, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some will come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let runtime = runtime.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let runtime = runtime.clone();
                async move { Ok::<_, std::convert::Infallible>(answer(&runtime, request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "streaming connection ended");
            }
        });
    }
}

fn refuse(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(text.to_owned()));
    *response.status_mut() = status;
    response
}

/// How the bytes will be carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    WebSocket(&'static str),
    Spdy(&'static str),
}

/// What a request for a URL wants to switch to; `forward` tells the URLs of port-forward.
fn negotiate(headers: &http::HeaderMap, forward: bool) -> Result<Carrier, Box<Response<Body>>> {
    if spdy::asked(headers) {
        let served: &[&'static str] =
            if forward { &[forward::PROTOCOL] } else { &["v4.channel.k8s.io"] };
        return spdy::negotiate(headers, served).map(Carrier::Spdy).ok_or_else(|| {
            let text = format!("unable to upgrade: the protocols served are {}", served.join(", "));
            let mut refusal = refuse(StatusCode::FORBIDDEN, &text);
            spdy::name_served(&mut refusal, served);
            Box::new(refusal)
        });
    }
    let served: &[&'static str] = if forward { &forward::WEB } else { &websocket::CHANNELS };
    websocket::negotiate(headers, served)
        .map(Carrier::WebSocket)
        .map_err(|problem| Box::new(refuse(StatusCode::BAD_REQUEST, &problem)))
}

fn answer(runtime: &Runtime, mut request: Request<Incoming>) -> Response<Body> {
    let forward = request.uri().path().starts_with(&format!("/{PORT_FORWARD}/"));
    let carrier = match negotiate(request.headers(), forward) {
        Ok(carrier) => carrier,
        Err(refusal) => return *refusal,
    };
    let Some(wanted) = runtime.streams().take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "the streaming URL is unknown or was used already");
    };
    let response = match carrier {
        Carrier::WebSocket(protocol) => websocket::accept(request.headers(), protocol),
        Carrier::Spdy(protocol) => spdy::accept(protocol),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let runtime = runtime.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => run(&runtime, wanted, carrier, TokioIo::new(stream)).await,
            Err(error) => tracing::debug!(%error, "the client left before its session began"),
        }
    });
    response
}

async fn run(runtime: &Runtime, wanted: Wanted, carrier: Carrier, stream: TokioIo<Upgraded>) {
    let command = match wanted {
        Wanted::Exec(request) => session::Command::Exec(request),
        Wanted::Attach(request) => session::Command::Attach(request),
        Wanted::PortForward(request) => {
            let (read, write) = match carrier {
                Carrier::WebSocket(forward::TUNNEL) => websocket::tunnel(stream).await,
                Carrier::WebSocket(protocol) => {
                    let socket = websocket::Socket::new(stream, protocol).await;
                    return forward::run_channels(runtime, &request, socket).await;
                }
                Carrier::Spdy(_) => halves(stream),
            };
            match spdy::start(read, write) {
                Ok(connection) => forward::run(runtime, &request, connection).await,
                Err(error) => tracing::debug!(%error, "no port-forward session"),
            }
            return;
        }
    };
    let socket = match carrier {
        Carrier::WebSocket(protocol) => {
            socket::Socket::Web(Box::new(websocket::Socket::new(stream, protocol).await))
        }
        Carrier::Spdy(_) => {
            let (read, write) = halves(stream);
            match spdy::start(read, write) {
                Ok(connection) => socket::Socket::Spdy(Box::new(spdy::Channels::new(connection))),
                Err(error) => return tracing::debug!(%error, "no session"),
            }
        }
    };
    session::run(runtime, command, socket).await;
}

fn halves(stream: TokioIo<Upgraded>) -> (spdy::ReadHalf, spdy::WriteHalf) {
    let (read, write) = tokio::io::split(stream);
    (Box::new(read), Box::new(write))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

    use super::*;

    #[test]
    fn clients_of_all_ages_find_a_protocol() {
        let web = |protocols: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, "websocket".parse().unwrap());
            headers.insert(SEC_WEBSOCKET_KEY, "x".parse().unwrap());
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
            headers
        };
        let spdy = |protocols: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, "SPDY/3.1".parse().unwrap());
            headers.insert("x-stream-protocol-version", protocols.parse().unwrap());
            headers
        };
        let v4 = "v4.channel.k8s.io";
        for (headers, forward, want) in [
            (web("v5.channel.k8s.io"), false, Ok(Carrier::WebSocket("v5.channel.k8s.io"))),
            (spdy("v4.channel.k8s.io, v3.channel.k8s.io"), false, Ok(Carrier::Spdy(v4))),
            (web(forward::TUNNEL), true, Ok(Carrier::WebSocket(forward::TUNNEL))),
            (spdy("portforward.k8s.io"), true, Ok(Carrier::Spdy(forward::PROTOCOL))),
            (spdy("portforward.k8s.io"), false, Err(403)),
            (web("v4.channel.k8s.io"), true, Ok(Carrier::WebSocket("v4.channel.k8s.io"))),
            (web("v5.channel.k8s.io"), true, Err(400)),
        ] {
            let got = negotiate(&headers, forward).map_err(|refusal| refusal.status().as_u16());
            assert_eq!(got, want, "{headers:?}");
        }
    }
}
