//! What there is: nodes with their pods, and the facts about the cluster that plugins decide by.
//! A decision reads it and changes nothing; clones share what is the same.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use crate::affinity::NamespaceLabels;
use crate::devices::Devices;
use crate::node::NodeInfo;
use crate::owners::Owners;
use crate::pod::PodInfo;
use crate::volumes::Volumes;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    nodes: Vec<Arc<NodeInfo>>,
    places: Arc<HashMap<String, usize>>,
    /// Labels of the namespaces.
    pub namespaces: Arc<NamespaceLabels>,
    /// Claims, volumes and storage classes.
    pub volumes: Arc<Volumes>,
    /// Claims of devices, slices of them, and their classes.
    pub devices: Arc<Devices>,
    /// Services, and what keeps pods in numbers.
    pub owners: Arc<Owners>,
    /// On how many nodes each image is.
    image_nodes: Arc<HashMap<String, usize>>,
    /// How many pods with required anti-affinity are on nodes; none spares looking for them.
    anti_affine_pods: usize,
    /// How many pods with any affinity are on nodes.
    affine_pods: usize,
}

fn has_affinity(pod: &PodInfo) -> bool {
    let own = &pod.affinities;
    !(own.required.is_empty() && own.preferred.is_empty() && own.preferred_anti.is_empty())
        || has_required_anti_affinity(pod)
}

fn has_required_anti_affinity(pod: &PodInfo) -> bool {
    !pod.affinities.required_anti.is_empty()
}

impl Cluster {
    /// All nodes.
    pub fn nodes(&self) -> &[Arc<NodeInfo>] {
        &self.nodes
    }

    /// The place of the node `name` among [`Self::nodes`].
    pub fn place(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// The node `name`.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeInfo>> {
        self.place(name).map(|at| &self.nodes[at])
    }

    /// On how many nodes the image `name` is.
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.image_nodes.get(name).copied().unwrap_or(0)
    }

    /// Some pod on a node repels others.
    pub fn has_anti_affine_pods(&self) -> bool {
        self.anti_affine_pods > 0
    }

    /// Some pod on a node has a wish about other pods.
    pub fn has_affine_pods(&self) -> bool {
        self.affine_pods > 0
    }

    /// The same cluster, had the node at `place` other pods.
    #[must_use]
    pub fn with(&self, place: usize, node: NodeInfo) -> Self {
        let mut other = self.clone();
        for pod in &other.nodes[place].pods {
            other.anti_affine_pods -= usize::from(has_required_anti_affinity(pod));
            other.affine_pods -= usize::from(has_affinity(pod));
        }
        for pod in &node.pods {
            other.anti_affine_pods += usize::from(has_required_anti_affinity(pod));
            other.affine_pods += usize::from(has_affinity(pod));
        }
        other.nodes[place] = Arc::new(node);
        other
    }

    fn count_images(&mut self, place: usize, add: bool) {
        let counts = Arc::make_mut(&mut self.image_nodes);
        for name in self.nodes[place].images.keys() {
            if add {
                *counts.entry(name.clone()).or_default() += 1;
            } else if let Some(count) = counts.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(name);
                }
            }
        }
    }

    /// Adds a node, or takes over what changed in it.
    pub fn set_node(&mut self, node: Arc<Node>) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let place = if let Some(place) = self.place(&name) {
            self.count_images(place, false);
            Arc::make_mut(&mut self.nodes[place]).set_node(node);
            place
        } else {
            let place = self.nodes.len();
            self.nodes.push(Arc::new(NodeInfo { place, ..NodeInfo::new(node) }));
            Arc::make_mut(&mut self.places).insert(name, place);
            place
        };
        self.count_images(place, true);
    }

    /// Removes a node and returns it with the pods that were on it.
    pub fn remove_node(&mut self, name: &str) -> Option<Arc<NodeInfo>> {
        let place = self.place(name)?;
        self.count_images(place, false);
        for pod in &self.nodes[place].pods {
            self.anti_affine_pods -= usize::from(has_required_anti_affinity(pod));
            self.affine_pods -= usize::from(has_affinity(pod));
        }
        let places = Arc::make_mut(&mut self.places);
        places.remove(name);
        let node = self.nodes.swap_remove(place);
        if let Some(moved) = self.nodes.get_mut(place) {
            Arc::make_mut(moved).place = place;
            places.insert(moved.name.clone(), place);
        }
        Some(node)
    }

    /// Puts `pod` on its node; false when there is no such node.
    pub fn add_pod(&mut self, pod: Arc<PodInfo>) -> bool {
        let Some(place) = self.place(&pod.node_name) else { return false };
        self.anti_affine_pods += usize::from(has_required_anti_affinity(&pod));
        self.affine_pods += usize::from(has_affinity(&pod));
        Arc::make_mut(&mut self.nodes[place]).add_pod(pod);
        true
    }

    /// Takes over a newer state of a pod that is on its node; false when it has to be put there anew.
    pub fn update_pod(&mut self, pod: &Arc<PodInfo>) -> bool {
        // Affinity is part of what no pod on a node can change.
        self.place(&pod.node_name)
            .is_some_and(|place| Arc::make_mut(&mut self.nodes[place]).update_pod(pod))
    }

    /// Takes the pod `uid` from the node `node`.
    pub fn remove_pod(&mut self, node: &str, uid: &str) {
        let Some(place) = self.place(node) else { return };
        if let Some(pod) = Arc::make_mut(&mut self.nodes[place]).remove_pod(uid) {
            self.anti_affine_pods -= usize::from(has_required_anti_affinity(&pod));
            self.affine_pods -= usize::from(has_affinity(&pod));
        }
    }
}
