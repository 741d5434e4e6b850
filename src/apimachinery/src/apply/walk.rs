//! The walks over typed values: which fields there are, what differs, what comes of a merge, what is left.
//!
//! Source: `sigs.k8s.io/structured-merge-diff/typed`: `validate.go`, `tofieldset.go`, `compare.go`,
//! `merge.go`, `remove.go`, `reconcile_schema.go`.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::element;
use super::set::{Node, Set};
use super::typed::{Atom, Fields, Names, Typed};

/// What differs between two values.
#[derive(Clone, Debug, Default)]
pub(super) struct Diff {
    pub(super) added: Set,
    pub(super) modified: Set,
    pub(super) removed: Set,
}

impl Diff {
    /// Without the `ignored` fields and what is below them.
    pub(super) fn without(self, ignored: &Set) -> Self {
        Self {
            added: self.added.recursive_difference(ignored),
            modified: self.modified.recursive_difference(ignored),
            removed: self.removed.recursive_difference(ignored),
        }
    }

    fn attach(&mut self, mut step: String, mark: Mark, below: Self) {
        let sets = [
            (&mut self.added, mark == Mark::Added, below.added),
            (&mut self.modified, mark == Mark::Modified, below.modified),
            (&mut self.removed, mark == Mark::Removed, below.removed),
        ];
        let concerned = |member: bool, below: &Set| member || !below.is_empty();
        let mut left = sets.iter().filter(|(_, member, below)| concerned(*member, below)).count();
        for (set, member, below) in sets {
            if !concerned(member, &below) {
                continue;
            }
            left -= 1;
            let own = if left == 0 { std::mem::take(&mut step) } else { step.clone() };
            set.attach(own, member, below);
        }
    }
}

/// What became of the value itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Same,
    Added,
    Modified,
    Removed,
}

/// One mistake in a value: where, and what.
pub(super) type Mistake = (String, String);

/// Everything that keeps `value` from being of its type.
pub(super) fn validate(of: Typed<'_>, value: &Value, mistakes: &mut Vec<Mistake>) {
    if let Some(text) = of.mistake(value) {
        mistakes.push((String::new(), text));
        return;
    }
    match (of.atom(value), value) {
        (Atom::Items(names, items), Value::Array(list)) => {
            let mut seen = HashSet::new();
            for (index, child) in list.iter().enumerate() {
                let step = match of.step(names, child) {
                    Ok(step) => step,
                    Err(text) => {
                        mistakes.push((String::new(), format!("element {index}: {text}")));
                        return;
                    }
                };
                if seen.contains(&step) {
                    let shown = element::show(&step);
                    mistakes.push((String::new(), format!("duplicate entries for key {shown}")));
                }
                let from = mistakes.len();
                validate(items, child, mistakes);
                prefix(mistakes, from, &step);
                seen.insert(step);
            }
        }
        (Atom::Fields(fields), Value::Object(map)) => validate_fields(fields, map, mistakes),
        // What is owned as one is looked at all the same.
        (Atom::Leaf, Value::Array(list)) => {
            let Some(items) = of.items() else { return };
            for (index, child) in list.iter().enumerate() {
                let from = mistakes.len();
                validate(items, child, mistakes);
                prefix(mistakes, from, &format!("i:{index}"));
            }
        }
        (Atom::Leaf, Value::Object(map)) => {
            if let Some(fields) = of.fields() {
                validate_fields(fields, map, mistakes);
            }
        }
        _ => {}
    }
}

fn validate_fields(fields: Fields<'_>, map: &Map<String, Value>, mistakes: &mut Vec<Mistake>) {
    for (name, child) in map {
        let from = mistakes.len();
        let of = fields.child(name);
        match of {
            Some(of) => validate(of, child, mistakes),
            None => mistakes.push((String::new(), "field not declared in schema".into())),
        }
        prefix(mistakes, from, &element::field(name));
        // An undeclared field ends the look at its siblings.
        if of.is_none() {
            return;
        }
    }
}

