//! An API server in memory: objects by path, lists, watches, patches; no validation, no defaults.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::clock::Clock;

type Stream = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

#[derive(Default)]
struct Objects {
    version: u64,
    by_path: BTreeMap<String, Value>,
}

#[derive(Clone)]
pub struct FakeApi {
    objects: Arc<Mutex<Objects>>,
    /// Tokens given out; while it is set, no more are.
    tokens: Arc<Mutex<(u32, bool)>>,
    clock: Clock,
    changes: broadcast::Sender<(String, &'static str, Value)>,
}

impl FakeApi {
    pub fn new(clock: Clock) -> Self {
        let (objects, tokens) = (Arc::default(), Arc::default());
        Self { objects, tokens, clock, changes: broadcast::channel(4096).0 }
    }

    /// Whether requests for tokens fail.
    pub fn refuse_tokens(&self, refuse: bool) {
        self.tokens.lock().unwrap().1 = refuse;
    }

    /// A token that is another each time and expires when that was asked for.
    fn token(&self, request: &Value) -> Response<Stream> {
        let mut tokens = self.tokens.lock().unwrap();
        if tokens.1 {
            return failure(StatusCode::INTERNAL_SERVER_ERROR);
        }
        tokens.0 += 1;
        let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap();
        let at = self.clock.now() + jiff::SignedDuration::from_secs(seconds);
        answer(
            StatusCode::CREATED,
            &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
                "spec": request["spec"],
                "status": {"token": format!("token {}", tokens.0), "expirationTimestamp": at.to_string()}}),
        )
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.handle(request).await) }
        });
        client::in_process(service)
    }

    /// Writes an object as its author would.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        objects.version += 1;
        object["metadata"]["resourceVersion"] = objects.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", objects.version).into();
        }
        let kind = if objects.by_path.contains_key(path) { "MODIFIED" } else { "ADDED" };
        objects.by_path.insert(path.into(), object.clone());
        let _ = self.changes.send((path.into(), kind, object));
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().unwrap().by_path.get(path).cloned()
    }

    pub fn remove(&self, path: &str) {
        let removed = self.objects.lock().unwrap().by_path.remove(path);
        if let Some(object) = removed {
            let _ = self.changes.send((path.into(), "DELETED", object));
        }
    }

    /// Messages of events with their reasons, in order.
    pub fn events(&self) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        let mut events: Vec<&Value> = objects
            .by_path
            .iter()
            .filter(|(p, _)| p.contains("/events/"))
            .map(|(_, v)| v)
            .collect();
        events.sort_by_key(|e| {
            e["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
        });
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        events.iter().map(|e| format!("{} {}", text(&e["reason"]), text(&e["message"]))).collect()
    }

    /// Waits until the object at `path` fits.
    pub async fn until(
        &self,
        path: &str,
        what: &str,
        fits: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let mut changes = self.changes.subscribe();
        let wait = async {
            loop {
                let now = self.get(path);
                if fits(now.as_ref()) {
                    return now;
                }
                let _ = changes.recv().await;
            }
        };
        let found = tokio::time::timeout(std::time::Duration::from_mins(15), wait).await;
        found.unwrap_or_else(|_| {
            panic!("not seen: {what}; last: {:#}", self.get(path).unwrap_or_default())
        })
    }

    async fn handle(&self, request: Request<Body>) -> Response<Stream> {
        let path = request.uri().path().to_owned();
        let query: BTreeMap<String, String> =
            crate::server::pairs(request.uri().query().unwrap_or_default()).into_iter().collect();
        let method = request.method().clone();
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let named = {
            let objects = self.objects.lock().unwrap();
            objects.by_path.contains_key(path.trim_end_matches("/status"))
        } || method != Method::GET && method != Method::POST
            || path.rsplit('/').nth(1).is_some_and(|s| {
                matches!(
                    s,
                    "configmaps"
                        | "secrets"
                        | "leases"
                        | "nodes"
                        | "pods"
                        | "csinodes"
                        | "csidrivers"
                        | "resourceclaims"
                        | "volumeattachments"
                )
            });
        match method {
            Method::GET if query.contains_key("watch") => self.watch(&path, &query),
            Method::GET if named => match self.get(&path) {
                Some(object) => answer(StatusCode::OK, &object),
                None => failure(StatusCode::NOT_FOUND),
            },
            Method::GET => self.list(&path, &query),
            Method::POST if path.ends_with("/token") => self.token(&body),
            // A review, which is answered and not kept: nothing is allowed.
            Method::POST if body["metadata"]["name"].is_null() => {
                let mut review = body;
                review["status"] = json!({"allowed": false});
                answer(StatusCode::CREATED, &review)
            }
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.get(&path).is_some() {
                    return failure(StatusCode::CONFLICT);
                }
                self.put(&path, body);
                answer(StatusCode::CREATED, &self.get(&path).unwrap())
            }
            Method::PUT => {
                self.put(&path, body);
                answer(StatusCode::OK, &self.get(&path).unwrap())
            }
            Method::PATCH => self.patch(path.trim_end_matches("/status"), &body),
            Method::DELETE => {
                if self.get(&path).is_none() {
                    return failure(StatusCode::NOT_FOUND);
                }
                self.remove(&path);
                answer(
                    StatusCode::OK,
                    &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
                )
            }
            _ => failure(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    fn patch(&self, path: &str, body: &Value) -> Response<Stream> {
        let Some(mut object) = self.get(path) else { return failure(StatusCode::NOT_FOUND) };
        let uid = &body["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT);
        }
        merge(&mut object, body);
        self.put(path, object);
        answer(StatusCode::OK, &self.get(path).unwrap())
    }

    fn list(&self, path: &str, query: &BTreeMap<String, String>) -> Response<Stream> {
        let objects = self.objects.lock().unwrap();
        let items: Vec<&Value> = objects
            .by_path
            .iter()
            .filter(|(p, v)| selected(path, query, p, v))
            .map(|(_, v)| v)
            .collect();
        answer(
            StatusCode::OK,
            &json!({"kind": "List", "apiVersion": "v1",
                "metadata": {"resourceVersion": objects.version.to_string()}, "items": items}),
        )
    }

    fn watch(&self, path: &str, query: &BTreeMap<String, String>) -> Response<Stream> {
        let (objects, changes) = (self.objects.lock().unwrap(), self.changes.subscribe());
        let from: u64 = query.get("resourceVersion").and_then(|v| v.parse().ok()).unwrap_or(0);
        let version =
            |v: &Value| v["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
        let missed: Vec<Bytes> = objects
            .by_path
            .iter()
            .filter(|(p, v)| version(v) > from && selected(path, query, p, v))
            .map(|(_, v)| line("MODIFIED", v))
            .collect();
        drop(objects);
        let (path, query) = (path.to_owned(), query.clone());
        let live = futures::stream::unfold(changes, move |mut changes| {
            let (path, query) = (path.clone(), query.clone());
            async move {
                loop {
                    let (of, kind, object) = changes.recv().await.ok()?;
                    if selected(&path, &query, &of, &object) {
                        return Some((line(kind, &object), changes));
                    }
                }
            }
        });
        let frames =
            futures::stream::iter(missed).chain(live).map(|b| Ok(http_body::Frame::data(b)));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": kind, "object": object})))
}

/// Whether the object at `of` is in the collection at `path`, all namespaces included.
fn selected(path: &str, query: &BTreeMap<String, String>, of: &str, object: &Value) -> bool {
    let Some((collection, _)) = of.rsplit_once('/') else { return false };
    let plural = |p: &str| p.rsplit('/').next().unwrap_or_default().to_owned();
    let all = !path.contains("/namespaces/") && plural(path) == plural(collection);
    let field = |text: &str| -> Option<bool> {
        let (key, value) = text.split_once('=')?;
        Some(object.pointer(&format!("/{}", key.replace('.', "/")))?.as_str()? == value)
    };
    (collection == path || all) && query.get("fieldSelector").is_none_or(|f| field(f) == Some(true))
}

/// Merge patch, with the two list rules the kubelet's patches rely on.
fn merge(target: &mut Value, patch: &Value) {
    let (Some(target), Some(patch)) = (target.as_object_mut(), patch.as_object()) else { return };
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => {
                target.remove(key);
            }
            ("conditions", Value::Array(changed)) => {
                let list = target.entry(key).or_insert_with(|| json!([]));
                let list = list.as_array_mut().unwrap();
                for condition in changed {
                    list.retain(|c| c["type"] != condition["type"]);
                    if condition["$patch"].is_null() {
                        list.push(condition.clone());
                    }
                }
            }
            (_, Value::Array(items)) => {
                let items = items.iter().filter(|i| i["$patch"].is_null()).cloned().collect();
                target.insert(key.clone(), Value::Array(items));
            }
            (_, Value::Object(_)) => merge(target.entry(key).or_insert_with(|| json!({})), value),
            _ => {
                target.insert(key.clone(), value.clone());
            }
        }
    }
}

fn answer(code: StatusCode, body: &Value) -> Response<Stream> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
}

fn failure(code: StatusCode) -> Response<Stream> {
    // The words of `metav1.StatusReason`.
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    answer(
        code,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": reason, "reason": reason, "code": code.as_u16()}),
    )
}
