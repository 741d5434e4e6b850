//! Events for another server: collected, and sent many at a time by a task of their own.
//!
//! Source: `k8s.io/apiserver/plugin/pkg/audit/{buffered,webhook}` and the flags `--audit-webhook-…`.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::Body;
use crate::kubeconfig;
use crate::registry::Registry;
use crate::webhook::Target;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often sending is tried, and how the time between two attempts grows.
const ATTEMPTS: u32 = 5;
const GROWTH: f64 = 1.5;
/// Requests a second, and how many may come at once after a pause
/// (`--audit-webhook-batch-throttle-qps`, `--audit-webhook-batch-throttle-burst`).
const REQUESTS_PER_SECOND: f64 = 10.0;
const BURST: f64 = 15.0;
/// How long what is left may take at the end.
const LAST_TIMEOUT: Duration = Duration::from_secs(3);

/// Whether requests wait until their events are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They do not; events are collected.
    #[default]
    Batch,
    /// They do; what cannot be told is lost.
    Blocking,
}

/// The flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--audit-webhook-config-file`: a kubeconfig.
    pub config_file: PathBuf,
    /// `--audit-webhook-mode`
    pub mode: Mode,
    /// `--audit-webhook-batch-buffer-size`: events that wait at most.
    pub buffer_size: usize,
    /// `--audit-webhook-batch-max-size`: events of one request at most.
    pub max_size: usize,
    /// `--audit-webhook-batch-max-wait`: how long an event waits for others.
    pub max_wait: Duration,
    /// `--audit-webhook-initial-backoff`
    pub initial_backoff: Duration,
}

impl Options {
    /// The flags' usual values.
    pub fn new(config_file: PathBuf) -> Self {
        Self {
            config_file,
            mode: Mode::default(),
            buffer_size: 10_000,
            max_size: 400,
            max_wait: Duration::from_secs(30),
            initial_backoff: Duration::from_secs(10),
        }
    }
}

/// The other server.
pub struct Webhook {
    registry: Registry,
    options: Options,
    target: Target,
    tls: rustls::ClientConfig,
    credentials: Option<String>,
    queue: mpsc::Sender<Value>,
    waiting: Mutex<Option<mpsc::Receiver<Value>>>,
}

/// How many requests may be sent now; what is not used is kept up to the burst.
struct Pace {
    requests: f64,
    since: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { requests: BURST, since: Instant::now() }
    }

    /// Takes one; says how long to wait before it may be used.
    fn take(&mut self) -> Duration {
        let passed = self.since.elapsed();
        self.since += passed;
        self.requests = (self.requests + passed.as_secs_f64() * REQUESTS_PER_SECOND).min(BURST);
        self.requests -= 1.0;
        Duration::from_secs_f64((-self.requests).max(0.0) / REQUESTS_PER_SECOND)
    }
}

/// Why a batch was not taken.
struct Refused {
    detail: String,
    /// Whether it may be taken later.
    again: bool,
}

impl Webhook {
    /// Reads the kubeconfig.
    pub fn open(options: &Options, registry: &Registry) -> Result<Self, String> {
        let (server, tls, credentials) = kubeconfig::read(&options.config_file)?;
        let target = Target::of_url(&server).map_err(|error| error.to_string())?;
        let (queue, waiting) = mpsc::channel(options.buffer_size.max(1));
        Ok(Self {
            registry: registry.clone(),
            options: options.clone(),
            target,
            tls,
            credentials,
            queue,
            waiting: Mutex::new(Some(waiting)),
        })
    }

    /// Takes an event; it is dropped when too many wait.
    pub fn write(&self, event: Value) {
        if self.options.mode == Mode::Blocking {
            // A request that waits takes its thread along.
            let told = tokio::task::block_in_place(|| {
                let sent = self.send(vec![event], ATTEMPTS);
                tokio::runtime::Handle::current().block_on(sent)
            });
            if let Err(refused) = told {
                lost(1, &refused.detail);
            }
            return;
        }
        if self.queue.try_send(event).is_err() {
            lost(1, "audit buffer queue blocked");
        }
    }

