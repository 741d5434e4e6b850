//! The life of containers in a pod: order, hooks, probes, restarts, what they see of each other and of their pod.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, container, eventually, pod};

/// Ends at once when it is told to.
const PATIENT: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
/// Does not hear that it is told to end.
const DEAF: &str = "exec sleep 1000";

/// Pods that write what happens to them into a folder of the test's.
struct Notes {
    folder: std::path::PathBuf,
}

impl Notes {
    fn new(cluster: &Cluster) -> Self {
        let folder = cluster.path("notes");
        std::fs::create_dir(&folder).expect("a folder can be made");
        Self { folder }
    }

    /// A container with the folder at `/n`.
    fn container(&self, name: &str, script: &str, more: Value) -> Value {
        let mut of = container(name, script, &more);
        of["volumeMounts"] = json!([{"name": "notes", "mountPath": "/n"}]);
        of
    }

    fn pod(&self, name: &str, mut spec: Value) -> Value {
        let path = self.folder.to_str().expect("paths are UTF-8");
        spec["volumes"] = json!([{"name": "notes", "hostPath": {"path": path}}]);
        pod(name, &spec)
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(Path::new(&self.folder).join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until the pod has written a line.
    fn wait(&self, name: &str, line: &str) {
        eventually(&format!("{line} of {name}"), || {
            let lines = self.lines(name);
            if lines.iter().any(|l| l == line) { Ok(()) } else { Err(lines.join("\n")) }
        });
    }
}

fn restarts(pod: &Value, list: &str, index: usize) -> i64 {
    pod["status"][list][index]["restartCount"].as_i64().unwrap_or(-1)
}

#[test]
fn sidecars_begin_before_the_others_and_end_after_them() {
    let cluster = Cluster::ephemeral();
    let notes = Notes::new(&cluster);
    // Writes its name, says that it has started, and writes when it ends.
    let side = |name: &str, pod: &str| {
        let script = format!(
            "trap 'echo -{name} >>/n/{pod}; exit 5' TERM; sleep 1; echo {name} >>/n/{pod}; touch /tmp/up; while :; do sleep 0.1; done"
        );
        let probe = json!({"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1,
            "failureThreshold": 60});
        notes.container(name, &script, json!({"restartPolicy": "Always", "startupProbe": probe}))
    };
    let of = |pod: &str, main: &str, policy: &str| {
        let init = notes.container("init", &format!("echo init >>/n/{pod}"), json!({}));
        let main =
            format!("trap 'echo -main >>/n/{pod}; exit 0' TERM; echo main >>/n/{pod}; {main}");
        let main = notes.container("main", &main, json!({}));
        notes.pod(
            pod,
            json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 30,
            "initContainers": [side("one", pod), init, side("two", pod)], "containers": [main]}),
        )
    };
    cluster.apply_all(&[
        of("ends", "sleep 1", "Never"),
        of("stays", "while :; do sleep 0.1; done", "Always"),
    ]);
    let begun = ["one", "init", "two", "main"];
    let over = cluster.pod_phase("ends", "Succeeded");
    for (index, at) in [(0, "one"), (2, "two")] {
        let status = &over["status"]["initContainerStatuses"][index];
        assert_eq!(status["state"]["terminated"]["exitCode"], 5, "{at}: {status}");
        assert_eq!(status["restartCount"], 0, "{at}");
    }
    assert_eq!(notes.lines("ends"), [&begun[..], &["-two", "-one"]].concat());
    let ready = cluster.pod_ready("stays");
    assert_eq!(ready["status"]["initContainerStatuses"][0]["started"], true);
    // A sidecar that ends is started again, whatever its code.
    cluster.kubectl_ok(&["exec", "stays", "-c", "one", "--", "kill", "1"]);
    cluster.pod("stays", "restarted", |pod| restarts(pod, "initContainerStatuses", 0) == 1);
    notes.wait("stays", "-one");
    cluster.pod("stays", "up again", |pod| {
        pod["status"]["initContainerStatuses"][0]["started"] == true
    });
    cluster.kubectl_ok(&["delete", "pod", "stays"]);
    let whole = [&begun[..], &["-one", "one", "-main", "-two", "-one"]].concat();
    assert_eq!(notes.lines("stays"), whole);
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    let cluster = Cluster::ephemeral();
    let notes = Notes::new(&cluster);
    let patient = |pod: &str| {
        format!(
            "trap 'echo term >>/n/{pod}; exit 0' TERM; echo main >>/n/{pod}; while :; do sleep 0.1; done"
        )
    };
    let exec = |script: &str| json!({"exec": {"command": ["/bin/sh", "-c", script]}});
    let of = |name: &str, script: &str, hooks: Value| {
        let main = notes.container("main", script, json!({"lifecycle": hooks}));
        notes.pod(name, json!({"terminationGracePeriodSeconds": 20, "containers": [main]}))
    };
    // It answers when it has read what was asked.
    let answers = "mkfifo /tmp/f; exec 3<>/tmp/f; nc -l -p 80 <&3 | while IFS= read -r line; do echo \"$line\" >>/n/http; \
        [ ${#line} -gt 1 ] || printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n' >&3; done";
    let usr1 = "trap 'echo usr1 >>/n/signal; exit 0' USR1; echo main >>/n/signal; while :; do sleep 0.1; done";
    let mut signal = of("signal", usr1, json!({"stopSignal": "SIGUSR1"}));
    signal["spec"]["os"] = json!({"name": "linux"});
    let mut http = of(
        "http",
        answers,
        json!({"preStop": {"httpGet": {"path": "/bye?now", "port": 80,
            "httpHeaders": [{"name": "X-Own", "value": "yes"}]}}}),
    );
    http["spec"]["terminationGracePeriodSeconds"] = 5.into();
    cluster.apply_all(&[
        http,
        of(
            "exec",
            &patient("exec"),
            json!({
            "postStart": exec("until grep main /n/exec; do sleep 0.1; done; echo post >>/n/exec"),
            "preStop": exec("echo pre >>/n/exec")}),
        ),
        of(
            "sleep",
            &patient("sleep"),
            json!({"postStart": {"sleep": {"seconds": 1}},
            "preStop": {"sleep": {"seconds": 3}}}),
        ),
        signal,
        of("bad", DEAF, json!({"postStart": exec("exit 4")})),
        of("tcp", DEAF, json!({"postStart": {"tcpSocket": {"port": 80}}})),
    ]);
    for name in ["exec", "http", "sleep", "signal"] {
        let ready = cluster.pod_ready(name);
        let signal = &ready["status"]["containerStatuses"][0]["stopSignal"];
        assert_eq!(signal, &if name == "signal" { json!("SIGUSR1") } else { Value::Null });
    }
    // Such a handler is none for a hook.
    for name in ["bad", "tcp"] {
        assert_eq!(cluster.event(name, "FailedPostStartHook"), "PostStartHook failed");
        cluster.pod(name, "restarted", |pod| restarts(pod, "containerStatuses", 0) > 0);
    }
    for name in ["main", "post"] {
        notes.wait("exec", name);
    }
    let began = std::time::Instant::now();
    cluster.kubectl_ok(&["delete", "pod", "sleep"]);
    assert!(began.elapsed().as_secs() >= 3, "it was given up early");
    cluster.kubectl_ok(&["delete", "pod", "exec", "http", "signal"]);
    assert_eq!(notes.lines("exec"), ["main", "post", "pre", "term"]);
    assert_eq!(notes.lines("signal"), ["main", "usr1"]);
    let asked = notes.lines("http").join("\n").to_lowercase();
    for part in ["get /bye?now http/1.1", "x-own: yes", "user-agent: kube-lifecycle/1.36"] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }
}

