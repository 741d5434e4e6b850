//! What an expression may cost at worst, from the limits that the schema sets: so that a rule that could
//! hold up the server is refused before it is ever run.
//!
//! Source: `checker.Cost` of `cel-go`, `pkg/apiserver/schema/cel/model` of apiextensions-apiserver and
//! `k8s.io/apiserver/pkg/cel`.

use super::ast::{Expr, Fold, Literal, Node};
use super::check::Type;
use crate::structural::{Additional, Structural};

/// What one rule may be estimated to cost (`StaticEstimatedCostLimit`).
pub const RULE_LIMIT: u64 = 10_000_000;
/// What all rules of a schema may be estimated to cost (`StaticEstimatedCRDCostLimit`).
pub const SCHEMA_LIMIT: u64 = 100_000_000;
/// By how much a limit must be passed before somebody's definition is refused: people tune their rules until
/// upstream takes them, and where types are not known here this may estimate a little more than upstream.
pub(super) const SLACK: u64 = 2;
/// No request is longer, so no value in one is (`DefaultMaxRequestSizeBytes`).
const REQUEST_BYTES: u64 = 3 << 20;
const LIST_COST: u64 = 10;
const MAP_COST: u64 = 30;
const STRUCT_COST: u64 = 40;
/// The digits of a number.
const NUMBER_CHARACTERS: u64 = 20;
/// The size of what is not known: a rule is refused only for what its schema says.
const UNKNOWN: u64 = 1;

