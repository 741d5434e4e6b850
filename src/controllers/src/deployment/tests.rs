use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::json;

use super::progress::*;
use super::revision::*;
use super::rolling::*;
use super::*;

fn spec(replicas: i32, strategy: serde_json::Value) -> DeploymentSpec {
    serde_json::from_value(
        json!({"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy}),
    )
    .expect("a spec")
}

fn rolling(surge: &str, down: &str) -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": down}})
}

fn set(name: &str, size: i32, available: i32) -> ReplicaSet {
    serde_json::from_value(
        json!({"metadata": {"name": name, "annotations": {REVISION: size.to_string()}},
        "spec": {"replicas": size, "selector": {}},
        "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available}}),
    )
    .expect("a set")
}

#[test]
fn earlier_revisions_are_remembered() {
    let long = "1234567,".repeat(250);
    for (known, want) in [
        ("", "3".to_owned()),
        ("1", "1,3".to_owned()),
        ("1,2", "1,2,3".to_owned()),
        (long.trim_end_matches(','), format!("{}3", &long[8..])),
    ] {
        assert_eq!(remembered(known, "3"), want);
    }
}

#[test]
fn a_roll_out_moves_within_its_bounds() {
    let cases = [
        // (new size/available, old size/available) → (new, old)
        ((0, 0), (4, 4), (1, 4)),
        ((1, 0), (4, 4), (1, 3)),
        ((1, 1), (4, 4), (1, 2)),
        ((1, 1), (3, 3), (2, 3)),
        ((2, 2), (3, 1), (2, 1)),
        ((4, 4), (0, 0), (4, 0)),
        ((4, 4), (1, 1), (4, 0)),
    ];
    for ((size, ready), (old_size, old_ready), (want, old_want)) in cases {
        let (new, old) = (set("new", size, ready), set("old", old_size, old_ready));
        let sizes = sizes(&spec(4, rolling("25%", "25%")), Some(&new), &[&old], false);
        let got = (sizes["new"], sizes.get("old").copied().unwrap_or(old_size));
        assert_eq!(got, (want, old_want), "new {size}/{ready}, old {old_size}/{old_ready}");
    }
}

#[test]
fn a_change_of_size_is_shared_in_proportion() {
    let marked = |name: &str, size: i32, desired: i32, most: i32| {
        let mut set = set(name, size, size);
        set.annotations_mut().insert(DESIRED.into(), desired.to_string());
        set.annotations_mut().insert(MAX.into(), most.to_string());
        set
    };
    for (replicas, new, old, want) in [
        // 10 with surge 3 grow to 20 with surge 5.
        (20, 5, 8, (10, 15)),
        (5, 5, 8, (3, 4)),
        (0, 5, 8, (0, 0)),
    ] {
        let (new, old) = (marked("new", new, 10, 13), marked("old", old, 10, 13));
        let sizes = sizes(&spec(replicas, rolling("25%", "25%")), Some(&new), &[&old], false);
        let sum = sizes["new"] + sizes["old"];
        let most = if replicas > 0 { replicas + (replicas + 3) / 4 } else { 0 };
        assert_eq!(((sizes["new"], sizes["old"]), sum), (want, most), "{replicas}");
    }
    let mut paused = spec(3, rolling("1", "0%"));
    paused.paused = Some(true);
    let (new, empty) = (marked("new", 2, 2, 3), set("old", 0, 0));
    assert_eq!(resized(&paused, Some(&new), &[&empty]), BTreeMap::from([("new".into(), 3)]));
}

#[test]
fn recreate_waits_for_the_old_pods_to_be_gone() {
    let recreate = spec(2, json!({"type": "Recreate"}));
    let (new, old, empty) = (set("new", 0, 0), set("old", 2, 2), set("old", 0, 0));
    assert_eq!(sizes(&recreate, Some(&new), &[&old], true).get("new"), None);
    assert_eq!(sizes(&recreate, Some(&new), &[&empty], true).get("new"), None);
    assert_eq!(sizes(&recreate, Some(&new), &[&empty], false).get("new"), Some(&2));
}

#[test]
fn bounds_are_rounded_as_upstream() {
    for (replicas, surge, down, want) in [
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (4, "0%", "0%", (0, 1)),
        (0, "1%", "1%", (0, 0)),
    ] {
        assert_eq!(bounds(&spec(replicas, rolling(surge, down))), want);
    }
}

#[test]
fn history_is_limited_to_empty_sets() {
    let mut spec = spec(1, json!({}));
    spec.revision_history_limit = Some(1);
    let (a, b, c) = (set("a", 0, 0), set("b", 0, 0), set("c", 1, 1));
    assert_eq!(outdated(&spec, &[&a, &b, &c]), ["a", "b"]);
    spec.revision_history_limit = Some(10);
    assert!(outdated(&spec, &[&a, &b]).is_empty());
}

#[test]
fn a_finished_roll_out_is_told() {
    let deployment: Deployment =
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 3}})).expect("one");
    let (new, spec) = (set("d-1", 2, 2), spec(2, rolling("1", "0%")));
    let told = status(&deployment, &spec, Some(&new), &[], Timestamp::UNIX_EPOCH);
    let reason = |kind| condition(&told, kind).and_then(|c| c.reason.clone());
    assert_eq!(reason("Available").as_deref(), Some("MinimumReplicasAvailable"));
    assert_eq!(reason("Progressing").as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(
        (told.replicas, told.unavailable_replicas, told.observed_generation),
        (Some(2), None, Some(3))
    );
}

