//! Workloads, as kubectl's user sees them.

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually, place, run_with};

/// A pod template with one busybox container that runs `script`.
fn template(app: &str, restart: &str, script: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {
        "restartPolicy": restart, "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": BUSYBOX, "command": ["/bin/sh", "-c", script]}]}})
}

/// Stays until it is told to go, and goes at once.
const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";

fn wait(cluster: &Cluster, what: &str, words: &[&str], check: impl Fn(&Value) -> bool) -> Value {
    eventually(what, || {
        let found = cluster.get(words)?;
        if check(&found) { Ok(found) } else { Err(found["status"].to_string()) }
    })
}

fn count(cluster: &Cluster, words: &[&str]) -> usize {
    cluster.get(words).map_or(0, |list| list["items"].as_array().map_or(0, Vec::len))
}

#[test]
fn a_deployment_is_rolled_out_undone_and_collected() {
    let cluster = Cluster::ephemeral();
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": template("web", "Always", STAY)}});
    cluster.apply(&deployment.to_string());
    let status = ["rollout", "status", "deployment/web", "--timeout=60s"];
    assert!(cluster.kubectl_ok(&status).contains("successfully rolled out"));
    cluster.kubectl_ok(&["set", "env", "deployment/web", "COLOUR=green"]);
    cluster.kubectl_ok(&status);
    let history = cluster.kubectl_ok(&["rollout", "history", "deployment/web"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    cluster.kubectl_ok(&["rollout", "undo", "deployment/web"]);
    cluster.kubectl_ok(&status);
    let now = cluster.get(&["deployment", "web"]).expect("it is there");
    assert_eq!(now["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    assert!(now["spec"]["template"]["spec"]["containers"][0]["env"].is_null(), "{now}");

    cluster.kubectl_ok(&["rollout", "pause", "deployment/web"]);
    cluster.kubectl_ok(&["scale", "deployment/web", "--replicas=3"]);
    wait(&cluster, "the third pod", &["deployment", "web"], |d| d["status"]["readyReplicas"] == 3);
    cluster.kubectl_ok(&["rollout", "resume", "deployment/web"]);
    cluster.kubectl_ok(&["rollout", "restart", "deployment/web"]);
    cluster.kubectl_ok(&status);

    // Orphans stay, and what has no owner any more is adopted again.
    cluster.kubectl_ok(&["delete", "deployment", "web", "--cascade=orphan"]);
    eventually("the last old pods' end", || match count(&cluster, &["pods", "-l", "app=web"]) {
        3 => Ok(()),
        other => Err(format!("{other} pods")),
    });
    cluster.apply(&deployment.to_string());
    cluster.kubectl_ok(&status);
    cluster.kubectl_ok(&["delete", "deployment", "web", "--cascade=foreground"]);
    assert_eq!(count(&cluster, &["replicasets,pods", "-l", "app=web"]), 0);
}

#[test]
fn a_service_with_shared_libraries_runs_as_its_own_user() {
    let cluster = Cluster::ephemeral();
    let archive = place().join("redis.tar");
    cluster.rootlet_ok(&["image", "load", archive.to_str().expect("paths are UTF-8")]);
    let image = "localhost/redis:test";
    let labels = json!({"app": "redis"});
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "redis"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "containers": [{"name": "redis", "image": image,
                "readinessProbe": {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "securityContext": {"runAsNonRoot": true, "runAsUser": 999, "fsGroup": 999},
            "volumes": [{"name": "data", "emptyDir": {}}]}}},
    });
    cluster.apply(&deployment.to_string());
    cluster.kubectl_ok(&["expose", "deployment", "redis", "--port=6379"]);
    cluster.kubectl_ok(&["rollout", "status", "deployment", "redis", "--timeout=60s"]);
    // The client waits for its question, so it cannot end before kubectl has attached to it.
    let ask = |name: &str, question: &str| {
        let image = format!("--image={image}");
        let words = ["run", name, "-i", "--rm", "--quiet", "--restart=Never", &image, "--command"];
        let client = ["--", "redis-cli", "-h", "redis.default.svc.cluster.local"];
        let mut command = cluster.kubectl_command();
        let answer = run_with(command.args([&words[..], &client].concat()), question.as_bytes());
        assert_eq!(answer.code, Some(0), "{question}: {}{}", answer.out, answer.err);
        answer.out
    };
    assert_eq!(ask("one", "set greeting hello\n"), "OK\n");
    assert_eq!(ask("two", "get greeting\n"), "hello\n");
    assert_eq!(ask("three", "save\n"), "OK\n");
    let own =
        cluster.kubectl_ok(&["exec", "deploy/redis", "--", "redis-cli", "config", "get", "dir"]);
    assert_eq!(own, "dir\n/data\n");
}

#[test]
fn jobs_count_what_succeeded() {
    let cluster = Cluster::ephemeral();
    let job = |name: &str, more: Value, script: &str| {
        let mut job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
            "spec": {"template": template(name, "Never", script)}});
        for (key, value) in more.as_object().into_iter().flatten() {
            job["spec"][key] = value.clone();
        }
        job.to_string()
    };
    let indexed = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"});
    cluster.apply(&job("indexed", indexed, "echo $JOB_COMPLETION_INDEX on $(hostname)"));
    cluster.apply(&job("failing", json!({"backoffLimit": 0}), "exit 3"));
    let policy = json!({"backoffLimit": 6, "podFailurePolicy": {"rules": [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}});
    cluster.apply(&job("hopeless", policy, "exit 42"));
    cluster.kubectl_ok(&["wait", "--for=condition=complete", "job/indexed", "--timeout=60s"]);
    cluster.kubectl_ok(&[
        "wait",
        "--for=condition=failed",
        "job/failing",
        "job/hopeless",
        "--timeout=60s",
    ]);
    let done = cluster.get(&["job", "indexed"]).expect("it is there");
    assert_eq!(done["status"]["completedIndexes"], "0-2");
    assert_eq!(done["status"]["succeeded"], 3);
    let logs = cluster.kubectl_ok(&["logs", "-l", "batch.kubernetes.io/job-completion-index=2"]);
    assert_eq!(logs, "2 on indexed-2\n");
    let reason = |name: &str| {
        let job = cluster.get(&["job", name]).expect("it is there");
        let conditions = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let failed = conditions.iter().find(|c| c["type"] == "Failed").cloned().unwrap_or_default();
        failed["reason"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(reason("failing"), "BackoffLimitExceeded");
    assert_eq!(reason("hopeless"), "PodFailurePolicy");
    assert_eq!(cluster.event("indexed", "Completed"), "Job completed");

    let cron = json!({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "nightly"},
        "spec": {"schedule": "0 3 * * *", "timeZone": "Etc/UTC", "jobTemplate": {"spec": {
            "ttlSecondsAfterFinished": 0, "template": template("nightly", "Never", "true")}}}});
    cluster.apply(&cron.to_string());
    cluster.kubectl_ok(&["create", "job", "manual", "--from=cronjob/nightly"]);
    // It ends, and then goes by itself.
    cluster.kubectl_ok(&["wait", "--for=delete", "job/manual", "--timeout=60s"]);
    eventually("the pods' end", || match count(&cluster, &["pods", "-l", "app=nightly"]) {
        0 => Ok(()),
        some => Err(format!("{some} pods")),
    });
}

#[test]
fn pods_that_a_job_leaves_behind_go_when_they_are_asked() {
    let cluster = Cluster::ephemeral();
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "left"},
        "spec": {"template": template("left", "Never", "sleep 1000")}});
    cluster.apply(&job.to_string());
    eventually("its pod", || match count(&cluster, &["pods", "-l", "app=left"]) {
        1 => Ok(()),
        some => Err(format!("{some} pods")),
    });
    cluster.kubectl_ok(&["delete", "job", "left", "--cascade=orphan"]);
    let pods = cluster.get(&["pods", "-l", "app=left"]).expect("they are there");
    assert_eq!(pods["items"].as_array().map(Vec::len), Some(1), "{pods}");
    cluster.kubectl_ok(&["delete", "pods", "-l", "app=left", "--grace-period=1", "--timeout=60s"]);
}

