//! Where the state is: snapshots of it, and etcd in the place of the cluster's own file.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use crate::harness::{Cluster, eventually};

#[test]
fn snapshots_bring_objects_back_while_the_cluster_runs() {
    let cluster = Cluster::prepared();
    cluster.up(&[]);
    cluster.kubectl_ok(&["create", "configmap", "kept", "--from-literal=a=b"]);
    let file = cluster.path("snapshot");
    let name = file.to_str().expect("a plain path");
    let said = cluster.rootlet_ok(&["snapshot", "save", name]);
    assert!(said.starts_with(&format!("Saved {name} (")), "{said}");
    cluster.kubectl_ok(&["delete", "configmap", "kept"]);
    cluster.kubectl_ok(&["create", "configmap", "new"]);
    let said = cluster.rootlet_ok(&["snapshot", "restore", name]);
    assert!(said.starts_with("Restored: "), "{said}");
    let kept = cluster.get(&["configmap", "kept"]).expect("it is back");
    assert_eq!(kept["data"]["a"], "b");
    assert!(cluster.get(&["configmap", "new"]).is_err(), "it was not in the snapshot");
    // What is no snapshot changes nothing.
    std::fs::write(&file, "rubbish").expect("written");
    let refused = cluster.rootlet(&["snapshot", "restore", name]);
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("this is no whole snapshot"), "{}", refused.err);
    assert!(cluster.get(&["configmap", "kept"]).is_ok());
}

/// An etcd that ends with this value.
struct Etcd(Child, u16);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").port()
}

fn etcd(cluster: &Cluster) -> Option<Etcd> {
    let (client, peer) = (free_port(), free_port());
    let urls = format!("http://127.0.0.1:{client}");
    let peers = format!("http://127.0.0.1:{peer}");
    let started = Command::new("etcd")
        .arg("--data-dir")
        .arg(cluster.path("etcd"))
        .args(["--listen-client-urls", &urls, "--advertise-client-urls", &urls])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("default={peers}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match started {
        Ok(child) => Some(Etcd(child, client)),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "CI must have etcd: {error}");
            eprintln!("skipped: etcd cannot be started ({error}): apt-get install etcd-server");
            None
        }
    }
}

#[test]
fn the_state_can_live_in_etcd() {
    let cluster = Cluster::prepared();
    let Some(etcd) = etcd(&cluster) else { return };
    let store = format!("etcd://127.0.0.1:{}", etcd.1);
    cluster.up(&["--store", &store]);
    cluster.load_busybox();
    cluster.kubectl_ok(&[
        "run",
        "hello",
        "--image=localhost/busybox:test",
        "--restart=Never",
        "--",
        "echo",
        "hello",
    ]);
    cluster.pod_phase("hello", "Succeeded");
    cluster.rootlet_ok(&["down"]);
    // The next start finds everything where it was, without being told again.
    cluster.up(&[]);
    let hello = eventually("the pod", || cluster.get(&["pod", "hello"]));
    assert_eq!(hello["status"]["phase"], "Succeeded");
    cluster.rootlet_ok(&["down"]);
    drop(etcd);
    let refused = cluster.rootlet(&["up", "--store", "http://x"]);
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("write etcd://HOST:PORT"), "{}", refused.err);
}
