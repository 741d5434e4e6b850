//! The kubelet: its configuration's file, probes of gRPC servers, a full disk.

use serde_json::{Value, json};

use crate::harness::{Cluster, container, eventually, pod};

/// A configuration that says this.
fn configuration(cluster: &Cluster, name: &str, fields: &str) -> String {
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    let file = cluster.path(name);
    std::fs::write(&file, format!("{head}{fields}\n")).expect("it can be written");
    file.to_str().expect("UTF-8").to_owned()
}

#[test]
fn the_kubelet_follows_its_configuration() {
    let cluster = Cluster::prepared();
    let wrong = configuration(&cluster, "wrong.yaml", "maxPodz: 3");
    let answer = cluster.rootlet(&["up", "--kubelet-config", &wrong]);
    assert!(
        answer.err.contains("wrong.yaml: strict decoding error: unknown field \"maxPodz\""),
        "{answer:?}"
    );
    let wrong = configuration(&cluster, "static.yaml", "cpuManagerPolicy: static");
    let answer = cluster.rootlet(&["up", "--kubelet-config", &wrong]);
    assert!(answer.err.contains("cpuManagerPolicy: \"static\" is not supported"), "{answer:?}");

    let file = configuration(
        &cluster,
        "kubelet.yaml",
        "maxPods: 7
podPidsLimit: 100
kubeReserved: {memory: 64Mi}
containerLogMaxSize: 4Ki
containerLogMaxFiles: 2
containerLogMonitorInterval: 3s
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
registerWithTaints: [{key: own, value: mine, effect: PreferNoSchedule}]
cgroupDriver: systemd",
    );
    std::fs::create_dir(cluster.path("more")).expect("it can be made");
    configuration(&cluster, "more/10.conf", "maxPods: 9");
    let folder = cluster.path("more");
    let flags = [
        "--ephemeral",
        "--pod-max-pids",
        "200",
        "--kubelet-config",
        &file,
        "--kubelet-config-dir",
        folder.to_str().expect("UTF-8"),
    ];
    cluster.up(&flags);
    cluster.load_busybox();
    let node = cluster.get(&["nodes"]).expect("the node is there")["items"][0].clone();
    assert_eq!(node["status"]["capacity"]["pods"], "9");
    assert_eq!(node["spec"]["taints"][0]["key"], "own");
    let name = node["metadata"]["name"].as_str().expect("it has a name");
    let path = format!("/api/v1/nodes/{name}/proxy/configz");
    let told: Value = serde_json::from_str(&cluster.kubectl_ok(&["get", "--raw", &path])).unwrap();
    let told = &told["kubeletconfig"];
    assert_eq!((&told["podPidsLimit"], &told["maxPods"]), (&json!(200), &json!(9)));
    assert_eq!(told["containerLogMaxSize"], "4Ki");

    let talk =
        "i=0; while [ $i -lt 400 ]; do echo line number $i; i=$((i+1)); done; exec sleep 1000";
    let fail = "[ -e /keep/3 ] && exec sleep 1000; for n in 1 2 3; do [ -e /keep/$n ] || { touch /keep/$n; exit 1; }; done";
    let keep = json!({"volumeMounts": [{"name": "keep", "mountPath": "/keep"}]});
    cluster.apply_all(&[
        pod("talks", &json!({"containers": [container("c", talk, &json!({}))]})),
        pod(
            "fails",
            &json!({"containers": [container("c", fail, &keep)],
                "volumes": [{"name": "keep", "emptyDir": {}}]}),
        ),
    ]);
    // With upstream's pauses, of 10, 20 and 40 seconds, it would not be there in time.
    cluster.pod("fails", "at its fourth start", |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        status["restartCount"] == 3 && status["ready"] == true
    });
    cluster.pod_ready("talks");
    let logs = cluster.path("data/rootlet").join(&cluster.name).join("logs");
    eventually("the log is rotated", || {
        let of_pod = std::fs::read_dir(&logs).map_err(|e| e.to_string())?.flatten();
        let of_pod = of_pod.filter(|e| e.file_name().to_string_lossy().contains("_talks_"));
        let files: Vec<_> = of_pod
            .flat_map(|entry| {
                std::fs::read_dir(entry.path().join("c")).into_iter().flatten().flatten()
            })
            .map(|file| file.file_name())
            .collect();
        if files.len() == 2 { Ok(()) } else { Err(format!("{files:?}")) }
    });
}

