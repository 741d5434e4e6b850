//! What upstream's suites of a single node ask (`test/e2e_node`, `test/e2e/common/node`) and no other test here shows.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, container, eventually, pod};

/// Kills the daemon and starts another one.
fn renew_daemon(cluster: &Cluster, flags: &[&str]) {
    let lock = cluster.path("rootlet").join(&cluster.name).join("daemon.pid");
    let pid = std::fs::read_to_string(lock).expect("the daemon's pid is there");
    let pid = pid.trim().parse().expect("it is a number");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the daemon is there");
    cluster.up(flags);
}

#[test]
fn a_pod_that_the_node_refused_stays_as_it_was_told() {
    let cluster = Cluster::prepared();
    // Else the pod that does not tolerate the node's taint would be deleted.
    let flags = ["--controllers", "*,-taint-eviction-controller"];
    cluster.up(&flags);
    cluster.load_busybox();
    let node = format!("rootlet-{}", cluster.name);
    let one = |script: &str, spec: Value| {
        let mut spec = spec;
        spec["nodeName"] = node.as_str().into();
        spec["containers"] = json!([container("main", script, &json!({}))]);
        spec
    };
    let big = json!({"resources": {"requests": {"cpu": "9999"}}});
    let mut much = one("", json!({}));
    much["initContainers"] = json!([container("first", "", &big)]);
    let mut more = much.clone();
    more["containers"] = more["initContainers"].take();
    cluster.apply_all(&[
        pod("much", &much),
        pod("more", &more),
        pod("elsewhere", &one("", json!({"nodeSelector": {"a": "b"}}))),
        pod("early", &one("exec sleep 1000", json!({}))),
    ]);
    cluster.pod_ready("early");
    cluster.kubectl_ok(&["taint", "node", &node, "k=v:NoExecute"]);
    let bears = json!({"tolerations": [{"key": "k", "operator": "Exists"}]});
    let bears = one("exec sleep 1000", bears);
    cluster.apply_all(&[pod("late", &one("", json!({}))), pod("bears", &bears)]);
    cluster.pod_ready("bears");
    let refused = [
        ("much", "OutOfcpu", "Node didn't have enough resource: cpu"),
        ("more", "OutOfcpu", "Node didn't have enough resource: cpu"),
        ("elsewhere", "NodeAffinity", "Predicate NodeAffinity failed"),
        ("late", "TaintToleration", "Predicate TaintToleration failed: node(s) had taints that"),
    ];
    let told: Vec<Value> = refused
        .iter()
        .map(|(name, reason, message)| {
            let status = cluster.pod_phase(name, "Failed")["status"].clone();
            assert_eq!(status["reason"], *reason, "{name}");
            let told = status["message"].as_str().unwrap_or_default();
            assert!(told.starts_with(&format!("Pod was rejected: {message}")), "{told}");
            assert_eq!(status["containerStatuses"], Value::Null);
            status
        })
        .collect();
    renew_daemon(&cluster, &flags);
    // One that comes later is looked at later.
    cluster.apply_all(&[pod("after", &bears)]);
    cluster.pod_ready("after");
    cluster.pod_ready("early");
    for ((name, ..), told) in refused.iter().zip(told) {
        let status = cluster.pod_phase(name, "Failed")["status"].clone();
        assert_eq!(status, told, "{name}");
    }
    cluster.kubectl_ok(&["delete", "pod", "much", "late"]);
    cluster.gone("late");
}

#[test]
fn a_runtime_class_says_how_pods_run_and_what_that_costs() {
    let cluster = Cluster::ephemeral();
    let class = |name: &str, handler: &str| {
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": handler, "overhead": {"podFixed": {"cpu": "250m", "memory": "16Mi"}},
            "scheduling": {"nodeSelector": {"kubernetes.io/os": "linux"}}})
    };
    cluster.apply_all(&[class("ours", "rootlet"), class("foreign", "none-such")]);
    let of = |name: &str, class: &str| {
        let main = container(
            "main",
            "exec sleep 1000",
            &json!({"resources": {"requests": {"cpu": "100m"}}}),
        );
        pod(name, &json!({"runtimeClassName": class, "containers": [main]}))
    };
    cluster.apply_all(&[of("own", "ours"), of("other", "foreign")]);
    let own = cluster.pod_ready("own");
    assert_eq!(own["spec"]["overhead"], json!({"cpu": "250m", "memory": "16Mi"}));
    assert_eq!(own["spec"]["nodeSelector"]["kubernetes.io/os"], "linux");
    let told = cluster.kubectl_ok(&["describe", "nodes"]);
    let line = told.lines().find(|line| line.contains(" own ")).unwrap_or_default();
    assert!(line.contains("350m"), "the overhead counts: {told}");
    let message = cluster.event("other", "FailedCreatePodSandBox");
    assert!(message.contains("none-such"), "{message}");
    let answer = cluster.kubectl(&[
        "run",
        "absent",
        "--image",
        BUSYBOX,
        "--overrides",
        &json!({"spec": {"runtimeClassName": "absent"}}).to_string(),
    ]);
    assert!(answer.err.contains("RuntimeClass \"absent\" not found"), "{}", answer.err);
}

