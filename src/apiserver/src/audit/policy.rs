//! What is recorded of which requests.
//!
//! Source: `k8s.io/apiserver/pkg/audit/policy` and its `validation`.

use serde_json::Value;

use crate::attributes::RequestContext;
use crate::zero::Zero;

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    None,
    /// Who, what, when.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "None" => Self::None,
            "Metadata" => Self::Metadata,
            "Request" => Self::Request,
            "RequestResponse" => Self::RequestResponse,
            _ => return None,
        })
    }

    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// A moment of a request at which an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Before anything is done.
    RequestReceived,
    /// A stream begins.
    ResponseStarted,
    /// All was answered.
    ResponseComplete,
    /// The server failed.
    Panic,
}

impl Stage {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "RequestReceived" => Self::RequestReceived,
            "ResponseStarted" => Self::ResponseStarted,
            "ResponseComplete" => Self::ResponseComplete,
            "Panic" => Self::Panic,
            _ => return None,
        })
    }

    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// `audit.k8s.io/v1` `Policy`.
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

struct Rule {
    level: Level,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.texts().map(str::to_owned).collect()
}

fn stages(value: &Value) -> Result<Vec<Stage>, String> {
    value
        .texts()
        .map(|text| Stage::parse(text).ok_or_else(|| format!("{text:?} is no stage")))
        .collect()
}

impl Policy {
    /// Reads a policy in YAML or JSON.
    pub fn parse(text: &str) -> Result<Self, String> {
        let value: Value =
            apimachinery::decode::yaml_to_value(text).map_err(|error| error.to_string())?;
        if value["kind"] != "Policy" || value["apiVersion"] != "audit.k8s.io/v1" {
            return Err("want apiVersion audit.k8s.io/v1 and kind Policy".into());
        }
        if value["rules"].items().is_empty() {
            return Err("a policy needs at least one rule".into());
        }
        let rules = value["rules"].items().iter().enumerate().map(|(index, rule)| {
            Rule::parse(rule).map_err(|problem| format!("rules[{index}]: {problem}"))
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
            omit_stages: stages(&value["omitStages"])?,
            omit_managed_fields: value["omitManagedFields"].flag(),
        })
    }

    /// The level of a request, the stages that are left out, and whether managed fields are kept.
    pub fn judge(&self, ctx: &RequestContext) -> (Level, Vec<Stage>, bool) {
        match self.rules.iter().find(|rule| rule.matches(ctx)) {
            Some(rule) => {
                let stages = [&self.omit_stages[..], &rule.omit_stages].concat();
                let omit = rule.omit_managed_fields.unwrap_or(self.omit_managed_fields);
                (rule.level, stages, !omit)
            }
            None => (Level::None, Vec::new(), false),
        }
    }
}

impl Rule {
    fn parse(rule: &Value) -> Result<Self, String> {
        let level = rule["level"].text();
        let about_objects = rule["resources"].is_array() || rule["namespaces"].is_array();
        if about_objects && rule["nonResourceURLs"].is_array() {
            return Err("rules cannot apply to both regular resources and non-resource URLs".into());
        }
        let urls = texts(&rule["nonResourceURLs"]);
        if let Some(url) = urls.iter().find(|url| {
            let stars = url.matches('*').count();
            *url != "*" && (!url.starts_with('/') || stars > usize::from(url.ends_with('*')))
        }) {
            return Err(format!(
                "{url:?}: non-resource URLs begin with '/', and a '*' is only allowed at the end"
            ));
        }
        Ok(Self {
            level: Level::parse(level).ok_or_else(|| format!("{level:?} is no level"))?,
            users: texts(&rule["users"]),
            groups: texts(&rule["userGroups"]),
            verbs: texts(&rule["verbs"]),
            resources: rule["resources"]
                .items()
                .iter()
                .map(|entry| Resources {
                    group: entry["group"].text().to_owned(),
                    resources: texts(&entry["resources"]),
                    names: texts(&entry["resourceNames"]),
                })
                .collect(),
            namespaces: texts(&rule["namespaces"]),
            urls,
            omit_stages: stages(&rule["omitStages"])?,
            omit_managed_fields: rule["omitManagedFields"].as_bool(),
        })
    }

    fn matches(&self, ctx: &RequestContext) -> bool {
        let has = |list: &[String], item: &str| list.is_empty() || list.iter().any(|i| i == item);
        if !has(&self.users, &ctx.user.name) || !has(&self.verbs, ctx.verb) {
            return false;
        }
        if !self.groups.is_empty() && !self.groups.iter().any(|group| ctx.user.in_group(group)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return ctx.is_resource_request()
                && has(&self.namespaces, &ctx.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(ctx)));
        }
        if self.urls.is_empty() {
            return true;
        }
        !ctx.is_resource_request()
            && self.urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => ctx.path.starts_with(prefix),
                None => *url == ctx.path,
            })
    }
}

impl Resources {
    fn matches(&self, ctx: &RequestContext) -> bool {
        if self.group != ctx.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.names.is_empty() || self.names.contains(&ctx.name);
        let meets = |resource: &String| match resource.split_once('/') {
            _ if resource == "*" => true,
            None => ctx.subresource.is_empty() && *resource == ctx.plural,
            Some(("*", sub)) => sub == ctx.subresource,
            Some((plural, "*")) => plural == ctx.plural,
            Some((plural, sub)) => plural == ctx.plural && sub == ctx.subresource,
        };
        named && self.resources.iter().any(meets)
    }
}
