//! The words of a template.
//!
//! Source: `text/template/parse/lex.go`, whose errors are told in its words.

use super::format::quoted;

/// What a word is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// What is wrong; the lexer ends there.
    Error,
    End,
    Text,
    Open,
    Close,
    Space,
    Pipe,
    Assign,
    Declare,
    Left,
    Right,
    /// Any other printable ASCII character.
    Character,
    CharacterConstant,
    Number,
    Quoted,
    Raw,
    Field,
    Variable,
    Dot,
    Boolean,
    Identifier,
    /// `if`, `range`, `nil` and so on.
    Keyword,
}

/// A word with its place.
#[derive(Clone, Debug)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Its first byte.
    pub at: usize,
    /// As it is written; of an error the message.
    pub text: String,
    /// Its line, from 1.
    pub line: usize,
}

impl Token {
    /// As errors show it.
    pub fn shown(&self) -> String {
        match self.kind {
            Kind::End => "EOF".into(),
            Kind::Error => self.text.clone(),
            Kind::Keyword | Kind::Dot => format!("<{}>", self.text),
            _ if self.text.len() > 10 => {
                let start: String = self.text.chars().take(10).collect();
                format!("{}...", quoted(&start))
            }
            _ => quoted(&self.text),
        }
    }
}

const KEYWORDS: [&str; 11] = [
    "block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with",
];

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    start: usize,
    parens: usize,
    tokens: Vec<Token>,
}

/// All words; the last one is `End` or `Error`.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut lexer = Lexer { text, at: 0, start: 0, parens: 0, tokens: Vec::new() };
    if let Err(problem) = lexer.all() {
        let line = lexer.line(lexer.start);
        lexer.tokens.push(Token { kind: Kind::Error, at: lexer.start, text: problem, line });
    }
    lexer.tokens
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphabetic() || c.is_numeric()
}

