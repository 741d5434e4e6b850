use serde_json::{Value, json};

use super::*;
use crate::observe::Sandbox;

fn pod(value: Value) -> Pod {
    let mut pod: Pod = serde_json::from_value(value).unwrap();
    pod.metadata.name = Some("p".into());
    pod
}

fn observed(name: &str, state: State, exit_code: i32) -> Observed {
    let at = |s| Timestamp::from_second(s).ok();
    Observed {
        id: format!("id-{name}"),
        name: name.into(),
        sandbox_id: "s".into(),
        state,
        restart_count: 0,
        created_at: Timestamp::from_second(100).unwrap(),
        started_at: at(101),
        finished_at: (state == State::Exited).then(|| at(102).unwrap()),
        exit_code,
        image: "busybox".into(),
        image_ref: "sha256:1".into(),
        reason: String::new(),
        message: String::new(),
        annotations: HashMap::new(),
        log_path: String::new(),
        termination_log: None,
        user: None,
        resources: None,
        image_volumes: Vec::new(),
    }
}

struct World {
    view: PodView,
    local: Local,
    old: PodStatus,
    waiting: HashMap<String, Waiting>,
    failure: Option<Waiting>,
    restarting: bool,
    renewed: HashSet<String>,
    ending: bool,
}

impl World {
    fn new(containers: Vec<Observed>) -> Self {
        let sandbox = Sandbox {
            id: "s".into(),
            attempt: 0,
            ready: true,
            created_at: Timestamp::UNIX_EPOCH,
            ips: vec!["10.42.0.7".into()],
        };
        Self {
            view: PodView { sandboxes: vec![sandbox], containers },
            local: Local::default(),
            old: PodStatus::default(),
            waiting: HashMap::new(),
            failure: None,
            restarting: false,
            renewed: HashSet::new(),
            ending: false,
        }
    }

    fn status(&self, pod: &Pod) -> PodStatus {
        generate(
            pod,
            &Input {
                devices: None,
                view: &self.view,
                local: &self.local,
                old: &self.old,
                waiting: &self.waiting,
                messages: &HashMap::new(),
                resize: &resize::Progress::default(),
                restarting: self.restarting,
                renewed: &self.renewed,
                disrupted: None,
                failure: self.failure.as_ref(),
                ending: self.ending,
                host_ip: "10.42.0.1",
                runtime_name: "rootlet",
                now: Timestamp::from_second(200).unwrap(),
            },
        )
    }
}

fn condition(status: &PodStatus, name: &str) -> String {
    let found = status.conditions.iter().flatten().find(|c| c.type_ == name).unwrap();
    format!(
        "{} {} {}",
        found.status,
        found.reason.clone().unwrap_or_default(),
        found.message.clone().unwrap_or_default()
    )
    .trim()
    .to_owned()
}

fn one(policy: &str) -> Pod {
    pod(
        json!({"spec": {"restartPolicy": policy, "containers": [{"name": "a", "image": "busybox"}]}}),
    )
}

#[test]
fn a_pod_on_its_way() {
    let mut world = World::new(vec![]);
    world.view.sandboxes.clear();
    let status = world.status(&one("Always"));
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(status.pod_ip, None);
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(
        condition(&status, "Ready"),
        "False ContainersNotReady containers with unready status: [a]"
    );
    assert_eq!(condition(&status, "PodReadyToStartContainers"), "False");
    assert_eq!(condition(&status, "Initialized"), "True");
}

#[test]
fn a_running_pod() {
    let world = World::new(vec![observed("a", State::Running, 0)]);
    let status = world.status(&one("Always"));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.42.0.7"));
    assert_eq!(condition(&status, "Ready"), "True");
    assert_eq!(condition(&status, "PodReadyToStartContainers"), "True");
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert!(container.ready && container.started == Some(true));
    assert_eq!(container.container_id.as_deref(), Some("rootlet://id-a"));
}

#[test]
fn readiness_waits_for_the_probe() {
    let pod = pod(json!({"spec": {"containers": [{"name": "a",
        "readinessProbe": {"tcpSocket": {"port": 1}}}]}}));
    let mut world = World::new(vec![observed("a", State::Running, 0)]);
    assert!(condition(&world.status(&pod), "Ready").starts_with("False"));
    let results = decide::ProbeResults { readiness: Some(true), ..Default::default() };
    world.local.probes.insert("id-a".into(), results);
    assert_eq!(condition(&world.status(&pod), "Ready"), "True");
}