#[test]
fn daemons_and_stateful_pods_are_updated_and_keep_their_data() {
    let cluster = Cluster::ephemeral();
    let daemons = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", "Always", STAY)}});
    cluster.apply(&daemons.to_string());
    let stateful = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
        "spec": {"replicas": 2, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete", "whenScaled": "Retain"},
            "template": template("db", "Always", &format!("hostname >> /data/names; {STAY}")),
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}]}});
    let mut stateful = stateful;
    stateful["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data"}]);
    cluster.apply(&stateful.to_string());
    let rolled = |kind: &str| {
        cluster.kubectl_ok(&["rollout", "status", kind, "--timeout=60s"]);
    };
    rolled("daemonset/agent");
    rolled("statefulset/db");
    let claims = cluster.get(&["pvc", "-l", "app=db"]).expect("claims");
    let phases: Vec<&Value> =
        claims["items"].as_array().into_iter().flatten().map(|c| &c["status"]["phase"]).collect();
    assert_eq!(phases, ["Bound", "Bound"]);
    for kind in ["daemonset/agent", "statefulset/db"] {
        cluster.kubectl_ok(&["set", "env", kind, "COLOUR=green"]);
        rolled(kind);
        let history = cluster.kubectl_ok(&["rollout", "history", kind]);
        assert!(history.contains("\n2 "), "{history}");
        cluster.kubectl_ok(&["rollout", "undo", kind]);
        rolled(kind);
    }
    // Each of the three generations of db-0 wrote to the same volume.
    assert_eq!(
        cluster.kubectl_ok(&["exec", "db-0", "--", "cat", "/data/names"]),
        "db-0\n".repeat(3)
    );
    cluster.kubectl_ok(&["delete", "statefulset", "db"]);
    eventually("the claims' and volumes' end", || {
        match count(&cluster, &["pvc"]) + count(&cluster, &["pv"]) {
            0 => Ok(()),
            some => Err(format!("{some} are left")),
        }
    });
}

