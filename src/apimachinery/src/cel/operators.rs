//! The operators.

use super::value::Value;

type Result<'a> = std::result::Result<Value<'a>, String>;

const OVERFLOW: &str = "integer overflow";

/// What an operator costs: long texts and lists cost more.
pub(super) fn cost(name: &str, args: &[Value<'_>]) -> u64 {
    let size = |value: &Value<'_>| value.size().unwrap_or(1) as u64;
    match name {
        "in" => args.get(1).map_or(1, |list| size(list).max(1)),
        "==" | "!=" | "<" | "<=" | ">" | ">=" | "+" => {
            1 + args.iter().map(size).max().unwrap_or(0) / 10
        }
        _ => 1,
    }
}

/// Applies the operator `name`; `None` if it is not one.
pub(super) fn apply<'a>(name: &str, args: &[Value<'a>]) -> Option<Result<'a>> {
    let result = match (name, args) {
        ("!", [Value::Bool(value)]) => Ok((!value).into()),
        ("-_", [value]) => negate(value),
        ("==", [a, b]) => Ok(a.equals(b).into()),
        ("!=", [a, b]) => Ok((!a.equals(b)).into()),
        ("<" | "<=" | ">" | ">=", [a, b]) => order(name, a, b),
        ("in", [a, b]) => contains(a, b),
        ("+", [a, b]) => add(a, b),
        ("-", [a, b]) => subtract(a, b),
        ("*" | "/" | "%", [a, b]) => arithmetic(name, a, b),
        (
            "!" | "-_" | "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "+" | "-" | "*" | "/" | "%",
            _,
        ) => Err("no such overload".into()),
        _ => return None,
    };
    Some(result)
}

fn negate<'a>(value: &Value<'a>) -> Result<'a> {
    match value {
        Value::Int(n) => n.checked_neg().map(Value::Int).ok_or_else(|| OVERFLOW.into()),
        Value::Double(n) => Ok(Value::Double(-n)),
        Value::Duration(d) => Ok(Value::Duration(-*d)),
        _ => Err("no such overload".into()),
    }
}

fn order<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    let Some(order) = a.compare(b) else {
        // What is not a number is not smaller and not greater than one.
        let number = |v: &Value<'_>| matches!(v, Value::Double(_) | Value::Int(_) | Value::Uint(_));
        return if number(a) && number(b) {
            Ok(false.into())
        } else {
            Err("no such overload".into())
        };
    };
    Ok(match name {
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        _ => order.is_ge(),
    }
    .into())
}

fn contains<'a>(a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    if let Some(items) = b.items() {
        return Ok(items.iter().any(|item| item.equals(a)).into());
    }
    match b {
        Value::Map(_) | Value::JsonMap(..) => Ok(b.at(a)?.is_some().into()),
        _ => Err("no such overload".into()),
    }
}

fn add<'a>(a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    match (a, b) {
        (Value::Text(a), Value::Text(b)) => Ok(format!("{a}{b}").into()),
        (Value::Bytes(a), Value::Bytes(b)) => Ok(Value::Bytes([&a[..], &b[..]].concat().into())),
        (Value::Time(t), Value::Duration(d)) | (Value::Duration(d), Value::Time(t)) => {
            t.checked_add(*d).map(Value::Time).map_err(|_| "timestamp overflow".into())
        }
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(|| "duration overflow".into())
        }
        _ => a.joined(b).map_or_else(|| arithmetic("+", a, b), Ok),
    }
}

fn subtract<'a>(a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    match (a, b) {
        (Value::Time(a), Value::Time(b)) => Ok(Value::Duration(a.duration_since(*b))),
        (Value::Time(t), Value::Duration(d)) => {
            t.checked_sub(*d).map(Value::Time).map_err(|_| "timestamp overflow".into())
        }
        (Value::Duration(a), Value::Duration(b)) => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(|| "duration overflow".into())
        }
        _ => arithmetic("-", a, b),
    }
}

fn arithmetic<'a>(name: &str, a: &Value<'a>, b: &Value<'a>) -> Result<'a> {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => {
            let made = match name {
                "+" => a.checked_add(*b),
                "-" => a.checked_sub(*b),
                "*" => a.checked_mul(*b),
                "/" if *b == 0 => return Err("division by zero".into()),
                "%" if *b == 0 => return Err("modulus by zero".into()),
                "/" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            made.map(Value::Int).ok_or_else(|| OVERFLOW.into())
        }
        (Value::Uint(a), Value::Uint(b)) => {
            let made = match name {
                "+" => a.checked_add(*b),
                "-" => a.checked_sub(*b),
                "*" => a.checked_mul(*b),
                "/" if *b == 0 => return Err("division by zero".into()),
                "%" if *b == 0 => return Err("modulus by zero".into()),
                "/" => a.checked_div(*b),
                _ => a.checked_rem(*b),
            };
            made.map(Value::Uint).ok_or_else(|| "unsigned integer overflow".into())
        }
        (Value::Double(a), Value::Double(b)) => Ok(Value::Double(match name {
            "+" => a + b,
            "-" => a - b,
            "*" => a * b,
            "/" => a / b,
            _ => return Err("no such overload".into()),
        })),
        _ => Err("no such overload".into()),
    }
}
