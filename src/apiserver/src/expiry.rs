//! Leases for objects that expire, shared by those written within a minute.
//!
//! Source: `leaseManager` of k8s.io/apiserver/pkg/storage/etcd3.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use store::{LeaseId, Store};

const REUSE: Duration = Duration::from_mins(1);
const REUSE_OBJECTS: u32 = 1000;

/// How long Events live.
pub const EVENT_TTL: Duration = Duration::from_hours(1);

struct Current {
    id: LeaseId,
    granted: Instant,
    objects: u32,
}

/// The lease that new events attach to.
#[derive(Default)]
pub struct Leases {
    current: Mutex<Option<Current>>,
}

impl Leases {
    fn reusable(&self) -> Option<LeaseId> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current.as_mut()?;
        if current.granted.elapsed() > REUSE || current.objects >= REUSE_OBJECTS {
            return None;
        }
        current.objects += 1;
        Some(current.id)
    }

    /// A lease that ends at least [`EVENT_TTL`] from now.
    pub async fn event(&self, store: &Store) -> Result<LeaseId, store::Error> {
        if let Some(id) = self.reusable() {
            return Ok(id);
        }
        let ttl_s = (EVENT_TTL + REUSE).as_secs() as i64;
        let id = store.lease_grant(ttl_s).await?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Current { id, granted: Instant::now(), objects: 1 });
        Ok(id)
    }
}
