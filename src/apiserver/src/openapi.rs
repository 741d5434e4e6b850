//! The OpenAPI v3 documents, one per group and version, and the v2 document, made from the type table
//! when they are first asked for.
//!
//! Source: `k8s.io/kube-openapi` (`builder3`, `handler3`) and the extensions named `x-kubernetes-…` in
//! the API conventions.

mod descriptions;
mod protobuf;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::sync::OnceLock;

use apimachinery::schema::{self, Field, ListType, Schema, Shape, Type, TypeId};
use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use self::descriptions::Descriptions;
use crate::body::Response;
use crate::resource::Resource;
use crate::served::Served;

const SCHEMAS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// Bodies of patches, by content type; custom resources take all but the last.
const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// A rendered document, packed for as long as nobody asks for it, and the hash that names it.
#[derive(Debug)]
struct Packed {
    bytes: Bytes,
    hash: String,
}

impl Packed {
    fn new(body: &[u8]) -> Self {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory does not fail.
        let written = packed.write_all(body).and_then(|()| packed.finish());
        Self { bytes: written.unwrap_or_default().into(), hash: hash(body) }
    }

    fn unpack(&self) -> Bytes {
        let mut body = Vec::new();
        // It was packed here.
        let read = GzDecoder::new(self.bytes.as_ref()).read_to_end(&mut body);
        if read.is_err() {
            body.clear();
        }
        body.into()
    }
}

/// A document as JSON, and its protobuf form, made when it is asked for.
#[derive(Debug)]
struct Document {
    json: Packed,
    protobuf: OnceLock<Packed>,
}

fn hash(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02X}")).collect()
}

impl Document {
    fn new(value: &Value) -> Self {
        Self { json: Packed::new(value.to_string().as_bytes()), protobuf: OnceLock::new() }
    }

    fn protobuf(&self, encode: fn(&Value) -> Vec<u8>) -> &Packed {
        self.protobuf.get_or_init(|| {
            // The body was rendered from a value here.
            let value = serde_json::from_slice(&self.json.unpack()).unwrap_or_default();
            Packed::new(&encode(&value))
        })
    }
}

/// The form of a document that a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Protobuf(&'static str),
}

const PROTOBUF_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const PROTOBUF_V3: &str = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf";

/// All documents, rendered once.
#[derive(Debug, Default)]
pub struct OpenApi {
    v3: OnceLock<BTreeMap<String, Document>>,
    v2: OnceLock<Document>,
}

/// The dialects differ in where definitions lie and how references are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dialect {
    V2,
    V3,
}

/// What another server says of a group and version that it serves.
pub struct Foreign<'a> {
    /// The path below which its resources lie.
    pub root: String,
    /// Its document of version 2.
    pub v2: Option<&'a Value>,
    /// Its document of version 3, of this group and version.
    pub v3: Option<&'a Value>,
}

impl OpenApi {
    /// Answers `/openapi/v2`, `/openapi/v3` and what lies below; `None` for other paths.
    pub fn answer(
        &self,
        served: &Served,
        foreign: &[Foreign<'_>],
        path: &str,
        headers: &HeaderMap,
    ) -> Option<Response> {
        let rest = path.strip_prefix("openapi/")?;
        let protobuf = if rest == "v2" { PROTOBUF_V2 } else { PROTOBUF_V3 };
        // The index of version 3 is JSON, whatever is asked for.
        let Some(form) = form(headers, protobuf).or((rest == "v3").then_some(Form::Json)) else {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
            return Some(response);
        };
        if rest == "v2" {
            let document = self.v2.get_or_init(|| Document::new(&v2(served, foreign)));
            return Some(send(document, form, headers));
        }
        let documents = self.v3.get_or_init(|| v3(served, foreign));
        if rest == "v3" {
            let paths: Map<String, Value> = documents
                .iter()
                .map(|(name, document)| {
                    let url = format!("/openapi/v3/{name}?hash={}", document.json.hash);
                    (name.clone(), json!({"serverRelativeURL": url}))
                })
                .collect();
            return Some(send(&Document::new(&json!({"paths": paths})), Form::Json, headers));
        }
        documents.get(rest.strip_prefix("v3/")?).map(|document| send(document, form, headers))
    }
}

/// The first form in the `Accept` header that there is; JSON when it says nothing.
fn form(headers: &HeaderMap, protobuf: &'static str) -> Option<Form> {
    let mut asked =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).peekable();
    if asked.peek().is_none() {
        return Some(Form::Json);
    }
    asked.flat_map(|value| value.split(',')).find_map(|clause| {
        let media = clause.split(';').next().unwrap_or_default().trim();
        match media {
            "application/json" | "*/*" | "application/*" => Some(Form::Json),
            // The name was once written with a character that media types cannot have.
            media if media.replace('@', ".") == protobuf => Some(Form::Protobuf(protobuf)),
            _ => None,
        }
    })
}

