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
fn a_running_pod_as_a_whole_is_resized() {
    let cluster = Cluster::ephemeral();
    let whole = json!({"requests": {"cpu": "50m", "memory": "32Mi"}, "limits": {"cpu": "100m"}});
    let spec = json!({"resources": whole});
    cluster.apply(&pod("web", "exec sleep 1000", &spec, &json!({})));
    let told = cluster.pod_ready("web");
    assert_eq!(told["status"]["resources"], whole);
    assert_eq!(told["status"]["allocatedResources"], whole["requests"]);
    assert_eq!(told["status"]["qosClass"], "Burstable");
    let resize = |resources: Value| {
        let patch = json!({"spec": {"resources": resources}}).to_string();
        cluster.kubectl_ok(&["patch", "pod", "web", "--subresource", "resize", "-p", &patch]);
    };
    resize(json!({"requests": {"cpu": "60m"}, "limits": {"cpu": "200m"}}));
    let pending = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions
            .into_iter()
            .find(|c| c["type"].as_str().is_some_and(|t| t.starts_with("PodResize")))
    };
    let told = cluster.pod("web", "larger", |pod| {
        pod["status"]["resources"]["limits"]["cpu"] == "200m" && pending(pod).is_none()
    });
    assert_eq!(told["status"]["allocatedResources"], json!({"cpu": "60m", "memory": "32Mi"}));
    let of_container = &told["status"]["containerStatuses"][0];
    assert_eq!(of_container["restartCount"], 0);
    assert_eq!(of_container["resources"], json!({}), "it asked for none");
    let done = cluster.event("web", "ResizeCompleted");
    assert!(done.starts_with("Pod resize completed: "), "{done}");
    resize(json!({"requests": {"cpu": "1k"}, "limits": {"cpu": "1k"}}));
    let told = cluster.pod("web", "too large", |pod| pending(pod).is_some());
    assert_eq!(pending(&told).expect("it was just there")["reason"], "Infeasible");
    assert_eq!(told["status"]["resources"]["limits"]["cpu"], "200m");
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
    let own = &summary["node"]["systemContainers"];
    for (index, name) in ["kubelet", "pods"].into_iter().enumerate() {
        assert_eq!(own[index]["name"], name);
        assert!(own[index]["memory"]["workingSetBytes"].as_u64() > Some(0), "{own}");
        assert!(own[index]["cpu"]["usageCoreNanoSeconds"].as_u64() > Some(0), "{own}");
    }
    assert!(summary["node"]["network"]["interfaces"].is_array(), "{summary}");
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
        ("/metrics", "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 1"),
        ("/configz", "\"kubeletconfig\""),
    ] {
        assert!(get(path).contains(sample), "{path}: {}", get(path));
    }
    assert!(summary["node"]["memory"]["pageFaults"].as_u64() > Some(0), "{summary}");
    let told = get("/metrics/cadvisor");
    let of_pod = |name: &&str| {
        told.lines().any(|line| {
            line.starts_with(&format!("{name}{{"))
                && ["container=\"main\"", "namespace=\"default\"", "pod=\"busy\""]
                    .iter()
                    .all(|label| line.contains(label))
        })
    };
    let missing: Vec<&str> = OF_CONTAINERS.into_iter().filter(|name| !of_pod(name)).collect();
    assert!(missing.is_empty(), "{missing:?} of {told}");
    let kinds = told.lines().filter(|line| line.starts_with("# TYPE "));
    let (all, mut distinct): (Vec<_>, Vec<_>) = kinds.map(|line| (line, line)).unzip();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(all.len(), distinct.len(), "each family once");
}

/// What upstream's suite of nodes looks for of each container, but for what only a cgroup tells.
const OF_CONTAINERS: [&str; 24] = [
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_limit_bytes",
    "container_fs_usage_bytes",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
];

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

