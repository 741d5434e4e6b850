//! UDP: one pair of connected sockets for every flow.
//!
//! The transparent listener sees only the first datagrams of a flow. From then on the kernel finds
//! the flow's own socket in the node network, which is bound to the address that the pod speaks to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::tcp::domain;
use super::{Flows, Ping};
use crate::family::Family;
use crate::network::Network;
use crate::relay::Buffer;
use crate::thread::NetnsThread;
use crate::{Error, sys};

/// As the kernel's connection tracking counts: until there is an answer, and from then on.
const UNANSWERED: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_mins(2);
const DATAGRAM_BYTES: usize = 65_535;
/// Datagrams that may wait while a flow's sockets are made.
const QUEUED: usize = 64;
/// One pod may not use up the descriptors of all.
const FLOWS_PER_POD: usize = 12_288;

type Key = (SocketAddr, SocketAddr);

struct Table {
    most_per_pod: usize,
    flows: HashMap<Key, mpsc::Sender<Vec<u8>>>,
    per_pod: HashMap<IpAddr, usize>,
}

type SharedTable = Arc<Mutex<Table>>;

/// The transparent socket, in the namespace of the calling thread.
pub(crate) fn bind(family: Family, port: u16) -> io::Result<Socket> {
    let socket = transparent(family)?;
    socket.bind(&SocketAddr::new(family.loopback(), port).into())?;
    sys::receive_original_destination(&socket, family)?;
    sys::receive_hops(&socket, family)?;
    Ok(socket)
}

