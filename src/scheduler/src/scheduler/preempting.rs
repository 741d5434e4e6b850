//! Pods that make room for themselves. Until those in their way have been asked to go nothing else is decided about
//! them: they would displace others elsewhere, too.
//!
//! Source: `pkg/scheduler/framework/preemption` (asynchronous preemption).

use std::collections::HashMap;
use std::sync::Arc;

use client::object_reference;

use super::{Scheduler, Written};
use crate::extender::Extender;
use crate::framework::Point;
use crate::plugins::give_back;
use crate::pod::PodInfo;
use crate::preemption::{self, Preemption, View, preempt};
use crate::queue::Waiting;
use crate::report;
use crate::schedule::{Failure, Unfit};

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

impl Scheduler {
    pub(super) async fn preempt(
        &mut self,
        waiting: Waiting,
        mut unfit: Unfit,
        extenders: &[&Extender],
    ) {
        let profiles = Arc::clone(&self.profiles);
        let Some(profile) = profiles.of(&waiting.pod) else { return };
        let budgets = self.budgets.store().state();
        let pod = Arc::clone(&waiting.pod);
        let start = self.rotation.below(self.cache.cluster.nodes().len());
        let (cluster, nominated) = (&self.cache.cluster, self.nominator.nominated());
        let view = View { profile, cluster, nominated, budgets: &budgets, start };
        let devices = profile
            .asks(Point::PostFilter, "DynamicResources")
            .then(|| give_back(&pod, cluster, &unfit));
        let (devices, claim) = devices.unwrap_or_default();
        let asked: Vec<&&Extender> = extenders.iter().filter(|e| e.preempts()).collect();
        let outcome = if asked.is_empty() {
            preempt(view, &pod, &unfit)
        } else {
            match preemption::candidates(view, &pod, &unfit) {
                Ok(candidates) => agreed(&pod, candidates, &asked).await,
                Err(outcome) => outcome,
            }
        };
        let node = match outcome {
            Preemption::Helpless(message) => {
                unfit.post_filter = together(devices, message);
                if pod.nominated_node().is_some() {
                    self.nominator.remove(&pod.uid);
                    self.clear_nomination(Arc::clone(&pod));
                }
                None
            }
            Preemption::Ineligible(message) => {
                unfit.post_filter = together(devices, message);
                None
            }
            Preemption::Nominate { node, victims } => {
                for lesser in self.nominator.nominate(Arc::clone(&pod), &node) {
                    self.clear_nomination(lesser);
                }
                self.evict(&pod, &node, victims);
                Some(node)
            }
        };
        if let Some(claim) = claim {
            self.deallocate(claim);
        }
        self.reject(waiting, Failure::Unfit(unfit), node);
    }

    fn evict(&mut self, pod: &Arc<PodInfo>, node: &str, mut victims: Vec<Arc<PodInfo>>) {
        victims.retain(|victim| !victim.is_terminating());
        self.preempting.begin(&pod.uid, victims.len());
        for victim in victims {
            let message = format!("Preempted by pod {} on node {node}", pod.uid);
            if let Some(recorder) = self.recorder(pod) {
                let (object, by) = (object_reference(&*victim.pod), object_reference(&*pod.pod));
                recorder.action(object, Some(by), "Normal", ("Preempted", "Preempting"), message);
            }
            let (client, by) = (self.client.clone(), Arc::clone(pod));
            self.writes.spawn(async move {
                let outcome = report::evict(client, &victim, by.scheduler_name()).await;
                if let Err(error) = &outcome {
                    tracing::warn!(pod = victim.key(), %error, "a preempted pod could not be removed");
                }
                Written::Evicted { by, failed: outcome.is_err() }
            });
        }
    }

    /// The last one to make way for a pod has been asked to: the pod gets the turn that it missed meanwhile. Where
    /// that failed it is free to go elsewhere.
    pub(super) fn finish_eviction(&mut self, by: &Arc<PodInfo>, failed: bool) {
        let Some(end) = self.preempting.asked(&by.uid, failed) else { return };
        if end.failed {
            self.nominator.remove(&by.uid);
            self.clear_nomination(Arc::clone(by));
            self.queue.retry_errored(&self.profiles, &by.uid);
        } else if end.held {
            self.queue.retry(&self.profiles, &by.uid);
        }
    }
}

/// What the plugins have to say that were asked when no node was left.
fn together(first: &str, second: String) -> String {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (false, true) => first.to_owned(),
        (false, false) => format!("{first}, {second}"),
    }
}

/// What is left of `candidates` when the extenders have agreed.
async fn agreed(
    pod: &PodInfo,
    mut candidates: Vec<preemption::Candidate>,
    extenders: &[&&Extender],
) -> Preemption {
    for extender in extenders {
        match extender.preempt(pod, &candidates).await {
            Ok(left) => candidates = left,
            Err(error) if extender.is_ignorable() => {
                tracing::warn!(%error, "an extender that can be ignored has failed");
            }
            Err(error) => return Preemption::Helpless(format!("preemption: {error}")),
        }
        if candidates.is_empty() {
            break;
        }
    }
    preemption::choose(candidates)
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
