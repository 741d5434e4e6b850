//! Attribute-based access control: a file of policies, one in each line.
//!
//! Source: <https://kubernetes.io/docs/reference/access-authn-authz/abac/>, `pkg/auth/authorizer/abac` and the
//! conversions of `pkg/apis/abac`.

use serde::Deserialize;
use serde_json::Value;

use super::Decision;
use super::rules::Rule;
use crate::attributes::{RequestContext, UserInfo};

const GROUP: &str = "abac.authorization.kubernetes.io/";
const AUTHENTICATED: &str = "system:authenticated";
const READ: [&str; 3] = ["get", "list", "watch"];

/// What one line permits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Policy {
    user: String,
    group: String,
    readonly: bool,
    namespace: String,
    resource: String,
    api_group: String,
    non_resource_path: String,
}

/// The policies of a file.
#[derive(Debug, Default)]
pub struct Abac(Vec<Policy>);

impl Policy {
    fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let (version, kind) = (&value["apiVersion"], &value["kind"]);
        let read = |value: &Value| Self::deserialize(value).map_err(|error| error.to_string());
        let unversioned = version.is_null() && kind.is_null();
        let mut policy = match version.as_str() {
            _ if unversioned => read(&value)?.of_v0(),
            Some("v0") if kind == "Policy" => read(&value)?.of_v0(),
            Some(version) if version.strip_prefix(GROUP) == Some("v1beta1") && kind == "Policy" => {
                read(&value["spec"])?
            }
            _ => return Err(format!("no kind {kind} is registered for version {version}")),
        };
        // Everybody, by either name, means everybody whom this server knows.
        if policy.user == "*" || policy.group == "*" {
            policy.user.clear();
            policy.group = AUTHENTICATED.to_owned();
        }
        Ok(policy)
    }

    /// Policies without a version leave out what they do not restrict.
    fn of_v0(self) -> Self {
        let or_all = |text: &str| if text.is_empty() { "*".to_owned() } else { text.to_owned() };
        let everybody = self.user.is_empty() && self.group.is_empty();
        let everything = self.namespace.is_empty() && self.resource.is_empty();
        Self {
            group: if everybody { AUTHENTICATED.to_owned() } else { self.group },
            namespace: or_all(&self.namespace),
            resource: or_all(&self.resource),
            api_group: "*".to_owned(),
            non_resource_path: if everything { "*".to_owned() } else { String::new() },
            user: self.user,
            readonly: self.readonly,
        }
    }

    fn is_about(&self, user: &UserInfo) -> bool {
        let named = self.user.is_empty() || self.user == user.name;
        let member = self.group.is_empty() || user.in_group(&self.group);
        let says_whom = !(self.user.is_empty() && self.group.is_empty());
        says_whom && named && member
    }

    fn permits(&self, ctx: &RequestContext) -> bool {
        if !self.is_about(&ctx.user) || (self.readonly && !READ.contains(&ctx.verb)) {
            return false;
        }
        let is = |wanted: &str, found: &str| wanted == "*" || wanted == found;
        if ctx.is_resource_request() {
            return is(&self.namespace, &ctx.namespace)
                && is(&self.resource, &ctx.plural)
                && is(&self.api_group, &ctx.group);
        }
        match self.non_resource_path.strip_suffix('*') {
            Some(prefix) => ctx.path.starts_with(prefix.trim_end_matches('*')),
            None => !self.non_resource_path.is_empty() && self.non_resource_path == ctx.path,
        }
    }

    /// What it permits in `namespace`, as rules.
    fn rules(&self, namespace: &str) -> Vec<Rule> {
        let verbs: Vec<String> =
            if self.readonly { READ.map(String::from).to_vec() } else { vec!["*".to_owned()] };
        let mut rules = Vec::new();
        if !matches!(self.namespace.as_str(), "*") && self.namespace != namespace {
            return rules;
        }
        if !self.resource.is_empty() {
            rules.push(Rule {
                verbs: verbs.clone(),
                api_groups: vec![self.api_group.clone()],
                resources: vec![self.resource.clone()],
                ..Rule::default()
            });
        }
        if !self.non_resource_path.is_empty() {
            let non_resource_urls = vec![self.non_resource_path.clone()];
            rules.push(Rule { verbs, non_resource_urls, ..Rule::default() });
        }
        rules
    }
}

