//! How a value is taken apart, as the schema says: as one leaf, as a list of items that have names of
//! their own, or as fields.
//!
//! Source: the conversion of OpenAPI to `structured-merge-diff`'s schema, `k8s.io/kube-openapi/pkg/schemaconv`.

use serde_json::Value;

use super::element;
use crate::schema::{self, Field, ListType, Schema, Shape, Text, Type, TypeId};

/// A place in an object, as the schema sees it.
#[derive(Clone, Copy, Debug)]
pub struct Typed<'s> {
    schema: &'s Schema,
    of: Of<'s>,
}

#[derive(Clone, Copy, Debug)]
enum Of<'s> {
    /// Whatever the value itself is: objects are granular, lists are atomic.
    Deduced,
    /// A kind.
    Root(TypeId),
    /// A field or item; list and map facts stand on the field.
    Shape(&'s Shape, Option<&'s Field>),
}

/// What the fields of an object are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fields<'s> {
    Struct(&'s Type, &'s Schema),
    Map(Typed<'s>),
}

/// What names the items of a list.
#[derive(Clone, Copy, Debug)]
pub(super) enum Names<'s> {
    Themselves,
    Keys(&'s [Text]),
    /// `patchMergeKey`, where the table has no list type.
    Key(&'s Text),
}

/// How a value is taken apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Atom<'s> {
    Leaf,
    Items(Names<'s>, Typed<'s>),
    Fields(Fields<'s>),
}

impl<'s> Typed<'s> {
    /// An object of a kind.
    pub fn kind(schema: &'s Schema, of: TypeId) -> Self {
        Self { schema, of: Of::Root(of) }
    }

    /// An object nobody has described.
    pub fn deduced() -> Self {
        Self { schema: schema::builtin(), of: Of::Deduced }
    }

    /// Whether it is an object of a kind that the server brings along.
    pub(super) fn is_builtin_kind(self) -> bool {
        matches!(self.of, Of::Root(_)) && std::ptr::eq(self.schema, schema::builtin())
    }

    fn at(self, of: Of<'s>) -> Self {
        Self { schema: self.schema, of }
    }

    fn object(self, id: TypeId, field: Option<&'s Field>) -> Atom<'s> {
        let of = self.schema.get(id);
        match field.and_then(|field| field.atomic_map) {
            Some(true) => Atom::Leaf,
            None if of.atomic => Atom::Leaf,
            _ => Atom::Fields(Fields::Struct(of, self.schema)),
        }
    }

    fn list(self, item: &'s Shape, field: Option<&'s Field>) -> Atom<'s> {
        let Some(field) = field else { return Atom::Leaf };
        let items = self.at(Of::Shape(item, field.inner.as_deref()));
        match field.list_type {
            Some(ListType::Map) => Atom::Items(Names::Keys(&field.list_map_keys), items),
            Some(ListType::Set) => Atom::Items(Names::Themselves, items),
            None if field.patch.merge => match &field.merge_key {
                Some(key) => Atom::Items(Names::Key(key), items),
                None => Atom::Items(Names::Themselves, items),
            },
            _ => Atom::Leaf,
        }
    }

    /// How a value of this type is taken apart, whatever the value is.
    fn declared(self) -> Option<Atom<'s>> {
        Some(match self.of {
            Of::Deduced | Of::Shape(Shape::Any, _) => return None,
            Of::Root(id) => self.object(id, None),
            Of::Shape(Shape::Object(id), field) => self.object(*id, field),
            Of::Shape(Shape::List(item), field) => self.list(item, field),
            Of::Shape(Shape::Map(item), field) => {
                if field.is_some_and(|field| field.atomic_map == Some(true)) {
                    Atom::Leaf
                } else {
                    let inner = field.and_then(|field| field.inner.as_deref());
                    Atom::Fields(Fields::Map(self.at(Of::Shape(item, inner))))
                }
            }
            Of::Shape(..) => Atom::Leaf,
        })
    }

    /// How `value` is taken apart; a value of another form than the declared one is a leaf.
    pub(super) fn atom(self, value: &Value) -> Atom<'s> {
        match (self.declared(), value) {
            (None, Value::Object(_)) => Atom::Fields(Fields::Map(self.at(Of::Deduced))),
            (Some(Atom::Fields(fields)), Value::Object(_) | Value::Null) => Atom::Fields(fields),
            (Some(Atom::Items(names, items)), Value::Array(_) | Value::Null) => {
                Atom::Items(names, items)
            }
            _ => Atom::Leaf,
        }
    }

    /// How sets of fields below this place are to be read.
    pub(super) fn schema_atom(self) -> Atom<'s> {
        self.declared().unwrap_or_else(|| Atom::Fields(Fields::Map(self.at(Of::Deduced))))
    }

    /// Whether a schema says what this is.
    pub(super) fn is_declared(self) -> bool {
        self.declared().is_some()
    }

    /// The type of a list's items, also of one that is owned as a whole.
    pub(super) fn items(self) -> Option<Self> {
        let Of::Shape(Shape::List(item), field) = self.of else { return None };
        Some(self.at(Of::Shape(item, field.and_then(|field| field.inner.as_deref()))))
    }

    /// The fields of an object, also of one that is owned as a whole.
    pub(super) fn fields(self) -> Option<Fields<'s>> {
        match self.of {
            Of::Root(id) => Some(Fields::Struct(self.schema.get(id), self.schema)),
            Of::Shape(Shape::Object(id), _) => {
                Some(Fields::Struct(self.schema.get(*id), self.schema))
            }
            Of::Shape(Shape::Map(item), field) => {
                let inner = field.and_then(|field| field.inner.as_deref());
                Some(Fields::Map(self.at(Of::Shape(item, inner))))
            }
            _ => None,
        }
    }

    /// What is wrong with the form of `value`, in upstream's words; `None` when it fits.
    pub(super) fn mistake(self, value: &Value) -> Option<String> {
        if value.is_null() {
            return None;
        }
        let shape = match self.of {
            Of::Deduced | Of::Shape(Shape::Any, _) => return None,
            Of::Root(_) => {
                return (!value.is_object())
                    .then(|| format!("expected map, got &{{{}}}", go(value)));
            }
            Of::Shape(shape, _) => shape,
        };
        let wrong = match shape {
            Shape::Object(_) | Shape::Map(_) if !value.is_object() => "map",
            Shape::List(_) if !value.is_array() => "list",
            Shape::Int32 | Shape::Int64 | Shape::Double if !value.is_number() => {
                return Some("expected numeric (int or float), got value.valueUnstructured".into());
            }
            Shape::String | Shape::Bytes if !value.is_string() => {
                return Some(format!(
                    "expected string, got &value.valueUnstructured{{Value:{}}}",
                    go_syntax(value)
                ));
            }
            Shape::Bool if !value.is_boolean() => {
                return Some(format!("expected boolean, got &{{{}}}", go(value)));
            }
            Shape::Quantity | Shape::IntOrString | Shape::Time | Shape::MicroTime
                if value.is_object() || value.is_array() =>
            {
                return Some(format!("expected scalar, got &{{{}}}", go(value)));
            }
            _ => return None,
        };
        Some(format!("expected {wrong}, got &{{{}}}", go(value)))
    }

    /// What an absent key of this list's items is taken for.
    fn default_of(self, key: &str) -> Option<Value> {
        let Of::Shape(Shape::List(item), _) = self.of else { return None };
        let Shape::Object(id) = &**item else { return None };
        self.schema.get(*id).field(key)?.default.clone()
    }

    /// The step to an item of a list.
    pub(super) fn step(self, names: Names<'s>, value: &Value) -> Result<String, String> {
        // The only keys with a default among the built-in kinds are the protocols of ports.
        let default =
            |key: &str| self.default_of(key).or((key == "protocol").then(|| Value::from("TCP")));
        match names {
            Names::Themselves => element::item(value),
            Names::Keys(keys) => element::keyed(keys, value, default),
            Names::Key(key) => element::keyed(std::slice::from_ref(key), value, default),
        }
    }
}

