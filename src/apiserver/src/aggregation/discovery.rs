//! Discovery documents with the other servers' groups among this one's.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Value, json};

use super::{Aggregator, Merged, Remote, priority};
use crate::body::Response;
use crate::discovery::{self, Documents};
use crate::served::Served;
use crate::zero::Zero;

/// A group's entry with its place, and its versions with theirs.
struct Entry {
    name: String,
    place: i64,
    versions: Vec<(i64, Value)>,
}

impl Aggregator {
    /// The aggregated document, if the client prefers it.
    pub fn serve_aggregated(
        &self,
        served: &Arc<Served>,
        headers: &HeaderMap,
        legacy: bool,
    ) -> Option<Response> {
        let Some(merged) = self.merged(served) else {
            return served.documents().serve_aggregated(headers, legacy);
        };
        merged.documents().serve_aggregated(headers, legacy)
    }

    /// `/apis`
    pub fn groups(&self, served: &Served) -> Value {
        let mut list = discovery::groups(served);
        let remotes = self.remotes();
        if !remotes.is_empty() {
            let own = list["groups"].items().iter().map(|group| {
                let name = group["name"].text().to_owned();
                entry_of(name, group["versions"].items())
            });
            let entries = merge(own.collect(), &remotes, |remote| {
                json!({"groupVersion": format!("{}/{}", remote.group, remote.version),
                    "version": remote.version})
            });
            list["groups"] = entries.into_iter().map(group_value).collect();
        }
        list
    }

    /// `/apis/GROUP`
    pub fn group(&self, served: &Served, name: &str) -> Option<Value> {
        let list = self.groups(served);
        let mut group = list["groups"].items().iter().find(|g| g["name"] == name)?.clone();
        group["kind"] = "APIGroup".into();
        group["apiVersion"] = "v1".into();
        Some(group)
    }
}

impl Merged {
    fn documents(&self) -> &Documents {
        self.documents.get_or_init(|| {
            Documents::render(|version, legacy| {
                let mut list = discovery::aggregated(&self.served, version, legacy);
                let own = list["items"].items().iter().map(|group| {
                    entry_of(group["metadata"]["name"].text().to_owned(), group["versions"].items())
                });
                let here: Vec<Remote> = self
                    .remotes
                    .iter()
                    .filter(|remote| remote.group.is_empty() == legacy)
                    .cloned()
                    .collect();
                let entries = merge(own.collect(), &here, aggregated_version);
                list["items"] = entries
                    .into_iter()
                    .map(|entry| {
                        let versions: Vec<Value> =
                            entry.versions.into_iter().map(|(_, version)| version).collect();
                        let mut metadata = json!({});
                        if !entry.name.is_empty() {
                            metadata["name"] = entry.name.into();
                        }
                        json!({"metadata": metadata, "versions": versions})
                    })
                    .collect();
                list
            })
        })
    }
}

fn entry_of(name: String, versions: &[Value]) -> Entry {
    let place = priority(&name, "v1").0;
    let versions = versions
        .iter()
        .map(|version| (priority(&name, version["version"].text()).1, version.clone()))
        .collect();
    Entry { name, place, versions }
}

/// Puts the others' versions among the own ones, the most important first.
fn merge(mut all: Vec<Entry>, remotes: &[Remote], render: impl Fn(&Remote) -> Value) -> Vec<Entry> {
    for remote in remotes {
        let version = (remote.version_priority, render(remote));
        match all.iter_mut().find(|entry| entry.name == remote.group) {
            Some(entry) => {
                entry.place = entry.place.max(remote.group_priority);
                entry.versions.retain(|(_, known)| known["version"] != remote.version.as_str());
                entry.versions.push(version);
            }
            None => all.push(Entry {
                name: remote.group.clone(),
                place: remote.group_priority,
                versions: vec![version],
            }),
        }
    }
    for entry in &mut all {
        let stability = |value: &Value| apimachinery::schema::stability(value["version"].text());
        entry.versions.sort_by(|(a, x), (b, y)| b.cmp(a).then(stability(y).cmp(&stability(x))));
    }
    // The order of this server's own groups is upstream's already.
    all.sort_by_key(|group| std::cmp::Reverse(group.place));
    all
}

fn group_value(entry: Entry) -> Value {
    let versions: Vec<Value> = entry.versions.into_iter().map(|(_, version)| version).collect();
    json!({
        "name": entry.name,
        "preferredVersion": versions.first().cloned().unwrap_or_default(),
        "versions": versions,
    })
}

/// A version of another server in the aggregated form; stale while it does not answer.
fn aggregated_version(remote: &Remote) -> Value {
    let freshness = if remote.available { "Current" } else { "Stale" };
    let mut version = json!({"version": remote.version, "freshness": freshness});
    if let Some(resources) = &remote.described.resources {
        version["resources"] = aggregated_resources(remote, resources);
    }
    version
}

/// An `APIResourceList` in the form of the aggregated document, subresources below their resource.
fn aggregated_resources(remote: &Remote, resources: &[Value]) -> Value {
    let or = |value: &Value, other: &str| match value.text() {
        "" => other.to_owned(),
        text => text.to_owned(),
    };
    let kind_of = |entry: &Value| {
        json!({"group": or(&entry["group"], &remote.group),
            "version": or(&entry["version"], &remote.version), "kind": entry["kind"]})
    };
    let below = |parent: &str| -> Vec<Value> {
        resources
            .iter()
            .filter_map(|entry| {
                let (of, name) = entry["name"].text().split_once('/')?;
                (of == parent).then(|| {
                    json!({"subresource": name, "responseKind": kind_of(entry),
                        "verbs": entry["verbs"]})
                })
            })
            .collect()
    };
    resources
        .iter()
        .filter(|entry| !entry["name"].text().contains('/'))
        .map(|entry| {
            let mut resource = json!({
                "resource": entry["name"],
                "responseKind": kind_of(entry),
                "scope": if entry["namespaced"].flag() { "Namespaced" } else { "Cluster" },
                "singularResource": entry["singularName"].text(),
                "verbs": entry["verbs"],
            });
            for key in ["shortNames", "categories"] {
                if !entry[key].items().is_empty() {
                    resource[key] = entry[key].clone();
                }
            }
            let subresources = below(entry["name"].text());
            if !subresources.is_empty() {
                resource["subresources"] = subresources.into();
            }
            resource
        })
        .collect()
}
