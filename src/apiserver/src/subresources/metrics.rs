//! `metrics.k8s.io/v1beta1`: what nodes and pods use now, as a metrics server would tell it. Each question is
//! passed on to the kubelets, which measure when asked and not otherwise.
//!
//! Source: `k8s.io/metrics/pkg/apis/metrics/v1beta1`, metrics-server's `pkg/storage`.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::body::{Body, Response};
use crate::object::{Object, encode};
use crate::options::ListOptions;
use crate::resource::Resource;
use crate::rest::{self, Call};
use crate::selection::Selection;
use crate::zero::Zero;

/// The group.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";
/// A node that does not answer within this has no metrics.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most that a kubelet's summary may be.
const MAX_BYTES: usize = 64 << 20;

/// The resources of the group.
pub fn resources() -> [Resource; 2] {
    let resource = |kind: &str, plural: &str, namespaced| Resource {
        group: GROUP.into(),
        version: VERSION.into(),
        plural: plural.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        namespaced,
        verbs: vec!["get".into(), "list".into()],
        ..Resource::default()
    };
    [resource("NodeMetrics", "nodes", false), resource("PodMetrics", "pods", true)]
}

/// Answers a get or a list.
pub async fn serve(call: &mut Call) -> Result<Response, Status> {
    let named = call.ctx.verb == "get";
    let options =
        if named { ListOptions::default() } else { ListOptions::parse(&call.query, false)? };
    let selection = Selection::parse(
        &call.ctx.namespace,
        &options.label_selector,
        &options.field_selector,
        &[],
        call.resource.namespaced,
    )?;
    call.server.registry.sync().await?;
    let found = if call.resource.plural == "nodes" { nodes(call).await } else { pods(call).await };
    let mut objects = Vec::with_capacity(found.len());
    for value in found {
        let (raw, _): (Bytes, usize) = encode(&value);
        let object = Object::from_stored(raw, 0, &[]).map_err(Status::internal)?;
        let wanted = if named { object.name == call.ctx.name } else { selection.matches(&object) };
        if wanted {
            objects.push(object);
        }
    }
    if named {
        let found = objects
            .first()
            .ok_or_else(|| Status::not_found(GROUP, &call.resource.plural, &call.ctx.name))?;
        return Ok(call.object(StatusCode::OK, found));
    }
    objects.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let objects = objects.into_iter().map(Arc::new).collect();
    Ok(rest::answer_list(call, objects, 0, None))
}

