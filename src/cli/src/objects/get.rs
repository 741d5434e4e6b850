//! `get`: objects as tables, or as they are.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/get` (`get.go`, `sorter.go`).

use std::cmp::Ordering;

use clap::Args;
use futures::AsyncBufReadExt;
use http::Method;
use serde_json::{Value, json};

use apimachinery::json_path::JsonPath;
use apimachinery::quantity::Quantity;

use super::api::{JSON, TABLE};
use super::error::Error;
use super::kinds::Resource;
use super::manifest::Files;
use super::print::table::{Options, Printer};
use super::print::{self, Format, Output};
use super::put;
use super::selection::{Query, Scope, Selected, select};
use super::session::{Connection, Session};

/// Flags of `get`.
#[derive(Args, Clone, Debug)]
pub struct Get {
    /// What to get: `pods`, `pod NAME…`, `pods,services`, `pod/NAME svc/NAME`, `all`.
    #[arg(value_name = "TYPE [NAME…]")]
    pub what: Vec<String>,
    /// Objects named in manifests.
    #[command(flatten)]
    pub files: Files,
    /// How to print them.
    #[command(flatten)]
    pub format: Format,
    /// Which of them.
    #[command(flatten)]
    pub scope: Scope,
    /// Go on to tell what changes.
    #[arg(short, long)]
    pub watch: bool,
    /// Tell what changes from now on only.
    #[arg(long)]
    pub watch_only: bool,
    /// Say of each change what it is.
    #[arg(long)]
    pub output_watch_events: bool,
    /// All labels as the last column.
    #[arg(long)]
    pub show_labels: bool,
    /// These labels as columns.
    #[arg(short = 'L', long, value_name = "LABELS", value_delimiter = ',')]
    pub label_columns: Vec<String>,
    /// The type before each name.
    #[arg(long)]
    pub show_kind: bool,
    /// Without the first line.
    #[arg(long)]
    pub no_headers: bool,
    /// Sorted by a field, such as `.metadata.creationTimestamp`.
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    pub sort_by: String,
    /// What does not exist is no error.
    #[arg(long)]
    pub ignore_not_found: bool,
    /// Of each object a subresource, such as `status` or `scale`.
    #[arg(long, value_name = "SUBRESOURCE", default_value = "", hide_default_value = true)]
    pub subresource: String,
    /// Ask for so many objects at a time; 0 is all at once.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub chunk_size: u32,
    /// Print what the server answers at this path.
    #[arg(long, value_name = "PATH", default_value = "", hide_default_value = true)]
    pub raw: String,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Get) -> Result<(), Error> {
    if !flags.raw.is_empty() {
        let bytes = session.api.bytes(Method::GET, &flags.raw, JSON, None).await?;
        return put(&String::from_utf8_lossy(&bytes));
    }
    let output = Output::parse(&flags.format)?;
    let selected = selection(session, flags).await?;
    let get = Getting { session, flags, output };
    if flags.watch || flags.watch_only {
        return get.watch(&selected).await;
    }
    if get.output.is_human() { get.tables(&selected).await } else { get.objects(&selected).await }
}

async fn selection(session: &Session, flags: &Get) -> Result<Vec<Selected>, Error> {
    if flags.what.is_empty() && flags.files.is_empty() {
        return Err(Error::Plain(
            "You must specify the type of resource to get, such as `rootlet get pods`.\n\nerror: Required resource not specified.".into(),
        ));
    }
    let selected = meant(session, &flags.what, &flags.files).await?;
    let named = selected.iter().any(|s| s.name.is_some());
    if named && flags.scope.is_selective() && flags.files.is_empty() {
        return Err(Error::wrong("name cannot be provided when a selector is specified"));
    }
    if named && flags.scope.all_namespaces && flags.files.is_empty() {
        return Err(Error::wrong("a resource cannot be retrieved by name across all namespaces"));
    }
    Ok(selected)
}

/// What the words mean or, where there are files, the objects that those name.
pub async fn meant(
    session: &Session,
    words: &[String],
    files: &Files,
) -> Result<Vec<Selected>, Error> {
    if files.is_empty() {
        return select(session.kinds().await?, words);
    }
    let (documents, errors) = files.read().await?;
    Error::all(errors)?;
    let mut selected = Vec::new();
    for document in documents {
        let resource = document.resource(session).await?.clone();
        selected.push(Selected { resource, name: Some(document.name()?.to_owned()) });
    }
    Ok(selected)
}

struct Getting<'a> {
    session: &'a Session,
    flags: &'a Get,
    output: Output,
}

