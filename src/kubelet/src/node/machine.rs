//! What the machine is: processors, memory, disk, names of kernel and system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::context::Machine;

/// Reads processors and memory.
pub fn read() -> Machine {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Machine { cpus, memory_bytes: meminfo("MemTotal") }
}

/// A field of `/proc/meminfo`, in bytes.
pub fn meminfo(field: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find(|l| l.split(':').next() == Some(field));
    let kibibytes =
        line.and_then(|l| l.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok());
    kibibytes.unwrap_or(0) * 1024
}

/// What the node can give, by resource.
pub fn capacity(machine: &Machine, root: &Path, max_pods: u32) -> BTreeMap<String, Quantity> {
    let mut out = BTreeMap::new();
    let mut set = |name: &str, value: String| out.insert(name.to_owned(), Quantity(value));
    set("cpu", machine.cpus.to_string());
    set("memory", format!("{}Ki", machine.memory_bytes / 1024));
    set("pods", max_pods.to_string());
    if let Ok(disk) = rustix::fs::statvfs(root) {
        set("ephemeral-storage", format!("{}Ki", disk.f_blocks * disk.f_frsize / 1024));
    }
    for entry in fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(kibibytes) = name
            .strip_prefix("hugepages-")
            .and_then(|n| n.strip_suffix("kB"))
            .and_then(|n| n.parse::<u64>().ok())
        else {
            continue;
        };
        let pages = fs::read_to_string(entry.path().join("nr_hugepages")).unwrap_or_default();
        let pages: u64 = pages.trim().parse().unwrap_or(0);
        let size = if kibibytes >= 1 << 20 {
            format!("{}Gi", kibibytes >> 20)
        } else {
            format!("{}Mi", kibibytes >> 10)
        };
        set(&format!("hugepages-{size}"), human(pages * kibibytes * 1024));
    }
    out
}

fn human(bytes: u64) -> String {
    if bytes != 0 && bytes.is_multiple_of(1 << 20) {
        format!("{}Mi", bytes >> 20)
    } else {
        bytes.to_string()
    }
}

/// The node's architecture as Go names it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A one-line file's content.
pub fn line(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// The system's name for people.
pub fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release")
        .or_else(|_| fs::read_to_string("/usr/lib/os-release"))
        .unwrap_or_default();
    let value = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    value.map_or_else(|| "Linux".into(), |v| v.trim_matches('"').to_owned())
}

/// A file system's size and what is free of it, for ordinary users. Some count no inodes: then all are zero.
pub struct Disk {
    pub bytes: u64,
    pub available_bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// The file system that holds `path`.
pub fn disk(path: &Path) -> Option<Disk> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(Disk {
        bytes: disk.f_blocks * disk.f_frsize,
        available_bytes: disk.f_bavail * disk.f_frsize,
        free_bytes: disk.f_bfree * disk.f_frsize,
        inodes: disk.f_files,
        inodes_free: disk.f_favail,
    })
}

/// CPU time all processors have spent on anything, in nanoseconds since the boot (proc_stat(5)).
pub fn cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // User, nice, system, then (after idle and waiting) interrupts, soft interrupts and what was stolen;
    // guests' time is part of user's.
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|i| fields.get(*i)).sum();
    busy * 1_000_000_000 / rustix::param::clock_ticks_per_second()
}

/// When the machine booted.
pub fn boot_time() -> Option<jiff::Timestamp> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let seconds = text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    jiff::Timestamp::from_second(seconds).ok()
}

/// How many processes and threads there may be, and how many there are.
pub fn pids() -> (u64, u64) {
    let number = |path: &str| line(path).parse::<u64>().ok();
    let most = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
    let loadavg = line("/proc/loadavg");
    let tasks = loadavg.split_whitespace().nth(3).and_then(|f| f.split_once('/'));
    let now = tasks.and_then(|(_, all)| all.parse().ok()).unwrap_or(0);
    (most.into_iter().flatten().min().unwrap_or(0), now)
}