fn send(document: &Document, form: Form, headers: &HeaderMap) -> Response {
    let (packed, content_type) = match form {
        Form::Json => (&document.json, "application/json"),
        Form::Protobuf(media) => {
            let encode = if media == PROTOBUF_V2 { protobuf::v2 } else { protobuf::v3 };
            (document.protobuf(encode), media)
        }
    };
    let tag = format!("\"{}\"", packed.hash);
    let mut response = Response::default();
    if headers.get(IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        *response.body_mut() = packed.unpack().into();
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

fn root(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}/{}", resource.group, resource.version)
    }
}

fn info() -> Value {
    json!({"title": "Kubernetes", "version": crate::version::info()["gitVersion"]})
}

/// What has a schema: all but metrics, whose kinds are not of the API server's own.
fn described(served: &Served) -> impl Iterator<Item = &Resource> {
    let all = served.all().iter().map(AsRef::as_ref);
    all.filter(|r: &&Resource| r.group != crate::subresources::metrics::GROUP)
}

fn v3(served: &Served, foreign: &[Foreign<'_>]) -> BTreeMap<String, Document> {
    let mut groups: BTreeMap<String, Vec<&Resource>> = BTreeMap::new();
    for resource in described(served) {
        groups.entry(root(resource)).or_default().push(resource);
    }
    let mut descriptions = Descriptions::unpack();
    groups
        .into_iter()
        .map(|(name, resources)| {
            let mut builder = Builder::new(Dialect::V3);
            builder.descriptions = std::mem::take(&mut descriptions);
            let paths = builder.paths(&resources);
            let schemas = builder.definitions();
            let document = json!({"openapi": "3.0.0", "info": info(), "paths": paths,
                "components": {"schemas": schemas}});
            descriptions = builder.descriptions;
            (name, Document::new(&document))
        })
        .chain(foreign.iter().filter_map(|other| {
            Some((other.root.trim_start_matches('/').to_owned(), Document::new(other.v3?)))
        }))
        .collect()
}

fn v2(served: &Served, foreign: &[Foreign<'_>]) -> Value {
    let resources: Vec<&Resource> = described(served).collect();
    let mut builder = Builder::new(Dialect::V2);
    builder.descriptions = Descriptions::unpack();
    let paths = builder.paths(&resources);
    let mut document = json!({"swagger": "2.0", "info": info(), "paths": paths,
        "definitions": builder.definitions()});
    for other in foreign {
        if let Some(said) = other.v2 {
            crate::aggregation::merge_v2(&mut document, said, &other.root);
        }
    }
    document
}

struct Builder {
    descriptions: Descriptions,
    /// Content types of patches of the resource at hand.
    patches: &'static [&'static str],
    dialect: Dialect,
    schema: &'static Schema,
    /// Types that are referred to, by the name of their definition.
    wanted: BTreeMap<String, TypeId>,
    /// Definitions of custom kinds.
    custom: BTreeMap<String, Value>,
}

fn quantity(dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"type": "string"}),
        Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
    }
}

/// The definition of what a field of `JSONSchemaProps` holds where any JSON is allowed.
fn loose_definition(field: &str) -> &'static str {
    match field {
        "items" => "JSONSchemaPropsOrArray",
        "additionalItems" | "additionalProperties" => "JSONSchemaPropsOrBool",
        "dependencies" => "JSONSchemaPropsOrStringArray",
        _ => "JSON",
    }
}

