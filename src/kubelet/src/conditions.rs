//! The pod's conditions, from its container statuses. Pure.
//!
//! Source of behaviour: `pkg/kubelet/status/generate.go`.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};

use crate::pod;
use crate::status::{Input, whole_seconds};
use crate::{resize, restart_all};

const OWNED: [&str; 8] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    resize::PENDING,
    resize::IN_PROGRESS,
    restart_all::CONDITION,
];

/// The conditions for `status`: the kubelet's own, then those that others have written.
pub fn generate(pod: &Pod, status: &PodStatus, input: &Input<'_>) -> Vec<PodCondition> {
    let phase = status.phase.as_deref().unwrap_or_default();
    let has_network =
        input.view.ready_sandbox().is_some_and(|s| !s.ips.is_empty() || pod::host_network(pod));
    let containers_ready = containers_ready(pod, status, phase);
    let mut conditions = vec![
        condition("PodReadyToStartContainers", has_network && !is_over(phase)),
        initialized(pod, status, phase),
        ready(pod, &containers_ready, phase),
        containers_ready,
        condition("PodScheduled", true),
    ];
    let from_api = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.extend(input.resize.conditions());
    if restart_all::possible(pod) {
        conditions.push(restarting(phase, input.restarting));
    }
    if let Some(message) = input.disrupted {
        conditions.push(PodCondition {
            status: "True".into(),
            ..refused("DisruptionTarget", "TerminationByKubelet", message.to_owned())
        });
    }
    for other in from_api.iter().filter(|c| !OWNED.contains(&c.type_.as_str())) {
        if conditions.iter().any(|c| c.type_ == other.type_) {
            continue;
        }
        conditions.push(other.clone());
    }
    let old = input.old.conditions.as_deref().unwrap_or_default();
    let own = |c: &&mut PodCondition| {
        OWNED.contains(&c.type_.as_str()) || c.last_transition_time.is_none()
    };
    for condition in conditions.iter_mut().filter(own) {
        let before = old
            .iter()
            .chain(from_api)
            .find(|c| c.type_ == condition.type_ && c.status == condition.status);
        condition.last_transition_time = before
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(whole_seconds(input.now)));
        condition.observed_generation = pod.metadata.generation;
    }
    conditions
}

fn is_over(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

fn condition(name: &str, status: bool) -> PodCondition {
    PodCondition {
        type_: name.into(),
        status: if status { "True" } else { "False" }.into(),
        ..PodCondition::default()
    }
}

fn refused(name: &str, reason: &str, message: String) -> PodCondition {
    PodCondition {
        reason: Some(reason.into()),
        message: (!message.is_empty()).then_some(message),
        ..condition(name, false)
    }
}

/// Whether all containers are being ended to be started anew.
fn restarting(phase: &str, now: bool) -> PodCondition {
    match phase {
        "Succeeded" => refused(restart_all::CONDITION, "PodCompleted", String::new()),
        "Failed" => refused(restart_all::CONDITION, "PodFailed", String::new()),
        _ if now => {
            let (reason, message) = restart_all::STARTED;
            PodCondition {
                status: "True".into(),
                ..refused(restart_all::CONDITION, reason, message.into())
            }
        }
        _ => condition(restart_all::CONDITION, false),
    }
}

fn find<'a>(statuses: Option<&'a [ContainerStatus]>, name: &str) -> Option<&'a ContainerStatus> {
    statuses.unwrap_or_default().iter().find(|s| s.name == name)
}

fn containers_ready(pod: &Pod, status: &PodStatus, phase: &str) -> PodCondition {
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let mut sort = |name: &str, found: Option<&ContainerStatus>| match found {
        None => unknown.push(name.to_owned()),
        Some(s) if !s.ready => unready.push(name.to_owned()),
        Some(_) => {}
    };
    for container in pod::init_containers(pod).iter().filter(|c| pod::is_sidecar(c)) {
        sort(&container.name, find(status.init_container_statuses.as_deref(), &container.name));
    }
    for container in pod::containers(pod) {
        sort(&container.name, find(status.container_statuses.as_deref(), &container.name));
    }
    if phase == "Succeeded" && unknown.is_empty() {
        return refused("ContainersReady", "PodCompleted", String::new());
    }
    if phase == "Failed" {
        return refused("ContainersReady", "PodFailed", String::new());
    }
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !unready.is_empty() {
        messages.push(format!("containers with unready status: [{}]", unready.join(" ")));
    }
    if messages.is_empty() {
        return condition("ContainersReady", true);
    }
    refused("ContainersReady", "ContainersNotReady", messages.join(", "))
}

fn ready(pod: &Pod, containers_ready: &PodCondition, phase: &str) -> PodCondition {
    if phase == "Succeeded" {
        return refused("Ready", "PodCompleted", String::new());
    }
    if containers_ready.status != "True" {
        return PodCondition { type_: "Ready".into(), ..containers_ready.clone() };
    }
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let mut messages = Vec::new();
    for gate in gates.iter().map(|g| &g.condition_type) {
        match conditions.iter().find(|c| &c.type_ == gate) {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate {gate:?} does not exist."
            )),
            Some(c) if c.status != "True" => messages.push(format!(
                "the status of pod readiness gate {gate:?} is not \"True\", but {}",
                c.status
            )),
            Some(_) => {}
        }
    }
    if messages.is_empty() {
        return condition("Ready", true);
    }
    refused("Ready", "ReadinessGatesNotReady", messages.join(", "))
}

fn initialized(pod: &Pod, status: &PodStatus, phase: &str) -> PodCondition {
    if phase == "Succeeded" {
        return PodCondition {
            reason: Some("PodCompleted".into()),
            ..condition("Initialized", true)
        };
    }
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in pod::init_containers(pod) {
        match find(status.init_container_statuses.as_deref(), &container.name) {
            None => unknown.push(container.name.clone()),
            Some(s) if pod::is_sidecar(container) && s.started != Some(true) => {
                incomplete.push(container.name.clone());
            }
            Some(s) if !pod::is_sidecar(container) && !s.ready => {
                incomplete.push(container.name.clone());
            }
            Some(_) => {}
        }
    }
    // Once a regular container has begun, initialization is history, whatever a sidecar does now.
    let begun = status.container_statuses.iter().flatten().any(|s| {
        s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some())
            || s.last_state.as_ref().is_some_and(|s| s.terminated.is_some())
    });
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!("containers with unknown status: [{}]", unknown.join(" ")));
    }
    if !incomplete.is_empty() {
        messages.push(format!("containers with incomplete status: [{}]", incomplete.join(" ")));
    }
    if messages.is_empty() || begun {
        return condition("Initialized", true);
    }
    refused("Initialized", "ContainersNotInitialized", messages.join(", "))
}