#[test]
fn probes_say_what_is_ready_and_what_begins_anew() {
    let cluster = Cluster::ephemeral();
    let of = |name: &str, script: &str, more: Value| {
        let main = container("main", script, &more);
        pod(name, &json!({"terminationGracePeriodSeconds": 600, "containers": [main]}))
    };
    let exec = |command: &[&str], grace: Value| {
        json!({"exec": {"command": command}, "periodSeconds": 1, "failureThreshold": 1,
            "terminationGracePeriodSeconds": grace})
    };
    let answers = "while :; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\n' | nc -l -p 80; done";
    let soon = json!({"periodSeconds": 1});
    let with = |handler: Value| {
        let mut probe = soon.clone();
        for (key, value) in handler.as_object().into_iter().flatten() {
            probe[key] = value.clone();
        }
        json!({"readinessProbe": probe})
    };
    let http = json!({"path": "/ready", "port": "web", "httpHeaders": [{"name": "X-Own", "value": "yes"}]});
    let mut named = with(json!({"httpGet": http}));
    named["ports"] = json!([{"name": "web", "containerPort": 80}]);
    // The API server is the one that speaks TLS.
    let api = cluster.get(&["service", "kubernetes"]).expect("there is one");
    let tls =
        json!({"scheme": "HTTPS", "host": api["spec"]["clusterIP"], "path": "/livez", "port": 443});
    cluster.apply_all(&[
        of("http", answers, named),
        of("https", DEAF, with(json!({"httpGet": tls}))),
        of("tcp", answers, with(json!({"tcpSocket": {"port": 80}}))),
        of("refused", DEAF, with(json!({"tcpSocket": {"port": 80}}))),
        of("late", DEAF, with(json!({"exec": {"command": ["sleep", "10"]}}))),
        of("toggled", DEAF, with(json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}}))),
        // These end although they do not hear and their pods would wait for ten minutes.
        of("dead", DEAF, json!({"livenessProbe": exec(&["false"], json!(1))})),
        of("unstarted", DEAF, json!({"startupProbe": exec(&["false"], json!(1))})),
        // Nobody looks at its life before it has started.
        of("starting", DEAF, json!({"livenessProbe": exec(&["false"], json!(1)), "startupProbe":
            {"exec": {"command": ["test", "-e", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 600}})),
    ]);
    for name in ["http", "https"] {
        cluster.pod_ready(name);
    }
    let asked = cluster.kubectl_ok(&["logs", "http"]).to_lowercase();
    for part in ["get /ready http/1.1", "x-own: yes", "user-agent: kube-probe/1.36"] {
        assert!(asked.contains(part), "{part} is not in {asked}");
    }
    cluster
        .pod("tcp", "ready at times", |pod| pod["status"]["containerStatuses"][0]["ready"] == true);
    for (name, told) in [
        ("refused", "Readiness probe failed: dial tcp"),
        ("late", "Readiness probe failed: command timed out"),
        ("dead", "Liveness probe failed"),
        ("unstarted", "Startup probe failed"),
    ] {
        let message = cluster.event(name, "Unhealthy");
        assert!(message.starts_with(told), "{name}: {message}");
    }
    for name in ["dead", "unstarted"] {
        let again = cluster.pod(name, "restarted", |pod| restarts(pod, "containerStatuses", 0) > 0);
        let last = &again["status"]["containerStatuses"][0]["lastState"]["terminated"];
        assert_eq!(last["exitCode"], 137, "{name}: {last}");
    }
    let starting = cluster.pod_phase("starting", "Running");
    let status = &starting["status"]["containerStatuses"][0];
    assert_eq!((&status["started"], &status["restartCount"]), (&json!(false), &json!(0)));
    cluster.kubectl_ok(&["exec", "starting", "--", "touch", "/tmp/up"]);
    cluster.pod("starting", "restarted", |pod| restarts(pod, "containerStatuses", 0) > 0);
    let is = |ready: bool| {
        cluster.pod("toggled", &format!("ready: {ready}"), |pod| {
            pod["status"]["containerStatuses"][0]["ready"] == ready
        });
    };
    cluster.kubectl_ok(&["exec", "toggled", "--", "touch", "/tmp/ready"]);
    is(true);
    cluster.kubectl_ok(&["exec", "toggled", "--", "rm", "/tmp/ready"]);
    is(false);
    cluster.kubectl_ok(&["delete", "pods", "--all", "--now"]);
}

