//! Levels with a number of seats, and the queues of those who wait for one.
//!
//! Each level may use the seats of its share, and those that others lend and do not use. Flows are dealt
//! to queues by shuffle sharding, so that one flow fills few of them, and the queues take turns by the
//! seats and time their requests have used.
//!
//! Source: `k8s.io/apiserver/pkg/util/flowcontrol/fairqueuing/queueset`.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use apimachinery::meta;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::zero::Zero;

/// Seats of all levels together: `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const SEATS: u64 = 400 + 200;
/// What a request is thought to last while it runs, in seconds.
const ESTIMATE: f64 = 0.003;

/// Why a request has no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The level has no queues, and all of its seats are taken.
    Seats,
    /// The queue is full.
    Queue,
    /// It has waited long enough.
    Time,
}

/// A level as it is now.
#[derive(Debug)]
pub struct LevelState {
    /// Its name.
    pub name: String,
    /// Its share of the seats.
    pub nominal: u64,
    /// What it has when others use all that it lends.
    pub lower: u64,
    /// What it has when it uses all that others lend.
    pub upper: u64,
    /// What it has now.
    pub current: u64,
    /// Its queues.
    pub queues: Vec<QueueState>,
}

/// A queue as it is now.
#[derive(Debug)]
pub struct QueueState {
    /// How many requests that waited in it run.
    pub running: u64,
    /// Work that was given to it, in seconds of one seat.
    pub work: f64,
    /// Whose requests wait in it (schema and flow), and since when.
    pub waiting: Vec<(String, SystemTime)>,
}

/// All levels.
#[derive(Default)]
pub struct Levels(Mutex<BTreeMap<String, Level>>);

#[derive(Debug, Default)]
struct Level {
    exempt: bool,
    /// Seats by its share.
    nominal: u64,
    /// Of these, how many others may use.
    lendable: u64,
    /// How many it may take from others.
    borrowable: u64,
    queues: Vec<Queue>,
    hand: usize,
    length: usize,
    running: u64,
    /// How far the queues have come.
    clock: f64,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// How many that waited in it run.
    running: u64,
    /// Work that was given to it.
    work: f64,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    flow: String,
    since: SystemTime,
    sender: oneshot::Sender<Seat>,
}

/// A seat that is taken; dropping it gives it back.
pub struct Seat {
    levels: Arc<Levels>,
    level: String,
    queue: Option<usize>,
    since: Instant,
    /// Whether it is counted among the running ones; one that nobody took is not.
    counted: bool,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").field("level", &self.level).finish_non_exhaustive()
    }
}

impl Level {
    fn parse(object: &Value, total: i64) -> Self {
        let spec = &object["spec"];
        if spec["type"] == "Exempt" {
            return Self { exempt: true, ..Self::default() };
        }
        let limited = &spec["limited"];
        let shares = limited["nominalConcurrencyShares"].int().max(0) as u64;
        let nominal = (SEATS * shares).div_ceil(total.max(1) as u64);
        let percent = |value: &Value| value.as_u64().map(|percent| nominal * percent / 100);
        let queuing = &limited["limitResponse"]["queuing"];
        let queues = match limited["limitResponse"]["type"].text() {
            "Queue" => queuing["queues"].as_u64().unwrap_or(64) as usize,
            _ => 0,
        };
        Self {
            exempt: false,
            nominal,
            lendable: percent(&limited["lendablePercent"]).unwrap_or(0),
            borrowable: percent(&limited["borrowingLimitPercent"]).unwrap_or(u64::MAX),
            queues: (0..queues).map(|_| Queue::default()).collect(),
            hand: queuing["handSize"].as_u64().unwrap_or(8) as usize,
            length: queuing["queueLengthLimit"].as_u64().unwrap_or(50) as usize,
            running: 0,
            clock: 0.0,
        }
    }

    fn is_waited_for(&self) -> bool {
        self.queues.iter().any(|queue| !queue.waiting.is_empty())
    }

    /// The shortest queue of the flow's hand.
    fn deal(&self, flow: &str) -> usize {
        let mut hasher = DefaultHasher::new();
        flow.hash(&mut hasher);
        let mut rest = hasher.finish();
        let mut deck: Vec<usize> = (0..self.queues.len()).collect();
        let mut best: Option<usize> = None;
        for _ in 0..self.hand.min(deck.len()) {
            let card = deck.swap_remove((rest % deck.len() as u64) as usize);
            rest = rest.rotate_right(7) ^ 0x9e37_79b9_7f4a_7c15;
            let length = |index: usize| self.queues[index].waiting.len();
            if best.is_none_or(|best| length(card) < length(best)) {
                best = Some(card);
            }
        }
        best.unwrap_or_default()
    }

    /// The waiting request whose queue has had the least, and its queue.
    fn next(&mut self) -> Option<(usize, oneshot::Sender<Seat>)> {
        let waiting = self.queues.iter().enumerate().filter(|(_, q)| !q.waiting.is_empty());
        let (index, _) = waiting.min_by(|(_, a), (_, b)| a.work.total_cmp(&b.work))?;
        let queue = &mut self.queues[index];
        self.clock = self.clock.max(queue.work);
        queue.work += ESTIMATE;
        queue.waiting.pop_front().map(|waiting| (index, waiting.sender))
    }
}

