//! Running pods and the stats summary.
//!
//! Source of behaviour: `pkg/kubelet/server/stats`, `k8s.io/kubelet/pkg/apis/stats/v1alpha1`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::{Shared, json as answer, pressure, refuse};
use crate::context::Context;
use crate::node::machine::{self, Disk};
use crate::usage::{self, Usage};
use crate::{labels, pod, quantity, sandbox, volumes};

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

/// `/stats/summary`; with `only_cpu_and_memory` without what is found by walking folders.
pub async fn summary(
    State(shared): State<Shared>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    let context = shared.context.clone();
    let usage = match context.usage.usage(&context).await {
        Ok(usage) => usage,
        Err(error) => return refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let bare = query.get("only_cpu_and_memory").is_some_and(|v| v == "true");
    let image_fs = if bare { Value::Null } else { image_fs(&context).await };
    let pods = shared.workers.pods();
    let disks =
        if bare { None } else { Some(shared.disks.measure(&shared.workers.placed()).await) };
    let made = tokio::task::spawn_blocking(move || {
        make(&context, &usage, &pods, disks.as_ref(), image_fs)
    });
    match made.await {
        Ok(value) => answer(&value),
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The file systems of claimed volumes, by their places.
type Claimed = BTreeMap<PathBuf, Disk>;

/// Without `disks` nothing is told of what is found by walking folders.
fn make(
    context: &Context,
    usage: &Usage,
    pods: &[Arc<Pod>],
    disks: Option<&Claimed>,
    image_fs: Value,
) -> Value {
    let now = context.clock.now();
    let told = usage.pods.iter().filter_map(|stats| {
        let uid = stats.attributes.as_ref()?.labels.get(labels::POD_UID)?;
        let of = pods.iter().find(|p| pod::uid(p) == uid).cloned();
        Some(pod_stats(context, usage, stats, of.as_deref(), disks))
    });
    let pods: Vec<Value> = told.collect();
    let available = machine::meminfo("MemAvailable");
    let total = context.machine.memory_bytes;
    let disk = machine::disk(&context.root_dir);
    let started = machine::boot_time().unwrap_or(now);
    let mut node = json!({
        "nodeName": context.node_name,
        "startTime": started,
        "cpu": {
            "time": now,
            "usageNanoCores": usage.nano_cores.get(""),
            "usageCoreNanoSeconds": usage.node_cpu_ns,
            "psi": pressure::of_machine("cpu"),
        },
        "io": {"time": now, "psi": pressure::of_machine("io")},
        "memory": {
            "time": now,
            "psi": pressure::of_machine("memory"),
            "availableBytes": available,
            "usageBytes": total.saturating_sub(machine::meminfo("MemFree")),
            "workingSetBytes": total.saturating_sub(available),
            "rssBytes": machine::meminfo("AnonPages"),
            "pageFaults": machine::page_faults().0,
            "majorPageFaults": machine::page_faults().1,
        },
        "swap": {
            "time": now,
            "swapAvailableBytes": machine::meminfo("SwapFree"),
            "swapUsageBytes": machine::meminfo("SwapTotal").saturating_sub(machine::meminfo("SwapFree")),
        },
    });
    let allocatable = context.allocatable();
    let of_pods = allocatable.get("memory").and_then(quantity::value).unwrap_or(0);
    node["systemContainers"] =
        system_containers(usage, u64::try_from(of_pods).unwrap_or(0), started, now);
    if disks.is_some() {
        node["network"] = node_network(now);
        node["fs"] = fs(now, disk.as_ref(), None);
        node["runtime"] = json!({"imageFs": image_fs, "containerFs": fs(now, disk.as_ref(), None)});
        let (most, now_used) = machine::pids();
        node["rlimit"] = json!({"time": now, "maxpid": most, "curproc": now_used});
    }
    json!({"node": node, "pods": pods})
}

/// What the node's own programs and all pods take: the kubelet is this process, with all that it does beside.
fn system_containers(
    usage: &Usage,
    of_pods_bytes: u64,
    started: Timestamp,
    now: Timestamp,
) -> Value {
    let memory = |of: fn(&cri::MemoryUsage) -> Option<&cri::UInt64Value>| -> u64 {
        let all = usage.pods.iter().filter_map(|pod| pod.linux.as_ref()?.memory.as_ref());
        all.filter_map(of).map(|value| value.value).sum()
    };
    let own = machine::own_memory_bytes();
    let own_faults = machine::own_page_faults();
    let rate = |id: &str| usage.nano_cores.get(id).copied().unwrap_or(0);
    // Of those that run now: the rate of their sum would fall with each that ends.
    let of_pods = usage.pods.iter().filter_map(|pod| pod.attributes.as_ref());
    let of_pods: u64 = of_pods.map(|attributes| rate(&attributes.id)).sum();
    let container = |name: &str, (cpu_ns, nano_cores): (u64, u64), memory: Value| {
        json!({
            "name": name,
            "startTime": started,
            "cpu": {
                "time": now,
                "usageNanoCores": nano_cores,
                "usageCoreNanoSeconds": cpu_ns,
            },
            "memory": memory,
        })
    };
    json!([
        container(
            usage::OWN,
            (usage.own_cpu_ns, rate(usage::OWN)),
            json!({
                "time": now,
                "usageBytes": own,
                "workingSetBytes": own,
                "rssBytes": own,
                "pageFaults": own_faults.0,
                "majorPageFaults": own_faults.1,
            }),
        ),
        container(
            "pods",
            (usage.pods_cpu_ns, of_pods),
            json!({
                "time": now,
                "usageBytes": memory(|m| m.usage_bytes.as_ref()),
                "workingSetBytes": memory(|m| m.working_set_bytes.as_ref()),
                "rssBytes": memory(|m| m.rss_bytes.as_ref()),
                "pageFaults": memory(|m| m.page_faults.as_ref()),
                "majorPageFaults": memory(|m| m.major_page_faults.as_ref()),
                "availableBytes": of_pods_bytes
                    .saturating_sub(memory(|m| m.working_set_bytes.as_ref())),
            }),
        ),
    ])
}

/// What went through the machine's interfaces.
fn node_network(now: Timestamp) -> Value {
    let one = |own: &machine::Interface| {
        json!({
            "name": own.name,
            "rxBytes": own.rx_bytes,
            "rxErrors": own.rx_errors,
            "txBytes": own.tx_bytes,
            "txErrors": own.tx_errors,
        })
    };
    let all = machine::interfaces();
    let mut out = all.first().map_or_else(|| json!({"name": ""}), one);
    out["time"] = json!(now);
    out["interfaces"] = all.iter().map(one).collect();
    out
}

async fn image_fs(context: &Context) -> Value {
    let now = context.clock.now();
    let Ok(info) = context.cri.image_fs_info(cri::ImageFsInfoRequest {}).await else {
        return Value::Null;
    };
    let Some(of_images) = info.image_filesystems.first() else { return Value::Null };
    let place = of_images.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
    let used = of_images.used_bytes.as_ref().map(|v| v.value);
    let inodes = of_images.inodes_used.as_ref().map(|v| v.value);
    fs(now, machine::disk(Path::new(&place)).as_ref(), used.map(|bytes| (bytes, inodes)))
}

/// A file system, and what of it is used by whom this is about: bytes, inodes.
fn fs(now: Timestamp, disk: Option<&machine::Disk>, used: Option<(u64, Option<u64>)>) -> Value {
    let mut out = json!({"time": now});
    if let Some(disk) = disk {
        out["availableBytes"] = disk.available_bytes.into();
        out["capacityBytes"] = disk.bytes.into();
        out["inodesFree"] = disk.inodes_free.into();
        out["inodes"] = disk.inodes.into();
        out["usedBytes"] = disk.bytes.saturating_sub(disk.free_bytes).into();
        out["inodesUsed"] = disk.inodes.saturating_sub(disk.inodes_free).into();
    }
    if let Some((bytes, inodes)) = used {
        out["usedBytes"] = bytes.into();
        match inodes {
            Some(inodes) => out["inodesUsed"] = inodes.into(),
            None => drop(out.as_object_mut().and_then(|map| map.remove("inodesUsed"))),
        }
    }
    out
}

fn pod_stats(
    context: &Context,
    usage: &Usage,
    stats: &cri::PodSandboxStats,
    of: Option<&Pod>,
    disks: Option<&Claimed>,
) -> Value {
    let now = context.clock.now();
    let attributes = stats.attributes.clone().unwrap_or_default();
    let label = |key: &str| attributes.labels.get(key).cloned().unwrap_or_default();
    let linux = stats.linux.clone().unwrap_or_default();
    let statuses = of.and_then(|p| p.status.clone()).unwrap_or_default();
    let disk = machine::disk(&context.root_dir);
    let started = statuses.start_time.as_ref().map_or(now, |t| t.0);
    let logs = of.map(|of| sandbox::log_directory(&context.pod_log_dir, of));
    let mut ephemeral = (0, 0);
    let mut containers = Vec::new();
    for container in &linux.containers {
        let attributes = container.attributes.clone().unwrap_or_default();
        let name = attributes.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default();
        let running = |s: &&k8s_openapi::api::core::v1::ContainerStatus| s.name == name;
        let found = statuses
            .container_statuses
            .iter()
            .chain(&statuses.init_container_statuses)
            .chain(&statuses.ephemeral_container_statuses)
            .flatten()
            .find(running);
        let since = found.and_then(|s| s.state.as_ref()?.running.as_ref()?.started_at.clone());
        let mut out = json!({"name": name, "startTime": since.map_or(started, |t| t.0)});
        out["cpu"] = cpu(container.cpu.as_ref(), usage.nano_cores.get(&attributes.id), now);
        out["memory"] = memory(container.memory.as_ref(), now);
        pressure::add(&mut out, container.io.as_ref(), container.swap.as_ref(), now);
        if disks.is_some() {
            let layer = container.writable_layer.as_ref();
            let number = |v: Option<&cri::UInt64Value>| v.map_or(0, |v| v.value);
            let of_layer = (
                number(layer.and_then(|l| l.used_bytes.as_ref())),
                number(layer.and_then(|l| l.inodes_used.as_ref())),
            );
            let of_logs =
                logs.as_ref().map_or((0, 0), |logs| volumes::usage::used(&logs.join(&name)));
            out["rootfs"] = fs(now, disk.as_ref(), Some((of_layer.0, Some(of_layer.1))));
            out["logs"] = fs(now, disk.as_ref(), Some((of_logs.0, Some(of_logs.1))));
            ephemeral =
                (ephemeral.0 + of_layer.0 + of_logs.0, ephemeral.1 + of_layer.1 + of_logs.1);
        }
        containers.push(out);
    }
    let mut out = json!({
        "podRef": {
            "name": label(labels::POD_NAME),
            "namespace": label(labels::POD_NAMESPACE),
            "uid": label(labels::POD_UID),
        },
        "startTime": started,
        "containers": containers,
        "cpu": cpu(linux.cpu.as_ref(), usage.nano_cores.get(&attributes.id), now),
        "memory": memory(linux.memory.as_ref(), now),
    });
    pressure::add(&mut out, linux.io.as_ref(), None, now);
    let Some(disks) = disks else { return out };
    if let Some(network) = &linux.network {
        out["network"] = self::network(network, now);
    }
    if let Some(processes) = &linux.process {
        let count = processes.process_count.as_ref().map(|v| v.value);
        out["process_stats"] = json!({"process_count": count});
    }
    let of_volumes =
        of.map(|of| volume_stats(context, of, disks, &mut ephemeral)).unwrap_or_default();
    out["volume"] = of_volumes.into();
    out["ephemeral-storage"] = fs(now, disk.as_ref(), Some((ephemeral.0, Some(ephemeral.1))));
    out
}

fn volume_stats(
    context: &Context,
    of: &Pod,
    disks: &Claimed,
    ephemeral: &mut (u64, u64),
) -> Vec<Value> {
    let now = context.clock.now();
    let mut out = Vec::new();
    let paths = context.workers.volumes(pod::uid(of));
    let claimed = volumes::usage::claimed(of, &paths);
    for found in volumes::usage::places(&context.root_dir, of).into_iter().chain(claimed) {
        let mut value = if found.claim.is_some() {
            let Some(disk) = disks.get(&found.path) else { continue };
            fs(now, Some(disk), None)
        } else if found.own_file_system {
            fs(now, machine::disk(&found.path).as_ref(), None)
        } else {
            let (bytes, inodes) = volumes::usage::used(&found.path);
            if found.ephemeral {
                *ephemeral = (ephemeral.0 + bytes, ephemeral.1 + inodes);
            }
            fs(now, machine::disk(&found.path).as_ref(), Some((bytes, Some(inodes))))
        };
        value["name"] = found.name.into();
        if let Some(claim) = found.claim {
            value["pvcRef"] = json!({"name": claim, "namespace": pod::namespace(of)});
        }
        out.push(value);
    }
    out
}

fn time(nanoseconds: i64, now: Timestamp) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(now)
}

fn cpu(cpu: Option<&cri::CpuUsage>, rate: Option<&u64>, now: Timestamp) -> Value {
    let Some(cpu) = cpu else { return json!({"time": now}) };
    let rate = rate.copied().or_else(|| cpu.usage_nano_cores.as_ref().map(|v| v.value));
    let mut out = json!({
        "time": time(cpu.timestamp, now),
        "usageNanoCores": rate.unwrap_or(0),
        "usageCoreNanoSeconds": cpu.usage_core_nano_seconds.as_ref().map_or(0, |v| v.value),
    });
    if cpu.psi.is_some() {
        out["psi"] = pressure::told(cpu.psi.as_ref());
    }
    out
}

fn memory(memory: Option<&cri::MemoryUsage>, now: Timestamp) -> Value {
    let Some(memory) = memory else { return json!({"time": now}) };
    let mut out = Map::new();
    out.insert("time".into(), json!(time(memory.timestamp, now)));
    if memory.psi.is_some() {
        out.insert("psi".into(), pressure::told(memory.psi.as_ref()));
    }
    for (name, value) in [
        ("availableBytes", &memory.available_bytes),
        ("usageBytes", &memory.usage_bytes),
        ("workingSetBytes", &memory.working_set_bytes),
        ("rssBytes", &memory.rss_bytes),
        ("pageFaults", &memory.page_faults),
        ("majorPageFaults", &memory.major_page_faults),
    ] {
        if let Some(value) = value {
            out.insert(name.into(), value.value.into());
        }
    }
    out.into()
}

fn network(network: &cri::NetworkUsage, now: Timestamp) -> Value {
    let one = |interface: &cri::NetworkInterfaceUsage| {
        let value = |v: &Option<cri::UInt64Value>| v.as_ref().map(|v| v.value);
        json!({
            "name": interface.name,
            "rxBytes": value(&interface.rx_bytes),
            "rxErrors": value(&interface.rx_errors),
            "txBytes": value(&interface.tx_bytes),
            "txErrors": value(&interface.tx_errors),
        })
    };
    let mut out = network.default_interface.as_ref().map_or_else(|| json!({}), one);
    out["time"] = json!(time(network.timestamp, now));
    let all = network.default_interface.iter().chain(&network.interfaces);
    out["interfaces"] = all.map(one).collect();
    out
}
