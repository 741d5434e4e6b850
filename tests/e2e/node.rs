//! What the node promises beyond running a pod: static pods, resizes, metrics, security, pressure.

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

/// A pod whose container runs `script`, with these additions to its spec and its container.
fn pod(name: &str, script: &str, spec: &Value, container: &Value) -> String {
    let mut of = json!({"name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", script]});
    let mut whole = json!({"terminationGracePeriodSeconds": 1});
    for (target, more) in [(&mut of, container), (&mut whole, spec)] {
        for (key, value) in more.as_object().into_iter().flatten() {
            target[key] = value.clone();
        }
    }
    whole["containers"] = json!([of]);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": whole})
        .to_string()
}

#[test]
fn a_static_pod_has_a_mirror_that_comes_back() {
    let cluster = Cluster::prepared();
    let folder = cluster.path("manifests");
    std::fs::create_dir(&folder).expect("a folder can be made");
    let path = folder.to_str().expect("paths are UTF-8");
    cluster.up(&["--ephemeral", "--pod-manifest-path", path]);
    cluster.load_busybox();
    let manifest = pod("web", "exec sleep 1000", &json!({}), &json!({"imagePullPolicy": "Never"}));
    std::fs::write(folder.join("web.yaml"), manifest).expect("the manifest can be written");
    let name = format!("web-rootlet-{}", cluster.name);
    let first = cluster.pod_ready(&name);
    assert_eq!(first["metadata"]["ownerReferences"][0]["kind"], "Node");
    cluster.kubectl_ok(&["delete", "pod", &name, "--grace-period=0", "--force"]);
    let again = cluster.pod_ready(&name);
    assert_ne!(first["metadata"]["uid"], again["metadata"]["uid"]);
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&first), id(&again), "the pod itself went on");
    assert!(cluster.kubectl_ok(&["exec", &name, "--", "echo", "through"]).contains("through"));
    std::fs::remove_file(folder.join("web.yaml")).expect("the manifest is there");
    eventually("the mirror is gone", || match cluster.kubectl(&["get", "pod", &name]) {
        answer if answer.err.contains("NotFound") => Ok(()),
        answer => Err(answer.out),
    });
}

#[test]
fn a_running_pod_is_resized() {
    let cluster = Cluster::ephemeral();
    let resources =
        json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "100m", "memory": "64Mi"}});
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let container = json!({"resources": resources, "resizePolicy": policy});
    cluster.apply(&pod("web", "exec sleep 1000", &json!({}), &container));
    cluster.pod_ready("web");
    let resize = |limits: Value| {
        let patch =
            json!({"spec": {"containers": [{"name": "main", "resources": {"limits": limits}}]}});
        cluster.kubectl_ok(&[
            "patch",
            "pod",
            "web",
            "--subresource",
            "resize",
            "-p",
            &patch.to_string(),
        ])
    };
    let limits = |pod: &Value| pod["status"]["containerStatuses"][0]["resources"]["limits"].clone();
    resize(json!({"cpu": "200m"}));
    let pod = cluster.pod("web", "a larger CPU limit", |pod| limits(pod)["cpu"] == "200m");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    resize(json!({"memory": "128Mi"}));
    cluster.pod("web", "a larger memory limit", |pod| {
        limits(pod)["memory"] == "128Mi"
            && pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && pod["status"]["containerStatuses"][0]["started"] == true
    });
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": {
        "requests": {"cpu": "1k"}, "limits": {"cpu": "1k"}}}]}});
    cluster.kubectl_ok(&[
        "patch",
        "pod",
        "web",
        "--subresource",
        "resize",
        "-p",
        &patch.to_string(),
    ]);
    let pending = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|c| c["type"] == "PodResizePending")
    };
    let pod = cluster.pod("web", "a resize that cannot be", |pod| pending(pod).is_some());
    assert_eq!(pending(&pod).expect("it was just there")["reason"], "Infeasible");
    assert_eq!(limits(&pod)["cpu"], "200m");
}

#[test]
fn usage_is_told_to_kubectl_top_and_to_scrapers() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&pod("busy", "while true; do :; done", &json!({}), &json!({})));
    cluster.pod_ready("busy");
    let line = eventually("usage of the pod", || {
        let top = cluster.kubectl(&["top", "pod", "busy", "--containers", "--no-headers"]);
        let cpu = top
            .out
            .split_whitespace()
            .nth(2)
            .and_then(|t| t.strip_suffix('m')?.parse::<u32>().ok());
        if cpu.is_some_and(|milli| milli > 50) { Ok(top.out) } else { Err(top.out + &top.err) }
    });
    assert!(line.contains("main"), "{line}");
    let node = format!("rootlet-{}", cluster.name);
    assert!(cluster.kubectl_ok(&["top", "node"]).contains(&node));
    let get = |path: &str| {
        cluster.kubectl_ok(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy{path}")])
    };
    let summary: Value = serde_json::from_str(&get("/stats/summary")).expect("it is JSON");
    let stats = summary["pods"]
        .as_array()
        .and_then(|pods| pods.iter().find(|p| p["podRef"]["name"] == "busy"));
    let stats = stats.expect("the pod is measured");
    assert!(stats["network"]["interfaces"][0]["rxBytes"].is_u64(), "{stats}");
    assert!(stats["containers"][0]["memory"]["workingSetBytes"].as_u64() > Some(0), "{stats}");
    assert!(summary["node"]["fs"]["capacityBytes"].as_u64() > Some(0));
    for (path, sample) in [
        ("/metrics/resource", "pod_memory_working_set_bytes{namespace=\"default\",pod=\"busy\"}"),
        ("/metrics/cadvisor", "container_memory_working_set_bytes{container=\"main\""),
        ("/metrics", "kubelet_running_pods 1"),
        ("/configz", "\"kubeletconfig\""),
    ] {
        assert!(get(path).contains(sample), "{path}: {}", get(path));
    }
}

