//! What is counted when somebody asks: this process, and the objects there are.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

use crate::caches::Caches;

/// Ticks of a second in `/proc`: `USER_HZ`, the same on all that Linux runs on today.
const TICKS: f64 = 100.0;

/// The process, under the names that all clients of Prometheus give it.
#[derive(Debug)]
pub struct Process;

/// What `/proc` says of this process.
struct Usage {
    cpu: Duration,
    started: Duration,
    resident_bytes: u64,
    virtual_bytes: u64,
    open_files: u64,
}

impl Usage {
    fn read() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        // The name of the program may hold blanks and brackets; what follows does not.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok().map(|ticks| ticks / TICKS);
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let kibibytes = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let age = Duration::try_from_secs_f64(uptime - ticks(19)?).unwrap_or_default();
        Some(Self {
            cpu: Duration::try_from_secs_f64(ticks(11)? + ticks(12)?).ok()?,
            started: now.checked_sub(age)?,
            resident_bytes: kibibytes("VmRSS:")? * 1024,
            virtual_bytes: kibibytes("VmSize:")? * 1024,
            open_files: std::fs::read_dir("/proc/self/fd").ok()?.count() as u64,
        })
    }
}

fn write<M>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: &M,
) -> Result<(), fmt::Error>
where
    M: EncodeMetric + TypedMetric,
{
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(usage) = Usage::read() else { return Ok(()) };
        let encoder = &mut encoder;
        write(
            encoder,
            "process_cpu_seconds",
            "Total user and system CPU time spent in seconds",
            &ConstCounter::new(usage.cpu.as_secs_f64()),
        )?;
        write(
            encoder,
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds",
            &ConstGauge::new(usage.started.as_secs_f64()),
        )?;
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Resident memory size in bytes",
                usage.resident_bytes,
            ),
            ("process_virtual_memory_bytes", "Virtual memory size in bytes", usage.virtual_bytes),
            ("process_open_fds", "Number of open file descriptors", usage.open_files),
        ] {
            write(encoder, name, help, &ConstGauge::new(value as f64))?;
        }
        Ok(())
    }
}

/// The numbers of objects.
pub struct Objects(pub Arc<Caches>);

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Objects")
    }
}

/// A resource as `apiserver_resource_objects` names it.
#[derive(Debug, EncodeLabelSet)]
struct Counted {
    group: String,
    resource: String,
}

/// A resource as `apiserver_storage_objects` names it.
#[derive(Debug, EncodeLabelSet)]
struct Stored {
    resource: String,
}

impl Collector for Objects {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counts = self.0.counts();
        let help = "Number of stored objects at the time of last check split by kind";
        let name = "apiserver_resource_objects";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (resource, count) in &counts {
            let labels =
                Counted { group: resource.group.clone(), resource: resource.plural.clone() };
            ConstGauge::new(*count as i64).encode(family.encode_family(&labels)?)?;
        }
        // Dashboards of before 1.34 look for this one.
        let name = "apiserver_storage_objects";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (resource, count) in &counts {
            let labels = Stored { resource: resource.qualified() };
            ConstGauge::new(*count as i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
