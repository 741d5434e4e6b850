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
    /// Starts the server; without a port of the host's loopback there is none.
    pub async fn start() -> Self {
        let times = Arc::<Mutex<Times>>::default();
        let server = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await {
            Ok(listener) => listener.local_addr().ok().map(|address| {
                let task = tokio::spawn(serve(listener, Arc::clone(&times)));
                (address, task.abort_handle())
            }),
            Err(error) => {
                tracing::warn!(%error, "the service proxy tells nothing of itself");
                None
            }
        };
        Self { times, server }
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

async fn serve(listener: TcpListener, times: Arc<Mutex<Times>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let times = Arc::clone(&times);
        let respond = move |path: &str| {
            let times = *times.lock().expect("never held across a panic");
            respond(path, times, Timestamp::now())
        };
        tokio::spawn(answer(stream, respond));
    }
}

fn respond(path: &str, times: Times, now: Timestamp) -> String {
    let (status, kind, body) = match path.split('?').next().unwrap_or_default() {
        "/healthz" | "/livez" => {
            let late = times
                .waiting
                .is_some_and(|since| now.duration_since(since).unsigned_abs() > PATIENCE);
            let status = if late { "503 Service Unavailable" } else { "200 OK" };
            // While nothing waits the rules are as they are to be now.
            let updated = if times.waiting.is_none() { Some(now) } else { times.updated };
            let updated = updated.map_or_else(String::new, |time| time.to_string());
            let body = format!(
                "{{\"lastUpdated\": \"{updated}\",\"currentTime\": \"{now}\",\"nodeEligible\": true}}"
            );
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
            ("/healthz", busy, "200 OK", earlier),
            ("/healthz", stuck, "503 Service Unavailable", earlier),
            ("/livez?verbose", stuck, "503 Service Unavailable", "\"nodeEligible\": true"),
            ("/proxyMode", fresh, "200 OK", "\r\n\r\nnftables"),
            ("/metrics", fresh, "200 OK", "_timestamp_seconds 1767225600\n"),
            ("/other", fresh, "404 Not Found", "404 page not found"),
        ];
        let now = "2026-01-01T00:01:20Z".parse().unwrap();
        for (path, times, status, part) in cases {
            let told = respond(path, times, now);
            assert!(told.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{path}: {told}");
            assert!(told.contains(part), "{path}: {told}");
        }
    }
}
