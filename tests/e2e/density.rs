//! Hundreds of pods on one node: all run, what they take of the machine is counted, and nothing of them stays.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::chaos::{Process, left, members, role, user_namespace};
use crate::harness::{BUSYBOX, Cluster, eventually};

const PODS: usize = 250;
/// A pod's own share: its shim keeps the log, the exit codes and the namespaces of one container.
const SHIM_DESCRIPTORS: usize = 32;
/// For the whole cluster. Laptops allow a user 128.
const INOTIFY_INSTANCES: usize = 16;
/// What a shim keeps for itself.
const SHIM_PRIVATE_KIB: u64 = 2048;

/// What the process has open.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned()))
        .collect()
}

/// Memory that nobody shares with the process, in KiB.
fn private_kib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    field("Private_Dirty:")
}

#[test]
fn hundreds_of_pods_are_modest() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--max-pods=300"]);
    cluster.load_busybox();
    let container = json!({"name": "main", "image": BUSYBOX, "command": ["sleep", "100000"]});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "many"},
        "spec": {"replicas": PODS, "selector": {"matchLabels": {"app": "many"}},
            "template": {"metadata": {"labels": {"app": "many"}}, "spec": {
                "terminationGracePeriodSeconds": 0, "containers": [container]}}}});
    let began = Instant::now();
    cluster.apply(&deployment.to_string());
    let ready = |wanted: usize| {
        eventually("the pods", || {
            let found = cluster.get(&["deployment", "many"])?;
            let ready = found["status"]["readyReplicas"].as_u64().unwrap_or(0) as usize;
            if ready >= wanted { Ok(()) } else { Err(format!("{ready} of {wanted}")) }
        });
    };
    // Each fifth has the time that others have for one.
    for part in 1..=5 {
        ready(PODS * part / 5);
    }
    let namespace = role(&cluster, "node").and_then(user_namespace).expect("the node runs");
    let all = members(&namespace);
    let shims: Vec<&Process> = all.iter().filter(|process| process.is_shim()).collect();
    assert_eq!(shims.len(), PODS, "one shim a pod");
    assert_eq!(all.len(), 2 * PODS + 2, "a shim and a process a pod, the node and the daemon");
    let mut inotify = 0;
    for process in all.iter().filter(|process| process.is_shim() || process.is_ours()) {
        let open = descriptors(process.pid);
        inotify += open.iter().filter(|name| name.contains("inotify")).count();
        if process.is_shim() {
            assert!(open.len() <= SHIM_DESCRIPTORS, "{}: {open:?}", process.pid);
        }
    }
    assert!(inotify <= INOTIFY_INSTANCES, "{inotify} inotify instances");
    let mut private: Vec<u64> = shims.iter().map(|shim| private_kib(shim.pid)).collect();
    private.sort_unstable();
    let (median, most) = (private[PODS / 2], private[PODS - 1]);
    println!(
        "{PODS} pods ready after {:?}; a shim's own memory: {median} KiB, {most} KiB at most; {inotify} inotify instances",
        began.elapsed()
    );
    assert!(median <= SHIM_PRIVATE_KIB, "{private:?}");
    // Each can be spoken with.
    cluster.kubectl_ok(&["exec", "deploy/many", "--", "true"]);

    cluster.kubectl_ok(&["delete", "deployment", "many", "--cascade=foreground"]);
    let until = Instant::now() + Duration::from_mins(3);
    while Instant::now() < until && !left(&cluster, &namespace).is_empty() {
        std::thread::sleep(Duration::from_millis(200));
    }
    eventually("the end of all that belonged to pods", || {
        let left = left(&cluster, &namespace);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    });
}
