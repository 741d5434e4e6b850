use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::decide::{FINALIZER, Plan, decide, holds};
use super::indexes::{FAILURES, INDEX};
use super::prefix;

fn now() -> Timestamp {
    "2026-01-01T01:00:00Z".parse().expect("a time")
}

fn job(spec: Value, status: Value) -> Job {
    let mut all = json!({"selector": {}, "template": {"spec": {"containers": []}}, "parallelism": 2,
        "completions": 3, "backoffLimit": 6, "podReplacementPolicy": "TerminatingOrFailed"});
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": "j", "namespace": "n", "uid": "u"},
        "spec": all, "status": status}))
    .expect("a job")
}

fn pod(name: &str, phase: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "uid": name, "finalizers": [FINALIZER]},
        "status": {"phase": phase, "containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}}}]}})
}

fn indexed(name: &str, phase: &str, index: i32) -> Value {
    let mut pod = pod(name, phase);
    pod["metadata"]["annotations"] = json!({INDEX: index.to_string(), FAILURES: "0"});
    pod
}

fn plan(job: &Job, pods: &[Value]) -> Plan {
    let pods: Vec<Box<Pod>> = pods
        .iter()
        .map(|pod| Box::new(serde_json::from_value(pod.clone()).expect("a pod")))
        .collect();
    decide(job, &pods, now())
}

fn conditions(plan: &Plan) -> Vec<String> {
    let all = plan.status.conditions.iter().flatten();
    all.filter(|c| c.status == "True").map(|c| c.type_.clone()).collect()
}

#[test]
fn as_many_pods_run_as_should() {
    let cases = [
        // spec, pods → made, deleted
        (json!({}), vec![], 2, 0),
        (json!({"parallelism": 9}), vec![], 3, 0),
        (json!({}), vec![pod("a", "Running")], 1, 0),
        (json!({"parallelism": 1}), vec![pod("a", "Running"), pod("b", "Pending")], 0, 1),
        (json!({}), vec![pod("a", "Succeeded"), pod("b", "Succeeded")], 1, 0),
        (json!({"completions": null}), vec![pod("a", "Succeeded"), pod("b", "Running")], 0, 0),
        (json!({"suspend": true}), vec![pod("a", "Running")], 0, 1),
    ];
    for (spec, pods, made, deleted) in cases {
        let plan = plan(&job(spec.clone(), json!({})), &pods);
        assert_eq!((plan.create.len(), plan.delete.len()), (made, deleted), "{spec}");
    }
}

