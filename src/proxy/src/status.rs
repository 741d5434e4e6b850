//! What a service proxy tells of itself, at the ports where kube-proxy does, in the pods' network.
//!
//! Source: `pkg/proxy/healthcheck/proxy_health.go`, `cmd/kube-proxy/app/server.go`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use netns::Forward;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use crate::health::answer;

/// Where it tells whether it is well, on every address of the node.
const HEALTH_PORT: u16 = 10256;
/// Where it tells the rest, on the node's loopback.
const STATUS_PORT: u16 = 10249;
/// A change that is not in force after this is a sign that something is wrong.
const PATIENCE: Duration = Duration::from_mins(1);
/// What is in the kernel in the end.
const MODE: &str = "nftables";

#[derive(Clone, Copy, Default)]
struct Times {
    /// When the rules were last as they are to be.
    updated: Option<Timestamp>,
    /// Since when there is a change that is not in force.
    waiting: Option<Timestamp>,
}

impl Times {
    /// Whether changes come into force. Before the first it is too early to say that they do not.
    fn hold(&self, now: Timestamp) -> bool {
        let waits = |since| now.duration_since(since).unsigned_abs() > PATIENCE;
        self.updated.is_none() || !self.waiting.is_some_and(waits)
    }
}

/// Whether the rules of services are kept up, for others to tell.
#[derive(Clone, Default)]
pub(crate) struct Health(Arc<Mutex<Times>>);

impl Health {
    /// Whether they are.
    pub fn holds(&self) -> bool {
        self.0.lock().expect("never held across a panic").hold(Timestamp::now())
    }
}

/// Whether load balancers may send new connections to this node.
type Eligible = Arc<dyn Fn() -> bool + Send + Sync>;

/// The server, on the host's loopback, and what it tells.
pub(crate) struct Status {
    times: Arc<Mutex<Times>>,
    server: Option<(SocketAddr, AbortHandle)>,
}

impl Drop for Status {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.server {
            task.abort();
        }
    }
}

impl Status {
    /// Starts the server; without a port of the host's loopback there is none. `eligible` says whether load
    /// balancers may send new connections to this node.
    pub async fn start(eligible: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        let eligible: Eligible = Arc::new(eligible);
        let times = Arc::<Mutex<Times>>::default();
        let server = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
            Ok(listener) => listener.local_addr().ok().map(|address| {
                let task = tokio::spawn(serve(listener, Arc::clone(&times), eligible));
                (address, task.abort_handle())
            }),
            Err(error) => {
                tracing::warn!(%error, "the service proxy tells nothing of itself");
                None
            }
        };
        Self { times, server }
    }

    /// Whether the rules are kept up, to be asked at any time.
    pub fn health(&self) -> Health {
        Health(Arc::clone(&self.times))
    }

    /// What leads from the pods' network to the server; `node` are the node's addresses there.
    pub fn forwards(&self, node: &[IpAddr]) -> Vec<Forward> {
        let Some((host, _)) = self.server else { return Vec::new() };
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let healthy = node.iter().copied().chain([loopback]);
        let ports = healthy.map(|address| (address, HEALTH_PORT)).chain([(loopback, STATUS_PORT)]);
        ports.map(|node| Forward { node: node.into(), host }).collect()
    }

    fn with(&self, change: impl FnOnce(&mut Times)) {
        change(&mut self.times.lock().expect("never held across a panic"));
    }

    /// There is a change to apply.
    pub fn waiting(&self) {
        self.with(|times| times.waiting = times.waiting.or_else(|| Some(Timestamp::now())));
    }

    /// Everything is in force.
    pub fn updated(&self) {
        self.with(|times| *times = Times { updated: Some(Timestamp::now()), waiting: None });
    }
}

async fn serve(listener: TcpListener, times: Arc<Mutex<Times>>, eligible: Eligible) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (times, eligible) = (Arc::clone(&times), Arc::clone(&eligible));
        let respond = move |path: &str| {
            let times = *times.lock().expect("never held across a panic");
            respond(path, times, eligible(), Timestamp::now())
        };
        tokio::spawn(answer(stream, respond));
    }
}

fn respond(path: &str, times: Times, eligible: bool, now: Timestamp) -> String {
    let (status, kind, body) = match path.split('?').next().unwrap_or_default() {
        path @ ("/healthz" | "/livez") => {
            // That the node is about to go is for load balancers to know, and no reason to start the proxy anew.
            let live = path == "/livez";
            let well = times.hold(now) && (eligible || live);
            let status = if well { "200 OK" } else { "503 Service Unavailable" };
            // Of what is well, the time of the last change is not told.
            let updated = if well { Some(now) } else { times.updated };
            let updated = updated.map_or_else(String::new, |time| time.to_string());
            let node = if live { String::new() } else { format!(", \"nodeEligible\": {eligible}") };
            let body =
                format!("{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\"{node}}}");
            (status, "application/json", body)
        }
        "/proxyMode" => ("200 OK", "text/plain; charset=utf-8", MODE.to_owned()),
        "/metrics" => {
            let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
            let seconds = times.updated.map_or(0.0, |time| time.as_millisecond() as f64 / 1e3);
            let body = format!(
                "# HELP {name} [ALPHA] The last time proxy rules were successfully synced\n\
                 # TYPE {name} gauge\n{name} {seconds}\n"
            );
            ("200 OK", "text/plain; version=0.0.4; charset=utf-8", body)
        }
        _ => ("404 Not Found", "text/plain; charset=utf-8", "404 page not found\n".to_owned()),
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_at_each_path() {
        let at = |text: &str| Some(text.parse().unwrap());
        let fresh = Times { updated: at("2026-01-01T00:00:00Z"), waiting: None };
        let busy = Times { waiting: at("2026-01-01T00:00:30Z"), ..fresh };
        let stuck = Times { waiting: at("2026-01-01T00:00:05Z"), ..fresh };
        let last = "\"lastUpdated\": \"2026-01-01T00:01:20Z\"";
        let earlier = "\"lastUpdated\": \"2026-01-01T00:00:00Z\"";
        let cases = [
            ("/healthz", fresh, "200 OK", last),
            ("/healthz", busy, "200 OK", last),
            ("/healthz", stuck, "503 Service Unavailable", earlier),
            (
                "/livez?verbose",
                stuck,
                "503 Service Unavailable",
                "\"currentTime\": \"2026-01-01T00:01:20Z\"}",
            ),
            ("/healthz", Times { updated: None, ..stuck }, "200 OK", "\"nodeEligible\": true}"),
            ("/proxyMode", fresh, "200 OK", "\r\n\r\nnftables"),
            ("/metrics", fresh, "200 OK", "_timestamp_seconds 1767225600\n"),
            ("/other", fresh, "404 Not Found", "404 page not found"),
        ];
        let now = "2026-01-01T00:01:20Z".parse().unwrap();
        for (path, times, status, part) in cases {
            let told = respond(path, times, true, now);
            assert!(told.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {told}");
            assert!(told.contains(part), "{path}: {told}");
        }
        for (path, status) in [("/healthz", "503"), ("/livez", "200")] {
            let told = respond(path, fresh, false, now);
            assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {told}");
            assert_eq!(told.contains("\"nodeEligible\": false"), path == "/healthz", "{told}");
        }
    }
}
