//! Sets of fields, as trees of steps. A node may be a member, have members below it, or both.
//!
//! Source: `sigs.k8s.io/structured-merge-diff/fieldpath`, `set.go` and `serialize.go`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::element;

/// A set of fields. No node is kept that is neither a member nor has members below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub(super) nodes: BTreeMap<String, Node>,
}

/// One step in a [`Set`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) member: bool,
    pub(super) below: Set,
}

impl Node {
    fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }
}

impl Set {
    /// A set of plain field paths, such as `["metadata.name"]`.
    pub fn of_fields(paths: &[&str]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let mut at = &mut set;
            let mut steps = path.split('.').peekable();
            while let Some(step) = steps.next() {
                let node = at.nodes.entry(element::field(step)).or_default();
                node.member |= steps.peek().is_none();
                at = &mut node.below;
            }
        }
        set
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Puts in a step with what is below it.
    pub(super) fn attach(&mut self, step: String, member: bool, below: Self) {
        if !member && below.is_empty() {
            return;
        }
        match self.nodes.entry(step) {
            Entry::Vacant(vacant) => drop(vacant.insert(Node { member, below })),
            Entry::Occupied(mut found) => {
                let node = found.get_mut();
                node.member |= member;
                node.below = std::mem::take(&mut node.below).union(&below);
            }
        }
    }

    pub(super) fn has(&self, step: &str) -> bool {
        self.nodes.get(step).is_some_and(|node| node.member)
    }

    /// What is below a step, if anything.
    pub(super) fn below(&self, step: &str) -> Option<&Self> {
        self.nodes.get(step).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    /// What is in either.
    #[must_use]
    pub fn union(mut self, other: &Self) -> Self {
        for (step, theirs) in &other.nodes {
            match self.nodes.entry(step.clone()) {
                Entry::Vacant(vacant) => drop(vacant.insert(theirs.clone())),
                Entry::Occupied(mut found) => {
                    let node = found.get_mut();
                    node.member |= theirs.member;
                    node.below = std::mem::take(&mut node.below).union(&theirs.below);
                }
            }
        }
        self
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let both = |step: &String, mine: &Node| {
            let theirs = other.nodes.get(step)?;
            let node = Node {
                member: mine.member && theirs.member,
                below: mine.below.intersection(&theirs.below),
            };
            (!node.is_empty()).then(|| (step.clone(), node))
        };
        Self { nodes: self.nodes.iter().filter_map(|(step, mine)| both(step, mine)).collect() }
    }

    /// What is in this set and not in `other`; a member does not take what is below it along.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        self.nodes.retain(|step, mine| {
            let Some(theirs) = other.nodes.get(step) else { return true };
            mine.member &= !theirs.member;
            mine.below = std::mem::take(&mut mine.below).difference(&theirs.below);
            !mine.is_empty()
        });
        self
    }

    /// What is in this set and neither in `other` nor below a member of it.
    #[must_use]
    pub fn recursive_difference(mut self, other: &Self) -> Self {
        self.nodes.retain(|step, mine| {
            let Some(theirs) = other.nodes.get(step) else { return true };
            if theirs.member {
                return false;
            }
            mine.below = std::mem::take(&mut mine.below).recursive_difference(&theirs.below);
            !mine.is_empty()
        });
        self
    }

    /// The members as messages show them, those of a level before those below it.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, prefix: &str, paths: &mut Vec<String>) {
        for (step, node) in &self.nodes {
            if node.member {
                paths.push(format!("{prefix}{}", element::show(step)));
            }
        }
        for (step, node) in self.nodes.iter().filter(|(_, node)| !node.below.is_empty()) {
            node.below.collect(&format!("{prefix}{}", element::show(step)), paths);
        }
    }

    /// The set as `FieldsV1`.
    pub fn to_value(&self) -> Value {
        self.to_map(false).into()
    }

    fn to_map(&self, member: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if member && !self.is_empty() {
            map.insert(".".into(), Map::new().into());
        }
        for (step, node) in &self.nodes {
            map.insert(step.clone(), node.below.to_map(node.member).into());
        }
        map
    }

    /// Reads `FieldsV1`; absence is the empty set.
    pub fn from_value(value: &Value) -> Result<Self, String> {
        let Value::Object(map) = value else {
            return if value.is_null() {
                Ok(Self::default())
            } else {
                Err(format!("ReadObjectCB: expect {{ or n, but found {value}"))
            };
        };
        let mut set = Self::default();
        for (text, value) in map {
            if text == "." {
                continue;
            }
            let Some(step) = element::parse(text)? else { continue };
            let below = Self::from_value(value)?;
            let member =
                value.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."));
            set.attach(step, member, below);
        }
        Ok(set)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> Set {
        Set::from_value(&value).unwrap()
    }

    #[test]
    fn sets_are_written_as_they_are_read() {
        let fields = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:ports": {"k:{\"port\":80}": {".": {}, "f:port": {}}}}});
        let set = set(fields.clone());
        assert_eq!(set.to_value(), fields);
        assert_eq!(
            set.paths(),
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.ports[port=80]",
                ".spec.ports[port=80].port"
            ]
        );
        assert!(Set::from_value(&json!({"a": {}})).is_err());
        assert_eq!(
            Set::of_fields(&["a.b", "c"]).to_value(),
            json!({"f:a": {"f:b": {}}, "f:c": {}})
        );
    }

    #[test]
    fn differences_are_by_member_or_by_subtree() {
        let all = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let a = set(json!({"f:a": {}}));
        assert_eq!(all.clone().difference(&a).to_value(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
        assert_eq!(all.clone().recursive_difference(&a).to_value(), json!({"f:c": {}}));
        assert_eq!(all.intersection(&a).to_value(), json!({"f:a": {}}));
        assert_eq!(a.union(&set(json!({"f:c": {}}))).to_value(), json!({"f:a": {}, "f:c": {}}));
        assert!(all.clone().difference(&all).is_empty());
    }
}
