//! The loop over Services: tables, published ports, status and events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Informer, Key, Recorder};
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use netns::{Forward, Protocol, Publication, Refused, ServiceChange};
use serde_json::json;

use crate::health::{self, HealthChecks};
use crate::publish::{self, Entry, Purpose, Settings};
use crate::status::Status;
use crate::table::HostPort;
use crate::tables::Tables;
use crate::{Config, RETRY, SETTLE};

/// What the host refused may be had later: a port was given back, an address came with another network.
const AGAIN: Duration = Duration::from_secs(5);
/// What is refused again and again is tried this rarely in the end.
const SELDOM: Duration = Duration::from_mins(1);
/// The component that events name.
const COMPONENT: &str = "service-controller";
/// Of the event about a health check port that could not be had (`pkg/proxy/healthcheck`).
const HEALTH_CHECK_FAILED: &str = "FailedToStartServiceHealthcheck";
/// The taint of nodes that the cluster autoscaler is about to remove.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";
/// Where a node says in which zone it stands (well-known labels).
const ZONE: &str = "topology.kubernetes.io/zone";

/// Keeps everything about Services in step with the API, for ever.
pub(crate) async fn follow(config: Config) {
    let services = config.informers.get::<Service>();
    let slices = config.informers.get::<EndpointSlice>();
    let pods = config.informers.get::<Pod>();
    let nodes = config.informers.get::<Node>();
    let own = config.place.node.clone();
    let mut changes = std::pin::pin!(futures::stream::select_all([
        services.subscribe().map(|change| Changed::of(&change, Changed::Service)).boxed(),
        slices.subscribe().map(|change| Changed::of(&change, Changed::Slice)).boxed(),
        pods.subscribe().map(|change| Changed::of(&change, Changed::Pod)).boxed(),
        zones(&nodes, own).map(|_| Changed::Zone).boxed(),
    ]));
    services.ready().await;
    slices.ready().await;
    pods.ready().await;
    let control = config.control.clone();
    let mut lost = std::pin::pin!(control.until_lost());
    let (informer, own) = (nodes.clone(), config.place.node.clone());
    let eligible = move || informer.get("", &own).is_none_or(|node| takes_traffic(&node));
    let status = Status::start(eligible).await;
    let mut keeper = Keeper::new(config, status, (services, slices, pods, nodes));
    keeper.take(Changed::Anything);
    loop {
        if let Err(error) = keeper.sync().await {
            tracing::warn!(error = error.chain(), "cannot apply the services");
            tokio::time::sleep(RETRY).await;
            continue;
        }
        keeper.status.updated();
        tokio::select! {
            change = changes.next() => match change {
                Some(changed) => keeper.take(changed),
                None => return,
            },
            () = &mut lost => {
                keeper.forget();
                lost.set(control.until_lost());
            }
            () = tokio::time::sleep(keeper.again), if keeper.may_be_had() => {
                keeper.again = (keeper.again * 2).min(SELDOM);
            }
        }
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(changed)) = futures::FutureExt::now_or_never(changes.next()) {
            keeper.take(changed);
        }
    }
}

/// What may have changed.
enum Changed {
    Service(Key),
    Slice(Key),
    Pod(Key),
    Zone,
    Anything,
}

impl Changed {
    fn of<K: Resource>(change: &Change<K>, one: impl FnOnce(Key) -> Self) -> Self {
        change.key().map_or(Self::Anything, one)
    }
}

/// Changes of the zone that a node says it is in.
fn zones(nodes: &Informer<Node>, own: String) -> impl Stream<Item = Option<String>> + use<> {
    let informer = nodes.clone();
    let mut last = None;
    nodes.subscribe().filter_map(move |_| {
        let zone = zone(&informer, &own);
        let changed = last.as_ref() != Some(&zone);
        last = Some(zone.clone());
        std::future::ready(changed.then_some(zone))
    })
}

fn zone(nodes: &Informer<Node>, name: &str) -> Option<String> {
    nodes.get("", name)?.labels().get(ZONE).cloned()
}

/// Whether load balancers are to send new connections to a node: not to one that is about to go
/// (`pkg/proxy/healthcheck/proxy_health.go`, KEP-3836).
fn takes_traffic(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let leaves = taints.into_iter().flatten().any(|taint| taint.key == TO_BE_DELETED);
    !leaves && node.metadata.deletion_timestamp.is_none()
}