/// Puts `step` before the paths of the mistakes since `from`.
fn prefix(mistakes: &mut [Mistake], from: usize, step: &str) {
    for (path, _) in &mut mistakes[from..] {
        path.insert_str(0, &element::show(step));
    }
}

/// The paths of lists and objects in a value that are owned as a whole.
pub(super) fn atomic_parts(of: Typed<'_>, value: &Value) -> Vec<String> {
    let below = |step: &str, of: Typed<'_>, value: &Value| {
        let step = element::show(step);
        let parts = atomic_parts(of, value).into_iter();
        parts.map(move |part| format!("{step}{part}")).collect::<Vec<_>>()
    };
    let is_whole = of.is_declared() && matches!(of.atom(value), Atom::Leaf);
    let mut parts = Vec::new();
    match value {
        Value::Object(map) => {
            let Some(fields) = of.fields() else { return parts };
            if is_whole {
                parts.push(String::new());
            }
            for (name, child) in map {
                if let Some(of) = fields.child(name) {
                    parts.extend(below(&element::field(name), of, child));
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = of.items() else { return parts };
            if is_whole {
                parts.push(String::new());
            }
            for (index, child) in list.iter().enumerate() {
                parts.extend(below(&format!("i:{index}"), items, child));
            }
        }
        _ => {}
    }
    parts
}

/// Every leaf, item and map entry of a value.
pub(super) fn fields_of(of: Typed<'_>, value: &Value) -> Set {
    below(of, value).0
}

/// What is below a value, and whether it is a leaf itself.
fn below(of: Typed<'_>, value: &Value) -> (Set, bool) {
    let mut set = Set::default();
    match (of.atom(value), value) {
        (Atom::Leaf, _) => return (set, true),
        (Atom::Items(names, items), Value::Array(list)) => {
            let mut counts: HashMap<String, usize> = HashMap::new();
            let steps: Vec<Option<String>> =
                list.iter().map(|child| of.step(names, child).ok()).collect();
            for step in steps.iter().flatten() {
                *counts.entry(step.clone()).or_default() += 1;
            }
            let named = list.iter().zip(steps).filter_map(|(child, step)| {
                let step = step?;
                // Of items that are there twice nobody can own a part.
                let below = if counts[&step] > 1 { Set::default() } else { below(items, child).0 };
                Some((step, Node { member: true, below }))
            });
            set = named.collect();
        }
        (Atom::Fields(fields), Value::Object(map)) => {
            for (name, child) in map {
                let Some(of) = fields.child(name) else { continue };
                let (inner, leaf) = below(of, child);
                let empty = child.is_null() || child.as_object().is_some_and(Map::is_empty);
                set.attach(element::field(name), leaf || empty || !fields.declares(name), inner);
            }
        }
        _ => {}
    }
    (set, false)
}

/// What differs between two whole objects, but for who owns their fields.
pub(super) fn compare(of: Typed<'_>, old: &Value, new: &Value) -> Diff {
    let mut found = Diff::default();
    let (Atom::Fields(fields), Atom::Fields(_)) = (of.atom(old), of.atom(new)) else {
        return if old == new { found } else { diff(of, Some(old), Some(new), Place::Below).1 };
    };
    diff_fields(fields, Some(old), Some(new), Place::Root, &mut found);
    found
}

/// Where a walk is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Root,
    /// In the root's metadata.
    Metadata,
    Below,
}

impl Place {
    fn child(self, name: &str) -> Self {
        if self == Self::Root && name == "metadata" { Self::Metadata } else { Self::Below }
    }

    /// Whether a field here is the server's record of owners, which is no part of the object.
    fn is_record(self, name: &str) -> bool {
        self == Self::Metadata && name == "managedFields"
    }
}

fn leaf(old: Option<&Value>, new: Option<&Value>) -> Mark {
    match (old, new) {
        (None, _) => Mark::Added,
        (_, None) => Mark::Removed,
        (Some(old), Some(new)) if old == new => Mark::Same,
        _ => Mark::Modified,
    }
}

