//! Claimed devices: drivers prepare the claims of a pod before its containers start, and take them back after it.
//!
//! Source of behaviour: `pkg/kubelet/cm/dra/manager.go`, `claiminfo.go`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::api::resource::v1::ResourceClaim;
use kube::Api;
use plugin::Plugin;
use plugin::claims::{Claim, Claims, Prepared, Unprepared};
use plugin::device::{CdiDevice, Edits};
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::pod;

const FILE: &str = "dra_manager_state";
/// The services by the versions that drivers offer, the newest first: version, preparing, taking back.
const SERVICES: [(&str, &str, &str); 2] = [
    (
        "v1.DRAPlugin",
        "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",
        "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources",
    ),
    (
        "v1beta1.DRAPlugin",
        "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources",
        "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources",
    ),
];

/// Where a driver answers, and in which version.
#[derive(Clone, Debug)]
struct Driver {
    endpoint: PathBuf,
    service: usize,
}

/// A device of a prepared claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Device {
    requests: Vec<String>,
    cdi: Vec<String>,
}

impl Device {
    /// Whether it is for this request of its claim; alternatives of one are `request/alternative`.
    fn is_for(&self, request: &str) -> bool {
        let whole = |known: &String| known.split('/').next() == Some(request);
        self.requests.is_empty() || self.requests.iter().any(whole)
    }
}

/// A claim that drivers have prepared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Held {
    namespace: String,
    name: String,
    /// By driver.
    devices: BTreeMap<String, Vec<Device>>,
    /// The pods that use it.
    pods: BTreeSet<String>,
}

#[derive(Default)]
struct State {
    drivers: BTreeMap<String, Driver>,
    /// By uid.
    held: BTreeMap<String, Held>,
}

/// The claims in use on this node.
#[derive(Default)]
pub struct InUse {
    file: PathBuf,
    state: Mutex<State>,
    /// Held while drivers are asked.
    asking: tokio::sync::Mutex<()>,
}

