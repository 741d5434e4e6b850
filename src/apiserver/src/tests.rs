//! Requests in process against a store in memory.

pub mod https;

use std::sync::Arc;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::Service;

use crate::body::Body;
use crate::{ApiServer, Config, InProcess, UserInfo};

/// A server in memory, and what keeps its files.
pub struct Fixture {
    pub api: ApiServer,
    pub admin: InProcess,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
pub struct Answer {
    pub code: StatusCode,
    pub headers: http::HeaderMap,
    pub body: Value,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with_kubelets(Arc::new(|_, _| None)).await
    }

    pub async fn with_kubelets(node_address: crate::NodeAddress) -> Self {
        Self::over(store::memory(), node_address).await
    }

    pub async fn over(store: store::Store, node_address: crate::NodeAddress) -> Self {
        Self::start(store, node_address, crate::Access::default()).await
    }

    pub async fn with_access(access: crate::Access) -> Self {
        Self::start(store::memory(), Arc::new(|_, _| None), access).await
    }

    async fn start(
        store: store::Store,
        node_address: crate::NodeAddress,
        access: crate::Access,
    ) -> Self {
        Self::try_start(store, node_address, access).await.expect("starts")
    }

    /// With APIs that are off by default.
    pub async fn offering(apis: &[&str]) -> Self {
        let apis = apis.iter().map(|api| (*api).to_owned()).collect();
        let access = crate::Access::default();
        Self::begin(store::memory(), Arc::new(|_, _| None), access, apis).await.expect("starts")
    }

    pub async fn try_start(
        store: store::Store,
        node_address: crate::NodeAddress,
        access: crate::Access,
    ) -> Result<Self, crate::Error> {
        Self::begin(store, node_address, access, Vec::new()).await
    }

    async fn begin(
        store: store::Store,
        node_address: crate::NodeAddress,
        access: crate::Access,
        runtime_config: Vec<String>,
    ) -> Result<Self, crate::Error> {
        let dir = tempfile::tempdir().expect("a directory");
        let api = ApiServer::start(Config {
            store,
            shared: true,
            data_dir: dir.path().to_owned(),
            listen: Vec::new(),
            service_cidr: "10.43.0.0/16".into(),
            advertise: "10.42.0.1:6443".parse().expect("an address"),
            cluster_domain: "cluster.local".into(),
            extra_sans: Vec::new(),
            node_address,
            dial: crate::webhook::direct(),
            access,
            in_process: vec!["controller-manager".into()],
            metrics: Box::new(|_| ()),
            runtime_config,
            shutdown: CancellationToken::new(),
        })
        .await?;
        let admin = api.as_user(UserInfo::new("kubernetes-admin", &["system:masters"]));
        Ok(Self { api, admin, _dir: dir })
    }

    pub async fn send(&self, request: http::request::Builder, body: impl Into<Body>) -> Answer {
        let request = request.body(body.into()).expect("a request");
        let response = self.admin.clone().call(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a body").to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Answer { code: parts.status, headers: parts.headers, body }
    }

    /// The same server as somebody else sees it.
    pub fn seen_by(self, user: UserInfo) -> Self {
        Self { admin: self.api.as_user(user), ..self }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(http::Request::get(path), Body::Empty).await
    }

    pub async fn request(&self, method: Method, path: &str, body: &Value) -> Answer {
        let builder = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        self.send(builder, body.to_string()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request(Method::POST, path, body).await
    }

    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let content_type = format!("application/{kind}-patch+json");
        let builder = http::Request::patch(path).header("content-type", content_type);
        self.send(builder, body.to_string()).await
    }

    /// Waits until the server's metrics have `text`.
    pub async fn until_metric(&self, text: &str) {
        let mut admin = self.api.as_user(UserInfo::new("kubernetes-admin", &["system:masters"]));
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let request = http::Request::get("/metrics").body(Body::Empty).expect("a request");
            let response = admin.call(request).await.expect("infallible");
            let bytes = response.into_body().collect().await.expect("a body").to_bytes();
            if String::from_utf8_lossy(&bytes).contains(text) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "no {text}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    pub async fn watch(&self, path: &str) -> Watch {
        let request = http::Request::get(path).body(Body::Empty).expect("a request");
        let response = self.admin.clone().call(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }
}

/// The events of a watch, one by one.
pub struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("JSON lines"));
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(10), self.body.frame())
                .await
                .expect("an event within the deadline")?;
            self.buffer.extend_from_slice(&frame.expect("no error").into_data().expect("data"));
        }
    }

    /// `TYPE name` of the next event.
    pub async fn tell(&mut self) -> String {
        let event = self.next().await.expect("an event");
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap_or_default())
    }
}

