//! Follows a claim for a volume.

use serde_json::Value;

use super::Verdict;
use super::remedy::{CLAIM, find};

/// What holds a claim; `class` is its storage class, if it has one and that is there, `users` are the names of the
/// pods that use it, `events` those about it, oldest first.
pub fn explain(claim: &Value, class: Option<&Value>, users: &[&str], events: &[Value]) -> Verdict {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (spec, status) = (&claim["spec"], &claim["status"]);
    if claim["metadata"]["deletionTimestamp"].is_string() {
        let verdict = Verdict::new("volumes", "it is deleted, and kept while pods use it.");
        return match users {
            [] => verdict.mend("wait; what keeps it are its finalizers: kubectl describe pvc"),
            users => verdict
                .because(format!("They are {}", users.join(", ")))
                .mend("end these pods, and what creates them"),
        };
    }
    match status["phase"].as_str().unwrap_or_default() {
        "Bound" => {
            let volume = text(&spec["volumeName"]);
            return Verdict::new("", format!("nothing holds it: it is bound to volume {volume}."));
        }
        "Lost" => {
            let volume = text(&spec["volumeName"]);
            return Verdict::new("volumes", format!("its volume {volume} is gone."))
                .mend("restore the volume, or delete the claim and create it anew");
        }
        _ => {}
    }
    let named = spec["storageClassName"].as_str();
    match (named, class) {
        (None, _) => {
            return Verdict::new("volumes", "no storage class is named, and none is the default.")
                .mend("name one: kubectl get storageclass");
        }
        (Some(""), _) => {
            return Verdict::new("volumes", "it waits for a volume that somebody makes by hand.")
                .because("Its storageClassName is empty, so nothing is provisioned")
                .mend("create a PersistentVolume of its size and access modes, or name a storage class");
        }
        (Some(name), None) => {
            return Verdict::new("volumes", format!("there is no storage class {name:?}."))
                .mend("name a storage class that is there: kubectl get storageclass");
        }
        (Some(_), Some(_)) => {}
    }
    let last = events.iter().rev().find(|event| event["type"] == "Warning");
    if let Some(message) = last.map(|event| text(&event["message"])) {
        return Verdict::new("volumes", "no volume can be made for it.")
            .because(message.clone())
            .mend(find(CLAIM, &message));
    }
    let waits = class.is_some_and(|class| class["volumeBindingMode"] == "WaitForFirstConsumer");
    match users {
        [] if waits => Verdict::new("volumes", "it waits for a pod that uses it.")
            .because("Its storage class makes volumes where their pods are (WaitForFirstConsumer)")
            .mend("nothing is wrong: create the pod"),
        [user, ..] if waits => {
            Verdict::new("volumes", "it waits for its pod to be given a node.")
                .mend(format!("see what holds that: rootlet why pod/{user}"))
        }
        _ => Verdict::new("volumes", "it waits for its volume.")
            .because(events.last().map(|event| text(&event["message"])).unwrap_or_default())
            .mend("see whether the provisioner of its storage class runs: kubectl describe storageclass"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_claim_waits_for_is_named() {
        let claim = |class: Value, phase: &str| json!({"metadata": {}, "spec": {"storageClassName": class, "volumeName": "v"}, "status": {"phase": phase}});
        let late = json!({"volumeBindingMode": "WaitForFirstConsumer"});
        let soon = json!({"volumeBindingMode": "Immediate"});
        let failed = [json!({"type": "Warning", "message": "no capacity"})];
        let deleted = json!({"metadata": {"deletionTimestamp": "t"}});
        let none: [Value; 0] = [];
        let cases = [
            (
                claim(json!("a"), "Bound"),
                Some(&late),
                &[][..],
                &none[..],
                "nothing holds it: it is bound to volume v.",
            ),
            (claim(json!("a"), "Lost"), Some(&late), &[], &none, "its volume v is gone."),
            (
                claim(Value::Null, "Pending"),
                None,
                &[],
                &none,
                "no storage class is named, and none is the default.",
            ),
            (
                claim(json!(""), "Pending"),
                None,
                &[],
                &none,
                "it waits for a volume that somebody makes by hand.",
            ),
            (claim(json!("a"), "Pending"), None, &[], &none, "there is no storage class \"a\"."),
            (
                claim(json!("a"), "Pending"),
                Some(&late),
                &[],
                &none,
                "it waits for a pod that uses it.",
            ),
            (
                claim(json!("a"), "Pending"),
                Some(&late),
                &["p"],
                &none,
                "it waits for its pod to be given a node.",
            ),
            (claim(json!("a"), "Pending"), Some(&soon), &[], &none, "it waits for its volume."),
            (
                claim(json!("a"), "Pending"),
                Some(&soon),
                &[],
                &failed,
                "no volume can be made for it.",
            ),
            (deleted, None, &["p"], &none, "it is deleted, and kept while pods use it."),
        ];
        for (claim, class, users, events, want) in cases {
            assert_eq!(explain(&claim, class, users, events).finding, want, "{claim}");
        }
    }
}
