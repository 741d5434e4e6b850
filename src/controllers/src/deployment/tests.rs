use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::progress::*;
use super::revision::*;
use super::rollback::Rollback;
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

/// The sizes that come of it, for all sets.
fn after(spec: &DeploymentSpec, sets: Sets<'_>) -> Vec<(String, i32)> {
    let named = sizes(spec, sets);
    let of = |set: &&ReplicaSet| {
        (set.name_any(), named.get(&set.name_any()).copied().unwrap_or_else(|| size(set)))
    };
    sets.new.iter().chain(sets.old).map(of).collect()
}

fn sets<'a>(new: Option<&'a ReplicaSet>, old: &'a [&'a ReplicaSet]) -> Sets<'a> {
    Sets { new, old, old_pods_run: false, told: 0 }
}

#[test]
fn a_roll_out_moves_within_its_bounds() {
    let cases = [
        // replicas, surge, unavailable, (new size/available), (old size/available) → (new, old)
        (4, "25%", "25%", (0, 0), (4, 4), (1, 4)),
        (4, "25%", "25%", (1, 0), (4, 4), (1, 3)),
        (4, "25%", "25%", (1, 1), (4, 4), (1, 2)),
        (4, "25%", "25%", (1, 1), (3, 3), (2, 3)),
        (4, "25%", "25%", (2, 2), (3, 1), (2, 1)),
        (4, "25%", "25%", (4, 4), (0, 0), (4, 0)),
        (4, "25%", "25%", (4, 4), (1, 1), (4, 0)),
        // Nothing more than the surge allows.
        (10, "0", "0", (0, 0), (10, 10), (0, 9)),
        (10, "2", "0", (0, 0), (10, 10), (2, 10)),
        (10, "2", "0", (0, 0), (5, 5), (7, 5)),
        (10, "2", "0", (2, 0), (10, 10), (2, 10)),
        // Too many of the new ones: they alone at first.
        (10, "2", "0", (11, 11), (2, 2), (10, 2)),
        // Without a surge, within what may be away.
        (10, "0", "2", (0, 0), (10, 10), (0, 8)),
        (10, "0", "2", (0, 0), (10, 8), (0, 8)),
        (10, "0", "2", (0, 0), (10, 9), (0, 8)),
        (10, "0", "2", (2, 0), (8, 8), (2, 8)),
        (10, "0", "2", (0, 0), (10, 1), (0, 8)),
        (10, "2", "2", (4, 4), (8, 8), (4, 4)),
    ];
    for (replicas, surge, down, (size, ready), (old_size, old_ready), want) in cases {
        let amount = |text: &str| text.parse::<i32>().map_or(json!(text), |number| json!(number));
        let strategy = json!({"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": amount(surge), "maxUnavailable": amount(down)}});
        let (new, old) = (set("new", size, ready), set("old", old_size, old_ready));
        let got = after(&spec(replicas, strategy), sets(Some(&new), &[&old]));
        let case = format!("{replicas} {surge} {down}: {size}/{ready}, {old_size}/{old_ready}");
        assert_eq!((got[0].1, got[1].1), want, "{case}");
    }
}

