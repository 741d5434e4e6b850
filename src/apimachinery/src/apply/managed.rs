//! `metadata.managedFields`: who owns which fields, since when.
//!
//! Source: `k8s.io/apimachinery/pkg/util/managedfields/internal`: `managedfields.go`, `capmanagers.go`.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value, json};

use super::set::Set;
use crate::meta;

/// So many managers that updated (rather than applied) are told apart.
const MAX_UPDATERS: usize = 10;
/// Under which name the older ones are kept together.
const ANCIENT: &str = "ancient-changes";

/// A manager, by what tells it from others. The API version counts for updates only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Manager {
    /// `fieldManager`.
    pub name: String,
    /// Whether it applies, rather than updates.
    pub applies: bool,
    /// Empty for one that applies.
    pub api_version: String,
    /// Empty for the object itself.
    pub subresource: String,
}

impl Manager {
    /// Upstream's identifier, by which managers are sorted.
    fn identifier(&self) -> String {
        let quote = |text: &str| Value::from(text).to_string();
        let mut text = String::from("{");
        if !self.name.is_empty() {
            text.push_str(&format!("\"manager\":{},", quote(&self.name)));
        }
        text.push_str(&format!("\"operation\":\"{}\"", self.operation()));
        if !self.api_version.is_empty() {
            text.push_str(&format!(",\"apiVersion\":{}", quote(&self.api_version)));
        }
        if !self.subresource.is_empty() {
            text.push_str(&format!(",\"subresource\":{}", quote(&self.subresource)));
        }
        text.push('}');
        text
    }

    fn operation(&self) -> &'static str {
        if self.applies { "Apply" } else { "Update" }
    }

    /// The manager as messages name it.
    pub(super) fn show(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applies {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

impl Ord for Manager {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.identifier().cmp(&other.identifier())
    }
}

impl PartialOrd for Manager {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// What one manager owns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owned {
    pub(super) set: Set,
    pub(super) api_version: String,
}

/// The entry of one manager, which owns `fields`.
pub(super) fn entry(
    manager: &Manager,
    api_version: &str,
    time: Option<&str>,
    fields: Value,
) -> Value {
    let mut entry = Map::new();
    if !manager.name.is_empty() {
        entry.insert("manager".into(), manager.name.as_str().into());
    }
    entry.insert("operation".into(), manager.operation().into());
    entry.insert("apiVersion".into(), api_version.into());
    if let Some(time) = time {
        entry.insert("time".into(), time.into());
    }
    entry.insert("fieldsType".into(), "FieldsV1".into());
    entry.insert("fieldsV1".into(), fields);
    if !manager.subresource.is_empty() {
        entry.insert("subresource".into(), manager.subresource.as_str().into());
    }
    entry.into()
}

/// All owners of an object, and when each changed last.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed {
    pub(super) owners: HashMap<Manager, Owned>,
    pub(super) times: HashMap<Manager, String>,
}

fn entries(object: &Value) -> &[Value] {
    meta::metadata(object).get("managedFields").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether an object asks for its owners to be forgotten: one empty entry.
fn is_reset(object: &Value) -> bool {
    let blank = |value: &Value| {
        value.is_null() || value.as_object().is_some_and(|m| m.values().all(Value::is_null))
    };
    matches!(entries(object), [one] if blank(one))
}

impl Managed {
    /// Reads an object's entries.
    pub(super) fn read(object: &Value) -> Result<Self, String> {
        let mut managed = Self::default();
        for (index, entry) in entries(object).iter().enumerate() {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
            let applies = match text("operation") {
                "Apply" => true,
                "Update" => false,
                _ => return Err("operation must be `Apply` or `Update`".into()),
            };
            let api_version = text("apiVersion").to_owned();
            if api_version.is_empty() {
                return Err("apiVersion must not be empty".into());
            }
            match text("fieldsType") {
                "FieldsV1" => {}
                "" => return Err(format!("missing fieldsType in managed fields entry {index}")),
                other => {
                    return Err(format!(
                        "invalid fieldsType {other:?} in managed fields entry {index}"
                    ));
                }
            }
            let manager = Manager {
                name: text("manager").to_owned(),
                applies,
                api_version: if applies { String::new() } else { api_version.clone() },
                subresource: text("subresource").to_owned(),
            };
            let set = Set::from_value(entry.get("fieldsV1").unwrap_or(&Value::Null))
                .map_err(|error| format!("error decoding set: {error}"))?;
            if let Some(time) = entry.get("time").and_then(Value::as_str) {
                managed.times.insert(manager.clone(), time.to_owned());
            }
            managed.owners.insert(manager, Owned { set, api_version });
        }
        Ok(managed)
    }

    /// The owners an update starts from: what the new object says, else what the live one says. A
    /// subresource cannot change them by itself.
    pub(super) fn of_update(live: &Value, new: &Value, subresource: bool) -> Self {
        if !subresource {
            if is_reset(new) {
                return Self::default();
            }
            if let Ok(managed) = Self::read(new)
                && !managed.owners.is_empty()
            {
                return managed;
            }
        }
        Self::read(live).unwrap_or_default()
    }

    /// Writes the entries into `metadata`, in upstream's order.
    pub(super) fn write(self, object: &mut Value) {
        if self.owners.is_empty() {
            meta::remove(object, "managedFields");
            return;
        }
        let Self { owners, times } = self;
        let mut order: Vec<(Manager, Owned)> = owners.into_iter().collect();
        let time = |manager: &Manager| times.get(manager).map_or("", String::as_str);
        order.sort_by(|(a, owned_a), (b, owned_b)| {
            let key_a = (a.operation(), time(a), &a.name, &owned_a.api_version, &a.subresource);
            let key_b = (b.operation(), time(b), &b.name, &owned_b.api_version, &b.subresource);
            key_a.cmp(&key_b)
        });
        let list: Vec<Value> = order
            .into_iter()
            .map(|(manager, owned)| {
                let time = times.get(&manager).map(String::as_str);
                entry(&manager, &owned.api_version, time, owned.set.into_value())
            })
            .collect();
        meta::set(object, "managedFields", list);
    }

    /// Puts the oldest updaters together until few enough are left.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<Manager> =
            self.owners.keys().filter(|manager| !manager.applies).cloned().collect();
        let mut count = updaters.len();
        if count <= MAX_UPDATERS {
            return;
        }
        updaters.sort_by_cached_key(|manager| {
            (self.times.get(manager).cloned().unwrap_or_default(), manager.identifier())
        });
        let mut first_of: BTreeMap<String, Manager> = BTreeMap::new();
        for manager in updaters {
            if count <= MAX_UPDATERS {
                break;
            }
            let Some(version) = self.owners.get(&manager).map(|o| o.api_version.clone()) else {
                continue;
            };
            let Some(first) = first_of.get(&version).cloned() else {
                first_of.insert(version, manager);
                continue;
            };
            let bucket = Manager {
                name: ANCIENT.into(),
                api_version: version.clone(),
                ..Manager::default()
            };
            if !self.owners.contains_key(&bucket)
                && let Some(owned) = self.owners.remove(&first)
            {
                self.owners.insert(bucket.clone(), owned);
            }
            let Some(gone) = self.owners.remove(&manager) else { continue };
            let into = self.owners.entry(bucket.clone()).or_default();
            into.set = std::mem::take(&mut into.set).union(gone.set);
            into.api_version = version;
            count -= 1;
            if let Some(time) = self.times.get(&manager).cloned() {
                self.times.insert(bucket, time);
            }
        }
    }
}

