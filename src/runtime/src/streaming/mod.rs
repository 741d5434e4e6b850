//! The streaming server behind Exec and Attach: CRI answers with a URL that holds a token good for one
//! use, and the bytes then go over a WebSocket between the client and the container.
//!
//! Source: `k8s.io/kubelet/pkg/cri/streaming` (URLs, tokens) and
//! `k8s.io/apimachinery/pkg/util/remotecommand` (the protocols).

mod session;
mod websocket;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_cri::v1;
use tokio::net::TcpListener;

use crate::error::Error;
use crate::runtime::Runtime;

/// How long a URL is good for.
const TOKEN_TTL: Duration = Duration::from_mins(1);
/// URLs that may wait to be used.
const TOKENS_MAX: usize = 1000;

type Body = Full<bytes::Bytes>;

/// What a URL stands for.
pub enum Wanted {
    /// A further process.
    Exec(v1::ExecRequest),
    /// The container's own streams.
    Attach(v1::AttachRequest),
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

/// Binds the server's socket on loopback.
pub async fn bind() -> Result<(TcpListener, Streams), Error> {
    let failed = "listen for streaming sessions";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(Error::io(failed))?;
    let address = listener.local_addr().map_err(Error::io(failed))?;
    Ok((listener, Streams { address, waiting: Mutex::default() }))
}

/// Serves until the runtime's tasks are ended.
pub async fn serve(runtime: Runtime, listener: TcpListener) {
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

fn answer(runtime: &Runtime, mut request: Request<Incoming>) -> Response<Body> {
    let protocol = match websocket::negotiate(request.headers()) {
        Ok(protocol) => protocol,
        Err(problem) => return refuse(StatusCode::BAD_REQUEST, &problem),
    };
    let Some(wanted) = runtime.streams().take(request.uri().path()) else {
        return refuse(StatusCode::NOT_FOUND, "the streaming URL is unknown or was used already");
    };
    let response = websocket::accept(request.headers(), protocol);
    let upgrade = hyper::upgrade::on(&mut request);
    let runtime = runtime.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(stream) => {
                let socket = websocket::Socket::new(TokioIo::new(stream)).await;
                session::run(&runtime, wanted, socket).await;
            }
            Err(error) => tracing::debug!(%error, "the client left before its session began"),
        }
    });
    response
}
