//! Terms by which pods attract and repel each other.

use std::collections::BTreeMap;

use apimachinery::labels::Selector;
use k8s_openapi::api::core::v1::{PodAffinityTerm, WeightedPodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::pod::PodInfo;

/// Labels of the namespaces, by name.
pub type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

/// The selector that `selector` means: absent selects nothing, and so does one that validation
/// should not have let pass.
pub fn selector(selector: Option<&LabelSelector>) -> Selector {
    let Some(value) = selector.and_then(|selector| serde_json::to_value(selector).ok()) else {
        return Selector::nothing();
    };
    Selector::from_label_selector(Some(&value)).unwrap_or_else(|_| Selector::nothing())
}

/// Selects pods, and says by which node label "near" is meant.
#[derive(Clone, Debug)]
pub struct AffinityTerm {
    namespaces: Vec<String>,
    namespace_selector: Selector,
    /// Namespaces may be chosen by their labels.
    by_namespace_labels: bool,
    labels: Selector,
    /// Nodes with the same value of this label are near each other.
    pub topology_key: String,
}

impl AffinityTerm {
    /// `term` of a pod in `namespace`. Its `matchLabelKeys` are part of its selector already: the
    /// API server merges them when the pod is created.
    pub fn new(term: &PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        Self {
            namespaces,
            namespace_selector: selector(term.namespace_selector.as_ref()),
            by_namespace_labels: term.namespace_selector.is_some(),
            labels: selector(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }

    /// The term selects `pod`, as far as can be said without knowing the namespaces.
    pub fn may_select(&self, pod: &PodInfo) -> bool {
        (self.by_namespace_labels || self.namespaces.contains(&pod.namespace))
            && self.labels.matches(&pod.labels)
    }

    /// The term selects `pod`.
    pub fn selects(&self, pod: &PodInfo, namespaces: &NamespaceLabels) -> bool {
        let among = self.namespaces.contains(&pod.namespace)
            || namespaces
                .get(&pod.namespace)
                .is_some_and(|labels| self.namespace_selector.matches(labels));
        among && self.labels.matches(&pod.labels)
    }
}

/// A term that is only a wish.
#[derive(Clone, Debug)]
pub struct WeightedTerm {
    /// How much it counts, 1 to 100.
    pub weight: i64,
    /// What is wished.
    pub term: AffinityTerm,
}

impl WeightedTerm {
    /// `term` of a pod in `namespace`.
    pub fn new(term: &WeightedPodAffinityTerm, namespace: &str) -> Self {
        let weight = i64::from(term.weight);
        Self { weight, term: AffinityTerm::new(&term.pod_affinity_term, namespace) }
    }
}
