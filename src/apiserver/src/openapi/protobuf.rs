//! OpenAPI documents in protobuf, the form that kubectl and client-go ask for.
//!
//! Source: `OpenAPIv2.proto` and `OpenAPIv3.proto` of gnostic-models. A table of messages, walked with the
//! JSON document at hand; what a message has no field for is an extension when its name begins with `x-`.

use apimachinery::protobuf::Writer;
use serde_json::Value;

use Kind::{Any, Anys, Bool, Double, Entries, Int, Items, Many, One, OneOrBool, Text, Texts, Type};

/// What a field holds.
enum Kind {
    Text,
    Texts,
    Bool,
    Int,
    Double,
    /// A value as text.
    Any,
    Anys,
    One(&'static Message),
    Many(&'static Message),
    /// A map: a message of `name` and `value` pairs, which lie under this tag in it.
    Entries(u32, &'static Message),
    /// A list of messages in a message.
    Items(&'static Message),
    /// A message or a boolean.
    OneOrBool(&'static Message),
    /// Text in a message of texts.
    Type,
}

/// A message: JSON names, tags and kinds of its fields, the tag of its extensions.
struct Message {
    fields: &'static [(&'static str, u32, Kind)],
    extensions: u32,
    /// The message is the one member of others, such as `SchemaOrReference`, by these tags.
    wrapped: fn(&Value) -> &'static [u32],
    /// Keys that are no field are entries of a map under this tag.
    entries: Option<(u32, &'static Message)>,
}

fn bare(_: &Value) -> &'static [u32] {
    &[]
}

fn first(_: &Value) -> &'static [u32] {
    &[1]
}

/// A reference is the second member.
fn or_reference(value: &Value) -> &'static [u32] {
    if value.get("$ref").is_some() { &[2] } else { &[1] }
}

/// `ParametersItem`, `Parameter` and `NonBodyParameter` of version 2.
fn parameter(value: &Value) -> &'static [u32] {
    match value["in"].as_str() {
        Some("body") => &[1, 1],
        Some("path") => &[1, 2, 4],
        _ => &[1, 2, 3],
    }
}

static INFO_V2: Message = Message {
    fields: &[("title", 1, Text), ("version", 2, Text)],
    extensions: 7,
    wrapped: bare,
    entries: None,
};

static SCHEMA_V2: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Any),
        ("multipleOf", 6, Double),
        ("maximum", 7, Double),
        ("exclusiveMaximum", 8, Bool),
        ("minimum", 9, Double),
        ("exclusiveMinimum", 10, Bool),
        ("maxLength", 11, Int),
        ("minLength", 12, Int),
        ("pattern", 13, Text),
        ("maxItems", 14, Int),
        ("minItems", 15, Int),
        ("uniqueItems", 16, Bool),
        ("maxProperties", 17, Int),
        ("minProperties", 18, Int),
        ("required", 19, Texts),
        ("enum", 20, Anys),
        ("additionalProperties", 21, OneOrBool(&SCHEMA_V2)),
        ("type", 22, Type),
        ("items", 23, Items(&SCHEMA_V2)),
        ("allOf", 24, Many(&SCHEMA_V2)),
        ("properties", 25, Entries(1, &SCHEMA_V2)),
        ("readOnly", 27, Bool),
        ("example", 30, Any),
    ],
    extensions: 31,
    wrapped: bare,
    entries: None,
};

static BODY_OR_QUERY_V2: Message = Message {
    // Body parameters have their fields elsewhere; see `parameter_v2`.
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("format", 7, Text),
    ],
    extensions: 23,
    wrapped: parameter,
    entries: None,
};

static PATH_PARAMETER_V2: Message = Message {
    fields: &[
        ("required", 1, Bool),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
    ],
    extensions: 22,
    wrapped: parameter,
    entries: None,
};

static BODY_PARAMETER_V2: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Bool),
        ("schema", 5, One(&SCHEMA_V2)),
    ],
    extensions: 6,
    wrapped: parameter,
    entries: None,
};

