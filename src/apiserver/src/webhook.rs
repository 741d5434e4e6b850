//! Calls to other servers that a `clientConfig` names: by URL, or by a Service of this cluster.
//!
//! Source: `k8s.io/apiserver/pkg/util/webhook`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::field::{Error as FieldError, ErrorList, Path};
use apimachinery::{decode, names};
use base64::Engine as _;
use futures::future::BoxFuture;
use http::{Method, Request, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::Body;
use crate::pki::tls::Bundle;
use crate::registry::Registry;
use crate::zero::Zero;

/// Answers of webhooks may not be longer.
const MAX_ANSWER_BYTES: usize = 8 << 20;

/// Where a connection is to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// An address in the pods' network.
    Pods(SocketAddr),
    /// A name or address, and a port, as this host sees them.
    Host(String, u16),
}

/// Connects to a [`Place`].
pub type Dial = Arc<dyn Fn(Place) -> BoxFuture<'static, io::Result<TcpStream>> + Send + Sync>;

/// A dialer for which the pods' network is the host's: hosts must be addresses, or `localhost`.
pub fn direct() -> Dial {
    Arc::new(|place| {
        Box::pin(async move {
            match place {
                Place::Pods(address) => TcpStream::connect(address).await,
                Place::Host(host, port) if host == "localhost" => {
                    TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).await
                }
                Place::Host(host, port) => {
                    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
                        TcpStream::connect((address, port)).await
                    } else {
                        let text = format!("lookup {host}: no such host");
                        Err(io::Error::new(io::ErrorKind::NotFound, text))
                    }
                }
            }
        })
    })
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// The Service is not there, or nothing answers for it.
    #[error("{0}")]
    Service(String),
    /// There is no connection.
    #[error("{call}: dial tcp: {}", words(.source))]
    Connect {
        /// Method and URL.
        call: String,
        /// Why.
        source: io::Error,
    },
    /// The other side does not prove who it is.
    #[error("{call}: tls: failed to verify certificate: {}", words(.source))]
    Tls {
        /// Method and URL.
        call: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{call}: {source}")]
    Http {
        /// Method and URL.
        call: String,
        /// Why.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("{0}: context deadline exceeded")]
    Timeout(String),
    /// The answer is not the one that was asked for.
    #[error("{0}")]
    Answer(String),
}

/// The usual failures of a connection in Go's words.
fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".into(),
        _ if error.to_string().contains("UnknownIssuer") => {
            "x509: certificate signed by unknown authority".into()
        }
        _ => error.to_string(),
    }
}

/// Calls webhooks.
pub struct Webhooks {
    dial: Dial,
}

impl std::fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Webhooks")
    }
}

/// A resolved `clientConfig`.
pub struct Target {
    /// Where to connect.
    pub place: Place,
    /// The name the certificate must have.
    pub name: String,
    /// `host:port` of the URL.
    pub host: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// The place that a URL names.
    pub fn of_url(text: &str) -> Result<Self, Error> {
        let url = url::Url::parse(text)
            .map_err(|error| Error::Config(format!("Unparsable URL: {error}")))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let port = url.port_or_known_default().unwrap_or(443);
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Ok(Self {
            place: Place::Host(host.clone(), port),
            name: host.trim_matches(['[', ']']).to_owned(),
            host: format!("{host}:{port}"),
            path,
        })
    }

    /// The whole URL.
    pub fn url(&self) -> String {
        format!("https://{}{}", self.host, self.path)
    }
}

impl Webhooks {
    /// Connects through `dial`.
    pub fn new(dial: Dial) -> Self {
        Self { dial }
    }

    /// Posts `body` to the webhook and reads its answer.
    pub async fn call(
        &self,
        registry: &Registry,
        client: &Value,
        body: &Value,
        timeout: Duration,
    ) -> Result<Value, Error> {
        let mut target = resolve(registry, client)?;
        if timeout.as_secs() > 0 {
            let separator = if target.path.contains('?') { '&' } else { '?' };
            target.path.push_str(&format!("{separator}timeout={}s", timeout.as_secs()));
        }
        let verifier = bundle(&client["caBundle"])?;
        let bytes = serde_json::to_vec(body).unwrap_or_default();
        let request = Request::builder()
            .method(Method::POST)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission");
        let tls = client_config(verifier)?;
        let (code, bytes) = self.send(&target, tls, request, Body::from(bytes), timeout).await?;
        if code.as_u16() >= 300 {
            let text = String::from_utf8_lossy(&bytes);
            return Err(Error::Answer(match text.trim() {
                _ if code == 404 => "the server could not find the requested resource".into(),
                "" => format!(
                    "the server responded with the status code {} but did not return more information",
                    code.as_u16()
                ),
                text => format!(
                    "an error on the server ({text:?}) has prevented the request from succeeding"
                ),
            }));
        }
        decode::json_to_value(&bytes).map_err(|error| {
            Error::Answer(format!("couldn't get version/kind; json parse error: {error}"))
        })
    }

