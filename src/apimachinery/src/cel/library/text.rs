//! Methods of strings: the standard ones, the strings extension, and Kubernetes' regex library.

use super::{NO_OVERLOAD, Result, borrowed, text_of};
use crate::cel::value::Value;
use crate::pattern;

pub(super) fn method<'a>(text: &str, name: &str, args: &[Value<'a>]) -> Result<'a> {
    match (name, args) {
        ("contains", [other]) => Ok(text.contains(text_of(other)?).into()),
        ("startsWith", [other]) => Ok(text.starts_with(text_of(other)?).into()),
        ("endsWith", [other]) => Ok(text.ends_with(text_of(other)?).into()),
        ("matches", [other]) => Ok(pattern::compile(text_of(other)?)?.is_match(text).into()),
        ("find", [other]) => {
            let regex = pattern::compile(text_of(other)?)?;
            Ok(borrowed(regex.find(text).map_or("", |m| m.as_str())))
        }
        ("findAll", [other, rest @ ..]) => {
            let regex = pattern::compile(text_of(other)?)?;
            let most = match rest {
                [] => usize::MAX,
                [Value::Int(n)] => usize::try_from(*n).unwrap_or(usize::MAX),
                _ => return Err(NO_OVERLOAD.into()),
            };
            let all = regex.find_iter(text).take(most).map(|m| borrowed(m.as_str()));
            Ok(all.collect::<Vec<_>>().into())
        }
        ("lowerAscii", []) => Ok(text.to_ascii_lowercase().into()),
        ("upperAscii", []) => Ok(text.to_ascii_uppercase().into()),
        ("trim", []) => Ok(borrowed(text.trim())),
        ("reverse", []) => Ok(text.chars().rev().collect::<String>().into()),
        ("charAt", [Value::Int(at)]) => {
            let length = text.chars().count() as i64;
            match usize::try_from(*at) {
                Ok(at) if (at as i64) < length => {
                    Ok(text.chars().nth(at).map(String::from).unwrap_or_default().into())
                }
                Ok(at) if at as i64 == length => Ok(borrowed("")),
                _ => Err(format!("index out of range: {at}")),
            }
        }
        ("indexOf" | "lastIndexOf", [other, rest @ ..]) => {
            index_of(text, text_of(other)?, rest, name == "indexOf")
        }
        ("replace", [from, to, rest @ ..]) => {
            let (from, to) = (text_of(from)?, text_of(to)?);
            Ok(match rest {
                [Value::Int(n)] if *n >= 0 => text.replacen(from, to, *n as usize),
                [] | [Value::Int(_)] => text.replace(from, to),
                _ => return Err(NO_OVERLOAD.into()),
            }
            .into())
        }
        ("split", [by, rest @ ..]) => split(text, text_of(by)?, rest),
        ("substring", [Value::Int(from), rest @ ..]) => {
            let chars: Vec<char> = text.chars().collect();
            let to = match rest {
                [] => chars.len() as i64,
                [Value::Int(to)] => *to,
                _ => return Err(NO_OVERLOAD.into()),
            };
            if *from < 0 || *from > chars.len() as i64 {
                return Err(format!("index out of range: {from}"));
            }
            if to < 0 || to > chars.len() as i64 {
                return Err(format!("index out of range: {to}"));
            }
            if *from > to {
                return Err(format!("invalid substring range. start: {from}, end: {to}"));
            }
            Ok(chars[*from as usize..to as usize].iter().collect::<String>().into())
        }
        ("format", [list]) => format(text, &list.items().ok_or(NO_OVERLOAD)?).map(Value::from),
        _ => Err(NO_OVERLOAD.into()),
    }
}

