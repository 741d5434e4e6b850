//! Shims, containers, the node process and the daemon are killed at random moments, while pods come and go: what was
//! declared comes true all the same, and at the end nothing is left over.
//!
//! It goes on for half a minute, or for as long as `ROOTLET_CHAOS_SECONDS` says.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

/// Pods that are there all the time.
const REPLICAS: usize = 3;

/// Numbers that no two runs share; a run is told by its first one.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let given = std::env::var("ROOTLET_CHAOS_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| now.expect("a clock").as_nanos() as u64);
        println!("ROOTLET_CHAOS_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    fn one<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let bound = all.len() as u64;
        (bound > 0).then(|| all[self.below(bound) as usize])
    }
}

/// A process in the cluster's user namespace.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub command: String,
}

impl Process {
    pub fn is_shim(&self) -> bool {
        self.command.ends_with("exe shim ")
    }

    /// Part of rootlet itself, rather than of a pod.
    pub fn is_ours(&self) -> bool {
        self.command.contains("daemon-inside") || self.command.contains("node-inside")
    }
}

pub fn user_namespace(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/user")).ok()
}

/// The processes in the user namespace `of`.
pub fn members(of: &Path) -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| user_namespace(*pid).as_deref() == Some(of))
        .filter_map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            // One that has ended and is not yet waited for has no command line.
            (!command.is_empty()).then_some(Process { pid, command })
        })
        .collect()
}

pub fn role(cluster: &Cluster, role: &str) -> Option<i32> {
    let file = cluster.path("rootlet").join(&cluster.name).join(format!("{role}.pid"));
    let pid = fs::read_to_string(file).ok()?.trim().parse().ok()?;
    Path::new(&format!("/proc/{pid}")).exists().then_some(pid)
}

fn deployment(colour: u64) -> String {
    let script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    let container = |name: &str| {
        json!({"name": name, "image": BUSYBOX, "command": ["/bin/sh", "-c", script],
            "env": [{"name": "COLOUR", "value": colour.to_string()}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"},
                {"name": "memory", "mountPath": "/memory"}, {"name": "map", "mountPath": "/map"}]})
    };
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "terminationGracePeriodSeconds": 1, "containers": [container("a"), container("b")],
                "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "map", "configMap": {"name": "map"}},
                    {"name": "memory", "emptyDir": {"medium": "Memory"}}]}}}})
    .to_string()
}

/// One thing that users do all the time. It may fail while the API is away.
fn meddle(cluster: &Cluster, random: &mut Random) {
    match random.below(5) {
        0 => {
            let answer = crate::harness::run_with(
                cluster.kubectl_command().args(["apply", "-f", "-"]),
                deployment(random.below(3)).as_bytes(),
            );
            drop(answer);
        }
        1 => drop(cluster.kubectl(&["delete", "pods", "-l", "app=web", "--wait=false"])),
        2 => {
            let name = format!("once-{}", random.below(1_000_000));
            let run = ["run", &name, "--labels=app=once", "--restart=Never", "--image", BUSYBOX];
            drop(cluster.kubectl(&[&run[..], &["--", "sleep", "1"]].concat()));
        }
        3 => drop(cluster.kubectl(&["delete", "pods", "-l", "app=once", "--now", "--wait=false"])),
        _ => drop(cluster.kubectl(&["exec", "deploy/web", "-c", "a", "--", "true"])),
    }
}

/// Kills one of those that there are, and tells which kind it was.
fn strike(cluster: &Cluster, random: &mut Random) -> &'static str {
    let (Some(node), Some(daemon)) = (role(cluster, "node"), role(cluster, "daemon")) else {
        return "nobody";
    };
    let Some(namespace) = user_namespace(node) else { return "nobody" };
    let all = members(&namespace);
    let shims: Vec<i32> = all.iter().filter(|p| p.is_shim()).map(|p| p.pid).collect();
    let others = all.iter().filter(|p| !p.is_shim() && !p.is_ours());
    let others: Vec<i32> = others.map(|p| p.pid).collect();
    let (victim, kind) = match random.below(10) {
        0 | 1 => (Some(daemon), "the daemon"),
        2 => (Some(node), "the node process"),
        3..=6 => (random.one(&shims), "a shim"),
        _ => (random.one(&others), "a process of a pod"),
    };
    // It may have ended by itself.
    let struck = victim.is_some_and(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
    if !struck {
        return "nobody";
    }
    if kind == "the daemon" {
        cluster.up(&[]);
    }
    kind
}

