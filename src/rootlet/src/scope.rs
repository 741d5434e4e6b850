//! A cgroup of our own: systemd is asked for a scope whose subtree is delegated to us, as a login's own cgroup
//! never is. Where there is no systemd, one is made beside our own, if that is ours to do.
//!
//! Source: org.freedesktop.systemd1(5), "Control Group APIs and Delegation" of systemd's documentation.

mod plain;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::bus::{Bus, Callee, Writer};

/// Where cgroup2 is mounted, if the machine uses it alone.
const MOUNT: &str = "/sys/fs/cgroup";
/// The cgroup of our own processes below the scope: only leaves may hold processes.
const LEAF: &str = "init";
/// How long systemd may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Controllers that pods are limited with.
const CONTROLLERS: [&str; 6] = ["cpu", "memory", "pids", "cpuset", "io", "hugetlb"];

/// The scope this process is in.
pub struct Scope {
    folder: PathBuf,
}

/// Names the unit that a process was started as, in the environment of what `rootlet service install` writes.
pub const UNIT: &str = "ROOTLET_UNIT";

/// The unit of a cluster that the user's systemd starts.
pub fn service_unit(cluster: &str) -> String {
    if cluster == "default" {
        "rootlet.service".into()
    } else {
        format!("rootlet-{cluster}.service")
    }
}

/// Whether this process was started as the cluster's service.
pub fn is_service(cluster: &str) -> bool {
    std::env::var(UNIT).is_ok_and(|unit| unit == service_unit(cluster))
}

