//! Tables for people: the server's rows and columns, printed.
//!
//! Source: `k8s.io/cli-runtime/pkg/printers/tableprinter.go`.

use serde_json::Value;

use super::columns::Columns;

/// How tables are printed.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// With the columns that are too many for most.
    pub wide: bool,
    /// Without the first line.
    pub no_headers: bool,
    /// With a first column for the namespace.
    pub namespace: bool,
    /// With a last column for all labels.
    pub labels: bool,
    /// With a column for each of these labels.
    pub label_columns: Vec<String>,
    /// With this before each name, such as `pod`.
    pub kind: Option<String>,
    /// With a first column for what happened.
    pub events: bool,
}

/// Prints tables of one resource, one below the other.
#[derive(Clone, Debug, Default)]
pub struct Printer {
    options: Options,
    columns: Columns,
    definitions: Vec<Column>,
    header: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Column {
    name: String,
    priority: i64,
}

impl Printer {
    /// A printer whose columns start anew.
    pub fn new(options: Options) -> Self {
        Self { options, ..Self::default() }
    }

    /// The rows of a table, with a header where one is due. `event` says what happened to them. Later tables
    /// of a watch come without column definitions: they have those of the first.
    pub fn print(&mut self, table: &Value, event: &str) -> String {
        let mut rows = Vec::new();
        let definitions: Vec<Column> = items(&table["columnDefinitions"])
            .map(|c| Column {
                name: c["name"].as_str().unwrap_or_default().to_owned(),
                priority: c["priority"].as_i64().unwrap_or(0),
            })
            .collect();
        if !definitions.is_empty() {
            self.definitions = definitions;
        }
        if items(&table["rows"]).next().is_none() {
            return String::new();
        }
        let header = self.header_row();
        if !self.options.no_headers && self.header.as_ref() != Some(&header) {
            rows.push(header.clone());
            self.header = Some(header);
        }
        rows.extend(items(&table["rows"]).map(|row| self.row(row, event)));
        self.columns.lines(&rows)
    }

    fn header_row(&self) -> Vec<String> {
        let options = &self.options;
        let mut header = Vec::new();
        header.extend(options.events.then(|| "EVENT".to_owned()));
        header.extend(options.namespace.then(|| "NAMESPACE".to_owned()));
        header.extend(self.shown().map(|(_, column)| column.name.to_uppercase()));
        for label in &options.label_columns {
            header.push(label.rsplit('/').next().unwrap_or(label).to_uppercase());
        }
        header.extend(options.labels.then(|| "LABELS".to_owned()));
        header
    }

    fn shown(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.definitions.iter().enumerate().filter(|(_, c)| self.options.wide || c.priority == 0)
    }

    fn row(&self, row: &Value, event: &str) -> Vec<String> {
        let options = &self.options;
        let meta = &row["object"]["metadata"];
        let labels = meta["labels"].as_object();
        let mut cells = Vec::new();
        cells.extend(options.events.then(|| format!("{event:<8}")));
        if options.namespace {
            cells.push(meta["namespace"].as_str().unwrap_or_default().to_owned());
        }
        for (index, column) in self.shown() {
            let mut text = cell(&row["cells"][index]);
            if let Some(kind) = options.kind.as_ref().filter(|_| column.name == "Name") {
                text = format!("{kind}/{text}");
            }
            cells.push(text);
        }
        for label in &options.label_columns {
            let value = labels.and_then(|l| l.get(label)).and_then(Value::as_str);
            cells.push(value.unwrap_or_default().to_owned());
        }
        if options.labels {
            let pairs = labels.into_iter().flatten();
            let pairs: Vec<String> =
                pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
            cells.push(if pairs.is_empty() { "<none>".into() } else { pairs.join(",") });
        }
        cells
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A cell's text: its first line, control characters made visible.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Null => return String::new(),
        Value::String(text) => text.clone(),
        other => super::columns::go(other),
    };
    let line = text.split(['\n', '\r', '\u{c}']).next().unwrap_or_default();
    let more = if line.len() < text.len() { "..." } else { "" };
    // An escape sequence from an object must not reach the terminal.
    format!("{}{more}", line.replace('\u{1b}', "^["))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Value {
        json!({"columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Ready"}, {"name": "Node", "priority": 1}],
            "rows": [
                {"cells": ["a", "1/1", "n1"], "object": {"metadata": {"namespace": "default", "labels": {"app": "x", "b.c/tier": "y"}}}},
                {"cells": ["a-longer-name", null, "line\nmore\u{1b}"], "object": {"metadata": {"namespace": "kube-system"}}}]})
    }

    #[test]
    fn tables_are_printed_as_asked() {
        let cases = [
            (Options::default(), "NAME            READY\na               1/1\na-longer-name   \n"),
            (
                Options { no_headers: true, ..Options::default() },
                "a               1/1\na-longer-name   \n",
            ),
            (
                Options { wide: true, kind: Some("pod".into()), ..Options::default() },
                "NAME                READY   NODE\npod/a               1/1     n1\npod/a-longer-name           line...\n",
            ),
            (
                Options {
                    namespace: true,
                    labels: true,
                    label_columns: vec!["b.c/tier".into()],
                    ..Options::default()
                },
                "NAMESPACE     NAME            READY   TIER   LABELS\ndefault       a               1/1     y      app=x,b.c/tier=y\nkube-system   a-longer-name                  <none>\n",
            ),
        ];
        for (options, want) in cases {
            assert_eq!(Printer::new(options.clone()).print(&table(), ""), want, "{options:?}");
        }
    }

    #[test]
    fn a_watch_has_one_header() {
        let mut printer = Printer::new(Options { events: true, ..Options::default() });
        let first = printer.print(&table(), "ADDED");
        assert!(first.starts_with("EVENT      NAME "), "{first}");
        let later =
            json!({"columnDefinitions": [], "rows": [{"cells": ["b", "0/1", ""], "object": {}}]});
        assert_eq!(printer.print(&later, "MODIFIED"), "MODIFIED   b               0/1\n");
    }
}
