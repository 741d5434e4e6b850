//! Values of expressions. JSON is looked into where it lies, not copied.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value as Json};

use crate::quantity::Quantity;
use crate::schema::ListType;
use crate::structural::{Additional, Structural};

/// Something that the caller lends to expressions, such as an authoriser.
pub trait Host: Send + Sync {
    /// The field `name`; an error when there is none.
    fn field<'a>(&self, name: &str) -> Result<Value<'a>, String>;
    /// The method `name`.
    fn call<'a>(&self, name: &str, args: &[Value<'_>]) -> Result<Value<'a>, String>;
}

/// A value.
#[derive(Clone)]
pub enum Value<'a> {
    /// `null_type`
    Null,
    /// `bool`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `uint`
    Uint(u64),
    /// `double`
    Double(f64),
    /// `string`
    Text(Cow<'a, str>),
    /// `bytes`
    Bytes(Arc<[u8]>),
    /// `list`
    List(Arc<Vec<Value<'a>>>),
    /// `map`, in the order of its making.
    Map(Arc<Vec<(Value<'a>, Value<'a>)>>),
    /// A JSON array, with the schema of its items.
    JsonList(&'a [Json], Option<&'a Structural>),
    /// A JSON object, with its schema.
    JsonMap(&'a Map<String, Json>, Option<&'a Structural>),
    /// `google.protobuf.Timestamp`
    Time(Timestamp),
    /// `google.protobuf.Duration`
    Duration(SignedDuration),
    /// `type`
    Type(Cow<'static, str>),
    /// `optional_type`
    Optional(Option<Arc<Value<'a>>>),
    /// `kubernetes.Quantity`
    Quantity(Arc<Quantity>),
    /// `net.IP`
    Ip(IpAddr),
    /// `net.CIDR`
    Cidr(IpAddr, u8),
    /// `kubernetes.URL`
    Url(Arc<url::Url>),
    /// `kubernetes.NamedFormat`
    Format(&'static str),
    /// `kubernetes.Semver`: numbers, pre-release, build.
    Semver(Arc<([u64; 3], String, String)>),
    /// What the caller lends.
    Host(Arc<dyn Host>),
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_json() {
            Some(json) => write!(f, "{}({json})", self.type_name()),
            None => f.write_str(&self.type_name()),
        }
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<String> for Value<'_> {
    fn from(value: String) -> Self {
        Self::Text(Cow::Owned(value))
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(value: &'a str) -> Self {
        Self::Text(Cow::Borrowed(value))
    }
}

impl<'a> From<Vec<Value<'a>>> for Value<'a> {
    fn from(value: Vec<Value<'a>>) -> Self {
        Self::List(Arc::new(value))
    }
}

/// Words that are no names of variables.
const WORDS: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// Whether a variable may be called so.
pub fn is_identifier(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let shaped = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    starts && shaped && !WORDS.contains(&name)
}

/// The name a field has in expressions back to its own: `__dot__` and its like.
fn unescape(name: &str) -> Cow<'_, str> {
    if !name.contains("__") {
        return Cow::Borrowed(name);
    }
    if let Some(word) = name.strip_prefix("__").and_then(|n| n.strip_suffix("__"))
        && WORDS.contains(&word)
    {
        return Cow::Owned(word.to_owned());
    }
    Cow::Owned(
        name.replace("__underscores__", "\u{0}")
            .replace("__dot__", ".")
            .replace("__dash__", "-")
            .replace("__slash__", "/")
            .replace('\u{0}', "__"),
    )
}

impl<'a> Value<'a> {
    /// JSON as a value; with a schema, dates, durations and bytes are such.
    pub fn of(json: &'a Json, schema: Option<&'a Structural>) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(n) => {
                let kind = schema.map_or("", |s| s.kind.as_str());
                match (n.as_i64(), n.as_f64()) {
                    (Some(n), _) if kind != "number" => Self::Int(n),
                    (_, Some(f)) if kind == "integer" && f.fract() == 0.0 => Self::Int(f as i64),
                    (_, Some(f)) => Self::Double(f),
                    _ => Self::Null,
                }
            }
            Json::String(text) => {
                let format = schema.filter(|s| !s.int_or_string).map_or("", |s| s.format.as_str());
                match format {
                    "date-time" => crate::time::parse(text).ok().map(Self::Time),
                    "date" => crate::time::parse(&format!("{text}T00:00:00Z")).ok().map(Self::Time),
                    "duration" => super::library::parse_duration(text).ok().map(Self::Duration),
                    "byte" => {
                        use base64::Engine as _;
                        let engine = base64::engine::general_purpose::STANDARD;
                        engine.decode(text).ok().map(|bytes| Self::Bytes(bytes.into()))
                    }
                    _ => None,
                }
                .unwrap_or(Self::Text(Cow::Borrowed(text)))
            }
            Json::Array(list) => Self::JsonList(list, schema),
            Json::Object(map) => Self::JsonMap(map, schema),
        }
    }

    /// JSON that nobody keeps, as a value.
    pub fn owned(json: &Json) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(n) => match n.as_i64() {
                Some(n) => Self::Int(n),
                None => Self::Double(n.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Self::Text(Cow::Owned(text.clone())),
            Json::Array(list) => Self::List(Arc::new(list.iter().map(Self::owned).collect())),
            Json::Object(map) => Self::Map(Arc::new(
                map.iter().map(|(k, v)| (k.clone().into(), Self::owned(v))).collect(),
            )),
        }
    }

    /// The value as JSON, where it has such a form.
    pub fn to_json(&self) -> Option<Json> {
        Some(match self {
            Self::Null => Json::Null,
            Self::Bool(value) => (*value).into(),
            Self::Int(n) => (*n).into(),
            Self::Uint(n) => (*n).into(),
            Self::Double(n) => (*n).into(),
            Self::Text(text) => text.as_ref().into(),
            Self::Bytes(bytes) => {
                use base64::Engine as _;
                base64::engine::general_purpose::STANDARD.encode(bytes).into()
            }
            Self::List(list) => Json::Array(list.iter().map(Self::to_json).collect::<Option<_>>()?),
            Self::Map(entries) => {
                let mut map = Map::new();
                for (key, value) in entries.iter() {
                    map.insert(key.to_text(), value.to_json()?);
                }
                map.into()
            }
            Self::JsonList(list, _) => Json::Array(list.to_vec()),
            Self::JsonMap(map, _) => Json::Object((*map).clone()),
            Self::Time(time) => crate::time::seconds(*time).into(),
            Self::Duration(_) => self.to_text().into(),
            Self::Quantity(quantity) => quantity.to_string().into(),
            Self::Optional(Some(value)) => value.to_json()?,
            Self::Optional(None) => Json::Null,
            Self::Ip(ip) => ip.to_string().into(),
            Self::Cidr(ip, bits) => format!("{ip}/{bits}").into(),
            Self::Url(url) => url.as_str().into(),
            Self::Type(name) => name.as_ref().into(),
            Self::Format(name) => (*name).into(),
            Self::Semver(_) => self.to_text().into(),
            Self::Host(_) => return None,
        })
    }

    /// The name of its type.
    pub fn type_name(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) | Self::JsonList(..) => "list",
            Self::Map(_) | Self::JsonMap(..) => "map",
            Self::Time(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Ip(_) => "net.IP",
            Self::Cidr(..) => "net.CIDR",
            Self::Url(_) => "kubernetes.URL",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Host(_) => "kubernetes.Object",
        })
    }

    /// The name of its type in cel-go, which some messages have.
    pub(super) fn go_type(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Null => "types.Null",
            Self::Bool(_) => "types.Bool",
            Self::Int(_) => "types.Int",
            Self::Uint(_) => "types.Uint",
            Self::Double(_) => "types.Double",
            Self::Text(_) => "types.String",
            Self::Bytes(_) => "types.Bytes",
            Self::Time(_) => "types.Timestamp",
            Self::Duration(_) => "types.Duration",
            other => return other.type_name(),
        })
    }

    /// The items of a list.
    pub fn items(&self) -> Option<Vec<Value<'a>>> {
        match self {
            Self::List(list) => Some(list.as_ref().clone()),
            Self::JsonList(list, schema) => {
                let schema = schema.and_then(|s| s.items.as_deref());
                Some(list.iter().map(|item| Self::of(item, schema)).collect())
            }
            _ => None,
        }
    }

    /// The entries of a map.
    pub fn entries(&self) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        match self {
            Self::Map(entries) => Some(entries.as_ref().clone()),
            Self::JsonMap(map, schema) => Some(
                map.iter()
                    .filter(|(_, value)| !is_absent(value, *schema))
                    .map(|(name, value)| {
                        let key = Self::Text(Cow::Borrowed(name.as_str()));
                        (key, Self::of(value, child(*schema, name)))
                    })
                    .collect(),
            ),
            _ => None,
        }
    }

    /// How many items, entries or characters it has.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Self::Text(text) => text.chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(list) => list.len(),
            Self::JsonList(list, _) => list.len(),
            Self::Map(entries) => entries.len(),
            Self::JsonMap(map, _) => map.len(),
            _ => return None,
        })
    }

    /// The field or key `name`; `None` when it is absent.
    pub fn get(&self, name: &str) -> Result<Option<Value<'a>>, String> {
        match self {
            Self::Map(entries) => Ok(entries
                .iter()
                .find(|(key, _)| matches!(key, Self::Text(text) if text == name))
                .map(|(_, value)| value.clone())),
            Self::JsonMap(map, schema) => {
                let name = match schema {
                    Some(schema) if !schema.properties.is_empty() => unescape(name),
                    _ => Cow::Borrowed(name),
                };
                Ok(map
                    .get(name.as_ref())
                    .filter(|value| !is_absent(value, *schema))
                    .map(|value| Self::of(value, child(*schema, &name))))
            }
            Self::Host(host) => host.field(name).map(Some),
            Self::List(_) | Self::JsonList(..) => {
                Err("unsupported index type 'string' in list".into())
            }
            // As `refQualify` of cel-go has it: nothing is in a scalar.
            _ => Ok(None),
        }
    }

    /// The element at `index`.
    pub fn at(&self, index: &Value<'_>) -> Result<Option<Value<'a>>, String> {
        match self {
            Self::List(_) | Self::JsonList(..) => {
                let index = match index {
                    Value::Int(n) => *n,
                    Value::Uint(n) => i64::try_from(*n).unwrap_or(i64::MAX),
                    Value::Double(n) if n.fract() == 0.0 => *n as i64,
                    other => {
                        let name = other.type_name();
                        return Err(format!("unsupported index type '{name}' in list"));
                    }
                };
                let Ok(at) = usize::try_from(index) else { return Ok(None) };
                Ok(match self {
                    Self::List(list) => list.get(at).cloned(),
                    Self::JsonList(list, schema) => {
                        let schema = schema.and_then(|s| s.items.as_deref());
                        list.get(at).map(|item| Self::of(item, schema))
                    }
                    _ => None,
                })
            }
            Self::Map(entries) => Ok(entries
                .iter()
                .find(|(key, _)| key.equals(index))
                .map(|(_, value)| value.clone())),
            Self::JsonMap(map, schema) => match index {
                Value::Text(name) => {
                    Ok(map.get(name.as_ref()).map(|value| Self::of(value, child(*schema, name))))
                }
                _ => Ok(None),
            },
            Self::Host(host) => match index {
                Value::Text(name) => host.field(name).map(Some),
                _ => Err("no such overload".into()),
            },
            _ => Err("no such overload".into()),
        }
    }

    /// Equality across the numeric types.
    pub fn equals(&self, other: &Value<'_>) -> bool {
        match (self, other) {
            (Self::Null, Value::Null) => true,
            (Self::Bool(a), Value::Bool(b)) => a == b,
            (Self::Text(a), Value::Text(b)) => a == b,
            (Self::Bytes(a), Value::Bytes(b)) => a == b,
            (Self::Time(a), Value::Time(b)) => a == b,
            (Self::Duration(a), Value::Duration(b)) => a == b,
            (Self::Type(a), Value::Type(b)) => a == b,
            (Self::Quantity(a), Value::Quantity(b)) => a == b,
            (Self::Ip(a), Value::Ip(b)) => a == b,
            (Self::Cidr(a, x), Value::Cidr(b, y)) => a == b && x == y,
            (Self::Url(a), Value::Url(b)) => a == b,
            (Self::Format(a), Value::Format(b)) => a == b,
            (Self::Semver(a), Value::Semver(b)) => a.0 == b.0 && a.1 == b.1,
            (Self::Optional(a), Value::Optional(b)) => match (a, b) {
                (Some(a), Some(b)) => a.equals(b),
                (None, None) => true,
                _ => false,
            },
            _ => self.equals_deeply(other),
        }
    }

    fn equals_deeply(&self, other: &Value<'_>) -> bool {
        if let Some(keys) = self.unordered().or_else(|| other.unordered())
            && let (Some(a), Some(b)) = (self.items(), other.items())
        {
            let is_in_b = |a: &Value<'_>| b.iter().any(|b| a.is_same(b, keys) && a.equals(b));
            return a.len() == b.len() && a.iter().all(is_in_b);
        }
        if let (Some(a), Some(b)) = (self.items(), other.items()) {
            return a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| a.equals(b));
        }
        if let (Some(a), Some(b)) = (self.entries(), other.entries()) {
            return a.len() == b.len()
                && a.iter()
                    .all(|(key, value)| b.iter().any(|(k, v)| k.equals(key) && value.equals(v)));
        }
        self.compare_numbers(other) == Some(Ordering::Equal)
    }

    /// The keys by which this list's items are told apart, none in a set, where their order means nothing.
    fn unordered(&self) -> Option<&'a [String]> {
        match self {
            Self::JsonList(_, Some(schema)) => match schema.list_type {
                Some(ListType::Set) => Some(&[]),
                Some(ListType::Map) => Some(&schema.list_map_keys),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_same(&self, other: &Value<'_>, keys: &[String]) -> bool {
        if keys.is_empty() {
            return self.equals(other);
        }
        keys.iter().all(|key| match (self.get(key), other.get(key)) {
            (Ok(Some(a)), Ok(Some(b))) => a.equals(&b),
            (Ok(None), Ok(None)) => true,
            _ => false,
        })
    }

    /// This list and another: sets take in what they lack, maps let the other's items replace theirs.
    pub fn joined(&self, other: &Value<'a>) -> Option<Value<'a>> {
        let (mut items, more) = (self.items()?, other.items()?);
        let Some(keys) = self.unordered() else {
            items.extend(more);
            return Some(Self::List(Arc::new(items)));
        };
        for item in more {
            match items.iter_mut().find(|known| known.is_same(&item, keys)) {
                Some(known) => *known = item,
                None => items.push(item),
            }
        }
        Some(Self::List(Arc::new(items)))
    }

    fn compare_numbers(&self, other: &Value<'_>) -> Option<Ordering> {
        let wide = |value: &Value<'_>| match value {
            Value::Int(n) => Some(i128::from(*n)),
            Value::Uint(n) => Some(i128::from(*n)),
            _ => None,
        };
        if let (Some(a), Some(b)) = (wide(self), wide(other)) {
            return Some(a.cmp(&b));
        }
        let float = |value: &Value<'_>| match value {
            Value::Int(n) => Some(*n as f64),
            Value::Uint(n) => Some(*n as f64),
            Value::Double(n) => Some(*n),
            _ => None,
        };
        float(self)?.partial_cmp(&float(other)?)
    }

    /// Order, where the types have one.
    pub fn compare(&self, other: &Value<'_>) -> Option<Ordering> {
        match (self, other) {
            (Self::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Value::Text(b)) => Some(a.as_ref().cmp(b.as_ref())),
            (Self::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
            (Self::Time(a), Value::Time(b)) => Some(a.cmp(b)),
            (Self::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
            _ => self.compare_numbers(other),
        }
    }

    /// Whether it is the zero value of its type.
    pub fn is_zero(&self) -> bool {
        match self {
            Self::Null
            | Self::Bool(false)
            | Self::Int(0)
            | Self::Uint(0)
            | Self::Optional(None) => true,
            Self::Double(n) => *n == 0.0,
            Self::Duration(d) => d.is_zero(),
            other => other.size() == Some(0),
        }
    }

    /// As `string()` and `%s` write it.
    pub fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone().into_owned(),
            Self::Null => "null".into(),
            Self::Bool(value) => value.to_string(),
            Self::Int(n) => n.to_string(),
            Self::Uint(n) => n.to_string(),
            Self::Double(n) => n.to_string(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Time(time) => time.to_string(),
            Self::Duration(duration) => super::library::duration_text(*duration),
            Self::Semver(version) => {
                let ([a, b, c], pre, build) = version.as_ref();
                let mut text = format!("{a}.{b}.{c}");
                if !pre.is_empty() {
                    text = format!("{text}-{pre}");
                }
                if build.is_empty() { text } else { format!("{text}+{build}") }
            }
            Self::List(_) | Self::JsonList(..) => {
                let items: Vec<String> =
                    self.items().unwrap_or_default().iter().map(Self::nested_text).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Map(_) | Self::JsonMap(..) => {
                let mut entries: Vec<String> = self
                    .entries()
                    .unwrap_or_default()
                    .iter()
                    .map(|(key, value)| format!("{}: {}", key.nested_text(), value.nested_text()))
                    .collect();
                entries.sort();
                format!("{{{}}}", entries.join(", "))
            }
            Self::Optional(Some(value)) => value.to_text(),
            other => match other.to_json() {
                Some(Json::String(text)) => text,
                Some(json) => json.to_string(),
                None => other.type_name().into_owned(),
            },
        }
    }

    fn nested_text(&self) -> String {
        self.to_text()
    }
}

/// Whether a field counts as absent: a null does, in an object of known fields.
fn is_absent(value: &Json, schema: Option<&Structural>) -> bool {
    value.is_null() && schema.is_some_and(|s| !s.properties.is_empty())
}

fn child<'a>(schema: Option<&'a Structural>, name: &str) -> Option<&'a Structural> {
    let schema = schema?;
    if let Some(found) = schema.properties.get(name) {
        return Some(found);
    }
    match &schema.additional {
        Some(Additional::Of(schema)) => Some(schema),
        _ => None,
    }
}