#[test]
fn policies_and_rules_say_what_is_restarted() {
    let cluster = Cluster::ephemeral();
    let of = |name: &str, policy: &str, script: &str, more: Value| {
        pod(
            name,
            &json!({"restartPolicy": policy, "containers": [container("main", script, &more)]}),
        )
    };
    let rule = |policy: &str| {
        json!({"restartPolicy": policy, "restartPolicyRules": [{"action": "Restart",
            "exitCodes": {"operator": "In", "values": [42]}}]})
    };
    let twice = "[ -e /v/x ] && exit 0; touch /v/x; exit 1";
    let volume = json!([{"name": "v", "emptyDir": {}}]);
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let mut on_failure = of("on-failure", "OnFailure", twice, mounts);
    on_failure["spec"]["volumes"] = volume;
    let mut deadline = of("deadline", "Always", DEAF, json!({}));
    deadline["spec"]["activeDeadlineSeconds"] = 1.into();
    let mut gated = of("gated", "Always", DEAF, json!({}));
    gated["spec"]["readinessGates"] = json!([{"conditionType": "example.com/gate"}]);
    cluster.apply_all(&[
        of("rule", "Never", "exit 42", rule("Never")),
        of("no-rule", "Never", "exit 1", rule("Never")),
        of("never", "Always", "exit 1", json!({"restartPolicy": "Never"})),
        of("always", "Never", "exit 1", json!({"restartPolicy": "Always"})),
        on_failure,
        deadline,
        gated,
    ]);
    for name in ["rule", "always"] {
        let again = cluster.pod(name, "held back", |pod| {
            restarts(pod, "containerStatuses", 0) > 0
                && pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"]
                    == "CrashLoopBackOff"
        });
        assert_eq!(again["status"]["phase"], "Running", "{name}");
    }
    for name in ["no-rule", "never"] {
        assert_eq!(
            restarts(&cluster.pod_phase(name, "Failed"), "containerStatuses", 0),
            0,
            "{name}"
        );
    }
    let done = cluster.pod_phase("on-failure", "Succeeded");
    assert_eq!(restarts(&done, "containerStatuses", 0), 1);
    assert_eq!(cluster.pod_phase("deadline", "Failed")["status"]["reason"], "DeadlineExceeded");
    let condition = |pod: &Value, name: &str| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == name).unwrap_or_default()
    };
    let gated = cluster.pod("gated", "with ready containers", |pod| {
        condition(pod, "ContainersReady")["status"] == "True"
    });
    assert_eq!(condition(&gated, "Ready")["reason"], "ReadinessGatesNotReady");
    let open = json!({"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}});
    cluster.kubectl_ok(&["patch", "pod", "gated", "--subresource=status", "-p", &open.to_string()]);
    cluster.pod_ready("gated");
}

#[test]
fn ephemeral_containers_join_a_running_pod() {
    let cluster = Cluster::ephemeral();
    let main = container("main", "exec sleep 1234", &json!({}));
    cluster.apply_all(&[pod("target", &json!({"containers": [main]}))]);
    cluster.pod_ready("target");
    cluster.kubectl_ok(&[
        "debug",
        "target",
        "--image",
        BUSYBOX,
        "--image-pull-policy=IfNotPresent",
        "--target=main",
        "--container=look",
        "--profile=general",
        "--",
        "sh",
        "-c",
        "ps; ls /proc/1/root/bin/busybox; exit 3",
    ]);
    let over = cluster.pod("target", "looked at", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["terminated"].is_object()
    });
    let status = &over["status"]["ephemeralContainerStatuses"][0];
    assert_eq!(status["state"]["terminated"]["exitCode"], 3);
    // It is not begun again, and the pod does not mind.
    assert_eq!(status["restartCount"], 0);
    assert_eq!(over["status"]["phase"], "Running");
    let said = cluster.kubectl_ok(&["logs", "target", "-c", "look"]);
    assert!(said.contains("sleep 1234") && said.contains("/proc/1/root/bin/busybox"), "{said}");
    assert_eq!(over["status"]["observedGeneration"], over["metadata"]["generation"]);
}

