//! Pods that nobody will finish: on nodes that are gone, or deleted before they had a node; and finished
//! pods beyond a bound.
//!
//! Source: `pkg/controller/podgc/gc_controller.go`.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{ownership, pods, unless_code};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(20);
/// How long it waits for a node that pods name to be known, before it asks whether there is one.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods that are kept (`--terminated-pod-gc-threshold`).
const FINISHED_MAX: usize = 12_500;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What the nodes' names tell.
struct Nodes {
    /// Those that pods name and that are no more.
    gone: HashSet<String>,
    /// Those that are down, and will not come back with what ran there.
    out_of_service: HashSet<String>,
}

/// Nothing that ran there runs any more: a person says so, and the node does not contradict.
fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let tainted = taints.into_iter().any(|taint| taint.key == OUT_OF_SERVICE);
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    tainted && !ready
}

fn is_evicted(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    pods::phase(pod) == "Failed" && status.is_some_and(|s| s.reason.as_deref() == Some("Evicted"))
}

/// Nodes that pods name and that are not known, since when.
#[derive(Default)]
struct Missed(HashMap<String, Instant>);

impl Missed {
    /// Takes note of what pods `named` and what is `known`; returns those that were missed for long enough.
    fn look(&mut self, named: HashSet<&str>, known: &HashSet<String>, now: Instant) -> Vec<String> {
        self.0.retain(|name, _| named.contains(name.as_str()) && !known.contains(name));
        for name in named.into_iter().filter(|name| !name.is_empty() && !known.contains(*name)) {
            self.0.entry(name.to_owned()).or_insert(now);
        }
        let due = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= QUARANTINE);
        due.map(|(name, _)| name.clone()).collect()
    }
}

/// The pods to remove. Each is told with whether its node is gone.
fn decide<'a>(pods: &'a [impl AsRef<Pod>], nodes: &Nodes, keep: usize) -> Vec<(&'a Pod, bool)> {
    let all: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    let mut finished: Vec<&Pod> =
        all.iter().copied().filter(|pod| pods::is_finished(pod)).collect();
    // Evicted ones first, then the oldest.
    finished.sort_by_key(|pod| {
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (!is_evicted(pod), created, pod.name_any())
    });
    let surplus = finished.len().saturating_sub(keep);
    let mut unwanted: Vec<(&Pod, bool)> =
        finished[..surplus].iter().map(|pod| (*pod, false)).collect();
    for pod in all {
        let name = pods::node(pod);
        let orphaned = nodes.gone.contains(name);
        let going = pod.metadata.deletion_timestamp.is_some();
        let lost = going && (name.is_empty() || nodes.out_of_service.contains(name));
        let listed = unwanted.iter().any(|(other, _)| std::ptr::eq(*other, pod));
        if (orphaned || lost) && !listed {
            unwanted.push((pod, orphaned));
        }
    }
    unwanted
}

