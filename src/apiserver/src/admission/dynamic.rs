//! Admission that users configure: webhooks and CEL policies.
//!
//! What the configurations say is compiled once and again when one of them changes.

mod matching;
mod mutators;
mod policies;
#[cfg(test)]
mod tests;
pub mod type_check;
mod variables;
pub mod webhooks;

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use apimachinery::Status;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::authz::Authorizer;
use crate::cache::Cache;
use crate::gate::Operation;
use crate::registry::Registry;

pub use policies::{check_policy, check_webhook_conditions};

const GROUP: &str = "admissionregistration.k8s.io";
const KINDS: [&str; 6] = [
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
];

/// All configurations, compiled.
#[derive(Default)]
struct Index {
    revisions: [u64; 6],
    mutating: Vec<webhooks::Hook>,
    validating: Vec<webhooks::Hook>,
    policies: Vec<policies::Policy>,
    mutators: Vec<policies::Policy>,
}

/// One request, as the configurations see it.
pub struct Asked<'a> {
    /// Who wants what.
    pub ctx: &'a RequestContext,
    /// What is done.
    pub operation: Operation,
    /// The object after it.
    pub object: Option<&'a Value>,
    /// The object before it.
    pub old: Option<&'a Value>,
}

/// Runs webhooks and policies. Cheap to clone.
#[derive(Clone)]
pub struct Dynamic {
    registry: Registry,
    authorizer: Authorizer,
    index: Arc<RwLock<Arc<Index>>>,
    /// Of the kinds, in their order.
    caches: Arc<OnceLock<Vec<Arc<Cache>>>>,
}

impl Dynamic {
    /// Admission by the configurations in `registry`.
    pub fn new(registry: Registry, authorizer: Authorizer) -> Self {
        Self { registry, authorizer, index: Arc::default(), caches: Arc::default() }
    }

    /// Asked for twice with each write, so the caches are looked up once.
    fn revisions(&self) -> [u64; 6] {
        if self.caches.get().is_none() {
            let found = KINDS.iter().map(|kind| self.registry.cache_of(GROUP, kind));
            if let Some(caches) = found.collect() {
                let _ = self.caches.set(caches);
            }
        }
        let Some(caches) = self.caches.get() else {
            return KINDS.map(|kind| self.registry.changed(GROUP, kind));
        };
        let mut revisions = [0; 6];
        for (revision, cache) in revisions.iter_mut().zip(caches) {
            *revision = cache.revision();
        }
        revisions
    }

    fn index(&self) -> Arc<Index> {
        let revisions = self.revisions();
        let current = self.index.read().unwrap_or_else(PoisonError::into_inner).clone();
        if current.revisions == revisions {
            return current;
        }
        let list = |kind: &str| -> Vec<Value> {
            self.registry.list(GROUP, kind, None).iter().map(|object| object.to_value()).collect()
        };
        let fresh = Arc::new(Index {
            revisions,
            mutating: webhooks::compile(&list(KINDS[0])),
            validating: webhooks::compile(&list(KINDS[1])),
            policies: policies::compile(&list(KINDS[2]), &list(KINDS[3])),
            mutators: policies::compile(&list(KINDS[4]), &list(KINDS[5])),
        });
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = fresh.clone();
        fresh
    }

    /// What configures admission is itself not subject to it: a mistake there must stay mendable.
    fn is_exempt(ctx: &RequestContext) -> bool {
        ctx.group == GROUP && KINDS.contains(&ctx.plural.as_str())
    }

    /// Lets mutating policies and webhooks change `object`.
    pub async fn mutate(
        &self,
        ctx: &RequestContext,
        operation: Operation,
        mut object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if Self::is_exempt(ctx) {
            return Ok(());
        }
        let index = self.index();
        let mut again = Vec::new();
        if let Some(object) = object.as_deref_mut() {
            again = self.apply_mutators(&index.mutators, ctx, operation, object, old)?;
        }
        let hooks = &index.mutating;
        webhooks::mutate(self, hooks, ctx, operation, object.as_deref_mut(), old).await?;
        match object {
            Some(object) => self.reapply_mutators(again, ctx, operation, object, old),
            None => Ok(()),
        }
    }

    /// Lets validating policies and webhooks refuse.
    pub async fn validate(&self, asked: &Asked<'_>) -> Result<(), Status> {
        if Self::is_exempt(asked.ctx) {
            return Ok(());
        }
        let index = self.index();
        self.judge(&index.policies, asked)?;
        webhooks::validate(self, &index.validating, asked).await
    }
}

/// Brings an object that was changed from outside into its kind's shape again.
fn reshape(ctx: &RequestContext, object: &mut Value) -> Result<(), Status> {
    let Some(resource) = ctx.resource.as_deref() else { return Ok(()) };
    if !ctx.subresource.is_empty() && ctx.subresource != "status" {
        return Ok(());
    }
    let expected = crate::codec::Expected::of(resource);
    let shaped = crate::codec::reshape(
        object,
        expected,
        crate::options::FieldValidation::Ignore,
        &ctx.warnings,
    )?;
    *object = shaped;
    crate::policy::set_defaults(resource, object);
    Ok(())
}
