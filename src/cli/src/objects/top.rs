//! `top`: what nodes and pods use.
//!
//! Source: `k8s.io/kubectl/pkg/cmd/top`, `pkg/metricsutil/metrics_printer.go`.

use apimachinery::quantity::Quantity;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::error::Error;
use super::print::columns::Columns;
use super::put;
use super::selection::{Labels, Query};
use super::session::{Connection, Session};

/// Flags of `top`.
#[derive(Args, Clone, Debug)]
pub struct Top {
    /// Of what.
    #[command(subcommand)]
    pub of: Of,
}

/// `top …`
#[derive(Clone, Debug, Subcommand)]
pub enum Of {
    /// What nodes use.
    #[command(visible_aliases = ["nodes", "no"])]
    Node(Node),
    /// What pods use.
    #[command(visible_aliases = ["pods", "po"])]
    Pod(Pod),
}

/// Flags of both.
#[derive(Args, Clone, Debug)]
pub struct Shared {
    /// One alone.
    #[arg(value_name = "NAME")]
    pub one: Option<String>,
    /// By labels.
    #[command(flatten)]
    pub labels: Labels,
    /// Most first: by `cpu` or `memory`.
    #[arg(long, value_name = "WHAT", value_parser = ["cpu", "memory"])]
    pub sort_by: Option<String>,
    /// Without the first line.
    #[arg(long)]
    pub no_headers: bool,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Flags of `top node`.
#[derive(Args, Clone, Debug)]
pub struct Node {
    /// Those of both.
    #[command(flatten)]
    pub shared: Shared,
    /// As shares of what the node has, not of what it gives to pods.
    #[arg(long)]
    pub show_capacity: bool,
}

/// Flags of `top pod`.
#[derive(Args, Clone, Debug)]
pub struct Pod {
    /// Those of both.
    #[command(flatten)]
    pub shared: Shared,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// Of each container.
    #[arg(long)]
    pub containers: bool,
    /// With a last line for all of them.
    #[arg(long)]
    pub sum: bool,
    /// Only those with these fields.
    #[arg(long, value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub field_selector: String,
}

impl Top {
    /// Which cluster.
    pub fn connection(&self) -> &Connection {
        match &self.of {
            Of::Node(flags) => &flags.shared.connection,
            Of::Pod(flags) => &flags.shared.connection,
        }
    }
}

/// What something uses.
#[derive(Clone, Debug, Default)]
struct Usage {
    cpu: Quantity,
    memory: Quantity,
}

impl Usage {
    fn read(value: &Value) -> Self {
        let amount = |field: &str| {
            let text = value[field].as_str().unwrap_or("0");
            text.parse().unwrap_or_default()
        };
        Self { cpu: amount("cpu"), memory: amount("memory") }
    }

    fn plus(&self, other: &Self) -> Self {
        Self { cpu: self.cpu.plus(&other.cpu), memory: self.memory.plus(&other.memory) }
    }

