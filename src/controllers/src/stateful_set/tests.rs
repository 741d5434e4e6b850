use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::decide::{Plan, Revisions, decide, status};
use super::{identity, retention};
use crate::history::HASH;

const SAME: Revisions<'_> = Revisions { current: "new", update: "new" };
const ROLLING: Revisions<'_> = Revisions { current: "old", update: "new" };

fn set(spec: Value) -> StatefulSet {
    let mut all = json!({"selector": {"matchLabels": {"a": "b"}}, "serviceName": "s", "replicas": 3,
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    serde_json::from_value(
        json!({"metadata": {"name": "w", "namespace": "n", "uid": "u"}, "spec": all,
        "status": {"replicas": 0, "currentReplicas": 0}}),
    )
    .expect("a set")
}

/// `0 1- 2!old`: ordinals; `-` is not ready, `!` is going, `x` has failed; then the revision.
fn pods(text: &str) -> Vec<Pod> {
    text.split_whitespace()
        .map(|word| {
            let end = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
            let (ordinal, rest) = word.split_at(end);
            let ready = if rest.contains('-') { "False" } else { "True" };
            let going = rest.contains('!').then_some("2026-01-01T00:00:00Z");
            let phase = if rest.contains('x') { "Failed" } else { "Running" };
            let revision = if rest.ends_with("old") { "old" } else { "new" };
            serde_json::from_value(json!({
                "metadata": {"name": format!("w-{ordinal}"), "uid": ordinal,
                    "labels": {HASH: revision}, "deletionTimestamp": going},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready,
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .expect("a pod")
        })
        .collect()
}

fn plan(set: &StatefulSet, text: &str, revisions: Revisions<'_>) -> Plan {
    let pods = pods(text);
    let now = "2026-01-01T01:00:00Z".parse().expect("a time");
    decide(set, &pods.iter().collect::<Vec<_>>(), revisions, now)
}

#[test]
fn pods_come_and_go_in_order() {
    let ordered = set(json!({}));
    for (text, create, condemn) in [
        ("", vec![0], vec![]),
        ("0-", vec![], vec![]),
        ("0", vec![1], vec![]),
        ("0 2", vec![1], vec![]),
        ("0 1 2 3 4", vec![], vec![4]),
        ("0 1 2 3 4!", vec![], vec![]),
        ("0 1 2- 3", vec![], vec![]),
        ("0 1 2 3-", vec![], vec![3]),
    ] {
        let plan = plan(&ordered, text, SAME);
        let made: Vec<i32> = plan.create.iter().map(|(ordinal, _)| *ordinal).collect();
        assert_eq!((made, plan.condemn), (create, condemn), "{text}");
    }
    let parallel = set(json!({"podManagementPolicy": "Parallel"}));
    assert_eq!(plan(&parallel, "1-", SAME).create.len(), 2);
    assert_eq!(plan(&parallel, "0 1 2 3 4", SAME).condemn, [4, 3]);
    let late = set(json!({"ordinals": {"start": 5}, "replicas": 2}));
    assert_eq!(plan(&late, "0 5", SAME).create, [(6, true)]);
    assert_eq!(plan(&ordered, "0x 1", SAME).restart, [(0, true)]);
}

#[test]
fn an_update_starts_at_the_end() {
    let rolling = |bounds: Value| {
        set(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": bounds}}))
    };
    for (bounds, text, want) in [
        (json!({}), "0old 1old 2old", vec![2]),
        (json!({}), "0old 1old 2", vec![1]),
        (json!({}), "0old 1old 2-", vec![]),
        (json!({}), "0old 1old 2!old", vec![]),
        (json!({}), "0-old 1old 2old", vec![]),
        (json!({"partition": 2}), "0old 1old 2", vec![]),
        (json!({"partition": 2}), "0old 1old 2old", vec![2]),
        (json!({"partition": 9}), "0old 1old 2old", vec![]),
        (json!({"maxUnavailable": 2}), "0old 1old 2old", vec![2, 1]),
        (json!({"maxUnavailable": "50%"}), "0old 1old 2old", vec![2]),
        (json!({"maxUnavailable": "10%"}), "0old 1old 2old", vec![2]),
        (json!({"maxUnavailable": 9}), "0old 1old 2old", vec![2, 1, 0]),
        (json!({"maxUnavailable": 2, "partition": 2}), "0old 1old 2old", vec![2]),
        (json!({}), "0 1 2", vec![]),
    ] {
        assert_eq!(plan(&rolling(bounds.clone()), text, ROLLING).update, want, "{bounds} {text}");
    }
    let manual = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    assert!(plan(&manual, "0old 1old 2old", ROLLING).update.is_empty());
}

#[test]
fn side_by_side_what_does_not_serve_is_updated_first() {
    for (replicas, partition, down, text, want) in [
        (1, 0, 1, "0-old", vec![0]),
        (3, 0, 1, "0old 1old 2old", vec![2]),
        (3, 0, 1, "0old 1old 2-old", vec![2]),
        (5, 0, 2, "0old 1old 2old 3-old 4-old", vec![4, 3]),
        // One that is going takes the room of another.
        (3, 0, 1, "0old 1old 2!old", vec![]),
        (5, 0, 3, "0old 1old 2old 3-old 4!old", vec![3, 2]),
        (5, 0, 3, "0old 1old 2old 3!old 4-old", vec![4, 2]),
        // So does one that is not there yet, or is not updated.
        (3, 0, 1, "0old 1old", vec![]),
        (3, 0, 2, "0old 1old", vec![1]),
        (3, 0, 1, "0old 1old 2-", vec![]),
        (5, 2, 1, "0old 1old 2old 3old 4-old", vec![4]),
        (5, 2, 1, "0old 1old 2-old 3old 4old", vec![2]),
        (5, 2, 1, "0old 1-old 2old 3old 4old", vec![]),
        (5, 3, 2, "0old 1old 2old 3-old 4-old", vec![4, 3]),
        (5, 3, 2, "0old 1-old 2old 3old 4-old", vec![4]),
        // Those that serve stay while lower ones do not.
        (4, 0, 2, "0-old 1-old 2old 3old", vec![1, 0]),
        (5, 0, 3, "0-old 1-old 2old 3old 4old", vec![1, 0, 4]),
    ] {
        let set = set(json!({"replicas": replicas, "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "RollingUpdate",
                "rollingUpdate": {"partition": partition, "maxUnavailable": down}}}));
        assert_eq!(plan(&set, text, ROLLING).update, want, "{partition} {down}: {text}");
    }
}

#[test]
fn side_by_side_they_are_updated_one_by_one_unless_more_may_be_down() {
    for (partition, text, want) in [
        (0, "0old 1old 2old", vec![2]),
        (0, "0old 1old 2-old", vec![2]),
        (0, "0-old 1-old 2old", vec![2]),
        (0, "0-old 1-old 2", vec![1]),
        (0, "0old 1old 2!old", vec![]),
        (0, "0old 1old 2-", vec![]),
        (0, "0old 1old", vec![]),
        (0, "0old 1 2", vec![0]),
        (2, "0old 1old 2", vec![]),
        (5, "0old 1old 2old", vec![]),
    ] {
        let set = set(json!({"podManagementPolicy": "Parallel", "updateStrategy":
            {"type": "RollingUpdate", "rollingUpdate": {"partition": partition}}}));
        assert_eq!(plan(&set, text, ROLLING).update, want, "{partition}: {text}");
    }
}

#[test]
fn pods_that_are_ready_too_briefly_do_not_serve_yet() {
    for (policy, want) in [("Parallel", vec![2]), ("OrderedReady", vec![])] {
        let set = set(json!({"minReadySeconds": 7200, "podManagementPolicy": policy}));
        assert_eq!(plan(&set, "0old 1old 2old", ROLLING).update, want, "{policy}");
    }
}

#[test]
fn a_lost_pod_comes_back_at_its_revision() {
    let partial = set(
        json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}),
    );
    assert_eq!(plan(&partial, "1old 2", ROLLING).create, [(0, false)]);
    assert_eq!(plan(&partial, "0old 1old", ROLLING).create, [(2, true)]);
    // Without a part that stays the update goes on with whatever is missing.
    let mut whole = set(
        json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}}),
    );
    whole.status.get_or_insert_default().current_replicas = Some(2);
    assert_eq!(plan(&whole, "1old 2", ROLLING).create, [(0, true)]);
    let manual = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    // Whoever deleted it wanted it anew.
    assert_eq!(plan(&manual, "1old 2old", ROLLING).create, [(0, true)]);
}

