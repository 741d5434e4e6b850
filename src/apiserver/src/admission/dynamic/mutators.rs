//! MutatingAdmissionPolicy: CEL expressions that change requests.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/policy/mutating`.

use apimachinery::cel::TOTAL_LIMIT;
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
        let mut again = Vec::new();
        for policy in policies {
            self.apply_mutator(policy, ctx, operation, object, old)?;
            if policy.again {
                again.push((policy, object.clone()));
            }
        }
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
        for (policy, after) in again {
            if *object != after {
                self.apply_mutator(policy, ctx, operation, object, old)?;
            }
        }
        Ok(())
    }

    fn apply_mutator(
        &self,
        policy: &Policy,
        ctx: &RequestContext,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
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
                Err(error) => {
                    let why = format!(
                        "policy '{}' with binding '{}' denied request: {error}",
                        policy.name, binding.name
                    );
                    let name = meta::name(object);
                    return Err(Status::forbidden(&ctx.group, &ctx.plural, name, &why));
                }
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
            let program = compile(mutation[key]["expression"].text(), &names)?;
            let made = program.run(&variables, &mut budget)?;
            let made = made.to_json().ok_or("the expression makes no JSON")?;
            if by_patch {
                let bytes = serde_json::to_vec(&made).map_err(|error| error.to_string())?;
                *object = patch::json(&before, &bytes).map_err(|error| error.to_string())?;
                continue;
            }
            let typed = match codec::type_of(Expected::of(&own)) {
                Some((schema, of)) => apply::Typed::kind(schema, of),
                None => apply::Typed::deduced(),
            };
            *object = apply::merge(typed, &before, &made);
        }
        Ok(())
    }
}
