//! Clients of the host's ports, as the node network sees them.
//!
//! What comes in through a port of the host goes on from a socket in the node network that has the client's
//! own address (`IP_TRANSPARENT`). Answers to it have to come back to that socket instead of leaving through
//! the gateway, and are tracked meanwhile, as they may come from another address than was asked: so the rules
//! know such addresses.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::Error;
use crate::family::{Family, octets};
use crate::network::Network;
use crate::nft::Element;
use crate::sys;

/// So long after its last flow an address is known.
const REMEMBERED: Duration = Duration::from_mins(2);

/// The addresses that are known.
#[derive(Default)]
pub(crate) struct Clients(HashMap<IpAddr, Known>);

struct Known {
    /// Shared with the flows.
    flows: Arc<()>,
    /// Since when there has been none, as far as that was seen.
    idle: Option<Instant>,
}

/// While this is there, answers to a client's address come back to the node network's sockets.
pub(crate) struct Lent(#[expect(dead_code, reason = "counted")] Arc<()>);

impl Clients {
    /// One more flow of a client that is known.
    pub fn lend(&mut self, client: IpAddr) -> Option<Lent> {
        let known = self.0.get_mut(&client)?;
        known.idle = None;
        Some(Lent(Arc::clone(&known.flows)))
    }

    /// The first flow of a client.
    pub fn add(&mut self, client: IpAddr) -> Lent {
        let flows = Arc::<()>::default();
        self.0.insert(client, Known { flows: Arc::clone(&flows), idle: None });
        Lent(flows)
    }

    /// Forgets those that have had no flow for long, and tells them.
    pub fn forget(&mut self, now: Instant) -> Vec<IpAddr> {
        let gone = self.0.extract_if(|_, known| {
            if Arc::strong_count(&known.flows) > 1 {
                known.idle = None;
                return false;
            }
            now.duration_since(*known.idle.get_or_insert(now)) >= REMEMBERED
        });
        gone.map(|(client, _)| client).collect()
    }
}

/// The address under which a client is to be seen in the node network; None is the node's own. This machine
/// is the node.
pub(crate) fn outside(client: SocketAddr, target: SocketAddr) -> Option<IpAddr> {
    let address = client.ip().to_canonical();
    let link_local = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    let elsewhere = address.is_ipv4() == target.is_ipv4()
        && !address.is_loopback()
        && !link_local
        // An address of this machine is one that can be bound.
        && UdpSocket::bind((address, 0)).is_err();
    elsewhere.then_some(address)
}

/// Has a new socket of the node network speak under a client's address, if that can be done.
pub(crate) fn bind(network: &mut Network, socket: &Socket, client: IpAddr) -> Option<Lent> {
    let mut bind = || -> Result<Option<Lent>, Error> {
        let failed = |e| Error::system(format!("speak as {client}"), e);
        let Some(lent) = network.admit_client(client)? else { return Ok(None) };
        sys::set_transparent(socket, Family::of(client)).map_err(failed)?;
        socket.bind(&SocketAddr::new(client, 0).into()).map_err(failed)?;
        Ok(Some(lent))
    };
    bind().unwrap_or_else(|error| {
        tracing::debug!(%client, error = error.chain(), "a client is seen as the node");
        None
    })
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
        assert!(clients.forget(at(9)).is_empty());
        drop((first, second));
        assert!(clients.forget(at(10)).is_empty(), "it may be about to come again");
        assert!(clients.forget(at(11)).is_empty());
        let third = clients.lend(address).unwrap();
        assert!(clients.forget(at(13)).is_empty(), "it came again");
        drop(third);
        assert!(clients.forget(at(14)).is_empty());
        assert_eq!(clients.forget(at(16)), [address]);
        assert!(clients.lend(address).is_none());
    }

    #[test]
    fn this_machine_is_the_node() {
        let target = "10.42.0.2:80".parse().unwrap();
        for (client, want) in [
            ("127.0.0.1:9", None),
            ("127.0.0.9:9", None),
            ("192.0.2.99:9", Some("192.0.2.99")),
            ("[::ffff:192.0.2.99]:9", Some("192.0.2.99")),
            ("169.254.3.4:9", None),
            ("[2001:db8::1]:9", None),
        ] {
            let want = want.map(|address| address.parse().unwrap());
            assert_eq!(outside(client.parse().unwrap(), target), want, "{client}");
        }
    }
}