impl Getting<'_> {
    fn namespace(&self) -> Option<&str> {
        self.flags.scope.namespace(self.session)
    }

    fn path(&self, selected: &Selected) -> String {
        let name = selected.name.as_deref().unwrap_or_default();
        let mut path = selected.resource.path(self.namespace(), name);
        if !self.flags.subresource.is_empty() {
            path.push_str(&format!("/{}", self.flags.subresource));
        }
        path
    }

    fn query(&self) -> Query {
        self.flags.scope.query()
    }

    /// The answers for one selection: one, or as many as the list has chunks.
    async fn ask(
        &self,
        selected: &Selected,
        accept: &str,
        extra: &Query,
    ) -> Result<Vec<Value>, Error> {
        let path = self.path(selected);
        let ask = |query: String| async move {
            self.session.api.json(Method::GET, &query, accept, None).await
        };
        let more = extra.text().trim_start_matches('?');
        if selected.name.is_some() {
            let query = if more.is_empty() { String::new() } else { format!("?{more}") };
            return Ok(vec![ask(format!("{path}{query}")).await?]);
        }
        let mut answers: Vec<Value> = Vec::new();
        let mut next = String::new();
        loop {
            let limit = if self.flags.chunk_size == 0 {
                String::new()
            } else {
                self.flags.chunk_size.to_string()
            };
            let query = self.query().with("limit", &limit).with("continue", &next);
            let mut query = query.text().to_owned();
            if !more.is_empty() {
                query.push_str(if query.is_empty() { "?" } else { "&" });
                query.push_str(more);
            }
            let answer = ask(format!("{path}{query}"))
                .await
                .map_err(|error| self.not_listed(error, selected))?;
            next = answer["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            answers.push(answer);
            if next.is_empty() {
                return Ok(answers);
            }
        }
    }

    /// Says which list the server does not give, as upstream does where the request is to blame.
    fn not_listed(&self, error: Error, selected: &Selected) -> Error {
        let Error::Refused { doing, mut refusal } = error else { return error };
        if refusal.code == 400 || refusal.code == 404 {
            let Resource { group, version, plural, .. } = &selected.resource;
            let Scope { labels, field_selector, .. } = &self.flags.scope;
            let what = format!("{group}/{version}, Resource={plural}");
            refusal.message = if self.flags.scope.is_selective() {
                format!(
                    "Unable to find {what:?} that match label selector {:?}, field selector {field_selector:?}: {}",
                    labels.selector, refusal.message
                )
            } else {
                format!("Unable to list {what:?}: {}", refusal.message)
            };
        }
        Error::Refused { doing, refusal }
    }

    fn printer(&self, resource: &Resource, kinds: bool, spaces: bool) -> Printer {
        Printer::new(Options {
            wide: matches!(self.output, Output::Human { wide: true }),
            no_headers: self.flags.no_headers,
            namespace: self.flags.scope.all_namespaces && (spaces || resource.namespaced),
            labels: self.flags.show_labels,
            label_columns: self.flags.label_columns.clone(),
            kind: (kinds || self.flags.show_kind).then(|| resource.word()),
            events: self.flags.output_watch_events,
        })
    }

    async fn tables(&self, selected: &[Selected]) -> Result<(), Error> {
        let several = selected.iter().any(|s| s.resource != selected[0].resource);
        let sorted = !self.flags.sort_by.is_empty();
        let extra = Query::default().with("includeObject", if sorted { "Object" } else { "" });
        let mut errors = Vec::new();
        let mut blocks: Vec<(&Resource, Value)> = Vec::new();
        for one in selected {
            match self.ask(one, TABLE, &extra).await {
                Ok(answers) => {
                    for answer in answers {
                        join(&mut blocks, &one.resource, as_table(answer));
                    }
                }
                Err(error) if error.is_not_found() && self.flags.ignore_not_found => {}
                Err(error) => errors.push(error),
            }
        }
        let (mut written, mut spaces) = (false, false);
        for (resource, table) in &mut blocks {
            if rows(table).is_empty() {
                continue;
            }
            if sorted {
                sort_rows(table, &self.flags.sort_by)?;
            }
            let text = self.printer(resource, several, spaces).print(table, "ADDED");
            if written && !self.flags.no_headers {
                put("\n")?;
            }
            put(&text)?;
            written = true;
            // After objects of namespaces those without have the column, too, as upstream has it.
            spaces |= resource.namespaced;
        }
        if !written && errors.is_empty() && !self.flags.ignore_not_found {
            let namespaced = selected.iter().all(|s| s.resource.namespaced);
            if namespaced && !self.flags.scope.all_namespaces {
                eprintln!("No resources found in {} namespace.", self.session.namespace);
            } else {
                eprintln!("No resources found");
            }
        }
        Error::all(errors)
    }

    async fn objects(&self, selected: &[Selected]) -> Result<(), Error> {
        let mut errors = Vec::new();
        let mut objects = Vec::new();
        let single = selected.len() == 1 && selected[0].name.is_some();
        for one in selected {
            match self.ask(one, JSON, &Query::default()).await {
                Ok(answers) => answers
                    .into_iter()
                    .for_each(|answer| spread(answer, &one.resource, &mut objects)),
                Err(error) if error.is_not_found() && self.flags.ignore_not_found => {}
                Err(error) => errors.push(error),
            }
        }
        if !self.flags.sort_by.is_empty() {
            sort(&mut objects, &self.flags.sort_by, |object| object)?;
        }
        if self.output.omits_managed_fields() && !self.flags.format.show_managed_fields {
            objects.iter_mut().for_each(print::without_managed_fields);
        }
        if single && objects.is_empty() {
            return Error::all(errors);
        }
        let whole = if single { objects } else { vec![print::list(objects)] };
        self.put(&whole)?;
        Error::all(errors)
    }

    fn put(&self, objects: &[Value]) -> Result<(), Error> {
        self.put_after(objects, false)
    }

    /// Prints objects, `again` after others.
    fn put_after(&self, objects: &[Value], again: bool) -> Result<(), Error> {
        let mut text = String::new();
        let written = self.output.write(objects, &mut text);
        if matches!(self.output, Output::Custom(_)) && (self.flags.no_headers || again) {
            text = text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned());
        }
        if matches!(self.output, Output::Yaml) && again {
            text.insert_str(0, "---\n");
        }
        put(&text)?;
        written
    }

    async fn watch(&self, selected: &[Selected]) -> Result<(), Error> {
        let [one] = selected else {
            return Err(Error::wrong("you may only specify a single resource type"));
        };
        let human = self.output.is_human();
        let accept = if human { TABLE } else { JSON };
        let mut printer = self.printer(&one.resource, false, false);
        let answers = self.ask(one, accept, &Query::default()).await?;
        let (mut since, mut told) = (String::new(), false);
        for answer in answers {
            let version = answer["metadata"]["resourceVersion"].as_str();
            since = version.unwrap_or_default().to_owned();
            if since.is_empty() {
                since = rows(&answer).first().map(version_of).unwrap_or_default();
            }
            if self.flags.watch_only {
                continue;
            }
            if human {
                put(&printer.print(&as_table(answer), "ADDED"))?;
            } else {
                let mut objects = Vec::new();
                spread(answer, &one.resource, &mut objects);
                for object in objects {
                    self.tell(object, "ADDED", &mut told)?;
                }
            }
        }
        let mut query = self.query().flag("watch", true).with("resourceVersion", &since);
        if let Some(name) = &one.name {
            query = query.with("fieldSelector", &format!("metadata.name={name}"));
        }
        let path = format!("{}{}", one.resource.path(self.namespace(), ""), query.text());
        let mut lines = self.session.api.stream(&path, accept).await?.lines();
        while let Some(line) = futures::StreamExt::next(&mut lines).await {
            let Ok(line) = line else { return Ok(()) };
            let Ok(mut event) = serde_json::from_str::<Value>(&line) else { continue };
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            let object = event["object"].take();
            match kind.as_str() {
                "ERROR" => {
                    let refusal = super::error::Refusal::read(500, object.to_string().as_bytes());
                    return Err(Error::Refused {
                        doing: String::new(),
                        refusal: Box::new(refusal),
                    });
                }
                "BOOKMARK" => {}
                kind if human => put(&printer.print(&as_table(object), kind))?,
                kind => self.tell(object, kind, &mut told)?,
            }
        }
        Ok(())
    }

    /// One object of a watch that is not for people; `told` says that it is not the first.
    fn tell(&self, mut object: Value, event: &str, told: &mut bool) -> Result<(), Error> {
        let again = std::mem::replace(told, true);
        // Of an event, as of what templates are given, nothing is left out.
        let whole = self.flags.output_watch_events
            && !matches!(self.output, Output::Custom(_) | Output::Name);
        if whole && matches!(self.output, Output::Json) {
            let object = print::json::line(&object);
            return put(&format!("{{\"type\":\"{event}\",\"object\":{object}}}\n"));
        }
        if whole {
            object = json!({"type": event, "object": object});
        } else if self.output.omits_managed_fields() && !self.flags.format.show_managed_fields {
            print::without_managed_fields(&mut object);
        }
        self.put_after(&[object], again)
    }
}

