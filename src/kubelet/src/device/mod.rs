//! Devices of plugins: what of them the node has, and which container has which.
//!
//! Source of behaviour: `pkg/kubelet/cm/devicemanager/manager.go`, `pod_devices.go`.

mod checkpoint;
mod pod_resources;
mod registration;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceHealth, ResourceStatus};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use plugin::Plugin;
use plugin::device::{
    Allocate, Allocated, Edits, Ids, Options, Prefer, PreferContainer, Preferred,
};
use plugin::proto::Empty;

use crate::status::Waiting;
use crate::{pod, quantity};

pub use registration::{follow, run};

/// So long devices are told of after their plugin is gone (`endpointStopGracePeriod`).
const GRACE: Duration = Duration::from_mins(5);

/// The devices of one resource.
#[derive(Debug, Default)]
struct Resource {
    /// Where the plugin answers, while it does.
    endpoint: Option<PathBuf>,
    options: Options,
    /// Whether each can be used.
    devices: BTreeMap<String, bool>,
    /// Since when the plugin is gone.
    gone: Option<Instant>,
}

/// What a container was given of one resource.
#[derive(Clone, Debug, PartialEq)]
struct Given {
    devices: BTreeSet<String>,
    edits: Edits,
}

/// Pod, container, resource.
type Key = (String, String, String);

#[derive(Debug, Default)]
struct State {
    resources: BTreeMap<String, Resource>,
    given: BTreeMap<Key, Given>,
    /// By resource, how many runs of its plugin there were: a run that ends late says nothing of the next.
    runs: BTreeMap<String, u64>,
    /// Resources whose plugin has been gone for long.
    lost: BTreeSet<String>,
}

/// The plugins' devices.
#[derive(Default)]
pub struct Devices {
    folder: PathBuf,
    state: Mutex<State>,
    /// Held while devices are given.
    giving: tokio::sync::Mutex<()>,
}

/// Which devices of `resource` a container gets: what it `may reuse` first, then others.
fn choose(
    state: &State,
    resource: &str,
    reusable: &BTreeSet<String>,
    needed: usize,
) -> Result<(Vec<String>, Vec<String>), String> {
    let known = state.resources.get(resource);
    let mut kept: Vec<String> = reusable.iter().take(needed).cloned().collect();
    kept.sort();
    let missing = needed - kept.len();
    let used: BTreeSet<&String> = state
        .given
        .iter()
        .filter(|((.., of), _)| of == resource)
        .flat_map(|(_, given)| &given.devices)
        .collect();
    let healthy = known.iter().flat_map(|known| &known.devices).filter(|(_, healthy)| **healthy);
    let free: Vec<String> =
        healthy.map(|(id, _)| id.clone()).filter(|id| !used.contains(id)).collect();
    if free.len() < missing {
        return Err(format!(
            "requested number of devices unavailable for {resource}. Requested: {missing}, Available: {}",
            free.len()
        ));
    }
    Ok((kept, free))
}

/// What the container asks for of the plugins' resources.
fn wanted(container: &Container, known: &BTreeSet<String>) -> Vec<(String, usize)> {
    let limits = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
    let wanted = limits.filter(|(name, _)| known.contains(*name)).filter_map(|(name, amount)| {
        let count = usize::try_from(quantity::value(amount)?).ok().filter(|count| *count > 0)?;
        Some((name.clone(), count))
    });
    wanted.collect()
}