fn is_void(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

/// What differs between two values that are not equal, and what became of the value itself.
fn diff(of: Typed<'_>, old: Option<&Value>, new: Option<&Value>, place: Place) -> (Mark, Diff) {
    let mut found = Diff::default();
    if let (None, Some(new)) = (old, new) {
        found.added = added(of, new);
        return (Mark::Added, found);
    }
    let atom = match (old, new) {
        (Some(Value::Null), Some(new)) => of.atom(new),
        (Some(old), Some(Value::Null)) => of.atom(old),
        (Some(was), Some(is)) => match (of.atom(was), of.atom(is)) {
            // What was below goes, what is below comes, and the value itself is another.
            (Atom::Fields(fields), Atom::Leaf) if !is_void(old) => {
                diff_fields(fields, old, None, place, &mut found);
                return (Mark::Modified, found);
            }
            (Atom::Leaf, Atom::Fields(fields)) if !is_void(new) => {
                diff_fields(fields, None, new, place, &mut found);
                return (Mark::Modified, found);
            }
            (Atom::Leaf, _) | (_, Atom::Leaf) => Atom::Leaf,
            (atom, _) => atom,
        },
        (Some(one), None) | (None, Some(one)) => of.atom(one),
        (None, None) => Atom::Leaf,
    };
    if matches!(atom, Atom::Leaf) || (is_void(old) && is_void(new)) {
        return (leaf(old, new), found);
    }
    match atom {
        Atom::Fields(fields) => diff_fields(fields, old, new, place, &mut found),
        Atom::Items(names, items) => diff_items(of, names, items, old, new, &mut found),
        Atom::Leaf => {}
    }
    let mark = match (old, new) {
        (None, _) => Mark::Added,
        (_, None) => Mark::Removed,
        _ => Mark::Same,
    };
    (mark, found)
}

/// What is below a value that was not there: all of it is new.
fn added(of: Typed<'_>, value: &Value) -> Set {
    match (of.atom(value), value) {
        (Atom::Fields(fields), Value::Object(map)) => {
            let of_field = |(name, value): (&String, &Value)| {
                let below = added(fields.child(name)?, value);
                Some((element::field(name), Node { member: true, below }))
            };
            map.iter().filter_map(of_field).collect()
        }
        (Atom::Items(names, items), Value::Array(_)) => {
            let (order, mut found) = index(of, names, Some(value));
            let of_item = |step: String| {
                let below = match found.remove(&step).as_deref() {
                    Some([one]) => added(items, one),
                    _ => Set::default(),
                };
                (step, Node { member: true, below })
            };
            order.into_iter().map(of_item).collect()
        }
        _ => Set::default(),
    }
}

fn diff_fields(
    fields: Fields<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    place: Place,
    found: &mut Diff,
) {
    let none = Map::new();
    let (a, b) = (old.and_then(Value::as_object), new.and_then(Value::as_object));
    for (name, mut l, mut r) in paired(a.unwrap_or(&none), b.unwrap_or(&none)) {
        if place.is_record(name) {
            continue;
        }
        let inner = place.child(name);
        // A record within makes them unequal, and is found below.
        if l == r && inner != Place::Metadata {
            continue;
        }
        let Some(of) = fields.child(name) else { continue };
        if l.is_none() && a.is_some() {
            l = fields.zero(name);
        }
        if r.is_none() && b.is_some() {
            r = fields.zero(name);
        }
        let (mark, below) = diff(of, l, r, inner);
        found.attach(element::field(name), mark, below);
    }
}

/// The entries of two maps by their names, in order.
fn paired<'v>(
    a: &'v Map<String, Value>,
    b: &'v Map<String, Value>,
) -> impl Iterator<Item = (&'v str, Option<&'v Value>, Option<&'v Value>)> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (Some((x, _)), Some((y, _))) => x.cmp(y),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let left = if order == Ordering::Greater { None } else { a.next() };
        let right = if order == Ordering::Less { None } else { b.next() };
        let (name, _) = left.or(right)?;
        Some((name.as_str(), left.map(|(_, value)| value), right.map(|(_, value)| value)))
    })
}

