//! Which volume is for which claim.
//!
//! Source: `pkg/controller/volume/persistentvolume/index.go`,
//! `k8s.io/component-helpers/storage/volume` (`FindMatchingVolume`).

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;

use crate::pods;

/// Bytes that the volume has.
pub fn capacity(volume: &PersistentVolume) -> i64 {
    let capacity = volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref());
    bytes(capacity.and_then(|capacity| capacity.get("storage")).map(|q| q.0.as_str()))
}

/// Bytes that the claim asks for.
pub fn request(claim: &PersistentVolumeClaim) -> i64 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    bytes(requests.and_then(|requests| requests.get("storage")).map(|q| q.0.as_str()))
}

fn bytes(text: Option<&str>) -> i64 {
    text.and_then(|text| text.parse::<Quantity>().ok()).map_or(0, |quantity| quantity.value())
}

/// The class of a claim; the annotation is older than the field.
pub fn class_of(claim: &PersistentVolumeClaim) -> &str {
    let old = claim.annotations().get("volume.beta.kubernetes.io/storage-class");
    let class = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    old.or(class).map_or("", String::as_str)
}

fn class_of_volume(volume: &PersistentVolume) -> &str {
    let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref());
    class.unwrap_or_default()
}

/// Whether the reference means this claim, by name, and by uid where it has one.
pub fn names(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_ref().filter(|uid| !uid.is_empty());
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
}

/// What keeps the volume from serving the claim, if anything.
pub fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<&'static str> {
    let (wanted, offered) = (claim.spec.clone().unwrap_or_default(), volume.spec.as_ref());
    let offered = offered.cloned().unwrap_or_default();
    if request(claim) > capacity(volume) {
        return Some("requested PV is too small");
    }
    if class_of(claim) != class_of_volume(volume) {
        return Some("storageClassName does not match");
    }
    let mode = |mode: Option<String>| mode.unwrap_or_else(|| "Filesystem".into());
    if mode(wanted.volume_mode) != mode(offered.volume_mode) {
        return Some("incompatible volumeMode");
    }
    let modes = offered.access_modes.unwrap_or_default();
    if !wanted.access_modes.unwrap_or_default().iter().all(|mode| modes.contains(mode)) {
        return Some("incompatible accessMode");
    }
    None
}

/// The volume for a claim: one that is set aside for it, or the smallest free one that is large enough.
/// When the claim is bound `late`, only the former: the scheduler chooses.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [impl AsRef<PersistentVolume>],
    late: bool,
) -> Option<&'a PersistentVolume> {
    let spec = claim.spec.as_ref()?;
    let picks = spec.selector.as_ref().map(pods::selector);
    let volumes = volumes.iter().map(AsRef::as_ref);
    let live = volumes.filter(|volume| volume.metadata.deletion_timestamp.is_none());
    let (mut kept, mut free): (Option<&PersistentVolume>, Option<&PersistentVolume>) = (None, None);
    for volume in live.filter(|volume| mismatch(claim, volume).is_none()) {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        match reference {
            Some(reference) if names(reference, claim) => kept = Some(volume),
            Some(_) => {}
            None if late || phase != Some("Available") => {}
            None if picks.as_ref().is_some_and(|picks| !picks.matches(volume.labels())) => {}
            None if free.is_none_or(|known| capacity(volume) < capacity(known)) => {
                free = Some(volume);
            }
            None => {}
        }
    }
    kept.or(free)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(name: &str, storage: &str, more: Value) -> Box<PersistentVolume> {
        let mut spec = json!({"capacity": {"storage": storage}, "accessModes": ["ReadWriteOnce"]});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        Box::new(
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"n": name}},
                "spec": spec, "status": {"phase": "Available"}}))
            .expect("a volume"),
        )
    }

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": spec}),
        )
        .expect("a claim")
    }

    #[test]
    fn the_smallest_that_is_large_enough_is_chosen() {
        let kept = json!({"claimRef": {"name": "c", "namespace": "n"}});
        let foreign = json!({"claimRef": {"name": "d", "namespace": "n"}});
        let volumes = vec![
            volume("tiny", "1Gi", json!({})),
            volume("large", "9Gi", json!({})),
            volume("fits", "3Gi", json!({})),
            volume("taken", "2Gi", foreign),
            volume("class", "2Gi", json!({"storageClassName": "fast"})),
            volume("block", "2Gi", json!({"volumeMode": "Block"})),
        ];
        let best = |claim: &PersistentVolumeClaim, volumes: &[Box<PersistentVolume>], late| {
            super::best(claim, volumes, late).map(kube::ResourceExt::name_any)
        };
        assert_eq!(best(&claim(json!({})), &volumes, false).as_deref(), Some("fits"));
        assert_eq!(best(&claim(json!({})), &volumes, true), None);
        let fast = claim(json!({"storageClassName": "fast"}));
        assert_eq!(best(&fast, &volumes, false).as_deref(), Some("class"));
        let picky = claim(json!({"selector": {"matchLabels": {"n": "large"}}}));
        assert_eq!(best(&picky, &volumes, false).as_deref(), Some("large"));
        let shared = claim(json!({"accessModes": ["ReadWriteMany"]}));
        assert_eq!(best(&shared, &volumes, false), None);
        let mut more = volumes;
        more.push(volume("kept", "9Gi", kept));
        assert_eq!(best(&claim(json!({})), &more, true).as_deref(), Some("kept"));
    }
}
