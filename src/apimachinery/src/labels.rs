//! Label selectors, from the query string and from `LabelSelector` objects.
//!
//! Source: `k8s.io/apimachinery/pkg/labels` and `metav1.LabelSelectorAsSelector`.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use crate::names;

/// Why a selector cannot be used, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// How a [`Requirement`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`
    NotIn,
    /// `key=a`
    Equals,
    /// `key!=a`
    NotEquals,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// Sorted, without duplicates.
    pub values: Vec<String>,
}

fn invalid(path: &str, value: &str, mistakes: &[String]) -> Error {
    Error(format!("{path}: Invalid value: {value:?}: {}", mistakes.join("; ")))
}

fn check_key(key: &str) -> Result<(), Error> {
    let mistakes = names::qualified_name(key);
    // Upstream has no path here and prints Go's nil for it.
    if mistakes.is_empty() { Ok(()) } else { Err(invalid("<nil>", key, &mistakes)) }
}

impl Requirement {
    /// A checked requirement.
    pub fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Self, Error> {
        check_key(key)?;
        let fail = |what: &str| Err(Error(format!("values: Invalid value: {values:?}: {what}")));
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return fail("for 'in', 'notin' operators, values set can't be empty");
            }
            Operator::Equals | Operator::NotEquals if values.len() != 1 => {
                return fail("exact-match compatibility requires one single value");
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                return fail("values set must be empty for exists and does not exist");
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                return fail("for 'Gt', 'Lt' operators, exactly one value is required");
            }
            Operator::GreaterThan | Operator::LessThan if values[0].parse::<i64>().is_err() => {
                return Err(Error(format!(
                    "values[0]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer",
                    values[0]
                )));
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            let mistakes = names::label_value(value);
            if !mistakes.is_empty() {
                return Err(invalid(&format!("values[{i}][{key}]"), value, &mistakes));
            }
        }
        let mut values = values;
        values.sort();
        values.dedup();
        Ok(Self { key: key.to_owned(), operator, values })
    }

    /// Whether the label's value, `None` when it is absent, satisfies this.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let among = |v: &str| self.values.iter().any(|x| x == v);
        let number = |compare: fn(&i64, &i64) -> bool| {
            let (Some(value), Some(bound)) = (value, self.values.first()) else { return false };
            matches!((value.parse(), bound.parse()), (Ok(v), Ok(b)) if compare(&v, &b))
        };
        match self.operator {
            Operator::In | Operator::Equals => value.is_some_and(among),
            Operator::NotIn | Operator::NotEquals => !value.is_some_and(among),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => number(i64::gt),
            Operator::LessThan => number(i64::lt),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, values, .. } = self;
        let all = values.join(",");
        match self.operator {
            Operator::In => write!(f, "{key} in ({all})"),
            Operator::NotIn => write!(f, "{key} notin ({all})"),
            Operator::Equals => write!(f, "{key}={all}"),
            Operator::NotEquals => write!(f, "{key}!={all}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{all}"),
            Operator::LessThan => write!(f, "{key}<{all}"),
        }
    }
}

/// All requirements must hold; none at all selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Selects every object.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads the text of `labelSelector=` or `kubectl -l`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Parser::new(text)?.selector()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// The labels of `map`, exactly, as `Service.spec.selector` means it.
    pub fn from_map<'a>(map: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let requirements = map
            .into_iter()
            .map(|(key, value)| Requirement {
                key: key.to_owned(),
                operator: Operator::Equals,
                values: vec![value.to_owned()],
            })
            .collect();
        Self { requirements, nothing: false }
    }

    /// A `metav1.LabelSelector`: absent selects nothing, empty everything.
    pub fn from_label_selector(selector: Option<&Value>) -> Result<Self, Error> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else { return Ok(Self::nothing()) };
        let mut requirements = Vec::new();
        for (key, value) in
            selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten()
        {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in
            selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten()
        {
            let text =
                |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(Error(format!("{other:?} is not a valid label selector operator")));
                }
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.map(|v| v.as_str().unwrap_or_default().to_owned()).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements, nothing: false })
    }

    /// Whether the selector has no conditions.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_by(|key| labels.get(key).map(String::as_str))
    }

    /// As [`Self::matches`], for labels that are held otherwise.
    pub fn matches_by<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Identifier,
    In,
    NotIn,
    Open,
    Closed,
    Comma,
    Not,
    Equals,
    NotEquals,
    Greater,
    Less,
}

fn is_special(c: char) -> bool {
    "=!(),><".contains(c)
}

fn tokenise(text: &str) -> Result<Vec<(Token, &str)>, Error> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, len) = if is_special(first) {
            let double = ["==", "!="].iter().any(|op| rest.starts_with(op));
            match first {
                '=' => (Token::Equals, 1 + usize::from(double)),
                '!' if double => (Token::NotEquals, 2),
                '!' => (Token::Not, 1),
                '(' => (Token::Open, 1),
                ')' => (Token::Closed, 1),
                ',' => (Token::Comma, 1),
                '>' => (Token::Greater, 1),
                _ => (Token::Less, 1),
            }
        } else {
            let end =
                rest.find(|c: char| is_special(c) || c.is_ascii_whitespace()).unwrap_or(rest.len());
            let token = match &rest[..end] {
                "in" => Token::In,
                "notin" => Token::NotIn,
                _ => Token::Identifier,
            };
            (token, end)
        };
        tokens.push((token, &rest[..len]));
        rest = rest[len..].trim_start();
    }
    tokens.push((Token::End, ""));
    Ok(tokens)
}

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    at: usize,
}

