use jiff::Timestamp;
use serde_json::{Value, json};

use super::*;
use crate::observe::Sandbox;

fn pod(spec: Value) -> Pod {
    serde_json::from_value(
        json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}),
    )
    .unwrap()
}

/// A running pod's sandbox, and containers written as `name:state[:exit code]`, the newest first.
pub fn view(containers: &[&str]) -> PodView {
    let containers = containers.iter().enumerate().map(|(i, text)| {
        let mut parts = text.split(':');
        let name = parts.next().unwrap().to_owned();
        let state = match parts.next().unwrap() {
            "created" => State::Created,
            "running" => State::Running,
            "exited" => State::Exited,
            _ => State::Unknown,
        };
        Observed {
            id: format!("{name}-{i}"),
            name,
            sandbox_id: "s".into(),
            state,
            restart_count: 0,
            created_at: Timestamp::UNIX_EPOCH,
            started_at: None,
            finished_at: None,
            exit_code: parts.next().map_or(0, |c| c.parse().unwrap()),
            image: String::new(),
            image_ref: String::new(),
            reason: String::new(),
            message: String::new(),
            annotations: HashMap::new(),
            log_path: String::new(),
            termination_log: None,
            user: None,
            resources: None,
            image_volumes: Vec::new(),
        }
    });
    PodView { sandboxes: vec![sandbox(true, 0)], containers: containers.collect() }
}

fn sandbox(ready: bool, attempt: u32) -> Sandbox {
    Sandbox {
        id: format!("s{attempt}"),
        attempt,
        ready,
        created_at: Timestamp::UNIX_EPOCH,
        ips: vec!["10.42.0.2".into()],
    }
}

/// The actions in short: `kill-pod`, `sandbox N`, `start a`, `kill a`.
fn words(pod: &Pod, actions: &Actions) -> String {
    let mut out = Vec::new();
    if actions.kill_pod {
        out.push("kill-pod".to_owned());
    }
    out.extend(actions.create_sandbox.map(|n| format!("sandbox {n}")));
    out.extend(actions.kill.iter().map(|k| format!("kill {}", k.name)));
    for start in &actions.start {
        let name = match start.kind {
            Kind::Init => pod::init_containers(pod)[start.index].name.clone(),
            Kind::Regular => pod::containers(pod)[start.index].name.clone(),
            Kind::Ephemeral => pod::ephemeral_containers(pod)[start.index].name.clone(),
        };
        out.push(format!("start {name}"));
    }
    out.join(", ")
}

fn two(policy: &str) -> Pod {
    pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}))
}

#[test]
fn regular_containers() {
    for (policy, seen, expected) in [
        ("Always", vec![], "start a, start b"),
        ("Always", vec!["a:running", "b:running"], ""),
        ("Always", vec!["a:exited:0", "b:running"], "start a"),
        ("OnFailure", vec!["a:exited:0", "b:running"], ""),
        ("OnFailure", vec!["a:exited:1", "b:running"], "start a"),
        ("Never", vec!["a:exited:1", "b:running"], ""),
        ("Never", vec!["a:exited:1", "b:exited:0"], "kill-pod"),
        ("OnFailure", vec!["a:exited:0", "b:exited:0"], "kill-pod"),
        ("Always", vec!["a:created", "b:unknown"], "start a, start b"),
    ] {
        let pod = two(policy);
        let got = decide(&pod, &view(&seen), &Local::default());
        assert_eq!(words(&pod, &got), expected, "{policy} {seen:?}");
    }
}

#[test]
fn sandboxes() {
    let none = PodView::default();
    let pod = two("Always");
    assert_eq!(
        words(&pod, &decide(&pod, &none, &Local::default())),
        "kill-pod, sandbox 0, start a, start b"
    );
    let mut dead = view(&["a:exited:0", "b:exited:137"]);
    dead.sandboxes = vec![sandbox(false, 2)];
    for (policy, expected) in [
        ("Always", "kill-pod, sandbox 3, start a, start b"),
        ("OnFailure", "kill-pod, sandbox 3, start b"),
        ("Never", "kill-pod"),
    ] {
        let pod = two(policy);
        assert_eq!(words(&pod, &decide(&pod, &dead, &Local::default())), expected, "{policy}");
    }
}

