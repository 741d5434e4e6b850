//! The node process: it holds the namespaces, and is the data plane of the pods' network. It outlives
//! the daemon, so that pods keep their network while the daemon is restarted.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::settings::Settings;
use crate::{lock, logging};

/// Addresses of all pods.
const CLUSTER_CIDR: &str = "10.42.0.0/16";
/// The same of IPv6, and of this node's pods in it.
const POD_CIDR6: &str = "fd00:10:42::/64";
/// IPv6 addresses of services.
const SERVICE_CIDR6: &str = "fd00:10:43::/112";
/// Addresses of this node's pods until the API says otherwise.
const POD_CIDR: &str = "10.42.0.0/24";
/// Virtual addresses of services.
const SERVICE_CIDR: &str = "10.43.0.0/16";
/// The node in its own network: gateway of the pods, and the address of the node.
const NODE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 0, 1));
/// The node's IPv6 address there, where there is one.
const NODE_ADDRESS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x42, 0, 0, 0, 0, 1));
/// All pods' IPv6 addresses.
const CLUSTER_CIDR6: &str = "fd00:10:42::/56";
/// The service address of the cluster's DNS.
const DNS_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 43, 0, 10));
const DNS_ADDRESS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x43, 0, 0, 0, 0, 0xa));
/// Domain of the cluster's names.
pub const DOMAIN: &str = "cluster.local";
/// Domains of the addresses of pods and services.
pub const REVERSE: [&str; 4] = [
    "42.10.in-addr.arpa",
    "43.10.in-addr.arpa",
    "0.0.0.0.2.4.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.0.0.0.1.0.0.0.0.d.f.ip6.arpa",
];
/// Largest packet between pods.
const MTU: u32 = 65520;
/// Among so many the pods are spread: a flood of questions reaches only those of its own.
const DNS_SOCKETS: u32 = 32;

/// The addresses of a cluster that are the same in every one of its kind.
pub struct Plan {
    /// The node in its own network, as the cluster knows it.
    pub node: IpAddr,
    /// Virtual addresses of services, one range of each family.
    pub services: String,
    /// Addresses of all pods.
    pub cluster: &'static str,
    /// The service address of the cluster's DNS.
    pub dns: IpAddr,
}

impl Plan {
    /// The plan for a node with these addresses in its own network.
    pub fn of(gateways: &[IpAddr]) -> Self {
        let (v4, v6) = (gateways.iter().any(IpAddr::is_ipv4), gateways.iter().any(IpAddr::is_ipv6));
        if v6 && !v4 {
            return Self {
                node: NODE_ADDRESS6,
                services: SERVICE_CIDR6.into(),
                cluster: CLUSTER_CIDR6,
                dns: DNS_ADDRESS6,
            };
        }
        let six = if v6 { format!(",{SERVICE_CIDR6}") } else { String::new() };
        Self {
            node: NODE_ADDRESS,
            services: format!("{SERVICE_CIDR}{six}"),
            cluster: CLUSTER_CIDR,
            dns: DNS_ADDRESS,
        }
    }
}

/// Runs until SIGTERM. With `namespace`, the path of a network namespace, it takes over what an earlier
/// node process made there.
pub fn run(settings: &str, namespace: Option<&str>) -> anyhow::Result<()> {
    let settings = Settings::read(Path::new(settings))?.context("the settings are gone")?;
    let _held = lock::take(&settings.paths.lock("node"))?.context("a node process runs already")?;
    logging::start(None);
    let existing = namespace
        .map(|path| fs::File::open(path).with_context(|| format!("cannot open {path}")))
        .transpose()?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(serve(&settings, existing.map(OwnedFd::from)))
}

async fn serve(settings: &Settings, existing: Option<OwnedFd>) -> anyhow::Result<()> {
    let config =
        netns::NodeConfig { existing, ..network(settings.dual_stack, settings.ipv6_only)? };
    let node = netns::Node::start(config).await.context("cannot make the node's network")?;
    node.serve_control(listen(&settings.paths.node_socket())?)
        .context("cannot serve the node's socket")?;

    let own = node.gateways().await?;
    if settings.ipv6_only && !own.iter().any(IpAddr::is_ipv6) {
        bail!("this kernel has no IPv6; use --ip-family ipv4");
    }
    let address = SocketAddr::new(*own.first().context("the node has no address")?, 53);
    let metrics = SocketAddr::new(address.ip(), dns::METRICS_PORT);
    let sockets = dns::Sockets {
        udp: node.bind_udp_shared(address, DNS_SOCKETS).await.context("cannot listen for DNS")?,
        tcp: node.bind_tcp(address).await.context("cannot listen for DNS")?,
        metrics: node.bind_tcp(metrics).await.context("cannot listen for DNS' metrics")?,
        control: listen(&settings.paths.dns_socket())?,
    };
    let dns = dns::serve(sockets, DOMAIN).context("cannot serve DNS")?;

    let mut terminate = signal(SignalKind::terminate())?;
    println!("ready");
    logging::detach();
    terminate.recv().await;
    dns.shutdown().await;
    node.shutdown().await;
    Ok(())
}

/// What the node's network looks like.
pub fn network(dual: bool, tell_ipv6_only: bool) -> anyhow::Result<netns::NodeConfig> {
    Ok(netns::NodeConfig {
        pod_cidr: POD_CIDR.parse()?,
        gateway: NODE_ADDRESS,
        service_cidr: SERVICE_CIDR.parse()?,
        ipv6: dual.then(ranges6).transpose()?,
        tell_ipv6_only,
        mtu: MTU,
        forwards: Vec::new(),
        existing: None,
    })
}

fn ranges6() -> anyhow::Result<netns::Ranges6> {
    Ok(netns::Ranges6 {
        pod_cidr: POD_CIDR6.parse()?,
        gateway: NODE_ADDRESS6,
        service_cidr: SERVICE_CIDR6.parse()?,
    })
}

fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    // What is there belongs to a process that has ended: its lock is ours.
    let _ = fs::remove_file(path);
    UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))
}
