//! The Common Expression Language as Kubernetes uses it: macros, optional values, the extended
//! libraries, a budget.
//!
//! Start at [`Program`]. Our own evaluator rather than a crate's, because rules look into JSON where it
//! lies, types come from structural schemas, and costs are counted.
//!
//! Sources: <https://github.com/google/cel-spec>, <https://kubernetes.io/docs/reference/using-api/cel/>.

mod ast;
mod check;
mod estimate;
mod eval;
mod library;
mod literals;
mod operators;
mod overloads;
mod parser;
pub mod rules;
#[cfg(test)]
mod tests;
mod value;

pub use check::Type;
pub use eval::{Named, Variables};
pub use value::{Host, Value, is_identifier};

use crate::structural::Structural;

/// What one expression may cost (`PerCallLimit`).
pub const CALL_LIMIT: u64 = 1_000_000;
/// What all rules of an object may cost together (`RuntimeCELCostBudget`).
pub const TOTAL_LIMIT: u64 = 10_000_000;
/// The error of an expression that cost too much.
pub const COST_EXCEEDED: &str = "operation cancelled: actual cost limit exceeded";

/// A parsed and checked expression.
#[derive(Clone, Debug)]
pub struct Program {
    node: ast::Node,
    result: &'static str,
}

/// Renders a mistake as upstream's compiler does.
fn told(text: &str, at: usize, message: &str) -> String {
    let before: Vec<char> = text.chars().take(at).collect();
    let line = before.iter().filter(|c| **c == '\n').count();
    let column = before.iter().rev().take_while(|c| **c != '\n').count();
    let shown = text.lines().nth(line).unwrap_or_default();
    let dots = ".".repeat(column);
    format!("ERROR: <input>:{}:{}: {message}\n | {shown}\n | {dots}^", line + 1, column + 1)
}

impl Program {
    /// Compiles `text`, which may name what `names` declares; `root` is the schema of an object.
    pub fn compile(
        text: &str,
        names: Vec<(String, Type<'_>)>,
        root: Option<&Structural>,
    ) -> Result<Self, String> {
        let node = parser::parse(text).map_err(|e| told(text, e.at, &e.message))?;
        let mut checker = check::Checker::new(names, root);
        let result = checker.check(&node).map_err(|(at, message)| told(text, at, &message))?;
        literals::check(&node).map_err(|(at, message)| told(text, at, &message))?;
        Ok(Self { node, result })
    }

    /// The name of the outcome's type; `dyn` where it is not known.
    pub fn result(&self) -> &'static str {
        self.result
    }

    /// Whether the expression names `variable`.
    pub fn names(&self, variable: &str) -> bool {
        let mut found = false;
        self.node.walk(&mut |node| {
            found |= matches!(&node.expr, ast::Expr::Ident(name) if name == variable);
        });
        found
    }

    /// What evaluating may cost at worst; `names` as for [`Program::compile`].
    fn estimate(&self, names: &[(String, Type<'_>)]) -> u64 {
        estimate::cost(&self.node, names)
    }

    /// Evaluates; takes what it costs from `budget`.
    pub fn run<'a>(
        &self,
        variables: &dyn Variables<'a>,
        budget: &mut u64,
    ) -> Result<Value<'a>, String> {
        let limit = CALL_LIMIT.min(*budget);
        let mut evaluator = eval::Evaluator { left: limit };
        let result = evaluator.run(&self.node, variables);
        *budget -= limit - evaluator.left;
        result
    }
}
