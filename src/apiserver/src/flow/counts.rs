//! What priority and fairness counts: requests that run and wait, by schema and level, and the levels' limits.
//!
//! Source: `k8s.io/apiserver/pkg/util/flowcontrol/metrics`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::queue::{Full, LevelState, Levels};

/// Buckets of waits and executions, in seconds.
const SECONDS: [f64; 15] =
    [0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    priority_level: String,
    flow_schema: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    priority_level: String,
    flow_schema: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Wait {
    priority_level: String,
    flow_schema: String,
    execute: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Execution {
    priority_level: String,
    flow_schema: String,
    r#type: &'static str,
}

#[derive(Clone)]
struct Buckets;

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(SECONDS)
    }
}

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

/// The counts of all schemas.
#[derive(Clone)]
pub struct Counts {
    dispatched: Family<Of, Count>,
    rejected: Family<Rejection, Count>,
    executing: Family<Of, Level>,
    waiting: Family<Of, Level>,
    waits: Family<Wait, Histogram, Buckets>,
    executions: Family<Execution, Histogram, Buckets>,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            dispatched: Family::default(),
            rejected: Family::default(),
            executing: Family::default(),
            waiting: Family::default(),
            waits: Family::new_with_constructor(Buckets),
            executions: Family::new_with_constructor(Buckets),
        }
    }
}

/// The counts of one schema's requests, at hand.
pub struct Tally {
    /// Requests that began to run.
    pub dispatched: Count,
    /// Requests that found all seats taken, the queue full, or waited too long, in this order.
    rejected: [Count; 3],
    /// Requests that went away while they waited.
    pub cancelled: Count,
    /// Requests that run.
    pub executing: Level,
    waiting: Level,
    waits: [Histogram; 2],
    executions: Histogram,
}

/// One request that is counted as long as this is held.
pub struct Held(Level);

impl Held {
    fn new(level: &Level) -> Self {
        level.inc();
        Self(level.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request that waits; it was cancelled unless told otherwise.
pub struct Pending<'t> {
    tally: &'t Tally,
    _waiting: Held,
    over: bool,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.tally.cancelled.inc();
        }
    }
}

impl Pending<'_> {
    /// The wait is over, one way or the other.
    pub fn over(mut self) {
        self.over = true;
    }
}

impl Tally {
    /// A request begins to wait for its turn.
    pub fn wait(&self) -> Pending<'_> {
        Pending { tally: self, _waiting: Held::new(&self.waiting), over: false }
    }

    /// A request begins to run after it `waited`.
    pub fn run(&self, waited: Duration) -> Held {
        self.dispatched.inc();
        self.waits[0].observe(waited.as_secs_f64());
        Held::new(&self.executing)
    }

    /// A request has run.
    pub fn ran(&self, took: Duration) {
        self.executions.observe(took.as_secs_f64());
    }

    /// A request is refused after it `waited`.
    pub fn refuse(&self, why: Full, waited: Duration) {
        self.rejected[why as usize].inc();
        self.waits[1].observe(waited.as_secs_f64());
    }

    /// How many were refused, and how many of these after they had waited.
    pub fn refused(&self) -> (u64, u64) {
        let [seats, queue, time] = self.rejected.each_ref().map(Counter::get);
        (seats + queue, time)
    }
}

impl Counts {
    /// The counts of `schema`, whose requests belong to `level`.
    pub fn of(&self, schema: &str, level: &str) -> Tally {
        let (priority_level, flow_schema) = (level.to_owned(), schema.to_owned());
        let of = Of { priority_level: priority_level.clone(), flow_schema: flow_schema.clone() };
        let rejected = |reason| {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            let labels = Rejection { priority_level, flow_schema, reason };
            self.rejected.get_or_create(&labels).clone()
        };
        let waits = |execute| {
            let (priority_level, flow_schema) = (priority_level.clone(), flow_schema.clone());
            self.waits.get_or_create(&Wait { priority_level, flow_schema, execute }).clone()
        };
        let execution = Execution {
            priority_level: priority_level.clone(),
            flow_schema: flow_schema.clone(),
            r#type: "regular",
        };
        Tally {
            dispatched: self.dispatched.get_or_create(&of).clone(),
            rejected: ["concurrency-limit", "queue-full", "time-out"].map(rejected),
            cancelled: rejected("cancelled"),
            executing: self.executing.get_or_create(&of).clone(),
            waiting: self.waiting.get_or_create(&of).clone(),
            waits: ["true", "false"].map(waits),
            executions: self.executions.get_or_create(&execution).clone(),
        }
    }

    /// Tells of them, and of the limits of `levels`.
    pub fn register(&self, levels: &Arc<Levels>, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("apiserver_flowcontrol");
        registry.register(
            "dispatched_requests",
            "Number of requests executed by API Priority and Fairness subsystem",
            self.dispatched.clone(),
        );
        registry.register(
            "rejected_requests",
            "Number of requests rejected by API Priority and Fairness subsystem",
            self.rejected.clone(),
        );
        registry.register(
            "current_inqueue_requests",
            "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
            self.waiting.clone(),
        );
        registry.register(
            "current_executing_requests",
            "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
            self.executing.clone(),
        );
        // Here every request has one seat.
        registry.register(
            "current_executing_seats",
            "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
            self.executing.clone(),
        );
        registry.register(
            "request_concurrency_in_use",
            "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
            self.executing.clone(),
        );
        registry.register(
            "request_wait_duration_seconds",
            "Length of time a request spent waiting in its queue",
            self.waits.clone(),
        );
        registry.register(
            "request_execution_seconds",
            "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem",
            self.executions.clone(),
        );
        registry.register_collector(Box::new(Limits(levels.clone())));
    }
}

/// The limits of the levels.
struct Limits(Arc<Levels>);

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Limits")
    }
}

#[derive(Debug, EncodeLabelSet)]
struct OfLevel {
    priority_level: String,
}

/// A limit: its name, what it is, and where it stands.
type Limit = (&'static str, &'static str, fn(&LevelState) -> u64);

const LIMITS: [Limit; 5] = [
    (
        "nominal_limit_seats",
        "Nominal number of execution seats configured for each priority level",
        |level| level.nominal,
    ),
    // The name that it had first.
    (
        "request_concurrency_limit",
        "Nominal number of execution seats configured for each priority level",
        |level| level.nominal,
    ),
    (
        "lower_limit_seats",
        "Configured lower bound on number of execution seats available to each priority level",
        |level| level.lower,
    ),
    (
        "upper_limit_seats",
        "Configured upper bound on number of execution seats available to each priority level",
        |level| level.upper,
    ),
    (
        "current_limit_seats",
        "current derived number of execution seats available to each priority level",
        |level| level.current,
    ),
];

impl Collector for Limits {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let levels = self.0.state();
        for (name, help, limit) in LIMITS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for level in &levels {
                let labels = OfLevel { priority_level: level.name.clone() };
                let value = i64::try_from(limit(level)).unwrap_or(i64::MAX);
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
