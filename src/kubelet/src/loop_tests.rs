//! The loop as a whole, against a runtime and an API server in memory and a paused clock.

use serde_json::{Value, json};

use crate::fake::node::{Node, POD};

const REASON: &str = "/status/containerStatuses/0/state/waiting/reason";

fn busybox() -> Value {
    json!({"containers": [{"name": "a", "image": "busybox", "imagePullPolicy": "IfNotPresent"}]})
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted() {
    let node = Node::new();
    let kubelet = node.start();
    node.submit(busybox());
    let pod = node.until("running", "/status/phase", "Running").await;
    assert_eq!(pod["status"]["podIP"], "10.42.0.9");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    node.delete(7);
    node.gone().await;
    assert_eq!(
        node.runtime.calls(),
        ["run-sandbox", "create a", "start a", "stop a 7", "stop-sandbox"]
    );
    {
        let world = node.runtime.world.lock().unwrap();
        assert!(world.containers.is_empty() && world.sandboxes.is_empty());
    }
    assert!(!node.dir.path().join("root/pods/u1").exists());
    kubelet.stop().await;
    let events = node.api.events();
    for expected in [
        "Pulled Container image \"busybox\" already present on machine and can be accessed by the pod",
        "Created Container created",
        "Started Container started",
        "Killing Stopping container a",
    ] {
        assert!(events.iter().any(|e| e == expected), "{expected} is not in {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_kubelet_finds_its_pods() {
    let node = Node::new();
    let kubelet = node.start();
    node.submit(busybox());
    node.until("running", "/status/phase", "Running").await;
    kubelet.stop().await;
    let before = node.runtime.calls();
    let kubelet = node.start();
    // Something that is only seen by a kubelet that knows the pod.
    node.runtime.exit("a", 1);
    node.until("restarted", "/status/containerStatuses/0/restartCount", 1).await;
    let after: Vec<String> = node.runtime.calls().split_off(before.len());
    assert_eq!(after, ["create a", "start a"]);
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_kubelet_takes_nothing_back_that_its_probes_have_not_seen() {
    let node = Node::new();
    let kubelet = node.start();
    // Each is made by the runtime and succeeds.
    let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 30});
    let mut spec = busybox();
    spec["containers"][0]["startupProbe"] = probe.clone();
    spec["containers"][0]["readinessProbe"] = probe;
    node.submit(spec);
    let ready = "/status/containerStatuses/0/ready";
    let before = node.until("ready", ready, true).await;
    kubelet.stop().await;
    // From now on none does, which takes three of them to believe.
    node.runtime.world.lock().unwrap().exec_exit_code = 1;
    let kubelet = node.start();
    let told = node.until("not ready any more", ready, false).await;
    assert_eq!(told["status"]["containerStatuses"][0]["started"], true);
    assert_eq!(told["status"]["containerStatuses"][0]["restartCount"], 0);
    let since = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
        found["lastTransitionTime"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    };
    let lasted = since(&told).duration_since(since(&before));
    assert!(lasted >= jiff::SignedDuration::from_secs(60), "{lasted}");
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_in_the_files_of_a_running_pod() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["containers"][0]["volumeMounts"] = json!([{"name": "t", "mountPath": "/t"}]);
    spec["volumes"] = json!([{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}}]);
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    let began = node.runtime.clock.now();
    let folder = node.dir.path().join("root/pods/u1/volumes/kubernetes.io~projected/t");
    let token = || std::fs::read_to_string(folder.join("token")).unwrap();
    let set = || std::fs::read_link(folder.join("..data")).unwrap();
    let age = || node.runtime.clock.now().duration_since(began).as_secs();
    let changed = async |from: &str| {
        while token() == from {
            assert!(age() < 3_000, "{from} is still there");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    };
    let (first, set_of_first) = (token(), set());
    changed(&first).await;
    // At four fifths of its life, by another set of files in one step.
    assert!((480..490).contains(&age()), "{}", age());
    assert_ne!(set(), set_of_first);
    let second = token();
    // Where there are no new ones, it stays as long as it is good, and longer than there is nothing better.
    node.api.refuse_tokens(true);
    tokio::time::sleep(std::time::Duration::from_secs(550)).await;
    assert_eq!(token(), second);
    assert!(!node.api.events().iter().any(|event| event.starts_with("FailedMount")));
    node.api.refuse_tokens(false);
    changed(&second).await;
    assert!((1030..1060).contains(&age()), "{}", age());
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_others_write_over_a_status_is_told_again() {
    let node = Node::new();
    let kubelet = node.start();
    node.submit(busybox());
    node.until("ready", "/status/conditions/2/status", "True").await;
    let mut pod = node.api.get(POD).unwrap();
    pod["status"]["conditions"][2]["status"] = "False".into();
    node.api.put(POD, pod);
    node.until("ready again", "/status/conditions/2/status", "True").await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_deleted_while_the_kubelet_was_away_is_ended() {
    let node = Node::new();
    let kubelet = node.start();
    node.submit(busybox());
    node.until("running", "/status/phase", "Running").await;
    kubelet.stop().await;
    node.api.remove(POD);
    let kubelet = node.start();
    node.called(&["run-sandbox", "create a", "start a", "stop a 30", "stop-sandbox"]).await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_is_held_back_longer_and_longer() {
    let node = Node::new();
    let kubelet = node.start();
    node.submit(busybox());
    node.until("running", "/status/phase", "Running").await;
    for (restarts, message) in [
        (1, None),
        (2, Some("back-off 10s restarting failed container=a pod=p_ns(u1)")),
        (3, Some("back-off 20s restarting failed container=a pod=p_ns(u1)")),
        (4, Some("back-off 40s restarting failed container=a pod=p_ns(u1)")),
    ] {
        let began = tokio::time::Instant::now();
        node.runtime.exit("a", 1);
        if let Some(message) = message {
            let pod = node.until("held back", REASON, "CrashLoopBackOff").await;
            let state = &pod["status"]["containerStatuses"][0];
            assert_eq!(state["state"]["waiting"]["message"], message);
            assert_eq!(state["lastState"]["terminated"]["exitCode"], 1);
        }
        node.until("restarted", "/status/containerStatuses/0/restartCount", restarts).await;
        let seconds = began.elapsed().as_secs();
        let expected = [0, 0, 10, 20, 40][restarts];
        assert!(
            (expected..expected + 2).contains(&seconds),
            "restart {restarts} after {seconds} s"
        );
    }
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_holds_nothing_up() {
    let node = Node::new();
    let kubelet = node.start();
    node.submit(busybox());
    node.until("running", "/status/phase", "Running").await;
    let restarts = "/status/containerStatuses/0/restartCount";
    node.runtime.exit("a", 1);
    node.until("restarted", restarts, 1).await;
    node.runtime.exit("a", 1);
    node.until("held back", REASON, "CrashLoopBackOff").await;
    // Ten seconds, which are now two hours away.
    let began = tokio::time::Instant::now();
    node.runtime.set_clock(-7200);
    node.until("restarted all the same", restarts, 2).await;
    assert!(began.elapsed().as_secs() <= 61, "{:?}", began.elapsed());
    let state = "/status/containerStatuses/0/state/running";
    node.api.until(POD, "running", |pod| pod.is_some_and(|p| p.pointer(state).is_some())).await;
    // The new container is older than the ones before it, by the clock; it counts all the same.
    tokio::time::sleep(std::time::Duration::from_mins(3)).await;
    assert_eq!(node.api.get(POD).unwrap().pointer(restarts), Some(&json!(2)));
    // After a night's sleep the clock is hours ahead.
    node.runtime.set_clock(8 * 3600);
    tokio::time::sleep(std::time::Duration::from_mins(3)).await;
    let pod = node.api.get(POD).unwrap();
    assert_eq!(pod.pointer(restarts), Some(&json!(2)));
    assert_eq!(pod["status"]["phase"], "Running");
    node.delete(30);
    node.gone().await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_stays_ended() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["restartPolicy"] = "Never".into();
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    node.runtime.exit("a", 3);
    let pod = node.until("failed", "/status/phase", "Failed").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Error");
    node.called(&["run-sandbox", "create a", "start a", "stop-sandbox"]).await;
    // Its container stays, for its log, until the pod is deleted.
    assert_eq!(node.runtime.world.lock().unwrap().containers.len(), 1);
    node.delete(30);
    node.gone().await;
    assert!(node.runtime.world.lock().unwrap().containers.is_empty());
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rule_restarts_all_containers() {
    let node = Node::new();
    let kubelet = node.start();
    let rule =
        json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}});
    node.submit(json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
        "initContainers": [{"name": "i", "image": "busybox", "imagePullPolicy": "IfNotPresent"}],
        "containers": [{"name": "a", "image": "busybox", "imagePullPolicy": "IfNotPresent",
                "lifecycle": {"preStop": {"exec": {"command": ["never"]}}}},
            {"name": "w", "image": "busybox", "imagePullPolicy": "IfNotPresent", "restartPolicy": "Never",
                "restartPolicyRules": [rule]}]}));
    let first = ["run-sandbox", "create i", "start i"];
    let rest = ["create a", "start a", "create w", "start w"];
    node.called(&first).await;
    node.runtime.exit("i", 0);
    let mut calls = [&first[..], &rest].concat();
    node.called(&calls).await;
    node.until("running", "/status/phase", "Running").await;
    node.runtime.exit("w", 88);
    calls.extend(["stop a 0", "create i", "start i"]);
    node.called(&calls).await;
    let pod = node.until("begun anew", "/status/phase", "Pending").await;
    let status = |list: &str, index: usize| pod["status"][list][index].clone();
    let of_a = status("containerStatuses", 0);
    assert_eq!(of_a["state"]["waiting"]["reason"], "PodInitializing", "{of_a}");
    assert_eq!(
        (&of_a["restartCount"], of_a["lastState"]["terminated"].is_object()),
        (&json!(1), true)
    );
    assert_eq!(status("containerStatuses", 1)["lastState"]["terminated"]["exitCode"], 88);
    node.runtime.exit("i", 0);
    calls.extend(rest);
    node.called(&calls).await;
    let pod = node.until("running again", "/status/containerStatuses/1/restartCount", 1).await;
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|c| c["type"] == "AllContainersRestarting").unwrap();
    assert_eq!(told["status"], "False");
    // The next time it has to wait.
    node.until("running", "/status/phase", "Running").await;
    let began = tokio::time::Instant::now();
    node.runtime.exit("w", 88);
    calls.extend(["stop a 0", "create i", "start i"]);
    node.called(&calls).await;
    assert!(began.elapsed().as_secs() >= 10, "{:?}", began.elapsed());
    // Another code is no reason.
    node.runtime.exit("i", 0);
    calls.extend(rest);
    node.called(&calls).await;
    node.runtime.exit("w", 1);
    node.runtime.exit("a", 0);
    node.until("failed", "/status/phase", "Failed").await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_pulled_is_tried_again() {
    let node = Node::new();
    node.runtime.world.lock().unwrap().pull_error = Some("manifest unknown".into());
    let kubelet = node.start();
    node.submit(json!({"containers": [{"name": "a", "image": "reg.example/x", "imagePullPolicy": "Always"}]}));
    let pod = node.until("first failure", REASON, "ErrImagePull").await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "manifest unknown"
    );
    let pod = node.until("held back", REASON, "ImagePullBackOff").await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"],
        "Back-off pulling image \"reg.example/x\": ErrImagePull: manifest unknown"
    );
    node.runtime.world.lock().unwrap().pull_error = None;
    node.until("running", "/status/phase", "Running").await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn credentials_come_from_the_pods_secrets() {
    let node = Node::new();
    let auth = json!({"auths": {"reg.example": {"username": "me", "password": "x"}}}).to_string();
    let data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, auth);
    node.api.put(
        "/api/v1/namespaces/ns/secrets/s",
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "ns"},
            "type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": data}}),
    );
    let kubelet = node.start();
    node.submit(json!({"imagePullSecrets": [{"name": "s"}], "containers": [{"name": "a", "image": "reg.example/x"}]}));
    node.until("running", "/status/phase", "Running").await;
    assert!(node.runtime.calls().contains(&"pull reg.example/x:latest me".to_owned()));
    // The image is there; one who cannot show that he could pull it has to.
    let other = |name: &str, secrets: Value| {
        let metadata = json!({"name": name, "namespace": "ns", "uid": name});
        let spec = json!({"nodeName": "n", "imagePullSecrets": secrets, "containers": [
            {"name": "a", "image": "reg.example/x", "imagePullPolicy": "IfNotPresent"}]});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
        node.api.put(&format!("/api/v1/namespaces/ns/pods/{name}"), pod);
    };
    let pulls = || node.runtime.calls().iter().filter(|c| c.starts_with("pull")).count();
    other("friend", json!([{"name": "s"}]));
    node.until_at("/api/v1/namespaces/ns/pods/friend", "running", "/status/phase", "Running").await;
    assert_eq!(pulls(), 1);
    other("stranger", json!([]));
    node.until_at("/api/v1/namespaces/ns/pods/stranger", "running", "/status/phase", "Running")
        .await;
    assert_eq!(
        node.runtime.calls().iter().filter(|c| *c == "pull reg.example/x:latest").count(),
        1
    );
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_long_pull_tells_how_far_it_is() {
    let node = Node::new();
    node.runtime.world.lock().unwrap().pull_duration = std::time::Duration::from_secs(25);
    let kubelet = node.start();
    node.submit(json!({"containers": [{"name": "a", "image": "reg.example/x"}]}));
    node.until("running", "/status/phase", "Running").await;
    kubelet.stop().await;
    let events = node.api.events();
    let far = "Pulling Pulling image \"reg.example/x\": 12 of 30 MB";
    assert!(events.iter().any(|event| event == far), "{events:?}");
    let done = "Pulled Successfully pulled image \"reg.example/x\" in 25s (25s including waiting)";
    assert!(events.iter().any(|event| event.starts_with(done)), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_container_waits_for_its_config_map() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["containers"][0]["env"] =
        json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]);
    node.submit(spec);
    let pod = node.until("refused", REASON, "CreateContainerConfigError").await;
    let message = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(message, "configmap \"m\" not found");
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "ns"},
        "data": {"k": "v"}});
    node.api.put("/api/v1/namespaces/ns/configmaps/m", map);
    node.until("running", "/status/phase", "Running").await;
    {
        let world = node.runtime.world.lock().unwrap();
        assert!(world.configs["a"].envs.iter().any(|e| e.key == "K" && e.value == "v"));
    }
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_mounted_config_map_is_kept_current() {
    let node = Node::new();
    let path = "/api/v1/namespaces/ns/configmaps/m";
    let map = |value: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "namespace": "ns"}, "data": {"k": value}})
    };
    node.api.put(path, map("one"));
    let kubelet = node.start();
    let mut spec = busybox();
    spec["volumes"] = json!([{"name": "v", "configMap": {"name": "m"}}]);
    spec["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    let file = node.dir.path().join("root/pods/u1/volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    node.api.put(path, map("two"));
    let wait = async {
        while std::fs::read_to_string(&file).unwrap() != "two" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_mins(15), wait)
        .await
        .expect("the file is updated");
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn init_containers_then_regular_ones() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["initContainers"] = json!([{"name": "i", "image": "busybox"}]);
    node.submit(spec);
    node.until("initializing", REASON, "PodInitializing").await;
    node.called(&["run-sandbox", "create i", "start i"]).await;
    node.runtime.exit("i", 0);
    node.until("running", "/status/phase", "Running").await;
    assert_eq!(node.runtime.running(), ["a"]);
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn sidecars_end_last_and_hooks_are_run() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["initContainers"] = json!([{"name": "s", "image": "busybox", "restartPolicy": "Always"}]);
    spec["containers"][0]["lifecycle"] = json!({
        "postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["bye"]}}});
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    node.delete(30);
    node.gone().await;
    assert_eq!(
        node.runtime.calls(),
        [
            "run-sandbox",
            "create s",
            "start s",
            "create a",
            "start a",
            "exec hello",
            "exec bye",
            "stop a 30",
            "stop s 30",
            "stop-sandbox"
        ]
    );
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn sidecars_are_not_needed_after_the_others() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["restartPolicy"] = "Never".into();
    let sidecar = |name| json!({"name": name, "image": "busybox", "restartPolicy": "Always"});
    spec["initContainers"] = json!([sidecar("s"), sidecar("t")]);
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    node.runtime.exit("a", 0);
    let pod = node.until("over", "/status/phase", "Succeeded").await;
    let sidecar = &pod["status"]["initContainerStatuses"][1];
    assert_eq!(sidecar["restartCount"], 0);
    assert_eq!(sidecar["state"]["terminated"]["exitCode"], 143);
    let started =
        ["run-sandbox", "create s", "start s", "create t", "start t", "create a", "start a"];
    node.called(&[&started[..], &["stop t 30", "stop s 30", "stop-sandbox"]].concat()).await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_has_its_time_whatever_wakes_the_worker() {
    let node = Node::new();
    let kubelet = node.start();
    // The worker looks again at least each time the runtime is listed.
    node.runtime.world.lock().unwrap().exec_duration = std::time::Duration::from_secs(100);
    let mut spec = busybox();
    spec["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["bye"]}}});
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    node.delete(300);
    node.gone().await;
    let calls = node.runtime.calls();
    assert_eq!(calls[3..], ["exec bye", "stop a 200", "stop-sandbox"]);
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_probe_restarts() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["check"]}, "periodSeconds": 5, "failureThreshold": 2});
    spec["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 80}});
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    node.runtime.world.lock().unwrap().exec_exit_code = 1;
    node.until("restarted", "/status/containerStatuses/0/restartCount", 1).await;
    let pod = node.api.get(POD).unwrap();
    assert_eq!(pod["status"]["containerStatuses"][0]["ready"], false);
    kubelet.stop().await;
    let events = node.api.events();
    for expected in [
        "Killing Container a failed liveness probe, will be restarted",
        "Unhealthy Readiness probe failed: dial tcp 10.42.0.9:80: connect: connection refused",
    ] {
        assert!(events.iter().any(|e| e == expected), "{expected} is not in {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_pod() {
    let node = Node::new();
    let kubelet = node.start();
    let mut spec = busybox();
    spec["activeDeadlineSeconds"] = 20.into();
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    let pod = node.until("ended", "/status/reason", "DeadlineExceeded").await;
    assert_eq!(pod["status"]["phase"], "Failed");
    node.called(&["run-sandbox", "create a", "start a", "stop a 30", "stop-sandbox"]).await;
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_may_not_run_twice_is_not_run_twice() {
    let node = Node::new();
    let mut spec = busybox();
    spec["restartPolicy"] = "Never".into();
    node.submit(spec);
    let mut pod = node.api.get(POD).unwrap();
    pod["status"] = json!({"phase": "Running", "containerStatuses": [{
        "name": "a", "image": "busybox", "imageID": "", "ready": true, "restartCount": 0,
        "containerID": "rootlet://gone", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]});
    node.api.put(POD, pod);
    let kubelet = node.start();
    let pod = node.until("failed", "/status/phase", "Failed").await;
    assert_eq!(pod["status"]["reason"], "Terminated");
    assert!(node.runtime.calls().is_empty());
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_running_container_is_given_other_limits() {
    let node = Node::new();
    let kubelet = node.start();
    let resources = |cpu: &str| json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu}});
    let mut spec = busybox();
    spec["containers"][0]["resources"] = resources("100m");
    node.submit(spec);
    node.until("running", "/status/phase", "Running").await;
    let mut pod = node.api.get(POD).unwrap();
    pod["spec"]["containers"][0]["resources"] = resources("200m");
    node.api.put(POD, pod);
    let limit = "/status/containerStatuses/0/resources/limits/cpu";
    let pod = node.until("resized", limit, "200m").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "200m");
    assert_eq!(node.runtime.calls(), ["run-sandbox", "create a", "start a", "update a"]);
    let resizes = |pod: Option<&Value>| {
        let conditions = pod?["status"]["conditions"].as_array()?.clone();
        Some(conditions.iter().any(|c| c["type"].as_str().unwrap().starts_with("PodResize")))
    };
    node.api.until(POD, "nothing is going on", |pod| resizes(pod) == Some(false)).await;
    kubelet.stop().await;
    assert!(node.api.events().iter().any(|e| e.starts_with("ResizeCompleted ")));
}

#[tokio::test(start_paused = true)]
async fn a_static_pod_runs_and_has_a_mirror() {
    let mut node = Node::new();
    node.static_pods = true;
    let folder = node.dir.path().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    node.api.put(
        "/api/v1/nodes/n",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}),
    );
    let manifest = |image: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "ns"}, "spec": {
            "containers": [{"name": "a", "image": image, "imagePullPolicy": "IfNotPresent"}]}})
        .to_string()
    };
    std::fs::write(folder.join("web.yaml"), manifest("busybox")).unwrap();
    let kubelet = node.start();
    let mirror = "/api/v1/namespaces/ns/pods/web-n";
    let phase = |pod: Option<&Value>| pod.map(|p| p["status"]["phase"].clone());
    let runs = |pod: Option<&Value>| phase(pod) == Some("Running".into());
    let pod = node.api.until(mirror, "the mirror runs", runs).await.unwrap();
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert!(pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string());
    // Somebody deletes the picture: the pod runs on, and is shown again.
    node.api.remove(mirror);
    node.api.until(mirror, "the mirror is back", runs).await;
    let started = ["run-sandbox", "create a", "start a"];
    assert_eq!(node.runtime.calls(), started);
    // Another one begins when the first has ended, and is what the mirror shows then.
    let next = manifest("busybox").replace("\"name\":\"a\"", "\"name\":\"a\",\"command\":[\"x\"]");
    std::fs::write(folder.join("web.yaml"), next).unwrap();
    let shows = |pod: Option<&Value>| {
        pod.is_some_and(|p| !p["spec"]["containers"][0]["command"].is_null())
            && phase(pod) == Some("Running".into())
    };
    node.api.until(mirror, "the mirror shows the other", shows).await;
    let replaced = [&started[..], &["stop a 30", "stop-sandbox"], &started].concat();
    assert_eq!(node.runtime.calls(), replaced);
    std::fs::remove_file(folder.join("web.yaml")).unwrap();
    node.api.until(mirror, "the mirror is gone", |pod| pod.is_none()).await;
    assert_eq!(node.runtime.calls(), [&replaced[..], &["stop a 30", "stop-sandbox"]].concat());
    kubelet.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_may_ask_for_a_label_that_was_added_later() {
    for (wanted, phase) in [("fast", "Running"), ("slow", "Failed")] {
        let node = Node::new();
        let kubelet = node.start();
        let labels = json!({"metadata": {"name": "n", "labels": {"disk": "fast"}}});
        node.api.put("/api/v1/nodes/n", labels);
        let mut spec = busybox();
        spec["nodeSelector"] = json!({"disk": wanted});
        node.submit(spec);
        let pod = node.until(phase, "/status/phase", phase).await;
        let reason = pod["status"].get("reason").and_then(Value::as_str);
        assert_eq!(reason, (phase == "Failed").then_some("NodeAffinity"));
        kubelet.stop().await;
    }
}
