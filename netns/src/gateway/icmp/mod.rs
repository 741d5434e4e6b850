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
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::Flows;
use super::tcp::domain;
use crate::family::Family;
use crate::sys::Reported;
use crate::{Cidr, Error, sys};
use wire::{Echo, Why};

const IDLE: Duration = Duration::from_secs(30);
const QUEUED: usize = 16;
const FLOWS: usize = 1024;
const FLOWS_PER_POD: usize = 128;
const PACKET_BYTES: usize = 65_535;
/// Linux' default, `net.ipv4.ip_default_ttl`. What may make so many hops, or more, makes what the host allows.
const DEFAULT_HOPS: u8 = 64;

/// Pod, destination, identifier.
type Key = (IpAddr, IpAddr, u16);

/// What a pod sent: a message, and the hops that it may make from here.
type Sent = (Vec<u8>, Option<u8>);

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
        Family::V6 => {
            sys::receive_destination6(&receive)?;
            sys::receive_hops(&receive, family)?;
        }
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
    flows: Mutex<HashMap<Key, mpsc::Sender<Sent>>>,
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
            let Ok(Ok((length, told))) = received else { continue };
            let packet = &buffer[..length];
            let echo = match told {
                None => wire::read_packet4(packet),
                Some((pod, destination, hops)) => {
                    wire::read_message(packet, pod, destination, hops)
                }
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
        let Ok(hops) = left_of(echo.hops) else {
            let protocol = wire::protocol(pod.is_ipv4());
            let original = wire::packet(pod, destination, protocol, echo.message);
            self.expired(pod, None, &original);
            return;
        };
        let sent = (echo.message.to_vec(), hops);
        let key = (pod, destination, echo.identifier);
        let mut flows = self.flows.lock().expect("never held across a panic");
        if let Some(flow) = flows.get(&key) {
            let _ = flow.try_send(sent);
            return;
        }
        let own = || flows.keys().filter(|(other, _, _)| *other == pod).count();
        if flows.len() >= FLOWS || own() >= FLOWS_PER_POD {
            return;
        }
        let (sender, queue) = mpsc::channel(QUEUED);
        let _ = sender.try_send(sent);
        flows.insert(key, sender);
        drop(flows);
        let (ping, token) = (Arc::clone(self), pods.of(pod));
        tasks.spawn(async move {
            token.run_until_cancelled(ping.carry(key, queue)).await;
            let mut flows = ping.flows.lock().expect("never held across a panic");
            flows.remove(&key);
        });
    }

    async fn carry(&self, (pod, destination, identifier): Key, mut queue: mpsc::Receiver<Sent>) {
        let (family, v4) = (Family::of(destination), destination.is_ipv4());
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
                while let Ok((message, _)) = queue.try_recv() {
                    failed(&message, Why::of(error.kind()));
                }
                return;
            }
        };
        let mut buffer = vec![0; PACKET_BYTES];
        loop {
            tokio::select! {
                Some((message, hops)) = queue.recv() => {
                    // Not being able to is no reason not to send.
                    let _ = sys::set_hops(outside.get_ref(), family, hops.unwrap_or(DEFAULT_HOPS));
                    // A ping socket puts its own identifier in and keeps the sequence number.
                    if let Err(error) = outside.get_ref().send(&message) {
                        failed(&message, Why::of(error.kind()));
                    }
                }
                ready = outside.ready(Interest::READABLE | Interest::ERROR) => {
                    let Ok(mut ready) = ready else { return };
                    while let Ok(told) = sys::reported(outside.get_ref(), &mut buffer) {
                        let mut message = buffer[..told.length].to_vec();
                        if let Some(own) = message.get_mut(4..6) {
                            own.copy_from_slice(&identifier.to_be_bytes());
                        }
                        let original = wire::packet(pod, destination, wire::protocol(v4), &message);
                        self.tell(pod, destination, &told, &original);
                    }
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

    /// Tells a pod that a packet made all the hops that it was allowed: of the gateway's own, or of
    /// another's on the way.
    fn expired(&self, pod: IpAddr, by: Option<IpAddr>, original: &[u8]) {
        let own = || self.gateways.iter().find(|own| own.is_ipv4() == pod.is_ipv4()).copied();
        if let Some(by) = by.filter(|by| by.is_ipv4() == pod.is_ipv4()).or_else(own) {
            self.transmit(pod, &wire::unreachable(by, pod, Why::Expired, original));
        }
    }

    /// Passes on to a pod what the network reported.
    fn tell(&self, pod: IpAddr, destination: IpAddr, told: &Reported, original: &[u8]) {
        if told.expired {
            self.expired(pod, told.by, original);
            return;
        }
        let by = told.by.filter(|by| by.is_ipv4() == pod.is_ipv4() && !by.is_loopback());
        let by = by.unwrap_or(destination);
        let why = Why::of(told.error.kind());
        self.transmit(pod, &wire::unreachable(by, pod, why, original));
    }

    /// The hops that are left to a pod's datagram; if none, the pod is told.
    pub fn pass(
        &self,
        pod: SocketAddr,
        destination: SocketAddr,
        hops: Option<u8>,
    ) -> Result<Option<u8>, Expired> {
        let left = left_of(hops);
        if left.is_err() {
            self.expired(pod.ip(), None, &datagram(pod, destination));
        }
        left
    }

    /// Passes on to a pod what the network reported of its datagram.
    pub fn reported(&self, pod: SocketAddr, destination: SocketAddr, told: &Reported) {
        self.tell(pod.ip(), destination.ip(), told, &datagram(pod, destination));
    }

    /// Tells a pod that its datagram to `destination` did not arrive.
    pub fn unreachable(&self, pod: SocketAddr, destination: SocketAddr, why: io::ErrorKind) {
        let original = datagram(pod, destination);
        let (pod, destination) = (pod.ip(), destination.ip());
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

/// There are no hops left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expired;

/// The hops that are left once the gateway has made its own; None is what the host gives.
fn left_of(hops: Option<u8>) -> Result<Option<u8>, Expired> {
    match hops {
        Some(0 | 1) => Err(Expired),
        None | Some(DEFAULT_HOPS..) => Ok(None),
        Some(hops) => Ok(Some(hops - 1)),
    }
}

/// A pod's datagram, or as much of it as errors quote.
fn datagram(pod: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut header = Vec::with_capacity(8);
    header.extend_from_slice(&pod.port().to_be_bytes());
    header.extend_from_slice(&destination.port().to_be_bytes());
    header.extend_from_slice(&[0, 8, 0, 0]);
    wire::packet(pod.ip(), destination.ip(), libc::IPPROTO_UDP as u8, &header)
}

/// One packet; of IPv6 without its header, but with source, destination and hops.
fn receive(
    family: Family,
    socket: &Socket,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<(IpAddr, IpAddr, Option<u8>)>)> {
    match family {
        Family::V4 => {
            use std::io::Read;
            let mut socket = socket;
            socket.read(buffer).map(|length| (length, None))
        }
        Family::V6 => {
            let got = sys::receive_with_destination(socket, buffer)?;
            Ok((got.length, Some((got.source.ip(), got.destination.ip(), got.hops))))
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
    sys::keep_errors(&socket, family)?;
    sys::watch(socket)
}
