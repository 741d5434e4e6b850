//! A device plugin of the tests' own, over real gRPC; its devices are files of the Container Device Interface.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use plugin::Plugin;
use plugin::device::{
    Allocate, Allocated, CdiDevice, ContainerDevices, Device, Edits, Listed, Options,
    PodResourcesList, Register,
};
use plugin::proto::Empty;
use plugin::serve;
use serde_json::json;
use tokio::sync::watch;

use crate::harness::{BUSYBOX, Cluster, eventually};

const PAINT: &str = "example.com/paint";

/// What a container needs for the devices, as the user's folder has it.
const CDI: &str = r"
cdiVersion: '0.6.0'
kind: example.com/paint
containerEdits:
  env: [BRUSH=soft]
devices:
- name: red
  containerEdits:
    env: [COLOUR=red]
    deviceNodes: [{path: /dev/paint, hostPath: /dev/zero}]
- name: blue
  containerEdits:
    env: [COLOUR=blue]
    deviceNodes: [{path: /dev/paint, hostPath: /dev/zero}]
";

struct Paint {
    /// The kubelet's folder.
    kubelet: PathBuf,
    devices: watch::Sender<Vec<(&'static str, bool)>>,
    allocated: Arc<Mutex<u32>>,
    threads: tokio::runtime::Runtime,
}

fn listed(
    devices: watch::Receiver<Vec<(&'static str, bool)>>,
) -> impl futures::Stream<Item = Listed> {
    futures::stream::unfold((devices, true), |(mut devices, first)| async move {
        if !first {
            devices.changed().await.ok()?;
        }
        let known = devices.borrow_and_update().clone();
        let told = known.into_iter().map(|(id, healthy)| Device {
            id: id.to_owned(),
            health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
        });
        let told = Listed { devices: told.collect() };
        Some((told, (devices, false)))
    })
}

impl Paint {
    fn start(cluster: &Cluster) -> Self {
        let kubelet = cluster.path("data/rootlet").join(&cluster.name).join("kubelet");
        let threads = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("threads");
        let (devices, _) = watch::channel(vec![("red", true), ("blue", true)]);
        let allocated: Arc<Mutex<u32>> = Arc::default();
        let folder = kubelet.join("device-plugins");
        eventually("the kubelet's folder is there", || {
            folder.join("kubelet.sock").exists().then_some(()).ok_or_else(|| "no socket".to_owned())
        });
        let (told, count) = (devices.clone(), allocated.clone());
        let handler: serve::Handler = Arc::new(move |request| {
            let (told, count) = (told.clone(), count.clone());
            Box::pin(async move {
                if request.uri().path().ends_with("/ListAndWatch") {
                    let work = move |_: Empty| listed(told.subscribe()).map(Ok).boxed();
                    return serve::streaming(request, work).await;
                }
                let work = move |asked: Allocate| {
                    *count.lock().expect("no test panics with it") += 1;
                    let ids = asked.container_requests.into_iter().flat_map(|ids| ids.devices);
                    let names = ids.map(|id| CdiDevice { name: format!("{PAINT}={id}") });
                    let edits = Edits {
                        envs: [("PLUGIN".to_owned(), "asked".to_owned())].into(),
                        cdi_devices: names.collect(),
                        ..Edits::default()
                    };
                    Ok(Allocated { container_responses: vec![edits] })
                };
                serve::unary(request, work).await
            })
        });
        let socket = threads.block_on(async {
            serve::bind(&folder, Path::new("paint.sock").as_os_str()).expect("the socket is free")
        });
        threads.spawn(serve::serve(socket, handler));
        let paint = Self { kubelet, devices, allocated, threads };
        paint.register();
        paint
    }

    fn register(&self) {
        let request = Register {
            version: "v1beta1".into(),
            endpoint: "paint.sock".into(),
            resource_name: PAINT.into(),
            options: Some(Options::default()),
        };
        let socket = self.kubelet.join("device-plugins/kubelet.sock");
        eventually("the plugin registers", || {
            self.threads.block_on(async {
                let kubelet = Plugin::connect(&socket).await.map_err(|error| error.to_string())?;
                let answer: Result<Empty, _> =
                    kubelet.call("/v1beta1.Registration/Register", request.clone()).await;
                answer.map(drop).map_err(|error| error.to_string())
            })
        });
    }

    /// Who has which device, as agents of the node are told.
    fn told(&self) -> Vec<(String, Vec<ContainerDevices>)> {
        let socket = self.kubelet.join("pod-resources/kubelet.sock");
        let list: PodResourcesList = self.threads.block_on(async {
            let kubelet = Plugin::connect(&socket).await.expect("the socket is served");
            let answer = kubelet.call("/v1.PodResourcesLister/List", Empty {}).await;
            answer.expect("it answers")
        });
        let pods = list.pod_resources.into_iter();
        pods.map(|pod| (pod.name, pod.containers.into_iter().flat_map(|c| c.devices).collect()))
            .collect()
    }
}

fn pod(name: &str, count: u32) -> String {
    let script = "echo $COLOUR $BRUSH $PLUGIN; head -c 3 /dev/paint | wc -c; exec sleep 1000";
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "restartPolicy": "Always",
        "containers": [{"name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
            "resources": {"limits": {PAINT: count.to_string()}}}]}})
    .to_string()
}

