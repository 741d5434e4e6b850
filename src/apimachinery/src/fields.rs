//! Field selectors: `metadata.name=a,spec.nodeName!=b`.
//!
//! Source: `k8s.io/apimachinery/pkg/fields`. Which fields a resource supports is for the API server.

use std::fmt;

/// Why a selector cannot be used, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A term has no operator.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    /// A backslash stands before something that needs none.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// A comma or equals sign in a value without a backslash.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(char),
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Dotted path.
    pub field: String,
    /// What it must (or must not) be.
    pub value: String,
    /// `=` rather than `!=`.
    pub equal: bool,
}

/// All requirements must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
}

impl Selector {
    /// Reads the text of `fieldSelector=`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Vec::new();
        for term in terms(text) {
            if term.is_empty() {
                continue;
            }
            let bad = || Error::Term { selector: text.to_owned(), term: term.to_owned() };
            let (field, value, equal) = split(term).ok_or_else(bad)?;
            requirements.push(Requirement {
                field: field.to_owned(),
                value: unescape(value)?,
                equal,
            });
        }
        requirements.sort_by(|a, b| a.field.cmp(&b.field));
        Ok(Self { requirements })
    }

    /// The comparisons.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether there is no condition.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether an object, whose fields `field` reads (absent ones as empty), is selected.
    pub fn matches<T: AsRef<str>>(&self, field: impl Fn(&str) -> T) -> bool {
        self.requirements.iter().all(|r| (field(&r.field).as_ref() == r.value) == r.equal)
    }

    /// The value that `field` must have, if the selector demands one.
    pub fn requires(&self, field: &str) -> Option<&str> {
        self.requirements.iter().find(|r| r.equal && r.field == field).map(|r| r.value.as_str())
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if r.equal { "=" } else { "!=" };
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

/// Splits at commas that no backslash precedes.
fn terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split(term: &str) -> Option<(&str, &str, bool)> {
    let at = term.find(['!', '='])?;
    let (field, rest) = term.split_at(at);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((field, value, false));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((field, value, true))
}

fn unescape(value: &str) -> Result<String, Error> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => text.push(c),
                Some(c) => return Err(Error::Escape(format!("\\{c}"))),
                None => return Err(Error::Escape("\\".into())),
            },
            ',' | '=' => return Err(Error::Unescaped(c)),
            _ => text.push(c),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read_and_printed() {
        for (text, want) in [
            ("", ""),
            ("spec.nodeName=a,metadata.name!=b", "metadata.name!=b,spec.nodeName=a"),
            ("a==b", "a=b"),
            (r"a=b\,c\=d\\e", r"a=b\,c\=d\\e"),
            ("a=", "a="),
        ] {
            assert_eq!(Selector::parse(text).expect(text).to_string(), want);
        }
        assert!(Selector::parse("a").is_err() && Selector::parse(r"a=\x").is_err());
        assert!(Selector::parse("a=b=c").is_err());
    }

    #[test]
    fn fields_are_compared() {
        let selector = Selector::parse("metadata.name=a,spec.nodeName!=n").expect("valid");
        let field = |name: &str, node: &'static str| {
            if name == "metadata.name" { "a" } else { node }
        };
        assert!(selector.matches(|name| field(name, "")));
        assert!(!selector.matches(|name| field(name, "n")));
        assert_eq!(selector.requires("metadata.name"), Some("a"));
    }
}
