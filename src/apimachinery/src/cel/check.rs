//! What can be said of an expression before it runs: names that nothing declares, fields that a schema
//! does not have, operators between types that do not go together, the type of the outcome.

use super::ast::{Expr, Fold, Literal, Node};
use super::library;
use super::overloads::{self, Found};
use super::parser::dotted;
use crate::structural::{Additional, Structural};

/// A type, as far as it is known.
#[derive(Clone, Debug, Default)]
pub enum Type<'s> {
    /// Anything.
    #[default]
    Dyn,
    /// A scalar by its name: `bool`, `int`, `string`, …
    Plain(&'static str),
    /// A value of a schema.
    Of(&'s Structural),
    /// The metadata of an object, of which only the names are known.
    Metadata,
    /// A list of something.
    List(Box<Type<'s>>),
    /// A map from something to something.
    Map(Box<Type<'s>>, Box<Type<'s>>),
    /// Something that may not be there.
    Optional(Box<Type<'s>>),
    /// The type itself.
    Kind(Box<Type<'s>>),
}

/// What is wrong, and where.
pub(super) type Mistake = (usize, String);

type Checked<'s> = Result<Type<'s>, Mistake>;

/// Names in view.
pub(super) struct Checker<'s> {
    names: Vec<(String, Type<'s>)>,
    root: Option<&'s Structural>,
}

impl Type<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain(name) => name,
            Self::List(_) => "list",
            Self::Map(..) => "map",
            Self::Optional(_) => "optional_type",
            Self::Kind(_) => "type",
            Self::Metadata => "object",
            Self::Dyn => "dyn",
            Self::Of(schema) if schema.int_or_string => "dyn",
            Self::Of(schema) => match (schema.kind.as_str(), schema.format.as_str()) {
                ("string", "date-time" | "date") => "timestamp",
                ("string", "duration") => "duration",
                ("string", "byte") => "bytes",
                ("string", _) => "string",
                ("integer", _) => "int",
                ("number", _) => "double",
                ("boolean", _) => "bool",
                ("array", _) => "list",
                ("object", _) => match &schema.additional {
                    Some(Additional::Of(_)) => "map",
                    _ => "object",
                },
                _ => "dyn",
            },
        }
    }

    /// The type without its schema, except for that of an object.
    pub(super) fn resolved(&self) -> Self {
        let Self::Of(schema) = self else { return self.clone() };
        match self.name() {
            "dyn" => Self::Dyn,
            "list" => Self::List(Box::new(schema.items.as_deref().map_or(Self::Dyn, Self::Of))),
            "map" => match &schema.additional {
                Some(Additional::Of(values)) => {
                    Self::Map(Box::new(Self::Plain("string")), Box::new(Self::Of(values)))
                }
                _ => Self::Dyn,
            },
            "object" => self.clone(),
            plain => Self::Plain(plain),
        }
    }

    /// As upstream's messages have it, but for the names of objects.
    pub(super) fn shown(&self) -> String {
        match self.resolved() {
            Self::List(item) => format!("list({})", item.shown()),
            Self::Map(key, value) => format!("map({}, {})", key.shown(), value.shown()),
            Self::Optional(inner) => format!("optional_type({})", inner.shown()),
            Self::Kind(of) => format!("type({})", of.shown()),
            other => other.name().to_owned(),
        }
    }

    /// Whether a value of `other` may stand where this type is.
    pub(super) fn takes(&self, other: &Self) -> bool {
        match (self.resolved(), other.resolved()) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            // What Go holds by a pointer may be null, and no plain value.
            (Self::Plain("null"), other) | (other, Self::Plain("null")) => match other {
                Self::Plain(name) => {
                    matches!(name, "null" | "timestamp" | "duration") || name.contains('.')
                }
                other => !matches!(other, Self::List(_) | Self::Map(..) | Self::Kind(_)),
            },
            (Self::Plain(a), Self::Plain(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Optional(a), Self::Optional(b)) => a.takes(&b),
            (Self::Map(a, c), Self::Map(b, d)) => a.takes(&b) && c.takes(&d),
            (Self::Of(a), Self::Of(b)) => {
                std::ptr::eq(a, b) || a.properties.keys().eq(b.properties.keys())
            }
            (Self::Metadata | Self::Of(_), Self::Metadata | Self::Of(_))
            | (Self::Kind(_), Self::Kind(_)) => true,
            _ => false,
        }
    }

    fn is(&self, name: &str) -> bool {
        matches!(self.resolved(), Self::Dyn) || self.name() == name
    }
}

impl<'s> Checker<'s> {
    pub(super) fn new(names: Vec<(String, Type<'s>)>, root: Option<&'s Structural>) -> Self {
        Self { names, root }
    }

    pub(super) fn check(&mut self, node: &Node) -> Result<&'static str, Mistake> {
        Ok(self.of(node)?.name())
    }

    fn lookup(&self, name: &str) -> Option<Type<'s>> {
        self.names.iter().rev().find(|(known, _)| known == name).map(|(_, t)| t.clone())
    }

    fn of(&mut self, node: &Node) -> Checked<'s> {
        Ok(match &node.expr {
            Expr::Literal(literal) => Type::Plain(match literal {
                Literal::Null => "null",
                Literal::Bool(_) => "bool",
                Literal::Int(_) => "int",
                Literal::Uint(_) => "uint",
                Literal::Double(_) => "double",
                Literal::Text(_) => "string",
                Literal::Bytes(_) => "bytes",
            }),
            Expr::Ident(name) => match self.lookup(name) {
                Some(known) => known,
                None if matches!(
                    name.as_str(),
                    "bool"
                        | "int"
                        | "uint"
                        | "double"
                        | "string"
                        | "bytes"
                        | "list"
                        | "map"
                        | "null_type"
                        | "type"
                ) =>
                {
                    let of = match name.as_str() {
                        "bool" => Type::Plain("bool"),
                        "int" => Type::Plain("int"),
                        "uint" => Type::Plain("uint"),
                        "double" => Type::Plain("double"),
                        "string" => Type::Plain("string"),
                        "bytes" => Type::Plain("bytes"),
                        _ => Type::Dyn,
                    };
                    Type::Kind(Box::new(of))
                }
                None => {
                    return Err((
                        node.at,
                        format!("undeclared reference to '{name}' (in container '')"),
                    ));
                }
            },
            Expr::Select { of, field, optional } => {
                if dotted(node).is_some_and(|name| {
                    name.starts_with("google.protobuf.")
                        || name.starts_with("kubernetes.")
                        || name.starts_with("net.")
                }) && matches!(root_of(of), Some(n) if self.lookup(n).is_none())
                {
                    return Ok(Type::Dyn);
                }
                let of = self.of(of)?;
                let found = self.field(&of, field, node.at)?;
                match found {
                    Type::Optional(_) => found,
                    found if *optional => Type::Optional(Box::new(found)),
                    found => found,
                }
            }
            Expr::Has { of, field } => {
                let of = self.of(of)?;
                self.field(&of, field, node.at)?;
                Type::Plain("bool")
            }
            Expr::Index { of, index, optional } => {
                let of = self.of(of)?;
                let index = self.of(index)?;
                indexed(node.at, &of, &index, *optional)?
            }
            Expr::And(a, b) | Expr::Or(a, b) => {
                for side in [a, b] {
                    let found = self.of(side)?;
                    wanted(side.at, &Type::Plain("bool"), &found)?;
                }
                Type::Plain("bool")
            }
            Expr::If(condition, yes, no) => {
                let (condition, yes, no) = (self.of(condition)?, self.of(yes)?, self.of(no)?);
                if !condition.is("bool") || !(yes.takes(&no) || no.takes(&yes)) {
                    return Err(mismatch(node.at, "_?_:_", &[&condition, &yes, &no]));
                }
                if yes.shown() == no.shown() { yes } else { Type::Dyn }
            }
            Expr::List(items) => {
                let mut of = None;
                for (optional, item) in items {
                    self.joined(&mut of, *optional, item)?;
                }
                Type::List(Box::new(of.unwrap_or_default()))
            }
            Expr::Map(entries) => {
                let (mut keys, mut values) = (None, None);
                for (optional, key, value) in entries {
                    self.joined(&mut keys, false, key)?;
                    self.joined(&mut values, *optional, value)?;
                }
                Type::Map(Box::new(keys.unwrap_or_default()), Box::new(values.unwrap_or_default()))
            }
            Expr::Struct(_, fields) => {
                for (_, _, value) in fields {
                    self.of(value)?;
                }
                Type::Dyn
            }
            Expr::Call { target, name, args } => self.call(node, target.as_deref(), name, args)?,
            Expr::Fold { kind, range, key, value, condition, step } => {
                let at = range.at;
                let range = self.of(range)?;
                let (first, second) = match range.resolved() {
                    Type::List(item) if value.is_some() => (Type::Plain("int"), *item),
                    Type::List(item) => (*item, Type::Dyn),
                    Type::Map(key, value) => (*key, *value),
                    Type::Dyn => (Type::Dyn, Type::Dyn),
                    other => {
                        let detail = format!(
                            "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                            other.shown()
                        );
                        return Err((at, detail));
                    }
                };
                let before = self.names.len();
                self.names.push((key.clone(), first.clone()));
                if let Some(name) = value {
                    self.names.push((name.clone(), second));
                }
                let checked = condition.as_ref().map_or(Ok(Type::Dyn), |found| self.of(found));
                let made = self.of(step);
                self.names.truncate(before);
                let (checked, made) = (checked?, made?);
                chosen(node.at, *kind, &checked, &first, &made)?;
                match kind {
                    Fold::All | Fold::Exists => {
                        wanted(step.at, &Type::Plain("bool"), &made)?;
                        Type::Plain("bool")
                    }
                    Fold::ExistsOne => Type::Plain("bool"),
                    Fold::Filter | Fold::SortBy => Type::List(Box::new(first)),
                    Fold::Map => Type::List(Box::new(made)),
                    Fold::TransformMap => Type::Map(Box::new(first), Box::new(made)),
                    Fold::TransformEntries => Type::Dyn,
                }
            }
            Expr::OptMap { target, name, step, flat } => {
                let inner = match self.of(target)? {
                    Type::Optional(inner) => *inner,
                    _ => Type::Dyn,
                };
                self.names.push((name.clone(), inner));
                let made = self.of(step);
                self.names.pop();
                let made = made?;
                if *flat { made } else { Type::Optional(Box::new(made)) }
            }
        })
    }

    /// Takes a further item in, whose type must be that of those before.
    fn joined(
        &mut self,
        of: &mut Option<Type<'s>>,
        optional: bool,
        item: &Node,
    ) -> Result<(), Mistake> {
        let found = match self.of(item)? {
            Type::Optional(inner) if optional => *inner,
            found => found,
        };
        if let Some(before) = of {
            wanted(item.at, before, &found)
        } else {
            *of = Some(found);
            Ok(())
        }
    }

    fn field(&self, of: &Type<'s>, name: &str, at: usize) -> Checked<'s> {
        let undefined = || Err((at, format!("undefined field '{name}'")));
        match of {
            Type::Optional(inner) => Ok(Type::Optional(Box::new(self.field(inner, name, at)?))),
            Type::Metadata => match name {
                "name" | "generateName" => Ok(Type::Plain("string")),
                _ => undefined(),
            },
            Type::Of(schema) if schema.kind == "object" => {
                let is_root =
                    schema.embedded || self.root.is_some_and(|root| std::ptr::eq(root, *schema));
                match name {
                    "apiVersion" | "kind" if is_root => return Ok(Type::Plain("string")),
                    "metadata" if is_root && !describes_itself(schema) => {
                        return Ok(Type::Metadata);
                    }
                    _ => {}
                }
                if let Some(Additional::Of(schema)) = &schema.additional {
                    return Ok(Type::Of(schema));
                }
                let plain = name
                    .replace("__dot__", ".")
                    .replace("__dash__", "-")
                    .replace("__slash__", "/")
                    .replace("__underscores__", "__");
                let word =
                    name.strip_prefix("__").and_then(|n| n.strip_suffix("__")).unwrap_or(name);
                for candidate in [name, &plain, word] {
                    // A value without a type has none that a rule could name.
                    if let Some(found) = schema.properties.get(candidate)
                        && (!found.kind.is_empty() || found.int_or_string)
                    {
                        return Ok(Type::Of(found));
                    }
                }
                // Of the root of built-in kinds alone nothing may be known.
                if schema.preserve_unknown && schema.properties.is_empty() && is_root {
                    return Ok(Type::Dyn);
                }
                undefined()
            }
            Type::Plain(kind) => {
                Err((at, format!("type '{kind}' does not support field selection")))
            }
            Type::Of(_) if !matches!(of.name(), "dyn" | "map") => {
                Err((at, format!("type '{}' does not support field selection", of.shown())))
            }
            Type::List(_) => {
                Err((at, format!("type '{}' does not support field selection", of.shown())))
            }
            Type::Map(_, value) => Ok(value.as_ref().clone()),
            _ => Ok(Type::Dyn),
        }
    }

    fn call(
        &mut self,
        node: &Node,
        target: Option<&Node>,
        name: &str,
        args: &[Node],
    ) -> Checked<'s> {
        let mut types = Vec::new();
        let mut whole = name.to_owned();
        let mut is_method = false;
        if let Some(target) = target {
            match dotted(target).filter(|path| library::is_namespace(path)) {
                Some(path) if self.lookup(&path).is_none() => whole = format!("{path}.{name}"),
                _ => {
                    types.push(self.of(target)?);
                    is_method = true;
                }
            }
        }
        for arg in args {
            types.push(match &arg.expr {
                // What is formatted may be of any types.
                Expr::List(items) if is_method && name == "format" => {
                    for (_, item) in items {
                        self.of(item)?;
                    }
                    Type::List(Box::default())
                }
                _ => self.of(arg)?,
            });
        }
        if target.is_none()
            && let Some(found) = operator(node.at, name, &types)?
        {
            return Ok(found);
        }
        let found = if is_method {
            overloads::method(name, &types)
        } else {
            overloads::function(&whole, &types)
        };
        match found {
            Found::Result(result) => Ok(result),
            Found::Mismatch if is_method => {
                let args: Vec<String> = types[1..].iter().map(Type::shown).collect();
                let detail = format!(
                    "found no matching overload for '{name}' applied to '{}.({})'",
                    types[0].shown(),
                    args.join(", ")
                );
                Err((node.at, detail))
            }
            Found::Mismatch => Err(mismatch(node.at, &whole, &types.iter().collect::<Vec<_>>())),
            // Those that take anything.
            Found::Unknown
                if library::is_format(&whole)
                    || whole == "optional.none"
                    || (!is_method && library::is_function(&whole)) =>
            {
                Ok(Type::Dyn)
            }
            Found::Unknown => {
                Err((node.at, format!("undeclared reference to '{name}' (in container '')")))
            }
        }
    }
}