fn expected<T>(found: &str, what: &str) -> Result<T, Error> {
    Err(Error(format!("found '{found}', expected: {what}")))
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self, Error> {
        Ok(Self { tokens: tokenise(text)?, at: 0 })
    }

    /// The next token where a value or key may stand: there `in` and `notin` are ordinary words.
    fn peek(&self) -> (Token, &'a str) {
        let (token, text) = self.tokens[self.at.min(self.tokens.len() - 1)];
        match token {
            Token::In | Token::NotIn => (Token::Identifier, text),
            _ => (token, text),
        }
    }

    fn next(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(mut self) -> Result<Vec<Requirement>, Error> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier | Token::Not, _) => {
                    let requirement = self
                        .requirement()
                        .map_err(|e| Error(format!("unable to parse requirement: {e}")))?;
                    requirements.push(requirement);
                    match self.next() {
                        (Token::End, _) => return Ok(requirements),
                        (Token::Comma, _) => match self.peek() {
                            (Token::Identifier | Token::Not, _) => {}
                            (_, text) => return expected(text, "identifier after ','"),
                        },
                        (_, text) => return expected(text, "',' or 'end of string'"),
                    }
                }
                (Token::End, _) => return Ok(requirements),
                (_, text) => return expected(text, "!, identifier, or 'end of string'"),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let (mut token, mut key) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.next();
        }
        if token != Token::Identifier {
            return expected(key, "identifier");
        }
        check_key(key)?;
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek().0, Token::End | Token::Comma) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let (token, text) = self.tokens[self.at];
        self.at += 1;
        let operator = match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return expected(text, "in, notin, =, ==, !=, gt, lt"),
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(key, operator, values)
    }

    fn exact_value(&mut self) -> Result<String, Error> {
        match self.peek() {
            (Token::End | Token::Comma, _) => Ok(String::new()),
            (Token::Identifier, text) => {
                self.at += 1;
                Ok(text.to_owned())
            }
            (_, text) => expected(text, "identifier"),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, Error> {
        let (token, text) = self.next();
        if token != Token::Open {
            return Err(Error(format!("found '{text}' expected: '('")));
        }
        match self.peek() {
            (Token::Identifier | Token::Comma | Token::Closed, _) => {}
            (_, text) => return expected(text, "',', ')' or identifier"),
        }
        // An empty place between commas or parentheses is the empty value.
        let mut values = Vec::new();
        loop {
            match self.peek() {
                (Token::Identifier, text) => {
                    self.at += 1;
                    values.push(text.to_owned());
                }
                (Token::Comma | Token::Closed, _) => values.push(String::new()),
                (_, text) => return expected(text, "',', or identifier"),
            }
            match self.next() {
                (Token::Comma, _) => {}
                (Token::Closed, _) => return Ok(values),
                (_, text) => return expected(text, "',' or ')'"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        text.split(',')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    }

    #[test]
    fn selectors_match_as_upstream() {
        let cases = [
            ("", "a=b", true),
            ("x=y", "x=y", true),
            ("x==y", "x=y", true),
            ("x=y,z=w", "x=y,z=w", true),
            ("x!=y,z!=w", "x=z,z=a", true),
            ("notin=in", "notin=in", true),
            ("x", "x=z", true),
            ("!x", "y=z", true),
            ("!x", "x=z", false),
            ("x>1", "x=2", true),
            ("x<1", "x=0", true),
            ("x>1", "x=no", false),
            ("x=z", "", false),
            ("x!=z", "", true),
            ("x in (a, b)", "x=b", true),
            ("x notin (a,b)", "x=b", false),
            ("x notin (a,b)", "", true),
            ("x in ()", "x=", true),
            ("x in (,a)", "x=", true),
            ("x=", "x=", true),
            ("  a = b , c ", "a=b,c=d", true),
        ];
        for (selector, set, want) in cases {
            let parsed = Selector::parse(selector).unwrap_or_else(|e| panic!("{selector}: {e}"));
            assert_eq!(parsed.matches(&labels(set)), want, "{selector} on {set}");
        }
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        let cases = [
            ("x=a||y=b", "values[0][x]: Invalid value: \"a||y\""),
            ("x==a==b", "found '==', expected: ',' or 'end of string'"),
            ("!x=a", "found '=', expected: ',' or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("(", "found '(', expected: !, identifier, or 'end of string'"),
            ("x in a", "unable to parse requirement: found 'a' expected: '('"),
            (
                "x ~ a",
                "unable to parse requirement: found '~', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("x>a", "the value must be an integer"),
        ];
        for (selector, want) in cases {
            let error = Selector::parse(selector).expect_err(selector).to_string();
            assert!(error.contains(want), "{selector}: {error}");
        }
    }

    #[test]
    fn selectors_print_canonically() {
        for (text, want) in
            [("z in (b,a),x==y", "x=y,z in (a,b)"), ("!a,b,c!=d,e>1", "!a,b,c!=d,e>1")]
        {
            assert_eq!(Selector::parse(text).expect(text).to_string(), want);
        }
    }

    #[test]
    fn label_selector_objects() {
        let matches = |selector: Value, set: &str| {
            Selector::from_label_selector(Some(&selector)).expect("valid").matches(&labels(set))
        };
        assert!(matches(json!({}), "a=b"));
        assert!(!Selector::from_label_selector(None).expect("valid").matches(&labels("a=b")));
        assert!(matches(json!({"matchLabels": {"a": "b"}}), "a=b,c=d"));
        assert!(!matches(
            json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}),
            "a=b"
        ));
        assert!(matches(
            json!({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}),
            ""
        ));
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "Like"}]});
        let error = Selector::from_label_selector(Some(&bad)).expect_err("no such operator");
        assert_eq!(error.to_string(), "\"Like\" is not a valid label selector operator");
    }
}
