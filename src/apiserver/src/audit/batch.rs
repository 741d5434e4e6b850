//! Events that wait to be told, many at a time.
//!
//! Source: `k8s.io/apiserver/plugin/pkg/audit/buffered` and the flags `--audit-…-batch-…`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Whether requests wait until their events are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They do not; events are collected.
    #[default]
    Batch,
    /// They do; what cannot be told is lost.
    Blocking,
    /// They do, and one whose beginning cannot be told fails.
    BlockingStrict,
}

/// How many batches may be told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    /// So many a second.
    pub per_second: f64,
    /// So many at once after a pause.
    pub burst: f64,
}

/// How events are collected.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Events that wait at most.
    pub buffer_size: usize,
    /// Events of one batch at most.
    pub max_size: usize,
    /// How long an event waits for others.
    pub max_wait: Duration,
    /// The pace of batches; none is as fast as can be.
    pub throttle: Option<Throttle>,
}

impl Options {
    /// What is usual for a log: each event is a batch.
    pub fn log() -> Self {
        Self { buffer_size: 10_000, max_size: 1, max_wait: Duration::ZERO, throttle: None }
    }

    /// What is usual for another server.
    pub fn webhook() -> Self {
        Self {
            buffer_size: 10_000,
            max_size: 400,
            max_wait: Duration::from_secs(30),
            throttle: Some(Throttle { per_second: 10.0, burst: 15.0 }),
        }
    }
}

/// Where events wait.
pub struct Queue {
    sender: mpsc::Sender<Value>,
    waiting: Mutex<Option<Waiting>>,
}

impl Queue {
    /// An empty queue.
    pub fn new(options: &Options) -> Self {
        let (sender, receiver) = mpsc::channel(options.buffer_size.max(1));
        let waiting = Waiting {
            receiver,
            max_size: options.max_size.max(1),
            max_wait: options.max_wait,
            pace: options.throttle.map(Pace::new),
        };
        Self { sender, waiting: Mutex::new(Some(waiting)) }
    }

    /// Takes an event; false when too many wait.
    pub fn push(&self, event: Value) -> bool {
        self.sender.try_send(event).is_ok()
    }

    /// The other end, once.
    pub fn take(&self) -> Option<Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The end of a queue from which events are told.
pub struct Waiting {
    receiver: mpsc::Receiver<Value>,
    max_size: usize,
    max_wait: Duration,
    pace: Option<Pace>,
}

impl Waiting {
    /// The next events: as many as go into one batch, or those of the longest wait; none when `shutdown`
    /// came first.
    pub async fn next(&mut self, shutdown: &CancellationToken) -> Vec<Value> {
        let mut batch = Vec::new();
        let mut until = None;
        while batch.len() < self.max_size {
            let room = self.max_size - batch.len();
            let timer = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = timer => break,
                count = self.receiver.recv_many(&mut batch, room) => if count == 0 { break },
            }
            until = until.or_else(|| Some(Instant::now() + self.max_wait));
        }
        if let (Some(pace), false) = (&mut self.pace, batch.is_empty()) {
            let wait = tokio::time::sleep(pace.take());
            let _ = shutdown.run_until_cancelled(wait).await;
        }
        batch
    }

    /// What is left when no more may come, a batch at a time; an empty one at the end.
    pub async fn rest(&mut self) -> Vec<Value> {
        self.receiver.close();
        let mut rest = Vec::new();
        self.receiver.recv_many(&mut rest, self.max_size).await;
        rest
    }
}

/// How many batches may be told now; what is not used is kept up to the burst.
struct Pace {
    throttle: Throttle,
    batches: f64,
    since: Instant,
}

impl Pace {
    fn new(throttle: Throttle) -> Self {
        Self { throttle, batches: throttle.burst, since: Instant::now() }
    }

    /// Takes one; says how long to wait before it may be used.
    fn take(&mut self) -> Duration {
        let Throttle { per_second, burst } = self.throttle;
        let passed = self.since.elapsed();
        self.since += passed;
        self.batches = (self.batches + passed.as_secs_f64() * per_second).min(burst);
        self.batches -= 1.0;
        Duration::from_secs_f64((-self.batches).max(0.0) / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn batches_have_a_pace() {
        let mut pace = Pace::new(Throttle { per_second: 10.0, burst: 15.0 });
        let waits: Vec<Duration> = (0..17).map(|_| pace.take()).collect();
        assert!(waits[..15].iter().all(Duration::is_zero), "{waits:?}");
        assert_eq!(waits[15..], [Duration::from_millis(100), Duration::from_millis(200)]);
        // A second later there are ten again.
        tokio::time::advance(Duration::from_millis(1200)).await;
        assert_eq!((0..10).map(|_| pace.take()).max(), Some(Duration::ZERO));
        assert!(!pace.take().is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn events_wait_for_others_and_not_for_ever() {
        let options = Options { buffer_size: 4, max_size: 2, ..Options::webhook() };
        let queue = Queue::new(&options);
        let pushed: Vec<bool> = (0..5).map(|number| queue.push(Value::from(number))).collect();
        assert_eq!(pushed, [true, true, true, true, false], "the buffer has a size");
        let mut waiting = queue.take().expect("it is there");
        let shutdown = CancellationToken::new();
        assert_eq!(waiting.next(&shutdown).await, [0, 1]);
        assert_eq!(waiting.next(&shutdown).await, [2, 3]);
        assert!(queue.push(Value::from(5)));
        let began = Instant::now();
        assert_eq!(waiting.next(&shutdown).await, [5]);
        assert_eq!(began.elapsed(), Duration::from_secs(30));
        assert!(queue.push(Value::from(6)));
        shutdown.cancel();
        assert_eq!(waiting.rest().await, [6]);
        assert!(waiting.rest().await.is_empty() && !queue.push(Value::from(7)));
    }
}
