//! How an object goes: grace, finalizers, propagation, preconditions.
//!
//! Source: `rest.BeforeDelete`, `registry.Store.Delete` and `deletionFinalizersForGarbageCollection` of
//! k8s.io/apiserver; `podStrategy.CheckGracefulDelete` and the namespace storage of Kubernetes.

use apimachinery::{Status, meta};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::metadata;
use crate::options::{DeleteOptions, Propagation};
use crate::resource::Resource;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a delete request does to an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The object is removed.
    Remove,
    /// The object is written as it is here and stays for now.
    Mark(Value),
    /// The object is being deleted already and nothing changes.
    Pending,
}

/// Checks `preconditions` against the object.
pub fn check_preconditions(
    resource: &Resource,
    object: &Value,
    options: &DeleteOptions,
) -> Result<(), Status> {
    let conflict = |why: String| {
        // Upstream names the kind here.
        Err(Status::conflict(&resource.group, &resource.kind, meta::name(object), &why))
    };
    let (uid, version) = (meta::uid(object), meta::resource_version(object));
    if let Some(wanted) = options.uid.as_deref().filter(|w| *w != uid) {
        return conflict(format!(
            "the UID in the precondition ({wanted}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        ));
    }
    if let Some(wanted) = options.resource_version.as_deref().filter(|w| *w != version) {
        return conflict(format!(
            "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        ));
    }
    Ok(())
}

/// Decides what deleting `object` with `options` means now.
pub fn step(resource: &Resource, object: &Value, options: &DeleteOptions) -> Step {
    if resource.is("", "namespaces") {
        return namespace_step(object, options);
    }
    let mut new = object.clone();
    if resource.is("apiextensions.k8s.io", "customresourcedefinitions")
        && meta::deletion_timestamp(object).is_none()
    {
        crate::custom::definition::mark_for_cleanup(&mut new);
        // Upstream sets the time alone (`REST.Delete` of apiextensions-apiserver).
        let now = metadata::seconds(Timestamp::now());
        meta::metadata_mut(&mut new).insert("deletionTimestamp".into(), now.into());
        return Step::Mark(new);
    }
    let grace = match graceful(resource, &mut new, options) {
        Grace::Pending => return Step::Pending,
        grace => grace,
    };
    let finalizers = finalizers_for(resource, object, options);
    let pending = !finalizers.is_empty();
    set_finalizers(&mut new, finalizers);
    match grace {
        Grace::None if pending => {
            mark(&mut new, 0);
            Step::Mark(new)
        }
        Grace::Seconds(seconds) if pending || seconds > 0 => Step::Mark(new),
        _ => Step::Remove,
    }
}

/// A namespace is marked and stays until its content is gone and `spec.finalizers` is empty.
fn namespace_step(object: &Value, options: &DeleteOptions) -> Step {
    let mut new = object.clone();
    let namespaces = Resource { plural: "namespaces".into(), ..Resource::default() };
    set_finalizers(&mut new, finalizers_for(&namespaces, object, options));
    mark(&mut new, 0);
    meta::metadata_mut(&mut new).remove("deletionGracePeriodSeconds");
    meta::child_mut(&mut new, "status").insert("phase".into(), "Terminating".into());
    if !is_finished(&namespaces, &new) {
        return if new == *object { Step::Pending } else { Step::Mark(new) };
    }
    Step::Remove
}

/// Whether nothing holds a deleted object back any more, so that a write of it removes it.
pub fn is_finished(resource: &Resource, object: &Value) -> bool {
    let metadata = meta::metadata(object);
    let grace = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let held_by_spec = resource.is("", "namespaces")
        && object
            .pointer("/spec/finalizers")
            .and_then(Value::as_array)
            .is_some_and(|f| !f.is_empty());
    metadata.contains_key("deletionTimestamp")
        && grace == 0
        && meta::finalizers(object).is_empty()
        && !held_by_spec
}

enum Grace {
    /// The kind knows no grace.
    None,
    /// It is being deleted with grace, and this request does not shorten it.
    Pending,
    /// The object was marked with this grace.
    Seconds(i64),
}

fn graceful(resource: &Resource, object: &mut Value, options: &DeleteOptions) -> Grace {
    let marked = meta::deletion_timestamp(object).and_then(|t| t.parse::<Timestamp>().ok());
    if let Some(deadline) = marked {
        let current =
            meta::metadata(object).get("deletionGracePeriodSeconds").and_then(Value::as_i64);
        let current = match current {
            None | Some(0) => return Grace::None,
            Some(current) => current,
        };
        return match options.grace_period_seconds {
            Some(period) if period < current => {
                let period = period.max(0);
                let earlier = deadline
                    .checked_sub(SignedDuration::from_secs(current - period))
                    .unwrap_or(deadline);
                let metadata = meta::metadata_mut(object);
                metadata.insert("deletionTimestamp".into(), metadata::seconds(earlier).into());
                metadata.insert("deletionGracePeriodSeconds".into(), period.into());
                Grace::Seconds(period)
            }
            _ => Grace::Pending,
        };
    }
    if !resource.is("", "pods") {
        return Grace::None;
    }
    let period = pod_grace(object, options);
    mark(object, period);
    Grace::Seconds(period)
}

fn pod_grace(pod: &Value, options: &DeleteOptions) -> i64 {
    let at = |path: &str| pod.pointer(path);
    let unscheduled = at("/spec/nodeName").and_then(Value::as_str).unwrap_or_default().is_empty();
    let ended = matches!(at("/status/phase").and_then(Value::as_str), Some("Failed" | "Succeeded"));
    let asked = options
        .grace_period_seconds
        .or_else(|| at("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64))
        .unwrap_or(0);
    match asked {
        _ if unscheduled || ended => 0,
        negative if negative < 0 => 1,
        asked => asked,
    }
}

/// Sets the deletion timestamp `seconds` from now; the generation counts that as a change.
fn mark(object: &mut Value, seconds: i64) {
    let generation = meta::generation(object);
    let metadata = meta::metadata_mut(object);
    if !metadata.contains_key("deletionTimestamp") {
        let deadline = Timestamp::now() + SignedDuration::from_secs(seconds.min(1 << 32));
        metadata.insert("deletionTimestamp".into(), metadata::seconds(deadline).into());
        if generation > 0 {
            metadata.insert("generation".into(), (generation + 1).into());
        }
    }
    metadata.insert("deletionGracePeriodSeconds".into(), seconds.into());
}

/// Kinds whose dependents stay unless a deletion says otherwise, as they did before there was a garbage
/// collector (`DefaultGarbageCollectionPolicy`).
pub fn orphans_by_default(resource: &Resource) -> bool {
    resource.is("", "replicationcontrollers") || resource.is("batch", "jobs")
}

fn finalizers_for(resource: &Resource, object: &Value, options: &DeleteOptions) -> Vec<String> {
    let now = meta::finalizers(object);
    let has = |name: &str| now.contains(&name);
    let orphan = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => orphan,
        (None, Some(policy)) => policy == Propagation::Orphan,
        (None, None) => has(ORPHAN) || (orphans_by_default(resource) && !has(FOREGROUND)),
    };
    let foreground = match (options.orphan_dependents, options.propagation) {
        (Some(_), _) => false,
        (None, Some(policy)) => policy == Propagation::Foreground,
        (None, None) => has(FOREGROUND) && !has(ORPHAN),
    };
    let mut new: Vec<String> = now
        .iter()
        .filter(|f| **f != ORPHAN && **f != FOREGROUND)
        .map(|f| (*f).to_owned())
        .collect();
    if orphan {
        new.push(ORPHAN.into());
    }
    if foreground {
        new.push(FOREGROUND.into());
    }
    new
}

fn set_finalizers(object: &mut Value, finalizers: Vec<String>) {
    let metadata = meta::metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), finalizers.into());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pods() -> Resource {
        Resource { plural: "pods".into(), ..Resource::default() }
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions { grace_period_seconds: Some(seconds), ..DeleteOptions::default() }
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_a_shorter_one_later() {
        let pod = json!({"metadata": {"name": "a", "generation": 1},
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        let Step::Mark(marked) = step(&pods(), &pod, &DeleteOptions::default()) else {
            panic!("marked")
        };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(marked["metadata"]["generation"], 2);
        assert_eq!(step(&pods(), &marked, &DeleteOptions::default()), Step::Pending);
        assert_eq!(step(&pods(), &marked, &grace(60)), Step::Pending);
        let Step::Mark(shorter) = step(&pods(), &marked, &grace(5)) else { panic!("shortened") };
        assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
        assert_eq!(step(&pods(), &marked, &grace(0)), Step::Remove);
    }

    #[test]
    fn pods_without_node_or_that_ended_go_at_once() {
        for pod in [
            json!({"metadata": {"name": "a"}, "spec": {}}),
            json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}),
        ] {
            assert_eq!(step(&pods(), &pod, &grace(30)), Step::Remove);
        }
    }

    #[test]
    fn finalizers_hold_an_object_back() {
        let maps = Resource { plural: "configmaps".into(), ..Resource::default() };
        let object = json!({"metadata": {"name": "a", "finalizers": ["x/y"]}});
        let Step::Mark(marked) = step(&maps, &object, &DeleteOptions::default()) else {
            panic!("marked")
        };
        assert!(marked["metadata"]["deletionTimestamp"].is_string());
        assert!(!is_finished(&maps, &marked));
        let plain = json!({"metadata": {"name": "a"}});
        assert_eq!(step(&maps, &plain, &DeleteOptions::default()), Step::Remove);
        let foreground = DeleteOptions {
            propagation: Some(Propagation::Foreground),
            ..DeleteOptions::default()
        };
        let Step::Mark(marked) = step(&maps, &plain, &foreground) else { panic!("marked") };
        assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    }

    #[test]
    fn some_kinds_leave_their_dependents_unless_told_otherwise() {
        let of = |group: &str, plural: &str| Resource {
            group: group.into(),
            plural: plural.into(),
            ..Resource::default()
        };
        let told = |propagation| DeleteOptions { propagation, ..DeleteOptions::default() };
        let plain = json!({"metadata": {"name": "a"}});
        let held = json!({"metadata": {"name": "a", "finalizers": ["foregroundDeletion"]}});
        for (resource, object, propagation, finalizers) in [
            (of("", "replicationcontrollers"), &plain, None, json!(["orphan"])),
            (of("batch", "jobs"), &plain, None, json!(["orphan"])),
            (of("batch", "jobs"), &held, None, json!(["foregroundDeletion"])),
            (of("batch", "jobs"), &plain, Some(Propagation::Background), Value::Null),
            (of("apps", "replicasets"), &plain, None, Value::Null),
        ] {
            let got = match step(&resource, object, &told(propagation)) {
                Step::Mark(marked) => marked["metadata"]["finalizers"].clone(),
                _ => Value::Null,
            };
            assert_eq!(got, finalizers, "{}", resource.plural);
        }
    }

    #[test]
    fn a_namespace_waits_for_its_content() {
        let namespaces = Resource { plural: "namespaces".into(), ..Resource::default() };
        let namespace = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}});
        let Step::Mark(marked) = step(&namespaces, &namespace, &DeleteOptions::default()) else {
            panic!("marked")
        };
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(step(&namespaces, &marked, &DeleteOptions::default()), Step::Pending);
        let mut empty = marked;
        empty["spec"]["finalizers"] = json!([]);
        assert!(is_finished(&namespaces, &empty));
    }
}
