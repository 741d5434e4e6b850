//! A folder that is kept applied, and what `status` and `logs` tell of it; manifests as strangers write them.

use std::fs;

use crate::harness::{Cluster, eventually};

fn config_map(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: \"{value}\"}}\n"
    )
}

fn value(cluster: &Cluster, name: &str) -> Option<String> {
    let map = cluster.get(&["configmap", name]).ok()?;
    map["data"]["key"].as_str().map(str::to_owned)
}

fn until(cluster: &Cluster, name: &str, want: Option<&str>) {
    eventually(&format!("{name} is {want:?}"), || match value(cluster, name) {
        found if found.as_deref() == want => Ok(()),
        found => Err(format!("{found:?}\n{}", cluster.state())),
    });
}

#[test]
fn what_is_in_the_folder_is_applied_and_what_leaves_it_is_removed() {
    let cluster = Cluster::prepared();
    let refused = cluster.rootlet(&["up", "--manifests", "absent"]);
    assert!(refused.err.contains("--manifests: cannot read absent"), "{}", refused.err);

    let folder = cluster.path("manifests");
    fs::create_dir(&folder).expect("it can be made");
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("it is written");
    // A custom resource may stand before its definition, and a namespace after what is in it.
    write("a.yaml", &format!("{}---\n{}", config_map("one", "1"), config_map("two", "2")));
    write(
        "b.yaml",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot, namespace: later}\n",
    );
    write("c.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: later}\n");
    write("ignored.txt", "not a manifest");
    let flags = ["--manifests", folder.to_str().expect("UTF-8")];
    cluster.up(&flags);
    until(&cluster, "one", Some("1"));
    until(&cluster, "two", Some("2"));
    eventually("what needs another object comes after it", || {
        cluster.get(&["serviceaccount", "robot", "-n", "later"])
    });
    cluster.kubectl_ok(&["create", "configmap", "foreign", "--from-literal=key=f"]);

    write("a.yaml", &config_map("one", "changed"));
    until(&cluster, "one", Some("changed"));
    until(&cluster, "two", None);
    until(&cluster, "foreign", Some("f"));

    // What cannot be read takes nothing away, and is told.
    write("a.yaml", "kind: [");
    eventually("the mistake is told", || {
        let status = cluster.rootlet_ok(&["status"]);
        if status.contains("problem  ") && status.contains("a.yaml, document 1") {
            return Ok(());
        }
        Err(status)
    });
    until(&cluster, "one", Some("changed"));
    let events = cluster.kubectl_ok(&["get", "events", "-n", "kube-system"]);
    assert!(events.contains("ApplyFailed") && events.contains("a.yaml"), "{events}");
    let log = cluster.rootlet_ok(&["logs", "--tail", "200"]);
    assert!(log.contains("a.yaml, document 1"), "{log}");

    // Nobody looks while it leaves.
    cluster.rootlet_ok(&["down"]);
    fs::remove_file(folder.join("a.yaml")).expect("it is there");
    write("d.yaml", &config_map("three", "3"));
    cluster.up(&flags);
    until(&cluster, "three", Some("3"));
    until(&cluster, "one", None);
    until(&cluster, "foreign", Some("f"));
    let status: serde_json::Value =
        serde_json::from_str(&cluster.rootlet_ok(&["status", "-o", "json"])).expect("it is JSON");
    assert_eq!(status["manifests"]["objects"], 3, "{status}");
    assert_eq!(status["running"], true);
    assert!(
        status["memoryBytes"]["daemon"].as_u64().is_some_and(|bytes| bytes > 1 << 20),
        "{status}"
    );
}

#[test]
fn what_is_published_and_what_is_not_well_is_told() {
    let cluster = Cluster::ephemeral();
    cluster.kubectl_ok(&["create", "service", "nodeport", "web", "--tcp=80:80"]);
    let service = cluster.get(&["service", "web"]).expect("it is there");
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().expect("it has one");
    cluster.kubectl_ok(&[
        "run",
        "broken",
        "--image",
        "localhost/absent:1",
        "--image-pull-policy",
        "Never",
    ]);
    eventually("both are told", || {
        let status = cluster.rootlet_ok(&["status"]);
        let published = status.contains(&format!("127.0.0.1:{port} to service default/web"));
        let warned = status.contains("pod default/broken: ErrImageNeverPull");
        if published && warned { Ok(()) } else { Err(status) }
    });
    assert!(cluster.rootlet_ok(&["status"]).contains("state in memory"));
    cluster.rootlet_ok(&["down"]);
    let status = cluster.rootlet(&["status", "--output", "json"]);
    assert_eq!(status.code, Some(1));
    assert!(status.out.contains("\"running\":false"), "{}", status.out);
    let followed = cluster.rootlet_ok(&["logs", "-f", "--tail", "1"]);
    assert_eq!(
        followed.lines().count(),
        1,
        "a log that nobody writes to any more has an end: {followed}"
    );
}

