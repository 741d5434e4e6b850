//! Exponential back-off per key, as `client-go/util/flowcontrol.Backoff` does it: 10 s, doubling to
//! five minutes, forgotten after ten quiet minutes.

use std::collections::HashMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// First delay.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const MAX: Duration = Duration::from_mins(5);

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    last_update: Timestamp,
}

/// Back-offs by key.
#[derive(Clone, Debug)]
pub struct Backoffs {
    entries: HashMap<String, Entry>,
    most: Duration,
}

impl Default for Backoffs {
    fn default() -> Self {
        Self::up_to(MAX)
    }
}

impl Backoffs {
    /// None yet; none will be longer than `most`.
    pub fn up_to(most: Duration) -> Self {
        Self { entries: HashMap::new(), most }
    }

    /// The delay in force and when it is over, if `key` is still held back at `now` counted from
    /// `since`, the moment of the last failure.
    pub fn held_until(
        &self,
        key: &str,
        since: Timestamp,
        now: Timestamp,
    ) -> Option<(Duration, Timestamp)> {
        let entry = self.entries.get(key)?;
        // What is yet to come was before the clock was set back; how long ago that is, nobody knows.
        if self.expired(since, entry.last_update) || now < since {
            return None;
        }
        let until = since + signed(entry.delay);
        (now < until).then_some((entry.delay, until))
    }

    /// Records another failure of `key` and returns the delay it earned.
    pub fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) -> Duration {
        let entry = match self.entries.get(key) {
            Some(entry) if !self.expired(since, entry.last_update) => {
                Entry { delay: (entry.delay * 2).min(self.most), last_update: now }
            }
            _ => Entry { delay: INITIAL.min(self.most), last_update: now },
        };
        self.entries.insert(key.to_owned(), entry);
        entry.delay
    }

    fn expired(&self, since: Timestamp, last_update: Timestamp) -> bool {
        since.duration_since(last_update) > signed(self.most * 2)
    }

    /// Forgets `key`.
    pub fn reset(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

/// A duration as Go prints it: `10s`, `2m40s`, `1.594s`, `313ms`.
pub fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return format!("{}µs", fraction(nanos, 1_000));
    }
    if nanos < 1_000_000_000 {
        return format!("{}ms", fraction(nanos, 1_000_000));
    }
    let minutes = nanos / 60_000_000_000;
    let seconds = fraction(nanos % 60_000_000_000, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn fraction(value: u128, unit: u128) -> String {
    let whole = value / unit;
    let rest = value % unit;
    if rest == 0 {
        return whole.to_string();
    }
    let width = unit.to_string().len() - 1;
    let digits = format!("{rest:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn doubles_to_five_minutes_and_forgets() {
        let mut b = Backoffs::default();
        let mut now = 1_000;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(b.held_until("k", at(now), at(now)), b.held_until("k", at(now), at(now)));
            assert_eq!(b.next("k", at(now), at(now)).as_secs(), expected);
            assert!(b.held_until("k", at(now), at(now + expected as i64 - 1)).is_some());
            assert!(b.held_until("k", at(now), at(now + expected as i64)).is_none());
            now += expected as i64;
        }
        let later = now + 601;
        assert!(b.held_until("k", at(later), at(later)).is_none());
        assert_eq!(b.next("k", at(later), at(later)), INITIAL);
    }

    #[test]
    fn durations_print_as_go() {
        for (ms, text) in [
            (10_000, "10s"),
            (160_000, "2m40s"),
            (300_000, "5m0s"),
            (1_594, "1.594s"),
            (313, "313ms"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(go_duration(Duration::from_micros(1_500)), "1.5ms");
    }
}
