//! Applying, on the client's side and on the server's, with kubectl and Helm.

use std::fs;
use std::process::Command;

use crate::harness::{Cluster, place, run, run_with};

const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: localhost/none:1, ports: [{containerPort: 80}]}]}
";

fn apply(cluster: &Cluster, flags: &[&str], manifest: &str) -> (Option<i32>, String) {
    let words = [&["apply", "-f", "-"], flags].concat();
    let answer = run_with(cluster.kubectl_command().args(words), manifest.as_bytes());
    (answer.code, answer.out + &answer.err)
}

#[test]
fn server_side_apply_owns_fields() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let server = &["--server-side"];
    // Objects of client-side apply are taken over without a conflict.
    assert_eq!(apply(&cluster, &[], DEPLOYMENT), (Some(0), "deployment.apps/web created\n".into()));
    let applied = (Some(0), "deployment.apps/web serverside-applied\n".to_owned());
    assert_eq!(apply(&cluster, server, &DEPLOYMENT.replace("replicas: 1", "replicas: 2")), applied);
    // What another manager set is a conflict that names it.
    cluster.kubectl_ok(&["scale", "deployment", "web", "--replicas=3"]);
    let (code, text) = apply(&cluster, server, DEPLOYMENT);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("error: Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: .spec.replicas"),
        "{text}"
    );
    // A diff shows what an apply would do, and does not do it.
    let diff = run_with(
        cluster.kubectl_command().args(["diff", "--server-side", "--force-conflicts", "-f", "-"]),
        DEPLOYMENT.as_bytes(),
    );
    assert_eq!(diff.code, Some(1), "{}", diff.err);
    assert!(diff.out.contains("-  replicas: 3\n+  replicas: 1\n"), "{}", diff.out);
    assert_eq!(apply(&cluster, &["--server-side", "--force-conflicts"], DEPLOYMENT), applied);
    let web = cluster.get(&["deployment", "web"]).expect("it is there");
    assert_eq!(web["spec"]["replicas"], 1);
    // A field that is not applied any more goes.
    let bare =
        DEPLOYMENT.replace(", labels: {app: web}}\nspec:\n  replicas", "}\nspec:\n  replicas");
    assert_eq!(apply(&cluster, server, &bare), applied);
    let web = cluster.get(&["deployment", "web"]).expect("it is there");
    assert_eq!(web["metadata"].get("labels"), None, "{web}");
}

#[test]
fn an_unknown_kind_is_told_as_upstream_tells_it() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let unknown = "apiVersion: example.com/v1\nkind: Widget\nmetadata: {name: w}\n";
    let (code, text) = apply(&cluster, &[], unknown);
    assert_eq!(code, Some(1));
    assert_eq!(
        text,
        "error: resource mapping not found for name: \"w\" namespace: \"\" from \"STDIN\": no matches for kind \"Widget\" in version \"example.com/v1\"\nensure CRDs are installed first\n"
    );
    let (code, text) = apply(&cluster, &[], &DEPLOYMENT.replace("replicas:", "replica:"));
    assert_eq!(code, Some(1));
    assert!(text.contains("strict decoding error: unknown field \"spec.replica\""), "{text}");
}

#[test]
fn helm_installs_upgrades_rolls_back_and_removes() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let chart = cluster.path("chart");
    fs::create_dir_all(chart.join("templates")).expect("a folder");
    let write = |name: &str, text: &str| fs::write(chart.join(name), text).expect("a file");
    write("Chart.yaml", "apiVersion: v2\nname: c\nversion: 0.1.0\n");
    write("values.yaml", "a: one\n");
    write(
        "templates/map.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: {{ .Release.Name }}}\ndata: {a: {{ .Values.a }}}\n",
    );
    let helm = |words: &[&str]| {
        let mut command = Command::new(place().join("helm"));
        cluster.settle(&mut command);
        let answer = run(command.env("KUBECONFIG", cluster.path("kubeconfig")).args(words));
        assert_eq!(answer.code, Some(0), "helm {words:?}: {}{}", answer.out, answer.err);
    };
    let data = || cluster.kubectl_ok(&["get", "configmap", "r", "-o", "jsonpath={.data.a}"]);
    let path = chart.to_str().expect("paths are UTF-8");
    helm(&["install", "r", path]);
    assert_eq!(data(), "one");
    helm(&["upgrade", "r", path, "--set", "a=two"]);
    assert_eq!(data(), "two");
    helm(&["rollback", "r", "1"]);
    assert_eq!(data(), "one");
    helm(&["uninstall", "r"]);
    assert!(cluster.kubectl(&["get", "configmap", "r"]).err.contains("NotFound"));
}