#[test]
fn the_status_follows_the_pods() {
    let tell = |text: &str| {
        let pods = pods(text);
        let all: Vec<&Pod> = pods.iter().collect();
        status(&set(json!({})), &all, ROLLING, None, Timestamp::now())
    };
    let during = tell("0old 1old 2-");
    assert_eq!((during.replicas, during.ready_replicas), (3, Some(2)));
    assert_eq!((during.current_replicas, during.updated_replicas), (Some(2), Some(1)));
    assert_eq!(during.current_revision.as_deref(), Some("old"));
    let done = tell("0 1 2");
    assert_eq!((done.current_replicas, done.current_revision.as_deref()), (Some(3), Some("new")));
}

#[test]
fn a_pod_that_forgot_who_it_is_is_told() {
    let mut pod = pods("1").remove(0);
    let want =
        json!({"statefulset.kubernetes.io/pod-name": "w-1", "apps.kubernetes.io/pod-index": "1"});
    assert_eq!(identity::missing_labels(&pod, 1), Some(want));
    for key in ["statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"] {
        let value = if key.ends_with("name") { "w-1" } else { "1" };
        pod.labels_mut().insert(key.into(), value.into());
    }
    assert_eq!(identity::missing_labels(&pod, 1), None);
}

#[test]
fn pods_have_names_and_claims() {
    let set = set(json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}));
    let template = &set.spec.as_ref().expect("a spec").template;
    let pod = identity::pod(&set, template, "r", 1);
    let spec = pod.spec.as_ref().expect("a spec");
    assert_eq!((pod.name_any().as_str(), spec.hostname.as_deref()), ("w-1", Some("w-1")));
    assert_eq!(spec.subdomain.as_deref(), Some("s"));
    assert_eq!(pod.labels()["apps.kubernetes.io/pod-index"], "1");
    let volume = &spec.volumes.as_ref().expect("volumes")[0];
    assert_eq!(volume.persistent_volume_claim.as_ref().expect("a claim").claim_name, "data-w-1");
    let claim = &identity::claims(&set, 1)[0];
    assert_eq!((claim.name_any().as_str(), claim.labels()["a"].as_str()), ("data-w-1", "b"));
}

