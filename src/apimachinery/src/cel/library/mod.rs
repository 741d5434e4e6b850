//! The functions: CEL's own, its extensions, and Kubernetes' libraries.
//!
//! Source: <https://kubernetes.io/docs/reference/using-api/cel/>.

mod kubernetes;
mod list;
mod net;
mod text;
mod time;

use std::borrow::Cow;
use std::sync::Arc;

use super::value::Value;
use crate::quantity::Quantity;

pub(super) use time::{duration_text, parse_duration};

type Result<'a> = std::result::Result<Value<'a>, String>;

const NO_OVERLOAD: &str = "no such overload";

/// Names before a dot that are no variables.
const NAMESPACES: [&str; 7] = ["optional", "sets", "lists", "strings", "format", "ip", "jsonpatch"];

/// Every function that is called by its name alone.
const FUNCTIONS: [&str; 27] = [
    "size",
    "int",
    "uint",
    "double",
    "string",
    "bytes",
    "bool",
    "type",
    "dyn",
    "duration",
    "timestamp",
    "matches",
    "quantity",
    "isQuantity",
    "ip",
    "isIP",
    "cidr",
    "isCIDR",
    "url",
    "isURL",
    "semver",
    "isSemver",
    "contains",
    "startsWith",
    "endsWith",
    "has",
    "getDate",
];

pub(super) fn is_namespace(name: &str) -> bool {
    NAMESPACES.contains(&name)
}

/// Whether this is the whole name of a format.
pub(super) fn is_format(name: &str) -> bool {
    name.strip_prefix("format.").is_some_and(|name| kubernetes::named_format(name, &[]).is_ok())
}

/// Whether there is a function of this name.
pub(super) fn is_function(name: &str) -> bool {
    FUNCTIONS.contains(&name)
}

/// What a function of these arguments costs: a tenth of their sizes.
pub(super) fn cost(args: &[Value<'_>]) -> u64 {
    1 + args.iter().map(|v| v.size().unwrap_or(0) as u64).sum::<u64>() / 10
}

/// Calls a function by its whole name.
pub(super) fn function<'a>(name: &str, args: &[Value<'a>]) -> Result<'a> {
    if let Some(rest) = name.strip_prefix("format.") {
        return kubernetes::named_format(rest, args);
    }
    if let Some(rest) = name.strip_prefix("sets.") {
        return list::sets(rest, args);
    }
    match (name, args) {
        ("size", [value]) => {
            value.size().map_or(Err(NO_OVERLOAD.into()), |n| Ok(Value::Int(n as i64)))
        }
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_name())),
        ("int" | "uint" | "double" | "string" | "bytes" | "bool", [value]) => convert(name, value),
        ("duration", [Value::Text(text)]) => parse_duration(text)
            .map(Value::Duration)
            .map_err(|_| inconvertible("google.protobuf.Duration")),
        ("duration", [value @ Value::Duration(_)]) | ("timestamp", [value @ Value::Time(_)]) => {
            Ok(value.clone())
        }
        ("timestamp", [Value::Text(text)]) => crate::time::parse(text)
            .map(Value::Time)
            .map_err(|_| format!("invalid RFC 3339 timestamp {text:?}")),
        ("timestamp", [Value::Int(n)]) => {
            jiff::Timestamp::from_second(*n).map(Value::Time).map_err(|_| "range".into())
        }
        ("matches", [target, pattern]) => method(target, "matches", std::slice::from_ref(pattern)),
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("optional.of", [value]) => Ok(Value::Optional(Some(Arc::new(value.clone())))),
        ("optional.ofNonZeroValue", [value]) => {
            Ok(Value::Optional((!value.is_zero()).then(|| Arc::new(value.clone()))))
        }
        ("jsonpatch.escapeKey", [Value::Text(text)]) => {
            Ok(text.replace('~', "~0").replace('/', "~1").into())
        }
        ("strings.quote", [Value::Text(text)]) => Ok(format!("{text:?}").into()),
        ("lists.range", [Value::Int(n)]) if *n < 0 => {
            Err(format!("lists.range: size must be non-negative, got {n}"))
        }
        ("lists.range", [Value::Int(n)]) => {
            Ok((0..(*n).clamp(0, 1_000_000)).map(Value::Int).collect::<Vec<_>>().into())
        }
        ("ip" | "isIP" | "ip.isCanonical" | "cidr" | "isCIDR", args) => net::function(name, args),
        ("quantity", [Value::Text(text)]) => text
            .parse::<Quantity>()
            .map(|q| Value::Quantity(Arc::new(q)))
            .map_err(|e| e.to_string()),
        ("sign", [value @ Value::Quantity(_)]) => method(value, "sign", &[]),
        ("isQuantity", [Value::Text(text)]) => Ok(text.parse::<Quantity>().is_ok().into()),
        ("url" | "isURL" | "semver" | "isSemver", args) => kubernetes::function(name, args),
        _ => Err(NO_OVERLOAD.into()),
    }
}

