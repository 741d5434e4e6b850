//! Rules for the status of objects, where upstream has any.

use std::net::IpAddr;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{names, time};
use serde_json::Value;

use super::core::immutable;
use super::job::count_indexes;
use super::{certificates, devices, ip, mistakes, non_negative, omitted, quota};
use crate::attributes::RequestContext;
use crate::zero::Zero;

/// Counters of a status that may not be negative, by kind.
const COUNTERS: &[(&str, &str, &[&str])] = &[
    (
        "apps",
        "deployments",
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
    ),
    (
        "apps",
        "replicasets",
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "terminatingReplicas",
            "observedGeneration",
        ],
    ),
    (
        "apps",
        "statefulsets",
        &[
            "replicas",
            "readyReplicas",
            "currentReplicas",
            "updatedReplicas",
            "availableReplicas",
            "observedGeneration",
            "collisionCount",
        ],
    ),
    (
        "apps",
        "daemonsets",
        &[
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ],
    ),
    (
        "",
        "replicationcontrollers",
        &[
            "replicas",
            "fullyLabeledReplicas",
            "readyReplicas",
            "availableReplicas",
            "observedGeneration",
        ],
    ),
    (
        "policy",
        "poddisruptionbudgets",
        &["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"],
    ),
    ("autoscaling", "horizontalpodautoscalers", &["currentReplicas", "desiredReplicas"]),
];

/// A status that was written through `status` or, of certificate requests, `approval`.
pub fn validate(ctx: &RequestContext, object: &Value, old: &Value, errors: &mut ErrorList) {
    let Some(resource) = &ctx.resource else { return };
    let (group, plural) = (resource.group.as_str(), resource.plural.as_str());
    let (status, path) = (&object["status"], Path::new("status"));
    for (_, _, keys) in COUNTERS.iter().filter(|(g, p, _)| (*g, *p) == (group, plural)) {
        for key in *keys {
            non_negative(errors, &path.child(key), &status[*key]);
        }
    }
    match (group, plural) {
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "statefulsets" | "deployments") => {
            replicas(status, &path, errors);
            fewer_collisions(status, old, &path, errors);
        }
        ("apps", "daemonsets") => fewer_collisions(status, old, &path, errors),
        ("batch", "jobs") => job(object, old, errors),
        ("", "pods") => pod_status(object, old, errors),
        ("", "services") => load_balancer(&status["loadBalancer"], old, &path, errors),
        ("networking.k8s.io", "ingresses") => {
            load_balancer(&status["loadBalancer"], old, &path, errors);
        }
        ("", "resourcequotas") => quota::status(object, errors),
        ("resource.k8s.io", "resourceclaims") => devices::claim_status(object, old, errors),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            certificates::request(object, Some(old), errors);
            certificates::update(&ctx.subresource, object, old, errors);
        }
        ("certificates.k8s.io", "podcertificaterequests") => {
            certificates::pod_request_status(object, old, errors);
        }
        _ => {}
    }
}

/// No more pods can be ready than there are, and so on.
fn replicas(status: &Value, path: &Path, errors: &mut ErrorList) {
    const MORE: &str = "cannot be greater than status.replicas";
    let total = status["replicas"].int();
    for key in [
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "currentReplicas",
        "updatedReplicas",
    ] {
        if status[key].is_set() && status[key].int() > total {
            errors.push(Error::invalid(&path.child(key), status[key].int(), MORE));
        }
    }
    let (ready, available) = (status["readyReplicas"].int(), status["availableReplicas"].int());
    if available > ready {
        let detail = "cannot be greater than readyReplicas";
        errors.push(Error::invalid(&path.child("availableReplicas"), available, detail));
    }
}

fn fewer_collisions(status: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let (now, before) = (&status["collisionCount"], &old["status"]["collisionCount"]);
    if before.is_set() && now.int() < before.int() {
        let detail = "cannot be decremented";
        errors.push(Error::invalid(&path.child("collisionCount"), now.int(), detail));
    }
}