/// The same schema as the first member of `SchemaItem`.
static RESPONSE_SCHEMA_V2: Message = Message {
    fields: SCHEMA_V2.fields,
    extensions: SCHEMA_V2.extensions,
    wrapped: first,
    entries: None,
};

static RESPONSE_V2: Message = Message {
    fields: &[("description", 1, Text), ("schema", 2, One(&RESPONSE_SCHEMA_V2))],
    extensions: 5,
    wrapped: first,
    entries: None,
};

static RESPONSES_V2: Message =
    Message { fields: &[], extensions: 2, wrapped: bare, entries: Some((1, &RESPONSE_V2)) };

static OPERATION_V2: Message = Message {
    fields: &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Texts),
        ("consumes", 7, Texts),
        ("parameters", 8, Many(&BODY_OR_QUERY_V2)),
        ("responses", 9, One(&RESPONSES_V2)),
        ("schemes", 10, Texts),
        ("deprecated", 11, Bool),
    ],
    extensions: 13,
    wrapped: bare,
    entries: None,
};

static PATH_V2: Message = Message {
    fields: &[
        ("get", 2, One(&OPERATION_V2)),
        ("put", 3, One(&OPERATION_V2)),
        ("post", 4, One(&OPERATION_V2)),
        ("delete", 5, One(&OPERATION_V2)),
        ("options", 6, One(&OPERATION_V2)),
        ("head", 7, One(&OPERATION_V2)),
        ("patch", 8, One(&OPERATION_V2)),
        ("parameters", 9, Many(&BODY_OR_QUERY_V2)),
    ],
    extensions: 10,
    wrapped: bare,
    entries: None,
};

static DOCUMENT_V2: Message = Message {
    fields: &[
        ("swagger", 1, Text),
        ("info", 2, One(&INFO_V2)),
        ("schemes", 5, Texts),
        ("consumes", 6, Texts),
        ("produces", 7, Texts),
        ("paths", 8, Entries(2, &PATH_V2)),
        ("definitions", 9, Entries(1, &SCHEMA_V2)),
    ],
    extensions: 16,
    wrapped: bare,
    entries: None,
};

static INFO_V3: Message = Message {
    fields: &[("title", 1, Text), ("description", 2, Text), ("version", 6, Text)],
    extensions: 7,
    wrapped: bare,
    entries: None,
};

static SCHEMA_V3: Message = Message {
    fields: &[
        ("nullable", 1, Bool),
        ("readOnly", 3, Bool),
        ("writeOnly", 4, Bool),
        ("example", 7, Any),
        ("deprecated", 8, Bool),
        ("title", 9, Text),
        ("multipleOf", 10, Double),
        ("maximum", 11, Double),
        ("exclusiveMaximum", 12, Bool),
        ("minimum", 13, Double),
        ("exclusiveMinimum", 14, Bool),
        ("maxLength", 15, Int),
        ("minLength", 16, Int),
        ("pattern", 17, Text),
        ("maxItems", 18, Int),
        ("minItems", 19, Int),
        ("uniqueItems", 20, Bool),
        ("maxProperties", 21, Int),
        ("minProperties", 22, Int),
        ("required", 23, Texts),
        ("enum", 24, Anys),
        ("type", 25, Text),
        ("allOf", 26, Many(&SCHEMA_V3)),
        ("oneOf", 27, Many(&SCHEMA_V3)),
        ("anyOf", 28, Many(&SCHEMA_V3)),
        ("not", 29, One(&SCHEMA_ALONE_V3)),
        ("items", 30, Items(&SCHEMA_V3)),
        ("properties", 31, Entries(1, &SCHEMA_V3)),
        ("additionalProperties", 32, OneOrBool(&SCHEMA_V3)),
        ("description", 34, Text),
        ("format", 35, Text),
        // Of a reference, which is its own message.
        ("$ref", 1, Text),
    ],
    extensions: 36,
    wrapped: or_reference,
    entries: None,
};

static SCHEMA_ALONE_V3: Message = Message {
    fields: SCHEMA_V3.fields,
    extensions: SCHEMA_V3.extensions,
    wrapped: bare,
    entries: None,
};

