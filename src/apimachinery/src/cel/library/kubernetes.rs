//! Quantities, URLs, named formats and semantic versions.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{NO_OVERLOAD, Result, borrowed};
use crate::cel::value::Value;
use crate::quantity::Quantity;
use crate::{names, structural};

/// Numbers, pre-release and build of a semantic version.
type Version = ([u64; 3], String, String);

pub(super) fn function<'a>(name: &str, args: &[Value<'a>]) -> Result<'a> {
    match (name, args) {
        ("url", [Value::Text(text)]) => parse_url(text).map(|url| Value::Url(Arc::new(url))),
        ("isURL", [Value::Text(text)]) => Ok(parse_url(text).is_ok().into()),
        ("semver", [Value::Text(text), rest @ ..]) => {
            parse_version(text, rest.is_empty() || matches!(rest, [Value::Bool(false)]))
                .map(|version| Value::Semver(Arc::new(version)))
        }
        ("isSemver", [Value::Text(text), rest @ ..]) => {
            Ok(parse_version(text, rest.is_empty() || matches!(rest, [Value::Bool(false)]))
                .is_ok()
                .into())
        }
        _ => Err(NO_OVERLOAD.into()),
    }
}

impl PartialEq for Value<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.equals(other)
    }
}

pub(super) fn quantity_method<'a>(this: &Quantity, name: &str, args: &[Value<'a>]) -> Result<'a> {
    let whole = || this.to_f64().fract() == 0.0 && this.to_f64().abs() < 9.2e18;
    let make = |quantity: Quantity| Value::Quantity(Arc::new(quantity));
    Ok(match (name, args) {
        ("isInteger", []) => whole().into(),
        ("asInteger", []) if whole() => Value::Int(this.value()),
        ("asInteger", []) => return Err("cannot convert value to integer".into()),
        ("asApproximateFloat", []) => Value::Double(this.to_f64()),
        ("sign", []) => Value::Int(i64::from(this.signum())),
        ("add", [Value::Quantity(other)]) => make(this.plus(other)),
        ("sub", [Value::Quantity(other)]) => make(this.minus(other)),
        ("add", [Value::Int(n)]) => make(this.plus(&number(*n))),
        ("sub", [Value::Int(n)]) => make(this.minus(&number(*n))),
        ("isLessThan", [Value::Quantity(other)]) => (*this < **other).into(),
        ("isGreaterThan", [Value::Quantity(other)]) => (*this > **other).into(),
        ("compareTo", [Value::Quantity(other)]) => Value::Int(order(this.cmp(other))),
        _ => return Err(NO_OVERLOAD.into()),
    })
}

fn number(n: i64) -> Quantity {
    n.to_string().parse().unwrap_or_default()
}

fn order(order: Ordering) -> i64 {
    match order {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }
}

fn parse_url(text: &str) -> std::result::Result<url::Url, String> {
    let bad = || {
        format!(
            "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
        )
    };
    if let Some(path) = text.strip_prefix('/') {
        // A path alone is a request URI; its base is nobody's.
        return url::Url::parse(&format!("path:///{path}")).map_err(|_| bad());
    }
    // Schemes that browsers know are not to be treated their way: paths may be empty, and ports their own.
    url::Url::parse(&format!("{PLAIN}{text}")).map_err(|_| bad())
}

/// Stands before the scheme of a URL that is held.
const PLAIN: &str = "x-";

pub(super) fn url_method<'a>(url: &url::Url, name: &str, args: &[Value<'a>]) -> Result<'a> {
    if !args.is_empty() {
        return Err(NO_OVERLOAD.into());
    }
    let host = url.host_str().unwrap_or_default();
    Ok(match name {
        "getScheme" => borrowed(url.scheme().strip_prefix(PLAIN).unwrap_or_default()),
        "getHost" => match url.port() {
            Some(port) => format!("{host}:{port}").into(),
            None => borrowed(host),
        },
        "getHostname" => borrowed(host.trim_matches(['[', ']'])),
        "getPort" => url.port().map(|p| p.to_string()).unwrap_or_default().into(),
        "getEscapedPath" if url.cannot_be_a_base() => borrowed(""),
        "getEscapedPath" => borrowed(url.path()),
        "getQuery" => {
            let mut map: Vec<(Value<'a>, Vec<Value<'a>>)> = Vec::new();
            for (key, value) in url.query_pairs() {
                let (key, value) = (borrowed(&key), borrowed(&value));
                match map.iter_mut().find(|(known, _)| known.equals(&key)) {
                    Some((_, values)) => values.push(value),
                    None => map.push((key, vec![value])),
                }
            }
            Value::Map(Arc::new(map.into_iter().map(|(k, v)| (k, v.into())).collect()))
        }
        _ => return Err(NO_OVERLOAD.into()),
    })
}

/// The formats by name, with what they check.
const FORMATS: [&str; 14] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "qualifiedName",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
    "labelKey",
];

