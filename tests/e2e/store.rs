//! Where the state is: snapshots of it, and etcd in the place of the cluster's own file.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually, run_with};

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

/// What a cluster's daemon is known by.
fn daemon(cluster: &Cluster) -> Pid {
    let lock = cluster.path("rootlet").join(&cluster.name).join("daemon.pid");
    let pid = std::fs::read_to_string(lock).expect("the daemon's pid is there");
    Pid::from_raw(pid.trim().parse().expect("it is a number"))
}

fn leader(through: &Cluster) -> Result<String, String> {
    let lease = through.get(&["lease", "kube-controller-manager", "-n", "kube-system"])?;
    lease["spec"]["holderIdentity"].as_str().map(str::to_owned).ok_or_else(|| "nobody".to_owned())
}

/// A Deployment whose pods are spread over the nodes.
fn spread(name: &str, replicas: u32) -> String {
    let script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": {"matchLabels": {"app": name}}}],
                "containers": [{"name": "c", "image": BUSYBOX, "command": ["/bin/sh", "-c", script]}]}}}})
    .to_string()
}

#[test]
fn two_servers_share_an_etcd_and_one_of_them_dies() {
    let clusters = [Cluster::prepared(), Cluster::prepared()];
    let Some(etcd) = etcd(&clusters[0]) else { return };
    let store = format!("etcd://127.0.0.1:{}", etcd.1);
    for cluster in &clusters {
        cluster.up(&["--store", &store]);
        cluster.load_busybox();
    }
    let [one, other] = &clusters;
    // One authority, and each node's name its own.
    let authority = |cluster: &Cluster| {
        cluster.kubectl_ok(&[
            "config",
            "view",
            "--raw",
            "-o",
            "jsonpath={..certificate-authority-data}",
        ])
    };
    assert_eq!(authority(one), authority(other));
    let nodes = one.get(&["nodes"]).expect("nodes");
    let ready = nodes["items"].as_array().map(Vec::len);
    assert_eq!(ready, Some(2), "{nodes}");

    // What is written through one is seen through the other, by a watch as well.
    let mut watch = other.kubectl_command();
    watch.args(["get", "configmap", "told", "--watch", "-o", "name", "--request-timeout=60s"]);
    let told = watch.stdout(Stdio::piped()).stderr(Stdio::null());
    one.kubectl_ok(&["create", "configmap", "told"]);
    let mut told = told.spawn().expect("kubectl starts");
    let mut line = String::new();
    let mut lines = BufReader::new(told.stdout.take().expect("it is piped"));
    lines.read_line(&mut line).expect("it is told");
    assert_eq!(line, "configmap/told\n");
    one.kubectl_ok(&["label", "configmap", "told", "again=true"]);
    line.clear();
    lines.read_line(&mut line).expect("it is told");
    assert_eq!(line, "configmap/told\n");
    told.kill().and_then(|()| told.wait()).expect("it runs still");

    // Nobody gives out an address twice.
    std::thread::scope(|scope| {
        for cluster in &clusters {
            scope.spawn(move || {
                for number in 0..8 {
                    let name = format!("s{}-{number}", cluster.name);
                    cluster.kubectl_ok(&["create", "service", "nodeport", &name, "--tcp=80"]);
                }
            });
        }
    });
    let services = one.get(&["services"]).expect("services");
    let all = services["items"].as_array().expect("a list");
    let texts = |path: &str| -> BTreeSet<String> {
        all.iter().filter_map(|s| s.pointer(path)).map(ToString::to_string).collect()
    };
    assert_eq!(all.len(), 17, "{services}");
    assert_eq!(texts("/spec/clusterIP").len(), 17, "{services}");
    assert_eq!(texts("/spec/ports/0/nodePort").len(), 16, "{services}");

    // Both nodes work for both servers, and their pods reach the API by its Service.
    one.apply(&spread("web", 4));
    other.kubectl_ok(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    for cluster in &clusters {
        let node = format!("spec.nodeName=rootlet-{}", cluster.name);
        let pods = cluster.get(&["pods", "-l", "app=web", "--field-selector", &node]);
        let pods = pods.expect("pods");
        assert_eq!(pods["items"].as_array().map(Vec::len), Some(2), "{pods}");
        let pod = pods["items"][0]["metadata"]["name"].as_str().expect("a name");
        // What is no TLS is answered with an alert, and the connection closed.
        let greet = "echo | timeout 20 nc -w 10 kubernetes.default 443";
        cluster.kubectl_ok(&["exec", pod, "--", "sh", "-c", greet]);
        // Either server reaches either node.
        for through in &clusters {
            let said = through.kubectl_ok(&["exec", pod, "--", "hostname"]);
            assert_eq!(said.trim(), pod);
            through.kubectl_ok(&["logs", pod]);
        }
    }

    // The one whose controllers work is killed: those of the other take over.
    let holder = leader(one).expect("somebody leads");
    let (dead, alive) = if holder.ends_with(&one.name) { (one, other) } else { (other, one) };
    assert!(holder.ends_with(&format!("rootlet-{}", dead.name)), "{holder}");
    kill(daemon(dead), Signal::SIGKILL).expect("it is there");
    let node = format!("rootlet-{}", alive.name);
    eventually("another leader", || {
        leader(alive).and_then(|holder| if holder.ends_with(&node) { Ok(()) } else { Err(holder) })
    });
    alive.kubectl_ok(&["create", "deployment", "late", "--image", BUSYBOX, "--", "sleep", "1000"]);
    eventually("a pod on the node that is left", || {
        let pods = alive.get(&["pods", "-l", "app=late"])?;
        let node_name = pods["items"][0]["spec"]["nodeName"].as_str().unwrap_or_default();
        if node_name.is_empty() { Err(pods.to_string()) } else { Ok(()) }
    });
    // Back again, it finds what happened meanwhile.
    dead.up(&[]);
    assert!(dead.get(&["deployment", "late"]).is_ok());
    drop(clusters);
    drop(etcd);
}

fn encryption(keys: &[(&str, &str)]) -> String {
    let keys: Vec<Value> =
        keys.iter().map(|(name, secret)| json!({"name": name, "secret": secret})).collect();
    json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"],
            "providers": [{"aescbc": {"keys": keys}}, {"identity": {}}]}]})
    .to_string()
}

