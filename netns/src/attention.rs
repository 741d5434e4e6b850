//! Threads that look again before they sleep.
//!
//! To be woken costs a thread more than what it then does for a small message, and whoever waits for an
//! answer pays it twice. So a thread to which something has happened asks for more for a moment, if what
//! happened of late came that quickly; where it did not, it sleeps at once.

use std::cell::{Cell, RefCell};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// For so long it asks. Between a request and its answer on one machine there is less.
const MOMENT: Duration = Duration::from_micros(50);
/// It asks while so many more came within a moment than did not.
const ENOUGH: u32 = 4;
const MOST: u32 = 16;

thread_local! {
    static STIRRED: Cell<bool> = const { Cell::new(false) };
    static ASLEEP: RefCell<Option<Waker>> = const { RefCell::new(None) };
}

/// Something has happened on this thread.
pub(crate) fn stir() {
    STIRRED.set(true);
    if let Some(waker) = ASLEEP.take() {
        waker.wake();
    }
}

/// Keeps the runtime of this thread awake where that is worth it, for ever.
pub(crate) async fn attend() {
    let mut worth = Worth::new(Instant::now());
    loop {
        until_stirred().await;
        let mut until = worth.happened(Instant::now());
        while let Some(end) = until {
            tokio::task::yield_now().await;
            let now = Instant::now();
            if STIRRED.take() {
                until = worth.happened(now);
            } else if now >= end {
                break;
            }
        }
    }
}

async fn until_stirred() {
    std::future::poll_fn(|context| {
        if STIRRED.take() {
            return Poll::Ready(());
        }
        ASLEEP.set(Some(context.waker().clone()));
        Poll::Pending
    })
    .await;
}

/// Whether it is worth asking for more.
struct Worth {
    last: Instant,
    quick: u32,
}

impl Worth {
    fn new(now: Instant) -> Self {
        Self { last: now, quick: 0 }
    }

    /// Something has happened now. Until when to ask for more, if at all.
    fn happened(&mut self, now: Instant) -> Option<Instant> {
        let quick = now.duration_since(self.last) <= MOMENT;
        self.last = now;
        self.quick = if quick { (self.quick + 1).min(MOST) } else { self.quick.saturating_sub(1) };
        (self.quick >= ENOUGH).then_some(now + MOMENT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn only_what_comes_quickly_is_waited_for() {
        let (soon, late) = (MOMENT / 2, MOMENT * 3);
        let cases = [
            (vec![soon; 3], false),
            (vec![soon; 4], true),
            (vec![late; 9], false),
            ([vec![soon; 4], vec![late; 1]].concat(), false),
            ([vec![soon; 90], vec![late; 12]].concat(), true),
            ([vec![soon; 90], vec![late; 13]].concat(), false),
            ([soon, late].repeat(30), false),
            ([soon, soon, late].repeat(30), true),
        ];
        for (gaps, want) in cases {
            let mut now = Instant::now();
            let (mut worth, mut told) = (Worth::new(now), None);
            for gap in &gaps {
                now += *gap;
                told = worth.happened(now);
            }
            assert_eq!(told, want.then(|| now + MOMENT), "{gaps:?}");
        }
    }

    #[tokio::test]
    async fn a_thread_to_which_nothing_happens_sleeps() {
        let polls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&polls);
        let attending = tokio::spawn(async move {
            let mut attended = std::pin::pin!(attend());
            std::future::poll_fn(|context| {
                count.fetch_add(1, Ordering::Relaxed);
                attended.as_mut().poll(context)
            })
            .await;
        });
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(polls.load(Ordering::Relaxed), 1);
        stir();
        tokio::task::yield_now().await;
        assert!(polls.load(Ordering::Relaxed) > 1, "it was told");
        attending.abort();
    }
}
