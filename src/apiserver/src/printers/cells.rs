//! Cells that several kinds share.

use apimachinery::{meta, time};
use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::zero::Zero;

/// What stands where there is nothing.
pub const NONE: &str = "<none>";

/// The object's name.
pub fn name(object: &Value) -> Value {
    meta::name(object).into()
}

/// Time since its creation.
pub fn age(object: &Value, now: Timestamp) -> Value {
    time::age(meta::creation_timestamp(object), now).into()
}

/// Time since `at`, or `<unknown>`.
pub fn since(at: &Value, now: Timestamp) -> Value {
    if at.text().is_empty() { "<unknown>".into() } else { time::age(at.text(), now).into() }
}

/// The text, or `<none>`.
pub fn or_none(value: &Value) -> Value {
    if value.text().is_empty() { NONE.into() } else { value.clone() }
}

/// The text of `items`, joined by commas, or `<none>`.
pub fn joined<'a>(items: impl Iterator<Item = &'a str>) -> Value {
    let items: Vec<&str> = items.collect();
    if items.is_empty() { NONE.into() } else { items.join(",").into() }
}

/// Labels as `a=b,c=d`, or `<none>`.
pub fn labels(map: &Value) -> Value {
    let pairs: Vec<String> =
        map.entries().map(|(key, value)| format!("{key}={}", value.text())).collect();
    joined(pairs.iter().map(String::as_str))
}

/// A label selector as kubectl writes it.
pub fn selector(selector: &Value) -> Value {
    let mut parts: Vec<String> = selector["matchLabels"]
        .entries()
        .map(|(key, value)| format!("{key}={}", value.text()))
        .collect();
    for expression in selector["matchExpressions"].items() {
        let key = expression["key"].text();
        let values: Vec<&str> = expression["values"].texts().collect();
        parts.push(match expression["operator"].text() {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    joined(parts.iter().map(String::as_str))
}

/// Access modes in short, as kubectl writes them.
pub fn access_modes(modes: &Value) -> String {
    let short: Vec<&str> = modes
        .texts()
        .map(|mode| match mode {
            "ReadWriteOnce" => "RWO",
            "ReadOnlyMany" => "ROX",
            "ReadWriteMany" => "RWX",
            "ReadWriteOncePod" => "RWOP",
            other => other,
        })
        .collect();
    short.join(",")
}

/// The number of entries of a map.
pub fn count(map: &Value) -> usize {
    map.as_object().map_or(0, Map::len)
}

/// Names and images of a pod template's containers: two cells.
pub fn containers(template: &Value) -> [Value; 2] {
    let containers = template["spec"]["containers"].items();
    ["name", "image"]
        .map(|field| joined(containers.iter().map(|container| container[field].text())))
}

/// The status of the condition `kind`, or the empty text.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    object["status"]["conditions"]
        .items()
        .iter()
        .find(|condition| condition["type"] == kind)
        .map_or("", |condition| condition["status"].text())
}
