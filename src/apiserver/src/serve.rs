//! The TLS listeners: HTTP/1.1 and HTTP/2 by ALPN, client certificates if offered, upgrades.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use http::header::{CONNECTION, EXPECT, HeaderValue};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::body::{Body, Response};
use crate::leftover;
use crate::server::{Peer, Server};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request for so long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest frame window a client may have outstanding; uploads are at most 3 MiB.
const H2_WINDOW_BYTES: u32 = 1 << 20;
const H2_STREAMS: u32 = 1000;
/// How long open requests may take to finish when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

/// Accepts until `stopping`, then lets open requests finish.
pub async fn listen(
    listener: TcpListener,
    tls: TlsAcceptor,
    server: Arc<Server>,
    stopping: CancellationToken,
) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let (tls, server, stopping) = (tls.clone(), server.clone(), stopping.clone());
                connections.spawn(connection(stream, address, tls, server, stopping));
            }
            Err(error) => {
                // Out of descriptors, mostly: the waiting connection stays in the queue.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    tls: TlsAcceptor,
    server: Arc<Server>,
    stopping: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| Arc::from(certificate.as_ref()));
    let peer = Arc::new(server.peer(address, certificate));
    let service = service_fn(move |request| {
        let (server, peer) = (server.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answer(&server, request, &peer).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .initial_stream_window_size(H2_WINDOW_BYTES)
        .initial_connection_window_size(H2_WINDOW_BYTES)
        .max_concurrent_streams(H2_STREAMS);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection ended");
    }
}

/// The server's answer; what it left unread of the body is read before, or the connection ends after it.
async fn answer(server: &Arc<Server>, request: http::Request<Incoming>, peer: &Peer) -> Response {
    if request.version() > Version::HTTP_11 || request.body().is_end_stream() {
        return server.handle(request.map(Body::wrap), peer).await;
    }
    let waits = request.headers().contains_key(EXPECT);
    let (parts, body) = request.into_parts();
    let (body, mut left) = leftover::lend(body);
    let request = http::Request::from_parts(parts, Body::wrap(body));
    let mut response = server.handle(request, peer).await;
    if let Ok(rest) = left.try_recv()
        && (waits || !leftover::discard(rest).await)
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
