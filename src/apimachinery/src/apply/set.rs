//! Sets of fields, as trees of steps. A node may be a member, have members below it, or both.
//!
//! Source: `sigs.k8s.io/structured-merge-diff/fieldpath`, `set.go` and `serialize.go`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::element;

/// A set of fields. No node is kept that is neither a member nor has members below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// In the order of the steps, each of which is there once.
    pub(super) nodes: Vec<(String, Node)>,
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
                let node = at.node(element::field(step));
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

    /// The place of a step, or where it would be.
    fn place(&self, step: &str) -> Result<usize, usize> {
        // Most come in their order.
        match self.nodes.last() {
            Some((last, _)) if last.as_str() < step => Err(self.nodes.len()),
            _ => self.nodes.binary_search_by(|(known, _)| known.as_str().cmp(step)),
        }
    }

    fn get(&self, step: &str) -> Option<&Node> {
        self.place(step).ok().map(|at| &self.nodes[at].1)
    }

    /// The node of a step, made if it is not there.
    fn node(&mut self, step: String) -> &mut Node {
        let at = self.place(&step).unwrap_or_else(|at| {
            self.nodes.insert(at, (step, Node::default()));
            at
        });
        &mut self.nodes[at].1
    }

    /// Puts in a step with what is below it.
    pub(super) fn attach(&mut self, step: String, member: bool, below: Self) {
        if !member && below.is_empty() {
            return;
        }
        let node = self.node(step);
        node.member |= member;
        node.below.join(below);
    }

    pub(super) fn has(&self, step: &str) -> bool {
        self.get(step).is_some_and(|node| node.member)
    }

    /// What is below a step, if anything.
    pub(super) fn below(&self, step: &str) -> Option<&Self> {
        self.get(step).map(|node| &node.below).filter(|below| !below.is_empty())
    }

    /// What is in either.
    #[must_use]
    pub fn union(mut self, other: Self) -> Self {
        self.join(other);
        self
    }

    fn join(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
            return;
        }
        if other.is_empty() {
            return;
        }
        let mut mine = std::mem::take(&mut self.nodes).into_iter().peekable();
        let mut theirs = other.nodes.into_iter().peekable();
        self.nodes.reserve(mine.len().max(theirs.len()));
        loop {
            let order = match (mine.peek(), theirs.peek()) {
                (Some((a, _)), Some((b, _))) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return,
            };
            let mut next = if order == Ordering::Greater { theirs.next() } else { mine.next() };
            if order == Ordering::Equal
                && let (Some((_, node)), Some((_, their))) = (&mut next, theirs.next())
            {
                node.member |= their.member;
                node.below.join(their.below);
            }
            self.nodes.extend(next);
        }
    }

    /// Whether everything in this set is in `other`.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.nodes.iter().all(|(step, mine)| {
            other.get(step).is_some_and(|theirs| {
                (theirs.member || !mine.member) && mine.below.is_within(&theirs.below)
            })
        })
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let both = |(step, mine): &(String, Node)| {
            let theirs = other.get(step)?;
            let node = Node {
                member: mine.member && theirs.member,
                below: mine.below.intersection(&theirs.below),
            };
            (!node.is_empty()).then(|| (step.clone(), node))
        };
        if other.is_empty() {
            return Self::default();
        }
        Self { nodes: self.nodes.iter().filter_map(both).collect() }
    }

    /// What is in this set and not in `other`; a member does not take what is below it along.
    #[must_use]
    pub fn difference(mut self, other: &Self) -> Self {
        self.subtract(other, false);
        self
    }

    /// What is in this set and neither in `other` nor below a member of it.
    #[must_use]
    pub fn recursive_difference(mut self, other: &Self) -> Self {
        self.subtract(other, true);
        self
    }

    fn subtract(&mut self, other: &Self, recursive: bool) {
        if other.is_empty() {
            return;
        }
        self.nodes.retain_mut(|(step, mine)| {
            let Some(theirs) = other.get(step) else { return true };
            if theirs.member && recursive {
                return false;
            }
            mine.member &= !theirs.member;
            mine.below.subtract(&theirs.below, recursive);
            !mine.is_empty()
        });
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
    pub fn into_value(self) -> Value {
        self.into_map(false).into()
    }

    fn into_map(self, member: bool) -> Map<String, Value> {
        let mut map = Map::new();
        if member && !self.is_empty() {
            map.insert(".".into(), Map::new().into());
        }
        for (step, node) in self.nodes {
            map.insert(step, node.below.into_map(node.member).into());
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
        let mut found = Vec::with_capacity(map.len());
        for (text, value) in map {
            if text == "." {
                continue;
            }
            let Some(step) = element::parse(text)? else { continue };
            let below = Self::from_value(value)?;
            let member =
                value.as_object().is_none_or(|map| map.is_empty() || map.contains_key("."));
            found.push((step, Node { member, below }));
        }
        Ok(found.into_iter().collect())
    }
}

impl FromIterator<(String, Node)> for Set {
    /// Puts the steps in order first: nobody can make it slow by another.
    fn from_iter<T: IntoIterator<Item = (String, Node)>>(nodes: T) -> Self {
        let mut nodes: Vec<(String, Node)> = nodes.into_iter().collect();
        if nodes.is_sorted_by(|(a, _), (b, _)| a < b) {
            nodes.retain(|(_, node)| !node.is_empty());
            return Self { nodes };
        }
        nodes.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut set = Self { nodes: Vec::with_capacity(nodes.len()) };
        for (step, node) in nodes {
            set.attach(step, node.member, node.below);
        }
        set
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
        assert_eq!(set.clone().into_value(), fields);
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
            Set::of_fields(&["a.b", "c"]).into_value(),
            json!({"f:a": {"f:b": {}}, "f:c": {}})
        );
    }

    #[test]
    fn differences_are_by_member_or_by_subtree() {
        let all = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let a = set(json!({"f:a": {}}));
        assert_eq!(all.clone().difference(&a).into_value(), json!({"f:a": {"f:b": {}}, "f:c": {}}));
        assert_eq!(all.clone().recursive_difference(&a).into_value(), json!({"f:c": {}}));
        assert_eq!(all.intersection(&a).into_value(), json!({"f:a": {}}));
        assert_eq!(
            a.clone().union(set(json!({"f:c": {}}))).into_value(),
            json!({"f:a": {}, "f:c": {}})
        );
        assert!(all.clone().difference(&all).is_empty());
        assert!(a.is_within(&all) && all.is_within(&all) && !all.is_within(&a));
        assert!(!set(json!({"f:a": {"f:b": {}}})).is_within(&set(json!({"f:a": {}}))));
        assert!(!a.is_within(&set(json!({"f:a": {"f:b": {}}}))));
    }
}
