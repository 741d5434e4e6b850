//! `pods/proxy` and `services/proxy`: HTTP to what runs in the cluster, through this server.
//!
//! Source: `ProxyREST` of `pkg/registry/core/{pod,service}` and `UpgradeAwareHandler` of apimachinery.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use http::{HeaderValue, Method, StatusCode, header};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::connect;
use super::relay;
use super::rewrite::Places;
use super::sniff;
use crate::body::{Body, Response};
use crate::registry::Registry;
use crate::rest::Call;
use crate::webhook::{Place, service_address};
use crate::zero::Zero;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// `[scheme:]name[:port]`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target<'a> {
    secure: bool,
    name: &'a str,
    port: &'a str,
}

impl<'a> Target<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (secure, name, port) = match parts.as_slice() {
            [name] => (false, *name, ""),
            [name, port] => (false, *name, *port),
            ["http" | "", name, port] => (false, *name, *port),
            ["https", name, port] => (true, *name, *port),
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { secure, name, port })
    }
}

fn pod_address(
    registry: &Registry,
    namespace: &str,
    target: &Target<'_>,
) -> Result<SocketAddr, Status> {
    let Some(pod) = registry.get("", "pods", namespace, target.name) else {
        return Err(Status::not_found("", "pods", target.name));
    };
    let pod = pod.to_value();
    let port = match target.port {
        "" => pod["spec"]["containers"]
            .items()
            .iter()
            .flat_map(|container| container["ports"].items())
            .find_map(|port| port["containerPort"].as_u64()),
        text => text.parse().ok(),
    };
    let Ok(port) = u16::try_from(port.unwrap_or(80)) else {
        return Err(Status::bad_request(format!("invalid port {:?}", target.port)));
    };
    match pod["status"]["podIP"].text().parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, port)),
        Err(_) => Err(Status::bad_request("address not allowed")),
    }
}

fn endpoint_address(
    registry: &Registry,
    namespace: &str,
    target: &Target<'_>,
) -> Result<SocketAddr, Status> {
    let Some(service) = registry.get("", "services", namespace, target.name) else {
        return Err(Status::not_found("", "services", target.name));
    };
    let service = service.to_value();
    let ports = service["spec"]["ports"].items();
    let found = match target.port {
        "" if ports.len() == 1 => ports.first(),
        "" => ports.iter().find(|port| port["name"].text().is_empty()),
        text => ports.iter().find(|port| {
            port["name"] == text || port["port"].as_u64().is_some_and(|n| n.to_string() == text)
        }),
    };
    let Some(port) = found.and_then(|port| port["port"].as_u64()) else {
        return Err(Status::unavailable(format!(
            "no service port {:?} found for service {:?}",
            target.port, target.name
        )));
    };
    service_address(registry, namespace, target.name, port)
        .map_err(|error| Status::unavailable(error.to_string()))
}

/// Passes the request on.
pub async fn serve(call: &mut Call, body: Body) -> Result<Response, Status> {
    let (registry, ctx) = (call.server.registry.clone(), call.ctx.clone());
    let Some(target) = Target::parse(&ctx.name) else {
        return Err(Status::bad_request(format!("invalid {} request {:?}", ctx.plural, ctx.name)));
    };
    registry.sync().await?;
    let address = if ctx.plural == "pods" {
        pod_address(&registry, &ctx.namespace, &target)?
    } else {
        endpoint_address(&registry, &ctx.namespace, &target)?
    };
    let path = call.parts.uri.path().to_owned();
    let marker = format!("/{}/{}/proxy", ctx.plural, ctx.name);
    let rest = path.split_once(marker.as_str()).map_or("", |(_, rest)| rest);
    connect::admit(call, rest).await?;
    let prefix = path.strip_suffix(rest).unwrap_or(&path).to_owned();
    let query = call.parts.uri.query().map_or_else(String::new, |query| format!("?{query}"));
    if rest.is_empty() && matches!(call.parts.method, Method::GET | Method::HEAD) {
        return Ok(redirect(&format!("{path}/{query}")));
    }
    let path_and_query =
        if rest.is_empty() { format!("/{query}") } else { format!("{rest}{query}") };
    let (empty, ()) = http::Request::new(()).into_parts();
    let mut parts = std::mem::replace(&mut call.parts, empty);
    if let Ok(value) = HeaderValue::from_str(&path) {
        parts.headers.insert("x-forwarded-uri", value);
    }
    let failed = |error: &dyn std::fmt::Display| {
        Status::unavailable(format!("error trying to reach service: {error}"))
    };
    let dial = registry.webhooks().dial(Place::Pods(address));
    let stream = match tokio::time::timeout(CONNECT_TIMEOUT, dial).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(failed(&format!("dial tcp {address}: {error}"))),
        Err(_) => return Err(failed(&format!("dial tcp {address}: i/o timeout"))),
    };
    let (server, stopping) = (address.to_string(), call.server.stopping.clone());
    let asked = asked_host(&parts).unwrap_or(&server).to_owned();
    let places = Places { prefix, server, asked: asked.clone() };
    let broken = |error: hyper::Error| failed(&error);
    if !target.secure {
        let answer =
            relay::relay(stream, &path_and_query, &asked, parts, body, stopping, broken).await?;
        return Ok(sniff::named(places.answer(answer)).await);
    }
    // The cluster's own names have no authority that everybody trusts, so nobody is checked.
    let config = crate::pki::unverified_client_config().map_err(Status::internal)?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(ServerName::IpAddress(address.ip().into()), stream)
        .await
        .map_err(|error| failed(&error))?;
    let answer =
        relay::relay(stream, &path_and_query, &asked, parts, body, stopping, broken).await?;
    Ok(sniff::named(places.answer(answer)).await)
}

