//! The CRI services on a unix socket.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::{Response, Status};

use crate::runtime::Runtime;

/// Calls that end when their caller leaves: nothing is left half done by them.
const WITH_CALLER: [&str; 3] = ["ExecSync", "PullImage", "GetContainerEvents"];

impl Runtime {
    /// Serves both services on a unix socket until the shutdown future is ready.
    pub async fn serve(
        &self,
        listener: tokio::net::UnixListener,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<(), tonic::transport::Error> {
        let (runtime, images) = self.services();
        tonic::transport::Server::builder()
            .add_service(Detached(runtime))
            .add_service(Detached(images))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
            .await
    }
}

/// Items of one message of a streamed list.
const PART: usize = 500;

/// A list that is answered in several messages.
pub type Items<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers a list in parts, so that no message outgrows what gRPC allows.
pub fn in_parts<T, M>(items: Vec<T>, message: impl Fn(Vec<T>) -> M) -> Response<Items<M>>
where
    M: Send + 'static,
{
    let mut items = items.into_iter();
    let mut parts = Vec::new();
    loop {
        let part: Vec<T> = items.by_ref().take(PART).collect();
        if part.is_empty() {
            break;
        }
        parts.push(Ok(message(part)));
    }
    Response::new(Box::pin(futures::stream::iter(parts)))
}

/// Runs each call in a task of its own, so that a caller who leaves, or whose deadline passes, does
/// not stop the runtime halfway through making or removing a pod.
#[derive(Clone)]
struct Detached<S>(S);

impl<S: NamedService> NamedService for Detached<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Detached<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        let with_caller = WITH_CALLER.contains(&method);
        let call = self.0.call(request);
        if with_caller {
            return Box::pin(call);
        }
        Box::pin(async move {
            match tokio::spawn(call).await {
                Ok(answer) => answer,
                Err(error) => Ok(Status::internal(error.to_string()).into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn each_item_comes_once_and_no_message_is_empty() {
        for (count, messages) in [(0, 0), (1, 1), (PART, 1), (PART + 1, 2), (3 * PART, 3)] {
            let stream = in_parts((0..count).collect(), |part| part).into_inner();
            let parts: Vec<Vec<usize>> = stream.map(Result::unwrap).collect().await;
            assert_eq!(parts.len(), messages, "{count}");
            assert!(parts.iter().all(|part| !part.is_empty()));
            assert_eq!(parts.concat(), (0..count).collect::<Vec<_>>());
        }
    }
}
