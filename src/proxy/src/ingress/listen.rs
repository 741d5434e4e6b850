//! The ports of the host at which HTTP and HTTPS come in.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::certificates::Certificates;
use super::forward::{Arrival, Forwarder};

/// The ports of HTTP and HTTPS: the usual ones, those that an ordinary user may have, or any.
const HTTP: [u16; 3] = [80, 8080, 0];
const HTTPS: [u16; 3] = [443, 8443, 0];
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long requests under way may take when the cluster stops.
const DRAIN: Duration = Duration::from_secs(5);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener.
#[derive(Debug)]
pub(super) struct Door {
    pub listener: TcpListener,
    pub tls: bool,
    pub address: SocketAddr,
    /// What was wanted rather, and why it could not be had.
    pub instead_of: Option<(u16, io::Error)>,
}

/// Listens on every address, for HTTP and HTTPS.
pub(super) async fn open(addresses: &[IpAddr]) -> Vec<Door> {
    let mut doors = Vec::new();
    for address in addresses {
        for (ports, tls) in [(HTTP, false), (HTTPS, true)] {
            let mut instead_of = None;
            for port in ports {
                match TcpListener::bind((*address, port)).await {
                    Ok(listener) => {
                        let address =
                            listener.local_addr().unwrap_or(SocketAddr::new(*address, port));
                        doors.push(Door { listener, tls, address, instead_of });
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%address, port, %error, "no port for ingresses");
                        instead_of = instead_of.or(Some((port, error)));
                    }
                }
            }
        }
    }
    doors
}

/// Serves what comes in, each connection as a task of the tracker that is returned. At `shutdown`
/// connections are given some time to end their requests.
pub(super) fn serve(
    doors: Vec<Door>,
    forwarder: &Arc<Forwarder>,
    certificates: &Arc<Certificates>,
    shutdown: &CancellationToken,
) -> TaskTracker {
    let tasks = TaskTracker::new();
    let acceptor = acceptor(certificates);
    for door in doors {
        let visit = Visit {
            port: door.address.port(),
            forwarder: forwarder.clone(),
            acceptor: door.tls.then(|| acceptor.clone()),
            shutdown: shutdown.clone(),
        };
        let (visits, stop) = (tasks.clone(), shutdown.clone());
        tasks.spawn(async move {
            stop.run_until_cancelled(accept(door.listener, visit, visits)).await;
        });
    }
    tasks
}