pub fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn an_object_lives_and_dies() {
    let f = Fixture::new().await;
    let made = f.post(MAPS, &config_map("a")).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.body["metadata"]["namespace"], "default");
    assert_eq!(f.get(&format!("{MAPS}/a")).await.body, made.body);
    let again = f.post(MAPS, &config_map("a")).await;
    assert_eq!((again.code.as_u16(), &again.body["reason"]), (409, &json!("AlreadyExists")));
    let mut changed = made.body.clone();
    changed["data"]["a"] = "c".into();
    let updated = f.request(Method::PUT, &format!("{MAPS}/a"), &changed).await;
    assert_eq!(updated.code, 200, "{}", updated.body);
    let stale = f.request(Method::PUT, &format!("{MAPS}/a"), &changed).await;
    assert_eq!(
        stale.body["message"],
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the latest version and try again"
    );
    let patched =
        f.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"x": "y", "a": null}})).await;
    assert_eq!(patched.body["data"], json!({"x": "y"}));
    let unchanged = f.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"x": "y"}})).await;
    assert_eq!(
        unchanged.body["metadata"]["resourceVersion"],
        patched.body["metadata"]["resourceVersion"]
    );
    let gone = f.request(Method::DELETE, &format!("{MAPS}/a"), &json!({})).await;
    assert_eq!((gone.code.as_u16(), &gone.body["status"]), (200, &json!("Success")));
    let missing = f.get(&format!("{MAPS}/a")).await;
    assert_eq!(
        (missing.code.as_u16(), &missing.body["message"]),
        (404, &json!("configmaps \"a\" not found"))
    );
}

#[tokio::test]
async fn names_are_generated() {
    let f = Fixture::new().await;
    let made = f.post(MAPS, &json!({"metadata": {"generateName": "x-"}})).await;
    let name = made.body["metadata"]["name"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("x-") && name.len() == 7, "{name}");
}

#[tokio::test]
async fn what_is_not_there_is_told_as_upstreams_routers_tell_it() {
    let f = Fixture::new().await;
    let page = json!("404 page not found\n");
    for path in
        ["/nope", "/apis/no.such", "/apis/no.such/v1", "/apis/no.such/v1/things/a", "/apis2"]
    {
        let answer = f.get(path).await;
        assert_eq!((answer.code.as_u16(), &answer.body), (404, &page), "{path}");
        assert_eq!(answer.headers["content-type"], "text/plain; charset=utf-8");
    }
    for path in ["/api/v2", "/api/v1/nosuch", "/apis/apps/v9/deployments", "/apis/apps/v1/nosuch/a"]
    {
        let answer = f.get(path).await;
        let message = json!("the server could not find the requested resource");
        assert_eq!((answer.code.as_u16(), &answer.body["message"]), (404, &message), "{path}");
    }
}

#[tokio::test]
async fn a_dry_run_leaves_nothing() {
    let f = Fixture::new().await;
    let made = f.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await;
    assert_eq!(made.code, 201);
    assert_eq!(f.get(&format!("{MAPS}/a")).await.code, 404);
}

