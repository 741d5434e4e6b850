//! Server-side apply: which client owns which field of an object, and what an applied configuration
//! makes of it. One algorithm for built-in kinds, custom resources and objects nobody described; the
//! difference is in what [`Versions`] tells.
//!
//! Source: `k8s.io/apimachinery/pkg/util/managedfields` over `sigs.k8s.io/structured-merge-diff`.

mod element;
mod last_applied;
mod managed;
#[cfg(test)]
mod merge_tests;
mod set;
mod shape;
#[cfg(test)]
mod tests;
mod typed;
mod updater;
mod walk;

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::Value;

use crate::meta;
use managed::Managed;
use updater::Updater;

pub use managed::{Manager, ignore_times};
pub use set::Set;
pub use typed::Typed;

/// What of an object was there before anybody applied it is this manager's.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager under which an operation is computed before its own earlier fields are joined.
const CURRENT: &str = "current-operation";

/// `old` with everything that `new` says, lists merged as their type tells: what a policy makes of an object.
///
/// # Errors
/// In upstream's words, when `new` does not fit the type or says something of a part that can only be replaced.
///
/// Source: `k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch/smd.go`.
pub fn merge(of: Typed<'_>, old: &Value, new: &Value) -> Result<Value, String> {
    let mut mistakes = Vec::new();
    walk::validate(of, new, &mut mistakes);
    if !mistakes.is_empty() {
        let told = told(mistakes);
        return Err(format!("failed to convert patch object to typed object: {told}"));
    }
    let atomic = walk::atomic_parts(of, new);
    if !atomic.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomic.join(", ")
        ));
    }
    Ok(walk::merge(of, old, new))
}

/// Mistakes as structured-merge-diff tells them.
fn told(mistakes: Vec<walk::Mistake>) -> String {
    let lines: Vec<String> = mistakes
        .into_iter()
        .map(|(path, text)| if path.is_empty() { text } else { format!("{path}: {text}") })
        .collect();
    match lines.as_slice() {
        [one] => one.clone(),
        several => format!("errors:\n  {}", several.join("\n  ")),
    }
}

/// The versions of a kind.
pub trait Versions {
    /// The type at a version; `None` when it is not served.
    fn root(&self, api_version: &str) -> Option<Typed<'_>>;
    /// The object at another version; `None` when there is no way there.
    fn convert<'v>(&self, object: &'v Value, api_version: &str) -> Option<Cow<'v, Value>>;
    /// Fields that this endpoint resets, which nobody comes to own through it.
    fn ignored(&self, api_version: &str) -> Option<&Set>;
}

/// One field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The owner.
    pub manager: Manager,
    /// The field, such as `.spec.replicas`.
    pub path: String,
}

impl Conflict {
    /// The message of its cause.
    pub fn message(&self) -> String {
        format!("conflict with {}", self.manager.show())
    }
}

/// The message of an apply that met `conflicts`, which are sorted by manager.
pub fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: {}: {}", one.message(), one.path);
    }
    let mut lines: Vec<String> = Vec::new();
    let mut last: Option<&Manager> = None;
    for conflict in conflicts {
        if last != Some(&conflict.manager) {
            lines.push(format!("conflicts with {}:", conflict.manager.show()));
            last = Some(&conflict.manager);
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// Why an operation cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The request is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// The configuration does not fit the schema, or the object cannot be converted.
    #[error("{0}")]
    Failed(String),
    /// Others own fields that would change.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
}

/// Who does something, through what.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// `fieldManager`, or the user agent.
    pub manager: &'a str,
    /// Version of the request's endpoint.
    pub api_version: &'a str,
    /// Subresource of the endpoint; empty for the object itself.
    pub subresource: &'a str,
    /// Now, in whole seconds.
    pub now: &'a str,
}

impl Operation<'_> {
    fn manager(&self, applies: bool) -> Manager {
        let name = if self.manager.is_empty() { "unknown" } else { self.manager };
        Manager {
            name: name.to_owned(),
            applies,
            api_version: if applies { String::new() } else { self.api_version.to_owned() },
            subresource: self.subresource.to_owned(),
        }
    }
}

/// What belongs to the server and is never anybody's.
static STRIPPED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        "apiVersion",
        "kind",
        "metadata",
        "metadata.name",
        "metadata.namespace",
        "metadata.creationTimestamp",
        "metadata.selfLink",
        "metadata.uid",
        "metadata.clusterName",
        "metadata.generation",
        "metadata.managedFields",
        "metadata.resourceVersion",
    ])
});

fn strip(managed: &mut Managed, manager: &Manager) {
    let Some(owned) = managed.owners.get_mut(manager) else { return };
    owned.set = std::mem::take(&mut owned.set).difference(&STRIPPED);
    if owned.set.is_empty() {
        managed.owners.remove(manager);
    }
}

/// Writes into `new` who owns its fields after this operation made it of `live`. A new object's `live`
/// has its type only, and no uid.
pub fn update(versions: &dyn Versions, operation: Operation<'_>, live: &Value, new: &mut Value) {
    let mut managed = Managed::of_update(live, new, !operation.subresource.is_empty());
    meta::remove(new, "managedFields");
    // Nobody has ever applied, and the owners were given up: then nothing is tracked.
    let creates = meta::uid(live).is_empty();
    if managed.owners.is_empty() {
        if creates {
            create(versions, operation, live, new);
        }
        return;
    }
    let manager = operation.manager(false);
    // An object that does not fit its schema is stored as it was asked for, with its owners as they were.
    if track(versions, operation, live, new, &mut managed, &manager).is_ok() {
        managed.cap();
    }
    managed.write(new);
}

