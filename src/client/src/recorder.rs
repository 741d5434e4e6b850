//! Events about objects, counted instead of repeated.
//!
//! Two ways of counting, as upstream has them: most components correlate what is equal or alike
//! (`correlation`), the scheduler counts series (`series`).

mod correlation;
mod recent;
mod series;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource, ResourceExt};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use correlation::Correlation;
use series::{FINISH, Series};

/// Reports that may wait to be counted; more are dropped, as upstream's broadcaster does after fewer.
const QUEUE: usize = 8192;
/// Events on their way to the API server at once: few, because what they tell of goes first.
const WRITES_MAX: usize = 4;
/// Events that may wait for each of those; more are dropped, so that one which is tried again and again holds up only
/// those of the same objects.
const LANE: usize = 1024;
/// How often an event is tried while the API server does not answer.
const ATTEMPTS_MAX: u32 = 12;
/// Between attempts.
const PAUSE: Duration = Duration::from_secs(10);

struct Report {
    object: ObjectReference,
    related: Option<ObjectReference>,
    kind: &'static str,
    reason: String,
    action: &'static str,
    message: String,
}

/// What the API server is to be told.
struct Told {
    event: Event,
    /// Where the event is there already: what has changed in it.
    again: Option<Value>,
}

/// Writes events as one component.
#[derive(Clone)]
pub struct Recorder(mpsc::Sender<Report>);

impl Recorder {
    /// A recorder whose events name `component` and, where it is a node's, `host`. Its task ends when
    /// the last clone is gone and everything queued is written.
    pub fn new(client: Client, component: &str, host: &str) -> Self {
        let source = EventSource {
            component: Some(component.to_owned()),
            host: (!host.is_empty()).then(|| host.to_owned()),
        };
        let mut correlation = Correlation::new(source);
        let (sender, mut reports) = mpsc::channel::<Report>(QUEUE);
        tokio::spawn(async move {
            let sink = Sink::new(&client);
            while let Some(report) = reports.recv().await {
                if let Some(told) = correlation.observe(&report, Timestamp::now()) {
                    sink.send(told);
                }
            }
            sink.close().await;
        });
        Self(sender)
    }

    /// A recorder whose events are counted as series, in the fields of the API group `events.k8s.io`, as
    /// the scheduler's are.
    pub fn of_series(client: Client, controller: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut series = Series::new(controller, host.trim());
        let (sender, mut reports) = mpsc::channel::<Report>(QUEUE);
        tokio::spawn(async move {
            let sink = Sink::new(&client);
            let mut finish = tokio::time::interval(FINISH);
            loop {
                let told = tokio::select! {
                    report = reports.recv() => {
                        let Some(report) = report else { break };
                        series.observe(&report, Timestamp::now()).into_iter().collect()
                    }
                    _ = finish.tick() => series.finish(Timestamp::now()),
                };
                for told in told {
                    sink.send(told);
                }
            }
            sink.close().await;
        });
        Self(sender)
    }

    /// Records an event of type `Normal`.
    pub fn normal(&self, object: ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(object, None, "Normal", (reason, ""), message.into());
    }

    /// Records an event of type `Warning`.
    pub fn warning(&self, object: ObjectReference, reason: &str, message: impl Into<String>) {
        self.send(object, None, "Warning", (reason, ""), message.into());
    }