/// What the objects are read from.
type Informed = (Informer<Service>, Informer<EndpointSlice>, Informer<Pod>, Informer<Node>);

struct Keeper {
    config: Config,
    settings: Settings,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    recorder: Recorder,
    health: HealthChecks,
    status: Status,
    tables: Tables,
    /// Whether the node process has the table as it is.
    applied: bool,
    /// The Services that have something beyond the table: ports of the host, a status, a health check.
    concerned: BTreeMap<Key, Arc<Service>>,
    /// The pods that have host ports.
    hosted: BTreeMap<Key, Arc<Pod>>,
    published: Option<(Vec<Publication>, Vec<Option<Refused>>)>,
    /// After how long that is tried again which could not be had.
    again: Duration,
    /// The load balancers, by uid, that could not have their own address. What stands in for it stays in place
    /// while that is tried again.
    homeless: BTreeSet<String>,
    forwards: Option<Vec<Forward>>,
    /// Complaints that were told and still hold.
    told: BTreeSet<(String, &'static str, String)>,
    /// What the load balancers' status says, by uid.
    balanced: BTreeMap<String, Option<Vec<LoadBalancerIngress>>>,
}

impl Keeper {
    fn new(config: Config, status: Status, (services, slices, pods, nodes): Informed) -> Self {
        Self {
            settings: Settings { place: config.place.clone(), addresses: config.publish.clone() },
            recorder: Recorder::new(config.client.clone(), COMPONENT, ""),
            tables: Tables::new(config.place.clone()),
            services,
            slices,
            pods,
            nodes,
            config,
            health: HealthChecks::new(status.health()),
            status,
            applied: false,
            concerned: BTreeMap::new(),
            hosted: BTreeMap::new(),
            published: None,
            again: AGAIN,
            homeless: BTreeSet::new(),
            forwards: None,
            told: BTreeSet::new(),
            balanced: BTreeMap::new(),
        }
    }

    /// The node process was started anew and knows nothing.
    fn forget(&mut self) {
        self.status.waiting();
        self.applied = false;
        self.published = None;
        self.forwards = None;
    }

    /// Whether there are ports that could not be had and may be had later.
    fn may_be_had(&self) -> bool {
        self.published
            .as_ref()
            .is_some_and(|(wanted, answers)| !refusals(wanted, answers).is_empty())
    }

    /// Takes up a change. The store is what counts: it may be further than the change that is told.
    fn take(&mut self, changed: Changed) {
        self.status.waiting();
        match changed {
            Changed::Service(key) => {
                let service = self.services.get(&key.0, &key.1);
                self.concern(&key, service.as_ref());
                self.tables.set_service(key, service.as_ref());
            }
            Changed::Slice(key) => {
                let slice = self.slices.get(&key.0, &key.1);
                self.tables.set_slice(key, slice.as_ref());
            }
            Changed::Pod(key) => {
                let pod = self.pods.get(&key.0, &key.1);
                self.host(&key, pod.as_ref());
                self.tables.set_pod(key, pod.as_ref());
            }
            Changed::Zone => {
                self.settings.place.zone = zone(&self.nodes, &self.settings.place.node);
                self.tables.set_place(self.settings.place.clone());
            }
            Changed::Anything => {
                let services = self.services.store().state();
                let pods = self.pods.store().state();
                for key in std::mem::take(&mut self.concerned).into_keys() {
                    self.tables.set_balanced(&key, None);
                }
                self.hosted.clear();
                for s in &services {
                    self.concern(&client::key(&**s), Some(s));
                }
                for pod in &pods {
                    self.host(&client::key(&**pod), Some(pod));
                }
                self.take(Changed::Zone);
                self.tables.reset(&services, &self.slices.store().state(), &pods);
            }
        }
    }

    fn concern(&mut self, key: &Key, service: Option<&Arc<Service>>) {
        let concerns = |service: &&Arc<Service>| {
            publish::concerns(service) || health::port_of(service).is_some()
        };
        if let Some(service) = service.filter(concerns) {
            self.concerned.insert(key.clone(), Arc::clone(service));
        } else {
            self.concerned.remove(key);
            self.tables.set_balanced(key, None);
        }
    }

