//! What metrics tell of a container beyond what its stats do: from its cgroup where it has one (cgroup-v2), else from
//! its processes (proc(5)).

use std::path::{Path, PathBuf};

use super::{Row, SECOND_NS, table};
use crate::state::ContainerRecord;
use crate::stats::{keyed, members, pressure};

/// Sums over the processes of a container.
#[derive(Debug, Default, PartialEq, Eq)]
struct Processes {
    threads: u64,
    descriptors: u64,
    sockets: u64,
    peak_bytes: u64,
    swap_bytes: u64,
    mapped_bytes: u64,
    page_tables_bytes: u64,
}

impl Processes {
    fn of(pids: &[i32]) -> Self {
        let mut sums = Self::default();
        for pid in pids {
            let folder = PathBuf::from(format!("/proc/{pid}"));
            if let Ok(status) = std::fs::read_to_string(folder.join("status")) {
                sums.add(&status);
            }
            let open = std::fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
            for entry in open {
                sums.descriptors += 1;
                let target = std::fs::read_link(entry.path()).unwrap_or_default();
                sums.sockets += u64::from(target.to_string_lossy().starts_with("socket:"));
            }
        }
        sums
    }

    fn add(&mut self, status: &str) {
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            let word = line.and_then(|rest| rest.split_whitespace().next());
            word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
        };
        self.threads += number("Threads");
        self.peak_bytes += number("VmHWM") * 1024;
        self.swap_bytes += number("VmSwap") * 1024;
        self.mapped_bytes += (number("RssFile") + number("RssShmem")) * 1024;
        self.page_tables_bytes += number("VmPTE") * 1024;
    }
}

/// Adds what is known of a running container.
pub fn add(row: &mut Row, record: &ContainerRecord) {
    let Some(process) = record.process else { return };
    let cgroup = record.cgroup.as_deref();
    let processes = Processes::of(&members(cgroup, process.pid));
    row.add(&table::DESCRIPTORS, &[], processes.descriptors);
    row.add(&table::SOCKETS, &[], processes.sockets);
    if let Some(limit) = open_files(&format!("/proc/{}/limits", process.pid)) {
        row.add(&table::ULIMITS, &["max_open_files"], limit);
    }
    match cgroup.filter(|cgroup| cgroup.join("memory.stat").exists()) {
        Some(cgroup) => add_cgroup(row, cgroup),
        None => add_processes(row, &processes),
    }
}

/// Of a container that nothing limits, so that nothing ever held it back.
fn add_processes(row: &mut Row, processes: &Processes) {
    row.add(&table::THREADS, &[], processes.threads);
    row.add(&table::THREADS_MAX, &[], 0);
    row.add(&table::MEMORY_PEAK, &[], processes.peak_bytes);
    row.add(&table::SWAP, &[], processes.swap_bytes);
    row.add(&table::MAPPED, &[], processes.mapped_bytes);
    row.add(&table::KERNEL, &[], processes.page_tables_bytes);
    for metric in [
        &table::MEMORY_HITS,
        &table::OOM,
        &table::CPU_PERIODS,
        &table::CPU_THROTTLED_PERIODS,
        &table::CPU_THROTTLED,
    ] {
        row.add(metric, &[], 0);
    }
}

fn add_cgroup(row: &mut Row, cgroup: &Path) {
    let read = |file: &str| std::fs::read_to_string(cgroup.join(file)).unwrap_or_default();
    let number = |file: &str| read(file).trim().parse::<u64>().unwrap_or(0);
    let (memory, events, cpu) = (read("memory.stat"), read("memory.events"), read("cpu.stat"));
    row.add(&table::THREADS, &[], number("pids.current"));
    row.add(&table::THREADS_MAX, &[], number("pids.max"));
    row.add(&table::MEMORY_PEAK, &[], number("memory.peak"));
    row.add(&table::SWAP, &[], number("memory.swap.current"));
    row.add(&table::MAPPED, &[], keyed(&memory, "file_mapped"));
    row.add(&table::KERNEL, &[], keyed(&memory, "kernel"));
    row.add(&table::MEMORY_HITS, &[], keyed(&events, "max"));
    row.add(&table::OOM, &[], keyed(&events, "oom_kill"));
    row.add(&table::CPU_PERIODS, &[], keyed(&cpu, "nr_periods"));
    row.add(&table::CPU_THROTTLED_PERIODS, &[], keyed(&cpu, "nr_throttled"));
    row.add(&table::CPU_THROTTLED, &[], keyed(&cpu, "throttled_usec") / 1_000_000);
    for (file, waiting, stalled) in &table::PRESSURE {
        let Some(told) = pressure(cgroup, file) else { continue };
        for (metric, data) in [(waiting, told.some), (stalled, told.full)] {
            if let Some(data) = data {
                row.add(metric, &[], data.total / SECOND_NS);
            }
        }
    }
    for line in read("io.stat").lines() {
        add_device(row, line);
    }
    let files = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    for name in files.filter_map(|entry| entry.file_name().into_string().ok()) {
        if let Some(size) = name.strip_prefix("hugetlb.").and_then(|n| n.strip_suffix(".current"))
            && !size.contains('.')
        {
            row.add(&table::HUGE, &[size], number(&name));
        }
    }
}

