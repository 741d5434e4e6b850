//! Graceful shutdown of the node: pods end by priority, each group within its time, before the node does.
//!
//! Source of behaviour: `pkg/kubelet/nodeshutdown`, the node shutdowns page of the Kubernetes documentation.

use std::sync::Arc;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::pods::Workers;
use crate::status::Waiting;
use crate::{labels, pod};

/// Priority from which on pods are critical to the system.
const CRITICAL: i32 = 2_000_000_000;
/// How often those that end are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long the API may take to hear of the last ones.
const TELL: Duration = Duration::from_secs(2);

/// Why a pod has failed that ended with its node.
pub const REASON: &str = "Terminated";
/// What it is told.
pub const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// How long pods have to end with the node, by priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Periods(Vec<Period>);

/// Pods of this priority and more, up to that of the next, have so long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Period {
    priority: i32,
    seconds: u64,
}

impl Periods {
    /// From upstream's `shutdownGracePeriod` and `shutdownGracePeriodCriticalPods`, or from pairs as
    /// `0=30,2000000000=10`, which stand for `shutdownGracePeriodByPodPriority`; not from both.
    ///
    /// # Errors
    /// A sentence about what is wrong.
    pub fn parse(
        whole: Option<&str>,
        critical: Option<&str>,
        by_priority: Option<&str>,
    ) -> Result<Self, String> {
        let seconds = |text: &str| {
            let duration = apimachinery::time::duration(text);
            duration.map(|d| d.as_secs()).ok_or_else(|| format!("{text:?} is no duration, as 30s"))
        };
        if let Some(pairs) = by_priority {
            if whole.is_some() || critical.is_some() {
                return Err("periods by priority stand in the place of the others".into());
            }
            return Self::of_pairs(pairs);
        }
        let Some(whole) = whole.map(seconds).transpose()? else {
            return match critical {
                Some(_) => {
                    Err("a period for critical pods is a part of the whole, which is not given"
                        .into())
                }
                None => Ok(Self::default()),
            };
        };
        let critical = critical.map(seconds).transpose()?.unwrap_or(0);
        let Some(rest) = whole.checked_sub(critical) else {
            return Err(
                "the period for critical pods is a part of the whole, and cannot be longer".into(),
            );
        };
        if whole == 0 {
            return Ok(Self::default());
        }
        Ok(Self(vec![
            Period { priority: 0, seconds: rest },
            Period { priority: CRITICAL, seconds: critical },
        ]))
    }

    fn of_pairs(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let pair = |part: &str| {
            let (priority, seconds) = part.split_once('=')?;
            let seconds = seconds.trim().trim_end_matches('s').parse().ok()?;
            Some(Period { priority: priority.trim().parse().ok()?, seconds })
        };
        let read = |part| pair(part).ok_or_else(|| format!("{part:?} is not PRIORITY=SECONDS"));
        let mut periods = parts.map(read).collect::<Result<Vec<_>, _>>()?;
        periods.sort_by_key(|period| period.priority);
        if periods.windows(2).any(|pair| pair[0].priority == pair[1].priority) {
            return Err("a priority is named twice".into());
        }
        Ok(Self(periods))
    }

    /// Whether pods end with the node at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How long all of it may take.
    pub fn total(&self) -> Duration {
        Duration::from_secs(self.0.iter().map(|period| period.seconds).sum())
    }

    /// The pods of each period, the least important first.
    fn groups(&self, pods: &[Arc<Pod>]) -> Vec<(u64, Vec<Arc<Pod>>)> {
        let mut groups: Vec<_> = self.0.iter().map(|p| (p.seconds, Vec::new())).collect();
        for of in pods {
            let priority = of.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
            let above = self.0.partition_point(|period| period.priority <= priority);
            // Those below the lowest belong to it.
            if let Some((_, group)) = groups.get_mut(above.saturating_sub(1)) {
                group.push(of.clone());
            }
        }
        groups
    }
}

/// The node's end: asked for by whoever owns the kubelet.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    asked: CancellationToken,
    done: CancellationToken,
}

impl Ending {
    /// Asks for it, and waits until the pods have had their time.
    pub async fn end(&self) {
        self.asked.cancel();
        self.done.cancelled().await;
    }

    /// Whether it was asked for.
    pub fn is_asked(&self) -> bool {
        self.asked.is_cancelled()
    }

