//! What containers and pods use: from the cgroup where they have one of their own, else summed
//! over the processes of their pid namespace (proc_pid_stat(5)).

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use k8s_cri::v1;

use crate::error::Error;
use crate::runtime::Runtime;
use crate::sandbox::selected;
use crate::state::{ContainerRecord, Phase, SandboxRecord, now_ns};

/// What was measured of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub cpu_ns: u64,
    pub cpu_user_ns: u64,
    pub cpu_system_ns: u64,
    pub rss_bytes: u64,
    pub working_set_bytes: u64,
    pub usage_bytes: u64,
    /// File pages; known of a cgroup alone.
    pub cache_bytes: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    pub processes: u64,
}

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

/// A number of a flat keyed file (cgroup-v2: interface file formats).
pub fn keyed(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn from_cgroup(directory: &Path) -> Option<Used> {
    let read = |file: &str| std::fs::read_to_string(directory.join(file)).ok();
    let stat = read("memory.stat")?;
    let usage_bytes = read("memory.current")?.trim().parse().ok()?;
    let cpu = read("cpu.stat")?;
    Some(Used {
        cpu_ns: keyed(&cpu, "usage_usec") * 1000,
        cpu_user_ns: keyed(&cpu, "user_usec") * 1000,
        cpu_system_ns: keyed(&cpu, "system_usec") * 1000,
        cache_bytes: keyed(&stat, "file"),
        rss_bytes: keyed(&stat, "anon"),
        working_set_bytes: u64::saturating_sub(usage_bytes, keyed(&stat, "inactive_file")),
        usage_bytes,
        page_faults: keyed(&stat, "pgfault"),
        major_page_faults: keyed(&stat, "pgmajfault"),
        processes: read("cgroup.procs").map_or(0, |text| text.lines().count() as u64),
    })
}

/// The processes of a container: those of its cgroup, else those that share the pid namespace of `pid`.
pub fn members(cgroup: Option<&Path>, pid: i32) -> Vec<i32> {
    let listed =
        cgroup.and_then(|cgroup| std::fs::read_to_string(cgroup.join("cgroup.procs")).ok());
    if let Some(listed) = listed {
        return listed.lines().filter_map(|line| line.parse().ok()).collect();
    }
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let Some(own) = namespace(pid) else { return Vec::new() };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| namespace(*pid).as_ref() == Some(&own)).collect()
}

/// Sums over the processes that share the pid namespace of `pid`.
fn from_processes(pid: i32) -> Used {
    let mut used = Used::default();
    for pid in members(None, pid) {
        if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            let before = used.cpu_ns;
            used.add(&stat);
            // Of one that has just begun, ticks tell nothing yet.
            used.cpu_ns = used.cpu_ns.max(before + ran_ns(pid));
        }
    }
    used
}

/// How long a process' first thread has run (Documentation/scheduler/sched-stats.rst).
fn ran_ns(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Used {
    fn add(&mut self, stat: &str) {
        let Some((_, fields)) = stat.rsplit_once(')') else { return };
        let fields: Vec<u64> =
            fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        // Numbered as the manual page does, whose third field is the first here.
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0);
        let rss = field(24) * rustix::param::page_size() as u64;
        let ns = |ticks| ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second();
        self.cpu_user_ns += ns(field(14));
        self.cpu_system_ns += ns(field(15));
        self.cpu_ns += ns(field(14) + field(15));
        self.rss_bytes += rss;
        self.working_set_bytes += rss;
        self.usage_bytes += rss;
        self.page_faults += field(10);
        self.major_page_faults += field(12);
        self.processes += 1;
    }

    fn cpu(&self, timestamp: i64) -> v1::CpuUsage {
        v1::CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(self.cpu_ns),
            usage_nano_cores: None,
            psi: None,
        }
    }

    fn memory(&self, timestamp: i64) -> v1::MemoryUsage {
        v1::MemoryUsage {
            timestamp,
            working_set_bytes: value(self.working_set_bytes),
            available_bytes: None,
            usage_bytes: value(self.usage_bytes),
            rss_bytes: value(self.rss_bytes),
            page_faults: value(self.page_faults),
            major_page_faults: value(self.major_page_faults),
            psi: None,
        }
    }

    /// The sum with another.
    fn plus(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            cpu_user_ns: self.cpu_user_ns + other.cpu_user_ns,
            cpu_system_ns: self.cpu_system_ns + other.cpu_system_ns,
            rss_bytes: self.rss_bytes + other.rss_bytes,
            working_set_bytes: self.working_set_bytes + other.working_set_bytes,
            usage_bytes: self.usage_bytes + other.usage_bytes,
            cache_bytes: self.cache_bytes + other.cache_bytes,
            page_faults: self.page_faults + other.page_faults,
            major_page_faults: self.major_page_faults + other.major_page_faults,
            processes: self.processes + other.processes,
        }
    }
}

