//! Ending containers and pods: hooks, grace, sidecars last, and the clearing away.
//!
//! Source of behaviour: `kuberuntime_container.go` (`killContainer`), `pod_workers.go`
//! (`SyncTerminatingPod`, `SyncTerminatedPod`), the pod termination page of the documentation.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use tokio::time::Instant;

use crate::background::Background;
use crate::context::Context;
use crate::decide::Kill;
use crate::observe::{Observed, State};
use crate::pod::{self, Kind};
use crate::worker::{Stop, Worker};
use crate::{csi, hooks, labels, probe, sandbox, volumes};

/// A container gets at least this after its preStop hook.
const MINIMUM_GRACE_SECONDS: i64 = 2;
/// Grace of a pod that is ended for what it holds.
const EVICTION_GRACE_SECONDS: i64 = 1;

impl Worker {
    /// Begins to stop one container of a pod that goes on.
    pub(crate) fn kill(&mut self, kill: &Kill) {
        let Some(observed) = self.view.by_id(&kill.id).cloned() else { return };
        if self.stops.contains_key(&kill.id) {
            return;
        }
        let grace = kill.grace_seconds.unwrap_or_else(|| pod::grace_period_seconds(&self.pod));
        self.stop(&observed, grace, &kill.message);
    }

    /// Begins to stop every container; true while some are left.
    pub(crate) fn stop_everything(&mut self, now: Timestamp, message: &str) -> bool {
        let running: Vec<Observed> = self.view.running().cloned().collect();
        if running.is_empty() {
            return !self.stops.is_empty();
        }
        let since = *self.ending_since.get_or_insert(now);
        let elapsed = now.duration_since(since).as_secs();
        let grace = (self.grace_seconds() - elapsed).max(0);
        let order: Vec<String> = pod::init_containers(&self.pod)
            .iter()
            .filter(|c| pod::is_sidecar(c))
            .map(|c| c.name.clone())
            .collect();
        let (mut sidecars, main): (Vec<Observed>, Vec<Observed>) =
            running.into_iter().partition(|o| order.contains(&o.name));
        if main.is_empty() {
            // In the reverse of the order they were started in.
            sidecars.sort_by_key(|o| order.iter().position(|n| *n == o.name));
            if let Some(last) = sidecars.pop() {
                self.stop_if_needed(
                    &last,
                    grace.max(MINIMUM_GRACE_SECONDS.min(self.grace_seconds())),
                    message,
                );
            }
        }
        for observed in &main {
            self.stop_if_needed(observed, grace, message);
        }
        true
    }

    fn stop_if_needed(&mut self, observed: &Observed, grace: i64, message: &str) {
        let deadline = after(self.context.clock.now(), grace);
        match self.stops.get(&observed.id) {
            // A second deletion may leave less time than the first.
            Some(stop) if after(deadline, MINIMUM_GRACE_SECONDS) >= stop.deadline => {}
            // Replacing it gives the first one up.
            Some(_) => self.begin_stop(observed, grace, false),
            None => self.stop(observed, grace, message),
        }
    }

    pub(crate) fn stop(&mut self, observed: &Observed, grace: i64, message: &str) {
        let kind = pod::find_container(&self.pod, &observed.name).map_or(Kind::Regular, |(k, _)| k);
        let text = if message.is_empty() {
            format!("Stopping container {}", observed.name)
        } else {
            message.to_owned()
        };
        self.context.normal(&self.pod, Some((kind, &observed.name)), "Killing", text);
        self.begin_stop(observed, grace, true);
    }

    fn begin_stop(&mut self, observed: &Observed, grace: i64, with_hook: bool) {
        let container = pod::find_container(&self.pod, &observed.name).map(|(_, c)| c);
        let hook = pre_stop(container.as_ref(), observed).filter(|_| with_hook && grace > 0);
        let container = container
            .unwrap_or_else(|| Container { name: observed.name.clone(), ..Container::default() });
        let (context, pod, id) = (self.context.clone(), self.pod.clone(), observed.id.clone());
        let ip = probe::pod_ip(&context, &pod, &self.view);
        let work = async move { stop(&context, &pod, &container, &id, &ip, hook, grace).await };
        let task = Background::spawn(work, self.wake.clone());
        let deadline = after(self.context.clock.now(), grace);
        self.stops.insert(observed.id.clone(), Stop { deadline, task });
        self.local.stopping.insert(observed.id.clone());
    }

    fn grace_seconds(&self) -> i64 {
        if let Some(seconds) = self.grace {
            return seconds;
        }
        if self.failure.as_ref().is_some_and(|f| f.reason == "Evicted") {
            return EVICTION_GRACE_SECONDS;
        }
        let mut seconds = pod::grace_period_seconds(&self.pod);
        if self.pod.spec.is_none() {
            // The spec is gone with the API's object; the containers remember.
            let kept = self.view.containers.iter();
            let kept = kept
                .filter_map(|c| c.annotations.get(labels::TERMINATION_GRACE_PERIOD)?.parse().ok());
            seconds = kept.max().unwrap_or(seconds);
        }
        if self.removed && self.pod.metadata.deletion_timestamp.is_none() {
            // Nobody waits for it any more, but its data may need the time.
            return seconds.max(1);
        }
        seconds
    }

