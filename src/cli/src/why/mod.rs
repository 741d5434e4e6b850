//! Follows a pod through the steps of its life and names the one that holds it.

pub mod claim;
mod remedy;
pub mod service;

use serde::Serialize;
use serde_json::Value;

use remedy::{CREATE, IMAGE, START, UNSCHEDULED, VOLUME, WORDS, find};

/// What holds a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The step, one of DESIGN's words; empty when nothing holds the pod.
    pub step: &'static str,
    /// What is the matter, in a sentence.
    pub finding: String,
    /// What it was concluded from; may be empty.
    pub evidence: String,
    /// What to do; empty when there is nothing to do or it is not known.
    pub remedy: String,
    /// The container whose log tells more, and whether that of the run before.
    #[serde(skip)]
    pub log: Option<(String, bool)>,
}

/// Lines of a log that are told.
const LAST_LINES: usize = 3;

impl Verdict {
    fn new(step: &'static str, finding: impl Into<String>) -> Self {
        Self {
            step,
            finding: finding.into(),
            evidence: String::new(),
            remedy: String::new(),
            log: None,
        }
    }

    fn because(mut self, evidence: impl Into<String>) -> Self {
        self.evidence = evidence.into();
        self
    }

    fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Takes a container's last words into account.
    pub fn hear(&mut self, log: &str) {
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return;
        }
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n  ");
        self.evidence = format!("{} Its last words:\n  {last}", self.evidence).trim().to_owned();
        // The container's own words, or those of what was to start it.
        let unstarted = lines.last().is_some_and(|line| line.starts_with("exec /"));
        let remedy = find(if unstarted { START } else { WORDS }, &last);
        if !remedy.is_empty() {
            self.remedy = remedy.into();
        }
    }
}

impl Verdict {
    /// Whether it would help to know the nodes' taints, which the scheduler does not name.
    pub fn wants_taints(&self) -> bool {
        self.step == "schedule" && self.evidence.contains("untolerated taint(s)")
    }

    /// Takes the nodes' taints into account; `nodes` is a list of the API's.
    pub fn see_taints(&mut self, nodes: &Value) {
        let mut told = Vec::new();
        for node in nodes["items"].as_array().into_iter().flatten() {
            let taints = node["spec"]["taints"].as_array().into_iter().flatten();
            let keep = taints.filter(|taint| taint["effect"] != "PreferNoSchedule").map(|taint| {
                let text = |field: &str| taint[field].as_str().unwrap_or_default();
                let value = if text("value").is_empty() { "" } else { "=" };
                format!("{}{value}{}:{}", text("key"), text("value"), text("effect"))
            });
            let keep: Vec<String> = keep.collect();
            if !keep.is_empty() {
                let name = node["metadata"]["name"].as_str().unwrap_or_default();
                told.push(format!("Node {name} has {}.", keep.join(", ")));
            }
        }
        told.truncate(LAST_LINES);
        self.evidence = format!("{} {}", sentence(&self.evidence), told.join(" "));
        self.remedy = find(UNSCHEDULED, &self.evidence).into();
    }
}

/// The verdict as a paragraph.
pub fn text(namespace: &str, name: &str, verdict: &Verdict) -> String {
    told(&format!("Pod {namespace}/{name}"), verdict)
}

/// As [`text`], of any object.
pub fn told(object: &str, verdict: &Verdict) -> String {
    let mut out = format!("{object}: {}", verdict.finding);
    if !verdict.evidence.is_empty() {
        out.push_str(&format!(" {}", sentence(&verdict.evidence)));
    }
    if !verdict.remedy.is_empty() {
        out.push_str(&format!("\nRemedy: {}", sentence(&verdict.remedy)));
    }
    out.push('\n');
    out
}

