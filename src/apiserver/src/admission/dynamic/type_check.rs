//! Type checking of validating policies: expressions are held against the schemas of the kinds that a
//! policy names, and what does not fit is told in its status.
//!
//! Source: `TypeChecker` of `k8s.io/apiserver/pkg/admission/plugin/policy/validating` and the controller
//! `validatingadmissionpolicy-status`.

use apimachinery::cel::{Program, Type};
use apimachinery::schema::{self, Schema, Shape, TypeId};
use apimachinery::structural::Structural;
use apimachinery::{Status, meta};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::GROUP;
use super::variables::NAMES;
use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::resource::{Resource, ResourceRef};
use crate::served::Served;
use crate::zero::Zero;

const PLURAL: &str = "validatingadmissionpolicies";
/// Kinds that one policy is checked against at most.
const KINDS_MAX: usize = 10;
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Types that hold themselves are known so deep.
const DEPTH_MAX: usize = 12;

/// Keeps the status of policies until `shutdown`.
pub async fn run(registry: Registry, shutdown: CancellationToken) {
    let Some(resource) = registry.resource(GROUP, PLURAL) else { return };
    let Some(cache) = registry.cache(&resource) else { return };
    let mut changed = cache.subscribe();
    loop {
        changed.borrow_and_update();
        for policy in registry.list(GROUP, PLURAL, None) {
            let policy = policy.to_value();
            let generation = policy["metadata"]["generation"].int();
            if policy["status"]["observedGeneration"].int() == generation {
                continue;
            }
            match settle(&registry, &resource, &policy).await {
                Err(status) if !matches!(status.code, 404 | 409) => {
                    tracing::warn!(policy = meta::name(&policy), %status, "cannot type check");
                }
                _ => {}
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            result = changed.changed() => if result.is_err() { return },
        }
    }
}

async fn settle(registry: &Registry, resource: &ResourceRef, policy: &Value) -> Result<(), Status> {
    let warnings = check(&registry.served(), policy);
    let mut checked = json!({});
    if !warnings.is_empty() {
        checked["expressionWarnings"] = warnings
            .into_iter()
            .map(|(field, warning)| json!({"fieldRef": field, "warning": warning}))
            .collect();
    }
    let generation = policy["metadata"]["generation"].int();
    let mut ctx = RequestContext::internal("update", resource, "", meta::name(policy));
    ctx.subresource = "status".into();
    registry
        .update_with(&ctx, &move |policy| {
            if policy["metadata"]["generation"].int() != generation {
                return Err(Status::conflict(GROUP, PLURAL, meta::name(policy), "it has changed"));
            }
            policy["status"]["observedGeneration"] = generation.into();
            policy["status"]["typeChecking"] = checked.clone();
            Ok(())
        })
        .await
        .map(drop)
}

/// The kinds that the policy names outright.
fn kinds(served: &Served, policy: &Value) -> Vec<ResourceRef> {
    let mut found: Vec<ResourceRef> = Vec::new();
    for rule in policy["spec"]["matchConstraints"]["resourceRules"].items() {
        let lists = ["apiGroups", "apiVersions", "resources"].map(|key| &rule[key]);
        if lists.iter().any(|list| list.texts().any(|text| text.contains('*'))) {
            continue;
        }
        for group in lists[0].texts() {
            for version in lists[1].texts() {
                for plural in lists[2].texts() {
                    let Some(resource) = served.at(group, version, plural) else { continue };
                    if !found
                        .iter()
                        .any(|known| known.kind == resource.kind && known.group == group)
                    {
                        found.push(resource.clone());
                    }
                }
            }
        }
    }
    found.truncate(KINDS_MAX);
    found
}

/// The expressions of a policy, with the names of their fields.
fn expressions(policy: &Value) -> Vec<(String, String)> {
    let spec = &policy["spec"];
    let mut all = Vec::new();
    for (list, keys) in [
        ("validations", &["expression", "messageExpression"][..]),
        ("auditAnnotations", &["valueExpression"]),
        ("variables", &["expression"]),
    ] {
        for (index, item) in spec[list].items().iter().enumerate() {
            for key in keys {
                let text = item[*key].text();
                if !text.is_empty() {
                    all.push((format!("spec.{list}[{index}].{key}"), text.to_owned()));
                }
            }
        }
    }
    all
}

/// What does not fit: the field, and a line for each kind.
fn check(served: &Served, policy: &Value) -> Vec<(String, String)> {
    let kinds: Vec<(ResourceRef, Structural)> = kinds(served, policy)
        .into_iter()
        .filter_map(|resource| {
            let schema = schema_of(&resource)?;
            Some((resource, schema))
        })
        .collect();
    let param = &policy["spec"]["paramKind"];
    let (group, version) = meta::split_api_version(param["apiVersion"].text());
    let params = served.of_kind(group, version, param["kind"].text()).and_then(|r| schema_of(r));
    let mut warnings = Vec::new();
    for (field, text) in expressions(policy) {
        let said: Vec<String> = kinds
            .iter()
            .filter_map(|(resource, schema)| {
                let error = mistake(&text, schema, params.as_ref())?;
                let of = resource.api_version();
                Some(format!("{of}, Kind={}: {error}\n", resource.kind))
            })
            .collect();
        if !said.is_empty() {
            warnings.push((field, said.join("\n")));
        }
    }
    warnings
}

fn mistake(text: &str, object: &Structural, params: Option<&Structural>) -> Option<String> {
    let names = NAMES
        .iter()
        .chain(["variables"].iter())
        .map(|name| {
            let kind = match (*name, params) {
                ("object" | "oldObject", _) => Type::Of(object),
                ("params", Some(schema)) => Type::Of(schema),
                _ => Type::Dyn,
            };
            ((*name).to_owned(), kind)
        })
        .collect();
    Program::compile(text, names, None).err()
}

fn schema_of(resource: &Resource) -> Option<Structural> {
    let facts = schema::builtin();
    if let Some(custom) = &resource.custom {
        let mut source = custom.source.clone();
        let metadata = facts.named(OBJECT_META).map(|id| object(facts, id, DEPTH_MAX));
        for (key, value) in [
            ("apiVersion", json!({"type": "string"})),
            ("kind", json!({"type": "string"})),
            ("metadata", metadata.unwrap_or_default()),
        ] {
            source["properties"][key] = value;
        }
        return Some(Structural::parse(&source));
    }
    let id = facts.kind(&resource.group, &resource.version, &resource.kind)?;
    Some(Structural::parse(&object(facts, id, DEPTH_MAX)))
}

/// A type as an OpenAPI schema with everything in its place.
fn object(facts: &Schema, id: TypeId, depth: usize) -> Value {
    if depth == 0 {
        return json!({"x-kubernetes-preserve-unknown-fields": true});
    }
    let properties: Map<String, Value> = facts
        .get(id)
        .fields
        .iter()
        .map(|field| (field.name.to_string(), shape(facts, &field.shape, depth - 1)))
        .collect();
    json!({"type": "object", "properties": properties})
}

fn shape(facts: &Schema, of: &Shape, depth: usize) -> Value {
    match of {
        Shape::String | Shape::Quantity => json!({"type": "string"}),
        Shape::Bytes => json!({"type": "string", "format": "byte"}),
        Shape::Int32 | Shape::Int64 => json!({"type": "integer"}),
        Shape::Double => json!({"type": "number"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::IntOrString => json!({"x-kubernetes-int-or-string": true}),
        Shape::Time | Shape::MicroTime => json!({"type": "string", "format": "date-time"}),
        Shape::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
        Shape::List(of) => json!({"type": "array", "items": shape(facts, of, depth)}),
        Shape::Map(of) => {
            json!({"type": "object", "additionalProperties": shape(facts, of, depth)})
        }
        Shape::Object(id) => object(facts, *id, depth),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(expression: &str, message: &str) -> Value {
        json!({"spec": {
            "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                "operations": ["*"], "resources": ["deployments"]}]},
            "validations": [{"expression": expression, "messageExpression": message}]}})
    }

    #[test]
    fn expressions_are_held_against_schemas() {
        let served = Served::builtin();
        let cases = [
            ("object.spec.replicas > 1", "", 0),
            ("object.metadata.name.startsWith('a')", "'x'", 0),
            ("object.spec.template.spec.containers.all(c, c.image != '')", "", 0),
            ("object.spec.replicas > '1'", "'wants replicas > 1, got ' + object.spec.replicas", 2),
            ("object.spec.replica > 1", "", 1),
            ("variables.x == params.y", "", 0),
        ];
        for (expression, message, want) in cases {
            let warnings = check(&served, &policy(expression, message));
            assert_eq!(warnings.len(), want, "{expression}: {warnings:?}");
        }
        let warnings = check(&served, &policy("object.spec.replicas > '1'", ""));
        assert_eq!(warnings[0].0, "spec.validations[0].expression");
        let want = "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'";
        assert!(warnings[0].1.starts_with(want), "{}", warnings[0].1);
    }
}
