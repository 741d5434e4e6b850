//! RBAC policy rules and how they match.
//!
//! Source: `pkg/apis/rbac/v1/evaluation_helpers.go`.

use serde::{Deserialize, Serialize};

use crate::attributes::RequestContext;

/// `rbac.authorization.k8s.io/v1` `PolicyRule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs; `*` is all.
    #[serde(deserialize_with = "nullable")]
    pub verbs: Vec<String>,
    /// API groups; `*` is all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub api_groups: Vec<String>,
    /// Resources, `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub resources: Vec<String>,
    /// Names; empty is all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub resource_names: Vec<String>,
    /// Paths; a trailing `*` matches the rest.
    #[serde(
        rename = "nonResourceURLs",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub non_resource_urls: Vec<String>,
}

fn nullable<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(from)?.unwrap_or_default())
}

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

impl Rule {
    /// A rule from one line of the built-in tables: `VERBS GROUPS RESOURCES [NAMES]` or `VERBS url
    /// PATHS`, each a comma-separated list. `read` and `write` stand for the usual verbs, `-` for the
    /// core group.
    pub fn from_line(line: &str) -> Self {
        let mut columns = line
            .split_whitespace()
            .map(|column| column.split(',').map(str::to_owned).collect::<Vec<_>>());
        let mut next = || columns.next().unwrap_or_default();
        let mut verbs = Vec::new();
        for verb in next() {
            match verb.as_str() {
                "read" => verbs.extend(READ.map(String::from)),
                "write" => verbs.extend(WRITE.map(String::from)),
                _ => verbs.push(verb),
            }
        }
        let mut groups = next();
        if groups == ["url"] {
            return Self { verbs, non_resource_urls: next(), ..Self::default() };
        }
        for group in &mut groups {
            if group == "-" {
                group.clear();
            }
        }
        Self {
            verbs,
            api_groups: groups,
            resources: next(),
            resource_names: next(),
            non_resource_urls: Vec::new(),
        }
    }
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Whether the rule permits `ctx`.
    pub fn allows(&self, ctx: &RequestContext) -> bool {
        if !has(&self.verbs, ctx.verb) {
            return false;
        }
        if !ctx.is_resource_request() {
            return self.covers_path(&ctx.path);
        }
        has(&self.api_groups, &ctx.group)
            && self.covers_resource(&ctx.plural, &ctx.subresource)
            && (self.resource_names.is_empty() || self.resource_names.contains(&ctx.name))
    }

    fn covers_resource(&self, plural: &str, subresource: &str) -> bool {
        self.resources.iter().any(|resource| {
            if resource == "*" {
                return true;
            }
            match resource.split_once('/') {
                None => subresource.is_empty() && resource == plural,
                Some((parent, child)) => {
                    child == subresource && (parent == plural || parent == "*")
                }
            }
        })
    }

    fn covers_path(&self, path: &str) -> bool {
        self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
            Some(prefix) => path.starts_with(prefix),
            None => url == path,
        })
    }

    /// Whether this rule grants all that `other` grants.
    ///
    /// Source: `rbac/v1/validation.Covers`, for one subrule.
    pub fn covers(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| {
            mine.iter().any(|item| item == "*") || theirs.iter().all(|item| mine.contains(item))
        };
        let resources = self.resources.iter().any(|resource| resource == "*")
            || other.resources.iter().all(|resource| match resource.split_once('/') {
                Some((plural, subresource)) => self.covers_resource(plural, subresource),
                None => self.resources.contains(resource),
            });
        all(&self.verbs, &other.verbs)
            && all(&self.api_groups, &other.api_groups)
            && resources
            && (self.resource_names.is_empty()
                || (!other.resource_names.is_empty()
                    && other.resource_names.iter().all(|n| self.resource_names.contains(n))))
            && other.non_resource_urls.iter().all(|url| self.covers_path(url))
    }

    /// The rule as upstream prints it in refusals.
    pub fn describe(&self) -> String {
        let mut parts = Vec::new();
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                parts.push(format!("{name}:{list:?}"));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }

    /// The smallest rules that together are this one: one verb, group, resource and name each.
    pub fn split(&self) -> Vec<Rule> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                parts.push(Rule {
                    verbs: vec![verb.clone()],
                    non_resource_urls: vec![url.clone()],
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let part = Rule {
                        verbs: vec![verb.clone()],
                        api_groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        parts.push(part);
                    } else {
                        parts.extend(self.resource_names.iter().map(|name| Rule {
                            resource_names: vec![name.clone()],
                            ..part.clone()
                        }));
                    }
                }
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(line: &str) -> Rule {
        Rule::from_line(line)
    }

    fn ctx(verb: &'static str, group: &str, resource: &str, name: &str) -> RequestContext {
        let (plural, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        RequestContext {
            verb,
            group: group.into(),
            plural: plural.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..RequestContext::default()
        }
    }

    #[test]
    fn rules_match_as_upstream() {
        let cases = [
            (rule("get - pods"), ctx("get", "", "pods", "a"), true),
            (rule("get - pods"), ctx("list", "", "pods", ""), false),
            (rule("* * *"), ctx("get", "apps", "deployments/scale", "a"), true),
            (rule("get - pods"), ctx("get", "", "pods/log", "a"), false),
            (rule("get - pods/log"), ctx("get", "", "pods/log", "a"), true),
            (rule("get - pods/*"), ctx("get", "", "pods/log", "a"), false),
            (rule("get * */scale"), ctx("get", "apps", "deployments/scale", "a"), true),
            (rule("get - pods b"), ctx("get", "", "pods", "a"), false),
            (rule("get - pods b"), ctx("get", "", "pods", "b"), true),
            (rule("get apps pods"), ctx("get", "", "pods", "a"), false),
        ];
        for (rule, ctx, want) in cases {
            assert_eq!(rule.allows(&ctx), want, "{rule:?} {ctx:?}");
        }
        let paths = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/healthz".into(), "/api/*".into()],
            ..Rule::default()
        };
        for (path, want) in [("/healthz", true), ("/healthz/a", false), ("/api/v1", true)] {
            let ctx =
                RequestContext { verb: "get", path: path.into(), ..RequestContext::default() };
            assert_eq!(paths.allows(&ctx), want, "{path}");
        }
    }

    #[test]
    fn covering_is_granting_no_less() {
        let cases = [
            (rule("* * *"), rule("get - pods/log"), true),
            (rule("get - pods"), rule("get - pods a"), true),
            (rule("get - pods a"), rule("get - pods"), false),
            (rule("get - pods"), rule("get - *"), false),
            (rule("get - */log"), rule("get - pods/log"), true),
        ];
        for (mine, other, want) in cases {
            assert_eq!(mine.covers(&other), want, "{mine:?} {other:?}");
        }
        assert_eq!(rule("get,list -,apps a,b").split().len(), 8);
    }
}