/// Gives back the `old` entries when only their times differ and nothing else changed, so that such a
/// write is none (`IgnoreManagedFieldsTimestampsTransformer`).
pub fn ignore_times(object: &mut Value, old: &Value) {
    let (new_entries, old_entries) = (entries(object), entries(old));
    if new_entries == old_entries || new_entries.len() != old_entries.len() {
        return;
    }
    let same = |(new, old): (&Value, &Value)| match (new, old) {
        (Value::Object(new), Value::Object(old)) => same_but(new, old, &["time"]),
        _ => new == old,
    };
    if !new_entries.iter().zip(old_entries).all(same) {
        return;
    }
    let (Some(new), Some(before)) = (object.as_object(), old.as_object()) else { return };
    if same_but(new, before, &["metadata"])
        && same_but(
            meta::metadata(object),
            meta::metadata(old),
            &["managedFields", "resourceVersion"],
        )
    {
        let entries = json!(old_entries);
        meta::set(object, "managedFields", entries);
    }
}

/// Whether two maps have the same entries, but for `others`.
fn same_but(a: &Map<String, Value>, b: &Map<String, Value>, others: &[&str]) -> bool {
    let counted = |(name, _): &(&String, &Value)| !others.contains(&name.as_str());
    a.iter().filter(counted).eq(b.iter().filter(counted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_updaters_are_put_together() {
        let entry = |name: &str, time: &str| {
            json!({"manager": name, "operation": "Update", "apiVersion": "v1", "time": time,
                "fieldsType": "FieldsV1", "fieldsV1": {format!("f:{name}"): {}}})
        };
        let list: Vec<Value> = (0..12)
            .map(|i| entry(&format!("m{i:02}"), &format!("2026-01-01T00:00:{i:02}Z")))
            .collect();
        let mut object = json!({"metadata": {"managedFields": list}});
        let mut managed = Managed::read(&object).unwrap();
        managed.cap();
        managed.write(&mut object);
        let entries = object["metadata"]["managedFields"].as_array().unwrap();
        assert_eq!(entries.len(), 10);
        assert_eq!(entries[0]["manager"], "ancient-changes");
        assert_eq!(entries[0]["fieldsV1"], json!({"f:m00": {}, "f:m01": {}, "f:m02": {}}));
        assert_eq!(entries[0]["time"], "2026-01-01T00:00:02Z");
    }

    #[test]
    fn only_times_are_no_change() {
        let object = |time: &str, data: &str| json!({"data": data, "metadata": {"managedFields": [{"manager": "a", "time": time}]}});
        let old = object("1", "x");
        let mut new = object("2", "x");
        ignore_times(&mut new, &old);
        assert_eq!(new, old);
        let mut changed = object("2", "y");
        ignore_times(&mut changed, &old);
        assert_eq!(changed, object("2", "y"));
    }

    #[test]
    fn entries_are_checked() {
        for (entry, want) in [
            (json!({"operation": "Get"}), "operation must be `Apply` or `Update`"),
            (json!({"operation": "Apply"}), "apiVersion must not be empty"),
            (
                json!({"operation": "Apply", "apiVersion": "v1"}),
                "missing fieldsType in managed fields entry 0",
            ),
            (
                json!({"operation": "Apply", "apiVersion": "v1", "fieldsType": "X"}),
                "invalid fieldsType \"X\" in managed fields entry 0",
            ),
        ] {
            let object = json!({"metadata": {"managedFields": [entry]}});
            assert_eq!(Managed::read(&object).unwrap_err(), want);
        }
    }
}
