//! Text to syntax tree: the grammar of the CEL specification, macros expanded as they are met.

use super::ast::{Expr, Fold, Literal, Node};

/// What is wrong with the text, and where (offset in characters).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// Where.
    pub at: usize,
    /// What.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Literal(Literal),
    Ident(String),
    Op(&'static str),
    End,
}

const OPERATORS: [&str; 27] = [
    "&&", "||", "==", "!=", "<=", ">=", "[?", ".?", "(", ")", "[", "]", "{", "}", ",", ".", ":",
    "?", "+", "-", "*", "/", "%", "!", "<", ">", ";",
];
/// Expressions nested deeper than this are refused: the walkers of the tree recurse.
const MAX_DEPTH: usize = 40;
/// So are longer chains of operators or members, but for `&&` and `||`, which become balanced trees.
const MAX_CHAIN: usize = 80;
const TOO_DEEP: &str = "expression recursion limit exceeded";

fn error<T>(at: usize, message: impl Into<String>) -> Result<T, SyntaxError> {
    Err(SyntaxError { at, message: message.into() })
}

/// Parses a whole expression.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    let tokens = Lexer { chars: text.chars().collect(), at: 0 }.all()?;
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(node),
        other => {
            let text = show(other);
            error(
                parser.place(),
                format!("Syntax error: mismatched input '{text}' expecting <EOF>"),
            )
        }
    }
}