impl InUse {
    /// Those of a kubelet with this folder, with what was prepared before it started.
    pub fn new(root: &Path) -> Self {
        let file = root.join(FILE);
        let held = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let state = State { held: held.unwrap_or_default(), ..State::default() };
        Self { file, state: Mutex::new(state), asking: tokio::sync::Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a driver that offers one of the `versions` known here.
    pub fn register(
        &self,
        name: &str,
        endpoint: PathBuf,
        versions: &[String],
    ) -> Result<(), String> {
        let service =
            SERVICES.iter().position(|(version, ..)| versions.iter().any(|v| v == version));
        let service = service
            .ok_or_else(|| format!("none of the versions {versions:?} of {name} is supported"))?;
        self.lock().drivers.insert(name.to_owned(), Driver { endpoint, service });
        Ok(())
    }

    /// Forgets a driver.
    pub fn lose(&self, name: &str) {
        self.lock().drivers.remove(name);
    }

    fn driver(&self, name: &str) -> Result<Driver, String> {
        let found = self.lock().drivers.get(name).cloned();
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    fn save(&self) {
        let text = serde_json::to_vec(&self.lock().held).unwrap_or_default();
        let new = self.file.with_extension("new");
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.file));
        if let Err(error) = written {
            tracing::warn!(%error, "which claims are prepared is not written down");
        }
    }

    /// Has the drivers prepare the pod's claims that are not prepared yet.
    pub async fn prepare(&self, context: &Context, of: &Pod) -> Result<(), String> {
        let names = names(of);
        if names.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.asking.lock().await;
        let uid = pod::uid(of);
        for (entry, name) in names {
            let name = name.ok_or_else(|| format!("the claim {entry:?} is not made yet"))?;
            let namespace = pod::namespace(of);
            if self.lock().held.values().any(|held| {
                held.namespace == namespace && held.name == name && held.pods.contains(uid)
            }) {
                continue;
            }
            let api: Api<ResourceClaim> = Api::namespaced(context.client.clone(), namespace);
            let claim = api.get(&name).await.map_err(|error| {
                format!("fetch ResourceClaim {namespace}/{name}: {}", crate::api::text(&error))
            })?;
            self.prepare_one(&claim, of).await?;
        }
        Ok(())
    }

    async fn prepare_one(&self, claim: &ResourceClaim, of: &Pod) -> Result<(), String> {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let namespace = claim.metadata.namespace.clone().unwrap_or_default();
        let claim_uid = claim.metadata.uid.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        let allocation = status
            .allocation
            .ok_or_else(|| format!("ResourceClaim {namespace}/{name} is not allocated"))?;
        let reserved = status.reserved_for.iter().flatten().any(|user| user.uid == pod::uid(of));
        if !reserved {
            return Err(format!(
                "ResourceClaim {namespace}/{name} is not reserved for the pod {}",
                pod::full_name(of)
            ));
        }
        let results = allocation.devices.and_then(|devices| devices.results).unwrap_or_default();
        let drivers: BTreeSet<String> = results.into_iter().map(|result| result.driver).collect();
        let mut held = self.lock().held.get(&claim_uid).cloned().unwrap_or_default();
        for driver_name in drivers {
            if held.devices.contains_key(&driver_name) {
                continue;
            }
            let driver = self.driver(&driver_name)?;
            let failed = |reason: String| {
                format!("NodePrepareResources failed for ResourceClaim {name}: {reason}")
            };
            let plugin =
                Plugin::connect(&driver.endpoint).await.map_err(|e| failed(e.to_string()))?;
            let asked =
                Claim { namespace: namespace.clone(), uid: claim_uid.clone(), name: name.clone() };
            let request = Claims { claims: vec![asked] };
            let mut answer: Prepared = plugin
                .call(SERVICES[driver.service].1, request)
                .await
                .map_err(|e| failed(e.to_string()))?;
            let prepared = answer
                .claims
                .remove(&claim_uid)
                .ok_or_else(|| failed("the driver did not prepare it".into()))?;
            if !prepared.error.is_empty() {
                return Err(failed(prepared.error));
            }
            let devices = prepared.devices.into_iter();
            let devices = devices.map(|device| Device {
                requests: device.request_names,
                cdi: device.cdi_device_ids,
            });
            held.devices.insert(driver_name, devices.collect());
        }
        held.pods.insert(pod::uid(of).to_owned());
        (held.namespace, held.name) = (namespace, name);
        self.lock().held.insert(claim_uid, held);
        self.save();
        Ok(())
    }

    /// What the container gets of the pod's claims.
    pub fn edits(&self, of: &Pod, container: &Container) -> Edits {
        let state = self.lock();
        let mut ids: Vec<String> = Vec::new();
        for (name, request) in wanted(of, container) {
            let own = state
                .held
                .values()
                .filter(|held| held.name == name && held.namespace == pod::namespace(of));
            for device in own.flat_map(|held| held.devices.values().flatten()) {
                if request.as_deref().is_none_or(|request| device.is_for(request)) {
                    ids.extend(device.cdi.iter().cloned());
                }
            }
        }
        ids.sort();
        ids.dedup();
        let cdi_devices = ids.into_iter().map(|name| CdiDevice { name }).collect();
        Edits { cdi_devices, ..Edits::default() }
    }

    /// Has the drivers take back what the pod was the last to use.
    pub async fn give_back(&self, uid: &str) -> Result<(), String> {
        let own: Vec<(String, Held)> = {
            let state = self.lock();
            let own = state.held.iter().filter(|(_, held)| held.pods.contains(uid));
            own.map(|(claim, held)| (claim.clone(), held.clone())).collect()
        };
        if own.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.asking.lock().await;
        for (claim, held) in own {
            if held.pods.len() == 1 {
                self.unprepare(&claim, &held).await?;
                self.lock().held.remove(&claim);
            } else if let Some(known) = self.lock().held.get_mut(&claim) {
                known.pods.remove(uid);
            }
        }
        self.save();
        Ok(())
    }

    async fn unprepare(&self, claim: &str, held: &Held) -> Result<(), String> {
        let failed = |reason: String| {
            format!("NodeUnprepareResources failed for ResourceClaim {}: {reason}", held.name)
        };
        for driver in held.devices.keys() {
            let driver = self.driver(driver).map_err(failed)?;
            let plugin =
                Plugin::connect(&driver.endpoint).await.map_err(|e| failed(e.to_string()))?;
            let asked = Claim {
                namespace: held.namespace.clone(),
                uid: claim.to_owned(),
                name: held.name.clone(),
            };
            let request = Claims { claims: vec![asked] };
            let mut answer: Unprepared = plugin
                .call(SERVICES[driver.service].2, request)
                .await
                .map_err(|e| failed(e.to_string()))?;
            let done = answer.claims.remove(claim);
            let done = done.ok_or_else(|| failed("the driver did not take it back".into()))?;
            if !done.error.is_empty() {
                return Err(failed(done.error));
            }
        }
        Ok(())
    }

    /// Whether the pod with this uid has claims that drivers prepared.
    #[cfg(test)]
    fn holds(&self, uid: &str) -> bool {
        self.lock().held.values().any(|held| held.pods.contains(uid))
    }
}

/// The pod's claims: what the pod calls each, and its name where it has one. A claim that was not needed has none of
/// either.
fn names(of: &Pod) -> Vec<(String, Option<String>)> {
    let status = of.status.as_ref();
    let made = status.and_then(|s| s.resource_claim_statuses.as_deref()).unwrap_or_default();
    let entries = of.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten());
    let mut all: Vec<(String, Option<String>)> = entries
        .filter_map(|entry| {
            if let Some(name) = &entry.resource_claim_name {
                return Some((entry.name.clone(), Some(name.clone())));
            }
            match made.iter().find(|known| known.name == entry.name) {
                // Made, and then found not to be needed.
                Some(known) if known.resource_claim_name.is_none() => None,
                Some(known) => Some((entry.name.clone(), known.resource_claim_name.clone())),
                None => Some((entry.name.clone(), None)),
            }
        })
        .collect();
    // Devices that stand in for extended resources have a claim that the scheduler made.
    let extended = status.and_then(|s| s.extended_resource_claim_status.as_ref());
    all.extend(
        extended.map(|known| {
            (known.resource_claim_name.clone(), Some(known.resource_claim_name.clone()))
        }),
    );
    all
}

