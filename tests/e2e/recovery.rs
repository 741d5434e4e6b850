//! The daemon is killed in the middle of things, and what was declared comes true all the same.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

fn deployment(colour: &str, replicas: u32) -> String {
    let script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "terminationGracePeriodSeconds": 1, "containers": [{"name": "c", "image": BUSYBOX,
                    "env": [{"name": "COLOUR", "value": colour}],
                    "command": ["/bin/sh", "-c", script]}]}}}})
    .to_string()
}

/// Kills the daemon after `delay`, and starts it again.
fn strike(cluster: &Cluster, delay: Duration) {
    let lock = cluster.path("rootlet").join(&cluster.name).join("daemon.pid");
    let pid = std::fs::read_to_string(lock).expect("the daemon's pid is there");
    let pid = Pid::from_raw(pid.trim().parse().expect("it is a number"));
    // Not a wait for something: the moment of the blow is what varies.
    std::thread::sleep(delay);
    kill(pid, Signal::SIGKILL).expect("the daemon is there");
    let said = cluster.up(&[]);
    assert!(!said.contains("already running"), "it is dead, if only just: {said}");
}

fn items(cluster: &Cluster, words: &[&str]) -> Vec<Value> {
    let list = cluster.get(words).unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Waits until there are `replicas` pods of this colour, all Ready, and no others.
fn settled(cluster: &Cluster, colour: &str, replicas: usize) {
    eventually(&format!("{replicas} {colour} pods"), || {
        let pods = items(cluster, &["pods", "-l", "app=web"]);
        let good = pods.iter().filter(|pod| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let ready =
                conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            ready && pod["spec"]["containers"][0]["env"][0]["value"] == colour
        });
        let told: Vec<_> = pods
            .iter()
            .map(|pod| format!("{} {}", pod["metadata"]["name"], pod["status"]["phase"]))
            .collect();
        if good.count() == replicas && pods.len() == replicas {
            Ok(())
        } else {
            Err(told.join(", "))
        }
    });
}

#[test]
fn kills_in_the_middle_of_things_change_nothing_in_the_end() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.load_busybox();
    cluster.apply(&deployment("red", 3));
    settled(&cluster, "red", 3);
    // Delays that no two runs share, so that the blow falls elsewhere each time.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    let mut random = seed.subsec_nanos();
    let mut delay = || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let delay = Duration::from_millis(u64::from(random >> 16) % 700);
        println!("a blow after {delay:?}");
        delay
    };
    // A rollout.
    cluster.apply(&deployment("green", 3));
    strike(&cluster, delay());
    settled(&cluster, "green", 3);
    // Less, and more.
    for replicas in [1, 4] {
        cluster.kubectl_ok(&["scale", "deployment/web", &format!("--replicas={replicas}")]);
        strike(&cluster, delay());
        settled(&cluster, "green", replicas);
    }
    // A namespace that goes with all that is in it.
    cluster.kubectl_ok(&["create", "namespace", "going"]);
    let apply = crate::harness::run_with(
        cluster.kubectl_command().args(["apply", "-n", "going", "-f", "-"]),
        deployment("blue", 2).as_bytes(),
    );
    assert_eq!(apply.code, Some(0), "{}", apply.err);
    cluster.kubectl_ok(&["rollout", "status", "deployment/web", "-n", "going", "--timeout=60s"]);
    cluster.kubectl_ok(&["delete", "namespace", "going", "--wait=false"]);
    strike(&cluster, delay());
    eventually("the namespace's end", || match cluster.get(&["namespace", "going"]) {
        Err(gone) if gone.contains("not found") => Ok(()),
        Err(other) => Err(other),
        Ok(found) => Err(found["status"].to_string()),
    });
    // Nothing is left of it, and nothing is without its owner.
    let owners: Vec<Value> = items(&cluster, &["replicasets,deployments", "-A"])
        .iter()
        .map(|object| object["metadata"]["uid"].clone())
        .collect();
    for pod in items(&cluster, &["pods", "-A"]) {
        assert_eq!(pod["metadata"]["namespace"], "default", "{}", pod["metadata"]["name"]);
        assert!(owners.contains(&pod["metadata"]["ownerReferences"][0]["uid"]), "{pod}");
    }
    cluster.kubectl_ok(&["delete", "deployment", "web", "--cascade=foreground"]);
    assert!(items(&cluster, &["replicasets,pods", "-A"]).is_empty());
}
