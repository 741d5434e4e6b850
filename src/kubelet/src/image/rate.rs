//! How often something may begin: a bucket of tokens that fills up evenly.
//!
//! Source of behaviour: `client-go/util/flowcontrol`, `NewTokenBucketRateLimiter`.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// So many a second; after a pause, more at once.
pub struct Rate {
    a_second: f64,
    at_once: f64,
    left: Mutex<(f64, Instant)>,
}

impl Rate {
    /// A full bucket of `at_once`, into which `a_second` come in a second.
    pub fn new(a_second: u32, at_once: u32) -> Self {
        let (a_second, at_once) = (f64::from(a_second), f64::from(at_once));
        Self { a_second, at_once, left: Mutex::new((at_once, Instant::now())) }
    }

    /// Takes a token, if there is one.
    pub fn admits(&self) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let come = now.duration_since(left.1).as_secs_f64() * self.a_second;
        *left = ((left.0 + come).min(self.at_once), now);
        let admitted = left.0 >= 1.0;
        if admitted {
            left.0 -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_admitted_and_then_so_many_a_second() {
        let rate = Rate::new(2, 3);
        let admitted = || (0..10).filter(|_| rate.admits()).count();
        assert_eq!(admitted(), 3);
        for (wait_ms, most) in [(400, 0), (100, 1), (1000, 2), (60_000, 3)] {
            tokio::time::advance(Duration::from_millis(wait_ms)).await;
            assert_eq!(admitted(), most, "after {wait_ms} ms");
        }
    }
}