/// Removes the pod. One that ran on a node that is gone has failed, which is said first for the sake of
/// those who count.
async fn remove(client: &Client, pod: &Pod, orphaned: bool) -> Result<(), kube::Error> {
    let (namespace, name) = ownership::key(pod);
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    if !pods::is_finished(pod) {
        let mut status = json!({"phase": "Failed"});
        if orphaned {
            status["conditions"] = json!([{
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists",
                "observedGeneration": pod.metadata.generation,
                "lastTransitionTime": Time(Timestamp::now())}]);
        }
        let patch = Patch::Strategic(json!({"metadata": {"uid": pod.uid()}, "status": status}));
        unless_code(api.patch_status(&name, &PatchParams::default(), &patch).await, 404)?;
    }
    let preconditions = Preconditions { uid: pod.uid(), ..Preconditions::default() };
    let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
    unless_code(api.delete(&name, &parameters).await, 404)
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let (pods, nodes) = (informers.get::<Pod>(), informers.get::<Node>());
    pods.ready().await;
    nodes.ready().await;
    let api: Api<Node> = Api::all(client.clone());
    let mut missed = Missed::default();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let all = nodes.store().state();
        let known: HashSet<String> = all.iter().map(|node| node.name_any()).collect();
        let down = all.iter().filter(|node| is_out_of_service(node));
        let out_of_service = down.map(|node| node.name_any()).collect();
        let state = pods.store().state();
        let named = state.iter().map(|pod| pods::node(pod)).collect();
        let mut gone = HashSet::new();
        for name in missed.look(named, &known, Instant::now()) {
            // The cache's word is not enough.
            if matches!(api.get_opt(&name).await, Ok(None)) {
                gone.insert(name);
            }
        }
        for (pod, orphaned) in decide(&state, &Nodes { gone, out_of_service }, FINISHED_MAX) {
            if let Err(error) = remove(&client, pod, orphaned).await {
                let (namespace, name) = ownership::key(pod);
                tracing::debug!(namespace, name, %error, "a pod without a node stays for now");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn pod(name: &str, node: &str, phase: &str, deleted: bool, created: &str) -> Arc<Pod> {
        let deleted = deleted.then_some("2026-01-01T00:00:00Z");
        let node = (!node.is_empty()).then_some(node);
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "deletionTimestamp": deleted, "creationTimestamp": created},
                "spec": {"containers": [], "nodeName": node}, "status": {"phase": phase}}))
            .expect("a pod"),
        )
    }

    #[test]
    fn of_finished_pods_evicted_ones_go_first() {
        let day = |n: u8| format!("2026-01-0{n}T00:00:00Z");
        let mut evicted = Pod::clone(&pod("evicted", "here", "Failed", false, &day(3)));
        evicted.status.as_mut().expect("a status").reason = Some("Evicted".into());
        let pods = [
            pod("old", "here", "Failed", false, &day(1)),
            pod("done", "here", "Succeeded", false, &day(2)),
            Arc::new(evicted),
        ];
        let nodes = Nodes { gone: HashSet::new(), out_of_service: HashSet::new() };
        let names: Vec<String> =
            decide(&pods, &nodes, 1).iter().map(|(pod, _)| pod.name_any()).collect();
        assert_eq!(names, ["evicted", "old"]);
    }

    #[test]
    fn only_hopeless_pods_go() {
        let day = |n: u8| format!("2026-01-0{n}T00:00:00Z");
        let pods = [
            pod("fine", "here", "Running", false, &day(1)),
            pod("lost", "gone", "Running", false, &day(1)),
            pod("new", "late", "Running", false, &day(1)),
            pod("ended", "gone", "Succeeded", false, &day(4)),
            pod("stuck", "down", "Running", true, &day(1)),
            pod("stays", "down", "Running", false, &day(1)),
            pod("never", "", "Pending", true, &day(1)),
            pod("waiting", "", "Pending", false, &day(1)),
            pod("done-2", "here", "Succeeded", false, &day(3)),
            pod("done-1", "here", "Failed", false, &day(2)),
        ];
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<HashSet<_>>();
        let nodes = Nodes { gone: set(&["gone"]), out_of_service: set(&["down"]) };
        let unwanted = decide(&pods, &nodes, 2);
        let names: Vec<(String, bool)> =
            unwanted.iter().map(|(pod, orphaned)| (pod.name_any(), *orphaned)).collect();
        let want = [
            ("done-1", false),
            ("lost", true),
            ("ended", true),
            ("stuck", false),
            ("never", false),
        ];
        assert_eq!(names, want.map(|(name, orphaned)| (name.to_owned(), orphaned)));
    }

    #[test]
    fn a_node_is_waited_for_before_it_counts_as_gone() {
        let mut missed = Missed::default();
        let began = Instant::now();
        for (second, named, known, want) in [
            (0, vec!["a", "b", ""], vec!["b"], None),
            (20, vec!["a", "b"], vec!["b"], None),
            (40, vec!["a", "b"], vec!["b"], Some("a")),
            (41, vec!["a", "b"], vec!["a", "b"], None),
            (60, vec!["a", "b"], vec!["b"], None),
            (99, vec!["a"], vec![], None),
            (100, vec!["a"], vec![], Some("a")),
            (200, vec![], vec![], None),
            (201, vec!["a"], vec![], None),
        ] {
            let known = known.into_iter().map(str::to_owned).collect();
            let now = began + Duration::from_secs(second);
            let due = missed.look(named.into_iter().collect(), &known, now);
            assert_eq!(due.first().map(String::as_str), want, "{second}");
        }
    }
}
