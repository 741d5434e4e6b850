//! Admission: what is done to an object, or said against it, between authorisation and the store.
//!
//! Mutating plugins run in upstream's order, then, after defaults and validation, the validating ones
//! (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>).

mod lifecycle;
mod limit_ranger;
mod node_restriction;
mod pod_security;
mod priority;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;

use apimachinery::Status;
use futures::future::{BoxFuture, FutureExt};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::authz::{Authorizer, escalation};
use crate::gate::{Gate, Operation};
use crate::registry::Registry;

/// Runs the plugins. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    registry: Registry,
    authorizer: Authorizer,
}

impl Admission {
    /// Admission by the objects in `registry`; `authorizer` knows who may grant what.
    pub fn new(registry: Registry, authorizer: Authorizer) -> Self {
        Self { registry, authorizer }
    }

    async fn mutate_object(
        &self,
        ctx: &RequestContext,
        operation: Operation,
        object: Option<&mut Value>,
    ) -> Result<(), Status> {
        lifecycle::admit(&self.registry, ctx, operation).await?;
        let Some(object) = object else { return Ok(()) };
        if !ctx.subresource.is_empty() || operation != Operation::Create {
            return Ok(());
        }
        match (ctx.group.as_str(), ctx.plural.as_str()) {
            ("", "pods") => {
                limit_ranger::mutate(&self.registry, ctx, object);
                service_account::admit(&self.registry, ctx, object).await?;
                priority::admit(&self.registry, object)?;
                tolerations::admit(object);
                runtime_class::admit(&self.registry, object)?;
            }
            ("", "persistentvolumeclaims") => {
                storage::default_class(&self.registry, object);
                storage::protect(&ctx.plural, object);
            }
            ("", "persistentvolumes") => storage::protect(&ctx.plural, object),
            ("", "nodes") => tolerations::taint_new_node(object),
            _ => {}
        }
        Ok(())
    }

    fn validate_object(
        &self,
        ctx: &RequestContext,
        operation: Operation,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        node_restriction::admit(&self.registry, ctx, operation, object, old)?;
        let written = matches!(operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| written && ctx.subresource.is_empty()) else {
            return Ok(());
        };
        match (ctx.group.as_str(), ctx.plural.as_str()) {
            ("", "pods") if operation == Operation::Create => {
                limit_ranger::validate(&self.registry, ctx, object)?;
                pod_security::validate(&self.registry, ctx, object)
            }
            ("", "persistentvolumeclaims") => limit_ranger::validate(&self.registry, ctx, object),
            ("scheduling.k8s.io", "priorityclasses") => {
                priority::validate_class(&self.registry, object)
            }
            ("rbac.authorization.k8s.io", _) => {
                escalation::check(&self.authorizer, ctx, object, old)
            }
            _ => Ok(()),
        }
    }
}

impl Gate for Admission {
    fn mutate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a mut Value>,
        _old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        self.mutate_object(ctx, operation, object).boxed()
    }

    fn validate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        let result = self.validate_object(ctx, operation, object, old);
        async { result }.boxed()
    }
}
