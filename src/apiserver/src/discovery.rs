//! What is served, for clients to find out: group and version lists, and the aggregated form.
//!
//! Source: `k8s.io/apiserver/pkg/endpoints/discovery` and the API reference of `apidiscovery.k8s.io`.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};

use crate::body::{Body, Response};
use crate::conversion;
use crate::negotiate::{self, Accepted, Format};
use crate::resource::{Resource, Subresource};
use crate::respond;
use crate::served::Served;

/// The aggregated document in its versions, each with the media type that asks for it.
const AGGREGATED: &[(&str, &str)] = &[
    ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    ("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"),
];

/// Documents made once per table of served resources.
#[derive(Debug)]
pub struct Documents {
    /// `/api` and `/apis`, aggregated, in the order of [`AGGREGATED`]: body and entity tag.
    aggregated: [[(Bytes, HeaderValue); 2]; 2],
}

impl Documents {
    /// Renders the documents of `served`.
    pub fn new(served: &Served) -> Self {
        Self::render(|version, legacy| aggregated(served, version, legacy))
    }

    /// Renders the documents that `make` gives for a version, of the core group alone or of the others.
    pub fn render(make: impl Fn(&str, bool) -> Value) -> Self {
        let render = |version: &str, legacy: bool| {
            let text = make(version, legacy).to_string();
            let mut tag = String::from("\"");
            for byte in Sha512::digest(&text) {
                // Writing to a String cannot fail.
                let _ = write!(tag, "{byte:02X}");
            }
            tag.push('"');
            let tag = HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\""));
            (Bytes::from(text), tag)
        };
        Self {
            aggregated: [true, false]
                .map(|legacy| ["v2", "v2beta1"].map(|version| render(version, legacy))),
        }
    }

    /// The aggregated document, if the client prefers it.
    pub fn serve_aggregated(&self, headers: &HeaderMap, legacy: bool) -> Option<Response> {
        let index = wanted(headers)?;
        let (body, tag) = &self.aggregated[usize::from(!legacy)][index];
        let seen = headers.get(IF_NONE_MATCH).is_some_and(|seen| seen == tag);
        let mut response = if seen {
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            respond::answer(StatusCode::OK, AGGREGATED[index].1, body.clone())
        };
        response.headers_mut().insert(ETAG, tag.clone());
        response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        Some(response)
    }
}

/// The index of the aggregated version that the client asks for first, if it asks for one anywhere.
fn wanted(headers: &HeaderMap) -> Option<usize> {
    let clauses = negotiate::clauses(negotiate::asked(headers)?);
    clauses.iter().find_map(|clause| {
        let given = |name: &str| clause.get(name).unwrap_or_default();
        let aggregated = clause.takes("application", "json")
            && given("g") == "apidiscovery.k8s.io"
            && given("as") == "APIGroupDiscoveryList"
            && matches!(given("stream"), "" | "watch")
            && given("sv").is_empty();
        let version = given("v");
        let known = AGGREGATED.iter().position(|(known, _)| *known == version);
        known.filter(|_| aggregated)
    })
}

/// The aggregated document of what is served here.
pub fn aggregated(served: &Served, version: &str, legacy: bool) -> Value {
    let items: Vec<Value> = served
        .groups()
        .iter()
        .filter(|group| group.name.is_empty() == legacy)
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|v| {
                    let resources: Vec<Value> =
                        served.in_version(&group.name, v).map(|r| aggregated_resource(r)).collect();
                    json!({"version": v, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let mut metadata = json!({});
            if !group.name.is_empty() {
                metadata["name"] = group.name.as_ref().into();
            }
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": resource.version, "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !resource.subresources.is_empty() {
        entry["subresources"] = resource
            .subresources
            .iter()
            .map(|s| {
                json!({
                    "subresource": s.name,
                    "responseKind": {"group": s.group, "version": s.version, "kind": s.kind},
                    "verbs": s.verbs,
                })
            })
            .collect();
    }
    entry
}

/// `/api`
pub fn legacy_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn group_value(group: &apimachinery::schema::Group) -> Value {
    let version = |v: &str| json!({"groupVersion": format!("{}/{v}", group.name), "version": v});
    json!({
        "name": group.name,
        "versions": group.versions.iter().map(|v| version(v)).collect::<Vec<_>>(),
        "preferredVersion": group.versions.first().map_or(Value::Null, |v| version(v)),
    })
}

/// `/apis`
pub fn groups(served: &Served) -> Value {
    let groups: Vec<Value> =
        served.groups().iter().filter(|g| !g.name.is_empty()).map(group_value).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/api/v1` and `/apis/{group}/{version}`
pub fn resources(served: &Served, group: &str, version: &str) -> Option<Value> {
    if !served.has_version(group, version) {
        return None;
    }
    let mut entries = Vec::new();
    for resource in served.in_version(group, version) {
        entries.push(resource_value(resource));
        entries.extend(resource.subresources.iter().map(|s| subresource_value(resource, s)));
    }
    entries.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list =
        json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": entries});
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Some(list)
}

fn resource_value(resource: &Resource) -> Value {
    let mut value = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    if resource.is_stored() {
        value["storageVersionHash"] = version_hash(resource).into();
    }
    value
}

fn subresource_value(resource: &Resource, subresource: &Subresource) -> Value {
    let mut value = json!({
        "name": format!("{}/{}", resource.plural, subresource.name),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": subresource.kind,
        "verbs": subresource.verbs,
    });
    if (subresource.group.as_str(), subresource.version.as_str())
        != (resource.group.as_str(), resource.version.as_str())
    {
        value["group"] = subresource.group.as_str().into();
        value["version"] = subresource.version.as_str().into();
    }
    value
}

/// What tells clients in which version objects are stored.
fn version_hash(resource: &Resource) -> String {
    let stored = conversion::stored_as(&resource.group, &resource.version, &resource.plural);
    let version = resource.custom.as_ref().map_or(&resource.version, |c| &c.storage_version);
    let text = match stored {
        Some([group, version, _, kind]) => format!("{group}/{version}/{kind}"),
        None => format!("{}/{version}/{}", resource.group, resource.kind),
    };
    STANDARD.encode(&Sha256::digest(text)[..8])
}

/// A discovery document in plain form; other forms than JSON are rendered from it.
pub fn answer(value: &Value, accepted: Accepted) -> Response {
    // Some, such as the version, have no kind that protobuf could carry.
    let plain = accepted.format == Format::Protobuf && crate::protobuf::value(value).is_err();
    let accepted = if plain { Accepted { format: Format::Json, ..accepted } } else { accepted };
    let mut response = respond::value(StatusCode::OK, value, accepted);
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response
}
