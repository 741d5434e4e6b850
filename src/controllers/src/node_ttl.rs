//! How long kubelets may keep config maps and secrets, by the size of the cluster.
//!
//! Source: `pkg/controller/ttl/ttl_controller.go`.

use client::Informers;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{name, touched, unless_code};

const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// Seconds for a cluster of `nodes`.
fn ttl_s(nodes: usize) -> u32 {
    match nodes {
        0..=100 => 0,
        101..=500 => 15,
        501..=1000 => 30,
        1001..=2000 => 60,
        _ => 300,
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let nodes = informers.get::<Node>();
    nodes.ready().await;
    let changes = touched(&nodes, name);
    queue::run("ttl", changes, shutdown, |key: String| {
        let wanted = ttl_s(nodes.store().count()).to_string();
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
        for (nodes, want) in [(1, 0), (100, 0), (101, 15), (600, 30), (1500, 60), (5000, 300)] {
            assert_eq!(ttl_s(nodes), want);
        }
    }
}