#[test]
fn a_container_sees_its_pod_as_asked() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["create", "service", "clusterip", "other", "--tcp=80"]);
    let of = |name: &str, script: &str, mut spec: Value, more: Value| {
        spec["restartPolicy"] = "Never".into();
        spec["containers"] = json!([container("main", script, &more)]);
        pod(name, &spec)
    };
    let none = || json!({});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let amount = |name: &str, resource: &str, divisor: &str| json!({"name": name, "valueFrom": {"resourceFieldRef": {"resource": resource, "divisor": divisor}}});
    let told = json!({"resources": {"requests": {"cpu": "250m", "memory": "32Mi"}, "limits": {"cpu": "1500m"}},
        "env": [field("NAME", "metadata.name"), field("SPACE", "metadata.namespace"), field("IP", "status.podIP"),
            field("ACCOUNT", "spec.serviceAccountName"), field("LABEL", "metadata.labels['a']"),
            amount("CPU", "requests.cpu", "1m"), amount("LIMIT", "limits.cpu", "1"),
            amount("MEMORY", "requests.memory", "1Mi"), {"name": "BOTH", "value": "$(NAME)/$(SPACE) $$(NAME) $(NONE)"}],
        "args": ["_", "$(NAME)"]});
    let mut downward = of(
        "downward",
        "echo $NAME $SPACE $ACCOUNT $LABEL $CPU $LIMIT $MEMORY $1; echo $BOTH; ip addr | grep -c \" $IP/\"",
        none(),
        told,
    );
    downward["metadata"]["labels"] = json!({"a": "b"});
    let fqdn = json!({"hostname": "h", "subdomain": "sub", "setHostnameAsFQDN": true});
    let alias = json!([{"ip": "1.2.3.4", "hostnames": ["one", "two"]}]);
    let both = container("other", "exec sleep 4321", &none());
    let mut shared = of(
        "shared",
        "until ps | grep -q 'sleep 432[1]'; do sleep 0.1; done; echo seen; kill -9 $(pidof sleep)",
        json!({"shareProcessNamespace": true}),
        none(),
    );
    let main = shared["spec"]["containers"][0].take();
    shared["spec"]["containers"] = json!([main, both]);
    cluster.apply_all(&[
        downward,
        of("fqdn", "hostname; hostname -f", fqdn, none()),
        of(
            "override",
            "hostname; grep -q over.ride /etc/hosts && echo named",
            json!({"hostnameOverride": "over.ride"}),
            none(),
        ),
        of("aliases", "tail -1 /etc/hosts", json!({"hostAliases": alias}), none()),
        of(
            "links",
            "env | grep -c ^OTHER_SERVICE_HOST=; env | grep -c ^KUBERNETES_SERVICE_HOST=",
            none(),
            none(),
        ),
        of(
            "no-links",
            "env | grep -c ^OTHER_SERVICE_HOST=; env | grep -c ^KUBERNETES_SERVICE_HOST=",
            json!({"enableServiceLinks": false}),
            none(),
        ),
        of(
            "host",
            "ps | grep -q '[r]ootlet' && echo seen; hostname",
            json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}),
            none(),
        ),
        of("words", "echo lost; echo -n kept >/dev/termination-log; exit 1", none(), none()),
        of(
            "logs",
            "echo the log; exit 1",
            none(),
            json!({"terminationMessagePolicy": "FallbackToLogsOnError"}),
        ),
        shared,
    ]);
    for (name, said) in [
        (
            "downward",
            "downward default default b 250 2 32 downward\ndownward/default $(NAME) $(NONE)\n1\n",
        ),
        ("fqdn", "h.sub.default.svc.cluster.local\nh.sub.default.svc.cluster.local\n"),
        ("override", "over.ride\nnamed\n"),
        ("aliases", "1.2.3.4\tone\ttwo\n"),
        ("links", "1\n1\n"),
        ("no-links", "0\n1\n"),
        ("shared", "seen\n"),
    ] {
        assert_eq!(cluster.last_words(name), said, "{name}");
    }
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the machine has a name");
    assert_eq!(cluster.last_words("host"), format!("seen\n{own}"));
    for (name, message) in [("words", "kept"), ("logs", "the log\n")] {
        let over = cluster.pod_phase(name, "Failed");
        let state = &over["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(state["message"], message, "{name}");
    }
}