#[test]
fn ends_are_noted_released_and_counted_once() {
    let job_0 = job(json!({"completions": 1}), json!({"startTime": "2026-01-01T00:00:00Z"}));
    let first = plan(&job_0, &[pod("a", "Succeeded")]);
    let uncounted = first.status.uncounted_terminated_pods.clone().expect("some");
    assert_eq!(uncounted.succeeded, Some(vec!["a".into()]));
    assert_eq!((first.release.as_slice(), first.status.succeeded), (&["a".to_owned()][..], None));
    assert_eq!(conditions(&first), ["SuccessCriteriaMet"]);

    let mut job_1 = job_0.clone();
    job_1.status = Some(first.status);
    let mut free = pod("a", "Succeeded");
    free["metadata"]["finalizers"] = json!([]);
    let second = plan(&job_1, &[free.clone()]);
    assert_eq!(second.status.succeeded, Some(1));
    assert_eq!(conditions(&second), ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(second.events[0].reason, "Completed");
    assert!(second.status.completion_time.is_some() && second.release.is_empty());

    // A pod that is gone was counted as well.
    assert_eq!(plan(&job_1, &[]).status.succeeded, Some(1));
}

#[test]
fn too_many_failures_end_the_job() {
    let limited = job(json!({"backoffLimit": 1}), json!({"failed": 1}));
    let first = plan(&limited, &[pod("a", "Failed"), pod("b", "Running")]);
    assert_eq!(
        (conditions(&first), first.delete.as_slice()),
        (vec!["FailureTarget".into()], &["b".to_owned()][..])
    );
    let found = holds(&first.status, "FailureTarget").expect("it failed");
    assert_eq!(found.reason.as_deref(), Some("BackoffLimitExceeded"));
    assert!(holds(&plan(&limited, &[]).status, "FailureTarget").is_none());

    let late =
        job(json!({"activeDeadlineSeconds": 10}), json!({"startTime": "2026-01-01T00:00:00Z"}));
    let found = plan(&late, &[]);
    let reason = holds(&found.status, "Failed").and_then(|c| c.reason.clone());
    assert_eq!(reason.as_deref(), Some("DeadlineExceeded"));
}

#[test]
fn failures_delay_the_next_try() {
    let mut recent = pod("a", "Failed");
    recent["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] =
        json!("2026-01-01T00:59:57Z");
    let waiting = plan(&job(json!({}), json!({})), &[recent]);
    assert_eq!((waiting.create.len(), waiting.again), (0, Some(Duration::from_secs(7))));
    assert_eq!(plan(&job(json!({}), json!({})), &[pod("a", "Failed")]).create.len(), 2);
}

/// A pod that ended so many seconds before now.
fn ended(name: &str, phase: &str, ago_s: i64) -> Value {
    let mut pod = pod(name, phase);
    let at = now() - k8s_openapi::jiff::SignedDuration::from_secs(ago_s);
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] =
        json!(at.to_string());
    pod
}

#[test]
fn each_failure_in_a_row_doubles_the_delay() {
    // Failures and successes by their age; how long is waited.
    for (failed, succeeded, want) in [
        (&[][..], &[][..], None),
        (&[2], &[], Some(8)),
        (&[2, 30], &[], Some(18)),
        (&[0, 30, 60], &[], Some(40)),
        (&[45, 50, 60], &[], None),
        (&[0, 1, 2, 3, 4, 5, 6], &[], Some(600)),
        (&[0, 1, 2, 3, 4, 5, 6, 7], &[], Some(600)),
        // A success begins anew.
        (&[2, 30], &[10], Some(8)),
        (&[2, 30], &[1], None),
        (&[30], &[20], None),
    ] {
        let mut pods: Vec<Value> =
            failed.iter().map(|ago| ended(&format!("f{ago}"), "Failed", *ago)).collect();
        pods.extend(succeeded.iter().map(|ago| ended(&format!("s{ago}"), "Succeeded", *ago)));
        let spec = json!({"completions": 100, "parallelism": 1, "backoffLimit": 100});
        let plan = plan(&job(spec, json!({})), &pods);
        let again = plan.again.map(|again| again.as_secs());
        assert_eq!((again, plan.create.is_empty()), (want, want.is_some()), "{failed:?}");
    }
}

#[test]
fn the_end_of_a_pod_is_found_somewhere() {
    let (at, deleted) = ("2026-01-01T00:00:30Z", "2026-01-01T00:01:00Z");
    let terminated = |at: &str| {
        json!({"name": "c", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": 1, "finishedAt": at}}})
    };
    let running = json!({"name": "c", "image": "", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"running": {}}});
    let unready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": at}]);
    for (status, want) in [
        (json!({"containerStatuses": [terminated(at), terminated("2026-01-01T00:00:20Z")]}), at),
        (json!({"containerStatuses": [terminated(deleted), running], "conditions": unready}), at),
        (json!({"conditions": unready}), at),
        (
            json!({"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": deleted}]}),
            "2026-01-01T00:00:45Z",
        ),
        (json!({}), "2026-01-01T00:00:45Z"),
    ] {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"creationTimestamp": deleted,
            "deletionTimestamp": deleted, "deletionGracePeriodSeconds": 15}, "status": status}))
        .expect("a pod");
        let found = crate::pods::finished_at(&pod).map(|at| at.to_string());
        assert_eq!(found.as_deref(), Some(want), "{status}");
    }
    let made: Pod =
        serde_json::from_value(json!({"metadata": {"creationTimestamp": at}})).expect("one");
    assert_eq!(crate::pods::finished_at(&made).map(|at| at.to_string()).as_deref(), Some(at));
}

#[test]
fn restarts_in_place_count_towards_the_limit() {
    let restarted = |phase: &str, init: i32, regular: i32| {
        let mut pod = pod("a", phase);
        pod["status"]["containerStatuses"][0]["restartCount"] = json!(regular);
        pod["status"]["initContainerStatuses"] = json!([{"name": "i", "image": "", "imageID": "",
            "ready": false, "restartCount": init}]);
        pod
    };
    for (policy, limit, pod, want) in [
        ("OnFailure", 3, restarted("Running", 1, 1), false),
        ("OnFailure", 3, restarted("Running", 1, 2), true),
        ("OnFailure", 3, restarted("Pending", 3, 0), true),
        ("OnFailure", 0, restarted("Running", 0, 0), false),
        ("OnFailure", 0, restarted("Running", 0, 1), true),
        ("OnFailure", 3, restarted("Succeeded", 9, 9), false),
        ("Never", 3, restarted("Running", 9, 9), false),
    ] {
        let template = json!({"spec": {"containers": [], "restartPolicy": policy}});
        let job = job(json!({"backoffLimit": limit, "template": template}), json!({}));
        let reason =
            holds(&plan(&job, &[pod]).status, "FailureTarget").and_then(|c| c.reason.clone());
        assert_eq!(reason.is_some(), want, "{policy} {limit}");
        assert!(reason.is_none_or(|reason| reason == "BackoffLimitExceeded"));
    }
}