/// A value of which only the shape is known.
#[derive(Clone)]
enum Shape<'s> {
    /// A value of a schema.
    Of(&'s Structural),
    /// A list of at most so many.
    List(u64, Box<Shape<'s>>),
    /// A text of at most so many bytes.
    Text(u64),
    /// A number, a boolean.
    Small,
    /// A key of a map, of which upstream's types have no length.
    Key,
    /// Anything.
    Any,
}

impl<'s> Shape<'s> {
    fn of(kind: &Type<'s>) -> Self {
        match kind {
            Type::Of(schema) => Self::Of(schema),
            _ => Self::Any,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Of(schema) => max_elements(schema),
            Self::List(size, _) | Self::Text(size) => *size,
            Self::Small => 1,
            Self::Key => 0,
            Self::Any => UNKNOWN,
        }
    }

    /// Whether it is a map with keys of the client's choice.
    fn is_map(&self) -> bool {
        matches!(self, Self::Of(schema) if schema.kind == "object" && schema.items.is_none())
    }

    fn item(&self) -> Self {
        match self {
            Self::List(_, item) => item.as_ref().clone(),
            Self::Of(schema) => match (&schema.items, &schema.additional) {
                (Some(items), _) => Self::Of(items),
                (_, Some(Additional::Of(values))) => Self::Of(values),
                _ => Self::Any,
            },
            _ => Self::Any,
        }
    }

    fn field(&self, name: &str) -> Self {
        let Self::Of(schema) = self else { return Self::Any };
        if let Some(Additional::Of(values)) = &schema.additional {
            return Self::Of(values);
        }
        let plain = name
            .replace("__dot__", ".")
            .replace("__dash__", "-")
            .replace("__slash__", "/")
            .replace("__underscores__", "__");
        let word = name.strip_prefix("__").and_then(|n| n.strip_suffix("__")).unwrap_or(name);
        let found = [name, plain.as_str(), word].iter().find_map(|n| schema.properties.get(*n));
        match found {
            Some(found) => Self::Of(found),
            // Of the metadata of an object there are names, whose length upstream does not look at.
            None if matches!(name, "name" | "generateName" | "kind" | "apiVersion") => {
                Self::Text(REQUEST_BYTES - 2)
            }
            None => Self::Any,
        }
    }

    /// Whether reading through it costs by its length.
    fn is_long(&self) -> bool {
        match self {
            Self::Text(_) | Self::Key | Self::Any => true,
            Self::Of(schema) => matches!(schema.kind.as_str(), "string" | ""),
            Self::List(..) | Self::Small => false,
        }
    }
}

/// The most bytes, items or entries that a value can have; of a value that has none of them, nothing.
fn max_elements(schema: &Structural) -> u64 {
    let room = REQUEST_BYTES - 2;
    match schema.kind.as_str() {
        "array" => schema
            .max_items
            .unwrap_or_else(|| room / (schema.items.as_deref().map_or(1, min_bytes) + 1)),
        "object" => match &schema.additional {
            Some(Additional::Of(values)) => {
                schema.max_properties.unwrap_or_else(|| room / (min_bytes(values) + 6))
            }
            _ => 0,
        },
        "string" => match (schema.max_length, schema.format.as_str()) {
            // A character takes up to four bytes.
            (Some(length), _) => length.saturating_mul(4),
            (None, "date") => 12,
            (None, "date-time") => 32,
            (None, "duration") => 32,
            (None, _) if !schema.values.is_empty() => schema
                .values
                .iter()
                .filter_map(|value| value.as_str())
                .map(|text| text.len() as u64)
                .max()
                .unwrap_or(0),
            (None, _) => room,
        },
        "integer" | "number" | "boolean" => 0,
        _ if schema.int_or_string => schema.max_length.map_or(room, |l| l.saturating_mul(4)),
        _ => room,
    }
}

/// The fewest bytes that a value takes in a request.
fn min_bytes(schema: &Structural) -> u64 {
    match schema.kind.as_str() {
        "boolean" => 4,
        "string" => match schema.format.as_str() {
            "date" => 12,
            "date-time" => 21,
            "duration" => 4,
            _ => 2 + schema.min_length.unwrap_or(0),
        },
        "object" if schema.additional.is_none() => {
            let required = schema.required.iter().filter_map(|name| {
                let below = schema.properties.get(name).filter(|p| p.default.is_none())?;
                Some(name.len() as u64 + min_bytes(below) + 4)
            });
            2 + required.sum::<u64>()
        }
        "object" | "array" => 2,
        _ => 1,
    }
}

/// How many values of a schema there can be where nothing says how many.
pub(super) fn unbounded_count(schema: &Structural) -> u64 {
    REQUEST_BYTES / (min_bytes(schema) + 1)
}

/// By how much a schema multiplies what lies in it; `None` when nothing limits it.
pub(super) fn factor(schema: &Structural) -> Option<u64> {
    match (schema.kind.as_str(), &schema.additional) {
        ("array", _) => schema.max_items,
        ("object", Some(Additional::Of(_))) => schema.max_properties,
        _ => Some(1),
    }
}

/// The greatest cost of an expression over `names`.
pub(super) fn cost(node: &Node, names: &[(String, Type<'_>)]) -> u64 {
    let names = names.iter().map(|(name, kind)| (name.clone(), Shape::of(kind))).collect();
    Estimator { names }.of(node).0
}

struct Estimator<'s> {
    names: Vec<(String, Shape<'s>)>,
}

/// So many bytes, read through at a tenth each.
fn traversal(size: u64) -> u64 {
    size.div_ceil(10)
}

impl<'s> Estimator<'s> {
    fn of(&mut self, node: &Node) -> (u64, Shape<'s>) {
        match &node.expr {
            Expr::Literal(literal) => (
                0,
                match literal {
                    Literal::Text(text) => Shape::Text(text.len() as u64),
                    Literal::Bytes(bytes) => Shape::Text(bytes.len() as u64),
                    _ => Shape::Small,
                },
            ),
            Expr::Ident(name) => {
                let known = self.names.iter().rev().find(|(known, _)| known == name);
                (1, known.map_or(Shape::Any, |(_, shape)| shape.clone()))
            }
            Expr::Select { of, field, .. } => {
                let (cost, of) = self.of(of);
                (cost.saturating_add(1), of.field(field))
            }
            // Asking whether a field is there costs nothing beyond getting to it.
            Expr::Has { of, .. } => (self.of(of).0, Shape::Small),
            Expr::Index { of, index, .. } => {
                let (cost, of) = self.of(of);
                (cost.saturating_add(self.of(index).0).saturating_add(1), of.item())
            }
            Expr::And(a, b) | Expr::Or(a, b) => {
                (self.of(a).0.saturating_add(self.of(b).0), Shape::Small)
            }
            Expr::If(condition, yes, no) => {
                let (yes, shape) = self.of(yes);
                let (no, other) = self.of(no);
                let cost = self.of(condition).0.saturating_add(yes.max(no));
                (cost, if shape.size() >= other.size() { shape } else { other })
            }
            Expr::List(items) => {
                let (mut cost, mut item) = (LIST_COST, Shape::Any);
                for (_, node) in items {
                    let (more, shape) = self.of(node);
                    cost = cost.saturating_add(more);
                    item = shape;
                }
                (cost, Shape::List(items.len() as u64, Box::new(item)))
            }
            Expr::Map(entries) => {
                let parts = entries.iter().flat_map(|(_, key, value)| [key, value]);
                let cost = parts.fold(MAP_COST, |cost, part| cost.saturating_add(self.of(part).0));
                (cost, Shape::List(entries.len() as u64, Box::new(Shape::Any)))
            }
            Expr::Struct(_, fields) => {
                let values = fields.iter().map(|(_, _, value)| value);
                let cost = values.fold(STRUCT_COST, |cost, v| cost.saturating_add(self.of(v).0));
                (cost, Shape::Any)
            }
            Expr::Call { target, name, args } => self.call(target.as_deref(), name, args),
            Expr::Fold { kind, range, key, value, condition, step } => {
                self.fold(*kind, range, [Some(key), value.as_ref()], condition.as_deref(), step)
            }
            Expr::OptMap { target, name, step, .. } => {
                let (cost, shape) = self.of(target);
                self.names.push((name.clone(), shape));
                let (more, shape) = self.of(step);
                self.names.pop();
                (cost.saturating_add(more).saturating_add(1), shape)
            }
        }
    }

    fn fold(
        &mut self,
        kind: Fold,
        range: &Node,
        names: [Option<&String>; 2],
        condition: Option<&Node>,
        step: &Node,
    ) -> (u64, Shape<'s>) {
        let (cost, range) = self.of(range);
        let item = range.item();
        let before = self.names.len();
        let is_map = range.is_map();
        // Over a map one name alone stands for the key; a list's second one for the item.
        match names {
            [Some(key), Some(value)] => {
                let first = if is_map { Shape::Key } else { Shape::Small };
                self.names.push((key.clone(), first));
                self.names.push((value.clone(), item.clone()));
            }
            [Some(key), None] => {
                let shape = if is_map { Shape::Key } else { item.clone() };
                self.names.push((key.clone(), shape));
            }
            _ => {}
        }
        let mut each = condition.map_or(0, |condition| self.of(condition).0);
        let (step, made) = self.of(step);
        self.names.truncate(before);
        // Reading and testing what has been gathered, and, of lists, adding to it.
        let (around, bookkeeping) = match kind {
            Fold::All => (1, 3),
            Fold::Exists => (1, 4),
            Fold::ExistsOne => (2, 2),
            Fold::Filter => (1 + LIST_COST, 3 + LIST_COST),
            Fold::Map | Fold::SortBy => (1 + LIST_COST, 2 + LIST_COST),
            Fold::TransformMap | Fold::TransformEntries => (1 + MAP_COST, 2),
        };
        each = each.saturating_add(step).saturating_add(bookkeeping);
        let total = cost.saturating_add(range.size().saturating_mul(each)).saturating_add(around);
        let shape = match kind {
            Fold::All | Fold::Exists | Fold::ExistsOne => Shape::Small,
            Fold::Filter | Fold::SortBy => Shape::List(range.size(), Box::new(item)),
            Fold::Map => Shape::List(range.size(), Box::new(made)),
            Fold::TransformMap | Fold::TransformEntries => {
                Shape::List(range.size(), Box::new(Shape::Any))
            }
        };
        (total, shape)
    }

    fn call(&mut self, target: Option<&Node>, name: &str, args: &[Node]) -> (u64, Shape<'s>) {
        let (mut cost, mut shapes) = (0_u64, Vec::new());
        for node in target.into_iter().chain(args) {
            let (more, shape) = self.of(node);
            cost = cost.saturating_add(more);
            shapes.push(shape);
        }
        let size = |index: usize| shapes.get(index).map_or(0, Shape::size);
        let is_text = |index: usize| shapes.get(index).is_some_and(Shape::is_long);
        let is_map = |index: usize| shapes.get(index).is_some_and(Shape::is_map);
        let element = || shapes.first().map_or(Shape::Any, Shape::item);
        let (own, made) = match name {
            "in" if is_map(1) => (1, Shape::Small),
            "in" => (size(1), Shape::Small),
            "==" | "!=" => (traversal(size(0).min(size(1))), Shape::Small),
            "<" | "<=" | ">" | ">=" if is_text(0) && is_text(1) => {
                (traversal(size(0).min(size(1))), Shape::Small)
            }
            "+" => {
                let sum = size(0).saturating_add(size(1));
                match &shapes[..] {
                    [Shape::List(_, item), _] => (1, Shape::List(sum, item.clone())),
                    [first, _] if first.is_long() => (traversal(sum), Shape::Text(sum)),
                    [Shape::Of(schema), _] if schema.kind == "array" => {
                        (1, Shape::List(sum, Box::new(element())))
                    }
                    [first, _] => (1, first.clone()),
                    _ => (1, Shape::Any),
                }
            }
            "startsWith" | "endsWith" => (traversal(size(1)), Shape::Small),
            "contains" if is_text(0) => {
                (traversal(size(0)).saturating_mul(traversal(size(1))), Shape::Small)
            }
            "matches" | "find" | "findAll" => {
                let text = traversal(size(0).saturating_add(1));
                let pattern = size(1).div_ceil(4);
                let made = match name {
                    "matches" => Shape::Small,
                    "find" => Shape::Text(size(0)),
                    _ => Shape::List(size(0), Box::new(Shape::Text(size(0)))),
                };
                (text.saturating_mul(pattern), made)
            }
            "lowerAscii" | "upperAscii" | "trim" | "substring" => {
                (traversal(size(0)), Shape::Text(size(0)))
            }
            "charAt" => (1, Shape::Text(4)),
            // Numbers, too, become texts.
            "string" => (1, Shape::Text(size(0).max(NUMBER_CHARACTERS))),
            "replace" => (size(0).div_ceil(5), Shape::Text(replaced(size(0), size(1), size(2)))),
            "split" => {
                let limit = args.get(1).and_then(|arg| match &arg.expr {
                    Expr::Literal(Literal::Int(limit)) => u64::try_from(*limit).ok(),
                    _ => None,
                });
                let parts = Box::new(Shape::Text(size(0)));
                (size(0).div_ceil(5), Shape::List(limit.unwrap_or(size(0)), parts))
            }
            "join" => {
                let each = element().size().saturating_add(size(1));
                let made = size(0).saturating_mul(each);
                (traversal(made), Shape::Text(made))
            }
            "indexOf" | "lastIndexOf" if is_text(0) => (traversal(size(0)), Shape::Small),
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => {
                let item = element();
                let each = if item.is_long() { 1 + traversal(item.size()) } else { 1 };
                (size(0).saturating_mul(each), Shape::Small)
            }
            "url" | "isURL" | "quantity" | "isQuantity" | "ip" | "isIP" | "cidr" | "isCIDR"
            | "semver" | "isSemver" => (traversal(size(0)), Shape::Small),
            "size" | "int" | "uint" | "double" | "bool" | "duration" | "timestamp" => {
                (1, Shape::Small)
            }
            _ => (1, Shape::Any),
        };
        (cost.saturating_add(own), made)
    }
}

/// The length of a text of at most `text` bytes in which others take the place of parts: the shortest parts
/// replaced by the longest texts.
fn replaced(text: u64, part: u64, by: u64) -> u64 {
    match part {
        0 => text.saturating_add(1).saturating_mul(by).saturating_add(text),
        part if by <= part => text,
        part => text.div_ceil(part).saturating_mul(by),
    }
}

/// Tells that a cost is over its limit, and by how much.
pub(super) fn over(what: &str, cost: u64, limit: u64) -> String {
    let times = cost as f64 / limit as f64;
    let factor = if times > 100.0 {
        "more than 100x".to_owned()
    } else if times < 1.5 {
        format!("{times:.6}x")
    } else {
        format!("{times:.1}x")
    };
    format!(
        "{what} exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)"
    )
}
