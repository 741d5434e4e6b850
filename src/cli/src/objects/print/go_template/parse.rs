//! From words to a tree.
//!
//! Source: `text/template/parse/parse.go`, whose errors are told in its words.

use std::collections::BTreeMap;

use super::format::{quoted, unquote};
use super::functions;
use super::lex::{Kind, Token, tokens};
use super::tree::{Branch, Call, Command, Node, Number, Operand, Pipe, Term};

/// The templates of a text by their names; the text's own is `output`.
pub type Trees = BTreeMap<String, Vec<Node>>;

/// The name that kubectl gives to the user's template.
pub const NAME: &str = "output";

/// What ends a list of nodes.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    End,
    Else,
}

impl Ending {
    fn shown(self) -> &'static str {
        match self {
            Self::End => "{{end}}",
            Self::Else => "{{else}}",
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    /// The next word.
    next: usize,
    /// The last word that was looked at.
    seen: usize,
    /// The line of the action that is read; 0 outside of any.
    action_line: usize,
    variables: Vec<String>,
    range_depth: usize,
    trees: Trees,
}

/// Parses a template.
pub fn parse(text: &str) -> Result<Trees, String> {
    let mut parser = Parser {
        tokens: tokens(text),
        next: 0,
        seen: 0,
        action_line: 0,
        variables: vec!["$".into()],
        range_depth: 0,
        trees: Trees::new(),
    };
    let nodes = parser.top()?;
    parser.add(NAME.into(), nodes)?;
    Ok(parser.trees)
}

fn is_blank(nodes: &[Node]) -> bool {
    nodes.iter().all(|node| matches!(node, Node::Text(text) if text.trim().is_empty()))
}

impl Parser {
    fn fault<T>(&self, problem: impl std::fmt::Display) -> Result<T, String> {
        let line = self.tokens[self.seen].line;
        Err(format!("template: {NAME}:{line}: {problem}"))
    }

    fn unexpected<T>(&self, token: &Token, context: &str) -> Result<T, String> {
        if token.kind != Kind::Error {
            return self.fault(format!("unexpected {} in {context}", token.shown()));
        }
        let mut more = String::new();
        if self.action_line != 0 && self.action_line != token.line {
            // Not "action in action".
            let what = if token.text.ends_with(" action") { "" } else { " in action" };
            more = format!("{what} started at {NAME}:{}", self.action_line);
        }
        self.fault(format!("{}{more}", token.shown()))
    }

    fn peek(&mut self) -> Token {
        let index = self.next.min(self.tokens.len() - 1);
        self.seen = self.seen.max(index);
        self.tokens[index].clone()
    }

