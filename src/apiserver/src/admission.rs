//! Admission: what is done to an object, or said against it, between authorisation and the store.
//!
//! Mutating plugins run in upstream's order, then, after defaults and validation, the validating ones
//! (<https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/>).

mod certificates;
mod claim_resize;
mod device_admin;
pub mod dynamic;
mod ingress_class;
mod lifecycle;
mod limit_ranger;
mod node_restriction;
mod pod_security;
mod priority;
mod quota;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;

use std::sync::Arc;

use apimachinery::{Status, meta};
use futures::future::{BoxFuture, FutureExt};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::authz::{Authorizer, escalation};
use crate::gate::{Gate, Operation};
use crate::registry::Registry;
use dynamic::{Asked, Dynamic};

/// Runs the plugins. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    registry: Registry,
    authorizer: Authorizer,
    dynamic: Dynamic,
    usual_priority: Arc<priority::Usual>,
}

impl Admission {
    /// Admission by the objects in `registry`; `authorizer` knows who may grant what.
    pub fn new(registry: Registry, authorizer: Authorizer) -> Self {
        let dynamic = Dynamic::new(registry.clone(), authorizer.clone());
        Self { registry, authorizer, dynamic, usual_priority: Arc::default() }
    }

    async fn mutate_object(
        &self,
        ctx: &RequestContext,
        operation: Operation,
        mut object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let name = object.as_deref().map(meta::name).filter(|name| !name.is_empty());
        let name = name.unwrap_or(&ctx.name).to_owned();
        lifecycle::admit(&self.registry, ctx, operation, &name).await?;
        if let Some(object) = object.as_deref_mut() {
            self.mutate_built_in(ctx, operation, object, old).await?;
        }
        self.dynamic.mutate(ctx, operation, object, old).await
    }

    async fn mutate_built_in(
        &self,
        ctx: &RequestContext,
        operation: Operation,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if !ctx.subresource.is_empty() {
            return Ok(());
        }
        if operation != Operation::Create {
            if let (Operation::Update, "", "pods", Some(old)) =
                (operation, ctx.group.as_str(), ctx.plural.as_str(), old)
            {
                // Who applies or replaces what they wrote at first doesn't mean to take away what was added then.
                priority::keep(object, old);
                tolerations::admit(object);
            }
            return Ok(());
        }
        match (ctx.group.as_str(), ctx.plural.as_str()) {
            ("", "pods") => {
                limit_ranger::mutate(&self.registry, ctx, object);
                service_account::admit(&self.registry, ctx, object).await?;
                priority::admit(&self.registry, &self.usual_priority, object)?;
                tolerations::admit(object);
                runtime_class::admit(&self.registry, object)?;
            }
            ("", "persistentvolumeclaims") => {
                storage::default_class(&self.registry, object);
                storage::protect(&ctx.plural, object);
            }
            ("", "persistentvolumes") => storage::protect(&ctx.plural, object),
            ("", "nodes") => tolerations::taint_new_node(object),
            ("networking.k8s.io", "ingresses") => ingress_class::admit(&self.registry, object),
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
        if let Some(object) = object {
            certificates::admit(&self.authorizer, ctx, operation, object, old)?;
            pod_security::validate(&self.registry, ctx, operation, object, old)?;
        }
        let written = matches!(operation, Operation::Create | Operation::Update);
        let Some(object) = object.filter(|_| written && ctx.subresource.is_empty()) else {
            return Ok(());
        };
        match (ctx.group.as_str(), ctx.plural.as_str()) {
            ("", "pods") if operation == Operation::Create => {
                limit_ranger::validate(&self.registry, ctx, object)
            }
            ("", "persistentvolumeclaims") => {
                if let Some(old) = old {
                    claim_resize::admit(&self.registry, object, old)?;
                }
                limit_ranger::validate(&self.registry, ctx, object)
            }
            ("resource.k8s.io", "resourceclaims" | "resourceclaimtemplates")
                if operation == Operation::Create =>
            {
                device_admin::admit(&self.registry, ctx, object)
            }
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
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        self.mutate_object(ctx, operation, object, old).boxed()
    }

    fn validate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async move {
            self.validate_object(ctx, operation, object, old)?;
            self.dynamic.validate(&Asked { ctx, operation, object, old }).await?;
            match object {
                Some(object) => quota::admit(&self.registry, ctx, operation, object, old).await,
                None => Ok(()),
            }
        }
        .boxed()
    }
}
