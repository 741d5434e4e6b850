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

/// A key: YAML allows numbers and booleans there, JSON only text. Go's text for their values is the key.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        reader.deserialize_any(KeyText).map(Self)
    }
}

struct KeyText;

impl Visitor<'_> for KeyText {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map key that is text, a number or a boolean")
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E>(self, value: f64) -> Result<String, E> {
        Ok(go_shortest(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }
}

/// `strconv.FormatFloat(value, 'g', -1, 32)`, with YAML's names for what is no number.
fn go_shortest(value: f64) -> String {
    let value = value as f32;
    if value.is_nan() {
        return ".nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { ".inf" } else { "-.inf" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        // Go's bounds; it writes two digits at the least.
        Ok(power) if !(-4..6).contains(&power) => {
            format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
        }
        _ => value.to_string(),
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
    fn keys_are_the_text_of_their_values() {
        // What kubectl 1.35 sends of these.
        for (key, want) in [
            ("on", "true"),
            ("y", "true"),
            ("No", "false"),
            ("\"no\"", "no"),
            ("name", "name"),
            ("8080", "8080"),
            ("017", "15"),
            ("0x10", "16"),
            ("1_0", "10"),
            ("+2", "2"),
            ("-1", "-1"),
            ("1.0", "1"),
            ("1.5", "1.5"),
            (".5", "0.5"),
            ("1e3", "1000"),
            ("1e10", "1e+10"),
            ("123456789012.5", "1.2345679e+11"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            (".inf", ".inf"),
            (".nan", ".nan"),
            ("2001-01-01", "2001-01-01"),
        ] {
            let (value, strict) = parse(&format!("{key}: x")).expect("parses");
            assert_eq!((value, strict.len()), (json!({ want: "x" }), 0), "{key}");
        }
        assert!(parse("{~: x}").is_err());
    }

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
