//! What the scheduler believes about placed pods: what the API server says, and ahead of that the
//! pods that it has just decided about ("assumed"), so that the next decision counts them.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::cluster::Cluster;
use crate::pod::PodInfo;

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    /// Decided, but not seen from the API server yet.
    assumed: bool,
}

/// What an update of a placed pod amounted to.
#[derive(Debug)]
pub enum Change {
    /// It is new here, or its assumption has come true.
    Added(Arc<PodInfo>),
    /// It was known.
    Updated {
        /// As it was.
        old: Arc<PodInfo>,
        /// As it is.
        new: Arc<PodInfo>,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub struct Cache {
    /// The nodes with the placed pods.
    pub cluster: Cluster,
    pods: HashMap<String, Placed>,
}

impl Cache {
    /// Whether `uid` is a pod that was decided about and not yet seen placed.
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// The placed pod `uid`, if the API server has told of it.
    pub fn seen(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).filter(|placed| !placed.assumed).map(|placed| &placed.pod)
    }

    /// The uids of all placed pods.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    /// Counts `pod`, whose node is decided, from now on.
    pub fn assume(&mut self, pod: Arc<PodInfo>) {
        self.place(pod, true);
    }

    /// The decision came to nothing: the pod that no longer counts, if it did.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        if self.is_assumed(uid) { self.remove(uid) } else { None }
    }

    /// The API server says that `pod` is placed.
    pub fn set_pod(&mut self, pod: Arc<PodInfo>) -> Change {
        let known = self.pods.get(&pod.uid);
        let stays = known.is_some_and(|known| known.pod.node_name == pod.node_name);
        let before = if stays && self.cluster.update_pod(&pod) {
            let placed = Placed { pod: Arc::clone(&pod), assumed: false };
            self.pods.insert(pod.uid.clone(), placed)
        } else {
            let before = self.remove_placed(&pod.uid);
            self.place(Arc::clone(&pod), false);
            before
        };
        match before {
            Some(Placed { pod: old, assumed: false }) => Change::Updated { old, new: pod },
            _ => Change::Added(pod),
        }
    }

    /// The pod `uid` is gone.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        self.remove_placed(uid).map(|placed| placed.pod)
    }

    fn place(&mut self, pod: Arc<PodInfo>, assumed: bool) {
        // A pod may be seen before its node, or after its end: it counts when the node comes.
        self.cluster.add_pod(Arc::clone(&pod));
        self.pods.insert(pod.uid.clone(), Placed { pod, assumed });
    }

    fn remove_placed(&mut self, uid: &str) -> Option<Placed> {
        let placed = self.pods.remove(uid)?;
        self.cluster.remove_pod(&placed.pod.node_name, uid);
        Some(placed)
    }

    /// Adds a node, or takes over what changed; returns it as it was.
    pub fn set_node(&mut self, node: Arc<Node>) -> Option<Arc<Node>> {
        let name = node.metadata.name.clone().unwrap_or_default();
        let before = self.cluster.node(&name).map(|info| Arc::clone(&info.node));
        self.cluster.set_node(node);
        if before.is_none() {
            for placed in self.pods.values().filter(|placed| placed.pod.node_name == name) {
                self.cluster.add_pod(Arc::clone(&placed.pod));
            }
        }
        before
    }

    /// The node `name` is gone; returns it as it was. Its pods are still known, until they go too.
    pub fn remove_node(&mut self, name: &str) -> Option<Arc<Node>> {
        self.cluster.remove_node(name).map(|info| Arc::clone(&info.node))
    }
}
