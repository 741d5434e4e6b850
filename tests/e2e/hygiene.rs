//! `down` leaves nothing behind.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::{BUSYBOX, Cluster};

/// Processes that mention `word` on their command line or in their environment's file names.
pub fn processes(word: &str) -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(word).then_some(command)
        })
        .collect()
}

/// Network namespaces of the processes that mention `word` on their command line.
fn namespaces(word: &str) -> BTreeSet<u64> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&command).contains(word)
        })
        .filter_map(|entry| fs::metadata(entry.path().join("ns/net")).ok())
        .map(|namespace| namespace.ino())
        .collect()
}

#[test]
fn nothing_is_left_after_down_and_delete() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    let own = cluster.word();
    cluster.kubectl_ok(&["run", "busy", "--image", BUSYBOX, "--", "sleep", "4321"]);
    cluster.pod_ready("busy");
    assert!(processes("sleep 4321").len() == 1, "the probe sees the pod");
    assert!(!processes(&own).is_empty(), "the probe sees the cluster");
    let pods = namespaces("sleep 4321");
    assert!(pods.is_disjoint(&namespaces(&own)), "the pod has a namespace of its own");
    cluster.rootlet_ok(&["down"]);
    assert_eq!(processes("sleep 4321"), BTreeSet::new());
    assert_eq!(processes(&own), BTreeSet::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    assert!(!mounts.contains(&cluster.name), "{mounts}");
    let run = cluster.path("rootlet").join(&cluster.name);
    for role in ["node", "daemon", "up"] {
        let file = fs::File::open(run.join(format!("{role}.pid"))).expect("the lock file stays");
        let free = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock);
        assert!(free.is_ok(), "the lock of {role} is held");
    }
    cluster.rootlet_ok(&["delete"]);
    assert!(!cluster.path("data/rootlet").join(&cluster.name).exists());
    assert!(!run.exists());
}
