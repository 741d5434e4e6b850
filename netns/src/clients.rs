//! Clients of the host's ports, as the node network sees them.
//!
//! What comes in through a port of the host goes on from a socket in the node network that has the client's
//! own address (`IP_TRANSPARENT`). Answers to it have to come back to that socket instead of leaving through
//! the gateway, and are tracked meanwhile, as they may come from another address than was asked: so the rules
//! know such addresses.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::Error;
use crate::family::{Family, octets};
use crate::gateway::Told;
use crate::network::Network;
use crate::nft::Element;
use crate::{link, netlink, sys};

/// So long after its last flow an address is known.
const REMEMBERED: Duration = Duration::from_mins(2);
/// So many are known at most.
const KNOWN: usize = 65_536;
/// Those without flows are looked for this often at most, as all have to be looked at.
const LOOKED_EVERY: Duration = Duration::from_secs(5);
/// So many are forgotten at a time. The rest waits for the next time.
const FORGOTTEN: usize = 4096;

static NOT_ADMITTED: Told = Told::new();

/// The addresses that are known.
#[derive(Default)]
pub(crate) struct Clients {
    known: HashMap<IpAddr, Known>,
    looked: Option<Instant>,
}

struct Known {
    /// Shared with the flows.
    flows: Arc<()>,
    /// Since when there has been none, as far as that was seen.
    idle: Option<Instant>,
}

impl Known {
    fn is_over(&mut self, now: Instant) -> bool {
        if Arc::strong_count(&self.flows) > 1 {
            self.idle = None;
            return false;
        }
        now.duration_since(*self.idle.get_or_insert(now)) >= REMEMBERED
    }
}

/// While this is there, answers to a client's address come back to the node network's sockets.
pub(crate) struct Lent(#[expect(dead_code, reason = "counted")] Arc<()>);

impl Clients {
    /// One more flow of a client that is known.
    pub fn lend(&mut self, client: IpAddr) -> Option<Lent> {
        let known = self.known.get_mut(&client)?;
        known.idle = None;
        Some(Lent(Arc::clone(&known.flows)))
    }

    /// Whether no more can be known.
    pub fn is_full(&self) -> bool {
        self.known.len() >= KNOWN
    }

    /// The first flow of a client.
    pub fn add(&mut self, client: IpAddr) -> Lent {
        let flows = Arc::<()>::default();
        self.known.insert(client, Known { flows: Arc::clone(&flows), idle: None });
        Lent(flows)
    }

    /// Those that have had no flow for long.
    pub fn idle(&mut self, now: Instant) -> Vec<IpAddr> {
        if self.looked.is_some_and(|last| now.duration_since(last) < LOOKED_EVERY) {
            return Vec::new();
        }
        self.looked = Some(now);
        let known = self.known.iter_mut();
        let over = known.filter_map(|(client, known)| known.is_over(now).then_some(*client));
        over.take(FORGOTTEN).collect()
    }

    /// Forgets those that the rules know no more.
    pub fn forget(&mut self, gone: &[IpAddr]) {
        for client in gone {
            self.known.remove(client);
        }
    }
}

/// Who a client is to the node network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// This machine, which is the node.
    Node,
    /// Another one that can be seen under its address.
    Client(IpAddr),
    /// Another one that cannot: the node has to stand for it.
    Stranger,
}

/// Who asks for a target.
pub(crate) fn seen(client: SocketAddr, target: SocketAddr) -> Seen {
    let address = client.ip().to_canonical();
    if address.is_loopback() || is_here(client) {
        return Seen::Node;
    }
    let link_local = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    if link_local || address.is_ipv4() != target.is_ipv4() {
        return Seen::Stranger;
    }
    Seen::Client(address)
}

/// Whether an address is this machine's.
fn is_here(client: SocketAddr) -> bool {
    let (address, scope) = match client {
        SocketAddr::V6(six) if six.ip().to_ipv4_mapped().is_none() => (client, six.scope_id()),
        _ => (SocketAddr::new(client.ip().to_canonical(), 0), 0),
    };
    let mut bound = address;
    bound.set_port(0);
    // Most are told by this. It says nothing of those that can be bound: with `ip_nonlocal_bind` all can.
    if UdpSocket::bind(bound).is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable) {
        return false;
    }
    let route = netlink::Socket::route();
    // Without a route it is none of this machine's.
    route.and_then(|socket| link::is_own(&socket, address.ip(), scope)).unwrap_or(false)
}

