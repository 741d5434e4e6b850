//! Methods of lists, sets of them, and arithmetic over them.

use std::cmp::Ordering;

use super::{NO_OVERLOAD, Result, text_of};
use crate::cel::{operators, value::Value};

fn ordered(a: &Value<'_>, b: &Value<'_>) -> std::result::Result<Ordering, String> {
    a.compare(b).ok_or_else(|| NO_OVERLOAD.into())
}

pub(super) fn method<'a>(target: &Value<'a>, name: &str, args: &[Value<'a>]) -> Result<'a> {
    let mut items = target.items().ok_or(NO_OVERLOAD)?;
    match (name, args) {
        ("isSorted", []) => {
            for pair in items.windows(2) {
                if ordered(&pair[0], &pair[1])?.is_gt() {
                    return Ok(false.into());
                }
            }
            Ok(true.into())
        }
        ("sum", []) => {
            let mut items = items.into_iter();
            let Some(mut sum) = items.next() else { return Ok(Value::Int(0)) };
            // Texts have a `+`, and no sum.
            let is_number = |value: &Value<'_>| {
                matches!(
                    value,
                    Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_)
                )
            };
            let none = || format!("{NO_OVERLOAD}: sum(list)");
            if !is_number(&sum) {
                return Err(none());
            }
            for item in items {
                sum = operators::apply("+", &[sum, item]).ok_or_else(none)??;
            }
            Ok(sum)
        }
        ("min" | "max", []) => {
            let mut best: Option<Value<'a>> = None;
            for item in items {
                best = Some(match best {
                    None => item,
                    Some(best) => {
                        let order = ordered(&item, &best)?;
                        let better = if name == "min" { order.is_lt() } else { order.is_gt() };
                        if better { item } else { best }
                    }
                });
            }
            best.ok_or_else(|| format!("{name} called on empty list"))
        }
        ("indexOf", [wanted]) => {
            let at = items.iter().position(|item| item.equals(wanted));
            Ok(Value::Int(at.map_or(-1, |at| at as i64)))
        }
        ("lastIndexOf", [wanted]) => {
            let at = items.iter().rposition(|item| item.equals(wanted));
            Ok(Value::Int(at.map_or(-1, |at| at as i64)))
        }
        ("join", rest) => {
            let by = match rest {
                [] => "",
                [by] => text_of(by)?,
                _ => return Err(NO_OVERLOAD.into()),
            };
            let texts: std::result::Result<Vec<&str>, String> = items.iter().map(text_of).collect();
            Ok(texts?.join(by).into())
        }
        ("slice", [Value::Int(from), Value::Int(to)]) => {
            let length = items.len() as i64;
            if *from >= 0 && *to >= 0 && from > to {
                return Err(format!(
                    "cannot slice({from}, {to}), start index must be less than or equal to end index"
                ));
            }
            if *from < 0 || *to < *from || *to > length {
                return Err(format!("cannot slice({from}, {to}), list is length {length}"));
            }
            Ok(items[*from as usize..*to as usize].to_vec().into())
        }
        ("flatten", rest) => {
            let depth = match rest {
                [] => 1,
                [Value::Int(n)] if *n < 0 => return Err("level must be non-negative".into()),
                [Value::Int(n)] => *n,
                _ => return Err(NO_OVERLOAD.into()),
            };
            let mut out = Vec::new();
            flatten(items, depth, &mut out);
            Ok(out.into())
        }
        ("distinct", []) => {
            let mut out: Vec<Value<'a>> = Vec::new();
            for item in items {
                if !out.iter().any(|other| other.equals(&item)) {
                    out.push(item);
                }
            }
            Ok(out.into())
        }
        ("reverse", []) => {
            items.reverse();
            Ok(items.into())
        }
        ("sort", []) => {
            items.sort_by(|a, b| a.compare(b).unwrap_or(Ordering::Equal));
            Ok(items.into())
        }
        ("first", []) => Ok(Value::Optional(items.into_iter().next().map(Into::into))),
        ("last", []) => Ok(Value::Optional(items.into_iter().next_back().map(Into::into))),
        // Validation of named formats gives lists of mistakes.
        _ => Err(NO_OVERLOAD.into()),
    }
}

fn flatten<'a>(items: Vec<Value<'a>>, depth: i64, out: &mut Vec<Value<'a>>) {
    for item in items {
        match item.items() {
            Some(below) if depth > 0 => flatten(below, depth - 1, out),
            _ => out.push(item),
        }
    }
}

pub(super) fn sets<'a>(name: &str, args: &[Value<'a>]) -> Result<'a> {
    let [a, b] = args else { return Err(NO_OVERLOAD.into()) };
    let (a, b) = (a.items().ok_or(NO_OVERLOAD)?, b.items().ok_or(NO_OVERLOAD)?);
    let has = |list: &[Value<'a>], item: &Value<'a>| list.iter().any(|other| other.equals(item));
    Ok(match name {
        "contains" => b.iter().all(|item| has(&a, item)),
        "equivalent" => b.iter().all(|item| has(&a, item)) && a.iter().all(|item| has(&b, item)),
        "intersects" => b.iter().any(|item| has(&a, item)),
        _ => return Err(NO_OVERLOAD.into()),
    }
    .into())
}
