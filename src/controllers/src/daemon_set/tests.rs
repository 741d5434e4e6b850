use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::{Plan, decide, pin, status, target};
use crate::history::HASH;

fn set(spec: Value) -> DaemonSet {
    let mut all = json!({"selector": {}, "template": {"spec": {"containers": []}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "d", "namespace": "n"}, "spec": all}))
        .expect("a set")
}

fn node(name: &str, labels: Value, taints: Value) -> Arc<Node> {
    Arc::new(
        serde_json::from_value(
            json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}}),
        )
        .expect("a node"),
    )
}

fn nodes(count: usize) -> Vec<Arc<Node>> {
    (1..=count).map(|n| node(&format!("n{n}"), json!({}), json!([]))).collect()
}

fn pod(name: &str, node: &str, hash: &str, phase: &str, ready: bool) -> Pod {
    let ready = if ready { "True" } else { "False" };
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {HASH: hash}},
        "spec": {"containers": [], "nodeName": node},
        "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}}))
    .expect("a pod")
}

fn run(set: &DaemonSet, nodes: &[Arc<Node>], pods: &[Pod]) -> Plan {
    decide(set, nodes, &pods.iter().collect::<Vec<_>>(), "new", Timestamp::UNIX_EPOCH)
}

fn names(plan: &Plan) -> (Vec<&str>, Vec<&str>) {
    let created = plan.create.iter().map(String::as_str).collect();
    (created, plan.delete.iter().map(String::as_str).collect())
}

#[test]
fn every_fitting_node_has_one() {
    let nodes = [
        node("fits", json!({"os": "linux"}), json!([])),
        node("other", json!({"os": "plan9"}), json!([])),
        node("tainted", json!({"os": "linux"}), json!([{"key": "k", "effect": "NoSchedule"}])),
        node(
            "cordoned",
            json!({"os": "linux"}),
            json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]),
        ),
    ];
    let set =
        set(json!({"template": {"spec": {"containers": [], "nodeSelector": {"os": "linux"}}}}));
    assert_eq!(names(&run(&set, &nodes, &[])).0, ["cordoned", "fits"]);
    let pods = [
        pod("a", "fits", "new", "Running", true),
        pod("b", "fits", "new", "Running", true),
        pod("c", "other", "new", "Running", true),
        pod("d", "tainted", "new", "Running", true),
        pod("e", "cordoned", "new", "Failed", false),
    ];
    let plan = run(&set, &nodes, &pods);
    // A daemon that is there may stay under NoSchedule.
    assert_eq!(names(&plan), (vec![], vec!["b", "c"]));
    assert_eq!(plan.ended, [("e".to_owned(), "cordoned".to_owned(), true)]);
}

#[test]
fn an_update_takes_one_node_at_a_time() {
    let pods = [
        pod("a", "n1", "old", "Running", true),
        pod("b", "n2", "old", "Running", true),
        pod("c", "n3", "new", "Running", true),
    ];
    assert_eq!(names(&run(&set(json!({})), &nodes(3), &pods)).1, ["a"]);
    // While one is missing nothing else is taken away; a broken one costs nothing.
    assert!(names(&run(&set(json!({})), &nodes(4), &pods)).1.is_empty());
    let broken = [pod("a", "n1", "old", "Running", false), pod("b", "n2", "old", "Running", true)];
    assert_eq!(names(&run(&set(json!({})), &nodes(2), &broken)).1, ["a"]);
    let kept = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    assert!(names(&run(&kept, &nodes(3), &pods)).1.is_empty());
}

