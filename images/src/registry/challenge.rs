//! `WWW-Authenticate`: what a registry wants before it answers.
//!
//! Source: RFC 9110, 11.6.1; distribution's "Token Authentication Specification".

/// One challenge a registry offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges of one header value, in order; those of unknown schemes are left out.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let (scheme, after) = rest.split_at(end);
        let (parameters, next) = parameters(after.trim_start());
        let get = |name: &str| {
            let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = get("realm")
        {
            challenges.push(Challenge::Bearer {
                realm,
                service: get("service"),
                scope: get("scope"),
            });
        }
        rest = next.trim_start_matches([',', ' ']);
    }
    challenges
}

/// Reads `key=value, key="value"` until something that is not a parameter.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    loop {
        let trimmed = rest.trim_start_matches([',', ' ']);
        let Some(equals) = trimmed.find('=') else {
            return (found, trimmed);
        };
        let key = trimmed[..equals].trim_end();
        if key.contains([' ', ',', '"']) || key.is_empty() {
            return (found, trimmed);
        }
        let value = trimmed[equals + 1..].trim_start();
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            quoted_string(quoted)
        } else {
            let end = value.find([',', ' ']).unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        };
        found.push((key.to_owned(), value));
        rest = after;
    }
}

fn quoted_string(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_registries_send() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        for (header, want) in [
            (r#"Basic realm="Registry Realm""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull,push"),
                )],
            ),
            (
                r#"bearer realm=https://x/t, service=y, Basic realm="z""#,
                vec![bearer("https://x/t", Some("y"), None), Challenge::Basic],
            ),
            (r#"Negotiate, Basic realm="a, b=c""#, vec![Challenge::Basic]),
            (r#"Bearer service="no realm""#, vec![]),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), want, "{header}");
        }
    }

    proptest! {
        #[test]
        fn ends_on_anything(header in "\\PC{0,80}") {
            parse(&header);
        }

        #[test]
        fn ends_on_anything_like_it(header in "[a-zB ,=\"\\\\]{0,40}") {
            parse(&header);
        }
    }
}