impl Abac {
    /// Reads the text of the file.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut policies = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let policy = Policy::parse(line)
                .map_err(|error| format!("line {}: {line}: {error}", index + 1))?;
            policies.push(policy);
        }
        Ok(Self(policies))
    }

    /// Decides on `ctx`.
    pub fn authorize(&self, ctx: &RequestContext) -> Decision {
        if self.0.iter().any(|policy| policy.permits(ctx)) {
            return Decision::Allow { reason: String::new() };
        }
        Decision::NoOpinion { reason: "No policy matched.".to_owned() }
    }

    /// What `user` may do in `namespace`.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let about = self.0.iter().filter(|policy| policy.is_about(user));
        about.flat_map(|policy| policy.rules(namespace)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const FILE: &str = r#"
# Two versions of the format.
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "alice", "namespace": "*", "resource": "*", "apiGroup": "*"}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "bob", "namespace": "projectCaribou", "resource": "pods", "readonly": true}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"group": "*", "readonly": true, "nonResourcePath": "/api*"}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "carol", "group": "ops", "namespace": "*", "resource": "nodes"}}
{"user": "old", "readonly": true}
"#;

    #[test]
    fn policies_permit() {
        let abac = Abac::parse(FILE).expect("policies");
        let decided =
            |user: &str, groups: &[&str], verb, namespace: &str, plural: &str, path: &str| {
                let mut groups = groups.to_vec();
                groups.push(AUTHENTICATED);
                let ctx = RequestContext {
                    user: Arc::new(UserInfo::new(user, &groups)),
                    verb,
                    namespace: namespace.into(),
                    plural: plural.into(),
                    path: path.into(),
                    ..RequestContext::default()
                };
                abac.authorize(&ctx).allowed()
            };
        for (user, groups, verb, namespace, plural, path, want) in [
            ("alice", &[][..], "delete", "x", "pods", "", true),
            ("alice", &[], "get", "", "", "/metrics", false),
            ("bob", &[], "list", "projectCaribou", "pods", "", true),
            ("bob", &[], "create", "projectCaribou", "pods", "", false),
            ("bob", &[], "list", "other", "pods", "", false),
            ("bob", &[], "list", "projectCaribou", "secrets", "", false),
            ("bob", &[], "get", "", "", "/api/v1", true),
            ("bob", &[], "post", "", "", "/api/v1", false),
            ("bob", &[], "get", "", "", "/version", false),
            ("carol", &["ops"], "delete", "", "nodes", "", true),
            ("carol", &[], "delete", "", "nodes", "", false),
            ("dave", &["ops"], "delete", "", "nodes", "", false),
            ("old", &[], "list", "any", "secrets", "", true),
            ("old", &[], "get", "", "", "/metrics", true),
            ("old", &[], "delete", "any", "secrets", "", false),
        ] {
            let found = decided(user, groups, verb, namespace, plural, path);
            assert_eq!(found, want, "{user} {verb} {namespace}/{plural}{path}");
        }
        let rules = abac.rules_for(&UserInfo::new("bob", &[]), "projectCaribou");
        assert_eq!(rules.len(), 1);
        assert_eq!((rules[0].verbs.len(), &rules[0].resources[..]), (3, &["pods".to_owned()][..]));
        assert!(abac.rules_for(&UserInfo::new("bob", &[]), "other").is_empty());
    }

    #[test]
    fn mistakes_are_told_by_their_line() {
        let error = Abac::parse("# x\n{\"user\"\n").expect_err("no JSON");
        assert!(error.starts_with("line 2: {\"user\": EOF"), "{error}");
        let error = Abac::parse(r#"{"apiVersion": "x/v1", "kind": "Policy"}"#);
        assert!(error.expect_err("unknown").contains("no kind \"Policy\" is registered"));
    }
}