fn root_of(node: &Node) -> Option<&str> {
    match &node.expr {
        Expr::Ident(name) => Some(name),
        Expr::Select { of, .. } => root_of(of),
        _ => None,
    }
}

/// What a macro chooses items by must be a boolean: it stands for a condition.
fn chosen(
    at: usize,
    kind: Fold,
    condition: &Type<'_>,
    item: &Type<'_>,
    made: &Type<'_>,
) -> Result<(), Mistake> {
    let list = |of: &Type<'_>| format!("list({})", of.shown());
    let (found, result) = match kind {
        Fold::ExistsOne => (made, "int".to_owned()),
        Fold::Filter => (made, list(item)),
        _ => (condition, list(made)),
    };
    if found.is("bool") || !matches!(kind, Fold::ExistsOne | Fold::Filter | Fold::Map) {
        return Ok(());
    }
    let detail = format!(
        "found no matching overload for '_?_:_' applied to '({}, {result}, {result})'",
        found.shown()
    );
    Err((at, detail))
}

/// The value must be of the type.
fn wanted(at: usize, want: &Type<'_>, found: &Type<'_>) -> Result<(), Mistake> {
    if want.takes(found) {
        return Ok(());
    }
    Err((at, format!("expected type '{}' but found '{}'", want.shown(), found.shown())))
}