fn transparent(family: Family) -> io::Result<Socket> {
    let socket = Socket::new(domain(family), Type::DGRAM.nonblocking().cloexec(), None)?;
    sys::set_transparent(&socket, family)?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Answers to the pod come from the address it spoke to.
fn answering(pod: SocketAddr, destination: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = transparent(Family::of(pod.ip()))?;
    socket.bind(&destination.into())?;
    socket.connect(&pod.into())?;
    Ok(socket.into())
}

/// What a flow needs from its surroundings.
#[derive(Clone)]
pub(crate) struct Context {
    pub node: NetnsThread<Network>,
    pub flows: Arc<Flows>,
    pub ping: Arc<Ping>,
    pub tasks: TaskTracker,
}

/// Receives for ever.
pub(crate) async fn serve(listener: Socket, context: Context) -> Result<(), Error> {
    let failed = |e| Error::system("wait for datagrams", e);
    let own = listener.local_addr().map_err(failed)?.as_socket();
    let listener = sys::watch(listener).map_err(failed)?;
    let table = Table {
        most_per_pod: super::share(FLOWS_PER_POD),
        flows: HashMap::new(),
        per_pod: HashMap::new(),
    };
    let table = Arc::new(Mutex::new(table));
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let mut ready = listener.readable().await.map_err(failed)?;
        let received =
            ready.try_io(|socket| sys::receive_with_destination(socket.get_ref(), &mut buffer));
        let Ok(received) = received else { continue };
        match received {
            Ok(got) if Some(got.destination) != own => {
                let key = (got.source, got.destination);
                if let Ok(hops) = context.ping.pass(key.0, key.1, got.hops) {
                    dispatch(&context, &table, key, (buffer[..got.length].to_vec(), hops));
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot receive a datagram"),
        }
    }
}

/// Carries a datagram; the first of a flow says how many hops the flow makes.
fn dispatch(
    context: &Context,
    shared: &SharedTable,
    key: Key,
    (datagram, hops): (Vec<u8>, Option<u8>),
) {
    let mut table = shared.lock().expect("never held across a panic");
    if let Some(flow) = table.flows.get(&key) {
        // A full queue drops, as UDP does.
        let _ = flow.try_send(datagram);
        return;
    }
    let most = table.most_per_pod;
    let count = table.per_pod.entry(key.0.ip()).or_default();
    if *count >= most {
        drop(table);
        context.flows.full(key.0.ip(), "flows of datagrams", most);
        return;
    }
    *count += 1;
    let (sender, queue) = mpsc::channel(QUEUED);
    let _ = sender.try_send(datagram);
    table.flows.insert(key, sender);
    drop(table);
    let (context, shared) = (context.clone(), Arc::clone(shared));
    let token = context.flows.of(key.0.ip());
    context.tasks.clone().spawn(async move {
        let carried = token.run_until_cancelled(carry(&context, key, hops, queue)).await;
        if let Some(Err(error)) = carried {
            tracing::debug!(destination = %key.1, error = error.chain(), "egress flow failed");
        }
        let mut table = shared.lock().expect("never held across a panic");
        table.flows.remove(&key);
        if let Some(count) = table.per_pod.get_mut(&key.0.ip()) {
            *count -= 1;
            if *count == 0 {
                table.per_pod.remove(&key.0.ip());
            }
        }
    });
}

async fn carry(
    context: &Context,
    (pod, destination): Key,
    hops: Option<u8>,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> Result<(), Error> {
    let failed = |e| Error::system(format!("carry datagrams to {destination}"), e);
    let host = UdpSocket::bind(any_like(destination)).await.map_err(failed)?;
    let family = Family::of(destination.ip());
    sys::keep_errors(&host, family).map_err(failed)?;
    if let Some(hops) = hops {
        sys::set_hops(&host, family, hops).map_err(failed)?;
    }
    if let Err(error) = host.connect(destination).await {
        context.ping.unreachable(pod, destination, error.kind());
        return Err(failed(error));
    }
    let inside = context
        .node
        .run(move |_| answering(pod, destination))
        .await?
        .and_then(UdpSocket::from_std)
        .map_err(failed)?;
    let mut patience = UNANSWERED;
    let mut deadline = Instant::now() + patience;
    loop {
        // Which side is ready is waited for without a buffer in hand.
        let event = tokio::select! {
            Some(datagram) = queue.recv() => Event::Queued(datagram),
            ready = inside.readable() => { ready.map_err(failed)?; Event::FromPod }
            ready = host.ready(Interest::READABLE | Interest::ERROR) => {
                ready.map_err(failed)?;
                Event::FromHost
            }
            () = tokio::time::sleep_until(deadline) => return Ok(()),
        };
        // What the network reported; an error of this machine's own is reported by nobody.
        let report = |error: Option<&io::Error>| {
            let mut told = false;
            while let Ok(reported) = sys::reported(&host, &mut [0; 64]) {
                context.ping.reported(pod, destination, &reported);
                told = true;
            }
            if let Some(error) = error.filter(|_| !told) {
                context.ping.unreachable(pod, destination, error.kind());
            }
            told
        };
        let mut spare = Buffer::take();
        let buffer = spare.bytes();
        match event {
            Event::Queued(datagram) => {
                if let Err(error) = host.send(&datagram).await
                    && report(Some(&error))
                {
                    // The error was an earlier datagram's: this one was not sent.
                    let _ = host.send(&datagram).await;
                }
            }
            Event::FromPod => {
                while let Ok(length) = inside.try_recv(buffer) {
                    if let Err(error) = host.send(&buffer[..length]).await
                        && report(Some(&error))
                    {
                        let _ = host.send(&buffer[..length]).await;
                    }
                }
            }
            Event::FromHost => {
                let _ = host.try_io(Interest::ERROR, || pending_error(&host));
                report(None);
                loop {
                    match host.try_recv(buffer) {
                        Ok(length) => {
                            patience = ANSWERED;
                            let _ = inside.send(&buffer[..length]).await;
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(error) => {
                            report(Some(&error));
                        }
                    }
                }
            }
        }
        deadline = Instant::now() + patience;
    }
}

/// The unspecified address of the same family, any port.
pub(crate) fn any_like(address: SocketAddr) -> SocketAddr {
    match Family::of(address.ip()) {
        Family::V4 => (Ipv4Addr::UNSPECIFIED, 0).into(),
        Family::V6 => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// The error that an ICMP message left on the socket.
fn pending_error(socket: &UdpSocket) -> io::Result<io::Error> {
    let error = socket.take_error()?;
    error.ok_or_else(|| io::ErrorKind::WouldBlock.into())
}

enum Event {
    Queued(Vec<u8>),
    FromPod,
    FromHost,
}
