//! Reads the compiled-in fact table.
//!
//! One fact a line, words separated by blanks:
//! - `T name [atomic]`: a type; the lines below up to the next `T` belong to it
//! - `G group version kind`: it is this kind; `-` is the core group
//! - `U discriminator field=Value …`: a union
//! - `F name shape [tag] [!] [*] [+] [*+] [list=] [keys=] [map=] [patch=] [merge=] [proto=]`: a field; `!` is
//!   required; `*` is a pointer in Go though its shape or being required says otherwise, `+` is written even
//!   when empty though it is optional; `[x]` is a list of x, `{x}` a map to x
//! - `I name tag proto [repeated]`: a protobuf field without a JSON field
//! - `M name`: a protobuf message that is no JSON type; `I` lines follow
//! - `R group version plural[/subresource] scope verbs group/version/kind`: a resource

use std::collections::HashMap;

use serde_json::Value;

use super::{
    Embedded, Field, ListType, PatchStrategy, Places, Resource, Schema, Shape, Subresource, Text,
    Type, TypeId, Union, resource,
};

static TABLE: &str = include_str!("../../data/kubernetes-1.36.table");

/// Types that are scalars in JSON, or any JSON at all.
const SPECIAL: &[(&str, Shape)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", Shape::Quantity),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", Shape::IntOrString),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", Shape::Time),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", Shape::MicroTime),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", Shape::Any),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", Shape::Any),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON", Shape::Any),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray", Shape::Any),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool", Shape::Any),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
        Shape::Any,
    ),
];

fn shape(text: &'static str, ids: &HashMap<&'static str, TypeId>) -> Shape {
    let inner = || &text[1..text.len() - 1];
    match text.as_bytes()[0] {
        b'[' => return Shape::List(Box::new(shape(inner(), ids))),
        b'{' => return Shape::Map(Box::new(shape(inner(), ids))),
        _ => {}
    }
    match text {
        "string" => Shape::String,
        "bytes" => Shape::Bytes,
        "int32" => Shape::Int32,
        "int64" => Shape::Int64,
        "double" => Shape::Double,
        "bool" => Shape::Bool,
        name => SPECIAL.iter().find(|(n, _)| *n == name).map_or_else(
            || Shape::Object(*ids.get(name).expect("the table defines every type it uses")),
            |(_, shape)| shape.clone(),
        ),
    }
}

fn list(text: &'static str) -> Vec<Text> {
    text.split(',').map(Text::Borrowed).collect()
}

