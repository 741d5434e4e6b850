//! Protobuf to JSON. Fields that Go leaves out of JSON when they are zero are left out here too.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::{MAGIC, json_name, qualified};
use crate::schema::{Embedded, Field, Schema, Shape, Type, TypeId};
use crate::time::{Layout, Moment};

/// Messages may not be nested deeper.
const DEPTH_MAX: u32 = 64;

/// Why bytes are not a body.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The envelope is missing or broken.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Envelope,
    /// The message ends too early, or has a length or key that cannot be.
    #[error("proto: illegal bytes in {message}")]
    Malformed {
        /// The message in which it was noticed.
        message: String,
    },
    /// The kind in the envelope is not in the table.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// From the envelope.
        api_version: String,
        /// From the envelope.
        kind: String,
    },
}

/// One field on the wire.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            _ => &[],
        }
    }

    fn int(&self) -> i64 {
        match self {
            Self::Varint(number) | Self::Fixed64(number) => *number as i64,
            Self::Fixed32(number) => i64::from(*number),
            Self::Bytes(_) => 0,
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

/// The fields of a message, in the order they stand there.
struct Reader<'a> {
    rest: &'a [u8],
    message: &'a str,
}

impl<'a> Reader<'a> {
    fn new(rest: &'a [u8], message: &'a str) -> Self {
        Self { rest, message }
    }

    fn malformed(&self) -> Error {
        Error::Malformed { message: self.message.to_owned() }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first().ok_or_else(|| self.malformed())?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(self.malformed())
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3).map_err(|_| self.malformed())?;
        let malformed = self.malformed();
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                Wire::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| malformed)?))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| malformed)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                Wire::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| malformed)?))
            }
            _ => return Err(malformed),
        };
        Ok(Some((tag, wire)))
    }
}

/// The object in a protobuf body, as the JSON that says the same.
pub fn decode(schema: &Schema, body: &[u8]) -> Result<Value, Error> {
    let envelope = body.strip_prefix(MAGIC).ok_or(Error::Envelope)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut fields = Reader::new(envelope, "Unknown");
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => {
                let mut meta = Reader::new(wire.bytes(), "TypeMeta");
                while let Some((tag, wire)) = meta.next()? {
                    match tag {
                        1 => api_version = wire.text(),
                        2 => kind = wire.text(),
                        _ => {}
                    }
                }
            }
            2 => raw = wire.bytes(),
            _ => {}
        }
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    // Evictions are still sent in the version that is not served any more; the message is the same.
    let older = (group, version, kind.as_str()) == ("policy", "v1beta1", "Eviction");
    let served = if older { "v1" } else { version };
    // Options are of one type, whatever group they are sent to.
    let of = schema
        .kind(group, served, &kind)
        .or_else(|| schema.named(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))
        .ok_or_else(|| Error::UnknownKind {
            api_version: api_version.clone(),
            kind: kind.clone(),
        })?;
    let mut map = Map::new();
    Decoder { schema }.object(of, raw, &mut map, 0)?;
    map.insert("apiVersion".into(), api_version.into());
    map.insert("kind".into(), kind.into());
    Ok(Value::Object(map))
}

struct Decoder<'s> {
    schema: &'s Schema,
}