/// What a container uses now; nothing unless it runs.
pub fn used(record: &ContainerRecord) -> Used {
    let pid = record.process.filter(|_| record.phase == Phase::Running).map(|process| process.pid);
    let measured = record.cgroup.as_deref().and_then(from_cgroup);
    measured.or_else(|| pid.map(from_processes)).unwrap_or_default()
}

/// With what is left of its limit, where it has one.
fn limited(memory: v1::MemoryUsage, record: &ContainerRecord) -> v1::MemoryUsage {
    let resources = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let limit = resources.and_then(|resources| u64::try_from(resources.memory_limit_in_bytes).ok());
    let limit = limit.filter(|limit| *limit > 0 && record.cgroup.is_some());
    let used = memory.working_set_bytes.as_ref().map_or(0, |used| used.value);
    let available_bytes = limit.and_then(|limit| value(limit.saturating_sub(used)));
    v1::MemoryUsage { available_bytes, ..memory }
}

/// Swap of a cgroup that may swap.
fn swap(cgroup: &Path, timestamp: i64) -> Option<v1::SwapUsage> {
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).ok();
    let usage: u64 = read("memory.swap.current")?.trim().parse().ok()?;
    let limit: Option<u64> = read("memory.swap.max")?.trim().parse().ok();
    Some(v1::SwapUsage {
        timestamp,
        swap_available_bytes: limit.and_then(|limit| value(limit.saturating_sub(usage))),
        swap_usage_bytes: value(usage),
    })
}

/// How long tasks of a cgroup waited for a resource (Documentation/accounting/psi.rst).
pub fn pressure(cgroup: &Path, file: &str) -> Option<v1::PsiStats> {
    let text = std::fs::read_to_string(cgroup.join(file)).ok()?;
    Some(v1::PsiStats { full: pressure_of(&text, "full"), some: pressure_of(&text, "some") })
}

fn pressure_of(text: &str, whose: &str) -> Option<v1::PsiData> {
    let line = text.lines().find_map(|line| line.strip_prefix(whose)?.strip_prefix(' '))?;
    let field =
        |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
    let average = |name: &str| field(name)?.parse::<f64>().ok();
    Some(v1::PsiData {
        // The kernel counts microseconds.
        total: field("total")?.parse::<u64>().ok()?.saturating_mul(1000),
        avg10: average("avg10")?,
        avg60: average("avg60")?,
        avg300: average("avg300")?,
    })
}

/// Bytes and inodes below a directory, without following links.
pub fn disk(directory: &Path) -> (u64, u64) {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.fold((0, 0), |(bytes, inodes), entry| {
        let Ok(metadata) = entry.metadata() else { return (bytes, inodes) };
        let below = if metadata.is_dir() { disk(&entry.path()) } else { (0, 0) };
        (bytes + metadata.blocks() * 512 + below.0, inodes + 1 + below.1)
    })
}

/// Interfaces of a pod, as its shim sees them (proc_pid_net(5): dev).
pub fn devices(record: &SandboxRecord) -> Option<String> {
    let shim = record.shim?;
    std::fs::read_to_string(format!("/proc/{}/net/dev", shim.pid)).ok()
}

fn network(record: &SandboxRecord) -> Option<v1::NetworkUsage> {
    let text = devices(record)?;
    let mut interfaces: Vec<_> =
        text.lines().filter_map(interface).filter(|found| found.name != "lo").collect();
    let default =
        interfaces.iter().position(|found| found.name == "eth0").map(|at| interfaces.remove(at));
    Some(v1::NetworkUsage { timestamp: now_ns(), default_interface: default, interfaces })
}

fn interface(line: &str) -> Option<v1::NetworkInterfaceUsage> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<u64> =
        numbers.split_whitespace().map_while(|number| number.parse().ok()).collect();
    Some(v1::NetworkInterfaceUsage {
        name: name.trim().to_owned(),
        rx_bytes: value(*numbers.first()?),
        rx_errors: value(*numbers.get(2)?),
        tx_bytes: value(*numbers.get(8)?),
        tx_errors: value(*numbers.get(10)?),
    })
}

impl Runtime {
    /// The stats of one container.
    pub(crate) fn stats_of(&self, id: &str) -> Result<v1::ContainerStats, Error> {
        Ok(self.measure(self.state().container(id)?.record()).0)
    }

