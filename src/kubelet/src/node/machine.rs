//! What the machine is: processors, memory, disk, names of kernel and system.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::context::Machine;

/// Reads processors and memory.
pub fn read() -> Machine {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Machine {
        cpus,
        memory_bytes: meminfo("MemTotal"),
        swap_bytes: meminfo("SwapTotal"),
        swap_limits: limits_swap(Path::new("/sys/fs/cgroup")),
    }
}

/// Whether swap can be limited in the cgroups below `mount`, the root among them where it is a container's own
/// (cgroup-v2: memory.swap.max is there in all but the root, if the kernel accounts for swap).
fn limits_swap(mount: &Path) -> bool {
    let below = fs::read_dir(mount).into_iter().flatten().flatten().map(|entry| entry.path());
    mount.join("cgroup.controllers").exists()
        && std::iter::once(mount.to_owned())
            .chain(below)
            .any(|cgroup| cgroup.join("memory.swap.max").exists())
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
#[derive(Clone, Copy, Debug)]
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

/// CPU time of this process, nanoseconds.
pub fn own_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Memory of this process that is resident, bytes (proc_pid_statm(5)).
pub fn own_memory_bytes() -> u64 {
    let resident = line("/proc/self/statm");
    let pages = resident.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Page faults of the machine since its boot, and those that had to read from a disk (proc_vmstat(5)).
pub fn page_faults() -> (u64, u64) {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    (count("pgfault"), count("pgmajfault"))
}

/// The same of this process (proc_pid_stat(5), minflt and majflt).
pub fn own_page_faults() -> (u64, u64) {
    let stat = line("/proc/self/stat");
    // The name, in brackets, may have spaces.
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let count = |index: usize| fields.get(index).and_then(|field| field.parse().ok()).unwrap_or(0);
    let (minor, major): (u64, u64) = (count(7), count(9));
    (minor + major, major)
}

/// What went through a network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_errors: u64,
    pub tx_bytes: u64,
    pub tx_errors: u64,
}

/// The machine's interfaces but for loopback; first the one through which the default route leads, if there is one.
pub fn interfaces() -> Vec<Interface> {
    let read =
        |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
    interfaces_of(&read("dev"), &read("route"))
}

fn interfaces_of(dev: &str, route: &str) -> Vec<Interface> {
    let to_everywhere = route.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let name = fields.next()?;
        (fields.next()? == "00000000").then_some(name)
    });
    let read = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let counters: Vec<u64> =
            counters.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
        let at = |index: usize| counters.get(index).copied().unwrap_or(0);
        Some(Interface {
            name: name.trim().to_owned(),
            rx_bytes: at(0),
            rx_errors: at(2),
            tx_bytes: at(8),
            tx_errors: at(10),
        })
    };
    let mut all: Vec<_> = dev.lines().filter_map(read).filter(|own| own.name != "lo").collect();
    all.sort_by_key(|own| Some(own.name.as_str()) != to_everywhere);
    all
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_of_the_default_route_comes_first() {
        let dev = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100      10    0    0    0     0          0         0      100      10    0    0    0     0       0          0
  wlan0:      1       2    3    4    5     6          7         8        9      10   11   12   13    14      15         16
   eth0:     21      22   23    0    0     0          0         0       29      30   31    0    0     0       0          0";
        let route =
            "Iface\tDestination\tGateway\neth0\t0000A8C0\t00000000\neth0\t00000000\t0100A8C0";
        let of = |name: &str, rx_bytes, rx_errors, tx_bytes, tx_errors| Interface {
            name: name.to_owned(),
            rx_bytes,
            rx_errors,
            tx_bytes,
            tx_errors,
        };
        let expected = [of("eth0", 21, 23, 29, 31), of("wlan0", 1, 3, 9, 11)];
        assert_eq!(interfaces_of(dev, route), expected);
        assert_eq!(interfaces_of(dev, "")[0].name, "wlan0");
        assert!(interfaces_of("", "").is_empty());
    }
}
