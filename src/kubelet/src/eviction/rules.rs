//! Which thresholds there are, and which of them the node has been under for long enough. Pure.
//!
//! Source of behaviour: `synchronize` in `eviction_manager.go`; `thresholdsMet`, `mergeThresholds` and
//! `thresholdsMetGracePeriod` in `helpers.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::threshold::{Least, Reading, Signal, Thresholds};

/// Thresholds that are put up with for a while, and what is freed beyond them and the hard ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Soft {
    /// Those below which pods are ended once that has lasted so long.
    pub thresholds: BTreeMap<Signal, (Least, Duration)>,
    /// The most seconds that a pod then has to end.
    pub most_grace_seconds: i64,
    /// What is to be freed beyond a threshold that was met.
    pub reclaim: Thresholds,
}

/// One threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Threshold {
    /// What is measured.
    pub signal: Signal,
    /// Whether it is put up with for a while.
    pub soft: bool,
}

/// All thresholds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// Those that are acted upon at once.
    pub hard: Thresholds,
    /// The others.
    pub soft: Soft,
}

impl Rules {
    fn all(&self) -> impl Iterator<Item = (Threshold, Least, Duration)> {
        let hard = self.hard.iter().map(|(signal, least)| {
            (Threshold { signal: *signal, soft: false }, *least, Duration::ZERO)
        });
        let soft = self.soft.thresholds.iter().map(|(signal, (least, period))| {
            (Threshold { signal: *signal, soft: true }, *least, *period)
        });
        hard.chain(soft)
    }

    /// How little is too little, of `capacity`.
    pub fn least(&self, of: Threshold, capacity: u64) -> u64 {
        let found = self.all().find(|(threshold, ..)| *threshold == of);
        found.map_or(0, |(_, least, _)| least.of(capacity))
    }

    fn reclaim(&self, signal: Signal, capacity: u64) -> u64 {
        self.soft.reclaim.get(&signal).map_or(0, |least| least.of(capacity))
    }

    /// Whether a signal is under a threshold, or has not as much beyond it as is to be freed.
    pub fn wants_more(&self, readings: &BTreeMap<Signal, Reading>) -> bool {
        self.all().any(|(threshold, least, _)| {
            readings.get(&threshold.signal).filter(|r| r.capacity > 0).is_some_and(|r| {
                r.available < least.of(r.capacity) + self.reclaim(threshold.signal, r.capacity)
            })
        })
    }
}

/// What is known of the thresholds from one look to the next.
#[derive(Debug, Default)]
pub struct Looks {
    /// Since when each has been under.
    since: BTreeMap<Threshold, Instant>,
    /// Those that were acted upon.
    met: BTreeSet<Threshold>,
}

impl Looks {
    /// Looks again: the thresholds that are under, and of these the ones to act upon, the most important first.
    pub fn look(
        &mut self,
        rules: &Rules,
        readings: &BTreeMap<Signal, Reading>,
        now: Instant,
    ) -> (BTreeSet<Signal>, Vec<Threshold>) {
        let (mut since, mut due) = (BTreeMap::new(), BTreeSet::new());
        for (threshold, least, period) in rules.all() {
            let reading = readings.get(&threshold.signal).filter(|r| r.capacity > 0);
            let Some(reading) = reading else { continue };
            let mut least = least.of(reading.capacity);
            // One that was met is over once as much is free as is to be freed beyond it.
            if self.met.contains(&threshold) {
                least += rules.reclaim(threshold.signal, reading.capacity);
            }
            if reading.available >= least {
                continue;
            }
            let first = self.since.get(&threshold).copied().unwrap_or(now);
            since.insert(threshold, first);
            if now.duration_since(first) >= period {
                due.insert(threshold);
            }
        }
        let under = since.keys().map(|threshold| threshold.signal).collect();
        self.since = since;
        self.met.clone_from(&due);
        (under, due.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: Threshold = Threshold { signal: Signal::Memory, soft: false };
    const DISK: Threshold = Threshold { signal: Signal::NodeDisk, soft: true };

    fn rules() -> Rules {
        Rules {
            hard: BTreeMap::from([(Signal::Memory, Least::Amount(100))]),
            soft: Soft {
                thresholds: BTreeMap::from([(
                    Signal::NodeDisk,
                    (Least::Share(100), Duration::from_mins(1)),
                )]),
                most_grace_seconds: 5,
                reclaim: BTreeMap::from([
                    (Signal::Memory, Least::Amount(50)),
                    (Signal::NodeDisk, Least::Share(50)),
                ]),
            },
        }
    }

    #[test]
    fn soft_thresholds_are_put_up_with_and_met_ones_want_more_than_they_say() {
        let (rules, mut looks, start) = (rules(), Looks::default(), Instant::now());
        for (seconds, memory, disk, under, due) in [
            (0, 500, 500, vec![], vec![]),
            (10, 99, 500, vec![Signal::Memory], vec![MEMORY]),
            (20, 149, 500, vec![Signal::Memory], vec![MEMORY]),
            (30, 150, 500, vec![], vec![]),
            (40, 149, 99, vec![Signal::NodeDisk], vec![]),
            (99, 500, 99, vec![Signal::NodeDisk], vec![]),
            (100, 500, 99, vec![Signal::NodeDisk], vec![DISK]),
            (110, 500, 149, vec![Signal::NodeDisk], vec![DISK]),
            (120, 500, 150, vec![], vec![]),
            (130, 500, 149, vec![], vec![]),
            (140, 50, 99, vec![Signal::Memory, Signal::NodeDisk], vec![MEMORY]),
        ] {
            let of = |available| Reading { available, capacity: 1000 };
            let readings =
                BTreeMap::from([(Signal::Memory, of(memory)), (Signal::NodeDisk, of(disk))]);
            let now = start + Duration::from_secs(seconds);
            let expected = (under.into_iter().collect(), due);
            assert_eq!(looks.look(&rules, &readings, now), expected, "after {seconds} s");
        }
    }

    #[test]
    fn what_is_to_be_freed_counts_after_images_have_gone() {
        let of = |disk| {
            BTreeMap::from([(Signal::NodeDisk, Reading { available: disk, capacity: 1000 })])
        };
        assert!(rules().wants_more(&of(149)));
        assert!(!rules().wants_more(&of(150)));
        assert_eq!(rules().least(DISK, 1000), 100);
    }
}
