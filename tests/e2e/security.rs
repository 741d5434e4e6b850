//! Security contexts, to the letter: what a container may do is what was asked for, and what the node cannot give is refused.

use serde_json::{Value, json};

use crate::harness::{Cluster, container, pod};

/// A pod that runs `script` once, in these security contexts of the pod and of the container.
fn once(name: &str, script: &str, of_pod: &Value, of_container: &Value) -> Value {
    let main = container("main", script, &json!({"securityContext": of_container}));
    pod(name, &json!({"restartPolicy": "Never", "securityContext": of_pod, "containers": [main]}))
}

#[test]
fn users_and_groups_are_those_asked_for() {
    let cluster = Cluster::ephemeral();
    let none = json!({});
    let groups = |policy: &str| {
        json!({"runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000], "fsGroup": 5000,
            "supplementalGroupsPolicy": policy})
    };
    // Not to be read by others; owned by the group of the volume.
    let of_volume = |name: &str, script: &str, policy: &str| {
        let mut of = once(
            name,
            script,
            &json!({"runAsUser": 1000, "fsGroup": 5000,
            "fsGroupChangePolicy": policy}),
            &none,
        );
        of["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}},
            {"name": "s", "secret": {"secretName": "s", "defaultMode": 0o400}}]);
        of["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "v", "mountPath": "/v"}, {"name": "s", "mountPath": "/s"}]);
        of
    };
    cluster.kubectl_ok(&["create", "secret", "generic", "s", "--from-literal=key=value"]);
    let files = "cat /s/key; echo; touch /v/x; stat -c '%g %a' /v /s/..data/key /v/x";
    cluster.apply_all(&[
        once("merge", "id -u; id -g; id -G", &groups("Merge"), &none),
        once("strict", "id -u; id -g; id -G", &groups("Strict"), &none),
        once(
            "container",
            "id -u; id -g",
            &json!({"runAsUser": 1, "runAsGroup": 2}),
            &json!({"runAsUser": 1001, "runAsGroup": 2002}),
        ),
        once("named", "id -u", &json!({"runAsNonRoot": true}), &json!({"runAsUser": 65534})),
        of_volume("volume", files, "Always"),
        of_volume("volume-mismatch", files, "OnRootMismatch"),
        once("root", "id", &json!({"runAsNonRoot": true}), &none),
        once("zero", "id", &none, &json!({"runAsNonRoot": true, "runAsUser": 0})),
    ]);
    for (name, said) in [
        ("merge", "1000\n3000\n3000 4000 5000\n"),
        ("strict", "1000\n3000\n3000 4000 5000\n"),
        ("container", "1001\n2002\n"),
        ("named", "65534\n"),
        ("volume", "value\n5000 2777\n5000 440\n5000 644\n"),
        ("volume-mismatch", "value\n5000 2777\n5000 440\n5000 644\n"),
    ] {
        assert_eq!(cluster.last_words(name), said, "{name}");
    }
    let told = cluster.get(&["pod", "merge"]).expect("it is there");
    let user = &told["status"]["containerStatuses"][0]["user"]["linux"];
    assert_eq!(user, &json!({"uid": 1000, "gid": 3000, "supplementalGroups": [3000, 4000, 5000]}));
    for (name, told) in [
        ("root", "Error: container has runAsNonRoot and image will run as root"),
        ("zero", "Error: container's runAsUser breaks non-root policy"),
    ] {
        let message = cluster.event(name, "Failed");
        assert!(message.starts_with(told), "{name}: {message}");
        let waits = cluster.get(&["pod", name]).expect("it is there");
        let state = &waits["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        assert_eq!(state, "CreateContainerConfigError", "{name}");
    }
}

#[test]
fn rights_and_calls_are_those_asked_for() {
    let cluster = Cluster::ephemeral();
    let none = json!({});
    let status = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t\\n'";
    // Bits of CAP_NET_BIND_SERVICE and of CAP_SYS_TIME.
    let only = json!({"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        "allowPrivilegeEscalation": false});
    let added =
        json!({"capabilities": {"add": ["SYS_TIME"]}, "seccompProfile": {"type": "Unconfined"}});
    let without = json!({"capabilities": {"drop": ["CHOWN"]}});
    let file = "/tmp/x; echo one >/tmp/x";
    cluster.apply_all(&[
        once("only", status, &json!({"seccompProfile": {"type": "RuntimeDefault"}}), &only),
        once("added", "capsh=$(grep CapEff /proc/self/status | cut -f2); echo $(( 0x$capsh >> 25 & 1 )); grep Seccomp: /proc/self/status",
            &none, &added),
        once("without", &format!("touch {file}; chown 5 /tmp/x 2>/dev/null || echo refused"), &none, &without),
        once("read-only", "touch /x 2>/dev/null || echo refused; touch /v/x && echo written", &none,
            &json!({"readOnlyRootFilesystem": true})),
        // A filter keeps even root from it; nobody has it of itself.
        once("filtered", "unshare -m true 2>/dev/null || echo refused", &json!({"seccompProfile": {"type": "RuntimeDefault"}}), &none),
        once("masked", "head -c1 /proc/kcore 2>/dev/null | wc -c; (echo 1 >/proc/sys/kernel/domainname) 2>/dev/null || echo refused",
            &none, &none),
        once("no-profile", "true", &none, &json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "none.json"}})),
        once("windows", "true", &none, &json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "none"}})),
    ]
    .map(|mut of| {
        of["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
        of["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        of
    }));
    for (name, said) in [
        ("only", "CapEff:0000000000000400NoNewPrivs:1Seccomp:2"),
        ("added", "1\nSeccomp:\t0\n"),
        ("without", "refused\n"),
        ("read-only", "refused\nwritten\n"),
        ("filtered", "refused\n"),
        ("masked", "0\nrefused\n"),
    ] {
        assert_eq!(cluster.last_words(name), said, "{name}");
    }
    let message = cluster.event("no-profile", "Failed");
    assert!(message.contains("seccomp profile") && message.contains("none.json"), "{message}");
    if std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|on| on.starts_with('Y'))
    {
        cluster.event("windows", "Failed");
    } else {
        let refused = cluster.pod_phase("windows", "Failed");
        assert_eq!(refused["status"]["reason"], "AppArmor");
        let message = refused["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("AppArmor is not enabled on the host"), "{message}");
    }
}

