//! One direction of a connection, as the kernel lists it (`nfnetlink_conntrack.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::attributes;

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
pub(crate) struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: u8,
}

/// Reads a tuple's attributes.
pub(crate) fn read(tuple: &[u8]) -> Option<Tuple> {
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