/// As Go's `%#U` shows a character.
fn unicode(c: Option<char>) -> String {
    match c {
        None => "U+FFFFFFFFFFFFFFFF".into(),
        Some(c) if c.is_control() => format!("U+{:04X}", u32::from(c)),
        Some(c) => format!("U+{:04X} '{c}'", u32::from(c)),
    }
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text[..at].matches('\n').count()
    }

    fn emit(&mut self, kind: Kind) {
        let text = self.text[self.start..self.at].to_owned();
        self.tokens.push(Token { kind, at: self.start, text, line: self.line(self.start) });
        self.start = self.at;
    }

    fn skip_spaces(&mut self) {
        let spaces = self.rest().len() - self.rest().trim_start_matches(is_space).len();
        self.at += spaces;
        self.start = self.at;
    }

    fn all(&mut self) -> Result<(), String> {
        loop {
            let Some(open) = self.rest().find("{{") else {
                self.at = self.text.len();
                if self.at > self.start {
                    self.emit(Kind::Text);
                }
                self.emit(Kind::End);
                return Ok(());
            };
            let open = self.at + open;
            let inside = &self.text[open + 2..];
            let trims = inside.starts_with('-') && inside[1..].starts_with(is_space);
            let before = &self.text[self.start..open];
            self.at = self.start
                + if trims { before.trim_end_matches(is_space).len() } else { before.len() };
            if self.at > self.start {
                self.emit(Kind::Text);
            }
            (self.start, self.at) = (open, open + 2);
            let marker = if trims { 2 } else { 0 };
            if self.text[self.at + marker..].starts_with("/*") {
                self.at += marker;
                self.start = self.at;
                self.comment()?;
                continue;
            }
            self.emit(Kind::Open);
            self.at += marker;
            self.start = self.at;
            self.parens = 0;
            while self.inside()? {}
        }
    }

    fn comment(&mut self) -> Result<(), String> {
        let end = self.rest().find("*/").ok_or("unclosed comment")?;
        self.at += end + 2;
        let (closes, trims) = self.closes();
        if !closes {
            return Err("comment ends before closing delimiter".into());
        }
        self.at += if trims { 4 } else { 2 };
        self.start = self.at;
        if trims {
            self.skip_spaces();
        }
        Ok(())
    }

    /// Whether the action ends here, and the white space after it with it.
    fn closes(&self) -> (bool, bool) {
        let rest = self.rest();
        let trims = rest.starts_with(is_space) && rest[1..].starts_with("-}}");
        (trims || rest.starts_with("}}"), trims)
    }

    fn close(&mut self, trims: bool) {
        if trims {
            self.at += 2;
            self.start = self.at;
        }
        self.at += 2;
        self.emit(Kind::Close);
        if trims {
            self.skip_spaces();
        }
    }

    /// One word of an action; false at its end.
    fn inside(&mut self) -> Result<bool, String> {
        let (closes, trims) = self.closes();
        if closes {
            if self.parens > 0 {
                return Err("unclosed left paren".into());
            }
            self.close(trims);
            return Ok(false);
        }
        let Some(c) = self.next() else { return Err("unclosed action".into()) };
        match c {
            _ if is_space(c) => return Ok(self.spaces()),
            '=' => self.emit(Kind::Assign),
            ':' if self.next() == Some('=') => self.emit(Kind::Declare),
            ':' => return Err("expected :=".into()),
            '|' => self.emit(Kind::Pipe),
            '"' => self.quoted('"', "unterminated quoted string", Kind::Quoted)?,
            '\'' => {
                self.quoted('\'', "unterminated character constant", Kind::CharacterConstant)?;
            }
            '`' => {
                let end = self.rest().find('`').ok_or("unterminated raw quoted string")?;
                self.at += end + 1;
                self.emit(Kind::Raw);
            }
            '$' => self.named(Kind::Variable, Kind::Variable)?,
            '.' if !self.peek().is_some_and(|c| c.is_ascii_digit()) => {
                self.named(Kind::Field, Kind::Dot)?;
            }
            '.' | '+' | '-' | '0'..='9' => {
                self.at -= 1;
                self.number()?;
            }
            _ if is_word(c) => self.word()?,
            '(' => {
                self.emit(Kind::Left);
                self.parens += 1;
            }
            ')' => {
                self.parens = self.parens.checked_sub(1).ok_or("unexpected right paren")?;
                self.emit(Kind::Right);
            }
            ' '..='~' => self.emit(Kind::Character),
            _ => return Err(format!("unrecognized character in action: {}", unicode(Some(c)))),
        }
        Ok(true)
    }

    /// White space, the first of which was taken; false when the action ended with it.
    fn spaces(&mut self) -> bool {
        let mut last = self.start;
        while self.peek().is_some_and(is_space) {
            last = self.at;
            self.at += 1;
        }
        // The last one may belong to the end: ` -}}`.
        if self.rest().starts_with("-}}") {
            self.at = last;
            if last == self.start {
                self.close(true);
                return false;
            }
        }
        self.emit(Kind::Space);
        true
    }

    fn quoted(&mut self, end: char, problem: &str, kind: Kind) -> Result<(), String> {
        loop {
            match self.next() {
                Some('\\') if self.peek().is_some_and(|c| c != '\n') => {
                    self.next();
                }
                Some(c) if c == end => break,
                None | Some('\\' | '\n') => return Err(problem.into()),
                Some(_) => {}
            }
        }
        self.emit(kind);
        Ok(())
    }

    fn at_terminator(&self) -> bool {
        match self.peek() {
            None | Some('.' | ',' | '|' | ':' | ')' | '(') => true,
            Some(c) => is_space(c) || self.rest().starts_with("}}"),
        }
    }

    fn absorb(&mut self) -> Result<(), String> {
        while self.peek().is_some_and(is_word) {
            self.next();
        }
        if self.at_terminator() {
            Ok(())
        } else {
            Err(format!("bad character {}", unicode(self.peek())))
        }
    }

    /// A field or variable whose first character was taken; `alone` is what that character is by itself.
    fn named(&mut self, kind: Kind, alone: Kind) -> Result<(), String> {
        if self.at_terminator() {
            self.emit(alone);
            return Ok(());
        }
        self.absorb()?;
        self.emit(kind);
        Ok(())
    }

    fn word(&mut self) -> Result<(), String> {
        self.absorb()?;
        let kind = match &self.text[self.start..self.at] {
            "true" | "false" => Kind::Boolean,
            word if KEYWORDS.contains(&word) => Kind::Keyword,
            _ => Kind::Identifier,
        };
        self.emit(kind);
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        let problem = |lexer: &Self| {
            format!("bad number syntax: {}", quoted(&lexer.text[lexer.start..lexer.at]))
        };
        self.take(|c| matches!(c, '+' | '-'), 1);
        let mut radix = 10;
        if self.take(|c| c == '0', 1) {
            for (letters, other) in [("xX", 16), ("oO", 8), ("bB", 2)] {
                if self.take(|c| letters.contains(c), 1) {
                    radix = other;
                    break;
                }
            }
        }
        let digit = move |c: char| c == '_' || c.is_digit(radix);
        self.take(digit, usize::MAX);
        if self.take(|c| c == '.', 1) {
            self.take(digit, usize::MAX);
        }
        let power = match radix {
            10 => "eE",
            16 => "pP",
            _ => "",
        };
        if self.take(|c| power.contains(c), 1) {
            self.take(|c| matches!(c, '+' | '-'), 1);
            self.take(|c| c == '_' || c.is_ascii_digit(), usize::MAX);
        }
        self.take(|c| c == 'i', 1);
        if self.peek().is_some_and(is_word) {
            self.next();
            return Err(problem(self));
        }
        if self.peek().is_some_and(|c| matches!(c, '+' | '-')) {
            // A complex number, which no object has.
            return Err(problem(self));
        }
        self.emit(Kind::Number);
        Ok(())
    }

    /// Takes up to `most` characters that are `wanted`; whether there was one.
    fn take(&mut self, wanted: impl Fn(char) -> bool, most: usize) -> bool {
        let before = self.at;
        let mut taken = 0;
        while taken < most && self.peek().is_some_and(&wanted) {
            self.next();
            taken += 1;
        }
        self.at > before
    }
}
