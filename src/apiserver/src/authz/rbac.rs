//! The RBAC evaluator: bindings indexed by subject, rebuilt when an RBAC object changes.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use apimachinery::labels::Selector;
use serde::Deserialize;
use serde_json::Value;

use super::Decision;
use super::rules::Rule;
use crate::attributes::{RequestContext, UserInfo};
use crate::object::Object;
use crate::registry::Registry;

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";

const KINDS: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// Evaluates RBAC over the registry's cache.
pub struct Rbac {
    registry: Registry,
    index: RwLock<Arc<Index>>,
}

/// A reference to a role, as bindings hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRef {
    /// `Role` or `ClusterRole`.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A user, group or service account, as bindings hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Of a service account.
    pub namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct BindingBody {
    subjects: Option<Vec<Subject>>,
    role_ref: RoleRef,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RoleBody {
    rules: Option<Vec<Rule>>,
    aggregation_rule: Option<Value>,
}

/// What a binding gives to its subjects.
#[derive(Clone)]
struct Grant {
    /// Empty for cluster role bindings.
    namespace: String,
    rules: Result<Arc<[Rule]>, RoleRef>,
    binding: String,
    role: RoleRef,
}

#[derive(Default)]
struct Index {
    /// The latest change to each kind that is in here.
    revisions: [u64; 4],
    users: HashMap<String, Vec<Arc<Grant>>>,
    groups: HashMap<String, Vec<Arc<Grant>>>,
}

type RulesByName = HashMap<(String, String), Arc<[Rule]>>;

/// The rules of each role. An aggregating role has those that it selects at once, however late the
/// controller writes them into it.
fn rules_by_name(objects: &[Arc<Object>]) -> RulesByName {
    let bodies: Vec<(&Arc<Object>, RoleBody)> = objects
        .iter()
        .map(|object| (object, object.parse::<RoleBody>().unwrap_or_default()))
        .collect();
    bodies
        .iter()
        .map(|(object, body)| {
            let mut rules = Vec::new();
            collect(&bodies, object, body, &mut Vec::new(), &mut rules);
            ((object.namespace.clone(), object.name.clone()), rules.into())
        })
        .collect()
}

fn collect<'a>(
    bodies: &'a [(&Arc<Object>, RoleBody)],
    object: &'a Arc<Object>,
    body: &RoleBody,
    seen: &mut Vec<&'a str>,
    into: &mut Vec<Rule>,
) {
    seen.push(&object.name);
    for rule in body.rules.iter().flatten() {
        if !into.contains(rule) {
            into.push(rule.clone());
        }
    }
    let selectors = body.aggregation_rule.as_ref().map(|rule| &rule["clusterRoleSelectors"]);
    for selector in selectors.and_then(Value::as_array).into_iter().flatten() {
        let Ok(selector) = Selector::from_label_selector(Some(selector)) else { continue };
        for (other, other_body) in bodies {
            if !seen.contains(&other.name.as_str())
                && selector.matches_by(|key| other.labels.get(key))
            {
                collect(bodies, other, other_body, seen, into);
            }
        }
    }
}

impl Index {
    fn build(registry: &Registry, revisions: [u64; 4]) -> Self {
        let [cluster_roles, roles, cluster_bindings, bindings] =
            KINDS.map(|kind| registry.list(GROUP, kind, None));
        let (cluster_roles, roles) = (rules_by_name(&cluster_roles), rules_by_name(&roles));
        let mut index = Self { revisions, ..Self::default() };
        for object in cluster_bindings.into_iter().chain(bindings) {
            let Ok(body) = object.parse::<BindingBody>() else { continue };
            let role = body.role_ref;
            let found = if role.kind == "Role" {
                roles.get(&(object.namespace.clone(), role.name.clone()))
            } else {
                cluster_roles.get(&(String::new(), role.name.clone()))
            };
            let grant = Arc::new(Grant {
                namespace: object.namespace.clone(),
                rules: found.cloned().ok_or_else(|| role.clone()),
                binding: object.name.clone(),
                role,
            });
            for subject in body.subjects.unwrap_or_default() {
                let (map, name) = match subject.kind.as_str() {
                    "User" => (&mut index.users, subject.name),
                    "Group" => (&mut index.groups, subject.name),
                    "ServiceAccount" => {
                        let namespace = if subject.namespace.is_empty() {
                            &object.namespace
                        } else {
                            &subject.namespace
                        };
                        let name = format!("system:serviceaccount:{namespace}:{}", subject.name);
                        (&mut index.users, name)
                    }
                    _ => continue,
                };
                map.entry(name).or_default().push(grant.clone());
            }
        }
        index
    }

