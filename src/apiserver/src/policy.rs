//! The seam between the write path and each kind's own rules: defaults, strategy, validation.

use apimachinery::Status;
use serde_json::Value;

use crate::attributes::RequestContext;
use crate::registry::Registry;

pub use crate::defaults::set_defaults;

pub use crate::strategy::{prepare_for_create, prepare_for_update};

pub use crate::validation::{validate_create, validate_update};

pub use crate::warnings::warn;

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
