//! rootlet's own client beside stock kubectl: the same words, the same answers, to the letter.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::harness::{Answer, BUSYBOX, Cluster, eventually, place, run, run_with};

/// How often two answers are compared: ages may change between them.
const TRIES: usize = 8;

/// Of many kinds; `NS` is the namespace.
const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: NS, labels: {app: web}}
data: {a: "1", b: "two\nlines\n", long: "a sentence that is long enough to be folded when it is written as YAML, because it has more than eighty columns"}
---
apiVersion: v1
kind: Secret
metadata: {name: hidden, namespace: NS}
stringData: {key: value}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NS, labels: {app: web}, annotations: {note: "of <ours> & theirs"}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: localhost/busybox:test
        command: [sh, -c, "echo started; exec httpd -f -p 8080"]
        ports: [{containerPort: 8080, name: http}]
        env: [{name: A, value: b}, {name: FROM, valueFrom: {configMapKeyRef: {name: settings, key: a}}}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        resources: {requests: {cpu: 10m, memory: 8Mi}, limits: {memory: 64Mi}}
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: settings, mountPath: /settings}, {name: tmp, mountPath: /tmp}]
      - name: side
        image: localhost/busybox:test
        command: [sh, -c, "echo beside; exec sleep 1000"]
      volumes: [{name: settings, configMap: {name: settings}}, {name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NS}
spec: {selector: {app: web}, ports: [{name: web, port: 80, targetPort: http}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: NS}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers: [{name: c, image: localhost/busybox:test, command: ["true"]}]
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: often, namespace: NS}
spec:
  schedule: "0 0 1 1 *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: "localhost/busybox:test"}]}}}}
"#;

fn own(cluster: &Cluster) -> Command {
    let mut command = cluster.command("rootlet");
    command.env("KUBECONFIG", cluster.path("kubeconfig"));
    command
}

fn theirs(cluster: &Cluster) -> Command {
    let mut command = cluster.command("kubectl");
    command.env("KUBECONFIG", cluster.path("kubeconfig"));
    command
}

/// What the two answer to the same words.
fn both(cluster: &Cluster, words: &[&str], input: &str) -> (Answer, Answer) {
    let ask = |mut command: Command| run_with(command.args(words), input.as_bytes());
    (ask(theirs(cluster)), ask(own(cluster)))
}

/// The two answer the same, but for suggestions, which are ours alone.
pub fn same(cluster: &Cluster, line: &str) {
    // A blank within a word is written as `~`.
    let words: Vec<String> = line.split(' ').map(|word| word.replace('~', " ")).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut last = String::new();
    for _ in 0..TRIES {
        let (theirs, ours) = both(cluster, &words, "");
        let err: String = ours
            .err
            .lines()
            .filter(|l| !l.starts_with("hint: "))
            .map(|l| format!("{l}\n"))
            .collect();
        if (theirs.code, &theirs.out, &theirs.err) == (ours.code, &ours.out, &err) {
            return;
        }
        last = format!("kubectl: {theirs:#?}\nrootlet: {ours:#?}\n{}", difference(&theirs, &ours));
    }
    panic!("{line}:\n{last}");
}

fn difference(theirs: &Answer, ours: &Answer) -> String {
    let lines = |answer: &Answer| -> Vec<String> {
        answer.out.lines().chain(answer.err.lines()).map(str::to_owned).collect()
    };
    let (theirs, ours) = (lines(theirs), lines(ours));
    let at =
        theirs.iter().zip(&ours).position(|(a, b)| a != b).unwrap_or(theirs.len().min(ours.len()));
    format!("first difference:\n- {:?}\n+ {:?}", theirs.get(at), ours.get(at))
}

fn ready(cluster: &Cluster, namespace: &str) {
    cluster.kubectl_ok(&["rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s"]);
    cluster.kubectl_ok(&[
        "wait",
        "-n",
        namespace,
        "--for=condition=Complete",
        "job/once",
        "--timeout=60s",
    ]);
}

#[test]
fn objects_are_shown_as_kubectl_shows_them() {
    let cluster = Cluster::ephemeral();
    cluster.apply(&MANIFEST.replace("NS", "default"));
    ready(&cluster, "default");
    let pod = cluster.kubectl_ok(&[
        "get",
        "pods",
        "-l",
        "app=web",
        "-o",
        "jsonpath={.items[0].metadata.name}",
    ]);
    for line in [
        "get pods",
        "get pod",
        "get po -o wide",
        "get pods -A",
        "get pods -l app=web --show-labels",
        "get pods -L app,tier --no-headers",
        "get pods --field-selector status.phase=Running",
        "get pods,svc",
        "get deploy,rs -o wide",
        "get all",
        "get all -A",
        "get deployment/web service/web",
        "get deployments.apps web",
        "get deployments.v1.apps web -o name",
        "get nodes -o wide",
        "get ns",
        "get events --sort-by=.metadata.name",
        "get pods --sort-by=.metadata.name",
        "get cm settings -o yaml",
        "get cm settings -o json",
        "get deployment web -o yaml",
        "get deployment web -o json --show-managed-fields",
        "get pods -l app=web -o yaml",
        "get cm settings -o kyaml",
        "get deployment web -o kyaml --show-managed-fields",
        "get pods,svc -o kyaml",
        "get pods -o name",
        "get all -o name",
        "get pods -o jsonpath={.items[*].metadata.name}",
        "get pods -o jsonpath={range~.items[*]}{.metadata.name}{\"\\t\"}{.spec.containers[*].name}{\"\\n\"}{end}",
        "get deployment web -o jsonpath={.spec.template.spec.containers[?(@.name==\"side\")].command}",
        "get deployment web -o jsonpath={.metadata.labels}",
        "get pods -o custom-columns=NAME:.metadata.name,IMAGES:.spec.containers[*].image,NO:.x",
        "get deployment web -o jsonpath={.none} --allow-missing-template-keys=false",
        "get deployment web -o jsonpath={.spec.template.spec.containers[7].name}",
        "get deployment web -o jsonpath={.metadata.name}{.metadata[0]}",
        "get deployment web -o jsonpath --template={.metadata.name}",
        "get deployment web -o jsonpath-as-json={.metadata.labels}{.spec.replicas}",
        "get deployment web -o jsonpath={.kind",
        "get deployment web -o jsonpath",
        "get deployment web -o jsonpath-file=none",
        "get pods -o go-template={{range~.items}}{{.metadata.name}}~{{len~.spec.containers}}{{\"\n\"}}{{end}}",
        "get pods,svc -o go-template={{.kind}}~{{range~.items}}{{.kind}}/{{.metadata.name}}~{{end}}",
        "get deployment web --template={{.spec.replicas}}{{if~eq~.spec.replicas~2}}~two{{end}}",
        "get deployment web -o template --template={{.metadata.annotations}}",
        "get deployment web -o template={{.status}}",
        "get secret hidden -o go-template={{.data.key|base64decode}}",
        "get cm settings -o go-template={{range~$k,$v:=.data}}{{$k}}={{printf~\"%q\"~$v}};{{end}}",
        "get deployment web -o go-template={{.metadata.name}}{{.metadata.name.x}}",
        "get deployment web -o go-template={{.none.x}} --allow-missing-template-keys=false",
        "get deployment web -o go-template={{none}}",
        "get deployment web -o go-template",
        "get deployment web -o go-template-file=none",
        "get pods -l app=nothing -o go-template={{len~.items}}",
        "get pods none -o go-template={{.kind}}",
        "get pods -o custom-columns=NAME:.metadata.name --no-headers",
        "get pods -o custom-columns=NAME:.metadata.name,N:.spec.containers[7].name",
        "get pods -o custom-columns=NAME",
        "get pods -o custom-columns-file=none",
        "get pods --chunk-size=1",
        "get pods --chunk-size=1 -o name",
        "get pods -A --chunk-size=2 -o jsonpath={.items[*].metadata.name}",
        "get pods --sort-by={.metadata.name} -o name",
        "get pods -A --no-headers",
        "get pods,svc --no-headers",
        "get pods -L app -L tier --show-labels",
        "get cm settings none --ignore-not-found",
        "get cm settings none -o name",
        "get cm settings none -o yaml --ignore-not-found",
        "get pods -o wide --show-kind",
        "get cm settings -o name --show-managed-fields",
        "get cm settings -o json --show-managed-fields=false",
        "get pods none",
        "get pods none -o yaml",
        "get pods none --ignore-not-found",
        "get pdo",
        "get pods -l app=nothing",
        "get pods -l app=nothing -o yaml",
        "get nodes -l app=nothing",
        "get ingress",
        "get pods -n nowhere",
        "get pod web none",
        "get pods web -l app=web",
        "get pods -A x",
        "get svc web --show-kind",
        "get deployment web --subresource=scale",
        "get --raw /version",
        "get crd",
        "describe configmap settings",
        "describe secret hidden",
        "describe deployment web",
        "describe rs -l app=web",
        "describe service web",
        "describe job once",
        "describe cronjob often",
        "describe node",
        "describe namespace default",
        "describe serviceaccount default",
        "describe sc",
        "describe pods -l app=web",
        "describe pod web",
        "describe pod none",
        "describe lease -n kube-node-lease",
    ] {
        same(&cluster, line);
    }
    // What is used changes from one look to the next; how it is told does not.
    for line in ["top node", "top pod", "top pod --containers -A", "top node --no-headers"] {
        let words: Vec<&str> = line.split(' ').collect();
        let shapes = eventually(line, || {
            let (theirs, ours) = both(&cluster, &words, "");
            if theirs.code != Some(0) || ours.code != Some(0) {
                return Err(format!("{theirs:?} {ours:?}"));
            }
            Ok([theirs, ours].map(|answer| {
                let lines = answer.out.lines().map(|line| line.split_whitespace().count());
                let header = answer.out.lines().next().filter(|_| !line.contains("no-headers"));
                (header.map(str::to_owned), lines.collect::<Vec<_>>())
            }))
        });
        assert_eq!(shapes[0].1, shapes[1].1, "{line}");
        assert_eq!(
            shapes[0].0.as_ref().map(|h| h.split_whitespace().collect::<Vec<_>>()),
            shapes[1].0.as_ref().map(|h| h.split_whitespace().collect::<Vec<_>>()),
            "{line}"
        );
    }
    same(&cluster, "top pod none");
    for line in [
        "logs POD",
        "logs POD -c side",
        "logs POD side",
        "logs POD --all-containers --prefix",
        "logs POD -c none",
        "logs POD --tail=0",
        "logs none",
        "logs -l app=none",
        "logs -l app=web --tail=1 --prefix",
        "logs job/once",
        "logs POD -c main --previous",
        "exec POD -- echo hello",
        "exec POD -c side -- sh -c exit~3",
        "exec none -- true",
        "exec POD -c none -- true",
        "exec POD -- nothing-of-this-name",
        "exec deployment/web -c side -- echo x",
    ] {
        same(&cluster, &line.replace("POD", &pod));
    }
}

/// A watch that is going on, and what it has said.
struct Watching {
    process: std::process::Child,
    file: std::path::PathBuf,
}

impl Watching {
    fn start(cluster: &Cluster, mut command: Command, words: &str, name: &str) -> Self {
        let file = cluster.path(name);
        let out = fs::File::create(&file).expect("it can be written");
        let words = words.split(' ').map(|word| word.replace('~', " "));
        let process = command.args(words).stdin(Stdio::null()).stdout(out).stderr(Stdio::null());
        Self { process: process.spawn().expect("it can be started"), file }
    }

    /// What it said, without ages.
    fn said(&self) -> String {
        let text = fs::read_to_string(&self.file).expect("it can be read");
        let is_age = |word: &str| {
            let digits = word.trim_end_matches(['s', 'm']);
            digits.len() < word.len() && digits.chars().all(|c| c.is_ascii_digit() || c == 'm')
        };
        let line = |line: &str| -> String {
            let end = line.trim_end();
            match end.rsplit_once(' ') {
                Some((start, age)) if is_age(age) => format!("{start} AGE\n"),
                _ => format!("{line}\n"),
            }
        };
        text.lines().map(line).collect()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        // It may have ended by itself, which the test then noticed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn changes_are_told_as_kubectl_tells_them() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["create", "configmap", "first", "--from-literal=a=b"]);
    // With the namespace's own there are several.
    cluster.kubectl_ok(&["label", "configmap", "--all", "of=ours"]);
    let flags = [
        "get cm -l of -w",
        "get cm -l of -w --output-watch-events",
        "get cm -l of -w --output-watch-events --no-headers -L of",
        "get cm -l of -w -o name",
        "get cm -l of -w -o yaml",
        "get cm -l of -w -o yaml --output-watch-events",
        "get cm -l of -w -o json --output-watch-events",
        "get cm -l of -w -o name --output-watch-events",
        "get cm -l of -w -o jsonpath={.metadata.name}~{.data}~",
        "get cm -l of -w -o go-template={{.metadata.name}}~{{.data}}{{\"\\n\"}}",
        "get cm first -w -o custom-columns=NAME:.metadata.name,DATA:.data",
    ];
    let watches: Vec<_> = flags
        .iter()
        .enumerate()
        .map(|(index, words)| {
            let start = |command: Command, who: &str| {
                Watching::start(&cluster, command, words, &format!("{who}-{index}"))
            };
            (words, start(theirs(&cluster), "theirs"), start(own(&cluster), "ours"))
        })
        .collect();
    for (words, theirs, ours) in &watches {
        eventually(words, || {
            let both = [theirs.said(), ours.said()];
            if both.iter().all(|said| said.contains("first")) { Ok(()) } else { Err(both.concat()) }
        });
    }
    cluster.kubectl_ok(&["patch", "configmap", "first", "-p", r#"{"data":{"a":"changed"}}"#]);
    cluster.kubectl_ok(&["create", "configmap", "second", "--from-literal=c=d"]);
    cluster.kubectl_ok(&["label", "configmap", "second", "of=ours"]);
    cluster.kubectl_ok(&["delete", "configmap", "second"]);
    cluster.kubectl_ok(&["patch", "configmap", "first", "-p", r#"{"data":{"a":"last"}}"#]);
    for (words, theirs, ours) in &watches {
        eventually(words, || {
            let (theirs, ours) = (theirs.said(), ours.said());
            // The last change is told: the name once more, and no later one will come.
            let whole = theirs.matches("first").count() >= 3;
            let same = without_ages(&theirs) == without_ages(&ours);
            if whole && same { Ok(()) } else { Err(format!("- {theirs}\n+ {ours}")) }
        });
    }
}

/// The text of a table without its ages, which depend on when it was written.
fn without_ages(text: &str) -> String {
    let is_age = |word: &str| {
        word.strip_suffix('s')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let words = text.split(' ').map(|word| if is_age(word) { "AGE" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// An object without what differs between two of them by nature.
fn core(cluster: &Cluster, namespace: &str, what: &str) -> Value {
    let mut object =
        cluster.get(&[what, "-n", namespace, "--show-managed-fields"]).expect("it is there");
    let meta = object["metadata"].as_object_mut().expect("objects have metadata");
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        meta.remove(field);
    }
    // Others' fields come when they come.
    if let Some(fields) = meta.get_mut("managedFields").and_then(Value::as_array_mut) {
        fields.retain(|f| f["manager"].as_str().is_some_and(|name| name.starts_with("kubectl")));
        for field in fields.iter_mut() {
            field["time"] = Value::Null;
        }
        fields.sort_by_key(Value::to_string);
    }
    object["status"] = Value::Null;
    object["spec"]["clusterIP"] = Value::Null;
    object["spec"]["clusterIPs"] = Value::Null;
    let text = object.to_string().replace(namespace, "NS");
    serde_json::from_str(&text).expect("it is JSON still")
}

#[test]
fn what_is_applied_is_the_same() {
    let cluster = Cluster::ephemeral();
    for namespace in ["by-kubectl", "by-rootlet"] {
        cluster.kubectl_ok(&["create", "namespace", namespace]);
    }
    let apply = |manifest: &str, flags: &str| {
        let words: Vec<&str> =
            ["apply", "-f", "-"].into_iter().chain(flags.split_whitespace()).collect();
        let answers = [(theirs(&cluster), "by-kubectl"), (own(&cluster), "by-rootlet")].map(
            |(mut command, namespace)| {
                let answer =
                    run_with(command.args(&words), manifest.replace("NS", namespace).as_bytes());
                (
                    answer.code,
                    answer.out.replace(namespace, "NS"),
                    answer.err.replace(namespace, "NS"),
                )
            },
        );
        assert_eq!(answers[0], answers[1], "{flags}");
        answers[1].1.clone() + &answers[1].2
    };
    let equal = |what: &str| {
        for namespace in ["by-kubectl", "by-rootlet"] {
            let words = ["rollout", "status", "deployment/web", "-n", namespace, "--timeout=60s"];
            cluster.kubectl_ok(&words);
        }
        assert_eq!(
            core(&cluster, "by-kubectl", what),
            core(&cluster, "by-rootlet", what),
            "{what}"
        );
    };
    apply(MANIFEST, "--dry-run=client");
    apply(MANIFEST, "--dry-run=server");
    let created = apply(MANIFEST, "");
    assert!(created.contains("deployment.apps/web created\n"), "{created}");
    equal("deployment/web");
    equal("configmap/settings");
    equal("service/web");
    apply(MANIFEST, "");
    let changed = MANIFEST
        .replace("replicas: 2", "replicas: 1")
        .replace(", b: \"two\\nlines\\n\"", "")
        .replace("{name: A, value: b}, ", "{name: C, value: d}, ")
        .replace("annotations: {note: \"of <ours> & theirs\"}", "annotations: {other: x}")
        .replace("{name: tmp, emptyDir: {}}", "{name: tmp, hostPath: {path: /tmp}}");
    assert_ne!(changed, MANIFEST);
    let configured = apply(&changed, "");
    assert!(configured.contains("configmap/settings configured\n"), "{configured}");
    equal("deployment/web");
    equal("configmap/settings");
    apply(&changed, "-o name");
    // What others set stays.
    for namespace in ["by-kubectl", "by-rootlet"] {
        cluster.kubectl_ok(&["label", "-n", namespace, "configmap/settings", "mine=yes"]);
        cluster.kubectl_ok(&["create", "-n", namespace, "configmap", "bare", "--from-literal=a=b"]);
    }
    apply(MANIFEST, "");
    equal("configmap/settings");
    let bare =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bare, namespace: NS}\ndata: {a: c}\n";
    let warned = apply(bare, "");
    assert!(
        warned.contains("is missing the kubectl.kubernetes.io/last-applied-configuration"),
        "{warned}"
    );
    equal("configmap/bare");
    let applied = apply(MANIFEST, "--server-side --force-conflicts");
    assert!(applied.contains("deployment.apps/web serverside-applied\n"), "{applied}");
    equal("deployment/web");
    for namespace in ["by-kubectl", "by-rootlet"] {
        cluster.kubectl_ok(&["scale", "-n", namespace, "deployment/web", "--replicas=3"]);
    }
    apply(MANIFEST, "--server-side");
    for (manifest, flags) in [
        ("apiVersion: v1\nkind: Nothing\nmetadata: {name: x, namespace: NS}\n", ""),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: NS}\nspec: {containerz: []}\n",
            "",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: X, namespace: NS}\nspec: {containers: [{name: c}]}\n",
            "",
        ),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: NS}\n", "-n elsewhere"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: absent}\n", ""),
        ("", ""),
    ] {
        apply(manifest, flags);
    }
    let delete = |flags: &str| {
        let answers = [(theirs(&cluster), "by-kubectl"), (own(&cluster), "by-rootlet")].map(
            |(mut command, namespace)| {
                let line = flags.replace("NS", namespace);
                let answer = run_with(
                    command.arg("delete").args(line.split_whitespace()),
                    MANIFEST.replace("NS", namespace).as_bytes(),
                );
                (
                    answer.code,
                    answer.out.replace(namespace, "NS"),
                    answer.err.replace(namespace, "NS"),
                )
            },
        );
        assert_eq!(answers[0], answers[1], "{flags}");
        answers[1].1.clone()
    };
    for flags in [
        "configmap settings -n NS --dry-run=client",
        "configmap/settings -n NS",
        "configmap settings -n NS",
        "configmap settings -n NS --ignore-not-found",
        "configmap -n NS",
        "job,cronjob -n NS --all --cascade=foreground",
        "deployment web -n NS -o name --dry-run=server",
        "service -n NS -l nothing=here",
        "xyzzy x -n NS",
        "-f - --ignore-not-found --now",
        "-f -",
        "namespace NS",
    ] {
        delete(flags);
    }
    let gone = cluster.kubectl(&["get", "namespace", "by-rootlet"]);
    assert!(gone.err.contains("NotFound"), "{gone:?}");
}

#[test]
fn what_is_pruned_is_the_same() {
    let cluster = Cluster::ephemeral();
    for namespace in ["by-kubectl", "by-rootlet"] {
        cluster.kubectl_ok(&["create", "namespace", namespace]);
        cluster.kubectl_ok(&["create", "-n", namespace, "configmap", "bare", "--from-literal=a=b"]);
        cluster.kubectl_ok(&["label", "-n", namespace, "configmap", "bare", "app=x"]);
    }
    let map = |name: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: NS, labels: {{app: {app}}}}}\n"
        )
    };
    let role = "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: r, namespace: NS, labels: {app: x}}\n";
    let all = [map("a", "x"), map("b", "x"), map("c", "other"), role.to_owned()].concat();
    let apply = |manifest: &str, flags: &str| {
        let answers = [(theirs(&cluster), "by-kubectl"), (own(&cluster), "by-rootlet")].map(
            |(mut command, namespace)| {
                let words = ["apply", "-f", "-"].into_iter().chain(flags.split_whitespace());
                let said =
                    run_with(command.args(words), manifest.replace("NS", namespace).as_bytes());
                // kubectl's own log has times.
                let told = said.err.lines().filter(|line| !line.starts_with("W1"));
                let told: Vec<String> = told.map(|line| line.replace(namespace, "NS")).collect();
                (said.code, said.out.replace(namespace, "NS"), told)
            },
        );
        assert_eq!(answers[0], answers[1], "{flags}");
        answers[1].1.clone()
    };
    apply(&all, "");
    let one = map("a", "x");
    apply(&one, "--prune");
    apply(&one, "--prune -l app=x --prune-allowlist=v1/ConfigMap");
    let said = apply(&one, "--prune -l app=x --dry-run=server");
    assert!(said.contains("configmap/b pruned (server dry run)\n"), "{said}");
    apply(&one, "--prune -l app=x --dry-run=client");
    let said = apply(&one, "--prune -l app=x");
    assert_eq!(said, "configmap/a unchanged\nconfigmap/b pruned\n");
    let said = apply(&one, "--prune -l app=x --prune-allowlist=rbac.authorization.k8s.io/v1/Role");
    assert!(said.contains("role.rbac.authorization.k8s.io/r pruned\n"), "{said}");
    let said = apply(&one, "--prune --all --prune-allowlist=core/v1/ConfigMap -o name");
    assert_eq!(said, "configmap/a\nconfigmap/c\n");
    // What was not applied is not pruned.
    cluster.kubectl_ok(&["get", "-n", "by-rootlet", "configmap", "bare"]);
}

