//! The syntax tree.

/// A node and where it begins in the text, in characters.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Offset in characters, for messages.
    pub at: usize,
    /// What it is.
    pub expr: Expr,
}

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `1.0`
    Double(f64),
    /// `'a'`
    Text(String),
    /// `b'a'`
    Bytes(Vec<u8>),
}

/// What a macro over a range does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    /// `all`
    All,
    /// `exists`
    Exists,
    /// `exists_one`
    ExistsOne,
    /// `map`, `transformList`
    Map,
    /// `filter`
    Filter,
    /// `transformMap`
    TransformMap,
    /// `transformMapEntry`
    TransformEntries,
    /// `sortBy`
    SortBy,
}

/// An expression.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A constant.
    Literal(Literal),
    /// A variable.
    Ident(String),
    /// `of.field`, `of.?field`
    Select { of: Box<Node>, field: String, optional: bool },
    /// `has(of.field)`
    Has { of: Box<Node>, field: String },
    /// `of[index]`, `of[?index]`
    Index { of: Box<Node>, index: Box<Node>, optional: bool },
    /// `name(args)`, `target.name(args)`
    Call { target: Option<Box<Node>>, name: String, args: Vec<Node> },
    /// `[a, ?b]`
    List(Vec<(bool, Node)>),
    /// `{a: b, ?c: d}`
    Map(Vec<(bool, Node, Node)>),
    /// `Type{field: value}`
    Struct(String, Vec<(bool, String, Node)>),
    /// `a && b`
    And(Box<Node>, Box<Node>),
    /// `a || b`
    Or(Box<Node>, Box<Node>),
    /// `a ? b : c`
    If(Box<Node>, Box<Node>, Box<Node>),
    /// A macro over the entries of `range`, each bound to `key` and maybe `value`.
    Fold {
        kind: Fold,
        range: Box<Node>,
        key: String,
        value: Option<String>,
        condition: Option<Box<Node>>,
        step: Box<Node>,
    },
    /// `target.optMap(x, e)`, and `optFlatMap`
    OptMap { target: Box<Node>, name: String, step: Box<Node>, flat: bool },
}

impl Node {
    /// Calls `visit` for this node and all below it.
    pub fn walk(&self, visit: &mut dyn FnMut(&Node)) {
        visit(self);
        match &self.expr {
            Expr::Literal(_) | Expr::Ident(_) => {}
            Expr::Select { of, .. } | Expr::Has { of, .. } => of.walk(visit),
            Expr::Index { of, index, .. } => {
                of.walk(visit);
                index.walk(visit);
            }
            Expr::Call { target, args, .. } => {
                if let Some(target) = target {
                    target.walk(visit);
                }
                for arg in args {
                    arg.walk(visit);
                }
            }
            Expr::List(items) => items.iter().for_each(|(_, item)| item.walk(visit)),
            Expr::Map(entries) => entries.iter().for_each(|(_, key, value)| {
                key.walk(visit);
                value.walk(visit);
            }),
            Expr::Struct(_, fields) => fields.iter().for_each(|(_, _, value)| value.walk(visit)),
            Expr::And(a, b) | Expr::Or(a, b) => {
                a.walk(visit);
                b.walk(visit);
            }
            Expr::If(a, b, c) => {
                a.walk(visit);
                b.walk(visit);
                c.walk(visit);
            }
            Expr::Fold { range, condition, step, .. } => {
                range.walk(visit);
                if let Some(condition) = condition {
                    condition.walk(visit);
                }
                step.walk(visit);
            }
            Expr::OptMap { target, step, .. } => {
                target.walk(visit);
                step.walk(visit);
            }
        }
    }
}