#[test]
fn budgets_quotas_and_autoscalers_are_kept() {
    let cluster = Cluster::ephemeral();
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": template("web", "Always", STAY)}});
    cluster.apply(&deployment.to_string());
    cluster.kubectl_ok(&["autoscale", "deployment", "web", "--min=2", "--max=3"]);
    wait(&cluster, "two pods", &["deployment", "web"], |d| d["status"]["readyReplicas"] == 2);
    let message = cluster.event("web", "SuccessfulRescale");
    assert_eq!(message, "New size: 2; reason: Current number of replicas below Spec.MinReplicas");
    cluster.kubectl_ok(&[
        "create",
        "poddisruptionbudget",
        "web",
        "--selector=app=web",
        "--min-available=2",
    ]);
    cluster.kubectl_ok(&["create", "quota", "small", "--hard=pods=5,count/deployments.apps=3"]);
    wait(&cluster, "the budget", &["pdb", "web"], |budget| {
        budget["status"]["currentHealthy"] == 2 && budget["status"]["disruptionsAllowed"] == 0
    });
    let used =
        wait(&cluster, "the quota", &["quota", "small"], |q| q["status"]["used"]["pods"] == "2");
    assert_eq!(used["status"]["used"]["count/deployments.apps"], "1");
    let nodes = cluster.get(&["nodes"]).expect("nodes");
    let node = nodes["items"][0]["metadata"]["name"].as_str().expect("a name").to_owned();
    let drain = cluster.kubectl(&["drain", &node, "--timeout=1s", "--ignore-daemonsets"]);
    assert!(drain.err.contains("violate the pod's disruption budget"), "{}", drain.err);
    cluster.kubectl_ok(&["uncordon", &node]);
    // What does not tolerate NoExecute leaves at once.
    cluster.kubectl_ok(&["delete", "deployment,pdb,hpa", "web"]);
    cluster.apply(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "guest"},
        "spec": template("guest", "Always", STAY)["spec"]})
        .to_string(),
    );
    cluster.pod_ready("guest");
    cluster.kubectl_ok(&["taint", "node", &node, "away=now:NoExecute"]);
    cluster.kubectl_ok(&["wait", "--for=delete", "pod/guest", "--timeout=30s"]);
}

#[test]
fn services_get_addresses_of_every_range() {
    let cluster = Cluster::ephemeral();
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "more"}, "spec": {"cidrs": ["203.0.113.0/24"]}});
    cluster.apply(&range.to_string());
    cluster.kubectl_ok(&["wait", "--for=condition=Ready", "servicecidr/more", "--timeout=30s"]);
    let serve = "echo here > /tmp/index.html; exec httpd -f -p 8080 -h /tmp";
    let mut pod = template("far", "Always", serve);
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "far".into();
    cluster.apply(&pod.to_string());
    cluster.pod_ready("far");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "far"},
        "spec": {"clusterIP": "203.0.113.10", "selector": {"app": "far"},
            "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.apply(&service.to_string());
    let parent = "jsonpath={.spec.parentRef.namespace}/{.spec.parentRef.name}";
    let owner = cluster.kubectl_ok(&["get", "ipaddress", "203.0.113.10", "-o", parent]);
    assert_eq!(owner, "default/far");
    eventually("an answer at the address", || {
        let ask = "printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 2 203.0.113.10 80";
        let answer = cluster.kubectl(&["exec", "far", "--", "sh", "-c", ask]);
        if answer.out.ends_with("here\n") || answer.out.ends_with("here") {
            return Ok(());
        }
        Err(format!("{answer:?}"))
    });
    // The range stays while the address is in use.
    cluster.kubectl_ok(&["delete", "servicecidr", "more", "--wait=false"]);
    let held = wait(&cluster, "what holds the range", &["servicecidr", "more"], |range| {
        range["status"]["conditions"][0]["reason"] == "Terminating"
    });
    assert_eq!(
        held["status"]["conditions"][0]["message"],
        "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR"
    );
    cluster.kubectl_ok(&["delete", "service", "far"]);
    let gone = cluster.kubectl(&["get", "ipaddress", "203.0.113.10"]);
    assert!(gone.err.contains("not found"), "{gone:?}");
    cluster.kubectl_ok(&["wait", "--for=delete", "servicecidr/more", "--timeout=60s"]);
}