    fn host(&mut self, key: &Key, pod: Option<&Arc<Pod>>) {
        let place = &self.settings.place;
        match pod.filter(|pod| !HostPort::of(pod, place).is_empty()) {
            Some(pod) => drop(self.hosted.insert(key.clone(), Arc::clone(pod))),
            None => drop(self.hosted.remove(key)),
        }
    }

    async fn sync(&mut self) -> Result<(), netns::Error> {
        let services: Vec<_> = self.concerned.values().cloned().collect();
        let pods: Vec<_> = self.hosted.values().cloned().collect();
        let addresses = publish::own_addresses(&services, &self.settings.place);
        for (key, service) in &self.concerned {
            let own = service.uid().and_then(|uid| addresses.get(&uid).copied());
            self.tables.set_balanced(key, own);
        }
        self.apply().await?;
        self.check_health().await;
        let mut entries = self.wanted(&services, &pods);
        let mut answers = self.publish(&entries).await?;
        let homeless = publish::without_own_address(&entries, &answers);
        if homeless != self.homeless {
            self.homeless = homeless;
            entries = self.wanted(&services, &pods);
            answers = self.publish(&entries).await?;
        }
        self.tell(&services, &entries, &answers).await;
        Ok(())
    }

    async fn apply(&mut self) -> Result<(), netns::Error> {
        let change = self.tables.change();
        // Should this fail, it is not known what holds: then the whole is told.
        if !std::mem::replace(&mut self.applied, false) {
            self.config.control.apply_services(self.tables.table().clone()).await?;
        } else if change != ServiceChange::default() {
            self.config.control.change_services(change).await?;
        }
        self.applied = true;
        Ok(())
    }

    fn wanted(&self, services: &[Arc<Service>], pods: &[Arc<Pod>]) -> Vec<Entry> {
        publish::wanted(services, pods, self.tables.table(), &self.settings, &self.homeless)
    }

    async fn publish(&mut self, entries: &[Entry]) -> Result<Vec<Option<Refused>>, netns::Error> {
        let wanted: Vec<_> = entries.iter().map(|entry| entry.publication.clone()).collect();
        if let Some((published, answers)) = &self.published
            && *published == wanted
            && refusals(published, answers).is_empty()
        {
            return Ok(answers.clone());
        }
        // Ports that could not be had are tried again, whenever anything changes and now and then.
        let answers = self.config.control.publish(wanted.clone()).await?;
        let before = self.published.as_ref().map(|(wanted, answers)| refusals(wanted, answers));
        if before.is_none_or(|before| before != refusals(&wanted, &answers)) {
            self.again = AGAIN;
        }
        self.published = Some((wanted, answers.clone()));
        Ok(answers)
    }

    async fn check_health(&mut self) {
        let slices = |key: &Key| self.tables.slices(key);
        let wanted = health::wanted(&self.concerned, slices, &self.settings.place);
        for (port, key, error) in self.health.set(wanted).await {
            let Some(service) = self.concerned.get(&key) else { continue };
            let (namespace, name) = key;
            let message = format!(
                "node {} failed to start healthcheck \"{namespace}/{name}\" on port {port}: {error}",
                self.settings.place.node
            );
            let (object, reason) = (client::object_reference(&**service), HEALTH_CHECK_FAILED);
            self.recorder.warning(object, reason, message);
        }
        let mut forwards = self.config.forwards.clone();
        forwards.extend(self.status.forwards(&self.settings.place.addresses));
        for port in self.health.ports() {
            for address in &self.settings.place.addresses {
                let host = SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
                forwards.push(Forward { node: SocketAddr::new(*address, port), host });
            }
        }
        if self.forwards.as_ref() == Some(&forwards) {
            return;
        }
        // One port that cannot be had must not keep the rest from being served; it is tried again
        // with the next change.
        match self.config.control.set_forwards(forwards.clone()).await {
            Ok(()) => self.forwards = Some(forwards),
            Err(error) => tracing::warn!(error = error.chain(), "a health check port is missing"),
        }
    }

