//! The data plane of a node.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::family::Family;
use crate::forward::Forwards;
use crate::gateway::{self, Flows, Front, Held, Ping};
use crate::link::v4;
use crate::network::{Network, Shape};
use crate::publish::{Ahead, Publications, Surroundings};
use crate::ruleset::{QueueBy, Ranges};
use crate::thread::NetnsThread;
use crate::{
    Adopted, AttachRequest, Attachment, Cidr, Error, Forward, PolicyTable, Publication, Refused,
    ServiceChange, ServiceTable, sys,
};

const BACKLOG: i32 = 1024;
/// How long a pod's attachment may wait for policies to know it.
const POLICY_PATIENCE: Duration = Duration::from_secs(10);
/// How long new connections may wait, after a takeover, for services and policies to be told.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(10);

/// What a node network looks like.
#[derive(Debug)]
pub struct NodeConfig {
    /// Addresses of pods; IPv4, /30 or larger.
    pub pod_cidr: Cidr,
    /// The node's own address in that range: bridge, default gateway, address of the node.
    pub gateway: IpAddr,
    /// Virtual addresses of services.
    pub service_cidr: Cidr,
    /// The same for IPv6, if pods are to have both. Left out where the kernel has no IPv6.
    pub ipv6: Option<Ranges6>,
    /// Whether nothing is told of IPv4 addresses where there are IPv6 ones: pods have them for the way
    /// out alone.
    pub tell_ipv6_only: bool,
    /// Largest packet between pods, in bytes.
    pub mtu: u32,
    /// Servers of the host that are reachable in the node network.
    pub forwards: Vec<Forward>,
    /// A node network to take over from a node process that has ended; None makes one.
    pub existing: Option<OwnedFd>,
}

/// Ranges of IPv6 addresses. A pod's address has the same place in its range as the IPv4 address in
/// its own.
#[derive(Clone, Copy, Debug)]
pub struct Ranges6 {
    /// Addresses of pods.
    pub pod_cidr: Cidr,
    /// The node's own address in that range.
    pub gateway: IpAddr,
    /// Virtual addresses of services.
    pub service_cidr: Cidr,
}

/// A running node network. Clones share it.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
}

struct Shared {
    thread: NetnsThread<Network>,
    flows: Arc<Flows>,
    forwards: Mutex<Forwards>,
    publications: Mutex<Publications>,
    ahead: Arc<Ahead>,
    policies: watch::Sender<()>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    join: std::sync::Mutex<Option<JoinHandle<()>>>,
    fronts: std::sync::Mutex<Vec<Front>>,
}

/// The gateway's sockets in the node network, of each family.
struct Sockets {
    /// For each gateway thread its listeners.
    tcp: Vec<Vec<std::net::TcpListener>>,
    udp: Vec<Socket>,
    icmp: Vec<gateway::IcmpSockets>,
    queue: Option<Socket>,
    gateways: Vec<IpAddr>,
    inside: Vec<Cidr>,
}

impl Node {
    /// Makes the network and starts the gateway on the current tokio runtime, whose threads must
    /// be in the host network. Needs `CAP_NET_ADMIN`, `CAP_NET_RAW` and `CAP_SYS_ADMIN` in the user
    /// namespace and a writable /proc/sys/net.
    pub async fn start(config: NodeConfig) -> Result<Self, Error> {
        raise_descriptor_limit();
        gateway::keep_spare();
        let gateway = v4(config.gateway).ok_or_else(|| Error::Range {
            cidr: config.pod_cidr.to_string(),
            gateway: config.gateway.to_string(),
        })?;
        let first = Ranges {
            pods: config.pod_cidr,
            services: config.service_cidr,
            gateway: config.gateway,
        };
        let second = config.ipv6.map(|six| Ranges {
            pods: six.pod_cidr,
            services: six.service_cidr,
            gateway: six.gateway,
        });
        let shape = Shape {
            pod_cidr: config.pod_cidr,
            gateway,
            ranges: [first].into_iter().chain(second).collect(),
            tell_ipv6_only: config.tell_ipv6_only,
            mtu: config.mtu,
        };
        let (thread, join) = NetnsThread::start(config.existing, || Network::create(shape))?;
        let sockets = thread.run(prepare).await??;
        let shutdown = CancellationToken::new();
        let tasks = TaskTracker::new();
        let flows = Arc::new(Flows::new(shutdown.child_token()));
        let node = Self {
            shared: Arc::new(Shared {
                thread,
                flows,
                forwards: Mutex::default(),
                publications: Mutex::default(),
                ahead: Arc::default(),
                policies: watch::Sender::new(()),
                shutdown,
                tasks,
                join: std::sync::Mutex::new(Some(join)),
                fronts: std::sync::Mutex::default(),
            }),
        };
        node.serve_gateway(sockets)?;
        node.set_forwards(&config.forwards).await?;
        let waiting = node.shared.thread.clone();
        node.spawn(async move {
            tokio::time::sleep(TAKEOVER_PATIENCE).await;
            if let Ok(Err(error)) = waiting.run(Network::stop_waiting).await {
                tracing::warn!(error = error.chain(), "new connections may wait for ever");
            }
        });
        Ok(node)
    }