#[test]
fn ends_are_told_as_upstream_tells_them() {
    for (policy, code, ending, phase, reason) in [
        ("Never", 0, false, "Succeeded", "Completed"),
        ("Never", 3, false, "Failed", "Error"),
        ("OnFailure", 3, false, "Running", "Error"),
        ("Always", 0, false, "Running", "Completed"),
        ("Always", 0, true, "Succeeded", "Completed"),
        ("Always", 143, true, "Failed", "Error"),
    ] {
        let mut world = World::new(vec![observed("a", State::Exited, code)]);
        world.ending = ending;
        let status = world.status(&one(policy));
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {code} {ending}");
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let terminated = container.state.as_ref().unwrap().terminated.as_ref().unwrap();
        assert_eq!((terminated.exit_code, terminated.reason.as_deref()), (code, Some(reason)));
    }
}

#[test]
fn a_crash_loop() {
    let mut world = World::new(vec![observed("a", State::Exited, 1)]);
    let waiting = Waiting { reason: "CrashLoopBackOff".into(), message: "back-off 10s".into() };
    world.waiting.insert("a".into(), waiting);
    let status = world.status(&one("Always"));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let state = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(state.reason.as_deref(), Some("CrashLoopBackOff"));
    let last = container.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!(last.exit_code, 1);
}

#[test]
fn init_containers() {
    let pod =
        pod(json!({"spec": {"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}}));
    for (seen, phase, initialized) in [
        (
            vec![observed("i", State::Running, 0)],
            "Pending",
            "False ContainersNotInitialized containers with incomplete status: [i]",
        ),
        (vec![observed("i", State::Exited, 0)], "Pending", "True"),
        (
            vec![observed("a", State::Running, 0), observed("i", State::Exited, 0)],
            "Running",
            "True",
        ),
    ] {
        let status = World::new(seen).status(&pod);
        assert_eq!(status.phase.as_deref(), Some(phase));
        assert_eq!(condition(&status, "Initialized"), initialized);
    }
    let status = World::new(vec![observed("i", State::Running, 0)]).status(&pod);
    let regular = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = regular.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
}

#[test]
fn what_has_begun_stays_initialized_when_its_sidecar_ends() {
    let pod = pod(json!({"spec": {"restartPolicy": "Never", "initContainers": [
        {"name": "side", "restartPolicy": "Always"}], "containers": [{"name": "a"}]}}));
    let ended = vec![observed("a", State::Exited, 4), observed("side", State::Exited, 1)];
    let status = World { ending: true, ..World::new(ended) }.status(&pod);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(condition(&status, "Initialized"), "True");
    let status = World::new(vec![observed("side", State::Exited, 1)]).status(&pod);
    assert_eq!(
        condition(&status, "Initialized"),
        "False ContainersNotInitialized containers with incomplete status: [side]"
    );
}

#[test]
fn what_the_pod_has_as_a_whole_and_mounts_of_images_is_told() {
    let whole = json!({"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}});
    let pod = pod(json!({"spec": {"resources": whole, "containers": [{"name": "a",
        "volumeMounts": [{"name": "i", "mountPath": "/i"}, {"name": "e", "mountPath": "/e"}]}]}}));
    let mut running = observed("a", State::Running, 0);
    running.image_volumes = vec![("/i".to_owned(), "reg.example/i@sha256:0".to_owned())];
    let status = serde_json::to_value(World::new(vec![running]).status(&pod)).unwrap();
    assert_eq!(status["resources"], whole);
    assert_eq!(status["allocatedResources"], whole["requests"]);
    assert_eq!(status["containerStatuses"][0]["resources"], json!({}));
    let mounts = &status["containerStatuses"][0]["volumeMounts"];
    assert_eq!(mounts[0]["volumeStatus"]["image"]["imageRef"], "reg.example/i@sha256:0");
    assert_eq!(mounts[1]["volumeStatus"], serde_json::Value::Null);
}

#[test]
fn a_pod_that_begins_anew_has_not_ended() {
    let rule =
        json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [88]}});
    let pod = pod(json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "s", "restartPolicy": "Always", "restartPolicyRules": [rule]}]}}));
    let mut world =
        World::new(vec![observed("a", State::Exited, 137), observed("s", State::Exited, 88)]);
    assert_eq!(world.status(&pod).phase.as_deref(), Some("Failed"));
    world.restarting = true;
    world.old = world.status(&pod);
    assert_eq!(world.old.phase.as_deref(), Some("Running"));
    (world.restarting, world.renewed) = (false, ["a", "s"].map(String::from).into());
    world.view.containers.clear();
    let status = world.status(&pod);
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let a = &status.container_statuses.as_ref().unwrap()[0];
    let last = a.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    assert_eq!((a.restart_count, last.map(|last| last.exit_code)), (1, Some(137)));
}