fn rows(table: &Value) -> &[Value] {
    table["rows"].as_array().map_or(&[], Vec::as_slice)
}

fn version_of(row: &Value) -> String {
    row["object"]["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
}

/// Adds a table to the last one if it goes on with the same resource.
fn join<'r>(blocks: &mut Vec<(&'r Resource, Value)>, resource: &'r Resource, mut table: Value) {
    if let Some((last, before)) = blocks.last_mut()
        && *last == resource
        && let (Some(all), Some(more)) =
            (before["rows"].as_array_mut(), table["rows"].as_array_mut())
    {
        all.append(more);
        return;
    }
    blocks.push((resource, table));
}

/// The items of a list, each with its kind; anything else as it is.
fn spread(mut answer: Value, resource: &Resource, into: &mut Vec<Value>) {
    let Value::Array(items) = answer["items"].take() else {
        if let Some(map) = answer.as_object_mut() {
            map.remove("items");
        }
        into.push(answer);
        return;
    };
    for mut item in items {
        if let Some(map) = item.as_object_mut() {
            map.entry("apiVersion").or_insert_with(|| resource.api_version().into());
            map.entry("kind").or_insert_with(|| resource.kind.clone().into());
        }
        into.push(item);
    }
}

/// The answer of a server that makes no tables, as one with names and ages.
fn as_table(answer: Value) -> Value {
    if answer["kind"] == "Table" {
        return answer;
    }
    let now = jiff::Timestamp::now();
    let version = answer["metadata"]["resourceVersion"].clone();
    let objects = match answer["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![answer],
    };
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|object| {
            let created = object["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
            let age = apimachinery::time::age(created, now);
            json!({"cells": [object["metadata"]["name"], age], "object": object})
        })
        .collect();
    json!({"kind": "Table", "metadata": {"resourceVersion": version},
        "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Age", "priority": 0}], "rows": rows})
}