/// Writes into a new object, which says nothing of owners, who owns its fields.
fn create(versions: &dyn Versions, operation: Operation<'_>, live: &Value, new: &mut Value) {
    let api_version = operation.api_version;
    let manager = operation.manager(false);
    let names = [api_version, meta::api_version(new), meta::kind(new), operation.subresource];
    let form = versions.root(api_version).filter(|root| root.is_builtin_kind());
    let form = form.and_then(|_| shape::of(names, new));
    if let Some(fields) = form.and_then(shape::known) {
        if !fields.is_null() {
            let fields = Value::clone(&fields);
            let entry = managed::entry(&manager, api_version, Some(operation.now), fields);
            meta::set(new, "managedFields", vec![entry]);
        }
        return;
    }
    let mut managed = Managed::default();
    if track(versions, operation, live, new, &mut managed, &manager).is_err() {
        return;
    }
    managed.write(new);
    if let Some(form) = form {
        shape::remember(form, || {
            let entries = meta::metadata(new).get("managedFields");
            entries.map_or(Value::Null, |entries| entries[0]["fieldsV1"].clone())
        });
    }
}

fn track(
    versions: &dyn Versions,
    operation: Operation<'_>,
    live: &Value,
    new: &Value,
    managed: &mut Managed,
    manager: &Manager,
) -> Result<(), Error> {
    let updater = Updater { versions, api_version: operation.api_version };
    let current = Manager { name: CURRENT.into(), ..Manager::default() };
    updater.update(live, new, &mut managed.owners, &current)?;
    strip(managed, &current);
    if let Some(mut owned) = managed.owners.remove(&current) {
        if let Some(before) = managed.owners.remove(manager) {
            owned.set = owned.set.union(before.set);
        }
        managed.owners.insert(manager.clone(), owned);
        managed.times.insert(manager.clone(), operation.now.to_owned());
    }
    Ok(())
}

/// The object, with its owners, after this operation applied `config` to `live`.
///
/// # Errors
/// [`Error::Conflicts`] when others own fields that would change and `force` is not given.
pub fn apply(
    versions: &dyn Versions,
    operation: Operation<'_>,
    live: &Value,
    config: &Value,
    force: bool,
) -> Result<Value, Error> {
    let managed = Managed::read(live)
        .map_err(|error| Error::Failed(format!("failed to decode managed fields: {error}")))?;
    check(versions, operation, config)?;
    let attempt = |managed, force| apply_once(versions, operation, live, config, managed, force);
    if operation.manager != "kubectl" {
        return attempt(managed, force);
    }
    let mut object = match attempt(managed.clone(), force) {
        Err(Error::Conflicts(conflicts)) => {
            // What client-side apply wrote and nobody touched since is kubectl's own.
            let left = last_applied::unexplained(versions, operation.api_version, live, conflicts);
            if !left.is_empty() {
                return Err(Error::Conflicts(left));
            }
            attempt(managed, true)?
        }
        done => done?,
    };
    last_applied::refresh(&mut object, config);
    Ok(object)
}

/// The configuration must be of the endpoint's version, fit the schema, and not name owners.
fn check(versions: &dyn Versions, operation: Operation<'_>, config: &Value) -> Result<(), Error> {
    let found = meta::api_version(config);
    if found != operation.api_version {
        return Err(Error::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {found}, expected: {}",
            operation.api_version
        )));
    }
    if meta::metadata(config).get("managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Error::BadRequest("metadata.managedFields must be nil".into()));
    }
    let root = versions
        .root(operation.api_version)
        .ok_or_else(|| Error::Failed(format!("no corresponding type for {found}")))?;
    let mut mistakes = Vec::new();
    walk::validate(root, config, &mut mistakes);
    if mistakes.is_empty() {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "failed to create typed patch object ({}): {}",
        identity(config),
        told(mistakes)
    )))
}

/// `namespace/name; group/version, Kind=kind`.
fn identity(object: &Value) -> String {
    format!(
        "{}/{}; {}, Kind={}",
        meta::namespace(object),
        meta::name(object),
        meta::api_version(object),
        meta::kind(object)
    )
}

fn apply_once(
    versions: &dyn Versions,
    operation: Operation<'_>,
    live: &Value,
    config: &Value,
    mut managed: Managed,
    force: bool,
) -> Result<Value, Error> {
    if managed.owners.is_empty() && !meta::uid(live).is_empty() {
        let mut empty = Value::Object(serde_json::Map::new());
        meta::set_type(&mut empty, meta::api_version(live), meta::kind(live));
        let before = Operation { manager: BEFORE_FIRST_APPLY, ..operation };
        track(versions, before, &empty, live, &mut managed, &before.manager(false))?;
    }
    let manager = operation.manager(true);
    let updater = Updater { versions, api_version: operation.api_version };
    let new = updater.apply(live, config, &mut managed.owners, &manager, force)?;
    strip(&mut managed, &manager);
    if new.is_some() {
        managed.times.insert(manager, operation.now.to_owned());
    }
    let mut object = new.unwrap_or_else(|| live.clone());
    managed.write(&mut object);
    Ok(object)
}