/// `of[index]`, `of[?index]`
fn indexed<'s>(at: usize, of: &Type<'s>, index: &Type<'s>, optional: bool) -> Checked<'s> {
    let label = if optional { "_[?_]" } else { "_[_]" };
    let inner = match of {
        Type::Optional(inner) => inner.resolved(),
        of => of.resolved(),
    };
    let found = match inner {
        Type::Dyn | Type::Metadata => Type::Dyn,
        Type::List(item) if index.is("int") => *item,
        Type::Map(key, value) if key.takes(index) => *value,
        _ => return Err(mismatch(at, label, &[of, index])),
    };
    Ok(if optional || matches!(of, Type::Optional(_)) {
        Type::Optional(Box::new(found))
    } else {
        found
    })
}

fn mismatch(at: usize, op: &str, types: &[&Type<'_>]) -> Mistake {
    let names: Vec<String> = types.iter().map(|t| t.shown()).collect();
    (at, format!("found no matching overload for '{op}' applied to '({})'", names.join(", ")))
}

/// The type an operator makes; `None` if `name` is no operator.
fn operator<'s>(at: usize, name: &str, types: &[Type<'s>]) -> Result<Option<Type<'s>>, Mistake> {
    let [a, b] = types else {
        let [of] = types else { return Ok(None) };
        return match name {
            "!" if of.is("bool") => Ok(Some(Type::Plain("bool"))),
            "-_" if of.is("int") || of.is("double") => Ok(Some(of.resolved())),
            "!" => Err(mismatch(at, "!_", &[of])),
            "-_" => Err(mismatch(at, "-_", &[of])),
            _ => Ok(None),
        };
    };
    let label = match name {
        "==" | "!=" | "<" | "<=" | ">" | ">=" | "+" | "-" | "*" | "/" | "%" => format!("_{name}_"),
        "in" => "@in".to_owned(),
        _ => return Ok(None),
    };
    let made = match name {
        "==" | "!=" => (a.takes(b) || b.takes(a)).then_some(Type::Plain("bool")),
        "<" | "<=" | ">" | ">=" => ordered(a, b).then_some(Type::Plain("bool")),
        "in" => contained(a, b).then_some(Type::Plain("bool")),
        _ => arithmetic(name, a, b),
    };
    made.map(Some).ok_or_else(|| mismatch(at, &label, &[a, b]))
}

