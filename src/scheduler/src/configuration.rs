//! `KubeSchedulerConfiguration`, version `kubescheduler.config.k8s.io/v1`: which profiles there are, what
//! their plugins do, and which extenders are asked. A mistake is answered with the field that has it.
//!
//! Source: <https://kubernetes.io/docs/reference/config-api/kube-scheduler-config.v1/>,
//! `pkg/scheduler/apis/config` (`v1/default_plugins.go`, `validation`).

mod arguments;
mod profile;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::framework::{Point, Profile};

pub use arguments::{
    BalancedAllocation, Defaulting, InterPodAffinity, NodeAffinity, PodTopologySpread, Resources,
    Scoring, Strategy, UtilizationPoint,
};

const VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not YAML.
    #[error("not YAML: {0}")]
    Yaml(String),
    /// A field has a wrong value.
    #[error("{field}: {problem}")]
    Field {
        /// Its path, such as `profiles[0].schedulerName`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field { field: field.into(), problem: problem.into() }
}

/// How a process schedules.
pub struct Configuration {
    /// The scheduler names that are served, with their plugins.
    pub profiles: Vec<Profile>,
    /// The extenders, in the order in which they are asked.
    pub extenders: Vec<Extender>,
    /// How long a pod waits after failures, at first and at most.
    pub backoff: (Duration, Duration),
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            profiles: vec![profile::default()],
            extenders: Vec::new(),
            backoff: (Duration::from_secs(1), Duration::from_secs(10)),
        }
    }
}

/// The file. Fields that only concern a process of its own (its client, its profiling, its election) are
/// read and not used here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct File {
    api_version: String,
    kind: String,
    parallelism: Option<i32>,
    #[serde(rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    percentage_of_nodes_to_score: Option<i32>,
    pod_initial_backoff_seconds: Option<i64>,
    pod_max_backoff_seconds: Option<i64>,
    profiles: Vec<ProfileFile>,
    extenders: Vec<Extender>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ProfileFile {
    scheduler_name: Option<String>,
    percentage_of_nodes_to_score: Option<i32>,
    plugins: Plugins,
    plugin_config: Vec<PluginConfig>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Plugins {
    pre_enqueue: PluginSet,
    queue_sort: PluginSet,
    pre_filter: PluginSet,
    filter: PluginSet,
    post_filter: PluginSet,
    pre_score: PluginSet,
    score: PluginSet,
    reserve: PluginSet,
    permit: PluginSet,
    pre_bind: PluginSet,
    bind: PluginSet,
    post_bind: PluginSet,
    multi_point: PluginSet,
}

impl Plugins {
    /// The sets with their points and the names of their fields.
    fn points(&self) -> [(Point, &'static str, &PluginSet); 12] {
        [
            (Point::PreEnqueue, "preEnqueue", &self.pre_enqueue),
            (Point::QueueSort, "queueSort", &self.queue_sort),
            (Point::PreFilter, "preFilter", &self.pre_filter),
            (Point::Filter, "filter", &self.filter),
            (Point::PostFilter, "postFilter", &self.post_filter),
            (Point::PreScore, "preScore", &self.pre_score),
            (Point::Score, "score", &self.score),
            (Point::Reserve, "reserve", &self.reserve),
            (Point::Permit, "permit", &self.permit),
            (Point::PreBind, "preBind", &self.pre_bind),
            (Point::Bind, "bind", &self.bind),
            (Point::PostBind, "postBind", &self.post_bind),
        ]
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PluginSet {
    enabled: Vec<Named>,
    disabled: Vec<Named>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
    #[serde(default)]
    weight: i64,
}

/// A server that takes part in decisions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Extender {
    /// Where it is.
    pub url_prefix: String,
    /// What is appended to ask which nodes will do; empty when it is not asked.
    pub filter_verb: String,
    /// What is appended to ask about victims of preemption.
    pub preempt_verb: String,
    /// What is appended to ask how good nodes are.
    pub prioritize_verb: String,
    /// What its scores are multiplied by.
    pub weight: i64,
    /// What is appended to have a pod bound.
    pub bind_verb: String,
    /// Whether HTTPS is spoken although the prefix has no scheme.
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    /// How.
    pub tls_config: Option<Tls>,
    /// How long an answer may take, such as `5s`; 30 s unless said otherwise.
    pub http_timeout: Option<String>,
    /// Whether it knows the nodes itself, so that names are enough.
    pub node_cache_capable: bool,
    /// The resources that it manages; without any it is asked about every pod.
    pub managed_resources: Vec<ManagedResource>,
    /// Whether decisions go on without it when it fails.
    pub ignorable: bool,
}

/// A resource of an extender.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedResource {
    /// Its name.
    pub name: String,
    /// Whether nodes are not looked at for it.
    #[serde(default)]
    pub ignored_by_scheduler: bool,
}

/// How HTTPS is spoken with an extender.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tls {
    /// Whether the server's certificate is not checked.
    pub insecure: bool,
    /// The name that is expected in the certificate.
    pub server_name: String,
    /// The client's certificate, PEM.
    pub cert_file: String,
    /// The client's key, PEM.
    pub key_file: String,
    /// The authority's certificate, PEM.
    pub ca_file: String,
    /// The client's certificate, PEM in base64; goes before the file.
    pub cert_data: String,
    /// The client's key, PEM in base64; goes before the file.
    pub key_data: String,
    /// The authority's certificate, PEM in base64; goes before the file.
    pub ca_data: String,
}

/// Reads `value` as a `T`; `path` is where it stands.
fn read<T: serde::de::DeserializeOwned>(path: &str, value: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let inner = error.path().to_string();
        let field = match (path, inner.as_str()) {
            ("", inner) => inner.to_owned(),
            (path, ".") => path.to_owned(),
            (path, inner) => format!("{path}.{inner}"),
        };
        wrong(field, error.into_inner().to_string())
    })
}

