//! What all of the kubelet's tasks share.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use client::{Informer, Recorder, object_reference};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::{Api, Client};
use tokio::net::TcpStream;

use crate::admission::{self, Marks, Security};
use crate::certificates::Certificates;
use crate::claims::InUse;
use crate::clock::Clock;
use crate::configuration::Limits;
use crate::counters::Counters;
use crate::cri::Cri;
use crate::csi::Drivers;
use crate::device::Devices;
use crate::eviction::{Pressure, Rules, is_critical};
use crate::fields::Facts;
use crate::image::Getting;
use crate::objects::Objects;
use crate::own_node::OwnNode;
use crate::pod::{self, Kind};
use crate::pods::Workers;
use crate::preemption;
use crate::resources::Basis;
use crate::shutdown::{self, Ending};
use crate::status::Waiting;
use crate::token::Tokens;
use crate::usage::Sampler;

/// Opens connections in the node's network, where the pods' addresses are reachable.
#[async_trait]
pub trait Dialer: Send + Sync + 'static {
    /// Connects to `address`.
    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream>;
}

/// What the node has.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Processors this process may use.
    pub cpus: usize,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Swap, bytes.
    pub swap_bytes: u64,
    /// The kernel can limit it.
    pub swap_limits: bool,
}

/// That the node takes a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It has.
    Now,
    /// Once those have gone that make room for it: it is to be asked again.
    Later,
}

/// Shared by the pod workers, the node's reporter and the server.
pub struct Context {
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub node_ip: IpAddr,
    /// The kubelet's directory.
    pub root_dir: PathBuf,
    /// Where pod logs are.
    pub pod_log_dir: PathBuf,
    /// What the kubelet itself logs.
    pub own_log: Option<PathBuf>,
    /// The folder of static pods' manifests.
    pub static_pods: Option<PathBuf>,
    /// The cluster's DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The API.
    pub client: Client,
    /// Services, for environment variables.
    pub services: Informer<Service>,
    /// The runtime.
    pub cri: Cri,
    /// The runtime's name, the prefix of container ids.
    pub runtime_name: String,
    /// Writes events.
    pub recorder: Recorder,
    /// Config maps and secrets in use.
    pub objects: Objects,
    /// Service account tokens.
    pub tokens: Tokens,
    /// Certificates of pods.
    pub certificates: Certificates,
    /// Connections to pods.
    pub dialer: Arc<dyn Dialer>,
    /// What the node has.
    pub machine: Machine,
    /// Most processes of a pod.
    pub pod_pids_limit: Option<u32>,
    /// What of the node is kept from pods: resources, each as often as somebody keeps some.
    pub reserved: Vec<(String, Quantity)>,
    /// What of a security context the node can give.
    pub security: Security,
    /// How it gets images.
    pub images: Getting,
    /// CSI drivers that have registered.
    pub drivers: Arc<Drivers>,
    /// Devices of plugins.
    pub devices: Devices,
    /// Claimed devices.
    pub claims: InUse,
    /// Something is to be told of the node.
    pub node_changed: tokio::sync::Notify,
    /// Held while a driver's volume is brought or given back.
    pub staging: tokio::sync::Mutex<()>,
    /// Below what the node is under pressure.
    pub thresholds: Rules,
    /// Whether it is.
    pub pressure: Pressure,
    /// Bounds that are configured.
    pub limits: Limits,
    /// What of it is used.
    pub usage: Sampler,
    /// What happened, counted.
    pub counters: Counters,
    /// What of it pods may use.
    pub allocatable: RwLock<BTreeMap<String, Quantity>>,
    /// The node's object.
    pub own_node: OwnNode,
    /// The labels with which the node registers.
    pub node_labels: BTreeMap<String, String>,
    /// Who ends pods that make room for others.
    pub workers: Workers,
    /// The pods the node has taken, by uid.
    pub admitted: Mutex<HashMap<String, Arc<Pod>>>,
    /// The node's end.
    pub ending: Ending,
    /// Time.
    pub clock: Clock,
}

impl Context {
    /// Records a `Normal` event about the pod, or one of its containers.
    pub fn normal(
        &self,
        of: &Pod,
        container: Option<(Kind, &str)>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.normal(reference(of, container), reason, message);
    }

    /// Records a `Warning` event about the pod, or one of its containers.
    pub fn warning(
        &self,
        of: &Pod,
        container: Option<(Kind, &str)>,
        reason: &str,
        message: impl Into<String>,
    ) {
        self.recorder.warning(reference(of, container), reason, message);
    }

    /// What limits of containers follow from.
    pub fn basis(&self) -> Basis {
        Basis {
            memory_bytes: i64::try_from(self.machine.memory_bytes).unwrap_or(i64::MAX),
            swap_bytes: i64::try_from(self.machine.swap_bytes).unwrap_or(i64::MAX),
            swap_limits: self.machine.swap_limits,
            terms: self.limits.terms,
        }
    }

