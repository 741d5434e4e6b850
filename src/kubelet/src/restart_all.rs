//! Restarting a pod in place: a container's rule with the action `RestartAllContainers` ends every container, without
//! grace and without hooks, and begins the pod again in its sandbox, with its volumes.
//!
//! Source of behaviour: KEP 5532, the pod lifecycle page of the Kubernetes documentation.

use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod, PodStatus};

use crate::observe::{Observed, PodView, State};
use crate::pod::{self, Kind};
use crate::worker::Worker;

/// The feature's name, by which the node says that it can do this.
pub const FEATURE: &str = "RestartAllContainersOnContainerExits";
/// The condition that is true while containers end for it.
pub const CONDITION: &str = "AllContainersRestarting";
/// The condition's reason and message while it is true.
pub const STARTED: (&str, &str) =
    ("RestartAllContainersStarted", "container exited with restart policy rule");

const ACTION: &str = "RestartAllContainers";

/// The first of the container's rules that an exit code fits.
pub fn rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        rule.exit_codes.as_ref().is_some_and(|codes| {
            let listed = codes.values.iter().flatten().any(|value| *value == exit_code);
            (codes.operator == "In") == listed
        })
    })
}

/// Init and regular containers: those that are restarted together.
fn members(pod: &Pod) -> impl Iterator<Item = (Kind, &Container)> {
    let init = pod::init_containers(pod).iter().map(|c| (Kind::Init, c));
    init.chain(pod::containers(pod).iter().map(|c| (Kind::Regular, c)))
}

/// Whether a container of the pod may have all of them restarted.
pub fn possible(pod: &Pod) -> bool {
    let mut rules = members(pod).flat_map(|(_, c)| c.restart_policy_rules.iter().flatten());
    rules.any(|rule| rule.action == ACTION)
}

/// The container whose end restarts them all.
fn source<'a>(pod: &'a Pod, view: &PodView) -> Option<(Kind, &'a Container)> {
    members(pod).find(|(_, container)| {
        view.latest(&container.name).is_some_and(|o| {
            o.state == State::Exited
                && rule(container, o.exit_code).is_some_and(|rule| rule.action == ACTION)
        })
    })
}

/// Whether the pod was told to be in the midst of it.
pub fn told(status: &PodStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == CONDITION && c.status == "True")
}

/// The containers to remove, that which began it last: until it is gone a kubelet that starts anew knows.
fn to_remove(pod: &Pod, view: &PodView) -> Vec<Observed> {
    let last = source(pod, view).map(|(_, c)| c.name.as_str());
    let own = |o: &&Observed| members(pod).any(|(_, c)| c.name == o.name);
    let mut all: Vec<Observed> = view.containers.iter().filter(own).cloned().collect();
    all.sort_by_key(|o| Some(o.name.as_str()) == last);
    all
}

impl Worker {
    /// Takes the pod one step on its way back to its beginning. Returns whether it is still on it.
    pub(crate) async fn restart_all(&mut self, now: Timestamp, next: &mut Timestamp) -> bool {
        if !possible(&self.pod) {
            return false;
        }
        if !self.restarting {
            let of = self.pod.clone();
            let Some((kind, container)) = source(&of, &self.view) else { return false };
            if let Some(until) = self.held_back(kind, container, now) {
                *next = (*next).min(until);
                return false;
            }
            self.restarting = true;
            self.report(now, false);
        }
        let of = self.pod.clone();
        let own = |o: &&Observed| members(&of).any(|(_, c)| c.name == o.name);
        let running: Vec<Observed> = self.view.running().filter(own).cloned().collect();
        for observed in &running {
            if !self.stops.contains_key(&observed.id) {
                self.stop(observed, 0, "");
            }
        }
        if !running.is_empty() || !self.stops.is_empty() {
            return true;
        }
        // How they ended is told before they are gone: it stays their last state.
        self.report(now, false);
        for observed in to_remove(&of, &self.view) {
            let request = cri::RemoveContainerRequest { container_id: observed.id.clone() };
            if let Err(error) = self.context.cri.remove_container(request).await
                && !error.is_not_found()
            {
                tracing::warn!(container = observed.id, %error, "cannot remove a container");
                *next = (*next).min(now + SignedDuration::from_secs(1));
                return true;
            }
            self.forget_files(&observed);
        }
        self.view.containers.retain(|o| !own(&o));
        self.waiting.clear();
        self.retry_at.clear();
        self.restarting = false;
        self.renewed = members(&of).map(|(_, c)| c.name.clone()).collect();
        self.report(now, false);
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(action: &str) -> Pod {
        serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "w", "restartPolicy": "Never", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}},
                {"action": action, "exitCodes": {"operator": "NotIn", "values": [0, 2]}}]}]}}))
        .unwrap()
    }

    #[test]
    fn rules_decide_what_restarts() {
        let own = pod(ACTION);
        assert!(possible(&own) && !possible(&pod("Restart")));
        for (code, action) in [(0, None), (1, Some("Restart")), (2, None), (88, Some(ACTION))] {
            let found = rule(&pod::containers(&own)[1], code).map(|rule| rule.action.as_str());
            assert_eq!(found, action, "{code}");
            let view = crate::decide::tests::view(&["a:running", &format!("w:exited:{code}")]);
            assert_eq!(source(&own, &view).is_some(), action == Some(ACTION), "{code}");
        }
    }

    #[test]
    fn the_one_that_began_it_goes_last() {
        let view =
            crate::decide::tests::view(&["w:exited:88", "a:exited:137", "i:exited:0", "e:running"]);
        let names: Vec<String> =
            to_remove(&pod(ACTION), &view).into_iter().map(|o| o.name).collect();
        assert_eq!(names, ["a", "i", "w"]);
    }
}
