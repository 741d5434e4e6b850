//! The API server as a tower service, for components of the same process.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Buf;
use futures::future::{BoxFuture, FutureExt};
use http::HeaderValue;
use http::header::USER_AGENT;
use tower::Service;

use crate::attributes::UserInfo;
use crate::body::{Body, BoxError, Response};
use crate::server::{Peer, Server};

/// Requests as one user, without socket and TLS; everything after authentication is the same.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<Server>,
    user: Arc<UserInfo>,
}

impl InProcess {
    pub(crate) fn new(server: Arc<Server>, user: UserInfo) -> Self {
        Self { server, user: Arc::new(user) }
    }
}

/// The name a stock component gives itself, which becomes the manager of the fields it writes.
fn agent(user: &UserInfo) -> HeaderValue {
    let name = match user.name.split(':').collect::<Vec<_>>().as_slice() {
        ["system", "node", ..] => "kubelet",
        ["system", "serviceaccount", "kube-system", ..] => "kube-controller-manager",
        [.., last] => last,
        [] => "",
    };
    HeaderValue::from_str(name).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
}

impl<B> Service<http::Request<B>> for InProcess
where
    B: http_body::Body + Send + 'static,
    B::Data: Buf + Send,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.server.clone();
        let peer = Peer::Internal(self.user.clone());
        let mut request = request.map(Body::wrap);
        request.headers_mut().entry(USER_AGENT).or_insert_with(|| agent(&self.user));
        async move { Ok(server.handle(request, &peer).await) }.boxed()
    }
}
