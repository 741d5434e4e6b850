//! A CSI driver of the tests' own, over real gRPC: its volumes are folders. It has no sidecars but a registrar; what
//! they would do is asked for in process.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Request, Response};
use plugin::proto::*;
use plugin::serve::{self, Body, Status};
use serde_json::{Value, json};

use crate::harness::{BUSYBOX, Cluster, eventually};

const NAME: &str = "folders.example.com";

/// What the driver has, by volume.
#[derive(Default)]
struct State {
    /// Sizes of volumes.
    volumes: BTreeMap<String, i64>,
    /// Nodes that volumes are attached to.
    attached: BTreeMap<String, String>,
    made: Option<CreateVolume>,
    published: Option<Publish>,
    expanded_on_node: Option<i64>,
}

#[derive(Clone)]
struct Folders {
    /// The kubelet's folder.
    kubelet: PathBuf,
    state: Arc<Mutex<State>>,
}

fn kinds(all: &[i32]) -> Vec<ControllerCapability> {
    all.iter().map(|kind| ControllerCapability { rpc: Some(Kind { r#type: *kind }) }).collect()
}

impl Folders {
    /// Registers with the kubelet of `cluster`.
    fn start(cluster: &Cluster) -> (Self, tokio::runtime::Runtime) {
        let kubelet = cluster.path("data/rootlet").join(&cluster.name).join("kubelet");
        let driver = Self { kubelet: kubelet.clone(), state: Arc::default() };
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads");
        let folder = kubelet.join("plugins_registry");
        eventually("the kubelet's folder is there", || {
            folder.is_dir().then_some(()).ok_or_else(|| format!("no {}", folder.display()))
        });
        let handler: serve::Handler = {
            let driver = driver.clone();
            Arc::new(move |request| Box::pin(driver.clone().answer(request)))
        };
        let listener = threads.block_on(async {
            // The path of a socket must be short.
            std::env::set_current_dir(&folder).expect("the folder is there");
            tokio::net::UnixListener::bind("folders.sock").expect("the socket is free")
        });
        threads.spawn(serve::serve(listener, handler));
        (driver, threads)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    fn place(&self, path: &str) -> PathBuf {
        match Path::new(path).strip_prefix("/var/lib/kubelet") {
            Ok(rest) => self.kubelet.join(rest),
            Err(_) => path.into(),
        }
    }

    fn data(&self, volume: &str) -> PathBuf {
        self.kubelet.join("plugins").join(NAME).join(volume)
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        match method.as_str() {
            "GetInfo" => {
                let info = PluginInfo {
                    r#type: "CSIPlugin".into(),
                    name: NAME.into(),
                    endpoint: String::new(),
                    supported_versions: vec!["1.11.0".into()],
                };
                serve::unary(request, move |_: Empty| Ok(info.clone())).await
            }
            "NotifyRegistrationStatus" => {
                serve::unary(request, |_: RegistrationStatus| Ok(Empty {})).await
            }
            "GetPluginCapabilities" => {
                let service = |kind| PluginCapability {
                    service: Some(Kind { r#type: kind }),
                    volume_expansion: None,
                };
                let capabilities =
                    vec![service(CONTROLLER_SERVICE), service(ACCESSIBILITY_CONSTRAINTS)];
                let all = PluginCapabilities { capabilities };
                serve::unary(request, move |_: Empty| Ok(all.clone())).await
            }
            method if method.starts_with("Node") => self.node(method, request).await,
            method => self.controller(method, request).await,
        }
    }

    async fn controller(self, method: &str, request: Request<Body>) -> Response<Body> {
        match method {
            "ControllerGetCapabilities" => {
                let all =
                    [CREATE_DELETE, PUBLISH_UNPUBLISH, GET_CAPACITY, CLONE, CONTROLLER_EXPAND];
                let all = ControllerCapabilities { capabilities: kinds(&all) };
                serve::unary(request, move |_: Empty| Ok(all.clone())).await
            }
            "CreateVolume" => serve::unary(request, move |asked| self.create(asked)).await,
            "DeleteVolume" => {
                let work = move |asked: DeleteVolume| {
                    self.state().volumes.remove(&asked.volume_id);
                    let _ = std::fs::remove_dir_all(self.data(&asked.volume_id));
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            "ControllerPublishVolume" => {
                let work = move |asked: ControllerPublish| {
                    self.state().attached.insert(asked.volume_id.clone(), asked.node_id);
                    let told = [("device".to_owned(), asked.volume_id)];
                    Ok(ControllerPublished { publish_context: told.into() })
                };
                serve::unary(request, work).await
            }
            "ControllerUnpublishVolume" => {
                let work = move |asked: ControllerUnpublish| {
                    self.state().attached.remove(&asked.volume_id);
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            "ControllerExpandVolume" => {
                let work = move |asked: ControllerExpand| {
                    let bytes = asked.capacity_range.unwrap_or_default().required_bytes;
                    if bytes > 8 << 30 {
                        return Err(Status::out_of_range("no volume is so large"));
                    }
                    self.state().volumes.insert(asked.volume_id, bytes);
                    Ok(ControllerExpanded { capacity_bytes: bytes, node_expansion_required: true })
                };
                serve::unary(request, work).await
            }
            "GetCapacity" => {
                let room = Capacity { available_capacity: 8 << 30, maximum_volume_size: None };
                serve::unary(request, move |_: GetCapacity| Ok(room.clone())).await
            }
            _ => serve::unary(request, |_: Empty| Err::<Empty, _>(Status::unimplemented(""))).await,
        }
    }

    fn create(&self, asked: CreateVolume) -> Result<CreatedVolume, Status> {
        if asked.parameters.get("tier").is_some_and(|tier| tier == "gold") {
            return Err(Status::invalid_argument("there is no gold"));
        }
        let id = format!("id-{}", asked.name);
        let bytes = asked.capacity_range.clone().unwrap_or_default().required_bytes;
        std::fs::create_dir_all(self.data(&id)).map_err(|e| Status::internal(e.to_string()))?;
        if let Some(source) = asked.volume_content_source.as_ref().and_then(|s| s.volume.as_ref()) {
            let from = self.data(&source.volume_id).join("word");
            std::fs::copy(from, self.data(&id).join("word"))
                .map_err(|e| Status::internal(e.to_string()))?;
        }
        let preferred = asked.accessibility_requirements.clone().unwrap_or_default().preferred;
        let made = MadeVolume {
            capacity_bytes: bytes,
            volume_id: id.clone(),
            volume_context: [("colour".to_owned(), "blue".to_owned())].into(),
            content_source: asked.volume_content_source.clone(),
            accessible_topology: preferred.into_iter().take(1).collect(),
        };
        let mut state = self.state();
        state.volumes.insert(id, bytes);
        state.made = Some(asked);
        Ok(CreatedVolume { volume: Some(made) })
    }

    async fn node(self, method: &str, request: Request<Body>) -> Response<Body> {
        match method {
            "NodeGetInfo" => {
                let segments: HashMap<String, String> =
                    [("example.com/shelf".to_owned(), "top".to_owned())].into();
                let info = NodeInfo {
                    node_id: "this-node".into(),
                    max_volumes_per_node: 0,
                    accessible_topology: Some(Topology { segments }),
                };
                serve::unary(request, move |_: Empty| Ok(info.clone())).await
            }
            "NodeGetCapabilities" => {
                let can = |r#type| NodeCapability { rpc: Some(NodeRpc { r#type }) };
                let all = NodeCapabilities { capabilities: vec![can(EXPAND)] };
                serve::unary(request, move |_: Empty| Ok(all.clone())).await
            }
            "NodePublishVolume" => {
                let work = move |asked: Publish| {
                    // Without privileges a driver cannot mount; its volume's folder is reached by a link.
                    let (target, data) =
                        (self.place(&asked.target_path), self.data(&asked.volume_id));
                    if !target.is_symlink() {
                        std::os::unix::fs::symlink(data, target)
                            .map_err(|e| Status::internal(e.to_string()))?;
                    }
                    self.state().published = Some(asked);
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            "NodeUnpublishVolume" => {
                let work = move |asked: Undo| {
                    let _ = std::fs::remove_file(self.place(&asked.path));
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
            _ => {
                let work = move |asked: Expand| {
                    let bytes = asked.capacity_range.unwrap_or_default().required_bytes;
                    self.state().expanded_on_node = Some(bytes);
                    Ok(Empty {})
                };
                serve::unary(request, work).await
            }
        }
    }
}

/// The driver's objects, and its class with a secret.
fn objects(served_by: Option<&str>) -> String {
    let annotations = served_by.map(|node| json!({"rootlet.dev/csi-controller": node}));
    let items = [
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
            "metadata": {"name": NAME, "annotations": annotations},
            "spec": {"attachRequired": true, "storageCapacity": served_by.is_some()}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": "default"},
            "stringData": {"word": "sesame"}}),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "folders"},
            "provisioner": NAME, "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": true, "parameters": {"tier": "silver",
            "csi.storage.k8s.io/provisioner-secret-name": "key",
            "csi.storage.k8s.io/provisioner-secret-namespace": "${pvc.namespace}"}}),
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "gold"},
            "provisioner": NAME, "parameters": {"tier": "gold"}}),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

fn claim(name: &str, class: &str, more: &Value) -> String {
    let mut spec = json!({"storageClassName": class, "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn user(name: &str, claim: &str, script: &str) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}],
        "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "v", "mountPath": "/data"}]}]}})
    .to_string()
}

#[test]
fn volumes_of_a_driver_without_sidecars_are_made_attached_enlarged_and_deleted() {
    let cluster = Cluster::ephemeral();
    let (driver, _threads) = Folders::start(&cluster);
    let node = format!("rootlet-{}", cluster.name);
    cluster.apply(&objects(None));
    cluster.apply(&claim("data", "folders", &json!({})));
    cluster.apply(&user("writer", "data", "echo hello >/data/word; exec sleep 1000"));

    // A driver that names no node brings its own sidecars.
    cluster.event("data", "ExternalProvisioning");
    assert!(driver.state().made.is_none());
    cluster.apply(&objects(Some(&node)));
    cluster.pod_ready("writer");
    let made = driver.state().made.clone().expect("it was asked");
    assert_eq!(made.secrets["word"], "sesame");
    assert_eq!(made.parameters, [("tier".to_owned(), "silver".to_owned())].into());
    let wanted = made.accessibility_requirements.expect("places");
    assert_eq!(wanted.preferred[0].segments["example.com/shelf"], "top");
    let claimed = cluster.get(&["pvc", "data"]).expect("the claim");
    let name = format!("pvc-{}", claimed["metadata"]["uid"].as_str().expect("a uid"));
    assert_eq!(made.name, name);
    let volume = cluster.get(&["pv", &name]).expect("the volume");
    assert_eq!(volume["metadata"]["annotations"]["pv.kubernetes.io/provisioned-by"], NAME);
    let finalizers = volume["metadata"]["finalizers"].to_string();
    for finalizer in [
        "external-provisioner.volume.kubernetes.io/finalizer",
        "external-attacher/folders.example.com",
    ] {
        assert!(finalizers.contains(finalizer), "{finalizers}");
    }
    let place = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0];
    assert_eq!(place["matchExpressions"][0]["values"], json!(["top"]));
    cluster.event("data", "ProvisioningSucceeded");
    let attachment = cluster.get(&["volumeattachments"]).expect("a list")["items"][0].clone();
    assert_eq!(attachment["status"]["attached"], true);
    assert_eq!(attachment["status"]["attachmentMetadata"]["device"], format!("id-{name}"));
    assert_eq!(driver.state().attached[&format!("id-{name}")], "this-node");
    let published = driver.state().published.clone().expect("it was published");
    assert_eq!(published.volume_context["colour"], "blue");
    assert_eq!(published.publish_context["device"], format!("id-{name}"));
    let room = cluster.get(&["csistoragecapacities", "-n", "kube-system"]).expect("a list");
    assert!(room["items"].to_string().contains("\"8Gi\""), "{room}");

    enlarges(&cluster, &driver);
    clones(&cluster, &driver);

    // What a driver refuses is told.
    cluster.apply(&claim("gold", "gold", &json!({})));
    let told = cluster.event("gold", "ProvisioningFailed");
    let wanted = "failed to provision volume with StorageClass \"gold\": rpc error: code = InvalidArgument desc = there is no gold";
    assert_eq!(told, wanted);

    cluster.kubectl_ok(&["delete", "pod", "writer", "reader"]);
    cluster.kubectl_ok(&["delete", "pvc", "data", "copy"]);
    eventually("the volumes are deleted", || match driver.state().volumes.len() {
        0 => Ok(()),
        left => Err(format!("{left} left")),
    });
    eventually("nothing of them is in the API", || {
        match cluster.kubectl_ok(&["get", "pv,volumeattachments", "-o", "name"]).as_str() {
            "" => Ok(()),
            left => Err(left.to_owned()),
        }
    });
    assert!(driver.state().attached.is_empty());
}

/// A claim that asks for more gets it, from the controller and on the node; one that asks for too much hears of it.
fn enlarges(cluster: &Cluster, driver: &Folders) {
    let ask = |size: &str| {
        let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}}).to_string();
        cluster.kubectl_ok(&["patch", "pvc", "data", "-p", &patch]);
    };
    ask("2Gi");
    eventually("the claim is told its new size", || {
        let claim = cluster.get(&["pvc", "data"])?;
        let told = claim["status"]["capacity"]["storage"] == "2Gi"
            && claim["status"]["conditions"].as_array().is_none_or(Vec::is_empty);
        told.then_some(()).ok_or_else(|| claim["status"].to_string())
    });
    assert_eq!(driver.state().expanded_on_node, Some(2 << 30));
    assert_eq!(
        cluster.event("data", "FileSystemResizeRequired"),
        "Require file system resize of volume on node"
    );
    ask("100Gi");
    eventually("the claim is told that it cannot be", || {
        let claim = cluster.get(&["pvc", "data"])?;
        let state = &claim["status"]["allocatedResourceStatuses"]["storage"];
        (state == "ControllerResizeInfeasible")
            .then_some(())
            .ok_or_else(|| claim["status"].to_string())
    });
    ask("3Gi");
    eventually("a smaller wish is granted", || {
        let claim = cluster.get(&["pvc", "data"])?;
        let told = claim["status"]["capacity"]["storage"] == "3Gi";
        told.then_some(()).ok_or_else(|| claim["status"].to_string())
    });
}

/// A claim with another as its source begins with what that has.
fn clones(cluster: &Cluster, driver: &Folders) {
    let source = json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"},
        "resources": {"requests": {"storage": "3Gi"}}});
    cluster.apply(&claim("copy", "folders", &source));
    cluster.apply(&user("reader", "copy", "cat /data/word; exec sleep 1000"));
    cluster.pod_ready("reader");
    assert_eq!(cluster.kubectl_ok(&["logs", "reader"]), "hello\n");
    assert_eq!(driver.state().volumes.len(), 2);
}