    fn texts(&self) -> [String; 2] {
        [format!("{}m", self.cpu.milli_value()), format!("{}Mi", self.memory.value() / (1 << 20))]
    }
}

/// One line: what it is sorted by, and its cells before the amounts.
struct Row {
    usage: Usage,
    cells: Vec<String>,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Top) -> Result<(), Error> {
    match &flags.of {
        Of::Node(flags) => nodes(session, flags).await,
        Of::Pod(flags) => pods(session, flags).await,
    }
}

async fn metrics(
    session: &Session,
    path: &str,
    shared: &Shared,
    fields: &str,
) -> Result<Vec<Value>, Error> {
    if shared.one.is_some() && !shared.labels.selector.is_empty() {
        return Err(Error::wrong("only one of NAME or --selector can be provided"));
    }
    let name = shared.one.as_ref().map(|n| format!("/{n}")).unwrap_or_default();
    let query = Query::default()
        .with("labelSelector", &shared.labels.selector)
        .with("fieldSelector", fields);
    let answer = session
        .api
        .get(&format!("/apis/metrics.k8s.io/v1beta1/{path}{name}{}", query.text()))
        .await;
    let mut answer = answer.map_err(|error| match &error {
        Error::Refused { refusal, .. }
            if refusal.code == 404 && refusal.details["kind"].is_null() =>
        {
            Error::wrong("Metrics API not available")
        }
        _ => error,
    })?;
    match answer["items"].take() {
        Value::Array(items) => Ok(items),
        _ => Ok(vec![answer]),
    }
}

fn sort(rows: &mut [Row], by: Option<&str>) {
    rows.sort_by(|a, b| {
        let by_name = a.cells.cmp(&b.cells);
        match by {
            Some("cpu") => b.usage.cpu.cmp(&a.usage.cpu).then(by_name),
            Some("memory") => b.usage.memory.cmp(&a.usage.memory).then(by_name),
            _ => by_name,
        }
    });
}

/// Every cell is filled up, the last one too.
fn lines(rows: Vec<Vec<String>>) -> String {
    let ended = rows.into_iter().map(|mut row| {
        row.push(String::new());
        row
    });
    Columns::default().lines(&ended.collect::<Vec<_>>())
}

fn text(value: &Value, field: &str) -> String {
    value["metadata"][field].as_str().unwrap_or_default().to_owned()
}

async fn nodes(session: &Session, flags: &Node) -> Result<(), Error> {
    let found = metrics(session, "nodes", &flags.shared, "").await?;
    if found.is_empty() {
        return Err(Error::wrong("metrics not available yet"));
    }
    let list = session.api.get("/api/v1/nodes").await?;
    let nodes: Vec<&Value> = list["items"].as_array().into_iter().flatten().collect();
    let mut rows: Vec<Row> = found
        .iter()
        .map(|node| Row { usage: Usage::read(&node["usage"]), cells: vec![text(node, "name")] })
        .collect();
    sort(&mut rows, flags.shared.sort_by.as_deref());
    let mut out = Vec::new();
    if !flags.shared.no_headers {
        out.push(
            ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"]
                .map(str::to_owned)
                .to_vec(),
        );
    }
    let field = if flags.show_capacity { "capacity" } else { "allocatable" };
    for row in rows {
        let node = nodes.iter().find(|node| text(node, "name") == row.cells[0]);
        let whole = node.map(|node| Usage::read(&node["status"][field])).unwrap_or_default();
        let share = |used: i64, of: i64| {
            if of > 0 {
                format!("{}%", (used as f64 / of as f64 * 100.0) as i64)
            } else {
                "<unknown>".into()
            }
        };
        let [cpu, memory] = row.usage.texts();
        out.push(vec![
            row.cells[0].clone(),
            cpu,
            share(row.usage.cpu.milli_value(), whole.cpu.milli_value()),
            memory,
            share(row.usage.memory.value(), whole.memory.value()),
        ]);
    }
    put(&lines(out))
}

async fn pods(session: &Session, flags: &Pod) -> Result<(), Error> {
    let path = if flags.all_namespaces {
        "pods".to_owned()
    } else {
        format!("namespaces/{}/pods", session.namespace)
    };
    let found = metrics(session, &path, &flags.shared, &flags.field_selector).await?;
    if found.is_empty() {
        if flags.all_namespaces {
            eprintln!("No resources found");
        } else {
            eprintln!("No resources found in {} namespace.", session.namespace);
        }
        return Ok(());
    }
    let (mut rows, mut sum) = (Vec::new(), Usage::default());
    for pod in &found {
        let place = flags.all_namespaces.then(|| text(pod, "namespace"));
        let containers = pod["containers"].as_array().into_iter().flatten();
        let usages: Vec<(String, Usage)> = containers
            .map(|c| (c["name"].as_str().unwrap_or_default().to_owned(), Usage::read(&c["usage"])))
            .collect();
        let whole = usages.iter().fold(Usage::default(), |all, (_, usage)| all.plus(usage));
        sum = sum.plus(&whole);
        let cells = |more: Option<String>| {
            place.clone().into_iter().chain([text(pod, "name")]).chain(more).collect::<Vec<_>>()
        };
        if flags.containers {
            rows.extend(
                usages.into_iter().map(|(name, usage)| Row { usage, cells: cells(Some(name)) }),
            );
        } else {
            rows.push(Row { usage: whole, cells: cells(None) });
        }
    }
    sort(&mut rows, flags.shared.sort_by.as_deref());
    let mut out: Vec<Vec<String>> = Vec::new();
    let mut header: Vec<&str> = Vec::new();
    header.extend(flags.all_namespaces.then_some("NAMESPACE"));
    header.extend(flags.containers.then_some("POD"));
    header.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"]);
    let before = header.len() - 2;
    if !flags.shared.no_headers {
        out.push(header.into_iter().map(str::to_owned).collect());
    }
    for row in rows {
        out.push(row.cells.into_iter().chain(row.usage.texts()).collect());
    }
    if flags.sum {
        let blank = || vec![String::new(); before];
        let dashes = ["________", "________"].map(str::to_owned);
        out.push(blank().into_iter().chain(dashes).collect());
        out.push(blank().into_iter().chain(sum.texts()).collect());
    }
    put(&lines(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_thousandths_and_mebibytes() {
        let usage = Usage::read(&serde_json::json!({"cpu": "1234567n", "memory": "3145728Ki"}));
        assert_eq!(usage.texts(), ["2m", "3072Mi"]);
        assert_eq!(usage.plus(&usage).texts(), ["3m", "6144Mi"]);
    }

    #[test]
    fn the_greediest_come_first() {
        let row = |name: &str, cpu: &str| Row {
            usage: Usage::read(&serde_json::json!({"cpu": cpu, "memory": "0"})),
            cells: vec![name.to_owned()],
        };
        let mut rows = vec![row("b", "1m"), row("a", "2"), row("c", "3m")];
        sort(&mut rows, Some("cpu"));
        assert_eq!(rows.iter().map(|r| r.cells[0].as_str()).collect::<String>(), "acb");
        sort(&mut rows, None);
        assert_eq!(rows.iter().map(|r| r.cells[0].as_str()).collect::<String>(), "abc");
    }
}
