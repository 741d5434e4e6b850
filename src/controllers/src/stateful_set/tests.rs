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
        (json!({"partition": 2}), "0old 1old 2", vec![]),
        (json!({"maxUnavailable": 2}), "0old 1old 2old", vec![2, 1]),
        (json!({}), "0 1 2", vec![]),
    ] {
        assert_eq!(plan(&rolling(bounds.clone()), text, ROLLING).update, want, "{bounds} {text}");
    }
    let manual = set(json!({"updateStrategy": {"type": "OnDelete"}}));
    assert!(plan(&manual, "0old 1old 2old", ROLLING).update.is_empty());
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
    let claim = |owners: Value| -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "ownerReferences": owners}}))
            .expect("a claim")
    };
    let with = |deleted: &str, scaled: &str| {
        set(
            json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}),
        )
    };
    let pod = &pods("3")[0];
    let kinds = |set: &StatefulSet, owners: Value, condemned: bool| {
        let owners = retention::owners(set, &claim(owners), Some(pod), condemned)?;
        Some(owners.into_iter().map(|owner| owner.kind).collect::<Vec<_>>())
    };
    let set_owner =
        json!([{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "w", "uid": "u"}]);
    assert_eq!(kinds(&with("Retain", "Retain"), json!([]), false), None);
    assert_eq!(
        kinds(&with("Delete", "Retain"), json!([]), false),
        Some(vec!["StatefulSet".into()])
    );
    assert_eq!(kinds(&with("Retain", "Retain"), set_owner.clone(), false), Some(vec![]));
    assert_eq!(kinds(&with("Delete", "Delete"), set_owner, true), Some(vec!["Pod".into()]));
}