/// How many seats `level` may use now.
fn limit(levels: &BTreeMap<String, Level>, level: &str) -> u64 {
    let Some(own) = levels.get(level) else { return 0 };
    let lent: u64 = levels
        .iter()
        .filter(|(name, other)| *name != level && !other.exempt && !other.is_waited_for())
        .map(|(_, other)| other.lendable.min(other.nominal.saturating_sub(other.running)))
        .sum();
    own.nominal.saturating_add(lent.min(own.borrowable)).max(1)
}

impl Levels {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Level>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All levels as they are now, by name.
    pub fn state(&self) -> Vec<LevelState> {
        let levels = self.lock();
        let lendable = |own: &str| -> u64 {
            levels.iter().filter(|(name, _)| *name != own).map(|(_, other)| other.lendable).sum()
        };
        let state = levels.iter().map(|(name, level)| {
            let queues = level.queues.iter().map(|queue| QueueState {
                running: queue.running,
                work: queue.work,
                waiting: queue.waiting.iter().map(|w| (w.flow.clone(), w.since)).collect(),
            });
            LevelState {
                name: name.clone(),
                nominal: level.nominal,
                lower: level.nominal - level.lendable.min(level.nominal),
                upper: level.nominal.saturating_add(level.borrowable.min(lendable(name))),
                current: if level.exempt { level.nominal } else { limit(&levels, name) },
                queues: queues.collect(),
            }
        });
        state.collect()
    }

    /// Takes over what the objects say; who runs or waits goes on doing so.
    pub fn configure(self: &Arc<Self>, objects: &[Value]) {
        let total: i64 = objects
            .iter()
            .filter(|object| object["spec"]["type"] == "Limited")
            .map(|object| object["spec"]["limited"]["nominalConcurrencyShares"].int().max(0))
            .sum();
        let mut levels = self.lock();
        let mut old = std::mem::take(&mut *levels);
        for object in objects {
            let name = meta::name(object);
            let mut level = Level::parse(object, total);
            if let Some(before) = old.remove(name) {
                level.running = before.running;
                level.clock = before.clock;
                // With other queues, those who wait are let through rather than dealt again.
                if before.queues.len() == level.queues.len() {
                    level.queues = before.queues;
                } else {
                    for waiting in before.queues.into_iter().flat_map(|queue| queue.waiting) {
                        self.give(name, &mut level, None, waiting.sender);
                    }
                }
            }
            levels.insert(name.to_owned(), level);
        }
    }

    /// Takes a seat of `level` for a request of `flow` (asked for only where it matters), waiting at most `wait`; none is needed of an
    /// exempt level.
    pub async fn enter(
        self: &Arc<Self>,
        level: &str,
        flow: impl Fn() -> String,
        wait: Duration,
    ) -> Result<Option<Seat>, Full> {
        let (ticket, queue, turn) = {
            let mut levels = self.lock();
            let limit = limit(&levels, level);
            let Some(own) = levels.get_mut(level) else { return Ok(None) };
            if own.exempt {
                return Ok(None);
            }
            if own.running < limit && !own.is_waited_for() {
                own.running += 1;
                return Ok(Some(self.seat(level, None)));
            }
            if own.queues.is_empty() {
                return Err(Full::Seats);
            }
            let flow = flow();
            let index = own.deal(&flow);
            let (length, clock) = (own.length, own.clock);
            let queue = &mut own.queues[index];
            if queue.waiting.len() >= length {
                return Err(Full::Queue);
            }
            if queue.waiting.is_empty() {
                queue.work = queue.work.max(clock);
            }
            let (sender, receiver) = oneshot::channel();
            let ticket = queue.waiting.back().map_or(0, |last| last.ticket + 1);
            queue.waiting.push_back(Waiting { ticket, flow, since: SystemTime::now(), sender });
            (ticket, index, receiver)
        };
        // A client that goes away is passed over when its turn comes; a seat that it was given in the
        // same moment comes back by itself.
        match tokio::time::timeout(wait, turn).await {
            Ok(Ok(seat)) => Ok(Some(seat)),
            Ok(Err(_)) => Ok(None),
            Err(_) => {
                let mut levels = self.lock();
                if let Some(queue) = levels.get_mut(level).and_then(|own| own.queues.get_mut(queue))
                {
                    queue.waiting.retain(|other| other.ticket != ticket);
                }
                Err(Full::Time)
            }
        }
    }

    fn seat(self: &Arc<Self>, level: &str, queue: Option<usize>) -> Seat {
        Seat {
            levels: self.clone(),
            level: level.to_owned(),
            queue,
            since: Instant::now(),
            counted: true,
        }
    }

