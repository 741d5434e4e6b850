//! HTTP to a pod, for probes and hooks. Certificates are not verified, as the probes'
//! documentation says.
//!
//! Source of behaviour: `pkg/probe/http`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::context::Context;

/// The most of an answer that is read.
const MAX_BODY_BYTES: usize = 10 << 10;
/// The first, and nine redirects.
const MAX_REQUESTS: usize = 10;

/// Why there was no answer; worded as Go's client words it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host is no address.
    #[error("Get {url:?}: dial tcp: lookup {host}: no such host")]
    Host {
        /// The URL.
        url: String,
        /// The host.
        host: String,
    },
    /// No connection.
    #[error("Get {url:?}: dial tcp {address}: connect: {reason}")]
    Connect {
        /// The URL.
        url: String,
        /// The address.
        address: SocketAddr,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error(
        "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    )]
    Timeout {
        /// The URL.
        url: String,
    },
    /// The answer was not HTTP, or TLS failed.
    #[error("Get {url:?}: {reason}")]
    Protocol {
        /// The URL.
        url: String,
        /// Why.
        reason: String,
    },
}

impl Error {
    /// Whether TLS was asked for and the answer was something else, as a server of plain HTTP gives.
    pub fn is_plain_answer(&self) -> bool {
        matches!(self, Self::Protocol { reason, .. } if reason == NO_TLS)
    }
}

/// What Go's client says of a server that does not speak TLS.
const NO_TLS: &str = "http: server gave HTTP response to HTTPS client";

/// The words of an operating system error as Go prints them; it may be the cause of another error.
pub fn go_error(error: &std::io::Error) -> String {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut number = None;
    while let Some(at) = cause {
        let io = at.downcast_ref::<std::io::Error>();
        number = number.or_else(|| io.and_then(std::io::Error::raw_os_error));
        // An error made of another shows that one's causes, but not itself.
        let inner =
            io.and_then(std::io::Error::get_ref).map(|e| e as &(dyn std::error::Error + 'static));
        cause = inner.or_else(|| at.source());
    }
    match number.map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::CONNREFUSED) => "connection refused".into(),
        Some(rustix::io::Errno::HOSTUNREACH) => "no route to host".into(),
        Some(rustix::io::Errno::NETUNREACH) => "network is unreachable".into(),
        Some(rustix::io::Errno::CONNRESET) => "connection reset by peer".into(),
        Some(rustix::io::Errno::TIMEDOUT) => "connection timed out".into(),
        _ => error.to_string(),
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// The beginning of its body.
    pub body: String,
    /// Where it sends the client.
    location: Option<String>,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    secure: bool,
    host: String,
    port: u16,
    path: String,
}

impl Place {
    fn authority(&self) -> String {
        let host = &self.host;
        if host.contains(':') {
            format!("[{host}]:{}", self.port)
        } else {
            format!("{host}:{}", self.port)
        }
    }

    fn url(&self) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Where a redirect leads, if that is on the same host.
    fn redirected(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let full = match location {
            _ if location.starts_with("//") => {
                format!("{}:{location}", if self.secure { "https" } else { "http" })
            }
            _ if location.starts_with('/') || location.contains("://") => location.to_owned(),
            _ => {
                let path = self.path.split('?').next().unwrap_or_default();
                format!("{}{location}", &path[..path.rfind('/').map_or(0, |at| at + 1)])
            }
        };
        let uri: http::Uri = full.parse().ok()?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let Some(host) = uri.host() else { return Some(Self { path, ..self.clone() }) };
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let host = host.trim_matches(['[', ']']).to_owned();
        (host == self.host).then_some(Self { secure, host, port, path })
    }
}

/// GETs what `action` says. Redirects are followed as long as they stay on the host.
pub async fn get(
    context: &Context,
    action: &HTTPGetAction,
    pod_ip: &str,
    port: u16,
    user_agent: &str,
    timeout: Duration,
) -> Result<Answer, Error> {
    let secure = action.scheme.as_deref() == Some("HTTPS");
    let host = action.host.clone().filter(|h| !h.is_empty()).unwrap_or_else(|| pod_ip.to_owned());
    let path = action.path.clone().unwrap_or_default();
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let mut place = Place { secure, host, port, path };
    let url = place.url();
    let exchanges = async {
        for _ in 0..MAX_REQUESTS {
            let answer = exchange(context, action, &place, user_agent).await?;
            let followed = matches!(answer.status, 301 | 302 | 303 | 307 | 308);
            let location = answer.location.as_deref().filter(|_| followed);
            match location.and_then(|location| place.redirected(location)) {
                Some(next) => place = next,
                None => return Ok(answer),
            }
        }
        Err(Error::Protocol { url: place.url(), reason: "stopped after 10 redirects".into() })
    };
    match tokio::time::timeout(timeout, exchanges).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { url }),
    }
}