#[test]
fn what_is_broken_of_the_old_goes_first_oldest_first() {
    let at = |name: &str, size: i32, available: i32, hour: i32| {
        let mut set = set(name, size, available);
        let time = format!("2026-01-01T0{hour}:00:00Z").parse().expect("a time");
        set.metadata.creation_timestamp = Some(Time(time));
        set
    };
    let new = set("new", 2, 2);
    let (young, old) = (at("a", 5, 3, 2), at("b", 5, 4, 1));
    let bounds = json!({"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 2}});
    let got = after(&spec(10, bounds), sets(Some(&new), &[&young, &old]));
    // Three broken ones, and of those that work the one that is too many.
    assert_eq!(got[1..], [("a".to_owned(), 3), ("b".to_owned(), 3)]);
}

#[test]
fn a_change_of_size_is_shared_in_proportion() {
    // What was asked for with which surge, then what is; sizes from the newest set to the oldest, and after.
    let cases: &[(i32, i32, i32, i32, bool, &[i32], &[i32])] = &[
        (10, 0, 12, 0, true, &[10], &[12]),
        (10, 0, 5, 0, true, &[10], &[5]),
        (5, 0, 10, 0, true, &[2, 3], &[4, 6]),
        (5, 0, 3, 0, true, &[2, 3], &[1, 2]),
        (9, 0, 4, 0, true, &[8, 1], &[4, 0]),
        (7, 0, 10, 0, true, &[2, 3, 2], &[3, 4, 3]),
        (13, 0, 8, 0, true, &[2, 8, 3], &[1, 5, 2]),
        // What is left over goes to the newest, or is taken from the oldest.
        (3, 0, 4, 0, true, &[1, 1, 1], &[2, 1, 1]),
        (3, 0, 2, 0, true, &[1, 1, 1], &[1, 1, 0]),
        (4, 0, 5, 0, false, &[2, 2], &[3, 2]),
        (6, 0, 0, 0, true, &[3, 2, 1], &[0, 0, 0]),
        (6, 0, 6, 0, true, &[0, 0, 0], &[6, 0, 0]),
        (10, 2, 20, 2, true, &[6, 6], &[11, 11]),
        (10, 3, 50, 6, true, &[5, 8], &[22, 34]),
        (10, 0, 14, 0, false, &[7, 3], &[10, 4]),
        // With none of the new, the latest of the old.
        (0, 0, 3, 0, false, &[0, 0], &[3, 0]),
        (10, 3, 20, 5, true, &[5, 8], &[10, 15]),
        (10, 3, 5, 2, true, &[5, 8], &[3, 4]),
    ];
    for (desired, before, replicas, surge, has_new, from, want) in cases {
        let strategy = json!({"type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": surge, "maxUnavailable": 1}});
        let mut made = Vec::new();
        for (n, size) in from.iter().enumerate() {
            let mut set = set(&format!("s{n}"), *size, *size);
            set.annotations_mut().insert(DESIRED.into(), desired.to_string());
            set.annotations_mut().insert(MAX.into(), (desired + before).to_string());
            let time = format!("2026-01-01T0{}:00:00Z", 9 - n).parse().expect("a time");
            set.metadata.creation_timestamp = Some(Time(time));
            made.push(set);
        }
        let all: Vec<&ReplicaSet> = made.iter().collect();
        let (new, old) = if *has_new { (Some(all[0]), &all[1..]) } else { (None, &all[..]) };
        let named = resized(&spec(*replicas, strategy), sets(new, old));
        let got: Vec<i32> = all
            .iter()
            .map(|s| named.get(&s.name_any()).copied().unwrap_or_else(|| size(s)))
            .collect();
        assert_eq!(got, *want, "{desired}+{before} to {replicas}+{surge}: {from:?}");
    }
}

#[test]
fn only_what_changes_with_the_size_is_written() {
    let mut paused = spec(3, rolling("1", "0%"));
    paused.paused = Some(true);
    let mut new = set("new", 2, 2);
    new.annotations_mut().insert(DESIRED.into(), "2".into());
    let (empty, broken) = (set("old", 0, 0), set("old", 1, 1));
    let named = |new: &ReplicaSet, old: &ReplicaSet| -> Vec<(String, i32)> {
        resized(&paused, sets(Some(new), &[old])).into_iter().collect()
    };
    assert_eq!(named(&new, &empty), [("new".to_owned(), 3)]);
    // A new set that has all its pods leaves nothing for the others, one whose pods do not work does.
    let mut full = set("new", 3, 3);
    full.annotations_mut().insert(DESIRED.into(), "3".into());
    assert_eq!(named(&full, &broken), [("old".to_owned(), 0)]);
    full.status.get_or_insert_default().available_replicas = Some(0);
    assert!(named(&full, &broken).iter().all(|(name, size)| (name == "old") == (*size == 1)));
    // It is of the size already.
    assert!(named(&set("new", 3, 0), &empty).is_empty());
}

#[test]
fn a_part_of_an_unknown_whole_is_one_of_the_pods_that_there_are() {
    let (new, old) = (set("new", 5, 5), set("old", 5, 5));
    let mut paused = spec(20, rolling("0", "1"));
    paused.paused = Some(true);
    for (told, want) in [(10, (10, 10)), (0, (5, 15))] {
        let sizes = resized(&paused, Sets { told, ..sets(Some(&new), &[&old]) });
        assert_eq!((sizes["new"], sizes["old"]), want, "{told}");
    }
}

#[test]
fn recreate_waits_for_the_old_pods_to_be_gone() {
    let recreate = spec(2, json!({"type": "Recreate"}));
    let (new, old, empty) = (set("new", 0, 0), set("old", 2, 2), set("old", 0, 0));
    for (old, old_pods_run, want) in [
        (&old, true, (0, 0)),
        (&old, false, (0, 0)),
        (&empty, true, (0, 0)),
        (&empty, false, (2, 0)),
    ] {
        let old = [old];
        let got = after(&recreate, Sets { old_pods_run, ..sets(Some(&new), &old) });
        assert_eq!((got[0].1, got[1].1), want, "{old_pods_run}");
    }
    let look = |old: &ReplicaSet, old_pods_run| Look {
        deployment: Deployment { spec: Some(recreate.clone()), ..Deployment::default() },
        spec: recreate.clone(),
        new: None,
        old: vec![Arc::new(old.clone())],
        old_pods_run,
    };
    for (old, old_pods_run, rolls_back, want) in [
        (&old, false, false, false),
        (&empty, true, false, false),
        (&empty, false, false, true),
        (&old, true, true, true),
    ] {
        assert_eq!(look(old, old_pods_run).needs_set(rolls_back), want);
    }
}

#[test]
fn a_set_is_made_only_where_one_is_due() {
    let look = |paused, ending: bool, desired: i32| {
        let mut spec = spec(3, rolling("1", "0"));
        spec.paused = Some(paused);
        let mut old = set("old", 3, 3);
        old.annotations_mut().insert(DESIRED.into(), desired.to_string());
        let mut deployment = Deployment { spec: Some(spec.clone()), ..Deployment::default() };
        deployment.metadata.deletion_timestamp = ending.then_some(Time(Timestamp::UNIX_EPOCH));
        Look { deployment, spec, new: None, old: vec![Arc::new(old)], old_pods_run: false }
    };
    for (paused, ending, desired, mode) in [
        (false, false, 3, Mode::Rollout),
        (true, false, 3, Mode::Scale),
        (false, false, 2, Mode::Scale),
        (true, true, 2, Mode::Ending),
    ] {
        let look = look(paused, ending, desired);
        assert_eq!((look.mode(), look.needs_set(false)), (mode, mode == Mode::Rollout));
    }
}

#[test]
fn a_set_keeps_up_with_its_deployment() {
    let deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": "d",
        "annotations": {"a": "new", "b": "b", REVISION: "9", ROLLBACK: "1"}}}))
    .expect("one");
    let plain = spec(3, rolling("1", "0"));
    // Its revision and those before; the number due; what becomes of them.
    for (revision, earlier, number, want, remembered) in [
        (None, None, 1, Some("1"), None),
        (Some("1"), None, 1, Some("1"), None),
        (Some("3"), None, 2, Some("3"), None),
        (Some("1"), None, 4, Some("4"), Some("1")),
        (Some("3"), Some("1"), 4, Some("4"), Some("1,3")),
        (Some("?"), None, 4, Some("?"), None),
    ] {
        let mut one = set("one", 3, 3);
        let annotations = one.annotations_mut();
        annotations.clear();
        annotations.insert("a".into(), "old".into());
        annotations.insert("c".into(), "c".into());
        annotations.extend(revision.map(|text| (REVISION.to_owned(), text.to_owned())));
        annotations.extend(earlier.map(|text| (HISTORY.to_owned(), text.to_owned())));
        let kept = kept_up(&one, &deployment, &plain, number);
        let at = |key: &str| kept.annotations().get(key).map(String::as_str);
        assert_eq!((at(REVISION), at(HISTORY)), (want, remembered), "{revision:?} {number}");
        assert_eq!([at("a"), at("b"), at("c")], [Some("new"), Some("b"), Some("c")]);
        assert_eq!(at(ROLLBACK), None);
    }
}

