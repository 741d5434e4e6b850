//! The way in: ports of the host that lead into the node network.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::attention::stir;
use crate::clients::{self, Lent, Seen};
use crate::network::Network;
use crate::relay::{Buffer, relay, reset_on_close};
use crate::ruleset::{MARK_CLIENT, MARK_PUBLISHED};
use crate::thread::NetnsThread;
use crate::{Cidr, Error, Protocol};

const BACKLOG: i32 = 1024;
const DATAGRAM_BYTES: usize = 65_535;
/// Clients of one UDP port at a time.
const CLIENTS: usize = 4096;
const QUEUED: usize = 64;
const IDLE: Duration = Duration::from_mins(2);

/// A port of the host and where it leads. What this machine itself sends through it comes, for the pods, from
/// the node's own address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Address and port on the host.
    pub host: SocketAddr,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port in the node network: of a pod, or of a service.
    pub target: SocketAddr,
    /// Whether anybody is there to answer. If not, the port is kept and connections are refused.
    pub served: bool,
    /// Clients that may use it; None is everybody. Others' connections are reset, their datagrams dropped.
    #[serde(default)]
    pub allowed: Option<Vec<Cidr>>,
    /// Whether pods see the addresses of other machines that use it, and policies judge them by those. If not,
    /// the node stands for them; endpoints are chosen by them all the same. Where the node has to stand for one
    /// although they are to be seen, policies judge it by the node's address, without the node's rights.
    #[serde(default)]
    pub keeps_client: bool,
}

impl Publication {
    /// Whether the same port leads to the same place; as whom clients are seen may differ.
    fn is_like(&self, other: &Self) -> bool {
        *self == Self { keeps_client: self.keeps_client, ..other.clone() }
    }

    fn allows(&self, client: SocketAddr) -> bool {
        let ranges = self.allowed.as_ref();
        ranges.is_none_or(|ranges| ranges.iter().any(|range| range.contains(client.ip())))
    }
}

/// Why a port of the host could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The error number; 0 if the reason is another.
    pub errno: i32,
    /// The reason in words.
    pub message: String,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error().unwrap_or_default(), message: error.to_string() }
    }
}

struct Active {
    publication: Publication,
    /// Its `keeps_client`, for what comes in from now on.
    keeps_client: Arc<AtomicBool>,
    token: CancellationToken,
    /// Holds the port while somebody is served.
    task: Option<JoinHandle<()>>,
    /// Holds it while nobody is.
    _reserved: Option<Socket>,
}

impl Active {
    /// Ends it; the port is free afterwards.
    async fn end(self) {
        self.token.cancel();
        if let Some(task) = self.task {
            // A task that panicked has ended as well.
            let _ = task.await;
        }
    }
}

/// The publications in force.
#[derive(Default)]
pub(crate) struct Publications {
    active: HashMap<(SocketAddr, Protocol), Active>,
}

/// What publications need from their surroundings.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub node: NetnsThread<Network>,
    pub ahead: Arc<Ahead>,
    pub tasks: TaskTracker,
    pub shutdown: CancellationToken,
    /// Runtimes of one thread each: what a port takes in is carried by one of them.
    pub runtimes: Vec<Handle>,
}

/// Sockets of the node network that are made ahead. It takes a thread there to make one, which would have to be
/// woken for every connection.
#[derive(Default)]
pub(crate) struct Ahead(Mutex<Vec<Socket>>);

/// So many are made at once.
const AHEAD: usize = 16;

impl Ahead {
    /// One for TCP and IPv4, as the node.
    async fn take(&self, node: &NetnsThread<Network>) -> Result<io::Result<Socket>, Error> {
        let spare = || self.0.lock().expect("never held across a panic");
        if let Some(socket) = spare().pop() {
            return Ok(Ok(socket));
        }
        let make = || -> io::Result<Socket> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
            socket.set_mark(MARK_PUBLISHED)?;
            Ok(socket)
        };
        let make_all = move |_: &mut Network| -> io::Result<(Socket, Vec<Socket>)> {
            let first = make()?;
            Ok((first, (1..AHEAD).map_while(|_| make().ok()).collect()))
        };
        Ok(node.run(make_all).await?.map(|(first, mut rest)| {
            spare().append(&mut rest);
            first
        }))
    }
}