/// Adds a line of io.stat: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn add_device(row: &mut Row, line: &str) {
    let mut words = line.split_whitespace();
    let Some((major, minor)) = words.next().and_then(|name| name.split_once(':')) else { return };
    let words: Vec<&str> = words.collect();
    let value = |key: &str| {
        let found = words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0)
    };
    let target = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = target.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    let device = name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"));
    row.add(&table::READS, &[&device], value("rios"));
    row.add(&table::READ_BYTES, &[&device], value("rbytes"));
    row.add(&table::WRITES, &[&device], value("wios"));
    row.add(&table::WRITTEN_BYTES, &[&device], value("wbytes"));
    for (operation, key) in [("Read", "rbytes"), ("Write", "wbytes"), ("Discard", "dbytes")] {
        row.add(&table::BLOCK_IO, &[&device, major, minor, operation], value(key));
    }
}

/// Adds the file system that holds the container's files.
pub fn add_filesystem(row: &mut Row, path: &Path) {
    let Ok(found) = rustix::fs::statvfs(path) else { return };
    row.add(&table::FS_LIMIT, &[""], found.f_blocks * found.f_frsize);
    row.add(&table::INODES, &[""], found.f_files);
    row.add(&table::INODES_FREE, &[""], found.f_ffree);
}

/// The soft limit of open files; nothing for none.
fn open_files(limits: &str) -> Option<u64> {
    let text = std::fs::read_to_string(limits).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_measured() {
        let own = i32::try_from(std::process::id()).unwrap();
        let _socket = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let found = Processes::of(&[own]);
        assert!(found.threads >= 1 && found.sockets >= 1, "{found:?}");
        assert!(found.descriptors > found.sockets && found.peak_bytes > 0, "{found:?}");
        assert!(open_files("/proc/self/limits").is_some());
        assert_eq!(Processes::of(&[i32::MAX]), Processes::default(), "nobody");
    }

    #[test]
    fn a_cgroup_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("memory.stat", "anon 1\nkernel 4096\nfile_mapped 8192\n"),
            ("memory.events", "low 0\nmax 3\noom 2\noom_kill 1\n"),
            ("memory.peak", "77\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 5\nnr_periods 9\nnr_throttled 4\nthrottled_usec 2500000\n"),
            ("io.stat", "259:77 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
            ("io.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=3000000\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "9\n"),
        ] {
            std::fs::write(folder.path().join(file), text).unwrap();
        }
        let mut row = Row::new(&crate::metrics::tests::sandbox(), None);
        add_cgroup(&mut row, folder.path());
        let told = |name: &str| {
            let of = row.metrics.iter().filter(|metric| metric.name == name);
            of.map(|metric| (metric.label_values[6..].join(","), metric.value.unwrap().value))
                .collect::<Vec<_>>()
        };
        for (name, label, value) in [
            ("container_memory_kernel_usage", "", 4096),
            ("container_memory_mapped_file", "", 8192),
            ("container_memory_failcnt", "", 3),
            ("container_oom_events_total", "", 1),
            ("container_memory_max_usage_bytes", "", 77),
            ("container_threads_max", "", 0),
            ("container_cpu_cfs_throttled_periods_total", "", 4),
            ("container_cpu_cfs_throttled_seconds_total", "", 2),
            ("container_fs_writes_bytes_total", "259:77", 20),
            ("container_pressure_io_waiting_seconds_total", "", 3),
            ("container_hugetlb_usage_bytes", "2MB", 2_097_152),
        ] {
            assert_eq!(told(name), [(label.to_owned(), value)], "{name}");
        }
        assert_eq!(
            told("container_blkio_device_usage_total")[1],
            ("259:77,259,77,Write".into(), 20)
        );
        crate::metrics::tests::fits(&row);
    }
}
