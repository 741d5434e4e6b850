//! The life of pods, as kubectl's user sees it.

use std::io::Read;
use std::process::Stdio;

use crate::harness::{BUSYBOX, Cluster, eventually, run_with};

/// A pod with one busybox container that runs `script`.
fn pod(name: &str, restart: &str, script: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": restart, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", script]}]},
    })
    .to_string()
}

#[test]
fn one_pod_from_apply_to_delete() {
    let cluster = Cluster::ephemeral();
    let mut watch = cluster
        .kubectl_command()
        .args(["get", "pods", "-w", "--no-headers"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    cluster.apply(&pod("one", "Always", "echo first; echo second; exec sleep 1000"));
    let ready = cluster.pod_ready("one");
    let status = &ready["status"];
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["hostIP"], "10.42.0.1");
    assert!(status["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.42.0.")), "{status}");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(cluster.kubectl_ok(&["logs", "one"]), "first\nsecond\n");
    assert_eq!(cluster.kubectl_ok(&["logs", "one", "--tail=1"]), "second\n");
    let described = cluster.kubectl_ok(&["describe", "pod", "one"]);
    for event in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(described.contains(event), "{event}: {described}");
    }
    let exec = run_with(
        cluster.kubectl_command().args(["exec", "-i", "one", "--", "sh", "-c", "cat; exit 3"]),
        b"through",
    );
    assert_eq!((exec.code, exec.out.as_str()), (Some(3), "through"), "{}", exec.err);
    let page = cluster.rootlet_ok(&["trace", "pod/one", "--output", "html"]);
    assert!(page.contains("<html") && page.contains("default/one"), "{page}");
    let trace = cluster.rootlet_ok(&["trace", "pod/one"]);
    for step in [
        "submit",
        "authenticate",
        "authorise",
        "admit",
        "store",
        "watch",
        "schedule",
        "bind",
        "kubelet",
        "volumes",
        "sandbox",
        "image",
        "containers",
        "observe",
        "report",
    ] {
        assert!(
            trace.lines().any(|l| l.split_whitespace().nth(4) == Some(step)),
            "{step}: {trace}"
        );
    }
    cluster.kubectl_ok(&["delete", "pod", "one", "--grace-period=1"]);
    assert!(cluster.kubectl(&["get", "pod", "one"]).err.contains("NotFound"));
    watch.kill().expect("it runs");
    let mut seen = String::new();
    watch.stdout.take().expect("it is a pipe").read_to_string(&mut seen).expect("text");
    watch.wait().expect("it ends");
    for state in ["Pending", "ContainerCreating", "Running", "Terminating"] {
        assert!(seen.contains(state), "{state}: {seen}");
    }
}

#[test]
fn containers_of_a_pod_share_localhost_and_a_volume() {
    let cluster = Cluster::ephemeral();
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "two"},
        "spec": {"restartPolicy": "Never", "volumes": [{"name": "v", "emptyDir": {}}], "containers": [
            {"name": "server", "image": BUSYBOX, "volumeMounts": [{"name": "v", "mountPath": "/www"}],
             "command": ["sh", "-c", "echo shared > /www/index.html; exec httpd -f -p 8080 -h /www"]},
            {"name": "client", "image": BUSYBOX, "volumeMounts": [{"name": "v", "mountPath": "/seen"}],
             "command": ["sh", "-c", "until wget -qO- http://127.0.0.1:8080/; do sleep 0.1; done; cat /seen/index.html"]},
        ]},
    });
    cluster.apply(&manifest.to_string());
    eventually("the client's end", || {
        let pod = cluster.get(&["pod", "two"])?;
        let statuses = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        let client = statuses.iter().find(|status| status["name"] == "client");
        let done = client.is_some_and(|c| c["state"]["terminated"]["reason"] == "Completed");
        if done { Ok(()) } else { Err(pod["status"].to_string()) }
    });
    assert_eq!(cluster.kubectl_ok(&["logs", "two", "-c", "client"]), "shared\nshared\n");
}

#[test]
fn an_init_container_may_fail_before_it_succeeds() {
    let cluster = Cluster::ephemeral();
    let script = "test -e /v/again && exit 0; touch /v/again; exit 9";
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "init"},
        "spec": {"volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [{"name": "first", "image": BUSYBOX, "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
            "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "1000"]}]},
    });
    cluster.apply(&manifest.to_string());
    let ready = cluster.pod_ready("init");
    let first = &ready["status"]["initContainerStatuses"][0];
    assert_eq!(first["state"]["terminated"]["reason"], "Completed");
    assert_eq!(first["restartCount"], 1);
}

#[test]
fn a_crashing_container_backs_off() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&pod("crash", "Always", "echo again; exit 3"));
    let looping = cluster.pod("crash", "in CrashLoopBackOff", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let status = &looping["status"]["containerStatuses"][0];
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["reason"], "Error");
    assert!(cluster.kubectl_ok(&["get", "pod", "crash"]).contains("CrashLoopBackOff"));
    assert!(
        cluster.event("crash", "BackOff").contains("Back-off restarting failed container main")
    );
}

