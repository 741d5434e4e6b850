//! The pod's status: pure, from spec, the runtime's view and the worker's knowledge.
//!
//! Source of behaviour: `kubelet_pods.go` (`convertToAPIContainerStatuses`, `getPhase`).

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, ContainerUser, HostIP, ImageVolumeStatus,
    LinuxContainerUser, Pod, PodIP, PodStatus, VolumeMountStatus, VolumeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions;
use crate::decide::{self, Local};
use crate::device::Devices;
use crate::observe::{Observed, PodView, State};
use crate::pod::{self, Kind};
use crate::resize::{self, Progress};
use crate::resources;

/// Why a container is not running, as `state.waiting` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// One word.
    pub reason: String,
    /// One sentence; may be empty.
    pub message: String,
}

/// What goes into a status beside the pod itself.
pub struct Input<'a> {
    /// The runtime's view.
    pub view: &'a PodView,
    /// Probe results and the like.
    pub local: &'a Local,
    /// The status reported last.
    pub old: &'a PodStatus,
    /// By container name, why it waits.
    pub waiting: &'a HashMap<String, Waiting>,
    /// By container id, its last words.
    pub messages: &'a HashMap<String, String>,
    /// Where a resize stands.
    pub resize: &'a Progress,
    /// All containers are being ended, to be started anew together.
    pub restarting: bool,
    /// Containers that were removed for that.
    pub renewed: &'a HashSet<String>,
    /// The node ended the pod for its own good, and why.
    pub disrupted: Option<&'a str>,
    /// The kubelet ended the pod: reason and message of the failure.
    pub failure: Option<&'a Waiting>,
    /// The pod is over: what has stopped stays stopped.
    pub ending: bool,
    /// The node's addresses.
    pub host_ip: &'a str,
    /// Prefix of container ids: the runtime's name.
    pub runtime_name: &'a str,
    /// Devices of plugins that its containers have.
    pub devices: Option<&'a Devices>,
    /// Now.
    pub now: Timestamp,
}

/// Makes the status of `pod`.
pub fn generate(pod: &Pod, input: &Input<'_>) -> PodStatus {
    if input.failure.is_none() && is_final(input.old, input.view) {
        return input.old.clone();
    }
    // What others write, as it is in the API; a static pod has that in its mirror.
    let others = pod.status.as_ref().unwrap_or(input.old);
    let mut status = PodStatus {
        qos_class: Some(resources::qos_class(pod).into()),
        host_ip: Some(input.host_ip.into()),
        host_ips: Some(vec![HostIP { ip: input.host_ip.into() }]),
        start_time: Some(input.old.start_time.clone().unwrap_or_else(|| whole_seconds(input.now))),
        observed_generation: pod.metadata.generation,
        nominated_node_name: others.nominated_node_name.clone(),
        resource_claim_statuses: others.resource_claim_statuses.clone(),
        extended_resource_claim_status: others.extended_resource_claim_status.clone(),
        ..PodStatus::default()
    };
    // The pod is as it was granted.
    if let Some(whole) = pod.spec.as_ref().and_then(|spec| spec.resources.clone()) {
        status.allocated_resources.clone_from(&whole.requests);
        let told = input.old.resources.clone().filter(|_| input.resize.in_progress);
        status.resources = told.or(Some(whole));
    }
    let ips = if pod::host_network(pod) {
        vec![input.host_ip.to_owned()]
    } else {
        input.view.sandboxes.first().map(|s| s.ips.clone()).unwrap_or_default()
    };
    status.pod_ip = ips.first().cloned();
    status.pod_ips = (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect());

    let mut init = container_statuses(pod, Kind::Init, input);
    let mut regular = container_statuses(pod, Kind::Regular, input);
    let ephemeral = container_statuses(pod, Kind::Ephemeral, input);
    let started = decide::has_started(pod, input.view);
    let mut all: Vec<ContainerStatus> = init.iter().chain(&regular).cloned().collect();
    if !input.ending {
        all.iter_mut()
            .filter(|s| input.renewed.contains(&s.name))
            .for_each(|s| s.last_state = None);
    }
    let mut phase = phase(pod, &all, input.ending, started);
    // The ends of containers that begin anew together are not the pod's.
    if input.restarting && !input.ending && matches!(phase, "Succeeded" | "Failed") {
        phase = "Running";
    }
    // A finished pod stays finished.
    if let Some(old @ ("Succeeded" | "Failed")) = input.old.phase.as_deref() {
        phase = if old == "Failed" { "Failed" } else { "Succeeded" };
        status.reason.clone_from(&input.old.reason);
        status.message.clone_from(&input.old.message);
    }
    // As long as something of it runs, what it has is not for others (`mergePodStatus` of
    // `pkg/kubelet/status/status_manager.go`).
    let ended = input.ending || input.view.running().next().is_none();
    if let Some(failure) = input.failure.filter(|_| ended) {
        phase = "Failed";
        status.reason = Some(failure.reason.clone());
        status.message = (!failure.message.is_empty()).then(|| failure.message.clone());
    }
    if input.ending && !pod::is_static(pod) {
        tell_of_ends(pod, &mut init, &mut regular);
        phase = if phase == "Succeeded" { phase } else { "Failed" };
    }
    if matches!(phase, "Succeeded" | "Failed") {
        for container in init.iter_mut().chain(&mut regular) {
            if container.state.as_ref().is_none_or(|s| s.terminated.is_none()) {
                container.ready = false;
                container.started = Some(false);
            }
        }
    }
    if input.failure.is_some() && !started && input.view.containers.is_empty() {
        // Of a pod that was refused, no container is waiting for anything.
        for list in [&mut init, &mut regular] {
            list.retain(|container| container.container_id.is_some());
        }
    }
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    status.phase = Some(phase.into());
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    status.container_statuses = (!regular.is_empty()).then_some(regular);
    status.ephemeral_container_statuses = (!ephemeral.is_empty()).then_some(ephemeral);
    status.conditions = Some(conditions::generate(pod, &status, input));
    status
}

