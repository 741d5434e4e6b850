//! The daemon's part: it tells the server what names there are, and keeps the DNS Service itself.

use std::collections::BTreeMap;
use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use client::{Change, Informer, Informers, Key};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use crate::METRICS_PORT;
use crate::forwarding::Forwarding;
use crate::names::{Difference, Names};
use crate::update::{Update, Whole};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
/// Changes that come within this time are sent together.
const GATHER: Duration = Duration::from_millis(10);
/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(1);
/// How long to wait for a server that is being started anew.
const RECONNECT: Duration = Duration::from_millis(250);

/// Feeds the DNS server.
pub struct Feeder {
    /// Acts as the DNS' service account.
    pub client: Client,
    /// The process' caches.
    pub informers: Informers,
    /// The server's control socket.
    pub socket: PathBuf,
    /// The cluster's domain.
    pub domain: String,
    /// Address of the DNS Service.
    pub address: IpAddr,
    /// Where the server listens.
    pub endpoint: SocketAddr,
    /// Domains of the addresses that are the cluster's alone.
    pub reverse: Vec<String>,
}

impl Feeder {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = async { tokio::join!(self.keep_service(), self.keep_zone()); } => {}
        }
    }

    async fn keep_service(&self) {
        loop {
            match self.make_service().await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, "the DNS Service is not there yet"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn make_service(&self) -> Result<(), kube::Error> {
        make(&self.client, &service(self.address)).await?;
        make(&self.client, &slice(self.endpoint)).await
    }

    async fn keep_zone(&self) {
        let services = self.informers.get::<Service>();
        let slices = self.informers.get::<EndpointSlice>();
        let maps = self.informers.get::<ConfigMap>();
        services.ready().await;
        slices.ready().await;
        maps.ready().await;
        let mut changes = std::pin::pin!(futures::stream::select_all([
            services.subscribe().map(|change| Changed::of(&change, Changed::Service)).boxed(),
            slices.subscribe().map(|change| Changed::of(&change, Changed::Slice)).boxed(),
            maps.subscribe().filter_map(|change| ready(of_map(&change))).boxed(),
        ]));
        let mut names = Names::new(&self.domain);
        // The store is what counts: it may be further than the change that is told.
        let take = |names: &mut Names, changed| match changed {
            Changed::Service(key) => {
                let service = services.get(&key.0, &key.1);
                names.set_service(&key, service);
                false
            }
            Changed::Slice(key) => {
                let slice = slices.get(&key.0, &key.1);
                names.set_slice(key, slice);
                false
            }
            Changed::Forwarding => false,
            Changed::Anything => {
                names.reset(services.store().state(), slices.store().state());
                true
            }
        };
        take(&mut names, Changed::Anything);
        let mut link: Option<UnixStream> = None;
        let mut forwarding = None;
        let mut whole = true;
        loop {
            let update = self.update(&mut names, whole, &maps, &mut forwarding);
            if !update.is_empty() {
                if let Err(error) = self.send(&mut link, &update).await {
                    tracing::warn!(%error, "the DNS server cannot be reached");
                    (link, whole) = (None, true);
                    tokio::time::sleep(RECONNECT).await;
                    continue;
                }
                whole = false;
            }
            tokio::select! {
                change = changes.next() => match change {
                    Some(changed) => whole |= take(&mut names, changed),
                    None => return,
                },
                // The server says nothing; when there is something to read, it has gone.
                () = ended(link.as_ref()) => (link, whole) = (None, true),
            }
            let mut gathered = std::pin::pin!(tokio::time::sleep(GATHER));
            loop {
                tokio::select! {
                    () = &mut gathered => break,
                    change = changes.next() => match change {
                        Some(changed) => whole |= take(&mut names, changed),
                        None => return,
                    },
                }
            }
        }
    }

    /// What the server does not know yet; everything, if `whole`.
    fn update(
        &self,
        names: &mut Names,
        whole: bool,
        maps: &Informer<ConfigMap>,
        told: &mut Option<Forwarding>,
    ) -> Update {
        let forwarding = maps.get(NAMESPACE, NAME).map_or_else(Forwarding::default, |map| {
            let (forwarding, problems) = Forwarding::read(&map);
            for problem in problems {
                tracing::warn!("ConfigMap {NAMESPACE}/{NAME}: {problem}");
            }
            forwarding
        });
        let other = whole || told.as_ref() != Some(&forwarding);
        *told = Some(forwarding);
        let forwarding = if other { told.clone() } else { None };
        if whole {
            let whole = Whole { domain: self.domain.clone(), reverse: self.reverse.clone() };
            let (whole, added) = (Some(whole), names.records());
            return Update { whole, gone: Vec::new(), added, forwarding };
        }
        let Difference { gone, added } = names.difference();
        Update { whole: None, gone, added, forwarding }
    }

    async fn send(&self, link: &mut Option<UnixStream>, update: &Update) -> std::io::Result<()> {
        let stream = match link {
            Some(stream) => stream,
            None => link.insert(UnixStream::connect(&self.socket).await?),
        };
        let mut line = serde_json::to_vec(update)?;
        line.push(b'\n');
        stream.write_all(&line).await
    }
}

/// What may have changed.
enum Changed {
    Service(Key),
    Slice(Key),
    Forwarding,
    Anything,
}

impl Changed {
    fn of<K: Resource>(change: &Change<K>, one: impl FnOnce(Key) -> Self) -> Self {
        change.key().map_or(Self::Anything, one)
    }
}

/// Of ConfigMaps one is of interest, and there are others that change all the time.
fn of_map(change: &Change<ConfigMap>) -> Option<Changed> {
    match change {
        Change::Applied(map) | Change::Deleted(map) => {
            let own = map.metadata.namespace.as_deref() == Some(NAMESPACE);
            (own && map.metadata.name.as_deref() == Some(NAME)).then_some(Changed::Forwarding)
        }
        Change::Synced => Some(Changed::Forwarding),
    }
}

async fn ended(link: Option<&UnixStream>) {
    match link {
        Some(stream) => drop(stream.readable().await),
        None => std::future::pending().await,
    }
}

/// Creates an object unless it is there.
async fn make<K>(client: &Client, object: &K) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(client.clone(), NAMESPACE);
    match api.create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.code != 409 => Err(kube::Error::Api(status)),
        Err(kube::Error::Api(_)) | Ok(_) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Name and protocol of the Service's ports, as in stock clusters, with the number that is not the
/// server's own.
const PORTS: [(&str, &str, Option<u16>); 3] =
    [("dns", "UDP", None), ("dns-tcp", "TCP", None), ("metrics", "TCP", Some(METRICS_PORT))];

fn labels(more: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    let own = [("k8s-app", NAME), ("kubernetes.io/name", "CoreDNS")];
    let all = own.iter().chain(more);
    Some(all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

/// Where Prometheus finds what the server has done, as in stock clusters.
fn scraped() -> BTreeMap<String, String> {
    let annotation = |key: &str, value: String| (format!("prometheus.io/{key}"), value);
    [annotation("scrape", "true".into()), annotation("port", METRICS_PORT.to_string())].into()
}

fn service(address: IpAddr) -> Service {
    let ports = PORTS.map(|(name, protocol, number)| ServicePort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: number.unwrap_or(53).into(),
        ..ServicePort::default()
    });
    Service {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: labels(&[("kubernetes.io/cluster-service", "true")]),
            annotations: Some(scraped()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_string()),
            cluster_ips: Some(vec![address.to_string()]),
            ports: Some(ports.to_vec()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

fn slice(endpoint: SocketAddr) -> EndpointSlice {
    let ports = PORTS.map(|(name, protocol, number)| EndpointPort {
        name: Some(name.into()),
        protocol: Some(protocol.into()),
        port: Some(number.unwrap_or(endpoint.port()).into()),
        app_protocol: None,
    });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(NAME.into()),
            labels: labels(&[("kubernetes.io/service-name", NAME)]),
            ..ObjectMeta::default()
        },
        address_type: if endpoint.is_ipv4() { "IPv4" } else { "IPv6" }.into(),
        ports: Some(ports.to_vec()),
        endpoints: Some(vec![Endpoint {
            addresses: vec![endpoint.ip().to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                ..EndpointConditions::default()
            }),
            ..Endpoint::default()
        }]),
    }
}