#[test]
fn helm_looks_around_runs_hooks_and_goes_back_when_it_fails() {
    let cluster = Cluster::ephemeral();
    let chart = cluster.path("chart");
    fs::create_dir_all(chart.join("templates")).expect("a folder");
    fs::create_dir_all(chart.join("crds")).expect("a folder");
    let write = |name: &str, text: &str| fs::write(chart.join(name), text).expect("a file");
    write("Chart.yaml", "apiVersion: v2\nname: c\nversion: 0.1.0\nkubeVersion: '>=1.30.0-0'\n");
    write("values.yaml", "replicas: 1\nimage: localhost/busybox:test\n");
    write("crds/crd.yaml", WIDGETS);
    write("templates/all.yaml", CHART);
    let helm = |words: &[&str]| {
        let mut command = Command::new(place().join("helm"));
        cluster.settle(&mut command);
        run(command.env("KUBECONFIG", cluster.path("kubeconfig")).args(words))
    };
    let helm_ok = |words: &[&str]| {
        let answer = helm(words);
        assert_eq!(answer.code, Some(0), "helm {words:?}: {}{}", answer.out, answer.err);
        answer.out
    };
    let path = chart.to_str().expect("paths are UTF-8");
    let seen = |field: &str| {
        cluster.kubectl_ok(&["get", "configmap", "r", "-o", &format!("jsonpath={{.data.{field}}}")])
    };
    helm_ok(&["install", "r", path, "--wait", "--timeout", "60s"]);
    assert_eq!(
        (seen("widgets"), seen("absent"), seen("system")),
        ("true".into(), "false".into(), "kube-system".into())
    );
    assert!(seen("version").starts_with("v1.36."), "{}", seen("version"));
    assert!(cluster.kubectl(&["get", "job", "r-hook"]).err.contains("NotFound"));
    assert!(helm_ok(&["test", "r", "--logs"]).contains("all is well"));

    let kept = cluster.kubectl_ok(&["get", "secret", "r", "-o", "jsonpath={.data.password}"]);
    helm_ok(&["upgrade", "r", path, "--set", "replicas=2", "--wait", "--timeout", "60s"]);
    let now = cluster.kubectl_ok(&["get", "secret", "r", "-o", "jsonpath={.data.password}"]);
    assert_eq!(now, kept, "what is looked up is not made anew");
    let failed = helm(&[
        "upgrade",
        "r",
        path,
        "--set-string",
        "hook=false",
        "--wait",
        "--timeout",
        "20s",
        "--rollback-on-failure",
    ]);
    assert!(
        failed.code == Some(1) && failed.err.contains("has been rolled back"),
        "{}",
        failed.err
    );
    let replicas = || {
        cluster.kubectl_ok(&["get", "deployment", "r", "-o", "jsonpath={.status.readyReplicas}"])
    };
    assert_eq!(replicas(), "2");

    // What somebody else has set is not taken without being told to.
    cluster.kubectl_ok(&["scale", "deployment", "r", "--replicas=3"]);
    let conflict = helm(&["upgrade", "r", path]);
    assert!(conflict.err.contains(".spec.replicas"), "{}", conflict.err);
    helm_ok(&["upgrade", "r", path, "--force-conflicts", "--wait", "--timeout", "60s"]);
    helm_ok(&["uninstall", "r", "--wait", "--timeout", "60s"]);
    assert_eq!(cluster.kubectl_ok(&["get", "deployments", "-o", "name"]), "");
    cluster.kubectl_ok(&["get", "secret", "r"]);
}

const WIDGETS: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]
";

/// A chart that looks something up, asks what the cluster can do, and has hooks.
const CHART: &str = r#"{{- $known := lookup "v1" "Secret" .Release.Namespace .Release.Name }}
apiVersion: v1
kind: Secret
metadata: {name: {{ .Release.Name }}, annotations: {helm.sh/resource-policy: keep}}
data: {password: {{ if $known }}{{ $known.data.password }}{{ else }}{{ randAlphaNum 10 | b64enc }}{{ end }}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: {{ .Release.Name }}}
data:
  version: {{ .Capabilities.KubeVersion.Version | quote }}
  widgets: {{ .Capabilities.APIVersions.Has "example.com/v1/Widget" | quote }}
  absent: {{ .Capabilities.APIVersions.Has "absent.example.com/v1" | quote }}
  system: {{ (lookup "v1" "Namespace" "" "kube-system").metadata.name | quote }}
---
apiVersion: example.com/v1
kind: Widget
metadata: {name: {{ .Release.Name }}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  replicas: {{ .Values.replicas }}
  selector: {matchLabels: {app: {{ .Release.Name }}}}
  template:
    metadata: {labels: {app: {{ .Release.Name }}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: {{ .Values.image }}, command: [sleep, "1000"]}]
---
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ .Release.Name }}-hook
  annotations: {helm.sh/hook: "pre-install,pre-upgrade", helm.sh/hook-delete-policy: "before-hook-creation,hook-succeeded"}
spec:
  backoffLimit: 0
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: {{ .Values.image }}, command: [{{ .Values.hook | default "true" | quote }}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: {{ .Release.Name }}-test, annotations: {helm.sh/hook: test}}
spec: {restartPolicy: Never, containers: [{name: c, image: {{ .Values.image }}, command: [echo, all is well]}]}
"#;
