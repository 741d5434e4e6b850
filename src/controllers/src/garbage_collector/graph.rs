//! Who owns whom, and what follows from it. No I/O.

use std::collections::{HashMap, HashSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Finalizer of an object that waits for its dependents to go.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an object whose dependents are to stay.
pub const ORPHAN: &str = "orphan";

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// `apiVersion` and kind.
    pub kind: (String, String),
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
    deleting: bool,
}

impl Node {
    /// The object of `kind` with this metadata.
    pub fn new(kind: &(String, String), meta: &ObjectMeta) -> Self {
        Self {
            kind: kind.clone(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    fn holds(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|held| held == finalizer)
    }

    /// Whether the reference of a dependent in `namespace` means this object. One to an object of another
    /// namespace means nothing that there is.
    fn is_meant_by(&self, namespace: &str, owner: &OwnerReference) -> bool {
        (self.namespace.is_empty() || self.namespace == namespace)
            && self.kind.1 == owner.kind
            && self.name == owner.name
    }

    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.holds(FOREGROUND)
    }
}

/// How dependents of a deleted object fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// They go afterwards.
    Background,
    /// They go first.
    Foreground,
    /// They stay.
    Orphan,
}

/// What to do about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Leave it.
    Nothing,
    /// Delete it.
    Delete(Policy),
    /// Delete it and its dependents first, but let it block none of its owners: one of them waits, by way
    /// of a circle, for the object itself.
    DeleteUnblocked,
    /// Remove the references to these owners: others still want the object.
    DropOwners(HashSet<String>),
    /// Free these dependents, then the object's `orphan` finalizer.
    Orphan(Vec<Node>),
    /// Look at these dependents, which block the object's deletion.
    DeleteDependents(Vec<String>),
    /// Nothing blocks the object's deletion any more.
    Release,
}