fn percentage(field: &str, value: Option<i32>) -> Result<Option<usize>, Error> {
    match value {
        None | Some(0) => Ok(None),
        Some(percent @ 1..=100) => Ok(Some(percent as usize)),
        Some(other) => {
            Err(wrong(field, format!("Invalid value: {other}: not in valid range [0-100]")))
        }
    }
}

/// Reads a configuration.
pub fn parse(text: &str) -> Result<Configuration, Error> {
    let value: Value =
        serde_saphyr::from_str(text).map_err(|error| Error::Yaml(error.to_string()))?;
    let file: File = read("", value)?;
    if file.api_version != VERSION {
        let problem = format!("Unsupported value: {:?}: supported: {VERSION:?}", file.api_version);
        return Err(wrong("apiVersion", problem));
    }
    if file.kind != KIND {
        let problem = format!("Unsupported value: {:?}: supported: {KIND:?}", file.kind);
        return Err(wrong("kind", problem));
    }
    if let Some(parallelism) = file.parallelism.filter(|parallelism| *parallelism <= 0) {
        let problem =
            format!("Invalid value: {parallelism}: should be an integer value greater than zero");
        return Err(wrong("parallelism", problem));
    }
    let backoff = backoff(&file)?;
    let percent = percentage("percentageOfNodesToScore", file.percentage_of_nodes_to_score)?;
    extenders(&file.extenders)?;
    let mut files = file.profiles;
    if files.is_empty() {
        files.push(ProfileFile::default());
    }
    let managed = file.extenders.iter().flat_map(|extender| &extender.managed_resources);
    let managed = managed.filter(|resource| resource.ignored_by_scheduler);
    let ignored: Vec<String> = managed.map(|resource| resource.name.clone()).collect();
    let profiles = profiles(&files, percent, &ignored)?;
    Ok(Configuration { profiles, extenders: file.extenders, backoff })
}

fn backoff(file: &File) -> Result<(Duration, Duration), Error> {
    let first = file.pod_initial_backoff_seconds.unwrap_or(1);
    let most = file.pod_max_backoff_seconds.unwrap_or(10);
    if first <= 0 {
        let problem = format!("Invalid value: {first}: must be greater than 0");
        return Err(wrong("podInitialBackoffSeconds", problem));
    }
    if most < first {
        let problem = format!(
            "Invalid value: {most}: must be greater than or equal to PodInitialBackoffSeconds"
        );
        return Err(wrong("podMaxBackoffSeconds", problem));
    }
    Ok((Duration::from_secs(first as u64), Duration::from_secs(most as u64)))
}

/// Makes the profiles; `ignored` are resources that only extenders look at.
fn profiles(
    files: &[ProfileFile],
    percent: Option<usize>,
    ignored: &[String],
) -> Result<Vec<Profile>, Error> {
    let mut names = BTreeMap::new();
    let mut made: Vec<Profile> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let path = format!("profiles[{at}]");
        let name = match &file.scheduler_name {
            Some(name) if name.is_empty() => {
                return Err(wrong(format!("{path}.schedulerName"), "Required value"));
            }
            Some(name) => name.clone(),
            // Only a single profile may go without a name, as upstream's defaulting has it.
            None if files.len() == 1 => "default-scheduler".to_owned(),
            None => return Err(wrong(format!("{path}.schedulerName"), "Required value")),
        };
        if names.insert(name.clone(), at).is_some() {
            let problem = format!("Duplicate value: {name:?}");
            return Err(wrong(format!("{path}.schedulerName"), problem));
        }
        let mut profile = profile::build(&path, &name, file, ignored)?;
        let own = percentage(
            &format!("{path}.percentageOfNodesToScore"),
            file.percentage_of_nodes_to_score,
        )?;
        profile.percentage_of_nodes = own.or(percent);
        made.push(profile);
    }
    Ok(made)
}

fn extenders(all: &[Extender]) -> Result<(), Error> {
    let mut binders = 0;
    let mut managed: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, extender) in all.iter().enumerate() {
        let path = format!("extenders[{at}]");
        if extender.url_prefix.is_empty() {
            return Err(wrong(format!("{path}.urlPrefix"), "Required value"));
        }
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            let problem = format!(
                "Invalid value: {}: must have a positive weight applied to it",
                extender.weight
            );
            return Err(wrong(format!("{path}.weight"), problem));
        }
        if let Some(text) = &extender.http_timeout
            && apimachinery::time::duration(text).is_none()
        {
            let problem = format!("Invalid value: {text:?}: not a duration such as 5s");
            return Err(wrong(format!("{path}.httpTimeout"), problem));
        }
        binders += usize::from(!extender.bind_verb.is_empty());
        for (index, resource) in extender.managed_resources.iter().enumerate() {
            let field = format!("{path}.managedResources[{index}].name");
            let name = &resource.name;
            if name.is_empty() || !name.contains('/') {
                let problem =
                    format!("Invalid value: {name:?}: is an invalid extended resource name");
                return Err(wrong(field, problem));
            }
            if managed.insert(name, at).is_some() {
                let why = "duplicate extender managed resource name";
                return Err(wrong(field, format!("Invalid value: {name:?}: {why}")));
            }
        }
    }
    if binders > 1 {
        let problem = format!(
            "Invalid value: found {binders} extenders implementing bind: only one extender can implement bind"
        );
        return Err(wrong("extenders", problem));
    }
    Ok(())
}