impl Publications {
    /// Makes the publications exactly these. The answers are in the order of `wanted`; None is
    /// success. Connections go on unless their port is withdrawn.
    pub async fn set(
        &mut self,
        wanted: &[Publication],
        surroundings: &Surroundings,
    ) -> Vec<Option<Refused>> {
        let gone = self.active.extract_if(|_, active| {
            let like = wanted.iter().find(|wanted| wanted.is_like(&active.publication));
            if let Some(Publication { keeps_client, .. }) = like {
                active.publication.keeps_client = *keeps_client;
                active.keeps_client.store(*keeps_client, Ordering::Relaxed);
            }
            like.is_none()
        });
        for (_, active) in gone.collect::<Vec<_>>() {
            active.end().await;
        }
        wanted
            .iter()
            .map(|publication| {
                let key = (publication.host, publication.protocol);
                if let Some(active) = self.active.get(&key) {
                    let other = active.publication.target;
                    return (active.publication != *publication).then(|| Refused {
                        errno: libc::EADDRINUSE,
                        message: format!("the port leads to {other} already"),
                    });
                }
                match begin(publication.clone(), surroundings) {
                    Ok(active) => {
                        self.active.insert(key, active);
                        None
                    }
                    Err(error) => Some(error.into()),
                }
            })
            .collect()
    }
}

fn begin(publication: Publication, surroundings: &Surroundings) -> io::Result<Active> {
    let Publication { host, protocol, served, .. } = publication;
    let runtimes = &surroundings.runtimes;
    // Sockets are watched, and connections carried, by the thread that they are given to here.
    let _inside = runtimes.get(usize::from(host.port()) % runtimes.len().max(1)).map(Handle::enter);
    let keeps_client = Arc::new(AtomicBool::new(publication.keeps_client));
    let own = (publication.clone(), Arc::clone(&keeps_client));
    let token = surroundings.shutdown.child_token();
    let (mut task, mut reserved) = (None, None);
    match protocol {
        Protocol::Tcp => {
            if served {
                let socket = bind(host, Type::STREAM, true)?;
                socket.listen(BACKLOG)?;
                let listener = TcpListener::from_std(socket.into())?;
                let accept = accept(listener, own, surroundings.clone(), token.clone());
                task = Some(spawn(surroundings, &token, accept));
            } else {
                // Shared with nobody, unless connections of an earlier listener still linger.
                let alone = bind(host, Type::STREAM, false);
                reserved = Some(alone.or_else(|_| bind(host, Type::STREAM, true))?);
            }
        }
        Protocol::Udp if served => {
            let socket = UdpSocket::from_std(bind(host, Type::DGRAM, false)?.into())?;
            let receive = receive(Arc::new(socket), own, surroundings.clone(), token.clone());
            task = Some(spawn(surroundings, &token, receive));
        }
        // A bound socket would swallow datagrams; without one the host itself refuses them.
        Protocol::Udp => {}
        Protocol::Sctp => {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "SCTP is not carried between the host and the pods",
            ));
        }
    }
    Ok(Active { publication, keeps_client, token, task, _reserved: reserved })
}

fn bind(host: SocketAddr, kind: Type, reuse: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(host), kind.nonblocking().cloexec(), None)?;
    if host.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Connections of an earlier listener may still be in TIME_WAIT.
    socket.set_reuse_address(reuse)?;
    socket.bind(&host.into())?;
    Ok(socket)
}

fn spawn(
    surroundings: &Surroundings,
    token: &CancellationToken,
    task: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    let token = token.clone();
    surroundings.tasks.spawn(async move {
        token.run_until_cancelled(task).await;
    })
}

async fn accept(
    listener: TcpListener,
    (publication, keeps_client): (Publication, Arc<AtomicBool>),
    surroundings: Surroundings,
    token: CancellationToken,
) {
    loop {
        let (client, source) = crate::gateway::accept(&listener).await;
        if !publication.allows(source) {
            reset_on_close(&client);
            continue;
        }
        stir();
        let origin = Origin::of(source, publication.target, &keeps_client);
        let (node, ahead) = (surroundings.node.clone(), Arc::clone(&surroundings.ahead));
        let target = publication.target;
        spawn(&surroundings, &token, async move {
            match connect((&node, &ahead), origin, target).await {
                Ok((server, lent)) => {
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    relay(client, server).await;
                    drop(lent);
                }
                Err(error) => {
                    origin.tell(&error);
                    tracing::debug!(%target, error = error.chain(), "nobody takes a connection");
                    reset_on_close(&client);
                }
            }
        });
    }
}

/// As whom something goes on in the node network.
#[derive(Clone, Copy)]
struct Origin {
    client: Seen,
    kept: bool,
}

impl Origin {
    fn of(client: SocketAddr, target: SocketAddr, keeps_client: &AtomicBool) -> Self {
        let kept = keeps_client.load(Ordering::Relaxed);
        Self { client: clients::seen(client, target), kept }
    }

    /// What policies always let in is the node itself, and whomever it stands for on purpose.
    fn mark(self) -> u32 {
        if self.kept && self.client != Seen::Node { MARK_CLIENT } else { MARK_PUBLISHED }
    }

    /// Whether a socket of [`Ahead`] does.
    fn is_as_made_ahead(self) -> bool {
        !matches!(self.client, Seen::Client(_)) && self.mark() == MARK_PUBLISHED
    }

