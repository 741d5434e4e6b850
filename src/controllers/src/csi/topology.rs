//! Where a new volume has to be reached from, and where a made one can be.
//!
//! Source: `external-provisioner/pkg/controller/topology.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, TopologySelectorTerm,
    VolumeNodeAffinity,
};
use k8s_openapi::api::storage::v1::CSINode;
use kube::ResourceExt;
use plugin::proto::{Topology, TopologyRequirement};

/// One place: labels that nodes there have.
pub type Term = BTreeMap<String, String>;

/// Why no place can be told.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("error getting CSINode for selected node {0:?}: the driver has not registered there")]
    NoDriver(String),
    #[error("topology labels from selected node {0:?} do not match topology keys from CSINode")]
    NoLabels(String),
    #[error("selected node {0:?} is not in the allowed topologies of the storage class")]
    NotAllowed(String),
}

/// The keys by which the driver tells places apart, as it told at this node.
fn keys(node: &CSINode, driver: &str) -> Option<Vec<String>> {
    let found = node.spec.drivers.iter().find(|known| known.name == driver)?;
    Some(found.topology_keys.clone().unwrap_or_default())
}

fn place(node: &Node, keys: &[String]) -> Option<Term> {
    let labels = node.labels();
    keys.iter().map(|key| Some((key.clone(), labels.get(key)?.clone()))).collect()
}

/// Every place that a class allows: one value of each key of a term.
fn allowed(terms: &[TopologySelectorTerm]) -> Vec<Term> {
    let mut out = Vec::new();
    for term in terms {
        let mut places = vec![Term::new()];
        for wanted in term.match_label_expressions.iter().flatten() {
            places = places
                .iter()
                .flat_map(|known| {
                    wanted.values.iter().map(|value| {
                        let mut place = known.clone();
                        place.insert(wanted.key.clone(), value.clone());
                        place
                    })
                })
                .collect();
        }
        out.extend(places.into_iter().filter(|place| !place.is_empty()));
    }
    out
}

/// What is known of the cluster.
pub struct View<'a, N, C> {
    pub driver: &'a str,
    pub nodes: &'a [N],
    pub csi_nodes: &'a [C],
    /// The class' `allowedTopologies`.
    pub allowed: &'a [TopologySelectorTerm],
    /// The node that the scheduler chose.
    pub selected: Option<&'a str>,
    /// Spreads claims that no node was chosen for.
    pub seed: &'a str,
}

impl<N: AsRef<Node>, C: AsRef<CSINode>> View<'_, N, C> {
    /// Every place of the driver, in order, each once.
    pub fn places(&self) -> Vec<Term> {
        let csi_nodes = self.csi_nodes.iter().map(AsRef::as_ref);
        let all = csi_nodes.filter_map(|csi_node| {
            let keys = keys(csi_node, self.driver).filter(|keys| !keys.is_empty())?;
            let name = csi_node.name_any();
            let node = self.nodes.iter().map(AsRef::as_ref).find(|node| node.name_any() == name)?;
            place(node, &keys)
        });
        all.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// What the driver is to be asked for; none when its volumes are everywhere.
    pub fn requirement(&self) -> Result<Option<TopologyRequirement>, Error> {
        let chosen = match self.selected {
            None => None,
            Some(name) => {
                let mut csi_nodes = self.csi_nodes.iter().map(AsRef::as_ref);
                let csi_node = csi_nodes.find(|node| node.name_any() == name);
                let keys = csi_node.and_then(|csi_node| keys(csi_node, self.driver));
                let keys = keys.ok_or_else(|| Error::NoDriver(name.to_owned()))?;
                if keys.is_empty() {
                    return Ok(None);
                }
                let mut nodes = self.nodes.iter().map(AsRef::as_ref);
                let node = nodes.find(|node| node.name_any() == name);
                let place = node.and_then(|node| place(node, &keys));
                Some(place.ok_or_else(|| Error::NoLabels(name.to_owned()))?)
            }
        };
        let mut requisite = allowed(self.allowed);
        if requisite.is_empty() {
            requisite = self.places();
        }
        requisite.sort();
        requisite.dedup();
        if requisite.is_empty() {
            return Ok(None);
        }
        let first = match &chosen {
            // What the class allows may be said in fewer keys than the driver has.
            Some(chosen) => {
                let holds =
                    |term: &Term| term.iter().all(|(key, value)| chosen.get(key) == Some(value));
                let name = self.selected.unwrap_or_default();
                requisite.iter().position(holds).ok_or_else(|| Error::NotAllowed(name.into()))?
            }
            None => self.seed.bytes().map(usize::from).sum::<usize>() % requisite.len(),
        };
        let mut preferred = requisite.clone();
        preferred.rotate_left(first);
        let told = |terms: Vec<Term>| -> Vec<Topology> {
            terms
                .into_iter()
                .map(|term| Topology { segments: term.into_iter().collect() })
                .collect()
        };
        Ok(Some(TopologyRequirement { requisite: told(requisite), preferred: told(preferred) }))
    }
}