    /// One step of ending the pod. Returns whether nothing of it is left.
    pub(crate) async fn end(&mut self, now: Timestamp, next: &mut Timestamp) -> bool {
        self.pulls.cancel();
        if self.cleaned {
            return self.removed;
        }
        let since = *self.ending_since.get_or_insert(now);
        if self.stop_everything(now, "") {
            self.report(now, false);
            let deadline = after(after(since, self.grace_seconds()), MINIMUM_GRACE_SECONDS);
            *next = (*next).min(deadline.max(now + SignedDuration::from_secs(1)));
            return false;
        }
        let mut failed = false;
        for ready in self.view.sandboxes.iter().filter(|s| s.ready) {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: ready.id.clone() };
            if let Err(error) = self.context.cri.stop_pod_sandbox(request).await {
                self.context.warning(
                    &self.pod,
                    None,
                    "FailedKillPod",
                    format!(
                        "error killing pod: failed to \"KillPodSandbox\" for {:?}: {}",
                        pod::uid(&self.pod),
                        error.rpc_text()
                    ),
                );
                failed = true;
            }
        }
        if failed {
            *next = (*next).min(now + SignedDuration::from_secs(2));
            return false;
        }
        for sandbox in &mut self.view.sandboxes {
            sandbox.ready = false;
        }
        self.report(now, true);
        self.context.release(pod::uid(&self.pod));
        if !self.tear_down().await {
            *next = (*next).min(now + SignedDuration::from_secs(2));
            return false;
        }
        if !self.removed && self.pod.metadata.deletion_timestamp.is_none() {
            return false;
        }
        if !self.clear_away().await {
            *next = (*next).min(now + SignedDuration::from_secs(2));
            return false;
        }
        self.cleaned = true;
        if !self.removed {
            self.reporter.delete();
        }
        self.removed
    }

    async fn tear_down(&mut self) -> bool {
        let (root, uid) = (self.context.root_dir.clone(), pod::uid(&self.pod).to_owned());
        if let Err(error) = csi::give_back(&self.context, &uid).await {
            tracing::warn!(pod = pod::full_name(&self.pod), %error, "cannot give a driver's volume back");
            return false;
        }
        if let Err(error) = self.context.claims.give_back(&uid).await {
            tracing::warn!(
                pod = pod::full_name(&self.pod),
                error,
                "cannot give claimed devices back"
            );
            return false;
        }
        let done = tokio::task::spawn_blocking(move || volumes::tear_down(&root, &uid)).await;
        self.mounted = None;
        match done {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(pod = pod::full_name(&self.pod), %error, "cannot remove the pod's directory");
                false
            }
            Err(_) => false,
        }
    }

    /// Removes the dead containers, sandboxes and logs of a pod that leaves the node.
    async fn clear_away(&mut self) -> bool {
        let mut clear = true;
        for observed in &self.view.containers {
            let request = cri::RemoveContainerRequest { container_id: observed.id.clone() };
            if let Err(error) = self.context.cri.remove_container(request).await
                && !error.is_not_found()
            {
                tracing::warn!(container = observed.id, %error, "cannot remove a container");
                clear = false;
            }
        }
        for old in &self.view.sandboxes {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: old.id.clone() };
            if let Err(error) = self.context.cri.remove_pod_sandbox(request).await
                && !error.is_not_found()
            {
                tracing::warn!(sandbox = old.id, %error, "cannot remove a sandbox");
                clear = false;
            }
        }
        let logs = sandbox::log_directory(&self.context.pod_log_dir, &self.pod);
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %logs.display(), %error, "cannot remove logs");
            }
            _ => {}
        }
        clear
    }
}

/// So many seconds later; a pod may ask for more than time has.
fn after(time: Timestamp, seconds: i64) -> Timestamp {
    time.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// The hook of the spec, or of the annotation where the spec is gone.
fn pre_stop(container: Option<&Container>, observed: &Observed) -> Option<LifecycleHandler> {
    if observed.state != State::Running {
        return None;
    }
    match container {
        Some(container) => container.lifecycle.as_ref()?.pre_stop.clone(),
        None => serde_json::from_str(observed.annotations.get(labels::PRE_STOP_HANDLER)?).ok(),
    }
}

async fn stop(
    context: &Arc<Context>,
    of: &Pod,
    container: &Container,
    id: &str,
    ip: &str,
    hook: Option<LifecycleHandler>,
    grace: i64,
) {
    let mut remaining = grace;
    if let Some(hook) = hook {
        let began = Instant::now();
        let limit = Duration::from_secs(grace as u64);
        let outcome =
            tokio::time::timeout(limit, hooks::run(context, container, id, ip, &hook)).await;
        if let Ok(Err(error)) = outcome {
            tracing::info!(container = container.name, pod = pod::full_name(of), %error, "preStop hook failed");
            context.warning(
                of,
                Some((Kind::Regular, &container.name)),
                "FailedPreStopHook",
                "PreStopHook failed",
            );
        }
        remaining = (grace - began.elapsed().as_secs() as i64).max(MINIMUM_GRACE_SECONDS);
    }
    let request =
        cri::StopContainerRequest { container_id: id.to_owned(), timeout: remaining.max(0) };
    if let Err(error) = context.cri.stop_container(request).await
        && !error.is_not_found()
    {
        tracing::warn!(container = id, pod = pod::full_name(of), %error, "cannot stop a container");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_grace_is_a_time() {
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(after(now, 30).as_second(), 30);
        assert_eq!(after(after(now, i64::MAX), MINIMUM_GRACE_SECONDS), Timestamp::MAX);
    }
}