#[test]
fn custom_resources_are_applied_and_shown() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    // Definition and object at once: what kubectl refuses, ours waits for.
    let manifest = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: foos.example.com}
spec:
  group: example.com
  names: {plural: foos, singular: foo, kind: Foo, shortNames: [fo], categories: [all]}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
    additionalPrinterColumns: [{name: Size, type: integer, jsonPath: .spec.size}]
---
apiVersion: example.com/v1
kind: Foo
metadata: {name: one, namespace: default}
spec: {size: 1, list: [a, b], gone: {x: y}}
";
    let answer = run_with(own(&cluster).args(["apply", "-f", "-"]), manifest.as_bytes());
    assert_eq!(
        answer.out,
        "customresourcedefinition.apiextensions.k8s.io/foos.example.com created\nfoo.example.com/one created\n",
        "{}",
        answer.err
    );
    let other = "apiVersion: example.com/v1\nkind: Foo\nmetadata: {name: one, namespace: default}\nspec: {size: 2, list: [a]}\n";
    for want in ["configured", "unchanged"] {
        let answer = run_with(own(&cluster).args(["apply", "-f", "-"]), other.as_bytes());
        assert_eq!(answer.out, format!("foo.example.com/one {want}\n"), "{}", answer.err);
    }
    let spec = cluster.kubectl_ok(&["get", "fo", "one", "-o", "jsonpath={.spec}"]);
    assert_eq!(spec, r#"{"list":["a"],"size":2}"#);
    for line in [
        "get foos",
        "get fo one",
        "get foo.example.com",
        "get all",
        "describe foo one",
        "get crd foos.example.com -o yaml",
    ] {
        same(&cluster, line);
    }
}