static PARAMETER_V3: Message = Message {
    fields: &[
        ("name", 1, Text),
        ("in", 2, Text),
        ("description", 3, Text),
        ("required", 4, Bool),
        ("schema", 10, One(&SCHEMA_V3)),
    ],
    extensions: 14,
    wrapped: first,
    entries: None,
};

static MEDIA_TYPE_V3: Message = Message {
    fields: &[("schema", 1, One(&SCHEMA_V3))],
    extensions: 5,
    wrapped: bare,
    entries: None,
};

static BODY_V3: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("content", 2, Entries(1, &MEDIA_TYPE_V3)),
        ("required", 3, Bool),
    ],
    extensions: 4,
    wrapped: first,
    entries: None,
};

static RESPONSE_V3: Message = Message {
    fields: &[("description", 1, Text), ("content", 3, Entries(1, &MEDIA_TYPE_V3))],
    extensions: 5,
    wrapped: first,
    entries: None,
};

static RESPONSES_V3: Message =
    Message { fields: &[], extensions: 3, wrapped: bare, entries: Some((2, &RESPONSE_V3)) };

static OPERATION_V3: Message = Message {
    fields: &[
        ("tags", 1, Texts),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("parameters", 6, Many(&PARAMETER_V3)),
        ("requestBody", 7, One(&BODY_V3)),
        ("responses", 8, One(&RESPONSES_V3)),
        ("deprecated", 10, Bool),
    ],
    extensions: 13,
    wrapped: bare,
    entries: None,
};

static PATH_V3: Message = Message {
    fields: &[
        ("summary", 2, Text),
        ("description", 3, Text),
        ("get", 4, One(&OPERATION_V3)),
        ("put", 5, One(&OPERATION_V3)),
        ("post", 6, One(&OPERATION_V3)),
        ("delete", 7, One(&OPERATION_V3)),
        ("options", 8, One(&OPERATION_V3)),
        ("head", 9, One(&OPERATION_V3)),
        ("patch", 10, One(&OPERATION_V3)),
        ("parameters", 13, Many(&PARAMETER_V3)),
    ],
    extensions: 14,
    wrapped: bare,
    entries: None,
};

static COMPONENTS_V3: Message = Message {
    fields: &[("schemas", 1, Entries(1, &SCHEMA_V3))],
    extensions: 10,
    wrapped: bare,
    entries: None,
};

static DOCUMENT_V3: Message = Message {
    fields: &[
        ("openapi", 1, Text),
        ("info", 2, One(&INFO_V3)),
        ("paths", 4, Entries(1, &PATH_V3)),
        ("components", 5, One(&COMPONENTS_V3)),
    ],
    extensions: 9,
    wrapped: bare,
    entries: None,
};

/// A document of version 2.
pub(super) fn v2(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    fields(&DOCUMENT_V2, document, &mut out);
    out.into_bytes()
}

/// A document of version 3.
pub(super) fn v3(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    fields(&DOCUMENT_V3, document, &mut out);
    out.into_bytes()
}

/// Writes a message under `tag`, within those it is wrapped in.
fn message(of: &'static Message, tag: u32, value: &Value, out: &mut Writer) {
    let of = match value["in"].as_str() {
        Some("body") if std::ptr::eq(of, &raw const BODY_OR_QUERY_V2) => &BODY_PARAMETER_V2,
        Some("path") if std::ptr::eq(of, &raw const BODY_OR_QUERY_V2) => &PATH_PARAMETER_V2,
        _ => of,
    };
    out.message(tag, |out| wrapped(of, (of.wrapped)(value), value, out));
}

fn wrapped(of: &'static Message, tags: &[u32], value: &Value, out: &mut Writer) {
    match tags {
        [] => fields(of, value, out),
        [tag, rest @ ..] => out.message(*tag, |out| wrapped(of, rest, value, out)),
    }
}

fn any(tag: u32, value: &Value, out: &mut Writer) {
    out.message(tag, |out| out.bytes(2, format!("{value}\n").as_bytes()));
}