/// The claims, by name, that the container uses, and which of their requests if not all.
fn wanted(of: &Pod, container: &Container) -> Vec<(String, Option<String>)> {
    let names: BTreeMap<String, Option<String>> = names(of).into_iter().collect();
    let uses = container.resources.iter().flat_map(|r| r.claims.iter().flatten());
    let mut all: Vec<(String, Option<String>)> = uses
        .filter_map(|used| Some((names.get(&used.name)?.clone()?, used.request.clone())))
        .collect();
    if let Some(made) = of.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref()) {
        let own = made.request_mappings.iter().filter(|m| m.container_name == container.name);
        all.extend(own.map(|m| (made.resource_claim_name.clone(), Some(m.request_name.clone()))));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use plugin::claims::{PreparedClaim, PreparedDevice, UnpreparedClaim};
    use plugin::serve;
    use serde_json::json;

    use super::*;
    use crate::fake::node::Node;
    use crate::node::machine;

    /// A driver that prepares a device for the request `one` of any claim.
    fn driver(calls: Arc<Mutex<Vec<String>>>) -> serve::Handler {
        Arc::new(move |request| {
            let calls = calls.clone();
            Box::pin(async move {
                let path = request.uri().path().to_owned();
                if path.ends_with("/NodePrepareResources") {
                    let work = move |asked: Claims| {
                        let claim = &asked.claims[0];
                        calls.lock().unwrap().push(format!("prepare {}", claim.name));
                        let device = PreparedDevice {
                            request_names: vec!["one/small".into()],
                            cdi_device_ids: vec!["example.com/paint=a".into()],
                            ..PreparedDevice::default()
                        };
                        let done = PreparedClaim { devices: vec![device], error: String::new() };
                        Ok(Prepared { claims: [(claim.uid.clone(), done)].into() })
                    };
                    return serve::unary(request, work).await;
                }
                let work = move |asked: Claims| {
                    let claim = &asked.claims[0];
                    calls.lock().unwrap().push(format!("take back {}", claim.name));
                    Ok(Unprepared {
                        claims: [(claim.uid.clone(), UnpreparedClaim::default())].into(),
                    })
                };
                serve::unary(request, work).await
            })
        })
    }

    #[tokio::test]
    async fn claims_are_prepared_once_and_taken_back_by_the_last() {
        let node = Node::new();
        let context = node.context(machine::read());
        let users = json!([{"resource": "pods", "name": "p", "uid": "u1"},
            {"resource": "pods", "name": "q", "uid": "u2"}]);
        let claim = json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": "c", "namespace": "ns", "uid": "cu"}, "spec": {},
            "status": {"reservedFor": users, "allocation": {"devices": {"results": [
                {"driver": "d.example.com", "pool": "p", "device": "a", "request": "one"}]}}}});
        node.api.put("/apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/c", claim);
        let pod = |name: &str, uid: &str, request: &str| -> Pod {
            serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "ns", "uid": uid},
                "spec": {"resourceClaims": [{"name": "mine", "resourceClaimName": "c"}],
                "containers": [{"name": "main", "resources":
                    {"claims": [{"name": "mine", "request": request}]}}]}}),
            )
            .unwrap()
        };
        let (first, second) = (pod("p", "u1", "one"), pod("q", "u2", "two"));
        let refused = context.claims.prepare(&context, &first).await.unwrap_err();
        assert_eq!(refused, "DRA driver d.example.com is not registered");

        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        std::fs::create_dir_all(&context.root_dir).unwrap();
        let socket = context.root_dir.join("d.sock");
        let listener = serve::bind(&context.root_dir, std::ffi::OsStr::new("d.sock")).unwrap();
        tokio::spawn(serve::serve(listener, driver(calls.clone())));
        let old = ["v1alpha9".to_owned()];
        assert!(context.claims.register("d.example.com", socket.clone(), &old).is_err());
        let versions = ["v1beta1.DRAPlugin".to_owned()];
        context.claims.register("d.example.com", socket, &versions).unwrap();
        let stranger = pod("r", "u3", "one");
        let refused = context.claims.prepare(&context, &stranger).await.unwrap_err();
        assert!(refused.contains("is not reserved for the pod"), "{refused}");
        for of in [&first, &first, &second] {
            context.claims.prepare(&context, of).await.unwrap();
        }
        let ids = |of: &Pod| {
            let edits = context.claims.edits(of, &crate::pod::containers(of)[0]);
            edits.cdi_devices.into_iter().map(|device| device.name).collect::<Vec<_>>()
        };
        assert_eq!(ids(&first), ["example.com/paint=a"]);
        assert!(ids(&second).is_empty(), "another request of the claim");
        assert!(InUse::new(&context.root_dir).holds("u1"), "another kubelet knows");
        context.claims.give_back("u1").await.unwrap();
        assert!(context.claims.holds("u2") && !context.claims.holds("u1"));
        context.claims.give_back("u2").await.unwrap();
        assert_eq!(*calls.lock().unwrap(), ["prepare c", "take back c"]);
    }
}