#[test]
fn commands_run_in_containers_and_files_go_in_and_out() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&[
        "run",
        "box",
        "--image",
        BUSYBOX,
        "--restart=Never",
        "--",
        "sleep",
        "1000",
    ]);
    cluster.pod_ready("box");
    let both = run_with(
        own(&cluster).args(["exec", "-i", "box", "--", "sh", "-c", "cat; echo err >&2; exit 5"]),
        b"through",
    );
    assert_eq!((both.code, both.out.as_str()), (Some(5), "through"), "{}", both.err);
    assert_eq!(both.err, "err\ncommand terminated with exit code 5\n");
    let large: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8 + 1).collect();
    let sum = run_with(own(&cluster).args(["exec", "-i", "box", "--", "md5sum"]), &large);
    assert_eq!(sum.out, run_with(&mut Command::new("md5sum"), &large).out, "{}", sum.err);
    // A terminal with its size, and the command's exit code.
    let line = format!(
        "stty cols 91 rows 37; {} exec -it box -- sh -c 'until stty size 2>/dev/null | grep .; do sleep 0.1; done; read x; echo got-$x; exit 4'",
        place().join("rootlet").display()
    );
    let mut script = Command::new("script");
    cluster.settle(&mut script);
    script.env("KUBECONFIG", cluster.path("kubeconfig")).env("SHELL", "/bin/sh");
    let terminal = run_with(script.args(["-qec", &line, "/dev/null"]), b"typed\n");
    assert!(terminal.out.contains("37 91") && terminal.out.contains("got-typed"), "{terminal:?}");
    assert_eq!(terminal.code, Some(4), "{terminal:?}");

    let folder = cluster.path("files");
    fs::create_dir_all(folder.join("deep")).expect("made");
    fs::write(folder.join("deep/a"), "one").expect("written");
    fs::write(folder.join("b"), &large).expect("written");
    let copy = |from: &str, to: &str| {
        let answer = run(own(&cluster).args(["cp", from, to]));
        assert_eq!(answer.code, Some(0), "{from} {to}: {answer:?}");
    };
    let text = |path: &std::path::Path| path.to_str().expect("paths are UTF-8").to_owned();
    copy(&text(&folder), "box:/tmp");
    copy(&text(&folder.join("b")), "default/box:/tmp/c");
    copy("box:/tmp/files", &text(&cluster.path("back")));
    copy("box:/tmp/c", &text(&cluster.path("c")));
    assert_eq!(fs::read_to_string(cluster.path("back/deep/a")).expect("it came back"), "one");
    assert_eq!(fs::read(cluster.path("back/b")).expect("it came back"), large);
    assert_eq!(fs::read(cluster.path("c")).expect("it came back"), large);
    let absent = run(own(&cluster).args(["cp", "box:/tmp/none", "x"]));
    assert_eq!(absent.code, Some(1), "{absent:?}");
    same(&cluster, "cp /none/of/this box:/tmp");
}

