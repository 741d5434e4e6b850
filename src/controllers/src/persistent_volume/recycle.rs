//! Volumes that are emptied by a pod when their claim is gone, and then free again (`Recycle`).
//!
//! Source: `pkg/volume/util/recyclerclient/recycler_client.go`, `pkg/volume/plugins.go`
//! (`NewPersistentVolumeRecyclerPodTemplate`).

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
    /// It is empty.
    Done,
    /// It is not, and why.
    Failed(String),
}

/// The name of the pod that empties the volume.
pub fn pod_name(volume: &PersistentVolume) -> String {
    format!("recycler-for-{}", volume.name_any())
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

/// How far the pod has got, if it is there.
pub fn progress(found: Option<&Pod>) -> Progress {
    let Some(pod) = found else { return Progress::Begin };
    match pods::phase(pod) {
        // One that goes belongs to an earlier time.
        _ if pod.metadata.deletion_timestamp.is_some() => Progress::Wait,
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

    #[test]
    fn the_pod_tells_how_far_it_has_got() {
        let failed = |text: &str| Progress::Failed(text.into());
        for (status, goes, want) in [
            (json!({"phase": "Pending"}), false, Progress::Wait),
            (json!({"phase": "Running"}), false, Progress::Wait),
            (json!({"phase": "Succeeded"}), false, Progress::Done),
            (json!({"phase": "Succeeded"}), true, Progress::Wait),
            (json!({"phase": "Failed", "message": "no"}), false, failed("no")),
            (json!({"phase": "Failed"}), false, failed("pod failed, pod.Status.Message unknown")),
        ] {
            let goes = goes.then_some("2026-01-01T00:00:00Z");
            let pod = json!({"metadata": {"deletionTimestamp": goes}, "status": status});
            let pod: Pod = serde_json::from_value(pod).expect("a pod");
            assert_eq!(progress(Some(&pod)), want, "{status} {goes:?}");
        }
        assert_eq!(progress(None), Progress::Begin);
    }
}