#[test]
fn what_the_node_cannot_give_is_refused_aloud() {
    let cluster = Cluster::ephemeral();
    let script = "exec sleep 1000";
    let context = |context: Value| json!({"securityContext": context});
    let unsafe_one = context(json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}));
    cluster.apply(&pod("sysctl", script, &unsafe_one, &json!({})));
    let refused = cluster.pod_phase("sysctl", "Failed");
    assert_eq!(refused["status"]["reason"], "SysctlForbidden");
    let safe = context(
        json!({"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "0"}]}),
    );
    cluster.apply(&pod("safe", script, &safe, &json!({})));
    cluster.pod_ready("safe");
    let read = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    assert_eq!(cluster.kubectl_ok(&["exec", "safe", "--", "cat", read]).trim(), "0");
}

#[test]
fn a_pod_that_holds_too_much_is_evicted() {
    let cluster = Cluster::ephemeral();
    let limits = json!({"resources": {"limits": {"ephemeral-storage": "1Mi"}}});
    let script = "dd if=/dev/zero of=/big bs=1M count=4; exec sleep 1000";
    cluster.apply(&pod("greedy", script, &json!({}), &limits));
    let ended = cluster.pod_phase("greedy", "Failed");
    assert_eq!(ended["status"]["reason"], "Evicted");
    let message = ended["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("ephemeral local storage usage exceeds"), "{message}");
}

#[test]
fn a_node_under_pressure_says_so_and_takes_no_more_best_effort_pods() {
    let cluster = Cluster::prepared();
    // All memory is too little.
    cluster.up(&["--ephemeral", "--eviction-hard", "memory.available<100%"]);
    cluster.load_busybox();
    eventually("memory pressure", || {
        let node = cluster.get(&["nodes"])?;
        let conditions = node["items"][0]["status"]["conditions"].as_array().cloned();
        let under = conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "MemoryPressure" && c["status"] == "True");
        if under { Ok(()) } else { Err(node["items"][0]["status"]["conditions"].to_string()) }
    });
    let node = format!("rootlet-{}", cluster.name);
    // Past the scheduler, which keeps away from such a node.
    cluster.apply(&pod("late", "exec sleep 1000", &json!({"nodeName": node}), &json!({})));
    let refused = cluster.pod_phase("late", "Failed");
    assert_eq!(refused["status"]["reason"], "Evicted");
    let message = refused["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("The node had condition: [MemoryPressure]"), "{message}");
}

#[test]
fn a_critical_pod_takes_the_place_of_another_and_the_nodes_logs_can_be_read() {
    let cluster = Cluster::ephemeral();
    let node = format!("rootlet-{}", cluster.name);
    let capacity = json!({"status": {"capacity": {"example.com/widget": "3"}}}).to_string();
    cluster.kubectl_ok(&["patch", "node", &node, "--subresource", "status", "-p", &capacity]);
    eventually("widgets can be used", || {
        let nodes = cluster.get(&["nodes"])?;
        let usable = &nodes["items"][0]["status"]["allocatable"];
        if usable["example.com/widget"] == "3" { Ok(()) } else { Err(usable.to_string()) }
    });
    let asks = |amount: &str| {
        let widgets = json!({"example.com/widget": amount});
        json!({"resources": {"requests": widgets, "limits": widgets}})
    };
    let here = json!({"nodeName": node});
    cluster.apply(&pod("little", "exec sleep 1000", &here, &asks("1")));
    cluster.apply(&pod("much", "exec sleep 1000", &here, &asks("2")));
    cluster.pod_ready("little");
    cluster.pod_ready("much");
    let critical = json!({"nodeName": node, "priorityClassName": "system-node-critical"});
    cluster.apply(&pod("critical", "exec sleep 1000", &critical, &asks("2")));
    let ended = cluster.pod_phase("much", "Failed");
    assert_eq!(ended["status"]["reason"], "Preempting");
    cluster.pod_ready("critical");
    cluster.pod_ready("little");
    // Nobody yields to one that is not critical.
    cluster.apply(&pod("late", "exec sleep 1000", &here, &asks("1")));
    let refused = cluster.pod_phase("late", "Failed");
    assert_eq!(refused["status"]["reason"], "OutOfexample.com/widget");

    let raw = |path: &str| {
        let path = format!("/api/v1/nodes/{node}/proxy/logs/{path}");
        cluster.kubectl_ok(&["get", "--raw", &path])
    };
    assert!(raw("").contains("<a href=\"kubelet.log\">"));
    assert!(raw("pods/").contains("default_critical_"));
    assert!(raw("?query=kubelet").contains("the node is Ready"));
}
