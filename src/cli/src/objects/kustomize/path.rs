//! Fields by their path: `spec/template/metadata/labels`, through lists as if they were not there.

use serde_json::{Value, json};

/// Calls `change` with every value at `path`; maps on the way are made if `create`.
pub fn visit(value: &mut Value, path: &[&str], create: bool, change: &mut dyn FnMut(&mut Value)) {
    let Some((first, rest)) = path.split_first() else {
        change(value);
        return;
    };
    if let Value::Array(items) = value {
        for item in items {
            visit(item, path, create, change);
        }
        return;
    }
    let (field, list) = match first.strip_suffix("[]") {
        Some(field) => (field, true),
        None => (*first, false),
    };
    let Some(map) = value.as_object_mut() else { return };
    let missing = map.get(field).is_none_or(Value::is_null);
    if missing && (list || !create) {
        return;
    }
    if missing {
        map.insert(field.to_owned(), json!({}));
    }
    if let Some(next) = map.get_mut(field) {
        visit(next, rest, create, change);
    }
}

/// The parts of a path; a slash within one is written `\/`.
pub fn parts(path: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut bracket = false;
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&separator) => {
                chars.next();
                if let Some(part) = parts.last_mut() {
                    part.push(separator);
                }
            }
            c if c == separator && !bracket => parts.push(String::new()),
            c => {
                bracket = match c {
                    '[' => true,
                    ']' => false,
                    _ => bracket,
                };
                if let Some(part) = parts.last_mut() {
                    part.push(c);
                }
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_gone_through_and_maps_made() {
        let mut value = json!({"a": [{"b": {}}, {"c": 1}]});
        visit(&mut value, &["a", "b", "d"], true, &mut |found| *found = "x".into());
        assert_eq!(value, json!({"a": [{"b": {"d": "x"}}, {"c": 1, "b": {"d": "x"}}]}));
        visit(&mut value, &["e[]", "f"], true, &mut |found| *found = "x".into());
        visit(&mut value, &["g", "h"], false, &mut |found| *found = "x".into());
        assert!(value.get("e").is_none() && value.get("g").is_none());
    }

    #[test]
    fn paths_are_taken_apart() {
        let cases: [(&str, char, &[&str]); 3] = [
            ("a/b\\/c/d", '/', &["a", "b/c", "d"]),
            (
                "spec.containers.[name=a.b].image",
                '.',
                &["spec", "containers", "[name=a.b]", "image"],
            ),
            ("metadata.annotations.a\\.b/c", '.', &["metadata", "annotations", "a.b/c"]),
        ];
        for (path, separator, want) in cases {
            assert_eq!(parts(path, separator), want, "{path}");
        }
    }
}
