//! JSON to protobuf, in one pass over the text: a field is written when it is met.
//!
//! A struct that is embedded in Go has its fields inline in JSON and in a message of their own on the wire.
//! Such a message is written once for each of its fields; whoever reads it has to join the parts
//! (protobuf encoding guide, "Last One Wins").

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{MAGIC, json_name};
use crate::schema::{Embedded, Field, Schema, Shape, Text, Type, TypeId};
use crate::time::{Layout, Moment};

/// A message that grows.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// All of it.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn key(&mut self, tag: u32, wire: u8) {
        self.varint(u64::from(tag) << 3 | u64::from(wire));
    }

    /// A number or boolean.
    pub fn int(&mut self, tag: u32, number: i64) {
        self.key(tag, 0);
        self.varint(number as u64);
    }

    /// A 64-bit float.
    pub fn double(&mut self, tag: u32, number: f64) {
        self.key(tag, 1);
        self.0.extend_from_slice(&number.to_bits().to_le_bytes());
    }

    /// Text, bytes, or a message that is finished.
    pub fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.key(tag, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// A message that `body` writes.
    pub fn message<T>(&mut self, tag: u32, body: impl FnOnce(&mut Self) -> T) -> T {
        self.key(tag, 2);
        // One byte is room for the length of most messages; longer ones are moved.
        let at = self.0.len();
        self.0.push(0);
        let result = body(self);
        let length = self.0.len() - at - 1;
        if length < 0x80 {
            self.0[at] = length as u8;
            return result;
        }
        let mut prefix = Self::default();
        prefix.varint(length as u64);
        self.0.splice(at..=at, prefix.0);
        result
    }
}

/// The envelope around a message: `k8s\0` and `runtime.Unknown`.
pub fn envelope(api_version: &str, kind: &str, message: &[u8]) -> Vec<u8> {
    let mut body = Writer(Vec::with_capacity(message.len() + 64));
    body.0.extend_from_slice(MAGIC);
    body.message(1, |meta| {
        meta.bytes(1, api_version.as_bytes());
        meta.bytes(2, kind.as_bytes());
    });
    body.bytes(2, message);
    body.bytes(3, b"");
    body.bytes(4, b"");
    body.into_bytes()
}

/// One frame of a watch stream: its length in four bytes, then `metav1.WatchEvent`, whose object is an
/// enveloped body.
pub fn watch_frame(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut event = Writer(Vec::with_capacity(object.len() + 32));
    event.0.extend_from_slice(&[0; 4]);
    event.bytes(1, kind.as_bytes());
    event.message(2, |raw| raw.bytes(1, object));
    let length = u32::try_from(event.0.len() - 4).unwrap_or(u32::MAX);
    event.0[..4].copy_from_slice(&length.to_be_bytes());
    event.into_bytes()
}

/// Writes the fields of an object in JSON text, an item of `schema`, into `out`.
///
/// # Errors
/// The text is no JSON, or a value is not of its field's type.
pub fn from_json(
    schema: &Schema,
    of: TypeId,
    json: &[u8],
    out: &mut Writer,
) -> Result<(), serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    Message { schema, of, out }.deserialize(&mut reader)?;
    reader.end()
}

/// Writes the fields of an object into `out`.
///
/// # Errors
/// A value is not of its field's type.
pub fn from_value(
    schema: &Schema,
    of: TypeId,
    value: &Value,
    out: &mut Writer,
) -> Result<(), serde_json::Error> {
    Message { schema, of, out }.deserialize(value)
}

/// Where a field goes: through which embedded messages, outermost first, and under which tag.
struct Place<'s> {
    field: &'s Field,
    through: Vec<u32>,
    tag: u32,
}

fn place<'s>(schema: &'s Schema, of: &'s Type, name: &str) -> Option<Place<'s>> {
    let field = of.field(name)?;
    if field.tag != 0 {
        return Some(Place { field, through: Vec::new(), tag: field.tag });
    }
    if let Some(part) = of.embedded.iter().find(|part| json_name(&part.name) == name) {
        return Some(Place { field, through: Vec::new(), tag: part.tag });
    }
    let (through, tag) = within(schema, of, &of.embedded, name)?;
    Some(Place { field, through, tag })
}