#[test]
fn a_rule_restarts_the_whole_pod_in_place() {
    let cluster = Cluster::ephemeral();
    let rule =
        json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}});
    let watcher = "n=$(cat /v/inits | wc -l); [ $n -gt 1 ] && exec sleep 1000; until [ -e /v/main ]; do sleep 0.1; done; exit 88";
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let container = |name: &str, script: &str, more: Value| {
        let mut own = json!({"name": name, "image": BUSYBOX, "command": ["/bin/sh", "-c", script],
            "volumeMounts": mounts});
        for (key, value) in more.as_object().into_iter().flatten() {
            own[key] = value.clone();
        }
        own
    };
    // It does not end by itself, and gets no time to.
    let main = "trap '' TERM; touch /v/main; while :; do sleep 1; done";
    let spec = json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 600,
        "volumes": [{"name": "v", "emptyDir": {}}],
        "initContainers": [container("setup", "echo x >>/v/inits", json!({}))],
        "containers": [container("main", main, json!({})),
            container("watcher", watcher, json!({"restartPolicy": "Never", "restartPolicyRules": [rule]}))]});
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "whole"}, "spec": spec})
            .to_string(),
    );
    let address = cluster.pod("whole", "up", |pod| pod["status"]["podIP"].is_string());
    let again = cluster.pod("whole", "running again", |pod| {
        pod["status"]["phase"] == "Running"
            && pod["status"]["containerStatuses"][0]["restartCount"] == 1
            && pod["status"]["containerStatuses"][1]["restartCount"] == 1
            && pod["status"]["initContainerStatuses"][0]["restartCount"] == 1
    });
    assert_eq!(again["status"]["podIP"], address["status"]["podIP"], "the sandbox stays");
    let condition = again["status"]["conditions"].as_array().and_then(|all| {
        all.iter().find(|c| c["type"] == "AllContainersRestarting").map(|c| c["status"].clone())
    });
    assert_eq!(condition, Some("False".into()));
    let inits = cluster.kubectl_ok(&["exec", "whole", "-c", "main", "--", "cat", "/v/inits"]);
    assert_eq!(inits, "x\nx\n", "volumes stay, init containers run again");
    let node = cluster.get(&["nodes"]).expect("the node can be read");
    let declared = &node["items"][0]["status"]["declaredFeatures"];
    let able = ["InPlacePodLevelResourcesVerticalScaling", "RestartAllContainersOnContainerExits"];
    assert_eq!(declared, &json!(able));
    cluster.kubectl_ok(&["delete", "pod", "whole", "--now"]);
}

#[test]
fn pods_end_by_priority_when_the_node_does() {
    let cluster = Cluster::prepared();
    let periods = "--shutdown-grace-period-by-pod-priority";
    let bad = cluster.rootlet(&["up", periods, "high=1"]);
    assert!(bad.code == Some(1) && bad.err.contains("PRIORITY=SECONDS"), "{bad:?}");
    cluster.up(&[periods, "0=20,1000=20"]);
    cluster.load_busybox();
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "high"}, "value": 1000});
    cluster.apply(&class.to_string());
    let folder = cluster.path("ends");
    std::fs::create_dir(&folder).expect("a folder can be made");
    let volumes = json!([{"name": "ends", "hostPath": {"path": folder}}]);
    for (name, more) in [("low", json!({})), ("high", json!({"priorityClassName": "high"}))] {
        let script = format!(
            "trap 'cat /proc/uptime >/ends/{name}; exit 0' TERM; while :; do sleep 0.05; done"
        );
        let mut spec = json!({"volumes": volumes, "terminationGracePeriodSeconds": 15});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let container = json!({"volumeMounts": [{"name": "ends", "mountPath": "/ends"}]});
        cluster.apply(&pod(name, &script, &spec, &container));
        cluster.pod_ready(name);
    }
    cluster.rootlet_ok(&["down"]);
    let ended = |name: &str| -> f64 {
        let text = std::fs::read_to_string(folder.join(name)).expect("it was asked to end");
        text.split(' ').next().and_then(|seconds| seconds.parse().ok()).expect("a time")
    };
    assert!(ended("low") < ended("high"), "the important one goes last");
    cluster.up(&[]);
    for name in ["low", "high"] {
        let pod = cluster.pod_phase(name, "Failed");
        assert_eq!(pod["status"]["reason"], "Terminated");
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let target =
            conditions.iter().find(|c| c["type"] == "DisruptionTarget").expect("it is told why");
        assert_eq!(target["reason"], "TerminationByKubelet");
    }
}

