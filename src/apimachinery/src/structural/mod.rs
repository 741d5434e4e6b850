//! Structural schemas, the `openAPIV3Schema` of a `CustomResourceDefinition`: parsed once, then walked
//! to prune, default and validate objects, and compiled to the type table of [`crate::schema`].
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema`.

mod check;
mod default;
mod format;
mod prune;
mod table;
mod validate;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::schema::ListType;

pub use check::{check, unrecognized_formats};
pub use format::is as has_format;
pub use table::{Compiled, Names};

/// What the entries of a map may be.
#[derive(Clone, Debug)]
pub enum Additional {
    /// Anything, or nothing.
    Any(bool),
    /// Values of this schema.
    Of(Box<Structural>),
}

/// A regular expression with its text.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// As written.
    pub text: String,
    /// `None` where it does not compile; such a schema is refused beforehand.
    pub regex: Option<Regex>,
}

/// One rule of `x-kubernetes-validations`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// The CEL expression.
    pub rule: String,
    /// What to say when it is false.
    pub message: String,
    /// CEL that makes the message.
    pub message_expression: String,
    /// `FieldValueInvalid` by default.
    pub reason: String,
    /// The field below this one that is at fault.
    pub field_path: String,
    /// Whether a rule about `oldSelf` also runs when there is none.
    pub optional_old_self: bool,
}

/// A schema, or, below `allOf` and its like, a restriction of one.
#[derive(Clone, Debug, Default)]
pub struct Structural {
    /// `object`, `array`, `string`, `integer`, `number`, `boolean`; empty where nothing is said.
    pub kind: String,
    /// Whether `null` is a value.
    pub nullable: bool,
    /// What an absent value becomes.
    pub default: Option<Value>,
    /// Fields of an object.
    pub properties: BTreeMap<String, Structural>,
    /// Entries of a map.
    pub additional: Option<Additional>,
    /// Items of a list.
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-preserve-unknown-fields`
    pub preserve_unknown: bool,
    /// `x-kubernetes-embedded-resource`
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`
    pub list_type: Option<ListType>,
    /// `x-kubernetes-list-map-keys`
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic`
    pub atomic_map: bool,
    /// `x-kubernetes-validations`
    pub rules: Vec<Rule>,
    /// `format`
    pub format: String,
    /// `pattern`
    pub pattern: Option<Pattern>,
    /// `enum`
    pub values: Vec<Value>,
    /// `minimum` and whether it is exclusive.
    pub minimum: Option<(f64, bool)>,
    /// `maximum` and whether it is exclusive.
    pub maximum: Option<(f64, bool)>,
    /// `multipleOf`
    pub multiple_of: Option<f64>,
    /// `minLength`
    pub min_length: Option<u64>,
    /// `maxLength`
    pub max_length: Option<u64>,
    /// `minItems`
    pub min_items: Option<u64>,
    /// `maxItems`
    pub max_items: Option<u64>,
    /// `minProperties`
    pub min_properties: Option<u64>,
    /// `maxProperties`
    pub max_properties: Option<u64>,
    /// `uniqueItems`
    pub unique_items: bool,
    /// `required`
    pub required: Vec<String>,
    /// `allOf`
    pub all_of: Vec<Structural>,
    /// `anyOf`
    pub any_of: Vec<Structural>,
    /// `oneOf`
    pub one_of: Vec<Structural>,
    /// `not`
    pub not: Option<Box<Structural>>,
}

impl Structural {
    /// Reads `JSONSchemaProps`; what has the wrong type is taken as absent.
    pub fn parse(schema: &Value) -> Self {
        let empty = Map::new();
        let map = schema.as_object().unwrap_or(&empty);
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or_default();
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let texts = |key: &str| -> Vec<String> {
            let list = map.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let schemas = |key: &str| -> Vec<Self> {
            map.get(key).and_then(Value::as_array).into_iter().flatten().map(Self::parse).collect()
        };
        let one =
            |key: &str| map.get(key).filter(|v| v.is_object()).map(|v| Box::new(Self::parse(v)));
        let mut read = Self {
            kind: text("type"),
            nullable: flag("nullable"),
            default: map.get("default").filter(|v| !v.is_null()).cloned(),
            properties: map
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
                .map(|(name, schema)| (name.clone(), Self::parse(schema)))
                .collect(),
            additional: match map.get("additionalProperties") {
                Some(Value::Bool(any)) => Some(Additional::Any(*any)),
                Some(schema @ Value::Object(_)) => {
                    Some(Additional::Of(Box::new(Self::parse(schema))))
                }
                _ => None,
            },
            items: one("items"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            list_type: match text("x-kubernetes-list-type").as_str() {
                "atomic" => Some(ListType::Atomic),
                "set" => Some(ListType::Set),
                "map" => Some(ListType::Map),
                _ => None,
            },
            list_map_keys: texts("x-kubernetes-list-map-keys"),
            atomic_map: text("x-kubernetes-map-type") == "atomic",
            rules: map
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(Rule::parse)
                .collect(),
            format: text("format"),
            pattern: Some(text("pattern"))
                .filter(|text| !text.is_empty())
                .map(|text| Pattern { regex: crate::pattern::compile(&text).ok(), text }),
            values: map.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            min_length: count("minLength"),
            max_length: count("maxLength"),
            min_items: count("minItems"),
            max_items: count("maxItems"),
            min_properties: count("minProperties"),
            max_properties: count("maxProperties"),
            unique_items: flag("uniqueItems"),
            required: texts("required"),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: one("not"),
        };
        let mut all_of = std::mem::take(&mut read.all_of);
        for schema in &mut all_of {
            read.take_rules(schema);
        }
        read.all_of = all_of;
        read
    }

    /// Rules may stand in `allOf`, where there are no types: they are this schema's own.
    fn take_rules(&mut self, from: &mut Self) {
        self.rules.append(&mut from.rules);
        for (name, from) in &mut from.properties {
            if let Some(own) = self.properties.get_mut(name) {
                own.take_rules(from);
            }
        }
        if let (Some(own), Some(from)) = (&mut self.items, &mut from.items) {
            own.take_rules(from);
        }
        if let (Some(Additional::Of(own)), Some(Additional::Of(from))) =
            (&mut self.additional, &mut from.additional)
        {
            own.take_rules(from);
        }
    }

    /// The schema of a map's entry or an object's field.
    pub fn child(&self, name: &str) -> Option<&Self> {
        if let Some(found) = self.properties.get(name) {
            return Some(found);
        }
        match &self.additional {
            Some(Additional::Of(schema)) => Some(schema),
            _ => None,
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let text = |key: &str| rule.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Self {
            rule: text("rule"),
            message: text("message"),
            message_expression: text("messageExpression"),
            reason: text("reason"),
            field_path: text("fieldPath"),
            optional_old_self: rule
                .get("optionalOldSelf")
                .and_then(Value::as_bool)
                .unwrap_or_default(),
        }
    }
}