#[test]
fn logs_are_where_collectors_look_and_turn_when_they_are_large() {
    let cluster = Cluster::ephemeral();
    // Two and a half times what a file may hold.
    let script = "i=0; while [ $i -lt 26 ]; do head -c 1048575 /dev/zero | tr '\\0' x; echo; i=$((i+1)); done; echo last; exec sleep 1000";
    cluster
        .apply_all(&[pod("much", &json!({"containers": [container("main", script, &json!({}))]}))]);
    let much = cluster.pod_ready("much");
    let uid = much["metadata"]["uid"].as_str().unwrap_or_default();
    let folder = format!("pods/default_much_{uid}/main/");
    let node = format!("rootlet-{}", cluster.name);
    let list = || {
        cluster.kubectl_ok(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/logs/{folder}")])
    };
    eventually("the log has turned", || {
        let listed = list();
        if listed.matches("0.log").count() > 2 { Ok(()) } else { Err(listed) }
    });
    eventually("nothing is lost at the end", || {
        match cluster.kubectl_ok(&["logs", "much", "--tail=1"]).as_str() {
            "last\n" => Ok(()),
            other => Err(other.chars().take(80).collect()),
        }
    });
}

#[test]
fn the_node_tells_that_it_lives_and_what_it_runs() {
    let cluster = Cluster::prepared();
    let folder = cluster.path("manifests");
    std::fs::create_dir(&folder).expect("a folder can be made");
    let folder_text = folder.to_str().expect("paths are UTF-8");
    let reserved = "cpu=250m,memory=64Mi";
    cluster.up(&["--ephemeral", "--pod-manifest-path", folder_text, "--system-reserved", reserved]);
    cluster.load_busybox();
    let node = format!("rootlet-{}", cluster.name);
    let status = cluster.get(&["node", &node]).expect("it is there")["status"].clone();
    let cpus: u64 = status["capacity"]["cpu"].as_str().and_then(|n| n.parse().ok()).unwrap_or(0);
    assert_eq!(status["allocatable"]["cpu"], format!("{}m", cpus * 1000 - 250));
    let renewed = || {
        let lease = cluster.get(&["lease", &node, "-n", "kube-node-lease"])?;
        let owner = &lease["metadata"]["ownerReferences"][0]["name"];
        assert_eq!((owner, &lease["spec"]["holderIdentity"]), (&json!(node), &json!(node)));
        assert_eq!(lease["spec"]["leaseDurationSeconds"], 40);
        Ok::<Value, String>(lease["spec"]["renewTime"].clone())
    };
    let first = eventually("a lease", &renewed);
    let notes = cluster.path("notes");
    let write = |word: &str| {
        // It takes some seconds to end.
        let script = format!(
            "trap 'sleep 3; echo end {word} >>/n/log; exit 0' TERM; echo {word} >>/n/log; while :; do sleep 0.1; done"
        );
        let mounts = json!({"volumeMounts": [{"name": "notes", "mountPath": "/n"}]});
        let of = pod(
            "fixed",
            &json!({"terminationGracePeriodSeconds": 30, "containers": [container("main", &script, &mounts)],
            "volumes": [{"name": "notes", "hostPath": {"path": notes, "type": "DirectoryOrCreate"}}]}),
        );
        std::fs::write(folder.join("fixed.yaml"), of.to_string())
            .expect("the manifest can be written");
    };
    let lines = || std::fs::read_to_string(notes.join("log")).unwrap_or_default();
    write("one");
    let mirror = format!("fixed-{node}");
    let uid = cluster.pod_ready(&mirror)["metadata"]["uid"].clone();
    let metrics =
        cluster.kubectl_ok(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/metrics")]);
    for line in [
        "kubelet_active_pods{static=\"true\"} 1",
        "kubelet_mirror_pods 1",
        "kubelet_working_pods{config=\"desired\",lifecycle=\"sync\",static=\"true\"} 1",
        "kubelet_working_pods{config=\"orphan\",lifecycle=\"terminating\",static=\"true\"} 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} is not in {metrics}");
    }
    // The next begins when the last has ended, and is what the mirror shows from then on.
    eventually("it has begun", || if lines() == "one\n" { Ok(()) } else { Err(lines()) });
    write("two");
    eventually("the other has begun", || {
        let seen = lines();
        if seen.contains("two") { Ok(()) } else { Err(seen) }
    });
    assert_eq!(lines(), "one\nend one\ntwo\n");
    cluster.pod(&mirror, "another", |pod| pod["metadata"]["uid"] != uid);
    cluster.pod_ready(&mirror);
    std::fs::remove_file(folder.join("fixed.yaml")).expect("the manifest is there");
    cluster.gone(&mirror);
    assert_eq!(lines(), "one\nend one\ntwo\nend two\n");
    eventually("the lease is renewed", || match renewed()? {
        later if later != first => Ok(()),
        same => Err(same.to_string()),
    });
}
