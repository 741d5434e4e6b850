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
    let old = volume.annotations().get("volume.beta.kubernetes.io/storage-class");
    let class = volume.spec.as_ref().and_then(|spec| spec.storage_class_name.as_ref());
    old.or(class).map_or("", String::as_str)
}

/// Whether the claim wants a volume of this mode: a file system or a block device.
pub fn is_of_mode(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    fn mode(mode: Option<&String>) -> &str {
        mode.map_or("Filesystem", String::as_str)
    }
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    let offered = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    mode(wanted) == mode(offered)
}

/// Whether both name the same class of attributes, or none.
fn has_attributes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    let offered = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.as_deref());
    wanted.unwrap_or_default() == offered.unwrap_or_default()
}

fn has_access(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let mut wanted = claim.spec.iter().flat_map(|spec| spec.access_modes.iter().flatten());
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
    wanted.all(|mode| offered.is_some_and(|offered| offered.contains(mode)))
}

/// Whether the reference means this claim, by name, and by uid where it has one.
pub fn names(reference: &ObjectReference, claim: &PersistentVolumeClaim) -> bool {
    let uid = reference.uid.as_ref().filter(|uid| !uid.is_empty());
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && uid.is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
}

/// What keeps the volume from serving a claim that names it, if anything.
pub fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<String> {
    let problem = if volume.metadata.deletion_timestamp.is_some() {
        return Some(format!("the volume is marked for deletion {:?}", volume.name_any()));
    } else if request(claim) > capacity(volume) {
        "requested PV is too small"
    } else if class_of(claim) != class_of_volume(volume) {
        "storageClassName does not match"
    } else if !has_attributes(claim, volume) {
        "volumeAttributesClassName does not match"
    } else if !is_of_mode(claim, volume) {
        "incompatible volumeMode"
    } else if !has_access(claim, volume) {
        "incompatible accessMode"
    } else {
        return None;
    };
    Some(problem.into())
}

/// The volume for a claim: of those that can be accessed in the fewest ways beside the wanted ones, one that is set
/// aside for it, or the smallest free one that is large enough. When the claim is bound `late`, only the former: the
/// scheduler chooses.
pub fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [impl AsRef<PersistentVolume>],
    late: bool,
) -> Option<&'a PersistentVolume> {
    let spec = claim.spec.as_ref()?;
    let picks = spec.selector.as_ref().map(pods::selector);
    let serves = |volume: &&PersistentVolume| {
        volume.metadata.deletion_timestamp.is_none()
            && request(claim) <= capacity(volume)
            && is_of_mode(claim, volume)
            && has_attributes(claim, volume)
            && has_access(claim, volume)
    };
    let is_kept = |volume: &PersistentVolume| {
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        reference.map(|reference| names(reference, claim))
    };
    let is_free = |volume: &PersistentVolume| {
        let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
        !late
            && phase == Some("Available")
            && picks.as_ref().is_none_or(|picks| picks.matches(volume.labels()))
            && class_of_volume(volume) == class_of(claim)
    };
    let all = volumes.iter().map(AsRef::as_ref).filter(serves);
    let usable = all.filter(|volume| is_kept(volume).unwrap_or_else(|| is_free(volume)));
    usable.min_by_key(|volume| {
        let modes = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_ref());
        (modes.map_or(0, Vec::len), is_kept(volume).is_none(), capacity(volume))
    })
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
        let wide = json!({"accessModes": ["ReadWriteOnce", "ReadOnlyMany"]});
        let kept_apart =
            json!({"claimRef": {"name": "c", "namespace": "n"}, "storageClassName": "k"});
        let attributed = json!({"volumeAttributesClassName": "gold"});
        let mut going = volume("going", "2Gi", json!({}));
        going.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
        for (volumes, want) in [
            // One that can be accessed as wanted and no other way goes before a smaller one.
            (vec![volume("wide", "2Gi", wide), volume("large", "9Gi", json!({}))], Some("large")),
            // What is set aside need not be of the class.
            (vec![volume("apart", "9Gi", kept_apart)], Some("apart")),
            (vec![volume("gold", "2Gi", attributed.clone())], None),
            (vec![going], None),
        ] {
            assert_eq!(best(&claim(json!({})), &volumes, false).as_deref(), want);
        }
        let gold = [volume("gold", "2Gi", attributed.clone())];
        assert_eq!(best(&claim(attributed), &gold, false).as_deref(), Some("gold"));
    }
}
