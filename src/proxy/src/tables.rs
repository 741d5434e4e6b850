//! The table of services, kept: a change of one object touches what that object contributes, however
//! many others there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use client::{Key, Move, SliceOwners, key};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use netns::{Backend, Frontend, ServiceChange, ServiceTable};

use crate::table::{Place, entries, host_ports, is_ours};

/// The table for these objects.
pub fn table(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    pods: &[Arc<Pod>],
    place: &Place,
) -> ServiceTable {
    let mut tables = Tables::new(place.clone());
    tables.reset(services, slices, pods);
    tables.change();
    tables.table
}

/// Who wants a frontend. The first in this order has it: Services before pods, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    is_pod: bool,
    since: Option<Time>,
    key: Key,
}

/// What is known of one Service.
#[derive(Default)]
struct Known {
    service: Option<Arc<Service>>,
    /// By name.
    slices: BTreeMap<String, Arc<EndpointSlice>>,
    /// Where it is balanced by this program.
    balanced: Option<IpAddr>,
}

/// The table, and what it is made of.
pub(crate) struct Tables {
    place: Place,
    services: HashMap<Key, Known>,
    owners: SliceOwners,
    claims: BTreeMap<(Frontend, Claimant), Backend>,
    /// The frontends that each claims, by whether it is a pod.
    claimed: HashMap<(bool, Key), (Claimant, Vec<Frontend>)>,
    /// Services of which something has changed, and frontends whose claims have.
    stale: BTreeSet<Key>,
    touched: BTreeSet<Frontend>,
    table: ServiceTable,
}

