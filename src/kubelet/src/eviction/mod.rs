//! A node that runs out of memory, disk, inodes or processes says so, frees what nobody needs, and then ends
//! pods, one at a time.
//!
//! Source of behaviour: `pkg/kubelet/eviction/eviction_manager.go`, the node-pressure eviction page of the
//! Kubernetes documentation.

mod images;
mod rank;
mod rules;
pub mod threshold;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{Pod, Taint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::configuration::Limits;
use crate::context::Context;
use crate::node::machine;
use crate::pods::Workers;
use crate::status::Waiting;
use crate::{admission, labels, pod, resources, sandbox, volumes};
use rank::Candidate;
use rules::{Looks, Threshold};
use threshold::{Reading, Signal, Thresholds};

pub use rank::is_critical;
pub use rules::{Rules, Soft};

/// How often the node is looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// How long the end of one pod is waited for, once its grace is over, before another is ended.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds that a pod has to end which is ended at once; none has less.
const HARD_GRACE_SECONDS: i64 = 1;

/// What the node is short of, for those who take pods in or report the node.
pub struct Pressure {
    /// By condition, when it was last seen, and whether at the last look.
    seen: Mutex<HashMap<&'static str, (Instant, bool)>>,
    /// It is told this long after that, so that the node does not swing, and at least until the next look.
    lasts: Duration,
}

impl Default for Pressure {
    fn default() -> Self {
        Self::lasting(Limits::default().pressure)
    }
}

impl Pressure {
    /// None yet; each will be told so long.
    pub fn lasting(lasts: Duration) -> Self {
        Self { seen: Mutex::default(), lasts }
    }

    /// Whether the condition is in force.
    pub fn is(&self, condition: &str) -> bool {
        self.lock().get(condition).is_some_and(|(at, still)| *still || at.elapsed() < self.lasts)
    }

    fn note(&self, signals: &BTreeSet<Signal>) {
        let mut seen = self.lock();
        for (_, still) in seen.values_mut() {
            *still = false;
        }
        for signal in signals {
            seen.insert(signal.condition(), (Instant::now(), true));
        }
    }

