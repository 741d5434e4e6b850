//! `/metrics/cadvisor`: containers under the names that cAdvisor gave their metrics.
//!
//! Source of names and labels: cAdvisor's `metrics/prometheus.go`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use super::Shared;
use super::metrics::{Row, Text, float, label, number, rows, seconds, starts};
use crate::cri::Cri;
use crate::node::machine;
use crate::usage::Usage;
use crate::{labels, pod};

/// Name, type and help of a metric that each container has, and how it is read.
type OfContainer =
    (&'static str, &'static str, &'static str, fn(&cri::ContainerStats) -> Option<f64>);

const OF_CONTAINERS: &[OfContainer] = &[
    (
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        |s| Some(seconds(number(s.cpu.as_ref()?.usage_core_nano_seconds.as_ref()))),
    ),
    (
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        |s| Some(float(number(s.memory.as_ref()?.usage_bytes.as_ref()))),
    ),
    ("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", |s| {
        Some(float(number(s.memory.as_ref()?.working_set_bytes.as_ref())))
    }),
    ("container_memory_rss", "gauge", "Size of RSS in bytes.", |s| {
        Some(float(number(s.memory.as_ref()?.rss_bytes.as_ref())))
    }),
    (
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem.",
        |s| Some(float(number(s.writable_layer.as_ref()?.used_bytes.as_ref()))),
    ),
];

/// `/metrics/cadvisor`.
pub async fn serve(State(shared): State<Shared>) -> Response {
    let context = &shared.context;
    let usage = context.usage.usage(context).await.unwrap_or_default();
    let pods = shared.workers.current();
    let mut text = Text::default();
    text.family("cadvisor_version_info", "gauge", "A metric with a constant '1' value labeled by kernel version, OS version, docker version, cadvisor version & cadvisor revision.");
    let (kernel, system) = (machine::line("/proc/sys/kernel/osrelease"), machine::os_image());
    let about = [
        ("cadvisorRevision", ""),
        ("cadvisorVersion", ""),
        ("dockerVersion", ""),
        ("kernelVersion", kernel.as_str()),
        ("osVersion", system.as_str()),
    ];
    text.sample("cadvisor_version_info", &about, 1.0, None);
    let rows = rows(&usage);
    let image = |row: &Row<'_>| {
        let of =
            pods.iter().find(|p| pod::name(p) == row.pod && pod::namespace(p) == row.namespace);
        of.and_then(|of| pod::find_container(of, row.container))
            .and_then(|(_, c)| c.image)
            .unwrap_or_default()
    };
    for (name, kind, help, read) in OF_CONTAINERS {
        text.family(name, kind, help);
        for row in &rows {
            let Some(value) = read(row.stats) else { continue };
            let image = image(row);
            let id = row.stats.attributes.as_ref().map(|a| a.id.as_str()).unwrap_or_default();
            let mut names = vec![("container", row.container)];
            if name.starts_with("container_cpu") {
                names.push(("cpu", "total"));
            }
            names.extend([
                ("id", id),
                ("image", &image),
                ("name", id),
                ("namespace", row.namespace),
                ("pod", row.pod),
            ]);
            text.sample(name, &names, value, None);
        }
    }
    start_times(&mut text, &pods);
    network(&mut text, &usage);
    told(&mut text, &context.cri).await;
    text.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    text.sample("machine_cpu_cores", &[], float(context.machine.cpus as u64), None);
    text.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    text.sample("machine_memory_bytes", &[], float(context.machine.memory_bytes), None);
    text.response()
}

/// What the runtime tells under these names beyond that; its numbers are whole, so those above are better.
async fn told(text: &mut Text, cri: &Cri) {
    let described = cri.list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await;
    let measured = cri.list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await;
    // Not all runtimes tell them.
    let (Ok(described), Ok(measured)) = (described, measured) else { return };
    let all: Vec<&cri::Metric> = measured
        .pod_metrics
        .iter()
        .flat_map(|of| {
            of.metrics.iter().chain(of.container_metrics.iter().flat_map(|of| &of.metrics))
        })
        .collect();
    for of in &described.descriptors {
        let mut found = all.iter().filter(|metric| metric.name == of.name).peekable();
        let Some(first) = found.peek().filter(|_| !text.has(&of.name)) else { continue };
        let counts = first.metric_type() == cri::MetricType::Counter;
        text.family(&of.name, if counts { "counter" } else { "gauge" }, &of.help);
        for metric in found {
            let keys = of.label_keys.iter().map(String::as_str);
            let names: Vec<(&str, &str)> =
                keys.zip(metric.label_values.iter().map(String::as_str)).collect();
            text.sample(&of.name, &names, float(number(metric.value.as_ref())), None);
        }
    }
}

fn start_times(text: &mut Text, pods: &[Arc<Pod>]) {
    let name = "container_start_time_seconds";
    text.family(name, "gauge", "Start time of the container since unix epoch in seconds.");
    for (namespace, of, container, at) in starts(pods) {
        let names = [("container", container), ("namespace", namespace), ("pod", of)];
        text.sample(name, &names, float(at.unsigned_abs()), None);
    }
}

fn network(text: &mut Text, usage: &Usage) {
    type Read = fn(&cri::NetworkInterfaceUsage) -> Option<&cri::UInt64Value>;
    let families: [(&str, &str, Read); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| {
            i.rx_bytes.as_ref()
        }),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |i| i.rx_errors.as_ref(),
        ),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| {
            i.tx_bytes.as_ref()
        }),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |i| i.tx_errors.as_ref(),
        ),
    ];
    for (name, help, read) in families {
        text.family(name, "counter", help);
        for stats in &usage.pods {
            let (Some(attributes), Some(linux)) = (&stats.attributes, &stats.linux) else {
                continue;
            };
            let Some(network) = &linux.network else { continue };
            for interface in network.default_interface.iter().chain(&network.interfaces) {
                let names = [
                    ("id", attributes.id.as_str()),
                    ("image", ""),
                    ("interface", interface.name.as_str()),
                    ("name", attributes.id.as_str()),
                    ("namespace", label(&attributes.labels, labels::POD_NAMESPACE)),
                    ("pod", label(&attributes.labels, labels::POD_NAME)),
                ];
                text.sample(name, &names, float(number(read(interface))), None);
            }
        }
    }
}