#[test]
fn claims_go_when_the_policy_says_so() {
    let owner = |who: &str, controls: bool| {
        let (version, kind, name, uid) = match who {
            "set" => ("apps/v1", "StatefulSet", "w", "u"),
            "set before" => ("apps/v1", "StatefulSet", "w", "other"),
            "pod" => ("v1", "Pod", "w-3", "3"),
            "pod before" => ("v1", "Pod", "w-3", "other"),
            _ => ("example.com/v1", "Other", "o", "o"),
        };
        json!({"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": controls,
            "blockOwnerDeletion": true})
    };
    let (retain, delete) = ("Retain", "Delete");
    let (set_, pod_, other) = (owner("set", true), owner("pod", true), owner("other", false));
    let foreign = owner("other", true);
    // When deleted, when scaled, who owns it, whether the pod is one too many; who shall own it.
    for (deleted, scaled, owners, condemned, want) in [
        (retain, retain, json!([]), false, None),
        (retain, retain, json!([set_]), false, Some(vec![])),
        (retain, retain, json!([pod_, set_]), true, Some(vec![])),
        (retain, retain, json!([other, set_]), true, Some(vec!["Other"])),
        (retain, retain, json!([foreign]), false, None),
        (delete, retain, json!([]), false, Some(vec!["StatefulSet"])),
        (delete, retain, json!([set_]), false, None),
        (delete, retain, json!([set_]), true, None),
        (delete, retain, json!([pod_]), true, Some(vec!["StatefulSet"])),
        (delete, retain, json!([other]), true, Some(vec!["Other", "StatefulSet"])),
        (retain, delete, json!([]), false, None),
        (retain, delete, json!([]), true, Some(vec!["Pod"])),
        (retain, delete, json!([pod_]), true, None),
        (retain, delete, json!([pod_]), false, Some(vec![])),
        (retain, delete, json!([set_]), false, Some(vec![])),
        (delete, delete, json!([set_]), false, None),
        (delete, delete, json!([set_]), true, Some(vec!["Pod"])),
        (delete, delete, json!([pod_]), false, Some(vec!["StatefulSet"])),
        // An owner of ours controls it.
        (delete, retain, json!([owner("set", false)]), false, Some(vec!["StatefulSet"])),
        (retain, delete, json!([owner("pod", false)]), true, Some(vec!["Pod"])),
        // Somebody else's is left to them, and ours taken away.
        (delete, delete, json!([foreign]), false, None),
        (delete, retain, json!([foreign, set_]), false, Some(vec!["Other"])),
        // Those of before are not ours: the garbage collector sees to them.
        (delete, delete, json!([owner("set before", true)]), false, None),
        (delete, delete, json!([owner("pod before", true)]), true, None),
    ] {
        let policy = json!({"whenDeleted": deleted, "whenScaled": scaled});
        let set = set(json!({"persistentVolumeClaimRetentionPolicy": policy}));
        let claim: PersistentVolumeClaim =
            serde_json::from_value(json!({"metadata": {"name": "c", "ownerReferences": owners}}))
                .expect("a claim");
        let pod = &pods("3")[0];
        let change = retention::change(&set, &claim, ("w-3", Some(pod)), condemned);
        let case = format!("{deleted} {scaled} {owners} {condemned}");
        let conflict = change.as_ref().is_some_and(|change| change.conflict);
        assert_eq!(conflict, owners == json!([foreign, set_]), "{case}");
        if let Some(change) = &change {
            let own = change.owners.iter().filter(|owner| owner.kind != "Other");
            assert!(own.clone().all(|owner| owner.controller == Some(true)), "{case}");
        }
        let kinds =
            change.map(|c| c.owners.into_iter().map(|owner| owner.kind).collect::<Vec<_>>());
        assert_eq!(
            kinds,
            want.map(|kinds| kinds.into_iter().map(String::from).collect()),
            "{case}"
        );
    }
}

#[test]
fn a_claim_that_goes_with_a_pod_is_not_counted_on() {
    let claim = |name: &str| -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "other"}]}}))
        .expect("a claim")
    };
    for (scaled, owner, want) in
        [("Delete", "w-3", true), ("Delete", "w-2", false), ("Retain", "w-3", false)]
    {
        let policy = json!({"whenScaled": scaled, "whenDeleted": "Delete"});
        let set = set(json!({"persistentVolumeClaimRetentionPolicy": policy}));
        assert_eq!(retention::is_stale(&set, &claim(owner), "w-3"), want, "{scaled} {owner}");
    }
}
