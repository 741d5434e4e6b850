//! Regular expressions as Go's `regexp` (RE2) reads them: the classes `\d`, `\w`, `\s` and `\b` are
//! ASCII's.

use regex::Regex;

/// Compiles a pattern; the error is the compiler's own text.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let text = ascii_classes(pattern);
    regex::RegexBuilder::new(&text).size_limit(32 << 20).build().map_err(|error| match error {
        regex::Error::Syntax(text) => {
            let last = text.lines().last().unwrap_or_default();
            let (what, part) = in_go(last.trim_start_matches("error: "), pattern);
            format!("error parsing regexp: {what}: `{part}`")
        }
        other => format!("error parsing regexp: {other}"),
    })
}

/// What is wrong and where, in Go's words for the commonest mistakes.
fn in_go<'t>(told: &'t str, pattern: &'t str) -> (&'t str, &'t str) {
    match told {
        "unclosed group" => ("missing closing )", pattern),
        "unopened group" => ("unexpected )", pattern),
        "unclosed character class" => {
            ("missing closing ]", pattern.rfind('[').map_or(pattern, |at| &pattern[at..]))
        }
        told if told.starts_with("look-around") => {
            let at = ["(?=", "(?!"].into_iter().filter_map(|part| pattern.find(part)).min();
            match at {
                Some(at) => ("invalid or unsupported Perl syntax", &pattern[at..at + 3]),
                None => (
                    "invalid named capture",
                    pattern.find("(?<").map_or(pattern, |at| &pattern[at..]),
                ),
            }
        }
        told => (told, pattern),
    }
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
    fn mistakes_are_told_in_gos_words() {
        for (pattern, why) in [
            ("a(b", "error parsing regexp: missing closing ): `a(b`"),
            ("a)", "error parsing regexp: unexpected ): `a)`"),
            ("^(?!x).*$", "error parsing regexp: invalid or unsupported Perl syntax: `(?!`"),
        ] {
            assert_eq!(compile(pattern).unwrap_err(), why);
        }
    }

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