/// Calls a method of `target`.
pub(super) fn method<'a>(target: &Value<'a>, name: &str, args: &[Value<'a>]) -> Result<'a> {
    match (target, name, args) {
        (_, "size", []) => function("size", std::slice::from_ref(target)),
        (Value::Optional(found), "hasValue", []) => Ok(found.is_some().into()),
        (Value::Optional(found), "value", []) => match found {
            Some(value) => Ok(value.as_ref().clone()),
            None => Err("optional.none() dereference".into()),
        },
        (Value::Text(text), ..) => text::method(text, name, args),
        (Value::Quantity(quantity), ..) => kubernetes::quantity_method(quantity, name, args),
        (Value::Ip(_) | Value::Cidr(..), ..) => net::method(target, name, args),
        (Value::Url(url), ..) => kubernetes::url_method(url, name, args),
        (Value::Semver(version), ..) => kubernetes::semver_method(version, name, args),
        (Value::Format(format), "validate", [Value::Text(text)]) => {
            Ok(kubernetes::validate(format, text))
        }
        (Value::Format(_), "validate", [other]) => {
            Err(format!("{NO_OVERLOAD}: validate({}, {})", target.type_name(), other.type_name()))
        }
        (Value::Time(_) | Value::Duration(_), ..) => time::method(target, name, args),
        (Value::List(_) | Value::JsonList(..), ..) => list::method(target, name, args),
        _ => Err(NO_OVERLOAD.into()),
    }
}

/// That a text is none that a value of the type is written as.
fn inconvertible(wanted: &str) -> String {
    format!("type conversion error from 'string' to '{wanted}'")
}

fn convert<'a>(name: &str, value: &Value<'a>) -> Result<'a> {
    let made = match (name, value) {
        ("int", Value::Int(n)) => Value::Int(*n),
        ("int", Value::Uint(n)) => Value::Int(i64::try_from(*n).map_err(|_| "integer overflow")?),
        ("int", Value::Double(n)) if n.abs() < 9.2e18 => Value::Int(*n as i64),
        ("int", Value::Double(_)) => return Err("integer overflow".into()),
        ("int", Value::Text(text)) => Value::Int(text.parse().map_err(|_| inconvertible(name))?),
        ("int", Value::Time(time)) => Value::Int(time.as_second()),
        ("uint", Value::Uint(n)) => Value::Uint(*n),
        ("uint", Value::Int(n)) => {
            Value::Uint(u64::try_from(*n).map_err(|_| "unsigned integer overflow")?)
        }
        ("uint", Value::Double(n)) if *n >= 0.0 && *n < 1.8e19 => Value::Uint(*n as u64),
        ("uint", Value::Text(text)) => Value::Uint(text.parse().map_err(|_| inconvertible(name))?),
        ("double", Value::Double(n)) => Value::Double(*n),
        ("double", Value::Int(n)) => Value::Double(*n as f64),
        ("double", Value::Uint(n)) => Value::Double(*n as f64),
        ("double", Value::Text(text)) => {
            Value::Double(text.parse().map_err(|_| inconvertible(name))?)
        }
        ("string", Value::Bytes(bytes)) => String::from_utf8(bytes.to_vec())
            .map(Value::from)
            .map_err(|_| "invalid UTF-8 in bytes, cannot convert to string")?,
        (
            "string",
            Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Double(_)
            | Value::Text(_)
            | Value::Time(_)
            | Value::Duration(_)
            | Value::Ip(_)
            | Value::Cidr(..)
            | Value::Quantity(_),
        ) => value.to_text().into(),
        ("bytes", Value::Text(text)) => Value::Bytes(text.as_bytes().into()),
        ("bytes", Value::Bytes(_)) => value.clone(),
        ("bool", Value::Bool(value)) => (*value).into(),
        ("bool", Value::Text(text)) => match text.as_ref() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true.into(),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false.into(),
            _ => return Err(inconvertible(name)),
        },
        _ => return Err(format!("{NO_OVERLOAD}: {name}({})", value.type_name())),
    };
    Ok(made)
}

fn text_of<'v>(value: &'v Value<'_>) -> std::result::Result<&'v str, String> {
    match value {
        Value::Text(text) => Ok(text.as_ref()),
        _ => Err(NO_OVERLOAD.into()),
    }
}

fn borrowed<'a>(text: &str) -> Value<'a> {
    Value::Text(Cow::Owned(text.to_owned()))
}
