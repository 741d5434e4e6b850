//! Pods and their templates.

use apimachinery::time;
use jiff::Timestamp;
use serde_json::Value;

use super::Printer;
use super::cells::{NONE, age, condition, name, or_none, since};
use crate::zero::Zero;

const COLUMNS: &[super::Column] = &[
    ("Name", "string", 0),
    ("Ready", "string", 0),
    ("Status", "string", 0),
    ("Restarts", "string", 0),
    ("Age", "string", 0),
    ("IP", "string", 1),
    ("Node", "string", 1),
    ("Nominated Node", "string", 1),
    ("Readiness Gates", "string", 1),
];

/// The printer of a kind of this file.
pub fn printer(kind: (&str, &str)) -> Option<Printer> {
    (kind == ("", "Pod")).then_some(Printer { columns: COLUMNS, cells: pod })
}

/// An init container that goes on running beside the others.
fn is_sidecar(pod: &Value, status: &Value) -> bool {
    pod["spec"]["initContainers"].items().iter().any(|container| {
        container["name"] == status["name"] && container["restartPolicy"] == "Always"
    })
}

/// What holds the pod in its init containers, such as `Init:1/2` or `Init:CrashLoopBackOff`.
fn init_reason(pod: &Value) -> Option<String> {
    let total = pod["spec"]["initContainers"].items().len();
    for (index, status) in pod["status"]["initContainerStatuses"].items().iter().enumerate() {
        let terminated = &status["state"]["terminated"];
        if terminated.is_set() && terminated["exitCode"].int() == 0 {
            continue;
        }
        if is_sidecar(pod, status) && status["started"].flag() {
            continue;
        }
        if terminated.is_set() {
            return Some(format!("Init:{}", end(terminated)));
        }
        let waiting = status["state"]["waiting"]["reason"].text();
        if !waiting.is_empty() && waiting != "PodInitializing" {
            return Some(format!("Init:{waiting}"));
        }
        return Some(format!("Init:{index}/{total}"));
    }
    None
}

/// How a container ended, in a word.
fn end(terminated: &Value) -> String {
    match (terminated["reason"].text(), terminated["signal"].int()) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].int()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// The STATUS column (`printPod`).
fn reason(pod: &Value) -> String {
    let status = &pod["status"];
    let mut reason = match status["reason"].text() {
        "" => status["phase"].text().to_owned(),
        reason => reason.to_owned(),
    };
    let gated = status["conditions"].items().iter().any(|condition| {
        condition["type"] == "PodScheduled" && condition["reason"] == "SchedulingGated"
    });
    if gated {
        reason = "SchedulingGated".into();
    }
    if let Some(held) = init_reason(pod) {
        reason = held;
    } else {
        let mut running = false;
        for container in status["containerStatuses"].items().iter().rev() {
            let state = &container["state"];
            if !state["waiting"]["reason"].text().is_empty() {
                state["waiting"]["reason"].text().clone_into(&mut reason);
            } else if state["terminated"].is_set() {
                reason = end(&state["terminated"]);
            } else if container["ready"].flag() && state["running"].is_set() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            let ready = condition(pod, "Ready") == "True";
            reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_set() {
        reason = match status["reason"].text() {
            "NodeLost" => "Unknown".into(),
            _ if matches!(status["phase"].text(), "Succeeded" | "Failed") => reason,
            _ => "Terminating".into(),
        };
    }
    reason
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let statuses = pod["status"]["containerStatuses"].items().iter();
    let sidecars = pod["status"]["initContainerStatuses"].items().iter();
    let held = init_reason(pod).is_some();
    let counted: Vec<&Value> = sidecars
        .filter(|status| held || is_sidecar(pod, status))
        .chain(statuses.filter(|_| !held))
        .collect();
    let total: i64 = counted.iter().map(|status| status["restartCount"].int()).sum();
    let last = counted
        .iter()
        .map(|status| status["lastState"]["terminated"]["finishedAt"].text())
        .max()
        .unwrap_or_default();
    if total == 0 || last.is_empty() {
        return total.to_string();
    }
    format!("{total} ({} ago)", time::age(last, now))
}

fn pod(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let init = spec["initContainers"].items();
    let sidecars = init.iter().filter(|container| container["restartPolicy"] == "Always").count();
    let ready = status["containerStatuses"]
        .items()
        .iter()
        .filter(|status| status["ready"].flag() && status["state"]["running"].is_set())
        .count();
    let ready_sidecars = status["initContainerStatuses"]
        .items()
        .iter()
        .filter(|status| is_sidecar(pod, status) && status["ready"].flag())
        .count();
    let total = spec["containers"].items().len() + sidecars;
    let gates = spec["readinessGates"].items();
    let open =
        gates.iter().filter(|gate| condition(pod, gate["conditionType"].text()) == "True").count();
    let gates = if gates.is_empty() { NONE.to_owned() } else { format!("{open}/{}", gates.len()) };
    vec![
        name(pod),
        format!("{}/{total}", ready + ready_sidecars).into(),
        reason(pod).into(),
        restarts(pod, now).into(),
        age(pod, now),
        or_none(&status["podIP"]),
        or_none(&spec["nodeName"]),
        or_none(&status["nominatedNodeName"]),
        gates.into(),
    ]
}

/// The columns of events.
pub fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let object = &event["involvedObject"];
    let first = if event["firstTimestamp"].is_set() {
        &event["firstTimestamp"]
    } else {
        &event["eventTime"]
    };
    let series = &event["series"];
    let last = if series.is_set() {
        since(&series["lastObservedTime"], now)
    } else if event["lastTimestamp"].is_set() {
        since(&event["lastTimestamp"], now)
    } else {
        since(first, now)
    };
    let count = if series.is_set() { series["count"].int() } else { event["count"].int() };
    let source = match (event["source"]["component"].text(), event["source"]["host"].text()) {
        ("", _) => event["reportingComponent"].text().to_owned(),
        (component, "") => component.to_owned(),
        (component, host) => format!("{component}, {host}"),
    };
    vec![
        last,
        event["type"].clone(),
        event["reason"].clone(),
        format!("{}/{}", object["kind"].text().to_lowercase(), object["name"].text()).into(),
        object["fieldPath"].text().into(),
        source.into(),
        event["message"].text().trim().into(),
        since(first, now),
        count.max(1).into(),
        name(event),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_says_what_holds_the_pod() {
        let waiting = |reason: &str| json!({"state": {"waiting": {"reason": reason}}});
        let cases = [
            (json!({"status": {"phase": "Pending"}}), "Pending"),
            (
                json!({"status": {"phase": "Pending", "containerStatuses": [waiting("ErrImagePull")]}}),
                "ErrImagePull",
            ),
            (
                json!({"status": {"phase": "Failed", "containerStatuses": [
                    {"state": {"terminated": {"exitCode": 3}}}]}}),
                "ExitCode:3",
            ),
            (
                json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}}),
                "Terminating",
            ),
            (
                json!({"spec": {"initContainers": [{"name": "a"}, {"name": "b"}]}, "status": {
                    "phase": "Pending", "initContainerStatuses": [
                        {"name": "a", "state": {"terminated": {"exitCode": 0}}},
                        {"name": "b", "state": {"running": {}}}]}}),
                "Init:1/2",
            ),
        ];
        for (pod, want) in cases {
            assert_eq!(reason(&pod), want, "{pod}");
        }
    }
}
