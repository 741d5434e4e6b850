//! JSON as this server stores it: without white space, and plain for the most part. What is not plain is left to
//! `serde_json`; what is takes half the time here, and each write of an object reads it and writes it.

use serde_json::{Map, Number, Value};

/// As deep as `serde_json` goes.
const DEPTH_MAX: usize = 127;

/// Writes a value.
pub fn write(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Object(map) => {
            out.push(b'{');
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_name(out, key);
                write(out, value);
            }
            out.push(b'}');
        }
        Value::Array(list) => {
            out.push(b'[');
            for (at, value) in list.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(out, value);
            }
            out.push(b']');
        }
        Value::String(text) => write_text(out, text),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Null => out.extend_from_slice(b"null"),
        Value::Number(number) => {
            serde_json::to_writer(out, number).expect("a number always serialises into memory");
        }
    }
}

/// Writes a key, and the colon after it.
pub fn write_name(out: &mut Vec<u8>, key: &str) {
    write_text(out, key);
    out.push(b':');
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    let is_plain = |byte: u8| byte >= 0x20 && byte != b'"' && byte != b'\\';
    // All of it is looked at, so that the compiler can look at many bytes at once.
    if text.bytes().fold(true, |plain, byte| plain & is_plain(byte)) {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, text).expect("text always serialises into memory");
    }
}

/// Reads a value; nothing where it is not JSON, or not such as [`write`] writes.
pub fn read(json: &[u8]) -> Option<Value> {
    let mut reader = Reader { text: std::str::from_utf8(json).ok()?, at: 0 };
    let value = reader.value(0)?;
    (reader.at == json.len()).then_some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn next(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Goes past `byte`, if it comes next.
    fn takes(&mut self, byte: u8) -> bool {
        let comes = self.next() == Some(byte);
        self.at += usize::from(comes);
        comes
    }

    fn word(&mut self, word: &str, value: Value) -> Option<Value> {
        self.text.get(self.at..)?.strip_prefix(word)?;
        self.at += word.len();
        Some(value)
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        match self.next()? {
            b'"' => self.text().map(Value::String),
            b'{' if depth < DEPTH_MAX => self.object(depth),
            b'[' if depth < DEPTH_MAX => self.array(depth),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            b'n' => self.word("null", Value::Null),
            b'-' | b'0'..=b'9' => self.number(),
            _ => None,
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        if self.takes(b'}') {
            return Some(Value::Object(Map::new()));
        }
        // They are in order, so that the map is built without a search for each.
        let mut entries = Vec::with_capacity(8);
        loop {
            let key = self.text()?;
            if !self.takes(b':') {
                return None;
            }
            entries.push((key, self.value(depth + 1)?));
            if self.takes(b'}') {
                return Some(Value::Object(entries.into_iter().collect()));
            }
            if !self.takes(b',') {
                return None;
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut items = Vec::new();
        if self.takes(b']') {
            return Some(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.takes(b']') {
                return Some(Value::Array(items));
            }
            if !self.takes(b',') {
                return None;
            }
        }
    }

    fn text(&mut self) -> Option<String> {
        if !self.takes(b'"') {
            return None;
        }
        let start = self.at;
        let rest = &self.text.as_bytes()[start..];
        let end = start + rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20))?;
        if self.text.as_bytes()[end] == b'"' {
            self.at = end + 1;
            return Some(self.text.get(start..end)?.to_owned());
        }
        let mut end = end;
        loop {
            match self.text.as_bytes().get(end)? {
                b'"' => break,
                b'\\' => end += 2,
                _ => end += 1,
            }
        }
        self.at = end + 1;
        serde_json::from_str(self.text.get(start - 1..=end)?).ok()
    }

    fn number(&mut self) -> Option<Value> {
        let rest = &self.text.as_bytes()[self.at..];
        let is_part = |byte: &u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let length = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
        let text = self.text.get(self.at..self.at + length)?;
        self.at += length;
        // A zero before other digits, or behind a minus, is something else.
        if text.starts_with(|c: char| matches!(c, '1'..='9'))
            && let Ok(number) = text.parse::<u64>()
        {
            return Some(Value::Number(Number::from(number)));
        }
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_written_and_read_as_others_do() {
        let value = json!({"apiVersion": "v1", "a\"\\\u{1}\n": "x\ty", "spec": {
            "größe": [1, -2, 0, 1.5, -0.0, u64::MAX, i64::MIN, 1e300, true, false, null, "", "\u{7f}\u{2028}/<ü", {}, []],
            "k\"": {"a": {"b": []}, "": {"": ""}}}});
        let mut out = Vec::new();
        write(&mut out, &value);
        assert_eq!(std::str::from_utf8(&out).expect("is text"), value.to_string());
        assert_eq!(read(&out), Some(value));
    }

    #[test]
    fn what_is_read_is_what_others_read() {
        for text in [
            r#"{"b":1,"a":2,"b":3}"#,
            r#"["\u00e9\ud83d\ude00\/","a\\"]"#,
            "[0.10,1E5,18446744073709551616,-1,-0,10]",
            "\"\"",
            "7",
        ] {
            let value = serde_json::from_str(text).expect(text);
            assert_eq!(read(text.as_bytes()), Some(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_or_not_plain_is_not_read() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in [
            "",
            "{",
            "[1",
            "[1,]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "[01]",
            "[--1]",
            "[1.]",
            "\"a",
            "\"\\",
            "\"\\x\"",
            "tru",
            "nul",
            "{a:1}",
            "[1]x",
            " 1",
            "{\"a\": 1}",
            "\"\n\"",
            "[-]",
            "\"\\u12\"",
            &deep,
        ] {
            assert_eq!(read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(read(b"\"\xff\""), None);
    }
}
