//! Static pods: manifests in a folder of the node, run without anybody's asking, and shown in the API
//! by mirror pods.
//!
//! Source of behaviour: `pkg/kubelet/config/file.go`, `config/common.go` (`applyDefaults`),
//! `pkg/kubelet/pod/mirror_client.go`, the static pods page of the Kubernetes documentation.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};

use crate::context::Context;
use crate::pod::{self, CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE};

/// A pod's namespace and name.
pub type Name = (String, String);

/// What is wrong with files of the folder, as it was told last.
pub type Wrong = BTreeMap<PathBuf, String>;

/// The pods that the folder's manifests describe; one that cannot be read is told, once, and left out.
pub fn read(folder: &Path, node: &str, wrong: &mut Wrong) -> BTreeMap<Name, Arc<Pod>> {
    let told = std::mem::take(wrong);
    let mut tell = |path: &Path, what: String| {
        if told.get(path) != Some(&what) {
            tracing::warn!(path = %path.display(), "static pods: {what}");
        }
        wrong.insert(path.to_owned(), what);
    };
    let mut out = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            tell(folder, format!("the folder cannot be read: {error}"));
            return out;
        }
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        match parse(&text, &name, node) {
            Ok(pod) => {
                let key = (pod::namespace(&pod).to_owned(), pod::name(&pod).to_owned());
                if out.insert(key, Arc::new(pod)).is_some() {
                    tell(&path, "two pods of one name; the later file counts".into());
                }
            }
            Err(error) => tell(&path, format!("not a pod: {error}")),
        }
    }
    out
}

/// A manifest as the pod it stands for, with what the API server would have filled in.
fn parse(text: &str, file: &str, node: &str) -> Result<Pod, String> {
    let value = apimachinery::decode::yaml_to_value(text).map_err(|e| e.to_string())?;
    let kind = (value["apiVersion"].as_str(), value["kind"].as_str());
    if kind != (Some("v1"), Some("Pod")) {
        return Err(format!("it is no v1 Pod but {kind:?}"));
    }
    let hash = fnv128(&[node, file, &value.to_string()]);
    let mut pod: Pod = serde_json::from_value(value).map_err(|e| e.to_string())?;
    let name = pod.metadata.name.clone().filter(|n| !n.is_empty()).ok_or("it has no name")?;
    pod.metadata.name = Some(format!("{name}-{}", node.to_lowercase()));
    pod.metadata.namespace.get_or_insert_with(|| "default".into());
    pod.metadata.uid = Some(hash.clone());
    pod.metadata.generation = Some(1);
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), hash);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert("kubernetes.io/config.seen".into(), jiff::Timestamp::now().to_string());
    pod.status = None;
    let spec = pod.spec.as_mut().ok_or("it has no spec")?;
    if spec.containers.is_empty() {
        return Err("it has no containers".into());
    }
    spec.node_name = Some(node.into());
    spec.automount_service_account_token = Some(false);
    // A static pod stays whatever the node's taints say.
    spec.tolerations.get_or_insert_default().push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    let containers = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
    for container in containers {
        let image = container.image.clone().unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or_default();
        let latest = !last.contains('@') && last.split_once(':').is_none_or(|(_, t)| t == "latest");
        container
            .image_pull_policy
            .get_or_insert_with(|| if latest { "Always" } else { "IfNotPresent" }.into());
    }
    Ok(pod)
}

/// FNV-1a of 128 bits, as text: what tells one manifest from another.
fn fnv128(parts: &[&str]) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}

/// Mirror pods of this node, and the static pods they are to show.
#[derive(Default)]
pub struct Mirrors {
    pods: HashMap<Name, Arc<Pod>>,
}

impl Mirrors {
    /// The mirror of the static pod with this name.
    pub fn get(&self, name: &Name) -> Option<Arc<Pod>> {
        self.pods.get(name).cloned()
    }

    /// Takes note of a mirror pod as the API has it.
    pub fn seen(&mut self, mirror: Arc<Pod>) -> Name {
        let name = (pod::namespace(&mirror).to_owned(), pod::name(&mirror).to_owned());
        self.pods.insert(name.clone(), mirror);
        name
    }

