//! Probes: one task per running container and probe, its result kept where the decision core reads
//! it, its failures told as events.
//!
//! Source of behaviour: `pkg/kubelet/prober`, `pkg/probe`.

mod check;
mod grpc;
pub mod http;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Probe};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

pub use check::{Outcome, Target, port};

use crate::context::Context;
use crate::decide::ProbeResults;
use crate::observe::{PodView, State};
use crate::pod::{self, Kind};
use crate::status::is_running;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Purpose {
    Startup,
    Liveness,
    Readiness,
}

impl Purpose {
    fn title(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

type Results = Arc<Mutex<HashMap<String, ProbeResults>>>;

/// The probes of one pod.
#[derive(Default)]
pub struct Probes {
    tasks: HashMap<(String, Purpose), AbortOnDropHandle<()>>,
    results: Results,
}

impl Probes {
    /// What an earlier kubelet told of the pod's containers holds until their probes say otherwise: that another one
    /// has begun is no reason to keep requests away from them.
    pub fn told(status: &PodStatus) -> Self {
        let lists = [&status.init_container_statuses, &status.container_statuses];
        let running = lists.into_iter().flatten().flatten().filter(|s| is_running(s));
        let results = running.filter_map(|status| {
            let (_, id) = status.container_id.as_deref()?.split_once("://")?;
            let startup = status.started.filter(|started| *started);
            let readiness = Some(status.ready).filter(|ready| *ready);
            Some((id.to_owned(), ProbeResults { startup, readiness, liveness: None }))
        });
        Self { results: Arc::new(Mutex::new(results.collect())), ..Self::default() }
    }

    /// Results by container id.
    pub fn results(&self) -> HashMap<String, ProbeResults> {
        lock(&self.results).clone()
    }

    /// Starts probes of containers that run and ends those of containers that do not. When the pod
    /// is `ending` only readiness goes on, so that its endpoints know.
    pub fn update(
        &mut self,
        context: &Arc<Context>,
        of: &Arc<Pod>,
        view: &PodView,
        wake: &Arc<Notify>,
        ending: bool,
    ) {
        let mut live: Vec<(String, Purpose)> = Vec::new();
        for (kind, container) in pod::all_containers(of) {
            let probed =
                kind == Kind::Regular || (kind == Kind::Init && pod::is_sidecar(&container));
            let running = view.latest(&container.name).filter(|o| o.state == State::Running);
            let Some(observed) = running.filter(|_| probed) else { continue };
            let results = lock(&self.results).get(&observed.id).copied().unwrap_or_default();
            let started = container.startup_probe.is_none() || results.startup == Some(true);
            for purpose in [Purpose::Startup, Purpose::Liveness, Purpose::Readiness] {
                let Some(probe) = purpose.of(&container) else { continue };
                let due = match purpose {
                    Purpose::Startup => !started && !ending,
                    Purpose::Liveness => started && !ending,
                    Purpose::Readiness => started,
                };
                if !due {
                    continue;
                }
                let key = (observed.id.clone(), purpose);
                live.push(key.clone());
                if self.tasks.contains_key(&key) {
                    continue;
                }
                let worker = Worker {
                    context: context.clone(),
                    pod: of.clone(),
                    kind,
                    container: container.clone(),
                    probe: probe.clone(),
                    purpose,
                    target: Target {
                        container_id: observed.id.clone(),
                        pod_ip: pod_ip(context, of, view),
                    },
                    started_at: observed.started_at.unwrap_or(observed.created_at),
                    results: self.results.clone(),
                    wake: wake.clone(),
                };
                self.tasks.insert(key, AbortOnDropHandle::new(tokio::spawn(worker.run())));
            }
        }
        self.tasks.retain(|key, _| live.contains(key));
        lock(&self.results)
            .retain(|id, _| view.by_id(id).is_some_and(|o| o.state == State::Running));
    }
}

/// The address at which a pod's containers answer.
pub fn pod_ip(context: &Context, of: &Pod, view: &PodView) -> String {
    if pod::host_network(of) {
        return context.node_ip.to_string();
    }
    view.sandboxes.first().and_then(|s| s.ips.first().cloned()).unwrap_or_default()
}

struct Worker {
    context: Arc<Context>,
    pod: Arc<Pod>,
    kind: Kind,
    container: Container,
    probe: Probe,
    purpose: Purpose,
    target: Target,
    started_at: jiff::Timestamp,
    results: Results,
    wake: Arc<Notify>,
}

impl Worker {
    async fn run(self) {
        let positive =
            |value: Option<i32>, default: i32| value.filter(|v| *v > 0).unwrap_or(default) as u64;
        let period = Duration::from_secs(positive(self.probe.period_seconds, 10));
        let delay = i64::from(self.probe.initial_delay_seconds.unwrap_or(0));
        let first = self.started_at + jiff::SignedDuration::from_secs(delay);
        tokio::time::sleep_until(self.context.clock.instant(first)).await;
        let failure_threshold = positive(self.probe.failure_threshold, 3);
        let success_threshold = positive(self.probe.success_threshold, 1);
        let mut last: Option<bool> = None;
        let mut in_a_row = 0;
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome =
                check::probe(&self.context, &self.container, &self.probe, &self.target).await;
            let result = match &outcome {
                Outcome::Success | Outcome::Warning(_) => "successful",
                Outcome::Failure(_) => "failed",
                Outcome::Unknown(_) => "unknown",
            };
            let counters = &self.context.counters;
            counters.probed(&self.pod, &self.container.name, self.purpose.title(), result);
            let good = match &outcome {
                Outcome::Success => true,
                Outcome::Warning(message) => {
                    let about = Some((self.kind, self.container.name.as_str()));
                    let text = format!("{} probe warning: {message}", self.purpose.title());
                    self.context.warning(&self.pod, about, "ProbeWarning", text);
                    true
                }
                Outcome::Failure(message) => {
                    let title = self.purpose.title();
                    let about = Some((self.kind, self.container.name.as_str()));
                    let text = format!("{title} probe failed: {message}");
                    self.context.warning(&self.pod, about, "Unhealthy", text);
                    false
                }
                // The probe itself could not be made: nothing is known of the container.
                Outcome::Unknown(message) => {
                    let title = self.purpose.title();
                    let about = Some((self.kind, self.container.name.as_str()));
                    let text =
                        format!("{title} probe errored and resulted in unknown state: {message}");
                    self.context.warning(&self.pod, about, "Unhealthy", text);
                    continue;
                }
            };
            in_a_row = if last == Some(good) { in_a_row + 1 } else { 1 };
            last = Some(good);
            let threshold = if good { success_threshold } else { failure_threshold };
            if in_a_row < threshold {
                continue;
            }
            self.record(good);
            if !good && self.purpose != Purpose::Readiness {
                // The container is about to be replaced; its successor gets probes of its own.
                return;
            }
            if good && self.purpose == Purpose::Startup {
                return;
            }
        }
    }

    fn record(&self, good: bool) {
        let changed = {
            let mut results = lock(&self.results);
            let entry = results.entry(self.target.container_id.clone()).or_default();
            let field = match self.purpose {
                Purpose::Startup => &mut entry.startup,
                Purpose::Liveness => &mut entry.liveness,
                Purpose::Readiness => &mut entry.readiness,
            };
            field.replace(good) != Some(good)
        };
        if changed {
            self.wake.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
