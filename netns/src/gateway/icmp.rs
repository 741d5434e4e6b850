//! Ping, and the errors that pods see.
//!
//! Echo requests from pods arrive at a raw socket in the node network. Outside they are sent by
//! unprivileged ping sockets (`icmp(7)`), where `net.ipv4.ping_group_range` allows them; where it
//! does not, the pod is told that this is prohibited.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::Flows;
use crate::{Cidr, Error};

const IDLE: Duration = Duration::from_secs(30);
const QUEUED: usize = 16;
const FLOWS: usize = 1024;
const FLOWS_PER_POD: usize = 128;
const PACKET_BYTES: usize = 65_535;
const IP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;

const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
const CODE_NET: u8 = 0;
const CODE_HOST: u8 = 1;
const CODE_PORT: u8 = 3;
const CODE_PROHIBITED: u8 = 13;

/// The raw sockets of the node network.
pub(crate) struct Ping {
    receive: AsyncFd<Socket>,
    send: Socket,
    gateway: Ipv4Addr,
    inside: Vec<Cidr>,
    flows: Mutex<HashMap<(Ipv4Addr, Ipv4Addr, u16), mpsc::Sender<Vec<u8>>>>,
    told: Once,
}

/// An echo request that arrived from a pod.
#[derive(Debug, PartialEq, Eq)]
struct Echo<'a> {
    pod: Ipv4Addr,
    destination: Ipv4Addr,
    identifier: u16,
    /// ICMP header and data.
    message: &'a [u8],
}

/// Both raw sockets, in the namespace of the calling thread: for receiving, for sending.
pub(crate) fn open() -> io::Result<(Socket, Socket)> {
    let raw = Type::RAW.nonblocking().cloexec();
    let receive = Socket::new(Domain::IPV4, raw, Some(Protocol::ICMPV4))?;
    let send = Socket::new(Domain::IPV4, raw, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    send.set_header_included_v4(true)?;
    Ok((receive, send))
}

impl Ping {
    pub fn new(
        (receive, send): (Socket, Socket),
        gateway: Ipv4Addr,
        inside: Vec<Cidr>,
    ) -> io::Result<Self> {
        Ok(Self {
            receive: crate::sys::watch(receive)?,
            send,
            gateway,
            inside,
            flows: Mutex::default(),
            told: Once::new(),
        })
    }

    /// Receives for ever.
    pub async fn serve(self: Arc<Self>, pods: Arc<Flows>, tasks: TaskTracker) -> Result<(), Error> {
        let mut buffer = vec![0; PACKET_BYTES];
        loop {
            let ready = self.receive.readable().await;
            let mut ready = ready.map_err(|e| Error::system("wait for pings", e))?;
            let received = ready.try_io(|socket| {
                use std::io::Read;
                (&mut socket.get_ref()).read(&mut buffer)
            });
            let Ok(Ok(length)) = received else { continue };
            if let Some(echo) = read_echo(&buffer[..length]) {
                self.dispatch(&echo, &pods, &tasks);
            }
        }
    }

    fn dispatch(self: &Arc<Self>, echo: &Echo, pods: &Flows, tasks: &TaskTracker) {
        if echo.destination == self.gateway {
            self.reply(echo.destination, echo.pod, echo.message, echo.identifier);
            return;
        }
        let destination = IpAddr::V4(echo.destination);
        if destination.is_loopback() || self.inside.iter().any(|c| c.contains(destination)) {
            return;
        }
        let key = (echo.pod, echo.destination, echo.identifier);
        let mut flows = self.flows.lock().expect("never held across a panic");
        if let Some(flow) = flows.get(&key) {
            let _ = flow.try_send(echo.message.to_vec());
            return;
        }
        let own = || flows.keys().filter(|(pod, _, _)| *pod == echo.pod).count();
        if flows.len() >= FLOWS || own() >= FLOWS_PER_POD {
            return;
        }
        let (sender, queue) = mpsc::channel(QUEUED);
        let _ = sender.try_send(echo.message.to_vec());
        flows.insert(key, sender);
        drop(flows);
        let (ping, token) = (Arc::clone(self), pods.of(echo.pod.into()));
        tasks.spawn(async move {
            token.run_until_cancelled(ping.carry(key, queue)).await;
            let mut flows = ping.flows.lock().expect("never held across a panic");
            flows.remove(&key);
        });
    }

    async fn carry(
        &self,
        (pod, destination, identifier): (Ipv4Addr, Ipv4Addr, u16),
        mut queue: mpsc::Receiver<Vec<u8>>,
    ) {
        let outside = match outside(destination) {
            Ok(socket) => socket,
            Err(error) => {
                self.told.call_once(|| {
                    tracing::warn!(%error, "pods cannot ping beyond the cluster: net.ipv4.ping_group_range does not include this user's group");
                });
                let code = match error.kind() {
                    io::ErrorKind::PermissionDenied => CODE_PROHIBITED,
                    kind => code_of(kind),
                };
                while let Ok(message) = queue.try_recv() {
                    let original = datagram(pod, destination, libc::IPPROTO_ICMP as u8, &message);
                    self.error(destination, pod, code, &original);
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
                        let original = datagram(pod, destination, libc::IPPROTO_ICMP as u8, &message);
                        self.error(destination, pod, code_of(error.kind()), &original);
                    }
                }
                ready = outside.readable() => {
                    let Ok(mut ready) = ready else { return };
                    let received = ready.try_io(|socket| {
                        use std::io::Read;
                        (&mut socket.get_ref()).read(&mut buffer)
                    });
                    if let Ok(Ok(length)) = received && length >= ICMP_HEADER && buffer[0] == ECHO_REPLY {
                        self.reply(destination, pod, &buffer[..length], identifier);
                    }
                }
                () = tokio::time::sleep(IDLE) => return,
            }
        }
    }

    fn reply(&self, from: Ipv4Addr, to: Ipv4Addr, message: &[u8], identifier: u16) {
        let mut message = message.to_vec();
        message[0] = ECHO_REPLY;
        message[4..6].copy_from_slice(&identifier.to_be_bytes());
        seal(&mut message);
        self.transmit(from, to, &message);
    }

    /// Tells a pod that its datagram to `destination` did not arrive.
    pub fn unreachable(&self, pod: SocketAddr, destination: SocketAddr, why: io::ErrorKind) {
        let (SocketAddr::V4(pod), SocketAddr::V4(destination)) = (pod, destination) else {
            return;
        };
        let mut header = Vec::with_capacity(8);
        header.extend_from_slice(&pod.port().to_be_bytes());
        header.extend_from_slice(&destination.port().to_be_bytes());
        header.extend_from_slice(&[0, 8, 0, 0]);
        let original = datagram(*pod.ip(), *destination.ip(), libc::IPPROTO_UDP as u8, &header);
        self.error(*destination.ip(), *pod.ip(), code_of(why), &original);
    }

    fn error(&self, from: Ipv4Addr, to: Ipv4Addr, code: u8, original: &[u8]) {
        let mut message = vec![UNREACHABLE, code, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&original[..original.len().min(IP_HEADER + ICMP_HEADER)]);
        seal(&mut message);
        self.transmit(from, to, &message);
    }

    fn transmit(&self, from: Ipv4Addr, to: Ipv4Addr, message: &[u8]) {
        let packet = datagram(from, to, libc::IPPROTO_ICMP as u8, message);
        let address = SockAddr::from(SocketAddr::from((to, 0)));
        if let Err(error) = self.send.send_to(&packet, &address) {
            tracing::debug!(%error, %to, "cannot answer a pod");
        }
    }
}