#[test]
fn secrets_are_encrypted_at_rest() {
    const PLAIN: &str = "c3dvcmRmaXNoLW9mLXRoZS1kZWVw";
    let cluster = Cluster::prepared();
    let file = cluster.path("encryption.yaml");
    let first = ("first", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
    let second = ("second", "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=");
    std::fs::write(&file, encryption(&[first])).expect("written");
    let config = file.to_str().expect("a plain path");
    // The same before and after, with a copy of the state's bytes between.
    let stored = || {
        cluster.rootlet_ok(&["down"]);
        let store = cluster.path("data/rootlet").join(&cluster.name).join("store/store.redb");
        let bytes = std::fs::read(store).expect("the store's file");
        move |text: &str| bytes.windows(text.len()).any(|part| part == text.as_bytes())
    };
    cluster.up(&["--encryption-provider-config", config]);
    cluster.kubectl_ok(&[
        "create",
        "secret",
        "generic",
        "deep",
        "--from-literal=fish=swordfish-of-the-deep",
    ]);
    cluster.kubectl_ok(&["create", "configmap", "plain", "--from-literal=fish=herring-for-all"]);
    let holds = stored();
    assert!(holds("herring-for-all") && holds("k8s:enc:aescbc:v1:first:") && !holds(PLAIN));
    // The next key; what there was is written anew by it.
    std::fs::write(&file, encryption(&[second, first])).expect("written");
    cluster.up(&[]);
    let all = cluster.kubectl_ok(&["get", "secrets", "-A", "-o", "json"]);
    let replaced = run_with(cluster.kubectl_command().args(["replace", "-f", "-"]), all.as_bytes());
    assert_eq!(replaced.code, Some(0), "{}", replaced.err);
    std::fs::write(&file, encryption(&[second])).expect("written");
    cluster.rootlet_ok(&["down"]);
    cluster.up(&[]);
    let secret = cluster.get(&["secret", "deep"]).expect("it can be read");
    assert_eq!(secret["data"]["fish"], PLAIN);
    assert!(!stored()(PLAIN));
    // Without the key the server does not begin with a cluster that has no secrets.
    std::fs::write(&file, encryption(&[first])).expect("written");
    let refused = cluster.rootlet(&["up"]);
    assert_eq!(refused.code, Some(1), "{}", refused.out);
    assert!(refused.err.contains("can decrypt it"), "{}", refused.err);
}