#[test]
fn pods_are_run_waited_for_and_reached() {
    let cluster = Cluster::ephemeral();
    for line in [
        "run x --image=i --dry-run=client -o yaml",
        "run x --image=i --dry-run=client -o yaml --env=A=b --port=80 --labels=a=b,c=d --restart=Never --command -- sh -c true",
        "run x --image=i --dry-run=client --expose --port=80 -o name",
        "run x --image=i --dry-run=client",
        "run X --image=i",
        "run x --image=",
        "run x --image=UPPER --dry-run=client",
        "run x --image=i --dry-run=client --expose --port=80 -o yaml",
        r#"run x --image=i --dry-run=client -o yaml --override-type=json --overrides=[{"op":"add","path":"/metadata/labels/x","value":"y"}]"#,
        "get pods --field-selector spec.nope=1",
        "get pods -l a=b=c",
        "get --raw /nope",
        "-n kube-system get configmaps -o name",
        "--context nowhere get pods",
        "cp /etc/passwd none:",
        "wait --for=create pod/none --timeout=1s",
        "wait --for=condition=Ready node --all -o name",
        "wait --for=condition=DiskPressure node --all --timeout=0",
        "wait --for=condition=Ready pod/none --timeout=1s",
        "wait --for=delete pod/none --timeout=1s",
        "wait --for=condition=Ready pod --all --timeout=1s",
    ] {
        same(&cluster, line);
    }
    let ours =
        |line: &str, input: &str| run_with(own(&cluster).args(line.split(' ')), input.as_bytes());
    let image = format!("--image={BUSYBOX}");
    let created =
        ours(&format!("run web {image} --port=8080 --expose -- httpd -f -p 8080 -h /etc"), "");
    assert_eq!(
        (created.code, created.out.as_str()),
        (Some(0), "service/web created\npod/web created\n"),
        "{}",
        created.err
    );
    let waited = ours("wait --for=condition=Ready pod/web --timeout=60s", "");
    assert_eq!(
        (waited.code, waited.out.as_str()),
        (Some(0), "pod/web condition met\n"),
        "{}",
        waited.err
    );
    for line in [
        "wait --for=jsonpath={.status.phase}=Running pod/web",
        "wait --for=condition=Ready pod -l run=web",
        "wait --for=condition=Nonsense pod/web --timeout=1s",
        "logs web --tail=-2",
        "wait --for=create pod/web",
    ] {
        same(&cluster, line);
    }
    let piped =
        ours(&format!("run cat {image} --restart=Never --rm -i --quiet -- sh -c cat"), "through\n");
    assert_eq!((piped.code, piped.out.as_str()), (Some(0), "through\n"), "{}", piped.err);
    assert!(cluster.get(&["pod", "cat"]).is_err(), "--rm removes it");
    let failed = ours(&format!("run fails {image} --restart=Never --attach -- false"), "");
    assert_eq!(failed.code, Some(1), "{failed:?}");
    forwards(&cluster);
    let deleted = ours("delete pod web --now", "");
    assert_eq!(deleted.out, "pod \"web\" deleted from default namespace\n", "{}", deleted.err);
    assert!(cluster.get(&["pod", "web"]).is_err(), "delete waits until it is gone");
}

