//! The audit log: who did what, as far as the policy wants it recorded.
//!
//! Source: `k8s.io/apiserver/pkg/audit` and
//! <https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/>.

mod batch;
mod event;
mod log;
mod policy;
#[cfg(test)]
mod tests;
mod truncate;
mod webhook;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use apimachinery::status::Status;
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::attributes::{RequestContext, UserInfo};
use crate::authz::Decision;
use crate::body::{Body, Response};
use crate::registry::Registry;

pub use batch::{Mode, Options as BatchOptions, Throttle};
pub use log::Log;
pub use policy::{Level, Policy, Stage};
pub use truncate::Options as TruncateOptions;
pub use webhook::Options as WebhookOptions;
use webhook::Webhook;

/// Where the log is written, and how its files are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy (`--audit-policy-file`).
    pub policy: Option<PathBuf>,
    /// The log (`--audit-log-path`); `-` is standard output.
    pub path: Option<PathBuf>,
    /// Old files are removed after so many days; 0 keeps them.
    pub max_age_days: u64,
    /// So many old files are kept; 0 keeps all.
    pub max_backups: usize,
    /// A file that would grow beyond so many megabytes is put aside; 0 stands for 100.
    pub max_size_megabytes: u64,
    /// Whether files that are put aside are compressed.
    pub compress: bool,
    /// Whether requests wait for the log (`--audit-log-mode`).
    pub mode: Mode,
    /// How events are collected for it (`--audit-log-batch-…`).
    pub batch: BatchOptions,
    /// How large they may be (`--audit-log-truncate-…`), where that is enabled.
    pub truncate: Option<TruncateOptions>,
    /// Another server that is told (`--audit-webhook-…`).
    pub webhook: Option<WebhookOptions>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            policy: None,
            path: None,
            max_age_days: 366,
            max_backups: 100,
            max_size_megabytes: 100,
            compress: false,
            mode: Mode::Blocking,
            batch: BatchOptions::log(),
            truncate: None,
            webhook: None,
        }
    }
}

/// What cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {path}", path = path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The other server's kubeconfig cannot be used.
    #[error("--audit-webhook-config-file: {0}")]
    Webhook(String),
    /// The policy is not one.
    #[error("{path} is not an audit policy: {problem}", path = path.display())]
    Policy {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Records requests by a policy.
pub struct Auditor {
    policy: Policy,
    log: Option<Log>,
    webhook: Option<Webhook>,
}

impl Auditor {
    /// The auditor that `options` describe; nobody when they name no policy, or nobody to tell.
    pub fn open(options: &Options, registry: &Registry) -> Result<Option<Self>, Error> {
        let Some(policy) = &options.policy else { return Ok(None) };
        if options.path.is_none() && options.webhook.is_none() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(policy).map_err(|source| Error::Io {
            action: "read",
            path: policy.clone(),
            source,
        })?;
        let parsed = Policy::parse(&text)
            .map_err(|problem| Error::Policy { path: policy.clone(), problem })?;
        let log = options.path.as_ref().map(|path| Log::open(path, options)).transpose()?;
        let webhook = options.webhook.as_ref();
        let webhook = webhook.map(|webhook| Webhook::open(webhook, registry)).transpose();
        let webhook = webhook.map_err(Error::Webhook)?;
        Ok(Some(Self { policy: parsed, log, webhook }))
    }

    /// Tells the other server, if there is one, until `shutdown`.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let log = async {
            if let Some(log) = &self.log {
                log.run(shutdown.clone()).await;
            }
        };
        let webhook = async {
            if let Some(webhook) = &self.webhook {
                webhook.run(shutdown.clone()).await;
            }
        };
        tokio::join!(log, webhook);
    }

    /// Tells all; false when the event's request is to fail.
    fn write(&self, event: Value) -> bool {
        let logged = self.log.as_ref().is_none_or(|log| log.take(&event));
        let told = self.webhook.as_ref().is_none_or(|webhook| webhook.write(event));
        logged && told
    }

    /// Begins the record of a request, if the policy wants one.
    ///
    /// # Errors
    /// Its beginning could not be told, and requests are to fail then.
    pub fn begin(
        self: &Arc<Self>,
        ctx: &RequestContext,
        parts: &http::request::Parts,
        id: String,
    ) -> Result<Option<Arc<Record>>, Status> {
        let (level, stages, managed_fields) = self.policy.judge(ctx);
        if level == Level::None {
            return Ok(None);
        }
        let record = Arc::new(Record {
            auditor: self.clone(),
            level,
            omitted: stages,
            managed_fields,
            head: event::head(ctx, parts, level, &id),
            state: Mutex::default(),
        });
        if !record.write(Stage::RequestReceived, None) {
            return Err(Status::internal("failed to store audit event"));
        }
        Ok(Some(record))
    }
}

