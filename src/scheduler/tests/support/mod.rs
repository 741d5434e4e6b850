//! Objects to schedule with.
#![allow(dead_code)] // each test file uses some of it

pub mod api;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use scheduler::cluster::Cluster;
use scheduler::framework::Profile;
use scheduler::plugins::default_profile;
use scheduler::pod::PodInfo;
use scheduler::schedule::{Failure, Nominated, Placement, Rotation, schedule};
use scheduler::volumes::Volumes;
use serde_json::{Value, json};

/// Lays `over` over `base`, object by object.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// A node with 4 CPUs, 8 GiB and 110 pods, its hostname label, and what `over` says.
pub fn node_json(name: &str, over: Value) -> Value {
    let mut node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}},
    });
    merge(&mut node, over);
    node
}

pub fn node(name: &str, over: Value) -> Arc<Node> {
    Arc::new(serde_json::from_value(node_json(name, over)).expect("a node"))
}

/// A pod with one container, and what `over` says.
pub fn pod_json(name: &str, over: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c", "image": "app"}]},
    });
    merge(&mut pod, over);
    pod
}

pub fn pod(name: &str, over: Value) -> Arc<PodInfo> {
    let pod: Pod = serde_json::from_value(pod_json(name, over)).expect("a pod");
    Arc::new(PodInfo::new(Arc::new(pod)))
}

/// A specification that asks for CPU and memory.
pub fn asking(cpu: &str, memory: &str) -> Value {
    let requests = json!({"cpu": cpu, "memory": memory});
    json!({"containers": [{"name": "c", "image": "app", "resources": {"requests": requests}}]})
}

/// The nodes, with the pods that name them.
pub fn cluster(
    nodes: impl IntoIterator<Item = Arc<Node>>,
    pods: impl IntoIterator<Item = Arc<PodInfo>>,
) -> Cluster {
    let mut cluster = Cluster::default();
    nodes.into_iter().for_each(|node| cluster.set_node(node));
    for pod in pods {
        assert!(cluster.add_pod(pod), "a pod on a node that is not there");
    }
    cluster
}

/// Storage, from lists of objects.
pub fn volumes(claims: Value, volumes: Value, classes: Value) -> Arc<Volumes> {
    fn list<K: serde::de::DeserializeOwned>(objects: Value) -> Vec<Arc<K>> {
        let objects: Vec<K> = serde_json::from_value(objects).expect("objects");
        objects.into_iter().map(Arc::new).collect()
    }
    let name = |name: &Option<String>| name.clone().expect("a name");
    let claims = list::<PersistentVolumeClaim>(claims)
        .into_iter()
        .map(|claim| ((name(&claim.metadata.namespace), name(&claim.metadata.name)), claim));
    let volumes = list::<PersistentVolume>(volumes).into_iter();
    let classes = list::<StorageClass>(classes).into_iter();
    Arc::new(Volumes {
        claims: claims.collect(),
        volumes: volumes.map(|volume| (name(&volume.metadata.name), volume)).collect(),
        classes: classes.map(|class| (name(&class.metadata.name), class)).collect(),
        ..Volumes::default()
    })
}

pub fn profile() -> Profile {
    default_profile()
}

/// The profile that `rest` of a configuration file describes.
pub fn configured(rest: &str) -> Profile {
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{rest}"
    );
    scheduler::configuration::parse(&text).expect("a configuration").profiles.remove(0)
}

pub fn decide(pod: &PodInfo, cluster: &Cluster) -> Result<Placement, Failure> {
    schedule(&profile(), pod, cluster, &Nominated::new(), &mut Rotation::default())
}

/// Where the pod goes, or why it goes nowhere.
pub fn outcome(pod: &PodInfo, cluster: &Cluster) -> String {
    match decide(pod, cluster) {
        Ok(placement) => placement.node,
        Err(failure) => failure.to_string(),
    }
}