fn entry(of: &'static Message, tag: u32, name: &str, value: &Value, out: &mut Writer) {
    out.message(tag, |out| {
        out.bytes(1, name.as_bytes());
        message(of, 2, value, out);
    });
}

fn fields(of: &'static Message, value: &Value, out: &mut Writer) {
    for (name, value) in value.as_object().into_iter().flatten() {
        if let Some((_, tag, kind)) = of.fields.iter().find(|(field, ..)| field == name) {
            field(kind, *tag, value, out);
        } else if name.starts_with("x-") {
            out.message(of.extensions, |out| {
                out.bytes(1, name.as_bytes());
                any(2, value, out);
            });
        } else if let Some((tag, of)) = of.entries {
            entry(of, tag, name, value, out);
        }
    }
}

fn field(kind: &'static Kind, tag: u32, value: &Value, out: &mut Writer) {
    let items = value.as_array().map_or(&[][..], Vec::as_slice);
    let text = value.as_str().unwrap_or_default().as_bytes();
    match kind {
        Text => out.bytes(tag, text),
        Texts => {
            for item in items.iter().filter_map(Value::as_str) {
                out.bytes(tag, item.as_bytes());
            }
        }
        Bool => out.int(tag, i64::from(value.as_bool().unwrap_or_default())),
        Int => out.int(tag, value.as_i64().unwrap_or_default()),
        Double => out.double(tag, value.as_f64().unwrap_or_default()),
        Any => any(tag, value, out),
        Anys => items.iter().for_each(|item| any(tag, item, out)),
        One(of) => message(of, tag, value, out),
        Many(of) => items.iter().for_each(|item| message(of, tag, item, out)),
        Entries(inner, of) => out.message(tag, |out| {
            for (name, value) in value.as_object().into_iter().flatten() {
                entry(of, *inner, name, value, out);
            }
        }),
        Items(of) => out.message(tag, |out| message(of, 1, value, out)),
        OneOrBool(of) => out.message(tag, |out| match value.as_bool() {
            Some(flag) => out.int(2, i64::from(flag)),
            None => message(of, 1, value, out),
        }),
        Type => out.message(tag, |out| out.bytes(1, text)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_definition_is_written_by_the_tags() {
        let document = json!({"swagger": "2.0", "definitions": {"A": {"type": "object", "x-k": [1],
            "properties": {"b": {"$ref": "#/definitions/B"}}}}});
        let want = [
            // properties(25) > additional_properties(1) > name(1), value(2) > _ref(1)
            b"\xca\x01\x18\x0a\x16\x0a\x01b\x12\x11\x0a\x0f#/definitions/B".as_slice(),
            // type(22) > value(1)
            b"\xb2\x01\x08\x0a\x06object",
            // vendor_extension(31) > name(1), value(2) > yaml(2)
            b"\xfa\x01\x0d\x0a\x03x-k\x12\x06\x12\x04[1]\n",
            // swagger(1)
            b"\x0a\x032.0",
        ];
        let got = v2(&document);
        for part in want {
            assert!(got.windows(part.len()).any(|w| w == part), "{part:?} in {got:?}");
        }
        // definitions(9), and all of it but the version.
        assert_eq!((got[0], usize::from(got[1])), (0x4a, got.len() - 2 - 5));
    }

    #[test]
    fn references_are_the_other_member() {
        let document = json!({"components": {"schemas": {"A": {"properties": {
            "b": {"$ref": "B"}, "c": {"allOf": [{"$ref": "C"}]}, "d": {"type": "string"}}}}}});
        let got = v3(&document);
        for part in [
            // NamedSchemaOrReference: name(1), value(2) > reference(2) > _ref(1)
            b"\x0a\x01b\x12\x05\x12\x03\x0a\x01B".as_slice(),
            // schema(1) > all_of(26) > reference(2) > _ref(1)
            b"\x0a\x08\xd2\x01\x05\x12\x03\x0a\x01C",
            // schema(1) > type(25)
            b"\x0a\x09\xca\x01\x06string",
        ] {
            assert!(got.windows(part.len()).any(|w| w == part), "{part:?} in {got:?}");
        }
    }
}