#[test]
fn rules_of_success_are_looked_at_in_order() {
    for (rules, succeeded, want) in [
        (json!([]), vec![0, 1], None),
        (json!([{"succeededCount": 2}]), vec![0], None),
        (json!([{"succeededCount": 2}]), vec![0, 4], Some(0)),
        (json!([{"succeededIndexes": "0-2"}]), vec![0, 1], None),
        (json!([{"succeededIndexes": "0-2"}]), vec![0, 1, 2], Some(0)),
        (json!([{"succeededIndexes": "0-2", "succeededCount": 2}]), vec![0, 4], None),
        (json!([{"succeededIndexes": "0-2", "succeededCount": 2}]), vec![0, 2], Some(0)),
        (json!([{"succeededIndexes": "3"}, {"succeededCount": 1}]), vec![0], Some(1)),
        (json!([{"succeededIndexes": "3"}, {"succeededCount": 1}]), vec![3], Some(0)),
    ] {
        let spec = json!({"completionMode": "Indexed", "completions": 5, "parallelism": 5,
            "successPolicy": {"rules": rules}});
        let pods: Vec<Value> = succeeded
            .iter()
            .map(|index| indexed(&format!("p{index}"), "Succeeded", *index))
            .collect();
        let plan = plan(&job(spec, json!({})), &pods);
        let met = holds(&plan.status, "SuccessCriteriaMet");
        let message = want.map(|rule| format!("Matched rules at index {rule}"));
        assert_eq!(met.and_then(|c| c.message.clone()), message, "{rules} {succeeded:?}");
        assert!(met.is_none_or(|c| c.reason.as_deref() == Some("SuccessPolicy")));
    }
}

#[test]
fn failed_indexes_may_be_too_many() {
    for (max, completed, failed, completions, want) in [
        (json!(null), "", vec![0], 3, None),
        (json!(0), "", vec![0], 3, Some("MaxFailedIndexesExceeded")),
        (json!(1), "", vec![0], 3, None),
        (json!(1), "", vec![0, 1], 3, Some("MaxFailedIndexesExceeded")),
        (json!(null), "1-2", vec![0], 3, Some("FailedIndexes")),
        (json!(null), "", vec![0, 1, 2], 3, Some("FailedIndexes")),
    ] {
        let spec = json!({"completionMode": "Indexed", "completions": completions, "parallelism": 3,
            "backoffLimitPerIndex": 0, "backoffLimit": i32::MAX, "maxFailedIndexes": max});
        let pods: Vec<Value> =
            failed.iter().map(|index| indexed(&format!("p{index}"), "Failed", *index)).collect();
        let plan = plan(&job(spec, json!({"completedIndexes": completed})), &pods);
        let reason = holds(&plan.status, "FailureTarget").and_then(|c| c.reason.clone());
        assert_eq!(reason.as_deref(), want, "{max} {completed} {failed:?}");
    }
}

#[test]
fn a_failure_policy_judges_only_what_has_ended() {
    let mut going = pod("a", "Running");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let rules = json!({"rules": [{"action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]});
    going["status"]["conditions"] = json!([{"type": "DisruptionTarget", "status": "True"}]);
    let mut failed = going.clone();
    failed["status"]["phase"] = json!("Failed");
    for (pod, want) in [(going, None), (failed, Some("PodFailurePolicy"))] {
        let spec = json!({"podFailurePolicy": rules, "podReplacementPolicy": null});
        let plan = plan(&job(spec, json!({})), &[pod]);
        let reason = holds(&plan.status, "FailureTarget").and_then(|c| c.reason.clone());
        assert_eq!(reason.as_deref(), want);
    }
}

#[test]
fn indexes_are_filled_in_order() {
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
    let made = plan(&job(spec, json!({"completedIndexes": "1"})), &[indexed("a", "Running", 0)]);
    let indexes: Vec<_> = made.create.iter().map(|wanted| wanted.index).collect();
    assert_eq!(indexes, [Some(2), Some(3)]);
    assert_eq!(made.status.succeeded, Some(1));
}

#[test]
fn an_index_may_fail_alone() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2,
        "backoffLimitPerIndex": 0, "backoffLimit": i32::MAX});
    let failed =
        plan(&job(spec, json!({})), &[indexed("a", "Failed", 0), indexed("b", "Succeeded", 1)]);
    assert_eq!(failed.status.failed_indexes.as_deref(), Some("0"));
    let reason = holds(&failed.status, "FailureTarget").and_then(|c| c.reason.clone());
    assert_eq!(reason.as_deref(), Some("FailedIndexes"));

    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2,
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
    let again =
        plan(&job(spec, json!({})), &[indexed("a", "Failed", 0), indexed("b", "Running", 1)]);
    assert_eq!(again.create[0].failures, Some((1, 0)));
    // It keeps the count until its successor is there.
    assert!(again.release.is_empty());
}

#[test]
fn success_may_come_before_completion() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 3,
        "successPolicy": {"rules": [{"succeededIndexes": "0,2", "succeededCount": 1}]}});
    let early =
        plan(&job(spec, json!({})), &[indexed("a", "Running", 1), indexed("b", "Succeeded", 2)]);
    assert_eq!((conditions(&early), early.delete.len()), (vec!["SuccessCriteriaMet".into()], 1));
    let found = holds(&early.status, "SuccessCriteriaMet").expect("it is told");
    assert_eq!(found.message.as_deref(), Some("Matched rules at index 0"));
}

