//! Requests on their way to a backend, and the answers back.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use futures::future::BoxFuture;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri, Version, uri};
use http_body_util::{Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use netns::Control;
use tokio::net::TcpStream;
use tower::Service;

use super::routes::Routes;

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

/// Connects to an endpoint.
type Dial = dyn Fn(SocketAddr) -> BoxFuture<'static, std::io::Result<TcpStream>> + Send + Sync;

/// Reaches a backend, whose address is the authority of the URI.
#[derive(Clone)]
struct Connector(Arc<Dial>);

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = std::io::Error;
    type Future = BoxFuture<'static, std::io::Result<Self::Response>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let dial = self.0.clone();
        Box::pin(async move {
            let authority = to.authority().map(uri::Authority::as_str).unwrap_or_default();
            let address: SocketAddr =
                authority.parse().map_err(|_| std::io::ErrorKind::AddrNotAvailable)?;
            let stream = dial(address).await?;
            let _ = stream.set_nodelay(true);
            Ok(TokioIo::new(stream))
        })
    }
}

/// Sends requests where the routes say.
pub(super) struct Forwarder {
    routes: RwLock<Arc<Routes>>,
    http1: Client<Connector, Incoming>,
    http2: Client<Connector, Incoming>,
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
        let Some(endpoint) = backend.endpoint() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the backend has no endpoints\n");
        };
        let upgrade = upgrade_of(request.headers()).filter(|_| !backend.http2);
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        let Some(outgoing) = prepare(request, &host, endpoint, upgrade, arrival, backend.http2)
        else {
            return plain(StatusCode::BAD_REQUEST, "the request's target cannot be understood\n");
        };
        let sender = if backend.http2 { &self.http2 } else { &self.http1 };
        let mut response = match sender.request(outgoing).await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(%endpoint, %error, "a backend did not answer");
                return plain(StatusCode::BAD_GATEWAY, "the backend did not answer\n");
            }
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

/// The request as the backend gets it.
fn prepare(
    request: Request<Incoming>,
    host: &str,
    endpoint: SocketAddr,
    upgrade: Option<HeaderValue>,
    arrival: Arrival,
    http2: bool,
) -> Option<Request<Incoming>> {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| uri::PathAndQuery::from_static("/"));
    parts.uri = Uri::builder()
        .scheme("http")
        .authority(endpoint.to_string())
        .path_and_query(path)
        .build()
        .ok()?;
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
