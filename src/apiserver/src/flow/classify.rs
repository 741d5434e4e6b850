//! Which schema a request belongs to: the first, by precedence, one of whose rules meets it.
//!
//! Source: `k8s.io/apiserver/pkg/util/flowcontrol/rule.go`.

use std::sync::Arc;

use apimachinery::meta;
use http::HeaderValue;
use serde_json::Value;

use super::counts::{Counts, Tally};
use crate::attributes::RequestContext;
use crate::zero::Zero;

/// All schemas, the first to be asked first.
#[derive(Default)]
pub struct Schemas(Vec<Schema>);

/// How flows of one schema are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

/// One `FlowSchema`.
pub struct Schema {
    name: String,
    precedence: i64,
    /// Its uid.
    pub uid: HeaderValue,
    /// The name of its level.
    pub level: String,
    /// The level's uid.
    pub level_uid: HeaderValue,
    /// Whether requests of the level run at once, however many there are.
    pub exempt: bool,
    /// What is counted of its requests.
    pub tally: Arc<Tally>,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

struct Rule {
    subjects: Vec<Subject>,
    resources: Vec<ResourceRule>,
    paths: Vec<(Vec<String>, Vec<String>)>,
}

enum Subject {
    User(String),
    Group(String),
    ServiceAccount { namespace: String, name: String },
}

struct ResourceRule {
    verbs: Vec<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn texts(value: &Value) -> Vec<String> {
    value.texts().map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Schemas {
    /// Reads the schemas whose level exists; `levels` are all levels.
    pub fn new(schemas: &[Value], levels: &[Value], counts: &Counts) -> Self {
        let parse = |schema| Schema::parse(schema, levels, counts);
        let mut all: Vec<Schema> = schemas.iter().filter_map(parse).collect();
        all.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        Self(all)
    }

    /// Those whose requests belong to the level.
    pub fn of_level<'a>(&'a self, level: &'a str) -> impl Iterator<Item = &'a Schema> {
        self.0.iter().filter(move |schema| schema.level == level)
    }

    /// The request's schema; nothing only while there are none at all.
    pub fn find(&self, ctx: &RequestContext) -> Option<&Schema> {
        let last = || self.0.iter().find(|schema| schema.name == "catch-all");
        self.0.iter().find(|schema| schema.matches(ctx)).or_else(last)
    }
}

impl Schema {
    fn parse(schema: &Value, levels: &[Value], counts: &Counts) -> Option<Self> {
        let spec = &schema["spec"];
        let level = spec["priorityLevelConfiguration"]["name"].text();
        let found = levels.iter().find(|known| meta::name(known) == level)?;
        Some(Self {
            name: meta::name(schema).to_owned(),
            precedence: spec["matchingPrecedence"].int(),
            uid: header(meta::uid(schema)),
            level: level.to_owned(),
            level_uid: header(meta::uid(found)),
            exempt: found["spec"]["type"] == "Exempt",
            tally: Arc::new(counts.of(meta::name(schema), level)),
            distinguisher: match spec["distinguisherMethod"]["type"].text() {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: spec["rules"].items().iter().map(Rule::parse).collect(),
        })
    }

    fn matches(&self, ctx: &RequestContext) -> bool {
        self.rules.iter().any(|rule| rule.matches(ctx))
    }

    /// Whose request it is, among those of this schema.
    pub fn flow_of(&self, ctx: &RequestContext) -> String {
        let whose = match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &ctx.user.name,
            Distinguisher::Namespace => &ctx.namespace,
        };
        format!("{}/{whose}", self.name)
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        let subjects = rule["subjects"].items().iter().filter_map(|subject| {
            let name = |key: &str| subject[key]["name"].text().to_owned();
            Some(match subject["kind"].text() {
                "User" => Subject::User(name("user")),
                "Group" => Subject::Group(name("group")),
                "ServiceAccount" => Subject::ServiceAccount {
                    namespace: subject["serviceAccount"]["namespace"].text().to_owned(),
                    name: name("serviceAccount"),
                },
                _ => return None,
            })
        });
        let resources = rule["resourceRules"].items().iter().map(|rule| ResourceRule {
            verbs: texts(&rule["verbs"]),
            groups: texts(&rule["apiGroups"]),
            resources: texts(&rule["resources"]),
            cluster_scope: rule["clusterScope"].flag(),
            namespaces: texts(&rule["namespaces"]),
        });
        let paths = rule["nonResourceRules"]
            .items()
            .iter()
            .map(|rule| (texts(&rule["verbs"]), texts(&rule["nonResourceURLs"])));
        Self {
            subjects: subjects.collect(),
            resources: resources.collect(),
            paths: paths.collect(),
        }
    }

    fn matches(&self, ctx: &RequestContext) -> bool {
        if !self.subjects.iter().any(|subject| subject.matches(ctx)) {
            return false;
        }
        if ctx.is_resource_request() {
            return self.resources.iter().any(|rule| rule.matches(ctx));
        }
        self.paths.iter().any(|(verbs, urls)| {
            has(verbs, ctx.verb)
                && urls.iter().any(|url| match url.strip_suffix('*') {
                    Some(prefix) => ctx.path.starts_with(prefix),
                    None => *url == ctx.path,
                })
        })
    }
}

impl Subject {
    fn matches(&self, ctx: &RequestContext) -> bool {
        match self {
            Self::User(name) => name == "*" || *name == ctx.user.name,
            Self::Group(name) => name == "*" || ctx.user.in_group(name),
            Self::ServiceAccount { namespace, name } => {
                let account = ctx.user.name.strip_prefix("system:serviceaccount:");
                account
                    .and_then(|account| account.split_once(':'))
                    .is_some_and(|(of, found)| of == namespace && (name == "*" || found == name))
            }
        }
    }
}

impl ResourceRule {
    fn matches(&self, ctx: &RequestContext) -> bool {
        let resource = || {
            if ctx.subresource.is_empty() {
                ctx.plural.clone()
            } else {
                format!("{}/{}", ctx.plural, ctx.subresource)
            }
        };
        has(&self.verbs, ctx.verb)
            && has(&self.groups, &ctx.group)
            && (self.resources.iter().any(|item| item == "*")
                || self.resources.contains(&resource()))
            && if ctx.namespace.is_empty() {
                self.cluster_scope
            } else {
                has(&self.namespaces, &ctx.namespace)
            }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::attributes::UserInfo;
    use crate::flow::objects;

    fn with_uid(mut object: Value) -> Value {
        object["metadata"]["uid"] = object["metadata"]["name"].clone();
        object
    }

    #[test]
    fn requests_find_upstreams_schemas() {
        let of = |plural: &str| -> Vec<Value> {
            objects::all()
                .into_iter()
                .filter(|(p, _)| *p == plural)
                .map(|(_, o)| with_uid(o))
                .collect()
        };
        let schemas = Schemas::new(
            &of("flowschemas"),
            &of("prioritylevelconfigurations"),
            &Counts::default(),
        );
        let ctx = |user: &str, group: &str, verb, resource: &str, namespace: &str| {
            let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let api_group = if plural == "leases" { "coordination.k8s.io" } else { "" };
            RequestContext {
                user: Arc::new(UserInfo::new(user, &[group])),
                verb,
                group: api_group.into(),
                plural: plural.into(),
                subresource: subresource.into(),
                namespace: namespace.into(),
                ..RequestContext::default()
            }
        };
        let health = |path: &str| RequestContext {
            user: Arc::new(UserInfo::anonymous()),
            verb: "get",
            path: path.into(),
            ..RequestContext::default()
        };
        let account = "system:serviceaccount:kube-system:job-controller";
        let cases = [
            (ctx("admin", "system:masters", "list", "pods", ""), "exempt"),
            (health("/livez"), "probes"),
            (health("/version"), "global-default"),
            (
                ctx("system:node:a", "system:nodes", "patch", "nodes/status", "a"),
                "system-node-high",
            ),
            (ctx("system:node:a", "system:nodes", "update", "leases", "x"), "system-node-high"),
            (ctx("system:node:a", "system:nodes", "list", "pods", ""), "system-nodes"),
            (
                ctx("system:kube-scheduler", "x", "update", "leases", "kube-system"),
                "system-leader-election",
            ),
            (ctx("system:kube-scheduler", "x", "list", "pods", ""), "kube-scheduler"),
            (
                ctx(account, "system:serviceaccounts", "list", "pods", ""),
                "kube-system-service-accounts",
            ),
            (
                ctx("system:serviceaccount:a:b", "system:serviceaccounts", "get", "pods", "a"),
                "service-accounts",
            ),
            (ctx("jane", "dev", "get", "pods", "a"), "global-default"),
        ];
        for (ctx, want) in cases {
            let found = schemas.find(&ctx).expect("one always fits");
            assert_eq!(found.name, want, "{ctx:?}");
        }
        let jane = ctx("jane", "dev", "get", "pods", "a");
        assert_eq!(schemas.find(&jane).expect("a schema").flow_of(&jane), "global-default/jane");
    }
}
