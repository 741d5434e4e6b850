//! JSON paths as printer columns, scale subresources and selectable fields use them.
//!
//! Source: `k8s.io/client-go/util/jsonpath`: `.a.b`, `['key']`, `[0]`, `[-1]`, `[*]`, `[1:3]`, `..a`,
//! `['a','b']`, `[?(@.type=="Ready")]`, and a backslash before a dot that belongs to a name.

use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Every,
    Recursive,
    /// Paths from here, one after the other.
    Union(Vec<Vec<Step>>),
    Filter {
        path: Vec<Step>,
        operator: Operator,
        operand: Option<Value>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Exists,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses a path such as `.status.conditions[?(@.type=="Ready")].status`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        let mut parser = Parser { text: inner, at: 0 };
        let steps = parser.steps()?;
        if parser.at < inner.len() {
            return Err(format!("unexpected {:?}", &inner[parser.at..]));
        }
        Ok(Self(steps))
    }

    /// All values at the path.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, vec![value])
    }

    /// All values at the path, as a template asks for them: what is no list cannot be indexed, nor a list beyond its
    /// end, and without `missing_allowed` each field must be there.
    pub fn ask<'v>(
        &self,
        value: &'v Value,
        missing_allowed: bool,
    ) -> Result<Vec<&'v Value>, String> {
        ask(&self.0, vec![value], missing_allowed)
    }

    /// The first value at the path.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }

    /// The names of a path of plain fields, such as `.spec.replicas`.
    pub fn plain_fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|s| if let Step::Field(f) = s { Some(f.as_str()) } else { None })
            .collect()
    }
}

fn walk<'v>(steps: &[Step], mut found: Vec<&'v Value>) -> Vec<&'v Value> {
    for step in steps {
        found = match step {
            Step::Union(paths) => paths.iter().flat_map(|path| walk(path, found.clone())).collect(),
            step => found.into_iter().flat_map(|value| one(step, value)).collect(),
        };
    }
    found
}

fn ask<'v>(
    steps: &[Step],
    mut found: Vec<&'v Value>,
    missing_allowed: bool,
) -> Result<Vec<&'v Value>, String> {
    for step in steps {
        match step {
            Step::Union(paths) => {
                let mut all = Vec::new();
                for path in paths {
                    all.extend(ask(path, found.clone(), missing_allowed)?);
                }
                found = all;
                continue;
            }
            Step::Index(index) => found.iter().try_for_each(|value| reaches(value, *index))?,
            Step::Slice(..) => found.iter().try_for_each(|value| list_in(value).map(|_| ()))?,
            _ => {}
        }
        found = found.into_iter().flat_map(|value| one(step, value)).collect();
        if let Step::Field(name) = step
            && found.is_empty()
            && !missing_allowed
        {
            return Err(format!("{name} is not found"));
        }
    }
    Ok(found)
}

/// The list that a value is; none for null.
fn list_in(value: &Value) -> Result<Option<&Vec<Value>>, String> {
    let kind = match value {
        Value::Array(list) => return Ok(Some(list)),
        Value::Null => return Ok(None),
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Object(_) => "map[string]interface {}",
    };
    Err(format!("{kind} is not array or slice"))
}

fn reaches(value: &Value, index: i64) -> Result<(), String> {
    let Some(list) = list_in(value)? else { return Ok(()) };
    let length = list.len() as i64;
    let place = if index < 0 { length + index } else { index };
    if (0..length).contains(&place) {
        return Ok(());
    }
    Err(format!("array index out of bounds: index {place}, length {length}"))
}

fn one<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    match step {
        Step::Field(name) => value.get(name.as_str()).into_iter().collect(),
        Step::Index(index) => at(value, *index).into_iter().collect(),
        Step::Slice(from, to) => slice(value, *from, *to),
        Step::Every => children(value),
        Step::Recursive => descendants(value),
        Step::Union(paths) => paths.iter().flat_map(|path| walk(path, vec![value])).collect(),
        Step::Filter { path, operator, operand } => children(value)
            .into_iter()
            .filter(|item| {
                let left = walk(path, vec![item]).into_iter().next();
                compare(left, *operator, operand.as_ref())
            })
            .collect(),
    }
}