    fn serve_gateway(&self, sockets: Sockets) -> Result<(), Error> {
        let failed = |e| Error::system("start the gateway", e);
        let Shared { flows, tasks, .. } = &*self.shared;
        let ping = Ping::new(sockets.icmp, sockets.gateways, sockets.inside).map_err(failed)?;
        let (ping, held) = (Arc::new(ping), Arc::new(Held::default()));
        let mut queue = sockets.queue;
        for listeners in sockets.tcp {
            let front = Front::start(self.shared.shutdown.clone(), tasks.clone())?;
            // Sockets are watched by the thread that they are given to here.
            let _inside = front.runtime().enter();
            for tcp in listeners {
                let tcp = TcpListener::from_std(tcp).map_err(failed)?;
                let (held, flows) = (Arc::clone(&held), Arc::clone(flows));
                self.spawn(gateway::serve_tcp(tcp, held, flows, tasks.clone()));
            }
            if let Some(queue) = queue.take() {
                let (node, held) = (self.shared.thread.clone(), Arc::clone(&held));
                let serve =
                    gateway::serve_queue(queue, held, Arc::clone(flows), tasks.clone(), node);
                self.spawn_gateway("queue of new connections", serve);
            }
            self.shared.fronts.lock().expect("never held across a panic").push(front);
        }
        let context = gateway::Context {
            node: self.shared.thread.clone(),
            flows: Arc::clone(flows),
            ping: Arc::clone(&ping),
            tasks: tasks.clone(),
        };
        for udp in sockets.udp {
            self.spawn_gateway("UDP gateway", gateway::serve_udp(udp, context.clone()));
        }
        for family in Family::BOTH {
            let serve = Arc::clone(&ping).serve(family, Arc::clone(flows), tasks.clone());
            self.spawn_gateway("ping gateway", serve);
        }
        Ok(())
    }

    fn spawn_gateway(
        &self,
        name: &'static str,
        serve: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) {
        self.spawn(async move {
            if let Err(error) = serve.await {
                tracing::error!(error = error.chain(), "the {name} has ended");
            }
        });
    }

