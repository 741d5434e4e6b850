//! First packets of connections, as the kernel's queue hands them over.
//!
//! Formats: the kernel's `include/uapi/linux/netfilter/nfnetlink_queue.h`; RFC 791, RFC 8200, RFC 9293.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::attributes;

const PACKET_HEADER: u16 = 1;
const PAYLOAD: u16 = 10;

/// Pod's and outside address of a connection.
pub(crate) type Key = (SocketAddr, SocketAddr);

/// The packet's number, and its addresses if they can be read.
pub(crate) fn read_packet(payload: &[u8]) -> Option<(u32, Option<Key>)> {
    let mut id = None;
    let mut key = None;
    for (kind, value) in attributes(payload.get(4..)?) {
        match kind {
            PACKET_HEADER => id = Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?)),
            PAYLOAD => key = read_addresses(value),
            _ => {}
        }
    }
    Some((id?, key))
}

/// Source and destination of a TCP packet.
fn read_addresses(packet: &[u8]) -> Option<Key> {
    let (addresses, transport): ([IpAddr; 2], &[u8]) = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&(libc::IPPROTO_TCP as u8)) => {
            let at = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            ([at(12)?, at(16)?], packet.get(usize::from(packet[0] & 0xf) * 4..)?)
        }
        6 if packet.get(6) == Some(&(libc::IPPROTO_TCP as u8)) => {
            let at = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            ([at(8)?, at(24)?], packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(transport.get(at..at + 2)?.try_into().ok()?))
    };
    Some((SocketAddr::new(addresses[0], port(0)?), SocketAddr::new(addresses[1], port(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_from_both_families() {
        let mut v4 = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 42, 0, 2, 192, 0, 2, 1];
        v4.extend_from_slice(&[0x9c, 0x40, 0, 80]);
        let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        v6.extend_from_slice(&"fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend_from_slice(&[0x9c, 0x40, 0, 80]);
        let cases = [
            (v4.clone(), Some(("10.42.0.2:40000", "192.0.2.1:80"))),
            (v6, Some(("[fd00::2]:40000", "[2001:db8::1]:80"))),
            (v4[..21].to_vec(), None),
            (Vec::new(), None),
        ];
        for (packet, want) in cases {
            let want = want.map(|(a, b)| (a.parse().unwrap(), b.parse().unwrap()));
            assert_eq!(read_addresses(&packet), want);
        }
    }

    proptest! {
        #[test]
        fn foreign_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = read_addresses(&bytes);
            let _ = read_packet(&bytes);
        }
    }
}
