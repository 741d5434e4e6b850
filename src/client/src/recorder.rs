//! Events about objects, counted instead of repeated.
//!
//! Source: `k8s.io/client-go/tools/record` (`EventCorrelator`: equal events become one with a count,
//! and more than ten similar ones in ten minutes are combined).

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource, ResourceExt};
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Events that may wait for the API server; more are dropped, as upstream's broadcaster does after fewer.
const QUEUE: usize = 8192;
/// Distinct events remembered for counting.
const REMEMBERED: usize = 4096;
/// Similar events, different only in their message, after which they are combined.
const SIMILAR_MAX: u32 = 10;
/// Events on their way to the API server at once: few, because what they tell of goes first.
const WRITES_MAX: usize = 4;
/// Seconds of quiet after which the counting of similar events starts afresh.
const SIMILAR_WINDOW_S: i64 = 600;

struct Report {
    object: ObjectReference,
    kind: &'static str,
    reason: String,
    message: String,
}

/// Writes events as one component.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Report>);

impl Recorder {
    /// A recorder whose events name `component` and, where it is a node's, `host`. Its task ends when
    /// the last clone is gone and everything queued is written.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        tokio::spawn(
            Writer { client, source, equal: HashMap::new(), similar: HashMap::new() }.run(receiver),
        );
        Self(sender)
    }

    /// Records an event of type `Normal`.
    pub fn normal(&self, object: ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(object, "Normal", reason, message.into());
    }

    /// Records an event of type `Warning`.
    pub fn warning(&self, object: ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(object, "Warning", reason, message.into());
    }

    fn send(&self, object: ObjectReference, kind: &'static str, reason: &str, message: String) {
        let report = Report { object, kind, reason: reason.to_owned(), message };
        if self.0.try_send(report).is_err() {
            tracing::debug!(reason, "event dropped: the queue to the API server is full");
        }
    }
}

/// The reference by which an event names `object`.
pub fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        resource_version: object.resource_version(),
        uid: object.uid(),
        field_path: None,
    }
}

/// Writes a new event. What the server makes of it is of no interest.
async fn create(api: &Api<Event>, event: &Event) -> Result<(), kube::Error> {
    let body = serde_json::to_vec(event).map_err(kube::Error::SerdeError)?;
    let request = Request::new(api.resource_url())
        .create(&PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)?;
    api.clone().into_client().request::<IgnoredAny>(request).await.map(drop)
}

fn code<T>(outcome: &Result<T, kube::Error>) -> u16 {
    match outcome {
        Err(kube::Error::Api(status)) => status.code,
        _ => 0,
    }
}

/// Counts the event that `again` names once more; writes `event` when there is none, or it is gone.
async fn send(
    api: &Api<Event>,
    mut event: Event,
    again: Option<(String, Value)>,
) -> Result<(), kube::Error> {
    let Some((name, patch)) = again else { return create(api, &event).await };
    let parameters = PatchParams::default();
    let counted = api.patch(&name, &parameters, &Patch::Merge(&patch)).await;
    if code(&counted) != 404 {
        return counted.map(|_| ());
    }
    event.metadata.name = Some(name.clone());
    let made = create(api, &event).await;
    if code(&made) != 409 {
        return made;
    }
    // The first of them has just been written.
    api.patch(&name, &parameters, &Patch::Merge(&patch)).await.map(|_| ())
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Similar {
    namespace: String,
    kind: String,
    name: String,
    uid: String,
    field_path: String,
    event_type: &'static str,
    reason: String,
}

struct Known {
    name: String,
    count: i32,
}

struct Writer {
    client: Client,
    source: EventSource,
    equal: HashMap<(Similar, String), Known>,
    similar: HashMap<Similar, (u32, i64)>,
}

impl Writer {
    async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        let mut writes = JoinSet::new();
        while let Some(report) = reports.recv().await {
            writes.spawn(self.write(&report));
            while writes.len() >= WRITES_MAX && writes.join_next().await.is_some() {}
            while writes.try_join_next().is_some() {}
        }
        writes.join_all().await;
    }

    /// Decides what is written about `report`; the writing is left to the caller.
    fn write(&mut self, report: &Report) -> impl Future<Output = ()> + Send + use<> {
        if self.equal.len() > REMEMBERED || self.similar.len() > REMEMBERED {
            self.equal.clear();
            self.similar.clear();
        }
        let now = Timestamp::now();
        let (key, told, message) = self.combine(report, now);
        // Events of cluster-scoped objects live in `default`, as upstream puts them.
        let namespace = report.object.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let name = format!("{}.{:x}", key.name, now.as_nanosecond());
        let event = self.event(report, name.clone(), namespace, &message, now);
        let known = self.equal.entry((key, told)).or_insert(Known { name, count: 0 });
        known.count += 1;
        let again = (known.count > 1).then(|| {
            let patch =
                json!({"count": known.count, "lastTimestamp": Time(now), "message": message});
            (known.name.clone(), patch)
        });
        async move {
            if let Err(error) = send(&api, event, again).await {
                tracing::debug!(%error, "event not recorded");
            }
        }
    }

    /// The identity of an event apart from its message, the message that completes the identity, and
    /// the message to write: once many events differ in nothing else, one stands for them all.
    fn combine(&mut self, report: &Report, now: Timestamp) -> (Similar, String, String) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let key = Similar {
            namespace: text(&report.object.namespace),
            kind: text(&report.object.kind),
            name: text(&report.object.name),
            uid: text(&report.object.uid),
            field_path: text(&report.object.field_path),
            event_type: report.kind,
            reason: report.reason.clone(),
        };
        if self.equal.contains_key(&(key.clone(), report.message.clone())) {
            return (key, report.message.clone(), report.message.clone());
        }
        let second = now.as_second();
        let (seen, last) = self.similar.entry(key.clone()).or_insert((0, second));
        *seen = if second - *last > SIMILAR_WINDOW_S { 1 } else { *seen + 1 };
        *last = second;
        if *seen > SIMILAR_MAX {
            let combined = format!("(combined from similar events): {}", report.message);
            return (key, "(combined)".into(), combined);
        }
        (key, report.message.clone(), report.message.clone())
    }

    fn event(
        &self,
        report: &Report,
        name: String,
        namespace: String,
        message: &str,
        now: Timestamp,
    ) -> Event {
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: report.object.clone(),
            reason: Some(report.reason.clone()),
            message: Some(message.to_owned()),
            source: Some(self.source.clone()),
            reporting_component: self.source.component.clone(),
            reporting_instance: self.source.host.clone().or(Some(String::new())),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            type_: Some(report.kind.to_owned()),
            ..Event::default()
        }
    }
}
