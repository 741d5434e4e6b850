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
    for (key, value) in map(object) {
        if key != "metadata" {
            field(page, 0, &label(key), value);
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
    for (key, value) in map(object).filter(|(key, _)| wanted(key)) {
        field(page, level, &label(key), value);
    }
}

fn field(page: &mut Page, level: usize, label: &str, value: &Value) {
    match value {
        Value::Null => page.field(level, label, "<nil>"),
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

/// `apiVersion` as `API Version`; what has other characters than letters and dashes stays as it is.
fn label(field: &str) -> String {
    if !field.chars().all(|c| c.is_alphabetic() || c == '-') {
        return field.to_owned();
    }
    let titled = words(field).into_iter().map(|word| match word.to_lowercase().as_str() {
        "api" | "url" | "uid" | "osb" | "guid" => word.to_uppercase(),
        word => {
            let mut chars = word.chars();
            chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
        }
    });
    titled.collect::<Vec<_>>().join(" ")
}

/// Runs of letters of one case; the last capital before small ones begins their word.
fn words(field: &str) -> Vec<String> {
    let class = |c: char| (c.is_lowercase(), c.is_uppercase());
    let mut runs: Vec<String> = Vec::new();
    for c in field.chars() {
        match runs.last_mut() {
            Some(run) if run.chars().last().map(class) == Some(class(c)) => run.push(c),
            _ => runs.push(c.to_string()),
        }
    }
    for at in 1..runs.len() {
        let before = runs[at - 1].chars().last().filter(|c| c.is_uppercase());
        if let Some(capital) = before.filter(|_| runs[at].starts_with(char::is_lowercase)) {
            runs[at - 1].pop();
            runs[at].insert(0, capital);
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
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
            ("podIP", "Pod Ip"),
            ("nonResourceURLs", "Non Resource Ur Ls"),
            ("openAPIV3Schema", "openAPIV3Schema"),
            ("x-kubernetes-preserve", "X - Kubernetes - Preserve"),
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
          None:  <nil>
          Size:  3
        ");
    }
}
