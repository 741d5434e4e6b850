//! Rules for names, and what Kubernetes says when one is broken.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation` and `.../api/validation`. Each function returns
//! what is wrong, one sentence per rule; an empty list means the name is fine.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
const LABEL_1035_FORMAT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const LABEL_1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character";
const SUBDOMAIN_FORMAT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const QUALIFIED_MESSAGE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
const LABEL_VALUE_FORMAT: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";

/// What is wrong with a name, rule by rule.
pub type Mistakes = Vec<String>;

/// The sentence for text that is too long.
pub fn max_len(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// The sentence for text that does not match `format`, with `examples`.
pub fn pattern(message: &str, format: &str, examples: &[&str]) -> String {
    let examples = examples.iter().map(|e| format!("'{e}'")).collect::<Vec<_>>().join(",  or ");
    if examples.is_empty() {
        format!("{message} (regex used for validation is '{format}')")
    } else {
        format!("{message} (e.g. {examples}, regex used for validation is '{format}')")
    }
}

const fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn label_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    lower_or_digit(first)
        && lower_or_digit(last)
        && bytes.iter().all(|&b| lower_or_digit(b) || b == b'-')
}

fn qualified_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

/// A DNS label (RFC 1123): namespaces, container names, port-less host names.
pub fn dns_label(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.len() > LABEL_MAX {
        mistakes.push(max_len(LABEL_MAX));
    }
    if !label_shaped(text) {
        // Upstream tells where a dot was meant by somebody who read "subdomain".
        if subdomain_shaped(text) {
            mistakes.push("must not contain dots".to_owned());
        } else {
            mistakes.push(pattern(LABEL_MESSAGE, LABEL_FORMAT, &["my-name", "123-abc"]));
        }
    }
    mistakes
}

/// A DNS label that starts with a letter (RFC 1035): services.
pub fn dns_1035_label(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.len() > LABEL_MAX {
        mistakes.push(max_len(LABEL_MAX));
    }
    if !(label_shaped(text) && text.as_bytes()[0].is_ascii_lowercase()) {
        mistakes.push(pattern(LABEL_1035_MESSAGE, LABEL_1035_FORMAT, &["my-name", "abc-123"]));
    }
    mistakes
}

fn subdomain_shaped(text: &str) -> bool {
    text.split('.').all(label_shaped)
}

/// A DNS subdomain: the names of most objects.
pub fn dns_subdomain(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.len() > SUBDOMAIN_MAX {
        mistakes.push(max_len(SUBDOMAIN_MAX));
    }
    if !subdomain_shaped(text) {
        mistakes.push(pattern(SUBDOMAIN_MESSAGE, SUBDOMAIN_FORMAT, &["example.com"]));
    }
    mistakes
}

/// A DNS subdomain whose first label may be `*`.
pub fn wildcard_dns_subdomain(text: &str) -> Mistakes {
    if !text.strip_prefix("*.").is_some_and(subdomain_shaped) {
        return vec![pattern(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            r"\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
            &["*.example.com"],
        )];
    }
    if text.len() > SUBDOMAIN_MAX { vec![max_len(SUBDOMAIN_MAX)] } else { Mistakes::new() }
}

fn prefixed(prefix: &str, mistakes: Mistakes) -> impl Iterator<Item = String> {
    mistakes.into_iter().map(move |m| format!("{prefix}{m}"))
}

/// A qualified name, `[prefix/]name`: label and annotation keys, resource names.
pub fn qualified_name(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                mistakes.push("prefix part must be non-empty".to_owned());
            } else {
                mistakes.extend(prefixed("prefix part ", dns_subdomain(prefix)));
            }
            name
        }
        _ => {
            return vec![format!(
                "a qualified name {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                pattern(QUALIFIED_MESSAGE, QUALIFIED_FORMAT, &["MyName", "my.name", "123-abc"])
            )];
        }
    };
    if name.is_empty() {
        mistakes.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        mistakes.push(format!("name part {}", max_len(LABEL_MAX)));
    }
    if !qualified_shaped(name) {
        let text = pattern(QUALIFIED_MESSAGE, QUALIFIED_FORMAT, &["MyName", "my.name", "123-abc"]);
        mistakes.push(format!("name part {text}"));
    }
    mistakes
}

