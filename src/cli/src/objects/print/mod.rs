//! Objects as the user wants to see them (`-o`).

pub mod columns;
mod go_template;
pub mod json;
mod kyaml;
pub mod table;
pub mod template;
pub mod yaml;

use clap::Args;
use serde_json::Value;

use columns::{Columns, Custom};
use template::Template;

use super::error::Error;

const FORMATS: &str = "custom-columns,custom-columns-file,go-template,go-template-file,json,jsonpath,jsonpath-as-json,jsonpath-file,kyaml,name,template,templatefile,wide,yaml";

/// Flags that say how objects are printed.
#[derive(Args, Clone, Debug)]
pub struct Format {
    /// wide, json, yaml, kyaml, name, jsonpath=TEMPLATE, jsonpath-as-json=, jsonpath-file=, go-template=TEMPLATE,
    /// go-template-file=FILE, custom-columns=SPEC, custom-columns-file=FILE.
    #[arg(short, long, value_name = "FORMAT", default_value = "", hide_default_value = true)]
    pub output: String,
    /// The template, or the file of one, where -o does not have it; alone it is of -o go-template.
    #[arg(long, value_name = "TEMPLATE", default_value = "", hide_default_value = true)]
    pub template: String,
    /// What a template asks for and is not there is no error.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub allow_missing_template_keys: bool,
    /// With metadata.managedFields.
    #[arg(long)]
    pub show_managed_fields: bool,
}

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
    /// As they are, in YAML's strict form with braces.
    Kyaml,
    /// `pod/x`.
    Name,
    /// What a template's paths find.
    Template {
        /// The template.
        template: Template,
        /// As JSON.
        json: bool,
    },
    /// What a template of Go's makes of them.
    GoTemplate(go_template::Template),
    /// In columns of the user's.
    Custom(Custom),
}

impl Output {
    /// Reads the flags.
    pub fn parse(flags: &Format) -> Result<Self, Error> {
        let custom = flags.output.starts_with("custom-columns");
        let (format, argument) = match flags.output.split_once('=') {
            _ if !flags.template.is_empty() && !custom => {
                let alone = flags.output.is_empty();
                let format = if alone { "go-template" } else { flags.output.as_str() };
                (format, Some(flags.template.as_str()))
            }
            Some((format, argument)) => (format, Some(argument)),
            None => (flags.output.as_str(), None),
        };
        let needed = || {
            argument.filter(|a| !a.is_empty()).ok_or_else(|| {
                Error::Wrong(if custom {
                    format!("{format} format specified but no custom columns given")
                } else {
                    "template format specified but no template given".into()
                })
            })
        };
        let file = || {
            let path = needed()?;
            let what = if custom { "template" } else { "--template" };
            let error = |error: std::io::Error| {
                let said = error.to_string().to_lowercase();
                let said = said.split(" (os error").next().unwrap_or_default();
                Error::Wrong(format!("error reading {what} {path}, open {path}: {said}"))
            };
            std::fs::read_to_string(path).map_err(error)
        };
        let path = |text: &str, json: bool| {
            let template = Template::parse(text, flags.allow_missing_template_keys)?;
            Ok::<_, Error>(Self::Template { template, json })
        };
        let go = |text: &str| {
            go_template::Template::parse(text, flags.allow_missing_template_keys)
                .map(Self::GoTemplate)
                .map_err(Error::Wrong)
        };
        Ok(match format {
            "" => Self::Human { wide: false },
            "wide" => Self::Human { wide: true },
            "json" => Self::Json,
            "yaml" => Self::Yaml,
            "kyaml" => Self::Kyaml,
            "name" => Self::Name,
            "jsonpath" => path(needed()?, false)?,
            "jsonpath-as-json" => path(needed()?, true)?,
            "jsonpath-file" => path(&file()?, false)?,
            "custom-columns" => Self::Custom(Custom::parse(needed()?)?),
            "custom-columns-file" => Self::Custom(Custom::parse_file(&file()?)?),
            "go-template" | "template" => go(needed()?)?,
            "go-template-file" | "templatefile" => go(&file()?)?,
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

    /// Whether who set which field is left out unless it is asked for: templates and columns can ask themselves.
    pub fn omits_managed_fields(&self) -> bool {
        matches!(self, Self::Json | Self::Yaml | Self::Kyaml)
    }

    /// Writes the objects, each by itself as YAML documents, JSON and so on; not for people. After an error that is
    /// what comes before it.
    pub fn write(&self, objects: &[Value], out: &mut String) -> Result<(), Error> {
        let mut columns = Columns::default();
        if let Self::Custom(custom) = self {
            let mut rows = vec![custom.header()];
            let mut all = objects.iter().flat_map(list_items).map(|object| custom.row(object));
            let failed = all.find_map(|row| row.map(|row| rows.push(row)).err());
            out.push_str(&columns.lines(&rows));
            return failed.map_or(Ok(()), Err);
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
                Self::Kyaml => out.push_str(&kyaml::text(object)),
                Self::Name => out.extend(list_items(object).into_iter().map(|o| name(o) + "\n")),
                Self::Template { template, json: false } => template.write(object, out)?,
                Self::Template { template, json: true } => template.write_values(object, out)?,
                Self::GoTemplate(template) => {
                    template.write(object, out).map_err(Error::Wrong)?;
                }
            }
        }
        Ok(())
    }

    /// Prints the objects.
    pub fn put(&self, objects: &[Value]) -> Result<(), Error> {
        let mut out = String::new();
        let written = self.write(objects, &mut out);
        super::put(&out)?;
        written
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

    fn format(output: &str, template: &str) -> Format {
        Format {
            output: output.into(),
            template: template.into(),
            allow_missing_template_keys: true,
            show_managed_fields: false,
        }
    }

    #[test]
    fn formats_are_read() {
        for (text, want) in [
            (
                "yml",
                "error: unable to match a printer suitable for the output format \"yml\", allowed formats are: custom-columns,custom-columns-file,go-template,go-template-file,json,jsonpath,jsonpath-as-json,jsonpath-file,kyaml,name,template,templatefile,wide,yaml\nhint: did you mean \"yaml\"?\n",
            ),
            ("jsonpath", "error: template format specified but no template given\n"),
            ("go-template=", "error: template format specified but no template given\n"),
            (
                "custom-columns=",
                "error: custom-columns format specified but no custom columns given\n",
            ),
        ] {
            assert_eq!(Output::parse(&format(text, "")).unwrap_err().text(), want);
        }
        for text in ["", "wide", "json", "yaml", "name", "jsonpath={.a}", "custom-columns=A:.a"] {
            assert!(Output::parse(&format(text, "")).is_ok(), "{text}");
        }
        let alone = Output::parse(&format("", "{{.kind}}"));
        assert!(matches!(alone, Ok(Output::GoTemplate(_))));
        let path = Output::parse(&format("jsonpath", "{.kind}"));
        assert!(matches!(path, Ok(Output::Template { json: false, .. })));
    }

    #[test]
    fn names_have_their_group() {
        let object = |version: &str, kind: &str| serde_json::json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x"}});
        assert_eq!(name(&object("v1", "Pod")), "pod/x");
        assert_eq!(name(&object("apps/v1", "Deployment")), "deployment.apps/x");
    }
}
