//! The kubelet's HTTPS server, which the API server calls for logs, exec and the like.
//!
//! Source of behaviour: `pkg/kubelet/server/server.go`.

mod auth;
mod cadvisor;
mod claims;
mod configz;
mod logs;
mod metrics;
mod node_logs;
mod pressure;
mod stats;
mod streaming;

#[cfg(test)]
pub use streaming::pairs;

use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Tls;
use crate::context::Context;
use crate::pods::Workers;

/// Why the server cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The listening socket is unusable.
    #[error("use the kubelet's listening socket")]
    Listen(#[source] std::io::Error),
    /// A PEM text does not hold what it should.
    #[error("read the kubelet's {what}: {reason}")]
    Pem {
        /// Which.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The certificate and key do not fit, or the authority is unusable.
    #[error("set up the kubelet's TLS: {0}")]
    Tls(String),
}

/// The listening socket with its TLS.
pub struct Listen {
    listener: tokio::net::TcpListener,
    acceptor: TlsAcceptor,
    port: u16,
}

impl Listen {
    /// Prepares the server's socket.
    pub fn new(listener: TcpListener, tls: &Tls) -> Result<Self, Error> {
        listener.set_nonblocking(true).map_err(Error::Listen)?;
        let port = listener.local_addr().map_err(Error::Listen)?.port();
        let listener = tokio::net::TcpListener::from_std(listener).map_err(Error::Listen)?;
        let acceptor = TlsAcceptor::from(Arc::new(config(tls)?));
        Ok(Self { listener, acceptor, port })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn config(tls: &Tls) -> Result<rustls::ServerConfig, Error> {
    let certificates = |what, pem: &str| -> Result<Vec<CertificateDer<'static>>, Error> {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| Error::Pem { what, reason: e.to_string() })
    };
    let chain = certificates("certificate", &tls.cert_pem)?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes())
        .map_err(|e| Error::Pem { what: "key", reason: e.to_string() })?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("client authority", &tls.client_ca_pem)? {
        roots.add(certificate).map_err(|e| Error::Tls(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Without a certificate the answer is 401, not a broken handshake.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| Error::Tls(e.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Tls(e.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| Error::Tls(e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    context: Arc<Context>,
    workers: Workers,
    disks: Arc<claims::Disks>,
}

/// Serves until `shutdown`.
pub async fn run(
    context: Arc<Context>,
    workers: Workers,
    listen: Listen,
    shutdown: CancellationToken,
) {
    let router = router(Shared { context, workers, disks: Arc::default() });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listen.listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let (acceptor, router, shutdown) =
            (listen.acceptor.clone(), router.clone(), shutdown.clone());
        tasks.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let peer =
                stream.get_ref().1.peer_certificates().and_then(|c| c.first()).map(|c| c.to_vec());
            let router = router.layer(axum::Extension(auth::Peer(peer.map(Arc::from))));
            let service = TowerToHyperService::new(router);
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = connection => {}
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

fn router(shared: Shared) -> Router {
    let exec = get(streaming::exec).post(streaming::exec);
    let attach = get(streaming::attach).post(streaming::attach);
    let forward = get(streaming::port_forward).post(streaming::port_forward);
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/ping", get(|| async { "ok" }))
        .route("/healthz/syncloop", get(|| async { "ok" }))
        .route("/pods", get(pods))
        .route("/runningpods/", get(stats::running_pods))
        .route("/runningPods/", get(stats::running_pods))
        .route("/pods/", get(pods))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(logs::container_logs))
        .route("/logs/", get(node_logs::serve))
        .route("/logs/{*path}", get(node_logs::serve))
        .route("/exec/{namespace}/{pod}/{container}", exec.clone())
        .route("/exec/{namespace}/{pod}/{uid}/{container}", exec)
        .route("/attach/{namespace}/{pod}/{container}", attach.clone())
        .route("/attach/{namespace}/{pod}/{uid}/{container}", attach)
        .route("/portForward/{namespace}/{pod}", forward.clone())
        .route("/portForward/{namespace}/{pod}/{uid}", forward)
        .route("/configz", get(configz::serve))
        .route("/metrics", get(metrics::own))
        .route("/metrics/cadvisor", get(cadvisor::serve))
        .route("/metrics/probes", get(metrics::probes))
        .route("/metrics/resource", get(metrics::resource))
        .route("/stats/summary", get(stats::summary))
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

async fn guard(
    State(shared): State<Shared>,
    axum::Extension(peer): axum::Extension<auth::Peer>,
    request: Request,
    next: Next,
) -> Response {
    let asked = auth::Asked::new(&request);
    match auth::check(&shared.context, &peer, asked).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal,
    }
}

async fn pods(State(shared): State<Shared>) -> Response {
    let items: Vec<Pod> = shared.workers.current().iter().map(|p| p.as_ref().clone()).collect();
    json(
        &serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}),
    )
}

fn json(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn refuse(code: StatusCode, message: impl Into<String>) -> Response {
    let mut response = Response::new(Body::from(message.into()));
    *response.status_mut() = code;
    response
}

#[cfg(test)]
mod tests;