    /// Until it is asked for.
    pub async fn asked(&self) {
        self.asked.cancelled().await;
    }
}

/// What a pod is told that comes too late.
pub fn refusal() -> Waiting {
    Waiting {
        reason: "NodeShutdown".into(),
        message: "Pod was rejected as the node is shutting down.".into(),
    }
}

/// Waits for the node's end, and ends its pods.
pub async fn run(
    context: Arc<Context>,
    workers: Workers,
    periods: Periods,
    shutdown: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = context.ending.asked() => end(&context, &workers, &periods).await,
    }
    context.ending.done.cancel();
}

async fn end(context: &Context, workers: &Workers, periods: &Periods) {
    let pods = workers.pods();
    for (seconds, group) in periods.groups(&pods) {
        if group.is_empty() {
            continue;
        }
        tracing::info!(seconds, pods = group.len(), "the node ends: pods have their time");
        for of in &group {
            let own = pod::grace_period_seconds(of);
            let grace = own.min(i64::try_from(seconds).unwrap_or(i64::MAX));
            let why = Waiting { reason: REASON.into(), message: MESSAGE.into() };
            workers.evict_within(pod::uid(of), why, grace);
        }
        let uids: Vec<String> = group.iter().map(|of| pod::uid(of).to_owned()).collect();
        let gone = async {
            while any_runs(context, &uids).await {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(seconds), gone).await.is_err() {
            tracing::warn!(seconds, "not every pod has ended in its time");
        }
    }
    // What became of them is told on ways of their own.
    let told = async {
        while !workers.told(&pods) {
            tokio::time::sleep(LOOK).await;
        }
    };
    let _ = tokio::time::timeout(TELL, told).await;
}

/// Whether one of these pods still has a sandbox.
async fn any_runs(context: &Context, uids: &[String]) -> bool {
    let state = cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady.into() };
    let filter = cri::PodSandboxFilter { state: Some(state), ..Default::default() };
    let request = cri::ListPodSandboxRequest { filter: Some(filter) };
    let listed = context.cri.list_pod_sandbox(request).await.map(|l| l.items).unwrap_or_default();
    listed.iter().any(|s| s.labels.get(labels::POD_UID).is_some_and(|uid| uids.contains(uid)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn periods_are_read() {
        let period = |priority, seconds| Period { priority, seconds };
        for (whole, critical, pairs, want) in [
            (None, None, None, Ok(vec![])),
            (Some("0s"), None, None, Ok(vec![])),
            (Some("1m30s"), Some("30s"), None, Ok(vec![period(0, 60), period(CRITICAL, 30)])),
            (None, None, Some("1000=5, -5=7s"), Ok(vec![period(-5, 7), period(1000, 5)])),
            (Some("10s"), Some("11s"), None, Err("cannot be longer")),
            (None, Some("11s"), None, Err("is not given")),
            (Some("soon"), None, None, Err("\"soon\" is no duration")),
            (Some("1s"), None, Some("1=1"), Err("in the place of")),
            (None, None, Some("1=1,1=2"), Err("named twice")),
            (None, None, Some("high=1"), Err("\"high=1\" is not PRIORITY=SECONDS")),
        ] {
            let found = Periods::parse(whole, critical, pairs);
            match want {
                Ok(want) => assert_eq!(found, Ok(Periods(want))),
                Err(part) => assert!(found.as_ref().unwrap_err().contains(part), "{found:?}"),
            }
        }
    }

    #[test]
    fn pods_go_by_priority() {
        let periods = Periods::parse(None, None, Some("0=1,100=2,1000=3")).unwrap();
        let pods: Vec<Arc<Pod>> = [-7, 0, 99, 100, 101, 5000]
            .map(|priority| {
                serde_json::from_value(json!({"spec": {"priority": priority, "containers": []}}))
            })
            .map(|of| Arc::new(of.unwrap()))
            .into();
        let groups: Vec<(u64, Vec<i32>)> = periods
            .groups(&pods)
            .into_iter()
            .map(|(seconds, group)| {
                (
                    seconds,
                    group.iter().map(|of| of.spec.as_ref().unwrap().priority.unwrap()).collect(),
                )
            })
            .collect();
        assert_eq!(groups, [(1, vec![-7, 0, 99]), (2, vec![100, 101]), (3, vec![5000])]);
        assert_eq!(periods.total(), Duration::from_secs(6));
    }
}
