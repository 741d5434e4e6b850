//! What keeps pods in numbers, and the Services that select them: pods of one of these belong together, and
//! are spread unless they say otherwise.
//!
//! Source: `pkg/scheduler/framework/plugins/helper/spread.go` (`DefaultSelector`).

use std::collections::{BTreeMap, HashMap};

use apimachinery::labels::Selector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::affinity;
use crate::pod::PodInfo;

/// Namespace and name.
pub type Key = (String, String);
type Labels = BTreeMap<String, String>;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    services: HashMap<String, BTreeMap<String, Labels>>,
    /// By the kind of what selects.
    sets: HashMap<(&'static str, Key), LabelSelector>,
}

impl Owners {
    /// A Service selects pods by these labels; without any it selects none.
    pub fn set_service(&mut self, (namespace, name): Key, labels: Option<Labels>) {
        let services = self.services.entry(namespace).or_default();
        match labels.filter(|labels| !labels.is_empty()) {
            Some(labels) => drop(services.insert(name, labels)),
            None => drop(services.remove(&name)),
        }
    }

    /// What a set selects by; `None` when it is gone.
    pub fn set(&mut self, kind: &'static str, key: Key, selector: Option<LabelSelector>) {
        match selector {
            Some(selector) => drop(self.sets.insert((kind, key), selector)),
            None => drop(self.sets.remove(&(kind, key))),
        }
    }

    /// Selects the pods that `pod` belongs together with.
    pub fn selector(&self, pod: &PodInfo) -> Option<Selector> {
        let mut whole = LabelSelector::default();
        let services = self.services.get(&pod.namespace).into_iter().flat_map(BTreeMap::values);
        for labels in services {
            if labels.iter().all(|(key, value)| pod.labels.get(key) == Some(value)) {
                whole.match_labels.get_or_insert_default().extend(labels.clone());
            }
        }
        let owners = pod.pod.metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|owner| owner.controller == Some(true));
        if let Some(owner) = owner {
            let kind = ["ReplicaSet", "ReplicationController", "StatefulSet"]
                .into_iter()
                .find(|kind| *kind == owner.kind);
            let key = (pod.namespace.clone(), owner.name.clone());
            if let Some(selector) = kind.and_then(|kind| self.sets.get(&(kind, key))) {
                let labels = selector.match_labels.clone().unwrap_or_default();
                whole.match_labels.get_or_insert_default().extend(labels);
                let others = selector.match_expressions.clone().unwrap_or_default();
                whole.match_expressions.get_or_insert_default().extend(others);
            }
        }
        let empty = whole.match_labels.as_ref().is_none_or(BTreeMap::is_empty)
            && whole.match_expressions.as_ref().is_none_or(Vec::is_empty);
        (!empty).then(|| affinity::selector(Some(&whole)))
    }
}
