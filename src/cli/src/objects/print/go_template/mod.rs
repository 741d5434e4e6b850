//! `-o go-template=`: Go's text/template over an object.
//!
//! Sources: the package `text/template` of Go 1.25; `k8s.io/cli-runtime/pkg/printers/template.go`. Complex numbers and
//! calls of functions that are values are left out, as no object has them.

mod format;
mod functions;
mod lex;
mod parse;
mod run;
mod tree;
mod value;

use serde_json::Value;

pub use format::{go_syntax, quoted};
use value::{Data, Held};

use super::json;

/// A parsed template.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    trees: parse::Trees,
    /// Whether a key that is not there is no error.
    missing_allowed: bool,
}

impl Template {
    /// Parses a template such as `{{range .items}}{{.metadata.name}}{{"\n"}}{{end}}`.
    pub fn parse(text: &str, missing_allowed: bool) -> Result<Self, String> {
        let trees = parse::parse(text)
            .map_err(|problem| format!("error parsing template {text}, {problem}"))?;
        Ok(Self { text: text.to_owned(), trees, missing_allowed })
    }

    /// Writes what the template makes of an object. After an error that is what kubectl writes then: what there is
    /// until then, and what was at work.
    pub fn write(&self, object: &Value, out: &mut String) -> Result<(), String> {
        let dot = Held::from(Data::of(object));
        let given = format::shown(&dot.data);
        let Err(problem) = run::run(self, dot, out) else { return Ok(()) };
        out.push_str(&format!(
            "Error executing template: {problem}. Printing more information for debugging the template:\n\ttemplate was:\n\t\t{}\n\traw data was:\n\t\t{}\n\tobject given to template engine was:\n\t\t{given}\n\n",
            self.text,
            json::line(object),
        ));
        Err(format!("error executing template {}: {problem}", quoted(&self.text)))
    }
}

#[cfg(test)]
mod tests;