impl Devices {
    /// Those of a kubelet with this folder, with what was given before it started.
    pub fn new(root: &Path) -> Self {
        let folder = root.join("device-plugins");
        let mut state = State::default();
        if let Some(kept) = checkpoint::read(&folder) {
            // What is left of pods that are gone is free.
            state.given = kept.given;
            state.given.retain(|(uid, ..), _| crate::volumes::directory(root, uid).exists());
            for (name, devices) in kept.registered {
                let devices = devices.into_iter().map(|id| (id, false)).collect();
                let gone = Some(Instant::now());
                state.resources.insert(name, Resource { devices, gone, ..Resource::default() });
            }
        }
        Self { folder, state: Mutex::new(state), giving: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self) {
        let state = self.lock();
        if let Err(error) = checkpoint::write(&self.folder, &state) {
            tracing::warn!(%error, "who has which device is not written down");
        }
    }

    /// What the node has of each resource, and what of it pods can have. Nothing of it remains nothing, which tells
    /// that plugins had it once.
    pub fn amounts(&self) -> BTreeMap<String, (Quantity, Quantity)> {
        let mut state = self.lock();
        let is_over = |known: &Resource| known.gone.is_some_and(|since| since.elapsed() >= GRACE);
        let over: Vec<String> = state
            .resources
            .iter()
            .filter(|(_, known)| is_over(known))
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            state.resources.remove(&name);
            state.lost.insert(name);
        }
        let told = state.resources.iter().map(|(name, known)| {
            let healthy = known.devices.values().filter(|healthy| **healthy).count();
            let amount = |count: usize| Quantity(count.to_string());
            (name.clone(), (amount(known.devices.len()), amount(healthy)))
        });
        let none = || Quantity("0".to_owned());
        let lost = state.lost.iter().map(|name| (name.clone(), (none(), none())));
        told.chain(lost).collect()
    }

    /// Gives the pod's containers their devices.
    pub async fn allocate(&self, of: &Pod) -> Result<(), Waiting> {
        let known: BTreeSet<String> = self.lock().resources.keys().cloned().collect();
        if known.is_empty() {
            return Ok(());
        }
        let _one_pod_at_a_time = self.giving.lock().await;
        // What an init container had, the containers after it can have.
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut changed = false;
        let init = pod::init_containers(of).iter().map(|container| (true, container));
        let all = init.chain(pod::containers(of).iter().map(|container| (false, container)));
        for (is_init, container) in all {
            for (resource, needed) in wanted(container, &known) {
                let reuse = reusable.entry(resource.clone()).or_default();
                let key = (pod::uid(of).to_owned(), container.name.clone(), resource.clone());
                let has = self.lock().given.get(&key).map(|given| given.devices.clone());
                let devices = if let Some(devices) = has {
                    devices
                } else {
                    changed = true;
                    let given = self.give(&resource, reuse, needed).await;
                    let given = given.map_err(|reason| Waiting {
                        reason: "UnexpectedAdmissionError".into(),
                        message: format!("Allocate failed due to {reason}, which is unexpected"),
                    })?;
                    let devices = given.devices.clone();
                    self.lock().given.insert(key, given);
                    devices
                };
                if is_init && !pod::is_sidecar(container) {
                    reuse.extend(devices);
                } else {
                    reuse.retain(|id| !devices.contains(id));
                }
            }
        }
        if changed {
            self.save();
        }
        Ok(())
    }

