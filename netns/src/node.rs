//! The data plane of a node.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::forward::Forwards;
use crate::gateway::{self, Flows, Ping};
use crate::link::v4;
use crate::network::{Network, Shape};
use crate::thread::NetnsThread;
use crate::{AttachRequest, Attachment, Cidr, Error, Forward, ServiceTable};

const BACKLOG: i32 = 1024;

/// What a node network looks like.
#[derive(Debug)]
pub struct NodeConfig {
    /// Addresses of pods; IPv4, /30 or larger.
    pub pod_cidr: Cidr,
    /// The node's own address in that range: bridge, default gateway, address of the node.
    pub gateway: IpAddr,
    /// Virtual addresses of services.
    pub service_cidr: Cidr,
    /// Largest packet between pods, in bytes.
    pub mtu: u32,
    /// Servers of the host that are reachable in the node network.
    pub forwards: Vec<Forward>,
    /// A node network to take over from a node process that has ended; None makes one.
    pub existing: Option<OwnedFd>,
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
    shutdown: CancellationToken,
    tasks: TaskTracker,
    join: std::sync::Mutex<Option<JoinHandle<()>>>,
}

/// The gateway's sockets in the node network.
struct Sockets {
    tcp: std::net::TcpListener,
    udp: Socket,
    icmp: (Socket, Socket),
}

impl Node {
    /// Makes the network and starts the gateway on the current tokio runtime, whose threads must
    /// be in the host network. Needs `CAP_NET_ADMIN`, `CAP_NET_RAW` and `CAP_SYS_ADMIN` in the user
    /// namespace and a writable /proc/sys/net.
    pub async fn start(config: NodeConfig) -> Result<Self, Error> {
        raise_descriptor_limit();
        let gateway = v4(config.gateway).ok_or_else(|| Error::Range {
            cidr: config.pod_cidr.to_string(),
            gateway: config.gateway.to_string(),
        })?;
        let inside = [config.pod_cidr, config.service_cidr];
        let shape = Shape {
            pod_cidr: config.pod_cidr,
            service_cidr: config.service_cidr,
            gateway,
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
                shutdown,
                tasks,
                join: std::sync::Mutex::new(Some(join)),
            }),
        };
        let failed = |e| Error::system("start the gateway", e);
        let ping = Arc::new(Ping::new(sockets.icmp, gateway, inside).map_err(failed)?);
        let tcp = TcpListener::from_std(sockets.tcp).map_err(failed)?;
        node.serve_gateway(tcp, sockets.udp, ping);
        node.set_forwards(&config.forwards).await?;
        Ok(node)
    }

    fn serve_gateway(&self, tcp: TcpListener, udp: Socket, ping: Arc<Ping>) {
        let Shared { flows, tasks, .. } = &*self.shared;
        self.spawn(gateway::serve_tcp(tcp, Arc::clone(flows), tasks.clone()));
        let context = gateway::Context {
            node: self.shared.thread.clone(),
            flows: Arc::clone(flows),
            ping: Arc::clone(&ping),
            tasks: tasks.clone(),
        };
        self.spawn(async move {
            if let Err(error) = gateway::serve_udp(udp, context).await {
                tracing::error!(error = error.chain(), "the UDP gateway has ended");
            }
        });
        let (flows, tasks) = (Arc::clone(flows), tasks.clone());
        self.spawn(async move {
            if let Err(error) = ping.serve(flows, tasks).await {
                tracing::error!(error = error.chain(), "the ping gateway has ended");
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
        let thread = &self.shared.thread;
        thread.run(|network| network.attach(request, namespace)).await?
    }

    /// Disconnects a pod and ends its flows. Not an error if it is not attached.
    pub async fn detach(&self, id: String) -> Result<(), Error> {
        let result = self.shared.thread.run(move |network| network.detach(&id)).await?;
        if let Ok(Some(address)) = &result {
            self.shared.flows.end(*address);
        }
        result.map(|_| ())
    }

    /// The pods that are connected.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        self.shared.thread.run(|network| network.attachments()).await
    }

    /// The range that pods get their addresses from.
    pub async fn pod_cidr(&self) -> Result<Cidr, Error> {
        self.shared.thread.run(|network| network.cidr()).await
    }

    /// Makes the services exactly these.
    pub async fn apply_services(&self, table: ServiceTable) -> Result<(), Error> {
        let thread = &self.shared.thread;
        thread.run(|network| network.apply_services(table)).await??;
        Ok(())
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

    /// A datagram socket in the node network.
    pub async fn bind_udp(&self, address: SocketAddr) -> Result<UdpSocket, Error> {
        let bind = move || -> std::io::Result<std::net::UdpSocket> {
            let socket = new_socket(address, Type::DGRAM)?;
            socket.bind(&address.into())?;
            Ok(socket.into())
        };
        let failed = |e| Error::system(format!("bind {address} in the node network"), e);
        let socket = self.shared.thread.run(move |_| bind()).await?;
        socket.and_then(UdpSocket::from_std).map_err(failed)
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
    // A port is free for both protocols as soon as it is for TCP: the namespace is ours alone,
    // but for pods on the node's network, hence the second try.
    let mut last = None;
    for _ in 0..8 {
        let tcp = gateway::listen(0).map_err(failed)?;
        let port = tcp.local_addr().map_err(failed)?.port();
        match gateway::bind_udp(port) {
            Ok(udp) => {
                let icmp = gateway::open_icmp().map_err(failed)?;
                network.install_rules(port)?;
                return Ok(Sockets { tcp, udp, icmp });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(failed(last.unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into())))
}

/// Every flow takes two descriptors; the soft limit is 1024 by tradition.
fn raise_descriptor_limit() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
