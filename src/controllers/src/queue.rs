//! A work queue: each key is handled by one task at a time, again if it changed meanwhile, and later if
//! it failed.
//!
//! Source of behaviour: `k8s.io/client-go/util/workqueue` (deduplication, exponential back-off per key).

mod metrics;

use std::any::Any;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::time::{DelayQueue, delay_queue};

pub use metrics::register;

/// First delay after a failure.
const RETRY_MIN: Duration = Duration::from_millis(5);
/// Longest delay after failures.
const RETRY_MAX: Duration = Duration::from_mins(1);
/// Longest wait for another look: what is due later is looked at once a day until then. The queue of timers
/// panics on waits of more than two years, and users' deadlines may be any number of seconds.
const LOOK_MAX: Duration = Duration::from_hours(24);
/// Keys handled at the same time.
const WORKERS: usize = 32;

/// What a handled key needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until it changes.
    Done,
    /// Another look after this time.
    After(Duration),
}

/// What went wrong with a key: usually the API's answer.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A defect: the handling of one key panicked. The others' goes on.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
struct Panicked(String);

fn panicked(panic: &(dyn Any + Send)) -> Failure {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    Panicked(text.unwrap_or_else(|| "without a message".into())).into()
}

/// The delay before try number `failures` + 1.
fn backoff(failures: u32) -> Duration {
    RETRY_MIN.saturating_mul(1 << failures.min(20)).min(RETRY_MAX)
}

/// What is known of the keys between two looks.
struct State<'a, K> {
    name: &'a str,
    ready: VecDeque<K>,
    /// Since when each waits. A key that is being handled waits here and becomes ready when that is done.
    waiting: HashMap<K, Instant>,
    busy: HashSet<K>,
    delayed: DelayQueue<K>,
    /// At most one later look at each key: the last outcome decides when.
    timers: HashMap<K, delay_queue::Key>,
    failures: HashMap<K, u32>,
    measured: metrics::Queue,
}

impl<'a, K: Clone + Eq + Hash + Debug> State<'a, K> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            ready: VecDeque::new(),
            waiting: HashMap::new(),
            busy: HashSet::new(),
            delayed: DelayQueue::new(),
            timers: HashMap::new(),
            failures: HashMap::new(),
            measured: metrics::Queue::new(name),
        }
    }

    /// The next key to handle.
    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        if let Some(since) = self.waiting.remove(&key) {
            self.measured.taken(since, self.waiting.len());
        }
        self.busy.insert(key.clone());
        Some(key)
    }

    /// The key is to be handled, if it does not wait for that already.
    fn want(&mut self, key: K) {
        if self.waiting.contains_key(&key) {
            return;
        }
        self.waiting.insert(key.clone(), Instant::now());
        self.measured.added(self.waiting.len());
        if !self.busy.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// The time of a later look has come.
    fn expired(&mut self, key: K) {
        self.timers.remove(&key);
        self.want(key);
    }

    /// The key was handled, since `began`.
    fn handled(&mut self, key: K, outcome: Result<Next, Failure>, began: Instant) {
        self.measured.worked(began.elapsed());
        self.busy.remove(&key);
        if self.waiting.contains_key(&key) {
            self.ready.push_back(key.clone());
        }
        if let Some(timer) = self.timers.remove(&key) {
            self.delayed.remove(&timer);
        }
        let later = match outcome {
            Ok(next) => {
                self.failures.remove(&key);
                match next {
                    Next::Done => None,
                    Next::After(delay) => Some(delay),
                }
            }
            Err(error) => Some(self.failed(&key, &error)),
        };
        if let Some(delay) = later {
            self.timers.insert(key.clone(), self.delayed.insert(key, delay.min(LOOK_MAX)));
        }
    }

    /// How long the key waits after a failure.
    fn failed(&mut self, key: &K, error: &Failure) -> Duration {
        if error.is::<Panicked>() {
            tracing::error!(controller = self.name, ?key, %error, "trying again");
        }
        tracing::debug!(controller = self.name, ?key, %error, "trying again");
        let count = self.failures.entry(key.clone()).or_default();
        *count += 1;
        self.measured.again();
        backoff(*count - 1)
    }
}

