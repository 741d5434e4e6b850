//! Objects as KYAML: YAML with braces, brackets and quotes, whose meaning does not hang on indentation.
//!
//! Source: KEP-5295; `sigs.k8s.io/yaml/kyaml` for the details.

use serde_json::Value;

/// A document, with its `---`.
pub fn text(value: &Value) -> String {
    let mut out = String::from("---\n");
    write(value, 0, &mut out);
    out.push('\n');
    out
}

fn line(indent: usize, out: &mut String) {
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', indent));
}

fn write(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::String(text) => quote(text, indent, out),
        Value::Object(map) if map.is_empty() => out.push_str("{}"),
        Value::Array(items) if items.is_empty() => out.push_str("[]"),
        Value::Object(map) => {
            out.push('{');
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            for (key, member) in pairs {
                line(indent + 2, out);
                if is_plain(key) {
                    out.push_str(key);
                } else {
                    quote(key, indent + 2, out);
                }
                out.push_str(": ");
                write(member, indent + 2, out);
                out.push(',');
            }
            line(indent, out);
            out.push('}');
        }
        // What has brackets of its own shares their lines with the list's.
        Value::Array(items) if items.iter().all(|item| item.is_object() || item.is_array()) => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    out.push_str(", ");
                }
                write(item, indent, out);
            }
            out.push(']');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                line(indent + 2, out);
                write(item, indent + 2, out);
                out.push(',');
            }
            line(indent, out);
            out.push(']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

/// Text of several lines has one line each, folded so that it is the same text.
fn quote(text: &str, indent: usize, out: &mut String) {
    out.push('"');
    if text.contains('\n') {
        let mut lines: Vec<&str> = text.split('\n').collect();
        let last = lines.pop().unwrap_or_default();
        for inner in lines {
            out.push('\\');
            start(inner, indent, out);
            escape(inner, out);
            out.push_str("\\n");
        }
        out.push('\\');
        if !last.is_empty() {
            start(last, indent, out);
            escape(last, out);
            out.push('\\');
        }
        line(indent + 2, out);
    } else {
        escape(text, out);
    }
    out.push('"');
}

/// A line's indentation. Its own white space is kept from being taken for it.
fn start(inner: &str, indent: usize, out: &mut String) {
    line(indent + 2, out);
    out.push(if inner.starts_with([' ', '\t']) { '\\' } else { ' ' });
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push('\t'),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
}

/// Whether a key means itself without quotes: a word that is no number, truth, date or null in any YAML.
fn is_plain(key: &str) -> bool {
    let inner = |c: char| c.is_alphanumeric() || c == '_';
    let fits = key.starts_with(inner)
        && key.ends_with(inner)
        && key.chars().all(|c| inner(c) || matches!(c, '-' | '.' | '/'));
    const WORDS: [&str; 12] =
        ["y", "n", "t", "f", "yes", "no", "on", "off", "true", "false", "null", "~"];
    fits && !WORDS.contains(&key.to_lowercase().as_str()) && !is_number(key) && !is_date(key)
}

fn is_number(key: &str) -> bool {
    let text = key.replace('_', "").to_lowercase();
    let radix = [("0x", 16), ("0o", 8), ("0b", 2)];
    radix.into_iter().any(|(start, radix)| {
        text.strip_prefix(start).is_some_and(|digits| u64::from_str_radix(digits, radix).is_ok())
    }) || text.parse::<f64>().is_ok()
}

fn is_date(key: &str) -> bool {
    let parts: Vec<Option<u32>> = key.split('-').map(|part| part.parse().ok()).collect();
    matches!(parts[..], [Some(year), Some(1..=12), Some(1..=31)] if (1000..10_000).contains(&year))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_written_as_kubectl_writes_it() {
        let value = json!({"metadata": {"name": "x", "labels": {"x.y/z": "1", "no": "a", "a b": "c"}},
            "empty": [{}, []], "list": ["a", ["b"], 3, null], "objects": [{"a": true}, {"b": 1}],
            "text": {"multi": "one\n two\n\nthree", "end": "one\n", "quote": "say \"hi\" \\"}});
        let want = r#"---
{
  empty: [{}, []],
  list: [
    "a",
    [
      "b",
    ],
    3,
    null,
  ],
  metadata: {
    labels: {
      "a b": "c",
      "no": "a",
      x.y/z: "1",
    },
    name: "x",
  },
  objects: [{
    a: true,
  }, {
    b: 1,
  }],
  text: {
    end: "\
       one\n\
      ",
    multi: "\
       one\n\
      \ two\n\
       \n\
       three\
      ",
    quote: "say \"hi\" \\",
  },
}
"#;
        assert_eq!(text(&value), want);
    }

    #[test]
    fn keys_are_quoted_where_they_may_mean_something_else() {
        for key in ["a", "_x", "x.y/z", "1a", "0b", "1e", "1.2.3", "e3", "é", "2024-13-45", "0xg"]
        {
            assert!(is_plain(key), "{key}");
        }
        for key in [
            "", "1", "-1", "0x1", "1e3", "1_000", "_1", "inf", "NaN", "yEs", "OFF", "null", "~",
            "2024-1-1", "a.", "-x", ".a", "x/", "a:b", "a b", "0o7", "<<",
        ] {
            assert!(!is_plain(key), "{key}");
        }
    }
}
