//! The scheduler as its user configures it, and devices.

use std::io::{Read, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

fn pod(name: &str, more: &Value) -> String {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": BUSYBOX, "command": ["sleep", "100000"]}]}});
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod.to_string()
}

fn reason(cluster: &Cluster, name: &str, part: &str) -> String {
    eventually(&format!("the reason of {name}"), || {
        let pod = cluster.get(&["pod", name])?;
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let told = conditions.iter().find(|c| c["type"] == "PodScheduled");
        let message = told.and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned();
        if message.contains(part) { Ok(message) } else { Err(message) }
    })
}

/// An extender that refuses every node for pods called `refused`, and lets all others pass.
fn extender() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut text = String::new();
            let mut buffer = [0; 16384];
            let body = loop {
                let Ok(count @ 1..) = stream.read(&mut buffer) else { break None };
                text.push_str(&String::from_utf8_lossy(&buffer[..count]));
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse().ok())?
                });
                if body.len() >= length.unwrap_or(0) {
                    break serde_json::from_str::<Value>(body).ok();
                }
            };
            let Some(asked) = body else { continue };
            let names = asked["NodeNames"].as_array().cloned().unwrap_or_default();
            let answer = if asked["Pod"]["metadata"]["name"] == "refused" {
                let failed: serde_json::Map<String, Value> = names
                    .iter()
                    .map(|name| (name.as_str().unwrap_or_default().to_owned(), json!("not today")))
                    .collect();
                json!({"NodeNames": [], "FailedNodes": failed})
            } else {
                json!({"NodeNames": names})
            };
            let text = answer.to_string();
            let _ = write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            );
        }
    });
    port
}

#[test]
fn profiles_and_extenders_come_from_a_file() {
    let cluster = Cluster::prepared();
    let file = cluster.path("scheduler.yaml");
    let config = |extender: &str| {
        format!(
            "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n\
             profiles:\n- schedulerName: default-scheduler\n- schedulerName: picky\n  pluginConfig:\n  \
             - name: NodeAffinity\n    args:\n      addedAffinity:\n        \
             requiredDuringSchedulingIgnoredDuringExecution:\n          nodeSelectorTerms:\n          \
             - matchExpressions: [{{key: picked, operator: Exists}}]\n{extender}"
        )
    };
    let words = ["up", "--ephemeral", "--scheduler-config", file.to_str().expect("UTF-8")];
    std::fs::write(&file, config("extenders: [{filterVerb: f}]")).expect("it can be written");
    let wrong = cluster.rootlet(&words);
    assert_eq!(wrong.code, Some(1), "{}", wrong.out);
    assert!(wrong.err.contains("extenders[0].urlPrefix: Required value"), "{}", wrong.err);

    let extender = format!(
        "extenders: [{{urlPrefix: 'http://127.0.0.1:{}', filterVerb: filter, nodeCacheCapable: true}}]",
        extender()
    );
    std::fs::write(&file, config(&extender)).expect("it can be written");
    cluster.up(&words[1..]);
    cluster.load_busybox();
    cluster.apply(&pod("plain", &json!({})));
    cluster.pod_ready("plain");
    cluster.apply(&pod("refused", &json!({})));
    let told = reason(&cluster, "refused", "not today");
    assert!(told.starts_with("0/1 nodes are available: 1 not today."), "{told}");
    cluster.apply(&pod("picky", &json!({"schedulerName": "picky"})));
    reason(&cluster, "picky", "node(s) didn't match scheduler-enforced node affinity");
    let node = format!("rootlet-{}", cluster.name);
    cluster.kubectl_ok(&["label", "node", &node, "picked=yes"]);
    cluster.pod_ready("picky");
    let events =
        cluster.get(&["events", "--field-selector", "involvedObject.name=picky,reason=Scheduled"]);
    assert_eq!(events.expect("events")["items"][0]["reportingComponent"], "picky");
    cluster.apply(&pod("foreign", &json!({"schedulerName": "somebody"})));
    cluster.apply(&pod("gated", &json!({"schedulingGates": [{"name": "example.com/hold"}]})));
    cluster.pod("gated", "told that it is held", |pod| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["reason"] == "SchedulingGated")
    });
    cluster.kubectl_ok(&[
        "patch",
        "pod",
        "gated",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#,
    ]);
    cluster.pod_ready("gated");
    let foreign = cluster.get(&["pod", "foreign"]).expect("it is there");
    assert!(
        foreign["spec"]["nodeName"].is_null() && foreign["status"]["conditions"].is_null(),
        "{foreign}"
    );
}

