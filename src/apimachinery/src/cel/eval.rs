//! Evaluation, within a budget.

use std::borrow::Cow;
use std::sync::Arc;

use super::ast::{Expr, Fold, Literal, Node};
use super::parser::dotted;
use super::value::Value;
use super::{COST_EXCEEDED, library, operators};

/// What expressions may name.
pub trait Variables<'a> {
    /// The value of a variable.
    fn get(&self, name: &str) -> Option<Result<'a>>;

    /// A field of a variable, where there is more to say of it than that the variable does not have it.
    fn member(&self, _of: &str, _field: &str) -> Option<Result<'a>> {
        None
    }
}

/// A list of names and values.
pub struct Named<'v, 'a>(pub &'v [(&'v str, Value<'a>)]);

impl<'a> Variables<'a> for Named<'_, 'a> {
    fn get(&self, name: &str) -> Option<Result<'a>> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| Ok(value.clone()))
    }
}

enum Scope<'s, 'a> {
    Root(&'s dyn Variables<'a>),
    Inner { name: &'s str, value: Value<'a>, outer: &'s Scope<'s, 'a> },
}

impl<'a> Scope<'_, 'a> {
    fn get(&self, name: &str) -> Option<Result<'a>> {
        match self {
            Self::Root(variables) => variables.get(name),
            Self::Inner { name: own, value, .. } if *own == name => Some(Ok(value.clone())),
            Self::Inner { outer, .. } => outer.get(name),
        }
    }

    fn member(&self, of: &str, field: &str) -> Option<Result<'a>> {
        match self {
            Self::Root(variables) => variables.member(of, field),
            Self::Inner { name, .. } if *name == of => None,
            Self::Inner { outer, .. } => outer.member(of, field),
        }
    }
}

/// Counts what an expression costs.
pub(super) struct Evaluator {
    pub(super) left: u64,
}

type Result<'a> = std::result::Result<Value<'a>, String>;