fn sentence(text: &str) -> String {
    let text = text.trim();
    // What a program said is left as it was.
    if text.contains('\n') || text.ends_with(['.', '!', '?']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

/// What holds `pod`, an object of the API; `events` are those about it, oldest first.
pub fn explain(pod: &Value, events: &[Value]) -> Verdict {
    let pod = Pod { pod, events };
    pod.ending()
        .or_else(|| pod.ended())
        .or_else(|| pod.unscheduled())
        .or_else(|| pod.unseen())
        .or_else(|| pod.not_set_up())
        .or_else(|| pod.container("initContainerStatuses", "init container"))
        .or_else(|| pod.container("containerStatuses", "container"))
        .or_else(|| pod.not_ready())
        .unwrap_or_else(|| pod.well())
}

/// Why pods are not created, from the message of a `FailedCreate` event about `object`.
pub fn not_created(object: &str, message: &str) -> Verdict {
    let message = message.trim_start_matches("(combined from similar events): ");
    Verdict::new("admit", format!("{object} cannot create its pods."))
        .because(message)
        .mend(find(CREATE, message))
}

/// Of a pod that is not there, from the events about it; `None` where there are none.
pub fn gone(events: &[Value]) -> Option<Verdict> {
    let told = ["Preempted", "Preempting", "Evicted", "TaintManagerEviction", "NodeShutdown"];
    let is = |event: &&Value| event["reason"].as_str().is_some_and(|r| told.contains(&r));
    let event = events.iter().rev().find(is).or(events.last())?;
    let text = |field: &str| event[field].as_str().unwrap_or_default();
    let remedy = match text("reason") {
        "Preempted" | "Preempting" => {
            "a pod of a higher priority has its place: raise its priorityClassName, lower requests, or have a Deployment make it anew"
        }
        "Evicted" => "free what the node is short of; a Deployment would have made another",
        "TaintManagerEviction" => "tolerate the node's taint, or remove it: kubectl describe nodes",
        _ => "a pod that is deleted stays so unless something like a Deployment makes another",
    };
    let finding = "there is no such pod any more.";
    Some(
        Verdict::new("observe", finding)
            .because(format!("The last of it: {}: {}", text("reason"), text("message")))
            .mend(remedy),
    )
}

/// Of an object whose pods, if it has any, are all well.
pub fn unheld(owner: &Value, pods: usize) -> Verdict {
    if pods > 0 {
        return Verdict::new("", format!("nothing holds it: its {pods} pods are well."));
    }
    let spec = &owner["spec"];
    if spec["suspend"] == true {
        return Verdict::new("", "it is suspended, and has no pods.")
            .mend("set spec.suspend to false");
    }
    if spec["replicas"] == 0 {
        return Verdict::new("", "it is asked for no pods (spec.replicas is 0).");
    }
    if spec["schedule"].is_string() {
        return Verdict::new(
            "",
            format!("its time has not come: {}.", spec["schedule"].as_str().unwrap_or_default()),
        );
    }
    Verdict::new("controllers", "it has no pods yet.")
        .mend("see what its controller says: kubectl describe")
}

struct Pod<'a> {
    pod: &'a Value,
    events: &'a [Value],
}

impl Pod<'_> {
    fn status(&self, field: &str) -> &str {
        self.pod["status"][field].as_str().unwrap_or_default()
    }

    fn condition(&self, name: &str) -> Option<&Value> {
        self.pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == name)
    }

    /// The newest event with one of `reasons`.
    fn event(&self, reasons: &[&str]) -> Option<&str> {
        let of = |event: &&Value| event["reason"].as_str().is_some_and(|r| reasons.contains(&r));
        self.events.iter().rev().find(of).and_then(|event| event["message"].as_str())
    }

    /// Nothing holds it now; what happened before is told.
    fn well(&self) -> Verdict {
        let verdict = Verdict::new("", "nothing holds it: it is Running and Ready.");
        if let Some(message) = self.hook_failure() {
            return hook(message);
        }
        let statuses = self.pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let restarted = statuses
            .into_iter()
            .find(|c| c["restartCount"].as_u64().is_some_and(|count| count > 0));
        let Some(status) = restarted else { return verdict };
        let last = self.exited(
            &format!("container {}", status["name"].as_str().unwrap_or_default()),
            &status["lastState"]["terminated"],
            true,
        );
        let count = times(status["restartCount"].as_u64().unwrap_or_default());
        verdict
            .because(format!("It was restarted {count} before: {} {}", last.finding, last.evidence))
    }

    /// That a hook failed after the newest start of its container.
    fn hook_failure(&self) -> Option<&str> {
        let newest = |reason: &str| self.events.iter().rposition(|event| event["reason"] == reason);
        let failed = newest("FailedPostStartHook")?;
        let started = newest("Started").unwrap_or_default();
        (failed > started
            || self.events[failed]["lastTimestamp"] == self.events[started]["lastTimestamp"])
            .then(|| self.events[failed]["message"].as_str().unwrap_or_default())
    }

    fn ending(&self) -> Option<Verdict> {
        self.pod["metadata"]["deletionTimestamp"].as_str()?;
        let finalizers: Vec<&str> = self.pod["metadata"]["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let gone = self.pod["status"]["containerStatuses"]
            .as_array()
            .is_none_or(|all| all.iter().all(|c| c["state"]["running"].is_null()));
        if gone && !finalizers.is_empty() {
            let verdict = Verdict::new("report", "it is deleted, and kept by its finalizers.");
            return Some(verdict.because(format!("They are {}", finalizers.join(", "))).mend(
                "see whether the controller that set them runs; it removes them when it has cleaned up",
            ));
        }
        let grace = self.pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(30);
        let verdict =
            Verdict::new("observe", "it is being deleted; its containers are told to end.");
        Some(
            verdict
                .because(format!("They have {grace} s for it"))
                .mend("wait, or `kubectl delete pod --now` if what it does may be cut short"),
        )
    }

    fn ended(&self) -> Option<Verdict> {
        match self.status("phase") {
            "Succeeded" => Some(Verdict::new("", "nothing holds it: it has run to its end.")),
            "Failed" => {
                let message = self.status("message");
                if !self.status("reason").is_empty() {
                    let reason = self.status("reason");
                    let finding = format!("it has failed: {reason}.");
                    let remedy = match reason {
                        "DeadlineExceeded" => "raise activeDeadlineSeconds, or make it faster",
                        "Evicted" if message.contains("exceed") && message.contains("limit") => {
                            "raise the limit that it names (sizeLimit of an emptyDir, limits of ephemeral-storage), or have it write less"
                        }
                        "Evicted" => {
                            "free what the node is short of; who creates the pod creates another"
                        }
                        _ => "",
                    };
                    return Some(Verdict::new("observe", finding).because(message).mend(remedy));
                }
                self.container("initContainerStatuses", "init container")
                    .or_else(|| self.container("containerStatuses", "container"))
                    .or_else(|| Some(Verdict::new("observe", "it has failed.").because(message)))
            }
            _ => None,
        }
    }

    fn unscheduled(&self) -> Option<Verdict> {
        if self.pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty()) {
            return None;
        }
        let scheduler = self.pod["spec"]["schedulerName"].as_str().unwrap_or("default-scheduler");
        let Some(condition) = self.condition("PodScheduled") else {
            let finding = format!("scheduler {scheduler:?} has not looked at it.");
            let verdict = Verdict::new("schedule", finding);
            return Some(
                verdict.mend("see whether a scheduler of that name runs (spec.schedulerName)"),
            );
        };
        let message = condition["message"].as_str().unwrap_or_default();
        if condition["reason"] == "SchedulingGated" {
            let gates: Vec<&str> = self.pod["spec"]["schedulingGates"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|gate| gate["name"].as_str())
                .collect();
            let verdict =
                Verdict::new("schedule", "it waits for its scheduling gates to be removed.");
            let verdict = verdict.because(format!("They are {}", gates.join(", ")));
            return Some(verdict.mend(
                "see whether the controller that set them runs, or take them out of spec.schedulingGates",
            ));
        }
        let verdict = Verdict::new("schedule", "no node suits it.").because(message);
        Some(verdict.mend(find(UNSCHEDULED, message)))
    }

    fn unseen(&self) -> Option<Verdict> {
        let node = self.pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let seen = self.pod["status"]["startTime"].is_string();
        (!seen).then(|| {
            let finding = format!("it is bound to node {node}, whose kubelet has not taken it up.");
            Verdict::new("kubelet", finding)
                .mend(format!("see whether there is such a node, and whether it is Ready: kubectl describe node {node}"))
        })
    }

    fn not_set_up(&self) -> Option<Verdict> {
        let ready =
            self.condition("PodReadyToStartContainers").is_none_or(|c| c["status"] == "True");
        let started = |list: &str| {
            let statuses = self.pod["status"][list].as_array().into_iter().flatten();
            statuses.into_iter().any(|c| c["containerID"].as_str().is_some_and(|id| !id.is_empty()))
        };
        if started("containerStatuses") || started("initContainerStatuses") {
            return None;
        }
        if let Some(message) = self.event(&["FailedMount", "FailedAttachVolume", "FailedMapVolume"])
        {
            let verdict = Verdict::new("volumes", "a volume cannot be mounted.").because(message);
            return Some(verdict.mend(find(VOLUME, message)));
        }
        if ready {
            return None;
        }
        let message = self.event(&["FailedCreatePodSandBox"])?;
        let verdict = Verdict::new("sandbox", "its sandbox cannot be made.").because(message);
        Some(verdict.mend("rootlet doctor"))
    }

    fn container(&self, list: &str, what: &str) -> Option<Verdict> {
        let statuses = self.pod["status"][list].as_array()?;
        statuses.iter().find_map(|status| self.one_container(status, what))
    }

    fn one_container(&self, status: &Value, what: &str) -> Option<Verdict> {
        let name = status["name"].as_str().unwrap_or_default();
        let state = &status["state"];
        if let Some(reason) = state["waiting"]["reason"].as_str() {
            let message = state["waiting"]["message"].as_str().unwrap_or_default();
            return self.waiting(status, &format!("{what} {name}"), reason, message);
        }
        let terminated = &state["terminated"];
        let failed = terminated["exitCode"].as_i64().is_some_and(|code| code != 0);
        if failed {
            return Some(self.exited(&format!("{what} {name}"), terminated, false));
        }
        let running = what == "init container" && state["running"].is_object();
        let holds = running && (!self.is_sidecar(name) || status["started"] == false);
        holds.then(|| {
            let finding = format!("{what} {name} runs still; the others wait for it.");
            let since = state["running"]["startedAt"].as_str().unwrap_or_default();
            let mut verdict = Verdict::new("containers", finding)
                .because(format!("It began at {since}"))
                .mend(self.logs(name, false));
            verdict.log = Some((name.to_owned(), false));
            verdict
        })
    }

    fn is_sidecar(&self, name: &str) -> bool {
        let all = self.pod["spec"]["initContainers"].as_array().into_iter().flatten();
        all.into_iter().any(|c| c["name"] == name && c["restartPolicy"] == "Always")
    }

    fn logs(&self, container: &str, previous: bool) -> String {
        let text = |field: &str| self.pod["metadata"][field].as_str().unwrap_or_default();
        let previous = if previous { " --previous" } else { "" };
        format!("kubectl logs -n {} {} -c {container}{previous}", text("namespace"), text("name"))
    }

    fn waiting(&self, status: &Value, what: &str, reason: &str, message: &str) -> Option<Verdict> {
        match reason {
            "PodInitializing" => None,
            "ContainerCreating" => {
                let pulling =
                    self.event(&["Pulling"]).filter(|_| self.event(&["Pulled"]).is_none());
                Some(match pulling {
                    Some(pulling) => Verdict::new("image", format!("{what} waits for its image."))
                        .because(pulling),
                    None => Verdict::new("containers", format!("{what} is being created.")),
                })
            }
            "CrashLoopBackOff" => {
                let mut verdict = self.exited(what, &status["lastState"]["terminated"], true);
                verdict.finding = format!(
                    "{} It was restarted {} and waits before the next.",
                    verdict.finding,
                    times(status["restartCount"].as_u64().unwrap_or_default())
                );
                Some(verdict)
            }
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "RegistryUnavailable" => {
                let cause = self
                    .event(&["Failed"])
                    .filter(|text| text.starts_with("Failed to pull"))
                    .unwrap_or(message);
                let image = status["image"].as_str().unwrap_or_default();
                let verdict = Verdict::new(
                    "image",
                    format!("the image {image:?} of {what} is not to be had."),
                );
                Some(verdict.because(cause).mend(find(IMAGE, cause)))
            }
            "CreateContainerConfigError" => {
                let verdict = Verdict::new(
                    "containers",
                    format!("the configuration of {what} is not complete."),
                );
                Some(verdict.because(message).mend(find(START, message)))
            }
            _ => {
                let message =
                    if message.is_empty() { self.event(&["Failed"]) } else { Some(message) };
                let verdict =
                    Verdict::new("containers", format!("{what} does not start: {reason}."));
                let message = message.unwrap_or_default();
                Some(verdict.because(message).mend(find(START, message)))
            }
        }
    }

    /// What is told of a container that ended; `again` when that was before its last start.
    fn exited(&self, what: &str, terminated: &Value, again: bool) -> Verdict {
        let code = terminated["exitCode"].as_i64().unwrap_or_default();
        let reason = terminated["reason"].as_str().unwrap_or_default();
        let message = terminated["message"].as_str().unwrap_or_default();
        let container = what.rsplit(' ').next().unwrap_or_default();
        if reason == "OOMKilled" {
            return Verdict::new("observe", format!("{what} was killed for want of memory."))
                .because(message)
                .mend("raise resources.limits.memory, or make it use less");
        }
        if let Some(verdict) = self.ended_by_kubelet(what) {
            return verdict;
        }
        let mut verdict = Verdict::new("observe", format!("{what} ended with exit code {code}."));
        let said = message.trim();
        if !said.is_empty() {
            verdict = verdict.because(format!("It said: {said}"));
        }
        let unstarted = message.starts_with("unable to start container process") || code == 128;
        if !unstarted {
            verdict.log = Some((container.to_owned(), again));
        }
        let known = find(START, message);
        verdict.mend(match code {
            _ if unstarted && !known.is_empty() => known.to_owned(),
            0 => "a container is expected to go on running: give it a command that does, or make it a Job, or set restartPolicy".into(),
            126 => "its command cannot be executed: see that it is a program for this machine's architecture".into(),
            127 => "its command was not found: see command and args".into(),
            132 => "it has instructions that this machine's processor lacks (SIGILL): build it for an older one".into(),
            134 | 139 => format!("it crashed ({}): {}", if code == 134 { "SIGABRT" } else { "SIGSEGV" }, self.logs(container, again)),
            143 => format!("it was told to end (SIGTERM); see who did: {}", self.logs(container, again)),
            137 => format!("something killed it (SIGKILL), for want of memory or time; {}", self.logs(container, again)),
            _ => self.logs(container, again),
        })
    }

    /// That a probe or a hook is why a container was ended.
    fn ended_by_kubelet(&self, what: &str) -> Option<Verdict> {
        if let Some(message) = self.hook_failure() {
            return Some(hook(message));
        }
        let message = self.event(&["Unhealthy"])?;
        let probe = ["Liveness", "Startup"].into_iter().find(|probe| message.starts_with(probe))?;
        let finding = format!("{what} was restarted by its {} probe.", probe.to_lowercase());
        let remedy = if probe == "Startup" {
            "see what it does at its start, or give it longer: failureThreshold, periodSeconds"
        } else {
            "see whether the probe asks the right thing, early or often enough for this container"
        };
        Some(Verdict::new("observe", finding).because(message).mend(remedy))
    }

    fn not_ready(&self) -> Option<Verdict> {
        let ready = self.condition("Ready")?;
        if ready["status"] == "True" {
            return None;
        }
        // The node's controller says so of each pod of a node that is silent, and nobody could say anything later.
        if self.events.last().is_some_and(|event| event["reason"] == "NodeNotReady") {
            let node = self.pod["spec"]["nodeName"].as_str().unwrap_or_default();
            let finding = format!("its node {node} is not Ready, so nobody knows how it is.");
            return Some(Verdict::new("kubelet", finding).mend(format!(
                "see why the node is silent: kubectl describe node {node}; of this machine's own rootlet status and rootlet logs say it"
            )));
        }
        if let Some(message) = self.event(&["Unhealthy"]) {
            let probe = message.split_whitespace().next().unwrap_or("A").to_lowercase();
            return Some(
                Verdict::new("observe", format!("it runs, and its {probe} probe fails."))
                    .because(message)
                    .mend("see that the container serves what the probe asks for"),
            );
        }
        let gates = self.pod["spec"]["readinessGates"].as_array().into_iter().flatten();
        let closed: Vec<&str> = gates
            .filter_map(|gate| gate["conditionType"].as_str())
            .filter(|name| self.condition(name).is_none_or(|c| c["status"] != "True"))
            .collect();
        if !closed.is_empty() {
            let finding = "it runs, and waits for conditions that others set.";
            let verdict = Verdict::new("observe", finding).because(closed.join(", "));
            return Some(verdict.mend("see whether what sets them runs: spec.readinessGates"));
        }
        let message = ready["message"].as_str().unwrap_or_default();
        Some(Verdict::new("observe", "it runs, and is not Ready yet.").because(message))
    }
}