    /// Runs a task until the node is shut down.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.shared.shutdown.clone();
        self.shared.tasks.spawn(async move {
            shutdown.run_until_cancelled(task).await;
        });
    }

    /// Connects a pod's network namespace. Idempotent by id.
    pub async fn attach(
        &self,
        request: AttachRequest,
        namespace: OwnedFd,
    ) -> Result<Attachment, Error> {
        self.await_policies(&request.id, request.member.as_deref()).await?;
        self.shared.thread.run(|network| network.attach(request, namespace)).await?
    }

    /// Makes services and policies hold for a pod that somebody else attached to this network, until
    /// it is detached. Idempotent by id.
    pub async fn adopt(&self, id: String, pod: Adopted) -> Result<(), Error> {
        self.await_policies(&id, Some(&pod.member)).await?;
        self.shared.thread.run(move |network| network.adopt(&id, pod)).await?
    }

    /// Waits until policies know a pod that they have to know.
    async fn await_policies(&self, id: &str, member: Option<&str>) -> Result<(), Error> {
        let mut policies = self.shared.policies.subscribe();
        let known = async {
            loop {
                let (id, member) = (id.to_owned(), member.map(str::to_owned));
                let waits = move |n: &mut Network| n.awaits_policies(&id, member.as_deref());
                if !self.shared.thread.run(waits).await? {
                    return Ok(());
                }
                policies.changed().await.map_err(|_| Error::Closed)?;
            }
        };
        tokio::time::timeout(POLICY_PATIENCE, known).await.map_err(|_| {
            let member = member.unwrap_or_default();
            Error::Invalid(format!("no policy decision about {member} came in time"))
        })?
    }

    /// Disconnects a pod and ends its flows. Not an error if it is not attached.
    pub async fn detach(&self, id: String) -> Result<(), Error> {
        let result = self.shared.thread.run(move |network| network.detach(&id)).await?;
        for address in result.as_deref().unwrap_or_default() {
            self.shared.flows.end(*address);
        }
        result.map(|_| ())
    }

    /// Makes the policies exactly these.
    pub async fn apply_policies(&self, table: PolicyTable) -> Result<(), Error> {
        self.shared.thread.run(|network| network.apply_policies(table)).await??;
        self.shared.policies.send_replace(());
        Ok(())
    }

    /// Makes the published ports exactly these; None is success.
    pub async fn publish(&self, wanted: &[Publication]) -> Vec<Option<Refused>> {
        let runtimes = {
            let fronts = self.shared.fronts.lock().expect("never held across a panic");
            fronts.iter().map(|front| front.runtime().clone()).collect()
        };
        let surroundings = Surroundings {
            node: self.shared.thread.clone(),
            ahead: Arc::clone(&self.shared.ahead),
            tasks: self.shared.tasks.clone(),
            shutdown: self.shared.shutdown.clone(),
            runtimes,
        };
        self.shared.publications.lock().await.set(wanted, &surroundings).await
    }

    /// The pods that are connected.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        self.shared.thread.run(|network| network.attachments()).await
    }

    /// The range that pods get their addresses from.
    pub async fn pod_cidr(&self) -> Result<Cidr, Error> {
        self.shared.thread.run(|network| network.cidr()).await
    }

    /// The node's own addresses in its network, one of each family that is told of.
    pub async fn gateways(&self) -> Result<Vec<IpAddr>, Error> {
        self.shared.thread.run(|network| network.gateways()).await
    }

    /// Changes some of the services.
    pub async fn change_services(&self, change: ServiceChange) -> Result<(), Error> {
        let thread = &self.shared.thread;
        thread.run(|network| network.change_services(change)).await?
    }

    /// Makes the services exactly these.
    pub async fn apply_services(&self, table: ServiceTable) -> Result<(), Error> {
        let thread = &self.shared.thread;
        thread.run(move |network| network.apply_services(&table)).await?
    }

    /// Makes the forwards exactly these; connections of a removed one end.
    pub async fn set_forwards(&self, wanted: &[Forward]) -> Result<(), Error> {
        let new = self.shared.forwards.lock().await.retain(wanted);
        let mut first = None;
        for forward in new {
            match self.bind_tcp(forward.node).await {
                Ok(listener) => self.shared.forwards.lock().await.begin(
                    forward,
                    listener,
                    &self.shared.tasks,
                    self.shared.shutdown.child_token(),
                ),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// The network namespace of the node.
    pub async fn namespace(&self) -> Result<OwnedFd, Error> {
        self.shared.thread.run(|network| network.namespace()).await?
    }

    /// A listener in the node network.
    pub async fn bind_tcp(&self, address: SocketAddr) -> Result<TcpListener, Error> {
        let bind = move || -> std::io::Result<std::net::TcpListener> {
            let socket = new_socket(address, Type::STREAM)?;
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        };
        let failed = |e| Error::system(format!("listen on {address} in the node network"), e);
        let listener = self.shared.thread.run(move |_| bind()).await?;
        listener.and_then(TcpListener::from_std).map_err(failed)
    }

    /// Datagram sockets in the node network that share one address: what one pod sends comes to the same
    /// of them, so that its flood fills none but that.
    pub async fn bind_udp_shared(
        &self,
        address: SocketAddr,
        count: u32,
    ) -> Result<Vec<UdpSocket>, Error> {
        let bind = move || -> std::io::Result<Vec<std::net::UdpSocket>> {
            let mut sockets = Vec::new();
            for _ in 0..count {
                let socket = new_socket(address, Type::DGRAM)?;
                socket.set_reuse_port(true)?;
                socket.bind(&address.into())?;
                sockets.push(socket);
            }
            if let Some(first) = sockets.first()
                && let Err(error) = sys::share_by_source(first, Family::of(address.ip()), count)
            {
                tracing::debug!(%error, "datagrams are not sorted by their source");
            }
            Ok(sockets.into_iter().map(Into::into).collect())
        };
        let failed = |e| Error::system(format!("bind {address} in the node network"), e);
        let sockets = self.shared.thread.run(move |_| bind()).await?.map_err(failed)?;
        sockets.into_iter().map(|socket| UdpSocket::from_std(socket).map_err(failed)).collect()
    }

    /// An unconnected TCP socket in the node network.
    pub(crate) async fn tcp_socket(&self, peer: SocketAddr) -> Result<OwnedFd, Error> {
        let socket = self.shared.thread.run(move |_| new_socket(peer, Type::STREAM)).await?;
        socket.map(OwnedFd::from).map_err(|e| Error::system("make a socket in the node network", e))
    }

    /// Ends every task and the node thread. The network namespace goes when no pod, socket or
    /// descriptor refers to it any more.
    pub async fn shutdown(&self) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let fronts =
            std::mem::take(&mut *self.shared.fronts.lock().expect("never held across a panic"));
        fronts.into_iter().for_each(Front::join);
        let join = self.shared.join.lock().expect("never held across a panic").take();
        drop(join);
    }
}

fn new_socket(address: SocketAddr, kind: Type) -> std::io::Result<Socket> {
    Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), None)
}