/// The nodes that a volume can be reached from.
pub fn affinity(places: &[Topology]) -> Option<VolumeNodeAffinity> {
    let term = |place: &Topology| {
        let sorted: BTreeMap<&String, &String> = place.segments.iter().collect();
        let expressions = sorted.into_iter().map(|(key, value)| NodeSelectorRequirement {
            key: key.clone(),
            operator: "In".into(),
            values: Some(vec![value.clone()]),
        });
        NodeSelectorTerm {
            match_expressions: Some(expressions.collect()),
            ..NodeSelectorTerm::default()
        }
    };
    let terms: Vec<NodeSelectorTerm> =
        places.iter().filter(|place| !place.segments.is_empty()).map(term).collect();
    (!terms.is_empty()).then_some(VolumeNodeAffinity {
        required: Some(NodeSelector { node_selector_terms: terms }),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, zone: &str) -> Box<Node> {
        serde_json::from_value(json!({"metadata": {"name": name, "labels": {"zone": zone}}}))
            .expect("a node")
    }

    fn csi_node(name: &str, keys: &Value) -> Box<CSINode> {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"drivers": [
            {"name": "d", "nodeID": name, "topologyKeys": keys}]}}))
        .expect("a CSINode")
    }

    fn told(selected: Option<&str>, allowed: &Value) -> Result<Option<Vec<String>>, Error> {
        let nodes = [node("a", "z1"), node("b", "z2"), node("c", "z2"), node("d", "z3")];
        let keys = json!(["zone"]);
        let csi_nodes = [csi_node("a", &keys), csi_node("b", &keys), csi_node("c", &keys)];
        let allowed: Vec<TopologySelectorTerm> =
            serde_json::from_value(allowed.clone()).expect("terms");
        let view = View {
            driver: "d",
            nodes: &nodes,
            csi_nodes: &csi_nodes,
            allowed: &allowed,
            selected,
            seed: "\0",
        };
        let zones = |all: Vec<Topology>| {
            all.into_iter().map(|place| place.segments["zone"].clone()).collect()
        };
        view.requirement().map(|found| found.map(|found| zones(found.preferred)))
    }

    #[test]
    fn the_selected_nodes_place_is_preferred() {
        let all = |zones: &[&str]| Ok(Some(zones.iter().map(|z| (*z).to_owned()).collect()));
        let only =
            |zones: Value| json!([{"matchLabelExpressions": [{"key": "zone", "values": zones}]}]);
        let any = json!([]);
        assert_eq!(told(None, &any), all(&["z1", "z2"]));
        assert_eq!(told(Some("c"), &any), all(&["z2", "z1"]));
        assert_eq!(told(None, &only(json!(["z2"]))), all(&["z2"]));
        assert_eq!(told(Some("a"), &only(json!(["z2"]))), Err(Error::NotAllowed("a".into())));
        assert_eq!(told(Some("d"), &any), Err(Error::NoDriver("d".into())));
        let nodes = [node("a", "z1")];
        let csi_nodes = [csi_node("a", &Value::Null)];
        let view = View {
            driver: "d",
            nodes: &nodes,
            csi_nodes: &csi_nodes,
            allowed: &[],
            selected: Some("a"),
            seed: "",
        };
        assert_eq!(view.requirement(), Ok(None));
    }

    #[test]
    fn a_volume_is_where_its_driver_says() {
        let place = Topology { segments: [("zone".to_owned(), "z1".to_owned())].into() };
        let told = serde_json::to_value(affinity(&[place])).expect("JSON");
        let terms = &told["required"]["nodeSelectorTerms"][0]["matchExpressions"];
        assert_eq!(terms, &json!([{"key": "zone", "operator": "In", "values": ["z1"]}]));
        assert_eq!(affinity(&[]), None);
    }
}