impl Builder {
    fn new(dialect: Dialect) -> Self {
        Self {
            descriptions: Descriptions::default(),
            patches: &PATCHES,
            dialect,
            schema: schema::builtin(),
            wanted: BTreeMap::new(),
            custom: BTreeMap::new(),
        }
    }

    fn reference_to(&self, name: &str) -> Value {
        let place = match self.dialect {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        json!({"$ref": format!("{place}{name}")})
    }

    /// A reference inside a schema that says more beside it.
    fn beside(&self, reference: Value) -> Value {
        match self.dialect {
            Dialect::V2 => reference,
            Dialect::V3 => json!({"allOf": [reference]}),
        }
    }

    /// Refers to a definition without a type from where any JSON is allowed.
    fn allow_any(&mut self, field: &str, shape: &Shape, described: &mut Value) {
        let inner = match shape {
            Shape::Any => {
                let name = format!("{SCHEMAS}.{}", loose_definition(field));
                *described = self.beside(self.reference_to(&name));
                self.custom.entry(name).or_insert_with_key(|name| {
                    let mut definition = json!({});
                    self.descriptions.describe(name, &mut definition);
                    definition
                });
                return;
            }
            Shape::List(of) => (of, "items"),
            Shape::Map(of) => (of, "additionalProperties"),
            _ => return,
        };
        if let Some(described) = described.get_mut(inner.1) {
            self.allow_any(field, inner.0, described);
        }
    }

    /// Defines a custom kind and its list.
    fn define(&mut self, resource: &Resource, custom: &crate::custom::Custom) {
        use crate::custom::openapi;
        let metadata = self.named(&format!("{META}.ObjectMeta")).unwrap_or_default();
        let (metadata, plain) = (self.beside(metadata), self.dialect == Dialect::V2);
        let name = openapi::definition_name(resource, &resource.kind);
        let item = self.reference_to(&name);
        self.custom.insert(name, openapi::definition(resource, custom, metadata, plain));
        let metadata = self.named(&format!("{META}.ListMeta")).unwrap_or_default();
        let metadata = self.beside(metadata);
        let name = openapi::definition_name(resource, &resource.list_kind);
        self.custom.insert(name, openapi::list(resource, item, metadata));
    }

    /// A reference to a kind's definition.
    fn of_kind(&mut self, group: &str, version: &str, kind: &str) -> Option<Value> {
        let custom = apimachinery::structural::Names { group, version, kind }.definition();
        if self.custom.contains_key(&custom) {
            return Some(self.reference_to(&custom));
        }
        let id = self.schema.kind(group, version, kind)?;
        Some(self.reference(id))
    }

    fn reference(&mut self, id: TypeId) -> Value {
        let name = self.schema.get(id).name.to_string();
        let place = match self.dialect {
            Dialect::V2 => "#/definitions/",
            Dialect::V3 => "#/components/schemas/",
        };
        let reference = json!({"$ref": format!("{place}{name}")});
        self.wanted.insert(name, id);
        reference
    }

    fn named(&mut self, name: &str) -> Option<Value> {
        let id = self.schema.named(name)?;
        Some(self.reference(id))
    }

    fn shape(&mut self, shape: &Shape) -> Value {
        match shape {
            Shape::String => json!({"type": "string"}),
            Shape::Bytes => json!({"type": "string", "format": "byte"}),
            Shape::Int32 => json!({"type": "integer", "format": "int32"}),
            Shape::Int64 => json!({"type": "integer", "format": "int64"}),
            Shape::Double => json!({"type": "number", "format": "double"}),
            Shape::Bool => json!({"type": "boolean"}),
            Shape::Quantity => quantity(self.dialect),
            Shape::IntOrString => match self.dialect {
                Dialect::V2 => json!({"type": "string", "format": "int-or-string"}),
                Dialect::V3 => json!({"format": "int-or-string",
                    "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            },
            Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
            Shape::Any => json!({"type": "object"}),
            Shape::List(of) => json!({"type": "array", "items": self.element(of)}),
            Shape::Map(of) => json!({"type": "object", "additionalProperties": self.element(of)}),
            Shape::Object(id) => self.reference(*id),
        }
    }

    /// What a list or map holds: never nothing, so that version 3 tells its zero value.
    fn element(&mut self, of: &Shape) -> Value {
        let value = self.shape(of);
        with_default(self.dialect, value, zero(of))
    }

    fn field(&mut self, field: &Field) -> Value {
        let mut value = self.shape(&field.shape);
        if self.dialect == Dialect::V3 && value.get("$ref").is_some() {
            // Beside a reference nothing else may stand.
            value = json!({"allOf": [value]});
        }
        let always = field.always && !field.pointer;
        value = with_default(self.dialect, value, zero(&field.shape).filter(|_| always));
        let mut add = |key: &str, extension: Value| {
            if let Value::Object(map) = &mut value {
                map.insert(key.to_owned(), extension);
            }
        };
        if let Some(kind) = field.list_type {
            let kind = match kind {
                ListType::Atomic => "atomic",
                ListType::Set => "set",
                ListType::Map => "map",
            };
            add("x-kubernetes-list-type", kind.into());
        }
        if !field.list_map_keys.is_empty() {
            let keys: Vec<&str> = field.list_map_keys.iter().map(AsRef::as_ref).collect();
            add("x-kubernetes-list-map-keys", json!(keys));
        }
        if let Some(atomic) = field.atomic_map {
            let kind = if atomic { "atomic" } else { "granular" };
            add("x-kubernetes-map-type", kind.into());
        }
        let strategies = [
            (field.patch.merge, "merge"),
            (field.patch.replace, "replace"),
            (field.patch.retain_keys, "retainKeys"),
        ];
        let strategy: Vec<&str> =
            strategies.iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect();
        if !strategy.is_empty() {
            add("x-kubernetes-patch-strategy", strategy.join(",").into());
        }
        if let Some(key) = &field.merge_key {
            add("x-kubernetes-patch-merge-key", key.as_ref().into());
        }
        value
    }

    fn definition(&mut self, of: &Type) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        // What a JSON schema holds of any JSON need not be an object: a default, a value of an enum.
        let loose = of.name.ends_with(".JSONSchemaProps");
        for field in &of.fields {
            let mut property = self.field(field);
            if loose {
                self.allow_any(&field.name, &field.shape, &mut property);
            }
            self.descriptions.describe_field(&of.name, &field.name, &mut property);
            properties.insert(field.name.to_string(), property);
            if field.required {
                required.push(field.name.as_ref());
            }
        }
        let mut value = json!({"type": "object"});
        self.descriptions.describe(&of.name, &mut value);
        if !properties.is_empty() {
            value["properties"] = properties.into();
        }
        if !required.is_empty() {
            value["required"] = json!(required);
        }
        if let Some((group, version, kind)) = &of.gvk {
            value["x-kubernetes-group-version-kind"] =
                json!([{"group": group, "version": version, "kind": kind}]);
        }
        if of.atomic {
            value["x-kubernetes-map-type"] = "atomic".into();
        }
        value
    }

    /// The definitions of everything referred to, and of what those refer to.
    fn definitions(&mut self) -> Map<String, Value> {
        let mut done = Map::new();
        loop {
            let next: Vec<(String, TypeId)> = self
                .wanted
                .iter()
                .filter(|(name, _)| !done.contains_key(*name))
                .map(|(name, id)| (name.clone(), *id))
                .collect();
            if next.is_empty() {
                done.extend(self.custom.clone());
                return done;
            }
            for (name, id) in next {
                let schema = self.schema;
                let definition = self.definition(schema.get(id));
                done.insert(name, definition);
            }
        }
    }

    fn paths(&mut self, resources: &[&Resource]) -> Map<String, Value> {
        let mut paths = Map::new();
        for resource in resources {
            if let Some(custom) = &resource.custom {
                self.define(resource, custom);
            }
            self.resource(resource, &mut paths);
        }
        paths
    }

    fn resource(&mut self, resource: &Resource, paths: &mut Map<String, Value>) {
        let taken = PATCHES.len() - usize::from(resource.custom.is_some());
        self.patches = &PATCHES[..taken];
        let own = (resource.group.as_str(), resource.version.as_str(), resource.kind.as_str());
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let collection = format!("/{}/{scope}{}", root(resource), resource.plural);
        let verbs =
            |wanted: &[(&str, &'static str, &'static str)]| -> Vec<(&'static str, &'static str)> {
                wanted
                    .iter()
                    .filter(|(verb, _, _)| resource.verbs.iter().any(|known| known == verb))
                    .map(|(_, method, action)| (*method, *action))
                    .collect()
            };
        let on_collection = verbs(&[
            ("list", "get", "list"),
            ("create", "post", "post"),
            ("deletecollection", "delete", "deletecollection"),
        ]);
        let on_item = verbs(&[
            ("get", "get", "get"),
            ("update", "put", "put"),
            ("patch", "patch", "patch"),
            ("delete", "delete", "delete"),
        ]);
        let item = format!("{collection}/{{name}}");
        self.path(paths, &collection, &on_collection, own, &resource.list_kind);
        self.path(paths, &item, &on_item, own, &resource.list_kind);
        if resource.namespaced && on_collection.iter().any(|(_, action)| *action == "list") {
            let everywhere = format!("/{}/{}", root(resource), resource.plural);
            self.path(paths, &everywhere, &[("get", "list")], own, &resource.list_kind);
        }
        for sub in &resource.subresources {
            let methods: Vec<(&str, &str)> = [
                ("get", "get", "get"),
                ("update", "put", "put"),
                ("patch", "patch", "patch"),
                ("create", "post", "post"),
            ]
            .iter()
            .filter(|(verb, _, _)| sub.verbs.iter().any(|known| known == verb))
            .map(|(_, method, action)| (*method, *action))
            .collect();
            let kind = (sub.group.as_str(), sub.version.as_str(), sub.kind.as_str());
            self.path(paths, &format!("{item}/{}", sub.name), &methods, kind, "");
        }
    }

    fn path(
        &mut self,
        paths: &mut Map<String, Value>,
        path: &str,
        methods: &[(&str, &str)],
        (group, version, kind): (&str, &str, &str),
        list_kind: &str,
    ) {
        if methods.is_empty() {
            return;
        }
        let in_path: Vec<Value> = ["namespace", "name"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(|name| self.parameter(name, "path", "string"))
            .collect();
        let mut operations = Map::new();
        for (method, action) in methods {
            let wanted = if *action == "list" { list_kind } else { kind };
            let answer = match *action {
                "delete" | "deletecollection" => self.named(&format!("{META}.Status")),
                _ => self.of_kind(group, version, wanted),
            };
            let mut operation = self.operation(action, answer);
            operation["x-kubernetes-action"] = (*action).into();
            operation["x-kubernetes-group-version-kind"] =
                json!({"group": group, "version": version, "kind": kind});
            operation["operationId"] = operation_id(action, path, kind).into();
            operations.insert((*method).to_owned(), operation);
        }
        operations.insert("parameters".into(), Value::Array(in_path));
        paths.insert(path.to_owned(), Value::Object(operations));
    }

    fn parameter(&self, name: &str, place: &str, kind: &str) -> Value {
        let mut value = json!({"name": name, "in": place});
        match self.dialect {
            Dialect::V2 => value["type"] = kind.into(),
            Dialect::V3 => value["schema"] = json!({"type": kind}),
        }
        if place == "path" {
            value["required"] = true.into();
        }
        value
    }

    fn operation(&mut self, action: &str, answer: Option<Value>) -> Value {
        const LIST: [(&str, &str); 9] = [
            ("labelSelector", "string"),
            ("fieldSelector", "string"),
            ("limit", "integer"),
            ("continue", "string"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
            ("allowWatchBookmarks", "boolean"),
        ];
        const WRITE: [(&str, &str); 3] =
            [("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
        const DELETE: [(&str, &str); 3] = [
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("propagationPolicy", "string"),
        ];
        let query: Vec<(&str, &str)> = match action {
            "list" => LIST.to_vec(),
            "post" | "put" => WRITE.to_vec(),
            "patch" => [&WRITE[..], &[("force", "boolean")]].concat(),
            "delete" => DELETE.to_vec(),
            "deletecollection" => [&LIST[..], &DELETE[..]].concat(),
            _ => Vec::new(),
        };
        let mut parameters: Vec<Value> =
            query.iter().map(|(name, kind)| self.parameter(name, "query", kind)).collect();
        let schema = answer.unwrap_or_else(|| json!({"type": "string"}));
        let body = match action {
            "post" | "put" => Some(schema.clone()),
            "patch" => self.named(&format!("{META}.Patch")).or(Some(json!({"type": "object"}))),
            "delete" | "deletecollection" => self.named(&format!("{META}.DeleteOptions")),
            _ => None,
        };
        let types: &[&str] = if action == "patch" { self.patches } else { &["application/json"] };
        let mut operation = json!({});
        match self.dialect {
            Dialect::V3 => {
                operation["responses"] = json!({"200": {"description": "OK",
                    "content": {"application/json": {"schema": schema}}}});
                if let Some(body) = body {
                    let content: Map<String, Value> = types
                        .iter()
                        .map(|kind| ((*kind).to_owned(), json!({"schema": body})))
                        .collect();
                    operation["requestBody"] = json!({"content": content});
                }
            }
            Dialect::V2 => {
                operation["responses"] = json!({"200": {"description": "OK", "schema": schema}});
                operation["consumes"] = json!(types);
                operation["produces"] = json!(["application/json", "application/yaml"]);
                parameters
                    .extend(body.map(|body| json!({"name": "body", "in": "body", "schema": body})));
            }
        }
        operation["parameters"] = Value::Array(parameters);
        operation
    }
}

/// The zero value of a shape whose form in OpenAPI can have it as its default.
fn zero(shape: &Shape) -> Option<Value> {
    Some(match shape {
        Shape::String => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 => 0.into(),
        Shape::Double => 0.0.into(),
        Shape::Object(_) => json!({}),
        _ => return None,
    })
}

/// A schema with a default; version 2 has none.
fn with_default(dialect: Dialect, mut value: Value, default: Option<Value>) -> Value {
    let Some(default) = default.filter(|_| dialect == Dialect::V3) else { return value };
    if value.get("$ref").is_some() {
        value = json!({"allOf": [value]});
    }
    value["default"] = default;
    value
}

/// A name for the operation that no other has.
fn operation_id(action: &str, path: &str, kind: &str) -> String {
    let words: BTreeSet<&str> = ["namespaces", "{namespace}", "{name}"].into();
    let place: String = path
        .split('/')
        .filter(|part| !part.is_empty() && !words.contains(part))
        .map(|part| part.replace(['.', '-'], "_") + "_")
        .collect();
    let scope = if path.contains("{namespace}") { "Namespaced" } else { "" };
    format!("{action}_{place}{scope}{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Value {
        let answer = OpenApi::default().answer(&Served::builtin(), &[], path, &HeaderMap::new());
        let crate::body::Body::Full(bytes) = answer.expect("it is served").into_body() else {
            panic!("a document is one body")
        };
        serde_json::from_slice(&bytes).expect("it is JSON")
    }

    #[test]
    fn pods_are_described_as_kubectl_looks_for_them() {
        let document = get("openapi/v3/api/v1");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let parameters = patch["parameters"].as_array().expect("it has some");
        assert!(parameters.iter().any(|parameter| parameter["name"] == "fieldValidation"));
        let containers = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]
            ["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
    }

    #[test]
    fn what_go_always_writes_has_a_default() {
        let schemas = get("openapi/v3/api/v1")["components"]["schemas"].take();
        let property = |of: &str, name: &str| {
            schemas[format!("io.k8s.api.core.v1.{of}")]["properties"][name].clone()
        };
        let reference = |name: &str| json!([{"$ref": format!("#/components/schemas/io.k8s.api.core.v1.{name}")}]);
        assert_eq!(property("Pod", "spec")["default"], json!({}));
        assert_eq!(property("Pod", "spec")["allOf"], reference("PodSpec"));
        assert_eq!(property("PodSpec", "securityContext").get("default"), None);
        assert_eq!(property("PodSpec", "hostNetwork").get("default"), None);
        assert_eq!(property("ContainerStatus", "restartCount")["default"], 0);
        assert_eq!(property("Container", "name")["default"], "");
        assert_eq!(
            property("Container", "args")["items"],
            json!({"type": "string", "default": ""})
        );
        let env = property("Container", "env")["items"].clone();
        assert_eq!(env, json!({"allOf": reference("EnvVar"), "default": {}}));
        let old = get("openapi/v2");
        let old = &old["definitions"]["io.k8s.api.core.v1.Container"]["properties"];
        assert_eq!(old["name"].get("default"), None);
        assert_eq!(old["args"]["items"].get("default"), None);
    }

    #[test]
    fn schemas_hold_any_json() {
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
        let document = get("openapi/v2");
        let schema = &document["definitions"][name]["properties"];
        for (path, want) in [
            ("/default", "JSON"),
            ("/items", "JSONSchemaPropsOrArray"),
            ("/enum/items", "JSON"),
            ("/dependencies/additionalProperties", "JSONSchemaPropsOrStringArray"),
        ] {
            let found = schema.pointer(&format!("{path}/$ref")).and_then(Value::as_str);
            let definition = format!("{SCHEMAS}.{want}");
            assert_eq!(found, Some(format!("#/definitions/{definition}").as_str()), "{path}");
            assert!(document["definitions"][definition].get("type").is_none(), "{want}");
        }
        assert_eq!(schema["enum"]["type"], "array");
        let raw = &document["definitions"]["io.k8s.api.apps.v1.ControllerRevision"]["properties"];
        assert_eq!(raw["data"]["type"], "object");
    }

    #[test]
    fn kinds_and_fields_are_described() {
        for (path, place) in
            [("openapi/v2", "/definitions"), ("openapi/v3/api/v1", "/components/schemas")]
        {
            let document = get(path);
            let pod = &document.pointer(place).expect("definitions")["io.k8s.api.core.v1.Pod"];
            for of in [pod, &pod["properties"]["spec"], &pod["properties"]["kind"]] {
                let text = of["description"].as_str().unwrap_or_default();
                assert!(text.len() > 20, "{path}: {of}");
            }
        }
    }

    #[test]
    fn every_reference_is_defined() {
        for (path, place) in
            [("openapi/v2", "#/definitions/"), ("openapi/v3/apis/apps/v1", "#/components/schemas/")]
        {
            let document = get(path);
            let defined = if place == "#/definitions/" {
                &document["definitions"]
            } else {
                &document["components"]["schemas"]
            };
            let text = document.to_string();
            for reference in text.split("\"$ref\":\"").skip(1) {
                let name = reference.split('"').next().unwrap_or_default();
                let name = name.strip_prefix(place).expect("it points into this document");
                assert!(defined.get(name).is_some(), "{path}: {name}");
            }
        }
    }

    #[test]
    fn the_index_names_each_group() {
        let index = get("openapi/v3");
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("a URL");
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="), "{url}");
    }

    #[test]
    fn the_protobuf_form_is_what_kubectl_asks_for() {
        let ask = |path: &str, accept: &str, known: Option<HeaderValue>| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_str(accept).expect("a header"));
            if let Some(known) = known {
                headers.insert(IF_NONE_MATCH, known);
            }
            OpenApi::default()
                .answer(&Served::builtin(), &[], path, &headers)
                .expect("it is served")
        };
        for (path, version) in [("openapi/v2", "v2"), ("openapi/v3/api/v1", "v3")] {
            for at in ["@", "."] {
                let accept =
                    format!("application/com.github.proto-openapi.spec.{version}{at}v1.0+protobuf");
                let answer = ask(path, &accept, None);
                assert_eq!(answer.status(), 200);
                assert_eq!(answer.headers()[CONTENT_TYPE], accept.replace('@', "."));
                let again = ask(path, &accept, Some(answer.headers()[ETAG].clone()));
                assert_eq!(again.status(), 304);
            }
        }
        let other = "application/com.github.proto-openapi.spec.v3@v1.0+protobuf";
        assert_eq!(ask("openapi/v2", other, None).status(), 406);
        assert_eq!(ask("openapi/v3", other, None).status(), 200);
        assert_eq!(ask("openapi/v2", "text/html", None).status(), 406);
    }
}