#[test]
fn a_log_is_cut_as_asked() {
    let cluster = Cluster::ephemeral();
    let script = "if [ ! -e /kept/once ]; then touch /kept/once; echo before; exit 1; fi; echo early; \
                  until [ -e /kept/go ]; do sleep 0.1; done; echo late; exec sleep 1000";
    let mut manifest: serde_json::Value =
        serde_json::from_str(&pod("cut", "Always", script)).expect("JSON");
    manifest["spec"]["volumes"] = serde_json::json!([{"name": "kept", "emptyDir": {}}]);
    manifest["spec"]["containers"][0]["volumeMounts"] =
        serde_json::json!([{"name": "kept", "mountPath": "/kept"}]);
    cluster.apply(&manifest.to_string());
    let log = |flags: &[&str]| cluster.kubectl_ok(&[&["logs", "cut"], flags].concat());
    let wait_for = |text: &str| {
        eventually(text, || {
            let log = cluster.kubectl(&["logs", "cut"]);
            if log.out == text { Ok(()) } else { Err(format!("{log:?}")) }
        });
    };
    wait_for("early\n");
    cluster.kubectl_ok(&["exec", "cut", "--", "touch", "/kept/go"]);
    wait_for("early\nlate\n");
    assert_eq!(log(&["--previous"]), "before\n");
    assert_eq!(log(&["--since=1h"]), "early\nlate\n");
    assert_eq!(log(&["--limit-bytes=7"]), "early\nl");
    let stamped = log(&["--timestamps"]);
    let stamps: Vec<_> = stamped.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(stamps.iter().map(|(_, text)| *text).collect::<Vec<_>>(), ["early", "late"]);
    assert!(stamps[0].0 < stamps[1].0, "{stamped}");
    // Upstream takes whole seconds here, so only a later second tells the lines apart.
    let later = log(&["--since-time=2100-01-01T00:00:00Z"]);
    assert_eq!(later, "", "nothing was written after that");
    assert_eq!(log(&["--since-time=2000-01-01T00:00:00Z"]), "early\nlate\n");
    let other = cluster.kubectl(&["logs", "cut", "-c", "none"]);
    assert_eq!(other.code, Some(1));
    assert!(other.err.contains("container none is not valid for pod cut"), "{}", other.err);
}

#[test]
fn a_pod_that_ends_is_completed() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&pod("done", "Never", "echo bye > /dev/termination-log"));
    let pod = cluster.pod_phase("done", "Succeeded");
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(terminated["reason"], "Completed");
    assert_eq!(terminated["message"], "bye\n");
    assert!(cluster.kubectl_ok(&["get", "pod", "done"]).contains("Completed"));
}

#[test]
fn pods_reach_each_other_and_the_api() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&pod(
        "server",
        "Always",
        "echo hi > /tmp/index.html; exec httpd -f -p 80 -h /tmp",
    ));
    let ip =
        cluster.pod_ready("server")["status"]["podIP"].as_str().expect("an address").to_owned();
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    let script = format!(
        "wget -qO- http://{ip}/ && cat {token}/namespace && nslookup kubernetes.default.svc.cluster.local \
         && test -s {token}/ca.crt && nc -w 5 kubernetes.default.svc 443 </dev/null && echo reached"
    );
    cluster.apply(&pod("client", "Never", &script));
    cluster.pod_phase("client", "Succeeded");
    let log = cluster.kubectl_ok(&["logs", "client"]);
    assert!(log.starts_with("hi\ndefault"), "{log}");
    assert!(log.contains("10.43.0.1") && log.contains("reached"), "{log}");
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let cluster = Cluster::ephemeral();
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "big"},
        "spec": {"containers": [{"name": "main", "image": BUSYBOX,
            "resources": {"requests": {"cpu": "1000"}}}]},
    });
    cluster.apply(&manifest.to_string());
    let message = cluster.event("big", "FailedScheduling");
    assert!(message.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{message}");
}

#[test]
fn mistakes_are_answered_as_upstream_answers_them() {
    let cluster = Cluster::ephemeral();
    let cases = [
        ("{", "error"),
        (
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[]}}"#,
            "spec.containers: Required value",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"X"},"spec":{"containers":[{"name":"a","image":"b"}]}}"#,
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters",
        ),
        (
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"},"spec":{"containers":[{"name":"a","image":"b","foo":1}]}}"#,
            "unknown field \"spec.containers[0].foo\"",
        ),
    ];
    for (manifest, want) in cases {
        let mut kubectl = cluster.kubectl_command();
        let answer = run_with(kubectl.args(["apply", "-f", "-"]), manifest.as_bytes());
        assert_eq!(answer.code, Some(1), "{manifest}");
        assert!(answer.err.contains(want), "{manifest}: {}", answer.err);
    }
}