/// Has a new socket of the node network speak under a client's address; None if such an address is not for
/// clients.
pub(crate) fn bind(
    network: &mut Network,
    socket: &Socket,
    client: IpAddr,
) -> Result<Option<Lent>, Error> {
    let Some(lent) = network.admit_client(client)? else { return Ok(None) };
    let speak = || -> io::Result<()> {
        sys::set_transparent(socket, Family::of(client))?;
        sys::choose_port_late(socket)?;
        socket.bind(&SocketAddr::new(client, 0).into())
    };
    speak().map_err(|e| Error::system(format!("speak as {client}"), e))?;
    Ok(Some(lent))
}

/// Tells, now and then, that a client's address could not be used.
pub(crate) fn tell(client: IpAddr, error: &Error, consequence: &str) {
    if NOT_ADMITTED.again(Instant::now()) {
        let error = error.chain();
        tracing::warn!(%client, error, "a client from outside cannot have its address: {consequence}");
    }
}

/// The key of an address in the rules.
pub(crate) fn element(client: IpAddr) -> Element {
    Element::Key(octets(client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_for_a_while_after_their_last_flow() {
        let (mut clients, begin) = (Clients::default(), Instant::now());
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        assert!(clients.lend(address).is_none());
        let first = clients.add(address);
        let second = clients.lend(address).unwrap();
        let at = |minutes| begin + Duration::from_mins(minutes);
        assert!(clients.idle(at(9)).is_empty());
        drop((first, second));
        assert!(clients.idle(at(10)).is_empty(), "it may be about to come again");
        assert!(clients.idle(at(11)).is_empty());
        let third = clients.lend(address).unwrap();
        assert!(clients.idle(at(13)).is_empty(), "it came again");
        drop(third);
        assert!(clients.idle(at(14)).is_empty());
        assert_eq!(clients.idle(at(16)), [address]);
        let soon = at(16) + Duration::from_secs(1);
        assert!(clients.idle(soon).is_empty(), "it has just been looked");
        assert_eq!(clients.idle(at(17)), [address], "nobody said that the rules know it no more");
        clients.forget(&[address]);
        assert!(clients.lend(address).is_none());
    }

    #[test]
    fn only_so_many_are_known() {
        let mut clients = Clients::default();
        for number in 0..KNOWN {
            assert!(!clients.is_full());
            clients.add(IpAddr::from((number as u32).to_be_bytes()));
        }
        assert!(clients.is_full());
        let begin = Instant::now();
        assert!(clients.idle(begin).is_empty());
        // Those that are seen for the first time only now begin to be idle now.
        let gone = clients.idle(begin + REMEMBERED);
        assert_eq!(gone.len(), FORGOTTEN);
        clients.forget(&gone);
        assert!(!clients.is_full());
    }

    #[test]
    fn an_address_takes_no_port_before_its_socket_connects() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let address: SocketAddr = address.parse().unwrap();
            let domain = socket2::Domain::for_address(address);
            let Ok(socket) = Socket::new(domain, socket2::Type::STREAM, None) else { continue };
            sys::choose_port_late(&socket).unwrap();
            socket.bind(&address.into()).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound.port(), 0, "{address}");
        }
    }

    #[test]
    fn this_machine_is_the_node() {
        let target = "10.42.0.2:80".parse().unwrap();
        let (client, stranger) = (Seen::Client("192.0.2.99".parse().unwrap()), Seen::Stranger);
        for (from, want) in [
            ("127.0.0.1:9", Seen::Node),
            ("127.0.0.9:9", Seen::Node),
            ("[::1]:9", Seen::Node),
            ("[::ffff:127.0.0.1]:9", Seen::Node),
            ("192.0.2.99:9", client),
            ("[::ffff:192.0.2.99]:9", client),
            ("169.254.3.4:9", stranger),
            ("[2001:db8::1]:9", stranger),
            ("[fe80::99%77]:9", stranger),
        ] {
            assert_eq!(seen(from.parse().unwrap(), target), want, "{from}");
        }
    }
}
