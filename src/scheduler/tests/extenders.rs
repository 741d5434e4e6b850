//! Extenders, against a small server.

mod support;

use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::service::service_fn;
use scheduler::configuration::parse;
use scheduler::extender::Extender;
use scheduler::node::NodeInfo;
use scheduler::preemption::Candidate;
use serde_json::{Value, json};
use support::{node, pod};

/// A server that gives each path its answer and keeps what it was asked.
struct Server {
    address: std::net::SocketAddr,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(answers: Value) -> Server {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    let log = asked.clone();
    let answer = move |request: hyper::Request<hyper::body::Incoming>| {
        let (log, answers) = (log.clone(), answers.clone());
        async move {
            let path = request.uri().path().trim_start_matches('/').to_owned();
            let body = request.into_body().collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            log.lock().expect("a lock").push((path.clone(), body));
            let answer = answers[&path].to_string();
            Ok::<_, hyper::Error>(hyper::Response::new(Full::new(Bytes::from(answer))))
        }
    };
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(answer.clone());
            let io = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
        }
    });
    Server { address, asked, task }
}

impl Server {
    fn extender(&self, rest: &str) -> Extender {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let text = format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
             extenders: [{{urlPrefix: 'http://{}', {rest}}}]",
            self.address
        );
        let configuration = parse(&text).expect("a configuration");
        Extender::new(&configuration.extenders[0]).expect("an extender")
    }

    fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().expect("a lock").clone()
    }
}

fn nodes() -> [NodeInfo; 3] {
    ["a", "b", "c"].map(|name| NodeInfo::new(node(name, json!({}))))
}

#[tokio::test]
async fn nodes_are_filtered_and_rated() {
    let server = serve(json!({
        "filter": {"nodenames": ["a", "c"], "failedNodes": {"b": "no room"}, "error": ""},
        "rate": [{"host": "a", "score": 3}, {"host": "c", "score": 10}],
    }))
    .await;
    let extender = server
        .extender("filterVerb: filter, prioritizeVerb: rate, weight: 2, nodeCacheCapable: true");
    let (pod, nodes) = (pod("p", json!({})), nodes());
    let nodes: Vec<&NodeInfo> = nodes.iter().collect();
    let filtered = extender.filter(&pod, &nodes).await.expect("an answer");
    assert_eq!(filtered.left, ["a", "c"]);
    assert_eq!(filtered.failed["b"].reasons, ["no room"]);
    let scores = extender.prioritize(&pod, &nodes).await.expect("an answer");
    assert_eq!((scores["a"], scores["c"]), (60, 200));
    let asked = server.asked();
    assert_eq!(asked[0].1["NodeNames"], json!(["a", "b", "c"]));
    assert_eq!(asked[0].1["Pod"]["metadata"]["name"], "p");
}

#[tokio::test]
async fn whole_nodes_are_sent_to_those_who_keep_none() {
    let server =
        serve(json!({"filter": {"Nodes": {"items": [{"metadata": {"name": "b"}}]}}})).await;
    let extender = server.extender("filterVerb: filter");
    let (pod, nodes) = (pod("p", json!({})), nodes());
    let nodes: Vec<&NodeInfo> = nodes.iter().collect();
    let filtered = extender.filter(&pod, &nodes).await.expect("an answer");
    assert_eq!(filtered.left, ["b"]);
    assert_eq!(server.asked()[0].1["Nodes"]["items"][2]["metadata"]["name"], "c");
}

#[tokio::test]
async fn errors_and_silence_are_told() {
    let server = serve(json!({"filter": {"Error": "broken"}, "bind": {"Error": "taken"}})).await;
    let extender = server.extender("filterVerb: filter, bindVerb: bind, ignorable: true");
    let (pod, nodes) = (pod("p", json!({})), nodes());
    let refused = extender.filter(&pod, &[&nodes[0]]).await.expect_err("an error");
    assert!(refused.to_string().ends_with("broken"), "{refused}");
    let refused = extender.bind(&pod, "a").await.expect_err("an error");
    assert!(refused.to_string().ends_with("taken"), "{refused}");
    assert_eq!(server.asked()[1].1["PodUID"], "uid-p");
    assert!(extender.is_ignorable() && extender.binds() && !extender.preempts());
}

#[tokio::test]
async fn victims_are_agreed_upon() {
    let server = serve(json!({"preempt": {"NodeNameToMetaVictims": {
        "b": {"Pods": [{"UID": "uid-y"}], "NumPDBViolations": 1}}}}))
    .await;
    let extender = server.extender("preemptVerb: preempt, nodeCacheCapable: true");
    let victims = vec![pod("x", json!({})), pod("y", json!({}))];
    let candidates = ["a", "b"].map(|node| Candidate {
        node: node.into(),
        victims: victims.clone(),
        violations: 0,
    });
    let left = extender.preempt(&pod("p", json!({})), &candidates).await.expect("an answer");
    let told: Vec<_> = left
        .iter()
        .map(|left| (left.node.as_str(), left.victims[0].name.as_str(), left.violations))
        .collect();
    assert_eq!(told, [("b", "y", 1)]);
}

#[tokio::test]
async fn only_pods_with_its_resources_concern_an_extender() {
    let server = serve(json!({})).await;
    let extender = server.extender("filterVerb: f, managedResources: [{name: example.com/gpu}]");
    let asking = |name: &str| {
        pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"limits": {name: "1"}}}]}}),
        )
    };
    assert!(extender.is_interested(&asking("example.com/gpu")));
    assert!(!extender.is_interested(&asking("example.com/fpga")));
}
