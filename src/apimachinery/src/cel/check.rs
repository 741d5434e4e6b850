//! What can be said of an expression before it runs: names that nothing declares, fields that a schema
//! does not have, operators between types that do not go together, the type of the outcome.

use super::ast::{Expr, Fold, Literal, Node};
use super::library;
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

    fn is_nullable(&self) -> bool {
        matches!(self, Self::Of(schema) if schema.nullable)
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
                    Type::Dyn
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
                if *optional { Type::Dyn } else { found }
            }
            Expr::Has { of, field } => {
                let at = of.at;
                let of = self.of(of)?;
                self.field(&of, field, at)?;
                Type::Plain("bool")
            }
            Expr::Index { of, index, optional } => {
                self.of(index)?;
                let of = self.of(of)?;
                if *optional { Type::Dyn } else { element(&of) }
            }
            Expr::And(a, b) | Expr::Or(a, b) => {
                let op = if matches!(node.expr, Expr::And(..)) { "_&&_" } else { "_||_" };
                for side in [a, b] {
                    let found = self.of(side)?;
                    if !matches!(found.name(), "bool" | "dyn") {
                        return Err(mismatch(side.at, op, &[&found]));
                    }
                }
                Type::Plain("bool")
            }
            Expr::If(condition, yes, no) => {
                self.of(condition)?;
                let (yes, no) = (self.of(yes)?, self.of(no)?);
                if yes.name() == no.name() { yes } else { Type::Dyn }
            }
            Expr::List(items) => {
                let mut of = Type::Dyn;
                for (_, item) in items {
                    of = self.of(item)?;
                }
                Type::List(Box::new(of))
            }
            Expr::Map(entries) => {
                for (_, key, value) in entries {
                    self.of(key)?;
                    self.of(value)?;
                }
                Type::Dyn
            }
            Expr::Struct(_, fields) => {
                for (_, _, value) in fields {
                    self.of(value)?;
                }
                Type::Dyn
            }
            Expr::Call { target, name, args } => self.call(node, target.as_deref(), name, args)?,
            Expr::Fold { kind, range, key, value, condition, step } => {
                let range = self.of(range)?;
                if !matches!(range.name(), "list" | "map" | "object" | "dyn") {
                    let detail = format!(
                        "expression of type '{}' cannot be range of a comprehension (must be list, map, or dynamic)",
                        range.name()
                    );
                    return Err((node.at, detail));
                }
                let is_list = range.name() == "list";
                let item = element(&range);
                let first = match (is_list, value.is_some()) {
                    (true, false) => item.clone(),
                    (true, true) => Type::Plain("int"),
                    _ => Type::Dyn,
                };
                let before = self.names.len();
                self.names.push((key.clone(), first));
                if let Some(name) = value {
                    self.names.push((name.clone(), item.clone()));
                }
                if let Some(condition) = condition {
                    self.of(condition)?;
                }
                let made = self.of(step);
                self.names.truncate(before);
                let made = made?;
                match kind {
                    Fold::All | Fold::Exists | Fold::ExistsOne => Type::Plain("bool"),
                    Fold::Filter | Fold::SortBy => Type::List(Box::new(item)),
                    Fold::Map => Type::List(Box::new(made)),
                    Fold::TransformMap | Fold::TransformEntries => Type::Dyn,
                }
            }
            Expr::OptMap { target, name, step, .. } => {
                self.of(target)?;
                self.names.push((name.clone(), Type::Dyn));
                let made = self.of(step);
                self.names.pop();
                made?;
                Type::Dyn
            }
        })
    }

    fn field(&self, of: &Type<'s>, name: &str, at: usize) -> Checked<'s> {
        let undefined = || Err((at, format!("undefined field '{name}'")));
        match of {
            Type::Metadata => match name {
                "name" | "generateName" => Ok(Type::Plain("string")),
                _ => undefined(),
            },
            Type::Of(schema) if schema.kind == "object" => {
                let is_root =
                    schema.embedded || self.root.is_some_and(|root| std::ptr::eq(root, *schema));
                match name {
                    "apiVersion" | "kind" if is_root => return Ok(Type::Plain("string")),
                    "metadata" if is_root => return Ok(Type::Metadata),
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
                    if let Some(found) = schema.properties.get(candidate) {
                        return Ok(Type::Of(found));
                    }
                }
                if schema.preserve_unknown && schema.properties.is_empty() {
                    return Ok(Type::Dyn);
                }
                undefined()
            }
            Type::Plain(kind) => {
                Err((at, format!("type '{kind}' does not support field selection")))
            }
            Type::Of(_) if !matches!(of.name(), "dyn" | "list") => {
                Err((at, format!("type '{}' does not support field selection", of.name())))
            }
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
        if let Some(target) = target {
            let space = dotted(target).filter(|path| library::is_namespace(path));
            if space.is_none_or(|path| self.lookup(&path).is_some()) {
                let of = self.of(target)?;
                for arg in args {
                    self.of(arg)?;
                }
                return Ok(returned(name, &of));
            }
            for arg in args {
                self.of(arg)?;
            }
            return Ok(Type::Dyn);
        }
        for arg in args {
            types.push(self.of(arg)?);
        }
        if let Some(found) = operator(node.at, name, &types)? {
            return Ok(found);
        }
        if !library::is_function(name) {
            return Err((node.at, format!("undeclared reference to '{name}' (in container '')")));
        }
        Ok(match name {
            "size" | "int" => Type::Plain("int"),
            "uint" => Type::Plain("uint"),
            "double" => Type::Plain("double"),
            "string" => Type::Plain("string"),
            "bool" | "matches" | "isQuantity" | "isIP" | "isCIDR" | "isURL" | "isSemver" => {
                Type::Plain("bool")
            }
            _ => Type::Dyn,
        })
    }
}

fn root_of(node: &Node) -> Option<&str> {
    match &node.expr {
        Expr::Ident(name) => Some(name),
        Expr::Select { of, .. } => root_of(of),
        _ => None,
    }
}

fn element<'s>(of: &Type<'s>) -> Type<'s> {
    match of {
        Type::List(item) => item.as_ref().clone(),
        Type::Of(schema) => match (&schema.items, &schema.additional) {
            (Some(items), _) => Type::Of(items),
            (_, Some(Additional::Of(values))) => Type::Of(values),
            _ => Type::Dyn,
        },
        _ => Type::Dyn,
    }
}

