//! Tables of custom resources: `additionalPrinterColumns`, or the age.
//!
//! Source: `pkg/registry/customresource/tableconvertor` of apiextensions-apiserver.

use std::borrow::Borrow;

use apimachinery::json_path::JsonPath;
use apimachinery::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Custom;
use crate::negotiate::Accepted;
use crate::object::Object;
use crate::options::Query;
use crate::printers::descriptions;
use crate::printers::{self, cells};
use crate::zero::Zero;

/// One printed column.
#[derive(Debug)]
pub struct Column {
    name: String,
    kind: String,
    format: String,
    description: String,
    priority: i64,
    path: Option<JsonPath>,
}

/// The columns of a version beside the name.
pub fn columns(version: &Value) -> Vec<Column> {
    let given = version["additionalPrinterColumns"].items();
    if given.is_empty() {
        return vec![Column {
            name: "Age".into(),
            kind: "date".into(),
            format: String::new(),
            description: descriptions::CREATED.into(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }];
    }
    given
        .iter()
        .map(|column| {
            let name = column["name"].text();
            let description = column["description"].text();
            Column {
                name: name.into(),
                kind: column["type"].text().into(),
                format: column["format"].text().into(),
                description: if description.is_empty() {
                    format!(
                        "Custom resource definition column (in JSONPath format): {}",
                        column["jsonPath"].text()
                    )
                } else {
                    description.into()
                },
                priority: column["priority"].int(),
                path: JsonPath::parse(column["jsonPath"].text()).ok(),
            }
        })
        .collect()
}

impl Column {
    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.path.as_ref().and_then(|path| path.first(object)) else {
            return Value::Null;
        };
        match self.kind.as_str() {
            "integer" => match value {
                Value::Number(n) if n.is_f64() => {
                    n.as_f64().map_or(Value::Null, |n| Value::from(n as i64))
                }
                Value::Number(_) => value.clone(),
                _ => Value::Null,
            },
            "number" => value.as_number().map_or(Value::Null, |n| n.clone().into()),
            "boolean" => value.as_bool().map_or(Value::Null, Value::from),
            "string" => match value {
                Value::String(_) => value.clone(),
                Value::Null => "<nil>".into(),
                other => other.to_string().into(),
            },
            "date" => match value.as_str() {
                Some(text) if text.parse::<Timestamp>().is_ok() => time::age(text, now).into(),
                Some(_) => "<invalid>".into(),
                None => Value::Null,
            },
            _ => Value::Null,
        }
    }
}

/// The `Table` of some objects.
pub fn table(
    custom: &Custom,
    objects: &[impl Borrow<Object>],
    query: &Query,
    accepted: Accepted,
) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let object = object.borrow();
            let value = object.to_value();
            let mut row = vec![cells::name(&value)];
            row.extend(custom.columns.iter().map(|column| column.cell(&value, now)));
            json!({"cells": row, "object": printers::row_object(object, value, query, accepted)})
        })
        .collect();
    let mut columns = vec![json!({"name": "Name", "type": "string", "format": "name",
        "description": descriptions::NAME,
        "priority": 0})];
    columns.extend(custom.columns.iter().map(|column| {
        json!({"name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority})
    }));
    let revision = objects.last().map_or_else(String::new, |o| o.borrow().revision.to_string());
    json!({
        "kind": "Table",
        "apiVersion": accepted.meta_version(),
        "metadata": {"resourceVersion": revision},
        "columnDefinitions": columns,
        "rows": rows,
    })
}