fn outside(destination: Ipv4Addr) -> io::Result<AsyncFd<Socket>> {
    let kind = Type::DGRAM.nonblocking().cloexec();
    let socket = Socket::new(Domain::IPV4, kind, Some(Protocol::ICMPV4))?;
    socket.connect(&SocketAddr::from((destination, 0)).into())?;
    crate::sys::watch(socket)
}

/// The code of a "destination unreachable" (RFC 792) for what a socket reported.
fn code_of(kind: io::ErrorKind) -> u8 {
    match kind {
        io::ErrorKind::ConnectionRefused => CODE_PORT,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => CODE_NET,
        io::ErrorKind::PermissionDenied => CODE_PROHIBITED,
        _ => CODE_HOST,
    }
}

/// An IPv4 packet. The kernel fills in identification, length and header checksum (`raw(7)`).
fn datagram(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (IP_HEADER + payload.len()) as u16;
    let [high, low] = length.to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, TTL, protocol, 0, 0];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(payload);
    packet
}

/// Writes the ICMP checksum.
fn seal(message: &mut [u8]) {
    message[2..4].fill(0);
    let sum = checksum(message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn read_echo(packet: &[u8]) -> Option<Echo<'_>> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let address = |at: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let message = packet.get(header..).filter(|_| header >= IP_HEADER)?;
    if message.len() < ICMP_HEADER || message[0] != ECHO_REQUEST || message[1] != 0 {
        return None;
    }
    Some(Echo {
        pod: address(12)?,
        destination: address(16)?,
        identifier: u16::from_be_bytes([message[4], message[5]]),
        message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn echo_requests_are_read() {
        let (pod, destination) = (Ipv4Addr::new(10, 42, 0, 2), Ipv4Addr::new(192, 0, 2, 1));
        let message = [8, 0, 1, 2, 0x12, 0x34, 0, 1, b'x'];
        let packet = datagram(pod, destination, 1, &message);
        let expected = Echo { pod, destination, identifier: 0x1234, message: &message };
        assert_eq!(read_echo(&packet), Some(expected));
        let reply = datagram(pod, destination, 1, &[0, 0, 1, 2, 0x12, 0x34, 0, 1]);
        assert_eq!(read_echo(&reply), None);
    }

    #[test]
    fn sealed_messages_sum_to_zero() {
        let mut message = vec![0, 0, 0xff, 0xff, 1, 2, 3, 4, 5];
        seal(&mut message);
        assert_eq!(checksum(&message), 0);
    }

    proptest! {
        #[test]
        fn foreign_packets_never_panic(packet in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = read_echo(&packet);
        }
    }
}
