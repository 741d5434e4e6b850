//! How the queues fare, under the names that client-go's work queues have.
//!
//! Source: `k8s.io/component-base/metrics/prometheus/workqueue`.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Buckets, in seconds: powers of ten.
const SECONDS: [f64; 10] =
    [0.000_000_01, 0.000_000_1, 0.000_001, 0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    name: String,
}

#[derive(Clone)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

type Counters = Family<Name, Counter<u64, AtomicU64>>;
type Gauges = Family<Name, Gauge<i64, AtomicI64>>;
type Histograms = Family<Name, Histogram, Buckets>;

/// All queues of this process.
struct All {
    adds: Counters,
    depth: Gauges,
    waited: Histograms,
    worked: Histograms,
    retries: Counters,
}

static ALL: LazyLock<All> = LazyLock::new(|| All {
    adds: Family::default(),
    depth: Family::default(),
    waited: Family::new_with_constructor(Buckets),
    worked: Family::new_with_constructor(Buckets),
    retries: Family::default(),
});

/// Lets `registry` tell how the queues of this process fare.
pub fn register(registry: &mut Registry) {
    let all = &*ALL;
    registry.register(
        "workqueue_adds",
        "Total number of adds handled by workqueue",
        all.adds.clone(),
    );
    registry.register("workqueue_depth", "Current depth of workqueue", all.depth.clone());
    registry.register(
        "workqueue_queue_duration_seconds",
        "How long in seconds an item stays in workqueue before being requested",
        all.waited.clone(),
    );
    registry.register(
        "workqueue_work_duration_seconds",
        "How long in seconds processing an item from workqueue takes",
        all.worked.clone(),
    );
    registry.register(
        "workqueue_retries",
        "Total number of retries handled by workqueue",
        all.retries.clone(),
    );
}

/// One queue.
pub struct Queue {
    adds: Counter<u64, AtomicU64>,
    depth: Gauge<i64, AtomicI64>,
    waited: Histogram,
    worked: Histogram,
    retries: Counter<u64, AtomicU64>,
}

impl Queue {
    /// The queue of this name.
    pub fn new(name: &str) -> Self {
        let (all, name) = (&*ALL, Name { name: name.to_owned() });
        Self {
            adds: all.adds.get_or_create(&name).clone(),
            depth: all.depth.get_or_create(&name).clone(),
            waited: all.waited.get_or_create(&name).clone(),
            worked: all.worked.get_or_create(&name).clone(),
            retries: all.retries.get_or_create(&name).clone(),
        }
    }

    /// A key came in; so many wait now.
    pub fn added(&self, depth: usize) {
        self.adds.inc();
        self.depth.set(depth as i64);
    }

    /// A key that had come in at `since` is taken out; so many wait still.
    pub fn taken(&self, since: Instant, depth: usize) {
        self.waited.observe(since.elapsed().as_secs_f64());
        self.depth.set(depth as i64);
    }

    /// A key was handled.
    pub fn worked(&self, took: Duration) {
        self.worked.observe(took.as_secs_f64());
    }

    /// A key is to be handled again, as it failed.
    pub fn again(&self) {
        self.retries.inc();
    }
}
