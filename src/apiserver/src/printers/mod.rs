//! Tables, as kubectl prints them: the columns of each kind.
//!
//! Source: `k8s.io/kubernetes/pkg/printers/internalversion/printers.go`.

pub mod cells;
mod cluster;
pub mod descriptions;
mod fields;
mod pods;
mod services;
mod workloads;

use std::borrow::Borrow;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::negotiate::Accepted;
use crate::object::Object;
use crate::options::Query;
use crate::resource::Resource;

/// A column: its name, its type, and 1 for those that only `-o wide` shows.
type Column = (&'static str, &'static str, u8);

/// How one kind is printed.
struct Printer {
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
}

/// The columns of a kind that has none of its own.
const PLAIN: Printer = Printer {
    columns: &[("Name", "string", 0), ("Created At", "date", 0)],
    cells: |object, _| vec![cells::name(object), object["metadata"]["creationTimestamp"].clone()],
};

fn printer(resource: &Resource) -> Printer {
    let kind = (resource.group.as_str(), resource.kind.as_str());
    pods::printer(kind)
        .or_else(|| cluster::printer(kind))
        .or_else(|| services::printer(kind))
        .or_else(|| workloads::printer(kind))
        .or_else(|| fields::printer(kind))
        .unwrap_or(PLAIN)
}

/// The `Table` of some objects of one resource.
pub fn table(
    resource: &Resource,
    objects: &[impl Borrow<Object>],
    query: &Query,
    accepted: Accepted,
) -> Value {
    if let Some(custom) = &resource.custom {
        return crate::custom::table::table(custom, objects, query, accepted);
    }
    let now = Timestamp::now();
    let printer = printer(resource);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let object = object.borrow();
            let value = object.to_value();
            let cells = (printer.cells)(&value, now);
            debug_assert_eq!(cells.len(), printer.columns.len(), "{}", resource.kind);
            json!({"cells": cells, "object": row_object(object, value, query, accepted)})
        })
        .collect();
    let columns: Vec<Value> = printer
        .columns
        .iter()
        .map(|(name, kind, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            let description = descriptions::of(&resource.kind, name);
            json!({"name": name, "type": kind, "format": format, "description": description,
                "priority": priority})
        })
        .collect();
    let revision = objects.last().map_or_else(String::new, |o| o.borrow().revision.to_string());
    json!({
        "kind": "Table",
        "apiVersion": accepted.meta_version(),
        "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// What a row carries of its object: `includeObject=Metadata` by default.
pub fn row_object(object: &Object, value: Value, query: &Query, accepted: Accepted) -> Value {
    match query.get("includeObject") {
        "None" => Value::Null,
        "Object" => value,
        _ => crate::rest::partial_metadata(object, accepted.meta_version()),
    }
}
