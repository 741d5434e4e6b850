//! Follows a pod through the steps of its life and names the one that holds it.

use serde::Serialize;
use serde_json::Value;

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
}

impl Verdict {
    fn new(step: &'static str, finding: impl Into<String>) -> Self {
        Self { step, finding: finding.into(), evidence: String::new(), remedy: String::new() }
    }

    fn because(mut self, evidence: impl Into<String>) -> Self {
        self.evidence = evidence.into();
        self
    }

    fn mend(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// The verdict as a paragraph.
pub fn text(namespace: &str, name: &str, verdict: &Verdict) -> String {
    let mut out = format!("Pod {namespace}/{name}: {}", verdict.finding);
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
    if text.ends_with(['.', '!', '?']) { text.to_owned() } else { format!("{text}.") }
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
        .unwrap_or_else(|| Verdict::new("", "nothing holds it: it is Running and Ready."))
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
                    let finding = format!("it has failed: {}.", self.status("reason"));
                    return Some(Verdict::new("observe", finding).because(message));
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
            return Some(verdict.because(format!("They are {}", gates.join(", "))));
        }
        let verdict = Verdict::new("schedule", "no node suits it.").because(message);
        Some(match UNSCHEDULED.iter().find(|(part, _)| message.contains(part)) {
            Some((_, remedy)) => verdict.mend(*remedy),
            None => verdict,
        })
    }

    fn unseen(&self) -> Option<Verdict> {
        let node = self.pod["spec"]["nodeName"].as_str().unwrap_or_default();
        let seen = self.pod["status"]["startTime"].is_string();
        (!seen).then(|| {
            let finding = format!("it is bound to node {node}, whose kubelet has not taken it up.");
            Verdict::new("kubelet", finding)
                .mend(format!("see whether the node is Ready: kubectl describe node {node}"))
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
            return Some(match message {
                m if m.contains("not found") => verdict
                    .mend("create the object that is missing, or mark the volume `optional: true`"),
                _ => verdict,
            });
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
        failed.then(|| self.exited(&format!("{what} {name}"), terminated))
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
                let mut verdict = self.exited(what, &status["lastState"]["terminated"]);
                let count = status["restartCount"].as_u64().unwrap_or_default();
                verdict.finding = format!(
                    "{} It was restarted {count} times and waits before the next.",
                    verdict.finding
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
                let remedy = IMAGE.iter().find(|(part, _)| cause.contains(part)).map(|(_, r)| *r);
                Some(verdict.because(cause).mend(remedy.unwrap_or_default()))
            }
            "CreateContainerConfigError" => {
                let verdict = Verdict::new(
                    "containers",
                    format!("the configuration of {what} is not complete."),
                );
                let missing =
                    message.contains("not found") || message.contains("couldn't find key");
                let remedy = "create what is missing; the container then starts by itself";
                Some(verdict.because(message).mend(if missing { remedy } else { "" }))
            }
            _ => {
                let message =
                    if message.is_empty() { self.event(&["Failed"]) } else { Some(message) };
                let verdict =
                    Verdict::new("containers", format!("{what} does not start: {reason}."));
                Some(verdict.because(message.unwrap_or_default()))
            }
        }
    }

    fn exited(&self, what: &str, terminated: &Value) -> Verdict {
        let code = terminated["exitCode"].as_i64().unwrap_or_default();
        let reason = terminated["reason"].as_str().unwrap_or_default();
        let message = terminated["message"].as_str().unwrap_or_default();
        let name = self.pod["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = self.pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let container = what.rsplit(' ').next().unwrap_or_default();
        let logs = format!("kubectl logs -n {namespace} {name} -c {container} --previous");
        if reason == "OOMKilled" {
            return Verdict::new("observe", format!("{what} was killed for want of memory."))
                .because(message)
                .mend("raise resources.limits.memory, or make it use less");
        }
        if let Some(liveness) = self.event(&["Unhealthy"]).filter(|m| m.starts_with("Liveness")) {
            return Verdict::new("observe", format!("{what} was restarted by its liveness probe."))
                .because(liveness)
                .mend("see whether the probe asks the right thing, early or often enough for this container");
        }
        let verdict = Verdict::new("observe", format!("{what} ended with exit code {code}."));
        let verdict = verdict.because(if message.is_empty() {
            String::new()
        } else {
            format!("It said: {}", message.trim())
        });
        match code {
            _ if message.contains("failed to mount") => {
                verdict.mend("`rootlet doctor` says what of it this machine, or the container it runs in, forbids")
            }
            126 | 128 => {
                verdict.mend("see that its command exists in the image, for this architecture")
            }
            127 => verdict.mend("its command was not found: see command and args"),
            _ => verdict.mend(logs),
        }
    }

    fn not_ready(&self) -> Option<Verdict> {
        let ready = self.condition("Ready")?;
        if ready["status"] == "True" {
            return None;
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
            return Some(Verdict::new("observe", finding).because(closed.join(", ")));
        }
        let message = ready["message"].as_str().unwrap_or_default();
        Some(Verdict::new("observe", "it runs, and is not Ready yet.").because(message))
    }
}

/// What a scheduler's message contains, and what to do then.
const UNSCHEDULED: [(&str, &str); 8] = [
    ("Insufficient ", "lower resources.requests, or end other pods"),
    ("disk-pressure", "free space on the disk that holds the cluster's data"),
    (
        "untolerated taint",
        "remove the taint (kubectl describe nodes shows it), or add a toleration",
    ),
    ("node affinity/selector", "change nodeSelector or affinity, or label a node"),
    (
        "unbound immediate PersistentVolumeClaims",
        "see what its claims wait for: kubectl describe pvc",
    ),
    ("persistentvolumeclaim", "create the claim"),
    ("free ports", "another pod has the host port; take another, or end that pod"),
    ("were unschedulable", "kubectl uncordon NODE"),
];

/// What a registry's answer contains, and what to do then.
const IMAGE: [(&str, &str); 9] = [
    ("401", "name credentials: imagePullSecrets, registries.yaml or `docker login`"),
    ("unauthorized", "name credentials: imagePullSecrets, registries.yaml or `docker login`"),
    ("denied", "name credentials: imagePullSecrets, registries.yaml or `docker login`"),
    ("not found", "see that image and tag are spelled right and were pushed"),
    ("refused", "see that the registry runs, and that its port is right"),
    ("certificate", "name the registry's CA in registries.yaml"),
    ("resolve", "see that the registry's name is right, and that this machine has a network"),
    ("policy of Never", "rootlet image load FILE, or another imagePullPolicy"),
    ("timed out", "see that this machine reaches the registry"),
];

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