/// The items of a list by step, in order; several where the list has the step twice.
fn index<'v>(
    of: Typed<'_>,
    names: Names<'_>,
    list: Option<&'v Value>,
) -> (Vec<String>, HashMap<String, Vec<&'v Value>>) {
    let list = list.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (mut order, mut items) = (Vec::new(), HashMap::<String, Vec<&Value>>::new());
    for child in list {
        let Ok(step) = of.step(names, child) else { continue };
        let known = items.entry(step.clone()).or_default();
        if known.is_empty() {
            order.push(step);
        }
        known.push(child);
    }
    (order, items)
}

fn diff_items(
    of: Typed<'_>,
    names: Names<'_>,
    items: Typed<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    found: &mut Diff,
) {
    let (old_order, old_items) = index(of, names, old);
    let (new_order, new_items) = index(of, names, new);
    let only_new = new_order.iter().filter(|step| !old_items.contains_key(*step));
    let mut steps: Vec<&String> = old_order.iter().chain(only_new).collect();
    steps.sort_unstable();
    for step in steps {
        let (l, r) = (old_items.get(step), new_items.get(step));
        if l == r {
            continue;
        }
        let single = |side: Option<&Vec<&Value>>| side.is_none_or(|list| list.len() == 1);
        if single(l) && single(r) {
            let (l, r) = (l.map(|list| list[0]), r.map(|list| list[0]));
            let (mark, inner) = diff(items, l, r, Place::Below);
            found.attach(step.clone(), mark, inner);
            continue;
        }
        let mark = match (l, r) {
            (None, _) => Mark::Added,
            (_, None) => Mark::Removed,
            _ => Mark::Modified,
        };
        found.attach(step.clone(), mark, Diff::default());
    }
}

/// `old` with everything that `new` says.
pub(super) fn merge(of: Typed<'_>, old: &Value, new: &Value) -> Value {
    merge_at(of, old, new, Place::Below)
}

/// The same of whole objects, without who owns their fields.
pub(super) fn merge_objects(of: Typed<'_>, old: &Value, new: &Value) -> Value {
    merge_at(of, old, new, Place::Root)
}

fn merge_at(of: Typed<'_>, old: &Value, new: &Value, place: Place) -> Value {
    let atom = match (of.atom(old), of.atom(new)) {
        (atom, _) if new.is_null() && !is_void(Some(old)) => atom,
        (_, atom) if old.is_null() => atom,
        (Atom::Leaf, _) | (_, Atom::Leaf) => return new.clone(),
        (atom, _) => atom,
    };
    if is_void(Some(old)) && is_void(Some(new)) {
        return new.clone();
    }
    match atom {
        Atom::Leaf => new.clone(),
        Atom::Fields(fields) => {
            let none = Map::new();
            let (old, new) = (old.as_object().unwrap_or(&none), new.as_object().unwrap_or(&none));
            let merged = paired(old, new).filter_map(|(name, old, new)| {
                if place.is_record(name) {
                    return None;
                }
                let place = place.child(name);
                let value = match (old, new, fields.child(name)) {
                    (Some(old), Some(new), Some(of)) => merge_at(of, old, new, place),
                    (old, new, _) => new.or(old)?.clone(),
                };
                Some((name.to_owned(), value))
            });
            merged.collect::<Map<_, _>>().into()
        }
        Atom::Items(names, items) => merge_items(of, names, items, old, new),
    }
}

