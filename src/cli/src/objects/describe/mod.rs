//! `describe`: objects with what belongs to them, for people.
//!
//! Source: `k8s.io/kubectl/pkg/describe/describe.go`.

mod access;
mod autoscaler;
mod config;
mod events;
mod generic;
mod network;
mod node;
mod pod;
mod policy;
mod service;
mod storage;
mod tabs;
mod workload;

use clap::Args;
use serde_json::Value;

use super::error::Error;
use super::get::meant;
use super::kinds::Resource;
use super::manifest::Files;
use super::put;
use super::selection::{Labels, Query};
use super::session::{Connection, Session};

/// Flags of `describe`.
#[derive(Args, Clone, Debug)]
pub struct Describe {
    /// What to describe: `pod NAME…`, `pod/NAME`, the beginning of names, or all of a type.
    #[arg(value_name = "TYPE [NAME…]")]
    pub what: Vec<String>,
    /// Objects named in manifests.
    #[command(flatten)]
    pub files: Files,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    pub all_namespaces: bool,
    /// By labels.
    #[command(flatten)]
    pub labels: Labels,
    /// With the events about it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub show_events: bool,
    /// Ask for so many objects at a time; 0 is all at once.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub chunk_size: u32,
    /// Which cluster.
    #[command(flatten)]
    pub connection: Connection,
}