/// The value of a label.
pub fn label_value(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.len() > LABEL_MAX {
        mistakes.push(max_len(LABEL_MAX));
    }
    if !text.is_empty() && !qualified_shaped(text) {
        mistakes.push(pattern(
            LABEL_VALUE_MESSAGE,
            LABEL_VALUE_FORMAT,
            &["MyValue", "my_value", "12345"],
        ));
    }
    mistakes
}

/// The key of a `ConfigMap` or `Secret`.
pub fn config_map_key(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.len() > SUBDOMAIN_MAX {
        mistakes.push(max_len(SUBDOMAIN_MAX));
    }
    let shaped = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    if text.is_empty() || !text.as_bytes().iter().all(shaped) {
        mistakes.push(pattern(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    mistakes.extend(not_a_directory(text));
    mistakes
}

fn not_a_directory(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// The name of an environment variable: printable ASCII without `=`.
pub fn env_var_name(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.is_empty() || !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        mistakes.push("a valid environment variable name must consist only of printable ASCII characters other than '='".to_owned());
    }
    mistakes
}

/// The name of a header of HTTP.
pub fn http_header_name(text: &str) -> Mistakes {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
    if !text.is_empty() && text.bytes().all(valid) {
        return Mistakes::new();
    }
    let message = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![pattern(message, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

/// The name of a port: `IANA_SVC_NAME`.
pub fn port_name(text: &str) -> Mistakes {
    let mut mistakes = Mistakes::new();
    if text.len() > 15 {
        mistakes.push("must be no more than 15 characters".to_owned());
    }
    if !text.bytes().all(|b| lower_or_digit(b) || b == b'-') {
        mistakes.push(
            "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned(),
        );
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        mistakes.push("must contain at least one letter (a-z)".to_owned());
    }
    if text.contains("--") {
        mistakes.push("must not contain consecutive hyphens".to_owned());
    }
    if text.starts_with('-') || text.ends_with('-') {
        mistakes.push("must not begin or end with a hyphen".to_owned());
    }
    mistakes
}

/// A port number.
pub fn port_number(port: i64) -> Mistakes {
    if (1..=65535).contains(&port) {
        Mistakes::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".to_owned()]
    }
}

/// A name that becomes a path element, as RBAC objects have (`path.IsValidPathSegmentName`).
pub fn path_segment(text: &str) -> Mistakes {
    if text == "." || text == ".." {
        return vec![format!("may not be '{text}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|c| text.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// `text` as `generateName` makes it checkable: a trailing dash is followed by something later.
pub fn mask_trailing_dash(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(rest) if text.len() > 1 => format!("{rest}a"),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_have_no_mistakes() {
        for (check, names) in [
            (dns_label as fn(&str) -> Mistakes, &["a", "1", "a-b", "a1"][..]),
            (dns_1035_label, &["a", "a-1"]),
            (dns_subdomain, &["a.b", "1.2.3", "kube-root-ca.crt"]),
            (qualified_name, &["app", "a.b/C_d.e", "kubernetes.io/os"]),
            (label_value, &["", "A_b.c", "1"]),
            (
                config_map_key,
                &["a.B", "_x", ".hidden", "...".trim_end_matches('.').trim(), "k"][..2],
            ),
            (port_name, &["http", "p-1"]),
            (wildcard_dns_subdomain, &["*.a.b"]),
        ] {
            for name in names {
                assert!(check(name).is_empty(), "{name}: {:?}", check(name));
            }
        }
    }

    #[test]
    fn bad_names_are_told_in_upstreams_words() {
        let long = "a".repeat(64);
        let cases: &[(Mistakes, &[&str])] = &[
            (
                dns_label("A"),
                &[
                    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (dns_label("a.b"), &["must not contain dots"]),
            (dns_label(&long), &["must be no more than 63 bytes"]),
            (
                dns_subdomain("a_b"),
                &[
                    r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
                ],
            ),
            (qualified_name("/a"), &["prefix part must be non-empty"]),
            (
                label_value("-a"),
                &[
                    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
                ],
            ),
            (port_name("1"), &["must contain at least one letter (a-z)"]),
            (port_number(0), &["must be between 1 and 65535, inclusive"]),
            (config_map_key(".."), &["must not be '..'"]),
        ];
        for (got, want) in cases {
            assert_eq!(got, want);
        }
        assert_eq!(qualified_name("a/b/c").len(), 1);
        assert_eq!(qualified_name("").len(), 2);
    }
}