#[test]
fn progress_is_told_as_upstream_tells_it() {
    let at = |second| Timestamp::from_second(second).expect("a time");
    let told = |before: serde_json::Value, spec: &DeploymentSpec, new: &ReplicaSet, now| {
        let deployment = json!({"metadata": {"name": "d"}, "status": before});
        let deployment: Deployment = serde_json::from_value(deployment).expect("one");
        let told = status(&deployment, spec, Some(new), &[], at(now));
        condition(&told, "Progressing").and_then(|c| c.reason.clone())
    };
    let known = |reason: &str, replicas: i32| {
        json!({"replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
            "availableReplicas": replicas, "conditions": [{"type": "Progressing", "status": "True",
                "reason": reason, "lastUpdateTime": "1970-01-01T00:00:00Z"}]})
    };
    let plain = spec(3, rolling("1", "0%"));
    let (mut paused, mut patient) = (plain.clone(), plain.clone());
    paused.paused = Some(true);
    patient.progress_deadline_seconds = Some(i32::MAX);
    let (some, all) = (set("d-1", 2, 2), set("d-1", 3, 3));
    for (before, spec, new, now, reason) in [
        (json!({}), &plain, &set("d-1", 0, 0), 0, Some("FoundNewReplicaSet")),
        (known("NewReplicaSetCreated", 0), &plain, &some, 1, Some("ReplicaSetUpdated")),
        (known("NewReplicaSetCreated", 2), &plain, &some, 1, Some("NewReplicaSetCreated")),
        (known("ReplicaSetUpdated", 2), &plain, &some, 601, Some("ProgressDeadlineExceeded")),
        (known("ReplicaSetUpdated", 2), &plain, &all, 601, Some("NewReplicaSetAvailable")),
        // It was rolled out, and only grows: that is not held to the deadline.
        (known("NewReplicaSetAvailable", 1), &plain, &some, 601, Some("NewReplicaSetAvailable")),
        (known("ReplicaSetUpdated", 2), &paused, &some, 1, Some("DeploymentPaused")),
        (known("ProgressDeadlineExceeded", 2), &paused, &some, 1, Some("ProgressDeadlineExceeded")),
        (known("DeploymentPaused", 2), &plain, &some, 601, Some("DeploymentResumed")),
        (known("ReplicaSetUpdated", 2), &patient, &some, 1, None),
    ] {
        assert_eq!(told(before.clone(), spec, new, now).as_deref(), reason, "{before}");
    }
}

#[test]
fn the_hash_ignores_itself() {
    let template = |labels| -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": labels}})).expect("a template")
    };
    let plain = hash(&template(json!({"a": "b"})), 0);
    assert_eq!(plain, hash(&template(json!({"a": "b", HASH: plain})), 0));
    assert_ne!(plain, hash(&template(json!({"a": "c"})), 0));
    assert_ne!(plain, hash(&template(json!({"a": "b"})), 1));
}
