//! Ping, and the errors that pods see.
//!
//! Echo requests from pods arrive at a raw socket in the node network. Outside they are sent by
//! unprivileged ping sockets (`icmp(7)`), where `net.ipv4.ping_group_range` allows them; where it
//! does not, the pod is told that this is prohibited.

mod wire;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use socket2::{Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::Flows;
use super::tcp::domain;
use crate::family::Family;
use crate::{Cidr, Error, sys};
use wire::{Echo, Why};

const IDLE: Duration = Duration::from_secs(30);
const QUEUED: usize = 16;
const FLOWS: usize = 1024;
const FLOWS_PER_POD: usize = 128;
const PACKET_BYTES: usize = 65_535;

/// Pod, destination, identifier.
type Key = (IpAddr, IpAddr, u16);

/// The raw sockets of one family in the node network.
pub(crate) struct Sockets {
    family: Family,
    receive: Socket,
    send: Socket,
}

/// The raw sockets, in the namespace of the calling thread: for receiving, for sending.
pub(crate) fn open(family: Family) -> io::Result<Sockets> {
    let raw = Type::RAW.nonblocking().cloexec();
    let receive = Socket::new(domain(family), raw, Some(icmp(family)))?;
    let send = Socket::new(domain(family), raw, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    match family {
        Family::V4 => send.set_header_included_v4(true)?,
        // An IPv6 packet arrives without its header.
        Family::V6 => sys::receive_destination6(&receive)?,
    }
    Ok(Sockets { family, receive, send })
}

fn icmp(family: Family) -> Protocol {
    match family {
        Family::V4 => Protocol::ICMPV4,
        Family::V6 => Protocol::ICMPV6,
    }
}

struct Raw {
    receive: AsyncFd<Socket>,
    send: Socket,
}

/// Pings and errors of all pods.
pub(crate) struct Ping {
    v4: Option<Raw>,
    v6: Option<Raw>,
    /// The node's own addresses.
    gateways: Vec<IpAddr>,
    inside: Vec<Cidr>,
    flows: Mutex<HashMap<Key, mpsc::Sender<Vec<u8>>>>,
    told: Once,
}

impl Ping {
    pub fn new(
        sockets: Vec<Sockets>,
        gateways: Vec<IpAddr>,
        inside: Vec<Cidr>,
    ) -> io::Result<Self> {
        let mut own = Self {
            v4: None,
            v6: None,
            gateways,
            inside,
            flows: Mutex::default(),
            told: Once::new(),
        };
        for Sockets { family, receive, send } in sockets {
            let raw = Some(Raw { receive: sys::watch(receive)?, send });
            match family {
                Family::V4 => own.v4 = raw,
                Family::V6 => own.v6 = raw,
            }
        }
        Ok(own)
    }

    fn raw(&self, family: Family) -> Option<&Raw> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    /// Receives one family's pings for ever.
    pub async fn serve(
        self: Arc<Self>,
        family: Family,
        pods: Arc<Flows>,
        tasks: TaskTracker,
    ) -> Result<(), Error> {
        let Some(raw) = self.raw(family) else { return Ok(()) };
        let mut buffer = vec![0; PACKET_BYTES];
        loop {
            let ready = raw.receive.readable().await;
            let mut ready = ready.map_err(|e| Error::system("wait for pings", e))?;
            let received = ready.try_io(|socket| receive(family, socket.get_ref(), &mut buffer));
            let Ok(Ok((length, addresses))) = received else { continue };
            let packet = &buffer[..length];
            let echo = match addresses {
                None => wire::read_packet4(packet),
                Some((pod, destination)) => wire::read_message(packet, pod, destination),
            };
            if let Some(echo) = echo {
                self.dispatch(&echo, &pods, &tasks);
            }
        }
    }

    fn dispatch(self: &Arc<Self>, echo: &Echo, pods: &Flows, tasks: &TaskTracker) {
        let Echo { pod, destination, .. } = *echo;
        if self.gateways.contains(&destination) {
            let reply = wire::reply(destination, pod, echo.message, echo.identifier);
            self.transmit(pod, &reply);
            return;
        }
        if is_local(destination) || self.inside.iter().any(|c| c.contains(destination)) {
            return;
        }
        let key = (pod, destination, echo.identifier);
        let mut flows = self.flows.lock().expect("never held across a panic");
        if let Some(flow) = flows.get(&key) {
            let _ = flow.try_send(echo.message.to_vec());
            return;
        }
        let own = || flows.keys().filter(|(other, _, _)| *other == pod).count();
        if flows.len() >= FLOWS || own() >= FLOWS_PER_POD {
            return;
        }
        let (sender, queue) = mpsc::channel(QUEUED);
        let _ = sender.try_send(echo.message.to_vec());
        flows.insert(key, sender);
        drop(flows);
        let (ping, token) = (Arc::clone(self), pods.of(pod));
        tasks.spawn(async move {
            token.run_until_cancelled(ping.carry(key, queue)).await;
            let mut flows = ping.flows.lock().expect("never held across a panic");
            flows.remove(&key);
        });
    }

    async fn carry(&self, (pod, destination, identifier): Key, mut queue: mpsc::Receiver<Vec<u8>>) {
        let v4 = destination.is_ipv4();
        let failed = |message: &[u8], why: Why| {
            let original = wire::packet(pod, destination, wire::protocol(v4), message);
            self.transmit(pod, &wire::unreachable(destination, pod, why, &original));
        };
        let outside = match outside(destination) {
            Ok(socket) => socket,
            Err(error) => {
                if error.kind() == io::ErrorKind::PermissionDenied {
                    self.told.call_once(|| {
                        tracing::warn!(%error, "pods cannot ping beyond the cluster: net.ipv4.ping_group_range does not include this user's group");
                    });
                }
                while let Ok(message) = queue.try_recv() {
                    failed(&message, Why::of(error.kind()));
                }
                return;
            }
        };
        let mut buffer = vec![0; PACKET_BYTES];
        loop {
            tokio::select! {
                Some(message) = queue.recv() => {
                    // A ping socket puts its own identifier in and keeps the sequence number.
                    if let Err(error) = outside.get_ref().send(&message) {
                        failed(&message, Why::of(error.kind()));
                    }
                }
                ready = outside.readable() => {
                    let Ok(mut ready) = ready else { return };
                    let received = ready.try_io(|socket| {
                        use std::io::Read;
                        (&mut socket.get_ref()).read(&mut buffer)
                    });
                    if let Ok(Ok(length)) = received && wire::is_reply(&buffer[..length], v4) {
                        let reply = wire::reply(destination, pod, &buffer[..length], identifier);
                        self.transmit(pod, &reply);
                    }
                }
                () = tokio::time::sleep(IDLE) => return,
            }
        }
    }

    /// Tells a pod that its datagram to `destination` did not arrive.
    pub fn unreachable(&self, pod: SocketAddr, destination: SocketAddr, why: io::ErrorKind) {
        if pod.is_ipv4() != destination.is_ipv4() {
            return;
        }
        let mut header = Vec::with_capacity(8);
        header.extend_from_slice(&pod.port().to_be_bytes());
        header.extend_from_slice(&destination.port().to_be_bytes());
        header.extend_from_slice(&[0, 8, 0, 0]);
        let (pod, destination) = (pod.ip(), destination.ip());
        let original = wire::packet(pod, destination, libc::IPPROTO_UDP as u8, &header);
        let error = wire::unreachable(destination, pod, Why::of(why), &original);
        self.transmit(pod, &error);
    }

    fn transmit(&self, to: IpAddr, packet: &[u8]) {
        let Some(raw) = self.raw(Family::of(to)) else { return };
        let address = SockAddr::from(SocketAddr::from((to, 0)));
        if let Err(error) = raw.send.send_to(packet, &address) {
            tracing::debug!(%error, %to, "cannot answer a pod");
        }
    }
}

/// One packet; of IPv6 without its header, but with source and destination.
fn receive(
    family: Family,
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<(IpAddr, IpAddr)>)> {
    match family {
        Family::V4 => {
            use std::io::Read;
            let mut socket = socket;
            socket.read(buffer).map(|length| (length, None))
        }
        Family::V6 => {
            let (length, source, destination) = sys::receive_with_destination(socket, buffer)?;
            Ok((length, Some((source.ip(), destination.ip()))))
        }
    }
}

/// Addresses that are the neighbours' or the machine's own business.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_multicast() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local(),
    }
}

fn outside(destination: IpAddr) -> io::Result<AsyncFd<Socket>> {
    let family = Family::of(destination);
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(domain(family), kind, Some(icmp(family)))?;
    socket.connect(&SocketAddr::from((destination, 0)).into())?;
    sys::watch(socket)
}
