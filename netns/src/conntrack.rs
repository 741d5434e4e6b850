//! The kernel's table of connections (`nfnetlink_conntrack.h`), as far as flows that lead to an
//! endpoint which is gone have to be forgotten.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::{Requests, Socket, attributes};
use crate::services::Withdrawn;
use crate::{Error, Frontend, Protocol};

const GET: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 1;
const DELETE: u16 = (libc::NFNL_SUBSYS_CTNETLINK as u16) << 8 | 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tuple {
    source: SocketAddr,
    destination: SocketAddr,
    protocol: u8,
}

/// Removes the UDP flows that still lead to withdrawn endpoints, and those that led nowhere while a
/// frontend had no endpoint: a client that goes on sending would otherwise never reach another one.
/// TCP connections end by themselves.
pub(crate) fn forget(
    netfilter: &Socket,
    withdrawn: &[Withdrawn],
    gained: &[Frontend],
) -> Result<(), Error> {
    let gone: BTreeSet<(Frontend, SocketAddr)> = withdrawn
        .iter()
        .filter(|w| w.frontend.protocol == Protocol::Udp && !w.kept)
        .map(|w| (w.frontend, w.endpoint))
        .chain(
            // What was not translated is answered from where it was sent to.
            gained
                .iter()
                .filter(|frontend| frontend.protocol == Protocol::Udp)
                .map(|frontend| (*frontend, SocketAddr::new(frontend.address, frontend.port))),
        )
        .collect();
    let families: BTreeSet<bool> = gone.iter().map(|(f, _)| f.address.is_ipv4()).collect();
    for v4 in families {
        let family = if v4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let header = [family, 0, 0, 0];
        let mut dump = Requests::new();
        dump.push("list connections", GET, libc::NLM_F_DUMP, &header, |_| {});
        let mut stale: Vec<Vec<u8>> = Vec::new();
        netfilter.dump(&dump, |_, payload| {
            let attributes = || attributes(payload.get(4..).unwrap_or_default());
            let find = |wanted| attributes().find(|(kind, _)| *kind == wanted).map(|(_, v)| v);
            let (Some(original), Some(reply)) = (find(TUPLE_ORIGINAL), find(TUPLE_REPLY)) else {
                return;
            };
            let (Some(asked), Some(answers)) = (read(original), read(reply)) else { return };
            if asked.protocol != Protocol::Udp.number() {
                return;
            }
            let frontend = Frontend {
                address: asked.destination.ip(),
                protocol: Protocol::Udp,
                port: asked.destination.port(),
            };
            if gone.contains(&(frontend, answers.source)) {
                stale.push(original.to_vec());
            }
        })?;
        for tuple in stale {
            let mut delete = Requests::new();
            let kind = TUPLE_ORIGINAL | libc::NLA_F_NESTED as u16;
            delete.push("forget a connection", DELETE, libc::NLM_F_ACK, &header, |a| {
                a.bytes(kind, &tuple);
            });
            match netfilter.execute(&delete) {
                // It ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn read(tuple: &[u8]) -> Option<Tuple> {
    let find = |nest: &'_ [u8], wanted| -> Option<Vec<u8>> {
        attributes(nest).find(|(kind, _)| *kind == wanted).map(|(_, value)| value.to_vec())
    };
    let (addresses, protocol) = (find(tuple, TUPLE_IP)?, find(tuple, TUPLE_PROTOCOL)?);
    let address = |v4, v6| -> Option<IpAddr> {
        if let Some(bytes) = find(&addresses, v4) {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
        }
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(find(&addresses, v6)?).ok()?).into())
    };
    let port =
        |kind| -> Option<u16> { Some(u16::from_be_bytes(find(&protocol, kind)?.try_into().ok()?)) };
    Some(Tuple {
        source: SocketAddr::new(address(IP_V4_SOURCE, IP_V6_SOURCE)?, port(SOURCE_PORT)?),
        destination: SocketAddr::new(
            address(IP_V4_DESTINATION, IP_V6_DESTINATION)?,
            port(DESTINATION_PORT)?,
        ),
        protocol: *find(&protocol, PROTOCOL_NUMBER)?.first()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Attributes;
    use proptest::prelude::*;

    #[test]
    fn tuples_are_read() {
        let mut bytes = Vec::new();
        Attributes::of(&mut bytes)
            .nest(TUPLE_IP, |a| {
                a.bytes(IP_V4_SOURCE, &[10, 42, 0, 2]).bytes(IP_V4_DESTINATION, &[10, 43, 0, 9]);
            })
            .nest(TUPLE_PROTOCOL, |a| {
                a.bytes(PROTOCOL_NUMBER, &[17])
                    .bytes(SOURCE_PORT, &4000u16.to_be_bytes())
                    .bytes(DESTINATION_PORT, &53u16.to_be_bytes());
            });
        let expected = Tuple {
            source: "10.42.0.2:4000".parse().unwrap(),
            destination: "10.43.0.9:53".parse().unwrap(),
            protocol: 17,
        };
        assert_eq!(read(&bytes), Some(expected));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
        }
    }
}