fn at(value: &Value, index: i64) -> Option<&Value> {
    let list = value.as_array()?;
    let index = if index < 0 { list.len() as i64 + index } else { index };
    list.get(usize::try_from(index).ok()?)
}

fn slice(value: &Value, from: Option<i64>, to: Option<i64>) -> Vec<&Value> {
    let Some(list) = value.as_array() else { return Vec::new() };
    let length = list.len() as i64;
    let place = |n: i64| (if n < 0 { length + n } else { n }).clamp(0, length) as usize;
    let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
    list.get(from..to.max(from)).unwrap_or_default().iter().collect()
}

fn children(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => Vec::new(),
    }
}

fn descendants(value: &Value) -> Vec<&Value> {
    let mut all = vec![value];
    for child in children(value) {
        all.extend(descendants(child));
    }
    all
}

fn compare(left: Option<&Value>, operator: Operator, right: Option<&Value>) -> bool {
    let Some(left) = left else { return false };
    let Some(right) = right else { return operator == Operator::Exists };
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().and_then(|a| b.as_f64().and_then(|b| a.partial_cmp(&b)))
        }
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    let Some(order) = order else { return operator == Operator::NotEqual };
    match operator {
        Operator::Exists => true,
        Operator::Equal => order.is_eq(),
        Operator::NotEqual => order.is_ne(),
        Operator::Less => order.is_lt(),
        Operator::LessEqual => order.is_le(),
        Operator::Greater => order.is_gt(),
        Operator::GreaterEqual => order.is_ge(),
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Parser<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn take(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    fn steps(&mut self) -> Result<Vec<Step>, String> {
        let mut steps = Vec::new();
        let _ = self.take("$") || self.take("@");
        loop {
            if self.take("..") {
                steps.push(Step::Recursive);
                if !self.rest().starts_with('[') {
                    steps.push(self.name());
                }
            } else if self.take(".") {
                if !self.rest().is_empty() && !self.rest().starts_with('[') {
                    steps.push(self.name());
                }
            } else if self.take("[") {
                steps.push(self.bracket()?);
            } else if steps.is_empty() && self.rest().starts_with(|c: char| c.is_alphanumeric()) {
                steps.push(self.name());
            } else {
                return Ok(steps);
            }
        }
    }

    fn name(&mut self) -> Step {
        let mut name = String::new();
        let mut chars = self.rest().char_indices();
        let mut end = self.rest().len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' | ' ' | '=' | '!' | '<' | '>' | ')' | '}' => {
                    end = i;
                    break;
                }
                c => name.push(c),
            }
        }
        self.at += end;
        if name == "*" { Step::Every } else { Step::Field(name) }
    }

    fn bracket(&mut self) -> Result<Step, String> {
        if self.take("?(") {
            return self.filter();
        }
        if let Some(quote) = self.rest().chars().next().filter(|c| matches!(c, '\'' | '"')) {
            let text = self.quoted(quote)?;
            self.blanks();
            return if self.take("]") {
                Ok(Step::Field(text))
            } else if self.rest().starts_with(',') {
                self.union(path_in(&text)?)
            } else {
                Err("unterminated array".into())
            };
        }
        let end = self.rest().find(']').ok_or("unterminated array")?;
        let inner = &self.rest()[..end];
        if let Some((first, _)) = inner.split_once(',') {
            self.at += first.len();
            let index =
                first.trim().parse().map_err(|_| format!("array index syntax error: {first}"))?;
            return self.union(vec![Step::Index(index)]);
        }
        self.at += end + 1;
        let number = |text: &str| -> Result<Option<i64>, String> {
            match text.trim() {
                "" => Ok(None),
                text => {
                    text.parse().map(Some).map_err(|_| format!("array index syntax error: {text}"))
                }
            }
        };
        if inner.trim() == "*" {
            return Ok(Step::Every);
        }
        if let Some((from, to)) = inner.split_once(':') {
            return Ok(Step::Slice(number(from)?, number(to)?));
        }
        number(inner)?.map(Step::Index).ok_or_else(|| "invalid array index".into())
    }

    /// The rest of `['a','b.c']` or `[0,2]`, of which `first` is read.
    fn union(&mut self, first: Vec<Step>) -> Result<Step, String> {
        let mut paths = vec![first];
        loop {
            self.blanks();
            if self.take("]") {
                return Ok(Step::Union(paths));
            }
            if !self.take(",") {
                return Err("unterminated array".into());
            }
            self.blanks();
            let path = if let Some(quote @ ('\'' | '"')) = self.rest().chars().next() {
                path_in(&self.quoted(quote)?)?
            } else {
                let end = self.rest().find([',', ']']).ok_or("unterminated array")?;
                let text = self.rest()[..end].trim();
                self.at += end;
                let index =
                    text.parse().map_err(|_| format!("array index syntax error: {text}"))?;
                vec![Step::Index(index)]
            };
            paths.push(path);
        }
    }

    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.at += 1;
        let mut text = String::new();
        let mut chars = self.rest().char_indices();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => text.extend(chars.next().map(|(_, c)| c)),
                c if c == quote => {
                    self.at += i + 1;
                    return Ok(text);
                }
                c => text.push(c),
            }
        }
        Err("unterminated quoted string".into())
    }

    fn blanks(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn filter(&mut self) -> Result<Step, String> {
        self.blanks();
        let path = self.steps()?;
        self.blanks();
        const OPERATORS: [(&str, Operator); 6] = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessEqual),
            (">=", Operator::GreaterEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let operator = OPERATORS.iter().find(|(text, _)| self.take(text)).map(|(_, o)| *o);
        let mut operand = None;
        if operator.is_some() {
            self.blanks();
            operand = Some(if let Some(quote @ ('\'' | '"')) = self.rest().chars().next() {
                self.quoted(quote)?.into()
            } else {
                let end = self.rest().find(')').ok_or("unterminated filter")?;
                let text = self.rest()[..end].trim();
                self.at += end;
                serde_json::from_str(text).map_err(|_| format!("unrecognized operand {text}"))?
            });
        }
        self.blanks();
        if self.take(")]") {
            Ok(Step::Filter { path, operator: operator.unwrap_or(Operator::Exists), operand })
        } else {
            Err("unterminated filter".into())
        }
    }
}