    /// Records an event of type `kind` in a series: for what reason which action was taken, or has failed,
    /// and for whom (`related`).
    pub fn action(
        &self,
        object: ObjectReference,
        related: Option<ObjectReference>,
        kind: &'static str,
        (reason, action): (&str, &'static str),
        message: impl Into<String>,
    ) {
        self.send(object, related, kind, (reason, action), message.into());
    }

    fn send(
        &self,
        object: ObjectReference,
        related: Option<ObjectReference>,
        kind: &'static str,
        (reason, action): (&str, &'static str),
        message: String,
    ) {
        let report = Report { object, related, kind, reason: reason.to_owned(), action, message };
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

/// The metadata of a new event about `object`. Events of cluster-scoped objects live in `default`.
fn metadata(object: &ObjectReference, now: Timestamp) -> ObjectMeta {
    let name = object.name.as_deref().unwrap_or_default();
    ObjectMeta {
        name: Some(format!("{name}.{:x}", now.as_nanosecond())),
        namespace: object.namespace.clone().or_else(|| Some("default".into())),
        ..ObjectMeta::default()
    }
}

/// The way to the API server: several events at once, but those of one object one after the other.
struct Sink {
    lanes: Vec<mpsc::Sender<Told>>,
    writers: JoinSet<()>,
    hasher: RandomState,
}

impl Sink {
    fn new(client: &Client) -> Self {
        let mut writers = JoinSet::new();
        let mut lanes = Vec::new();
        for _ in 0..WRITES_MAX {
            let (lane, told) = mpsc::channel(LANE);
            lanes.push(lane);
            writers.spawn(write(client.clone(), told));
        }
        Self { lanes, writers, hasher: RandomState::new() }
    }

    /// Never waits. An event that finds no room is lost; the next one of its kind writes it whole.
    fn send(&self, told: Told) {
        let lane = self.hasher.hash_one(&told.event.involved_object.uid) % self.lanes.len() as u64;
        if self.lanes[lane as usize].try_send(told).is_err() {
            tracing::debug!("event dropped: too many wait for the API server");
        }
    }

    async fn close(self) {
        drop(self.lanes);
        self.writers.join_all().await;
    }
}

async fn write(client: Client, mut lane: mpsc::Receiver<Told>) {
    while let Some(Told { event, again }) = lane.recv().await {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let api = Api::namespaced(client.clone(), namespace);
        for attempt in 1..=ATTEMPTS_MAX {
            match send(&api, &event, again.as_ref()).await {
                // It lay with the way to the server, not with the event.
                Err(error) if !matches!(error, kube::Error::Api(_)) && attempt < ATTEMPTS_MAX => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => {
                    tracing::debug!(%error, "event not recorded");
                    break;
                }
                Ok(()) => break,
            }
        }
    }
}

/// Tells the server what `again` says has changed in the event; writes the whole of it when it is new there,
/// or gone.
async fn send(api: &Api<Event>, event: &Event, again: Option<&Value>) -> Result<(), kube::Error> {
    if let (Some(patch), Some(name)) = (again, event.metadata.name.as_deref()) {
        let counted = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        if !matches!(&counted, Err(kube::Error::Api(status)) if status.code == 404) {
            return counted.map(drop);
        }
    }
    create(api, event).await
}

/// Writes a new event. What the server makes of it is of no interest.
async fn create(api: &Api<Event>, event: &Event) -> Result<(), kube::Error> {
    let body = serde_json::to_vec(event).map_err(kube::Error::SerdeError)?;
    let request = Request::new(api.resource_url())
        .create(&PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)?;
    api.clone().into_client().request::<IgnoredAny>(request).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use http_body_util::BodyExt;
    use kube::client::Body;

    use super::*;
    use crate::in_process;

    fn about(name: &str) -> ObjectReference {
        let name = Some(name.to_owned());
        ObjectReference { uid: name.clone(), name, ..ObjectReference::default() }
    }

    /// A server that leaves what is about `stuck` unanswered for ever and tells what else it gets.
    fn server(seen: mpsc::UnboundedSender<String>) -> Client {
        in_process(tower::service_fn(move |request: http::Request<Body>| {
            let seen = seen.clone();
            async move {
                let body = request.into_body().collect().await.expect("a body").to_bytes();
                let event: Value = serde_json::from_slice(&body).unwrap_or_default();
                let object =
                    event["involvedObject"]["name"].as_str().unwrap_or_default().to_owned();
                if object == "stuck" {
                    return std::future::pending().await;
                }
                let _ = seen.send(object);
                Ok::<_, Infallible>(Response::new(Body::from(body.to_vec())))
            }
        }))
    }

    #[tokio::test]
    async fn an_event_that_is_not_answered_holds_up_those_of_few_others() {
        let (sender, mut seen) = mpsc::unbounded_channel();
        let recorder = Recorder::new(server(sender), "test", "");
        for n in 0..10 {
            recorder.normal(about("stuck"), "Reason", format!("message {n}"));
        }
        let others = 64;
        for n in 0..others {
            recorder.normal(about(&format!("object-{n}")), "Reason", "message");
        }
        // One way of several is shut.
        let enough = others / WRITES_MAX;
        let all = async {
            for _ in 0..enough {
                seen.recv().await.expect("the recorder is there");
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("others are written");
    }
}