/// Opens the gateway's sockets and installs the rules that lead to them.
fn prepare(network: &mut Network) -> Result<Sockets, Error> {
    let failed = |e| Error::system("open the gateway's sockets", e);
    let ranges = network.ranges();
    let families: Vec<Family> = ranges.iter().map(Ranges::family).collect();
    let gateways = ranges.iter().map(|ranges| ranges.gateway).collect();
    let inside = ranges.iter().flat_map(|ranges| [ranges.pods, ranges.services]).collect();
    // A port is free for every family and protocol as soon as it is for one: the namespace is
    // ours alone, but for pods on the node's network, hence the other tries.
    let mut last = None;
    for _ in 0..8 {
        match open_gateway(&families) {
            Ok((port, tcp, udp)) => {
                let icmp: std::io::Result<_> =
                    families.iter().map(|family| gateway::open_icmp(*family)).collect();
                let icmp = icmp.map_err(failed)?;
                let queue = install(network, port)?;
                return Ok(Sockets { tcp, udp, icmp, queue, gateways, inside });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(failed(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

/// A port, for each gateway thread its listeners, and a UDP socket of each family.
type GatewaySockets = (u16, Vec<Vec<std::net::TcpListener>>, Vec<Socket>);

fn open_gateway(families: &[Family]) -> std::io::Result<GatewaySockets> {
    let (mut port, mut tcp, mut udp) = (0, Vec::new(), Vec::new());
    for _ in 0..gateway::fronts() {
        let mut listeners = Vec::new();
        for family in families {
            let listener = gateway::listen(*family, port)?;
            port = listener.local_addr()?.port();
            listeners.push(listener);
        }
        tcp.push(listeners);
    }
    for family in families {
        udp.push(gateway::bind_udp(*family, port)?);
    }
    Ok((port, tcp, udp))
}

/// Installs the rules; with connections held, and each pod limited in what it begins, if the kernel can
/// do that in one way or the other.
fn install(network: &mut Network, port: u16) -> Result<Option<Socket>, Error> {
    let queue = gateway::open_queue();
    if let Err(error) = &queue {
        tracing::debug!(error = error.chain(), "no queue");
    }
    for fair in [true, false] {
        for by in [QueueBy::Expression, QueueBy::Target].into_iter().filter(|_| queue.is_ok()) {
            match network.install_rules(port, Some(by), fair) {
                Ok(()) => return queue.map(Some),
                Err(error) => tracing::debug!(error = error.chain(), ?by, fair, "no such rules"),
            }
        }
    }
    tracing::info!("the kernel has no packet queue: refused connections end after they began");
    network
        .install_rules(port, None, true)
        .or_else(|_| network.install_rules(port, None, false))?;
    Ok(None)
}

/// Every flow takes two descriptors; the soft limit is 1024 by tradition.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