fn sort_rows(table: &mut Value, path: &str) -> Result<(), Error> {
    let Some(rows) = table["rows"].as_array_mut() else { return Ok(()) };
    sort(rows, path, |row| &row["object"])
}

/// Sorts by the field at `path` of what `of` gives.
fn sort(items: &mut [Value], path: &str, of: impl Fn(&Value) -> &Value) -> Result<(), Error> {
    let parsed = JsonPath::parse(path).map_err(Error::Wrong)?;
    if !items.is_empty() && items.iter().all(|item| parsed.first(of(item)).is_none()) {
        let shown = if path.starts_with('{') { path.to_owned() } else { format!("{{{path}}}") };
        return Err(Error::Wrong(format!(
            "couldn't find any field with path {shown:?} in the list of objects"
        )));
    }
    items.sort_by(|a, b| match (set(parsed.first(of(a))), set(parsed.first(of(b)))) {
        (Some(a), Some(b)) => compare(a, b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    });
    Ok(())
}

/// A field that is null counts as one that is not there.
fn set(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

fn compare(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Value::String(a), Value::String(b)) => {
            match (a.parse::<Quantity>(), b.parse::<Quantity>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                _ => a.cmp(b),
            }
        }
        (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
        _ => Ordering::Equal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_sorted_by_a_field() {
        let cases = [
            (json!(["b9", "b10", "a", "b-"]), json!(["a", "b-", "b10", "b9"])),
            (json!(["1Gi", "200Mi", "1"]), json!(["1", "200Mi", "1Gi"])),
            (json!([3, null, 1, 0, 2]), json!([null, 0, 1, 2, 3])),
        ];
        for (values, want) in cases {
            let wrap = |values: &Value| -> Vec<Value> {
                let items = values.as_array().into_iter().flatten();
                items.map(|v| if *v == 0 { json!({}) } else { json!({"x": v}) }).collect()
            };
            let mut items = wrap(&values);
            sort(&mut items, ".x", |item| item).unwrap();
            assert_eq!(items, wrap(&want));
        }
        let error = sort(&mut [json!({})], ".y", |item| item).unwrap_err();
        assert_eq!(
            error.text(),
            "error: couldn't find any field with path \"{.y}\" in the list of objects\n"
        );
    }

    #[test]
    fn answers_that_are_no_tables_become_some() {
        let table = as_table(json!({"kind": "FooList", "items": [{"metadata": {"name": "a"}}]}));
        assert_eq!(
            Printer::new(Options::default()).print(&table, ""),
            "NAME   AGE\na      <unknown>\n"
        );
    }
}
