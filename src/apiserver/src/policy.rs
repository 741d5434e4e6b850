//! The seam between the write path and each kind's own rules: defaults, strategy, validation.

use apimachinery::{Status, decode};
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::registry::Registry;
use crate::{protobuf, strategy};

pub use crate::defaults::set_defaults;

pub use crate::validation::{validate_create, validate_update};

pub use crate::warnings::warn;

/// Clears and sets what the server decides on, and leaves the object in the form it is stored in.
pub fn prepare_for_create(ctx: &RequestContext, object: &mut Value) {
    strategy::prepare_for_create(ctx, object);
    complete(ctx, object);
}

/// The same for what is to take the place of `old`.
pub fn prepare_for_update(ctx: &RequestContext, object: &mut Value, old: &Value) {
    strategy::prepare_for_update(ctx, object, old);
    complete(ctx, object);
}

/// Built-in objects are stored as Go's types write them, whichever way they came.
pub fn complete(ctx: &RequestContext, object: &mut Value) {
    if let Some(resource) = ctx.resource.as_deref()
        && let Some((schema, of)) = protobuf::type_of(resource)
    {
        decode::complete(schema, of, object);
    }
}

/// Takes what the object needs from shared pools: a Service's addresses and ports.
pub fn allocate(
    registry: &Registry,
    ctx: &RequestContext,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), Status> {
    if ctx.is("", "services") && ctx.subresource.is_empty() {
        registry.services().allocate(registry, object, old, ctx.dry_run)?;
    }
    Ok(())
}

/// The object that took something is stored, or will not be: nothing is held for it any more.
pub fn settle(registry: &Registry, ctx: &RequestContext, uid: &str) {
    if ctx.is("", "services") && ctx.subresource.is_empty() {
        registry.services().settle(uid);
    }
}
