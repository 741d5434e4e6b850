//! Objects as YAML, byte for byte as `sigs.k8s.io/yaml` writes them: keys in natural order, lists not indented
//! below their key, long text folded at column 80.
//!
//! Sources: `sigs.k8s.io/yaml/goyaml.v2` (`encode.go`, `emitterc.go`, `resolve.go`, `sorter.go`).

use std::cmp::Ordering;

use serde_json::Value;

/// Where lines are folded.
const WIDTH: usize = 80;

/// The document, with the last line's end.
pub fn text(value: &Value) -> String {
    let mut writer = Writer { out: String::new(), line: 0 };
    writer.node(value, 0, true);
    if !writer.out.ends_with('\n') {
        writer.out.push('\n');
    }
    writer.out
}

struct Writer {
    out: String,
    /// Where the last line begins.
    line: usize,
}

/// The ways to write text.
#[derive(Clone, Copy, PartialEq)]
enum Style {
    Plain,
    Single,
    Double,
    Literal,
}

impl Writer {
    fn put(&mut self, text: &str) {
        self.out.push_str(text);
    }

    fn newline(&mut self, indent: usize) {
        self.out.push('\n');
        self.line = self.out.len();
        self.out.extend(std::iter::repeat_n(' ', indent));
    }

    fn column(&self) -> usize {
        self.out[self.line..].chars().count()
    }

    /// Writes a value; `inline` tells that the cursor already stands where its first key or item goes.
    fn node(&mut self, value: &Value, indent: usize, inline: bool) {
        match value {
            Value::Null => self.put("null"),
            Value::Bool(value) => self.put(if *value { "true" } else { "false" }),
            Value::Number(number) => self.put(&number.to_string()),
            Value::String(text) => self.scalar(text, indent + 2, false),
            Value::Array(items) if items.is_empty() => self.put("[]"),
            Value::Object(map) if map.is_empty() => self.put("{}"),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 || !inline {
                        self.newline(indent);
                    }
                    self.put("- ");
                    let nested = !scalar(item);
                    self.node(item, if nested { indent + 2 } else { indent }, true);
                }
            }
            Value::Object(map) => {
                let mut keys: Vec<&String> = map.keys().collect();
                keys.sort_by(|a, b| natural(a, b));
                for (index, key) in keys.into_iter().enumerate() {
                    if index > 0 || !inline {
                        self.newline(indent);
                    }
                    self.scalar(key, indent + 2, true);
                    self.put(":");
                    let item = &map[key];
                    match item {
                        // A list's dashes stand below the first letter of its key.
                        Value::Array(items) if !items.is_empty() => self.node(item, indent, false),
                        Value::Object(map) if !map.is_empty() => self.node(item, indent + 2, false),
                        _ => {
                            self.put(" ");
                            self.node(item, indent, true);
                        }
                    }
                }
            }
        }
    }

    fn scalar(&mut self, text: &str, indent: usize, key: bool) {
        match style(text, key) {
            Style::Plain => self.folded(text, indent, key, Style::Plain),
            Style::Single => {
                self.put("'");
                self.folded(text, indent, key, Style::Single);
                self.put("'");
            }
            Style::Double => {
                self.put("\"");
                self.double(text, indent, key);
                self.put("\"");
            }
            Style::Literal => self.literal(text, indent),
        }
    }

    /// Plain or single-quoted text without line breaks.
    fn folded(&mut self, text: &str, indent: usize, key: bool, style: Style) {
        let chars: Vec<char> = text.chars().collect();
        let mut spaces = false;
        for (index, c) in chars.iter().enumerate() {
            if *c == ' ' {
                let inside = style == Style::Plain || index > 0 && index + 1 < chars.len();
                let next = chars.get(index + 1) == Some(&' ');
                if !key && !spaces && inside && !next && self.column() > WIDTH {
                    self.newline(indent);
                } else {
                    self.put(" ");
                }
                spaces = true;
                continue;
            }
            if *c == '\'' && style == Style::Single {
                self.put("'");
            }
            self.out.push(*c);
            spaces = false;
        }
    }

    fn double(&mut self, text: &str, indent: usize, key: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut spaces = false;
        for (index, c) in chars.iter().enumerate() {
            if *c == ' ' {
                let inside = index > 0 && index + 1 < chars.len();
                if !key && !spaces && inside && self.column() > WIDTH {
                    self.newline(indent);
                    if chars.get(index + 1) == Some(&' ') {
                        self.put("\\");
                    }
                } else {
                    self.put(" ");
                }
                spaces = true;
                continue;
            }
            spaces = false;
            match escaped(*c) {
                Some(text) => self.put(&text),
                None => self.out.push(*c),
            }
        }
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.put("|");
        if text.starts_with([' ', '\n']) {
            self.put("2");
        }
        if !text.ends_with('\n') {
            self.put("-");
        } else if text == "\n" || text.ends_with("\n\n") {
            self.put("+");
        }
        let lines = text.strip_suffix('\n').unwrap_or(text);
        for line in lines.split('\n') {
            self.newline(if line.is_empty() { 0 } else { indent });
            self.put(line);
        }
    }
}

