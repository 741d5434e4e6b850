//! Pods that make room for themselves. Until those in their way have been asked to go nothing else is decided about
//! them: they would displace others elsewhere, too.
//!
//! Source: `pkg/scheduler/framework/preemption` (asynchronous preemption).

use std::collections::HashMap;

#[derive(Debug, Default)]
struct Progress {
    /// How many have not been asked yet.
    left: usize,
    held: bool,
    failed: bool,
}

/// How a preemption has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The pod's turn came meanwhile.
    pub held: bool,
    /// Somebody could not be asked to go.
    pub failed: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Preempting(HashMap<String, Progress>);

impl Preempting {
    /// The pod `uid` has so many asked to go.
    pub fn begin(&mut self, uid: &str, victims: usize) {
        if victims > 0 {
            self.0.insert(uid.to_owned(), Progress { left: victims, ..Progress::default() });
        }
    }

    /// Whether the pod `uid`, whose turn it is, has to wait.
    pub fn holds(&mut self, uid: &str) -> bool {
        let Some(progress) = self.0.get_mut(uid) else { return false };
        progress.held = true;
        true
    }

    /// One has been asked to go on behalf of the pod `uid`, or could not be. Says how it ended when that was the last.
    pub fn asked(&mut self, uid: &str, failed: bool) -> Option<End> {
        let progress = self.0.get_mut(uid)?;
        progress.failed |= failed;
        progress.left -= 1;
        let end = End { held: progress.held, failed: progress.failed };
        (progress.left == 0).then(|| {
            self.0.remove(uid);
            end
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_waits_until_all_have_been_asked_to_go() {
        let mut preempting = Preempting::default();
        preempting.begin("alone", 0);
        assert!(!preempting.holds("alone"));
        for (turn, failures, want) in [
            (false, [false, false], End { held: false, failed: false }),
            (true, [false, false], End { held: true, failed: false }),
            (false, [true, false], End { held: false, failed: true }),
            (true, [false, true], End { held: true, failed: true }),
        ] {
            preempting.begin("p", 2);
            assert!(!turn || preempting.holds("p"));
            assert_eq!(preempting.asked("p", failures[0]), None);
            assert_eq!(preempting.asked("p", failures[1]), Some(want));
            assert!(!preempting.holds("p"));
        }
        assert_eq!(preempting.asked("p", false), None);
    }
}