impl Evaluator {
    pub(super) fn run<'a>(&mut self, node: &Node, variables: &dyn Variables<'a>) -> Result<'a> {
        self.eval(node, &Scope::Root(variables))
    }

    /// Takes `cost` from the budget.
    pub(super) fn pay(&mut self, cost: u64) -> std::result::Result<(), String> {
        if cost > self.left {
            self.left = 0;
            return Err(COST_EXCEEDED.into());
        }
        self.left -= cost;
        Ok(())
    }

    fn eval<'a>(&mut self, node: &Node, scope: &Scope<'_, 'a>) -> Result<'a> {
        match &node.expr {
            Expr::Literal(literal) => Ok(literal_value(literal)),
            Expr::Ident(name) => {
                self.pay(1)?;
                self.ident(name, scope)
            }
            Expr::Select { of, field, optional } => {
                if let Some(value) = qualified(node, scope) {
                    return value;
                }
                if let Expr::Ident(name) = &of.expr
                    && let Some(value) = scope.member(name, field)
                {
                    self.pay(2)?;
                    return if *optional { value.map(|value| wrap(Some(value))) } else { value };
                }
                let of = self.eval(of, scope)?;
                self.pay(1)?;
                select(&of, field, *optional)
            }
            Expr::Has { of, field } => {
                let of = self.eval(of, scope)?;
                self.pay(1)?;
                match of {
                    Value::Optional(None) => Ok(false.into()),
                    Value::Optional(Some(value)) => Ok(value.get(field)?.is_some().into()),
                    of => Ok(of.get(field)?.is_some().into()),
                }
            }
            Expr::Index { of, index, optional } => {
                let of = self.eval(of, scope)?;
                let index = self.eval(index, scope)?;
                self.pay(1)?;
                index_of(&of, &index, *optional)
            }
            Expr::And(a, b) => self.junction(a, b, false, scope),
            Expr::Or(a, b) => self.junction(a, b, true, scope),
            Expr::If(condition, yes, no) => match self.eval(condition, scope)? {
                Value::Bool(true) => self.eval(yes, scope),
                Value::Bool(false) => self.eval(no, scope),
                _ => Err("no such overload".into()),
            },
            Expr::List(items) => {
                let mut list = Vec::with_capacity(items.len());
                for (optional, item) in items {
                    let value = self.eval(item, scope)?;
                    match (optional, value) {
                        (true, Value::Optional(None)) => {}
                        (true, Value::Optional(Some(value))) => list.push(value.as_ref().clone()),
                        (_, value) => list.push(value),
                    }
                }
                self.pay(10)?;
                Ok(list.into())
            }
            Expr::Map(entries) => {
                let mut map = Vec::with_capacity(entries.len());
                for (optional, key, value) in entries {
                    let (key, value) = (self.eval(key, scope)?, self.eval(value, scope)?);
                    match (optional, value) {
                        (true, Value::Optional(None)) => {}
                        (true, Value::Optional(Some(value))) => {
                            map.push((key, value.as_ref().clone()));
                        }
                        (_, value) => map.push((key, value)),
                    }
                }
                self.pay(30)?;
                Ok(Value::Map(Arc::new(map)))
            }
            Expr::Struct(name, fields) => self.structure(name, fields, scope),
            Expr::Call { target, name, args } => {
                self.call(node, target.as_deref(), name, args, scope)
            }
            Expr::Fold { .. } => self.fold(node, scope),
            Expr::OptMap { target, name, step, flat } => match self.eval(target, scope)? {
                Value::Optional(None) => Ok(Value::Optional(None)),
                Value::Optional(Some(value)) => {
                    let inner = Scope::Inner { name, value: value.as_ref().clone(), outer: scope };
                    let made = self.eval(step, &inner)?;
                    Ok(if *flat { made } else { Value::Optional(Some(Arc::new(made))) })
                }
                _ => Err("no such overload".into()),
            },
        }
    }

    fn ident<'a>(&mut self, name: &str, scope: &Scope<'_, 'a>) -> Result<'a> {
        if let Some(value) = scope.get(name) {
            return value;
        }
        const TYPES: [&str; 9] =
            ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type"];
        match TYPES.iter().find(|known| **known == name) {
            Some(known) => Ok(Value::Type(Cow::Borrowed(known))),
            None if name == "type" => Ok(Value::Type(Cow::Borrowed("type"))),
            None => Err(format!("no such attribute(s): {name}")),
        }
    }

    /// `&&` and `||`: one side that decides makes the other's error harmless.
    fn junction<'a>(
        &mut self,
        a: &Node,
        b: &Node,
        decisive: bool,
        scope: &Scope<'_, 'a>,
    ) -> Result<'a> {
        let left = self.eval(a, scope);
        if matches!(left, Ok(Value::Bool(value)) if value == decisive) {
            return left;
        }
        if matches!(&left, Err(text) if text == COST_EXCEEDED) {
            return left;
        }
        let right = self.eval(b, scope);
        match (left, right) {
            (_, Ok(Value::Bool(value))) if value == decisive => Ok(decisive.into()),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(Value::Bool(_)), Ok(Value::Bool(_))) => Ok((!decisive).into()),
            _ => Err("no such overload".into()),
        }
    }

    /// Objects of mutating policies are maps; of other structs only the wrappers of numbers are known.
    fn structure<'a>(
        &mut self,
        _name: &str,
        fields: &[(bool, String, Node)],
        scope: &Scope<'_, 'a>,
    ) -> Result<'a> {
        let mut map = Vec::with_capacity(fields.len());
        for (optional, name, value) in fields {
            let value = self.eval(value, scope)?;
            let key = Value::from(name.clone());
            match (optional, value) {
                (true, Value::Optional(None)) => {}
                (true, Value::Optional(Some(value))) => map.push((key, value.as_ref().clone())),
                (_, value) => map.push((key, value)),
            }
        }
        self.pay(40)?;
        Ok(Value::Map(Arc::new(map)))
    }

    fn call<'a>(
        &mut self,
        node: &Node,
        target: Option<&Node>,
        name: &str,
        args: &[Node],
        scope: &Scope<'_, 'a>,
    ) -> Result<'a> {
        let namespaced = target.and_then(|target| {
            let path = dotted(target)?;
            library::is_namespace(&path).then(|| format!("{path}.{name}"))
        });
        let shadowed = namespaced.is_some()
            && target.is_some_and(|t| matches!(&t.expr, Expr::Ident(n) if scope.get(n).is_some()));
        if let Some(function) = namespaced.filter(|_| !shadowed) {
            let values = self.all(args, scope)?;
            self.pay(library::cost(&values))?;
            return library::function(&function, &values);
        }
        let Some(target) = target else {
            let values = self.all(args, scope)?;
            if let Some(result) = operators::apply(name, &values) {
                self.pay(operators::cost(name, &values))?;
                return result;
            }
            self.pay(library::cost(&values))?;
            return library::function(name, &values);
        };
        let _ = node;
        let target = self.eval(target, scope)?;
        // The alternatives of an optional are looked at only when they are needed.
        if let (Value::Optional(found), "or" | "orValue") = (&target, name) {
            return match found {
                Some(value) if name == "orValue" => Ok(value.as_ref().clone()),
                Some(_) => Ok(target),
                None => {
                    args.first().map_or(Err("no such overload".into()), |arg| self.eval(arg, scope))
                }
            };
        }
        let values = self.all(args, scope)?;
        if let Value::Host(host) = &target {
            self.pay(1)?;
            return host.call(name, &values);
        }
        self.pay(1 + library::cost(std::slice::from_ref(&target)) + library::cost(&values))?;
        library::method(&target, name, &values)
    }

    fn all<'a>(
        &mut self,
        args: &[Node],
        scope: &Scope<'_, 'a>,
    ) -> std::result::Result<Vec<Value<'a>>, String> {
        args.iter().map(|arg| self.eval(arg, scope)).collect()
    }

    fn fold<'a>(&mut self, node: &Node, scope: &Scope<'_, 'a>) -> Result<'a> {
        let Expr::Fold { kind, range, key, value, condition, step } = &node.expr else {
            return Err("no such overload".into());
        };
        let range = self.eval(range, scope)?;
        let is_map = range.entries().is_some();
        let entries: Vec<(Value<'a>, Value<'a>)> = match (range.entries(), range.items()) {
            (Some(entries), _) => entries,
            (None, Some(items)) => {
                items.into_iter().enumerate().map(|(i, v)| (Value::Int(i as i64), v)).collect()
            }
            _ => {
                let name = range.go_type();
                return Err(format!("got '{name}', expected iterable type"));
            }
        };
        let mut state = Folded::default();
        for (index, item) in entries {
            self.pay(1)?;
            // With one variable that is the key of a map, but the item of a list.
            let first = if value.is_some() || is_map { index.clone() } else { item.clone() };
            let outer = Scope::Inner { name: key, value: first, outer: scope };
            let inner = match value {
                Some(name) => Scope::Inner { name, value: item.clone(), outer: &outer },
                None => Scope::Inner { name: "", value: Value::Null, outer: &outer },
            };
            if let Some(condition) = condition {
                match self.eval(condition, &inner)? {
                    Value::Bool(true) => {}
                    Value::Bool(false) => continue,
                    _ => return Err("no such overload".into()),
                }
            }
            let made = self.eval(step, &inner);
            let one = if is_map { index.clone() } else { item };
            if state.take(*kind, made, index, one)? {
                break;
            }
        }
        state.finish(*kind)
    }
}