/// Moves this process into the scope of the cluster, made if need be, or where the cluster's `node` process, if
/// it runs, already is. A process that systemd started as the cluster's service stays in that one's cgroup.
/// `Err` tells why there is no cgroup of our own.
pub fn enter(cluster: &str, node: Option<u32>) -> Result<Scope, String> {
    if !Path::new(MOUNT).join("cgroup.controllers").exists() {
        return Err("this machine does not use the unified cgroup v2 hierarchy".into());
    }
    let service = service_unit(cluster);
    let beside = node.and_then(|pid| cgroup_of(&pid.to_string()));
    let in_service = match &beside {
        Some(path) => in_unit(path, &service),
        None => is_service(cluster) && own_cgroup().is_some_and(|path| in_unit(&path, &service)),
    };
    let unit = if in_service { service } else { format!("rootlet-{}.scope", escape(cluster)) };
    let (own, pid) = (own_cgroup(), std::process::id());
    if own.as_ref().is_none_or(|path| !in_unit(path, &unit)) {
        match service_manager() {
            Ok(mut bus) if in_service => attach(&mut bus, &unit, pid)?,
            Ok(mut bus) => {
                if let Err(refusal) = start_scope(&mut bus, &unit, pid) {
                    // The node process of an earlier `up` holds it.
                    attach(&mut bus, &unit, pid).map_err(|_| refusal)?;
                }
            }
            Err(error) => {
                let own = own.as_deref().unwrap_or("/");
                if node.is_none() {
                    // What a cluster that was killed left: its namespace would not begin at the top.
                    plain::remove(Path::new(MOUNT), own, &unit);
                }
                plain::make(Path::new(MOUNT), own, &unit, LEAF)
                    .map_err(|refusal| format!("systemd does not answer: {error}; {refusal}"))?;
            }
        }
    }
    let began = Instant::now();
    loop {
        if let Some(path) = own_cgroup().filter(|path| in_unit(path, &unit)) {
            let end = path.find(&unit).map_or(path.len(), |at| at + unit.len());
            let folder = Path::new(MOUNT).join(path[..end].trim_start_matches('/'));
            return Ok(Scope { folder });
        }
        if began.elapsed() > TIMEOUT {
            return Err(format!("systemd did not move this process into {unit}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes what is left of the cluster's scope where no service manager does.
pub fn remove(cluster: &str) {
    let unit = format!("rootlet-{}.scope", escape(cluster));
    if let Some(own) = own_cgroup().filter(|_| service_manager().is_err()) {
        plain::remove(Path::new(MOUNT), &own, &unit);
    }
}

/// Whether one can be had without a service manager.
pub fn offered_plain() -> bool {
    let own = own_cgroup().unwrap_or_default();
    service_manager().is_err() && plain::offered(Path::new(MOUNT), &own)
}

/// Whether a service manager is there to be asked for one, with controllers to pass on.
pub fn offered() -> bool {
    let uid = rustix::process::geteuid().as_raw();
    let manager = format!("{MOUNT}/user.slice/user-{uid}.slice/user@{uid}.service");
    let folder = if uid == 0 { MOUNT } else { &manager };
    let controllers = fs::read_to_string(Path::new(folder).join("cgroup.controllers"));
    let enough = controllers.is_ok_and(|all| {
        ["cpu", "memory", "pids"].iter().all(|wanted| all.split_whitespace().any(|c| c == *wanted))
    });
    enough && service_manager().is_ok()
}

impl Scope {
    /// Moves this process, and with it what it starts from now on, from the scope into its leaf.
    pub fn settle(&self) -> io::Result<()> {
        let leaf = self.folder.join(LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => fs::write(leaf.join("cgroup.procs"), "0"),
        }
    }
}

/// In the namespaces of the node, whose cgroups begin at the scope: moves this process into the leaf.
pub fn settle_inside() {
    let leaf = Path::new(MOUNT).join(LEAF);
    if own_cgroup().as_deref() != Some("/") || fs::create_dir_all(&leaf).is_err() {
        return;
    }
    // Where nothing is delegated this fails, and nothing is lost.
    if fs::write(leaf.join("cgroup.procs"), "0").is_err() {
        let _ = fs::remove_dir(&leaf);
    }
}

/// In the daemon: the root of the cgroups that are ours, with its controllers switched on; `None` when none is.
pub fn delegated() -> Option<PathBuf> {
    if own_cgroup().as_deref() != Some(&format!("/{LEAF}")) {
        return None;
    }
    let root = Path::new(MOUNT);
    // What is mounted there is to begin where our namespace does.
    let procs = fs::read_to_string(root.join(LEAF).join("cgroup.procs")).ok()?;
    if !procs.lines().any(|pid| pid == std::process::id().to_string()) {
        return None;
    }
    for controller in CONTROLLERS {
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    let on = fs::read_to_string(root.join("cgroup.subtree_control")).ok()?;
    let on: Vec<&str> = on.split_whitespace().collect();
    ["cpu", "memory", "pids"].iter().any(|c| on.contains(c)).then(|| PathBuf::from("/"))
}

fn in_unit(path: &str, unit: &str) -> bool {
    path.split('/').any(|part| part == unit)
}

/// The cgroup v2 of this process (cgroups(7)).
fn own_cgroup() -> Option<String> {
    cgroup_of("self")
}

fn cgroup_of(pid: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// A cluster's name as a part of a unit's: dashes mean slices there (systemd.unit(5)).
fn escape(name: &str) -> String {
    name.replace('-', "\\x2d")
}

const MANAGER: Callee = Callee {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};

/// A connection to the service manager: the user's, or root's.
fn service_manager() -> io::Result<Bus> {
    let root = rustix::process::geteuid().is_root();
    let private = if root {
        PathBuf::from("/run/systemd/private")
    } else {
        let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let own = PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw()));
        // A runtime folder of the caller's choice has no manager in it.
        let folder = folder.filter(|f| f.join("systemd/private").exists()).unwrap_or(own);
        folder.join("systemd/private")
    };
    Bus::connect(&private, TIMEOUT)
}

fn start_scope(bus: &mut Bus, unit: &str, pid: u32) -> Result<(), String> {
    let mut body = Writer::default();
    body.text(unit);
    body.text("fail");
    body.array(8, |properties| {
        properties.property("Description", "s", |w| w.text("rootlet: a Kubernetes cluster"));
        properties.property("Delegate", "b", |w| w.u32(1));
        properties.property("CollectMode", "s", |w| w.text("inactive-or-failed"));
        properties.property("TasksMax", "t", |w| w.u64(u64::MAX));
        properties.property("PIDs", "au", |w| w.array(4, |pids| pids.u32(pid)));
    });
    body.array(8, |_| {});
    bus.call(&MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", &body).map(drop)
}

fn attach(bus: &mut Bus, unit: &str, pid: u32) -> Result<(), String> {
    let mut body = Writer::default();
    body.text(unit);
    body.text(&format!("/{LEAF}"));
    body.array(4, |pids| pids.u32(pid));
    bus.call(&MANAGER, "AttachProcessesToUnit", "ssau", &body).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape("ci-7"), "ci\\x2d7");
        assert!(in_unit("/user.slice/rootlet-a.scope/init", "rootlet-a.scope"));
        assert!(!in_unit("/user.slice/rootlet-ab.scope", "rootlet-a.scope"));
    }
}