/// A signer that issues what kubelets ask for, with an authority of its own.
fn sign(cluster: &Cluster, issuer: &rcgen::Issuer<'_, rcgen::KeyPair>) -> String {
    let request = eventually("a PodCertificateRequest", || {
        let list = cluster.get(&["podcertificaterequests"])?;
        let open = list["items"].as_array().into_iter().flatten();
        let mut open = open.filter(|request| request["status"]["conditions"].is_null());
        open.next().cloned().ok_or_else(|| list.to_string())
    });
    let engine = base64::engine::general_purpose::STANDARD;
    let stub = request["spec"]["stubPKCS10Request"].as_str().expect("a request");
    let stub = base64::Engine::decode(&engine, stub).expect("base64");
    let mut parameters =
        rcgen::CertificateSigningRequestParams::from_der(&stub.into()).expect("a request, signed");
    parameters.params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    parameters.params.not_after = rcgen::date_time_ymd(2036, 1, 1);
    let chain = parameters.signed_by(issuer).expect("it can be signed").pem();
    let name = request["metadata"]["name"].as_str().expect("a name").to_owned();
    let status = json!({"status": {"certificateChain": chain,
        "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2036-01-01T00:00:00Z",
        "beginRefreshAt": "2035-01-01T00:00:00Z",
        "conditions": [{"type": "Issued", "status": "True", "reason": "Issued", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let patch = ["patch", "podcertificaterequests", &name, "--subresource=status", "--type=merge"];
    cluster.kubectl_ok(&[&patch[..], &["-p", &status.to_string()]].concat());
    chain
}

#[test]
fn pods_get_certificates_and_trust_bundles() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--runtime-config", "certificates.k8s.io/v1beta1"]);
    cluster.load_busybox();
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = parameters.self_signed(&key).expect("an authority").pem();
    let issuer = rcgen::Issuer::new(parameters, key);
    let bundle = |name: &str, spec: Value, labels: Value| {
        json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle",
            "metadata": {"name": name, "labels": labels}, "spec": spec})
        .to_string()
    };
    cluster.apply(&bundle("plain", json!({"trustBundle": authority}), json!({})));
    let signed = json!({"trustBundle": authority, "signerName": "example.com/signer"});
    cluster.apply(&bundle("example.com:signer:one", signed, json!({"live": "yes"})));
    let selector = json!({"matchLabels": {"live": "yes"}});
    let sources = json!([
        {"clusterTrustBundle": {"name": "plain", "path": "plain.pem"}},
        {"clusterTrustBundle": {"name": "none", "optional": true, "path": "none.pem"}},
        {"clusterTrustBundle": {"signerName": "example.com/signer", "labelSelector": selector,
            "path": "signer.pem"}},
        {"clusterTrustBundle": {"signerName": "kubernetes.io/kube-apiserver-serving", "labelSelector": {},
            "path": "api.pem"}},
        {"podCertificate": {"signerName": "example.com/signer", "keyType": "ED25519",
            "credentialBundlePath": "both.pem", "certificateChainPath": "chain.pem", "keyPath": "key.pem"}}]);
    let spec = json!({"volumes": [{"name": "v", "projected": {"sources": sources}}]});
    let container = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    cluster.apply(&pod("certified", "exec sleep 1000", &spec, &container));
    let chain = sign(&cluster, &issuer).replace("\r\n", "\n");
    cluster.pod_ready("certified");
    let read =
        |name: &str| cluster.kubectl_ok(&["exec", "certified", "--", "cat", &format!("/v/{name}")]);
    let authority = authority.replace("\r\n", "\n");
    assert_eq!((read("plain.pem"), read("signer.pem")), (authority.clone(), authority));
    assert_eq!(read("none.pem"), "");
    assert_eq!(read("api.pem"), read("../var/run/secrets/kubernetes.io/serviceaccount/ca.crt"));
    assert_eq!(read("chain.pem"), chain);
    let key = read("key.pem");
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----\n"), "{key}");
    assert_eq!(read("both.pem"), format!("{key}{chain}"));
    // A bundle that must be there and is not is told.
    let sources = json!([{"clusterTrustBundle": {"name": "none", "path": "a"}}]);
    let spec = json!({"volumes": [{"name": "v", "projected": {"sources": sources}}]});
    cluster.apply(&pod("without", "true", &spec, &container));
    let told = cluster.event("without", "FailedMount");
    assert!(told.contains("clustertrustbundle \"none\" not found"), "{told}");
}

#[test]
fn a_pod_has_users_of_its_own() {
    let cluster = Cluster::ephemeral();
    let script = "id -u; cat /memory/file /map/key; readlink /proc/self/ns/user; exec sleep 1000";
    let volumes = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}, {"name": "scratch", "emptyDir": {}},
        {"name": "map", "configMap": {"name": "map"}}]);
    let mounts = json!([{"name": "memory", "mountPath": "/memory", "readOnly": true},
        {"name": "scratch", "mountPath": "/scratch"}, {"name": "map", "mountPath": "/map", "readOnly": true}]);
    let fill = json!({"name": "fill", "image": BUSYBOX, "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
        "command": ["/bin/sh", "-c", "echo filled >/memory/file"]});
    let spec = json!({"hostUsers": false, "volumes": volumes, "initContainers": [fill]});
    let container = json!({"volumeMounts": mounts, "securityContext": {"privileged": true}});
    cluster.kubectl_ok(&["create", "configmap", "map", "--from-literal=key=mapped "]);
    cluster.apply(&pod("own", script, &spec, &container));
    cluster.apply(&pod(
        "shared",
        "readlink /proc/self/ns/user; exec sleep 1000",
        &json!({}),
        &json!({}),
    ));
    cluster.pod_ready("own");
    cluster.pod_ready("shared");
    let said = cluster.kubectl_ok(&["logs", "own"]);
    let shared = cluster.kubectl_ok(&["logs", "shared"]);
    assert!(said.starts_with("0\nfilled\nmapped user:["), "{said}");
    assert!(shared.starts_with("user:[") && !said.contains(shared.trim()), "{said}{shared}");
    let exec = |script: &str| cluster.kubectl(&["exec", "own", "--", "sh", "-c", script]);
    // Root there is root of the pod, and of nothing else.
    assert_eq!(
        exec("hostname other && ip link set lo down && touch /scratch/a && hostname").out,
        "other\n"
    );
    assert_ne!(exec("touch /memory/b").code, Some(0), "it is read-only");
    assert_ne!(exec("mount -o remount,rw /memory 2>/dev/null && touch /memory/b").code, Some(0));
    let address =
        cluster.pod_ready("own")["status"]["podIP"].as_str().expect("an address").to_owned();
    let ask = format!("ping -c 1 -w 5 {address} >/dev/null && echo answered");
    assert_eq!(cluster.kubectl_ok(&["exec", "shared", "--", "sh", "-c", &ask]), "answered\n");
    cluster.kubectl_ok(&["delete", "pod", "own", "--now"]);
    // What the host has and this user may not see is not taken for nothing.
    let path = "/root/of-root";
    let denied = |e: std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
    assert!(std::fs::metadata(path).is_err_and(denied), "{path} is not hidden here");
    let spec = json!({"volumes": [{"name": "v", "hostPath": {"path": path}}]});
    let container = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    cluster.apply(&pod("hidden", "exec sleep 1000", &spec, &container));
    let told = cluster.event("hidden", "HostPathHidden");
    assert!(told.contains(path), "{told}");
    cluster.pod_ready("hidden");
}
