//! The built-in provisioner: a folder of the cluster's data for each claim.
//!
//! It is what k3s' local-path provisioner is: a volume is a folder on one node, without a size limit.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm,
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
    VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::api::ObjectMeta;

/// The name classes give this provisioner.
pub const PROVISIONER: &str = "rootlet.dev/local-path";
/// Holds a volume until its folder is gone, or shall stay.
pub const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
/// Who made a volume.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// Why there is no volume for a claim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Folders are no block devices.
    #[error("volumes of mode Block are not supported by {PROVISIONER}")]
    Block,
    /// The folder cannot be made.
    #[error("cannot make the folder {path}")]
    Make {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The folder cannot be removed.
    #[error("cannot remove the folder {path}")]
    Remove {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// The name of the volume made for a claim.
pub fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.uid().unwrap_or_default())
}

/// Whether this provisioner made the volume.
pub fn is_ours(volume: &PersistentVolume) -> bool {
    volume.annotations().get(PROVISIONED_BY).is_some_and(|by| by == PROVISIONER)
}

/// Whether a volume goes with its claim.
fn is_deleted(policy: Option<&str>) -> bool {
    policy.unwrap_or("Delete") == "Delete"
}

/// The finalizers of a volume of this provisioner as its policy asks for them, where they differ from those it has.
pub fn finalizers(volume: &PersistentVolume) -> Option<Vec<String>> {
    let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
    let held = volume.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let mut all = volume.finalizers().to_vec();
    match (held, is_deleted(policy)) {
        // Nothing can be added to what is being deleted.
        (false, true) if volume.metadata.deletion_timestamp.is_none() => {
            all.push(FINALIZER.to_owned());
        }
        (true, false) => all.retain(|finalizer| finalizer != FINALIZER),
        _ => return None,
    }
    Some(all)
}

/// The volume for `claim` on `node`, below `base`.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    node: Option<&Node>,
    base: &Path,
) -> Result<PersistentVolume, Error> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(Error::Block);
    }
    let name = volume_name(claim);
    let (namespace, claim_name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let folder = base.join(format!("{name}_{namespace}_{claim_name}"));
    let requests = spec.resources.and_then(|resources| resources.requests);
    let affinity = node.map(|node| {
        let host = node.labels().get(HOSTNAME).cloned().unwrap_or_else(|| node.name_any());
        let requirement = NodeSelectorRequirement {
            key: HOSTNAME.into(),
            operator: "In".into(),
            values: Some(vec![host]),
        };
        let term = NodeSelectorTerm {
            match_expressions: Some(vec![requirement]),
            ..NodeSelectorTerm::default()
        };
        VolumeNodeAffinity { required: Some(NodeSelector { node_selector_terms: vec![term] }) }
    });
    Ok(PersistentVolume {
        metadata: ObjectMeta {
            name: Some(name),
            annotations: Some([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())].into()),
            finalizers: is_deleted(class.reclaim_policy.as_deref())
                .then(|| vec![FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeSpec {
            access_modes: spec.access_modes,
            capacity: requests.map(|mut all| {
                all.retain(|resource, _| resource == "storage");
                all
            }),
            claim_ref: Some(reference(claim)),
            host_path: Some(HostPathVolumeSource {
                path: folder.to_string_lossy().into_owned(),
                type_: Some("DirectoryOrCreate".into()),
            }),
            mount_options: class.mount_options.clone(),
            node_affinity: affinity,
            persistent_volume_reclaim_policy: class.reclaim_policy.clone(),
            storage_class_name: class.metadata.name.clone(),
            volume_mode: spec.volume_mode,
            ..PersistentVolumeSpec::default()
        }),
        status: None,
    })
}

/// The reference by which a volume names its claim.
pub fn reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("PersistentVolumeClaim".into()),
        namespace: claim.namespace(),
        name: claim.metadata.name.clone(),
        uid: claim.uid(),
        resource_version: claim.resource_version(),
        ..ObjectReference::default()
    }
}

fn folder(volume: &PersistentVolume) -> Option<PathBuf> {
    let path = volume.spec.as_ref()?.host_path.as_ref().map(|source| source.path.clone())?;
    Some(PathBuf::from(path))
}

/// Makes the volume's folder, open to whatever user its pod runs as.
pub async fn make(volume: &PersistentVolume) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let Some(path) = folder(volume) else { return Ok(()) };
    let made = async {
        tokio::fs::create_dir_all(&path).await?;
        tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).await
    };
    made.await.map_err(|source| Error::Make { path: path.clone(), source })
}

/// Removes the volume's folder with what is in it; only below `base`, whatever the volume says.
pub async fn remove(volume: &PersistentVolume, base: &Path) -> Result<(), Error> {
    let Some(path) = folder(volume) else { return Ok(()) };
    if path.parent() != Some(base) {
        return Ok(());
    }
    match tokio::fs::remove_dir_all(&path).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Remove { path, source: error })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_volume_is_a_folder_on_its_node() {
        let claim: PersistentVolumeClaim = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .expect("a claim");
        let class: StorageClass = serde_json::from_value(
            json!({"metadata": {"name": "k"}, "provisioner": PROVISIONER, "reclaimPolicy": "Delete"}),
        )
        .expect("a class");
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "m", "labels": {HOSTNAME: "h"}}}))
                .expect("a node");
        let made = volume(&claim, &class, Some(&node), Path::new("/data")).expect("a volume");
        let told = serde_json::to_value(&made).expect("JSON");
        assert_eq!(told["metadata"]["name"], "pvc-u");
        assert_eq!(told["metadata"]["finalizers"], json!([FINALIZER]));
        assert_eq!(told["spec"]["hostPath"]["path"], "/data/pvc-u_n_c");
        assert_eq!(told["spec"]["capacity"]["storage"], "1Gi");
        let terms = &told["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"];
        assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["h"]));
        let mut kept = class.clone();
        kept.reclaim_policy = Some("Retain".into());
        let kept = volume(&claim, &kept, Some(&node), Path::new("/data")).expect("a volume");
        assert!(kept.finalizers().is_empty());
        let mut block = claim;
        block.spec.as_mut().expect("a spec").volume_mode = Some("Block".into());
        assert!(matches!(volume(&block, &class, None, Path::new("/")), Err(Error::Block)));
    }

    #[test]
    fn volumes_are_held_as_long_as_their_folders_are_to_go() {
        let (both, other, none) = (json!([FINALIZER, "x"]), json!(["x"]), json!([]));
        for (policy, held, ends, want) in [
            ("Delete", &both, false, None),
            ("Delete", &other, false, Some(vec!["x", FINALIZER])),
            ("Delete", &none, true, None),
            ("Retain", &both, false, Some(vec!["x"])),
            ("Retain", &both, true, Some(vec!["x"])),
            ("Retain", &other, false, None),
        ] {
            let ends = ends.then_some("2026-01-01T00:00:00Z");
            let volume = json!({"metadata": {"name": "v", "finalizers": held,
                "deletionTimestamp": ends}, "spec": {"persistentVolumeReclaimPolicy": policy}});
            let got = finalizers(&serde_json::from_value(volume).expect("a volume"));
            let want = want.map(|all| all.into_iter().map(str::to_owned).collect());
            assert_eq!(got, want, "{policy} {held} {ends:?}");
        }
    }
}