    /// The node, for events about it.
    pub fn own_reference(&self) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node_name.clone()),
            uid: Some(self.node_name.clone()),
            ..ObjectReference::default()
        }
    }

    /// Takes the pod in, or says why not; one that `runs` already is not asked again.
    pub async fn take(&self, of: &Arc<Pod>, runs: bool) -> Result<Admission, Waiting> {
        if runs {
            return self.admit(of, true, &Marks::default());
        }
        if let Some(seen) = self.own_node.seen() {
            match self.admit(of, false, &seen) {
                // Whoever bound the pod may have seen what the watch has not told yet.
                Err(refusal) if admission::is_of_marks(&refusal) => {}
                answer => return answer,
            }
        }
        let now = self.own_node.now(&self.node_labels).await;
        self.admit(of, false, &now)
    }

    fn admit(&self, of: &Arc<Pod>, runs: bool, marks: &Marks) -> Result<Admission, Waiting> {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if !runs && self.ending.is_asked() {
            return Err(shutdown::refusal());
        }
        if !runs {
            let allocatable = self.allocatable.read().unwrap_or_else(PoisonError::into_inner);
            let allocatable = &allocatable;
            let node = admission::Node { name: &self.node_name, marks, allocatable };
            let others: Vec<Arc<Pod>> = admitted.values().cloned().collect();
            self.pressure.admit(of)?;
            admission::secure(of, &self.security)?;
            if let Err(refusal) = admission::admit(of, &node, &others) {
                let makeable = is_critical(of) && admission::selects(of, &node, &others).is_ok();
                return match makeable.then(|| self.make_room(of, allocatable, &others)) {
                    Some(true) => Ok(Admission::Later),
                    _ => Err(refusal),
                };
            }
        }
        admitted.insert(pod::uid(of).to_owned(), of.clone());
        Ok(Admission::Now)
    }

    /// Ends lesser pods in favour of `of`. Returns whether there will be room for it.
    fn make_room(
        &self,
        of: &Pod,
        allocatable: &BTreeMap<String, Quantity>,
        others: &[Arc<Pod>],
    ) -> bool {
        // Those that are on their way out already are not ended again, and still in the way.
        let (leaving, staying): (Vec<_>, Vec<_>) =
            others.iter().cloned().partition(|p| self.workers.is_ending(pod::uid(p)));
        let short = admission::shortages(of, allocatable, &staying);
        let Some(victims) = preemption::victims(of, &staying, &short) else { return false };
        for victim in &victims {
            self.warning(victim, None, preemption::REASON, preemption::MESSAGE);
            let why =
                Waiting { reason: preemption::REASON.into(), message: preemption::MESSAGE.into() };
            self.workers.evict(pod::uid(victim), why);
        }
        !(victims.is_empty() && leaving.is_empty())
    }

    /// What of the node pods may use.
    pub fn allocatable(&self) -> BTreeMap<String, Quantity> {
        self.allocatable.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Grants a pod that runs the resources `of` now asks for, or says why not.
    pub fn grant(&self, of: &Arc<Pod>) -> Result<(), Waiting> {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<Arc<Pod>> =
            admitted.values().filter(|p| p.metadata.uid != of.metadata.uid).cloned().collect();
        admission::fits(of, &self.allocatable(), &others)?;
        admitted.insert(pod::uid(of).to_owned(), of.clone());
        Ok(())
    }

    /// The pod has stopped: its resources are free, and it uses no object any more.
    pub fn release(&self, uid: &str) {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        self.objects.release(uid);
        self.tokens.release(uid);
        self.certificates.release(uid);
        self.devices.release(uid);
    }

    /// Nothing is left of the pod.
    pub fn forget(&self, uid: &str) {
        self.release(uid);
        self.counters.forget(uid);
    }

    /// The runtime handler of the pod's runtime class.
    pub async fn runtime_handler(&self, of: &Pod) -> Result<String, String> {
        let name =
            of.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default();
        if name.is_empty() {
            return Ok(String::new());
        }
        let classes: Api<RuntimeClass> = Api::all(self.client.clone());
        match classes.get(name).await {
            Ok(class) => Ok(class.handler),
            Err(error) => Err(format!(
                "Failed to create pod sandbox: failed to get sandbox runtime: RuntimeClass {name:?}: {}",
                crate::api::text(&error)
            )),
        }
    }

    /// What the downward API tells beside the pod's own fields.
    pub fn facts(&self, pod_ips: &[String], host_network: bool) -> Facts {
        let host_ips = vec![self.node_ip.to_string()];
        Facts {
            pod_ips: if host_network { host_ips.clone() } else { pod_ips.to_vec() },
            host_ips,
            allocatable: self.allocatable(),
        }
    }
}

fn reference(of: &Pod, container: Option<(Kind, &str)>) -> ObjectReference {
    ObjectReference {
        field_path: container.map(|(kind, name)| pod::field_path(kind, name)),
        ..object_reference(of)
    }
}