/// The way to the field `name` in the messages embedded in `of`.
fn within(schema: &Schema, of: &Type, parts: &[Embedded], name: &str) -> Option<(Vec<u32>, u32)> {
    parts.iter().filter(|part| part.proto.contains('.')).find_map(|part| {
        let message = super::qualified(of, &part.proto);
        let (tag, nested) = if let Some(fields) = schema.message(&message) {
            (fields.iter().find(|field| field.name == name).map(|field| field.tag), fields)
        } else {
            let inner = schema.get(schema.named(&message.replacen("k8s.io.", "io.k8s.", 1))?);
            let tag = inner.field(name).map(|field| field.tag).filter(|tag| *tag != 0);
            (tag, inner.embedded.as_slice())
        };
        if let Some(tag) = tag {
            return Some((vec![part.tag], tag));
        }
        let (mut through, tag) = within(schema, of, nested, name)?;
        through.insert(0, part.tag);
        Some((through, tag))
    })
}

/// Writes within the messages `through`.
fn nested<T>(through: &[u32], out: &mut Writer, write: &mut dyn FnMut(&mut Writer) -> T) -> T {
    match through {
        [] => write(out),
        [tag, rest @ ..] => out.message(*tag, |out| nested(rest, out, write)),
    }
}

struct Message<'a> {
    schema: &'a Schema,
    of: TypeId,
    out: &'a mut Writer,
}

impl<'de> DeserializeSeed<'de> for Message<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Message<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let of = self.schema.get(self.of);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            let Some(place) = place(self.schema, of, &name.0) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let mut write = |out: &mut Writer| {
                map.next_value_seed(FieldValue {
                    schema: self.schema,
                    of,
                    shape: &place.field.shape,
                    proto: place.field.proto.as_ref(),
                    name: &place.field.name,
                    tag: place.tag,
                    out,
                })
            };
            nested(&place.through, self.out, &mut write)?;
        }
        Ok(())
    }
}

/// A key, borrowed when it can be.
struct Name<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        reader.deserialize_str(Text)
    }
}

/// The value of one field, which may be a list of values or a map of them.
struct FieldValue<'a> {
    schema: &'a Schema,
    of: &'a Type,
    shape: &'a Shape,
    proto: Option<&'a Text>,
    name: &'a str,
    tag: u32,
    out: &'a mut Writer,
}

impl FieldValue<'_> {
    fn item<'b>(&'b mut self, shape: &'b Shape, tag: u32) -> FieldValue<'b> {
        FieldValue {
            schema: self.schema,
            of: self.of,
            shape,
            proto: None,
            name: self.name,
            tag,
            out: self.out,
        }
    }

    fn any<E: serde::de::Error>(mut self, value: Value) -> Result<(), E> {
        let tag = self.tag;
        if self.of.short_name() == "JSONSchemaProps"
            && let Some(of) = self.schema.named(&self.of.name)
        {
            return schema_union(&mut self, of, tag, &value).map_err(E::custom);
        }
        self.out.message(tag, |raw| raw.bytes(1, value.to_string().as_bytes()));
        Ok(())
    }
}

/// The unions of a JSON schema: a schema or a list of them, a schema or a boolean, a schema or names.
fn schema_union(
    at: &mut FieldValue<'_>,
    of: TypeId,
    tag: u32,
    value: &Value,
) -> Result<(), serde_json::Error> {
    let schema = at.schema;
    match (at.name, value) {
        ("items" | "dependencies", Value::Object(_)) => {
            at.out.message(tag, |out| out.message(1, |out| from_value(schema, of, value, out)))
        }
        ("items", Value::Array(list)) => at.out.message(tag, |out| {
            list.iter().try_for_each(|one| out.message(2, |out| from_value(schema, of, one, out)))
        }),
        ("dependencies", Value::Array(list)) => {
            at.out.message(tag, |out| {
                for name in list.iter().filter_map(Value::as_str) {
                    out.bytes(2, name.as_bytes());
                }
            });
            Ok(())
        }
        ("additionalItems" | "additionalProperties", Value::Bool(allows)) => {
            at.out.message(tag, |out| out.int(1, i64::from(*allows)));
            Ok(())
        }
        ("additionalItems" | "additionalProperties", Value::Object(_)) => {
            at.out.message(tag, |out| {
                out.int(1, 1);
                out.message(2, |out| from_value(schema, of, value, out))
            })
        }
        _ => {
            at.out.message(tag, |out| out.bytes(1, value.to_string().as_bytes()));
            Ok(())
        }
    }
}