    fn measure(&self, record: ContainerRecord) -> (v1::ContainerStats, Used) {
        let (used, timestamp) = (used(&record), now_ns());
        let (bytes, inodes) = self.writable_layer(&record.id).map_or((0, 0), |upper| disk(&upper));
        let mountpoint = self.images().root().to_string_lossy().into_owned();
        let memory = limited(used.memory(timestamp), &record);
        let (cpu_psi, memory_psi, io_psi, swap) = match record.cgroup.as_deref() {
            Some(cgroup) => (
                pressure(cgroup, "cpu.pressure"),
                pressure(cgroup, "memory.pressure"),
                pressure(cgroup, "io.pressure"),
                swap(cgroup, timestamp),
            ),
            None => (None, None, None, None),
        };
        let stats = v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                id: record.id,
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            cpu: Some(v1::CpuUsage { psi: cpu_psi, ..used.cpu(timestamp) }),
            memory: Some(v1::MemoryUsage { psi: memory_psi, ..memory }),
            io: io_psi.map(|psi| v1::IoUsage { timestamp, psi: Some(psi) }),
            writable_layer: Some(v1::FilesystemUsage {
                timestamp,
                fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
                used_bytes: value(bytes),
                inodes_used: value(inodes),
            }),
            swap,
        };
        (stats, used)
    }

    /// The upper directory of a container.
    pub(crate) fn writable_layer(&self, id: &str) -> Option<std::path::PathBuf> {
        let bytes = std::fs::read(self.bundle(id).join(crate::oci::launch::LAUNCH)).ok()?;
        let launch: crate::oci::launch::Launch = serde_json::from_slice(&bytes).ok()?;
        match launch.root {
            crate::oci::launch::Root::Overlay { upper, .. } => Some(upper),
            crate::oci::launch::Root::Directory(_) => None,
        }
    }

    /// The stats of running containers a filter selects.
    pub(crate) fn list_stats(&self, filter: &v1::ContainerStatsFilter) -> Vec<v1::ContainerStats> {
        let records = self.state().containers().into_iter().map(|container| container.record());
        records
            .filter(|record| record.phase == Phase::Running)
            .filter(|record| {
                record.id.starts_with(&filter.id)
                    && record.sandbox_id.starts_with(&filter.pod_sandbox_id)
            })
            .filter(|record| selected(&filter.label_selector, &record.config.labels))
            .map(|record| self.measure(record).0)
            .collect()
    }

    /// The stats of running pods a filter selects.
    pub(crate) fn list_pod_stats(
        &self,
        filter: &v1::PodSandboxStatsFilter,
    ) -> Vec<v1::PodSandboxStats> {
        let records = self.state().sandboxes().into_iter().map(|sandbox| sandbox.record());
        records
            .filter(|record| record.ready && record.id.starts_with(&filter.id))
            .filter(|record| selected(&filter.label_selector, &record.config.labels))
            .map(|record| self.pod_stats(record))
            .collect()
    }

    /// The stats of one pod.
    pub(crate) fn pod_stats(&self, record: SandboxRecord) -> v1::PodSandboxStats {
        let timestamp = now_ns();
        let network = network(&record);
        let running =
            self.state().containers_of(&record.id).into_iter().map(|container| container.record());
        let measured: Vec<_> = running
            .filter(|record| record.phase == Phase::Running)
            .map(|record| self.measure(record))
            .collect();
        let total = measured.iter().fold(Used::default(), |sum, (_, used)| sum.plus(*used));
        v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                id: record.id,
                metadata: record.config.metadata,
                labels: record.config.labels,
                annotations: record.config.annotations,
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                cpu: Some(total.cpu(timestamp)),
                memory: Some(total.memory(timestamp)),
                network,
                process: Some(v1::ProcessUsage {
                    timestamp,
                    process_count: value(total.processes),
                }),
                containers: measured.into_iter().map(|(stats, _)| stats).collect(),
                io: None,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_process_is_measured() {
        let mut used = Used::default();
        used.add(&std::fs::read_to_string("/proc/self/stat").unwrap());
        assert_eq!(used.processes, 1);
        assert!(used.rss_bytes > 0 && used.page_faults > 0, "{used:?}");
    }

    #[test]
    fn pressure_is_read() {
        let text = "some avg10=0.12 avg60=1.00 avg300=2.50 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n";
        let some = pressure_of(text, "some").unwrap();
        assert_eq!((some.total, some.avg10, some.avg300), (7000, 0.12, 2.5));
        assert_eq!(pressure_of(text, "full").unwrap().total, 3000);
        assert!(pressure_of("", "some").is_none());
    }

    #[test]
    fn interfaces_are_read() {
        let line = "  eth0: 1296 16 2 0 0 0 0 0 640 8 4 0 0 0 0 0";
        let found = interface(line).unwrap();
        assert_eq!(
            (found.name.as_str(), found.rx_bytes, found.tx_errors),
            ("eth0", value(1296), value(4))
        );
        assert!(interface(" face |bytes    packets errs").is_none());
    }
}