impl Decoder<'_> {
    fn object(
        &self,
        of: TypeId,
        bytes: &[u8],
        out: &mut Map<String, Value>,
        depth: u32,
    ) -> Result<(), Error> {
        let of = self.schema.get(of);
        if depth > DEPTH_MAX {
            return Err(Error::Malformed { message: of.name.to_string() });
        }
        let mut fields = Reader::new(bytes, &of.name);
        while let Some((tag, wire)) = fields.next()? {
            if let Some(field) = of.fields.iter().find(|field| field.tag == tag && tag != 0) {
                self.field(of, field, &wire, out, depth)?;
            } else if let Some(part) = of.embedded.iter().find(|part| part.tag == tag)
                && let Some(field) = of.field(&json_name(&part.name))
            {
                // The same field, called otherwise.
                self.field(of, field, &wire, out, depth)?;
            } else if let Some(part) = of.embedded.iter().find(|part| part.tag == tag) {
                self.embedded(of, part, wire.bytes(), out, depth + 1)?;
            }
        }
        Ok(())
    }

    /// A message on the wire whose fields are the JSON object's own.
    fn embedded(
        &self,
        of: &Type,
        part: &Embedded,
        bytes: &[u8],
        out: &mut Map<String, Value>,
        depth: u32,
    ) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::Malformed { message: of.name.to_string() });
        }
        let name = qualified(of, &part.proto);
        let message = self.schema.message(&name);
        let json = self.schema.named(&name.replacen("k8s.io.", "io.k8s.", 1));
        let mut fields = Reader::new(bytes, &name);
        while let Some((tag, wire)) = fields.next()? {
            let known = match (message, json) {
                (Some(parts), _) => {
                    parts.iter().find(|part| part.tag == tag).map(|part| part.name.clone())
                }
                (None, Some(json)) => {
                    let fields = &self.schema.get(json).fields;
                    fields.iter().find(|field| field.tag == tag).map(|field| field.name.clone())
                }
                (None, None) => None,
            };
            let Some(known) = known else {
                // A message within the embedded message.
                let inner = json.map(|json| self.schema.get(json));
                if let Some(inner) = inner
                    && let Some(part) = inner.embedded.iter().find(|part| part.tag == tag)
                {
                    self.embedded(of, part, wire.bytes(), out, depth + 1)?;
                }
                continue;
            };
            if let Some(field) = of.field(&known) {
                self.field(of, field, &wire, out, depth)?;
            } else if let Some(parts) = message
                && let Some(part) = parts.iter().find(|part| part.tag == tag)
            {
                // A handler within the common part of an ephemeral container, for one.
                self.embedded(of, part, wire.bytes(), out, depth + 1)?;
            }
        }
        Ok(())
    }

    fn field(
        &self,
        of: &Type,
        field: &Field,
        wire: &Wire<'_>,
        out: &mut Map<String, Value>,
        depth: u32,
    ) -> Result<(), Error> {
        let name = field.name.as_ref();
        if of.short_name() == "JSONSchemaProps"
            && let Some(value) = self.schema_union(of, name, wire.bytes(), depth)?
        {
            match (out.get_mut(name), value) {
                // One entry of the map at a time.
                (Some(Value::Object(known)), Value::Object(more)) if name == "dependencies" => {
                    known.extend(more);
                }
                (_, value) => drop(out.insert(name.to_owned(), value)),
            }
            return Ok(());
        }
        match &field.shape {
            // A list that is a message of its own.
            Shape::List(of) if field.proto.as_ref().is_some_and(|p| p.ends_with("Verbs")) => {
                let mut items = Vec::new();
                let mut fields = Reader::new(wire.bytes(), name);
                while let Some((_, wire)) = fields.next()? {
                    items.extend(self.value(of, &wire, depth)?);
                }
                out.insert(name.to_owned(), items.into());
            }
            Shape::List(of) => {
                let mut items = Vec::new();
                match (&**of, wire) {
                    // Packed numbers are one run of bytes.
                    (Shape::Int32 | Shape::Int64 | Shape::Bool, Wire::Bytes(packed)) => {
                        let mut numbers = Reader::new(packed, name);
                        while !numbers.rest.is_empty() {
                            let number = Wire::Varint(numbers.varint()?);
                            items.extend(self.value(of, &number, depth)?);
                        }
                    }
                    // Lists of lists, such as the values of `extra`, are messages with items.
                    (Shape::List(inner), _) => {
                        let mut list = Vec::new();
                        let mut fields = Reader::new(wire.bytes(), name);
                        while let Some((_, wire)) = fields.next()? {
                            list.extend(self.value(inner, &wire, depth)?);
                        }
                        items.push(Value::Array(list));
                    }
                    _ => items.extend(self.value(of, wire, depth)?),
                }
                if let Value::Array(list) =
                    out.entry(name.to_owned()).or_insert_with(|| Value::Array(Vec::new()))
                {
                    list.extend(items);
                }
            }
            Shape::Map(of) => {
                let (key, value) = self.entry(of, wire.bytes(), name, depth)?;
                if let Value::Object(map) =
                    out.entry(name.to_owned()).or_insert_with(|| Value::Object(Map::new()))
                {
                    map.insert(key, value);
                }
            }
            // A message may come in parts.
            Shape::Object(id) if out.get(name).is_some_and(Value::is_object) => {
                if let Some(Value::Object(map)) = out.get_mut(name) {
                    self.object(*id, wire.bytes(), map, depth + 1)?;
                }
            }
            shape => {
                let Some(value) = self.value(shape, wire, depth)? else { return Ok(()) };
                let zero = match &value {
                    Value::String(text) => text.is_empty(),
                    Value::Number(number) => number.as_f64() == Some(0.0),
                    Value::Bool(flag) => !flag,
                    _ => false,
                };
                if !zero || field.always || field.pointer {
                    out.insert(name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    /// The unions of a JSON schema; `None` for its other fields.
    fn schema_union(
        &self,
        of: &Type,
        name: &str,
        bytes: &[u8],
        depth: u32,
    ) -> Result<Option<Value>, Error> {
        let Some(id) = self.schema.named(&of.name) else { return Ok(None) };
        let mut fields = Reader::new(bytes, name);
        let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
        let one = |bytes: &[u8]| {
            let mut map = Map::new();
            self.object(id, bytes, &mut map, depth + 1)?;
            Ok(Value::Object(map))
        };
        match name {
            "items" => {
                while let Some((tag, wire)) = fields.next()? {
                    match tag {
                        1 => schema = Some(one(wire.bytes())?),
                        _ => list.push(one(wire.bytes())?),
                    }
                }
                Ok(Some(schema.unwrap_or(Value::Array(list))))
            }
            "additionalItems" | "additionalProperties" => {
                while let Some((tag, wire)) = fields.next()? {
                    match tag {
                        1 => allows = wire.int() != 0,
                        _ => schema = Some(one(wire.bytes())?),
                    }
                }
                Ok(Some(schema.unwrap_or(Value::Bool(allows))))
            }
            "dependencies" => {
                let (mut key, mut value) = (String::new(), Value::Null);
                while let Some((tag, wire)) = fields.next()? {
                    match tag {
                        1 => key = wire.text(),
                        _ => value = self.dependency(id, wire.bytes(), depth)?,
                    }
                }
                Ok(Some(Value::Object(Map::from_iter([(key, value)]))))
            }
            _ => Ok(None),
        }
    }

    /// A schema, or the names of properties.
    fn dependency(&self, id: TypeId, bytes: &[u8], depth: u32) -> Result<Value, Error> {
        let mut fields = Reader::new(bytes, "dependencies");
        let mut names = Vec::new();
        while let Some((tag, wire)) = fields.next()? {
            if tag == 1 {
                let mut map = Map::new();
                self.object(id, wire.bytes(), &mut map, depth + 1)?;
                return Ok(map.into());
            }
            names.push(Value::String(wire.text()));
        }
        Ok(names.into())
    }

    fn entry(
        &self,
        of: &Shape,
        bytes: &[u8],
        name: &str,
        depth: u32,
    ) -> Result<(String, Value), Error> {
        let mut key = String::new();
        let mut value = None;
        let mut fields = Reader::new(bytes, name);
        while let Some((tag, wire)) = fields.next()? {
            match (tag, of) {
                (1, _) => key = wire.text(),
                (2, Shape::List(inner)) => {
                    let mut list = Vec::new();
                    let mut fields = Reader::new(wire.bytes(), name);
                    while let Some((_, wire)) = fields.next()? {
                        list.extend(self.value(inner, &wire, depth)?);
                    }
                    value = Some(Value::Array(list));
                }
                (2, of) => value = self.value(of, &wire, depth)?,
                _ => {}
            }
        }
        let empty = || match of {
            Shape::Bytes | Shape::String => Value::String(String::new()),
            Shape::Int32 | Shape::Int64 | Shape::Double => Value::from(0),
            Shape::Bool => Value::Bool(false),
            Shape::Time | Shape::MicroTime => Value::Null,
            _ => Value::Object(Map::new()),
        };
        Ok((key, value.unwrap_or_else(empty)))
    }

    /// A single value; `None` for an empty time, which is how Go writes one that is not set.
    fn value(&self, shape: &Shape, wire: &Wire<'_>, depth: u32) -> Result<Option<Value>, Error> {
        Ok(Some(match shape {
            Shape::String => Value::String(wire.text()),
            Shape::Bytes => Value::String(STANDARD.encode(wire.bytes())),
            Shape::Int32 | Shape::Int64 => Value::from(wire.int()),
            Shape::Bool => Value::Bool(wire.int() != 0),
            Shape::Double => match wire {
                Wire::Fixed64(bits) => Value::from(f64::from_bits(*bits)),
                _ => Value::from(0.0),
            },
            Shape::Quantity => Value::String(self.first(wire.bytes(), 1)?.unwrap_or_default()),
            Shape::IntOrString => int_or_string(wire.bytes())?,
            Shape::Time | Shape::MicroTime => return time(wire.bytes(), shape),
            Shape::Any => any(wire)?,
            Shape::Object(of) => {
                let mut map = Map::new();
                self.object(*of, wire.bytes(), &mut map, depth + 1)?;
                Value::Object(map)
            }
            Shape::List(_) | Shape::Map(_) => return Ok(None),
        }))
    }

    fn first(&self, bytes: &[u8], wanted: u32) -> Result<Option<String>, Error> {
        let mut fields = Reader::new(bytes, "Quantity");
        while let Some((tag, wire)) = fields.next()? {
            if tag == wanted {
                return Ok(Some(wire.text()));
            }
        }
        Ok(None)
    }
}

fn int_or_string(bytes: &[u8]) -> Result<Value, Error> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    let mut fields = Reader::new(bytes, "IntOrString");
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => is_text = wire.int() == 1,
            2 => number = wire.int(),
            3 => text = wire.text(),
            _ => {}
        }
    }
    Ok(if is_text { Value::String(text) } else { Value::from(number) })
}

fn time(bytes: &[u8], shape: &Shape) -> Result<Option<Value>, Error> {
    let (mut seconds, mut nanos) = (None, 0);
    let mut fields = Reader::new(bytes, "Time");
    while let Some((tag, wire)) = fields.next()? {
        match tag {
            1 => seconds = Some(wire.int()),
            2 => nanos = wire.int(),
            _ => {}
        }
    }
    let malformed = || Error::Malformed { message: "Time".into() };
    let Some(seconds) = seconds else { return Ok(None) };
    let nanos = i32::try_from(nanos).map_err(|_| malformed())?;
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(malformed());
    }
    let layout = if *shape == Shape::MicroTime { Layout::Micros } else { Layout::Seconds };
    Ok(Some(Moment { seconds, nanos }.write(layout).into()))
}

/// Raw JSON within a message: `RawExtension`, `FieldsV1`, `JSON`.
fn any(wire: &Wire<'_>) -> Result<Value, Error> {
    let mut fields = Reader::new(wire.bytes(), "RawExtension");
    while let Some((_, wire)) = fields.next()? {
        let bytes = wire.bytes();
        if !bytes.is_empty() {
            return serde_json::from_slice(bytes)
                .map_err(|_| Error::Malformed { message: "RawExtension".into() });
        }
    }
    Ok(Value::Null)
}