    /// The grants that concern `user` in `namespace`, those for the whole cluster first.
    fn grants<'a>(
        &'a self,
        user: &'a UserInfo,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Grant>> {
        let of_user = self.users.get(&user.name).into_iter();
        let of_groups = user.groups.iter().filter_map(|group| self.groups.get(group));
        let all: Vec<&Arc<Grant>> = of_user.chain(of_groups).flatten().collect();
        let (cluster, local): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|grant| grant.namespace.is_empty());
        cluster
            .into_iter()
            .chain(local.into_iter().filter(move |grant| grant.namespace == namespace))
    }
}

impl Rbac {
    /// An evaluator over the RBAC objects in `registry`.
    pub fn new(registry: Registry) -> Self {
        Self { registry, index: RwLock::default() }
    }

    fn index(&self) -> Arc<Index> {
        let revisions = KINDS.map(|kind| self.registry.changed(GROUP, kind));
        let current = self.index.read().unwrap_or_else(PoisonError::into_inner).clone();
        if current.revisions == revisions {
            return current;
        }
        // Built outside the lock: two requests may build at once, and either result will do.
        let fresh = Arc::new(Index::build(&self.registry, revisions));
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }

    /// Allows what a rule of the user's roles allows; has no opinion otherwise.
    pub fn authorize(&self, ctx: &RequestContext) -> Decision {
        let index = self.index();
        let mut missing = Vec::new();
        let namespace = if ctx.is_resource_request() { ctx.namespace.as_str() } else { "" };
        for grant in index.grants(&ctx.user, namespace) {
            match &grant.rules {
                Ok(rules) if rules.iter().any(|rule| rule.allows(ctx)) => {
                    return Decision::Allow { reason: grant.explain(&ctx.user) };
                }
                Ok(_) => {}
                Err(role) => missing.push(not_found(role)),
            }
        }
        missing.dedup();
        let reason = match missing.len() {
            0 => String::new(),
            1 => format!("RBAC: {}", missing[0]),
            _ => format!("RBAC: [{}]", missing.join(", ")),
        };
        Decision::NoOpinion { reason }
    }

    /// All rules that apply to `user` in `namespace`, and what could not be resolved.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let index = self.index();
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for grant in index.grants(user, namespace) {
            match &grant.rules {
                Ok(granted) => rules.extend(granted.iter().cloned()),
                Err(role) => errors.push(not_found(role)),
            }
        }
        (rules, errors)
    }

    /// The rules of a role; nothing when there is none.
    pub fn rules_of(&self, namespace: &str, role: &RoleRef) -> Option<Vec<Rule>> {
        let (plural, namespace) =
            if role.kind == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
        let object = self.registry.get(GROUP, plural, namespace, &role.name)?;
        Some(object.parse::<RoleBody>().ok()?.rules.unwrap_or_default())
    }
}

impl Grant {
    fn explain(&self, user: &UserInfo) -> String {
        let (kind, name) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", format!("{:?}", self.binding))
        } else {
            ("RoleBinding", format!("\"{}/{}\"", self.binding, self.namespace))
        };
        let role = &self.role;
        format!(
            "RBAC: allowed by {kind} {name} of {} {:?} to User {:?}",
            role.kind, role.name, user.name
        )
    }
}

fn not_found(role: &RoleRef) -> String {
    format!("{}.{GROUP} {:?} not found", role.kind.to_ascii_lowercase(), role.name)
}
