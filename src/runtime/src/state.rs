//! Sandboxes and containers as the daemon knows them, and their records on disk.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_cri::v1;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::error::Error;
use crate::shim::protocol::{Exit, Identity};

/// The record of a sandbox, `sandbox.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: String,
    pub config: v1::PodSandboxConfig,
    pub runtime_handler: String,
    pub created_at_ns: i64,
    pub ready: bool,
    pub ips: Vec<std::net::IpAddr>,
    pub shim: Option<Process>,
    pub pod_pid: Option<i32>,
}

/// A process, safe against reuse of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Start time in ticks since boot (proc_pid_stat(5), field 22).
    pub started: u64,
}

impl Process {
    /// The process with this number now; `None` when there is none.
    pub fn now(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields = stat.rsplit_once(')')?.1;
        Some(Self { pid, started: fields.split_whitespace().nth(19)?.parse().ok()? })
    }

    /// The process whose number is in a file. One that began after the file was written has the number of another
    /// that is gone.
    pub fn of_file(file: &Path) -> Option<Self> {
        let process = Self::now(std::fs::read_to_string(file).ok()?.parse().ok()?)?;
        let written = std::fs::metadata(file).ok()?.modified().ok()?.elapsed().unwrap_or_default();
        let booted = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
        let began = process.started / rustix::param::clock_ticks_per_second();
        // Both sides are whole seconds.
        (booted as u64 + 1 >= began + written.as_secs()).then_some(process)
    }

    /// Kills it if it is still the same.
    pub fn kill(self) {
        if Self::now(self.pid) == Some(self) {
            let _ = crate::sys::kill(self.pid, libc::SIGKILL);
        }
    }
}

/// A container's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Created,
    Running,
    Exited,
}

/// The record of a container, `container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: String,
    pub sandbox_id: String,
    pub config: v1::ContainerConfig,
    pub image_id: String,
    pub image_ref: String,
    pub log_path: String,
    pub stop_signal: String,
    pub created_at_ns: i64,
    pub started_at_ns: i64,
    pub finished_at_ns: i64,
    pub phase: Phase,
    pub process: Option<Process>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub identity: Option<Identity>,
    /// The container's cgroup directory where there is one.
    pub cgroup: Option<std::path::PathBuf>,
}

impl ContainerRecord {
    /// Takes over how it ended, with the reasons upstream prints.
    pub fn exited(&mut self, exit: &Exit) {
        self.phase = Phase::Exited;
        self.finished_at_ns = exit.at_ns;
        self.exit_code = exit.code;
        let reason = match (exit.oom, exit.code) {
            (true, _) => "OOMKilled",
            (false, 0) => "Completed",
            (false, _) => "Error",
        };
        reason.clone_into(&mut self.reason);
    }
}

/// A sandbox of the daemon.
#[derive(Debug)]
pub struct Sandbox {
    record: Mutex<SandboxRecord>,
    /// Serializes what changes it.
    pub operation: tokio::sync::Mutex<()>,
}

/// A container of the daemon.
#[derive(Debug)]
pub struct Container {
    record: Mutex<ContainerRecord>,
    /// Serializes what changes it.
    pub operation: tokio::sync::Mutex<()>,
    exited: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A record is replaced whole, so that a panic elsewhere leaves it consistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sandbox {
    pub fn new(record: SandboxRecord) -> Self {
        Self { record: Mutex::new(record), operation: tokio::sync::Mutex::default() }
    }

    /// A copy of its record.
    pub fn record(&self) -> SandboxRecord {
        lock(&self.record).clone()
    }

    /// Changes the record.
    pub fn update<R>(&self, change: impl FnOnce(&mut SandboxRecord) -> R) -> R {
        change(&mut lock(&self.record))
    }
}

impl Container {
    pub fn new(record: ContainerRecord) -> Self {
        let exited = watch::Sender::new(record.phase == Phase::Exited);
        Self { record: Mutex::new(record), operation: tokio::sync::Mutex::default(), exited }
    }

    /// A copy of its record.
    pub fn record(&self) -> ContainerRecord {
        lock(&self.record).clone()
    }

    /// Reads something of the record.
    pub fn read<R>(&self, read: impl FnOnce(&ContainerRecord) -> R) -> R {
        read(&lock(&self.record))
    }