#[test]
fn an_annotation_asks_for_an_earlier_template() {
    let template = |image: &str| {
        json!({"metadata": {"labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c", "image": image}]}})
    };
    let deployment: Deployment = serde_json::from_value(json!({"metadata": {"name": "d",
            "annotations": {ROLLBACK: "1", "why": "new", REVISION: "3"}},
        "spec": {"selector": {}, "template": template("three")}}))
    .expect("one");
    let of = |number: i64, image: &str| {
        let mut one = set(image, 0, 0);
        one.annotations_mut().insert(REVISION.into(), number.to_string());
        one.annotations_mut().insert("why".into(), image.into());
        one.spec.get_or_insert_default().template =
            serde_json::from_value(template(image)).expect("a template");
        one
    };
    let (one, two, three) = (of(1, "one"), of(2, "two"), of(3, "three"));
    let all = [&one, &two, &three];
    assert_eq!(rollback::asked(&deployment), Some(1));
    for (asked, sets, want) in [
        (1, &all[..], Rollback::To(&one, 1)),
        (0, &all[..], Rollback::To(&two, 2)),
        (3, &all[..], Rollback::Same),
        (0, &all[2..], Rollback::NoLast),
        (7, &all[..], Rollback::Unknown),
    ] {
        assert_eq!(rollback::decide(&deployment, asked, sets), want, "{asked}");
    }
    let granted = rollback::granted(&deployment, &Rollback::To(&one, 1));
    let at = |key: &str| granted.annotations().get(key).map(String::as_str);
    assert_eq!([at(ROLLBACK), at("why"), at(REVISION)], [None, Some("one"), Some("3")]);
    assert_eq!(json!(granted.spec)["template"]["spec"]["containers"][0]["image"], "one");
    let same = rollback::granted(&deployment, &Rollback::Same);
    assert_eq!((&same.spec, same.annotations().len()), (&deployment.spec, 2));
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
    // Those that have pods, are going, or were not yet looked at, are spared in their places.
    let (mut pods, mut going, mut unseen) = (b.clone(), b.clone(), b.clone());
    pods.status.get_or_insert_default().replicas = 1;
    going.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    unseen.metadata.generation = Some(1);
    assert_eq!(outdated(&spec, &[&a, &pods, &c]), ["a"]);
    assert_eq!(outdated(&spec, &[&a, &going, &c]), ["a"]);
    assert_eq!(outdated(&spec, &[&a, &unseen, &c]), ["a"]);
    spec.revision_history_limit = Some(10);
    assert!(outdated(&spec, &[&a, &b]).is_empty());
}

