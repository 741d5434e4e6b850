//! The functions that templates may call.
//!
//! Sources: `text/template/funcs.go`, `k8s.io/cli-runtime/pkg/printers/template.go` (`base64decode`, `exists`).

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write;

use base64::Engine;

use super::format::{shown, sprintf};
use super::value::{Data, Held, Width};

/// What a parameter takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parameter {
    Any,
    Text,
}

/// What a function takes.
pub struct Parameters {
    /// The first ones.
    pub fixed: &'static [Parameter],
    /// Whether any number of others may follow.
    pub variadic: bool,
}

impl Parameters {
    /// The parameter at a place.
    pub fn at(&self, index: usize) -> Parameter {
        self.fixed.get(index).copied().unwrap_or(Parameter::Any)
    }
}

const ONE: &[Parameter] = &[Parameter::Any];
const TWO: &[Parameter] = &[Parameter::Any, Parameter::Any];
const TEXT: &[Parameter] = &[Parameter::Text];

/// By name: the first parameters, and whether others may follow.
const FUNCTIONS: [(&str, &[Parameter], bool); 21] = [
    ("and", ONE, true),
    ("base64decode", TEXT, false),
    ("call", ONE, true),
    ("eq", ONE, true),
    ("exists", ONE, true),
    ("ge", TWO, false),
    ("gt", TWO, false),
    ("html", &[], true),
    ("index", ONE, true),
    ("js", &[], true),
    ("le", TWO, false),
    ("len", ONE, false),
    ("lt", TWO, false),
    ("ne", TWO, false),
    ("not", ONE, false),
    ("or", ONE, true),
    ("print", &[], true),
    ("printf", TEXT, true),
    ("println", &[], true),
    ("slice", ONE, true),
    ("urlquery", &[], true),
];

/// Whether there is a function of this name.
pub fn is_known(name: &str) -> bool {
    FUNCTIONS.iter().any(|(known, ..)| *known == name)
}

/// What a function takes.
pub fn parameters(name: &str) -> Parameters {
    let found = FUNCTIONS.iter().find(|(known, ..)| *known == name);
    found.map_or(Parameters { fixed: &[], variadic: true }, |(_, fixed, variadic)| Parameters {
        fixed,
        variadic: *variadic,
    })
}

/// Calls a function with as many arguments as it takes. `and` and `or` are not functions but ways to evaluate.
pub fn call<'a>(name: &str, arguments: Vec<Held<'a>>) -> Result<Held<'a>, String> {
    let boolean = |value: bool| Held::from(Data::Boolean(value));
    let text = |text: String| Held::from(Data::Text(Cow::Owned(text)));
    let two = || match &arguments[..] {
        [a, b] => (a, b),
        _ => unreachable!("the number of arguments was checked"),
    };
    Ok(match name {
        "print" => text(sprint(&arguments)),
        "println" => {
            let words: Vec<String> = arguments.iter().map(|held| shown(&held.data)).collect();
            text(words.join(" ") + "\n")
        }
        "printf" => text(sprintf(&shown(&arguments[0].data), &arguments[1..])),
        "html" => text(html(&escapable(&arguments))),
        "js" => text(js(&escapable(&arguments))),
        "urlquery" => text(url_query(&escapable(&arguments))),
        "not" => boolean(!arguments[0].data.truth()),
        "eq" => boolean(equal(&arguments[0], &arguments[1..])?),
        "ne" => boolean(!equal(two().0, &arguments[1..])?),
        "lt" => boolean(less(two().0, two().1)?),
        "le" => boolean(at_most(two().0, two().1)?),
        "gt" => boolean(!at_most(two().0, two().1)?),
        "ge" => boolean(!less(two().0, two().1)?),
        "len" => Data::Integer(length(&arguments[0].data)?, Width::Int).into(),
        "index" => index(&arguments[0], &arguments[1..])?,
        "slice" => slice(&arguments[0], &arguments[1..])?,
        "exists" => {
            let found = index(&arguments[0], &arguments[1..]);
            boolean(found.is_ok_and(|held| !matches!(held.data, Data::Missing | Data::Nil)))
        }
        "base64decode" => {
            let bytes = base64_decode(&shown(&arguments[0].data))?;
            text(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => return Err(format!("non-function of type {}", arguments[0].data.kind())),
    })
}

fn base64_decode(text: &str) -> Result<Vec<u8>, String> {
    let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    base64::engine::general_purpose::STANDARD.decode(&text).map_err(|_| {
        let bytes = text.as_bytes();
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        let at = bytes.iter().position(|byte| !fits(byte)).unwrap_or(bytes.len() / 4 * 4);
        format!("base64 decode failed: illegal base64 data at input byte {at}")
    })
}

/// `fmt.Sprint`: a blank stands between two that are both no text.
fn sprint(arguments: &[Held<'_>]) -> String {
    let mut out = String::new();
    let mut before = true;
    for (place, held) in arguments.iter().enumerate() {
        let is_text = matches!(held.data, Data::Text(_));
        if place > 0 && !is_text && !before {
            out.push(' ');
        }
        out.push_str(&shown(&held.data));
        before = is_text;
    }
    out
}

/// What is escaped: as `print` has it, but for what has no value.
fn escapable(arguments: &[Held<'_>]) -> String {
    let known: Vec<Held<'_>> = arguments
        .iter()
        .map(|held| match held.data {
            Data::Missing | Data::Nil => Data::Text(Cow::Borrowed("<no value>")).into(),
            _ => held.clone(),
        })
        .collect();
    sprint(&known)
}

fn html(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\0' => out.push('\u{fffd}'),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c => out.push(c),
        }
    }
    out
}

fn js(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        let escaped = match c {
            '\\' => "\\\\",
            '\'' => "\\'",
            '"' => "\\\"",
            '<' => "\\u003C",
            '>' => "\\u003E",
            '&' => "\\u0026",
            '=' => "\\u003D",
            c if c < ' ' || (!c.is_ascii() && (c.is_control() || c.is_whitespace())) => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
                continue;
            }
            c => {
                out.push(c);
                continue;
            }
        };
        out.push_str(escaped);
    }
    out
}