    /// Refuses a pod that would make things worse.
    pub fn admit(&self, of: &Pod) -> Result<(), Waiting> {
        let all = ["MemoryPressure", "DiskPressure", "PIDPressure"];
        let under: Vec<&str> = all.into_iter().filter(|c| self.is(c)).collect();
        if under.is_empty() || is_critical(of) {
            return Ok(());
        }
        // Short of memory, the node still takes those who have asked for some, or put up with it.
        if under == ["MemoryPressure"]
            && (resources::qos_class(of) != "BestEffort" || tolerates_memory_pressure(of))
        {
            return Ok(());
        }
        let message = format!("The node had condition: [{}]. ", under.join(" "));
        Err(Waiting { reason: "Evicted".into(), message })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<&'static str, (Instant, bool)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tolerates_memory_pressure(of: &Pod) -> bool {
    let taint = Taint {
        key: "node.kubernetes.io/memory-pressure".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    admission::tolerates(of, &taint)
}

/// Reads all signals.
pub fn readings(context: &Context, images: Option<&Path>) -> BTreeMap<Signal, Reading> {
    let mut out = BTreeMap::from([(
        Signal::Memory,
        Reading {
            available: machine::meminfo("MemAvailable"),
            capacity: context.machine.memory_bytes,
        },
    )]);
    let (most, now) = machine::pids();
    out.insert(Signal::Pids, Reading { available: most.saturating_sub(now), capacity: most });
    let mut disk = |path: &Path, bytes: Signal, inodes: Signal| {
        let Some(disk) = machine::disk(path) else { return };
        out.insert(bytes, Reading { available: disk.available_bytes, capacity: disk.bytes });
        out.insert(inodes, Reading { available: disk.inodes_free, capacity: disk.inodes });
    };
    disk(&context.root_dir, Signal::NodeDisk, Signal::NodeInodes);
    disk(images.unwrap_or(&context.root_dir), Signal::ImageDisk, Signal::ImageInodes);
    out
}

/// Watches over the node until `shutdown`.
pub async fn run(context: Arc<Context>, workers: Workers, shutdown: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut images = images::Images::default();
    let place = images::place(&context).await;
    let mut looks = Looks::default();
    // The pod that was ended last, and when its grace is over.
    let mut victim: Option<(Arc<Pod>, Instant)> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        images.collect(&context, place.as_deref(), false).await;
        let now = readings(&context, place.as_deref());
        let (under, due) = looks.look(&context.thresholds, &now, Instant::now());
        context.pressure.note(&under);
        let Some(first) = due.first().copied() else { continue };
        // Its end may be all that is needed.
        victim.take_if(|(of, over)| over.elapsed() >= PATIENCE || !workers.runs(pod::uid(of)));
        if victim.is_some() {
            continue;
        }
        tracing::warn!(signals = ?under, "the node is under pressure");
        let message = format!("Attempting to reclaim {}", first.signal.resource());
        context.recorder.warning(context.own_reference(), "EvictionThresholdMet", message);
        if first.signal.condition() == "DiskPressure" {
            images.collect(&context, place.as_deref(), true).await;
            if !context.thresholds.wants_more(&readings(&context, place.as_deref())) {
                continue;
            }
        }
        victim = evict(&context, &workers, first, place.as_deref()).await;
    }
}

/// Ends the pod that should go first; returns it, and when its grace is over.
async fn evict(
    context: &Arc<Context>,
    workers: &Workers,
    threshold: Threshold,
    images: Option<&Path>,
) -> Option<(Arc<Pod>, Instant)> {
    let signal = threshold.signal;
    let reading = readings(context, images).get(&signal).copied()?;
    let candidates = candidates(context, workers, signal).await;
    let Some(victim) = rank::order(signal, candidates).into_iter().next() else {
        tracing::warn!(signal = signal.name(), "under pressure, and no pod can be ended");
        return None;
    };
    let least = context.thresholds.least(threshold, reading.capacity);
    let message = rank::message(signal, reading, least, &victim);
    context.counters.evicted(signal.name());
    context.warning(&victim.pod, None, "Evicted", message.clone());
    let most = threshold.soft.then_some(context.thresholds.soft.most_grace_seconds);
    let grace = grace_seconds(&victim.pod, most);
    let why = Waiting { reason: "Evicted".into(), message };
    workers.evict_within(pod::uid(&victim.pod), why, grace);
    let over = Instant::now() + Duration::from_secs(grace.unsigned_abs());
    Some((victim.pod, over))
}

/// Seconds that a pod has to end: its own, up to `most`, where it is not ended at once.
fn grace_seconds(of: &Pod, most: Option<i64>) -> i64 {
    most.map_or(0, |most| most.min(pod::grace_period_seconds(of))).max(HARD_GRACE_SECONDS)
}

async fn candidates(context: &Arc<Context>, workers: &Workers, signal: Signal) -> Vec<Candidate> {
    let usage = context.usage.usage(context).await.unwrap_or_default();
    let pods: Vec<Arc<Pod>> = workers
        .current()
        .into_iter()
        .filter(|p| !pod::is_terminal(p) && p.metadata.deletion_timestamp.is_none())
        .collect();
    let context = context.clone();
    let measure = move || {
        let number = |v: Option<&cri::UInt64Value>| v.map_or(0, |v| v.value);
        let mut out = Vec::new();
        for of in pods {
            let stats = usage.pods.iter().find(|s| {
                let uid = s.attributes.as_ref().and_then(|a| a.labels.get(labels::POD_UID));
                uid.is_some_and(|uid| uid == pod::uid(&of))
            });
            let Some(linux) = stats.and_then(|s| s.linux.as_ref()) else { continue };
            let logs = sandbox::log_directory(&context.pod_log_dir, &of);
            let of_container = |c: &cri::ContainerStats| {
                let name = c.attributes.as_ref()?.labels.get(labels::CONTAINER_NAME)?.clone();
                let layer = c.writable_layer.as_ref();
                let used = match signal {
                    Signal::Memory => {
                        number(c.memory.as_ref().and_then(|m| m.working_set_bytes.as_ref()))
                    }
                    Signal::Pids => 0,
                    Signal::NodeDisk | Signal::ImageDisk => {
                        number(layer.and_then(|l| l.used_bytes.as_ref()))
                            + volumes::usage::used(&logs.join(&name)).0
                    }
                    Signal::NodeInodes | Signal::ImageInodes => {
                        number(layer.and_then(|l| l.inodes_used.as_ref()))
                            + volumes::usage::used(&logs.join(&name)).1
                    }
                };
                Some((name, used))
            };
            let containers: Vec<(String, u64)> =
                linux.containers.iter().filter_map(of_container).collect();
            let mut used: u64 = containers.iter().map(|(_, used)| used).sum();
            if signal.condition() == "DiskPressure" {
                for place in volumes::usage::places(&context.root_dir, &of) {
                    let (bytes, inodes) = volumes::usage::used(&place.path);
                    let disk = matches!(signal, Signal::NodeDisk | Signal::ImageDisk);
                    let amount = if disk { bytes } else { inodes };
                    used += if place.ephemeral { amount } else { 0 };
                }
            }
            if signal == Signal::Pids {
                used = number(linux.process.as_ref().and_then(|p| p.process_count.as_ref()));
            }
            out.push(Candidate { pod: of, used, containers });
        }
        out
    };
    tokio::task::spawn_blocking(measure).await.unwrap_or_default()
}

/// The part of `capacity` that is kept from pods.
pub fn kept(thresholds: &Thresholds, signal: Signal, capacity: u64) -> u64 {
    thresholds.get(&signal).map_or(0, |least| least.of(capacity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_a_second_to_end() {
        for (own, most, expected) in [
            (30, None, 1),
            (30, Some(0), 1),
            (30, Some(20), 20),
            (5, Some(20), 5),
            (0, Some(20), 1),
        ] {
            let of = serde_json::json!({"spec": {"containers": [], "terminationGracePeriodSeconds": own}});
            let of: Pod = serde_json::from_value(of).unwrap();
            assert_eq!(grace_seconds(&of, most), expected, "{own} {most:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_lasts_and_keeps_pods_away() {
        let pressure = Pressure::default();
        let of = |class: &str, key: &str| -> Pod {
            serde_json::from_value(serde_json::json!({"status": {"qosClass": class}, "spec": {
                "containers": [], "tolerations": [{"key": key, "operator": "Exists"}]}}))
            .unwrap()
        };
        let best_effort = of("BestEffort", "x");
        assert!(pressure.admit(&best_effort).is_ok());
        pressure.note(&BTreeSet::from([Signal::Memory]));
        let refusal = pressure.admit(&best_effort).unwrap_err();
        assert_eq!(refusal.message, "The node had condition: [MemoryPressure]. ");
        assert!(pressure.admit(&of("Burstable", "x")).is_ok());
        assert!(pressure.admit(&of("BestEffort", "node.kubernetes.io/memory-pressure")).is_ok());
        tokio::time::sleep(Duration::from_mins(4)).await;
        assert!(pressure.is("MemoryPressure"));
        pressure.note(&BTreeSet::from([Signal::NodeDisk]));
        assert!(pressure.admit(&of("Burstable", "x")).is_err());
        tokio::time::sleep(Duration::from_mins(6)).await;
        assert!(pressure.admit(&best_effort).is_err(), "it has not been looked again");
        pressure.note(&BTreeSet::new());
        assert!(pressure.admit(&best_effort).is_ok());
    }
}