/// Addresses of a load balancer.
fn load_balancer(status: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let path = path.child("loadBalancer").child("ingress");
    for (index, ingress) in status["ingress"].items().iter().enumerate() {
        let (ip, name) = (ingress["ip"].text(), ingress["hostname"].text());
        if !ip.is_empty() {
            let before = old["status"]["loadBalancer"]["ingress"].items();
            let kept = before.iter().map(|ingress| ingress["ip"].text());
            ip::new_address(ip, kept, &path.index(index).child("ip"), errors);
        }
        let at = path.index(index).child("hostname");
        if !name.is_empty() {
            mistakes(errors, &at, name, names::dns_subdomain(name));
            if name.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                errors.push(Error::invalid(&at, name, detail));
            }
        }
        if ingress["ipMode"].is_set() {
            let at = path.index(index).child("ipMode");
            super::one_of(errors, &at, ingress["ipMode"].text(), &["Proxy", "VIP"]);
        }
    }
}

/// What a kubelet may say of a pod (`ValidatePodStatusUpdate`).
fn pod_status(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (status, path) = (&object["status"], Path::new("status"));
    let node = status["nominatedNodeName"].text();
    if !node.is_empty() {
        let at = path.child("nominatedNodeName");
        mistakes(errors, &at, node, names::dns_subdomain(node));
    }
    let before = old["status"]["qosClass"].text();
    if !before.is_empty() && status["qosClass"] != before {
        immutable(&path.child("qosClass"), &status["qosClass"], &old["status"]["qosClass"], errors);
    }
    let policy = object["spec"]["restartPolicy"].text();
    // A container's rule may begin all of them anew.
    let whole = ["containers", "initContainers"].into_iter().any(|specs| {
        let rules = |c: &Value| {
            c["restartPolicyRules"].items().iter().any(|r| r["action"] == "RestartAllContainers")
        };
        object["spec"][specs].items().iter().any(rules)
    });
    for (list, specs) in
        [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")]
    {
        if policy == "Always" || whole {
            continue;
        }
        // A container may have a policy of its own.
        let restartable = |name: &str| {
            let all = object["spec"][specs].items();
            all.iter().any(|c| c["name"] == name && c["restartPolicy"].is_set())
        };
        for before in old["status"][list].items() {
            let name = before["name"].text();
            let ended = before["state"]["terminated"].is_set();
            // On failure only what succeeded stays as it is.
            let kept =
                policy == "OnFailure" && before["state"]["terminated"]["exitCode"].int() != 0;
            if !ended || kept || restartable(name) {
                continue;
            }
            let statuses = status[list].items();
            let Some(index) = statuses.iter().position(|now| now["name"] == name) else { continue };
            if statuses[index]["state"]["terminated"].is_null() {
                let detail = "may not be transitioned to non-terminated state";
                let at = path.child(list).index(index).child("state");
                errors.push(Error::forbidden(&at, detail));
            }
        }
    }
    for list in ["podIPs", "hostIPs"] {
        let addresses = status[list].items();
        for (index, one) in addresses.iter().enumerate() {
            let kept = old["status"][list].items().iter().map(|before| before["ip"].text());
            ip::new_address(one["ip"].text(), kept, &path.child(list).index(index), errors);
        }
        let families = |v6: bool| {
            let parsed = addresses.iter().filter_map(|a| a["ip"].text().parse::<IpAddr>().ok());
            parsed.filter(|ip| ip.is_ipv6() == v6).count()
        };
        if families(true) > 1 || families(false) > 1 {
            let detail = "may specify no more than one IP for each IP family";
            errors.push(Error::invalid(&path.child(list), status[list].clone(), detail));
        }
    }
    pod_conditions(status, &path, errors);
}

fn pod_conditions(status: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, condition) in status["conditions"].items().iter().enumerate() {
        let kind = condition["type"].text();
        // The system's own are well known, others are qualified names.
        if !kind.is_empty() {
            let at = path.child("conditions").index(index).child("Type");
            mistakes(errors, &at, kind, names::qualified_name(kind));
        }
    }
}

fn is_true(status: &Value, kind: &str) -> bool {
    let all = status["conditions"].items();
    all.iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
}

