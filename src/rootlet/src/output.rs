//! What is said on a terminal or to a script.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

static QUIET: AtomicBool = AtomicBool::new(false);

/// From now on only errors and what was asked for are printed.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether only errors and what was asked for are to be printed.
pub fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a line that tells what was done, unless `--quiet` was given.
macro_rules! say {
    ($($text:tt)*) => {
        if !$crate::output::quiet() {
            println!($($text)*);
        }
    };
}

/// Shown on a terminal while something takes its time, and nowhere else.
pub struct Wait(indicatif::ProgressBar);

impl Wait {
    /// Shows `text` until dropped.
    pub fn new(text: &'static str) -> Self {
        if quiet() {
            return Self(indicatif::ProgressBar::hidden());
        }
        let bar = indicatif::ProgressBar::new_spinner().with_message(text);
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// Shows another text.
    pub fn say(&self, text: &'static str) {
        self.0.set_message(text);
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