fn scalar(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => true,
    }
}

fn printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
        || c >= '\u{10000}'
}

fn is_break(c: char) -> bool {
    matches!(c, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// The escape of a character in double quotes; `None` for those that stand for themselves.
fn escaped(c: char) -> Option<String> {
    if printable(c) && !is_break(c) && c != '"' && c != '\\' {
        return None;
    }
    Some(match c {
        '\0' => "\\0".into(),
        '\u{7}' => "\\a".into(),
        '\u{8}' => "\\b".into(),
        '\t' => "\\t".into(),
        '\n' => "\\n".into(),
        '\u{b}' => "\\v".into(),
        '\u{c}' => "\\f".into(),
        '\r' => "\\r".into(),
        '\u{1b}' => "\\e".into(),
        '"' => "\\\"".into(),
        '\\' => "\\\\".into(),
        '\u{85}' => "\\N".into(),
        '\u{2028}' => "\\L".into(),
        '\u{2029}' => "\\P".into(),
        c if (c as u32) <= 0xff => format!("\\x{:02X}", c as u32),
        c if (c as u32) <= 0xffff => format!("\\u{:04X}", c as u32),
        c => format!("\\U{:08X}", c as u32),
    })
}

/// What the characters of a text allow.
#[derive(Default)]
struct Traits {
    indicators: bool,
    special: bool,
    outer_space: bool,
    trailing_space: bool,
    breaks: bool,
    break_space: bool,
    space_break: bool,
}

fn traits(text: &str) -> Traits {
    let mut traits = Traits {
        indicators: text.starts_with("---") || text.starts_with("..."),
        ..Traits::default()
    };
    let chars: Vec<char> = text.chars().collect();
    let blank = |c: Option<&char>| c.is_none_or(|c| matches!(c, ' ' | '\t' | '\0') || is_break(*c));
    for (index, c) in chars.iter().enumerate() {
        let (first, last) = (index == 0, index + 1 == chars.len());
        let before = if first { None } else { chars.get(index - 1) };
        let followed = blank(chars.get(index + 1));
        traits.indicators |= match c {
            '#' => first || blank(before),
            ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@'
            | '`' => first,
            '?' | '-' => first && followed,
            ':' => followed,
            _ => false,
        };
        traits.special |= !printable(*c) || *c == '\u{feff}';
        if *c == ' ' {
            traits.outer_space |= first || last;
            traits.trailing_space |= last;
            traits.break_space |= before.is_some_and(|c| is_break(*c));
        } else if is_break(*c) {
            traits.breaks = true;
            traits.outer_space |= first || last;
            traits.space_break |= before == Some(&' ');
        }
    }
    traits
}

fn style(text: &str, key: bool) -> Style {
    let traits = traits(text);
    let wanted = if text.contains('\n') {
        Style::Literal
    } else if ambiguous(text) {
        Style::Double
    } else {
        Style::Plain
    };
    let single = !(traits.break_space || traits.space_break || traits.special);
    let plain =
        single && !traits.outer_space && !traits.breaks && !traits.indicators && !text.is_empty();
    let block = !(traits.trailing_space || traits.space_break || traits.special || text.is_empty());
    match wanted {
        Style::Plain if plain => Style::Plain,
        Style::Plain if single && !(key && traits.breaks) => Style::Single,
        Style::Literal if block && !key => Style::Literal,
        _ => Style::Double,
    }
}

/// Whether a reader would take the bare text for something else: a number, a truth value, nothing, a time.
fn ambiguous(text: &str) -> bool {
    const WORDS: [&str; 8] = ["y", "yes", "true", "on", "n", "no", "false", "off"];
    let cased = |word: &str| {
        let lower = text.to_ascii_lowercase();
        let mut title = lower.clone();
        title[..1].make_ascii_uppercase();
        lower == word && (text == lower || text == title || text == lower.to_ascii_uppercase())
    };
    if text.is_empty() || text == "~" || text == "<<" {
        return true;
    }
    if !text.is_ascii() {
        return false;
    }
    if WORDS.iter().any(|word| cased(word)) || cased("null") {
        return true;
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return false;
    }
    integer(&unsigned.replace('_', "")) || float(unsigned) || base60(unsigned) || time(text)
}

fn integer(text: &str) -> bool {
    let digits = |text: &str, radix: u32| {
        !text.is_empty()
            && text.chars().all(|c| c.is_digit(radix))
            && (u64::from_str_radix(text, radix).is_ok() || radix == 10)
    };
    let lower = text.to_ascii_lowercase();
    match (lower.strip_prefix("0x"), lower.strip_prefix("0o"), lower.strip_prefix("0b")) {
        (Some(rest), _, _) => digits(rest, 16),
        (_, Some(rest), _) => digits(rest, 8),
        (_, _, Some(rest)) => digits(rest, 2),
        _ => digits(text, 10),
    }
}

fn float(text: &str) -> bool {
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let mantissa = digits(whole) && digits(part) && !(whole.is_empty() && part.is_empty());
    mantissa
        && exponent.is_none_or(|e| {
            let e = e.strip_prefix(['+', '-']).unwrap_or(e);
            !e.is_empty() && digits(e)
        })
}

/// `1:30:00`, which older readers take for a number.
fn base60(text: &str) -> bool {
    let mut parts = text.split(':');
    let first = parts.next().unwrap_or_default();
    let rest: Vec<&str> = parts.collect();
    let whole = |text: &str| text.chars().all(|c| c.is_ascii_digit() || c == '_');
    let Some((last, middle)) = rest.split_last() else { return false };
    let sixty =
        |text: &str| matches!(text.len(), 1 | 2) && text.parse::<u8>().is_ok_and(|n| n < 60);
    let (last, part) = last.split_once('.').unwrap_or((last, ""));
    first.starts_with(|c: char| c.is_ascii_digit())
        && whole(first)
        && middle.iter().all(|part| sixty(part))
        && sixty(last)
        && whole(part)
}

fn time(text: &str) -> bool {
    let digits = |text: &str, most: usize| {
        !text.is_empty() && text.len() <= most && text.chars().all(|c| c.is_ascii_digit())
    };
    let (date, clock) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let parts: Vec<&str> = date.split('-').collect();
    let [year, month, day] = parts.as_slice() else { return false };
    if year.len() != 4 || !digits(year, 4) || !digits(month, 2) || !digits(day, 2) {
        return false;
    }
    let Some(clock) = clock else { return true };
    let end = clock.find(['Z', '+', '-']).unwrap_or(clock.len());
    let parts: Vec<&str> = clock[..end].split(':').collect();
    let [hour, minute, second] = parts.as_slice() else { return false };
    let (second, part) = second.split_once('.').unwrap_or((second, "0"));
    let zoned = end < clock.len();
    digits(hour, 2)
        && digits(minute, 2)
        && digits(second, 2)
        && digits(part, 9)
        && zoned != text.contains(' ')
}

/// The order of keys: numbers within them by their value, letters after everything else.
fn natural(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    for i in 0..a.len().min(b.len()) {
        let (x, y) = (a[i], b[i]);
        if x == y {
            continue;
        }
        match (x.is_alphabetic(), y.is_alphabetic()) {
            (true, true) => return x.cmp(&y),
            (false, true) => return Ordering::Less,
            (true, false) => return Ordering::Greater,
            (false, false) => {}
        }
        // A zero counts where a number has begun before it.
        let begun = (x == '0' || y == '0')
            && a[..i].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
        let number = |chars: &[char]| {
            let digits: String = chars[i..].iter().take_while(|c| c.is_ascii_digit()).collect();
            let start = i64::from(begun);
            let value = digits.chars().fold(start, |n, c| {
                n.wrapping_mul(10).wrapping_add(i64::from(c as u32 - '0' as u32))
            });
            (value, digits.len())
        };
        return number(&a).cmp(&number(&b)).then(x.cmp(&y));
    }
    a.len().cmp(&b.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_quoted_where_it_must_be() {
        let cases = [
            ("plain", "plain"),
            ("", "\"\""),
            ("true", "\"true\""),
            ("Yes", "\"Yes\""),
            ("yEs", "yEs"),
            ("null", "\"null\""),
            ("~", "\"~\""),
            ("1", "\"1\""),
            ("1.5", "\"1.5\""),
            ("1e3", "\"1e3\""),
            ("0x1f", "\"0x1f\""),
            ("1.2.3", "1.2.3"),
            ("10.0.0.1", "10.0.0.1"),
            ("12:30", "\"12:30\""),
            ("100m", "100m"),
            ("-", "'-'"),
            ("- a", "'- a'"),
            ("-a", "-a"),
            ("a: b", "'a: b'"),
            ("a:b", "a:b"),
            ("a:", "'a:'"),
            ("a #b", "'a #b'"),
            ("a#b", "a#b"),
            ("*", "'*'"),
            ("{x}", "'{x}'"),
            ("it's", "it's"),
            ("'x", "'''x'"),
            (" a", "' a'"),
            ("a\tb", "\"a\\tb\""),
            ("2024-01-02T03:04:05Z", "\"2024-01-02T03:04:05Z\""),
            ("2024-01-02", "\"2024-01-02\""),
            ("2024-01-x", "2024-01-x"),
            ("ünï", "ünï"),
            ("%x", "'%x'"),
        ];
        for (value, want) in cases {
            assert_eq!(text(&json!(value)), format!("{want}\n"), "{value:?}");
        }
    }

    #[test]
    fn lists_maps_and_lines() {
        let value = json!({"b": [{"x": 1, "y": [2, [3]]}, "s", {}], "a": {}, "c": [], "n": null, "a10": 1, "a9": 1,
            "t": "one\ntwo\n\nthree\n", "u": "one\ntwo", "v": "one\n\n", "w": " one\ntwo\n", "m": {"k": {"z": true}}});
        insta::assert_snapshot!(text(&value), @r#"
        a: {}
        a9: 1
        a10: 1
        b:
        - x: 1
          "y":
          - 2
          - - 3
        - s
        - {}
        c: []
        m:
          k:
            z: true
        "n": null
        t: |
          one
          two

          three
        u: |-
          one
          two
        v: |+
          one

        w: |2
           one
          two
        "#);
    }

    #[test]
    fn long_text_is_folded() {
        let long = "word ".repeat(20) + "end";
        let value =
            json!({"plain": long, "single": format!("a: {long}"), "double": format!("\"\t{long}")});
        insta::assert_snapshot!(text(&value), @r#"
        double: "\"\tword word word word word word word word word word word word word word
          word word word word word word end"
        plain: word word word word word word word word word word word word word word word
          word word word word word end
        single: 'a: word word word word word word word word word word word word word word
          word word word word word word end'
        "#);
    }
}