fn acceptor(certificates: &Arc<Certificates>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider supports the default versions")
        .with_no_client_auth()
        .with_cert_resolver(certificates.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// What every connection of a door is served with.
#[derive(Clone)]
struct Visit {
    port: u16,
    forwarder: Arc<Forwarder>,
    acceptor: Option<TlsAcceptor>,
    shutdown: CancellationToken,
}

async fn accept(listener: TcpListener, visit: Visit, tasks: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                tasks.spawn(visit.clone().admit(stream, peer));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Visit {
    async fn admit(self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let tls = self.acceptor.clone();
        let arrival = Arrival { client: peer.ip(), port: self.port, tls: tls.is_some() };
        match tls {
            None => self.serve(stream, arrival).await,
            Some(acceptor) => match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.serve(stream, arrival).await,
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                Err(_) => tracing::debug!(%peer, "TLS takes too long"),
            },
        }
    }

    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        at: Arrival,
    ) {
        let forwarder = self.forwarder;
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let forwarder = forwarder.clone();
            async move { Ok::<_, std::convert::Infallible>(forwarder.handle(request, at).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
        builder.http2().timer(TokioTimer::new());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(DRAIN, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            tracing::debug!(client = %at.client, %error, "a connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::routes::Routes;
    use crate::table::Place;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server on this machine that answers each connection's first request with `answer`, then
    /// sends back what it gets.
    async fn backend(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let asked = head(&mut stream).await;
                let answer = answer.replace("{asked}", &asked.len().to_string());
                stream.write_all(answer.as_bytes()).await.unwrap();
                if answer.starts_with("HTTP/1.1 200") {
                    stream.write_all(asked.as_bytes()).await.unwrap();
                }
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }
        });
        port
    }

    async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
        let mut text = String::new();
        while !text.ends_with("\r\n\r\n") {
            text.push(char::from(stream.read_u8().await.unwrap()));
        }
        text
    }

    fn routes(port: u16) -> Routes {
        routes_to(port, &["127.0.0.1"])
    }

    fn routes_to(port: u16, addresses: &[&str]) -> Routes {
        let endpoint = |address| json!({"addresses": [address]});
        let endpoints: Vec<_> = addresses.iter().map(endpoint).collect();
        let service = json!({"metadata": {"name": "a", "namespace": "d"},
            "spec": {"ports": [{"port": 80}]}});
        let slice = json!({"metadata": {"name": "a", "namespace": "d",
                "labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4",
            "ports": [{"port": port}], "endpoints": endpoints});
        let ingress = json!({"metadata": {"name": "i", "namespace": "d"}, "spec": {"rules": [
            {"host": "a.com", "http": {"paths": [{"pathType": "Prefix", "path": "/x",
                "backend": {"service": {"name": "a", "port": {"number": 80}}}}]}}]}});
        let parsed = |value| Arc::new(serde_json::from_value(value).unwrap());
        let slices = [Arc::new(serde_json::from_value(slice).unwrap())];
        let ingresses = [Arc::new(serde_json::from_value(ingress).unwrap())];
        let place = Place { node: "here".into(), addresses: Vec::new(), zone: None };
        let (routes, problems) = Routes::new(&ingresses, &[parsed(service)], &slices, &place);
        assert!(problems.is_empty());
        routes
    }

    struct Served {
        http: SocketAddr,
        https: SocketAddr,
        forwarder: Arc<Forwarder>,
        shutdown: CancellationToken,
        tasks: TaskTracker,
    }

    async fn served() -> Served {
        let forwarder = Arc::new(Forwarder::direct());
        let mut doors = Vec::new();
        for tls in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            doors.push(Door { listener, tls, address, instead_of: None });
        }
        let (http, https) = (doors[0].address, doors[1].address);
        let shutdown = CancellationToken::new();
        let tasks = serve(doors, &forwarder, &Arc::new(Certificates::new()), &shutdown);
        Served { http, https, forwarder, shutdown, tasks }
    }

    async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), head_: &str) -> String {
        stream.write_all(head_.as_bytes()).await.unwrap();
        head(stream).await
    }

    #[tokio::test]
    async fn requests_reach_their_backend_and_others_are_told() {
        let served = served().await;
        let port = backend("HTTP/1.1 200 OK\r\nContent-Length: {asked}\r\n\r\n").await;
        let mut stream = TcpStream::connect(served.http).await.unwrap();
        let request = "GET /x/y?z HTTP/1.1\r\nHost: a.com\r\n\r\n";
        assert!(ask(&mut stream, request).await.starts_with("HTTP/1.1 404 "), "no routes yet");
        // Over a connection that is there already.
        served.forwarder.set(routes(port));
        let mut stream = TcpStream::connect(served.http).await.unwrap();
        assert!(ask(&mut stream, request).await.starts_with("HTTP/1.1 200 "));
        let seen = head(&mut stream).await.to_lowercase();
        assert!(seen.starts_with("get /x/y?z http/1.1\r\n"), "{seen}");
        assert!(seen.contains("\r\nhost: a.com\r\n"), "{seen}");
        assert!(seen.contains("\r\nx-forwarded-for: 127.0.0.1\r\n"), "{seen}");
        served.forwarder.set(routes(1));
        let answer = ask(&mut stream, request).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        served.shutdown.cancel();
        served.tasks.close();
        drop(stream);
        tokio::time::timeout(PATIENCE, served.tasks.wait()).await.unwrap();
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_is_passed_over() {
        let served = served().await;
        let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {asked}\r\n\r\n";
        let port = backend(answer).await;
        // Nobody listens at the other two addresses of this machine.
        served.forwarder.set(routes_to(port, &["127.0.0.1", "127.0.0.2", "127.0.0.3"]));
        let mut stream = TcpStream::connect(served.http).await.unwrap();
        for _ in 0..6 {
            let request = "POST /x HTTP/1.1\r\nHost: a.com\r\nContent-Length: 4\r\n\r\nbody";
            let answer = ask(&mut stream, request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            let seen = head(&mut stream).await.to_lowercase();
            assert!(seen.contains("\r\ncontent-length: 4\r\n"), "{seen}");
        }
    }

    #[tokio::test]
    async fn connections_change_their_protocol() {
        let served = served().await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                      Upgrade: websocket\r\n\r\n";
        served.forwarder.set(routes(backend(switch).await));
        let mut stream = TcpStream::connect(served.http).await.unwrap();
        let request = "GET /x HTTP/1.1\r\nHost: a.com\r\nConnection: keep-alive, Upgrade\r\n\
                       Upgrade: websocket\r\n\r\n";
        assert!(ask(&mut stream, request).await.starts_with("HTTP/1.1 101 "));
        stream.write_all(b"frame").await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"frame");
    }

    #[derive(Debug)]
    struct Anyone;

    impl rustls::client::danger::ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &[rustls_pki_types::CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &rustls_pki_types::CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let algorithms =
                rustls::crypto::ring::default_provider().signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    }

    #[tokio::test]
    async fn https_speaks_http2() {
        let served = served().await;
        served
            .forwarder
            .set(routes(backend("HTTP/1.1 200 OK\r\nContent-Length: {asked}\r\n\r\n").await));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(served.https).await.unwrap();
        let name = "a.com".try_into().unwrap();
        let stream =
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let io = TokioIo::new(stream);
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), io);
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        let request = hyper::Request::get("https://a.com/x")
            .body(http_body_util::Empty::<hyper::body::Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
        let seen = String::from_utf8_lossy(&body).to_lowercase();
        assert!(seen.contains("\r\nhost: a.com\r\n"), "{seen}");
        assert!(seen.contains("\r\nx-forwarded-proto: https\r\n"), "{seen}");
    }
}