fn ordered(a: &Type<'_>, b: &Type<'_>) -> bool {
    const ORDERED: [&str; 9] =
        ["bool", "int", "uint", "double", "string", "bytes", "timestamp", "duration", "dyn"];
    let number = |name: &str| matches!(name, "int" | "uint" | "double");
    let (left, right) = (a.name(), b.name());
    let known = ORDERED.contains(&left) && ORDERED.contains(&right);
    known && (left == right || left == "dyn" || right == "dyn" || number(left) && number(right))
}

fn contained(item: &Type<'_>, of: &Type<'_>) -> bool {
    match of.resolved() {
        Type::List(known) | Type::Map(known, _) => known.takes(item) || item.takes(&known),
        Type::Dyn => true,
        _ => false,
    }
}

fn arithmetic<'s>(name: &str, a: &Type<'s>, b: &Type<'s>) -> Option<Type<'s>> {
    let (left, right) = (a.resolved(), b.resolved());
    let (Type::Plain(x), Type::Plain(y)) = (&left, &right) else {
        return match (left, right) {
            (Type::Plain(x), Type::Dyn) => with_anything(name, x, true),
            (Type::Dyn, Type::Plain(y)) => with_anything(name, y, false),
            (Type::Dyn, _) | (_, Type::Dyn) => Some(Type::Dyn),
            (Type::List(x), Type::List(y)) if name == "+" && (x.takes(&y) || y.takes(&x)) => {
                Some(Type::List(x))
            }
            _ => None,
        };
    };
    let same = x == y;
    let made = match (name, *x, *y) {
        ("+" | "-" | "*" | "/", "int" | "uint" | "double", _) if same => *x,
        ("%", "int" | "uint", _) if same => *x,
        ("+", "string" | "bytes", _) if same => *x,
        ("+" | "-", "duration", "duration") | ("-", "timestamp", "timestamp") => "duration",
        ("+" | "-", "timestamp", "duration") | ("+", "duration", "timestamp") => "timestamp",
        _ => return None,
    };
    Some(Type::Plain(made))
}

/// What an operator makes of a known type, on the left or the right of it, and anything.
fn with_anything<'s>(name: &str, known: &'static str, on_left: bool) -> Option<Type<'s>> {
    Some(match (name, known) {
        ("+" | "-" | "*" | "/", "int" | "uint" | "double")
        | ("%", "int" | "uint")
        | ("+", "string" | "bytes" | "timestamp") => Type::Plain(known),
        ("-", "timestamp") if !on_left => Type::Plain("duration"),
        ("+" | "-", "timestamp" | "duration") => Type::Dyn,
        _ => return None,
    })
}

/// Whether a schema says itself what upstream would add to an object of its own.
fn describes_itself(schema: &Structural) -> bool {
    let text =
        |of: &Structural, name: &str| of.properties.get(name).is_some_and(|p| p.kind == "string");
    text(schema, "apiVersion")
        && text(schema, "kind")
        && schema.properties.get("metadata").is_some_and(|metadata| {
            metadata.kind == "object" && text(metadata, "name") && text(metadata, "generateName")
        })
}