/// Whether what was told of a pod was its last: it is over, nothing of it is left here, and nothing was left to end.
fn is_final(told: &PodStatus, view: &PodView) -> bool {
    let lists = [
        &told.init_container_statuses,
        &told.container_statuses,
        &told.ephemeral_container_statuses,
    ];
    let runs = |s: &ContainerStatus| s.state.as_ref().is_some_and(|state| state.running.is_some());
    matches!(told.phase.as_deref(), Some("Succeeded" | "Failed"))
        && view.sandboxes.is_empty()
        && view.containers.is_empty()
        && !lists.into_iter().flatten().flatten().any(runs)
}

/// Of a pod that is over, whatever had its turn has ended: what is not known to have is told to have failed
/// (`status_manager.go`, `TerminatePod`).
fn tell_of_ends(pod: &Pod, init: &mut [ContainerStatus], regular: &mut [ContainerStatus]) {
    let ended = |state: &Option<ContainerState>| state.as_ref().and_then(|s| s.terminated.clone());
    let began = |status: &ContainerStatus| {
        let waits = status.state.as_ref().is_none_or(|state| state.waiting.is_some());
        !waits || ended(&status.last_state).is_some()
    };
    let done = |status: &ContainerStatus| {
        let ends = [ended(&status.state), ended(&status.last_state)];
        ends.into_iter().flatten().any(|end| end.exit_code == 0)
    };
    let initialized = pod::init_containers(pod).is_empty()
        || regular.iter().any(began)
        || init.last().is_some_and(done);
    // The first of them had its turn in any case.
    let turns = init.iter().rposition(began).map_or(1, |last| last + 1).min(init.len());
    let regular = regular.iter_mut().filter(|_| initialized);
    for status in init[..turns].iter_mut().chain(regular) {
        if ended(&status.state).is_none() {
            let message = "The container could not be located when the pod was terminated";
            status.state = Some(unknown_end(message));
        }
    }
}

fn unknown_end(message: &str) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            reason: Some("ContainerStatusUnknown".into()),
            message: Some(message.into()),
            exit_code: 137,
            ..ContainerStateTerminated::default()
        }),
        ..ContainerState::default()
    }
}

fn container_statuses(pod: &Pod, kind: Kind, input: &Input<'_>) -> Vec<ContainerStatus> {
    let old = match kind {
        Kind::Init => &input.old.init_container_statuses,
        Kind::Regular => &input.old.container_statuses,
        Kind::Ephemeral => &input.old.ephemeral_container_statuses,
    };
    pod::all_containers(pod)
        .into_iter()
        .filter(|(k, _)| *k == kind)
        .map(|(_, container)| {
            let old = old.iter().flatten().find(|s| s.name == container.name);
            container_status(pod, kind, &container, old, input)
        })
        .collect()
}