    /// Gives a seat to one who waits, if they still do.
    fn give(
        self: &Arc<Self>,
        name: &str,
        level: &mut Level,
        queue: Option<usize>,
        sender: oneshot::Sender<Seat>,
    ) {
        match sender.send(self.seat(name, queue)) {
            Ok(()) => {
                level.running += 1;
                if let Some(queue) = queue.and_then(|index| level.queues.get_mut(index)) {
                    queue.running += 1;
                }
            }
            Err(mut seat) => seat.counted = false,
        }
    }

    /// Gives seats that are free to those who wait.
    fn dispatch(self: &Arc<Self>, levels: &mut BTreeMap<String, Level>) {
        let names: Vec<String> = levels
            .iter()
            .filter(|(_, level)| level.is_waited_for())
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            loop {
                let limit = limit(levels, &name);
                let Some(level) = levels.get_mut(&name).filter(|level| level.running < limit)
                else {
                    break;
                };
                let Some((queue, sender)) = level.next() else { break };
                self.give(&name, level, Some(queue), sender);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut levels = self.levels.lock();
        if let Some(level) = levels.get_mut(&self.level) {
            level.running = level.running.saturating_sub(1);
            let used = self.since.elapsed().as_secs_f64() - ESTIMATE;
            if let Some(queue) = self.queue.and_then(|index| level.queues.get_mut(index)) {
                queue.work = (queue.work + used).max(0.0);
                queue.running = queue.running.saturating_sub(1);
            }
        }
        self.levels.dispatch(&mut levels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const WAIT: Duration = Duration::from_secs(30);

    fn levels(shares: i64, queues: i64, length: i64) -> Arc<Levels> {
        let kind = if queues > 0 { "Queue" } else { "Reject" };
        let limited = |name: &str, shares: i64| {
            json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": 0,
                "limitResponse": {"type": kind, "queuing":
                    {"queues": queues, "handSize": 1, "queueLengthLimit": length}}}}})
        };
        let exempt = json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt"}});
        let all = Arc::new(Levels::default());
        all.configure(&[limited("small", shares), limited("rest", 600 - shares), exempt]);
        all
    }

    #[tokio::test]
    async fn a_level_without_queues_refuses_what_is_too_much() {
        let levels = levels(2, 0, 0);
        let first = levels.enter("small", || "a".into(), WAIT).await;
        let second = levels.enter("small", || "a".into(), WAIT).await;
        assert!(first.is_ok() && second.is_ok());
        assert!(levels.enter("small", || "a".into(), WAIT).await.is_err());
        assert!(levels.enter("exempt", || "a".into(), WAIT).await.is_ok_and(|seat| seat.is_none()));
        drop(first);
        assert!(levels.enter("small", || "a".into(), WAIT).await.is_ok());
    }

    #[tokio::test]
    async fn a_flood_does_not_hold_up_another_flow() {
        let levels = levels(1, 8, 100);
        let running = levels.enter("small", || "flood".into(), WAIT).await.expect("a seat");
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        let dealt = |flow: &str| levels.lock()["small"].deal(flow);
        let own = dealt("flood");
        let quiet = (0..100)
            .map(|n| format!("quiet-{n}"))
            .find(|flow| dealt(flow) != own)
            .expect("another queue");
        for flow in std::iter::repeat_n("flood".to_owned(), 20).chain([quiet.clone()]) {
            let (levels, order) = (levels.clone(), order.clone());
            tasks.spawn(async move {
                let seat = levels.enter("small", || flow.clone(), WAIT).await.expect("its turn");
                order.lock().expect("no panic").push(flow);
                drop(seat);
            });
            tokio::task::yield_now().await;
        }
        drop(running);
        while tasks.join_next().await.is_some() {}
        let order = order.lock().expect("no panic");
        let place = order.iter().position(|flow| *flow == quiet).expect("it was served");
        assert!(place < 5, "{order:?}");
    }

    #[tokio::test]
    async fn who_goes_away_leaves_no_seat_taken() {
        let levels = levels(1, 1, 10);
        let running = levels.enter("small", || "a".into(), WAIT).await.expect("a seat");
        let gone = tokio::spawn({
            let levels = levels.clone();
            async move { levels.enter("small", || "a".into(), WAIT).await.map(drop) }
        });
        tokio::task::yield_now().await;
        // The turn comes, and nobody is there to take it.
        drop(running);
        gone.abort();
        let _ = gone.await;
        assert_eq!(levels.lock()["small"].running, 0);
        assert!(levels.enter("small", || "a".into(), WAIT).await.is_ok());
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let levels = levels(1, 1, 1);
        let _running = levels.enter("small", || "a".into(), WAIT).await.expect("a seat");
        let waiting = tokio::spawn({
            let levels = levels.clone();
            async move { levels.enter("small", || "a".into(), Duration::from_millis(20)).await.is_err() }
        });
        tokio::task::yield_now().await;
        assert!(levels.enter("small", || "b".into(), WAIT).await.is_err(), "the queue is full");
        assert!(waiting.await.expect("no panic"), "the wait is over");
        assert!(!levels.lock()["small"].is_waited_for());
    }
}
