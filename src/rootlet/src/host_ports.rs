//! The pods' network for a runtime that has no service proxy beside it: the ports of the host that pods
//! ask for are published here, and pods in the host's network are in that of the machine or of the node.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use async_trait::async_trait;
use netns::{Backend, Control, Frontend, Publication, ServiceChange, ServiceTable};
use runtime::{Error, HostPort, Network, NetworkPod, Protocol};
use tokio::sync::Mutex;

use crate::lock;
use crate::paths::Paths;
use crate::settings::Settings;

/// The node's network, with host ports.
pub struct HostPorts {
    control: Control,
    /// Where ports are offered whose pods do not say it.
    addresses: Vec<IpAddr>,
    /// Pods that want the host's network get the node's, which `rootlet enter` shows.
    within: bool,
    /// The services of the node's network are these ports alone.
    alone: bool,
    paths: Paths,
    /// By pod. The node process takes the list as a whole.
    published: Mutex<BTreeMap<String, Vec<Publication>>>,
}

impl HostPorts {
    /// Over the node process of `settings`; `alone` when no service proxy shares its network.
    pub fn new(control: Control, settings: &Settings, alone: bool) -> Self {
        Self {
            control,
            addresses: settings.publish.clone(),
            within: settings.host_network_within,
            alone,
            paths: settings.paths.clone(),
            published: Mutex::default(),
        }
    }

    /// A cluster of the same name has a service proxy, whose business the host's ports are.
    fn proxied(&self) -> bool {
        lock::holder(&self.paths.lock("daemon")).is_some()
    }

    async fn publish(&self, id: &str, wanted: Vec<Publication>) -> Result<(), Error> {
        let mut published = self.published.lock().await;
        if wanted.is_empty() && !published.contains_key(id) || self.proxied() {
            return Ok(());
        }
        let before = published.remove(id).unwrap_or_default();
        if !wanted.is_empty() {
            published.insert(id.to_owned(), wanted.clone());
        }
        let all: Vec<Publication> = published.values().flatten().cloned().collect();
        let answers = self.control.publish(all.clone()).await?;
        let refused = all.iter().zip(answers).find_map(|(publication, answer)| {
            wanted.contains(publication).then_some(())?;
            Some((publication, answer?))
        });
        if let Some((publication, refused)) = refused {
            let message = format!("host port {}: {}", publication.host, refused.message);
            published.remove(id);
            let others = published.values().flatten().cloned().collect();
            self.control.publish(others).await?;
            return Err(Error::Failed(message));
        }
        // In the node's network they are on loopback too, for who is there.
        let old = before.iter().filter_map(on_loopback).map(|(frontend, _)| frontend);
        let changed: Vec<_> = wanted.iter().filter_map(on_loopback).collect();
        let gone = old.filter(|old| changed.iter().all(|(new, _)| new != old)).collect();
        Ok(self.control.change_services(ServiceChange { changed, gone }).await?)
    }
}

/// A port of the loopback device as a service of the node's network.
fn on_loopback(publication: &Publication) -> Option<(Frontend, Backend)> {
    let (host, target) = (publication.host, publication.target);
    let address = if host.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { host.ip() };
    (address == IpAddr::from(Ipv4Addr::LOCALHOST) && target.is_ipv4()).then(|| {
        let frontend = Frontend { address, protocol: publication.protocol, port: host.port() };
        (frontend, Backend { endpoints: vec![target], ..Backend::default() })
    })
}

/// What is to be published for a pod with these addresses.
fn publications(
    ports: &[HostPort],
    addresses: &[IpAddr],
    pod: &[IpAddr],
) -> Result<Vec<Publication>, Error> {
    let mut all = Vec::new();
    for port in ports {
        let protocol = match port.protocol {
            Protocol::Tcp => netns::Protocol::Tcp,
            Protocol::Udp => netns::Protocol::Udp,
            Protocol::Sctp => {
                let text = format!("host port {}: SCTP cannot be published", port.host_port);
                return Err(Error::InvalidArgument(text));
            }
        };
        let own = port.host_ip.map(|ip| vec![ip]);
        for host in own.as_deref().unwrap_or(addresses) {
            let same = pod.iter().find(|ip| ip.is_ipv4() == host.is_ipv4());
            let Some(target) = same.or(pod.first()) else { continue };
            all.push(Publication {
                host: SocketAddr::new(*host, port.host_port),
                protocol,
                target: SocketAddr::new(*target, port.container_port),
                served: true,
                allowed: None,
                keeps_client: true,
            });
        }
    }
    Ok(all)
}

#[async_trait]
impl Network for HostPorts {
    async fn attach(
        &self,
        id: &str,
        pod: &NetworkPod,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<IpAddr>, Error> {
        let addresses = Network::attach(&self.control, id, pod, netns).await?;
        self.publish(id, publications(&pod.ports, &self.addresses, &addresses)?).await?;
        Ok(addresses)
    }

    async fn detach(&self, id: &str) -> Result<(), Error> {
        let unpublished = self.publish(id, Vec::new()).await;
        Network::detach(&self.control, id).await?;
        unpublished
    }

    async fn node_netns(&self) -> Result<Option<OwnedFd>, Error> {
        if self.within {
            return self.pods_netns().await;
        }
        // This process is in the host's network.
        Ok(None)
    }

    async fn pods_netns(&self) -> Result<Option<OwnedFd>, Error> {
        Ok(Some(self.control.node_netns().await?))
    }

    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        Network::set_pod_cidr(&self.control, cidr).await
    }

    /// Of pods that ended while there was no runtime nobody knows the ports: what the others have is all there is.
    async fn collect(&self, valid: &[String]) -> Result<(), Error> {
        Network::collect(&self.control, valid).await?;
        if self.proxied() {
            return Ok(());
        }
        let mut published = self.published.lock().await;
        published.retain(|id, _| valid.contains(id));
        let all: Vec<Publication> = published.values().flatten().cloned().collect();
        let services = all.iter().filter_map(on_loopback).collect();
        self.control.publish(all).await?;
        if self.alone {
            self.control.apply_services(ServiceTable { services }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_lead_to_the_address_of_their_family() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let loopback = [ip("127.0.0.1"), ip("::1")];
        let pod = [ip("10.42.0.5"), ip("fd00::5")];
        let port = |host_ip: Option<&str>, protocol| HostPort {
            host_ip: host_ip.map(ip),
            host_port: 8080,
            container_port: 80,
            protocol,
        };
        let all = |ports: &[HostPort]| {
            publications(ports, &loopback, &pod)
                .unwrap()
                .iter()
                .map(|found| format!("{} {}", found.host, found.target))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            all(&[port(None, Protocol::Tcp)]),
            ["127.0.0.1:8080 10.42.0.5:80", "[::1]:8080 [fd00::5]:80"]
        );
        assert_eq!(all(&[port(Some("0.0.0.0"), Protocol::Udp)]), ["0.0.0.0:8080 10.42.0.5:80"]);
        assert!(publications(&[port(None, Protocol::Sctp)], &loopback, &pod).is_err());
    }
}