fn container_status(
    pod: &Pod,
    kind: Kind,
    container: &Container,
    old: Option<&ContainerStatus>,
    input: &Input<'_>,
) -> ContainerStatus {
    let mut history = input.view.containers.iter().filter(|c| c.name == container.name);
    let mut status = match history.next() {
        Some(latest) => {
            let mut status = from_runtime(container, latest, input);
            let earlier = history.find(|c| c.state == State::Exited).map(|c| terminated(c, input));
            status.last_state = earlier.or_else(|| {
                // The dead container may have been collected; what was reported stays true.
                old.filter(|o| o.restart_count == status.restart_count)
                    .and_then(|o| o.last_state.clone())
            });
            status
        }
        None => never_seen(pod, container, old, input),
    };
    let restarts = match (kind, input.view.latest(&container.name)) {
        (Kind::Init, Some(o)) if !pod::is_sidecar(container) => {
            !(o.state == State::Exited && o.exit_code == 0)
                && decide::should_start(pod, container, input.view)
        }
        (Kind::Ephemeral, Some(_)) => false,
        _ => decide::should_start(pod, container, input.view),
    };
    if restarts
        && !input.ending
        && let Some(waiting) = input.waiting.get(&container.name)
    {
        let state = status.state.take();
        if state.as_ref().is_some_and(|s| s.terminated.is_some()) {
            status.last_state = state;
        }
        status.state = Some(waiting_state(&waiting.reason, &waiting.message));
    }
    set_readiness(kind, container, &mut status, input);
    status.allocated_resources = container.resources.as_ref().and_then(|r| r.requests.clone());
    status.resources = match input.view.latest(&container.name) {
        // Of one that was made it is told also when it has none.
        Some(observed) => {
            Some(resize::in_force(pod, container, observed, input.local.basis).unwrap_or_default())
        }
        None => container.resources.clone(),
    };
    status.stop_signal = container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone());
    status.volume_mounts = volume_mounts(container, input.view.latest(&container.name));
    status.allocated_resources_status =
        input.devices.and_then(|devices| devices.health(pod::uid(pod), &container.name));
    status
}

fn never_seen(
    pod: &Pod,
    container: &Container,
    old: Option<&ContainerStatus>,
    input: &Input<'_>,
) -> ContainerStatus {
    let ended = |s: &ContainerState| s.terminated.is_some();
    let renewed = input.renewed.contains(&container.name);
    if let Some(old) = old.filter(|o| !renewed && o.state.as_ref().is_some_and(ended)) {
        return old.clone();
    }
    let reason =
        if pod::init_containers(pod).is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        restart_count: old.map_or(0, |o| o.restart_count),
        last_state: old.and_then(|o| o.last_state.clone()),
        state: Some(waiting_state(reason, "")),
        ..ContainerStatus::default()
    };
    if renewed {
        if let Some(old) = old.filter(|o| o.container_id.is_some()) {
            // The next one will be another; what is told of this one is its end.
            status.restart_count += 1;
            status.last_state = old.state.clone().filter(ended).or_else(|| old.last_state.clone());
        }
        return status;
    }
    let was_running = old.is_some_and(|o| o.state.as_ref().is_some_and(|s| s.running.is_some()));
    if was_running {
        let lost = unknown_end(
            "The container could not be located when the pod was deleted.  The container used to be Running",
        );
        if input.ending {
            status.state = Some(lost);
        } else {
            status.last_state = Some(lost);
            status.restart_count += 1;
        }
    }
    status
}

fn from_runtime(container: &Container, observed: &Observed, input: &Input<'_>) -> ContainerStatus {
    let state = match observed.state {
        State::Running if input.local.hooks.contains(&observed.id) => {
            waiting_state("ContainerCreating", "")
        }
        State::Running => ContainerState {
            running: Some(ContainerStateRunning {
                started_at: observed.started_at.map(whole_seconds),
            }),
            ..ContainerState::default()
        },
        State::Created => waiting_state("ContainerCreating", ""),
        State::Exited => terminated(observed, input),
        State::Unknown => {
            unknown_end("The container could not be located when the pod was terminated")
        }
    };
    ContainerStatus {
        name: container.name.clone(),
        image: if observed.image.is_empty() {
            container.image.clone().unwrap_or_default()
        } else {
            observed.image.clone()
        },
        image_id: observed.image_ref.clone(),
        container_id: Some(format!("{}://{}", input.runtime_name, observed.id)),
        restart_count: observed.restart_count as i32,
        state: Some(state),
        user: observed.user.clone().map(|(uid, gid, groups)| ContainerUser {
            linux: Some(LinuxContainerUser { uid, gid, supplemental_groups: Some(groups) }),
        }),
        ..ContainerStatus::default()
    }
}

