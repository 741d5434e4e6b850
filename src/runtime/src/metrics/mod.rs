//! Metrics of pods and containers under the names that cAdvisor gave them, which a kubelet passes on
//! to Prometheus without knowing them (CRI: ListMetricDescriptors, ListPodSandboxMetrics).

mod detail;
mod table;

use k8s_cri::v1;

use crate::runtime::Runtime;
use crate::state::{ContainerRecord, Phase, SandboxRecord, now_ns};
use crate::stats::{Used, devices, disk, used};
use table::Metric;

pub use table::descriptors;

const SECOND_NS: u64 = 1_000_000_000;

/// The kernel's period of shares of the processors, microseconds.
const DEFAULT_PERIOD: i64 = 100_000;

/// The name of a pod's own row.
const POD: &str = "POD";

/// Metrics of one pod or container.
pub struct Row {
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
        detail::add(&mut row, record);
        let limits = record.config.linux.clone().and_then(|linux| linux.resources);
        add_limits(&mut row, &limits.unwrap_or_default());
        let (bytes, _) = self.writable_layer(&record.id).map_or((0, 0), |upper| disk(&upper));
        row.add(&table::FS_USAGE, &[""], bytes);
        detail::add_filesystem(&mut row, &self.images().root());
        let seconds = |ns: i64| u64::try_from(ns).unwrap_or(0) / SECOND_NS;
        row.add(&table::STARTED, &[], seconds(record.started_at_ns));
        row.add(&table::SEEN, &[], seconds(now_ns()));
        row.metrics
    }
}

fn add_used(row: &mut Row, used: &Used) {
    row.add(&table::CPU, &["total"], used.cpu_ns / SECOND_NS);
    row.add(&table::CPU_USER, &[], used.cpu_user_ns / SECOND_NS);
    row.add(&table::CPU_SYSTEM, &[], used.cpu_system_ns / SECOND_NS);
    row.add(&table::MEMORY, &[], used.usage_bytes);
    row.add(&table::WORKING_SET, &[], used.working_set_bytes);
    row.add(&table::RSS, &[], used.rss_bytes);
    row.add(&table::CACHE, &[], used.cache_bytes);
    row.add(&table::FAILURES, &["pgfault", "container"], used.page_faults);
    row.add(&table::FAILURES, &["pgmajfault", "container"], used.major_page_faults);
    row.add(&table::PROCESSES, &[], used.processes);
}

fn add_limits(row: &mut Row, limits: &v1::LinuxContainerResources) {
    let whole = |number: i64| u64::try_from(number).unwrap_or(0);
    row.add(&table::MEMORY_LIMIT, &[], whole(limits.memory_limit_in_bytes));
    let swap = limits.memory_swap_limit_in_bytes - limits.memory_limit_in_bytes;
    row.add(&table::SWAP_LIMIT, &[], whole(swap));
    let low = limits.unified.get("memory.low").and_then(|text| text.parse().ok());
    row.add(&table::RESERVATION, &[], low.unwrap_or(0));
    row.add(&table::CPU_SHARES, &[], whole(limits.cpu_shares));
    let period = if limits.cpu_period > 0 { limits.cpu_period } else { DEFAULT_PERIOD };
    row.add(&table::CPU_PERIOD, &[], whole(period));
    if limits.cpu_quota > 0 {
        row.add(&table::CPU_QUOTA, &[], whole(limits.cpu_quota));
    }
}

/// Adds a line of net/dev (proc_pid_net(5)).
fn add_interface(row: &mut Row, line: &str) {
    let Some((name, numbers)) = line.split_once(':') else { return };
    let numbers: Vec<u64> =
        numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    for (metric, column) in &table::NETWORK {
        if let Some(value) = numbers.get(*column) {
            row.add(metric, &[name.trim()], *value);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn sandbox() -> SandboxRecord {
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

    /// Whether all have the labels that their descriptors name.
    pub fn fits(row: &Row) {
        let descriptors = descriptors();
        for metric in &row.metrics {
            let of = descriptors.iter().find(|of| of.name == metric.name).unwrap();
            assert_eq!(of.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
    }

    #[test]
    fn every_metric_fits_its_descriptor() {
        let mut row = Row::new(&sandbox(), None);
        add_interface(&mut row, "  eth0: 1296 16 2 0 0 0 0 0 640 8 4 0 0 0 0 0");
        add_interface(&mut row, " face |bytes    packets errs");
        add_used(&mut row, &Used { cpu_ns: 2_500_000_000, ..Used::default() });
        add_limits(&mut row, &v1::LinuxContainerResources { cpu_quota: 1, ..Default::default() });
        fits(&row);
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