/// What a job's controller may say of it (`ValidateJobStatusUpdate`).
fn job(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (status, before, path) = (&object["status"], &old["status"], Path::new("status"));
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        non_negative(errors, &path.child(key), &status[key]);
    }
    let uncounted = &status["uncountedTerminatedPods"];
    let mut seen = std::collections::BTreeSet::new();
    for list in ["succeeded", "failed"] {
        for (index, uid) in uncounted[list].texts().enumerate() {
            let at = path.child("uncountedTerminatedPods").child(list).index(index);
            if uid.is_empty() {
                errors.push(Error::invalid(&at, uid, "must not be empty"));
            } else if !seen.insert(uid) {
                errors.push(Error::duplicate(&at, uid));
            }
        }
    }
    job_conditions(status, before, &path, errors);
    job_times(object, old, &path, errors);
    job_counts(object, old, &path, errors);
}

fn job_conditions(status: &Value, before: &Value, path: &Path, errors: &mut ErrorList) {
    let at = path.child("conditions");
    let now = |kind: &str| is_true(status, kind);
    let was = |kind: &str| is_true(before, kind);
    let (complete, failed, met) = (now("Complete"), now("Failed"), now("SuccessCriteriaMet"));
    let news = !(was("Complete") || was("Failed"));
    for (bad, detail) in [
        (complete && failed, "cannot set Complete=True and Failed=true conditions"),
        (
            complete && now("FailureTarget"),
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            news && failed && !now("FailureTarget"),
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            news && complete && !met,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (met && failed, "cannot set SuccessCriteriaMet=True and Failed=true conditions"),
        (
            met && now("FailureTarget"),
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
        (was("SuccessCriteriaMet") && !met, "cannot disable the SuccessCriteriaMet=True condition"),
    ] {
        if bad {
            errors.push(omitted(&at, detail));
        }
    }
    for kind in ["Failed", "Complete", "FailureTarget"] {
        if was(kind) && !now(kind) {
            let detail = format!("cannot disable the terminal {kind}=True condition");
            errors.push(omitted(&at, &detail));
        }
    }
}

fn job_times(object: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let (status, before) = (&object["status"], &old["status"]);
    let complete = is_true(status, "Complete");
    let finished = complete || is_true(status, "Failed");
    let (end, start) = (&status["completionTime"], &status["startTime"]);
    let at = path.child("completionTime");
    if end.is_set() && !complete {
        let detail = "cannot set completionTime when there is no Complete=True condition";
        errors.push(Error::invalid(&at, end.clone(), detail));
    }
    if end.is_null() && complete {
        errors.push(Error::required(&at, "completionTime is required for Complete jobs"));
    }
    if let (Ok(start), Ok(ended)) = (time::parse(start.text()), time::parse(end.text()))
        && ended < start
    {
        let detail = "completionTime cannot be set before startTime";
        errors.push(Error::invalid(&at, end.clone(), detail));
    }
    if end.is_set() && before["completionTime"].is_set() && *end != before["completionTime"] {
        errors.push(Error::invalid(&at, end.clone(), "completionTime cannot be mutated"));
    }
    let at = path.child("startTime");
    if start.is_null() && finished {
        errors.push(Error::required(&at, "startTime is required for finished job"));
    }
    let started = &before["startTime"];
    if started.is_set() && started != start && !object["spec"]["suspend"].flag() {
        errors.push(Error::required(&at, "startTime cannot be removed for unsuspended job"));
    }
}

fn job_counts(object: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let (spec, status, before) = (&object["spec"], &object["status"], &old["status"]);
    let finished = is_true(status, "Complete") || is_true(status, "Failed");
    if finished {
        for key in ["active", "terminating"] {
            if status[key].int() > 0 {
                let detail = format!("{key}>0 is invalid for finished job");
                errors.push(Error::invalid(&path.child(key), status[key].int(), detail));
            }
        }
        let uncounted = &status["uncountedTerminatedPods"];
        if ["succeeded", "failed"].iter().any(|list| !uncounted[*list].items().is_empty()) {
            let at = path.child("uncountedTerminatedPods");
            let detail = "uncountedTerminatedPods needs to be empty for finished job";
            errors.push(Error::invalid(&at, uncounted.clone(), detail));
        }
    }
    if status["ready"].int() > status["active"].int() {
        let detail = "cannot set more ready pods than active";
        errors.push(Error::invalid(&path.child("ready"), status["ready"].int(), detail));
    }
    for key in ["failed", "succeeded"] {
        // An indexed job that was scaled down has fewer indexes to succeed in.
        let elastic = key == "succeeded" && spec["completionMode"] == "Indexed";
        if status[key].int() < before[key].int() && !elastic {
            let detail = format!("cannot decrease the {key} counter");
            errors.push(Error::invalid(&path.child(key), status[key].int(), detail));
        }
    }
    let completed = status["completedIndexes"].text();
    let at = path.child("completedIndexes");
    if !completed.is_empty() && spec["completionMode"] != "Indexed" {
        let detail = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.push(Error::invalid(&at, completed, detail));
    }
    for (key, relevant) in
        [("completedIndexes", true), ("failedIndexes", spec["backoffLimitPerIndex"].is_set())]
    {
        if !relevant && status[key].is_set() {
            let detail = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
            errors.push(Error::invalid(&path.child(key), status[key].clone(), detail));
        } else if spec["completions"].is_set()
            && let Err(why) = count_indexes(status[key].text(), spec["completions"].int())
        {
            let detail = format!("error parsing {key}: {why}");
            errors.push(Error::invalid(&path.child(key), status[key].clone(), detail));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::validation::told;
    use serde_json::json;

    fn check(group: &str, plural: &str, new: Value, old: Value) -> String {
        let resource = Registry::default().resource(group, plural).unwrap();
        let mut ctx = RequestContext::internal("update", &resource, "default", "a");
        ctx.subresource = "status".into();
        told(|e| validate(&ctx, &new, &old, e)).join("; ")
    }

    #[test]
    fn counters_do_not_contradict_each_other() {
        let told =
            |status: Value| check("apps", "replicasets", json!({"status": status}), json!({}));
        assert_eq!(told(json!({"replicas": 2, "readyReplicas": 2, "availableReplicas": 1})), "");
        assert_eq!(
            told(json!({"replicas": -1})),
            "status.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        assert_eq!(
            told(json!({"replicas": 1, "readyReplicas": 2})),
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
        );
    }

    #[test]
    fn containers_do_not_come_back_to_life() {
        let pod = |state: Value| {
            json!({"spec": {"restartPolicy": "Never"}, "status": {
            "containerStatuses": [{"name": "c", "state": state}]}})
        };
        let (ended, running) =
            (pod(json!({"terminated": {"exitCode": 0}})), pod(json!({"running": {}})));
        assert_eq!(check("", "pods", ended.clone(), running.clone()), "");
        assert_eq!(
            check("", "pods", running, ended),
            "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
        );
        let rules = json!([{"action": "RestartAllContainers"}]);
        let whole = |mut pod: Value| {
            pod["spec"]["containers"] = json!([{"name": "w", "restartPolicyRules": rules}]);
            pod
        };
        let (ended, running) =
            (pod(json!({"terminated": {"exitCode": 0}})), pod(json!({"running": {}})));
        assert_eq!(check("", "pods", whole(running), whole(ended)), "");
    }

    #[test]
    fn jobs_end_once() {
        let status = |kinds: &[&str], extra: Value| {
            let conditions: Vec<Value> =
                kinds.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
            let mut status = json!({"startTime": "2026-01-01T00:00:00Z", "conditions": conditions});
            for (key, value) in extra.as_object().unwrap() {
                status[key] = value.clone();
            }
            json!({"spec": {}, "status": status})
        };
        let end = json!({"completionTime": "2026-01-01T00:00:01Z"});
        let done = status(&["Complete", "SuccessCriteriaMet"], end.clone());
        let started = status(&[], json!({}));
        let told = |new: &Value, old: &Value| check("batch", "jobs", new.clone(), old.clone());
        assert_eq!(told(&done, &started), "");
        assert_eq!(
            told(&status(&["SuccessCriteriaMet"], json!({})), &done),
            "status.conditions: Invalid value: cannot disable the terminal Complete=True condition"
        );
        assert_eq!(
            told(&status(&["Complete"], end), &started),
            "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition"
        );
        assert_eq!(
            told(&status(&[], json!({"active": 1, "ready": 2})), &started),
            "status.ready: Invalid value: 2: cannot set more ready pods than active"
        );
    }
}
