//! Health checks of load balancers with `externalTrafficPolicy: Local`: a port per Service that says
//! how many of its endpoints are on this node.
//!
//! Source: `pkg/proxy/healthcheck/service_health.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use client::Key;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::status::Health;
use crate::table::{Place, local_endpoints};

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request that is read.
const REQUEST_BYTES: usize = 8 << 10;

/// What one port says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    namespace: String,
    name: String,
    local_endpoints: usize,
}

impl State {
    /// `healthy` is whether the rules of services are kept up.
    fn response(&self, healthy: bool) -> String {
        let well = healthy && self.local_endpoints > 0;
        let status = if well { "200 OK" } else { "503 Service Unavailable" };
        let body = format!(
            "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\
             \"localEndpoints\": {},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
            self.namespace, self.name, self.local_endpoints
        );
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\
             X-Content-Type-Options: nosniff\r\nX-Load-Balancing-Endpoint-Weight: {}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.local_endpoints,
            body.len()
        )
    }
}

/// Where a Service wants its health to be told.
pub(crate) fn port_of(service: &Service) -> Option<u16> {
    let port = service.spec.as_ref()?.health_check_node_port?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// The ports that are wanted, and what they say.
pub(crate) fn wanted<'a>(
    services: &BTreeMap<Key, Arc<Service>>,
    slices: impl Fn(&Key) -> Vec<&'a Arc<EndpointSlice>>,
    place: &Place,
) -> BTreeMap<u16, State> {
    let ports = services.iter().filter_map(|(key, service)| {
        let port = port_of(service)?;
        let (namespace, name) = key.clone();
        let local_endpoints = local_endpoints(&slices(key), place);
        Some((port, State { namespace, name, local_endpoints }))
    });
    ports.collect()
}

/// The servers, on the host's loopback.
#[derive(Default)]
pub(crate) struct HealthChecks {
    health: Health,
    active: BTreeMap<u16, (watch::Sender<State>, AbortHandle)>,
    /// Ports that could not be had, which is known.
    failed: BTreeSet<u16>,
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        for (_, task) in self.active.values() {
            task.abort();
        }
    }
}

impl HealthChecks {
    /// No ports yet; they also tell of `health`.
    pub fn new(health: Health) -> Self {
        Self { health, active: BTreeMap::new(), failed: BTreeSet::new() }
    }

    /// Makes the ports exactly these; returns those that could not be had, once, with the Service.
    pub async fn set(&mut self, wanted: BTreeMap<u16, State>) -> Vec<(u16, Key, std::io::Error)> {
        self.failed.retain(|port| wanted.contains_key(port));
        self.active.retain(|port, (_, task)| {
            let keep = wanted.contains_key(port);
            if !keep {
                task.abort();
            }
            keep
        });
        let mut failed = Vec::new();
        for (port, state) in wanted {
            if let Some((sender, _)) = self.active.get(&port) {
                sender.send_replace(state);
                continue;
            }
            match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await {
                Ok(listener) => {
                    let (sender, receiver) = watch::channel(state);
                    let serve = serve(listener, receiver, self.health.clone());
                    self.active.insert(port, (sender, tokio::spawn(serve).abort_handle()));
                    self.failed.remove(&port);
                }
                Err(error) if self.failed.insert(port) => {
                    failed.push((port, (state.namespace, state.name), error));
                }
                Err(_) => {}
            }
        }
        failed
    }

    /// The ports that are served.
    pub fn ports(&self) -> Vec<u16> {
        self.active.keys().copied().collect()
    }
}

async fn serve(listener: TcpListener, state: watch::Receiver<State>, health: Health) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let response = state.borrow().response(health.holds());
        tokio::spawn(answer(stream, |_| response));
    }
}

/// Answers one request for the path that it names.
pub(crate) async fn answer(stream: TcpStream, respond: impl FnOnce(&str) -> String) {
    // Whoever goes away meanwhile needs no answer.
    let _ = tokio::time::timeout(PATIENCE, converse(stream, respond)).await;
}

async fn converse(
    mut stream: TcpStream,
    respond: impl FnOnce(&str) -> String,
) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let read = stream.read(&mut piece).await?;
        if read == 0 || request.len() > REQUEST_BYTES {
            return Ok(());
        }
        request.extend_from_slice(&piece[..read]);
    }
    let request = String::from_utf8_lossy(&request);
    let path = request.split_ascii_whitespace().nth(1).unwrap_or_default();
    stream.write_all(respond(path).as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[test]
    fn a_node_without_a_working_proxy_is_no_place_to_send_to() {
        let state = State { namespace: "shop".into(), name: "web".into(), local_endpoints: 1 };
        for (healthy, status) in [(true, "200 OK"), (false, "503 Service Unavailable")] {
            let told = state.response(healthy);
            assert!(told.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{told}");
            assert!(told.contains(&format!("\"serviceProxyHealthy\": {healthy}\n")), "{told}");
        }
    }

    #[tokio::test]
    async fn a_port_tells_how_many_endpoints_are_here() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let state = |local_endpoints| {
            let (namespace, name) = ("shop".into(), "web".into());
            BTreeMap::from([(port, State { namespace, name, local_endpoints })])
        };
        let mut checks = HealthChecks::default();
        assert!(checks.set(state(2)).await.is_empty());
        let healthy = ask(port).await;
        assert!(healthy.starts_with("HTTP/1.1 200 OK\r\n"), "{healthy}");
        let body: serde_json::Value =
            serde_json::from_str(healthy.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["localEndpoints"], 2);
        assert_eq!(body["service"]["name"], "web");
        assert!(checks.set(state(0)).await.is_empty());
        assert!(ask(port).await.starts_with("HTTP/1.1 503 "));
        assert_eq!(checks.ports(), [port]);
        let mut late = HealthChecks::default();
        let told = late.set(state(1)).await;
        assert_eq!(told.len(), 1, "it is in use");
        assert_eq!((told[0].0, &told[0].1), (port, &("shop".to_owned(), "web".to_owned())));
        assert!(late.set(state(1)).await.is_empty(), "told once");
        checks.set(BTreeMap::new()).await;
        assert!(checks.ports().is_empty());
    }
}
