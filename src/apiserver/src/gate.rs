//! Where admission meets the write path: mutating before the strategy, validating after it, both
//! inside the retry of an update.

use apimachinery::Status;
use futures::future::{BoxFuture, FutureExt};
use serde_json::Value;

use crate::attributes::RequestContext;

/// What a write does, in admission's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// `CREATE`
    Create,
    /// `UPDATE`
    Update,
    /// `DELETE`
    Delete,
    /// `CONNECT`
    Connect,
}

/// Admission, as the registry calls it.
pub trait Gate: Send + Sync {
    /// May change `object`.
    fn mutate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a mut Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>>;

    /// May refuse `object`, which is final.
    fn validate<'a>(
        &'a self,
        ctx: &'a RequestContext,
        operation: Operation,
        object: Option<&'a Value>,
        old: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>>;
}

/// No admission: the server's own writes.
pub struct Open;

impl Gate for Open {
    fn mutate<'a>(
        &'a self,
        _: &'a RequestContext,
        _: Operation,
        _: Option<&'a mut Value>,
        _: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async { Ok(()) }.boxed()
    }

    fn validate<'a>(
        &'a self,
        _: &'a RequestContext,
        _: Operation,
        _: Option<&'a Value>,
        _: Option<&'a Value>,
    ) -> BoxFuture<'a, Result<(), Status>> {
        async { Ok(()) }.boxed()
    }
}