impl<'de> DeserializeSeed<'de> for FieldValue<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        match self.shape {
            Shape::Any => {
                let value = <Value as serde::Deserialize>::deserialize(reader)?;
                // Null is a value among others only in an enumeration.
                let absent = value.is_null() && self.name != "enum";
                if absent { Ok(()) } else { self.any(value) }
            }
            Shape::Object(of) => {
                let (schema, of, tag) = (self.schema, *of, self.tag);
                let before = self.out.0.len();
                let mut present = true;
                self.out.message(tag, |out| {
                    reader.deserialize_any(Nested { schema, of, out, present: &mut present })
                })?;
                if !present {
                    self.out.0.truncate(before);
                }
                Ok(())
            }
            Shape::List(_) if self.proto.is_some_and(|proto| proto.ends_with("Verbs")) => {
                let tag = self.tag;
                let (schema, of, name, shape) = (self.schema, self.of, self.name, self.shape);
                self.out.message(tag, |out| {
                    reader.deserialize_any(FieldValue {
                        schema,
                        of,
                        shape,
                        proto: None,
                        name,
                        tag: 1,
                        out,
                    })
                })
            }
            _ => reader.deserialize_any(self),
        }
    }
}

/// A message that may turn out to be null.
struct Nested<'a> {
    schema: &'a Schema,
    of: TypeId,
    out: &'a mut Writer,
    present: &'a mut bool,
}

impl<'de> Visitor<'de> for Nested<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        *self.present = false;
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
        Message { schema: self.schema, of: self.of, out: self.out }.visit_map(map)
    }
}

impl<'de> Visitor<'de> for FieldValue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a value for {}", self.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, flag: bool) -> Result<(), E> {
        self.out.int(self.tag, i64::from(flag));
        Ok(())
    }

    fn visit_i64<E>(self, number: i64) -> Result<(), E> {
        match self.shape {
            Shape::Double => self.out.double(self.tag, number as f64),
            Shape::Quantity => {
                let text = number.to_string();
                self.out.message(self.tag, |out| out.bytes(1, text.as_bytes()));
            }
            Shape::IntOrString => self.out.message(self.tag, |out| {
                out.int(1, 0);
                out.int(2, number);
                out.bytes(3, b"");
            }),
            _ => self.out.int(self.tag, number),
        }
        Ok(())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        self.visit_i64(i64::try_from(number).map_err(E::custom)?)
    }

    fn visit_f64<E>(self, number: f64) -> Result<(), E> {
        match self.shape {
            Shape::Double => self.out.double(self.tag, number),
            Shape::Quantity => {
                let text = number.to_string();
                self.out.message(self.tag, |out| out.bytes(1, text.as_bytes()));
            }
            _ => self.out.int(self.tag, number as i64),
        }
        Ok(())
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        match self.shape {
            Shape::Bytes => {
                let bytes = STANDARD.decode(text).map_err(E::custom)?;
                self.out.bytes(self.tag, &bytes);
            }
            Shape::Quantity => self.out.message(self.tag, |out| out.bytes(1, text.as_bytes())),
            Shape::IntOrString => self.out.message(self.tag, |out| {
                out.int(1, 1);
                out.int(2, 0);
                out.bytes(3, text.as_bytes());
            }),
            Shape::Time | Shape::MicroTime => {
                let time = Moment::read(text, Layout::Seconds).map_err(E::custom)?;
                self.out.message(self.tag, |out| {
                    out.int(1, time.seconds);
                    out.int(2, i64::from(time.nanos));
                });
            }
            _ => self.out.bytes(self.tag, text.as_bytes()),
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        let Shape::List(item) = self.shape else {
            return Err(serde::de::Error::custom(format!("{} is no list", self.name)));
        };
        let tag = self.tag;
        while list.next_element_seed(self.item(item, tag))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Shape::Map(item) = self.shape else {
            return Err(serde::de::Error::custom(format!("{} is no map", self.name)));
        };
        let tag = self.tag;
        while let Some(key) = map.next_key::<Name<'de>>()? {
            let (schema, of, name) = (self.schema, self.of, self.name);
            self.out.message(tag, |out| {
                out.bytes(1, key.0.as_bytes());
                // The values of `extra` are messages with items.
                if matches!(**item, Shape::List(_)) {
                    return out.message(2, |out| {
                        map.next_value_seed(FieldValue {
                            schema,
                            of,
                            shape: item,
                            proto: None,
                            name,
                            tag: 1,
                            out,
                        })
                    });
                }
                map.next_value_seed(FieldValue {
                    schema,
                    of,
                    shape: item,
                    proto: None,
                    name,
                    tag: 2,
                    out,
                })
            })?;
        }
        Ok(())
    }
}