/// Items in the order of `new` where it names them; the others keep their places between them.
fn merge_items(
    of: Typed<'_>,
    names: Names<'_>,
    items: Typed<'_>,
    old: &Value,
    new: &Value,
) -> Value {
    let (old_order, old_items) = index(of, names, Some(old));
    let (new_order, new_items) = index(of, names, Some(new));
    let mut out = Vec::with_capacity(old_order.len() + new_order.len());
    let mut shared = new_order.iter().filter(|step| old_items.contains_key(*step)).peekable();
    let (mut at_old, mut at_new) = (0, 0);
    while at_old < old_order.len() || at_new < new_order.len() {
        let (mine, theirs) = (old_order.get(at_old), new_order.get(at_new));
        if let (Some(step), Some(other)) = (mine, theirs) {
            if step == other {
                out.push(merge(items, old_items[step][0], new_items[step][0]));
                at_old += 1;
                at_new += 1;
                shared.next();
                continue;
            }
            if new_items.contains_key(step) && shared.peek().is_some_and(|next| *next != step) {
                at_old += 1;
                continue;
            }
        }
        if let Some(step) = mine
            && !new_items.contains_key(step)
        {
            out.extend(old_items[step].iter().map(|item| (*item).clone()));
            at_old += 1;
            continue;
        }
        if let Some(step) = theirs {
            let theirs = new_items[step][0];
            out.push(match old_items.get(step) {
                Some(mine) => merge(items, mine[0], theirs),
                None => theirs.clone(),
            });
            at_new += 1;
            if shared.peek().is_some_and(|next| *next == step) {
                shared.next();
            }
        } else {
            at_old += 1;
        }
    }
    out.into()
}

/// `value` without what is in `set`; null when nothing is left.
pub(super) fn remove(of: Typed<'_>, value: &Value, set: &Set) -> Value {
    match (of.atom(value), value) {
        (Atom::Items(names, items), Value::Array(list)) => {
            let mut kept = Vec::with_capacity(list.len());
            for child in list {
                let step = of.step(names, child).unwrap_or_default();
                if set.has(&step) {
                    continue;
                }
                kept.push(match set.below(&step) {
                    Some(below) => remove(items, child, below),
                    None => child.clone(),
                });
            }
            if kept.is_empty() { Value::Null } else { kept.into() }
        }
        (Atom::Fields(fields), Value::Object(map)) => {
            let mut kept = Map::new();
            for (name, child) in map {
                let step = element::field(name);
                if set.has(&step) {
                    continue;
                }
                let left = match (set.below(&step), fields.child(name)) {
                    (Some(below), Some(of)) => remove(of, child, below),
                    _ => child.clone(),
                };
                kept.insert(name.clone(), left);
            }
            if kept.is_empty() { Value::Null } else { kept.into() }
        }
        (Atom::Leaf, Value::Array(_) | Value::Object(_)) => Value::Null,
        _ => value.clone(),
    }
}

/// `set` with the declared fields on the way to its members as members too.
pub(super) fn with_named(of: Typed<'_>, mut set: Set) -> Set {
    let atom = of.schema_atom();
    for (step, node) in &mut set.nodes {
        if node.below.is_empty() {
            continue;
        }
        let inner = match (atom, element::name(step)) {
            (Atom::Fields(fields), Some(name)) => {
                node.member |= fields.declares(name);
                fields.child(name)
            }
            (Atom::Items(_, items), None) => Some(items),
            _ => None,
        };
        if let Some(inner) = inner {
            node.below = with_named(inner, std::mem::take(&mut node.below));
        }
    }
    set
}

/// `set` after the schema made granular parts atomic: their owner owns the whole.
pub(super) fn reconcile(of: Typed<'_>, mut set: Set) -> Set {
    let atom = of.schema_atom();
    for (step, node) in &mut set.nodes {
        if node.below.is_empty() {
            continue;
        }
        let inner = match (atom, element::name(step)) {
            (Atom::Fields(fields), Some(name)) => fields.child(name),
            (Atom::Items(_, items), None) => Some(items),
            _ => None,
        };
        let Some(inner) = inner else { continue };
        if matches!(inner.schema_atom(), Atom::Leaf) {
            node.member = true;
            node.below = Set::default();
        } else {
            node.below = reconcile(inner, std::mem::take(&mut node.below));
        }
    }
    set
}
