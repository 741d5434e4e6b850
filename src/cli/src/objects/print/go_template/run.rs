//! A template at work.
//!
//! Source: `text/template/exec.go`, whose errors are told in its words.

use std::borrow::Cow;

use super::Template;
use super::format::{printed, quoted, shown};
use super::functions::{self, Parameter};
use super::parse::NAME;
use super::tree::{Branch, Call, Command, Node, Number, Operand, Pipe, Term};
use super::value::{Data, Held, Width};

/// How deep templates may call each other. Go allows more, on a stack that grows.
const DEEPEST: usize = 500;

/// How the walk goes on.
#[derive(Clone, Copy, PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

/// What is at work now, for errors.
#[derive(Clone, Copy)]
enum At<'a> {
    Operand(&'a Operand),
    Command(&'a Command),
    Pipe(&'a Pipe),
    Call(&'a Call),
}

/// One template that is carried out.
struct State<'a, 'o> {
    template: &'a Template,
    /// The name of the template among those of the text.
    name: &'a str,
    at: Option<At<'a>>,
    variables: Vec<(&'a str, Held<'a>)>,
    depth: usize,
    out: &'o mut String,
}

/// Writes what the template makes of an object. What was written before an error stays.
pub fn run<'a>(template: &'a Template, dot: Held<'a>, out: &mut String) -> Result<(), String> {
    let variables = vec![("$", dot.clone())];
    let mut state = State { template, name: NAME, at: None, variables, depth: 0, out };
    let Some(nodes) = template.trees.get(NAME) else { return Ok(()) };
    state.list(&dot, nodes).map(|_| ())
}

impl<'a> State<'a, '_> {
    fn fault<T>(&self, problem: impl std::fmt::Display) -> Result<T, String> {
        let Some(at) = self.at else { return Err(format!("template: {NAME}: {problem}")) };
        let (place, context) = match at {
            At::Operand(node) => (node.at, node.to_string()),
            At::Command(node) => (node.at, node.to_string()),
            At::Pipe(node) => (node.at, node.to_string()),
            At::Call(node) => (node.at, node.to_string()),
        };
        let before = &self.template.text[..place];
        let line = 1 + before.matches('\n').count();
        let column = before.rfind('\n').map_or(place, |end| place - end - 1);
        let name = quoted(self.name);
        Err(format!("template: {NAME}:{line}:{column}: executing {name} at <{context}>: {problem}"))
    }

    fn list(&mut self, dot: &Held<'a>, nodes: &'a [Node]) -> Result<Flow, String> {
        for node in nodes {
            let flow = self.node(dot, node)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, dot: &Held<'a>, node: &'a Node) -> Result<Flow, String> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Action(pipe) => {
                let value = self.pipe(dot, pipe)?;
                if pipe.variables.is_empty() {
                    self.out.push_str(&printed(&value.data));
                }
            }
            Node::If(branch) | Node::With(branch) => {
                let known = self.variables.len();
                let value = self.pipe(dot, &branch.pipe)?;
                let flow = if value.data.truth() {
                    let dot = if matches!(node, Node::With(_)) { &value } else { dot };
                    self.list(dot, &branch.body)?
                } else {
                    self.list(dot, &branch.otherwise)?
                };
                self.variables.truncate(known);
                return Ok(flow);
            }
            Node::Range(branch) => {
                let known = self.variables.len();
                let flow = self.range(dot, branch)?;
                self.variables.truncate(known);
                return Ok(flow);
            }
            Node::Call(call) => self.call(dot, call)?,
        }
        Ok(Flow::On)
    }

    fn range(&mut self, dot: &Held<'a>, branch: &'a Branch) -> Result<Flow, String> {
        let value = self.pipe(dot, &branch.pipe)?;
        let items: Vec<(Held<'a>, Held<'a>)> = match &value.data {
            Data::List(items) => (0..)
                .zip(*items)
                .map(|(i, item)| (Data::Integer(i, Width::Int).into(), Held::member(item)))
                .collect(),
            Data::Map(map) => {
                let mut items: Vec<_> = map.iter().collect();
                items.sort_by_key(|(key, _)| *key);
                let key = |text: &'a str| Data::Text(Cow::Borrowed(text)).into();
                items.into_iter().map(|(k, item)| (key(k), Held::member(item))).collect()
            }
            Data::Integer(count, width) => {
                if branch.pipe.variables.len() > 1 {
                    return self.fault(format!(
                        "can't use {count} to iterate over more than one variable"
                    ));
                }
                let number = |i| Data::Integer(i, *width).into();
                (0..*count).map(|i| (Data::Missing.into(), number(i))).collect()
            }
            Data::Missing | Data::Nil => Vec::new(),
            other => return self.fault(format!("range can't iterate over {}", printed(other))),
        };
        if items.is_empty() {
            return self.list(dot, &branch.otherwise);
        }
        let mark = self.variables.len();
        for (index, item) in items {
            self.step(&branch.pipe, mark, index, &item)?;
            let flow = self.list(&item, &branch.body)?;
            self.variables.truncate(mark);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    /// Gives a loop's variables their values.
    fn step(
        &mut self,
        pipe: &'a Pipe,
        mark: usize,
        index: Held<'a>,
        item: &Held<'a>,
    ) -> Result<(), String> {
        let values = match pipe.variables.len() {
            0 => return Ok(()),
            1 => vec![item.clone()],
            _ => vec![index, item.clone()],
        };
        let first = mark - if pipe.assigns { 0 } else { values.len() };
        for (place, (name, value)) in pipe.variables.iter().zip(values).enumerate() {
            if pipe.assigns {
                self.assign(name, value)?;
            } else {
                self.variables[first + place].1 = value;
            }
        }
        Ok(())
    }

    fn assign(&mut self, name: &str, value: Held<'a>) -> Result<(), String> {
        match self.variables.iter_mut().rev().find(|(known, _)| *known == name) {
            Some((_, held)) => {
                *held = value;
                Ok(())
            }
            None => self.fault(format!("undefined variable: {name}")),
        }
    }

    fn call(&mut self, dot: &Held<'a>, call: &'a Call) -> Result<(), String> {
        self.at = Some(At::Call(call));
        let template = self.template;
        let Some((name, nodes)) = template.trees.get_key_value(&call.name) else {
            return self.fault(format!("template {} not defined", quoted(&call.name)));
        };
        if self.depth == DEEPEST {
            return self.fault(format!("exceeded maximum template depth ({DEEPEST})"));
        }
        let dot = match &call.pipe {
            Some(pipe) => self.pipe(dot, pipe)?,
            None => Data::Missing.into(),
        };
        // Its variables are its own.
        let variables = vec![("$", dot.clone())];
        let depth = self.depth + 1;
        let mut state = State { template, name, at: self.at, variables, depth, out: self.out };
        state.list(&dot, nodes).map(|_| ())
    }

    fn pipe(&mut self, dot: &Held<'a>, pipe: &'a Pipe) -> Result<Held<'a>, String> {
        self.at = Some(At::Pipe(pipe));
        let mut value = None;
        for command in &pipe.commands {
            let result = self.command(dot, command, value)?;
            value = Some(if result.boxed { result.unboxed() } else { result });
        }
        let value = value.unwrap_or(Data::Missing.into());
        for name in &pipe.variables {
            if pipe.assigns {
                self.assign(name, value.clone())?;
            } else {
                self.variables.push((name, value.clone()));
            }
        }
        Ok(value)
    }

    fn command(
        &mut self,
        dot: &Held<'a>,
        command: &'a Command,
        last: Option<Held<'a>>,
    ) -> Result<Held<'a>, String> {
        let (first, arguments) = command.operands.split_first().expect("the parser saw one");
        if let Term::Function(name) = &first.term {
            self.at = Some(At::Operand(first));
            return self.function(dot, name, At::Command(command), arguments, last);
        }
        let given = !arguments.is_empty() || last.is_some();
        match &first.term {
            Term::Field(_) | Term::Chain { .. } => return self.value(dot, first, given),
            Term::Variable { fields, .. } if !fields.is_empty() => {
                return self.value(dot, first, given);
            }
            Term::Pipe(_) => {}
            _ => self.at = Some(At::Operand(first)),
        }
        if given {
            return self.fault(format!("can't give argument to non-function {first}"));
        }
        if first.term == Term::Nil {
            return self.fault("nil is not a command");
        }
        self.value(dot, first, false)
    }

    /// What an operand is; `given` says that it was given arguments, which only functions take.
    fn value(
        &mut self,
        dot: &Held<'a>,
        operand: &'a Operand,
        given: bool,
    ) -> Result<Held<'a>, String> {
        if let Term::Pipe(pipe) = &operand.term {
            return self.pipe(dot, pipe);
        }
        self.at = Some(At::Operand(operand));
        match &operand.term {
            Term::Function(name) => self.function(dot, name, At::Operand(operand), &[], None),
            Term::Field(fields) => self.fields(dot.clone(), fields, given),
            Term::Variable { name, fields } => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                match known.map(|(_, value)| value.clone()) {
                    Some(value) => self.fields(value, fields, given),
                    None => self.fault(format!("undefined variable: {name}")),
                }
            }
            Term::Chain { of, fields } => {
                let value = self.value(dot, of, false)?;
                self.fields(value, fields, given)
            }
            Term::Dot => Ok(dot.clone()),
            Term::Nil | Term::Pipe(_) => Ok(Data::Missing.into()),
            Term::Boolean(value) => Ok(Data::Boolean(*value).into()),
            Term::Text { value, .. } => Ok(Data::Text(Cow::Borrowed(value)).into()),
            Term::Number { value: Number::Integer(value), .. } => {
                Ok(Data::Integer(*value, Width::Int).into())
            }
            Term::Number { value: Number::Float(value), .. } => Ok(Data::Float(*value).into()),
            Term::Number { text, value: Number::TooLarge } => {
                self.fault(format!("{text} overflows int"))
            }
        }
    }

    fn fields(
        &self,
        mut value: Held<'a>,
        fields: &[String],
        given: bool,
    ) -> Result<Held<'a>, String> {
        for (index, name) in fields.iter().enumerate() {
            let given = given && index + 1 == fields.len();
            let strict = !self.template.missing_allowed;
            value = match &value.data {
                Data::Missing if strict => {
                    return self.fault(format!("nil data; no entry for key {}", quoted(name)));
                }
                Data::Missing => value,
                Data::Nil => {
                    return self.fault(format!("nil pointer evaluating {}.{name}", value.kind()));
                }
                Data::Map(_) if given => {
                    return self.fault(format!("{name} is not a method but has arguments"));
                }
                Data::Map(map) => match map.get(name) {
                    Some(member) => Held::member(member),
                    None if strict => {
                        return self.fault(format!("map has no entry for key {}", quoted(name)));
                    }
                    None => Data::Missing.into(),
                },
                _ => {
                    let kind = value.kind();
                    return self.fault(format!("can't evaluate field {name} in type {kind}"));
                }
            };
        }
        Ok(value)
    }

    fn function(
        &mut self,
        dot: &Held<'a>,
        name: &str,
        whole: At<'a>,
        arguments: &'a [Operand],
        last: Option<Held<'a>>,
    ) -> Result<Held<'a>, String> {
        let count = arguments.len() + usize::from(last.is_some());
        let parameters = functions::parameters(name);
        let fixed = parameters.fixed.len();
        if parameters.variadic && count < fixed {
            let given = arguments.len();
            return self.fault(format!(
                "wrong number of args for {name}: want at least {fixed} got {given}"
            ));
        }
        if !parameters.variadic && count != fixed {
            return self
                .fault(format!("wrong number of args for {name}: want {fixed} got {count}"));
        }
        let decides = matches!(name, "and" | "or");
        let mut values = Vec::new();
        for (index, operand) in arguments.iter().enumerate() {
            let value = self.argument(dot, operand, parameters.at(index))?;
            // The first that decides is the answer; what follows is not looked at.
            if decides && value.data.truth() == (name == "or") {
                return Ok(value);
            }
            values.push(value);
        }
        if let Some(last) = last {
            let last = self.fitting(last, parameters.at(values.len()))?;
            values.push(last);
        }
        if decides {
            return Ok(values.pop().unwrap_or(Data::Missing.into()));
        }
        // What is called is told as it is written.
        let called = match (name, arguments.first(), values.first()) {
            ("call", Some(operand), _) => operand.to_string(),
            ("call", None, Some(value)) => shown(&value.data),
            _ => String::new(),
        };
        functions::call(name, values).or_else(|problem| {
            self.at = Some(whole);
            let problem = problem.replacen("non-function", &format!("non-function {called}"), 1);
            self.fault(format!("error calling {name}: {problem}"))
        })
    }

    fn argument(
        &mut self,
        dot: &Held<'a>,
        operand: &'a Operand,
        parameter: Parameter,
    ) -> Result<Held<'a>, String> {
        if parameter == Parameter::Text {
            self.at = Some(At::Operand(operand));
            match &operand.term {
                Term::Nil => return self.fault("cannot assign nil to string"),
                Term::Boolean(_) | Term::Number { .. } => {
                    return self.fault(format!("expected string; found {operand}"));
                }
                _ => {}
            }
        }
        let value = self.value(dot, operand, false)?;
        self.fitting(value, parameter)
    }

    /// A value as a parameter takes it.
    fn fitting(&self, value: Held<'a>, parameter: Parameter) -> Result<Held<'a>, String> {
        if parameter == Parameter::Any {
            return Ok(value);
        }
        match &value.data {
            Data::Text(_) => Ok(value.unboxed()),
            Data::Missing => self.fault("invalid value; expected string"),
            Data::Nil => {
                self.fault(format!("wrong type for value; expected string; got {}", value.kind()))
            }
            other => {
                self.fault(format!("wrong type for value; expected string; got {}", other.kind()))
            }
        }
    }
}