fn show(token: &Token) -> String {
    match token {
        Token::Literal(Literal::Text(text)) => format!("\"{text}\""),
        Token::Literal(literal) => format!("{literal:?}"),
        Token::Ident(name) => name.clone(),
        Token::Op(op) => (*op).to_owned(),
        Token::End => "<EOF>".into(),
    }
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn all(mut self) -> Result<Vec<(usize, Token)>, SyntaxError> {
        let mut tokens = Vec::new();
        loop {
            while self.peek(0).is_whitespace() {
                self.at += 1;
            }
            if self.peek(0) == '/' && self.peek(1) == '/' {
                while self.at < self.chars.len() && self.peek(0) != '\n' {
                    self.at += 1;
                }
                continue;
            }
            let at = self.at;
            if at >= self.chars.len() {
                tokens.push((at, Token::End));
                return Ok(tokens);
            }
            let token = self.token()?;
            tokens.push((at, token));
        }
    }

    fn token(&mut self) -> Result<Token, SyntaxError> {
        let c = self.peek(0);
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_ascii_digit()) {
            return self.number();
        }
        if matches!(c, '"' | '\'') {
            return self.text(false, false);
        }
        if c.is_ascii_alphabetic() || c == '_' {
            let prefix: String = [c, self.peek(1)].iter().collect::<String>().to_lowercase();
            let quote = |c: char| matches!(c, '"' | '\'');
            if matches!(c, 'r' | 'R' | 'b' | 'B') && quote(self.peek(1)) {
                self.at += 1;
                return self.text(matches!(c, 'r' | 'R'), matches!(c, 'b' | 'B'));
            }
            if matches!(prefix.as_str(), "rb" | "br") && quote(self.peek(2)) {
                self.at += 2;
                return self.text(true, true);
            }
            let mut name = String::new();
            while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == '_' {
                name.push(self.peek(0));
                self.at += 1;
            }
            return Ok(match name.as_str() {
                "true" => Token::Literal(Literal::Bool(true)),
                "false" => Token::Literal(Literal::Bool(false)),
                "null" => Token::Literal(Literal::Null),
                "in" => Token::Op("in"),
                _ => Token::Ident(name),
            });
        }
        if c == '`' {
            self.at += 1;
            let mut name = String::new();
            while self.peek(0) != '`' {
                if self.at >= self.chars.len() {
                    return error(self.at, "Syntax error: unterminated identifier");
                }
                name.push(self.peek(0));
                self.at += 1;
            }
            self.at += 1;
            return Ok(Token::Ident(name));
        }
        for op in OPERATORS {
            if op.chars().enumerate().all(|(i, c)| self.peek(i) == c) {
                // `a ? .5 : 1` has no optional select.
                if op == ".?"
                    && !(self.peek(2).is_ascii_alphabetic()
                        || matches!(self.peek(2), '_' | '`' | ' '))
                {
                    continue;
                }
                self.at += op.len();
                return Ok(Token::Op(op));
            }
        }
        error(self.at, format!("Syntax error: token recognition error at: '{c}'"))
    }

    fn number(&mut self) -> Result<Token, SyntaxError> {
        let at = self.at;
        let mut text = String::new();
        if self.peek(0) == '0' && matches!(self.peek(1), 'x' | 'X') {
            self.at += 2;
            while self.peek(0).is_ascii_hexdigit() {
                text.push(self.peek(0));
                self.at += 1;
            }
            if matches!(self.peek(0), 'u' | 'U') {
                self.at += 1;
                return u64::from_str_radix(&text, 16)
                    .map(|n| Token::Literal(Literal::Uint(n)))
                    .or_else(|_| error(at, "invalid uint literal"));
            }
            return i64::from_str_radix(&text, 16)
                .map(|n| Token::Literal(Literal::Int(n)))
                .or_else(|_| error(at, "invalid int literal"));
        }
        let mut double = false;
        loop {
            let c = self.peek(0);
            match c {
                '0'..='9' => {}
                '.' if !double && self.peek(1).is_ascii_digit() => double = true,
                'e' | 'E'
                    if self.peek(1).is_ascii_digit()
                        || (matches!(self.peek(1), '+' | '-') && self.peek(2).is_ascii_digit()) =>
                {
                    double = true;
                    text.push(c);
                    self.at += 1;
                }
                _ => break,
            }
            text.push(self.peek(0));
            self.at += 1;
        }
        if double {
            return text
                .parse()
                .map(|n| Token::Literal(Literal::Double(n)))
                .or_else(|_| error(at, "invalid double literal"));
        }
        if matches!(self.peek(0), 'u' | 'U') {
            self.at += 1;
            return text
                .parse()
                .map(|n| Token::Literal(Literal::Uint(n)))
                .or_else(|_| error(at, "invalid uint literal"));
        }
        // The least integer has no positive counterpart; its sign follows as an operator.
        match text.parse::<u64>() {
            Ok(n) if i64::try_from(n).is_ok() => Ok(Token::Literal(Literal::Int(n as i64))),
            Ok(n) if n == i64::MAX as u64 + 1 => Ok(Token::Literal(Literal::Uint(n))),
            _ => error(at, "invalid int literal"),
        }
    }

    fn text(&mut self, raw: bool, bytes: bool) -> Result<Token, SyntaxError> {
        let at = self.at;
        let quote = self.peek(0);
        let long = self.peek(1) == quote && self.peek(2) == quote;
        self.at += if long { 3 } else { 1 };
        let (mut out, mut octets) = (String::new(), Vec::new());
        loop {
            if self.at >= self.chars.len() || (!long && self.peek(0) == '\n') {
                return error(at, "Syntax error: unterminated string");
            }
            let c = self.peek(0);
            if c == quote && (!long || (self.peek(1) == quote && self.peek(2) == quote)) {
                self.at += if long { 3 } else { 1 };
                break;
            }
            self.at += 1;
            if c != '\\' || raw {
                out.push(c);
                octets.extend(c.to_string().bytes());
                continue;
            }
            let (made, octet) = self.escape(bytes)?;
            out.push(made);
            match octet {
                Some(octet) => octets.push(octet),
                None => octets.extend(made.to_string().bytes()),
            }
        }
        Ok(Token::Literal(if bytes { Literal::Bytes(octets) } else { Literal::Text(out) }))
    }

    fn escape(&mut self, bytes: bool) -> Result<(char, Option<u8>), SyntaxError> {
        let at = self.at;
        let c = self.peek(0);
        self.at += 1;
        let (count, radix) = match c {
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => {
                self.at -= 1;
                (3, 8)
            }
            _ => {
                let made = match c {
                    'a' => '\u{7}',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'v' => '\u{b}',
                    '\\' | '\'' | '"' | '`' | '?' => c,
                    _ => return error(at, "Syntax error: unable to unescape string"),
                };
                return Ok((made, None));
            }
        };
        let digits: String = (0..count).map(|i| self.peek(i)).collect();
        self.at += count;
        let code = u32::from_str_radix(&digits, radix).ok();
        match code.and_then(|code| Some((char::from_u32(code)?, code))) {
            Some((made, code)) => Ok((made, (bytes && count < 4).then_some(code as u8))),
            None => error(at, "Syntax error: unable to unescape string"),
        }
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

fn call(at: usize, name: &str, args: Vec<Node>) -> Node {
    Node { at, expr: Expr::Call { target: None, name: name.into(), args } }
}

/// A tree of `terms`, no deeper than it must be.
fn balanced(mut terms: Vec<Node>, join: fn(Box<Node>, Box<Node>) -> Expr) -> Node {
    if terms.len() == 1 {
        return terms.remove(0);
    }
    let right = terms.split_off(terms.len() / 2);
    let (left, right) = (balanced(terms, join), balanced(right, join));
    Node { at: left.at, expr: join(Box::new(left), Box::new(right)) }
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at.min(self.tokens.len() - 1)].1
    }

    fn place(&self) -> usize {
        self.tokens[self.at.min(self.tokens.len() - 1)].0
    }

    fn take(&mut self, op: &str) -> bool {
        let found = matches!(self.peek(), Token::Op(o) if *o == op);
        if found {
            self.at += 1;
        }
        found
    }

    fn expect(&mut self, op: &str) -> Result<(), SyntaxError> {
        if self.take(op) {
            return Ok(());
        }
        let text = show(self.peek());
        error(self.place(), format!("Syntax error: mismatched input '{text}' expecting '{op}'"))
    }

    fn expression(&mut self) -> Result<Node, SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return error(self.place(), TOO_DEEP);
        }
        let condition = self.or()?;
        let at = self.place();
        let node = if self.take("?") {
            let yes = self.or()?;
            self.expect(":")?;
            let no = self.expression()?;
            Node { at, expr: Expr::If(Box::new(condition), Box::new(yes), Box::new(no)) }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn or(&mut self) -> Result<Node, SyntaxError> {
        let mut terms = vec![self.and()?];
        while self.take("||") {
            terms.push(self.and()?);
        }
        Ok(balanced(terms, Expr::Or))
    }

    fn and(&mut self) -> Result<Node, SyntaxError> {
        let mut terms = vec![self.relation()?];
        while self.take("&&") {
            terms.push(self.relation()?);
        }
        Ok(balanced(terms, Expr::And))
    }

    fn binary(
        &mut self,
        operators: &[&'static str],
        next: fn(&mut Self) -> Result<Node, SyntaxError>,
    ) -> Result<Node, SyntaxError> {
        let mut left = next(self)?;
        for length in 0.. {
            let at = self.place();
            if length > MAX_CHAIN {
                return error(at, TOO_DEEP);
            }
            let Some(op) = operators.iter().find(|op| self.take(op)) else { return Ok(left) };
            let right = next(self)?;
            left = call(at, op, vec![left, right]);
        }
        Ok(left)
    }

    fn relation(&mut self) -> Result<Node, SyntaxError> {
        self.binary(&["<=", ">=", "<", ">", "==", "!=", "in"], Self::addition)
    }

    fn addition(&mut self) -> Result<Node, SyntaxError> {
        self.binary(&["+", "-"], Self::multiplication)
    }

    fn multiplication(&mut self) -> Result<Node, SyntaxError> {
        self.binary(&["*", "/", "%"], Self::unary)
    }

    fn unary(&mut self) -> Result<Node, SyntaxError> {
        let at = self.place();
        if self.take("!") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return error(at, TOO_DEEP);
            }
            let of = self.unary()?;
            self.depth -= 1;
            return Ok(call(at, "!", vec![of]));
        }
        if self.take("-") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return error(at, TOO_DEEP);
            }
            let of = self.unary()?;
            self.depth -= 1;
            return Ok(match of.expr {
                Expr::Literal(Literal::Int(n)) => {
                    Node { at, expr: Expr::Literal(Literal::Int(-n)) }
                }
                Expr::Literal(Literal::Double(n)) => {
                    Node { at, expr: Expr::Literal(Literal::Double(-n)) }
                }
                Expr::Literal(Literal::Uint(n)) if n == i64::MAX as u64 + 1 => {
                    Node { at, expr: Expr::Literal(Literal::Int(i64::MIN)) }
                }
                _ => call(at, "-_", vec![of]),
            });
        }
        self.member()
    }

    fn ident(&mut self) -> Result<String, SyntaxError> {
        match self.peek().clone() {
            Token::Ident(name) => {
                self.at += 1;
                Ok(name)
            }
            // `in` and the literals are words that fields may have after a dot.
            Token::Op("in") => {
                self.at += 1;
                Ok("in".into())
            }
            other => {
                let text = show(&other);
                error(
                    self.place(),
                    format!("Syntax error: mismatched input '{text}' expecting IDENTIFIER"),
                )
            }
        }
    }

    fn member(&mut self) -> Result<Node, SyntaxError> {
        let mut node = self.primary()?;
        for length in 0.. {
            let at = self.place();
            if length > MAX_CHAIN {
                return error(at, TOO_DEEP);
            }
            if self.take(".?") {
                let field = self.ident()?;
                node =
                    Node { at, expr: Expr::Select { of: Box::new(node), field, optional: true } };
            } else if self.take(".") {
                let field = self.ident()?;
                let open = self.place();
                if self.take("(") {
                    let args = self.arguments()?;
                    node = self.method(open, node, field, args)?;
                } else {
                    node = Node {
                        at,
                        expr: Expr::Select { of: Box::new(node), field, optional: false },
                    };
                }
            } else if self.take("[?") {
                let index = Box::new(self.expression()?);
                self.expect("]")?;
                node = Node { at, expr: Expr::Index { of: Box::new(node), index, optional: true } };
            } else if self.take("[") {
                let index = Box::new(self.expression()?);
                self.expect("]")?;
                node =
                    Node { at, expr: Expr::Index { of: Box::new(node), index, optional: false } };
            } else if matches!(self.peek(), Token::Op("{")) && names_type(&node) {
                self.at += 1;
                let name = dotted(&node).unwrap_or_default();
                let fields = self.fields()?;
                node = Node { at: node.at, expr: Expr::Struct(name, fields) };
            } else {
                break;
            }
        }
        Ok(node)
    }

    fn fields(&mut self) -> Result<Vec<(bool, String, Node)>, SyntaxError> {
        let mut fields = Vec::new();
        while !self.take("}") {
            let optional = self.take("?");
            let name = self.ident()?;
            self.expect(":")?;
            fields.push((optional, name, self.expression()?));
            if !self.take(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok(fields)
    }

    fn arguments(&mut self) -> Result<Vec<Node>, SyntaxError> {
        let mut args = Vec::new();
        while !self.take(")") {
            args.push(self.expression()?);
            if !self.take(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(args)
    }

    fn primary(&mut self) -> Result<Node, SyntaxError> {
        let at = self.place();
        match self.peek().clone() {
            Token::Literal(literal) => {
                self.at += 1;
                Ok(Node { at, expr: Expr::Literal(literal) })
            }
            Token::Ident(name) => {
                self.at += 1;
                let open = self.place();
                if self.take("(") {
                    let args = self.arguments()?;
                    return self.function(open, name, args);
                }
                Ok(Node { at, expr: Expr::Ident(name) })
            }
            Token::Op(".") => {
                self.at += 1;
                self.primary()
            }
            Token::Op("(") => {
                self.at += 1;
                let node = self.expression()?;
                self.expect(")")?;
                Ok(node)
            }
            Token::Op(open @ ("[" | "[?")) => {
                self.at += 1;
                let mut items = Vec::new();
                let mut first_optional = open == "[?";
                while first_optional || !self.take("]") {
                    let optional = std::mem::take(&mut first_optional) || self.take("?");
                    items.push((optional, self.expression()?));
                    if !self.take(",") {
                        self.expect("]")?;
                        break;
                    }
                }
                Ok(Node { at, expr: Expr::List(items) })
            }
            Token::Op("{") => {
                self.at += 1;
                let mut entries = Vec::new();
                while !self.take("}") {
                    let optional = self.take("?");
                    let key = self.expression()?;
                    self.expect(":")?;
                    entries.push((optional, key, self.expression()?));
                    if !self.take(",") {
                        self.expect("}")?;
                        break;
                    }
                }
                Ok(Node { at, expr: Expr::Map(entries) })
            }
            other => {
                let text = show(&other);
                error(
                    at,
                    format!(
                        "Syntax error: mismatched input '{text}' expecting {{'[', '{{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}}"
                    ),
                )
            }
        }
    }

    fn function(
        &mut self,
        at: usize,
        name: String,
        mut args: Vec<Node>,
    ) -> Result<Node, SyntaxError> {
        if name == "has" && args.len() == 1 {
            return match args.remove(0).expr {
                Expr::Select { of, field, optional: false } => {
                    Ok(Node { at, expr: Expr::Has { of, field } })
                }
                _ => error(at, "invalid argument to has() macro"),
            };
        }
        Ok(Node { at, expr: Expr::Call { target: None, name, args } })
    }

    fn method(
        &mut self,
        at: usize,
        target: Node,
        name: String,
        mut args: Vec<Node>,
    ) -> Result<Node, SyntaxError> {
        let variable = |node: &Node| match &node.expr {
            Expr::Ident(name) => Ok(name.clone()),
            _ => error(node.at, "argument must be a simple name"),
        };
        if matches!(name.as_str(), "optMap" | "optFlatMap") && args.len() == 2 {
            let step = Box::new(args.remove(1));
            let flat = name == "optFlatMap";
            let name = variable(&args[0])?;
            return Ok(Node {
                at,
                expr: Expr::OptMap { target: Box::new(target), name, step, flat },
            });
        }
        if name == "bind" && args.len() == 3 && matches!(&target.expr, Expr::Ident(n) if n == "cel")
        {
            // A binding is a map over a list of one.
            let step = args.remove(2);
            let list = Node { at, expr: Expr::List(vec![(false, args.remove(1))]) };
            let key = variable(&args[0])?;
            let fold = Expr::Fold {
                kind: Fold::Map,
                range: Box::new(list),
                key,
                value: None,
                condition: None,
                step: Box::new(step),
            };
            let zero = Node { at, expr: Expr::Literal(Literal::Int(0)) };
            return Ok(Node {
                at,
                expr: Expr::Index {
                    of: Box::new(Node { at, expr: fold }),
                    index: Box::new(zero),
                    optional: false,
                },
            });
        }
        let (kind, two, condition) = match (name.as_str(), args.len()) {
            ("all", 2) => (Fold::All, false, false),
            ("all", 3) => (Fold::All, true, false),
            ("exists", 2) => (Fold::Exists, false, false),
            ("exists", 3) => (Fold::Exists, true, false),
            ("exists_one" | "existsOne", 2) => (Fold::ExistsOne, false, false),
            ("exists_one" | "existsOne", 3) => (Fold::ExistsOne, true, false),
            ("map", 2) => (Fold::Map, false, false),
            ("map", 3) => (Fold::Map, false, true),
            ("filter", 2) => (Fold::Filter, false, false),
            ("transformList", 3) => (Fold::Map, true, false),
            ("transformList", 4) => (Fold::Map, true, true),
            ("transformMap", 3) => (Fold::TransformMap, true, false),
            ("transformMap", 4) => (Fold::TransformMap, true, true),
            ("transformMapEntry", 3) => (Fold::TransformEntries, true, false),
            ("transformMapEntry", 4) => (Fold::TransformEntries, true, true),
            ("sortBy", 2) => (Fold::SortBy, false, false),
            _ => {
                let target = Some(Box::new(target));
                return Ok(Node { at, expr: Expr::Call { target, name, args } });
            }
        };
        let step = Box::new(args.pop().unwrap_or_else(|| call(at, "", Vec::new())));
        let condition = if condition { args.pop().map(Box::new) } else { None };
        let key = variable(&args[0])?;
        let value = if two { Some(variable(&args[1])?) } else { None };
        let range = Box::new(target);
        Ok(Node { at, expr: Expr::Fold { kind, range, key, value, condition, step } })
    }
}

/// Whether a brace after the node begins a message: a word of its name is a type's.
fn names_type(node: &Node) -> bool {
    dotted(node).is_some_and(|name| {
        name.split('.').any(|word| word.starts_with(|c: char| c.is_ascii_uppercase()))
    })
}

/// `a.b.c` as text, if the node is nothing else.
pub(super) fn dotted(node: &Node) -> Option<String> {
    match &node.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select { of, field, optional: false } => Some(format!("{}.{field}", dotted(of)?)),
        _ => None,
    }
}
