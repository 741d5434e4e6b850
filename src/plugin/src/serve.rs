//! Services over a unix socket, with messages that are known only to who serves: what the kubelet offers to plugins,
//! and what tests offer in the place of plugins.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::Message;
use tokio::net::UnixListener;
pub use tonic::Status;
pub use tonic::body::Body;
use tonic_prost::ProstCodec;

/// Answers a call; its path says the method.
pub type Handler = Arc<dyn Fn(Request<Body>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A listener at `name` in `folder`, the way to which may be longer than an address.
pub fn bind(folder: &Path, name: &OsStr) -> std::io::Result<UnixListener> {
    let flags =
        rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let directory = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let short = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), name.to_string_lossy());
    UnixListener::bind(short)
}

/// Serves connections until it is dropped.
pub async fn serve(listener: UnixListener, handler: Handler) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let handler = handler.clone();
        let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
            let answer = handler(request.map(Body::new));
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        connections.spawn(connection);
        while connections.try_join_next().is_some() {}
    }
}

/// Answers one message with one.
pub async fn unary<Asked, Answer>(
    request: Request<Body>,
    work: impl Fn(Asked) -> Result<Answer, Status> + Clone + Send + Sync + 'static,
) -> Response<Body>
where
    Asked: Message + Default + 'static,
    Answer: Message + 'static,
{
    let service = tower::service_fn(move |request: tonic::Request<Asked>| {
        std::future::ready(work(request.into_inner()).map(tonic::Response::new))
    });
    tonic::server::Grpc::new(ProstCodec::<Answer, Asked>::default()).unary(service, request).await
}

/// Answers one message with many.
pub async fn streaming<Asked, Answer>(
    request: Request<Body>,
    work: impl Fn(Asked) -> BoxStream<'static, Result<Answer, Status>> + Clone + Send + Sync + 'static,
) -> Response<Body>
where
    Asked: Message + Default + 'static,
    Answer: Message + 'static,
{
    let service = tower::service_fn(move |request: tonic::Request<Asked>| {
        let stream = work(request.into_inner());
        std::future::ready(Ok::<_, Status>(tonic::Response::new(stream)))
    });
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<Answer, Asked>::default());
    grpc.server_streaming(service, request).await
}