/// Carries the command out.
pub async fn run(session: &Session, flags: &Describe) -> Result<(), Error> {
    if flags.what.is_empty() && flags.files.is_empty() {
        return Err(Error::wrong(
            "You must specify the type of resource to describe, such as `rootlet describe pods`.",
        ));
    }
    let selected = meant(session, &flags.what, &flags.files).await?;
    let namespace = (!flags.all_namespaces).then_some(session.namespace.as_str());
    let (mut first, mut errors, mut listed) = (true, Vec::new(), true);
    for one in &selected {
        let objects = if let Some(name) = &one.name {
            listed = false;
            named(session, &one.resource, namespace, name).await
        } else {
            let all = list(session, &one.resource, namespace, &flags.labels.selector).await;
            all.map(|all| (all, false))
        };
        let (objects, alike) = match objects {
            Ok(found) => found,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        for object in objects {
            if !std::mem::take(&mut first) && !alike {
                put("\n\n")?;
            }
            put(&text(session, flags.show_events, &one.resource, &object).await?)?;
            if alike {
                put("\n")?;
            }
        }
    }
    if first && listed && errors.is_empty() {
        if flags.all_namespaces {
            eprintln!("No resources found");
        } else {
            eprintln!("No resources found in {} namespace.", session.namespace);
        }
    }
    Error::all(errors)
}

/// The object of this name; where there is none, those whose names begin so, and that they are such.
async fn named(
    session: &Session,
    resource: &Resource,
    namespace: Option<&str>,
    name: &str,
) -> Result<(Vec<Value>, bool), Error> {
    match session.api.get(&resource.path(namespace, name)).await {
        Ok(object) => Ok((vec![object], false)),
        Err(error) if error.is_not_found() => {
            let all = list(session, resource, namespace, "").await?;
            let alike: Vec<Value> =
                all.into_iter().filter(|o| str(&o["metadata"]["name"]).starts_with(name)).collect();
            if alike.is_empty() { Err(error) } else { Ok((alike, true)) }
        }
        Err(error) => Err(error),
    }
}

async fn list(
    session: &Session,
    resource: &Resource,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<Value>, Error> {
    let query = Query::default().with("labelSelector", selector);
    let mut list =
        session.api.get(&format!("{}{}", resource.path(namespace, ""), query.text())).await?;
    let Value::Array(mut items) = list["items"].take() else { return Ok(Vec::new()) };
    for item in &mut items {
        item["apiVersion"] = resource.api_version().into();
        item["kind"] = resource.kind.clone().into();
    }
    Ok(items)
}

async fn text(
    session: &Session,
    show_events: bool,
    resource: &Resource,
    object: &Value,
) -> Result<String, Error> {
    let mut out = Page::default();
    let of = (resource.group.as_str(), resource.kind.as_str());
    match of {
        ("", "Pod") => pod::describe(&mut out, object),
        ("", "Node") => node::describe(&mut out, session, object).await?,
        ("apps", "Deployment") => workload::deployment(&mut out, session, object).await?,
        ("apps", "ReplicaSet") | ("", "ReplicationController") => {
            workload::replica_set(&mut out, session, object).await?;
        }
        ("apps", "StatefulSet") => workload::stateful_set(&mut out, session, object).await?,
        ("apps", "DaemonSet") => workload::daemon_set(&mut out, session, object).await?,
        ("batch", "Job") => workload::job(&mut out, object),
        ("batch", "CronJob") => workload::cron_job(&mut out, object),
        ("", "Service") => service::service(&mut out, session, object).await?,
        ("", "Endpoints") => network::endpoints(&mut out, object),
        ("discovery.k8s.io", "EndpointSlice") => network::slice(&mut out, object),
        ("networking.k8s.io", "Ingress") => service::ingress(&mut out, session, object).await?,
        ("networking.k8s.io", "IngressClass") => network::ingress_class(&mut out, object),
        ("networking.k8s.io", "NetworkPolicy") => policy::network_policy(&mut out, object),
        ("networking.k8s.io", "ServiceCIDR") => network::service_cidr(&mut out, object),
        ("networking.k8s.io", "IPAddress") => network::ip_address(&mut out, object),
        ("", "ConfigMap") => config::config_map(&mut out, object),
        ("", "Secret") => config::secret(&mut out, object),
        ("", "ServiceAccount") => config::service_account(&mut out, session, object).await?,
        ("", "Namespace") => config::namespace(&mut out, session, object).await?,
        ("", "ResourceQuota") => policy::quota(&mut out, object),
        ("", "LimitRange") => policy::limit_range(&mut out, object),
        ("policy", "PodDisruptionBudget") => policy::disruption_budget(&mut out, object),
        ("autoscaling", "HorizontalPodAutoscaler") => autoscaler::autoscaler(&mut out, object),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => access::role(&mut out, object),
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => {
            access::binding(&mut out, object);
        }
        ("scheduling.k8s.io", "PriorityClass") => config::priority_class(&mut out, object),
        ("", "PersistentVolumeClaim") => storage::claim(&mut out, session, object).await?,
        ("", "PersistentVolume") => storage::volume(&mut out, object),
        ("storage.k8s.io", "StorageClass") => storage::class(&mut out, object),
        ("storage.k8s.io", "CSINode") => storage::csi_node(&mut out, object),
        _ => generic::describe(&mut out, object),
    }
    // Some are told without events, by upstream's choice.
    let without = matches!(
        of,
        ("", "Secret" | "Namespace" | "ResourceQuota" | "LimitRange")
            | ("networking.k8s.io", "NetworkPolicy")
            | ("rbac.authorization.k8s.io", _)
    );
    if show_events && !without {
        let found = events::about(session, object).await?;
        events::write(&mut out, &found);
    }
    Ok(tabs::expand(&out.text))
}

/// Text that is being written, with tabs between cells.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    /// A line at a level of two blanks each.
    fn line(&mut self, level: usize, text: impl AsRef<str>) {
        self.text.extend(std::iter::repeat_n("  ", level));
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// `name:<tab>value`.
    fn field(&mut self, level: usize, name: &str, value: impl AsRef<str>) {
        self.line(level, format!("{name}:\t{}", value.as_ref()));
    }

    fn labels(&mut self, level: usize, title: &str, labels: &Value) {
        let pairs: Vec<String> = map(labels).map(|(k, v)| format!("{k}={}", str(v))).collect();
        self.multiline(level, title, &pairs);
    }

    fn annotations(&mut self, title: &str, annotations: &Value) {
        // What was applied is the object once more.
        let shown: Vec<(&String, &str)> = map(annotations)
            .filter(|(key, _)| *key != "kubectl.kubernetes.io/last-applied-configuration")
            .map(|(key, value)| (key, str(value)))
            .collect();
        if shown.is_empty() {
            self.field(0, title, "<none>");
            return;
        }
        for (index, (key, value)) in shown.into_iter().enumerate() {
            let lead = if index == 0 { format!("{title}:\t") } else { "\t".to_owned() };
            let value = value.strip_suffix('\n').unwrap_or(value);
            if key.len() + value.len() + 2 < 140 && !value.contains('\n') {
                self.line(0, format!("{lead}{key}: {value}"));
                continue;
            }
            self.line(0, format!("{lead}{key}:"));
            for line in value.split('\n') {
                let line: String = line.chars().take(138).collect::<String>()
                    + if line.chars().count() > 138 { "..." } else { "" };
                self.line(0, format!("\t  {line}"));
            }
        }
    }

    /// A title and values below each other, from the second column on.
    fn multiline(&mut self, level: usize, title: &str, values: &[String]) {
        if values.is_empty() {
            self.field(level, title, "<none>");
        }
        for (index, value) in values.iter().enumerate() {
            let lead = if index == 0 { format!("{title}:\t") } else { "\t".to_owned() };
            self.line(level, lead + value);
        }
    }
}

fn str(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl DoubleEndedIterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn map(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// Text, number or truth as it is; nothing for null.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn or(value: &Value, otherwise: &str) -> String {
    let text = shown(value);
    if text.is_empty() { otherwise.to_owned() } else { text }
}

fn truth(value: bool) -> &'static str {
    if value { "True" } else { "False" }
}

/// `Mon, 02 Jan 2006 15:04:05 -0700`.
fn time(value: &Value) -> String {
    let Ok(at) = apimachinery::time::parse(str(value)) else { return "<unset>".into() };
    at.to_zoned(jiff::tz::TimeZone::system()).strftime("%a, %d %b %Y %H:%M:%S %z").to_string()
}

/// How long ago.
fn age(value: &Value) -> String {
    apimachinery::time::age(str(value), jiff::Timestamp::now())
}

/// A label selector as text; `none` when it selects by nothing.
fn selector(value: &Value, none: &str) -> String {
    let plain = !map(value).any(|(key, _)| key == "matchLabels" || key == "matchExpressions");
    let labels = if plain { value } else { &value["matchLabels"] };
    let mut parts: Vec<(String, String)> = map(labels)
        .filter(|(_, v)| v.is_string())
        .map(|(k, v)| (k.clone(), format!("{k}={}", str(v))))
        .collect();
    for expression in items(&value["matchExpressions"]) {
        let values = items(&expression["values"]).map(str).collect::<Vec<_>>().join(",");
        let key = str(&expression["key"]);
        let text = match str(&expression["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort();
    if parts.is_empty() {
        none.to_owned()
    } else {
        parts.into_iter().map(|(_, t)| t).collect::<Vec<_>>().join(",")
    }
}
