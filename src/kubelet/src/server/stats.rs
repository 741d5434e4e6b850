//! Running pods, metrics and the stats summary.
//!
//! Source of behaviour: `pkg/kubelet/server/stats`, `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use serde_json::{Value, json};

use super::{Shared, json as answer};
use crate::labels;
use crate::node::machine;

/// `/runningpods/`: what the runtime runs, as pods.
pub async fn running_pods(State(shared): State<Shared>) -> Response {
    let state =
        Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 });
    let filter = Some(cri::ContainerFilter { state, ..Default::default() });
    let listed = shared.context.cri.list_containers(cri::ListContainersRequest { filter }).await;
    let mut pods: BTreeMap<String, Value> = BTreeMap::new();
    for container in listed.map(|l| l.containers).unwrap_or_default() {
        let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
        let pod = pods.entry(label(labels::POD_UID)).or_insert_with(|| {
            json!({
                "metadata": {
                    "name": label(labels::POD_NAME),
                    "namespace": label(labels::POD_NAMESPACE),
                    "uid": label(labels::POD_UID),
                },
                "spec": {"containers": []},
                "status": {},
            })
        });
        let image = container.image.map(|i| i.image).unwrap_or_default();
        if let Some(list) = pod["spec"]["containers"].as_array_mut() {
            list.push(
                json!({"name": container.labels.get(labels::CONTAINER_NAME), "image": image}),
            );
        }
    }
    let items: Vec<Value> = pods.into_values().collect();
    answer(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// `/metrics`, in Prometheus' format under Kubernetes' names.
pub async fn metrics(State(shared): State<Shared>) -> Response {
    let pods = shared.workers.pods().len();
    let state =
        Some(cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning as i32 });
    let filter = Some(cri::ContainerFilter { state, ..Default::default() });
    let listed = shared.context.cri.list_containers(cri::ListContainersRequest { filter }).await;
    let containers = listed.map_or(0, |l| l.containers.len());
    let node = &shared.context.node_name;
    let text = format!(
        "# HELP kubelet_node_name [ALPHA] The node's name. The count is always 1.\n\
         # TYPE kubelet_node_name gauge\n\
         kubelet_node_name{{node={node:?}}} 1\n\
         # HELP kubelet_running_pods [BETA] Number of pods that have a running pod sandbox\n\
         # TYPE kubelet_running_pods gauge\n\
         kubelet_running_pods {pods}\n\
         # HELP kubelet_running_containers [ALPHA] Number of containers currently running\n\
         # TYPE kubelet_running_containers gauge\n\
         kubelet_running_containers{{container_state=\"running\"}} {containers}\n"
    );
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// `/stats/summary`.
pub async fn summary(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let now = context.clock.now();
    let listed =
        context.cri.list_container_stats(cri::ListContainerStatsRequest { filter: None }).await;
    let mut pods: BTreeMap<String, (Value, Vec<Value>)> = BTreeMap::new();
    for stats in listed.map(|l| l.stats).unwrap_or_default() {
        let Some(attributes) = &stats.attributes else { continue };
        let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
        let entry = pods.entry(label(labels::POD_UID)).or_insert_with(|| {
            let reference = json!({
                "name": label(labels::POD_NAME),
                "namespace": label(labels::POD_NAMESPACE),
                "uid": label(labels::POD_UID),
            });
            (reference, Vec::new())
        });
        entry.1.push(container(&stats, label(labels::CONTAINER_NAME), now));
    }
    let pods: Vec<Value> = pods
        .into_values()
        .map(|(reference, containers)| json!({"podRef": reference, "startTime": now, "containers": containers}))
        .collect();
    let available = machine::meminfo("MemAvailable");
    let total = context.machine.memory_bytes;
    let node = json!({
        "nodeName": context.node_name,
        "startTime": now,
        "memory": {
            "time": now,
            "availableBytes": available,
            "usageBytes": total.saturating_sub(machine::meminfo("MemFree")),
            "workingSetBytes": total.saturating_sub(available),
        },
    });
    answer(&json!({"node": node, "pods": pods}))
}

fn container(stats: &cri::ContainerStats, name: String, now: Timestamp) -> Value {
    let value = |v: Option<&cri::UInt64Value>| v.map(|v| v.value);
    let time =
        |nanoseconds: i64| Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(now);
    let mut out = json!({"name": name, "startTime": now});
    if let Some(cpu) = &stats.cpu {
        out["cpu"] = json!({
            "time": time(cpu.timestamp),
            "usageNanoCores": value(cpu.usage_nano_cores.as_ref()),
            "usageCoreNanoSeconds": value(cpu.usage_core_nano_seconds.as_ref()),
        });
    }
    if let Some(memory) = &stats.memory {
        out["memory"] = json!({
            "time": time(memory.timestamp),
            "usageBytes": value(memory.usage_bytes.as_ref()),
            "workingSetBytes": value(memory.working_set_bytes.as_ref()),
            "rssBytes": value(memory.rss_bytes.as_ref()),
        });
    }
    if let Some(layer) = &stats.writable_layer {
        out["rootfs"] = json!({
            "time": time(layer.timestamp),
            "usedBytes": value(layer.used_bytes.as_ref()),
            "inodesUsed": value(layer.inodes_used.as_ref()),
        });
    }
    out
}