#[test]
fn init_containers_run_in_order() {
    let make = |policy: &str| {
        pod(json!({"restartPolicy": policy, "initContainers": [{"name": "i"}, {"name": "j"}],
            "containers": [{"name": "a"}]}))
    };
    for (policy, seen, expected) in [
        ("Always", vec![], "start i"),
        ("Always", vec!["i:running"], ""),
        ("Always", vec!["i:exited:0"], "start j"),
        ("Always", vec!["i:exited:1"], "start i"),
        ("Never", vec!["i:exited:1"], "kill-pod"),
        ("Always", vec!["j:exited:0", "i:exited:0"], "start a"),
        ("Always", vec!["j:exited:2", "i:exited:0"], "start j"),
        ("Always", vec!["a:running"], ""),
        ("Always", vec!["a:running", "j:exited:0", "i:exited:0"], ""),
    ] {
        let pod = make(policy);
        let got = decide(&pod, &view(&seen), &Local::default());
        assert_eq!(words(&pod, &got), expected, "{policy} {seen:?}");
    }
}

#[test]
fn sidecars_stay_and_do_not_bar() {
    let pod = pod(json!({"restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "a"}]}));
    for (seen, expected) in [
        (vec!["side:running"], "start i"),
        (vec!["i:exited:0", "side:running"], "start a"),
        (vec!["a:running", "i:exited:0", "side:exited:1"], "start side"),
        (vec!["a:exited:0", "i:exited:0", "side:running"], "kill-pod"),
        (vec!["a:exited:0", "i:exited:0", "side:exited:5"], "kill-pod"),
    ] {
        let got = decide(&pod, &view(&seen), &Local::default());
        assert_eq!(words(&pod, &got), expected, "{seen:?}");
    }
}

#[test]
fn a_sidecar_with_a_startup_probe_bars_until_it_has_started() {
    let pod = pod(json!({"initContainers": [
            {"name": "side", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}],
        "containers": [{"name": "a"}]}));
    let seen = view(&["side:running"]);
    for (startup, expected) in [(None, ""), (Some(true), "start a"), (Some(false), "kill side")] {
        let mut local = Local::default();
        local.probes.insert("side-0".into(), ProbeResults { startup, ..ProbeResults::default() });
        assert_eq!(words(&pod, &decide(&pod, &seen, &local)), expected, "{startup:?}");
    }
}

#[test]
fn failed_probes_kill() {
    let make = |policy: &str| {
        pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "livenessProbe": {
            "exec": {"command": ["x"]}, "terminationGracePeriodSeconds": 3}}]}))
    };
    let mut local = Local::default();
    local
        .probes
        .insert("a-0".into(), ProbeResults { liveness: Some(false), ..ProbeResults::default() });
    for (policy, message) in [
        ("Always", "Container a failed liveness probe, will be restarted"),
        ("Never", "Container a failed liveness probe"),
    ] {
        let got = decide(&make(policy), &view(&["a:running"]), &local);
        assert_eq!(got.kill[0].message, message);
        assert_eq!(got.kill[0].grace_seconds, Some(3));
    }
    local.stopping.insert("a-0".into());
    assert_eq!(decide(&make("Always"), &view(&["a:running"]), &local), Actions::default());
}

#[test]
fn restart_rules_come_before_policies() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": [
            {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]},
        {"name": "b", "restartPolicy": "OnFailure"}]}));
    let containers = pod::containers(&pod);
    for (container, code, expected) in [(0, 42, true), (0, 1, false), (1, 1, true), (1, 0, false)] {
        assert_eq!(restarts_after(&pod, &containers[container], code), expected);
    }
}

#[test]
fn a_changed_image_replaces_the_container() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "new"}]}));
    let mut seen = view(&["a:running"]);
    seen.containers[0].annotations.insert(labels::HASH.into(), "old".into());
    let got = decide(&pod, &seen, &Local::default());
    assert_eq!(got.kill[0].message, "Container a definition changed, will be restarted");
}

#[test]
fn ephemeral_containers_start_once() {
    let pod = pod(json!({"containers": [{"name": "a"}], "ephemeralContainers": [{"name": "e"}]}));
    assert_eq!(words(&pod, &decide(&pod, &view(&["a:running"]), &Local::default())), "start e");
    assert_eq!(
        words(&pod, &decide(&pod, &view(&["e:exited:1", "a:running"]), &Local::default())),
        ""
    );
}