    /// Sends one request to `target` and reads the answer.
    pub async fn send(
        &self,
        target: &Target,
        tls: ClientConfig,
        request: http::request::Builder,
        body: Body,
        timeout: Duration,
    ) -> Result<(http::StatusCode, bytes::Bytes), Error> {
        let request = request
            .uri(target.path.as_str())
            .header(header::HOST, &target.host)
            .body(body)
            .map_err(|error| Error::Config(error.to_string()))?;
        let method = match request.method().as_str() {
            "POST" => "Post",
            _ => "Get",
        };
        let call = format!("{method} {:?}", target.url());
        let work = async {
            let stream = self.connect(target, tls, &call).await?;
            send(stream, request, &call).await
        };
        tokio::time::timeout(timeout, work)
            .await
            .unwrap_or_else(|_| Err(Error::Timeout(call.clone())))
    }

    /// Connects and checks who is there; `call` names what for.
    pub async fn connect(
        &self,
        target: &Target,
        tls: ClientConfig,
        call: &str,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, Error> {
        let stream = self
            .dial(target.place.clone())
            .await
            .map_err(|source| Error::Connect { call: call.to_owned(), source })?;
        let name = ServerName::try_from(target.name.clone())
            .map_err(|error| Error::Config(error.to_string()))?;
        TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .map_err(|source| Error::Tls { call: call.to_owned(), source })
    }

    /// A connection to `place`.
    pub async fn dial(&self, place: Place) -> io::Result<TcpStream> {
        let stream = (self.dial)(place).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Sends one request over a fresh connection.
async fn send<S>(
    stream: S,
    request: Request<Body>,
    call: &str,
) -> Result<(http::StatusCode, bytes::Bytes), Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = |source| Error::Http { call: call.to_owned(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let _ended = tokio_util::task::AbortOnDropHandle::new(driver);
    let response = sender.send_request(request).await.map_err(failed)?;
    let code = response.status();
    match Body::wrap(response.into_body()).read(MAX_ANSWER_BYTES).await {
        Ok(Some(bytes)) => Ok((code, bytes)),
        Ok(None) => Err(Error::Answer("the answer is too long".into())),
        Err(error) => Err(Error::Answer(format!("{call}: {error}"))),
    }
}

/// Trusts the certificates of `caBundle`; without one nobody is trusted, as the host's own authorities
/// vouch for no Service.
pub fn bundle(ca_bundle: &Value) -> Result<Arc<Bundle>, Error> {
    let pem = base64::engine::general_purpose::STANDARD
        .decode(ca_bundle.text())
        .map_err(|error| Error::Config(format!("caBundle is not base64: {error}")))?;
    Bundle::new(&pem).map(Arc::new).map_err(Error::Config)
}

/// TLS without a certificate of our own, towards whom `verifier` accepts.
pub fn client_config(verifier: Arc<Bundle>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Config(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

fn resolve(registry: &Registry, client: &Value) -> Result<Target, Error> {
    let service = &client["service"];
    if service.is_object() {
        let (namespace, name) = (service["namespace"].text(), service["name"].text());
        let port = service.get("port").and_then(Value::as_u64).unwrap_or(443);
        let address = service_address(registry, namespace, name, port)?;
        let host = format!("{name}.{namespace}.svc");
        let path = match service["path"].text() {
            "" => "/".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        return Ok(Target {
            place: Place::Pods(address),
            host: format!("{host}:{port}"),
            name: host,
            path,
        });
    }
    Target::of_url(client["url"].text())
}

/// An address where a Service's port is answered: one of its ready endpoints.
pub fn service_address(
    registry: &Registry,
    namespace: &str,
    name: &str,
    port: u64,
) -> Result<SocketAddr, Error> {
    let Some(service) = registry.get("", "services", namespace, name) else {
        return Err(Error::Service(format!("service {name:?} not found")));
    };
    let service = service.to_value();
    let Some(found) =
        service["spec"]["ports"].items().iter().find(|p| p["port"].as_u64() == Some(port))
    else {
        return Err(Error::Service(format!("no service port {port} found for service {name:?}")));
    };
    let slices = registry.list("discovery.k8s.io", "endpointslices", Some(namespace));
    for slice in slices
        .iter()
        .filter(|s| s.labels.get("kubernetes.io/service-name").is_some_and(|n| n == name))
    {
        let slice = slice.to_value();
        let Some(target) = slice["ports"]
            .items()
            .iter()
            .find(|p| p["name"].text() == found["name"].text())
            .and_then(|p| p["port"].as_u64())
        else {
            continue;
        };
        let ready = slice["endpoints"]
            .items()
            .iter()
            .find(|e| e["conditions"]["ready"].as_bool() != Some(false));
        let address = ready.and_then(|e| e["addresses"].texts().next()?.parse::<IpAddr>().ok());
        if let (Some(address), Ok(port)) = (address, u16::try_from(target)) {
            return Ok(SocketAddr::new(address, port));
        }
    }
    Err(Error::Service(format!("no endpoints available for service {name:?}")))
}

/// The rules for a `clientConfig` (`ValidateWebhookURL`, `ValidateWebhookService`).
pub fn validate_client(client: &Value, path: &Path, errors: &mut ErrorList) {
    let (url, service) = (client["url"].text(), &client["service"]);
    if client.get("url").is_some_and(Zero::is_set) == service.is_object() {
        let detail = "exactly one of url or service is required";
        errors.push(FieldError::required(path, detail));
        return;
    }
    if service.is_object() {
        validate_service(service, &path.child("service"), errors);
        return;
    }
    let path = path.child("url");
    let form = "; desired format: https://host[/path]";
    let mut say = |value: &str, detail: String| {
        errors.push(FieldError::invalid(&path, value, detail));
    };
    match url::Url::parse(url) {
        Err(error) => {
            let detail = format!("url must be a valid URL: {error}");
            errors.push(FieldError::required(&path, &format!("{detail}{form}")));
        }
        Ok(parsed) => {
            if parsed.scheme() != "https" {
                say(parsed.scheme(), format!("'https' is the only allowed URL scheme{form}"));
            }
            if parsed.host_str().unwrap_or_default().is_empty() {
                say("", format!("host must be specified{form}"));
            }
            if !parsed.username().is_empty() || parsed.password().is_some() {
                say(parsed.username(), "user information is not permitted in the URL".into());
            }
            if parsed.fragment().is_some_and(|f| !f.is_empty()) {
                say(
                    parsed.fragment().unwrap_or_default(),
                    "fragments are not permitted in the URL".into(),
                );
            }
            if parsed.query().is_some_and(|q| !q.is_empty()) {
                say(
                    parsed.query().unwrap_or_default(),
                    "query parameters are not permitted in the URL".into(),
                );
            }
        }
    }
}

fn validate_service(service: &Value, path: &Path, errors: &mut ErrorList) {
    for key in ["name", "namespace"] {
        if service[key].text().is_empty() {
            errors.push(FieldError::required(&path.child(key), ""));
        }
    }
    let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
    if !names::port_number(port).is_empty() {
        let detail = format!("port is not valid: {}", names::port_number(port).join(", "));
        errors.push(FieldError::invalid(&path.child("port"), port, detail));
    }
    let (text, path) = (service["path"].text(), path.child("path"));
    let mut say = |detail: String| errors.push(FieldError::invalid(&path, text, detail));
    match text {
        "" | "/" => return,
        "//" => return say("segment[0] may not be empty".into()),
        _ if !text.starts_with('/') => say("must start with a '/'".into()),
        _ => {}
    }
    let mut rest = text.chars();
    rest.next();
    let rest = rest.as_str();
    for (index, step) in rest.strip_suffix('/').unwrap_or(rest).split('/').enumerate() {
        if step.is_empty() {
            say(format!("segment[{index}] may not be empty"));
            continue;
        }
        for mistake in names::dns_subdomain(step) {
            say(format!("segment[{index}]: {mistake}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn client_configs_are_checked() {
        let cases = [
            (json!({}), "c: Required value: exactly one of url or service is required"),
            (
                json!({"url": "http://a/b"}),
                r#"c.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
            ),
            (json!({"service": {"name": "n"}}), "c.service.namespace: Required value"),
            (
                json!({"service": {"name": "n", "namespace": "x", "path": "ab"}}),
                r#"c.service.path: Invalid value: "ab": must start with a '/'"#,
            ),
        ];
        for (client, want) in cases {
            let mut errors = ErrorList::new();
            validate_client(&client, &Path::new("c"), &mut errors);
            assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
        }
    }
}