#[test]
fn a_pod_that_is_deleted_early_or_by_force_goes() {
    let cluster = Cluster::ephemeral();
    let of = |name: &str, spec: Value| pod(name, &spec);
    let main = json!([container("main", PATIENT, &json!({}))]);
    let absent = json!([{"name": "v", "configMap": {"name": "none"}}]);
    let mut held =
        of("held", json!({"containers": [{"name": "main", "image": "localhost:1/none:1"}]}));
    held["metadata"]["finalizers"] = json!(["example.com/held"]);
    cluster.apply_all(&[
        held,
        of(
            "initializing",
            json!({"initContainers": [container("init", DEAF, &json!({}))], "containers": main}),
        ),
        of("mounting", json!({"volumes": absent, "containers": main})),
        of("pulling", json!({"containers": [{"name": "main", "image": "localhost:1/none:1"}]})),
        of(
            "forced",
            json!({"containers": [container("main", DEAF, &json!({}))],
            "terminationGracePeriodSeconds": 2}),
        ),
    ]);
    cluster.pod("initializing", "initializing", |pod| {
        pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()
    });
    cluster.event("mounting", "FailedMount");
    cluster.event("pulling", "Failed");
    cluster.event("held", "Failed");
    cluster.pod_ready("forced");
    cluster.kubectl_ok(&["delete", "pod", "initializing", "mounting", "pulling", "--timeout=60s"]);
    cluster.kubectl_ok(&[
        "delete",
        "pod",
        "forced",
        "--force",
        "--grace-period=0",
        "--timeout=60s",
    ]);
    eventually("nothing of them runs", || {
        let path = format!("/api/v1/nodes/rootlet-{}/proxy/runningpods/", cluster.name);
        let listed: Value = serde_json::from_str(&cluster.kubectl_ok(&["get", "--raw", &path]))
            .map_err(|error| error.to_string())?;
        match listed["items"].as_array().map_or(0, Vec::len) {
            0 => Ok(()),
            _ => Err(listed.to_string()),
        }
    });
}
