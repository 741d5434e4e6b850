//! The decision core: what to do next for a pod, from its spec, the runtime's view and the local
//! knowledge of the worker. Pure; the worker carries the answer out and asks again.
//!
//! Source of behaviour: `kuberuntime_manager.go` (`computePodActions`,
//! `computeInitContainerActions`) and the pod lifecycle page of the Kubernetes documentation.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::labels;
use crate::observe::{Observed, PodView, State};
use crate::pod::{self, Kind, RestartPolicy};
use crate::resources::Basis;
use crate::{resize, restart_all};

/// Results of the probes of one container, absent until known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeResults {
    /// Startup probe.
    pub startup: Option<bool>,
    /// Liveness probe.
    pub liveness: Option<bool>,
    /// Readiness probe.
    pub readiness: Option<bool>,
}

/// What the worker knows beside spec and runtime.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// Probe results by container id.
    pub probes: HashMap<String, ProbeResults>,
    /// Containers whose postStart hook has not ended.
    pub hooks: std::collections::HashSet<String>,
    /// Containers being stopped.
    pub stopping: std::collections::HashSet<String>,
    /// What limits follow from.
    pub basis: Basis,
}

impl Local {
    fn probe(&self, id: &str) -> ProbeResults {
        self.probes.get(id).copied().unwrap_or_default()
    }
}

/// A container to stop, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// The runtime's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// The text of the `Killing` event.
    pub message: String,
    /// Grace period instead of the pod's: a failed probe may carry its own.
    pub grace_seconds: Option<i64>,
}

/// A container to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Which list it is in.
    pub kind: Kind,
    /// Where in that list.
    pub index: usize,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    /// Stop every container and the sandbox.
    pub kill_pod: bool,
    /// Make a sandbox, being this attempt.
    pub create_sandbox: Option<u32>,
    /// Containers to stop.
    pub kill: Vec<Kill>,
    /// Containers to start, in order.
    pub start: Vec<Start>,
}

/// Decides what a pod that should run needs next.
pub fn decide(pod: &Pod, view: &PodView, local: &Local) -> Actions {
    if let Some(attempt) = sandbox_needed(pod, view) {
        return recreate(pod, view, attempt);
    }
    if is_over(pod, view) {
        // Sidecars may have ended already: they are not started for nobody.
        return Actions { kill_pod: true, ..Actions::default() };
    }
    let mut actions = Actions::default();
    for (index, container) in pod::ephemeral_containers(pod).iter().enumerate() {
        if view.latest(&container.name).is_none() {
            actions.start.push(Start { kind: Kind::Ephemeral, index });
        }
    }
    let initialized = init_actions(pod, view, local, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let mut kept = 0;
    let mut wanted = 0;
    for (index, container) in pod::containers(pod).iter().enumerate() {
        match regular(pod, container, view, local) {
            Verdict::Keep => kept += 1,
            Verdict::Leave => {}
            Verdict::Start => {
                wanted += 1;
                actions.start.push(Start { kind: Kind::Regular, index });
            }
            Verdict::Kill(kill, restart) => {
                wanted += usize::from(restart);
                actions.kill.push(kill);
            }
        }
    }
    if kept == 0 && wanted == 0 {
        actions.kill_pod = true;
        actions.start.retain(|s| s.kind == Kind::Ephemeral);
    }
    actions
}

/// Whether all regular containers have ended and none is to be started again.
fn is_over(pod: &Pod, view: &PodView) -> bool {
    pod::containers(pod).iter().all(|container| {
        let ended = view.latest(&container.name).is_some_and(|o| o.state == State::Exited);
        ended && !should_start(pod, container, view)
    })
}

/// Whether the pod has passed initialization, as the runtime's containers show it.
pub fn has_started(pod: &Pod, view: &PodView) -> bool {
    pod::containers(pod).iter().any(|c| {
        view.latest(&c.name).is_some_and(|o| matches!(o.state, State::Created | State::Running))
    })
}

/// Whether a container that is not running is to be started.
pub fn should_start(pod: &Pod, container: &Container, view: &PodView) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(status) = view.latest(&container.name) else { return true };
    match status.state {
        State::Running => false,
        State::Created | State::Unknown => true,
        State::Exited => restarts_after(pod, container, status.exit_code),
    }
}

