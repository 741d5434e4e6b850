//! What a template consists of, and how Go writes it in its errors.
//!
//! Source: `text/template/parse/node.go`.

use std::fmt;

/// A part of a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    Text(String),
    Action(Pipe),
    If(Branch),
    With(Branch),
    Range(Branch),
    Call(Call),
    Break,
    Continue,
}

/// What depends on a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    pub pipe: Pipe,
    pub body: Vec<Node>,
    pub otherwise: Vec<Node>,
}

/// `{{template "name" pipe}}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub at: usize,
    pub name: String,
    pub pipe: Option<Pipe>,
}

/// Commands, each of which has the value of the one before as its last argument.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipe {
    pub at: usize,
    /// Variables that get the value.
    pub variables: Vec<String>,
    /// The variables are there already.
    pub assigns: bool,
    pub commands: Vec<Command>,
}

/// A function or value with arguments.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    pub at: usize,
    pub operands: Vec<Operand>,
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Operand {
    pub at: usize,
    pub term: Term,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Term {
    Function(String),
    Field(Vec<String>),
    Variable { name: String, fields: Vec<String> },
    Chain { of: Box<Operand>, fields: Vec<String> },
    Pipe(Pipe),
    Boolean(bool),
    Dot,
    Nil,
    Number { text: String, value: Number },
    Text { written: String, value: String },
}

/// A constant's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Integer(i64),
    Float(f64),
    /// More than Go's int holds.
    TooLarge,
}

fn dotted(f: &mut fmt::Formatter<'_>, fields: &[String]) -> fmt::Result {
    fields.iter().try_for_each(|field| write!(f, ".{field}"))
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.term {
            Term::Function(name) => f.write_str(name),
            Term::Field(fields) => dotted(f, fields),
            Term::Variable { name, fields } => {
                f.write_str(name)?;
                dotted(f, fields)
            }
            Term::Chain { of, fields } => {
                match &of.term {
                    Term::Pipe(pipe) => write!(f, "({pipe})")?,
                    _ => write!(f, "{of}")?,
                }
                dotted(f, fields)
            }
            Term::Pipe(pipe) => write!(f, "{pipe}"),
            Term::Boolean(value) => write!(f, "{value}"),
            Term::Dot => f.write_str("."),
            Term::Nil => f.write_str("nil"),
            Term::Number { text, .. } => f.write_str(text),
            Term::Text { written, .. } => f.write_str(written),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, operand) in self.operands.iter().enumerate() {
            if index > 0 {
                f.write_str(" ")?;
            }
            match &operand.term {
                Term::Pipe(pipe) => write!(f, "({pipe})")?,
                _ => write!(f, "{operand}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.variables.is_empty() {
            let sign = if self.assigns { "=" } else { ":=" };
            write!(f, "{} {sign} ", self.variables.join(", "))?;
        }
        for (index, command) in self.commands.iter().enumerate() {
            if index > 0 {
                f.write_str(" | ")?;
            }
            write!(f, "{command}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{{template {}", super::format::quoted(&self.name))?;
        if let Some(pipe) = &self.pipe {
            write!(f, " {pipe}")?;
        }
        f.write_str("}}")
    }
}