fn url_query(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// Kinds that can be compared with each other.
#[derive(PartialEq)]
enum Basic {
    Boolean,
    Signed,
    Unsigned,
    Float,
    Text,
    Other,
}

fn basic(data: &Data<'_>) -> Basic {
    match data {
        Data::Boolean(_) => Basic::Boolean,
        Data::Integer(_, Width::Byte) => Basic::Unsigned,
        Data::Integer(..) => Basic::Signed,
        Data::Float(_) => Basic::Float,
        Data::Text(_) => Basic::Text,
        Data::Missing | Data::Nil | Data::List(_) | Data::Map(_) => Basic::Other,
    }
}

fn incompatible(a: &Data<'_>, b: &Data<'_>) -> String {
    format!("incompatible types for comparison: {} and {}", a.kind(), b.kind())
}

fn is_nothing(data: &Data<'_>) -> bool {
    matches!(data, Data::Missing | Data::Nil)
}

fn equal(first: &Held<'_>, others: &[Held<'_>]) -> Result<bool, String> {
    if others.is_empty() {
        return Err("missing argument for comparison".into());
    }
    for other in others {
        let (a, b) = (&first.data, &other.data);
        let same = match (a, b) {
            (Data::Boolean(a), Data::Boolean(b)) => a == b,
            (Data::Integer(a, _), Data::Integer(b, _)) => a == b,
            (Data::Float(a), Data::Float(b)) => a.partial_cmp(b) == Some(Ordering::Equal),
            (Data::Text(a), Data::Text(b)) => a == b,
            _ if basic(a) != basic(b) => {
                if !is_nothing(a) && !is_nothing(b) {
                    return Err(incompatible(a, b));
                }
                false
            }
            _ if is_nothing(a) || is_nothing(b) => is_nothing(a) == is_nothing(b),
            (Data::List(_), Data::List(_)) | (Data::Map(_), Data::Map(_)) => {
                return Err(format!("non-comparable type {}: {}", shown(b), b.kind()));
            }
            _ => {
                return Err(format!(
                    "non-comparable types {}: {}, {}: {}",
                    shown(a),
                    a.kind(),
                    b.kind(),
                    shown(b)
                ));
            }
        };
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

fn less(a: &Held<'_>, b: &Held<'_>) -> Result<bool, String> {
    let wrong = || "invalid type for comparison".to_owned();
    match (&a.data, &b.data) {
        (Data::Integer(a, _), Data::Integer(b, _)) => Ok(a < b),
        (Data::Float(a), Data::Float(b)) => Ok(a < b),
        (Data::Text(a), Data::Text(b)) => Ok(a < b),
        (a, b) if basic(a) == Basic::Other || basic(b) == Basic::Other => Err(wrong()),
        (a, b) if basic(a) != basic(b) => Err(incompatible(a, b)),
        _ => Err(wrong()),
    }
}

fn at_most(a: &Held<'_>, b: &Held<'_>) -> Result<bool, String> {
    Ok(less(a, b)? || equal(a, std::slice::from_ref(b))?)
}

fn length(data: &Data<'_>) -> Result<i64, String> {
    let count = match data {
        Data::Text(text) => text.len(),
        Data::List(items) => items.len(),
        Data::Map(map) => map.len(),
        Data::Nil => return Err("len of nil pointer".into()),
        Data::Missing => {
            return Err("reflect: call of reflect.Value.Type on zero Value".into());
        }
        other => return Err(format!("len of type {}", other.kind())),
    };
    Ok(i64::try_from(count).unwrap_or(i64::MAX))
}

/// A place in a list or text; as many as there are, its end, is one of them.
fn place(index: &Held<'_>, count: usize) -> Result<usize, String> {
    match &index.data {
        Data::Integer(value, _) => usize::try_from(*value)
            .ok()
            .filter(|place| *place <= count)
            .ok_or_else(|| format!("index out of range: {value}")),
        Data::Missing | Data::Nil => Err("cannot index slice/array with nil".into()),
        other => Err(format!("cannot index slice/array with type {}", other.kind())),
    }
}

fn index<'a>(item: &Held<'a>, indices: &[Held<'a>]) -> Result<Held<'a>, String> {
    if is_nothing(&item.data) {
        return Err("index of untyped nil".into());
    }
    let mut item = item.clone();
    for index in indices {
        item = match &item.data {
            Data::Missing | Data::Nil => return Err("index of nil pointer".into()),
            Data::List(items) => {
                let place = place(index, items.len())?;
                match items.get(place) {
                    Some(item) => Held::member(item),
                    None => return Err("reflect: slice index out of range".into()),
                }
            }
            Data::Text(text) => {
                let place = place(index, text.len())?;
                match text.as_bytes().get(place) {
                    Some(byte) => Data::Integer(i64::from(*byte), Width::Byte).into(),
                    None => return Err("reflect: string index out of range".into()),
                }
            }
            Data::Map(map) => match &index.data {
                Data::Text(key) => match map.get(key.as_ref()) {
                    Some(member) => Held::member(member),
                    None => Held { data: Data::Nil, boxed: true },
                },
                Data::Missing | Data::Nil => {
                    return Err("value is nil; should be of type string".into());
                }
                other => {
                    return Err(format!("value has type {}; should be string", other.kind()));
                }
            },
            other => return Err(format!("can't index item of type {}", other.kind())),
        };
    }
    Ok(item)
}

fn slice<'a>(item: &Held<'a>, indices: &[Held<'a>]) -> Result<Held<'a>, String> {
    if is_nothing(&item.data) {
        return Err("slice of untyped nil".into());
    }
    if indices.len() > 3 {
        return Err(format!("too many slice indexes: {}", indices.len()));
    }
    let count = match &item.data {
        Data::Text(_) if indices.len() == 3 => return Err("cannot 3-index slice a string".into()),
        Data::Text(text) => text.len(),
        Data::List(items) => items.len(),
        other => return Err(format!("can't slice item of type {}", other.kind())),
    };
    let mut places = [0, count, count];
    for (index, place_at) in indices.iter().zip(&mut places) {
        *place_at = place(index, count)?;
    }
    for (a, b) in [(places[0], places[1]), (places[1], places[2])] {
        if a > b {
            return Err(format!("invalid slice index: {a} > {b}"));
        }
    }
    let range = places[0]..places[1];
    Ok(match &item.data {
        Data::List(items) => Data::List(&items[range]),
        Data::Text(text) => {
            let bytes = &text.as_bytes()[range];
            Data::Text(Cow::Owned(String::from_utf8_lossy(bytes).into_owned()))
        }
        _ => item.data.clone(),
    }
    .into())
}
