//! A node as the scheduler sees it: the object, and the sums over the pods on it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::api::core::v1::{Node, Taint};

use crate::pod::{HostPort, PodInfo};
use crate::resource::Resource;

/// Pods of one namespace with the same labels, none of which is on its way out.
#[derive(Clone, Debug)]
pub struct Group {
    /// One that is, or was, among them.
    pub sample: Arc<PodInfo>,
    /// How many there are.
    pub count: i64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// A number of its own for each state of each node.
    pub state: u64,
    /// Where it is among the nodes of its cluster.
    pub place: usize,
    /// The object.
    pub node: Arc<Node>,
    /// Its name.
    pub name: String,
    /// The pods that are on it, or will be.
    pub pods: Vec<Arc<PodInfo>>,
    /// Those of them that stay, as selectors tell them apart.
    pub groups: Vec<Group>,
    /// What they ask for.
    pub requested: Resource,
    /// What they count for when nodes are compared.
    pub weighed: Resource,
    /// What the node has to give.
    pub allocatable: Resource,
    /// How many pods it takes.
    pub pods_max: i64,
    /// The ports that are taken.
    pub host_ports: Vec<HostPort>,
    /// Sizes in bytes of the images that it holds, by every name they have.
    pub images: HashMap<String, i64>,
}

fn next_state() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::Relaxed) + 1
}

impl NodeInfo {
    /// `node` without pods.
    pub fn new(node: Arc<Node>) -> Self {
        let mut info = Self::default();
        info.set_node(node);
        info
    }

    /// Takes over what has changed in the object; the pods stay.
    pub fn set_node(&mut self, node: Arc<Node>) {
        self.state = next_state();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        self.name = node.metadata.name.clone().unwrap_or_default();
        self.allocatable = Resource::from_list(allocatable);
        self.pods_max = allocatable
            .and_then(|list| list.get("pods"))
            .and_then(|text| text.0.parse::<apimachinery::quantity::Quantity>().ok())
            .map_or(0, |quantity| quantity.value());
        self.images = status
            .and_then(|status| status.images.as_ref())
            .into_iter()
            .flatten()
            .flat_map(|image| {
                let size = image.size_bytes.unwrap_or(0);
                image.names.iter().flatten().map(move |name| (name.clone(), size))
            })
            .collect();
        self.node = node;
    }

    /// Puts `pod` on the node.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) {
        self.state = next_state();
        self.requested.add(&pod.requests);
        self.weighed.add(&pod.weighed);
        self.host_ports.extend(pod.host_ports.iter().cloned());
        if !pod.is_terminating() {
            self.join_group(&pod);
        }
        self.pods.push(pod);
    }

    /// Takes over a newer state of a pod that is on the node, if nothing is different that counts there; what was
    /// judged of the node holds. False when it has to be taken from the node and put on it anew.
    pub fn update_pod(&mut self, pod: &Arc<PodInfo>) -> bool {
        let Some(at) = self.pods.iter().position(|known| known.uid == pod.uid) else {
            return false;
        };
        let known = &self.pods[at];
        let counts_the_same = known.requests == pod.requests
            && known.weighed == pod.weighed
            && known.host_ports == pod.host_ports
            && known.is_terminating() == pod.is_terminating();
        if !counts_the_same {
            return false;
        }
        let (before, after) = (known.group, pod.group);
        if before != after && !pod.is_terminating() {
            self.leave_group(before);
            self.join_group(pod);
        }
        self.pods[at] = Arc::clone(pod);
        true
    }

    fn join_group(&mut self, pod: &Arc<PodInfo>) {
        match self.groups.iter_mut().find(|group| group.sample.group == pod.group) {
            Some(group) => group.count += 1,
            None => self.groups.push(Group { sample: Arc::clone(pod), count: 1 }),
        }
    }

    fn leave_group(&mut self, group: u64) {
        let Some(at) = self.groups.iter().position(|g| g.sample.group == group) else { return };
        self.groups[at].count -= 1;
        if self.groups[at].count == 0 {
            self.groups.swap_remove(at);
        }
    }

    /// Takes the pod `uid` from the node.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let at = self.pods.iter().position(|pod| pod.uid == uid)?;
        self.state = next_state();
        let pod = self.pods.swap_remove(at);
        self.requested.subtract(&pod.requests);
        self.weighed.subtract(&pod.weighed);
        if !pod.is_terminating() {
            self.leave_group(pod.group);
        }
        for port in &pod.host_ports {
            if let Some(at) = self.host_ports.iter().position(|taken| taken == port) {
                self.host_ports.swap_remove(at);
            }
        }
        Some(pod)
    }

    /// The value of the label `key`.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    /// The labels, if there are any.
    pub fn labels(&self) -> Option<&BTreeMap<String, String>> {
        self.node.metadata.labels.as_ref()
    }

    /// The taints.
    pub fn taints(&self) -> &[Taint] {
        let taints = self.node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        taints.map(Vec::as_slice).unwrap_or_default()
    }

    /// The node takes no new pods.
    pub fn is_unschedulable(&self) -> bool {
        self.node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false)
    }
}
