//! What the node and its pods use now: the runtime's counters, and the rates between two looks at them.
//! Nothing is measured while nobody asks.
//!
//! Source of behaviour: `pkg/kubelet/stats/cri_stats_provider.go`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_cri::v1 as cri;
use tokio::time::Instant;

use crate::context::Context;
use crate::node::machine;

/// Rates are made over at least this, where looks come often.
const WINDOW: Duration = Duration::from_secs(5);
/// A look older than this tells nothing of now; a second one follows soon.
const STALE: Duration = Duration::from_mins(2);
/// How soon.
const SOON: Duration = Duration::from_secs(1);
/// The answer to a question asked again at once.
const FRESH: Duration = Duration::from_millis(500);

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Every pod that runs, with its containers.
    pub pods: Vec<cri::PodSandboxStats>,
    /// CPU time of the node, nanoseconds since its boot.
    pub node_cpu_ns: u64,
    /// CPU time of all pods that run, nanoseconds.
    pub pods_cpu_ns: u64,
    /// CPU time of this process, nanoseconds.
    pub own_cpu_ns: u64,
    /// Billionths of a CPU in use, by id of sandbox or container; the node's under the empty id, and that of [`OWN`].
    pub nano_cores: HashMap<String, u64>,
    /// Over how long.
    pub window: Duration,
}

/// In the place of an id: this process.
pub const OWN: &str = "kubelet";

struct Look {
    at: Instant,
    /// CPU time by id, nanoseconds.
    cpu_ns: HashMap<String, u64>,
}

/// The last looks.
#[derive(Default)]
pub struct Sampler {
    before: Mutex<Option<Look>>,
    last: tokio::sync::Mutex<Option<(Instant, Usage)>>,
}

impl Sampler {
    /// What is used now. Waits a second for the rate when nobody has asked for a while.
    pub async fn usage(&self, context: &Context) -> Result<Usage, crate::cri::Error> {
        let mut last = self.last.lock().await;
        if let Some((at, usage)) = last.as_ref()
            && at.elapsed() < FRESH
        {
            return Ok(usage.clone());
        }
        if self.lock().as_ref().is_none_or(|look| look.at.elapsed() > STALE) {
            let (look, _) = look(context).await?;
            *self.lock() = Some(look);
            tokio::time::sleep(SOON).await;
        }
        let (now, mut usage) = look(context).await?;
        let mut before = self.lock();
        if let Some(look) = before.as_ref() {
            usage.window = now.at.duration_since(look.at);
            usage.nano_cores = rates(&look.cpu_ns, &now.cpu_ns, usage.window);
        }
        if usage.window >= WINDOW {
            *before = Some(now);
        } else if let Some(look) = before.as_mut() {
            // What has come since then is measured from its first look on.
            for (id, ns) in now.cpu_ns {
                look.cpu_ns.entry(id).or_insert(ns);
            }
        }
        drop(before);
        *last = Some((Instant::now(), usage.clone()));
        Ok(usage)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Look>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rates(
    before: &HashMap<String, u64>,
    now: &HashMap<String, u64>,
    window: Duration,
) -> HashMap<String, u64> {
    let nanos = window.as_nanos().max(1);
    let rate = |id: &String, ns: &u64| {
        let spent = u128::from(ns.checked_sub(*before.get(id)?)?);
        Some((id.clone(), u64::try_from(spent * 1_000_000_000 / nanos).unwrap_or(u64::MAX)))
    };
    now.iter().filter_map(|(id, ns)| rate(id, ns)).collect()
}

async fn look(context: &Context) -> Result<(Look, Usage), crate::cri::Error> {
    let request = cri::ListPodSandboxStatsRequest { filter: None };
    let pods = context.cri.list_pod_sandbox_stats(request).await?.stats;
    let node_cpu_ns = machine::cpu_ns();
    let cpu = |cpu: Option<&cri::CpuUsage>| {
        cpu.and_then(|c| c.usage_core_nano_seconds.as_ref()).map(|v| v.value)
    };
    let own_cpu_ns = machine::own_cpu_ns();
    let mut cpu_ns = HashMap::from([(String::new(), node_cpu_ns), (OWN.to_owned(), own_cpu_ns)]);
    let mut pods_cpu_ns = 0;
    for pod in &pods {
        let Some(linux) = &pod.linux else { continue };
        let id = pod.attributes.as_ref().map(|a| a.id.clone()).unwrap_or_default();
        pods_cpu_ns += cpu(linux.cpu.as_ref()).unwrap_or(0);
        cpu_ns.extend(cpu(linux.cpu.as_ref()).map(|ns| (id, ns)));
        for container in &linux.containers {
            let id = container.attributes.as_ref().map(|a| a.id.clone()).unwrap_or_default();
            cpu_ns.extend(cpu(container.cpu.as_ref()).map(|ns| (id, ns)));
        }
    }
    let usage = Usage { pods, node_cpu_ns, pods_cpu_ns, own_cpu_ns, ..Usage::default() };
    Ok((Look { at: Instant::now(), cpu_ns }, usage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_cpu_time_over_time() {
        let map = |list: &[(&str, u64)]| {
            list.iter().map(|(id, ns)| ((*id).to_owned(), *ns)).collect::<HashMap<_, _>>()
        };
        let before = map(&[("a", 1_000), ("reset", 5_000)]);
        let now = map(&[("a", 500_001_000), ("new", 7), ("reset", 0)]);
        // Half a CPU; what is new or began anew has no rate yet.
        assert_eq!(rates(&before, &now, Duration::from_secs(1)), map(&[("a", 500_000_000)]));
    }
}