/// Handles the keys that `changes` tells with `reconcile`, until `shutdown`.
pub async fn run<K, F>(
    name: &str,
    changes: impl Stream<Item = Vec<K>> + Send,
    shutdown: CancellationToken,
    reconcile: F,
) where
    K: Clone + Eq + Hash + Debug + Send + 'static,
    F: Fn(K) -> BoxFuture<'static, Result<Next, Failure>> + Send,
{
    let mut changes = std::pin::pin!(changes.fuse());
    let mut state: State<'_, K> = State::new(name);
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < WORKERS
            && let Some(key) = state.take()
        {
            let work = AssertUnwindSafe(reconcile(key.clone())).catch_unwind();
            let began = Instant::now();
            running.push(async move {
                let outcome = work.await.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
                (key, outcome, began)
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(keys) = changes.next() => keys.into_iter().for_each(|key| state.want(key)),
            Some(expired) = state.delayed.next(), if !state.delayed.is_empty() => {
                state.expired(expired.into_inner());
            }
            Some((key, outcome, began)) = running.next(), if !running.is_empty() => {
                state.handled(key, outcome, began);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_is_tried_again_and_others_go_on() {
        let seen: Arc<Mutex<Vec<&str>>> = Arc::default();
        let tries = Arc::new(AtomicU32::new(0));
        let stop = CancellationToken::new();
        let (log, count, end) = (seen.clone(), tries.clone(), stop.clone());
        let changes =
            futures::stream::iter([vec!["bad", "good"]]).chain(futures::stream::pending());
        run("test", changes, stop, move |key| {
            let (log, count, end) = (log.clone(), count.clone(), end.clone());
            Box::pin(async move {
                log.lock().unwrap().push(key);
                if key == "bad" && count.fetch_add(1, Ordering::Relaxed) < 3 {
                    return Err("not yet".into());
                }
                if key == "bad" {
                    end.cancel();
                }
                Ok(Next::Done)
            })
        })
        .await;
        assert_eq!(*seen.lock().unwrap(), ["bad", "good", "bad", "bad", "bad"]);
    }

    #[tokio::test]
    async fn queues_are_measured() {
        let stop = CancellationToken::new();
        let changes =
            futures::stream::iter([vec!["a", "b", "a"]]).chain(futures::stream::pending());
        let (end, done) = (stop.clone(), Arc::new(AtomicU32::new(0)));
        run("measured", changes, stop, move |_| {
            if done.fetch_add(1, Ordering::Relaxed) == 1 {
                end.cancel();
            }
            Box::pin(async { Ok(Next::Done) })
        })
        .await;
        let mut registry = prometheus_client::registry::Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"workqueue_adds_total{name="measured"} 2"#,
            r#"workqueue_depth{name="measured"} 0"#,
            r#"workqueue_queue_duration_seconds_count{name="measured"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_whose_handling_panics_is_tried_again_and_others_go_on() {
        let seen: Arc<Mutex<Vec<&str>>> = Arc::default();
        let stop = CancellationToken::new();
        let (log, end) = (seen.clone(), stop.clone());
        let changes =
            futures::stream::iter([vec!["bad", "good"]]).chain(futures::stream::pending());
        run("test", changes, stop, move |key| {
            let (log, end) = (log.clone(), end.clone());
            Box::pin(async move {
                let tries = {
                    let mut log = log.lock().unwrap();
                    log.push(key);
                    log.iter().filter(|seen| **seen == key).count()
                };
                assert!(key != "bad" || tries > 1, "a defect");
                if key == "bad" {
                    end.cancel();
                }
                Ok(Next::Done)
            })
        })
        .await;
        assert_eq!(*seen.lock().unwrap(), ["bad", "good", "bad"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_in_ages_is_looked_at_daily() {
        let began = tokio::time::Instant::now();
        let (stop, looks) = (CancellationToken::new(), Arc::new(AtomicU32::new(0)));
        let end = stop.clone();
        let changes = futures::stream::iter([vec!["far"]]).chain(futures::stream::pending());
        run("test", changes, stop, move |_| {
            if looks.fetch_add(1, Ordering::Relaxed) == 2 {
                end.cancel();
            }
            Box::pin(async { Ok(Next::After(Duration::MAX)) })
        })
        .await;
        assert_eq!(began.elapsed().as_secs() / 3600, 48);
    }

    #[test]
    fn delays_double_up_to_a_minute() {
        let cases = [(0, 5), (1, 10), (4, 80), (13, 40_960), (14, 60_000), (99, 60_000)];
        for (failures, ms) in cases {
            assert_eq!(backoff(failures), Duration::from_millis(ms));
        }
    }
}