/// What a quoted member of a union names: a field, or a path of fields.
fn path_in(text: &str) -> Result<Vec<Step>, String> {
    Parser { text, at: 0 }.steps()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_values() {
        let object = json!({"spec": {"a.b": 1, "list": [{"n": 1}, {"n": 2}, {"n": 3}]},
            "status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False"}]}});
        let cases = [
            (".spec.list[0].n", json!([1])),
            (".spec.list[-1].n", json!([3])),
            (".spec.list[*].n", json!([1, 2, 3])),
            (".spec.list[1:].n", json!([2, 3])),
            (r".spec.a\.b", json!([1])),
            (".spec['a.b']", json!([1])),
            (r#".status.conditions[?(@.type=="B")].status"#, json!(["False"])),
            (r"{.status.conditions[?(@.type == 'A')].status}", json!(["True"])),
            (".spec.list[?(@.n>1)].n", json!([2, 3])),
            ("..n", json!([1, 2, 3])),
            (".spec.list[0,2].n", json!([1, 3])),
            (".status.conditions[*]['type', 'status']", json!(["A", "B", "True", "False"])),
            (".spec['list']['n']", json!([])),
            (".nothing.here", json!([])),
            ("", json!([object])),
        ];
        for (path, want) in cases {
            let path = JsonPath::parse(path).expect(path);
            assert_eq!(json!(path.find(&object)), want, "{path:?}");
        }
        let ask = |path: &str, missing_allowed| {
            let path = JsonPath::parse(path).expect(path);
            path.ask(&object, missing_allowed).map(|found| json!(found))
        };
        let beyond = |n: i64| Err(format!("array index out of bounds: index {n}, length 3"));
        for (path, missing_allowed, want) in [
            (".spec.list[0].n", false, Ok(json!([1]))),
            (".spec.list[3].n", true, beyond(3)),
            (".spec.list[-4]", true, beyond(-1)),
            (".spec.none[3].n", true, Ok(json!([]))),
            (".spec.none[3].n", false, Err("none is not found".into())),
            (".spec[0]", true, Err("map[string]interface {} is not array or slice".into())),
            (".spec.list[*].n", false, Ok(json!([1, 2, 3]))),
        ] {
            assert_eq!(ask(path, missing_allowed), want, "{path}");
        }
        for bad in [".a[", ".a[x]", ".a[?(@.b==]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }
}