/// The summaries of the kubelets that are needed, with their nodes' names.
async fn summaries(call: &Call, wanted: impl Fn(&str) -> bool) -> Vec<(String, Value)> {
    let registry = &call.server.registry;
    let nodes = registry.list("", "nodes", None);
    let names = nodes.iter().map(|node| node.name.clone()).filter(|name| wanted(name));
    let asked = names.map(|name| async move {
        let answer = tokio::time::timeout(TIMEOUT, summary(call, &name)).await.ok()?;
        match answer {
            Ok(value) => Some((name, value)),
            Err(status) => {
                tracing::debug!(node = name, error = status.message, "no metrics from a node");
                None
            }
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn summary(call: &Call, node: &str) -> Result<Value, Status> {
    let (parts, ()) = http::Request::get("/").body(()).map_err(Status::internal)?.into_parts();
    let path = "/stats/summary?only_cpu_and_memory=true";
    let response = call.server.kubelets.relay(node, path, parts, Body::Empty).await?;
    if response.status() != StatusCode::OK {
        return Err(Status::unavailable(format!("kubelet answered {}", response.status())));
    }
    let bytes = response.into_body().read(MAX_BYTES).await.map_err(Status::internal)?;
    serde_json::from_slice(&bytes.unwrap_or_default()).map_err(Status::internal)
}

async fn nodes(call: &Call) -> Vec<Value> {
    let name = call.ctx.name.clone();
    let found = summaries(call, |node| name.is_empty() || node == name).await;
    let metrics = found.iter().filter_map(|(name, summary)| {
        let node = call.server.registry.get("", "nodes", "", name)?.to_value();
        let mut value = begin("NodeMetrics", &node, &summary["node"]);
        value["usage"] = usage(&summary["node"])?;
        Some(value)
    });
    metrics.collect()
}

async fn pods(call: &Call) -> Vec<Value> {
    let registry = &call.server.registry;
    let (namespace, name) = (&call.ctx.namespace, &call.ctx.name);
    // A pod's metrics come from its node alone.
    let only = (!name.is_empty())
        .then(|| registry.get("", "pods", namespace, name))
        .flatten()
        .map(|pod| pod.to_value()["spec"]["nodeName"].text().to_owned());
    let found = summaries(call, |node| only.as_deref().is_none_or(|only| only == node)).await;
    let pods = found.iter().flat_map(|(_, summary)| summary["pods"].items());
    let metrics = pods.filter_map(|stats| {
        let reference = &stats["podRef"];
        let (in_namespace, of) = (reference["namespace"].text(), reference["name"].text());
        if !namespace.is_empty() && in_namespace != namespace {
            return None;
        }
        let pod = registry.get("", "pods", in_namespace, of)?.to_value();
        if pod["status"]["phase"].text() != "Running" {
            return None;
        }
        let mut value = begin("PodMetrics", &pod, stats);
        let containers = stats["containers"].items().iter().filter_map(|container| {
            Some(json!({"name": container["name"], "usage": usage(container)?}))
        });
        value["containers"] = containers.collect();
        Some(value)
    });
    metrics.collect()
}

/// The head of an object's metrics.
fn begin(kind: &str, of: &Value, stats: &Value) -> Value {
    let at = stats["cpu"]["time"].text();
    let at: jiff::Timestamp = at.parse().unwrap_or_else(|_| jiff::Timestamp::now());
    let seconds = at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut metadata = Map::new();
    for key in ["name", "namespace", "labels"] {
        if let Some(value) = of["metadata"].get(key) {
            metadata.insert(key.into(), value.clone());
        }
    }
    metadata.insert("creationTimestamp".into(), seconds.as_str().into());
    json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": kind,
        "metadata": metadata,
        "timestamp": seconds,
        "window": "10s",
    })
}

/// CPU and memory as quantities; nothing before both are known.
fn usage(stats: &Value) -> Option<Value> {
    let cores = stats["cpu"]["usageNanoCores"].as_u64()?;
    let bytes = stats["memory"]["workingSetBytes"].as_u64()?;
    Some(json!({"cpu": nano(cores), "memory": format!("{}Ki", bytes / 1024)}))
}

fn nano(cores: u64) -> String {
    if cores == 0 { "0".into() } else { format!("{cores}n") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Fixture;

    #[test]
    fn usage_is_quantities() {
        let stats = json!({"cpu": {"usageNanoCores": 1500}, "memory": {"workingSetBytes": 4096}});
        assert_eq!(usage(&stats), Some(json!({"cpu": "1500n", "memory": "4Ki"})));
        assert_eq!(usage(&json!({"cpu": {}, "memory": {"workingSetBytes": 1}})), None);
    }

    #[tokio::test]
    async fn the_group_is_discovered_and_lists_nothing_without_nodes() {
        let f = Fixture::new().await;
        let found = f.get("/apis/metrics.k8s.io/v1beta1").await;
        assert_eq!(found.body["resources"][0]["kind"], "NodeMetrics", "{}", found.body);
        let list = f.get("/apis/metrics.k8s.io/v1beta1/nodes").await;
        assert_eq!((list.code.as_u16(), &list.body["kind"]), (200, &json!("NodeMetricsList")));
        assert_eq!(list.body["items"], json!([]));
        let missing = f.get("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods/x").await;
        assert_eq!(missing.body["message"], "pods.metrics.k8s.io \"x\" not found");
    }
}
