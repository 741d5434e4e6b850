//! What makes pods: deployments, replica sets, stateful sets, daemon sets, jobs.

use serde_json::Value;

use super::config::head;
use super::pod::{controller, template};
use super::{Page, items, or, selector, shown, str, time};
use crate::objects::error::Error;
use crate::objects::pods::of;
use crate::objects::session::Session;

/// Writes a deployment with its replica sets.
pub async fn deployment(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
    page.field(0, "CreationTimestamp", time(&meta["creationTimestamp"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    page.field(0, "Selector", selector(&spec["selector"], "<none>"));
    let count = |field: &str| or(&status[field], "0");
    page.field(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            or(&spec["replicas"], "0"),
            count("updatedReplicas"),
            count("replicas"),
            count("availableReplicas"),
            count("unavailableReplicas")
        ),
    );
    page.field(0, "StrategyType", str(&spec["strategy"]["type"]));
    page.field(0, "MinReadySeconds", or(&spec["minReadySeconds"], "0"));
    let rolling = &spec["strategy"]["rollingUpdate"];
    if rolling.is_object() {
        let text = format!(
            "{} max unavailable, {} max surge",
            shown(&rolling["maxUnavailable"]),
            shown(&rolling["maxSurge"])
        );
        page.field(0, "RollingUpdateStrategy", text);
    }
    template(page, &spec["template"]);
    conditions(page, status, "Conditions");
    let (old, new) = replica_sets(session, object).await?;
    page.field(0, "OldReplicaSets", old);
    page.field(0, "NewReplicaSet", new);
    Ok(())
}

async fn replica_sets(session: &Session, deployment: &Value) -> Result<(String, String), Error> {
    let meta = &deployment["metadata"];
    let path = format!("/apis/apps/v1/namespaces/{}/replicasets", str(&meta["namespace"]));
    let list = session.api.get(&path).await?;
    let owned = items(&list["items"]).filter(|set| {
        items(&set["metadata"]["ownerReferences"])
            .any(|o| o["controller"] == true && o["uid"] == meta["uid"])
    });
    let revision = |object: &Value| {
        str(&object["metadata"]["annotations"]["deployment.kubernetes.io/revision"])
            .parse::<i64>()
            .unwrap_or(0)
    };
    let current = revision(deployment);
    let (mut old, mut new) = (Vec::new(), Vec::new());
    for set in owned {
        let text = format!(
            "{} ({}/{} replicas created)",
            str(&set["metadata"]["name"]),
            or(&set["status"]["replicas"], "0"),
            or(&set["spec"]["replicas"], "0")
        );
        if revision(set) == current { new.push(text) } else { old.push(text) }
    }
    let joined =
        |sets: Vec<String>| if sets.is_empty() { "<none>".to_owned() } else { sets.join(", ") };
    Ok((joined(old), joined(new)))
}

fn conditions(page: &mut Page, status: &Value, title: &str) {
    if items(&status["conditions"]).next().is_none() {
        return;
    }
    page.line(0, format!("{title}:"));
    page.line(1, "Type\tStatus\tReason");
    page.line(1, "----\t------\t------");
    for condition in items(&status["conditions"]) {
        page.line(
            1,
            format!(
                "{} \t{}\t{}",
                str(&condition["type"]),
                str(&condition["status"]),
                str(&condition["reason"])
            ),
        );
    }
}

/// How many pods are in which phase.
async fn phases(session: &Session, object: &Value) -> Result<String, Error> {
    let pods = match of(session, object).await {
        Ok(pods) => pods,
        Err(error @ Error::Refused { .. }) => {
            return Ok(format!("error in fetching pods: {error}"));
        }
        Err(error) => return Err(error),
    };
    let mut counts = [0; 4];
    for pod in pods {
        let own = items(&pod["metadata"]["ownerReferences"])
            .any(|o| o["controller"] == true && o["uid"] == object["metadata"]["uid"]);
        let at = ["Running", "Pending", "Succeeded", "Failed"]
            .iter()
            .position(|p| pod["status"]["phase"] == *p);
        if let Some(at) = at.filter(|_| own) {
            counts[at] += 1;
        }
    }
    let [running, waiting, succeeded, failed] = counts;
    Ok(format!("{running} Running / {waiting} Waiting / {succeeded} Succeeded / {failed} Failed"))
}

fn top(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
}

/// The beginning of what another object may control.
fn controlled(page: &mut Page, object: &Value) {
    top(page, object);
    page.field(0, "Selector", selector(&object["spec"]["selector"], "<none>"));
    page.labels(0, "Labels", &object["metadata"]["labels"]);
    page.annotations("Annotations", &object["metadata"]["annotations"]);
    if let Some(owner) = controller(object) {
        page.field(0, "Controlled By", owner);
    }
}

/// Writes a replica set or a replication controller.
pub async fn replica_set(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let (spec, status) = (&object["spec"], &object["status"]);
    controlled(page, object);
    page.field(
        0,
        "Replicas",
        format!(
            "{} current / {} desired",
            or(&status["replicas"], "0"),
            or(&spec["replicas"], "0")
        ),
    );
    page.field(0, "Pods Status", phases(session, object).await?);
    template(page, &spec["template"]);
    if items(&status["conditions"]).next().is_some() {
        conditions(page, status, "Conditions");
    }
    Ok(())
}

/// Writes a stateful set.
pub async fn stateful_set(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    top(page, object);
    page.field(0, "CreationTimestamp", time(&meta["creationTimestamp"]));
    page.field(0, "Selector", selector(&spec["selector"], "<none>"));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    page.field(
        0,
        "Replicas",
        format!("{} desired | {} total", or(&spec["replicas"], "0"), or(&status["replicas"], "0")),
    );
    page.field(0, "Update Strategy", str(&spec["updateStrategy"]["type"]));
    let rolling = &spec["updateStrategy"]["rollingUpdate"];
    if rolling.is_object() {
        for (name, field) in [("Partition", "partition"), ("MaxUnavailable", "maxUnavailable")] {
            if !rolling[field].is_null() {
                page.field(1, name, shown(&rolling[field]));
            }
        }
    }
    page.field(0, "Pods Status", phases(session, object).await?);
    template(page, &spec["template"]);
    if items(&spec["volumeClaimTemplates"]).next().is_none() {
        page.field(0, "Volume Claims", "<none>");
        return Ok(());
    }
    page.line(0, "Volume Claims:");
    for claim in items(&spec["volumeClaimTemplates"]) {
        page.field(1, "Name", str(&claim["metadata"]["name"]));
        page.field(1, "StorageClass", str(&claim["spec"]["storageClassName"]));
        page.labels(1, "Labels", &claim["metadata"]["labels"]);
        let annotations = &claim["metadata"]["annotations"];
        if super::map(annotations).next().is_none() {
            page.field(1, "Annotations", "<none>");
        } else {
            page.labels(1, "Annotations", annotations);
        }
        page.field(
            1,
            "Capacity",
            or(&claim["spec"]["resources"]["requests"]["storage"], "<default>"),
        );
        let modes: Vec<&str> = items(&claim["spec"]["accessModes"]).map(str).collect();
        page.field(1, "Access Modes", format!("[{}]", modes.join(" ")));
    }
    Ok(())
}

/// Writes a daemon set.
pub async fn daemon_set(page: &mut Page, session: &Session, object: &Value) -> Result<(), Error> {
    let (meta, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    top(page, object);
    page.field(0, "Selector", selector(&spec["selector"], "<none>"));
    page.field(0, "Node-Selector", selector(&spec["template"]["spec"]["nodeSelector"], "<none>"));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    for (name, field) in [
        ("Desired Number of Nodes Scheduled", "desiredNumberScheduled"),
        ("Current Number of Nodes Scheduled", "currentNumberScheduled"),
        ("Number of Nodes Scheduled with Up-to-date Pods", "updatedNumberScheduled"),
        ("Number of Nodes Scheduled with Available Pods", "numberAvailable"),
        ("Number of Nodes Misscheduled", "numberMisscheduled"),
    ] {
        page.line(0, format!("{name}: {}", or(&status[field], "0")));
    }
    page.field(0, "Pods Status", phases(session, object).await?);
    template(page, &spec["template"]);
    Ok(())
}

/// Writes a job.
pub fn job(page: &mut Page, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    controlled(page, object);
    page.field(0, "Parallelism", or(&spec["parallelism"], "<unset>"));
    page.field(0, "Completions", or(&spec["completions"], "<unset>"));
    for (name, value) in [
        ("Completion Mode", &spec["completionMode"]),
        ("Suspend", &spec["suspend"]),
        ("Backoff Limit", &spec["backoffLimit"]),
        ("TTL Seconds After Finished", &spec["ttlSecondsAfterFinished"]),
    ] {
        if !value.is_null() {
            page.field(0, name, shown(value));
        }
    }
    if status["startTime"].is_string() {
        page.field(0, "Start Time", time(&status["startTime"]));
    }
    if status["completionTime"].is_string() {
        page.field(0, "Completed At", time(&status["completionTime"]));
        let at = |value: &Value| apimachinery::time::parse(str(value)).ok();
        if let (Some(start), Some(end)) = (at(&status["startTime"]), at(&status["completionTime"]))
        {
            let seconds = end.duration_since(start).as_secs().unsigned_abs();
            page.field(
                0,
                "Duration",
                apimachinery::time::human(std::time::Duration::from_secs(seconds)),
            );
        }
    }
    if !spec["activeDeadlineSeconds"].is_null() {
        page.field(
            0,
            "Active Deadline Seconds",
            format!("{}s", shown(&spec["activeDeadlineSeconds"])),
        );
    }
    let active = or(&status["active"], "0");
    let ready = status["ready"].as_i64().map(|n| format!(" ({n} Ready)")).unwrap_or_default();
    page.field(
        0,
        "Pods Statuses",
        format!(
            "{active} Active{ready} / {} Succeeded / {} Failed",
            or(&status["succeeded"], "0"),
            or(&status["failed"], "0")
        ),
    );
    if spec["completionMode"] == "Indexed" {
        page.field(0, "Completed Indexes", or(&status["completedIndexes"], "<none>"));
    }
    template(page, &spec["template"]);
}

/// Writes a cron job.
pub fn cron_job(page: &mut Page, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    head(page, object);
    page.field(0, "Schedule", str(&spec["schedule"]));
    page.field(0, "Concurrency Policy", str(&spec["concurrencyPolicy"]));
    page.field(0, "Suspend", if spec["suspend"] == true { "True" } else { "False" });
    page.field(
        0,
        "Successful Job History Limit",
        or(&spec["successfulJobsHistoryLimit"], "<unset>"),
    );
    page.field(0, "Failed Job History Limit", or(&spec["failedJobsHistoryLimit"], "<unset>"));
    page.field(
        0,
        "Starting Deadline Seconds",
        match spec["startingDeadlineSeconds"].as_i64() {
            Some(seconds) => format!("{seconds}s"),
            None => "<unset>".into(),
        },
    );
    let job = &spec["jobTemplate"];
    let inner = &job["spec"];
    page.field(0, "Selector", selector(&inner["selector"], "<unset>"));
    page.field(0, "Parallelism", or(&inner["parallelism"], "<unset>"));
    page.field(0, "Completions", or(&inner["completions"], "<unset>"));
    if !inner["activeDeadlineSeconds"].is_null() {
        page.field(
            0,
            "Active Deadline Seconds",
            format!("{}s", shown(&inner["activeDeadlineSeconds"])),
        );
    }
    template(page, &inner["template"]);
    page.field(0, "Last Schedule Time", time(&status["lastScheduleTime"]));
    let active: Vec<&str> = items(&status["active"]).map(|job| str(&job["name"])).collect();
    page.field(
        0,
        "Active Jobs",
        if active.is_empty() { "<none>".into() } else { active.join(", ") },
    );
}
