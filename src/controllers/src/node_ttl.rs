//! How long kubelets may keep config maps and secrets, by the size of the cluster.
//!
//! Source: `pkg/controller/ttl/ttl_controller.go`.

use std::sync::atomic::{AtomicUsize, Ordering};

use client::Informers;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{name, touched, unless_code};

const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// Up to how many nodes for how many seconds, and below how many the step before holds again: one node more or less
/// does not change all of them each time.
const STEPS: &[(usize, usize, u32)] = &[
    (0, 100, 0),
    (90, 500, 15),
    (450, 1000, 30),
    (900, 2000, 60),
    (1800, 10000, 300),
    (9000, usize::MAX, 600),
];

/// The step for a cluster of `nodes` that has been at `step`.
fn next_step(mut step: usize, nodes: usize) -> usize {
    while nodes > STEPS[step].1 {
        step += 1;
    }
    while nodes < STEPS[step].0 {
        step -= 1;
    }
    step
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let nodes = informers.get::<Node>();
    nodes.ready().await;
    let changes = touched(&nodes, name);
    let step = AtomicUsize::new(0);
    queue::run("ttl", changes, shutdown, |key: String| {
        let now = next_step(step.load(Ordering::Relaxed), nodes.store().count());
        step.store(now, Ordering::Relaxed);
        let wanted = STEPS[now].2.to_string();
        let found = nodes.get("", &key);
        let stale = found.is_some_and(|node| node.annotations().get(TTL) != Some(&wanted));
        let api: Api<Node> = Api::all(client.clone());
        Box::pin(async move {
            if stale {
                let patch = Patch::Merge(json!({"metadata": {"annotations": {TTL: wanted}}}));
                unless_code(api.patch(&key, &PatchParams::default(), &patch).await, 404)?;
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_clusters_ask_less_often() {
        for (before, nodes, want) in [
            (0, 1, 0),
            (0, 100, 0),
            (0, 101, 15),
            (1, 95, 15),
            (1, 89, 0),
            (0, 600, 30),
            (2, 450, 30),
            (2, 449, 15),
            (0, 1500, 60),
            (0, 5000, 300),
            (0, 10_001, 600),
            (5, 9000, 600),
            (5, 8999, 300),
            (5, 0, 0),
        ] {
            assert_eq!(STEPS[next_step(before, nodes)].2, want, "{before} {nodes}");
        }
    }
}