#[test]
fn a_surge_puts_the_new_beside_the_old() {
    let set = set(json!({"updateStrategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}));
    let old = [pod("a", "n1", "old", "Running", true), pod("b", "n2", "old", "Running", true)];
    assert_eq!(names(&run(&set, &nodes(2), &old)).0, ["n1"]);
    let mut during = old.to_vec();
    during.push(pod("c", "n1", "new", "Running", false));
    assert_eq!(names(&run(&set, &nodes(2), &during)), (vec![], vec![]));
    during[2] = pod("c", "n1", "new", "Running", true);
    assert_eq!(names(&run(&set, &nodes(2), &during)), (vec!["n2"], vec!["a"]));
}

#[test]
fn a_surge_leaves_nodes_that_no_longer_fit() {
    let set = set(json!({"updateStrategy": {"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}}));
    let shut = json!([{"key": "k", "effect": "NoSchedule"}]);
    let nodes = [node("shut", json!({}), shut), node("n1", json!({}), json!([]))];
    let old = |ready| pod("a", "shut", "old", "Running", ready);
    for (pods, want) in [
        // It goes at once when it serves nobody, else when as many serve as should without it.
        (vec![old(false)], vec!["a"]),
        (vec![old(true), pod("b", "n1", "new", "Running", false)], vec![]),
        (vec![old(true), pod("b", "n1", "new", "Running", true)], vec!["a"]),
        (vec![pod("c", "shut", "new", "Running", true)], vec![]),
    ] {
        assert_eq!(names(&run(&set, &nodes, &pods)).1, want);
    }
}

#[test]
fn what_has_ended_and_goes_makes_room() {
    let mut held = pod("a", "n1", "new", "Failed", false);
    held.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
    assert_eq!(names(&run(&set(json!({})), &nodes(1), &[held.clone()])).0, ["n1"]);
    held.status.as_mut().expect("a status").phase = Some("Running".into());
    assert!(names(&run(&set(json!({})), &nodes(1), &[held])).0.is_empty());
}

#[test]
fn of_two_daemons_the_older_speaks_for_the_node() {
    let at = |mut pod: Pod, hour: u8| {
        let time = json!(format!("2026-01-01T0{hour}:00:00Z"));
        pod.metadata.creation_timestamp = serde_json::from_value(time).expect("a time");
        pod
    };
    let old = at(pod("old", "n1", "old", "Running", true), 1);
    let new = at(pod("new", "n1", "new", "Running", false), 2);
    let told = |pods: &[&Pod]| {
        let told = status(&set(json!({})), &nodes(1), pods, "new", Timestamp::UNIX_EPOCH);
        (told.number_ready, told.updated_number_scheduled)
    };
    assert_eq!(told(&[&new, &old]), (1, None));
    assert_eq!(told(&[&new]), (0, Some(1)));
}

#[test]
fn daemons_wait_for_their_node() {
    let mut spec: PodSpec =
        serde_json::from_value(json!({"containers": [], "hostNetwork": true})).expect("a spec");
    pin(&mut spec, "n1");
    assert_eq!(spec.tolerations.as_ref().map(Vec::len), Some(7));
    let waiting = Pod { spec: Some(spec), ..Pod::default() };
    assert_eq!(target(&waiting), Some("n1"));
}

#[test]
fn daemons_tolerate_for_ever_what_they_must() {
    for (given, seconds, count) in [
        (
            json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
            "tolerationSeconds": 300}),
            None,
            6,
        ),
        (
            json!({"key": "node.kubernetes.io/not-ready", "operator": "Exists",
            "tolerationSeconds": 300}),
            Some(300),
            7,
        ),
        (json!({"key": "mine", "operator": "Exists"}), None, 7),
    ] {
        let mut spec: PodSpec =
            serde_json::from_value(json!({"containers": [], "tolerations": [given]})).expect("one");
        pin(&mut spec, "n1");
        let all = spec.tolerations.unwrap_or_default();
        assert_eq!((all[0].toleration_seconds, all.len()), (seconds, count), "{given}");
    }
}

#[test]
fn an_update_leaves_so_many_serving() {
    // Nodes, how many may be away, pods: `o` and `n` serve, `O` and `N` do not; which go.
    for (nodes_count, down, text, want) in [
        (5, json!(3), "ooooo", "012"),
        (5, json!(3), "nnnoo", "34"),
        (5, json!(3), "NNNoo", ""),
        (5, json!(3), "OOOOO", "01234"),
        (5, json!(3), "nnnnn", ""),
        (5, json!(3), "OOooo", "012"),
        (4, json!("50%"), "oooo", "01"),
        (3, json!("50%"), "ooo", "01"),
        (4, json!(0), "oooo", "0"),
        (5, json!(1), "oooo", ""),
    ] {
        let set = set(json!({"updateStrategy": {"type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": down}}}));
        let pods: Vec<Pod> = text
            .chars()
            .enumerate()
            .map(|(n, c)| {
                let hash = if c.eq_ignore_ascii_case(&'n') { "new" } else { "old" };
                pod(&n.to_string(), &format!("n{}", n + 1), hash, "Running", c.is_lowercase())
            })
            .collect();
        assert_eq!(names(&run(&set, &nodes(nodes_count), &pods)).1.concat(), want, "{down} {text}");
    }
}

#[test]
fn the_status_counts_nodes() {
    let pods = [
        pod("a", "n1", "new", "Running", true),
        pod("b", "n2", "old", "Running", false),
        pod("c", "gone", "old", "Running", false),
    ];
    let pods: Vec<&Pod> = pods.iter().collect();
    let told = status(&set(json!({})), &nodes(3), &pods, "new", Timestamp::UNIX_EPOCH);
    assert_eq!(
        (told.desired_number_scheduled, told.current_number_scheduled, told.number_ready),
        (3, 2, 1)
    );
    assert_eq!(
        (told.updated_number_scheduled, told.number_available, told.number_unavailable),
        (Some(1), Some(1), Some(2))
    );
}