#[derive(Default)]
struct State {
    impersonated: Option<Value>,
    request: Option<Value>,
    response: Option<Value>,
    annotations: BTreeMap<String, String>,
}

/// One request's record.
pub struct Record {
    auditor: Arc<Auditor>,
    level: Level,
    omitted: Vec<Stage>,
    managed_fields: bool,
    head: Value,
    state: Mutex<State>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Record {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an annotation; the first value of a key stays.
    pub fn annotate(&self, key: &str, value: impl Into<String>) {
        self.state().annotations.entry(key.to_owned()).or_insert_with(|| value.into());
    }

    /// Whether bodies of requests are recorded.
    pub fn wants_request(&self) -> bool {
        self.level >= Level::Request
    }

    /// Notes what the client sent.
    pub fn request(&self, bytes: &Bytes) {
        if self.wants_request() && !bytes.is_empty() {
            self.state().request = parsed(bytes).map(|value| self.trimmed(value));
        }
    }

    /// Notes as whom the client acts.
    pub fn impersonated(&self, user: &UserInfo) {
        self.state().impersonated = Some(crate::subresources::user_value(user));
    }

    /// Notes what was decided.
    pub fn decided(&self, decision: &Decision) {
        let word = if decision.allowed() { "allow" } else { "forbid" };
        self.annotate("authorization.k8s.io/decision", word);
        self.annotate("authorization.k8s.io/reason", decision.reason());
    }

    fn trimmed(&self, mut object: Value) -> Value {
        if self.managed_fields {
            return object;
        }
        let strip = |object: &mut Value| {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
        };
        strip(&mut object);
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
            items.iter_mut().for_each(strip);
        }
        object
    }

    fn write(&self, stage: Stage, code: Option<u16>) -> bool {
        if self.omitted.contains(&stage) {
            return true;
        }
        let state = self.state();
        let event = event::complete(self, &state, stage, code);
        drop(state);
        self.auditor.write(event)
    }

    /// Writes the end of the request: at once, or when its stream ends.
    pub fn answered(self: &Arc<Self>, response: Response) -> Response {
        let code = response.status().as_u16();
        if self.level >= Level::RequestResponse || code >= 400 {
            self.note_response(response.body());
        }
        let streams = matches!(response.body(), Body::Stream(_) | Body::Boxed(_)) || code == 101;
        if !streams {
            self.write(Stage::ResponseComplete, Some(code));
            return response;
        }
        self.write(Stage::ResponseStarted, Some(code));
        let end = End { record: self.clone(), code };
        response.map(|body| {
            let stream = body.into_data_stream().map(move |item| {
                // Kept until the stream is dropped.
                let _ = &end;
                item
            });
            Body::stream(stream)
        })
    }

    fn note_response(&self, body: &Body) {
        let bytes = match body {
            Body::Full(bytes) => bytes.clone(),
            Body::List(items) => items.clone().flatten().collect::<Vec<u8>>().into(),
            _ => return,
        };
        self.state().response = parsed(&bytes).map(|value| self.trimmed(value));
    }
}

/// Writes the last stage when a stream is dropped.
struct End {
    record: Arc<Record>,
    code: u16,
}

impl Drop for End {
    fn drop(&mut self) {
        self.record.write(Stage::ResponseComplete, Some(self.code));
    }
}

fn parsed(bytes: &Bytes) -> Option<Value> {
    use crate::negotiate::Format;
    let json = crate::codec::parse(bytes, Format::Json);
    json.or_else(|_| crate::codec::parse(bytes, Format::Yaml)).ok()
}