    async fn give(
        &self,
        resource: &str,
        reusable: &BTreeSet<String>,
        needed: usize,
    ) -> Result<Given, String> {
        let (mut devices, free, endpoint, options) = {
            let state = self.lock();
            let (kept, free) = choose(&state, resource, reusable, needed)?;
            let known = state.resources.get(resource);
            let endpoint = known.and_then(|known| known.endpoint.clone());
            let endpoint =
                endpoint.ok_or_else(|| format!("the plugin of {resource} is not there"))?;
            (kept, free, endpoint, known.map(|known| known.options.clone()).unwrap_or_default())
        };
        let told = |error: plugin::call::Error| error.to_string();
        let plugin = Plugin::connect(&endpoint).await.map_err(told)?;
        let missing = needed - devices.len();
        if missing > 0 && options.get_preferred_allocation_available {
            let request = PreferContainer {
                available: devices.iter().chain(&free).cloned().collect(),
                must_include: devices.clone(),
                size: i32::try_from(needed).unwrap_or(i32::MAX),
            };
            let request = Prefer { container_requests: vec![request] };
            let method = "/v1beta1.DevicePlugin/GetPreferredAllocation";
            let answer: Preferred = plugin.call(method, request).await.map_err(told)?;
            let best = answer.container_responses.into_iter().flat_map(|ids| ids.devices);
            let best: Vec<String> = best.filter(|id| free.contains(id)).take(missing).collect();
            devices.extend(best);
        }
        for id in free {
            if devices.len() < needed && !devices.contains(&id) {
                devices.push(id);
            }
        }
        devices.sort();
        let request = Allocate { container_requests: vec![Ids { devices: devices.clone() }] };
        let answer: Allocated =
            plugin.call("/v1beta1.DevicePlugin/Allocate", request).await.map_err(told)?;
        let mut answers = answer.container_responses.into_iter();
        let edits = answers.next().ok_or("no containers in container allocation response")?;
        Ok(Given { devices: devices.into_iter().collect(), edits })
    }

    /// What a container needs to use its devices, once their plugins know that it starts.
    pub async fn prepare(&self, of: &Pod, container: &str) -> Result<Vec<Edits>, String> {
        let found: Vec<(String, Given)> = {
            let state = self.lock();
            let own = state
                .given
                .iter()
                .filter(|((uid, name, _), _)| uid == pod::uid(of) && name == container);
            own.map(|((.., resource), given)| (resource.clone(), given.clone())).collect()
        };
        let mut all = Vec::new();
        for (resource, given) in found {
            let endpoint = {
                let state = self.lock();
                let known = state.resources.get(&resource);
                let told = known.filter(|known| known.options.pre_start_required);
                told.map(|known| known.endpoint.clone())
            };
            if let Some(endpoint) = endpoint {
                let endpoint =
                    endpoint.ok_or_else(|| format!("the plugin of {resource} is not there"))?;
                let failed = |error: plugin::call::Error| {
                    format!("device plugin PreStartContainer rpc failed with err: {error}")
                };
                let plugin = Plugin::connect(&endpoint).await.map_err(failed)?;
                let request = Ids { devices: given.devices.iter().cloned().collect() };
                let method = "/v1beta1.DevicePlugin/PreStartContainer";
                let _: Empty = plugin.call(method, request).await.map_err(failed)?;
            }
            all.push(given.edits);
        }
        Ok(all)
    }

    /// How the container's devices are.
    pub fn health(&self, uid: &str, container: &str) -> Option<Vec<ResourceStatus>> {
        let state = self.lock();
        let own = state.given.iter().filter(|((of, name, _), _)| of == uid && name == container);
        let told = own.map(|((.., resource), given)| {
            let known = state.resources.get(resource);
            let health = |id: &String| match known.and_then(|known| known.devices.get(id)) {
                Some(true) => "Healthy",
                Some(false) => "Unhealthy",
                None => "Unknown",
            };
            let resources = given.devices.iter().map(|id| ResourceHealth {
                resource_id: id.clone(),
                health: Some(health(id).to_owned()),
                ..ResourceHealth::default()
            });
            ResourceStatus { name: resource.clone(), resources: Some(resources.collect()) }
        });
        Some(told.collect::<Vec<_>>()).filter(|told| !told.is_empty())
    }

    /// The pod has stopped.
    pub fn release(&self, uid: &str) {
        let freed = {
            let mut state = self.lock();
            let before = state.given.len();
            state.given.retain(|(of, ..), _| of != uid);
            state.given.len() != before
        };
        if freed {
            self.save();
        }
    }

    /// The pods, by uid, that have devices of this resource.
    fn users(&self, resource: &str) -> BTreeSet<String> {
        let state = self.lock();
        let own = state.given.keys().filter(|(.., of)| of == resource);
        own.map(|(uid, ..)| uid.clone()).collect()
    }
}
