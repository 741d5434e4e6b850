//! Objects as the user wants to see them (`-o`).

pub mod columns;
pub mod json;
pub mod table;
pub mod template;
pub mod yaml;

use serde_json::Value;

use columns::{Columns, Custom};
use template::Template;

use super::error::Error;

const FORMATS: &str = "custom-columns,custom-columns-file,json,jsonpath,jsonpath-as-json,jsonpath-file,name,wide,yaml";

/// How objects are printed.
#[derive(Clone, Debug)]
pub enum Output {
    /// As a table, or a line that says what was done.
    Human {
        /// With all columns.
        wide: bool,
    },
    /// As they are.
    Json,
    /// As they are.
    Yaml,
    /// `pod/x`.
    Name,
    /// What a template's paths find.
    Template {
        /// The template.
        template: Template,
        /// As JSON.
        json: bool,
    },
    /// In columns of the user's.
    Custom(Custom),
}

impl Output {
    /// Reads the value of `-o`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (format, argument) = match text.split_once('=') {
            Some((format, argument)) => (format, Some(argument)),
            None => (text, None),
        };
        let needed = || {
            let what = if format.starts_with("custom") { "custom columns" } else { "template" };
            argument.filter(|a| !a.is_empty()).ok_or_else(|| {
                Error::Wrong(format!("{format} format specified but no {what} given"))
            })
        };
        let file = || {
            let path = needed()?;
            std::fs::read_to_string(path)
                .map_err(|error| Error::Wrong(format!("error reading {path}: {error}")))
        };
        Ok(match format {
            "" => Self::Human { wide: false },
            "wide" => Self::Human { wide: true },
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "name" => Self::Name,
            "jsonpath" => Self::Template { template: Template::parse(needed()?)?, json: false },
            "jsonpath-as-json" => {
                Self::Template { template: Template::parse(needed()?)?, json: true }
            }
            "jsonpath-file" => Self::Template { template: Template::parse(&file()?)?, json: false },
            "custom-columns" => Self::Custom(Custom::parse(needed()?)?),
            "custom-columns-file" => Self::Custom(Custom::parse_file(&file()?)?),
            "go-template" | "go-template-file" | "template" | "templatefile" => {
                return Err(Error::wrong(
                    "Go templates are not covered; use -o jsonpath=, -o custom-columns= or `rootlet kubectl`",
                ));
            }
            other => {
                let meant = super::kinds::nearest(other, FORMATS.split(','));
                let hint =
                    meant.map(|m| format!("\nhint: did you mean {m:?}?")).unwrap_or_default();
                return Err(Error::Wrong(format!(
                    "unable to match a printer suitable for the output format {other:?}, allowed formats are: {FORMATS}{hint}"
                )));
            }
        })
    }

    /// Whether people are to read it, not programs.
    pub fn is_human(&self) -> bool {
        matches!(self, Self::Human { .. })
    }

    /// The objects, each by itself as YAML documents, JSON and so on; not for people.
    pub fn text(&self, objects: &[Value]) -> String {
        let mut out = String::new();
        let mut columns = Columns::default();
        if let Self::Custom(custom) = self {
            let rows = objects.iter().flat_map(list_items).map(|object| custom.row(object));
            let rows: Vec<Vec<String>> = std::iter::once(custom.header()).chain(rows).collect();
            return columns.lines(&rows);
        }
        for (index, object) in objects.iter().enumerate() {
            match self {
                Self::Human { .. } | Self::Custom(_) => {}
                Self::Json => out.push_str(&json::text(object)),
                Self::Yaml => {
                    if index > 0 {
                        out.push_str("---\n");
                    }
                    out.push_str(&yaml::text(object));
                }
                Self::Name => out.extend(list_items(object).into_iter().map(|o| name(o) + "\n")),
                Self::Template { template, json: false } => out.push_str(&template.text(object)),
                Self::Template { template, json: true } => out.push_str(&template.values(object)),
            }
        }
        out
    }
}

/// The items of a list; of anything else itself.
fn list_items(object: &Value) -> Vec<&Value> {
    match object["items"].as_array() {
        Some(items) if object["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
            items.iter().collect()
        }
        _ => vec![object],
    }
}

/// `pod/x` or `deployment.apps/x`.
pub fn name(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = text(&object["apiVersion"]);
    let group = version.split_once('/').map_or("", |(group, _)| group);
    format!(
        "{}/{}",
        super::kinds::word(&text(&object["kind"]), group),
        text(&object["metadata"]["name"])
    )
}

/// Objects as one list, as kubectl makes it of what is not a list of the server's.
pub fn list(items: Vec<Value>) -> Value {
    serde_json::json!({"apiVersion": "v1", "items": items, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// Takes away who set which field.
pub fn without_managed_fields(object: &mut Value) {
    // Looking must not make fields, as indexing would.
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
        items.iter_mut().for_each(without_managed_fields);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        for (text, want) in [
            (
                "yml",
                "error: unable to match a printer suitable for the output format \"yml\", allowed formats are: custom-columns,custom-columns-file,json,jsonpath,jsonpath-as-json,jsonpath-file,name,wide,yaml\nhint: did you mean \"yaml\"?\n",
            ),
            ("jsonpath", "error: jsonpath format specified but no template given\n"),
            (
                "custom-columns=",
                "error: custom-columns format specified but no custom columns given\n",
            ),
        ] {
            assert_eq!(Output::parse(text).unwrap_err().text(), want);
        }
        for text in ["", "wide", "json", "yaml", "name", "jsonpath={.a}", "custom-columns=A:.a"] {
            assert!(Output::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn names_have_their_group() {
        let object = |version: &str, kind: &str| serde_json::json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        assert_eq!(name(&object("v1", "Pod")), "pod/x");
        assert_eq!(name(&object("apps/v1", "Deployment")), "deployment.apps/x");
    }
}
