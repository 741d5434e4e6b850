//! The string formats that are checked; others are taken as they are.
//!
//! Source: `k8s.io/kube-openapi/pkg/validation/strfmt` and the list of supported formats of
//! apiextensions-apiserver.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use regex::Regex;

use crate::names;

static PATTERNS: LazyLock<Vec<(&'static str, Regex)>> = LazyLock::new(|| {
    const TEXT: &[(&str, &str)] = &[
        ("bsonobjectid", r"^[0-9a-fA-F]{24}$"),
        ("uuid", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        ("uuid3", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$"),
        ("uuid4", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        ("uuid5", r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$"),
        ("hexcolor", r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"),
        (
            "rgbcolor",
            r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$",
        ),
        ("ssn", r"^\d{3}[- ]?\d{2}[- ]?\d{4}$"),
        ("mac", r"(?i)^([0-9a-f]{2}([:-][0-9a-f]{2}){5,7}|[0-9a-f]{4}(\.[0-9a-f]{4}){2,3})$"),
        (
            "hostname",
            r"^([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,61}[a-zA-Z0-9])(\.([a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,61}[a-zA-Z0-9]))*\.?$",
        ),
        ("email", r"^[^\s@<>]+@[^\s@<>]+$"),
        ("uri", r"^[A-Za-z][A-Za-z0-9+.-]*:[^\s]*$|^/[^\s]*$"),
        (
            "duration",
            r"^[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))*$|^[+-]?0$|(?i)\d\s*(((ns|us|µs|ms|s|m|h|hr|d|w|wk)([^A-Za-zµ]|$))|nano|micro|milli|sec|min|hour|day|week)",
        ),
    ];
    TEXT.iter()
        .map(|(name, text)| (*name, crate::pattern::compile(text).expect("the table's patterns")))
        .collect()
});

/// The formats of text that are checked.
const KNOWN: [&str; 26] = [
    "bsonobjectid",
    "byte",
    "cidr",
    "creditcard",
    "date",
    "datetime",
    "duration",
    "email",
    "hexcolor",
    "hostname",
    "ipv4",
    "ipv6",
    "isbn",
    "isbn10",
    "isbn13",
    "k8slongname",
    "k8sshortname",
    "mac",
    "password",
    "rgbcolor",
    "ssn",
    "uri",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
];

/// Whether this is a format of text that is checked.
pub fn is_known(format: &str) -> bool {
    KNOWN.contains(&format.replace('-', "").as_str())
}

/// Whether `text` is of the format; a format nobody knows is always right.
pub fn is(format: &str, text: &str) -> bool {
    let normal = format.replace('-', "");
    match normal.as_str() {
        "byte" => {
            base64::engine::general_purpose::STANDARD.decode(text.replace(['\r', '\n'], "")).is_ok()
        }
        "ipv4" => text.contains('.') && sloppy(text).is_some(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "datetime" => is_date_time(text),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_credit_card(text),
        "k8sshortname" => names::dns_label(text).is_empty(),
        "k8slongname" => names::dns_subdomain(text).is_empty(),
        "hostname" if text.len() > 255 => false,
        name => {
            PATTERNS.iter().find(|(known, _)| *known == name).is_none_or(|(_, r)| r.is_match(text))
        }
    }
}

/// As `IsDateTime` has it: what comes after a second `t` does not count.
fn is_date_time(text: &str) -> bool {
    static CLOCK: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new("^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](.[0-9]+)?(z|[+-][0-9]{2}:[0-9]{2})$")
            .expect("a pattern")
    });
    let text = text.to_ascii_lowercase();
    let mut parts = text.split('t');
    parts.next().is_some_and(|date| is("date", date))
        && parts.next().is_some_and(|time| CLOCK.is_match(time))
}

/// An address; zeros may stand before the numbers of an IPv4 one, as early versions of Go had it.
fn sloppy(text: &str) -> Option<IpAddr> {
    let plain = |number: &str| match number.trim_start_matches('0') {
        "" if !number.is_empty() => "0".to_owned(),
        rest => rest.to_owned(),
    };
    let (before, last) = text.rsplit_once(':').map_or(("", text), |(before, last)| (before, last));
    let last = last.contains('.').then(|| last.split('.').map(plain).collect::<Vec<_>>().join("."));
    match last {
        None => text.parse().ok(),
        Some(last) if before.is_empty() && !text.contains(':') => last.parse().ok(),
        Some(last) => format!("{before}:{last}").parse().ok(),
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Some(address) = sloppy(address) else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.parse::<u8>().is_ok_and(|n| n <= most && n.to_string() == bits)
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().filter(|c| !matches!(c, ' ' | '-')).map(|c| c.to_digit(10).unwrap_or(99)).collect()
}

fn is_isbn10(text: &str) -> bool {
    let plain: String = text.chars().filter(|c| !matches!(c, ' ' | '-')).collect();
    if plain.len() != 10 {
        return false;
    }
    let mut sum = 0;
    for (i, c) in plain.chars().enumerate() {
        let digit = match c {
            'X' | 'x' if i == 9 => 10,
            c => match c.to_digit(10) {
                Some(digit) => digit,
                None => return false,
            },
        };
        sum += (i as u32 + 1) * digit;
    }
    sum % 11 == 0
}

fn is_isbn13(text: &str) -> bool {
    let digits = digits(text);
    digits.len() == 13
        && digits.iter().all(|d| *d < 10)
        && digits.iter().enumerate().map(|(i, d)| d * if i % 2 == 0 { 1 } else { 3 }).sum::<u32>()
            % 10
            == 0
}

fn is_credit_card(text: &str) -> bool {
    let digits = digits(text);
    if !(13..=19).contains(&digits.len()) || digits.iter().any(|d| *d > 9) {
        return false;
    }
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match (i % 2, d * 2) {
            (0, _) => *d,
            (_, twice) if twice > 9 => twice - 9,
            (_, twice) => twice,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_tell_right_from_wrong() {
        let cases = [
            ("ipv4", "10.0.0.1", "10.0.0"),
            ("ipv6", "::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("date-time", "2026-01-01T00:00:00Z", "2026-01-01"),
            ("date-time", "9999-12-31T23:59:59Z", "9999-12-32T00:00:00Z"),
            ("date-time", "2026-01-01t23:59:59.5z", "2026-01-01T3:04:05Z"),
            ("date-time", "2026-01-01T00:00:00-01:00", "2026-01-01T24:00:00Z"),
            ("date", "2026-01-31", "2026-02-31"),
            ("duration", "1h30m", "1x"),
            ("duration", "5 minutes", "minutes"),
            ("ipv4", "010.0.0.1", "::1"),
            ("cidr", "010.0.0.0/8", "10.0.0.0"),
            ("uuid", "3b241101-e2bb-4255-8caf-4136c566a962", "3b24"),
            (
                "uuid4",
                "3b241101-e2bb-4255-8caf-4136c566a962",
                "3b241101-e2bb-3255-8caf-4136c566a962",
            ),
            ("email", "a@b.c", "a.b"),
            ("hostname", "a.b-c.d", "-a"),
            ("uri", "https://a/b", "not a uri"),
            ("mac", "00:11:22:33:44:55", "00:11"),
            ("byte", "YQ==", "Y"),
            ("hexcolor", "#ff0000", "#ggg"),
            ("isbn10", "0-306-40615-2", "0-306-40615-3"),
            ("isbn13", "978-0-306-40615-7", "978-0-306-40615-8"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("k8s-short-name", "abc", "a.b"),
            ("k8s-long-name", "a.b", "A"),
        ];
        for (format, right, wrong) in cases {
            assert!(is(format, right), "{format} {right}");
            assert!(!is(format, wrong), "{format} {wrong}");
        }
        assert!(is("something-else", "x"));
    }
}