#[tokio::test]
async fn a_watch_tells_what_selectors_see() {
    let f = Fixture::new().await;
    f.post(MAPS, &config_map("before")).await;
    let mut all = f.watch(&format!("{MAPS}?watch=true&labelSelector=!internal")).await;
    assert_eq!(all.tell().await, "ADDED before");
    let mut red = f.watch(&format!("{MAPS}?watch=true&labelSelector=color%3Dred")).await;
    f.post(MAPS, &config_map("a")).await;
    f.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"color": "red"}}}))
        .await;
    f.patch(&format!("{MAPS}/a"), "merge", &json!({"data": {"n": "1"}})).await;
    f.patch(&format!("{MAPS}/a"), "merge", &json!({"metadata": {"labels": {"color": "blue"}}}))
        .await;
    f.request(Method::DELETE, &format!("{MAPS}/a"), &json!({})).await;
    assert_eq!(
        [red.tell().await, red.tell().await, red.tell().await],
        ["ADDED a", "MODIFIED a", "DELETED a"]
    );
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(all.tell().await);
    }
    assert_eq!(seen, ["ADDED a", "MODIFIED a", "MODIFIED a", "MODIFIED a", "DELETED a"]);
}

#[tokio::test]
async fn a_watch_streams_the_list_first_when_asked() {
    let f = Fixture::new().await;
    f.post(MAPS, &config_map("a")).await;
    let mut watch = f
        .watch(&format!("{MAPS}?watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"))
        .await;
    assert_eq!(watch.tell().await, "ADDED a");
    let bookmark = watch.next().await.expect("a bookmark");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn lists_come_in_consistent_chunks() {
    let f = Fixture::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        f.post(MAPS, &config_map(name)).await;
    }
    let first = f.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(first.body["metadata"]["remainingItemCount"], 3);
    let token = first.body["metadata"]["continue"].as_str().expect("a token").to_owned();
    f.request(Method::DELETE, &format!("{MAPS}/c"), &json!({})).await;
    let rest = f.get(&format!("{MAPS}?limit=500&continue={token}")).await;
    let names: Vec<&str> = rest.body["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .collect();
    assert_eq!(names, ["c", "d", "e"]);
    assert_eq!(rest.body["metadata"]["resourceVersion"], first.body["metadata"]["resourceVersion"]);
    assert_eq!(f.get(&format!("{MAPS}?continue=x")).await.code, 400);
}

#[tokio::test]
async fn bodies_have_a_limit() {
    let f = Fixture::new().await;
    let huge = json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat(4 << 20)}});
    let refused = f.post(MAPS, &huge).await;
    assert_eq!(refused.code, 413);
    assert_eq!(refused.body["message"], "Request entity too large: limit is 3145728");
}

#[tokio::test]
async fn unknown_fields_are_told_or_refused() {
    let f = Fixture::new().await;
    let odd = json!({"metadata": {"name": "a"}, "dta": {}});
    let refused = f.post(&format!("{MAPS}?fieldValidation=Strict"), &odd).await;
    let want = "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dta\"";
    assert_eq!((refused.code.as_u16(), &refused.body["message"]), (400, &json!(want)));
    let warned = f.post(MAPS, &odd).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"dta\\\"\"");
}