/// The host that the client asked; the proxied server sees the same.
fn asked_host(parts: &http::request::Parts) -> Option<&str> {
    let header = parts.headers.get(header::HOST).and_then(|value| value.to_str().ok());
    header.or_else(|| parts.uri.authority().map(http::uri::Authority::as_str))
}

fn redirect(location: &str) -> Response {
    let mut response = Response::default();
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::from_str(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::tests::Fixture;

    #[test]
    fn targets_are_read() {
        let target = |secure, name, port| Some(Target { secure, name, port });
        let cases = [
            ("web", target(false, "web", "")),
            ("web:80", target(false, "web", "80")),
            ("https:web:tls", target(true, "web", "tls")),
            ("http:web:", target(false, "web", "")),
            ("ftp:web:1", None),
            (":80", None),
        ];
        for (text, want) in cases {
            assert_eq!(Target::parse(text), want, "{text}");
        }
    }

    /// Answers one request after another with its first line.
    async fn echo() -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = vec![0; 4096];
                let n = stream.read(&mut buffer).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let line = text.lines().next().unwrap_or_default();
                let secret = text.to_lowercase().contains("authorization");
                let body = format!("{line} {secret}");
                let answer =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn a_service_is_reached_through_the_server() {
        let f = Fixture::new().await;
        let address = echo().await;
        let service: Value =
            json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
        let made = f.post("/api/v1/namespaces/default/services", &service).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let base = "/api/v1/namespaces/default/services";
        let nobody = f.get(&format!("{base}/web/proxy/")).await;
        assert_eq!(
            (nobody.code.as_u16(), &nobody.body["message"]),
            (503, &json!("no endpoints available for service \"web\""))
        );
        let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": address.port()}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": true}}]});
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        let made = f.post(path, &slice).await;
        assert_eq!(made.code, 201, "{}", made.body);
        let request = http::Request::get(format!("{base}/web:http/proxy/a/b?c=d"))
            .header("authorization", "Basic x");
        let answer = f.send(request, Body::Empty).await;
        assert_eq!(
            (answer.code.as_u16(), &answer.body),
            (200, &json!("GET /a/b?c=d HTTP/1.1 false"))
        );
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
        for method in ["DELETE", "OPTIONS", "PATCH", "POST", "PUT"] {
            let path = format!("{base}/web:http/proxy/a");
            let request = http::Request::builder().method(method).uri(path);
            let answer = f.send(request, Body::Empty).await;
            assert_eq!(answer.body, json!(format!("{method} /a HTTP/1.1 false")));
        }
        let moved = f.get(&format!("{base}/web/proxy")).await;
        assert_eq!(moved.code, 301);
        assert_eq!(moved.headers["location"], format!("{base}/web/proxy/"));
        let wrong = f.get(&format!("{base}/web:9/proxy/")).await;
        assert_eq!(wrong.body["message"], "no service port \"9\" found for service \"web\"");
    }
}
