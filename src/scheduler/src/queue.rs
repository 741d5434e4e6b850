//! The pods that wait for a node: those to try now, those that wait for their back-off to end, and
//! those that wait for something to happen that could make room for them.
//!
//! Source: `pkg/scheduler/backend/queue/scheduling_queue.go`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::extender::EXTENDER;
use crate::framework::{Event, Profiles};
use crate::pod::PodInfo;

/// Nothing waits longer than this for something to happen.
const UNSCHEDULABLE_MAX: Duration = Duration::from_mins(5);
/// How often it is looked for who has waited that long.
const FLUSH_EVERY: Duration = Duration::from_secs(30);

/// A waiting pod.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// How often it was tried.
    pub attempts: u32,
    /// When it came to the queue first.
    pub since: Instant,
    /// The plugins that rejected it last time, or that keep it from being tried at all.
    pub rejected_by: BTreeSet<&'static str>,
    /// Something other than the lack of a node went wrong; it serves its back-off to the end.
    pub errored: bool,
    /// It has not been let in yet.
    pub gated: bool,
    last_tried: Instant,
}

impl Waiting {
    /// When it may be tried again.
    fn ready_at(&self, (first, most): (Duration, Duration)) -> Instant {
        let doublings = self.attempts.saturating_sub(1).min(16);
        let backoff = if self.attempts == 0 {
            Duration::ZERO
        } else {
            first.saturating_mul(2_u32.pow(doublings)).min(most)
        };
        self.last_tried + backoff
    }
}

/// More important pods first, then those that have waited longer.
type ActiveKey = (Reverse<i32>, u64);
type BackoffKey = (Instant, u64);

#[derive(Clone, Copy, Debug)]
enum Place {
    Active(ActiveKey),
    Backoff(BackoffKey),
    Unschedulable,
}

#[derive(Debug)]
struct Entry {
    waiting: Waiting,
    place: Place,
}

/// See the module.
#[derive(Debug)]
pub struct Queue {
    /// How long a pod waits after failures, at first and at most.
    backoffs: (Duration, Duration),
    entries: HashMap<String, Entry>,
    active: BTreeMap<ActiveKey, String>,
    backoff: BTreeMap<BackoffKey, String>,
    unschedulable: BTreeSet<String>,
    arrivals: u64,
    flush_at: Option<Instant>,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new((Duration::from_secs(1), Duration::from_secs(10)))
    }
}

impl Queue {
    /// An empty queue whose pods wait so long after failures, at first and at most.
    pub fn new(backoffs: (Duration, Duration)) -> Self {
        Self {
            backoffs,
            entries: HashMap::new(),
            active: BTreeMap::new(),
            backoff: BTreeMap::new(),
            unschedulable: BTreeSet::new(),
            arrivals: 0,
            flush_at: None,
        }
    }

    /// The number of waiting pods.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The pods that wait.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The waiting pod `uid`.
    pub fn get(&self, uid: &str) -> Option<&Waiting> {
        self.entries.get(uid).map(|entry| &entry.waiting)
    }

    fn number(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn remove_place(&mut self, uid: &str, place: Place) {
        match place {
            Place::Active(key) => drop(self.active.remove(&key)),
            Place::Backoff(key) => drop(self.backoff.remove(&key)),
            Place::Unschedulable => drop(self.unschedulable.remove(uid)),
        }
    }

    fn put(&mut self, waiting: Waiting, place: Place) {
        let uid = waiting.pod.uid.clone();
        match place {
            Place::Active(key) => drop(self.active.insert(key, uid.clone())),
            Place::Backoff(key) => drop(self.backoff.insert(key, uid.clone())),
            Place::Unschedulable => {
                self.unschedulable.insert(uid.clone());
                self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_EVERY);
            }
        }
        self.entries.insert(uid, Entry { waiting, place });
    }

    /// Removes the pod `uid`.
    pub fn remove(&mut self, uid: &str) -> Option<Waiting> {
        let entry = self.entries.remove(uid)?;
        self.remove_place(uid, entry.place);
        Some(entry.waiting)
    }

    /// Lets `waiting` in if its gates are open: to be tried now, or after its back-off.
    fn admit(&mut self, profiles: &Profiles, mut waiting: Waiting) {
        let held = profiles.of(&waiting.pod).map(|profile| profile.pre_enqueue(&waiting.pod));
        if let Some(Err((plugin, _))) = held {
            waiting.gated = true;
            waiting.rejected_by = BTreeSet::from([plugin]);
            self.put(waiting, Place::Unschedulable);
            return;
        }
        waiting.gated = false;
        let number = self.number();
        let ready_at = waiting.ready_at(self.backoffs);
        let place = if ready_at > Instant::now() {
            Place::Backoff((ready_at, number))
        } else {
            Place::Active((Reverse(waiting.pod.priority), number))
        };
        self.put(waiting, place);
    }

