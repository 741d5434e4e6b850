//! Pods that nobody will finish: on nodes that are gone, or deleted before they had a node; and finished
//! pods beyond a bound.
//!
//! Source: `pkg/controller/podgc/gc_controller.go`.

use std::collections::HashSet;
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::{ownership, pods, unless_code};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(20);
/// Finished pods that are kept (`--terminated-pod-gc-threshold`).
const FINISHED_MAX: usize = 12_500;

/// The pods to remove. A node counts as gone when two looks in a row did not see it: pods may be known
/// before their node is.
fn decide<'a>(
    pods: &'a [impl AsRef<Pod>],
    nodes: &HashSet<String>,
    missed: &HashSet<String>,
    keep: usize,
) -> Vec<&'a Pod> {
    let all: Vec<&Pod> = pods.iter().map(AsRef::as_ref).collect();
    let mut finished: Vec<&Pod> =
        all.iter().copied().filter(|pod| pods::is_finished(pod)).collect();
    finished.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    let surplus = finished.len().saturating_sub(keep);
    let mut unwanted = finished[..surplus].to_vec();
    for pod in all {
        let name = pods::node(pod);
        let orphaned = !name.is_empty() && !nodes.contains(name) && missed.contains(name);
        let unscheduled = name.is_empty() && pod.metadata.deletion_timestamp.is_some();
        if (orphaned || unscheduled) && !unwanted.iter().any(|other| std::ptr::eq(*other, pod)) {
            unwanted.push(pod);
        }
    }
    unwanted
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let (pods, nodes) = (informers.get::<Pod>(), informers.get::<Node>());
    pods.ready().await;
    nodes.ready().await;
    let mut missed: HashSet<String> = HashSet::new();
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = tick.tick() => {}
        }
        let known: HashSet<String> =
            nodes.store().state().iter().map(|node| node.name_any()).collect();
        let state = pods.store().state();
        for pod in decide(&state, &known, &missed, FINISHED_MAX) {
            let (namespace, name) = ownership::key(pod);
            let preconditions = Preconditions { uid: pod.uid(), ..Preconditions::default() };
            let parameters = DeleteParams::default().grace_period(0).preconditions(preconditions);
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            if let Err(error) = unless_code(api.delete(&name, &parameters).await, 404) {
                tracing::debug!(namespace, name, %error, "a pod without a node stays for now");
            }
        }
        let named = state.iter().map(|pod| pods::node(pod).to_owned());
        missed = named.filter(|name| !name.is_empty() && !known.contains(name)).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

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
    fn only_hopeless_pods_go() {
        let day = |n: u8| format!("2026-01-0{n}T00:00:00Z");
        let pods = [
            pod("fine", "here", "Running", false, &day(1)),
            pod("lost", "gone", "Running", false, &day(1)),
            pod("new", "late", "Running", false, &day(1)),
            pod("never", "", "Pending", true, &day(1)),
            pod("waiting", "", "Pending", false, &day(1)),
            pod("done-2", "here", "Succeeded", false, &day(3)),
            pod("done-1", "here", "Failed", false, &day(2)),
        ];
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<HashSet<_>>();
        let unwanted = decide(&pods, &set(&["here"]), &set(&["gone"]), 1);
        let names: Vec<String> = unwanted.iter().map(|pod| pod.name_any()).collect();
        assert_eq!(names, ["done-1", "lost", "never"]);
    }
}
