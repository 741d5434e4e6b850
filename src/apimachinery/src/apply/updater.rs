//! Who owns what after an object changed, and what an applied configuration makes of an object.
//!
//! Source: `sigs.k8s.io/structured-merge-diff/merge/update.go`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::managed::{Manager, Owned};
use super::set::Set;
use super::typed::Typed;
use super::walk::{self, Diff};
use super::{Conflict, Error, Versions};

pub(super) type Owners = HashMap<Manager, Owned>;

/// Whether two objects are the same but for what is told of their owners.
fn is_same(a: &Value, b: &Value) -> bool {
    let same = |a: &Value, b: &Value, but: &str| {
        let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
        let count = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(but));
        count(a) == count(b) && a.iter().all(|(key, value)| key == but || b.get(key) == Some(value))
    };
    same(a, b, "metadata") && same(&a["metadata"], &b["metadata"], "managedFields")
}

/// One operation on an object.
pub(super) struct Updater<'a> {
    pub(super) versions: &'a dyn Versions,
    pub(super) api_version: &'a str,
}

impl<'a> Updater<'a> {
    fn root(&self, api_version: &str) -> Option<Typed<'a>> {
        self.versions.root(api_version)
    }

    fn own_root(&self) -> Result<Typed<'a>, Error> {
        self.root(self.api_version)
            .ok_or_else(|| Error::Failed(format!("no corresponding type for {}", self.api_version)))
    }

    fn convert<'v>(&self, object: &'v Value, api_version: &str) -> Option<Cow<'v, Value>> {
        if crate::meta::api_version(object) == api_version {
            return Some(Cow::Borrowed(object));
        }
        self.versions.convert(object, api_version)
    }

    /// What changed from `old` to `new`, seen in another version; `None` when it is not served any more.
    fn compare(&self, old: &Value, new: &Value, api_version: &str) -> Option<Diff> {
        let root = self.root(api_version)?;
        let (old, new) = (self.convert(old, api_version)?, self.convert(new, api_version)?);
        let diff = walk::compare(root, &old, &new);
        Some(match self.versions.ignored(api_version) {
            Some(ignored) => diff.without(ignored),
            None => diff,
        })
    }

    /// Takes from all owners but `who` what changed; without `force` that is a conflict.
    fn take(
        &self,
        old: &Value,
        new: &Value,
        owners: &mut Owners,
        who: &Manager,
        force: bool,
    ) -> Result<Diff, Error> {
        let mut versions: HashMap<String, Option<Diff>> = HashMap::new();
        let own = self.compare(old, new, self.api_version).unwrap_or_default();
        versions.insert(self.api_version.to_owned(), Some(own));
        let mut conflicts: BTreeMap<Manager, Set> = BTreeMap::new();
        owners.retain(|manager, owned| {
            if manager == who {
                return true;
            }
            let diff = versions
                .entry(owned.api_version.clone())
                .or_insert_with(|| self.compare(old, new, &owned.api_version));
            let Some(diff) = diff else { return false };
            let changed =
                owned.set.intersection(&diff.modified).union(owned.set.intersection(&diff.added));
            if !changed.is_empty() {
                conflicts.insert(manager.clone(), changed);
            }
            true
        });
        if !force && !conflicts.is_empty() {
            let told = conflicts.into_iter().flat_map(|(manager, set)| {
                set.paths()
                    .into_iter()
                    .map(move |path| Conflict { manager: manager.clone(), path })
                    .collect::<Vec<_>>()
            });
            return Err(Error::Conflicts(told.collect()));
        }
        owners.retain(|manager, owned| {
            if manager == who {
                return true;
            }
            if let Some(lost) = conflicts.get(manager) {
                owned.set = std::mem::take(&mut owned.set).difference(lost);
            }
            if let Some(Some(diff)) = versions.get(&owned.api_version) {
                owned.set = std::mem::take(&mut owned.set).difference(&diff.removed);
            }
            !owned.set.is_empty()
        });
        Ok(versions.remove(self.api_version).flatten().unwrap_or_default())
    }

    /// Follows changes of the schema from granular to atomic.
    fn reconcile(&self, owners: &mut Owners) {
        for owned in owners.values_mut() {
            if let Some(root) = self.root(&owned.api_version) {
                owned.set = walk::reconcile(root, std::mem::take(&mut owned.set));
            }
        }
    }

    /// The owners after `who` made `new` of `live`.
    pub(super) fn update(
        &self,
        live: &Value,
        new: &Value,
        owners: &mut Owners,
        who: &Manager,
    ) -> Result<(), Error> {
        self.reconcile(owners);
        let diff = self.take(live, new, owners, who, true)?;
        let before = owners.remove(who).unwrap_or_default().set;
        let mut set = before.difference(&diff.removed).union(diff.modified).union(diff.added);
        if let Some(ignored) = self.versions.ignored(self.api_version) {
            set = set.recursive_difference(ignored);
        }
        if !set.is_empty() {
            owners.insert(who.clone(), Owned { set, api_version: self.api_version.to_owned() });
        }
        Ok(())
    }

    /// The object after `who` applied `config` to `live`; `None` when it stays as it is.
    pub(super) fn apply(
        &self,
        live: &Value,
        config: &Value,
        owners: &mut Owners,
        who: &Manager,
        force: bool,
    ) -> Result<Option<Value>, Error> {
        self.reconcile(owners);
        let root = self.own_root()?;
        let merged = walk::merge_objects(root, live, config);
        let last = owners.remove(who);
        let mut set = walk::fields_of(root, config);
        if let Some(ignored) = self.versions.ignored(self.api_version) {
            set = set.recursive_difference(ignored);
        }
        owners.insert(who.clone(), Owned { set, api_version: self.api_version.to_owned() });
        let new = self.prune(merged, owners, who, last.as_ref())?;
        self.take(live, &new, owners, who, force)?;
        if owners.get(who).is_some_and(|owned| owned.set.is_empty()) {
            owners.remove(who);
        }
        // Another order is a change too, though nobody owns it.
        Ok((!is_same(live, &new)).then_some(new))
    }

    /// Drops what `last` owned and nobody owns any more.
    fn prune(
        &self,
        merged: Value,
        owners: &Owners,
        who: &Manager,
        last: Option<&Owned>,
    ) -> Result<Value, Error> {
        let Some(last) = last.filter(|last| !last.set.is_empty()) else { return Ok(merged) };
        // What it owned it owns still: nothing is to go.
        let owned = owners.get(who).filter(|owned| owned.api_version == last.api_version);
        if last.api_version == self.api_version
            && owned.is_some_and(|owned| last.set.is_within(&owned.set))
        {
            return Ok(merged);
        }
        let Some(root) = self.root(&last.api_version) else { return Ok(merged) };
        let Some(merged_then) = self.convert(&merged, &last.api_version) else {
            return Ok(merged);
        };
        let last_set = walk::with_named(root, last.set.clone());
        let pruned = walk::remove(root, &merged_then, &last_set);
        let pruned = self.add_back_owned(&merged_then, pruned, &last.api_version, owners);
        // Only what the applier itself owned may go.
        let pruned_set = self
            .convert(&pruned, &last.api_version)
            .map(|pruned| walk::with_named(root, walk::fields_of(root, &pruned)))
            .unwrap_or_default();
        let merged_set = walk::with_named(root, walk::fields_of(root, &merged_then));
        let gone = merged_set.difference(&pruned_set).intersection(&last_set);
        let mut result = walk::remove(root, &merged_then, &gone);
        crate::meta::set_type(&mut result, &last.api_version, crate::meta::kind(&merged_then));
        self.convert(&result, self.api_version).map(Cow::into_owned).ok_or_else(|| {
            Error::Failed(format!("failed to convert pruned object to {}", self.api_version))
        })
    }

    /// Puts back what somebody owns, version by version, the pruned one first.
    fn add_back_owned(&self, merged: &Value, pruned: Value, first: &str, owners: &Owners) -> Value {
        let mut by_version: BTreeMap<&str, Set> = BTreeMap::new();
        for owned in owners.values() {
            let set = by_version.entry(&owned.api_version).or_default();
            *set = std::mem::take(set).union(owned.set.clone());
        }
        let kind = crate::meta::kind(merged).to_owned();
        let mut pruned = pruned;
        let mut order: Vec<&str> = by_version.keys().copied().collect();
        order.sort_by_key(|version| *version != first);
        let mut at = first.to_owned();
        for version in order {
            // What was pruned down to nothing still has to say what it is.
            crate::meta::set_type(&mut pruned, &at, &kind);
            let Some(root) = self.root(version) else { continue };
            let (Some(merged), Some(left)) =
                (self.convert(merged, version), self.convert(&pruned, version))
            else {
                continue;
            };
            let named = |set: Set| walk::with_named(root, set);
            let all = named(walk::fields_of(root, &merged));
            let kept = named(walk::fields_of(root, &left))
                .union(named(by_version.get(version).cloned().unwrap_or_default()));
            pruned = walk::remove(root, &merged, &all.difference(&kept));
            version.clone_into(&mut at);
        }
        crate::meta::set_type(&mut pruned, &at, &kind);
        pruned
    }
}
