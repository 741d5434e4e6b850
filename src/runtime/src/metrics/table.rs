//! The metrics there are, under the names and with the words that cAdvisor gave them.

use k8s_cri::v1;
use v1::MetricType::{Counter, Gauge};

/// Labels that every metric has, with the names that cAdvisor in a kubelet gives them.
pub const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
/// A metric: its name, what it says, its labels beside [`LABELS`], its type.
pub type Metric = (&'static str, &'static str, &'static [&'static str], v1::MetricType);

pub const CPU: Metric = (
    "container_cpu_usage_seconds_total",
    "Cumulative cpu time consumed in seconds.",
    &["cpu"],
    Counter,
);
pub const CPU_USER: Metric = (
    "container_cpu_user_seconds_total",
    "Cumulative user cpu time consumed in seconds.",
    &[],
    Counter,
);
pub const CPU_SYSTEM: Metric = (
    "container_cpu_system_seconds_total",
    "Cumulative system cpu time consumed in seconds.",
    &[],
    Counter,
);
pub const MEMORY: Metric = (
    "container_memory_usage_bytes",
    "Current memory usage in bytes, including all memory regardless of when it was accessed.",
    &[],
    Gauge,
);
pub const WORKING_SET: Metric =
    ("container_memory_working_set_bytes", "Current working set in bytes.", &[], Gauge);
pub const RSS: Metric = ("container_memory_rss", "Size of RSS in bytes.", &[], Gauge);
pub const CACHE: Metric =
    ("container_memory_cache", "Number of bytes of page cache memory.", &[], Gauge);
pub const FAILURES: Metric = (
    "container_memory_failures_total",
    "Cumulative count of memory allocation failures.",
    &["failure_type", "scope"],
    Counter,
);
pub const MEMORY_LIMIT: Metric =
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", &[], Gauge);
pub const CPU_SHARES: Metric =
    ("container_spec_cpu_shares", "CPU share of the container.", &[], Gauge);
pub const CPU_QUOTA: Metric =
    ("container_spec_cpu_quota", "CPU quota of the container.", &[], Gauge);
pub const CPU_PERIOD: Metric =
    ("container_spec_cpu_period", "CPU period of the container.", &[], Gauge);
pub const PROCESSES: Metric =
    ("container_processes", "Number of processes running inside the container.", &[], Gauge);
pub const FS_USAGE: Metric = (
    "container_fs_usage_bytes",
    "Number of bytes that are consumed by the container on this filesystem.",
    &["device"],
    Gauge,
);
pub const STARTED: Metric = (
    "container_start_time_seconds",
    "Start time of the container since unix epoch in seconds.",
    &[],
    Gauge,
);
pub const SEEN: Metric =
    ("container_last_seen", "Last time a container was seen by the exporter", &[], Gauge);
pub const CPU_PERIODS: Metric = (
    "container_cpu_cfs_periods_total",
    "Number of elapsed enforcement period intervals.",
    &[],
    Counter,
);
pub const CPU_THROTTLED_PERIODS: Metric = (
    "container_cpu_cfs_throttled_periods_total",
    "Number of throttled period intervals.",
    &[],
    Counter,
);
pub const CPU_THROTTLED: Metric = (
    "container_cpu_cfs_throttled_seconds_total",
    "Total time duration the container has been throttled.",
    &[],
    Counter,
);
pub const MAPPED: Metric =
    ("container_memory_mapped_file", "Size of memory mapped files in bytes.", &[], Gauge);
pub const MEMORY_PEAK: Metric =
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", &[], Gauge);
pub const KERNEL: Metric =
    ("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", &[], Gauge);
pub const SWAP: Metric = ("container_memory_swap", "Container swap usage in bytes.", &[], Gauge);
pub const MEMORY_HITS: Metric =
    ("container_memory_failcnt", "Number of memory usage hits limits.", &[], Counter);
pub const OOM: Metric = (
    "container_oom_events_total",
    "Count of out of memory events observed for the container.",
    &[],
    Counter,
);
pub const RESERVATION: Metric = (
    "container_spec_memory_reservation_limit_bytes",
    "Memory reservation limit for the container.",
    &[],
    Gauge,
);
pub const SWAP_LIMIT: Metric =
    ("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", &[], Gauge);