/// What a macro has found so far.
#[derive(Default)]
struct Folded<'a> {
    decided: bool,
    count: usize,
    error: Option<String>,
    list: Vec<Value<'a>>,
    map: Vec<(Value<'a>, Value<'a>)>,
}

impl<'a> Folded<'a> {
    /// Takes in one result; tells whether the rest does not matter.
    fn take(
        &mut self,
        kind: Fold,
        made: Result<'a>,
        key: Value<'a>,
        item: Value<'a>,
    ) -> std::result::Result<bool, String> {
        if matches!(&made, Err(text) if text == COST_EXCEEDED) {
            return made.map(|_| true);
        }
        let truth = |made: Result<'a>| match made {
            Ok(Value::Bool(value)) => Ok(value),
            Ok(_) => Err("no such overload".to_owned()),
            Err(error) => Err(error),
        };
        match kind {
            Fold::All | Fold::Exists => match truth(made) {
                Ok(value) if value == (kind == Fold::Exists) => {
                    self.decided = true;
                    return Ok(true);
                }
                Ok(_) => {}
                Err(error) => drop(self.error.get_or_insert(error)),
            },
            Fold::ExistsOne => self.count += usize::from(truth(made)?),
            Fold::Filter => {
                if truth(made)? {
                    self.list.push(item);
                }
            }
            Fold::Map => self.list.push(made?),
            Fold::TransformMap => self.map.push((key, made?)),
            Fold::TransformEntries => {
                let Value::Map(entries) = made? else { return Err("no such overload".into()) };
                for (key, value) in entries.iter() {
                    if self.map.iter().any(|(known, _)| known.equals(key)) {
                        return Err(format!("insert failed: key {} already exists", key.to_text()));
                    }
                    self.map.push((key.clone(), value.clone()));
                }
            }
            Fold::SortBy => self.map.push((made?, item)),
        }
        Ok(false)
    }

    fn finish(mut self, kind: Fold) -> Result<'a> {
        match kind {
            Fold::All | Fold::Exists => match self.error {
                Some(error) if !self.decided => Err(error),
                _ => Ok((self.decided == (kind == Fold::Exists)).into()),
            },
            Fold::ExistsOne => Ok((self.count == 1).into()),
            Fold::Map | Fold::Filter => Ok(self.list.into()),
            Fold::TransformMap | Fold::TransformEntries => Ok(Value::Map(Arc::new(self.map))),
            Fold::SortBy => {
                self.map.sort_by(|a, b| a.0.compare(&b.0).unwrap_or(std::cmp::Ordering::Equal));
                Ok(self.map.into_iter().map(|(_, item)| item).collect::<Vec<_>>().into())
            }
        }
    }
}