#[test]
fn a_refused_pod_has_failed() {
    let mut world = World::new(vec![]);
    world.view.sandboxes.clear();
    world.failure =
        Some(Waiting { reason: "OutOfcpu".into(), message: "Pod was rejected: x".into() });
    let status = world.status(&one("Always"));
    assert_eq!(status.phase.as_deref(), Some("Failed"));
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert_eq!(condition(&status, "Ready"), "False PodFailed");
    assert_eq!(status.container_statuses, None);
    // A kubelet that starts anew knows of no refusal, and says what was said.
    (world.old, world.failure, world.ending) = (status.clone(), None, true);
    assert_eq!(world.status(&one("Always")), status);
}

#[test]
fn a_pod_whose_containers_still_run_has_not_failed_yet() {
    let mut world = World::new(vec![observed("a", State::Running, 0)]);
    world.old = world.status(&one("Always"));
    world.failure = Some(Waiting { reason: "Evicted".into(), message: "little memory".into() });
    let status = world.status(&one("Always"));
    assert_eq!((status.phase.as_deref(), status.reason), (Some("Running"), None));
    world.view.containers = vec![observed("a", State::Exited, 7)];
    let status = world.status(&one("Always"));
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("Evicted"))
    );
}

#[test]
fn a_pod_that_ends_before_it_has_begun_has_failed() {
    let with =
        |init: Value| pod(json!({"spec": {"initContainers": init, "containers": [{"name": "a"}]}}));
    let inits = json!([{"name": "i"}, {"name": "j"}]);
    for (of, seen, told) in [
        (with(json!([])), vec![], "a:137"),
        (with(inits.clone()), vec![], "i:137 j:waits a:waits"),
        (with(inits.clone()), vec![observed("i", State::Exited, 0)], "i:0 j:waits a:waits"),
        (
            with(inits),
            vec![observed("j", State::Exited, 0), observed("i", State::Exited, 0)],
            "i:0 j:0 a:137",
        ),
    ] {
        let mut world = World::new(seen);
        world.ending = true;
        let status = world.status(&of);
        assert_eq!(status.phase.as_deref(), Some("Failed"), "{told}");
        let lists = [status.init_container_statuses, status.container_statuses];
        let words = lists.into_iter().flatten().flatten().map(|s| {
            let end = s.state.and_then(|state| state.terminated);
            let word = end.map_or("waits".to_owned(), |end| end.exit_code.to_string());
            format!("{}:{word}", s.name)
        });
        assert_eq!(words.collect::<Vec<_>>().join(" "), told);
    }
}

#[test]
fn what_ran_when_the_pod_failed_is_not_told_to_run() {
    let mut world = World::new(vec![observed("a", State::Running, 0)]);
    world.old = PodStatus { phase: Some("Failed".into()), ..world.status(&one("Always")) };
    (world.view, world.ending) = (PodView::default(), true);
    let status = world.status(&one("Always"));
    let state = status.container_statuses.unwrap().remove(0).state.unwrap();
    assert_eq!(state.terminated.unwrap().reason.as_deref(), Some("ContainerStatusUnknown"));
}

#[test]
fn a_readiness_gate_of_others_counts_and_is_kept() {
    let pod = pod(
        json!({"spec": {"readinessGates": [{"conditionType": "g"}], "containers": [{"name": "a"}]},
        "status": {"conditions": [{"type": "other", "status": "True"}]}}),
    );
    let status = World::new(vec![observed("a", State::Running, 0)]).status(&pod);
    assert_eq!(
        condition(&status, "Ready"),
        "False ReadinessGatesNotReady corresponding condition of pod readiness gate \"g\" does not exist."
    );
    assert_eq!(condition(&status, "other"), "True");
}

#[test]
fn times_of_conditions_change_only_with_them() {
    let pod = one("Always");
    let mut world = World::new(vec![observed("a", State::Running, 0)]);
    let mut first = world.status(&pod);
    let earlier = Some(Time(Timestamp::from_second(50).unwrap()));
    for condition in first.conditions.iter_mut().flatten() {
        condition.last_transition_time.clone_from(&earlier);
    }
    world.old = first.clone();
    assert_eq!(world.status(&pod).conditions, first.conditions);
}
