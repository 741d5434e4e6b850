//! Metrics of pods and containers under the names that cAdvisor gave them, which a kubelet passes on
//! to Prometheus without knowing them (CRI: ListMetricDescriptors, ListPodSandboxMetrics).

use k8s_cri::v1;
use v1::MetricType::{Counter, Gauge};

use crate::runtime::Runtime;
use crate::state::{ContainerRecord, Phase, SandboxRecord, now_ns};
use crate::stats::{Used, devices, disk, used};

const SECOND_NS: u64 = 1_000_000_000;

/// Labels that every metric has, with the names that cAdvisor in a kubelet gives them.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
/// The name of a pod's own row.
const POD: &str = "POD";

/// A metric: its name, what it says, its labels beside [`LABELS`], its type.
type Metric = (&'static str, &'static str, &'static [&'static str], v1::MetricType);

const CPU: Metric = (
    "container_cpu_usage_seconds_total",
    "Cumulative cpu time consumed in seconds.",
    &["cpu"],
    Counter,
);
const CPU_USER: Metric = (
    "container_cpu_user_seconds_total",
    "Cumulative user cpu time consumed in seconds.",
    &[],
    Counter,
);
const CPU_SYSTEM: Metric = (
    "container_cpu_system_seconds_total",
    "Cumulative system cpu time consumed in seconds.",
    &[],
    Counter,
);
const MEMORY: Metric = (
    "container_memory_usage_bytes",
    "Current memory usage in bytes, including all memory regardless of when it was accessed.",
    &[],
    Gauge,
);
const WORKING_SET: Metric =
    ("container_memory_working_set_bytes", "Current working set in bytes.", &[], Gauge);
const RSS: Metric = ("container_memory_rss", "Size of RSS in bytes.", &[], Gauge);
const CACHE: Metric =
    ("container_memory_cache", "Number of bytes of page cache memory.", &[], Gauge);
const FAILURES: Metric = (
    "container_memory_failures_total",
    "Cumulative count of memory allocation failures.",
    &["failure_type", "scope"],
    Counter,
);
const MEMORY_LIMIT: Metric =
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", &[], Gauge);
const CPU_SHARES: Metric = ("container_spec_cpu_shares", "CPU share of the container.", &[], Gauge);
const CPU_QUOTA: Metric = ("container_spec_cpu_quota", "CPU quota of the container.", &[], Gauge);
const CPU_PERIOD: Metric =
    ("container_spec_cpu_period", "CPU period of the container.", &[], Gauge);
const PROCESSES: Metric =
    ("container_processes", "Number of processes running inside the container.", &[], Gauge);
const FS_USAGE: Metric = (
    "container_fs_usage_bytes",
    "Number of bytes that are consumed by the container on this filesystem.",
    &["device"],
    Gauge,
);
const STARTED: Metric = (
    "container_start_time_seconds",
    "Start time of the container since unix epoch in seconds.",
    &[],
    Gauge,
);
const SEEN: Metric =
    ("container_last_seen", "Last time a container was seen by the exporter", &[], Gauge);
/// Each with its column of net/dev.
const NETWORK: [(Metric, usize); 8] = [
    (network("container_network_receive_bytes_total", "Cumulative count of bytes received"), 0),
    (network("container_network_receive_packets_total", "Cumulative count of packets received"), 1),
    (
        network(
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
        ),
        2,
    ),
    (
        network(
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
        ),
        3,
    ),
    (network("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted"), 8),
    (
        network(
            "container_network_transmit_packets_total",
            "Cumulative count of packets transmitted",
        ),
        9,
    ),
    (
        network(
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
        ),
        10,
    ),
    (
        network(
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
        ),
        11,
    ),
];

const fn network(name: &'static str, help: &'static str) -> Metric {
    (name, help, &["interface"], Counter)
}

const OF_CONTAINERS: [Metric; 16] = [
    CPU,
    CPU_USER,
    CPU_SYSTEM,
    MEMORY,
    WORKING_SET,
    RSS,
    CACHE,
    FAILURES,
    MEMORY_LIMIT,
    CPU_SHARES,
    CPU_QUOTA,
    CPU_PERIOD,
    PROCESSES,
    FS_USAGE,
    STARTED,
    SEEN,
];

/// All that will ever be told.
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let all = OF_CONTAINERS.iter().chain(NETWORK.iter().map(|(metric, _)| metric));
    all.map(|(name, help, labels, _)| v1::MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().chain(*labels).map(|key| (*key).to_owned()).collect(),
    })
    .collect()
}

/// Metrics of one pod or container.
struct Row {
    labels: [String; 6],
    metrics: Vec<v1::Metric>,
}

impl Row {
    fn new(sandbox: &SandboxRecord, container: Option<&ContainerRecord>) -> Self {
        let pod = sandbox.config.metadata.clone().unwrap_or_default();
        let name = container.and_then(|record| record.config.metadata.clone()).map(|own| own.name);
        let labels = [
            name.unwrap_or_else(|| POD.to_owned()),
            container.map_or(&sandbox.id, |record| &record.id).clone(),
            container.map(|record| record.image_ref.clone()).unwrap_or_default(),
            container.map_or(&sandbox.id, |record| &record.id).clone(),
            pod.namespace,
            pod.name,
        ];
        Self { labels, metrics: Vec::new() }
    }