/// Whether the rules restart `container` once it has ended with `exit_code`.
pub fn restarts_after(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    if let Some(rule) = restart_all::rule(container, exit_code) {
        return rule.action == "Restart" || rule.action == "RestartAllContainers";
    }
    let policy = match container.restart_policy.as_deref() {
        Some(text) => pod::parse_policy(Some(text)),
        None => pod::restart_policy(pod),
    };
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// The attempt of the sandbox to make, if one is needed.
fn sandbox_needed(pod: &Pod, view: &PodView) -> Option<u32> {
    let Some(latest) = view.sandboxes.first() else { return Some(0) };
    let ready = view.sandboxes.iter().filter(|s| s.ready).count();
    if ready > 1 || !latest.ready || (latest.ips.is_empty() && !pod::host_network(pod)) {
        return Some(latest.attempt + 1);
    }
    None
}

fn recreate(pod: &Pod, view: &PodView, attempt: u32) -> Actions {
    let mut actions = Actions { kill_pod: true, ..Actions::default() };
    let never = pod::restart_policy(pod) == RestartPolicy::Never;
    if never && attempt != 0 && !view.containers.is_empty() {
        return actions;
    }
    let done = |c: &Container| {
        pod::restart_policy(pod) == RestartPolicy::OnFailure
            && view.latest(&c.name).is_some_and(|o| o.state == State::Exited && o.exit_code == 0)
    };
    let start: Vec<Start> = (pod::containers(pod).iter().enumerate())
        .filter(|(_, c)| !done(c))
        .map(|(index, _)| Start { kind: Kind::Regular, index })
        .collect();
    if start.is_empty() {
        return actions;
    }
    actions.create_sandbox = Some(attempt);
    actions.start = if pod::init_containers(pod).is_empty() {
        start
    } else {
        vec![Start { kind: Kind::Init, index: 0 }]
    };
    actions
}

enum Verdict {
    Keep,
    Leave,
    Start,
    Kill(Kill, bool),
}

fn regular(pod: &Pod, container: &Container, view: &PodView, local: &Local) -> Verdict {
    let running = view.latest(&container.name).filter(|o| o.state == State::Running);
    let Some(observed) = running else {
        return if should_start(pod, container, view) { Verdict::Start } else { Verdict::Leave };
    };
    if local.stopping.contains(&observed.id) || local.hooks.contains(&observed.id) {
        return Verdict::Keep;
    }
    let results = local.probe(&observed.id);
    let (message, grace_seconds, always) = if changed(container, observed) {
        (format!("Container {} definition changed", container.name), None, true)
    } else if resize::step(pod, container, observed, local.basis) == resize::Step::Restart {
        (format!("Container {} resize requires restart", container.name), None, true)
    } else if results.liveness == Some(false) {
        let grace =
            container.liveness_probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
        (format!("Container {} failed liveness probe", container.name), grace, false)
    } else if results.startup == Some(false) {
        let grace =
            container.startup_probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
        (format!("Container {} failed startup probe", container.name), grace, false)
    } else {
        return Verdict::Keep;
    };
    // 137 stands for the kill that is about to happen.
    let restart = always || restarts_after(pod, container, 137);
    let message = if restart { format!("{message}, will be restarted") } else { message };
    Verdict::Kill(
        Kill { id: observed.id.clone(), name: container.name.clone(), message, grace_seconds },
        restart,
    )
}

fn changed(container: &Container, observed: &Observed) -> bool {
    observed.hash().is_some_and(|hash| hash != labels::hash(container))
}

/// Fills in what the init containers need; true once regular containers may run.
fn init_actions(pod: &Pod, view: &PodView, local: &Local, actions: &mut Actions) -> bool {
    let containers = pod::init_containers(pod);
    if containers.is_empty() {
        return true;
    }
    let mut initialized = has_started(pod, view);
    let mut previously = initialized;
    let last = containers.len() - 1;
    let mut start: Vec<usize> = Vec::new();
    // Backwards: completed ones may have been collected already, so the newest known one counts.
    for (i, container) in containers.iter().enumerate().rev() {
        let sidecar = pod::is_sidecar(container);
        let Some(observed) = view.latest(&container.name) else {
            if previously && sidecar {
                start.push(i);
            }
            continue;
        };
        if previously && !sidecar {
            continue;
        }
        match observed.state {
            State::Created => start.push(i),
            State::Running if !sidecar => {}
            State::Running => {
                let step = sidecar_step(container, observed, local, actions);
                if step == Step::Ready {
                    if i == last {
                        initialized = true;
                    } else if !previously {
                        start.push(i + 1);
                    }
                }
            }
            State::Exited | State::Unknown if sidecar => start.push(i),
            State::Exited if observed.exit_code == 0 => {
                if i == last {
                    initialized = true;
                } else {
                    start.push(i + 1);
                }
            }
            State::Exited | State::Unknown => {
                if !restarts_after(pod, container, observed.exit_code) {
                    actions.kill_pod = true;
                    actions.start.clear();
                    return false;
                }
                start.push(i);
            }
        }
        previously = true;
    }
    if !previously {
        start.push(0);
    }
    start.reverse();
    start.dedup();
    actions.start.extend(start.into_iter().map(|index| Start { kind: Kind::Init, index }));
    initialized
}

#[derive(PartialEq)]
enum Step {
    Wait,
    Ready,
}

fn sidecar_step(
    container: &Container,
    observed: &Observed,
    local: &Local,
    actions: &mut Actions,
) -> Step {
    if local.stopping.contains(&observed.id) || local.hooks.contains(&observed.id) {
        return Step::Wait;
    }
    let results = local.probe(&observed.id);
    let mut kill = |what: &str, grace_seconds: Option<i64>| {
        actions.kill.push(Kill {
            id: observed.id.clone(),
            name: container.name.clone(),
            message: format!("Init container {} failed {what} probe", container.name),
            grace_seconds,
        });
    };
    if let Some(probe) = &container.startup_probe
        && results.startup != Some(true)
    {
        if results.startup == Some(false) {
            kill("startup", probe.termination_grace_period_seconds);
        }
        return Step::Wait;
    }
    if let Some(probe) = &container.liveness_probe
        && results.liveness == Some(false)
    {
        kill("liveness", probe.termination_grace_period_seconds);
    }
    Step::Ready
}

#[cfg(test)]
#[path = "decide_tests.rs"]
pub mod tests;
