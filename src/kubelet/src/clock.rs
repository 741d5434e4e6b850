//! Wall time for everybody, which in tests runs with tokio's paused clock.

use jiff::Timestamp;
use tokio::time::Instant;

/// A source of wall time.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The system's.
    System,
    /// A fixed start that advances with tokio's clock.
    #[cfg(test)]
    Tokio {
        /// The time at `since`.
        start: Timestamp,
        /// When it began.
        since: Instant,
        /// By how many seconds somebody has set it.
        set: &'static std::sync::atomic::AtomicI64,
    },
}

impl Clock {
    /// Now.
    pub fn now(self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            #[cfg(test)]
            Self::Tokio { start, since, set } => {
                let set = set.load(std::sync::atomic::Ordering::Relaxed);
                start
                    + jiff::SignedDuration::try_from(since.elapsed()).expect("tests are short")
                    + jiff::SignedDuration::from_secs(set)
            }
        }
    }

    /// The instant of tokio's clock that corresponds to `at`; now, if that is past.
    pub fn instant(self, at: Timestamp) -> Instant {
        let wait = at.duration_since(self.now());
        Instant::now() + std::time::Duration::try_from(wait).unwrap_or_default()
    }
}