pub(super) fn named_format<'a>(name: &str, args: &[Value<'a>]) -> Result<'a> {
    let find = |name: &str| FORMATS.into_iter().find(|known| *known == name);
    match args {
        [Value::Text(wanted)] if name == "named" => {
            Ok(Value::Optional(find(wanted).map(|format| Arc::new(Value::Format(format)))))
        }
        [] => find(name).map(Value::Format).ok_or_else(|| NO_OVERLOAD.into()),
        _ => Err(NO_OVERLOAD.into()),
    }
}

/// Nothing, or what is wrong with `text`.
pub(super) fn validate<'a>(format: &str, text: &str) -> Value<'a> {
    let prefix = names::mask_trailing_dash(text);
    let mistakes = match format {
        "dns1123Label" => names::dns_label(text),
        "dns1123Subdomain" => names::dns_subdomain(text),
        "dns1035Label" => names::dns_1035_label(text),
        "dns1123LabelPrefix" => names::dns_label(&prefix),
        "dns1123SubdomainPrefix" => names::dns_subdomain(&prefix),
        "dns1035LabelPrefix" => names::dns_1035_label(&prefix),
        "qualifiedName" | "labelKey" => names::qualified_name(text),
        "labelValue" => names::label_value(text),
        "uri" if parse_url(text).is_err() => {
            vec![format!("parse {text:?}: invalid URI for request")]
        }
        "uuid" if !structural::has_format("uuid", text) => {
            vec!["does not match the UUID format".into()]
        }
        "byte" if !structural::has_format("byte", text) => vec!["invalid base64".into()],
        "date" if !structural::has_format("date", text) => vec!["invalid date".into()],
        "datetime" if !structural::has_format("datetime", text) => vec!["invalid datetime".into()],
        _ => Vec::new(),
    };
    if mistakes.is_empty() {
        return Value::Optional(None);
    }
    let list: Vec<Value<'a>> = mistakes.into_iter().map(Value::from).collect();
    Value::Optional(Some(Arc::new(list.into())))
}

fn parse_version(text: &str, strict: bool) -> std::result::Result<Version, String> {
    let plain = if strict { text } else { text.trim_start_matches('v') };
    let (rest, build) = plain.split_once('+').unwrap_or((plain, ""));
    let (core, pre) = rest.split_once('-').unwrap_or((rest, ""));
    let mut numbers = [0; 3];
    let parts: Vec<&str> = core.split('.').collect();
    if text.is_empty() {
        return Err("Version string empty".into());
    }
    if parts.len() > 3 || (strict && parts.len() != 3) {
        return Err("No Major.Minor.Patch elements found".into());
    }
    for ((number, part), name) in numbers.iter_mut().zip(&parts).zip(["major", "minor", "patch"]) {
        let bad = || format!("Invalid character(s) found in {name} number {part:?}");
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        if strict && part.len() > 1 && part.starts_with('0') {
            let (first, rest) = name.split_at(1);
            let name = first.to_uppercase() + rest;
            return Err(format!("{name} number must not contain leading zeroes {part:?}"));
        }
        *number = part.parse().map_err(|_| bad())?;
    }
    Ok((numbers, pre.to_owned(), build.to_owned()))
}

fn compare(a: &Version, b: &Version) -> Ordering {
    let pre = |a: &str, b: &str| match (a.is_empty(), b.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        _ => {
            let (mut a, mut b) = (a.split('.'), b.split('.'));
            loop {
                let order = match (a.next(), b.next()) {
                    (None, None) => return Ordering::Equal,
                    (None, Some(_)) => return Ordering::Less,
                    (Some(_), None) => return Ordering::Greater,
                    (Some(a), Some(b)) => match (a.parse::<u64>(), b.parse::<u64>()) {
                        (Ok(a), Ok(b)) => a.cmp(&b),
                        (Ok(_), Err(_)) => Ordering::Less,
                        (Err(_), Ok(_)) => Ordering::Greater,
                        _ => a.cmp(b),
                    },
                };
                if order.is_ne() {
                    return order;
                }
            }
        }
    };
    a.0.cmp(&b.0).then_with(|| pre(&a.1, &b.1))
}

pub(super) fn semver_method<'a>(this: &Version, name: &str, args: &[Value<'a>]) -> Result<'a> {
    Ok(match (name, args) {
        ("major", []) => Value::Int(this.0[0] as i64),
        ("minor", []) => Value::Int(this.0[1] as i64),
        ("patch", []) => Value::Int(this.0[2] as i64),
        ("isLessThan", [Value::Semver(other)]) => compare(this, other).is_lt().into(),
        ("isGreaterThan", [Value::Semver(other)]) => compare(this, other).is_gt().into(),
        ("compareTo", [Value::Semver(other)]) => Value::Int(order(compare(this, other))),
        _ => return Err(NO_OVERLOAD.into()),
    })
}
