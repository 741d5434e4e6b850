//! A small API server in memory: lists, watches, binds, patches and deletes pods and nodes as the
//! real one does, and keeps what it was told.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

#[derive(Default)]
struct State {
    version: u64,
    /// By collection (`/api/v1/pods`), then by `namespace/name`.
    objects: BTreeMap<String, BTreeMap<String, Value>>,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    refuse_bindings: u32,
    refuse_deletions: u32,
}

/// See the module. Clones are the same server.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn answer(code: StatusCode, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).expect("a response")
}

fn failure(code: StatusCode, reason: &str) -> Answer {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "message": reason, "code": code.as_u16()});
    answer(code, &status)
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

impl Api {
    pub fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(0) }
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(object: &Value) -> String {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
        format!("{}/{}", text("namespace"), text("name"))
    }

    /// Creates or replaces an object.
    pub fn put(&self, collection: &str, mut object: Value) {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let objects = state.objects.entry(collection.to_owned()).or_default();
        let known = objects.insert(Self::key(&object), object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        Self::tell(&mut state, collection, kind, &object);
        drop(state);
        self.changed.send_replace(version);
    }

    pub fn delete(&self, collection: &str, key: &str) -> Option<Value> {
        let mut state = self.lock();
        let mut object = state.objects.get_mut(collection)?.remove(key)?;
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        Self::tell(&mut state, collection, "DELETED", &object);
        drop(state);
        self.changed.send_replace(version);
        Some(object)
    }

    fn tell(state: &mut State, collection: &str, kind: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": kind, "object": object})));
        state.watchers.retain(|(of, sender)| of != collection || sender.send(line.clone()).is_ok());
    }

    pub fn get(&self, collection: &str, key: &str) -> Option<Value> {
        self.lock().objects.get(collection)?.get(key).cloned()
    }

    pub fn all(&self, collection: &str) -> Vec<Value> {
        self.lock()
            .objects
            .get(collection)
            .into_iter()
            .flat_map(|all| all.values().cloned())
            .collect()
    }

    /// Fails the next `count` bindings.
    pub fn refuse_bindings(&self, count: u32) {
        self.lock().refuse_bindings = count;
    }

    /// Fails the next `count` deletions of pods.
    pub fn refuse_deletions(&self, count: u32) {
        self.lock().refuse_deletions = count;
    }

    /// Waits until `holds`.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !holds(self) {
                changed.changed().await.expect("the server lives");
            }
        };
        let deadline = std::time::Duration::from_mins(1);
        tokio::time::timeout(deadline, waiting).await.expect("in time");
    }

    fn list(&self, collection: &str) -> Answer {
        let state = self.lock();
        let items: Vec<&Value> =
            state.objects.get(collection).into_iter().flat_map(BTreeMap::values).collect();
        let version = state.version.max(1).to_string();
        answer(StatusCode::OK, &json!({"metadata": {"resourceVersion": version}, "items": items}))
    }

    fn watch(&self, collection: &str, from: u64) -> Answer {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        // What came between the list and the watch; deletions then are not part of these tests.
        for object in state.objects.get(collection).into_iter().flat_map(BTreeMap::values) {
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            if version.parse::<u64>().is_ok_and(|version| version > from) {
                let line = format!("{}\n", json!({"type": "ADDED", "object": object}));
                sender.send(Bytes::from(line)).expect("a receiver");
            }
        }
        state.watchers.push((collection.to_owned(), sender));
        let frames = futures::stream::unfold(receiver, |mut receiver| async move {
            let line = receiver.recv().await?;
            Some((Ok::<_, Infallible>(Frame::data(line)), receiver))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        Response::builder().status(StatusCode::OK).body(body).expect("a response")
    }

    fn bind(&self, pod_key: &str, binding: &Value) -> Answer {
        let mut state = self.lock();
        if state.refuse_bindings > 0 {
            state.refuse_bindings -= 1;
            return failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        drop(state);
        let Some(mut pod) = self.get("/api/v1/pods", pod_key) else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        if pod["spec"]["nodeName"].is_string() {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        pod["spec"]["nodeName"] = binding["target"]["name"].clone();
        self.put("/api/v1/pods", pod);
        answer(
            StatusCode::CREATED,
            &json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}}),
        )
    }

    fn refuses_deletion(&self) -> bool {
        let mut state = self.lock();
        let refuses = state.refuse_deletions > 0;
        state.refuse_deletions = state.refuse_deletions.saturating_sub(1);
        refuses
    }

    fn serve(&self, method: &Method, path: &str, query: &str, body: &Value) -> Answer {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        let from = from.and_then(|from| from.parse().ok()).unwrap_or(0);
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (method, parts.as_slice()) {
            (&Method::GET, _) if query.contains("watch=true") => self.watch(path, from),
            (&Method::GET, ["api", "v1", _] | ["apis", ..]) => self.list(path),
            (&Method::POST, ["api", "v1", "namespaces", ns, "pods", name, "binding"]) => {
                self.bind(&format!("{ns}/{name}"), body)
            }
            (&Method::PATCH, ["api", "v1", "namespaces", ns, "pods", name, "status"]) => {
                let Some(mut pod) = self.get("/api/v1/pods", &format!("{ns}/{name}")) else {
                    return failure(StatusCode::NOT_FOUND, "NotFound");
                };
                merge(&mut pod, body);
                self.put("/api/v1/pods", pod.clone());
                answer(StatusCode::OK, &pod)
            }
            (&Method::DELETE, ["api", "v1", "namespaces", ..]) if self.refuses_deletion() => {
                failure(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")
            }
            (&Method::DELETE, ["api", "v1", "namespaces", ns, "pods", name]) => {
                match self.delete("/api/v1/pods", &format!("{ns}/{name}")) {
                    Some(pod) => answer(StatusCode::OK, &pod),
                    None => failure(StatusCode::NOT_FOUND, "NotFound"),
                }
            }
            (&Method::POST, ["api", "v1", "namespaces", _, "events"]) => {
                self.put("/api/v1/events", body.clone());
                answer(StatusCode::CREATED, body)
            }
            _ => failure(StatusCode::NOT_FOUND, "NotFound"),
        }
    }
}

impl tower::Service<Request<Body>> for Api {
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Answer, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes =
                body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let query = parts.uri.query().unwrap_or_default().to_owned();
            Ok(api.serve(&parts.method, parts.uri.path(), &query, &body))
        })
    }
}
