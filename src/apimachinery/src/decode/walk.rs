//! The walk: a serde visitor that follows the schema while it reads.

use std::fmt;

use base64::Engine as _;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::{Map, Number, Value};

use super::{MAX_STRICT_ERRORS, go};
use crate::{
    quantity::Quantity,
    schema::{Field, Schema, Shape, Text, Type, builtin},
    time::{Layout, Moment},
};

/// `SetDefaults_ResourceList` rounds resource amounts up to thousandths.
const RESOURCE_LIST_SCALE: i32 = -3;

enum Step {
    Field(Text),
    Key(String),
    Index(usize),
}

/// What has been found so far, and where we are.
pub(super) struct Walk<'s> {
    schema: &'s Schema,
    /// What passes through Go's own types loses what is empty and gains what they always write; custom
    /// resources stay as they are.
    through_go: bool,
    path: Vec<Step>,
    /// Structs around the current place, innermost last.
    structs: Vec<&'s Type>,
    /// Unknown and duplicate fields.
    pub(super) strict: Vec<String>,
    /// The first wrong type: Go goes on, but tells only this one.
    pub(super) type_error: Option<String>,
}

impl<'s> Walk<'s> {
    pub(super) fn new(schema: &'s Schema) -> Self {
        Self {
            schema,
            through_go: std::ptr::eq(schema, builtin()),
            path: Vec::new(),
            structs: Vec::new(),
            strict: Vec::new(),
            type_error: None,
        }
    }

    pub(super) fn node<'w>(&'w mut self, shape: &'w Shape) -> Node<'w, 's> {
        Node { walk: self, shape, in_map: false }
    }

    fn complain(&mut self, what: &str) {
        if self.strict.len() < MAX_STRICT_ERRORS {
            let mut text = String::new();
            for step in &self.path {
                match step {
                    Step::Index(i) => text.push_str(&format!("[{i}]")),
                    Step::Field(name) => push_name(&mut text, name),
                    Step::Key(name) => push_name(&mut text, name),
                }
            }
            self.strict.push(format!("{what} field {text:?}"));
        }
    }

    fn fail(&mut self, message: impl FnOnce(&Self) -> String) {
        if self.type_error.is_none() {
            self.type_error = Some(message(self));
        }
    }

    /// `cannot unmarshal …` for a value of Go's JSON kind `found` where `shape` was expected.
    fn mismatch(&mut self, found: &str, shape: &Shape) {
        self.fail(|walk| {
            let fields: Vec<&str> = walk
                .path
                .iter()
                .filter_map(|s| if let Step::Field(name) = s { Some(name.as_ref()) } else { None })
                .collect();
            if let (Some(of), Some(field)) = (walk.structs.last(), fields.last()) {
                let of = of.short_name();
                let expected = go::type_name(walk.schema, of, field, shape);
                let path = fields.join(".");
                format!("json: cannot unmarshal {found} into Go struct field {of}.{path} of type {expected}")
            } else {
                let expected = go::type_name(walk.schema, "", "", shape);
                format!("json: cannot unmarshal {found} into Go value of type {expected}")
            }
        });
    }
}

fn push_name(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('.');
    }
    text.push_str(name);
}

/// One value that should have `shape`. Yields `None` where nothing should be kept.
pub(super) struct Node<'w, 's> {
    walk: &'w mut Walk<'s>,
    shape: &'w Shape,
    /// Whether the value is that of a map entry.
    in_map: bool,
}

impl<'de> DeserializeSeed<'de> for Node<'_, '_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        if *self.shape == Shape::Any {
            let value = Value::deserialize(reader)?;
            return Ok(Some(value).filter(|value| self.in_map || !value.is_null()));
        }
        reader.deserialize_any(self)
    }
}