/// A server of `grpc.health.v1.Health` in shell, one call to a connection: settings of HTTP/2, and when the request is
/// there a head, the message and the status. It serves while there is a file `/tmp/up`.
const HEALTH: &str = r#"cat >/tmp/answer <<'END'
#!/bin/sh
printf '\000\000\000\004\000\000\000\000\000'
head -c 100 >/dev/null
printf '\000\000\024\001\004\000\000\000\001\210\017\020\020application/grpc'
serving=2; [ -e /tmp/up ] && serving=1
printf "\\000\\000\\007\\000\\000\\000\\000\\000\\001\\000\\000\\000\\000\\002\\010\\00$serving"
printf '\000\000\017\001\005\000\000\000\001\000\013grpc-status\0010'
sleep 1
END
chmod +x /tmp/answer; touch /tmp/up; exec nc -ll -p 9000 -e /tmp/answer"#;

#[test]
fn servers_of_grpc_are_probed() {
    let cluster = Cluster::ephemeral();
    let probe = |service: &str| {
        json!({"grpc": {"port": 9000, "service": service}, "periodSeconds": 1, "failureThreshold": 1,
            "timeoutSeconds": 5})
    };
    let main = container("main", HEALTH, &json!({"readinessProbe": probe("ready")}));
    let silent = "exec sleep 1000";
    let live = json!({"livenessProbe": {"grpc": {"port": 9001}, "periodSeconds": 1, "failureThreshold": 1}});
    cluster.apply_all(&[
        pod("serves", &json!({"containers": [main]})),
        pod("silent", &json!({"containers": [container("main", silent, &live)]})),
    ]);
    cluster.pod_ready("serves");
    cluster.kubectl_ok(&["exec", "serves", "--", "rm", "/tmp/up"]);
    cluster
        .pod("serves", "not Ready", |pod| pod["status"]["containerStatuses"][0]["ready"] == false);
    // The first probe may have come before the server.
    eventually("the server's answer in an event", || {
        let events = cluster.get(&["events", "--field-selector", "reason=Unhealthy"])?.to_string();
        if events.contains("responded with \\\"NOT_SERVING\\\"") { Ok(()) } else { Err(events) }
    });
    cluster.kubectl_ok(&["exec", "serves", "--", "touch", "/tmp/up"]);
    cluster.pod_ready("serves");
    cluster.pod("silent", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64() > Some(0)
    });
    let told = cluster.event("silent", "Unhealthy");
    assert!(told.contains("failed to connect service"), "{told}");
}

/// Gives the kubelet's folder a small disk of its own, which only the node sees; returns a file that fills it up.
fn fill(cluster: &Cluster) -> String {
    let kubelet = cluster.path("data/rootlet").join(&cluster.name).join("kubelet");
    let place = kubelet.to_str().expect("UTF-8");
    let filler = format!("{place}/filler");
    let script =
        format!("mount -t tmpfs -o size=8m tmpfs {place} && ! cat /dev/zero >{filler} 2>/dev/null");
    inside(cluster, &["sh", "-c", &script]);
    filler
}

fn inside(cluster: &Cluster, words: &[&str]) {
    let answer = cluster.rootlet_with(&["enter"], words);
    assert_eq!(answer.code, Some(0), "{words:?}: {answer:?}");
}

#[test]
fn what_cannot_be_written_is_told_and_written_once_there_is_room() {
    let cluster = Cluster::prepared();
    // Without a threshold of its disk the node takes pods until nothing is left of it.
    let file = configuration(&cluster, "kubelet.yaml", "evictionHard: {pid.available: 1%}");
    cluster.up(&["--ephemeral", "--kubelet-config", &file]);
    cluster.load_busybox();
    let large = cluster.path("large");
    std::fs::write(&large, vec![b'x'; 500_000]).expect("it can be written");
    cluster.kubectl_ok(&["create", "configmap", "large", "--from-file", large.to_str().unwrap()]);
    let filler = fill(&cluster);
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let stuck = pod(
        "stuck",
        &json!({"containers": [container("c", "exec sleep 1000", &mounts)],
            "volumes": [{"name": "v", "configMap": {"name": "large"}}]}),
    );
    cluster.apply_all(&[stuck]);
    let told = cluster.event("stuck", "FailedMount");
    assert!(told.to_lowercase().contains("no space left on device"), "{told}");
    inside(&cluster, &["rm", &filler]);
    cluster.pod_ready("stuck");
    let size = cluster.kubectl_ok(&["exec", "stuck", "--", "wc", "-c", "/v/large"]);
    assert_eq!(size, "500000 /v/large\n");
}