    /// A pod without a node was seen: a new one is let in, a known one updated.
    pub fn set(&mut self, profiles: &Profiles, pod: Arc<PodInfo>) {
        let Some(mut entry) = self.entries.remove(&pod.uid) else {
            let now = Instant::now();
            let waiting = Waiting {
                pod,
                attempts: 0,
                since: now,
                rejected_by: BTreeSet::new(),
                errored: false,
                gated: false,
                last_tried: now,
            };
            self.admit(profiles, waiting);
            return;
        };
        let old = std::mem::replace(&mut entry.waiting.pod, Arc::clone(&pod));
        self.remove_place(&pod.uid, entry.place);
        let reprioritised = old.priority != pod.priority;
        let event = Event::Itself { old, new: pod };
        match entry.place {
            Place::Unschedulable if concerns(profiles, &entry.waiting, &event) => {
                self.admit(profiles, entry.waiting);
            }
            Place::Active((_, number)) if reprioritised => {
                let key = (Reverse(entry.waiting.pod.priority), number);
                self.put(entry.waiting, Place::Active(key));
            }
            place => self.put(entry.waiting, place),
        }
    }

    /// Something happened: what it may help is tried again.
    pub fn wake(&mut self, profiles: &Profiles, event: &Event) {
        let helped: Vec<String> = self
            .unschedulable
            .iter()
            .filter(|uid| {
                self.entries.get(*uid).is_some_and(|e| concerns(profiles, &e.waiting, event))
            })
            .cloned()
            .collect();
        for uid in helped {
            self.retry(profiles, &uid);
        }
    }

    /// Moves `uid` out of the pods that wait for something to happen.
    pub fn retry(&mut self, profiles: &Profiles, uid: &str) {
        if let Some(waiting) = self.remove(uid) {
            self.admit(profiles, waiting);
        }
    }

    /// As [`Self::retry`], where something went wrong: it serves its back-off to the end.
    pub fn retry_errored(&mut self, profiles: &Profiles, uid: &str) {
        if let Some(mut waiting) = self.remove(uid) {
            waiting.errored = true;
            self.admit(profiles, waiting);
        }
    }

    /// Moves those whose back-off is over, or who have waited too long, to be tried.
    fn ripen(&mut self, profiles: &Profiles) {
        let now = Instant::now();
        while let Some((&(at, number), _)) = self.backoff.first_key_value()
            && at <= now
        {
            self.activate((at, number));
        }
        if self.flush_at.is_none_or(|at| at > now) {
            return;
        }
        let is_overdue = |entry: &Entry| {
            // Gates are opened by a change of the pod, never by time.
            !entry.waiting.gated && entry.waiting.last_tried + UNSCHEDULABLE_MAX <= now
        };
        let overdue: Vec<String> = self
            .unschedulable
            .iter()
            .filter(|uid| self.entries.get(*uid).is_some_and(is_overdue))
            .cloned()
            .collect();
        self.flush_at = (!self.unschedulable.is_empty()).then(|| now + FLUSH_EVERY);
        for uid in overdue {
            self.retry(profiles, &uid);
        }
    }

    fn activate(&mut self, key: BackoffKey) {
        let Some(uid) = self.backoff.remove(&key) else { return };
        let Some(entry) = self.entries.get_mut(&uid) else { return };
        let active = (Reverse(entry.waiting.pod.priority), key.1);
        entry.place = Place::Active(active);
        self.active.insert(active, uid);
    }

    /// The next pod to try. While there is nothing better to do, a pod need not serve its back-off
    /// to the end, unless it failed for another reason than the lack of a node.
    pub fn pop(&mut self, profiles: &Profiles) -> Option<Waiting> {
        self.ripen(profiles);
        if self.active.is_empty() {
            let early = self.backoff.iter().find(|(_, uid)| {
                self.entries.get(*uid).is_some_and(|entry| !entry.waiting.errored)
            });
            if let Some((&key, _)) = early {
                self.activate(key);
            }
        }
        let (_, uid) = self.active.pop_first()?;
        let mut waiting = self.entries.remove(&uid)?.waiting;
        waiting.attempts += 1;
        Some(waiting)
    }

    /// Gives back a pod that found no node: it waits until something happens that may help one of
    /// the plugins that rejected it.
    pub fn give_back(&mut self, mut waiting: Waiting, rejected_by: BTreeSet<&'static str>) {
        waiting.last_tried = Instant::now();
        waiting.rejected_by = rejected_by;
        waiting.errored = false;
        self.put(waiting, Place::Unschedulable);
    }

    /// Gives back a pod for which something else went wrong: it is tried again after its back-off.
    pub fn give_back_errored(&mut self, profiles: &Profiles, mut waiting: Waiting) {
        waiting.last_tried = Instant::now();
        waiting.rejected_by.clear();
        waiting.errored = true;
        self.admit(profiles, waiting);
    }

    /// When to look again, if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        let backoff = self.backoff.first_key_value().map(|((at, _), _)| *at);
        backoff.into_iter().chain(self.flush_at).min()
    }
}

/// `event` may help one of the plugins that keep the pod waiting. Without one there were no nodes.
fn concerns(profiles: &Profiles, waiting: &Waiting, event: &Event) -> bool {
    if waiting.rejected_by.is_empty() {
        return matches!(event, Event::NodeAdded(_) | Event::Itself { .. });
    }
    if waiting.rejected_by.contains(EXTENDER) {
        // Nobody knows what an extender waits for.
        return true;
    }
    let Some(profile) = profiles.of(&waiting.pod) else { return false };
    let mut plugins = waiting.rejected_by.iter().filter_map(|name| profile.plugin(name));
    plugins.any(|plugin| plugin.may_help(event, &waiting.pod))
}
