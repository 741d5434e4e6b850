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
