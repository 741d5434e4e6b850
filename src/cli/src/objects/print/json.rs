//! Objects as JSON, as Go's `encoding/json` writes them: `<`, `>` and `&` escaped.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{PrettyFormatter, Serializer};

/// Several lines, indented by four, with the last line's end.
pub fn text(value: &Value) -> String {
    let mut bytes = Vec::new();
    let mut writer = Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(b"    "));
    // Writing a value into memory does not fail.
    let _ = value.serialize(&mut writer);
    escape(&String::from_utf8_lossy(&bytes)) + "\n"
}

/// One line, without its end.
pub fn line(value: &Value) -> String {
    escape(&value.to_string())
}

fn escape(text: &str) -> String {
    // Outside of strings JSON has none of these.
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_is_written_as_go_writes_it() {
        let value = json!({"b": [1, {}], "a": "<x> & y"});
        assert_eq!(line(&value), r#"{"a":"\u003cx\u003e \u0026 y","b":[1,{}]}"#);
        let want = "{\n    \"a\": \"\\u003cx\\u003e \\u0026 y\",\n    \"b\": [\n        1,\n        {}\n    ]\n}\n";
        assert_eq!(text(&value), want);
    }
}