/// All objects with their owners.
#[derive(Default)]
pub struct Graph {
    nodes: HashMap<String, Node>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Node> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.nodes.get(uid))
    }

    /// Takes in an object that appeared or changed; returns the uids to look at.
    pub fn apply(&mut self, node: Node) -> Vec<String> {
        let uid = node.uid.clone();
        if self.nodes.get(&uid) == Some(&node) {
            // Its status has changed, or nothing.
            return Vec::new();
        }
        let old = self.nodes.insert(uid.clone(), node.clone());
        let mut touched = Vec::new();
        for owner in old.iter().flat_map(|old| &old.owners) {
            let still = node.owners.iter().find(|o| o.uid == owner.uid);
            let Some(dependents) = self.dependents.get_mut(&owner.uid) else { continue };
            if still.is_none() {
                dependents.remove(&uid);
            }
            let blocked = owner.block_owner_deletion == Some(true);
            let blocks = still.is_some_and(|owner| owner.block_owner_deletion == Some(true));
            if still.is_none() || blocked && !blocks {
                // The owner may have waited for this dependent.
                touched.push(owner.uid.clone());
            }
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        if !node.owners.is_empty() || node.deleting {
            touched.push(uid);
        }
        touched
    }

    /// Forgets an object that is gone; returns the uids to look at.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.remove(uid) else { return Vec::new() };
        let mut touched: Vec<String> = Vec::new();
        for owner in &node.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            touched.push(owner.uid.clone());
        }
        touched.extend(self.dependents.get(uid).into_iter().flatten().cloned());
        touched
    }

    /// Forgets objects of `kind` that a fresh list does not have.
    pub fn retain(&mut self, kind: &(String, String), listed: &HashSet<String>) -> Vec<String> {
        let gone: Vec<String> = self
            .nodes
            .values()
            .filter(|node| node.kind == *kind && !listed.contains(&node.uid))
            .map(|node| node.uid.clone())
            .collect();
        gone.iter().flat_map(|uid| self.remove(uid)).collect()
    }

    /// The object, and those of its owners that are not known: whether they exist must be asked.
    pub fn look(&self, uid: &str) -> Option<(Node, Vec<OwnerReference>)> {
        let node = self.nodes.get(uid)?;
        let unknown = node.owners.iter().filter(|owner| self.owner(node, owner).is_none());
        Some((node.clone(), unknown.cloned().collect()))
    }

    /// The object that `owner` of `node` means.
    fn owner(&self, node: &Node, owner: &OwnerReference) -> Option<&Node> {
        self.nodes.get(&owner.uid).filter(|found| found.is_meant_by(&node.namespace, owner))
    }

    /// What to do about an object, when the owners in `absent` are known not to exist.
    pub fn decide(&self, uid: &str, absent: &HashSet<String>) -> Action {
        let Some(node) = self.nodes.get(uid) else { return Action::Nothing };
        if node.deleting {
            if node.holds(ORPHAN) {
                return Action::Orphan(self.dependents_of(uid).cloned().collect());
            }
            if !node.holds(FOREGROUND) {
                return Action::Nothing;
            }
            let blocking: Vec<&Node> = self
                .dependents_of(uid)
                .filter(|dependent| {
                    dependent
                        .owners
                        .iter()
                        .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
                })
                .collect();
            if blocking.is_empty() {
                return Action::Release;
            }
            let going = blocking.iter().filter(|dependent| !dependent.deleting);
            return Action::DeleteDependents(going.map(|node| node.uid.clone()).collect());
        }
        let mut unwanted = HashSet::new();
        let (mut solid, mut waiting) = (false, false);
        for owner in &node.owners {
            match self.owner(node, owner) {
                Some(found) if found.waits_for_dependents() => {
                    waiting = true;
                    unwanted.insert(owner.uid.clone());
                }
                None if absent.contains(&owner.uid) => {
                    unwanted.insert(owner.uid.clone());
                }
                _ => solid = true,
            }
        }
        if unwanted.is_empty() {
            return Action::Nothing;
        }
        if solid {
            return Action::DropOwners(unwanted);
        }
        if node.holds(ORPHAN) {
            return Action::Delete(Policy::Orphan);
        }
        let has_dependents = self.dependents_of(uid).next().is_some();
        if waiting && self.dependents_of(uid).any(Node::waits_for_dependents) {
            return Action::DeleteUnblocked;
        }
        if node.holds(FOREGROUND) || (waiting && has_dependents) {
            return Action::Delete(Policy::Foreground);
        }
        Action::Delete(Policy::Background)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(uid: &str, owners: &[&str], finalizers: &[&str], deleting: bool) -> Node {
        let owner = |uid: &&str| OwnerReference {
            uid: (*uid).into(),
            name: (*uid).into(),
            kind: "ConfigMap".into(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        };
        Node {
            kind: ("v1".into(), "ConfigMap".into()),
            namespace: "n".into(),
            name: uid.into(),
            uid: uid.into(),
            owners: owners.iter().map(owner).collect(),
            finalizers: finalizers.iter().map(|s| (*s).into()).collect(),
            deleting,
        }
    }

    fn graph(nodes: &[Node]) -> Graph {
        let mut graph = Graph::default();
        for node in nodes {
            graph.apply(node.clone());
        }
        graph
    }

    fn set(uids: &[&str]) -> HashSet<String> {
        uids.iter().map(|uid| (*uid).into()).collect()
    }

    #[test]
    fn decisions() {
        let plain = node("a", &["o"], &[], false);
        let held = node("o", &[], &[FOREGROUND], true);
        let cases: &[(&[Node], &str, &[&str], Action)] = &[
            (&[node("o", &[], &[], false), plain.clone()], "a", &[], Action::Nothing),
            (std::slice::from_ref(&plain), "a", &["o"], Action::Delete(Policy::Background)),
            // An owner that is only not known yet is no reason.
            (std::slice::from_ref(&plain), "a", &[], Action::Nothing),
            (
                &[node("p", &[], &[], false), node("a", &["o", "p"], &[], false)],
                "a",
                &["o"],
                Action::DropOwners(set(&["o"])),
            ),
            (&[held.clone(), plain.clone()], "o", &[], Action::DeleteDependents(vec!["a".into()])),
            (&[held.clone(), plain.clone()], "a", &[], Action::Delete(Policy::Background)),
            (
                &[held.clone(), plain.clone(), node("b", &["a"], &[], false)],
                "a",
                &[],
                Action::Delete(Policy::Foreground),
            ),
            (
                &[
                    node("o", &["b"], &[FOREGROUND], true),
                    node("a", &["o"], &[FOREGROUND], true),
                    node("b", &["a"], &[], false),
                ],
                "b",
                &[],
                Action::DeleteUnblocked,
            ),
            (
                &[held.clone(), node("a", &["o"], &[], true)],
                "o",
                &[],
                Action::DeleteDependents(vec![]),
            ),
            (std::slice::from_ref(&held), "o", &[], Action::Release),
            (
                &[node("o", &[], &[ORPHAN], true), plain.clone()],
                "o",
                &[],
                Action::Orphan(vec![plain.clone()]),
            ),
            (&[node("a", &["o"], &[ORPHAN], false)], "a", &["o"], Action::Delete(Policy::Orphan)),
        ];
        for (nodes, uid, absent, want) in cases {
            assert_eq!(graph(nodes).decide(uid, &set(absent)), *want, "{uid} in {nodes:?}");
        }
    }

    #[test]
    fn an_owner_in_another_namespace_is_none() {
        let mut far = node("o", &[], &[], false);
        far.namespace = "m".into();
        let mut wide = node("w", &[], &[], false);
        wide.namespace = String::new();
        let graph =
            graph(&[far, wide, node("a", &["o"], &[], false), node("b", &["w"], &[], false)]);
        let unknown = |uid: &str| graph.look(uid).expect("known").1.len();
        assert_eq!((unknown("a"), unknown("b")), (1, 0));
        assert_eq!(graph.decide("a", &set(&["o"])), Action::Delete(Policy::Background));
    }

    #[test]
    fn only_what_has_changed_is_looked_at() {
        let mut graph = graph(&[node("o", &[], &[], false)]);
        // As the dependent that closes a circle is made to block its owner no more.
        let mut unblocked = node("a", &["o"], &[], false);
        unblocked.owners[0].block_owner_deletion = Some(false);
        for (applied, touched) in [
            (node("a", &["o"], &[], false), &["a"][..]),
            (node("a", &["o"], &[], false), &[]),
            (unblocked, &["o", "a"]),
            (node("a", &["o"], &[FOREGROUND], true), &["a"]),
            (node("a", &["p"], &[FOREGROUND], true), &["o", "a"]),
        ] {
            assert_eq!(graph.apply(applied.clone()), touched, "{applied:?}");
        }
    }

    #[test]
    fn what_is_gone_touches_its_family() {
        let mut graph = graph(&[
            node("o", &[], &[], false),
            node("a", &["o"], &[], false),
            node("b", &["a"], &[], false),
        ]);
        assert_eq!(graph.remove("a"), ["o", "b"]);
        let kind = ("v1".into(), "ConfigMap".into());
        assert!(graph.retain(&kind, &set(&["b"])).is_empty());
        assert!(graph.look("o").is_none() && graph.look("b").is_some());
    }
}