fn forwards(cluster: &Cluster) {
    for target in ["pod/web", "service/web"] {
        let mut child = own(cluster)
            .args(["port-forward", target, ":8080", "--address", "127.0.0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("it is a pipe"));
        out.read_line(&mut line).expect("text");
        let port = line
            .strip_prefix("Forwarding from 127.0.0.1:")
            .and_then(|l| l.strip_suffix(" -> 8080\n"));
        let port: u16 =
            port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
        std::thread::spawn(move || std::io::copy(&mut out, &mut std::io::sink()));
        eventually("the web server", || {
            let ask = || -> std::io::Result<String> {
                let mut stream = TcpStream::connect(("127.0.0.1", port))?;
                write!(stream, "GET /passwd HTTP/1.0\r\n\r\n")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            };
            match ask() {
                Ok(answer) if answer.contains("root:") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        child.kill().expect("it runs still");
        child.wait().expect("it ends");
    }
}

#[test]
fn the_running_cluster_needs_no_kubeconfig() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let named = cluster.rootlet(&["get", "ns", "default", "-o", "name"]);
    assert_eq!(named.out, "namespace/default\n", "{}", named.err);
    let mut command = cluster.command("rootlet");
    let named = run(command
        .env("ROOTLET_NAME", &cluster.name)
        .args(["get", "ns", "default", "-o", "name"]));
    assert_eq!(named.out, "namespace/default\n", "{}", named.err);
    // kubectl is handed over to, with the cluster's credentials.
    let mut command = cluster.command("rootlet");
    let words = ["kubectl", "--name", &cluster.name, "get", "ns", "default", "-o", "name"];
    let handed = run(command.env("PATH", place()).args(words));
    assert_eq!(handed.out, "namespace/default\n", "{}", handed.err);
    let mut command = cluster.command("rootlet");
    let absent = run(command.env("PATH", "/nowhere").args(words));
    assert_eq!(absent.code, Some(1));
    assert!(absent.err.contains("there is no kubectl in PATH; install it"), "{}", absent.err);
    for (words, want) in [
        (vec!["get", "pdo"], "did you mean \"pod\"?"),
        (vec!["gte", "pods"], "'get'"),
        (vec!["get", "pods", "-o", "yml"], "did you mean \"yaml\"?"),
        (vec!["get", "pods", "--selectro", "a=b"], "'--selector'"),
    ] {
        let answer = cluster.rootlet(&words);
        assert_ne!(answer.code, Some(0), "{words:?}");
        assert!(answer.err.contains(want), "{words:?}: {}", answer.err);
    }
    // Words that speak of objects never reach the cluster itself.
    let refused = cluster.rootlet(&["delete", "--all"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert_eq!(cluster.rootlet(&["get", "ns", "default"]).code, Some(0));
}