#[test]
fn profiles_of_the_node_and_sysctls_are_in_force() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral", "--allowed-unsafe-sysctls", "net.core.somaxconn"]);
    cluster.load_busybox();
    let none = json!({});
    let sysctls = |list: &[(&str, &str)]| {
        let all: Vec<Value> =
            list.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        json!({ "sysctls": all })
    };
    let show = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn";
    cluster.apply_all(&[
        once(
            "safe",
            show,
            &sysctls(&[
                ("net.ipv4.ip_local_port_range", "30000 40000"),
                ("kernel/shm_rmid_forced", "1"),
                ("net.core.somaxconn", "77"),
            ]),
            &none,
        ),
        once("unsafe", "true", &sysctls(&[("kernel.msgmax", "1")]), &none),
    ]);
    assert_eq!(cluster.last_words("safe"), "30000\t40000\n1\n77\n");
    let refused = cluster.pod_phase("unsafe", "Failed");
    assert_eq!(refused["status"]["reason"], "SysctlForbidden");
    let message = refused["status"]["message"].as_str().unwrap_or_default();
    assert_eq!(message, "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted");
}

#[test]
fn what_is_mounted_read_only_is_so_all_the_way_down() {
    let cluster = Cluster::ephemeral();
    let folder = cluster.path("shared");
    std::fs::create_dir(&folder).expect("a folder can be made");
    let path = folder.to_str().expect("paths are UTF-8");
    let volumes = json!([{"name": "v", "hostPath": {"path": path}}]);
    let mount = |more: Value| {
        let mut of = json!({"name": "v", "mountPath": "/v"});
        for (key, value) in more.as_object().into_iter().flatten() {
            of[key] = value.clone();
        }
        json!({"volumeMounts": [of], "securityContext": {"privileged": true}})
    };
    // One makes a mount below the volume, which the others see.
    let maker = "mkdir -p /v/below; mount -t tmpfs none /v/below; touch /v/below/file; touch /v/done; exec sleep 1000";
    let maker = container("maker", maker, &mount(json!({"mountPropagation": "Bidirectional"})));
    cluster.apply_all(&[pod("maker", &json!({"volumes": volumes, "containers": [maker]}))]);
    cluster.pod_ready("maker");
    crate::harness::eventually("the mount below is there", || {
        if folder.join("done").exists() { Ok(()) } else { Err("not yet".into()) }
    });
    let of = |name: &str, script: &str, more: Value| {
        pod(
            name,
            &json!({"restartPolicy": "Never", "volumes": volumes,
            "containers": [container("main", script, &mount(more))]}),
        )
    };
    let write = "touch /v/x && echo above; touch /v/below/x && echo below; true";
    cluster.apply_all(&[
        of("plain", write, json!({"readOnly": true})),
        of(
            "recursive",
            write,
            json!({"readOnly": true, "recursiveReadOnly": "Enabled",
            "mountPropagation": "None"}),
        ),
    ]);
    let said = cluster.last_words("recursive");
    assert!(!said.contains("above") && !said.contains("below\n"), "{said}");
    let said = cluster.last_words("plain");
    assert!(!said.contains("above\n") && said.contains("below\n"), "{said}");
    let told = cluster.get(&["pod", "recursive"]).expect("it is there");
    let mounts = told["status"]["containerStatuses"][0]["volumeMounts"].as_array().cloned();
    let mount = mounts.into_iter().flatten().find(|m| m["mountPath"] == "/v").unwrap_or_default();
    assert_eq!(mount["recursiveReadOnly"], "Enabled");
    // A mount that is made later comes with propagation alone.
    let later = "until [ -e /v/later/file ]; do sleep 0.1; done; echo seen";
    cluster.apply_all(&[
        of("later", later, json!({"mountPropagation": "HostToContainer"})),
        of(
            "apart",
            "until [ -e /v/made ]; do sleep 0.1; done; [ -e /v/later/file ] || echo unseen",
            json!({}),
        ),
    ]);
    for name in ["later", "apart"] {
        cluster.pod_phase(name, "Running");
    }
    let make =
        "mkdir -p /v/later; mount -t tmpfs none /v/later; touch /v/later/file; touch /v/made";
    cluster.kubectl_ok(&["exec", "maker", "--", "sh", "-c", make]);
    assert_eq!(cluster.last_words("later"), "seen\n");
    assert_eq!(cluster.last_words("apart"), "unseen\n");
    cluster.kubectl_ok(&["exec", "maker", "--", "umount", "/v/later", "/v/below"]);
}
