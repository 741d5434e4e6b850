//! What happened on the node, counted for `/metrics`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;

use crate::pod;

/// What a probe's results are counted by, in the order of the metric's labels.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probed {
    /// The container.
    pub container: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Its uid.
    pub uid: String,
    /// `Startup`, `Liveness` or `Readiness`.
    pub kind: &'static str,
    /// `successful`, `failed` or `unknown`.
    pub result: &'static str,
}

/// Counters since the kubelet's start.
#[derive(Default)]
pub struct Counters {
    probes: Mutex<BTreeMap<Probed, u64>>,
    /// Containers started, and those that could not be.
    pub started: AtomicU64,
    /// Starts that failed.
    pub start_errors: AtomicU64,
    /// Sandboxes started.
    pub sandboxes: AtomicU64,
    /// Sandboxes that could not be started.
    pub sandbox_errors: AtomicU64,
    /// Pods ended for what they hold or what the node lacks.
    pub evictions: AtomicU64,
}

impl Counters {
    /// Adds one.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the result of a probe.
    pub fn probed(&self, of: &Pod, container: &str, kind: &'static str, result: &'static str) {
        let key = Probed {
            container: container.to_owned(),
            namespace: pod::namespace(of).to_owned(),
            pod: pod::name(of).to_owned(),
            uid: pod::uid(of).to_owned(),
            kind,
            result,
        };
        *self.lock().entry(key).or_default() += 1;
    }

    /// The results of probes so far.
    pub fn probes(&self) -> BTreeMap<Probed, u64> {
        self.lock().clone()
    }

    /// The pod with this uid is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().retain(|key, _| key.uid != uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Probed, u64>> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