#[test]
fn leases_say_who_works() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--leader-elect"]);
    for name in ["kube-scheduler", "kube-controller-manager"] {
        let lease = eventually(name, || cluster.get(&["lease", name, "-n", "kube-system"]));
        assert_eq!(lease["spec"]["holderIdentity"], format!("rootlet-{}", cluster.name));
    }
    cluster.load_busybox();
    cluster.apply(&pod("works", &json!({})));
    cluster.pod_ready("works");
}

#[test]
fn devices_are_given_to_claims_and_taken_back() {
    let cluster = Cluster::ephemeral();
    let node = format!("rootlet-{}", cluster.name);
    let class = json!({"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": {"name": "gpu"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}});
    let slice = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": {"name": "gpus"}, "spec": {"driver": "gpu.example.com", "nodeName": node,
            "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}, "devices": [
                {"name": "small", "attributes": {"memory": {"int": 8}}},
                {"name": "large", "attributes": {"memory": {"int": 80}}}]}});
    let selector = "device.attributes['gpu.example.com'].memory > 10";
    let template = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": {"name": "large"}, "spec": {"spec": {"devices": {"requests": [
            {"name": "r", "exactly": {"deviceClassName": "gpu", "selectors": [
                {"cel": {"expression": selector}}]}}]}}}});
    for object in [class, slice, template] {
        cluster.apply(&object.to_string());
    }
    let claims = json!({"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "large"}]});
    cluster.apply(&pod("first", &claims));
    let claim_of = |pod: &str| {
        eventually(&format!("the claim of {pod}"), || {
            let pod = cluster.get(&["pod", pod])?;
            let name = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str();
            let claim = cluster.get(&["resourceclaim", name.ok_or("none is named")?])?;
            let results = &claim["status"]["allocation"]["devices"]["results"];
            let pending = results.is_null();
            if pending { Err(claim["status"].to_string()) } else { Ok(claim) }
        })
    };
    let claim = claim_of("first");
    let result = &claim["status"]["allocation"]["devices"]["results"][0];
    assert_eq!((result["device"].as_str(), result["request"].as_str()), (Some("large"), Some("r")));
    assert_eq!(claim["status"]["reservedFor"][0]["name"], "first");
    cluster.pod("first", "bound", |pod| pod["spec"]["nodeName"] == node.as_str());
    // There is only one.
    cluster.apply(&pod("second", &claims));
    reason(&cluster, "second", "cannot allocate all claims");
    cluster.kubectl_ok(&["delete", "pod", "first", "--now"]);
    let claim = claim_of("second");
    assert_eq!(claim["status"]["reservedFor"][0]["name"], "second");

    // Its driver says that the device is broken: who has it leaves.
    cluster.pod("second", "bound", |pod| pod["spec"]["nodeName"] == node.as_str());
    let taint = json!([{"op": "add", "path": "/spec/devices/1/taints",
        "value": [{"key": "gpu.example.com/broken", "effect": "NoExecute"}]}]);
    let patch = ["patch", "resourceslice", "gpus", "--type=json", "-p", &taint.to_string()];
    cluster.kubectl_ok(&patch);
    cluster.kubectl_ok(&["wait", "--for=delete", "pod/second", "--timeout=90s"]);
    eventually("the eviction's event", || {
        let of_pod = ["events", "--field-selector", "reason=DeviceTaintManagerEviction"];
        let events = cluster.get(&of_pod)?;
        let told = events["items"][0]["message"] == "Marking for deletion";
        if told { Ok(()) } else { Err(events.to_string()) }
    });

    // A class stands for an extended resource: the claim is made for the pod, and goes with it.
    let patch = r#"{"spec":{"extendedResourceName":"example.com/gpu"}}"#;
    cluster.kubectl_ok(&["patch", "deviceclass", "gpu", "--type=merge", "-p", patch]);
    cluster.apply(&pod(
        "third",
        &json!({"containers": [{"name": "c", "image": BUSYBOX,
        "resources": {"limits": {"example.com/gpu": "1"}}}]}),
    ));
    let bound = cluster.pod("third", "bound", |pod| pod["spec"]["nodeName"] == node.as_str());
    let told = &bound["status"]["extendedResourceClaimStatus"];
    let mapping = json!([{"containerName": "c", "requestName": "container-0-request-0",
        "resourceName": "example.com/gpu"}]);
    assert_eq!(told["requestMappings"], mapping);
    let name = told["resourceClaimName"].as_str().expect("a name").to_owned();
    assert!(name.starts_with("third-extended-resources-"), "{name}");
    let claim = cluster.get(&["resourceclaim", &name]).expect("the claim");
    assert_eq!(claim["status"]["allocation"]["devices"]["results"][0]["device"], "small");
    assert_eq!(claim["status"]["reservedFor"][0]["name"], "third");
    cluster.kubectl_ok(&["delete", "pod", "third", "--now"]);
    cluster.kubectl_ok(&["wait", "--for=delete", "resourceclaim", &name, "--timeout=60s"]);
}

/// `rootlet bench nodes`, until dropped.
struct Simulated(std::process::Child);

impl Simulated {
    fn start(cluster: &Cluster, count: usize) -> Self {
        let mut command = cluster.command("rootlet");
        command.args(["bench", "nodes", "--name", &cluster.name, "--count", &count.to_string()]);
        Self(command.spawn().expect("rootlet can be started"))
    }

    /// Asks it to end, which removes the nodes.
    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is there");
        assert!(self.0.wait().expect("it ends").success());
        std::mem::forget(self);
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn many_nodes_are_filled_evenly_and_emptied() {
    const NAMESPACE: &str = "rootlet-bench";
    const NODES: usize = 60;
    const REPLICAS: usize = 90;
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let simulated = Simulated::start(&cluster, NODES);
    eventually("the nodes", || {
        let nodes = cluster.kubectl(&["get", "nodes", "-l", "rootlet.io/simulated", "-o", "name"]);
        let count = nodes.out.lines().count();
        if count == NODES { Ok(()) } else { Err(format!("{count} nodes")) }
    });
    cluster.kubectl_ok(&["create", "namespace", NAMESPACE]);
    let labels = json!({"app": "many"});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "many", "namespace": NAMESPACE},
        "spec": {"replicas": REPLICAS, "selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels}, "spec": {
                "nodeSelector": {"rootlet.io/simulated": "true"},
                "topologySpreadConstraints": [
                    {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone",
                        "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["pod-template-hash"],
                        "labelSelector": {"matchLabels": labels}},
                    {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "nodeTaintsPolicy": "Honor",
                        "whenUnsatisfiable": "DoNotSchedule", "matchLabelKeys": ["pod-template-hash"],
                        "labelSelector": {"matchLabels": labels}}],
                "containers": [{"name": "c", "image": "pretended",
                    "resources": {"requests": {"cpu": "10"}}}]}}}});
    cluster.apply(&deployment.to_string());
    let status = ["rollout", "status", "deployment/many", "-n", NAMESPACE, "--timeout=120s"];
    cluster.kubectl_ok(&status);
    let by_node = || {
        let pods = cluster.get(&["pods", "-n", NAMESPACE, "-l", "app=many"]).expect("pods");
        let mut counts = std::collections::BTreeMap::<String, usize>::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let node = pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
            *counts.entry(node).or_default() += 1;
        }
        counts
    };
    let counts = by_node();
    assert_eq!(counts.values().sum::<usize>(), REPLICAS);
    // As evenly as can be, and never more than the three that a node's 32 CPUs take.
    assert!(
        counts.len() == NODES && counts.values().all(|count| (1..=2).contains(count)),
        "{counts:?}"
    );

    cluster.kubectl_ok(&["cordon", "simulated-0"]);
    cluster.kubectl_ok(&["drain", "simulated-0", "--ignore-daemonsets", "--timeout=60s"]);
    cluster.kubectl_ok(&status);
    assert!(!by_node().contains_key("simulated-0"));
    cluster.kubectl_ok(&["uncordon", "simulated-0"]);
    cluster.kubectl_ok(&["rollout", "restart", "deployment/many", "-n", NAMESPACE]);
    cluster.kubectl_ok(&status);
    cluster.kubectl_ok(&["scale", "deployment/many", "-n", NAMESPACE, "--replicas=0"]);
    eventually("the pods' end", || {
        let counts = by_node();
        if counts.is_empty() { Ok(()) } else { Err(format!("{counts:?}")) }
    });
    simulated.stop();
    let left = cluster.kubectl(&["get", "nodes", "-l", "rootlet.io/simulated", "-o", "name"]);
    assert!(left.out.is_empty(), "{}", left.out);
}
