//! Which requests a webhook or policy is about: rules, selectors, conditions.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/webhook/predicates` and `…/matchconditions`.

use apimachinery::cel::{Program, TOTAL_LIMIT};
use apimachinery::labels::Selector;
use apimachinery::meta;
use serde_json::{Value, json};

use super::{Asked, Dynamic};
use crate::gate::Operation;
use crate::resource::ResourceRef;
use crate::zero::Zero;

/// One of `rules`, `resourceRules` or `excludeResourceRules`.
#[derive(Debug)]
struct Rule {
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    operations: Vec<String>,
    scope: String,
    names: Vec<String>,
}

/// The whole condition but for CEL.
#[derive(Debug)]
pub struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    namespaces: Selector,
    objects: Selector,
    equivalent: bool,
}

/// One of `matchConditions`.
#[derive(Debug)]
pub struct Condition {
    expression: String,
    program: Result<Program, String>,
}

fn texts(value: &Value) -> Vec<String> {
    value.texts().map(str::to_owned).collect()
}

fn selector(value: &Value) -> Selector {
    if value.is_object() {
        // What cannot be read selects nothing.
        Selector::from_label_selector(Some(value)).unwrap_or_else(|_| Selector::nothing())
    } else {
        Selector::everything()
    }
}

impl Rule {
    fn parse(rule: &Value) -> Self {
        Self {
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]),
            operations: texts(&rule["operations"]),
            scope: rule["scope"].text().to_owned(),
            names: texts(&rule["resourceNames"]),
        }
    }

    fn matches(&self, asked: &Asked<'_>, version: &str) -> bool {
        let ctx = asked.ctx;
        let has = |list: &[String], wanted: &str| list.iter().any(|x| x == "*" || x == wanted);
        let operation = match asked.operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        };
        let namespaced = ctx.resource.as_ref().is_none_or(|r| r.namespaced);
        let scope = match self.scope.as_str() {
            "Namespaced" => namespaced,
            "Cluster" => !namespaced,
            _ => true,
        };
        let name = asked.object.or(asked.old).map_or(ctx.name.as_str(), meta::name);
        has(&self.groups, &ctx.group)
            && has(&self.versions, version)
            && has(&self.operations, operation)
            && scope
            && (self.names.is_empty() || self.names.iter().any(|n| n == name))
            && self.resources.iter().any(|wanted| {
                let (resource, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
                (resource == "*" || resource == ctx.plural)
                    && (sub == ctx.subresource || sub == "*")
            })
    }
}

impl Matcher {
    /// Reads the matching parts of a webhook.
    pub fn of_webhook(hook: &Value) -> Self {
        Self {
            rules: hook["rules"].items().iter().map(Rule::parse).collect(),
            excluded: Vec::new(),
            namespaces: selector(&hook["namespaceSelector"]),
            objects: selector(&hook["objectSelector"]),
            equivalent: hook["matchPolicy"] != "Exact",
        }
    }

    /// Reads `matchConstraints` or `matchResources`; without rules every resource is meant.
    pub fn of_policy(constraints: &Value) -> Self {
        let everything = json!({"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*", "*/*"], "operations": ["*"]});
        let mut rules: Vec<Rule> =
            constraints["resourceRules"].items().iter().map(Rule::parse).collect();
        if rules.is_empty() {
            rules.push(Rule::parse(&everything));
        }
        Self {
            rules,
            excluded: constraints["excludeResourceRules"].items().iter().map(Rule::parse).collect(),
            namespaces: selector(&constraints["namespaceSelector"]),
            objects: selector(&constraints["objectSelector"]),
            equivalent: constraints["matchPolicy"] != "Exact",
        }
    }

    /// The version at which a rule meets the request, if one does.
    pub fn matches(&self, dynamic: &Dynamic, asked: &Asked<'_>) -> Option<ResourceRef> {
        let ctx = asked.ctx;
        let own = ctx.resource.clone()?;
        let any = |rules: &[Rule], version: &str| rules.iter().any(|r| r.matches(asked, version));
        let found = if any(&self.rules, &own.version) {
            own
        } else if self.equivalent {
            let served = dynamic.registry.served();
            let other = served.all().iter().find(|other| {
                other.is(&own.group, &own.plural)
                    && other.version != own.version
                    && any(&self.rules, &other.version)
            });
            other?.clone()
        } else {
            return None;
        };
        let chosen = !any(&self.excluded, &found.version)
            && self.selects_namespace(dynamic, asked)
            && self.selects_object(asked);
        chosen.then_some(found)
    }

    fn selects_namespace(&self, dynamic: &Dynamic, asked: &Asked<'_>) -> bool {
        if self.namespaces.is_everything() {
            return true;
        }
        let ctx = asked.ctx;
        if ctx.is("", "namespaces") {
            return asked
                .object
                .or(asked.old)
                .is_none_or(|object| self.namespaces.matches(&meta::labels(object)));
        }
        if ctx.namespace.is_empty() {
            return true;
        }
        dynamic
            .registry
            .get("", "namespaces", "", &ctx.namespace)
            .is_some_and(|namespace| self.namespaces.matches_by(|key| namespace.labels.get(key)))
    }

    fn selects_object(&self, asked: &Asked<'_>) -> bool {
        if self.objects.is_everything() {
            return true;
        }
        [asked.object, asked.old]
            .into_iter()
            .flatten()
            .any(|object| self.objects.matches(&meta::labels(object)))
    }
}

impl Condition {
    /// Compiles `matchConditions`.
    pub fn compile_all(conditions: &Value, names: &[&str]) -> Vec<Self> {
        conditions
            .items()
            .iter()
            .map(|condition| Self {
                expression: condition["expression"].text().to_owned(),
                program: super::variables::compile(condition["expression"].text(), names),
            })
            .collect()
    }

    /// Whether all hold: one that is false decides, even if others fail.
    pub fn all(
        conditions: &[Self],
        variables: &super::variables::Variables<'_>,
    ) -> Result<bool, String> {
        let mut error = None;
        let mut budget = TOTAL_LIMIT / 4;
        for condition in conditions {
            let outcome = match &condition.program {
                Ok(program) => program.run(variables, &mut budget),
                Err(text) => Err(text.clone()),
            };
            match outcome {
                Ok(apimachinery::cel::Value::Bool(true)) => {}
                Ok(_) => return Ok(false),
                Err(text) => {
                    error.get_or_insert_with(|| {
                        format!("expression '{}' resulted in error: {text}", condition.expression)
                    });
                }
            }
        }
        error.map_or(Ok(true), Err)
    }
}
