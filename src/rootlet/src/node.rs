//! The node process: it holds the namespaces, and is the data plane of the pods' network. It outlives
//! the daemon, so that pods keep their network while the daemon is restarted.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::settings::Settings;
use crate::{lock, logging};

/// Addresses of all pods.
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";
/// The same of IPv6, and of this node's pods in it.
pub const POD_CIDR6: &str = "fd00:10:42::/64";
/// IPv6 addresses of services.
pub const SERVICE_CIDR6: &str = "fd00:10:43::/112";
/// Addresses of this node's pods until the API says otherwise.
pub const POD_CIDR: &str = "10.42.0.0/24";
/// Virtual addresses of services.
pub const SERVICE_CIDR: &str = "10.43.0.0/16";
/// The node in its own network: gateway of the pods, and the address of the node.
pub const NODE_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 42, 0, 1));
/// The node's IPv6 address there, where there is one.
pub const NODE_ADDRESS6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x42, 0, 0, 0, 0, 1));
/// The service address of the cluster's DNS.
pub const DNS_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 43, 0, 10));
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

/// Runs until SIGTERM.
pub fn run(settings: &str) -> anyhow::Result<()> {
    let settings = Settings::read(Path::new(settings))?.context("the settings are gone")?;
    let _held = lock::take(&settings.paths.lock("node"))?.context("a node process runs already")?;
    logging::start(None);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start threads")?
        .block_on(serve(&settings))
}

async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let node = netns::Node::start(network(settings.dual_stack)?)
        .await
        .context("cannot make the node's network")?;
    node.serve_control(listen(&settings.paths.node_socket())?)
        .context("cannot serve the node's socket")?;

    let address = SocketAddr::new(NODE_ADDRESS, 53);
    let dns = dns::serve(
        node.bind_udp(address).await.context("cannot listen for DNS")?,
        node.bind_tcp(address).await.context("cannot listen for DNS")?,
        listen(&settings.paths.dns_socket())?,
        DOMAIN,
    )
    .context("cannot serve DNS")?;

    let mut terminate = signal(SignalKind::terminate())?;
    println!("ready");
    logging::detach();
    terminate.recv().await;
    dns.shutdown().await;
    node.shutdown().await;
    Ok(())
}

/// What the node's network looks like.
pub fn network(dual: bool) -> anyhow::Result<netns::NodeConfig> {
    Ok(netns::NodeConfig {
        pod_cidr: POD_CIDR.parse()?,
        gateway: NODE_ADDRESS,
        service_cidr: SERVICE_CIDR.parse()?,
        ipv6: dual.then(ranges6).transpose()?,
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
