//! YAML to JSON values, as `sigs.k8s.io/yaml` reads it: YAML 1.1 booleans and octal numbers, keys made
//! text, duplicate keys told with their line.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, NonFiniteFloatPolicy, Spanned};

/// Parses one YAML document; the second part tells duplicate keys, as one strict error.
pub fn parse(text: &str) -> Result<(Value, Vec<String>), String> {
    if let Some(value) = as_json(text) {
        return Ok((value, Vec::new()));
    }
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        legacy_octal_numbers: true,
        strict_booleans: false,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
    };
    let mut duplicates = Vec::new();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        Node(&mut duplicates).deserialize(reader)
    })
    .map_err(|e| format!("error converting YAML to JSON: yaml: {e}"))?;
    let strict = if duplicates.is_empty() {
        Vec::new()
    } else {
        vec![format!("yaml: unmarshal errors:\n{}", duplicates.join("\n"))]
    };
    Ok((value, strict))
}

/// What clients call YAML is JSON mostly, which is parsed in a fifth of the time. Whatever the two languages
/// could see differently is left to YAML: duplicates, mistakes, numbers that are not whole.
fn as_json(text: &str) -> Option<Value> {
    if !text.trim_start().starts_with('{') {
        return None;
    }
    let (value, duplicates) = super::unstructured::parse(text.as_bytes()).ok()?;
    (duplicates.is_empty() && has_whole_numbers(&value)).then_some(value)
}

fn has_whole_numbers(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(has_whole_numbers),
        Value::Object(fields) => fields.values().all(has_whole_numbers),
        Value::Null | Value::Bool(_) | Value::String(_) => true,
    }
}

/// Parses one YAML document without a schema; duplicate keys are refused.
pub fn to_value(text: &str) -> Result<Value, super::Error> {
    let (value, mut strict) = parse(text).map_err(super::Error::Syntax)?;
    match strict.pop() {
        Some(error) => Err(super::Error::Syntax(error)),
        None => Ok(value),
    }
}

struct Node<'a>(&'a mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

/// A key: YAML allows numbers and booleans there, JSON only text.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        String::deserialize(reader).map(Self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Node(self.0))? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<Spanned<Key>>()? {
            let name = key.value.0;
            if map.contains_key(&name) {
                let line = key.referenced.line();
                self.0.push(format!("  line {line}: key {name:?} already set in map"));
            }
            let value = entries.next_value_seed(Node(self.0))?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn json_is_parsed_as_such_where_yaml_would_see_the_same() {
        for (text, want) in [
            ("{\"a\": 1, \"b\": [true, null, \"x\"]}", true),
            (" \n{\"a\": {}}\n", true),
            ("{\"a\": 1.0}", false),
            ("{\"a\": 99999999999999999999}", false),
            ("{\"a\": 1, \"a\": 2}", false),
            ("{a: 1}", false),
            ("a: 1", false),
            ("[1]", false),
        ] {
            assert_eq!(as_json(text).is_some(), want, "{text}");
        }
        let (value, strict) = parse("{\"a\": 1, \"a\": 2}").expect("parses");
        assert_eq!((value, strict.len()), (json!({"a": 2}), 1));
    }
}
