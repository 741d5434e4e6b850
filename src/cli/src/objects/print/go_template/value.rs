//! Values as Go's reflection sees them: what a JSON value became there, and whether it is still in an interface.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// Go's integer types that occur.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Width {
    /// `int`: constants, indices and lengths.
    Int,
    /// `int64`: numbers of objects.
    Int64,
    /// `uint8`: bytes of strings.
    Byte,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Data<'a> {
    /// No value at all: what a missing key has.
    Missing,
    /// An interface that holds nothing: `null`.
    Nil,
    Boolean(bool),
    Integer(i64, Width),
    Float(f64),
    Text(Cow<'a, str>),
    List(&'a [Value]),
    Map(&'a Map<String, Value>),
}

/// A value, and whether it is in an `interface {}`, as members of lists and maps are.
#[derive(Clone, Debug)]
pub struct Held<'a> {
    /// The value.
    pub data: Data<'a>,
    /// Whether it is in an interface.
    pub boxed: bool,
}

impl<'a> From<Data<'a>> for Held<'a> {
    fn from(data: Data<'a>) -> Self {
        Self { data, boxed: false }
    }
}

impl<'a> Data<'a> {
    /// What a JSON value becomes.
    pub fn of(value: &'a Value) -> Self {
        match value {
            Value::Null => Self::Nil,
            Value::Bool(value) => Self::Boolean(*value),
            Value::Number(number) => match number.as_i64() {
                Some(value) => Self::Integer(value, Width::Int64),
                None => Self::Float(number.as_f64().unwrap_or_default()),
            },
            Value::String(text) => Self::Text(Cow::Borrowed(text)),
            Value::Array(items) => Self::List(items),
            Value::Object(map) => Self::Map(map),
        }
    }

    /// The name of its type.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing | Self::Nil => "<nil>",
            Self::Boolean(_) => "bool",
            Self::Integer(_, Width::Int) => "int",
            Self::Integer(_, Width::Int64) => "int64",
            Self::Integer(_, Width::Byte) => "uint8",
            Self::Float(_) => "float64",
            Self::Text(_) => "string",
            Self::List(_) => "[]interface {}",
            Self::Map(_) => "map[string]interface {}",
        }
    }

    /// Whether it counts as true.
    pub fn truth(&self) -> bool {
        match self {
            Self::Missing | Self::Nil => false,
            Self::Boolean(value) => *value,
            Self::Integer(value, _) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(items) => !items.is_empty(),
            Self::Map(map) => !map.is_empty(),
        }
    }
}

impl<'a> Held<'a> {
    /// A member of a list or map.
    pub fn member(value: &'a Value) -> Self {
        Self { data: Data::of(value), boxed: true }
    }

    /// The value, out of its interface.
    #[must_use]
    pub fn unboxed(self) -> Self {
        match self.data {
            Data::Nil => Data::Missing.into(),
            data => data.into(),
        }
    }

    /// The name of its type.
    pub fn kind(&self) -> &'static str {
        if self.boxed { "interface {}" } else { self.data.kind() }
    }
}