fn literal_value<'a>(literal: &Literal) -> Value<'a> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Bool(value) => Value::Bool(*value),
        Literal::Int(n) => Value::Int(*n),
        Literal::Uint(n) => Value::Uint(*n),
        Literal::Double(n) => Value::Double(*n),
        Literal::Text(text) => text.clone().into(),
        Literal::Bytes(bytes) => Value::Bytes(bytes.clone().into()),
    }
}

/// Names with dots that are types, such as `google.protobuf.Timestamp`.
fn qualified<'a>(node: &Node, scope: &Scope<'_, 'a>) -> Option<Result<'a>> {
    let name = dotted(node)?;
    const TYPES: [&str; 5] = [
        "google.protobuf.Timestamp",
        "google.protobuf.Duration",
        "kubernetes.Quantity",
        "net.IP",
        "net.CIDR",
    ];
    let first = name.split('.').next().unwrap_or_default();
    let known = TYPES.iter().find(|known| **known == name)?;
    scope.get(first).is_none().then(|| Ok(Value::Type(Cow::Borrowed(known))))
}

fn wrap(found: Option<Value<'_>>) -> Value<'_> {
    match found {
        Some(Value::Optional(value)) => Value::Optional(value),
        found => Value::Optional(found.map(Arc::new)),
    }
}

fn select<'a>(of: &Value<'a>, field: &str, optional: bool) -> Result<'a> {
    match of {
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(value)) => Ok(wrap(value.get(field)?)),
        of if optional => Ok(wrap(of.get(field)?)),
        of => of.get(field)?.ok_or_else(|| format!("no such key: {field}")),
    }
}

fn index_of<'a>(of: &Value<'a>, index: &Value<'a>, optional: bool) -> Result<'a> {
    match of {
        Value::Optional(None) => Ok(Value::Optional(None)),
        Value::Optional(Some(value)) => Ok(wrap(value.at(index)?)),
        of if optional => Ok(wrap(of.at(index)?)),
        of => of.at(index)?.ok_or_else(|| match of {
            Value::List(_) | Value::JsonList(..) => {
                format!("index out of bounds: {}", index.to_text())
            }
            _ => format!("no such key: {}", index.to_text()),
        }),
    }
}
