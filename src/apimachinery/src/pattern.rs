//! Regular expressions as Go's `regexp` (RE2) reads them: the classes `\d`, `\w`, `\s` and `\b` are
//! ASCII's.

use regex::Regex;

/// Compiles a pattern; the error is the compiler's own text.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let text = ascii_classes(pattern);
    regex::RegexBuilder::new(&text).size_limit(32 << 20).build().map_err(|error| match error {
        regex::Error::Syntax(text) => {
            let last = text.lines().last().unwrap_or_default();
            format!("error parsing regexp: {}: `{pattern}`", last.trim_start_matches("error: "))
        }
        other => format!("error parsing regexp: {other}"),
    })
}

fn ascii_classes(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match (chars.next(), in_class) {
                (Some('d'), true) => out.push_str("0-9"),
                (Some('w'), true) => out.push_str("0-9A-Za-z_"),
                (Some('s'), true) => out.push_str(r"\t\n\f\r "),
                (Some('d'), false) => out.push_str("[0-9]"),
                (Some('D'), false) => out.push_str("[^0-9]"),
                (Some('w'), false) => out.push_str("[0-9A-Za-z_]"),
                (Some('W'), false) => out.push_str("[^0-9A-Za-z_]"),
                (Some('s'), false) => out.push_str(r"[\t\n\f\r ]"),
                (Some('S'), false) => out.push_str(r"[^\t\n\f\r ]"),
                (Some('b'), false) => out.push_str(r"(?-u:\b)"),
                (Some('B'), false) => out.push_str(r"(?-u:\B)"),
                (Some('D'), true) => out.push_str("[^0-9]"),
                (Some('W'), true) => out.push_str("[^0-9A-Za-z_]"),
                (Some('S'), true) => out.push_str(r"[^\t\n\f\r ]"),
                // Go takes an escape of any punctuation.
                (Some(c), _) if c.is_ascii_punctuation() && !r"\.+*?()|[]{}^$#&-~/".contains(c) => {
                    out.push(c);
                }
                (Some('z'), false) => out.push_str(r"\z"),
                (Some(other), _) => {
                    out.push('\\');
                    out.push(other);
                }
                (None, _) => out.push('\\'),
            },
            '[' if in_class => {
                // A bracket inside a class is itself in RE2, unless it begins [:name:].
                if chars.as_str().starts_with(':') {
                    out.push('[');
                    for c in chars.by_ref() {
                        out.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                } else {
                    out.push_str(r"\[");
                }
            }
            '[' => {
                in_class = true;
                out.push('[');
                if chars.as_str().starts_with('^') {
                    chars.next();
                    out.push('^');
                }
                if chars.as_str().starts_with(']') {
                    chars.next();
                    out.push_str(r"\]");
                }
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            // Set operations of this crate's syntax mean nothing in Go.
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_go_means() {
        let cases = [
            (r"^\d+$", "123", true),
            (r"^\d+$", "١٢٣", false),
            (r"^[\w.-]+$", "a_b.c-d", true),
            (r"^[^\s]+$", "a b", false),
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "* * * * */5", true),
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "* * * *", false),
            (r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "a-b", true),
            (r"^[[a]+$", "[a", true),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^[]a]$", "]", true),
            (r"a\/b", "a/b", true),
            (r"^\S\W$", "a-", true),
            (r"\bfoo\b", "a foo b", true),
            (r"^[&&a]+$", "a&", true),
        ];
        for (pattern, text, want) in cases {
            assert_eq!(compile(pattern).expect(pattern).is_match(text), want, "{pattern} {text}");
        }
        assert!(compile("a(").is_err());
    }
}