fn hook(message: &str) -> Verdict {
    Verdict::new("containers", "its postStart hook failed, and the container is ended for that.")
        .because(message)
        .mend("see what lifecycle.postStart runs; it has to end with 0")
}

fn times(count: u64) -> String {
    if count == 1 { "once".into() } else { format!("{count} times") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: Value, status: Value) -> Value {
        json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": status})
    }

    fn bound(statuses: Value) -> Value {
        pod(
            json!({"nodeName": "node"}),
            json!({"startTime": "t", "phase": "Pending", "containerStatuses": statuses}),
        )
    }

    #[test]
    fn each_step_is_named() {
        let event = |reason: &str, message: &str| json!({"reason": reason, "message": message});
        let waiting = |reason: &str, message: &str| {
            bound(
                json!([{"name": "c", "image": "i:1", "state": {"waiting": {"reason": reason, "message": message}}}]),
            )
        };
        let no_room = json!({"conditions": [{"type": "PodScheduled", "status": "False",
            "reason": "Unschedulable", "message": "0/1 nodes are available: 1 Insufficient cpu."}]});
        let crash = bound(
            json!([{"name": "c", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 3, "reason": "Error", "message": "no database\n"}}}]),
        );
        let oom = bound(
            json!([{"name": "c", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]),
        );
        let unready = pod(
            json!({"nodeName": "node"}),
            json!({"startTime": "t", "phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [{"name": "c", "containerID": "x", "state": {"running": {}}}]}),
        );
        let unready_again = unready.clone();
        let running = pod(
            json!({"nodeName": "node"}),
            json!({"startTime": "t", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        );
        for (pod, events, step, parts) in [
            (
                pod(json!({}), no_room),
                vec![],
                "schedule",
                vec!["Insufficient cpu", "resources.requests"],
            ),
            (
                pod(json!({"schedulerName": "mine"}), json!({})),
                vec![],
                "schedule",
                vec!["\"mine\""],
            ),
            (
                pod(json!({"nodeName": "node"}), json!({})),
                vec![],
                "kubelet",
                vec!["describe node node"],
            ),
            (
                waiting("ContainerCreating", ""),
                vec![event("FailedMount", "configmap \"c\" not found")],
                "volumes",
                vec!["configmap \"c\" not found", "optional"],
            ),
            (
                waiting("ContainerCreating", ""),
                vec![event("Pulling", "Pulling image \"i\"")],
                "image",
                vec!["Pulling"],
            ),
            (
                waiting("ErrImagePull", "unauthorized: no"),
                vec![],
                "image",
                vec!["\"i:1\"", "imagePullSecrets"],
            ),
            (
                waiting("ImagePullBackOff", "Back-off pulling image"),
                vec![
                    event("Failed", "Failed to pull image \"i:1\": not found"),
                    event("Failed", "Failed to pull image \"i:1\": not found"),
                ],
                "image",
                vec!["not found", "spelled right"],
            ),
            (
                waiting("CreateContainerConfigError", "secret \"s\" not found"),
                vec![],
                "containers",
                vec!["secret \"s\""],
            ),
            (
                crash,
                vec![],
                "observe",
                vec!["exit code 3", "no database", "restarted 3 times", "--previous"],
            ),
            (oom, vec![], "observe", vec!["want of memory", "limits.memory"]),
            (
                unready,
                vec![event("Unhealthy", "Readiness probe failed: HTTP 503")],
                "observe",
                vec!["readiness probe fails", "HTTP 503"],
            ),
            (
                unready_again,
                vec![event("Unhealthy", "x"), event("NodeNotReady", "Node is not ready")],
                "kubelet",
                vec!["its node node is not Ready", "describe node node"],
            ),
            (running, vec![], "", vec!["nothing holds it"]),
        ] {
            let verdict = explain(&pod, &events);
            let said = text("n", "p", &verdict);
            assert_eq!(verdict.step, step, "{said}");
            for part in parts {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }

    #[test]
    fn last_words_are_evidence_and_may_have_a_remedy() {
        let crash = bound(
            json!([{"name": "c", "restartCount": 1, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
        );
        let mut verdict = explain(&crash, &[]);
        assert_eq!(verdict.log, Some(("c".into(), true)));
        verdict.hear("one\n\nsh: can't create /x: Read-only file system\n");
        let said = text("n", "p", &verdict);
        assert_eq!(
            said,
            "Pod n/p: container c ended with exit code 1. It was restarted once and waits before the next. Its last words:\n  one\n  sh: can't create /x: Read-only file system\nRemedy: give it a volume to write to, such as an emptyDir at that path.\n"
        );
    }

    #[test]
    fn what_did_not_start_is_no_word_of_its_own() {
        let ended = bound(
            json!([{"name": "c", "state": {"terminated": {"exitCode": 127, "reason": "Error"}}}]),
        );
        for (said, want) in [
            ("exec /x: no such file or directory", "a script's first line"),
            ("exec /x: exec format error", "another architecture"),
            ("cat: /x: No such file or directory", "its command was not found"),
        ] {
            let mut verdict = explain(&ended, &[]);
            verdict.hear(said);
            assert!(verdict.remedy.contains(want), "{said}: {}", verdict.remedy);
        }
    }

    #[test]
    fn what_is_left_of_a_pod_are_its_events() {
        let event = |reason: &str| json!({"reason": reason, "message": "m"});
        assert_eq!(gone(&[]), None);
        for (events, finding, remedy) in [
            (vec![event("Preempted"), event("Killing")], "Preempted: m", "priorityClassName"),
            (vec![event("Evicted")], "Evicted: m", "node is short of"),
            (vec![event("Created"), event("Started")], "Started: m", "makes another"),
        ] {
            let verdict = gone(&events).unwrap();
            assert!(verdict.evidence.ends_with(finding), "{}", verdict.evidence);
            assert!(verdict.remedy.contains(remedy), "{}", verdict.remedy);
        }
    }

    #[test]
    fn what_holds_the_others_is_told() {
        let event = |reason: &str, message: &str| json!({"reason": reason, "message": message});
        let mut preparing = bound(json!([]));
        preparing["status"]["initContainerStatuses"] = json!([{"name": "i", "containerID": "x", "started": true, "state": {"running": {"startedAt": "T"}}}]);
        let verdict = explain(&preparing, &[]);
        assert_eq!(verdict.finding, "init container i runs still; the others wait for it.");
        preparing["spec"]["initContainers"] = json!([{"name": "i", "restartPolicy": "Always"}]);
        assert_ne!(explain(&preparing, &[]).finding, verdict.finding);
        let crash = |code: i64| {
            bound(
                json!([{"name": "c", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": code, "reason": "Error"}}}]),
            )
        };
        for (pod, events, want) in [
            (crash(137), vec![event("Unhealthy", "Startup probe failed: x")], "startup probe"),
            (
                crash(137),
                vec![event("Started", ""), event("FailedPostStartHook", "x")],
                "postStart hook",
            ),
            (crash(137), vec![], "SIGKILL"),
            (crash(0), vec![], "make it a Job"),
        ] {
            let said = text("n", "p", &explain(&pod, &events));
            assert!(said.contains(want), "{want}: {said}");
        }
    }

    #[test]
    fn what_cannot_be_created_is_told() {
        let message = "(combined from similar events): Error creating: pods \"x\" is forbidden: exceeded quota: q";
        let verdict = not_created("ReplicaSet q/web", message);
        assert_eq!(
            told("Deployment q/web", &verdict),
            "Deployment q/web: ReplicaSet q/web cannot create its pods. Error creating: pods \"x\" is forbidden: exceeded quota: q.\nRemedy: raise the ResourceQuota, or end other pods: kubectl describe quota.\n"
        );
    }

    #[test]
    fn taints_are_named() {
        let message = "0/2 nodes are available: 2 node(s) had untolerated taint(s).";
        let pending = pod(
            json!({}),
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}),
        );
        let node = |name: &str, taint: Value| json!({"metadata": {"name": name}, "spec": {"taints": [taint]}});
        let mine = json!({"key": "example.com/only", "value": "gpus", "effect": "NoSchedule"});
        let silent = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"});
        let soft = json!({"key": "soft", "effect": "PreferNoSchedule"});
        for (taint, evidence, remedy) in [
            (mine, " Node a has example.com/only=gpus:NoSchedule.", "add a toleration"),
            (silent, " Node a has node.kubernetes.io/unreachable:NoExecute.", "does not report"),
            (soft, " ", "add a toleration"),
        ] {
            let mut verdict = explain(&pending, &[]);
            assert!(verdict.wants_taints());
            verdict.see_taints(&json!({"items": [node("a", taint), {"metadata": {"name": "b"}}]}));
            assert_eq!(verdict.evidence, format!("{message}{evidence}"));
            assert!(verdict.remedy.contains(remedy), "{}", verdict.remedy);
        }
    }

    #[test]
    fn what_keeps_a_deleted_pod_is_told() {
        let mut deleted = bound(json!([]));
        deleted["metadata"]["deletionTimestamp"] = "t".into();
        assert!(explain(&deleted, &[]).finding.contains("told to end"));
        deleted["metadata"]["finalizers"] = json!(["example.com/kept"]);
        let verdict = explain(&deleted, &[]);
        assert!(
            verdict.finding.contains("finalizers") && verdict.evidence.contains("example.com/kept")
        );
    }
}
