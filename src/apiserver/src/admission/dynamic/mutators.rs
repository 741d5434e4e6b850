//! MutatingAdmissionPolicy: CEL expressions that change requests.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/policy/mutating`.

use apimachinery::cel::TOTAL_LIMIT;
use apimachinery::status::{Cause, Details};
use apimachinery::{Status, apply, meta, patch};
use serde_json::Value;

use super::policies::Policy;
use super::variables::{NAMES, Variables, compile, request_value};
use super::{Asked, Dynamic, reshape};
use crate::attributes::RequestContext;
use crate::codec::{self, Expected};
use crate::gate::Operation;
use crate::zero::Zero;

/// A policy that wants to see what is changed after it, and what the object was when it was done.
pub type Again<'p> = (&'p Policy, Value);

impl Dynamic {
    /// Lets every bound policy change `object`, in the order of their names. Returns those that want to
    /// be asked again when something changes after them.
    pub(super) fn apply_mutators<'p>(
        &self,
        policies: &'p [Policy],
        ctx: &RequestContext,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<Vec<Again<'p>>, Status> {
        let (mut again, mut denials) = (Vec::new(), Vec::new());
        for policy in policies {
            self.apply_mutator(policy, ctx, operation, object, old, &mut denials)?;
            if policy.again {
                again.push((policy, object.clone()));
            }
        }
        refuse(ctx, object, denials)?;
        Ok(again)
    }

    /// Asks those again after whom something was changed.
    pub(super) fn reapply_mutators(
        &self,
        again: Vec<Again<'_>>,
        ctx: &RequestContext,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let mut denials = Vec::new();
        for (policy, after) in again {
            if *object != after {
                self.apply_mutator(policy, ctx, operation, object, old, &mut denials)?;
            }
        }
        refuse(ctx, object, denials)
    }

    fn apply_mutator(
        &self,
        policy: &Policy,
        ctx: &RequestContext,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
        denials: &mut Vec<String>,
    ) -> Result<(), Status> {
        for binding in &policy.bindings {
            let asked = Asked { ctx, operation, object: Some(object), old };
            if !policy.concerns(binding, self, &asked) {
                continue;
            }
            let outcome = policy.params(binding, self, &asked).and_then(|params| {
                let mut changed = object.clone();
                for params in &params {
                    let params = params.as_ref();
                    self.mutate_with(policy, ctx, operation, &mut changed, old, params)?;
                }
                Ok(changed)
            });
            match outcome {
                Ok(changed) if changed == *object => {}
                Ok(changed) => {
                    *object = changed;
                    reshape(ctx, object)?;
                }
                Err(_) if policy.ignore_failure => {}
                Err(error) => denials.push(format!(
                    "policy '{}' with binding '{}' denied request: {error}",
                    policy.name, binding.name
                )),
            }
        }
        Ok(())
    }

    fn mutate_with(
        &self,
        policy: &Policy,
        ctx: &RequestContext,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
        params: Option<&Value>,
    ) -> Result<(), String> {
        let Some(own) = ctx.resource.clone() else { return Ok(()) };
        let mut names = NAMES.to_vec();
        names.push("variables");
        let namespace =
            self.registry.get("", "namespaces", "", &ctx.namespace).map(|found| found.to_value());
        for mutation in &policy.mutations {
            let before = object.clone();
            let asked = Asked { ctx, operation, object: Some(&before), old };
            let request = request_value(&asked, &own, "");
            let mut budget = TOTAL_LIMIT;
            let mut variables = Variables::new(self, &asked, &request, namespace.as_ref(), params);
            policy.fill(&mut variables, &mut budget);
            if !policy.meets_conditions(&variables)? {
                return Ok(());
            }
            let by_patch = mutation["patchType"] == "JSONPatch";
            let key = if by_patch { "jsonPatch" } else { "applyConfiguration" };
            let expression = mutation[key]["expression"].text();
            let program = compile(expression, &names)?;
            let made = program
                .run(&variables, &mut budget)
                .map_err(|error| format!("expression '{expression}' resulted in error: {error}"))?;
            let kind = made.type_name();
            let mut made = made.to_json().ok_or("the expression makes no JSON")?;
            if by_patch {
                *object = patched(&before, &made)?;
                continue;
            }
            if !made.is_object() {
                return Err(format!("must evaluate to Object but got {kind}"));
            }
            // What it is of it does not say.
            meta::set_type(&mut made, meta::api_version(&before), meta::kind(&before));
            let typed = match codec::type_of(Expected::of(&own)) {
                Some((schema, of)) => apply::Typed::kind(schema, of),
                None => apply::Typed::deduced(),
            };
            *object = apply::merge(typed, &before, &made)
                .map_err(|error| format!("error applying patch: {error}"))?;
        }
        Ok(())
    }
}

/// The object by a JSON patch; it stays as it is where the patch tests for something else.
fn patched(object: &Value, operations: &Value) -> Result<Value, String> {
    const OPERATIONS: [&str; 6] = ["add", "remove", "replace", "move", "copy", "test"];
    let named = operations.items().iter().map(|one| one["op"].text());
    if let Some(unknown) = named.into_iter().find(|name| !OPERATIONS.contains(name)) {
        return Err(format!("JSON Patch: Unexpected kind: {unknown}"));
    }
    let bytes = serde_json::to_vec(operations).map_err(|error| error.to_string())?;
    match patch::json(object, &bytes) {
        Err(patch::Error::TestFailed(_)) => Ok(object.clone()),
        outcome => outcome.map_err(|error| format!("JSON Patch: {error}")),
    }
}

/// The refusal by policies that could not change the request: the first one's words, and all as causes.
fn refuse(ctx: &RequestContext, object: &Value, denials: Vec<String>) -> Result<(), Status> {
    let Some(first) = denials.first() else { return Ok(()) };
    let mut status = Status::failure(403, "Invalid", first.clone());
    let causes = denials.iter().map(|text| Cause { message: text.clone(), ..Cause::default() });
    status.details = Some(Box::new(Details {
        name: meta::name(object).to_owned(),
        group: ctx.group.clone(),
        kind: ctx.plural.clone(),
        causes: causes.collect(),
        ..Details::default()
    }));
    Err(status)
}