    /// The mirror pod is gone from the API.
    pub fn gone(&mut self, mirror: &Pod) -> Name {
        let name = (pod::namespace(mirror).to_owned(), pod::name(mirror).to_owned());
        self.pods.remove(&name);
        name
    }

    /// Brings the mirrors in line with the static pods.
    pub async fn reconcile(&self, context: &Context, pods: &BTreeMap<Name, Arc<Pod>>) {
        for (name, mirror) in &self.pods {
            let hash = annotation(mirror, CONFIG_MIRROR);
            let right = pods.get(name).is_some_and(|p| Some(pod::uid(p)) == hash);
            if !right || mirror.metadata.deletion_timestamp.is_some() {
                delete(context, mirror).await;
            }
        }
        for (name, of) in pods {
            if !self.pods.contains_key(name)
                && let Err(error) = create(context, of).await
            {
                tracing::debug!(pod = pod::full_name(of), %error, "mirror pod not made, trying again");
            }
        }
    }
}

fn annotation<'a>(of: &'a Pod, key: &str) -> Option<&'a str> {
    of.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

async fn create(context: &Context, of: &Pod) -> Result<(), kube::Error> {
    let nodes: Api<Node> = Api::all(context.client.clone());
    let node = nodes.get(&context.node_name).await?;
    let mut mirror = of.clone();
    let metadata = &mut mirror.metadata;
    let hash = metadata.uid.take().unwrap_or_default();
    metadata.generation = None;
    metadata.annotations.get_or_insert_default().insert(CONFIG_MIRROR.into(), hash);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: context.node_name.clone(),
        uid: node.metadata.uid.unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    }]);
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), pod::namespace(of));
    match pods.create(&PostParams::default(), &mirror).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}

async fn delete(context: &Context, mirror: &Pod) {
    let pods: Api<Pod> = Api::namespaced(context.client.clone(), pod::namespace(mirror));
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: mirror.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match pods.delete(pod::name(mirror), &parameters).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
        Err(error) => {
            tracing::debug!(pod = pod::full_name(mirror), %error, "mirror pod not deleted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_pods_of_the_node() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: x}, {name: b, image: 'r:5000/x:1'}]}\n";
        let pod = parse(text, "web.yaml", "N1").unwrap();
        assert_eq!((pod::name(&pod), pod::namespace(&pod)), ("web-n1", "default"));
        assert!(pod::is_static(&pod));
        assert_eq!(annotation(&pod, CONFIG_HASH), Some(pod::uid(&pod)));
        let policies: Vec<_> =
            pod::containers(&pod).iter().map(|c| c.image_pull_policy.as_deref()).collect();
        assert_eq!(policies, [Some("Always"), Some("IfNotPresent")]);
        let other = parse(&text.replace("image: x", "image: z"), "web.yaml", "N1").unwrap();
        assert_ne!(pod::uid(&other), pod::uid(&pod));
        assert!(parse("kind: List", "x", "n").is_err());
        assert!(parse("{apiVersion: v1, kind: Pod, spec: {}}", "x", "n").is_err());
    }

    #[test]
    fn only_manifests_count() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}}"#;
        std::fs::write(folder.path().join("a.json"), manifest).unwrap();
        std::fs::write(folder.path().join(".a.swp"), manifest.replace("\"a\"", "\"b\"")).unwrap();
        std::fs::write(folder.path().join("README"), "hello: [").unwrap();
        let mut wrong = Wrong::new();
        let names: Vec<Name> = read(folder.path(), "n", &mut wrong).into_keys().collect();
        assert_eq!(names, [("default".to_owned(), "a-n".to_owned())]);
        let readme = folder.path().join("README");
        assert_eq!(wrong.keys().collect::<Vec<_>>(), [&readme]);
        std::fs::remove_file(readme).unwrap();
        read(folder.path(), "n", &mut wrong);
        assert!(wrong.is_empty());
    }
}
