//! Controllers of pods.

use apimachinery::time;
use jiff::Timestamp;
use serde_json::Value;

use super::cells::{NONE, age, condition, containers, labels, name, selector, since};
use super::{Column, Printer};
use crate::zero::Zero;

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);
const CONTAINERS: Column = ("Containers", "string", 1);
const IMAGES: Column = ("Images", "string", 1);
const SELECTOR: Column = ("Selector", "string", 1);

/// The printer of a kind of this file.
pub fn printer(kind: (&str, &str)) -> Option<Printer> {
    let (columns, cells): (&'static [Column], fn(&Value, Timestamp) -> Vec<Value>) = match kind {
        ("apps", "Deployment") => (
            &[
                NAME,
                ("Ready", "string", 0),
                ("Up-to-date", "string", 0),
                ("Available", "string", 0),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            deployment,
        ),
        ("apps", "ReplicaSet") | ("", "ReplicationController") => (
            &[
                NAME,
                ("Desired", "integer", 0),
                ("Current", "integer", 0),
                ("Ready", "integer", 0),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            replica_set,
        ),
        ("apps", "StatefulSet") => {
            (&[NAME, ("Ready", "string", 0), AGE, CONTAINERS, IMAGES], stateful_set)
        }
        ("apps", "DaemonSet") => (
            &[
                NAME,
                ("Desired", "integer", 0),
                ("Current", "integer", 0),
                ("Ready", "integer", 0),
                ("Up-to-date", "integer", 0),
                ("Available", "integer", 0),
                ("Node Selector", "string", 0),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            daemon_set,
        ),
        ("batch", "Job") => (
            &[
                NAME,
                ("Status", "string", 0),
                ("Completions", "string", 0),
                ("Duration", "string", 0),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            job,
        ),
        ("batch", "CronJob") => (
            &[
                NAME,
                ("Schedule", "string", 0),
                ("Timezone", "string", 0),
                ("Suspend", "boolean", 0),
                ("Active", "integer", 0),
                ("Last Schedule", "string", 0),
                AGE,
                CONTAINERS,
                IMAGES,
                SELECTOR,
            ],
            cron_job,
        ),
        _ => return None,
    };
    Some(Printer { columns, cells })
}

/// `replicas`, which is 1 where it is not set.
fn desired(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(1)
}

/// The selector, a map of labels in the oldest kind.
fn selects(object: &Value) -> Value {
    let found = &object["spec"]["selector"];
    if object["kind"] == "ReplicationController" { labels(found) } else { selector(found) }
}

fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let [names, images] = containers(&object["spec"]["template"]);
    vec![
        name(object),
        format!("{}/{}", status["readyReplicas"].int(), desired(object)).into(),
        status["updatedReplicas"].int().into(),
        status["availableReplicas"].int().into(),
        age(object, now),
        names,
        images,
        selects(object),
    ]
}

fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let [names, images] = containers(&object["spec"]["template"]);
    vec![
        name(object),
        desired(object).into(),
        status["replicas"].int().into(),
        status["readyReplicas"].int().into(),
        age(object, now),
        names,
        images,
        selects(object),
    ]
}

fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let [names, images] = containers(&object["spec"]["template"]);
    let ready = format!("{}/{}", object["status"]["readyReplicas"].int(), desired(object));
    vec![name(object), ready.into(), age(object, now), names, images]
}

fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let status = &object["status"];
    let [names, images] = containers(&object["spec"]["template"]);
    vec![
        name(object),
        status["desiredNumberScheduled"].int().into(),
        status["currentNumberScheduled"].int().into(),
        status["numberReady"].int().into(),
        status["updatedNumberScheduled"].int().into(),
        status["numberAvailable"].int().into(),
        labels(&object["spec"]["template"]["spec"]["nodeSelector"]),
        age(object, now),
        names,
        images,
        selects(object),
    ]
}

fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let succeeded = status["succeeded"].int();
    let completions = match (spec["completions"].as_i64(), spec["parallelism"].as_i64()) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, Some(parallel)) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let holds = |kind: &str| condition(object, kind) == "True";
    let state = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if object["metadata"]["deletionTimestamp"].is_set() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let at = |field: &str| time::parse(status[field].text()).ok();
    let duration = at("startTime").map(|start| {
        let end = at("completionTime").unwrap_or(now);
        let seconds = (end.as_second() - start.as_second()).max(0).unsigned_abs();
        time::human(std::time::Duration::from_secs(seconds))
    });
    let [names, images] = containers(&spec["template"]);
    vec![
        name(object),
        state.into(),
        completions.into(),
        duration.unwrap_or_default().into(),
        age(object, now),
        names,
        images,
        selects(object),
    ]
}

fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let template = &spec["jobTemplate"]["spec"];
    let [names, images] = containers(&template["template"]);
    let zone = match spec["timeZone"].text() {
        "" => NONE,
        zone => zone,
    };
    // Upstream's printer writes Go's truth values, and what stands for none.
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let last = &status["lastScheduleTime"];
    vec![
        name(object),
        spec["schedule"].clone(),
        zone.into(),
        suspended.into(),
        status["active"].items().len().into(),
        if last.is_set() { since(last, now) } else { NONE.into() },
        age(object, now),
        names,
        images,
        selector(&template["selector"]),
    ]
}
