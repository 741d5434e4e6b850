//! Text in columns, as kubectl's tab writer aligns it, and `-o custom-columns`.
//!
//! Sources: `k8s.io/cli-runtime/pkg/printers/tabwriter.go`, `k8s.io/kubectl/pkg/cmd/get/customcolumn.go`.

use apimachinery::json_path::JsonPath;
use serde_json::Value;

use crate::objects::error::Error;

/// Between two columns.
const PADDING: usize = 3;
/// The least a column takes, padding included.
const LEAST: usize = 6;

/// Rows that are aligned with those that were written before them.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    /// Aligns rows of equal length.
    pub fn lines(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            for (index, cell) in row.iter().enumerate().take(row.len().saturating_sub(1)) {
                let width = (cell.chars().count() + PADDING).max(LEAST);
                match self.widths.get_mut(index) {
                    Some(known) => *known = width.max(*known),
                    None => self.widths.push(width),
                }
            }
        }
        let mut out = String::new();
        for row in rows {
            for (index, cell) in row.iter().enumerate() {
                out.push_str(cell);
                if index + 1 < row.len() {
                    let width = self.widths.get(index).copied().unwrap_or(LEAST);
                    out.extend(std::iter::repeat_n(
                        ' ',
                        width.saturating_sub(cell.chars().count()),
                    ));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// Columns that the user defined.
#[derive(Clone, Debug)]
pub struct Custom {
    headers: Vec<String>,
    paths: Vec<JsonPath>,
}

impl Custom {
    /// Reads `HEADER:path,…`.
    pub fn parse(spec: &str) -> Result<Self, Error> {
        if spec.is_empty() {
            return Err(Error::wrong(
                "custom-columns format specified but no custom columns given",
            ));
        }
        let (mut headers, mut paths) = (Vec::new(), Vec::new());
        for part in spec.split(',') {
            let Some((header, path)) = part.split_once(':') else {
                return Err(Error::Wrong(format!(
                    "unexpected custom-columns spec: {part}, expected <header>:<json-path-expr>"
                )));
            };
            let path = JsonPath::parse(path).map_err(Error::Wrong)?;
            headers.push(header.to_owned());
            paths.push(path);
        }
        Ok(Self { headers, paths })
    }

    /// Reads a file of two lines: the headers and the paths below them.
    pub fn parse_file(text: &str) -> Result<Self, Error> {
        let mut lines = text.lines();
        let (Some(headers), Some(paths)) = (lines.next(), lines.next()) else {
            return Err(Error::wrong(
                "invalid template, missing spec line. Expected format is one line of space separated headers, one line of space separated column specs.",
            ));
        };
        let (headers, paths): (Vec<&str>, Vec<&str>) =
            (headers.split_whitespace().collect(), paths.split_whitespace().collect());
        if headers.len() != paths.len() {
            return Err(Error::Wrong(format!(
                "number of headers ({}) and field specifications ({}) don't match",
                headers.len(),
                paths.len()
            )));
        }
        let paths: Result<Vec<JsonPath>, String> =
            paths.iter().map(|p| JsonPath::parse(p)).collect();
        Ok(Self {
            headers: headers.into_iter().map(str::to_owned).collect(),
            paths: paths.map_err(Error::Wrong)?,
        })
    }

    /// The header's row.
    pub fn header(&self) -> Vec<String> {
        self.headers.clone()
    }

    /// An object's row. What is beyond a list's end is an error, what is not there is not.
    pub fn row(&self, object: &Value) -> Result<Vec<String>, Error> {
        let cell = |path: &JsonPath| {
            let found = path.ask(object, true).map_err(Error::Wrong)?;
            let found: Vec<String> = found.into_iter().map(go).collect();
            Ok::<_, Error>(if found.is_empty() { "<none>".to_owned() } else { found.join(",") })
        };
        self.paths.iter().map(cell).collect()
    }
}

/// A value as Go's `%v` prints it.
pub fn go(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go(v))).collect();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(text: &[&[&str]]) -> Vec<Vec<String>> {
        text.iter().map(|row| row.iter().map(|c| (*c).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_aligned_and_stay_so() {
        let mut columns = Columns::default();
        let first = columns.lines(&rows(&[&["NAME", "A", "AGE"], &["long-name", "1", "5s"]]));
        assert_eq!(first, "NAME        A     AGE\nlong-name   1     5s\n");
        assert_eq!(columns.lines(&rows(&[&["x", "2", "6s"]])), "x           2     6s\n");
    }

    #[test]
    fn custom_columns_are_paths() {
        let custom =
            Custom::parse("NAME:.metadata.name,ALL:.items[*].a,LABELS:.labels,NO:.x.y").unwrap();
        let object = json!({"metadata": {"name": "n"}, "items": [{"a": 1}, {"a": "b"}], "labels": {"k": "v", "l": null}});
        assert_eq!(custom.row(&object).unwrap(), ["n", "1,b", "map[k:v l:<nil>]", "<none>"]);
        let beyond = Custom::parse("A:.items[2]").unwrap().row(&object).unwrap_err();
        assert_eq!(beyond.text(), "error: array index out of bounds: index 2, length 2\n");
        assert_eq!(
            Custom::parse("NAME").unwrap_err().text(),
            "error: unexpected custom-columns spec: NAME, expected <header>:<json-path-expr>\n"
        );
        let file = Custom::parse_file("NAME  X\n.metadata.name  .x\n").unwrap();
        assert_eq!(
            (file.header(), file.row(&object).unwrap()),
            (vec!["NAME".into(), "X".into()], vec!["n".into(), "<none>".into()])
        );
    }
}
