//! A kubelet between the fakes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use client::{Informers, Recorder};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::api::FakeApi;
use super::runtime::FakeRuntime;
use crate::context::{Context, Dialer, Machine};
use crate::objects::Objects;
use crate::pods::{self, Workers};
use crate::token::Tokens;

/// Where the pod is that the tests submit.
pub const POD: &str = "/api/v1/namespaces/ns/pods/p";

struct Nowhere;

#[async_trait::async_trait]
impl Dialer for Nowhere {
    async fn connect(&self, _: SocketAddr) -> std::io::Result<TcpStream> {
        Err(std::io::ErrorKind::ConnectionRefused.into())
    }
}

pub struct Node {
    pub api: FakeApi,
    pub runtime: FakeRuntime,
    pub dir: tempfile::TempDir,
    /// Whether the kubelet reads the folder `manifests`.
    pub static_pods: bool,
    workers: Workers,
}

pub struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

impl Node {
    pub fn new() -> Self {
        let runtime = FakeRuntime::new();
        Self {
            api: FakeApi::new(runtime.clock),
            runtime,
            dir: tempfile::tempdir().unwrap(),
            static_pods: false,
            workers: Workers::default(),
        }
    }

    pub fn start(&self) -> Running {
        self.start_with_workers().1
    }

    /// Starts a kubelet; its workers are told too.
    pub fn start_with_workers(&self) -> (Workers, Running) {
        let machine = Machine { cpus: 2, memory_bytes: 1 << 33, swap_bytes: 0, swap_limits: true };
        let context = self.context(machine);
        let stop = CancellationToken::new();
        let task = tokio::spawn(pods::run(context, self.workers.clone(), stop.clone()));
        (self.workers.clone(), Running { stop, task })
    }

    /// What a kubelet's tasks share.
    pub fn context(&self, machine: Machine) -> Arc<Context> {
        let client = self.api.client();
        let woken = self.workers.clone();
        Arc::new(Context {
            node_name: "n".into(),
            node_ip: "10.42.0.1".parse().unwrap(),
            root_dir: self.dir.path().join("root"),
            pod_log_dir: self.dir.path().join("logs"),
            own_log: Some(self.dir.path().join("daemon.log")),
            static_pods: self.static_pods.then(|| self.dir.path().join("manifests")),
            cluster_dns: vec![],
            cluster_domain: "cluster.local".into(),
            services: Informers::new(client.clone()).get::<Service>(),
            cri: self.runtime.cri(),
            runtime_name: "rootlet".into(),
            recorder: Recorder::new(client.clone(), "kubelet", "n"),
            objects: Objects::new(&client, Arc::new(move |uid: &str| woken.wake(uid))),
            tokens: Tokens::new(client.clone()),
            certificates: crate::certificates::Certificates::new(client.clone()),
            client,
            dialer: Arc::new(Nowhere),
            machine,
            pod_pids_limit: None,
            reserved: Vec::new(),
            security: crate::admission::Security::default(),
            images: crate::image::Getting::new(
                &self.dir.path().join("root"),
                crate::image::provider::Providers::default(),
                None,
                &crate::configuration::Limits::default(),
            ),
            drivers: Arc::default(),
            devices: crate::device::Devices::new(&self.dir.path().join("root")),
            claims: crate::claims::InUse::new(&self.dir.path().join("root")),
            node_changed: tokio::sync::Notify::new(),
            staging: tokio::sync::Mutex::default(),
            thresholds: crate::eviction::Rules {
                hard: crate::eviction::threshold::defaults(),
                soft: crate::eviction::Soft::default(),
            },
            pressure: crate::eviction::Pressure::default(),
            limits: crate::configuration::Limits::default(),
            usage: crate::usage::Sampler::default(),
            counters: crate::counters::Counters::default(),
            allocatable: RwLock::default(),
            own_node: crate::own_node::OwnNode::watch(&self.api.client(), "n"),
            node_labels: BTreeMap::new(),
            workers: self.workers.clone(),
            admitted: Mutex::new(HashMap::new()),
            ending: crate::shutdown::Ending::default(),
            clock: self.runtime.clock,
        })
    }

    /// Where the runtime was told to write the container's log.
    pub fn log_of(&self, name: &str) -> PathBuf {
        let world = self.runtime.world.lock().unwrap();
        let mut statuses = world.containers.values().map(|(_, c)| c);
        let found = statuses.find(|c| c.metadata.as_ref().unwrap().name == name).unwrap();
        PathBuf::from(&found.log_path)
    }

    pub fn submit(&self, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = "n".into();
        let metadata = json!({"name": "p", "namespace": "ns", "uid": "u1"});
        self.api.put(
            POD,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}),
        );
    }

    /// Asks for the pod's deletion as the API server records it.
    pub fn delete(&self, grace: i64) {
        let mut pod = self.api.get(POD).unwrap();
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self.api.put(POD, pod);
    }

    pub async fn until(&self, what: &str, pointer: &str, value: impl Into<Value>) -> Value {
        self.until_at(POD, what, pointer, value).await
    }

    /// The same for another object.
    pub async fn until_at(
        &self,
        path: &str,
        what: &str,
        pointer: &str,
        value: impl Into<Value>,
    ) -> Value {
        let value = value.into();
        let fits = |pod: Option<&Value>| pod.and_then(|p| p.pointer(pointer)) == Some(&value);
        self.api.until(path, what, fits).await.unwrap()
    }

    pub async fn gone(&self) {
        self.api.until(POD, "the pod is gone", |pod| pod.is_none()).await;
    }

    /// Waits until the runtime was called so.
    pub async fn called(&self, wanted: &[&str]) {
        let wait = async {
            while self.runtime.calls() != wanted {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let seen = tokio::time::timeout(std::time::Duration::from_mins(15), wait).await;
        assert!(seen.is_ok(), "calls are {:?}, not {wanted:?}", self.runtime.calls());
    }
}
