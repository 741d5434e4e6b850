//! Who may come in and who may do what, with kubectls of two ages; and another API server behind this
//! one.

use std::fs;

use serde_json::Value;

use crate::harness::{Cluster, eventually, run, run_with};

fn say(cluster: &Cluster, program: &str, words: &[&str]) -> (Option<i32>, String) {
    let answer = run(cluster.kubectl_named(program).args(words));
    (answer.code, answer.out + &answer.err)
}

const DEFINITION: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: flunders.wardle.example.com}
spec:
  group: wardle.example.com
  scope: Namespaced
  names: {plural: flunders, singular: flunder, kind: Flunder, listKind: FlunderList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {size: {type: integer}}}}}}
";

/// The other API server is another cluster's, which trusts this one's front proxy.
#[test]
fn another_api_server_serves_a_group() {
    let (cluster, other) = (Cluster::prepared(), Cluster::prepared());
    cluster.up(&["--ephemeral"]);
    let pki =
        |cluster: &Cluster| cluster.path("data").join("rootlet").join(&cluster.name).join("pki");
    fs::create_dir_all(pki(&other)).expect("a folder");
    for file in ["front-proxy-ca.crt", "front-proxy-ca.key"] {
        fs::copy(pki(&cluster).join(file), pki(&other).join(file)).expect("copied");
    }
    other.up(&["--ephemeral"]);
    other.apply(DEFINITION);
    let server =
        other.kubectl_ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    let port = server.rsplit(':').next().expect("a port").to_owned();
    cluster.apply(&format!(
        "apiVersion: v1
kind: Service
metadata: {{name: wardle, namespace: default}}
spec: {{type: ExternalName, externalName: localhost}}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {{name: v1.wardle.example.com}}
spec:
  group: wardle.example.com
  version: v1
  groupPriorityMinimum: 2000
  versionPriority: 200
  insecureSkipTLSVerify: true
  service: {{namespace: default, name: wardle, port: {port}}}
"
    ));
    let wait =
        ["wait", "--for=condition=Available", "apiservice/v1.wardle.example.com", "--timeout=60s"];
    cluster.kubectl_ok(&wait);
    let listed = cluster.kubectl_ok(&["get", "apiservices"]);
    let line = |name: &str| -> Vec<String> {
        let found = listed.lines().find(|line| line.starts_with(name));
        found.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(line("v1.wardle.example.com")[1..3], ["default/wardle", "True"], "{listed}");
    assert_eq!(line("v1.apps")[1..3], ["Local", "True"], "{listed}");
    let flunder =
        "apiVersion: wardle.example.com/v1\nkind: Flunder\nmetadata: {name: a}\nspec: {size: 3}\n";
    let made = eventually("the group is discovered", || {
        let answer =
            run_with(cluster.kubectl_command().args(["apply", "-f", "-"]), flunder.as_bytes());
        if answer.code == Some(0) { Ok(answer.out) } else { Err(answer.err) }
    });
    assert_eq!(made, "flunder.wardle.example.com/a created\n");
    assert_eq!(other.kubectl_ok(&["get", "flunder", "a", "-o", "jsonpath={.spec.size}"]), "3");
    for program in ["kubectl", "kubectl-old"] {
        let (code, text) = say(&cluster, program, &["get", "flunders"]);
        assert!(code == Some(0) && text.contains("a "), "{program}: {text}");
        let (_, text) =
            say(&cluster, program, &["api-resources", "--api-group=wardle.example.com"]);
        assert!(text.contains("Flunder"), "{program}: {text}");
    }
    let explained = cluster.kubectl_ok(&["explain", "flunders.spec.size"]);
    assert!(explained.contains("<integer>"), "{explained}");
    // Who asks is told, and what they may do is decided on both sides.
    let jane = ["get", "flunders", "--as=jane"];
    let refused = cluster.kubectl(&jane);
    assert!(refused.err.contains("User \"jane\" cannot list"), "{}", refused.err);
    other.rootlet_ok(&["down"]);
    eventually("its absence is noticed", || {
        let service = cluster.get(&["apiservice", "v1.wardle.example.com"])?;
        let condition = &service["status"]["conditions"][0];
        match (condition["status"].as_str(), condition["reason"].as_str()) {
            (Some("False"), Some("FailedDiscoveryCheck")) => Ok(()),
            _ => Err(condition.to_string()),
        }
    });
    let lost = cluster.kubectl(&["get", "--raw", "/apis/wardle.example.com/v1/flunders"]);
    assert!(
        lost.code == Some(1) && lost.err.contains("unavailable")
            || lost.err.contains("unable to handle"),
        "{}",
        lost.err
    );
}

const AUDIT: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Request, verbs: [create], resources: [{group: \"\", resources: [configmaps]}], users: [alice]}
- {level: None}
";

const AUTHENTICATION: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous: {enabled: true, conditions: [{path: /livez}, {path: /readyz}, {path: /healthz}]}
";

#[test]
fn files_say_who_may_come_in_and_what_is_recorded() {
    let cluster = Cluster::prepared();
    for (file, text) in [
        ("tokens.csv", "secret,alice,7,\"dev,ops\"\n"),
        ("audit.yaml", AUDIT),
        ("authentication.yaml", AUTHENTICATION),
    ] {
        fs::write(cluster.path(file), text).expect("written");
    }
    let file = |name: &str| cluster.path(name).to_str().expect("UTF-8").to_owned();
    cluster.up(&[
        "--token-auth-file",
        &file("tokens.csv"),
        "--authentication-config",
        &file("authentication.yaml"),
        "--audit-policy-file",
        &file("audit.yaml"),
        "--audit-log-path",
        &file("audit.log"),
    ]);
    cluster.kubectl_ok(&[
        "create",
        "clusterrolebinding",
        "alice",
        "--clusterrole=edit",
        "--group=dev",
    ]);
    let server =
        cluster.kubectl_ok(&["config", "view", "-o", "jsonpath={.clusters[0].cluster.server}"]);
    fs::write(
        cluster.path("alice"),
        format!(
            "apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: '{server}', insecure-skip-tls-verify: true}}}}]
users: [{{name: alice, user: {{token: secret}}}}, {{name: nobody, user: {{username: 'x', password: 'y'}}}}]
contexts: [{{name: alice, context: {{cluster: c, user: alice}}}}, {{name: nobody, context: {{cluster: c, user: nobody}}}}]
current-context: alice
"
        ),
    )
    .expect("written");
    let alice = |words: &[&str]| {
        let mut command = cluster.command("kubectl");
        run(command.arg("--kubeconfig").arg(cluster.path("alice")).args(words))
    };
    let who = alice(&["auth", "whoami", "-o", "json"]);
    let who: Value = serde_json::from_str(&who.out).unwrap_or_else(|_| panic!("{}", who.err));
    assert_eq!(who["status"]["userInfo"]["username"], "alice");
    assert_eq!(
        who["status"]["userInfo"]["groups"],
        serde_json::json!(["dev", "ops", "system:authenticated"])
    );
    let may = alice(&["auth", "can-i", "create", "configmaps"]);
    assert_eq!((may.code, may.out.as_str()), (Some(0), "yes\n"), "{}", may.err);
    let rules = alice(&["auth", "can-i", "--list"]).out;
    assert!(
        rules.contains("configmaps ") && rules.contains("selfsubjectreviews.authentication.k8s.io"),
        "{rules}"
    );
    assert_eq!(alice(&["auth", "can-i", "create", "nodes"]).code, Some(1));
    // Nobody gives what they do not have.
    let grant = alice(&["create", "clusterrole", "all", "--verb=*", "--resource=*"]);
    assert!(grant.err.contains("forbidden"), "{}", grant.err);
    // Without credentials there is only the way to the health checks.
    assert_eq!(alice(&["--context=nobody", "get", "--raw", "/livez"]).out, "ok");
    let refused = alice(&["--context=nobody", "get", "--raw", "/version"]);
    assert!(refused.err.contains("must be logged in"), "{}", refused.err);

    let made = alice(&["create", "configmap", "noted", "--from-literal=a=b"]);
    assert_eq!(made.code, Some(0), "{}", made.err);
    let text = fs::read_to_string(cluster.path("audit.log")).expect("a log");
    let event: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    assert_eq!(
        (&event["user"]["username"], &event["objectRef"]["name"]),
        (&"alice".into(), &"noted".into())
    );
    assert_eq!(event["requestObject"]["data"]["a"], "b");
    assert_eq!(text.lines().count(), 1, "{text}");
    // The flags are kept.
    cluster.rootlet_ok(&["down"]);
    cluster.up(&[]);
    assert_eq!(alice(&["auth", "can-i", "create", "configmaps"]).out, "yes\n");
}

#[test]
fn kubectl_asks_about_the_cluster() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    for program in ["kubectl", "kubectl-old"] {
        #[rustfmt::skip]
        let cases: [(&[&str], &str); 9] = [
            (&["cluster-info"], "is running at"),
            (&["version", "-o", "json"], "\"minor\": \"36\""),
            (&["api-resources", "-o", "name"], "deployments.apps\n"),
            (&["api-versions"], "flowcontrol.apiserver.k8s.io/v1\n"),
            (&["get", "--raw", "/readyz?verbose"], "readyz check passed"),
            (&["get", "componentstatuses"], "etcd-0"),
            (&["explain", "deployments", "--recursive"], "replicas\t<integer>"),
            (&["get", "flowschemas"], "system-leader-election"),
            (&["get", "prioritylevelconfigurations"], "workload-high"),
        ];
        for (words, want) in cases {
            let (code, text) = say(&cluster, program, words);
            let flat = text.replace("   <", "\t<").replace(" <", "\t<");
            assert!(
                code == Some(0) && (text.contains(want) || flat.contains(want)),
                "{program} {words:?}: {text}"
            );
        }
    }
    let dump = cluster.kubectl_ok(&["cluster-info", "dump"]);
    assert!(dump.contains("\"kind\": \"NodeList\""), "{dump}");
    let roles = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [\"\"], resources: [pods], verbs: [get]}]
";
    let reconciled = run_with(
        cluster.kubectl_command().args(["auth", "reconcile", "-f", "-"]),
        roles.as_bytes(),
    );
    assert_eq!(reconciled.code, Some(0), "{}", reconciled.err);
    assert!(
        reconciled.out.contains("clusterrole.rbac.authorization.k8s.io/reader reconciled"),
        "{}",
        reconciled.out
    );
    let token =
        cluster.kubectl_ok(&["create", "token", "default", "--audience=x", "--duration=10m"]);
    assert_eq!(token.trim().split('.').count(), 3, "{token}");
}