    fn add(&mut self, metric: &Metric, more: &[&str], value: u64) {
        let (name, _, _, kind) = metric;
        let more = more.iter().map(|label| (*label).to_owned());
        self.metrics.push(v1::Metric {
            name: (*name).to_owned(),
            // Measured now.
            timestamp: 0,
            metric_type: (*kind).into(),
            label_values: self.labels.iter().cloned().chain(more).collect(),
            value: Some(v1::UInt64Value { value }),
        });
    }
}

impl Runtime {
    /// The metrics of all running pods.
    pub(crate) fn pod_metrics(&self) -> Vec<v1::PodSandboxMetrics> {
        let records = self.state().sandboxes().into_iter().map(|sandbox| sandbox.record());
        records.filter(|record| record.ready).map(|record| self.metrics_of(&record)).collect()
    }

    fn metrics_of(&self, sandbox: &SandboxRecord) -> v1::PodSandboxMetrics {
        let mut row = Row::new(sandbox, None);
        for line in devices(sandbox).unwrap_or_default().lines() {
            add_interface(&mut row, line);
        }
        let containers =
            self.state().containers_of(&sandbox.id).into_iter().map(|container| container.record());
        let container_metrics = containers
            .filter(|record| record.phase == Phase::Running)
            .map(|record| v1::ContainerMetrics {
                metrics: self.metrics_of_container(sandbox, &record),
                container_id: record.id,
            })
            .collect();
        v1::PodSandboxMetrics {
            pod_sandbox_id: sandbox.id.clone(),
            metrics: row.metrics,
            container_metrics,
        }
    }

    fn metrics_of_container(
        &self,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
    ) -> Vec<v1::Metric> {
        let mut row = Row::new(sandbox, Some(record));
        add_used(&mut row, &used(record));
        if let Some(limits) =
            record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref())
        {
            let whole = |number: i64| u64::try_from(number).unwrap_or(0);
            row.add(&MEMORY_LIMIT, &[], whole(limits.memory_limit_in_bytes));
            row.add(&CPU_SHARES, &[], whole(limits.cpu_shares));
            if limits.cpu_quota > 0 {
                row.add(&CPU_QUOTA, &[], whole(limits.cpu_quota));
                row.add(&CPU_PERIOD, &[], whole(limits.cpu_period));
            }
        }
        let (bytes, _) = self.writable_layer(&record.id).map_or((0, 0), |upper| disk(&upper));
        row.add(&FS_USAGE, &[""], bytes);
        let seconds = |ns: i64| u64::try_from(ns).unwrap_or(0) / SECOND_NS;
        row.add(&STARTED, &[], seconds(record.started_at_ns));
        row.add(&SEEN, &[], seconds(now_ns()));
        row.metrics
    }
}

fn add_used(row: &mut Row, used: &Used) {
    row.add(&CPU, &["total"], used.cpu_ns / SECOND_NS);
    row.add(&CPU_USER, &[], used.cpu_user_ns / SECOND_NS);
    row.add(&CPU_SYSTEM, &[], used.cpu_system_ns / SECOND_NS);
    row.add(&MEMORY, &[], used.usage_bytes);
    row.add(&WORKING_SET, &[], used.working_set_bytes);
    row.add(&RSS, &[], used.rss_bytes);
    row.add(&CACHE, &[], used.cache_bytes);
    row.add(&FAILURES, &["pgfault", "container"], used.page_faults);
    row.add(&FAILURES, &["pgmajfault", "container"], used.major_page_faults);
    row.add(&PROCESSES, &[], used.processes);
}

/// Adds a line of net/dev (proc_pid_net(5)).
fn add_interface(row: &mut Row, line: &str) {
    let Some((name, numbers)) = line.split_once(':') else { return };
    let numbers: Vec<u64> =
        numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    for (metric, column) in &NETWORK {
        if let Some(value) = numbers.get(*column) {
            row.add(metric, &[name.trim()], *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> SandboxRecord {
        let config = v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: "web".into(),
                namespace: "shop".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        SandboxRecord {
            id: "s1".into(),
            config,
            runtime_handler: String::new(),
            created_at_ns: 0,
            ready: true,
            ips: Vec::new(),
            shim: None,
            pod_pid: None,
        }
    }

    #[test]
    fn every_metric_fits_its_descriptor() {
        let mut row = Row::new(&sandbox(), None);
        add_interface(&mut row, "  eth0: 1296 16 2 0 0 0 0 0 640 8 4 0 0 0 0 0");
        add_interface(&mut row, " face |bytes    packets errs");
        add_used(&mut row, &Used { cpu_ns: 2_500_000_000, ..Used::default() });
        let descriptors = descriptors();
        for metric in &row.metrics {
            let of = descriptors.iter().find(|of| of.name == metric.name).unwrap();
            assert_eq!(of.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        let value = |name: &str| {
            let found = row.metrics.iter().find(|metric| metric.name == name).unwrap();
            (found.label_values.clone(), found.value.as_ref().unwrap().value)
        };
        let (labels, bytes) = value("container_network_transmit_bytes_total");
        assert_eq!(labels, ["POD", "s1", "", "s1", "shop", "web", "eth0"]);
        assert_eq!(bytes, 640);
        assert_eq!(value("container_cpu_usage_seconds_total").1, 2);
    }

    #[test]
    fn descriptors_are_told_once() {
        let mut names: Vec<String> = descriptors().into_iter().map(|of| of.name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
