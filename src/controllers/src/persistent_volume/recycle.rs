//! Volumes that are emptied by a pod when their claim is gone, and then free again (`Recycle`).
//!
//! Source: `pkg/volume/util/recyclerclient/recycler_client.go`, `pkg/volume/plugins.go`
//! (`NewPersistentVolumeRecyclerPodTemplate`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container, NFSVolumeSource, PersistentVolume, Pod, PodSpec, Volume, VolumeMount,
};
use kube::ResourceExt;
use kube::api::ObjectMeta;

use crate::pods;

/// Where the pods are.
pub const NAMESPACE: &str = "default";
/// The image of the pods.
const IMAGE: &str = "registry.k8s.io/build-image/debian-base:bookworm-v1.0.4";
/// Annotations of a pod: which volume it empties, and after which claim.
const VOLUME: &str = "rootlet.dev/recycled-volume-uid";
const CLAIM: &str = "rootlet.dev/recycled-claim-uid";
/// How long emptying may take.
const DEADLINE_S: i64 = 300;
const FOLDER: &str = "/scrub";
const SCRIPT: &str =
    "test -e /scrub && find /scrub -mindepth 1 -delete && test -z \"$(ls -A /scrub)\" || exit 1";

/// How far the emptying of a volume has got.
#[derive(Debug, PartialEq)]
pub enum Progress {
    /// A pod is to be made.
    Begin,
    /// Its pod is at it.
    Wait,
    /// A pod of that name is there that is not this time's.
    Foreign,
    /// It is empty.
    Done,
    /// It is not, and why.
    Failed(String),
}

/// The name of the pod that empties the volume.
pub fn pod_name(volume: &PersistentVolume) -> String {
    format!("recycler-for-{}", volume.name_any())
}

fn claim_uid(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.claim_ref.as_ref()?.uid.as_deref()
}

/// Whether the volume is `now` as it was `known`, as far as it matters for emptying it.
pub fn is_same(known: &PersistentVolume, now: &PersistentVolume) -> bool {
    let phase = |volume: &PersistentVolume| volume.status.as_ref().and_then(|s| s.phase.clone());
    known.metadata.uid == now.metadata.uid
        && claim_uid(known) == claim_uid(now)
        && phase(known) == phase(now)
        && now.metadata.deletion_timestamp.is_none()
}

/// The pod that empties the volume; none for kinds of volumes that are not emptied.
pub fn pod(volume: &PersistentVolume) -> Option<Pod> {
    let spec = volume.spec.as_ref()?;
    let share = |source: &NFSVolumeSource| NFSVolumeSource { read_only: None, ..source.clone() };
    let (host_path, nfs) = (spec.host_path.clone(), spec.nfs.as_ref().map(share));
    if host_path.is_none() && nfs.is_none() {
        return None;
    }
    let scrubbed = Volume { name: "vol".into(), host_path, nfs, ..Volume::default() };
    let mount =
        VolumeMount { name: "vol".into(), mount_path: FOLDER.into(), ..VolumeMount::default() };
    let container = Container {
        name: "pv-recycler".into(),
        image: Some(IMAGE.into()),
        command: Some(vec!["/bin/sh".into()]),
        args: Some(vec!["-c".into(), SCRIPT.into()]),
        volume_mounts: Some(vec![mount]),
        ..Container::default()
    };
    Some(Pod {
        metadata: ObjectMeta {
            name: Some(pod_name(volume)),
            namespace: Some(NAMESPACE.into()),
            annotations: Some(BTreeMap::from([
                (VOLUME.into(), volume.uid().unwrap_or_default()),
                (CLAIM.into(), claim_uid(volume).unwrap_or_default().into()),
            ])),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            active_deadline_seconds: Some(DEADLINE_S),
            restart_policy: Some("Never".into()),
            volumes: Some(vec![scrubbed]),
            containers: vec![container],
            ..PodSpec::default()
        }),
        status: None,
    })
}