impl Node<'_, '_> {
    fn scalar(self, found: &Value) -> Option<Value> {
        let Self { walk, shape, in_map } = self;
        match (shape, found) {
            (Shape::String, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => {
                Some(found.clone())
            }
            (Shape::Double, Value::Number(number)) => Some(go::float(number).into()),
            (Shape::Int32 | Shape::Int64, Value::Number(number)) => {
                let max = if *shape == Shape::Int32 { i64::from(i32::MAX) } else { i64::MAX };
                match number.as_i64() {
                    Some(value) if value <= max && value >= -max - 1 => Some(found.clone()),
                    _ => {
                        walk.mismatch(&format!("number {number}"), shape);
                        None
                    }
                }
            }
            (Shape::Bytes, Value::String(text)) => {
                // Go's decoder skips line breaks inside the text.
                let text: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                match base64::engine::general_purpose::STANDARD.decode(&text) {
                    Ok(_) => Some(Value::String(text)),
                    Err(error) => {
                        let at = match error {
                            base64::DecodeError::InvalidByte(at, _)
                            | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                            _ => text.len(),
                        };
                        walk.fail(|_| format!("illegal base64 data at input byte {at}"));
                        None
                    }
                }
            }
            (Shape::Quantity, Value::String(_) | Value::Number(_)) => {
                let text = match found {
                    Value::String(text) => text.trim().to_owned(),
                    number => number.to_string(),
                };
                match text.parse::<Quantity>() {
                    Ok(quantity) if in_map => {
                        Some(quantity.rounded_up(RESOURCE_LIST_SCALE).to_string().into())
                    }
                    Ok(quantity) => Some(quantity.to_string().into()),
                    Err(error) => {
                        walk.fail(|_| error.to_string());
                        None
                    }
                }
            }
            (Shape::Quantity, _) => {
                walk.fail(|_| crate::quantity::Error::Format.to_string());
                None
            }
            (Shape::IntOrString, Value::String(_)) => Some(found.clone()),
            (Shape::IntOrString, Value::Number(number)) => {
                if number.as_i64().is_some_and(|v| i32::try_from(v).is_ok()) {
                    return Some(found.clone());
                }
                walk.fail(|_| {
                    format!("json: cannot unmarshal number {number} into Go value of type int32")
                });
                None
            }
            (Shape::IntOrString, _) => {
                walk.fail(|_| {
                    format!("json: cannot unmarshal {} into Go value of type int32", kind(found))
                });
                None
            }
            (Shape::Time | Shape::MicroTime, Value::String(text)) => {
                let micro = *shape == Shape::MicroTime;
                let layout = if micro { Layout::Micros } else { Layout::Seconds };
                match Moment::read(text, layout) {
                    Ok(moment) => Some(moment.kept().write(layout).into()),
                    Err(error) => {
                        walk.fail(|_| error);
                        None
                    }
                }
            }
            (Shape::Time | Shape::MicroTime, _) => {
                walk.fail(|_| {
                    format!("json: cannot unmarshal {} into Go value of type string", kind(found))
                });
                None
            }
            _ => {
                walk.mismatch(kind(found), shape);
                None
            }
        }
    }

    /// What `null` becomes: nothing for a field, Go's zero value inside a map or list.
    fn null(self) -> Option<Value> {
        match self.shape {
            _ if !self.in_map => None,
            Shape::String | Shape::Bytes => Some("".into()),
            Shape::Quantity => Some("0".into()),
            Shape::Int32 | Shape::Int64 => Some(0.into()),
            Shape::Bool => Some(false.into()),
            Shape::Object(_) | Shape::Map(_) => Some(Value::Object(Map::new())),
            Shape::Time | Shape::MicroTime => Some(Value::Null),
            _ => None,
        }
    }
}

/// The kind of a JSON value as Go's decoder names it.
pub fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl<'de> Visitor<'de> for Node<'_, '_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.scalar(&Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Self::Value, E> {
        Ok(self.scalar(&value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Self::Value, E> {
        Ok(self.scalar(&value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Self::Value, E> {
        Ok(self.scalar(&Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        if *self.shape == Shape::String {
            return Ok(Some(value.into()));
        }
        Ok(self.scalar(&value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        if *self.shape == Shape::String {
            return Ok(Some(value.into()));
        }
        Ok(self.scalar(&value.into()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(self.null())
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(self.null())
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let Shape::List(item) = self.shape else {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(self.scalar(&Value::Array(Vec::new())));
        };
        let mut list = Vec::new();
        for index in 0.. {
            self.walk.path.push(Step::Index(index));
            let node = Node { walk: self.walk, shape: item, in_map: **item != Shape::Quantity };
            let next = items.next_element_seed(node);
            self.walk.path.pop();
            match next? {
                Some(Some(value)) => list.push(value),
                Some(None) => {}
                None => break,
            }
        }
        Ok(Some(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Self::Value, A::Error> {
        match self.shape {
            Shape::Map(item) => map(self.walk, item, entries),
            Shape::Object(id) => {
                let of = self.walk.schema.get(*id);
                self.walk.structs.push(of);
                let value = object(self.walk, of, entries);
                self.walk.structs.pop();
                value
            }
            _ => {
                let mut entries = entries;
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(self.scalar(&Value::Object(Map::new())))
            }
        }
    }
}

fn map<'de, A: MapAccess<'de>>(
    walk: &mut Walk<'_>,
    item: &Shape,
    mut entries: A,
) -> Result<Option<Value>, A::Error> {
    let mut map = Map::new();
    while let Some(key) = entries.next_key::<String>()? {
        walk.path.push(Step::Key(key.clone()));
        if map.contains_key(&key) {
            walk.complain("duplicate");
        }
        let value = entries.next_value_seed(Node { walk, shape: item, in_map: true });
        walk.path.pop();
        if let Some(value) = value? {
            map.insert(key, value);
        }
    }
    Ok(Some(Value::Object(map)))
}

/// Puts in what Go writes for absent fields.
fn add_zeros(of: &Type, map: &mut Map<String, Value>) {
    for (at, zero) in &of.zeros {
        let name = of.fields[*at].name.as_ref();
        if !map.contains_key(name) {
            map.insert(name.to_owned(), zero.clone());
        }
    }
}

/// Brings `value` into the form in which Go would write it: without what it omits, with what it always has.
pub(super) fn complete(schema: &Schema, shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(id), Value::Object(map)) => {
            let of = schema.get(*id);
            map.retain(|name, value| {
                let Some(field) = of.field(name) else { return true };
                if value.is_null() || field.omits(value) {
                    return false;
                }
                complete(schema, &field.shape, value);
                true
            });
            add_zeros(of, map);
        }
        (Shape::List(item), Value::Array(list)) if item.is_composite() => {
            for value in list.iter_mut() {
                complete(schema, item, value);
            }
        }
        (Shape::Map(item), Value::Object(map)) if item.is_composite() => {
            map.values_mut().for_each(|value| complete(schema, item, value));
        }
        _ => {}
    }
}

/// Whether `value` is in the form of `shape` to the letter, so that a walk over it would neither change nor complain of
/// anything.
pub(super) fn is_settled(schema: &Schema, shape: &Shape, value: &Value, in_map: bool) -> bool {
    match (shape, value) {
        (Shape::Any, value) => in_map || !value.is_null(),
        (Shape::String | Shape::IntOrString, Value::String(_)) | (Shape::Bool, Value::Bool(_)) => {
            true
        }
        (Shape::Int32 | Shape::IntOrString, Value::Number(number)) => {
            number.as_i64().is_some_and(|number| i32::try_from(number).is_ok())
        }
        (Shape::Int64, Value::Number(number)) => number.as_i64().is_some(),
        (Shape::Double, Value::Number(number)) => Value::from(go::float(number)) == *value,
        (Shape::Time, Value::String(text)) => is_whole_second(text),
        (Shape::Quantity, Value::String(text)) => text.parse::<Quantity>().is_ok_and(|quantity| {
            let kept = if in_map { quantity.rounded_up(RESOURCE_LIST_SCALE) } else { quantity };
            kept.to_string() == *text
        }),
        (Shape::List(item), Value::Array(list)) => {
            let in_map = **item != Shape::Quantity;
            list.iter().all(|value| is_settled(schema, item, value, in_map))
        }
        (Shape::Map(item), Value::Object(map)) => {
            map.values().all(|value| is_settled(schema, item, value, true))
        }
        (Shape::Object(id), Value::Object(map)) => {
            let of = schema.get(*id);
            let through_go = std::ptr::eq(schema, builtin());
            let has_zeros =
                || of.zeros.iter().all(|(at, _)| map.contains_key(of.fields[*at].name.as_ref()));
            map.iter().all(|(name, value)| match of.field(name) {
                None => of.preserve_unknown,
                Some(_) if value.is_null() => of.zero(name) == Some(value),
                Some(field) => {
                    !(through_go && field.omits(value))
                        && is_settled(schema, &field.shape, value, false)
                }
            }) && has_zeros()
        }
        // The rest takes its ordinary way.
        _ => false,
    }
}

/// Whether a time is as [`Moment::write`] writes it; of a month's last days that is not decided here.
fn is_whole_second(text: &str) -> bool {
    let number = |from: usize, until: usize| {
        let digits = text.get(from..until).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
        digits.and_then(|digits| digits.parse::<u16>().ok())
    };
    let within = |from: usize, least: u16, most: u16| {
        number(from, from + 2).is_some_and(|found| (least..=most).contains(&found))
    };
    let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'Z')];
    text.len() == 20
        && signs.iter().all(|(at, sign)| text.as_bytes()[*at] == *sign)
        && number(0, 4).is_some_and(|year| year >= 1000)
        && within(5, 1, 12)
        && within(8, 1, 28)
        && within(11, 0, 23)
        && within(14, 0, 59)
        && within(17, 0, 59)
}

enum Key<'s> {
    Known(usize, &'s Field),
    Unknown(String),
}

struct KeyOf<'s>(&'s Type);

impl<'de, 's> DeserializeSeed<'de> for KeyOf<'s> {
    type Value = Key<'s>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Key<'s>, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'s> Visitor<'_> for KeyOf<'s> {
    type Value = Key<'s>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key<'s>, E> {
        Ok(self
            .0
            .place(key)
            .map_or_else(|| Key::Unknown(key.to_owned()), |i| Key::Known(i, &self.0.fields[i])))
    }
}

/// Which fields of a type have come.
#[derive(Default)]
struct Seen {
    first: u128,
    others: Vec<usize>,
}

impl Seen {
    /// Takes down a field; false when it has come before.
    fn insert(&mut self, index: usize) -> bool {
        let Some(bit) = u32::try_from(index).ok().and_then(|index| 1u128.checked_shl(index)) else {
            let known = self.others.contains(&index);
            self.others.push(index);
            return !known;
        };
        let known = self.first & bit != 0;
        self.first |= bit;
        !known
    }
}

fn object<'de, 's, A: MapAccess<'de>>(
    walk: &mut Walk<'s>,
    of: &'s Type,
    mut entries: A,
) -> Result<Option<Value>, A::Error> {
    let mut map = Map::new();
    let mut seen = Seen::default();
    while let Some(key) = entries.next_key_seed(KeyOf(of))? {
        match key {
            Key::Known(index, field) => {
                walk.path.push(Step::Field(field.name.clone()));
                if !seen.insert(index) {
                    walk.complain("duplicate");
                }
                let value =
                    entries.next_value_seed(Node { walk, shape: &field.shape, in_map: false });
                walk.path.pop();
                match value? {
                    Some(value) if !(walk.through_go && field.omits(&value)) => {
                        map.insert(field.name.to_string(), value);
                    }
                    _ => {
                        map.remove(field.name.as_ref());
                    }
                }
            }
            Key::Unknown(key) if of.preserve_unknown => {
                let value = entries.next_value::<Value>()?;
                map.insert(key, value);
            }
            Key::Unknown(key) => {
                entries.next_value::<IgnoredAny>()?;
                walk.path.push(Step::Key(key));
                walk.complain("unknown");
                walk.path.pop();
            }
        }
    }
    add_zeros(of, &mut map);
    Ok(Some(Value::Object(map)))
}