fn index_of<'a>(text: &str, other: &str, rest: &[Value<'a>], first: bool) -> Result<'a> {
    let chars: Vec<char> = text.chars().collect();
    let wanted: Vec<char> = other.chars().collect();
    let bound = match rest {
        [] => None,
        [Value::Int(n)] if *n >= 0 && *n <= chars.len() as i64 => Some(*n as usize),
        // Behind the end there is nothing.
        [Value::Int(n)] if *n > 0 => return Ok(Value::Int(-1)),
        [Value::Int(n)] => return Err(format!("index out of range: {n}")),
        _ => return Err(NO_OVERLOAD.into()),
    };
    let fits = |at: &usize| chars[*at..].starts_with(&wanted);
    let last = chars.len();
    let found = if first {
        (bound.unwrap_or(0)..=last).find(fits)
    } else {
        (0..=bound.unwrap_or(last)).rev().find(fits)
    };
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn split<'a>(text: &str, by: &str, rest: &[Value<'a>]) -> Result<'a> {
    let most = match rest {
        [] => -1,
        [Value::Int(n)] => *n,
        _ => return Err(NO_OVERLOAD.into()),
    };
    let parts: Vec<String> = match most {
        0 => Vec::new(),
        _ if by.is_empty() => text.chars().map(String::from).collect(),
        n if n < 0 => text.split(by).map(str::to_owned).collect(),
        n => text.splitn(n as usize, by).map(str::to_owned).collect(),
    };
    Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into())
}

/// `'%s is %d'.format([…])`
fn format(template: &str, args: &[Value<'_>]) -> std::result::Result<String, String> {
    let mut out = String::new();
    let mut args = args.iter().enumerate();
    let mut taken = 0;
    let mut chars = template.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut precision: Option<usize> = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(d) = chars.peek().filter(|c| c.is_ascii_digit()) {
                digits.push(*d);
                chars.next();
            }
            precision = digits.parse().ok();
        }
        let verb = chars.next().ok_or("unexpected end of string")?;
        if verb == '%' {
            out.push('%');
            continue;
        }
        let (at, value) = args.next().ok_or_else(|| format!("index {taken} out of range"))?;
        taken = at + 1;
        let number = match value {
            Value::Int(n) => Some(i128::from(*n)),
            Value::Uint(n) => Some(i128::from(*n)),
            _ => None,
        };
        let float = match value {
            Value::Double(n) => Some(*n),
            _ => number.map(|n| n as f64),
        };
        let bad = || {
            let (clause, takes) = match verb {
                'd' => ("decimal", "integers"),
                'f' => ("fixed-point", "doubles"),
                'e' => ("scientific", "doubles"),
                'b' => ("binary", "integers and bools"),
                'o' => ("octal", "integers"),
                _ => ("hex", "integers, byte buffers, and strings"),
            };
            format!(
                "error during formatting: {clause} clause can only be used on {takes}, was given {}",
                value.type_name()
            )
        };
        match verb {
            's' => out.push_str(&value.to_text()),
            'd' => out.push_str(
                &number
                    .map(|n| n.to_string())
                    .or_else(|| float.map(|n| n.to_string()))
                    .ok_or_else(bad)?,
            ),
            'f' => out.push_str(&format!("{:.*}", precision.unwrap_or(6), float.ok_or_else(bad)?)),
            'e' => {
                let text = format!("{:.*e}", precision.unwrap_or(6), float.ok_or_else(bad)?);
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let (sign, digits) = match exponent.strip_prefix('-') {
                    Some(digits) => ('-', digits),
                    None => ('+', exponent),
                };
                out.push_str(&format!("{mantissa}e{sign}{digits:0>2}"));
            }
            'b' => match value {
                Value::Bool(value) => out.push(if *value { '1' } else { '0' }),
                _ => out.push_str(&format!("{:b}", number.ok_or_else(bad)?)),
            },
            'o' => out.push_str(&format!("{:o}", number.ok_or_else(bad)?)),
            'x' | 'X' => {
                let text = match value {
                    Value::Text(text) => text.bytes().map(|b| format!("{b:02x}")).collect(),
                    Value::Bytes(bytes) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
                    _ => format!("{:x}", number.ok_or_else(bad)?),
                };
                out.push_str(&if verb == 'X' { text.to_uppercase() } else { text });
            }
            other => {
                return Err(format!(
                    "could not parse formatting clause: unrecognized formatting clause \"{other}\""
                ));
            }
        }
    }
    Ok(out)
}