/// How far the pod has got, if it is there; `wanted` is what it has to be.
pub fn progress(wanted: &Pod, found: Option<&Pod>) -> Progress {
    let Some(pod) = found else { return Progress::Begin };
    match pods::phase(pod) {
        // One that goes belongs to an earlier time.
        _ if pod.metadata.deletion_timestamp.is_some() => Progress::Wait,
        _ if [VOLUME, CLAIM]
            .iter()
            .any(|mark| pod.annotations().get(*mark) != wanted.annotations().get(*mark)) =>
        {
            Progress::Foreign
        }
        "Succeeded" => Progress::Done,
        "Failed" => {
            let message = pod.status.as_ref().and_then(|status| status.message.clone());
            let message =
                message.unwrap_or_else(|| "pod failed, pod.Status.Message unknown".into());
            Progress::Failed(message)
        }
        _ => Progress::Wait,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn folders_and_shares_are_emptied_by_a_pod() {
        let made = |source: Value| {
            let volume = json!({"metadata": {"name": "v"}, "spec": source});
            pod(&serde_json::from_value(volume).expect("a volume")).map(|pod| json!(pod))
        };
        let path = made(json!({"hostPath": {"path": "/data"}})).expect("a pod");
        assert_eq!(path["metadata"]["name"], "recycler-for-v");
        assert_eq!(path["spec"]["volumes"][0]["hostPath"], json!({"path": "/data"}));
        let share = json!({"nfs": {"server": "s", "path": "/exports", "readOnly": true}});
        let share = made(share).expect("a pod");
        let want = json!({"server": "s", "path": "/exports"});
        assert_eq!(share["spec"]["volumes"][0]["nfs"], want);
        assert_eq!(made(json!({"csi": {"driver": "d", "volumeHandle": "h"}})), None);
    }

    fn volume(volume: &str, claim: &str, phase: &str) -> PersistentVolume {
        let volume = json!({"metadata": {"name": "v", "uid": volume}, "status": {"phase": phase},
            "spec": {"hostPath": {"path": "/data"}, "claimRef": {"name": "c", "uid": claim}}});
        serde_json::from_value(volume).expect("a volume")
    }

    #[test]
    fn the_pod_tells_how_far_it_has_got() {
        let failed = |text: &str| Progress::Failed(text.into());
        let wanted = pod(&volume("v1", "c1", "Released")).expect("a pod");
        let other_volume = pod(&volume("v2", "c1", "Released")).expect("a pod");
        let other_claim = pod(&volume("v1", "c2", "Released")).expect("a pod");
        for (of, status, goes, want) in [
            (&wanted, json!({"phase": "Pending"}), false, Progress::Wait),
            (&wanted, json!({"phase": "Running"}), false, Progress::Wait),
            (&wanted, json!({"phase": "Succeeded"}), false, Progress::Done),
            (&wanted, json!({"phase": "Succeeded"}), true, Progress::Wait),
            (&wanted, json!({"phase": "Failed", "message": "no"}), false, failed("no")),
            (
                &wanted,
                json!({"phase": "Failed"}),
                false,
                failed("pod failed, pod.Status.Message unknown"),
            ),
            (&other_volume, json!({"phase": "Succeeded"}), false, Progress::Foreign),
            (&other_claim, json!({"phase": "Succeeded"}), false, Progress::Foreign),
            (&other_claim, json!({"phase": "Running"}), true, Progress::Wait),
            (&Pod::default(), json!({"phase": "Succeeded"}), false, Progress::Foreign),
        ] {
            let mut found = json!(of);
            found["status"] = status.clone();
            if goes {
                found["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            let found: Pod = serde_json::from_value(found).expect("a pod");
            assert_eq!(progress(&wanted, Some(&found)), want, "{status} {goes:?}");
        }
        assert_eq!(progress(&wanted, None), Progress::Begin);
    }

    #[test]
    fn only_what_is_still_so_is_emptied() {
        let known = volume("v", "c", "Released");
        let mut goes = known.clone();
        goes.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
        assert!(is_same(&known, &known));
        assert!(!is_same(&known, &goes));
        for (uid, claim, phase) in
            [("w", "c", "Released"), ("v", "d", "Released"), ("v", "c", "Available")]
        {
            assert!(!is_same(&known, &volume(uid, claim, phase)), "{uid} {claim} {phase}");
        }
    }
}
