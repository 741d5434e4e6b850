//! `-o jsonpath=`: text with paths in braces, loops and quoted text.
//!
//! Source: `k8s.io/client-go/util/jsonpath` (`parser.go`, `jsonpath.go`).

use apimachinery::json_path::JsonPath;
use serde_json::Value;

use super::{go_template, json};
use crate::objects::error::Error;

/// A parsed template.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
    /// Whether a field that is not there is no error.
    missing_allowed: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(String),
    Path { path: JsonPath, root: bool },
    Range { path: JsonPath, root: bool, body: Vec<Node> },
}

/// What stands in braces.
enum Word {
    Text(String),
    Path(String),
    Range(String),
    End,
}

impl Template {
    /// Parses a template such as `{range .items[*]}{.metadata.name}{"\n"}{end}`.
    pub fn parse(text: &str, missing_allowed: bool) -> Result<Self, Error> {
        let failed =
            |problem: String| Error::Wrong(format!("error parsing jsonpath {text}, {problem}"));
        // The innermost loop that is open comes last.
        let mut open: Vec<(String, Vec<Node>)> = Vec::new();
        let mut nodes = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let Some(start) = rest.find('{') else {
                nodes.push(Node::Text(rest.to_owned()));
                break;
            };
            if start > 0 {
                nodes.push(Node::Text(rest[..start].to_owned()));
            }
            let end = closing(&rest[start..]).ok_or_else(|| failed("unclosed action".into()))?;
            let inner = &rest[start + 1..start + end];
            rest = &rest[start + end + 1..];
            for word in words(inner).map_err(failed)? {
                match word {
                    Word::Text(text) => nodes.push(Node::Text(text)),
                    Word::Path(path) => {
                        let root = path.starts_with('$');
                        let path = JsonPath::parse(&path).map_err(failed)?;
                        nodes.push(Node::Path { path, root });
                    }
                    Word::Range(path) => open.push((path, std::mem::take(&mut nodes))),
                    Word::End => {
                        let Some((path, outer)) = open.pop() else {
                            return Err(failed("not in range, nothing to end".into()));
                        };
                        let root = path.starts_with('$');
                        let body = std::mem::replace(&mut nodes, outer);
                        let path = JsonPath::parse(&path).map_err(failed)?;
                        nodes.push(Node::Range { path, root, body });
                    }
                }
            }
        }
        if open.is_empty() {
            Ok(Self { text: text.to_owned(), nodes, missing_allowed })
        } else {
            Err(failed("unclosed range".into()))
        }
    }

    /// Writes the text for an object; after an error that is nothing.
    pub fn write(&self, object: &Value, out: &mut String) -> Result<(), Error> {
        let mut text = String::new();
        let written = self.nodes(&self.nodes, object, object, &mut text);
        written.map_err(|problem| self.failed(&problem, object))?;
        out.push_str(&text);
        Ok(())
    }

    /// Writes what the template's paths find, each list of them as a JSON array.
    pub fn write_values(&self, object: &Value, out: &mut String) -> Result<(), Error> {
        for node in &self.nodes {
            if let Node::Path { path, .. } = node {
                let found = path.ask(object, self.missing_allowed);
                let found = found.map_err(|problem| self.failed(&problem, object))?;
                out.push_str(&json::text(&Value::Array(found.into_iter().cloned().collect())));
            }
        }
        Ok(())
    }

    fn failed(&self, problem: &str, object: &Value) -> Error {
        Error::Wrong(format!(
            "error executing jsonpath {}: Error executing template: {problem}. Printing more information for debugging the template:\n\ttemplate was:\n\t\t{}\n\tobject given to jsonpath engine was:\n\t\t{}\n\n\n",
            go_template::quoted(&self.text),
            self.text,
            go_template::go_syntax(object),
        ))
    }

    fn nodes(
        &self,
        nodes: &[Node],
        here: &Value,
        top: &Value,
        out: &mut String,
    ) -> Result<(), String> {
        let ask = |path: &JsonPath, root: bool| {
            path.ask(if root { top } else { here }, self.missing_allowed)
        };
        for node in nodes {
            match node {
                Node::Text(text) => out.push_str(text),
                Node::Path { path, root } => {
                    let texts: Vec<String> = ask(path, *root)?.into_iter().map(shown).collect();
                    out.push_str(&texts.join(" "));
                }
                Node::Range { path, root, body } => {
                    for item in ask(path, *root)? {
                        self.nodes(body, item, top, out)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(_) | Value::Object(_) => json::line(value),
        other => other.to_string(),
    }
}

/// The characters of `text` that are neither quoted nor escaped, with their places.
fn bare(text: &str) -> impl Iterator<Item = (usize, char)> {
    let (mut quote, mut escaped) = (None, false);
    text.char_indices().filter(move |(_, c)| {
        if std::mem::take(&mut escaped) {
            return false;
        }
        match (quote, *c) {
            (_, '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(*c),
            (None, _) => return true,
        }
        false
    })
}

/// Where the brace that opens `text` is closed: not within quotes.
fn closing(text: &str) -> Option<usize> {
    bare(text).find(|(_, c)| *c == '}').map(|(index, _)| index)
}

fn words(inner: &str) -> Result<Vec<Word>, String> {
    let mut found = Vec::new();
    let mut rest = inner.trim_start();
    while !rest.is_empty() {
        if let Some(quote @ ('\'' | '"')) = rest.chars().next() {
            let (text, after) = unquote(&rest[1..], quote)?;
            found.push(Word::Text(text));
            rest = after.trim_start();
            continue;
        }
        let (word, after) = split(rest);
        rest = after.trim_start();
        match word {
            "end" => found.push(Word::End),
            "range" => {
                let (path, after) = split(rest);
                rest = after.trim_start();
                found.push(Word::Range(path.to_owned()));
            }
            word if word.starts_with(['.', '$', '@', '[']) => {
                found.push(Word::Path(word.to_owned()));
            }
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                found.push(Word::Path(format!(".{word}")));
            }
            word => return Err(format!("unrecognized character in action: {word:?}")),
        }
    }
    Ok(found)
}

/// The first word: to the first blank that is in no bracket and no quotes.
fn split(text: &str) -> (&str, &str) {
    let mut depth = 0_i32;
    for (index, c) in bare(text) {
        match c {
            '[' | '(' => depth += 1,
            ']' | ')' => depth -= 1,
            c if c.is_whitespace() && depth <= 0 => return text.split_at(index),
            _ => {}
        }
    }
    (text, "")
}

fn unquote(text: &str, quote: char) -> Result<(String, &str), String> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((index, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, 'n')) => out.push('\n'),
                Some((_, 't')) => out.push('\t'),
                Some((_, 'r')) => out.push('\r'),
                Some((_, c)) => out.push(c),
                None => break,
            },
            c if c == quote => return Ok((out, &text[index + 1..])),
            c => out.push(c),
        }
    }
    Err("unterminated quoted string".into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn templates_are_filled() {
        let object = json!({"kind": "List", "items": [
            {"metadata": {"name": "a", "labels": {"x.y/z": "1"}}, "n": [1, 2]},
            {"metadata": {"name": "b"}, "n": [3], "on": true}]});
        let cases = [
            ("plain", "plain"),
            ("{.kind}", "List"),
            ("{kind}", "List"),
            ("{.items[*].metadata.name}", "a b"),
            ("{range .items[*]}{.metadata.name}{\"\\t\"}{.n}{'\\n'}{end}", "a\t[1,2]\nb\t[3]\n"),
            ("{range .items[*]}{$.kind}/{@.metadata.name} {end}", "List/a List/b "),
            ("{range .items[*]}{range .n[*]}<{@}>{end};{end}", "<1><2>;<3>;"),
            ("{.items[?(@.metadata.name==\"b\")].on}", "true"),
            ("{.items[0].metadata.labels.x\\.y/z}", "1"),
            ("{.items[0].metadata.labels}", "{\"x.y/z\":\"1\"}"),
            ("{.items[0]['metadata.name','n']}", "a [1,2]"),
            ("{.missing}", ""),
            ("{.kind .items[0].metadata.name}", "Lista"),
            ("{.items[0,1].metadata.name}", "a b"),
        ];
        for (template, want) in cases {
            let parsed =
                Template::parse(template, true).unwrap_or_else(|e| panic!("{template}: {e}"));
            let mut text = String::new();
            parsed.write(&object, &mut text).unwrap_or_else(|e| panic!("{template}: {e}"));
            assert_eq!(text, want, "{template}");
        }
        let (values, mut text) = (Template::parse("{.items[*].n}", true).unwrap(), String::new());
        values.write_values(&json!({"items": [{"n": 1}]}), &mut text).unwrap();
        assert_eq!(text, "[\n    1\n]\n");
    }

    #[test]
    fn broken_templates_are_refused() {
        for (template, want) in [
            ("{.a", "error: error parsing jsonpath {.a, unclosed action\n"),
            ("{end}", "error: error parsing jsonpath {end}, not in range, nothing to end\n"),
            ("{range .a}x", "error: error parsing jsonpath {range .a}x, unclosed range\n"),
            ("{.a[}", "error: error parsing jsonpath {.a[}, unterminated array\n"),
        ] {
            assert_eq!(Template::parse(template, true).unwrap_err().text(), want);
        }
    }
}