#[test]
fn a_full_disk_keeps_pods_away_until_there_is_room() {
    let cluster = Cluster::prepared();
    let file = configuration(
        &cluster,
        "kubelet.yaml",
        "evictionHard: {nodefs.available: 20%}\nevictionPressureTransitionPeriod: 1s",
    );
    cluster.up(&["--ephemeral", "--kubelet-config", &file]);
    cluster.load_busybox();
    let filler = fill(&cluster);
    eventually("the node tells that its disk is full", || {
        let node = cluster.get(&["nodes"])?["items"][0].clone();
        let taints = node["spec"]["taints"].to_string();
        if taints.contains("node.kubernetes.io/disk-pressure") { Ok(()) } else { Err(taints) }
    });
    let of = |more: &Value| {
        let mut spec = json!({"containers": [container("c", "exec sleep 1000", &json!({}))]});
        spec["tolerations"] = more.clone();
        spec
    };
    let bears = json!([{"key": "node.kubernetes.io/disk-pressure", "operator": "Exists"}]);
    cluster.apply_all(&[pod("bears", &of(&bears)), pod("waits", &of(&json!([])))]);
    let refused = cluster.pod_phase("bears", "Failed");
    assert_eq!(refused["status"]["reason"], "Evicted");
    let message = refused["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("The node had condition: [DiskPressure]"), "{message}");
    let told = cluster.event("waits", "FailedScheduling");
    assert!(told.contains("untolerated taint"), "{told}");
    inside(&cluster, &["rm", &filler]);
    cluster.pod_ready("waits");
}

#[test]
fn a_shortage_that_lasts_ends_pods_and_a_short_one_does_not() {
    let cluster = Cluster::prepared();
    let wrong = configuration(&cluster, "wrong.yaml", "evictionSoft: {memory.available: 1Gi}");
    let answer = cluster.rootlet(&["up", "--kubelet-config", &wrong]);
    assert!(answer.err.contains("grace period must be specified"), "{answer:?}");
    // All memory is too little, for a quarter of a minute.
    let file = configuration(
        &cluster,
        "kubelet.yaml",
        "evictionHard: {pid.available: 1%}
evictionSoft: {memory.available: 100%}
evictionSoftGracePeriod: {memory.available: 15s}
evictionMaxPodGracePeriod: 20
evictionMinimumReclaim: {memory.available: 64Mi}
providerID: test://here",
    );
    cluster.up(&["--ephemeral", "--kubelet-config", &file]);
    cluster.load_busybox();
    let some = json!({"resources": {"requests": {"memory": "1Mi"}}});
    let script = "trap 'sleep 2; exit 7' TERM; while :; do sleep 0.1; done";
    let bears = json!([{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists"}]);
    let spec = json!({"containers": [container("c", script, &some)], "tolerations": bears,
        "terminationGracePeriodSeconds": 30});
    cluster.apply_all(&[pod("held", &spec)]);
    cluster.pod_ready("held");
    let node = format!("rootlet-{}", cluster.name);
    cluster.event(&node, "NodeHasInsufficientMemory");
    let held = cluster.get(&["pod", "held"]).expect("it is there");
    assert_eq!(held["status"]["phase"], "Running", "told at once, acted upon later");
    let held = cluster.pod_phase("held", "Failed");
    assert_eq!(held["status"]["reason"], "Evicted");
    let message = held["status"]["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("The node was low on resource: memory."), "{message}");
    // It had more than the second that pods have which are ended at once.
    let ended = &held["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["exitCode"], 7, "{ended}");
    let told = cluster.event(&node, "EvictionThresholdMet");
    assert_eq!(told, "Attempting to reclaim memory");
    let path = format!("/api/v1/nodes/{node}/proxy");
    let metrics = cluster.kubectl_ok(&["get", "--raw", &format!("{path}/metrics")]);
    let line = "kubelet_evictions{eviction_signal=\"memory.available\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    let told = cluster.kubectl_ok(&["get", "--raw", &format!("{path}/configz")]);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["kubeletconfig"]["evictionSoftGracePeriod"]["memory.available"], "15s");
    let node = cluster.get(&["node", &node]).expect("the node is there");
    assert_eq!(node["spec"]["providerID"], "test://here");
}
