//! Requests on their way to a backend, and the answers back.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version, uri};
use http_body_util::{Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use netns::Control;
use tokio::net::TcpStream;
use tower::Service;

use super::routes::{Backend, Routes};

/// What the answer to a request consists of.
pub(super) type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// Meant for the next hop alone (RFC 9110, 7.6.1).
const HOP_BY_HOP: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];

/// Where a request came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    pub client: IpAddr,
    pub port: u16,
    pub tls: bool,
}

/// How many endpoints are tried for one request, and how long one may take for the connection.
const TRIES: usize = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to an endpoint.
type Dial = dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>> + Send + Sync;

/// Reaches a backend, whose address is the authority of the URI.
#[derive(Clone)]
struct Connector(Arc<Dial>);

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move {
            let authority = to.authority().map(uri::Authority::as_str).unwrap_or_default();
            let address: SocketAddr =
                authority.parse().map_err(|_| std::io::ErrorKind::AddrNotAvailable)?;
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, dial(address)).await??;
            let _ = stream.set_nodelay(true);
            Ok(TokioIo::new(stream))
        })
    }
}

/// A request's body, that is still there when a connection could not be made for it.
#[derive(Clone)]
struct Lent(Arc<Mutex<Incoming>>);

impl Lent {
    fn with<T>(&self, look: impl FnOnce(&mut Incoming) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.with(|body| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.size_hint())
    }
}

/// Sends requests where the routes say.
pub(super) struct Forwarder {
    routes: RwLock<Arc<Routes>>,
    http1: Client<Connector, Lent>,
    http2: Client<Connector, Lent>,
}

impl Forwarder {
    /// One that reaches pods through the node process, and knows no routes yet.
    pub fn new(control: Control) -> Self {
        Self::over(Arc::new(move |address| {
            let control = control.clone();
            Box::pin(
                async move { control.connect_tcp(address).await.map_err(std::io::Error::other) },
            )
        }))
    }

    fn over(dial: Arc<Dial>) -> Self {
        let connector = Connector(dial);
        let mut builder = Client::builder(TokioExecutor::new());
        // The authority is an endpoint's; the host that the client named is passed on as it is.
        builder.set_host(false);
        Self {
            routes: RwLock::default(),
            http1: builder.build(connector.clone()),
            http2: builder.http2_only(true).build(connector),
        }
    }

    /// Exchanges the routes; requests that are under way go on.
    pub fn set(&self, routes: Routes) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(routes);
    }

    /// Answers one request.
    pub async fn handle(&self, mut request: Request<Incoming>, arrival: Arrival) -> Answer {
        let host = host_of(&request);
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(backend) = routes.find(&host, request.uri().path()) else {
            return plain(StatusCode::NOT_FOUND, "no Ingress has a rule for this request\n");
        };
        if backend.endpoints.is_empty() {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the backend has no endpoints\n");
        }
        let upgrade = upgrade_of(request.headers()).filter(|_| !backend.http2);
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let Some(outgoing) = prepare(request, &host, upgrade, arrival, backend.http2) else {
            return plain(StatusCode::BAD_REQUEST, "the request's target cannot be understood\n");
        };
        let Some(mut response) = self.send(backend, outgoing).await else {
            return plain(StatusCode::BAD_GATEWAY, "the backend did not answer\n");
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(client) = client {
                let server = hyper::upgrade::on(&mut response);
                tokio::spawn(tunnel(client, server));
            }
        } else {
            remove_hop_by_hop(response.headers_mut(), None);
        }
        response.map(Either::Left)
    }

    /// The answer of the endpoint whose turn it is, or of the next one that takes a connection. What has
    /// reached an endpoint is not sent again.
    async fn send(
        &self,
        backend: &Backend,
        request: Request<Incoming>,
    ) -> Option<Response<Incoming>> {
        let sender = if backend.http2 { &self.http2 } else { &self.http1 };
        let (parts, body) = request.into_parts();
        let body = Lent(Arc::new(Mutex::new(body)));
        for endpoint in backend.in_turn().take(TRIES) {
            let mut parts = parts.clone();
            parts.uri = towards(endpoint, &parts.uri)?;
            match sender.request(Request::from_parts(parts, body.clone())).await {
                Ok(response) => return Some(response),
                Err(error) => {
                    tracing::debug!(%endpoint, %error, "a backend did not answer");
                    if !error.is_connect() {
                        return None;
                    }
                }
            }
        }
        None
    }
}

