//! Changing an object's stored text, below strategies and validation.

use apimachinery::Status;
use bytes::Bytes;
use store::{Txn, TxnOutcome};

use super::{Registry, WRITE_ATTEMPTS, resource_of, store_failure};
use crate::attributes::RequestContext;
use crate::object::Object;

impl Registry {
    /// Writes what `change` makes of the object of a built-in resource that is named in `ctx`, again on each
    /// conflict: no strategy, no validation (`GuaranteedUpdate`). It is tried first with what the cache has, and
    /// only what holds of the latest state is refused.
    pub async fn rewrite(
        &self,
        ctx: &RequestContext,
        change: &(dyn Fn(&Object) -> Result<Bytes, Status> + Send + Sync),
    ) -> Result<(), Status> {
        let resource = resource_of(ctx)?;
        let key = Bytes::from(resource.key(&ctx.namespace, &ctx.name));
        let mut current = self.current(resource, ctx);
        let mut latest = false;
        for _ in 0..WRITE_ATTEMPTS {
            let changed = match &current {
                Some(before) => change(before).map(|value| (before.revision, value)),
                None => Err(Status::not_found(&resource.group, &resource.plural, &ctx.name)),
            };
            let (mod_revision, value) = match changed {
                Ok(changed) => changed,
                Err(refusal) if latest => return Err(refusal),
                Err(_) => {
                    self.sync().await?;
                    current = self.current(resource, ctx);
                    latest = true;
                    continue;
                }
            };
            if ctx.dry_run {
                return Ok(());
            }
            let txn = Txn::swap(key.clone(), value, mod_revision);
            match self.inner.store.txn(txn).await.map_err(store_failure)? {
                TxnOutcome::Committed { revision } => {
                    self.inner.caches.reached(revision).await;
                    return Ok(());
                }
                TxnOutcome::Conflict { current: found, .. } => {
                    current = self.found(resource, found)?;
                    latest = true;
                }
            }
        }
        Err(Self::restless(resource, ctx))
    }
}
