//! A small CSI driver of the tests' own, over a real socket.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plugin::serve::{self, Body};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::fake::node::Node;
use crate::node::machine;
use plugin::proto::*;

const DRIVER: &str = "folders.example.com";

/// Publishes folders: what it is told is kept for the test.
#[derive(Clone)]
struct Folders {
    root: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
    published: Arc<Mutex<Option<Publish>>>,
}

impl Folders {
    fn node_path(&self, path: &str) -> PathBuf {
        self.root.join(Path::new(path).strip_prefix("/var/lib/kubelet").unwrap())
    }

    async fn serve(self, request: Request<Body>) -> Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
        self.calls.lock().unwrap().push(method.clone());
        match method.as_str() {
            "GetInfo" => {
                let info = PluginInfo {
                    r#type: "CSIPlugin".into(),
                    name: DRIVER.into(),
                    endpoint: "/var/lib/kubelet/plugins_registry/folders.sock".into(),
                    supported_versions: vec!["1.0.0".into()],
                };
                serve::unary(request, move |_: Empty| Ok(info.clone())).await
            }
            "NodeGetInfo" => {
                let segments = [("example.com/zone".to_owned(), "z1".to_owned())].into();
                let info = NodeInfo {
                    node_id: "node-1".into(),
                    max_volumes_per_node: 7,
                    accessible_topology: Some(Topology { segments }),
                };
                serve::unary(request, move |_: Empty| Ok(info.clone())).await
            }
            "NodeGetCapabilities" => {
                let can = |r#type| NodeCapability { rpc: Some(NodeRpc { r#type }) };
                let all = NodeCapabilities { capabilities: vec![can(STAGE), can(EXPAND)] };
                serve::unary(request, move |_: Empty| Ok(all.clone())).await
            }
            "NodePublishVolume" => {
                let work = move |publish: Publish| {
                    if publish.volume_id.is_empty() {
                        return Err(serve::Status::invalid_argument("no volume"));
                    }
                    let target = self.node_path(&publish.target_path);
                    std::fs::create_dir_all(&target).unwrap();
                    std::fs::write(target.join("hello"), "from the driver").unwrap();
                    *self.published.lock().unwrap() = Some(publish);
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            "NodeUnpublishVolume" => {
                let work = move |undo: Undo| {
                    std::fs::remove_dir_all(self.node_path(&undo.path)).unwrap();
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            "NodeStageVolume" => serve::unary(request, |_: Stage| Ok(Empty {})).await,
            "NodeExpandVolume" => {
                let work = move |expand: Expand| {
                    let range = expand.capacity_range.unwrap_or_default();
                    let file = self.node_path(&expand.volume_path).join("size");
                    std::fs::write(file, range.required_bytes.to_string()).unwrap();
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            "NodeUnstageVolume" => serve::unary(request, |_: Undo| Ok(Empty {})).await,
            _ => serve::unary(request, |_: RegistrationStatus| Ok(Empty {})).await,
        }
    }
}

fn listen(driver: Folders, socket: &Path) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let handler: serve::Handler = Arc::new(move |request| Box::pin(driver.clone().serve(request)));
    tokio::spawn(serve::serve(listener, handler));
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), wait).await.is_ok(), "not seen: {what}");
}

#[tokio::test]
async fn a_drivers_volume_is_staged_published_and_given_back() {
    let node = Node::new();
    let context = node.context(machine::read());
    node.api.put(
        "/api/v1/nodes/n",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}),
    );
    let about = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
        "spec": {"attachRequired": false, "podInfoOnMount": true, "volumeLifecycleModes": ["Persistent"]}});
    node.api.put(&format!("/apis/storage.k8s.io/v1/csidrivers/{DRIVER}"), about);
    let driver = Folders {
        root: context.root_dir.clone(),
        calls: Arc::default(),
        published: Arc::default(),
    };
    let calls = driver.calls.clone();
    let published = driver.published.clone();
    let registry = context.root_dir.join("plugins_registry");
    std::fs::create_dir_all(&registry).unwrap();
    listen(driver, &registry.join("folders.sock"));
    let stop = CancellationToken::new();
    let watching = tokio::spawn(run(context.clone(), stop.clone()));
    let node_id =
        |object: Option<&Value>| object.map(|n| n["spec"]["drivers"][0]["nodeID"].clone());
    let path = "/apis/storage.k8s.io/v1/csinodes/n";
    let told =
        node.api.until(path, "CSINode", |o| node_id(o) == Some("node-1".into())).await.unwrap();
    assert_eq!(told["spec"]["drivers"][0]["topologyKeys"], json!(["example.com/zone"]));
    assert_eq!(told["spec"]["drivers"][0]["allocatable"]["count"], 7);
    until("the driver has registered", || context.drivers.endpoint(DRIVER).is_some()).await;

    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u1"},
        "spec": {"containers": [], "serviceAccountName": "default"}}))
        .unwrap();
    let spec: PersistentVolumeSpec =
        serde_json::from_value(json!({"accessModes": ["ReadWriteMany"],
        "csi": {"driver": DRIVER, "volumeHandle": "v1", "volumeAttributes": {"size": "small"}}}))
        .unwrap();
    let volume = Volume::persistent("pv1", &spec, spec.csi.as_ref().unwrap());
    let target = publish(&context, &pod, &volume).await.unwrap().path;
    assert_eq!(held(&context.root_dir), [format!("kubernetes.io/csi/{DRIVER}^v1")]);
    assert_eq!(std::fs::read_to_string(target.join("hello")).unwrap(), "from the driver");
    let asked = published.lock().unwrap().clone().unwrap();
    assert_eq!(asked.volume_context["size"], "small");
    assert_eq!(asked.volume_context["csi.storage.k8s.io/pod.name"], "p");
    assert_eq!(asked.volume_capability.unwrap().access_mode.unwrap().mode, 5);
    assert!(asked.staging_target_path.starts_with("/var/lib/kubelet/plugins/kubernetes.io/csi/"));

    // What was made larger for it grows on the node, and the claim hears of it.
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "namespace": "ns"}, "spec": {"volumeName": "pv1"},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"},
            "conditions": [{"type": "FileSystemResizePending", "status": "True"}]}});
    let of_claim = "/api/v1/namespaces/ns/persistentvolumeclaims/c";
    node.api.put(of_claim, claim.clone());
    let larger = PersistentVolumeSpec {
        capacity: Some([("storage".to_owned(), Quantity("2Gi".into()))].into()),
        ..spec.clone()
    };
    let growth = Growth::of(&serde_json::from_value(claim).unwrap(), &larger).unwrap();
    expand(&context, &pod, &volume, &growth).await.unwrap();
    assert_eq!(std::fs::read_to_string(target.join("size")).unwrap(), (1_u64 << 31).to_string());
    let told = node.api.get(of_claim).unwrap();
    assert_eq!(told["status"]["capacity"]["storage"], "2Gi");

    // Its driver is asked for no volume of a kind that it does not offer.
    let source = CSIVolumeSource { driver: DRIVER.into(), ..CSIVolumeSource::default() };
    let refused = publish(&context, &pod, &Volume::inline(&pod, "v", &source)).await;
    assert!(matches!(refused, Err(Error::Mode(..))));

    give_back(&context, "u1").await.unwrap();
    assert!(!target.exists() && !holds(&context.root_dir, "u1"));
    assert!(held(&context.root_dir).is_empty());
    assert_eq!(
        calls.lock().unwrap()[..],
        [
            "GetInfo",
            "NodeGetInfo",
            "NotifyRegistrationStatus",
            "NodeGetCapabilities",
            "NodeStageVolume",
            "NodePublishVolume",
            "NodeGetCapabilities",
            "NodeExpandVolume",
            "NodeUnpublishVolume",
            "NodeUnstageVolume"
        ]
    );
    std::fs::remove_file(registry.join("folders.sock")).unwrap();
    until("the driver is gone", || context.drivers.endpoint(DRIVER).is_none()).await;
    stop.cancel();
    watching.await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_not_attached_waits() {
    let node = Node::new();
    let context = node.context(machine::read());
    let volume = Volume {
        driver: DRIVER.into(),
        handle: "v1".into(),
        spec_name: "pv1".into(),
        ..Volume::default()
    };
    let about = CSIDriverSpec::default();
    let waits = attachment(&context, &volume, &about).await.unwrap_err();
    assert_eq!(waits.to_string(), "kubernetes.io/csi: attachment for pv1 is not ready");
    let name = format!("csi-{}", place::hex(&["v1", DRIVER, "n"]));
    let path = format!("/apis/storage.k8s.io/v1/volumeattachments/{name}");
    node.api.put(
        &path,
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": {"name": name}, "spec": {"attacher": DRIVER, "nodeName": "n", "source": {}},
        "status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}}),
    );
    assert_eq!(attachment(&context, &volume, &about).await.unwrap()["device"], "/dev/x");
}