impl Tables {
    /// An empty table, for a node at this place.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            services: HashMap::new(),
            owners: SliceOwners::default(),
            claims: BTreeMap::new(),
            claimed: HashMap::new(),
            stale: BTreeSet::new(),
            touched: BTreeSet::new(),
            table: ServiceTable::default(),
        }
    }

    /// The table as it was when [`Tables::change`] was called last.
    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// The slices of a Service.
    pub fn slices(&self, service: &Key) -> Vec<&Arc<EndpointSlice>> {
        let known = self.services.get(service);
        known.into_iter().flat_map(|known| known.slices.values()).collect()
    }

    /// There are these objects and no others.
    pub fn reset(
        &mut self,
        services: &[Arc<Service>],
        slices: &[Arc<EndpointSlice>],
        pods: &[Arc<Pod>],
    ) {
        // What is not there any more has to be found out; the table itself stays to be compared with.
        let gone: Vec<Claimant> = self.claimed.values().map(|(who, _)| who.clone()).collect();
        for who in gone {
            self.claim(who, Vec::new());
        }
        let balanced = std::mem::take(&mut self.services).into_iter();
        for (key, known) in balanced.filter(|(_, known)| known.balanced.is_some()) {
            self.set_balanced(&key, known.balanced);
        }
        self.owners.clear();
        for service in services {
            self.set_service(key(&**service), Some(service));
        }
        for slice in slices {
            self.set_slice(key(&**slice), Some(slice));
        }
        for pod in pods {
            self.set_pod(key(&**pod), Some(pod));
        }
    }

    /// The node is somewhere else now.
    pub fn set_place(&mut self, place: Place) {
        if self.place != place {
            self.place = place;
            self.stale.extend(self.services.keys().cloned());
        }
    }

    fn known(&mut self, key: &Key) -> &mut Known {
        self.stale.insert(key.clone());
        self.services.entry(key.clone()).or_default()
    }

    /// A Service is this now; None is gone.
    pub fn set_service(&mut self, key: Key, service: Option<&Arc<Service>>) {
        self.known(&key).service = service.cloned();
    }

    /// This program balances a Service at this address, or no more.
    pub fn set_balanced(&mut self, key: &Key, address: Option<IpAddr>) {
        let before = self.services.get(key).and_then(|known| known.balanced);
        if before != address {
            self.known(key).balanced = address;
        }
    }

    /// An EndpointSlice is this now; None is gone.
    pub fn set_slice(&mut self, key: Key, slice: Option<&Arc<EndpointSlice>>) {
        let Move { left, owner } = self.owners.set(&key, slice.map(AsRef::as_ref));
        if let Some(left) = left {
            self.known(&left).slices.remove(&key.1);
        }
        if let (Some(owner), Some(slice)) = (owner, slice) {
            self.known(&owner).slices.insert(key.1, Arc::clone(slice));
        }
    }

    /// A pod is this now; None is gone.
    pub fn set_pod(&mut self, key: Key, pod: Option<&Arc<Pod>>) {
        let ports = pod.map_or_else(Vec::new, |pod| host_ports(pod, &self.place));
        let since = pod.and_then(|pod| pod.creation_timestamp());
        self.claim(Claimant { is_pod: true, since, key }, ports);
    }

    /// Makes the claims of one exactly these.
    fn claim(&mut self, who: Claimant, entries: Vec<(Frontend, Backend)>) {
        let place = (who.is_pod, who.key.clone());
        if let Some((before, frontends)) = self.claimed.remove(&place) {
            for frontend in frontends {
                self.touched.insert(frontend);
                self.claims.remove(&(frontend, before.clone()));
            }
        }
        if entries.is_empty() {
            return;
        }
        let frontends = entries.iter().map(|(frontend, _)| *frontend).collect();
        for (frontend, backend) in entries {
            self.touched.insert(frontend);
            self.claims.insert((frontend, who.clone()), backend);
        }
        self.claimed.insert(place, (who, frontends));
    }

    fn renew(&mut self, key: Key) {
        let known = self.services.get(&key);
        let service = known.and_then(|known| known.service.as_ref()).filter(|s| is_ours(s));
        let since = service.and_then(|service| service.creation_timestamp());
        let own = known.zip(service).map_or_else(Vec::new, |(known, service)| {
            let slices: Vec<_> = known.slices.values().collect();
            entries(service, &slices, &self.place, known.balanced)
        });
        if known.is_some_and(|known| known.service.is_none() && known.slices.is_empty()) {
            self.services.remove(&key);
        }
        self.claim(Claimant { is_pod: false, since, key }, own);
    }

    /// Brings the table up to date; returns what is different from the time before.
    pub fn change(&mut self) -> ServiceChange {
        for key in std::mem::take(&mut self.stale) {
            self.renew(key);
        }
        let mut change = ServiceChange::default();
        for frontend in std::mem::take(&mut self.touched) {
            let first = Claimant { is_pod: false, since: None, key: Key::default() };
            let mut claims = self.claims.range((frontend, first)..);
            let winner = claims.next().filter(|((own, _), _)| *own == frontend);
            let winner = winner.map(|(_, backend)| backend);
            if self.table.services.get(&frontend) == winner {
                continue;
            }
            if let Some(backend) = winner {
                self.table.services.insert(frontend, backend.clone());
                change.changed.push((frontend, backend.clone()));
            } else {
                self.table.services.remove(&frontend);
                change.gone.push(frontend);
            }
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::SERVICE_NAME;
    use proptest::prelude::*;
    use serde_json::json;

    fn place() -> Place {
        let addresses = vec!["10.42.0.1".parse().unwrap()];
        Place { node: "here".into(), addresses, zone: None }
    }

    /// Few addresses and ports, so that objects claim the same ones.
    fn service(name: &str, n: u8) -> Arc<Service> {
        let since = format!("2026-01-0{}T00:00:00Z", 1 + n % 3);
        let spec = json!({"clusterIP": format!("10.43.0.{n}"), "externalIPs": ["192.0.2.1"],
            "ports": [{"port": 80, "nodePort": 30000 + u16::from(n)}]});
        let metadata = json!({"name": name, "namespace": "d", "creationTimestamp": since});
        let service = json!({"metadata": metadata, "spec": spec});
        Arc::new(serde_json::from_value(service).unwrap())
    }

    fn slice(name: &str, n: u8) -> Arc<EndpointSlice> {
        let labels = json!({SERVICE_NAME: format!("o{}", n % 3)});
        let endpoints = json!([{"addresses": [format!("10.42.0.{n}")]}]);
        let slice = json!({"metadata": {"name": name, "namespace": "d", "labels": labels},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints});
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    fn pod(name: &str, n: u8) -> Arc<Pod> {
        let port = json!({"containerPort": 80, "hostPort": 30000 + u16::from(n)});
        let containers = json!([{"name": "c", "ports": [port]}]);
        let pod = json!({"metadata": {"name": name, "namespace": "d"},
            "spec": {"nodeName": "here", "containers": containers},
            "status": {"phase": "Running", "podIP": format!("10.42.0.{}", 10 + n)}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn service_key(name: &str) -> Key {
        ("d".into(), name.into())
    }

    #[test]
    fn a_load_balancer_is_at_its_address_until_it_is_none() {
        let mut tables = Tables::new(place());
        let key = service_key("o1");
        tables.reset(&[service("o1", 1)], &[slice("a", 1)], &[]);
        tables.change();
        let own: IpAddr = "127.64.0.1".parse().unwrap();
        tables.set_balanced(&key, Some(own));
        let change = tables.change();
        let at: Vec<IpAddr> = change.changed.iter().map(|(frontend, _)| frontend.address).collect();
        assert_eq!(at, [own]);
        tables.reset(&[service("o1", 1)], &[slice("a", 1)], &[]);
        assert_eq!(tables.change(), ServiceChange::default(), "nothing else was read");
        tables.set_balanced(&key, None);
        assert_eq!(tables.change().gone.len(), 1);
    }

    proptest! {
        #[test]
        fn changes_lead_to_the_table_of_what_there_is(
            steps in proptest::collection::vec((0..3u8, 0..3u8, 0..5u8, any::<bool>()), 0..40),
            together in 1..4usize,
        ) {
            let mut tables = Tables::new(place());
            let mut applied = ServiceTable::default();
            let (mut services, mut slices, mut pods) =
                (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            for some in steps.chunks(together) {
                for (kind, which, n, there) in some {
                    let name = format!("o{which}");
                    let key = service_key(&name);
                    match kind {
                        0 => {
                            let new = there.then(|| service(&name, *n));
                            tables.set_service(key.clone(), new.as_ref());
                            services.remove(&key);
                            services.extend(new.map(|new| (key, new)));
                        }
                        1 => {
                            let new = there.then(|| slice(&name, *n));
                            tables.set_slice(key.clone(), new.as_ref());
                            slices.remove(&key);
                            slices.extend(new.map(|new| (key, new)));
                        }
                        _ => {
                            let new = there.then(|| pod(&name, *n));
                            tables.set_pod(key.clone(), new.as_ref());
                            pods.remove(&key);
                            pods.extend(new.map(|new| (key, new)));
                        }
                    }
                }
                let change = tables.change();
                change.gone.iter().for_each(|frontend| drop(applied.services.remove(frontend)));
                applied.services.extend(change.changed);
                let services: Vec<_> = services.values().cloned().collect();
                let slices: Vec<_> = slices.values().cloned().collect();
                let pods: Vec<_> = pods.values().cloned().collect();
                let whole = table(&services, &slices, &pods, &place());
                prop_assert_eq!(&applied, &whole);
            }
        }
    }
}