async fn exchange(
    context: &Context,
    action: &HTTPGetAction,
    place: &Place,
    user_agent: &str,
) -> Result<Answer, Error> {
    let url = place.url();
    let Ok(ip) = place.host.parse() else {
        return Err(Error::Host { url, host: place.host.clone() });
    };
    let address = SocketAddr::new(ip, place.port);
    let fail = |reason: String| Error::Protocol { url: url.clone(), reason };
    let request = request(action, &place.path, &place.authority(), user_agent)
        .map_err(|error| fail(error.to_string()))?;
    let stream = context.dialer.connect(address).await.map_err(|error| Error::Connect {
        url: url.clone(),
        address,
        reason: go_error(&error),
    })?;
    if !place.secure {
        return send(stream, request).await.map_err(|error| fail(error.to_string()));
    }
    let connector = tokio_rustls::TlsConnector::from(Arc::new(unverified()));
    let name = ServerName::IpAddress(ip.into());
    let stream = connector.connect(name, stream).await.map_err(|error| fail(tls_error(&error)))?;
    send(stream, request).await.map_err(|error| fail(error.to_string()))
}

fn tls_error(error: &std::io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => {
            NO_TLS.into()
        }
        _ => error.to_string(),
    }
}

fn request(
    action: &HTTPGetAction,
    path: &str,
    authority: &str,
    user_agent: &str,
) -> Result<http::Request<Empty<Bytes>>, http::Error> {
    let mut request = http::Request::builder().uri(path);
    let given = action.http_headers.as_deref().unwrap_or_default();
    for header in given {
        request = request.header(&header.name, &header.value);
    }
    for (name, value) in [("Host", authority), ("User-Agent", user_agent), ("Accept", "*/*")] {
        if !given.iter().any(|h| h.name.eq_ignore_ascii_case(name)) {
            request = request.header(name, value);
        }
    }
    request.header("Connection", "close").body(Empty::new())
}

async fn send<S>(stream: S, request: http::Request<Empty<Bytes>>) -> Result<Answer, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await?;
    let status = response.status().as_u16();
    let location = response.headers().get(http::header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut body = response.into_body();
    let mut text = Vec::new();
    while text.len() < MAX_BODY_BYTES
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame?.into_data() {
            text.extend_from_slice(&data);
        }
    }
    text.truncate(MAX_BODY_BYTES);
    Ok(Answer { status, body: String::from_utf8_lossy(&text).into_owned(), location })
}

fn unverified() -> rustls::ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting(provider)))
        .with_no_client_auth()
}

/// Believes every certificate: a probe asks whether the server answers, not who it is.
#[derive(Debug)]
struct Trusting(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Wrapped(#[source] std::io::Error);

    #[test]
    fn errors_are_gos_words_however_wrapped() {
        let refused =
            || std::io::Error::from_raw_os_error(rustix::io::Errno::CONNREFUSED.raw_os_error());
        assert_eq!(go_error(&refused()), "connection refused");
        assert_eq!(go_error(&std::io::Error::other(Wrapped(refused()))), "connection refused");
        assert_eq!(go_error(&std::io::Error::other("odd")), "odd");
    }

    #[tokio::test]
    async fn a_server_without_tls_is_told_from_a_bad_one() {
        for (answer, plain) in [("HTTP/1.1 400 Bad Request\r\n\r\n", true), ("", false)] {
            let (ours, mut theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                use tokio::io::AsyncWriteExt as _;
                let _ = theirs.write_all(answer.as_bytes()).await;
            });
            let name = ServerName::try_from("10.42.0.2").unwrap();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(unverified()));
            let reason = tls_error(&connector.connect(name, ours).await.unwrap_err());
            let error = Error::Protocol { url: String::new(), reason };
            assert_eq!(error.is_plain_answer(), plain, "{error}");
        }
    }

    #[test]
    fn redirects_are_followed_on_the_same_host() {
        let place =
            Place { secure: false, host: "10.42.0.2".into(), port: 80, path: "/a/b?c".into() };
        let to = |location: &str| place.redirected(location).map(|place| place.url());
        for (location, want) in [
            ("/healthz", Some("http://10.42.0.2:80/healthz")),
            ("d?e=/f#g", Some("http://10.42.0.2:80/a/d?e=/f")),
            ("https://10.42.0.2/x", Some("https://10.42.0.2:443/x")),
            ("//10.42.0.2:81/x", Some("http://10.42.0.2:81/x")),
            ("http://0.0.0.0/", None),
        ] {
            assert_eq!(to(location).as_deref(), want, "{location}");
        }
    }
}