/// The odd parts of well-known operators' manifests.
const OPERATORS: &str = include_str!("strangers/operators.yaml");

#[test]
fn operators_manifests_are_taken_as_they_are() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let file = cluster.path("operators.yaml");
    fs::write(&file, OPERATORS).expect("it is written");
    let file = file.to_str().expect("UTF-8");
    let generations = || {
        let objects = cluster.get(&["-f", file]).expect("they are there");
        let objects = objects["items"].as_array().cloned().unwrap_or_default();
        objects.iter().map(|object| object["metadata"]["generation"].clone()).collect::<Vec<_>>()
    };
    let applied = cluster.kubectl_ok(&["apply", "-f", file]);
    let made = OPERATORS.matches("\nkind: ").count();
    assert_eq!(applied.matches(" created\n").count(), made, "{applied}");
    let before = generations();
    cluster.kubectl_ok(&["apply", "-f", file]);
    cluster.kubectl_ok(&["diff", "-f", file]);
    cluster.kubectl_ok(&["apply", "--server-side", "--force-conflicts", "-f", file]);
    cluster.kubectl_ok(&["diff", "--server-side", "--force-conflicts", "-f", file]);
    assert_eq!(generations(), before, "nothing was changed by applying the same again");

    eventually("what others may see is gathered", || {
        let role = cluster.get(&["clusterrole", "operators-all"])?;
        let groups = role["rules"].to_string();
        if groups.contains("db.example.com") { Ok(()) } else { Err(groups) }
    });
    let custom = "apiVersion: db.example.com/v1\nkind: Cluster\nmetadata: {name: pg}\nspec: {instances: 3, mode: quorum, size: 1Gi, volumes: [{name: a, path: /a}], template: {apiVersion: v1, kind: Pod, metadata: {name: x}, spec: {any: [1]}}}\n";
    cluster.apply(custom);
    let refused =
        |patch: &str| cluster.kubectl(&["patch", "dbc", "pg", "--type=merge", "-p", patch]).err;
    for (patch, want) in [
        ("{\"spec\":{\"instances\":2}}", "instances must be odd, not 2"),
        ("{\"spec\":{\"mode\":\"any\"}}", "the mode is for good"),
        ("{\"spec\":{\"size\":true}}", "spec.size"),
        ("{\"spec\":{\"volumes\":[{\"name\":\"a\"},{\"name\":\"a\"}]}}", "Duplicate value"),
    ] {
        let told = refused(patch);
        assert!(told.contains(want), "{patch}: {told}");
    }
    cluster.kubectl_ok(&["scale", "dbc", "pg", "--replicas=5"]);
    let found =
        cluster.kubectl_ok(&["get", "dbc", "--field-selector=spec.mode=quorum", "--no-headers"]);
    assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["pg", "5"]);
}

#[test]
fn a_definition_too_large_for_an_annotation_is_applied_by_the_server() {
    let cluster = Cluster::prepared();
    cluster.up(&["--ephemeral"]);
    let words = "A field as operators describe it, at length. ".repeat(4);
    let fields: String = (0..1500)
        .map(|n| format!("              f{n}: {{type: string, description: \"{words}\"}}\n"))
        .collect();
    let definition = format!(
        "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: monitors.example.com}}\nspec:\n  group: example.com\n  names: {{kind: Monitor, plural: monitors}}\n  scope: Namespaced\n  versions:\n  - name: v1\n    served: true\n    storage: true\n    schema:\n      openAPIV3Schema:\n        type: object\n        properties:\n          spec:\n            type: object\n            properties:\n{fields}"
    );
    assert!(definition.len() > 262_144);
    let file = cluster.path("monitors.yaml");
    fs::write(&file, definition).expect("it is written");
    let file = file.to_str().expect("UTF-8");
    let refused = cluster.kubectl(&["apply", "-f", file]);
    assert!(
        refused.err.contains("metadata.annotations: Too long: may not be more than 262144 bytes"),
        "{}",
        refused.err
    );
    for _ in 0..2 {
        cluster.kubectl_ok(&["apply", "--server-side", "-f", file]);
    }
    cluster.kubectl_ok(&["wait", "--for=condition=Established", "crd/monitors.example.com"]);
    let told = cluster.kubectl_ok(&["explain", "monitor.spec.f1499"]);
    assert!(told.contains("as operators describe it"), "{told}");
}