    /// A socket for it.
    fn socket(
        self,
        network: &mut Network,
        target: SocketAddr,
        kind: Type,
    ) -> Result<(Socket, Option<Lent>), Error> {
        let failed = |e| Error::system(format!("make a socket for {target}"), e);
        let kind = kind.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(target), kind, None).map_err(failed)?;
        let lent = match self.client {
            Seen::Client(client) => match clients::bind(network, &socket, client) {
                Ok(lent) => lent,
                // The node would be let in where the client may not be.
                Err(error) if self.kept => {
                    clients::tell(client, &error, "it is refused");
                    return Err(error);
                }
                Err(error) => {
                    clients::tell(client, &error, "it is taken for the node");
                    None
                }
            },
            Seen::Node | Seen::Stranger => None,
        };
        socket.set_mark(self.mark()).map_err(failed)?;
        Ok((socket, lent))
    }

    /// Tells of an error that only clients with addresses of their own meet: no port is left to theirs.
    fn tell(self, error: &Error) {
        let ports = [libc::EADDRNOTAVAIL, libc::EADDRINUSE, libc::EAGAIN];
        if let Seen::Client(client) = self.client
            && error.raw_os_error().is_some_and(|errno| ports.contains(&errno))
        {
            clients::tell(client, error, "it is refused");
        }
    }
}

/// A connection within the node network.
async fn connect(
    (node, ahead): (&NetnsThread<Network>, &Ahead),
    origin: Origin,
    target: SocketAddr,
) -> Result<(TcpStream, Option<Lent>), Error> {
    let failed = |e| Error::system(format!("connect to {target}"), e);
    let (socket, lent) = if origin.is_as_made_ahead() && target.is_ipv4() {
        (ahead.take(node).await?.map_err(failed)?, None)
    } else {
        let make = move |network: &mut Network| origin.socket(network, target, Type::STREAM);
        node.run(make).await??
    };
    let connection = TcpSocket::from_std_stream(socket.into()).connect(target).await;
    Ok((connection.map_err(failed)?, lent))
}

type Clients = Arc<Mutex<HashMap<SocketAddr, mpsc::Sender<Vec<u8>>>>>;

async fn receive(
    host: Arc<UdpSocket>,
    (publication, keeps_client): (Publication, Arc<AtomicBool>),
    surroundings: Surroundings,
    token: CancellationToken,
) {
    let clients = Clients::default();
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let Ok((length, client)) = host.recv_from(&mut buffer).await else {
            // What an ICMP message left on the socket concerns a client that is gone.
            tokio::task::yield_now().await;
            continue;
        };
        if !publication.allows(client) {
            continue;
        }
        let datagram = buffer[..length].to_vec();
        let mut table = clients.lock().expect("never held across a panic");
        if let Some(flow) = table.get(&client) {
            // A full queue drops, as UDP does.
            let _ = flow.try_send(datagram);
            continue;
        }
        if table.len() >= CLIENTS {
            continue;
        }
        let (sender, queue) = mpsc::channel(QUEUED);
        let _ = sender.try_send(datagram);
        table.insert(client, sender);
        drop(table);
        // Whoever withdraws the port waits for the task that receives, and may have it bound again at once.
        let (host, clients, node) =
            (Arc::downgrade(&host), Arc::clone(&clients), surroundings.node.clone());
        let target = publication.target;
        let origin = Origin::of(client, target, &keeps_client);
        spawn(&surroundings, &token, async move {
            if let Err(error) = carry(&node, &host, (client, origin), target, queue).await {
                origin.tell(&error);
                tracing::debug!(%client, error = error.chain(), "a flow from the host failed");
            }
            clients.lock().expect("never held across a panic").remove(&client);
        });
    }
}

async fn carry(
    node: &NetnsThread<Network>,
    host: &Weak<UdpSocket>,
    (client, origin): (SocketAddr, Origin),
    target: SocketAddr,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> Result<(), Error> {
    let failed = move |e| Error::system(format!("carry datagrams to {target}"), e);
    let make = move |network: &mut Network| {
        let (socket, lent) = origin.socket(network, target, Type::DGRAM)?;
        socket.connect(&target.into()).map_err(failed)?;
        Ok::<_, Error>((socket, lent))
    };
    let (inside, _lent) = node.run(make).await??;
    let inside = UdpSocket::from_std(inside.into()).map_err(failed)?;
    loop {
        tokio::select! {
            datagram = queue.recv() => match datagram {
                // An endpoint that refuses may be replaced by one that does not.
                Some(datagram) => drop(inside.send(&datagram).await),
                None => return Ok(()),
            },
            ready = inside.readable() => {
                ready.map_err(failed)?;
                let Some(host) = host.upgrade() else { return Ok(()) };
                let mut buffer = Buffer::take();
                while let Ok(length) = inside.try_recv(buffer.bytes()) {
                    let _ = host.try_send_to(&buffer.bytes()[..length], client);
                }
            }
            () = tokio::time::sleep(IDLE) => return Ok(()),
        }
    }
}