#[test]
fn a_secret_holds_a_token_of_its_account() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["create", "serviceaccount", "robot"]);
    cluster.kubectl_ok(&[
        "create",
        "clusterrolebinding",
        "robot",
        "--clusterrole=view",
        "--serviceaccount=default:robot",
    ]);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "robot",
        "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    cluster.apply(&secret.to_string());
    let token = eventually("the token", || {
        let secret = cluster.get(&["secret", "robot"])?;
        let token = secret["data"]["token"].as_str().ok_or("there is none")?.to_owned();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, token);
        bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).map_err(|e| e.to_string())
    });
    let as_robot =
        ["--token", &token, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"];
    // The administrator's certificate would go before the token.
    let bare = cluster.path("bare");
    std::fs::write(&bare, "").expect("it can be written");
    let server = cluster.kubectl_ok(&[
        "config",
        "view",
        "--minify",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ]);
    let who = crate::harness::run(
        cluster
            .command("kubectl")
            .arg("--kubeconfig")
            .arg(&bare)
            .args(["--server", server.trim(), "--insecure-skip-tls-verify"])
            .args(as_robot),
    );
    assert_eq!(who.out, "system:serviceaccount:default:robot", "{}", who.err);
    cluster.kubectl_ok(&["delete", "serviceaccount", "robot"]);
    eventually("the secret's end", || match cluster.get(&["secret", "robot"]) {
        Err(gone) if gone.contains("not found") => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn a_namespace_ends_with_its_pods_first() {
    let cluster = Cluster::ephemeral();
    let mut held = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "held",
        "namespace": "ending", "finalizers": ["example.com/hold"]}});
    held["spec"] = template("held", "Never", STAY)["spec"].take();
    cluster.kubectl_ok(&["create", "namespace", "ending"]);
    cluster.kubectl_ok(&["create", "configmap", "kept", "-n", "ending"]);
    cluster.apply(&held.to_string());
    wait(&cluster, "the pod", &["pod", "held", "-n", "ending"], |p| {
        p["status"]["phase"] == "Running"
    });
    cluster.kubectl_ok(&["delete", "namespace", "ending", "--wait=false"]);
    let has = |namespace: &Value, kind: &str, reason: &str| {
        let told = namespace["status"]["conditions"].as_array();
        told.is_some_and(|told| told.iter().any(|c| c["type"] == kind && c["reason"] == reason))
    };
    wait(&cluster, "what the deletion waits for", &["namespace", "ending"], |namespace| {
        has(namespace, "NamespaceDeletionContentFailure", "ContentDeleted")
            && has(namespace, "NamespaceContentRemaining", "SomeResourcesRemain")
            && has(namespace, "NamespaceFinalizersRemaining", "SomeFinalizersRemain")
    });
    cluster.kubectl_ok(&["get", "configmap", "kept", "-n", "ending"]);
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    cluster.kubectl_ok(&["patch", "pod", "held", "-n", "ending", "--type=merge", "-p", patch]);
    cluster.kubectl_ok(&["wait", "--for=delete", "namespace/ending", "--timeout=30s"]);

    // What controllers write, their roles let them write; a namespace that ends takes nothing new.
    let metrics = cluster.kubectl_ok(&["get", "--raw", "/metrics"]);
    let refused = |line: &&str| {
        line.starts_with("apiserver_request_total")
            && line.contains(r#"code="403""#)
            && !line.contains(r#"verb="POST""#)
    };
    assert_eq!(metrics.lines().filter(refused).collect::<Vec<_>>(), Vec::<&str>::new());
}