#[tokio::test]
async fn an_event_shows_in_both_groups() {
    let f = Fixture::new().await;
    let event = json!({"metadata": {"name": "e"}, "note": "hello", "reason": "Testing", "type": "Normal",
        "eventTime": "2026-01-01T00:00:00.000000Z", "action": "Test", "reportingController": "x/y",
        "reportingInstance": "z", "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}});
    let made = f.post("/apis/events.k8s.io/v1/namespaces/default/events", &event).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(
        (&made.body["apiVersion"], &made.body["note"]),
        (&json!("events.k8s.io/v1"), &json!("hello"))
    );
    let core = f.get("/api/v1/namespaces/default/events/e").await;
    assert_eq!((&core.body["message"], &core.body["apiVersion"]), (&json!("hello"), &json!("v1")));
    let listed = f.get("/apis/events.k8s.io/v1/events").await;
    assert_eq!(listed.body["items"][0]["note"], "hello");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let f = Fixture::new().await;
    for name in ["a", "b", "c"] {
        let mut map = config_map(name);
        map["metadata"]["labels"] = json!({"keep": (name == "b").to_string()});
        f.post(MAPS, &map).await;
    }
    let path = format!("{MAPS}?labelSelector=keep%3Dfalse");
    assert_eq!(f.request(Method::DELETE, &path, &json!({})).await.code, 200);
    let left = f.get(&format!("{MAPS}?labelSelector=keep")).await;
    assert_eq!(left.body["items"].as_array().map(Vec::len), Some(1));
}

/// Servers over one store see each other's objects, and give out no address twice.
#[tokio::test]
async fn two_servers_share_a_store() {
    let store = store::memory();
    let (one, other) = tokio::join!(
        Fixture::over(store.clone(), Arc::new(|_, _| None)),
        Fixture::over(store, Arc::new(|_, _| None)),
    );
    assert_eq!(one.api.pki().ca_pem(), other.api.pki().ca_pem());
    let mut watch = other.watch(&format!("{MAPS}?watch=true&labelSelector=shared")).await;
    let mut map = config_map("a");
    map["metadata"]["labels"] = json!({"shared": ""});
    assert_eq!(one.post(MAPS, &map).await.code, 201);
    assert_eq!(other.get(&format!("{MAPS}/a")).await.body["data"], json!({"a": "b"}));
    assert_eq!(watch.tell().await, "ADDED a");
    assert_eq!(other.post(MAPS, &map).await.code, 409);

    let services = "/api/v1/namespaces/default/services";
    let service = |name: String| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let (bodies_a, bodies_b): (Vec<_>, Vec<_>) =
        (0..20).map(|i| (service(format!("a{i}")), service(format!("b{i}")))).unzip();
    let answers = futures::future::join_all(
        bodies_a
            .iter()
            .map(|body| one.post(services, body))
            .chain(bodies_b.iter().map(|body| other.post(services, body))),
    )
    .await;
    let mut addresses = std::collections::BTreeSet::new();
    let mut ports = std::collections::BTreeSet::new();
    for answer in &answers {
        assert_eq!(answer.code, 201, "{}", answer.body);
        addresses.insert(answer.body["spec"]["clusterIP"].to_string());
        ports.insert(answer.body["spec"]["ports"][0]["nodePort"].to_string());
    }
    assert_eq!((addresses.len(), ports.len()), (40, 40));
}

#[tokio::test]
async fn metrics_have_the_names_that_dashboards_look_for() {
    let f = Fixture::new().await;
    assert_eq!(f.post(MAPS, &config_map("a")).await.code, 201);
    let text = f.get("/metrics").await.body.as_str().expect("text").to_owned();
    for name in [
        r#"apiserver_request_total{verb="POST",group="",version="v1",resource="configmaps""#,
        "apiserver_request_duration_seconds_bucket{",
        "apiserver_request_sli_duration_seconds_bucket{",
        r#"etcd_request_duration_seconds_count{operation="create",group="",resource="configmaps"} "#,
        r#"apiserver_resource_objects{group="",resource="configmaps"} "#,
        r#"apiserver_storage_objects{resource="clusterroles.rbac.authorization.k8s.io"} "#,
        "apiserver_current_inflight_requests{",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        "process_open_fds ",
    ] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
}

#[tokio::test]
async fn a_template_generation_is_a_number() {
    let f = Fixture::new().await;
    let sets = "/apis/apps/v1/namespaces/default/daemonsets";
    let set = |generation: &str| {
        json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d", "annotations":
            {"deprecated.daemonset.template.generation": generation}}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
    };
    for (generation, why) in
        [("two", "invalid syntax"), ("99999999999999999999", "value out of range")]
    {
        let refused = f.post(sets, &set(generation)).await;
        let want = format!(
            "DaemonSet in version \"v1\" cannot be handled as a DaemonSet: strconv.ParseInt: parsing {generation:?}: {why}"
        );
        assert_eq!((refused.code.as_u16(), &refused.body["message"]), (400, &json!(want)));
    }
    assert_eq!(f.post(sets, &set("2")).await.code, 201);
    let patched =
        json!({"metadata": {"annotations": {"deprecated.daemonset.template.generation": "x"}}});
    assert_ne!(f.patch(&format!("{sets}/d"), "merge", &patched).await.code, 200);
}

#[tokio::test]
async fn what_the_server_does_is_told() {
    let f = Fixture::new().await;
    f.until_metric(
        "apiserver_flowcontrol_nominal_limit_seats{priority_level=\"workload-low\"} 245\n",
    )
    .await;
    f.post(&format!("{MAPS}?dryRun=All"), &config_map("a")).await;
    let Value::String(text) = f.get("/metrics").await.body else { panic!("a text") };
    for line in [
        "# TYPE apiserver_request_total counter\n",
        "resource=\"configmaps\",subresource=\"\",scope=\"namespace\",component=\"apiserver\",dry_run=\"All\",code=\"201\"} 1\n",
        "authentication_attempts{result=\"success\"} ",
        "authorization_attempts_total{result=\"allowed\"} ",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(!text.contains("# EOF"));
    let levels = f.get("/debug/api_priority_and_fairness/dump_priority_levels").await;
    assert!(
        levels
            .body
            .as_str()
            .is_some_and(|text| text.starts_with("PriorityLevelName, ActiveQueues,"))
    );
    let health = f.get("/readyz?verbose&exclude=zz&exclude=etcd").await;
    let health = health.body.as_str().expect("a text").to_owned();
    for line in [
        "[+]etcd excluded: ok\n",
        "[+]etcd-readiness ok\n",
        "[+]poststarthook/priority-and-fairness-filter ok\n",
        "warn: some health checks cannot be excluded: no matches for \"zz\"\nreadyz check passed\n",
    ] {
        assert!(health.contains(line), "{line} in {health}");
    }
    let slis = f.get("/metrics/slis").await;
    let slis = slis.body.as_str().expect("a text").to_owned();
    for line in [
        "kubernetes_healthcheck{name=\"ping\",type=\"readyz\"} 1\n",
        "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"readyz\"} 1\n",
    ] {
        assert!(slis.contains(line), "{line} in {slis}");
    }
    assert!(!slis.contains("name=\"etcd\""), "what was excluded was not checked: {slis}");
}

#[tokio::test]
async fn the_server_says_since_when_it_runs() {
    let f = Fixture::new().await;
    let asked = async |accept: &str| {
        f.send(http::Request::get("/statusz").header("accept", accept), Body::Empty).await
    };
    let text = asked("*/*").await;
    let text = text.body.as_str().expect("a text");
    assert!(
        text.starts_with("\napiserver statusz\nWarning: ") && text.contains("\nStarted: "),
        "{text}"
    );
    for (version, warned) in [("v1beta1", false), ("v1alpha1", true)] {
        let kind = format!("application/json;g=config.k8s.io;v={version};as=Statusz");
        let told = asked(&kind).await;
        assert_eq!(told.headers["content-type"], kind);
        assert_eq!(told.headers.contains_key("warning"), warned);
        assert_eq!(told.body["apiVersion"], format!("config.k8s.io/{version}"));
        assert_eq!(
            (&told.body["kind"], &told.body["binaryVersion"]),
            (&json!("Statusz"), &json!("1.36"))
        );
    }
    assert_eq!(asked("application/json").await.code, 406);
}