    fn take(&mut self) -> Token {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn peek_word(&mut self) -> Token {
        while self.peek().kind == Kind::Space {
            self.next += 1;
        }
        self.peek()
    }

    fn take_word(&mut self) -> Token {
        self.peek_word();
        self.take()
    }

    fn expect(&mut self, kind: Kind, context: &str) -> Result<Token, String> {
        let token = self.take_word();
        if token.kind == kind { Ok(token) } else { self.unexpected(&token, context) }
    }

    fn is_keyword(token: &Token, word: &str) -> bool {
        token.kind == Kind::Keyword && token.text == word
    }

    fn add(&mut self, name: String, nodes: Vec<Node>) -> Result<(), String> {
        match self.trees.get(&name) {
            Some(known) if !is_blank(known) => {
                if !is_blank(&nodes) {
                    let name = quoted(&name);
                    return self.fault(format!("template: multiple definition of template {name}"));
                }
            }
            _ => {
                self.trees.insert(name, nodes);
            }
        }
        Ok(())
    }

    fn top(&mut self) -> Result<Vec<Node>, String> {
        let mut nodes = Vec::new();
        while self.peek().kind != Kind::End {
            if self.peek().kind == Kind::Open {
                let before = self.next;
                self.next += 1;
                let word = self.take_word();
                if Self::is_keyword(&word, "define") {
                    self.definition()?;
                    continue;
                }
                self.next = before;
            }
            match self.node()? {
                Ok(node) => nodes.extend(node),
                Err(ending) => return self.fault(format!("unexpected {}", ending.shown())),
            }
        }
        Ok(nodes)
    }

    fn definition(&mut self) -> Result<(), String> {
        let context = "define clause";
        let token = self.take_word();
        let name = self.name(&token, context)?;
        self.expect(Kind::Close, context)?;
        let nodes = self.body(context)?;
        self.add(name, nodes)
    }

    /// The body of a template in this text, which has variables of its own.
    fn body(&mut self, context: &str) -> Result<Vec<Node>, String> {
        let variables = std::mem::replace(&mut self.variables, vec!["$".into()]);
        let depth = std::mem::take(&mut self.range_depth);
        let (nodes, ending) = self.list()?;
        if ending != Ending::End {
            return self.fault(format!("unexpected {} in {context}", ending.shown()));
        }
        self.variables = variables;
        self.range_depth = depth;
        Ok(nodes)
    }

    fn list(&mut self) -> Result<(Vec<Node>, Ending), String> {
        let mut nodes = Vec::new();
        while self.peek_word().kind != Kind::End {
            match self.node()? {
                Ok(node) => nodes.extend(node),
                Err(ending) => return Ok((nodes, ending)),
            }
        }
        self.fault("unexpected EOF")
    }

    fn node(&mut self) -> Result<Result<Option<Node>, Ending>, String> {
        let token = self.take_word();
        match token.kind {
            Kind::Text => Ok(Ok(Some(Node::Text(token.text)))),
            Kind::Open => {
                self.action_line = token.line;
                let node = self.action();
                self.action_line = 0;
                node
            }
            _ => self.unexpected(&token, "input"),
        }
    }

    fn action(&mut self) -> Result<Result<Option<Node>, Ending>, String> {
        let token = self.peek_word();
        if token.kind != Kind::Keyword {
            return Ok(Ok(Some(Node::Action(self.pipe("command", Kind::Close)?))));
        }
        self.next += 1;
        Ok(Ok(Some(match token.text.as_str() {
            "block" => self.block()?,
            "break" => self.leave("{{break}}", Node::Break)?,
            "continue" => self.leave("{{continue}}", Node::Continue)?,
            "else" => {
                let next = self.peek_word();
                if !Self::is_keyword(&next, "if") && !Self::is_keyword(&next, "with") {
                    self.expect(Kind::Close, "else")?;
                }
                return Ok(Err(Ending::Else));
            }
            "end" => {
                self.expect(Kind::Close, "end")?;
                return Ok(Err(Ending::End));
            }
            "if" => Node::If(self.control("if")?),
            "with" => Node::With(self.control("with")?),
            "range" => Node::Range(self.control("range")?),
            "template" => self.call()?,
            _ => {
                self.next -= 1;
                Node::Action(self.pipe("command", Kind::Close)?)
            }
        })))
    }

    fn leave(&mut self, word: &str, node: Node) -> Result<Node, String> {
        let token = self.take_word();
        if token.kind != Kind::Close {
            return self.unexpected(&token, word);
        }
        if self.range_depth == 0 {
            return self.fault(format!("{word} outside {{{{range}}}}"));
        }
        Ok(node)
    }

    fn control(&mut self, context: &str) -> Result<Branch, String> {
        let known = self.variables.len();
        let pipe = self.pipe(context, Kind::Close)?;
        let inner = usize::from(context == "range");
        self.range_depth += inner;
        let (body, ending) = self.list()?;
        self.range_depth -= inner;
        let mut otherwise = Vec::new();
        if ending == Ending::Else {
            let next = self.peek();
            if context != "range" && Self::is_keyword(&next, context) {
                // `{{else if}}` is an `{{if}}` in the `{{else}}`, and their `{{end}}` is one.
                self.next += 1;
                let branch = self.control(context)?;
                otherwise.push(if context == "if" { Node::If(branch) } else { Node::With(branch) });
            } else {
                let (nodes, ending) = self.list()?;
                if ending != Ending::End {
                    return self.fault(format!("expected end; found {}", ending.shown()));
                }
                otherwise = nodes;
            }
        }
        self.variables.truncate(known);
        Ok(Branch { pipe, body, otherwise })
    }

    fn name(&mut self, token: &Token, context: &str) -> Result<String, String> {
        match token.kind {
            Kind::Quoted | Kind::Raw => unquote(&token.text).or_else(|problem| self.fault(problem)),
            _ => self.unexpected(token, context),
        }
    }

    fn block(&mut self) -> Result<Node, String> {
        let context = "block clause";
        let token = self.take_word();
        let name = self.name(&token, context)?;
        let pipe = self.pipe(context, Kind::Close)?;
        let nodes = self.body(context)?;
        self.add(name.clone(), nodes)?;
        Ok(Node::Call(Call { at: token.at, name, pipe: Some(pipe) }))
    }

    fn call(&mut self) -> Result<Node, String> {
        let context = "template clause";
        let token = self.take_word();
        let name = self.name(&token, context)?;
        let pipe = if self.peek_word().kind == Kind::Close {
            self.next += 1;
            None
        } else {
            Some(self.pipe(context, Kind::Close)?)
        };
        Ok(Node::Call(Call { at: token.at, name, pipe }))
    }

    /// The variables before `:=` or `=`, if there are any.
    fn variables(&mut self, pipe: &mut Pipe, context: &str) -> Result<(), String> {
        while self.peek_word().kind == Kind::Variable {
            let before = self.next;
            let name = self.take().text;
            let next = self.peek_word();
            let another = next.kind == Kind::Character && next.text == ",";
            if !another && !matches!(next.kind, Kind::Assign | Kind::Declare) {
                self.next = before;
                return Ok(());
            }
            self.next += 1;
            pipe.variables.push(name.clone());
            self.variables.push(name);
            if !another {
                pipe.assigns = next.kind == Kind::Assign;
                return Ok(());
            }
            if context != "range" || pipe.variables.len() >= 2 {
                return self.fault(format!("too many declarations in {context}"));
            }
            if !matches!(self.peek_word().kind, Kind::Variable | Kind::Close | Kind::Right) {
                return self.fault("range can only initialize variables");
            }
        }
        Ok(())
    }

    fn pipe(&mut self, context: &str, end: Kind) -> Result<Pipe, String> {
        let at = self.peek_word().at;
        let mut pipe = Pipe { at, variables: Vec::new(), assigns: false, commands: Vec::new() };
        self.variables(&mut pipe, context)?;
        loop {
            let token = self.take_word();
            match token.kind {
                kind if kind == end => break,
                Kind::Boolean
                | Kind::CharacterConstant
                | Kind::Dot
                | Kind::Field
                | Kind::Identifier
                | Kind::Number
                | Kind::Raw
                | Kind::Quoted
                | Kind::Variable
                | Kind::Left => {}
                Kind::Keyword if token.text == "nil" => {}
                _ => return self.unexpected(&token, context),
            }
            self.next -= 1;
            pipe.commands.push(self.command()?);
        }
        if pipe.commands.is_empty() {
            return self.fault(format!("missing value for {context}"));
        }
        let stage = pipe.commands.iter().skip(1).position(|command| {
            matches!(
                command.operands[0].term,
                Term::Boolean(_) | Term::Dot | Term::Nil | Term::Number { .. } | Term::Text { .. }
            )
        });
        match stage {
            Some(index) => {
                self.fault(format!("non executable command in pipeline stage {}", index + 2))
            }
            None => Ok(pipe),
        }
    }

    fn command(&mut self) -> Result<Command, String> {
        let at = self.peek_word().at;
        let mut operands = Vec::new();
        loop {
            self.peek_word();
            operands.extend(self.operand()?);
            let token = self.take();
            match token.kind {
                Kind::Space => continue,
                Kind::Close | Kind::Right => self.next -= 1,
                Kind::Pipe => {}
                _ => return self.unexpected(&token, "operand"),
            }
            break;
        }
        if operands.is_empty() {
            return self.fault("empty command");
        }
        Ok(Command { at, operands })
    }

    fn operand(&mut self) -> Result<Option<Operand>, String> {
        let Some(operand) = self.term()? else { return Ok(None) };
        if self.peek().kind != Kind::Field {
            return Ok(Some(operand));
        }
        // Where the second one is, as upstream tells it.
        let at = self.peek().at;
        let mut more = Vec::new();
        while self.peek().kind == Kind::Field {
            more.push(self.take().text[1..].to_owned());
        }
        let term = match operand.term {
            Term::Field(mut fields) => {
                fields.append(&mut more);
                Term::Field(fields)
            }
            Term::Variable { name, mut fields } => {
                fields.append(&mut more);
                Term::Variable { name, fields }
            }
            Term::Boolean(_) | Term::Text { .. } | Term::Number { .. } | Term::Nil | Term::Dot => {
                let shown = quoted(&operand.to_string());
                return self.fault(format!("unexpected . after term {shown}"));
            }
            Term::Function(_) | Term::Chain { .. } | Term::Pipe(_) => {
                Term::Chain { of: Box::new(operand), fields: more }
            }
        };
        Ok(Some(Operand { at, term }))
    }

    fn term(&mut self) -> Result<Option<Operand>, String> {
        let token = self.take_word();
        let term = match token.kind {
            Kind::Identifier if functions::is_known(&token.text) => {
                Term::Function(token.text.clone())
            }
            Kind::Identifier => {
                return self.fault(format!("function {} not defined", quoted(&token.text)));
            }
            Kind::Dot => Term::Dot,
            Kind::Keyword if token.text == "nil" => Term::Nil,
            Kind::Variable if self.variables.contains(&token.text) => {
                Term::Variable { name: token.text.clone(), fields: Vec::new() }
            }
            Kind::Variable => {
                return self.fault(format!("undefined variable {}", quoted(&token.text)));
            }
            Kind::Field => Term::Field(vec![token.text[1..].to_owned()]),
            Kind::Boolean => Term::Boolean(token.text == "true"),
            Kind::CharacterConstant | Kind::Number => match number(&token.text) {
                Ok(value) => Term::Number { text: token.text.clone(), value },
                Err(problem) => return self.fault(problem),
            },
            Kind::Left => {
                let pipe = self.pipe("parenthesized pipeline", Kind::Right)?;
                return Ok(Some(Operand { at: pipe.at, term: Term::Pipe(pipe) }));
            }
            Kind::Quoted | Kind::Raw => match unquote(&token.text) {
                Ok(value) => Term::Text { written: token.text.clone(), value },
                Err(problem) => return self.fault(problem),
            },
            _ => {
                self.next -= 1;
                return Ok(None);
            }
        };
        Ok(Some(Operand { at: token.at, term }))
    }
}

/// The value of a constant.
fn number(text: &str) -> Result<Number, String> {
    let bad = || format!("illegal number syntax: {}", quoted(text));
    if let Some(inner) = text.strip_prefix('\'') {
        let inner = inner.strip_suffix('\'').unwrap_or(inner);
        let inner = if inner == "\\'" { "'" } else { inner };
        let value = unquote(&format!("\"{}\"", inner.replace('"', "\\\"")))
            .map_err(|_| format!("malformed character constant: {text}"))?;
        let mut characters = value.chars();
        return match (characters.next(), characters.next()) {
            (Some(c), None) => Ok(Number::Integer(i64::from(u32::from(c)))),
            _ => Err(format!("malformed character constant: {text}")),
        };
    }
    let plain = text.replace('_', "");
    let (sign, digits) = match plain.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let lower = digits.to_lowercase();
    let radix = match lower.get(..2) {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 10,
    };
    if radix == 10 && lower.contains(['.', 'e']) {
        return plain.parse().map(Number::Float).map_err(|_| bad());
    }
    let octal = radix == 10 && lower.len() > 1 && lower.starts_with('0');
    let (radix, digits) = match radix {
        10 if octal => (8, &lower[1..]),
        10 => (10, lower.as_str()),
        _ => (radix, &lower[2..]),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(bad());
    }
    // More digits than fit are more than fits.
    let value = i128::from_str_radix(digits, radix).map_or(i128::MAX, |value| value * sign);
    match i64::try_from(value) {
        Ok(value) => Ok(Number::Integer(value)),
        Err(_) if u64::try_from(value).is_ok() => Ok(Number::TooLarge),
        Err(_) => Err(format!("integer overflow: {}", quoted(text))),
    }
}