fn returned<'s>(name: &str, of: &Type<'s>) -> Type<'s> {
    match (of.name(), name) {
        (_, "size" | "indexOf" | "lastIndexOf" | "getHours" | "getMinutes" | "getSeconds") => {
            Type::Plain("int")
        }
        ("string", "contains" | "startsWith" | "endsWith" | "matches") => Type::Plain("bool"),
        (
            "string",
            "lowerAscii" | "upperAscii" | "trim" | "replace" | "substring" | "charAt" | "format"
            | "find",
        ) => Type::Plain("string"),
        ("list", "join") => Type::Plain("string"),
        ("list", "isSorted") => Type::Plain("bool"),
        (_, "hasValue") => Type::Plain("bool"),
        _ => Type::Dyn,
    }
}

fn mismatch(at: usize, op: &str, types: &[&Type<'_>]) -> Mistake {
    let names: Vec<&str> = types.iter().map(|t| t.name()).collect();
    (at, format!("found no matching overload for '{op}' applied to '({})'", names.join(", ")))
}

/// The type an operator makes; `None` if `name` is no operator.
fn operator<'s>(at: usize, name: &str, types: &[Type<'s>]) -> Result<Option<Type<'s>>, Mistake> {
    let [a, b] = types else {
        return Ok(match name {
            "!" => Some(Type::Plain("bool")),
            "-_" => types.first().cloned(),
            _ => None,
        });
    };
    let (left, right) = (a.name(), b.name());
    let open = |name: &str| matches!(name, "dyn" | "object" | "map");
    let number = |name: &str| matches!(name, "int" | "uint" | "double");
    let label = match name {
        "==" | "!=" | "<" | "<=" | ">" | ">=" | "+" | "-" | "*" | "/" | "%" => format!("_{name}_"),
        "in" => "@in".to_owned(),
        _ => return Ok(None),
    };
    let fine = match name {
        "==" | "!=" => {
            left == right
                || open(left)
                || open(right)
                || left == "null" && (b.is_nullable() || right == "dyn")
                || right == "null" && a.is_nullable()
                || (left == "null" || right == "null") && (open(left) || open(right))
        }
        "<" | "<=" | ">" | ">=" => {
            left == right || open(left) || open(right) || (number(left) && number(right))
        }
        "in" => matches!(right, "list" | "map" | "object" | "dyn"),
        "+" | "-" => {
            let time = |name: &str| matches!(name, "timestamp" | "duration");
            left == right || open(left) || open(right) || (time(left) && time(right))
        }
        _ => left == right || open(left) || open(right),
    };
    if !fine {
        return Err(mismatch(at, &label, &[a, b]));
    }
    Ok(Some(match name {
        "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" => Type::Plain("bool"),
        _ if left == right && left != "timestamp" => a.clone(),
        _ => Type::Dyn,
    }))
}