pub fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// What there is in a folder, for a message.
fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What is still there although all pods are gone.
pub fn left(cluster: &Cluster, namespace: &Path) -> Vec<String> {
    let (data, run) = (
        cluster.path("data/rootlet").join(&cluster.name),
        cluster.path("rootlet").join(&cluster.name),
    );
    let mut left: Vec<String> = members(namespace)
        .into_iter()
        .filter(|process| !process.is_ours())
        .map(|process| format!("process {} {}", process.pid, process.command))
        .collect();
    for folder in [
        data.join("containers/sandboxes"),
        data.join("containers/containers"),
        data.join("images/snapshots"),
        data.join("kubelet/pods"),
        run.join("pods/pods"),
        run.join("pods/containers"),
    ] {
        left.extend(
            entries(&folder).into_iter().map(|name| folder.join(name).display().to_string()),
        );
    }
    let mounts = cluster.rootlet_with(&["enter"], &["cat", "/proc/self/mountinfo"]);
    assert_eq!(mounts.code, Some(0), "{}", mounts.err);
    let below = |line: &&str| {
        let place = line.split(' ').nth(4).unwrap_or_default();
        [&data, &run].iter().any(|folder| Path::new(place).starts_with(folder))
    };
    left.extend(mounts.out.lines().filter(below).map(|line| format!("mount {line}")));
    left
}

#[test]
fn whoever_is_killed_nothing_is_lost_and_nothing_left() {
    let seconds = std::env::var("ROOTLET_CHAOS_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(30);
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    cluster.kubectl_ok(&["create", "configmap", "map", "--from-literal=key=value"]);
    cluster.apply(&deployment(0));
    let mut random = Random::new();
    let (until, mut struck) = (Instant::now() + Duration::from_secs(seconds), Vec::new());
    while Instant::now() < until {
        meddle(&cluster, &mut random);
        // Not a wait for something: the moment of the blow is what varies.
        std::thread::sleep(Duration::from_millis(random.below(400)));
        struck.push(strike(&cluster, &mut random));
    }
    let kinds: BTreeSet<&str> = struck.iter().copied().collect();
    println!("{} blows: {kinds:?}", struck.len());
    cluster.up(&[]);
    let namespace = role(&cluster, "node").and_then(user_namespace).expect("the node runs");

    // What was declared is there, and its network works.
    cluster.kubectl_ok(&["delete", "pods", "-l", "app=once", "--wait=false"]);
    eventually("the declared pods", || {
        let list = cluster.get(&["pods", "-A"])?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let good = pods.iter().filter(|pod| ready(pod)).count();
        let told = |pod: &Value| format!("{} {}", pod["metadata"]["name"], pod["status"]);
        if good == REPLICAS && pods.len() == REPLICAS {
            return Ok(());
        }
        Err(pods.iter().map(told).collect::<Vec<_>>().join("\n"))
    });
    eventually("a way from a pod to the API", || {
        let ask =
            "nc -w 2 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && cat /map/key";
        let answer = cluster.kubectl(&["exec", "deploy/web", "-c", "a", "--", "sh", "-c", ask]);
        if answer.out == "value" { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    let shims = members(&namespace).into_iter().filter(Process::is_shim).count();
    assert_eq!(shims, REPLICAS, "one shim a pod: {:?}", members(&namespace));

    cluster.kubectl_ok(&["delete", "deployment", "web", "--cascade=foreground"]);
    eventually("the end of all that belonged to pods", || {
        let left = left(&cluster, &namespace);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
    cluster.rootlet_ok(&["down"]);
    let last = members(&namespace);
    assert!(last.is_empty(), "{last:?}");
}
