//! The pods that preemption has promised a node, while they wait for it to become free.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::PodInfo;
use crate::schedule::Nominated;

/// See the module.
#[derive(Debug, Default)]
pub struct Nominator {
    nodes: HashMap<String, String>,
    nominated: Nominated,
}

impl Nominator {
    /// The promised pods by node.
    pub fn nominated(&self) -> &Nominated {
        &self.nominated
    }

    /// Takes over what a waiting pod's status says; silence does not undo a promise, because the
    /// status follows later.
    pub fn set(&mut self, pod: &Arc<PodInfo>) {
        let node = pod.nominated_node().or(self.nodes.get(&pod.uid).map(String::as_str));
        if let Some(node) = node.map(str::to_owned) {
            self.nominate(Arc::clone(pod), &node);
        }
    }

    /// Promises `node` to `pod`. Less important pods lose their promise of the same node, and are
    /// free to go elsewhere; they are returned.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) -> Vec<Arc<PodInfo>> {
        self.remove(&pod.uid);
        let there = self.nominated.entry(node.to_owned()).or_default();
        let (stay, lesser): (Vec<_>, Vec<_>) =
            there.drain(..).partition(|other| other.priority >= pod.priority);
        *there = stay;
        for other in &lesser {
            self.nodes.remove(&other.uid);
        }
        self.nodes.insert(pod.uid.clone(), node.to_owned());
        there.push(pod);
        lesser
    }

    /// The pod `uid` needs its promise no more.
    pub fn remove(&mut self, uid: &str) {
        let Some(node) = self.nodes.remove(uid) else { return };
        if let Some(there) = self.nominated.get_mut(&node) {
            there.retain(|pod| pod.uid != uid);
            if there.is_empty() {
                self.nominated.remove(&node);
            }
        }
    }
}
