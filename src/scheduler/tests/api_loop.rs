//! The loop against a small API server.

mod support;

use std::collections::BTreeMap;

use client::Informers;
use scheduler::Config;
use serde_json::{Value, json};
use support::api::Api;
use support::{asking, node_json, pod_json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PODS: &str = "/api/v1/pods";
const NODES: &str = "/api/v1/nodes";
const EVENTS: &str = "/api/v1/events";

struct Running {
    stop: CancellationToken,
    task: JoinHandle<Result<(), scheduler::extender::Error>>,
}

fn start(api: &Api) -> Running {
    let stop = CancellationToken::new();
    let client = api.client();
    let config = Config::new(client.clone(), Informers::new(client));
    let task = tokio::spawn(scheduler::run(config, stop.clone()));
    Running { stop, task }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("a scheduler that ends well").expect("right settings");
    }
}

fn node_of(api: &Api, name: &str) -> Option<String> {
    let pod = api.get(PODS, &format!("default/{name}"))?;
    pod["spec"]["nodeName"].as_str().map(str::to_owned)
}

fn condition(api: &Api, name: &str) -> Option<Value> {
    let pod = api.get(PODS, &format!("default/{name}"))?;
    pod["status"]["conditions"].get(0).cloned()
}

fn messages(api: &Api, reason: &str) -> Vec<String> {
    let events = api.all(EVENTS);
    let mut messages: Vec<String> = events
        .iter()
        .filter(|event| event["reason"] == reason)
        .map(|event| event["message"].as_str().unwrap_or_default().to_owned())
        .collect();
    messages.sort();
    messages
}

#[tokio::test]
async fn a_pod_gets_a_node_and_an_event() {
    let api = Api::new();
    api.put(NODES, node_json("n", json!({})));
    api.put(PODS, pod_json("before", json!({})));
    let running = start(&api);
    api.until(|api| node_of(api, "before").is_some()).await;
    api.put(PODS, pod_json("after", json!({})));
    api.put(PODS, pod_json("foreign", json!({"spec": {"schedulerName": "another"}})));
    api.until(|api| messages(api, "Scheduled").len() == 2).await;
    assert_eq!(
        messages(&api, "Scheduled"),
        ["Successfully assigned default/after to n", "Successfully assigned default/before to n"]
    );
    assert_eq!(node_of(&api, "foreign"), None);
    running.stop().await;
}

#[tokio::test]
async fn a_pod_waits_until_a_node_can_take_it() {
    let api = Api::new();
    let running = start(&api);
    api.put(PODS, pod_json("p", json!({"spec": asking("5", "1Gi")})));
    api.until(|api| condition(api, "p").is_some()).await;
    let told = condition(&api, "p").expect("a condition");
    assert_eq!(told["message"], "no nodes available to schedule pods");
    api.put(NODES, node_json("small", json!({})));
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are \
                   available: 1 Preemption is not helpful for scheduling.";
    api.until(|api| condition(api, "p").is_some_and(|told| told["message"] == message)).await;
    let told = condition(&api, "p").expect("a condition");
    assert_eq!(
        (told["status"].as_str(), told["reason"].as_str()),
        (Some("False"), Some("Unschedulable"))
    );
    api.until(|api| messages(api, "FailedScheduling").iter().any(|told| told == message)).await;
    api.put(NODES, node_json("large", json!({"status": {"allocatable": {"cpu": "8"}}})));
    api.until(|api| node_of(api, "p").as_deref() == Some("large")).await;
    running.stop().await;
}

#[tokio::test]
async fn room_that_a_deleted_pod_leaves_is_used() {
    let api = Api::new();
    api.put(NODES, node_json("n", json!({})));
    api.put(PODS, pod_json("first", json!({"spec": asking("3", "1Gi")})));
    let running = start(&api);
    api.until(|api| node_of(api, "first").is_some()).await;
    api.put(PODS, pod_json("second", json!({"spec": asking("3", "1Gi")})));
    let message = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are \
                   available: 1 No preemption victims found for incoming pod.";
    api.until(|api| condition(api, "second").is_some_and(|told| told["message"] == message)).await;
    api.delete(PODS, "default/first");
    api.until(|api| node_of(api, "second").is_some()).await;
    running.stop().await;
}

#[tokio::test]
async fn a_refused_binding_is_tried_again() {
    let api = Api::new();
    api.put(NODES, node_json("n", json!({})));
    api.refuse_bindings(1);
    let running = start(&api);
    api.put(PODS, pod_json("p", json!({"spec": asking("3", "1Gi")})));
    api.until(|api| condition(api, "p").is_some_and(|told| told["reason"] == "SchedulerError"))
        .await;
    api.until(|api| node_of(api, "p").is_some()).await;
    running.stop().await;
}

#[tokio::test]
async fn a_more_important_pod_takes_the_place_of_a_lesser_one() {
    let important = |cpu: &str, priority: i32| {
        let mut spec = asking(cpu, "1Gi");
        spec["priority"] = json!(priority);
        json!({"spec": spec})
    };
    let api = Api::new();
    api.put(NODES, node_json("n", json!({})));
    api.put(PODS, pod_json("lesser", important("3", 0)));
    let running = start(&api);
    api.until(|api| node_of(api, "lesser").is_some()).await;
    api.put(PODS, pod_json("greater", important("3", 100)));
    api.until(|api| node_of(api, "greater").is_some()).await;
    assert_eq!(node_of(&api, "lesser"), None);
    api.until(|api| !messages(api, "Preempted").is_empty()).await;
    assert_eq!(messages(&api, "Preempted"), ["Preempted by pod uid-greater on node n"]);
    running.stop().await;
}

#[tokio::test]
async fn a_pod_whose_preemption_fails_tries_again() {
    let with = |priority: i32| {
        let mut spec = asking("3", "1Gi");
        spec["priority"] = json!(priority);
        json!({"spec": spec})
    };
    let api = Api::new();
    api.put(NODES, node_json("n", json!({})));
    api.put(PODS, pod_json("lesser", with(0)));
    let running = start(&api);
    api.until(|api| node_of(api, "lesser").is_some()).await;
    api.refuse_deletions(1);
    api.put(PODS, pod_json("greater", with(100)));
    api.until(|api| node_of(api, "greater").is_some()).await;
    assert_eq!(node_of(&api, "lesser"), None);
    running.stop().await;
}

#[tokio::test]
async fn many_pods_fill_many_nodes_without_over_committing_one() {
    const NODES_COUNT: usize = 50;
    const PODS_COUNT: usize = 1000;
    let api = Api::new();
    for index in 0..NODES_COUNT {
        api.put(NODES, node_json(&format!("n{index}"), json!({})));
    }
    let running = start(&api);
    let started = std::time::Instant::now();
    for index in 0..PODS_COUNT {
        api.put(PODS, pod_json(&format!("p{index}"), json!({"spec": asking("200m", "100Mi")})));
    }
    let placed =
        |api: &Api| api.all(PODS).iter().filter(|pod| pod["spec"]["nodeName"].is_string()).count();
    // Exactly as many as there is room for: 20 pods of a fifth of a CPU on each node.
    api.until(|api| placed(api) == PODS_COUNT).await;
    println!("{PODS_COUNT} pods in {:?}", started.elapsed());
    let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
    for pod in api.all(PODS) {
        *per_node.entry(pod["spec"]["nodeName"].to_string()).or_default() += 1;
    }
    assert!(per_node.values().all(|count| *count == PODS_COUNT / NODES_COUNT), "{per_node:?}");
    running.stop().await;
}
