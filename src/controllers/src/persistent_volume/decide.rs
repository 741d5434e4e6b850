//! What is to be done about a claim, and about a volume.
//!
//! Source: `pkg/controller/volume/persistentvolume/pv_controller.go` (`syncUnboundClaim`, `syncBoundClaim`,
//! `syncVolume`).

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use super::matching::{best, class_of, mismatch, names};
use super::provision::PROVISIONED_BY;
use super::{BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE};

/// What is to be done about a claim.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// It becomes, or is, the volume's.
    Bind(String),
    /// A volume is to be made by the class' provisioner.
    Provision,
    /// It waits; an event says for what, and whether somebody has to do something about it.
    Wait(bool, &'static str, String),
    /// It waits without a word.
    Quiet,
    /// Its volume is gone.
    Lost(&'static str, &'static str),
}

fn reference(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref())
}

fn decide_bound(claim: &PersistentVolumeClaim, volume: Option<&PersistentVolume>) -> Step {
    const LOST: &str = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
    const UNNAMED: &str =
        "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
    const MISBOUND: &str = "Two claims are bound to the same volume, this one is bound incorrectly";
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    if named.is_empty() {
        return Step::Lost("ClaimLost", UNNAMED);
    }
    let Some(volume) = volume else { return Step::Lost("ClaimLost", LOST) };
    match reference(volume) {
        Some(reference) if reference.uid != claim.metadata.uid => {
            Step::Lost("ClaimMisbound", MISBOUND)
        }
        _ => Step::Bind(named.to_owned()),
    }
}

/// A claim that names its volume itself.
fn decide_named(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&PersistentVolume>,
) -> Step {
    let Some(volume) = volume else { return Step::Quiet };
    match (reference(volume), mismatch(claim, volume)) {
        (Some(reference), _) if names(reference, claim) => Step::Bind(named.to_owned()),
        (Some(_), _) => {
            let ours = claim.annotations().contains_key(BOUND_BY_CONTROLLER);
            let by = if ours { " by controller" } else { "" };
            let message = format!("volume {named:?} already bound{by} to a different claim.");
            Step::Wait(true, "FailedBinding", message)
        }
        (None, Some(problem)) => {
            let message = format!("Cannot bind to requested volume {named:?}: {problem}");
            Step::Wait(true, "VolumeMismatch", message)
        }
        (None, None) => Step::Bind(named.to_owned()),
    }
}

/// Decides about a claim. `late` tells that its class waits for the first consumer; `waiting` names the pods that use
/// it and have no node.
pub fn decide(
    claim: &PersistentVolumeClaim,
    volumes: &[impl AsRef<PersistentVolume>],
    late: bool,
    waiting: &[String],
) -> Step {
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    let mut all = volumes.iter().map(AsRef::as_ref);
    let mut find = |name: &str| all.find(|volume| volume.name_any() == name);
    if claim.annotations().contains_key(BIND_COMPLETED) {
        return decide_bound(claim, find(named));
    }
    if !named.is_empty() {
        return decide_named(claim, named, find(named));
    }
    if let Some(volume) = best(claim, volumes, late) {
        return Step::Bind(volume.name_any());
    }
    if late && !claim.annotations().contains_key(SELECTED_NODE) {
        let pods = waiting.join(",");
        let (reason, message) = match waiting.len() {
            0 => (
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".into(),
            ),
            1 => ("WaitForPodScheduled", format!("waiting for pod {pods} to be scheduled")),
            _ => ("WaitForPodScheduled", format!("waiting for pods {pods} to be scheduled")),
        };
        return Step::Wait(false, reason, message);
    }
    if class_of(claim).is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return Step::Wait(false, "FailedBinding", message.into());
    }
    Step::Provision
}

/// The class that a claim without one gets when it is found (`assignDefaultStorageClass`): the youngest of those that
/// are meant for all.
pub fn default_class<'a>(
    claim: &PersistentVolumeClaim,
    classes: &'a [impl AsRef<StorageClass>],
) -> Option<&'a StorageClass> {
    const DEFAULT: [&str; 2] = [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ];
    let old = claim.annotations().contains_key("volume.beta.kubernetes.io/storage-class");
    if old || claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some()) {
        return None;
    }
    let is_default = |class: &&StorageClass| {
        DEFAULT.iter().any(|key| class.annotations().get(*key).is_some_and(|value| value == "true"))
    };
    let all = classes.iter().map(AsRef::as_ref).filter(is_default);
    let age = |class: &&StorageClass| {
        let made = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (made, std::cmp::Reverse(class.name_any()))
    };
    all.max_by_key(age)
}

/// What becomes of a volume.
#[derive(Debug, PartialEq)]
pub enum Fate {
    /// It is, and says so.
    Available,
    /// It is bound, and says so.
    Bound,
    /// What follows is the claim's to do.
    Claims,
    /// It was meant for a claim that wants another kind of volume.
    Misfit,
    /// Its claim is gone: it is reclaimed as its policy says.
    Released,
    /// Its claim has another: it is free again.
    Unbound,
}

