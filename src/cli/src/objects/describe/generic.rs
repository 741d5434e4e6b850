//! Objects of any kind, field by field.

use serde_json::Value;

use super::{Page, items, map, shown, str};

/// Fields that are told at the top, or to nobody's use.
const TOLD: [&str; 9] = [
    "name",
    "namespace",
    "labels",
    "annotations",
    "managedFields",
    "ownerReferences",
    "selfLink",
    "initializers",
    "clusterName",
];

/// Writes the object.
pub fn describe(page: &mut Page, object: &Value) {
    let meta = &object["metadata"];
    page.field(0, "Name", str(&meta["name"]));
    page.field(0, "Namespace", str(&meta["namespace"]));
    page.labels(0, "Labels", &meta["labels"]);
    page.annotations("Annotations", &meta["annotations"]);
    page.field(0, "API Version", str(&object["apiVersion"]));
    page.field(0, "Kind", str(&object["kind"]));
    let mut rest: Vec<(String, &String, &Value)> = map(object)
        .filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind"))
        .map(|(key, value)| (label(key), key, value))
        .collect();
    rest.sort_by(|a, b| a.0.cmp(&b.0));
    for (label, key, value) in rest {
        if key != "metadata" {
            field(page, 0, &label, value);
            continue;
        }
        page.line(0, "Metadata:");
        fields(page, 1, value, |key| {
            !TOLD.contains(&key) && key != "generateName" && key != "deletionGracePeriodSeconds"
                || key == "ownerReferences"
        });
    }
}

fn fields(page: &mut Page, level: usize, object: &Value, wanted: impl Fn(&str) -> bool) {
    let mut all: Vec<(String, &Value)> = map(object)
        .filter(|(key, _)| wanted(key))
        .map(|(key, value)| (label(key), value))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    for (label, value) in all {
        field(page, level, &label, value);
    }
}

fn field(page: &mut Page, level: usize, label: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Object(_) => {
            page.line(level, format!("{label}:"));
            fields(page, level + 1, value, |_| true);
        }
        Value::Array(_) => {
            page.line(level, format!("{label}:"));
            for item in items(value) {
                match item {
                    Value::Object(_) => fields(page, level + 1, item, |_| true),
                    other => page.line(level + 1, go(other)),
                }
            }
        }
        other => page.field(level, label, go(other)),
    }
}

/// Scalars as Go prints them.
fn go(value: &Value) -> String {
    shown(value)
}

/// `apiVersion` as `API Version`.
fn label(field: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let chars: Vec<char> = field.chars().collect();
    for (index, c) in chars.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|i| chars.get(i));
        let next = chars.get(index + 1);
        let starts = index == 0
            || c.is_uppercase()
                && (before.is_some_and(|b| b.is_lowercase())
                    || next.is_some_and(|n| n.is_lowercase()));
        if starts || words.is_empty() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut() {
            word.push(*c);
        }
    }
    let titled = words.into_iter().map(|word| match word.to_lowercase().as_str() {
        "api" | "url" | "uid" | "osb" | "guid" => word.to_uppercase(),
        _ => {
            let mut chars = word.chars();
            chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
        }
    });
    titled.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::describe::tabs;

    #[test]
    fn labels_are_words() {
        for (field, want) in [
            ("apiVersion", "API Version"),
            ("uid", "UID"),
            ("creationTimestamp", "Creation Timestamp"),
            ("podIP", "Pod IP"),
            ("x", "X"),
        ] {
            assert_eq!(label(field), want);
        }
    }

    #[test]
    fn objects_are_told_field_by_field() {
        let mut page = Page::default();
        describe(
            &mut page,
            &json!({"apiVersion": "a/v1", "kind": "Foo", "metadata": {"name": "x", "namespace": "n", "uid": "u", "labels": {"a": "b"}},
            "spec": {"size": 3, "list": ["p", "q"], "items": [{"a": 1, "b": true}], "none": null}}),
        );
        insta::assert_snapshot!(tabs::expand(&page.text), @r"
        Name:         x
        Namespace:    n
        Labels:       a=b
        Annotations:  <none>
        API Version:  a/v1
        Kind:         Foo
        Metadata:
          UID:  u
        Spec:
          Items:
            A:  1
            B:  true
          List:
            p
            q
          Size:  3
        ");
    }
}