fn terminated(observed: &Observed, input: &Input<'_>) -> ContainerState {
    let reason = match observed.reason.as_str() {
        "" if observed.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    let message = input.messages.get(&observed.id).unwrap_or(&observed.message);
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: Some(format!("{}://{}", input.runtime_name, observed.id)),
            exit_code: observed.exit_code,
            reason: Some(reason.into()),
            message: (!message.is_empty()).then(|| message.clone()),
            started_at: Some(whole_seconds(observed.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            finished_at: Some(whole_seconds(observed.finished_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

fn set_readiness(
    kind: Kind,
    container: &Container,
    status: &mut ContainerStatus,
    input: &Input<'_>,
) {
    let state = status.state.as_ref();
    let running = state.is_some_and(|s| s.running.is_some());
    let id = status.container_id.as_deref().and_then(|id| id.split_once("://")).map(|(_, id)| id);
    let results = id.and_then(|id| input.local.probes.get(id)).copied().unwrap_or_default();
    let started = running && (container.startup_probe.is_none() || results.startup == Some(true));
    status.started = Some(started);
    status.ready = match kind {
        Kind::Init if !pod::is_sidecar(container) => {
            state.and_then(|s| s.terminated.as_ref()).is_some_and(|t| t.exit_code == 0)
        }
        Kind::Ephemeral => false,
        _ => started && (container.readiness_probe.is_none() || results.readiness == Some(true)),
    };
    if kind == Kind::Ephemeral {
        status.started = None;
    }
}

fn volume_mounts(
    container: &Container,
    observed: Option<&Observed>,
) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let statuses = mounts.iter().map(|m| {
        let read_only = m.read_only.filter(|r| *r);
        let recursive = matches!(m.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible"));
        VolumeMountStatus {
            mount_path: m.mount_path.clone(),
            name: m.name.clone(),
            read_only,
            recursive_read_only: read_only
                .map(|_| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
            volume_status: observed.and_then(|o| image_of(o, &m.mount_path)),
        }
    });
    Some(statuses.collect())
}

/// The image that is mounted there.
fn image_of(observed: &Observed, path: &str) -> Option<VolumeStatus> {
    let (_, image_ref) = observed.image_volumes.iter().find(|(at, _)| at == path)?;
    let image = ImageVolumeStatus { image_ref: image_ref.clone() };
    Some(VolumeStatus { image: Some(image) })
}

/// The API's times have whole seconds; comparing what is sent with what comes back needs the same.
pub fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message: (!message.is_empty()).then(|| message.into()),
        }),
        ..ContainerState::default()
    }
}

/// Whether the container once ended (now, or before it began to wait again), and with which code.
fn ended(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    if let Some(terminated) = &state.terminated {
        return Some(terminated.exit_code);
    }
    state.waiting.as_ref()?;
    Some(status.last_state.as_ref()?.terminated.as_ref()?.exit_code)
}

/// Whether the container is told to run.
pub fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|s| s.running.is_some())
}

/// The pod's phase from its containers' statuses (`getPhase`).
pub fn phase(pod: &Pod, statuses: &[ContainerStatus], ending: bool, started: bool) -> &'static str {
    let find = |name: &str| statuses.iter().find(|s| s.name == name);
    let (mut pending_init, mut failed_init, mut pending_sidecars) = (0, 0, 0);
    let (mut barred, mut restarts) = (false, false);
    let (mut unknown, mut running, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0, 0);
    for container in pod::init_containers(pod) {
        let status = find(&container.name);
        if pod::is_sidecar(container) {
            match status {
                None => unknown += 1,
                Some(s) if is_running(s) => {
                    pending_sidecars += usize::from(s.started != Some(true));
                    running += 1;
                }
                Some(s) if ended(s).is_some() => {}
                Some(_) => {
                    pending_sidecars += 1;
                    waiting += 1;
                }
            }
            continue;
        }
        match status.map(ended) {
            Some(Some(0)) => {}
            Some(Some(code)) => {
                failed_init += 1;
                barred |= !decide::restarts_after(pod, container, code);
            }
            _ => pending_init += 1,
        }
    }
    for container in pod::containers(pod) {
        match find(&container.name) {
            None => unknown += 1,
            Some(s) if is_running(s) => running += 1,
            Some(s) => match ended(s) {
                Some(code) => {
                    stopped += 1;
                    restarts |= decide::restarts_after(pod, container, code);
                    succeeded += usize::from(code == 0);
                }
                None => waiting += 1,
            },
        }
    }
    if barred {
        return "Failed";
    }
    if pending_init > 0
        || failed_init > 0 && !started
        || (!started && pending_sidecars > 0)
        || waiting > 0
    {
        return "Pending";
    }
    if running > 0 && unknown == 0 && !(ending && stopped > 0 && running == 0) {
        return "Running";
    }
    if stopped > 0 && unknown == 0 {
        if ending {
            return if stopped == succeeded { "Succeeded" } else { "Failed" };
        }
        if restarts {
            return "Running";
        }
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    "Pending"
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