/// Decides about a volume whose reference means `claim`, if that is there.
pub fn fate(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> Fate {
    let Some(reference) = reference(volume) else { return Fate::Available };
    if reference.uid.as_ref().is_none_or(String::is_empty) {
        return Fate::Available;
    }
    let Some(claim) = claim.filter(|claim| names(reference, claim)) else { return Fate::Released };
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
    if named.is_empty() {
        let same = super::matching::is_of_mode(claim, volume);
        return if same { Fate::Claims } else { Fate::Misfit };
    }
    if Some(&named) == volume.metadata.name.as_ref() {
        return Fate::Bound;
    }
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    if volume.annotations().contains_key(PROVISIONED_BY) && policy == Some("Delete") {
        // It was made for a claim that has found another.
        return Fate::Released;
    }
    Fate::Unbound
}

/// The volume as it is without its claim: free, or, where somebody had set it aside for the claim, that again.
pub fn freed(volume: &PersistentVolume) -> PersistentVolume {
    let mut free = volume.clone();
    let ours = free.annotations_mut().remove(BOUND_BY_CONTROLLER).is_some();
    let spec = free.spec.get_or_insert_default();
    if ours {
        spec.claim_ref = None;
    } else if let Some(reference) = spec.claim_ref.as_mut() {
        reference.uid = None;
    }
    free
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claim(annotations: Value, spec: Value) -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"name": "c", "namespace": "n", "uid": "u",
            "annotations": annotations}, "spec": spec}))
        .expect("a claim")
    }

    /// `claim_uid` is that of the claim it is for; an empty one is none.
    fn volume(name: &str, claim_uid: Option<&str>, spec: Value) -> Box<PersistentVolume> {
        let reference = claim_uid.map(|uid| match uid {
            "" => json!({"name": "c", "namespace": "n"}),
            "other" => json!({"name": "d", "namespace": "n", "uid": uid}),
            _ => json!({"name": "c", "namespace": "n", "uid": uid}),
        });
        let mut all = json!({"claimRef": reference, "capacity": {"storage": "10Gi"}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        let status = json!({"phase": "Available"});
        Box::new(
            serde_json::from_value(
                json!({"metadata": {"name": name}, "spec": all, "status": status}),
            )
            .expect("a volume"),
        )
    }

    #[test]
    fn claims_find_their_volumes() {
        let (done, none) = (json!({BIND_COMPLETED: "yes"}), json!({}));
        let named = json!({"volumeName": "v"});
        let classy = json!({"storageClassName": "k"});
        let large = json!({"volumeName": "v", "resources": {"requests": {"storage": "11Gi"}}});
        let free = |spec: &Value| vec![volume("v", None, spec.clone())];
        let kept = |uid: &str| vec![volume("v", Some(uid), json!({}))];
        for (annotations, spec, volumes, late, pods, want) in [
            // One that does not care.
            (&none, &none, free(&none), false, "", "bind"),
            (&none, &none, kept(""), false, "", "bind"),
            (&none, &none, kept("u"), false, "", "bind"),
            (&none, &none, kept("other"), false, "", "Normal FailedBinding"),
            (&none, &none, vec![], false, "", "Normal FailedBinding"),
            (&none, &classy, vec![], false, "", "provision"),
            (&none, &classy, free(&classy), true, "", "Normal WaitForFirstConsumer"),
            (&none, &classy, kept(""), true, "", "bind"),
            (&none, &classy, vec![], true, "p", "Normal WaitForPodScheduled"),
            (&json!({SELECTED_NODE: "m"}), &classy, vec![], true, "", "provision"),
            // One that names its volume.
            (&none, &named, vec![], false, "", "quiet"),
            (&none, &named, free(&none), false, "", "bind"),
            (&none, &named, kept(""), false, "", "bind"),
            (&none, &named, kept("u"), false, "", "bind"),
            (&none, &named, kept("x"), false, "", "Warning FailedBinding"),
            (&none, &large, free(&none), false, "", "Warning VolumeMismatch"),
            (&none, &named, free(&classy), false, "", "Warning VolumeMismatch"),
            // One that is bound.
            (&done, &none, vec![], false, "", "ClaimLost"),
            (&done, &named, vec![], false, "", "ClaimLost"),
            (&done, &named, free(&none), false, "", "bind"),
            (&done, &large, free(&none), false, "", "bind"),
            (&done, &named, kept(""), false, "", "ClaimMisbound"),
            (&done, &named, kept("u"), false, "", "bind"),
            (&done, &named, kept("x"), false, "", "ClaimMisbound"),
        ] {
            let claim = claim(annotations.clone(), spec.clone());
            let pods: Vec<String> = pods.split_whitespace().map(str::to_owned).collect();
            let got = match decide(&claim, &volumes, late, &pods) {
                Step::Bind(_) => "bind".to_owned(),
                Step::Provision => "provision".into(),
                Step::Quiet => "quiet".into(),
                Step::Wait(true, reason, _) => format!("Warning {reason}"),
                Step::Wait(false, reason, _) => format!("Normal {reason}"),
                Step::Lost(reason, _) => reason.into(),
            };
            assert_eq!(got, want, "{annotations} {spec} {volumes:?}");
        }
    }

    #[test]
    fn what_a_claim_waits_for_is_told() {
        let message = |step: Step| match step {
            Step::Wait(_, _, message) => message,
            other => format!("{other:?}"),
        };
        let classy = claim(json!({}), json!({"storageClassName": "k"}));
        let none: [Box<PersistentVolume>; 0] = [];
        for (pods, want) in [
            (vec!["a"], "waiting for pod a to be scheduled"),
            (vec!["a", "b"], "waiting for pods a,b to be scheduled"),
        ] {
            let pods: Vec<String> = pods.into_iter().map(str::to_owned).collect();
            assert_eq!(message(decide(&classy, &none, true, &pods)), want);
        }
        for (annotations, want) in [
            (json!({}), "volume \"v\" already bound to a different claim."),
            (
                json!({BOUND_BY_CONTROLLER: "yes"}),
                "volume \"v\" already bound by controller to a different claim.",
            ),
        ] {
            let claim = claim(annotations, json!({"volumeName": "v"}));
            let volumes = [volume("v", Some("x"), json!({}))];
            assert_eq!(message(decide(&claim, &volumes, false, &[])), want);
        }
    }

    #[test]
    fn a_volume_follows_its_claim() {
        let delete = json!({"persistentVolumeReclaimPolicy": "Delete"});
        let block = json!({"volumeMode": "Block"});
        let with = |spec: Value| Some(claim(json!({}), spec));
        let (unnamed, bound, elsewhere) =
            (with(json!({})), with(json!({"volumeName": "v"})), with(json!({"volumeName": "w"})));
        for (uid, spec, made, claim, want) in [
            (None, &delete, false, &None, Fate::Available),
            (Some(""), &delete, false, &None, Fate::Available),
            (Some(""), &delete, false, &unnamed, Fate::Available),
            (Some("u"), &delete, false, &None, Fate::Released),
            (Some("x"), &delete, false, &bound, Fate::Released),
            (Some("u"), &delete, false, &unnamed, Fate::Claims),
            (Some("u"), &block, false, &unnamed, Fate::Misfit),
            (Some("u"), &delete, false, &bound, Fate::Bound),
            (Some("u"), &delete, false, &elsewhere, Fate::Unbound),
            (Some("u"), &delete, true, &elsewhere, Fate::Released),
            (Some("u"), &block, true, &elsewhere, Fate::Unbound),
        ] {
            let mut volume = volume("v", uid, spec.clone());
            if made {
                volume.annotations_mut().insert(PROVISIONED_BY.into(), "p".into());
            }
            assert_eq!(fate(&volume, claim.as_ref()), want, "{uid:?} {spec} {made}");
        }
    }

    #[test]
    fn a_volume_is_freed_of_what_the_controller_has_written() {
        let mut ours = volume("v", Some("u"), json!({}));
        let theirs = freed(&ours);
        let reference = theirs.spec.and_then(|spec| spec.claim_ref).expect("it is kept");
        assert_eq!((reference.name.as_deref(), reference.uid), (Some("c"), None));
        ours.annotations_mut().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        let free = freed(&ours);
        assert!(free.annotations().is_empty() && free.spec.is_some_and(|s| s.claim_ref.is_none()));
    }

    #[test]
    fn the_youngest_default_is_given_to_claims_without_a_class() {
        let class = |name: &str, default: &str, day: u8| -> Box<StorageClass> {
            Box::new(
                serde_json::from_value(json!({"provisioner": "p", "metadata": {"name": name,
                    "creationTimestamp": format!("2026-01-0{day}T00:00:00Z"),
                    "annotations": {"storageclass.kubernetes.io/is-default-class": default}}}))
                .expect("a class"),
            )
        };
        let classes = [
            class("a", "true", 1),
            class("c", "true", 2),
            class("b", "true", 2),
            class("d", "false", 3),
        ];
        for (annotations, spec, want) in [
            (json!({}), json!({}), Some("b")),
            (json!({}), json!({"storageClassName": ""}), None),
            (json!({"volume.beta.kubernetes.io/storage-class": ""}), json!({}), None),
        ] {
            let found = default_class(&claim(annotations, spec), &classes);
            assert_eq!(found.map(ResourceExt::name_any).as_deref(), want);
        }
        assert!(default_class(&claim(json!({}), json!({})), &classes[3..]).is_none());
    }
}