#[test]
fn a_finished_roll_out_is_told() {
    let deployment: Deployment =
        serde_json::from_value(json!({"metadata": {"name": "d", "generation": 3}})).expect("one");
    let (new, spec) = (set("d-1", 2, 2), spec(2, rolling("1", "0%")));
    let now = Timestamp::UNIX_EPOCH;
    let told = status(&deployment, &spec, Some(&new), &[], Mode::Rollout, now);
    let reason = |kind| condition(&told, kind).and_then(|c| c.reason.clone());
    assert_eq!(reason("Available").as_deref(), Some("MinimumReplicasAvailable"));
    assert_eq!(reason("Progressing").as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(
        (told.replicas, told.unavailable_replicas, told.observed_generation),
        (Some(2), None, Some(3))
    );
}

fn told_before(reason: &str, replicas: i32) -> serde_json::Value {
    json!({"replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas,
        "availableReplicas": replicas, "conditions": [{"type": "Progressing", "status": "True",
            "reason": reason, "lastUpdateTime": "1970-01-01T00:00:00Z"}]})
}

#[test]
fn progress_is_told_as_upstream_tells_it() {
    let at = |ms| Timestamp::from_millisecond(ms).expect("a time");
    let told = |before: serde_json::Value, spec: &DeploymentSpec, new: &ReplicaSet, mode, ms| {
        let deployment = json!({"metadata": {"name": "d"}, "status": before});
        let deployment: Deployment = serde_json::from_value(deployment).expect("one");
        let told = status(&deployment, spec, Some(new), &[], mode, at(ms));
        let condition = condition(&told, "Progressing").cloned();
        condition.map(|c| (c.status, c.reason.unwrap_or_default()))
    };
    let plain = spec(3, rolling("1", "0%"));
    let (mut paused, mut patient) = (plain.clone(), plain.clone());
    paused.paused = Some(true);
    patient.progress_deadline_seconds = Some(i32::MAX);
    let (some, all) = (set("d-1", 2, 2), set("d-1", 3, 3));
    let (rollout, scale, ending) = (Mode::Rollout, Mode::Scale, Mode::Ending);
    let known = told_before;
    let (none, rolled) = (&set("d-1", 0, 0), "NewReplicaSetAvailable");
    let (made, found) = ("NewReplicaSetCreated", "FoundNewReplicaSet");
    let (updated, late) = ("ReplicaSetUpdated", "ProgressDeadlineExceeded");
    let (halted, resumed) = ("DeploymentPaused", "DeploymentResumed");
    for (before, spec, new, mode, ms, status, reason) in [
        (json!({}), &plain, none, rollout, 0, "True", found),
        (json!({}), &plain, &some, scale, 0, "True", found),
        (known(made, 0), &plain, &some, rollout, 1, "True", updated),
        (known(made, 2), &plain, &some, rollout, 1, "True", made),
        (known(updated, 2), &plain, &some, rollout, 600_000, "True", updated),
        (known(updated, 2), &plain, &some, rollout, 600_001, "False", late),
        (known(updated, 2), &plain, &all, rollout, 601_000, "True", rolled),
        // It was rolled out, and only grows: that is not held to the deadline.
        (known(rolled, 1), &plain, &some, rollout, 601_000, "True", rolled),
        // While only the size changes nothing is judged.
        (known(updated, 1), &plain, &some, scale, 601_000, "True", updated),
        (known(updated, 2), &paused, &some, scale, 1, "Unknown", halted),
        (known(updated, 2), &paused, &some, ending, 1, "True", updated),
        (known(late, 2), &paused, &some, scale, 1, "True", late),
        (known(halted, 2), &plain, &some, rollout, 601_000, "Unknown", resumed),
        (known(halted, 1), &plain, &some, rollout, 601_000, "True", updated),
    ] {
        let got = told(before.clone(), spec, new, mode, ms);
        assert_eq!(got, Some((status.into(), reason.into())), "{before} {mode:?}");
    }
    assert_eq!(told(known(updated, 2), &patient, &some, rollout, 1), None);
}

#[test]
fn conditions_keep_their_places_and_times() {
    let deployment = |status: serde_json::Value| -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "status": status})).expect("one")
    };
    let plain = spec(3, rolling("1", "0%"));
    let (some, old) = (set("d-1", 2, 2), set("d-0", 2, 2));
    let now = Timestamp::from_second(60).expect("a time");
    let first = deployment(told_before("ReplicaSetUpdated", 1));
    let told = status(&first, &plain, Some(&some), &[&old], Mode::Rollout, now);
    let kinds: Vec<_> = told.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, ["Available", "Progressing"]);
    // The same look again changes nothing, although time has passed.
    let again = deployment(json!(told));
    let later = Timestamp::from_second(90).expect("a time");
    assert_eq!(status(&again, &plain, Some(&some), &[&old], Mode::Rollout, later), told);
    // More pods: the same reason as of now, the status since when it was.
    let moved = status(&again, &plain, Some(&set("d-1", 3, 3)), &[&old], Mode::Rollout, later);
    let progress = condition(&moved, "Progressing").expect("one").clone();
    let before = condition(&told, "Progressing").expect("one");
    assert_eq!(progress.last_update_time, Some(Time(later)));
    assert_eq!(progress.last_transition_time, before.last_transition_time);
}