/// The target at an endpoint.
fn towards(endpoint: SocketAddr, target: &Uri) -> Option<Uri> {
    let path = target.path_and_query().cloned();
    let path = path.unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    let target = Uri::builder().scheme("http").authority(endpoint.to_string());
    target.path_and_query(path).build().ok()
}

async fn tunnel(client: hyper::upgrade::OnUpgrade, server: hyper::upgrade::OnUpgrade) {
    let both = tokio::try_join!(client, server);
    match both {
        Ok((client, server)) => {
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            // Either side may end it at any time.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        Err(error) => tracing::debug!(%error, "a connection was not handed over"),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    let mut response = Response::new(Either::Right(Full::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The host that the client named: HTTP/2 has it in the target.
fn host_of(request: &Request<Incoming>) -> String {
    let target = request.uri().authority().map(|authority| authority.as_str().to_owned());
    let header = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    target.or_else(|| header.map(str::to_owned)).unwrap_or_default()
}

/// The protocol that the client asks to go over to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get_all(header::CONNECTION).iter();
    let asked = connection
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// The request as the backend gets it, but for its target.
fn prepare(
    request: Request<Incoming>,
    host: &str,
    upgrade: Option<HeaderValue>,
    arrival: Arrival,
    http2: bool,
) -> Option<Request<Incoming>> {
    let (mut parts, body) = request.into_parts();
    parts.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    remove_hop_by_hop(&mut parts.headers, upgrade);
    if http2 {
        // gRPC wants to hear that trailers are welcome.
        parts.headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    parts.headers.insert(header::HOST, HeaderValue::from_str(host).ok()?);
    forwarded(&mut parts.headers, host, arrival)?;
    Some(Request::from_parts(parts, body))
}

fn remove_hop_by_hop(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|word| word.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

/// Says for whom the request is made. What the client itself says is kept only where it adds up: the
/// list of those whom the request went through.
fn forwarded(headers: &mut HeaderMap, host: &str, arrival: Arrival) -> Option<()> {
    let client = arrival.client.to_string();
    let before = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
    let through = before.map_or(client.clone(), |before| format!("{before}, {client}"));
    let scheme = if arrival.tls { "https" } else { "http" };
    let values = [
        ("x-forwarded-for", through),
        ("x-forwarded-host", host.to_owned()),
        ("x-forwarded-port", arrival.port.to_string()),
        ("x-forwarded-proto", scheme.to_owned()),
        ("x-real-ip", client),
    ];
    for (name, value) in values {
        headers.insert(name, HeaderValue::from_str(&value).ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Forwarder {
        /// One whose endpoints are this machine's.
        pub fn direct() -> Self {
            Self::over(Arc::new(|address| Box::pin(TcpStream::connect(address))))
        }
    }

    #[test]
    fn headers_of_one_hop_go_no_further() {
        let mut headers = HeaderMap::new();
        let given = [
            ("connection", "keep-alive, X-Own"),
            ("keep-alive", "timeout=5"),
            ("x-own", "1"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ];
        for (name, value) in given {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert_eq!(upgrade_of(&headers), None, "connection does not name it");
        remove_hop_by_hop(&mut headers, None);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["accept"]);
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        let upgrade = upgrade_of(&headers);
        assert!(upgrade.is_some());
        remove_hop_by_hop(&mut headers, upgrade);
        assert_eq!(headers[header::UPGRADE], "websocket");
    }

    #[test]
    fn backends_are_told_for_whom_a_request_is() {
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("192.0.2.1"));
        headers.insert("x-forwarded-proto", HeaderValue::from_static("gopher"));
        let arrival = Arrival { client: [127, 0, 0, 1].into(), port: 8443, tls: true };
        forwarded(&mut headers, "a.com", arrival).unwrap();
        let cases = [
            ("x-forwarded-for", "192.0.2.1, 127.0.0.1"),
            ("x-forwarded-host", "a.com"),
            ("x-forwarded-port", "8443"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "127.0.0.1"),
        ];
        for (name, want) in cases {
            assert_eq!(headers[name], want, "{name}");
        }
    }
}
