//! A folder that is kept applied, and what `status` and `logs` tell of it.

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