    /// Sends what was written, until `shutdown`, and then what is left.
    pub async fn run(&self, shutdown: CancellationToken) {
        let taken = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut waiting) = taken else { return };
        let mut pace = Pace::new();
        while !shutdown.is_cancelled() {
            let batch = self.collect(&mut waiting, &shutdown).await;
            if batch.is_empty() {
                continue;
            }
            let count = batch.len();
            let wait = tokio::time::sleep(pace.take());
            let _ = shutdown.run_until_cancelled(wait).await;
            // Cut short, the batch has one more chance below the time that is left.
            let sent = shutdown.run_until_cancelled(self.send(batch.clone(), ATTEMPTS)).await;
            match sent {
                Some(Ok(())) => {}
                Some(Err(refused)) => lost(count, &refused.detail),
                None => self.last(batch).await,
            }
        }
        waiting.close();
        let mut rest = Vec::new();
        while waiting.recv_many(&mut rest, self.options.max_size).await > 0 {
            self.last(std::mem::take(&mut rest)).await;
        }
    }

    async fn last(&self, batch: Vec<Value>) {
        let count = batch.len();
        match tokio::time::timeout(LAST_TIMEOUT, self.send(batch, 1)).await {
            Ok(Ok(())) => {}
            Ok(Err(refused)) => lost(count, &refused.detail),
            Err(_) => lost(count, "the server is shutting down"),
        }
    }

    /// The next events: as many as go into one request, or those of the longest wait.
    async fn collect(
        &self,
        waiting: &mut mpsc::Receiver<Value>,
        shutdown: &CancellationToken,
    ) -> Vec<Value> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < self.options.max_size {
            let room = self.options.max_size - batch.len();
            let timer = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = timer => break,
                count = waiting.recv_many(&mut batch, room) => if count == 0 { break },
            }
            until = until.or_else(|| Some(Instant::now() + self.options.max_wait));
        }
        batch
    }

    async fn send(&self, events: Vec<Value>, attempts: u32) -> Result<(), Refused> {
        let list = json!({"kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {},
            "items": events});
        let body = list.to_string();
        let mut wait = self.options.initial_backoff;
        for attempt in 1.. {
            match self.post(body.clone()).await {
                Ok(()) => break,
                Err(refused) if attempt >= attempts || !refused.again => return Err(refused),
                Err(refused) => tracing::debug!(error = refused.detail, "audit events wait"),
            }
            tokio::time::sleep(wait).await;
            wait = wait.mul_f64(GROWTH);
        }
        Ok(())
    }

    async fn post(&self, body: String) -> Result<(), Refused> {
        let mut request = http::Request::post("/")
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json, */*")
            .header(USER_AGENT, "kube-apiserver-audit");
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, credentials);
        }
        let webhooks = self.registry.webhooks();
        let sent =
            webhooks.send(&self.target, self.tls.clone(), request, Body::from(body), TIMEOUT).await;
        match sent {
            Ok((code, _)) if code.is_success() => Ok(()),
            Ok((code, bytes)) => Err(Refused {
                detail: format!("{code}: {}", String::from_utf8_lossy(&bytes)),
                again: code.is_server_error() || code == http::StatusCode::TOO_MANY_REQUESTS,
            }),
            Err(error) => Err(Refused { detail: error.to_string(), again: true }),
        }
    }
}

fn lost(count: usize, error: &str) {
    tracing::error!(count, error, "audit events are lost: the webhook does not take them");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_have_a_pace() {
        let mut pace = Pace::new();
        let waits: Vec<Duration> = (0..17).map(|_| pace.take()).collect();
        assert!(waits[..15].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[15..], [Duration::from_millis(100), Duration::from_millis(200)]);
        // A second later there are ten again.
        tokio::time::advance(Duration::from_millis(1200)).await;
        assert_eq!((0..10).map(|_| pace.take()).max(), Some(Duration::ZERO));
        assert!(!pace.take().is_zero());
    }
}