#[test]
fn why_pods_cannot_be_made_is_passed_on() {
    let failing = |name: &str, message: &str| {
        let mut one = set(name, 1, 0);
        one.status.get_or_insert_default().conditions = serde_json::from_value(json!([
            {"type": "ReplicaFailure", "status": "True", "reason": "FailedDelete",
                "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z"}]))
        .expect("conditions");
        one
    };
    let (fine, new, old) = (set("d-1", 1, 0), failing("d-1", "new"), failing("d-0", "old"));
    let deployment = Deployment::default();
    let plain = spec(3, rolling("1", "0%"));
    for (new, old, mode, want) in [
        (&new, &old, Mode::Rollout, Some("new")),
        (&fine, &old, Mode::Rollout, Some("old")),
        (&fine, &fine, Mode::Rollout, None),
        (&new, &old, Mode::Scale, None),
    ] {
        let told = status(&deployment, &plain, Some(new), &[old], mode, Timestamp::UNIX_EPOCH);
        let failure = condition(&told, "ReplicaFailure").cloned();
        let message = failure.as_ref().and_then(|c| c.message.as_deref());
        assert_eq!(message, want);
        if let Some(failure) = &failure {
            assert_eq!(failure.reason.as_deref(), Some("FailedDelete"));
            assert_eq!(failure.last_update_time, failure.last_transition_time);
        }
    }
}

#[test]
fn stuck_ones_are_looked_at_when_their_time_is_over() {
    let plain = spec(3, rolling("1", "0%"));
    let mut patient = plain.clone();
    patient.progress_deadline_seconds = Some(i32::MAX);
    for (before, spec, second, want) in [
        (told_before("ReplicaSetUpdated", 2), &plain, 180, Some(421)),
        (told_before("ReplicaSetUpdated", 2), &plain, 600, Some(1)),
        (told_before("ReplicaSetUpdated", 2), &plain, 900, Some(1)),
        (told_before("ReplicaSetUpdated", 3), &plain, 180, None),
        (told_before("NewReplicaSetAvailable", 2), &plain, 180, None),
        (told_before("ProgressDeadlineExceeded", 2), &plain, 180, None),
        (told_before("ReplicaSetUpdated", 2), &patient, 180, None),
        (json!({}), &plain, 180, None),
    ] {
        let status = serde_json::from_value(before.clone()).expect("a status");
        let now = Timestamp::from_second(second).expect("a time");
        let next = next_judgement(spec, &status, now).map(|after| after.as_secs());
        assert_eq!(next, want, "{before} {second}");
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