fn core(group: &'static str) -> &'static str {
    if group == "-" { "" } else { group }
}

fn field(
    mut words: std::str::SplitAsciiWhitespace<'static>,
    ids: &HashMap<&'static str, TypeId>,
) -> Field {
    let mut next = || words.next().expect("a field has a name and a shape");
    let mut field = Field {
        name: Text::Borrowed(next()),
        shape: shape(next(), ids),
        required: false,
        pointer: false,
        always: false,
        list_type: None,
        list_map_keys: Vec::new(),
        atomic_map: None,
        patch: PatchStrategy::default(),
        merge_key: None,
        tag: 0,
        proto: None,
        default: None,
        inner: None,
    };
    for word in words {
        match word.split_once('=') {
            None if word == "!" => field.required = true,
            None if word == "*" => field.pointer = true,
            None if word == "+" => field.always = true,
            None if word == "*+" => (field.pointer, field.always) = (true, true),
            None => field.tag = word.parse().expect("a bare word is a protobuf tag"),
            Some(("list", kind)) => {
                field.list_type = Some(match kind {
                    "map" => ListType::Map,
                    "set" => ListType::Set,
                    _ => ListType::Atomic,
                });
            }
            Some(("keys", keys)) => field.list_map_keys = list(keys),
            Some(("map", kind)) => field.atomic_map = Some(kind == "atomic"),
            Some(("merge", key)) => field.merge_key = Some(Text::Borrowed(key)),
            Some(("proto", proto)) => field.proto = Some(Text::Borrowed(proto)),
            Some(("patch", strategies)) => {
                for strategy in strategies.split(',') {
                    match strategy {
                        "merge" => field.patch.merge = true,
                        "retainKeys" => field.patch.retain_keys = true,
                        _ => field.patch.replace = true,
                    }
                }
            }
            Some((other, _)) => unreachable!("{other} is no attribute of a field"),
        }
    }
    field.always |= field.required && !field.pointer;
    field
}

/// What Go writes for a field that has its zero value.
fn zero(field: &Field, types: &[Type]) -> Value {
    match &field.shape {
        _ if field.pointer => Value::Null,
        Shape::String => "".into(),
        Shape::Bool => false.into(),
        Shape::Int32 | Shape::Int64 | Shape::IntOrString => 0.into(),
        Shape::Double => 0.0.into(),
        Shape::Quantity => "0".into(),
        Shape::Object(id) => Value::Object(zeros(&types[id.0 as usize], types).collect()),
        Shape::Bytes
        | Shape::Time
        | Shape::MicroTime
        | Shape::Any
        | Shape::List(_)
        | Shape::Map(_) => Value::Null,
    }
}

/// The fields that are in every object of a type, empty.
fn zeros(of: &Type, types: &[Type]) -> impl Iterator<Item = (String, Value)> {
    let always = of.fields.iter().filter(|field| field.always);
    always.map(|field| (field.name.to_string(), zero(field, types)))
}

fn embedded(mut words: std::str::SplitAsciiWhitespace<'static>) -> Embedded {
    let mut next = || words.next().expect("an embedded field has name, tag and type");
    Embedded {
        name: Text::Borrowed(next()),
        tag: next().parse().expect("a tag is a number"),
        proto: Text::Borrowed(next()),
        repeated: words.next().is_some(),
    }
}

/// HTTP methods of the table to API verbs.
fn verbs(text: &str, subresource: &str, connect: bool) -> Vec<Text> {
    if connect {
        // A proxy passes every method on; the streams open with GET (WebSocket) or POST (SPDY).
        let verbs: &[&str] = if subresource == "proxy" {
            &["create", "delete", "get", "patch", "update"]
        } else {
            &["create", "get"]
        };
        return verbs.iter().map(|v| Text::Borrowed(v)).collect();
    }
    let mut verbs: Vec<Text> = Vec::new();
    for method in text.split(',') {
        verbs.push(Text::Borrowed(match method {
            "delete" => "delete",
            "deletecollection" => "deletecollection",
            "get" => "get",
            "list" => "list",
            "patch" => "patch",
            "post" => "create",
            "put" => "update",
            other => unreachable!("{other} is no method of a resource"),
        }));
    }
    if text.contains("list") && text.contains("post") {
        verbs.push(Text::Borrowed("watch"));
    }
    verbs.sort();
    verbs
}

fn resource(mut words: std::str::SplitAsciiWhitespace<'static>, resources: &mut Vec<Resource>) {
    let mut next = || words.next().expect("a resource line has six words");
    let (group, version, path, scope, methods, gvk) =
        (core(next()), next(), next(), next(), next(), next());
    let mut kind = gvk.split('/').map(Text::Borrowed);
    let mut kind = || kind.next().expect("group/version/kind");
    let (kind_group, kind_version, kind) = (kind(), kind(), kind());
    let (plural, subresource) = path.split_once('/').unwrap_or((path, ""));
    let connect = methods == "connect";
    let verbs = verbs(methods, subresource, connect);
    if subresource.is_empty() {
        let (short_names, categories) = resource::names(group, plural);
        resources.push(Resource {
            group: Text::Borrowed(group),
            version: Text::Borrowed(version),
            plural: Text::Borrowed(plural),
            singular: Text::Owned(kind.to_lowercase()),
            kind,
            namespaced: scope == "namespaced",
            verbs,
            short_names,
            categories,
            subresources: Vec::new(),
            // Since 1.24 new beta versions are off unless asked for; no older one is left.
            enabled: resource::stability(version).0 == 3,
        });
        return;
    }
    let name = Text::Borrowed(subresource);
    let sub = Subresource { name, group: kind_group, version: kind_version, kind, verbs, connect };
    let parent = resources
        .iter_mut()
        .find(|r| r.key() == (group, version, plural))
        .expect("a resource comes before its subresources");
    parent.subresources.push(sub);
    parent.subresources.sort_by(|a, b| a.name.cmp(&b.name));
}

pub(super) fn parse() -> Schema {
    let names = TABLE.lines().filter_map(|l| l.strip_prefix("T ")?.split_ascii_whitespace().next());
    let ids: HashMap<&'static str, TypeId> =
        names.enumerate().map(|(i, name)| (name, TypeId(i as u32))).collect();
    let mut types: Vec<Type> = Vec::with_capacity(ids.len());
    let mut resources: Vec<Resource> = Vec::new();
    let mut messages: HashMap<Text, Vec<Embedded>> = HashMap::new();
    let mut message: Option<&'static str> = None;
    for line in TABLE.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("T") => {
                types.push(Type {
                    name: Text::Borrowed(words.next().expect("a type has a name")),
                    gvk: None,
                    fields: Vec::new(),
                    atomic: words.any(|w| w == "atomic"),
                    unions: Vec::new(),
                    embedded: Vec::new(),
                    preserve_unknown: false,
                    zeros: Vec::new(),
                    places: Places::default(),
                });
            }
            Some("M") => message = words.next(),
            Some("I") if message.is_some() => messages
                .entry(Text::Borrowed(message.unwrap_or_default()))
                .or_default()
                .push(embedded(words)),
            Some("R") => resource(words, &mut resources),
            Some(kind @ ("F" | "G" | "I" | "U")) => {
                let of = types.last_mut().expect("a type comes before its facts");
                match kind {
                    "F" => of.fields.push(field(words, &ids)),
                    "I" => of.embedded.push(embedded(words)),
                    "G" => {
                        let mut next = || Text::Borrowed(core(words.next().unwrap_or_default()));
                        of.gvk = Some((next(), next(), next()));
                    }
                    _ => of.unions.push(union(words)),
                }
            }
            _ => {}
        }
    }
    for at in 0..types.len() {
        let always = types[at].fields.iter().enumerate().filter(|(_, field)| field.always);
        types[at].zeros = always.map(|(index, field)| (index, zero(field, &types))).collect();
    }
    Schema { messages, ..Schema::new(types, resources) }
}

fn union(mut words: std::str::SplitAsciiWhitespace<'static>) -> Union {
    let discriminator = words.next().filter(|d| *d != "-").map(Text::Borrowed);
    let fields = words
        .filter_map(|w| w.split_once('='))
        .map(|(field, value)| (Text::Borrowed(field), Text::Borrowed(value)))
        .collect();
    Union { discriminator, fields }
}