impl<'s> Fields<'s> {
    /// The type of the field `name`; `None` where it is not declared.
    pub(super) fn child(self, name: &str) -> Option<Typed<'s>> {
        match self {
            Self::Map(value) => Some(value),
            Self::Struct(of, schema) => match of.field(name) {
                Some(field) => Some(Typed { schema, of: Of::Shape(&field.shape, Some(field)) }),
                None => of.preserve_unknown.then_some(Typed { schema, of: Of::Deduced }),
            },
        }
    }

    /// Whether `name` is a declared field rather than a key of a map.
    pub(super) fn declares(self, name: &str) -> bool {
        matches!(self, Self::Struct(of, _) if of.field(name).is_some())
    }

    /// What stands for an absent field in an object that is there: Go's zero values.
    pub(super) fn zero(self, name: &str) -> Option<&'s Value> {
        match self {
            Self::Struct(of, _) => of.zero(name),
            Self::Map(_) => None,
        }
    }
}

/// A value as Go's `%v` prints it.
fn go(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go(v))).collect();
            format!("map[{}]", entries.join(" "))
        }
        Value::Null => "<nil>".into(),
        other => other.to_string(),
    }
}

/// A value as Go's `%#v` prints it.
fn go_syntax(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(go_syntax).collect();
            format!("[]interface {{}}{{{}}}", items.join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(k, v)| format!("{k:?}:{}", go_syntax(v))).collect();
            format!("map[string]interface {{}}{{{}}}", entries.join(", "))
        }
        Value::Null => "interface {}(nil)".into(),
        other => other.to_string(),
    }
}
