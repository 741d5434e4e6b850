//! Events for another server: collected, and sent many at a time by a task of their own.
//!
//! Source: `k8s.io/apiserver/plugin/pkg/audit/webhook` and the flags `--audit-webhook-…`.

use std::path::PathBuf;
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::batch::{self, Mode, Queue};
use super::truncate;
use crate::body::Body;
use crate::kubeconfig;
use crate::registry::Registry;
use crate::webhook::Target;

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often sending is tried, and how the time between two attempts grows.
const ATTEMPTS: u32 = 5;
const GROWTH: f64 = 1.5;
/// How long what is left may take at the end.
const LAST_TIMEOUT: Duration = Duration::from_secs(3);

/// The flags.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--audit-webhook-config-file`: a kubeconfig.
    pub config_file: PathBuf,
    /// `--audit-webhook-mode`
    pub mode: Mode,
    /// `--audit-webhook-batch-…`
    pub batch: batch::Options,
    /// `--audit-webhook-truncate-…`, where that is enabled.
    pub truncate: Option<truncate::Options>,
    /// `--audit-webhook-initial-backoff`
    pub initial_backoff: Duration,
}

impl Options {
    /// The flags' usual values.
    pub fn new(config_file: PathBuf) -> Self {
        Self {
            config_file,
            mode: Mode::default(),
            batch: batch::Options::webhook(),
            truncate: None,
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
    queue: Queue,
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
        Ok(Self {
            registry: registry.clone(),
            options: options.clone(),
            target,
            tls,
            credentials,
            queue: Queue::new(&options.batch),
        })
    }

    /// Takes an event, which is dropped when too many wait; false when its request is to fail.
    pub fn write(&self, event: Value) -> bool {
        let event = match &self.options.truncate {
            None => event,
            Some(truncate) => match truncate.cut(&event) {
                Some(cut) => cut.into_owned(),
                None => return true,
            },
        };
        if self.options.mode == Mode::Batch {
            if !self.queue.push(event) {
                lost(1, "audit buffer queue blocked");
            }
            return true;
        }
        // A request that waits takes its thread along.
        let told = tokio::task::block_in_place(|| {
            let sent = self.send(vec![event], ATTEMPTS);
            tokio::runtime::Handle::current().block_on(sent)
        });
        let Err(refused) = told else { return true };
        lost(1, &refused.detail);
        self.options.mode != Mode::BlockingStrict
    }

    /// Sends what was written, until `shutdown`, and then what is left.
    pub async fn run(&self, shutdown: CancellationToken) {
        let Some(mut waiting) = self.queue.take() else { return };
        while !shutdown.is_cancelled() {
            for batch in self.split(waiting.next(&shutdown).await) {
                // Cut short, the batch has one more chance below the time that is left.
                let count = batch.len();
                let sent = shutdown.run_until_cancelled(self.send(batch.clone(), ATTEMPTS)).await;
                match sent {
                    Some(Ok(())) => {}
                    Some(Err(refused)) => lost(count, &refused.detail),
                    None => self.last(batch).await,
                }
            }
        }
        loop {
            let rest = waiting.rest().await;
            if rest.is_empty() {
                return;
            }
            for batch in self.split(rest) {
                self.last(batch).await;
            }
        }
    }

    fn split(&self, batch: Vec<Value>) -> Vec<Vec<Value>> {
        match &self.options.truncate {
            Some(truncate) => truncate.split(batch),
            None if batch.is_empty() => Vec::new(),
            None => vec![batch],
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