#[test]
fn replacement_may_wait_for_the_end() {
    let mut going = pod("a", "Running");
    going["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let strict = job(json!({"podReplacementPolicy": "Failed"}), json!({}));
    let plan_strict = plan(&strict, &[going.clone()]);
    assert_eq!((plan_strict.create.len(), plan_strict.status.terminating), (1, Some(1)));
    let plan_early = plan(&job(json!({"backoffLimit": 6}), json!({})), &[going]);
    assert_eq!(plan_early.release, ["a"]);
}

#[test]
fn suspension_is_told() {
    let stopped = plan(&job(json!({"suspend": true}), json!({})), &[]);
    assert_eq!(
        (conditions(&stopped), stopped.events[0].reason.as_str()),
        (vec!["Suspended".into()], "Suspended")
    );
    let mut running = pod("a", "Running");
    running["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    let stopping = plan(&job(json!({"suspend": true}), json!({})), &[running]).status;
    assert_eq!((stopping.active, stopping.ready, stopping.terminating), (None, Some(0), Some(1)));
    let mut job = job(json!({}), json!({}));
    job.status = Some(stopped.status);
    let resumed = plan(&job, &[]);
    assert_eq!((conditions(&resumed), resumed.events[0].reason.as_str()), (vec![], "Resumed"));
    assert_eq!(resumed.create.len(), 2);
}

#[test]
fn doubles_of_an_index_and_indexes_beyond_the_end_go() {
    let spec = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
    let (a, b, c) =
        (indexed("a", "Running", 0), indexed("b", "Pending", 0), indexed("c", "Running", 2));
    for (pods, want) in [
        (vec![a.clone(), b.clone()], vec!["b"]),
        (vec![a.clone(), c.clone()], vec!["c"]),
        (vec![pod("x", "Running"), a.clone()], vec!["x"]),
        (vec![a, indexed("d", "Running", 1)], vec![]),
    ] {
        let plan = plan(&job(spec.clone(), json!({})), &pods);
        assert_eq!(
            (plan.delete, plan.create.len()),
            (want.iter().map(|n| (*n).into()).collect(), 0)
        );
    }
}

#[test]
fn pods_that_go_are_not_ready() {
    let mut ready = pod("a", "Running");
    ready["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    for (spec, want) in
        [(json!({}), 1), (json!({"suspend": true}), 0), (json!({"parallelism": 0}), 0)]
    {
        assert_eq!(plan(&job(spec, json!({})), &[ready.clone()]).status.ready, Some(want));
    }
}

#[test]
fn an_index_that_waits_keeps_its_place() {
    let spec = json!({"completionMode": "Indexed", "completions": 3, "parallelism": 2,
        "backoffLimitPerIndex": 1, "backoffLimit": i32::MAX});
    let mut failed = indexed("a", "Failed", 0);
    failed["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] =
        json!("2026-01-01T00:59:57Z");
    let waiting = plan(&job(spec, json!({})), &[failed, indexed("b", "Running", 1)]);
    assert_eq!((waiting.create.len(), waiting.again), (0, Some(Duration::from_secs(7))));
}

#[test]
fn many_ends_are_noted_bit_by_bit() {
    let pods: Vec<Value> = (0..600).map(|n| pod(&format!("p{n}"), "Succeeded")).collect();
    let first = plan(&job(json!({"completions": 600}), json!({})), &pods);
    let noted = first.status.uncounted_terminated_pods.and_then(|u| u.succeeded);
    assert_eq!((noted.map(|uids| uids.len()), first.release.len()), (Some(500), 500));
}

#[test]
fn the_index_in_a_name_stays_readable() {
    for (length, index, want) in [(5, 3, 8), (54, 3, 57), (55, 3, 58), (63, 12, 58)] {
        let made = prefix(&"x".repeat(length), index);
        assert_eq!(made.len(), want, "{made}");
        assert!(made.ends_with(&format!("x-{index}-")), "{made}");
    }
}