    /// Status of load balancers, and events about ports that could not be had.
    async fn tell(
        &mut self,
        services: &[Arc<Service>],
        entries: &[Entry],
        answers: &[Option<Refused>],
    ) {
        for service in services {
            // By now what is to be let go is at no address any more.
            if let Some(keep) = publish::keep(service) {
                self.set_kept(service, keep).await;
            }
        }
        let balanced: Vec<_> = services.iter().filter(|s| publish::is_balanced(s)).collect();
        let mut known = BTreeMap::new();
        for service in balanced {
            let ingress = publish::ingress(service, entries, answers);
            self.set_status(service, ingress.as_ref()).await;
            known.insert(service.uid().unwrap_or_default(), ingress);
        }
        self.balanced = known;
        // One that was a load balancer until now is reached as such no more.
        for service in services.iter().filter(|service| publish::was_balanced(service)) {
            self.set_status(service, None).await;
        }
        let mut holding = BTreeSet::new();
        for (entry, answer) in entries.iter().zip(answers) {
            let Some(refused) = answer else { continue };
            let uid = entry.object.uid.clone().unwrap_or_default();
            let otherwise = (entry.purpose == Purpose::LoadBalancer)
                .then(|| self.balanced.get(&uid).cloned().flatten())
                .flatten()
                .and_then(|ingress| place_of(&ingress));
            let (reason, message) = publish::complaint(entry, refused, otherwise.as_deref());
            let key = (uid, reason, message.clone());
            if !self.told.contains(&key) {
                self.recorder.warning(entry.object.clone(), reason, message);
            }
            holding.insert(key);
        }
        self.told = holding;
    }

    /// Has a Service stay after its deletion until this program has let it go.
    async fn set_kept(&self, service: &Service, keep: bool) {
        let field = if keep { "finalizers" } else { "$deleteFromPrimitiveList/finalizers" };
        let patch = json!({"metadata": {field: [publish::CLEANUP]}});
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let api: Api<Service> = Api::namespaced(self.config.client.clone(), &namespace);
        // Through the status, which is what a service controller may write.
        let patch = Patch::Strategic(&patch);
        if let Err(error) = api.patch_status(&name, &PatchParams::default(), &patch).await {
            tracing::debug!(%error, %namespace, name, "finalizers not written");
        }
    }

    async fn set_status(&self, service: &Service, ingress: Option<&Vec<LoadBalancerIngress>>) {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let said = status.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
        let wanted = ingress.cloned().unwrap_or_default();
        if said == wanted {
            return;
        }
        let namespace = service.namespace().unwrap_or_default();
        let api: Api<Service> = Api::namespaced(self.config.client.clone(), &namespace);
        let patch = json!({"status": {"loadBalancer": {"ingress": wanted}}});
        let name = service.name_any();
        match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) if !wanted.is_empty() => {
                let object = client::object_reference(service);
                self.recorder.normal(object, "EnsuredLoadBalancer", "Ensured load balancer");
            }
            // The service is gone, or a newer state of it is on its way here.
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, %namespace, name, "status not written"),
        }
    }
}

/// The ports that could not be had and may be had later, with the reasons. What has no error number is refused
/// for good.
fn refusals(
    wanted: &[Publication],
    answers: &[Option<Refused>],
) -> Vec<(SocketAddr, Protocol, i32)> {
    let refused = |(port, answer): (&Publication, &Option<Refused>)| {
        let errno = answer.as_ref().map(|refused| refused.errno).filter(|errno| *errno != 0)?;
        Some((port.host, port.protocol, errno))
    };
    wanted.iter().zip(answers).filter_map(refused).collect()
}

/// Where a load balancer is reached, for people.
fn place_of(ingress: &[LoadBalancerIngress]) -> Option<String> {
    let first = ingress.first()?;
    let port = first.ports.as_ref()?.first()?.port;
    Some(format!("{}:{port}", first.ip.as_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_for_good_is_not_tried_again() {
        let port = |protocol| Publication {
            host: "192.0.2.1:80".parse().unwrap(),
            protocol,
            target: "10.42.0.2:80".parse().unwrap(),
            served: true,
            allowed: None,
            keeps_client: false,
        };
        let refused = |errno| Some(Refused { errno, message: String::new() });
        let wanted = [port(Protocol::Tcp), port(Protocol::Udp), port(Protocol::Sctp)];
        let later = (wanted[1].host, Protocol::Udp, 98);
        assert_eq!(refusals(&wanted, &[None, refused(98), refused(0)]), [later]);
        assert_eq!(refusals(&wanted, &[None, None, refused(0)]), []);
    }
}