pub const THREADS: Metric =
    ("container_threads", "Number of threads running inside the container.", &[], Gauge);
pub const THREADS_MAX: Metric = (
    "container_threads_max",
    "Maximum number of threads allowed inside the container, 0 if there is no limit.",
    &[],
    Gauge,
);
pub const DESCRIPTORS: Metric = (
    "container_file_descriptors",
    "Number of open file descriptors for the container.",
    &[],
    Gauge,
);
pub const SOCKETS: Metric =
    ("container_sockets", "Number of open sockets for the container.", &[], Gauge);
pub const ULIMITS: Metric = (
    "container_ulimits_soft",
    "Soft ulimit values for the container's first process.",
    &["ulimit"],
    Gauge,
);
pub const FS_LIMIT: Metric = (
    "container_fs_limit_bytes",
    "Number of bytes that can be consumed by the container on this filesystem.",
    &["device"],
    Gauge,
);
pub const INODES: Metric = ("container_fs_inodes_total", "Number of inodes.", &["device"], Gauge);
pub const INODES_FREE: Metric =
    ("container_fs_inodes_free", "Number of available inodes.", &["device"], Gauge);
pub const READS: Metric =
    ("container_fs_reads_total", "Cumulative count of reads completed.", &["device"], Counter);
pub const READ_BYTES: Metric =
    ("container_fs_reads_bytes_total", "Cumulative count of bytes read.", &["device"], Counter);
pub const WRITES: Metric =
    ("container_fs_writes_total", "Cumulative count of writes completed.", &["device"], Counter);
pub const WRITTEN_BYTES: Metric =
    ("container_fs_writes_bytes_total", "Cumulative count of bytes written.", &["device"], Counter);
pub const BLOCK_IO: Metric = (
    "container_blkio_device_usage_total",
    "Blkio device bytes usage.",
    &["device", "major", "minor", "operation"],
    Counter,
);
pub const HUGE: Metric =
    ("container_hugetlb_usage_bytes", "Current hugepage usage in bytes.", &["pagesize"], Gauge);
/// Of each resource: its file, and how long some and all tasks of a container waited for it.
pub const PRESSURE: [(&str, Metric, Metric); 3] = [
    (
        "cpu.pressure",
        waiting(
            "container_pressure_cpu_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to CPU congestion.",
        ),
        waiting(
            "container_pressure_cpu_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
        ),
    ),
    (
        "memory.pressure",
        waiting(
            "container_pressure_memory_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to memory congestion.",
        ),
        waiting(
            "container_pressure_memory_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
        ),
    ),
    (
        "io.pressure",
        waiting(
            "container_pressure_io_waiting_seconds_total",
            "Total time duration tasks in the container have waited due to IO congestion.",
        ),
        waiting(
            "container_pressure_io_stalled_seconds_total",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
        ),
    ),
];

const fn waiting(name: &'static str, help: &'static str) -> Metric {
    (name, help, &[], Counter)
}
/// Each with its column of net/dev.
pub const NETWORK: [(Metric, usize); 8] = [
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

const OF_CONTAINERS: [Metric; 41] = [
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
    CPU_PERIODS,
    CPU_THROTTLED_PERIODS,
    CPU_THROTTLED,
    MAPPED,
    MEMORY_PEAK,
    KERNEL,
    SWAP,
    MEMORY_HITS,
    OOM,
    RESERVATION,
    SWAP_LIMIT,
    THREADS,
    THREADS_MAX,
    DESCRIPTORS,
    SOCKETS,
    ULIMITS,
    FS_LIMIT,
    INODES,
    INODES_FREE,
    READS,
    READ_BYTES,
    WRITES,
    WRITTEN_BYTES,
    BLOCK_IO,
    HUGE,
];

/// All that will ever be told.
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let pressure = PRESSURE.iter().flat_map(|(_, some, all)| [some, all]);
    let network = NETWORK.iter().map(|(metric, _)| metric);
    let all = OF_CONTAINERS.iter().chain(pressure).chain(network);
    all.map(|(name, help, labels, _)| v1::MetricDescriptor {
        name: (*name).to_owned(),
        help: (*help).to_owned(),
        label_keys: LABELS.iter().chain(*labels).map(|key| (*key).to_owned()).collect(),
    })
    .collect()
}