#[test]
fn devices_of_a_plugin_are_given_to_pods_and_their_health_is_told() {
    let cluster = Cluster::prepared();
    let folder = cluster.path("config/cdi");
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    std::fs::write(folder.join("paint.yaml"), CDI).expect("the file can be written");
    cluster.up(&[]);
    cluster.load_busybox();
    let node = format!("rootlet-{}", cluster.name);
    let paint = Paint::start(&cluster);
    let amounts = |all: &str, usable: &str| {
        eventually("the node tells its devices", || {
            let node = cluster.get(&["node", &node])?;
            let status = &node["status"];
            let told = (&status["capacity"][PAINT], &status["allocatable"][PAINT]);
            (told.0 == all && told.1 == usable).then_some(()).ok_or_else(|| format!("{told:?}"))
        });
    };
    amounts("2", "2");
    cluster.apply(&pod("one", 1));
    cluster.pod_ready("one");
    assert_eq!(cluster.kubectl_ok(&["logs", "one"]), "blue soft asked\n3\n");
    let told = paint.told();
    assert_eq!(told[0].0, "one");
    assert_eq!(
        (told[0].1[0].resource_name.as_str(), &told[0].1[0].device_ids[..]),
        (PAINT, &["blue".to_owned()][..])
    );
    let health = |pod: &serde_json::Value| {
        let status = &pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"][0];
        (status["name"].clone(), status["resources"][0].clone())
    };
    let healthy = json!({"resourceID": "blue", "health": "Healthy"});
    cluster.pod("one", "told to be healthy", |pod| health(pod) == (json!(PAINT), healthy.clone()));

    // There are no two left.
    cluster.apply(&pod("two", 2));
    cluster.event("two", "FailedScheduling");
    cluster.kubectl_ok(&["delete", "pod", "two"]);

    // A device that breaks is told, and not given to others.
    paint.devices.send_replace(vec![("red", true), ("blue", false)]);
    amounts("2", "1");
    let broken = json!({"resourceID": "blue", "health": "Unhealthy"});
    cluster.pod("one", "told to be broken", |pod| health(pod).1 == broken);
    paint.devices.send_replace(vec![("red", true), ("blue", true)]);

    // Another daemon knows who has what; the plugin registers again, as they do.
    cluster.rootlet_ok(&["down"]);
    cluster.up(&[]);
    paint.register();
    amounts("2", "2");
    cluster.pod_ready("one");
    assert_eq!(*paint.allocated.lock().expect("no test panics with it"), 1);
    assert!(cluster.kubectl_ok(&["logs", "one"]).starts_with("blue"));
    cluster.kubectl_ok(&["delete", "pod", "one"]);
    eventually("the device is free", || {
        let told = paint.told();
        told.is_empty().then_some(()).ok_or_else(|| format!("{told:?}"))
    });
}