    /// Changes the record.
    pub fn update<R>(&self, change: impl FnOnce(&mut ContainerRecord) -> R) -> R {
        let mut record = lock(&self.record);
        let result = change(&mut record);
        self.exited.send_replace(record.phase == Phase::Exited);
        result
    }

    /// Waits until it has exited.
    pub async fn wait(&self) {
        let mut exited = self.exited.subscribe();
        // The sender lives as long as self.
        let _ = exited.wait_for(|exited| *exited).await;
    }
}

/// All of them, by id.
#[derive(Debug, Default)]
pub struct State {
    sandboxes: Mutex<BTreeMap<String, Arc<Sandbox>>>,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
}

impl State {
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    pub fn containers(&self) -> Vec<Arc<Container>> {
        lock(&self.containers).values().cloned().collect()
    }

    pub fn containers_of(&self, sandbox_id: &str) -> Vec<Arc<Container>> {
        let containers = lock(&self.containers);
        containers
            .values()
            .filter(|container| container.read(|r| r.sandbox_id == sandbox_id))
            .cloned()
            .collect()
    }

    /// The sandbox with this id, or the only one whose id starts so.
    pub fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, Error> {
        find(&lock(&self.sandboxes), id)
            .ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_owned() })
    }

    /// The container with this id, or the only one whose id starts so.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        find(&lock(&self.containers), id)
            .ok_or_else(|| Error::NotFound { kind: "container", id: id.to_owned() })
    }

    pub fn add_sandbox(&self, id: String, sandbox: Arc<Sandbox>) {
        lock(&self.sandboxes).insert(id, sandbox);
    }

    pub fn add_container(&self, id: String, container: Arc<Container>) {
        lock(&self.containers).insert(id, container);
    }

    pub fn remove_sandbox(&self, id: &str) {
        lock(&self.sandboxes).remove(id);
    }

    pub fn remove_container(&self, id: &str) {
        lock(&self.containers).remove(id);
    }
}

fn find<T>(map: &BTreeMap<String, Arc<T>>, id: &str) -> Option<Arc<T>> {
    if id.is_empty() {
        return None;
    }
    let mut matching = map.range(id.to_owned()..).take_while(|(key, _)| key.starts_with(id));
    let (_, first) = matching.next()?;
    (map.contains_key(id) || matching.next().is_none()).then(|| Arc::clone(first))
}

/// Writes a record so that a reader sees the old one or the new one.
pub fn save<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, serde_json::to_vec(record)?)?;
    std::fs::rename(&temporary, path)
}

/// Reads the record of each directory below `directory`.
pub fn load<T: DeserializeOwned>(directory: &Path, name: &str) -> Vec<T> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path().join(name);
            let bytes = std::fs::read(&path).ok()?;
            serde_json::from_slice(&bytes)
                .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "record cannot be read; skipped"))
                .ok()
        })
        .collect()
}

/// A new id, in containerd's form.
pub fn new_id() -> String {
    format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple())
}

/// Whether a name has that form.
pub fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Now, in nanoseconds since the epoch.
pub fn now_ns() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_the_one_its_file_tells_of() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let own = i32::try_from(std::process::id()).unwrap();
        assert_eq!(Process::of_file(&file), None, "no file");
        std::fs::write(&file, own.to_string()).unwrap();
        assert_eq!(Process::of_file(&file), Process::now(own));
        let before = std::time::SystemTime::now() - std::time::Duration::from_hours(10_000);
        std::fs::File::open(&file).unwrap().set_modified(before).unwrap();
        assert_eq!(Process::of_file(&file), None, "the number is used again");
        std::fs::write(&file, "").unwrap();
        assert_eq!(Process::of_file(&file), None, "it was not written to the end");
    }

    #[test]
    fn ids_may_be_shortened_while_unique() {
        let map: BTreeMap<String, Arc<u8>> = [("ab1", 1), ("ab2", 2), ("abc", 3), ("abcd", 4)]
            .map(|(k, v)| (k.to_owned(), Arc::new(v)))
            .into();
        for (id, found) in [
            ("ab1", Some(1)),
            ("ab", None),
            ("abc", Some(3)),
            ("abcd", Some(4)),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(find(&map, id).map(|v| *v), found, "{id}");
        }
    }

    #[test]
    fn a_process_is_told_from_its_successor() {
        let me = Process::now(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.started > 0);
        // Another start time: somebody else, who must not be killed.
        Process { started: me.started + 1, ..me }.kill();
    }
}
