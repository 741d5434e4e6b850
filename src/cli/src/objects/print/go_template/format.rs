//! Values and formats as Go's `fmt` prints them, and quoted text as `strconv` has it.

use std::fmt::Write;

use serde_json::Value;

use super::value::{Data, Held, Width};

/// As `strconv.Quote` writes it.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            c if c == ' ' || !(c.is_control() || c.is_whitespace()) => out.push(c),
            c if c.is_ascii() => {
                let _ = write!(out, "\\x{:02x}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

/// As `strconv.Unquote` reads it.
pub fn unquote(text: &str) -> Result<String, String> {
    if let Some(raw) = text.strip_prefix('`') {
        return Ok(raw.trim_end_matches('`').replace('\r', ""));
    }
    let wrong = || "invalid syntax".to_owned();
    let mut rest = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).ok_or_else(wrong)?;
    let mut bytes = Vec::new();
    while let Some(c) = rest.chars().next() {
        if c != '\\' {
            bytes.extend_from_slice(&rest.as_bytes()[..c.len_utf8()]);
            rest = &rest[c.len_utf8()..];
            continue;
        }
        let letter = rest[1..].chars().next().ok_or_else(wrong)?;
        // How many digits follow, after how many characters, in which base.
        let (count, skipped, radix) = match letter {
            'x' => (2, 2, 16),
            'u' => (4, 2, 16),
            'U' => (8, 2, 16),
            '0'..='7' => (3, 1, 8),
            _ => (0, 2, 10),
        };
        if count == 0 {
            bytes.push(plain_escape(letter).ok_or_else(wrong)?);
        } else {
            let digits = rest.get(skipped..skipped + count).ok_or_else(wrong)?;
            let value = u32::from_str_radix(digits, radix).map_err(|_| wrong())?;
            if matches!(letter, 'u' | 'U') {
                let c = char::from_u32(value).ok_or_else(wrong)?;
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                bytes.push(u8::try_from(value).map_err(|_| wrong())?);
            }
        }
        rest = &rest[skipped + count..];
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn plain_escape(letter: char) -> Option<u8> {
    Some(match letter {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        '"' => b'"',
        _ => return None,
    })
}

/// What an action without a format prints.
pub fn printed(data: &Data<'_>) -> String {
    match data {
        Data::Missing => "<no value>".into(),
        data => shown(data),
    }
}

/// As `%v` has it.
pub fn shown(data: &Data<'_>) -> String {
    let mut out = String::new();
    value(&mut out, &Verb { letter: 'v', ..Verb::default() }, data);
    out
}

/// As `%#v` has it.
pub fn go_syntax(object: &Value) -> String {
    let mut out = String::new();
    value(&mut out, &Verb { letter: 'v', sharp: true, ..Verb::default() }, &Data::of(object));
    out
}

/// How a value is to be printed: `%-6.2f`.
#[derive(Clone, Debug, Default)]
struct Verb {
    letter: char,
    minus: bool,
    plus: bool,
    sharp: bool,
    space: bool,
    zero: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// `fmt.Sprintf`.
pub fn sprintf(format: &str, arguments: &[Held<'_>]) -> String {
    let mut out = String::new();
    let mut rest = format.chars().peekable();
    let (mut next, mut reordered) = (0, false);
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut verb = Verb::default();
        while let Some(flag) = rest.next_if(|c| "-+# 0".contains(*c)) {
            match flag {
                '-' => verb.minus = true,
                '+' => verb.plus = true,
                '#' => verb.sharp = true,
                ' ' => verb.space = true,
                _ => verb.zero = true,
            }
        }
        let mut well = index(&mut rest, &mut next, &mut reordered, arguments.len());
        if rest.next_if_eq(&'*').is_some() {
            match arguments.get(next).map(|held| &held.data) {
                Some(Data::Integer(count, _)) => {
                    verb.minus |= *count < 0;
                    verb.width = usize::try_from(count.unsigned_abs()).ok();
                }
                _ => out.push_str("%!(BADWIDTH)"),
            }
            next += 1;
        } else {
            verb.width = digits(&mut rest);
        }
        if rest.next_if_eq(&'.').is_some() {
            well &= index(&mut rest, &mut next, &mut reordered, arguments.len());
            if rest.next_if_eq(&'*').is_some() {
                match arguments.get(next).map(|held| &held.data) {
                    Some(Data::Integer(count, _)) => verb.precision = usize::try_from(*count).ok(),
                    _ => out.push_str("%!(BADPREC)"),
                }
                next += 1;
            } else {
                verb.precision = Some(digits(&mut rest).unwrap_or(0));
            }
        }
        well &= index(&mut rest, &mut next, &mut reordered, arguments.len());
        let Some(letter) = rest.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        verb.letter = letter;
        match arguments.get(next) {
            _ if letter == '%' => out.push('%'),
            _ if !well => {
                let _ = write!(out, "%!{letter}(BADINDEX)");
            }
            None => {
                let _ = write!(out, "%!{letter}(MISSING)");
            }
            Some(held) => {
                next += 1;
                value(&mut out, &verb, &held.data);
            }
        }
    }
    if !reordered && next < arguments.len() {
        let more: Vec<String> = arguments[next..]
            .iter()
            .map(|held| match &held.data {
                Data::Missing | Data::Nil => "<nil>".into(),
                data => format!("{}={}", data.kind(), shown(data)),
            })
            .collect();
        let _ = write!(out, "%!(EXTRA {})", more.join(", "));
    }
    out
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn digits(rest: &mut Characters<'_>) -> Option<usize> {
    let mut text = String::new();
    while let Some(c) = rest.next_if(char::is_ascii_digit) {
        text.push(c);
    }
    text.parse().ok().map(|count: usize| count.min(1_000_000))
}

/// Reads `[n]`, the argument that is meant; false if there is none such.
fn index(rest: &mut Characters<'_>, next: &mut usize, reordered: &mut bool, count: usize) -> bool {
    if rest.next_if_eq(&'[').is_none() {
        return true;
    }
    *reordered = true;
    let wanted = digits(rest);
    let closed = rest.next_if_eq(&']').is_some();
    match wanted {
        Some(wanted) if closed && (1..=count).contains(&wanted) => {
            *next = wanted - 1;
            true
        }
        _ => false,
    }
}

fn pad(out: &mut String, verb: &Verb, text: &str) {
    let missing = verb.width.unwrap_or(0).saturating_sub(text.chars().count());
    let blanks = |out: &mut String, c: char| out.extend(std::iter::repeat_n(c, missing));
    if verb.minus {
        out.push_str(text);
        blanks(out, ' ');
    } else if verb.zero {
        // Zeros stand between the sign and the digits.
        let (sign, digits) = match text.strip_prefix(['-', '+']) {
            Some(digits) => text.split_at(text.len() - digits.len()),
            None => ("", text),
        };
        out.push_str(sign);
        blanks(out, '0');
        out.push_str(digits);
    } else {
        blanks(out, ' ');
        out.push_str(text);
    }
}

fn value(out: &mut String, verb: &Verb, data: &Data<'_>) {
    match (verb.letter, data) {
        ('T', data) => pad(out, verb, data.kind()),
        ('v', Data::Missing | Data::Nil) => pad(out, verb, "<nil>"),
        ('v', Data::Text(text)) if verb.sharp => pad(out, verb, &quoted(text)),
        ('v' | 't', Data::Boolean(value)) => pad(out, verb, &value.to_string()),
        (_, Data::Integer(value, width)) => integer(out, verb, *value, *width),
        ('v' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G', Data::Float(value)) => {
            pad(out, verb, &signed(verb, float(verb, *value)));
        }
        ('v' | 's' | 'q' | 'x' | 'X', Data::Text(value)) => text(out, verb, value),
        (_, Data::List(items)) => list(out, verb, items),
        (_, Data::Map(map)) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let go = verb.sharp && verb.letter == 'v';
            out.push_str(if go { "map[string]interface {}{" } else { "map[" });
            for (place, (key, member)) in pairs.into_iter().enumerate() {
                if place > 0 {
                    out.push_str(if go { ", " } else { " " });
                }
                value(out, verb, &Data::Text(key.as_str().into()));
                out.push(':');
                inner(out, verb, member);
            }
            out.push(if go { '}' } else { ']' });
        }
        (letter, data) => {
            let plain = Verb { letter: 'v', ..Verb::default() };
            let _ = write!(out, "%!{letter}(");
            if !matches!(data, Data::Missing | Data::Nil) {
                let _ = write!(out, "{}=", data.kind());
            }
            value(out, &plain, data);
            out.push(')');
        }
    }
}

fn list(out: &mut String, verb: &Verb, items: &[Value]) {
    let go = verb.sharp && verb.letter == 'v';
    out.push_str(if go { "[]interface {}{" } else { "[" });
    for (place, item) in items.iter().enumerate() {
        if place > 0 {
            out.push_str(if go { ", " } else { " " });
        }
        inner(out, verb, item);
    }
    out.push(if go { '}' } else { ']' });
}

/// A member of a list or map.
fn inner(out: &mut String, verb: &Verb, member: &Value) {
    match member {
        Value::Null if verb.sharp && verb.letter == 'v' => out.push_str("interface {}(nil)"),
        Value::Null => out.push_str("<nil>"),
        member => value(out, verb, &Data::of(member)),
    }
}

fn signed(verb: &Verb, text: String) -> String {
    match text.starts_with('-') {
        false if verb.plus => format!("+{text}"),
        false if verb.space => format!(" {text}"),
        _ => text,
    }
}

fn integer(out: &mut String, verb: &Verb, value: i64, width: Width) {
    let (sign, size) = (if value < 0 { "-" } else { "" }, value.unsigned_abs());
    let character = || u32::try_from(value).ok().and_then(char::from_u32).unwrap_or('\u{fffd}');
    let prefix = |prefix: &'static str| if verb.sharp { prefix } else { "" };
    let text = match verb.letter {
        'v' if verb.sharp && width == Width::Byte => format!("0x{size:x}"),
        'v' | 'd' => format!("{sign}{size}"),
        'b' => format!("{sign}{}{size:b}", prefix("0b")),
        'o' => format!("{sign}{}{size:o}", prefix("0")),
        'O' => format!("{sign}0o{size:o}"),
        'x' => format!("{sign}{}{size:x}", prefix("0x")),
        'X' => format!("{sign}{}{size:X}", prefix("0X")),
        'c' => return pad(out, verb, &character().to_string()),
        'q' => {
            let inner = quoted(&character().to_string());
            let inner = inner[1..inner.len() - 1].replace("\\\"", "\"").replace('\'', "\\'");
            return pad(out, verb, &format!("'{inner}'"));
        }
        'U' => return pad(out, verb, &format!("U+{size:04X}")),
        letter => {
            let kind = Data::Integer(value, width).kind();
            let _ = write!(out, "%!{letter}({kind}={value})");
            return;
        }
    };
    pad(out, verb, &signed(verb, text));
}

fn text(out: &mut String, verb: &Verb, value: &str) {
    let cut: String = match verb.precision {
        Some(most) => value.chars().take(most).collect(),
        None => value.to_owned(),
    };
    let hex = |upper: bool| {
        cut.bytes().fold(String::new(), |mut text, byte| {
            let _ = if upper { write!(text, "{byte:02X}") } else { write!(text, "{byte:02x}") };
            text
        })
    };
    let text = match verb.letter {
        'q' if verb.sharp && !cut.contains('`') => format!("`{cut}`"),
        'q' => quoted(&cut),
        'x' => hex(false),
        'X' => hex(true),
        _ => cut,
    };
    // Text is never filled with zeros.
    pad(out, &Verb { zero: false, ..verb.clone() }, &text);
}

/// A float in one of Go's notations.
fn float(verb: &Verb, value: f64) -> String {
    if !value.is_finite() {
        let text = if value.is_nan() { "NaN" } else { "Inf" };
        return if value < 0.0 { "-Inf".into() } else { text.into() };
    }
    let scientific = |value: f64, precision: Option<usize>| {
        let text = match precision {
            Some(places) => format!("{value:.places$e}"),
            None => format!("{value:e}"),
        };
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        let power: i32 = power.parse().unwrap_or_default();
        let sign = if power < 0 { '-' } else { '+' };
        (format!("{digits}e{sign}{:02}", power.abs()), power)
    };
    let text = match verb.letter.to_ascii_lowercase() {
        'e' => scientific(value, Some(verb.precision.unwrap_or(6))).0,
        'f' => format!("{value:.*}", verb.precision.unwrap_or(6)),
        _ => {
            let precision = verb.precision.map(|digits| digits.max(1));
            let (text, power) = scientific(value, precision.map(|digits| digits - 1));
            // With the fewest digits that tell the number, the exponent is used from 6 on.
            let most = precision.map_or(6, |digits| i32::try_from(digits).unwrap_or(i32::MAX));
            if power < -4 || power >= most {
                let (digits, power) = text.split_once('e').unwrap_or((&text, ""));
                let digits = if digits.contains('.') {
                    digits.trim_end_matches('0').trim_end_matches('.')
                } else {
                    digits
                };
                format!("{digits}e{power}")
            } else {
                let places = precision
                    .map(|digits| i32::try_from(digits).unwrap_or(i32::MAX) - 1 - power)
                    .and_then(|places| usize::try_from(places).ok());
                let text = match places {
                    Some(places) => format!("{value:.places$}"),
                    None => format!("{value}"),
                };
                if text.contains('.') {
                    text.trim_end_matches('0').trim_end_matches('.').to_owned()
                } else {
                    text
                }
            }
        }
    };
    if verb.letter.is_ascii_uppercase() { text.to_uppercase() } else { text }
}
