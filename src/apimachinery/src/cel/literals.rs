//! Constants that a function would refuse whenever it ran: patterns, durations and times.
//!
//! Source: cel-go's `ValidateRegexLiterals`, `ValidateDurationLiterals` and `ValidateTimestampLiterals`.

use super::ast::{Expr, Literal, Node};
use super::check::Mistake;
use super::library::parse_duration;
use crate::{pattern, time};

/// The first such constant.
pub(super) fn check(node: &Node) -> Result<(), Mistake> {
    let mut found = None;
    node.walk(&mut |node| {
        let Expr::Call { name, args, .. } = &node.expr else { return };
        let Some(Node { at, expr: Expr::Literal(Literal::Text(text)) }) = args.first() else {
            return;
        };
        let sound = match name.as_str() {
            "matches" => pattern::compile(text).is_ok(),
            "duration" => parse_duration(text).is_ok(),
            "timestamp" => time::parse(text).is_ok(),
            _ => true,
        };
        if !sound && found.is_none() {
            found = Some((*at, format!("invalid {name} argument")));
        }
    });
    found.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use crate::cel::Program;

    #[test]
    fn constants_that_never_work_are_refused() {
        let told = |text: &str| Program::compile(text, Vec::new(), None).err().unwrap_or_default();
        for (text, want) in [
            (
                r"'a'.matches('[')",
                "ERROR: <input>:1:13: invalid matches argument\n | 'a'.matches('[')\n | ............^",
            ),
            (
                "duration('1x') == duration('1s')",
                "ERROR: <input>:1:10: invalid duration argument\n | duration('1x') == duration('1s')\n | .........^",
            ),
            (
                "timestamp('today') == timestamp('2024-01-01T00:00:00Z')",
                "ERROR: <input>:1:11: invalid timestamp argument\n | timestamp('today') == timestamp('2024-01-01T00:00:00Z')\n | ..........^",
            ),
            (r"'a'.matches('[a-z]')", ""),
            // The pattern comes last here, and is not looked at.
            ("matches('a', '[')", ""),
        ] {
            assert_eq!(told(text), want, "{text}");
        }
    }
}
