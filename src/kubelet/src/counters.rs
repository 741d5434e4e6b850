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
    /// Pods that only the runtime knew.
    pub orphans: AtomicU64,
    /// Static pods that came again while what they were before was ending.
    pub restarted: AtomicU64,
    /// Pods ended for what they hold or what the node lacks, by upstream's name of that.
    evictions: Mutex<BTreeMap<&'static str, u64>>,
    /// Pods that the node did not take, by reason.
    refusals: Mutex<BTreeMap<String, u64>>,
}

impl Counters {
    /// Adds one.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a pod that was ended for `signal`.
    pub fn evicted(&self, signal: &'static str) {
        *lock(&self.evictions).entry(signal).or_default() += 1;
    }

    /// Counts a pod that the node did not take.
    pub fn refused(&self, reason: &str) {
        *lock(&self.refusals).entry(reason.to_owned()).or_default() += 1;
    }

    /// Refusals so far, by reason.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        lock(&self.refusals).clone()
    }

    /// Evictions so far, by signal.
    pub fn evictions(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.evictions).clone()
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
        *lock(&self.probes).entry(key).or_default() += 1;
    }

    /// The results of probes so far.
    pub fn probes(&self) -> BTreeMap<Probed, u64> {
        lock(&self.probes).clone()
    }

    /// The pod with this uid is gone.
    pub fn forget(&self, uid: &str) {
        lock(&self.probes).retain(|key, _| key.uid != uid);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
