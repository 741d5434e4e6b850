//! ICMP messages of both families: RFC 792, RFC 1812, RFC 4443.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

const IP4_HEADER: usize = 20;
const IP6_HEADER: usize = 40;
pub(super) const ICMP_HEADER: usize = 8;
const TTL: u8 = 64;
/// What an error may quote of the packet that it is about: RFC 792 wants 8 bytes behind the header,
/// RFC 4443 as much as fits the smallest packet that every path takes.
const QUOTED4: usize = IP4_HEADER + ICMP_HEADER;
const QUOTED6: usize = 1280 - IP6_HEADER - ICMP_HEADER;

const ECHO_REQUEST4: u8 = 8;
const ECHO_REPLY4: u8 = 0;
const UNREACHABLE4: u8 = 3;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
const UNREACHABLE6: u8 = 1;
const EXPIRED4: u8 = 11;
const EXPIRED6: u8 = 3;

/// Why a packet did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Net,
    Host,
    Port,
    Prohibited,
    /// It made all the hops that it was allowed.
    Expired,
}

impl Why {
    /// What a socket's error means.
    pub fn of(kind: io::ErrorKind) -> Self {
        match kind {
            io::ErrorKind::ConnectionRefused => Self::Port,
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => Self::Net,
            io::ErrorKind::PermissionDenied => Self::Prohibited,
            _ => Self::Host,
        }
    }

    fn kind(self, v4: bool) -> u8 {
        match (self, v4) {
            (Self::Expired, true) => EXPIRED4,
            (Self::Expired, false) => EXPIRED6,
            (_, true) => UNREACHABLE4,
            (_, false) => UNREACHABLE6,
        }
    }

    fn code(self, v4: bool) -> u8 {
        match (self, v4) {
            (Self::Net | Self::Expired, _) => 0,
            (Self::Host, true) | (Self::Prohibited, false) => 1,
            (Self::Port, true) | (Self::Host, false) => 3,
            (Self::Port, false) => 4,
            (Self::Prohibited, true) => 13,
        }
    }
}

/// An echo request that arrived from a pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Echo<'a> {
    pub pod: IpAddr,
    pub destination: IpAddr,
    pub identifier: u16,
    /// ICMP header and data.
    pub message: &'a [u8],
    /// How many hops it has left, if that is known.
    pub hops: Option<u8>,
}

/// The echo request in an IPv4 packet.
pub(super) fn read_packet4(packet: &[u8]) -> Option<Echo<'_>> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let message = packet.get(header..).filter(|_| header >= IP4_HEADER)?;
    read_message(message, address(12)?, address(16)?, packet.get(8).copied())
}

/// The echo request in an ICMP message that came with its addresses.
pub(super) fn read_message(
    message: &[u8],
    pod: IpAddr,
    destination: IpAddr,
    hops: Option<u8>,
) -> Option<Echo<'_>> {
    let kind = if pod.is_ipv4() { ECHO_REQUEST4 } else { ECHO_REQUEST6 };
    if message.len() < ICMP_HEADER || message[0] != kind || message[1] != 0 {
        return None;
    }
    let identifier = u16::from_be_bytes([message[4], message[5]]);
    Some(Echo { pod, destination, identifier, message, hops })
}

/// Whether a ping socket's message is an answer.
pub(super) fn is_reply(message: &[u8], v4: bool) -> bool {
    message.len() >= ICMP_HEADER && message[0] == if v4 { ECHO_REPLY4 } else { ECHO_REPLY6 }
}

/// The number of ICMP in IP headers.
pub(super) fn protocol(v4: bool) -> u8 {
    (if v4 { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 }) as u8
}

/// An echo's answer as a packet.
pub(super) fn reply(from: IpAddr, to: IpAddr, message: &[u8], identifier: u16) -> Vec<u8> {
    let mut message = message.to_vec();
    message[0] = if from.is_ipv4() { ECHO_REPLY4 } else { ECHO_REPLY6 };
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    sealed(from, to, message)
}

/// The packet that says that `original` did not arrive.
pub(super) fn unreachable(from: IpAddr, to: IpAddr, why: Why, original: &[u8]) -> Vec<u8> {
    let v4 = from.is_ipv4();
    let quoted = if v4 { QUOTED4 } else { QUOTED6 };
    let mut message = vec![why.kind(v4), why.code(v4), 0, 0, 0, 0, 0, 0];
    message.extend_from_slice(&original[..original.len().min(quoted)]);
    sealed(from, to, message)
}

fn sealed(from: IpAddr, to: IpAddr, mut message: Vec<u8>) -> Vec<u8> {
    message[2..4].fill(0);
    let mut summed = Vec::new();
    if let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) {
        // The pseudo header of RFC 8200, 8.1.
        summed.extend_from_slice(&from.octets());
        summed.extend_from_slice(&to.octets());
        summed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        summed.extend_from_slice(&[0, 0, 0, protocol(false)]);
    }
    summed.extend_from_slice(&message);
    let sum = checksum(&summed);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(from, to, protocol(from.is_ipv4()), &message)
}

/// An IP packet. Of IPv4's header the kernel fills in identification, length and checksum (`raw(7)`).
pub(super) fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if from.is_ipv4() {
        let [high, low] = ((IP4_HEADER + payload.len()) as u16).to_be_bytes();
        vec![0x45, 0, high, low, 0, 0, 0, 0, TTL, protocol, 0, 0]
    } else {
        let [high, low] = (payload.len() as u16).to_be_bytes();
        vec![0x60, 0, 0, 0, high, low, protocol, TTL]
    };
    for address in [from, to] {
        packet.extend_from_slice(&crate::family::octets(address));
    }
    packet.extend_from_slice(payload);
    packet
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn echo_requests_are_read() {
        let (pod, destination) = (ip("10.42.0.2"), ip("192.0.2.1"));
        let message = [8, 0, 1, 2, 0x12, 0x34, 0, 1, b'x'];
        let whole = packet(pod, destination, 1, &message);
        let expected =
            Echo { pod, destination, identifier: 0x1234, message: &message, hops: Some(TTL) };
        assert_eq!(read_packet4(&whole), Some(expected));
        let answer = packet(pod, destination, 1, &[0, 0, 1, 2, 0x12, 0x34, 0, 1]);
        assert_eq!(read_packet4(&answer), None);
        let (pod, destination) = (ip("fd00::2"), ip("2001:db8::1"));
        let message = [128, 0, 1, 2, 0x12, 0x34, 0, 1, b'x'];
        let expected = Echo { pod, destination, identifier: 0x1234, message: &message, hops: None };
        assert_eq!(read_message(&message, pod, destination, None), Some(expected));
        assert_eq!(read_message(&[135; 24], pod, destination, None), None, "a solicitation");
    }

    #[test]
    fn sealed_messages_sum_to_zero() {
        let message = [0, 0, 0xff, 0xff, 1, 2, 3, 4, 5];
        let four = reply(ip("192.0.2.1"), ip("10.42.0.2"), &message, 9);
        assert_eq!(checksum(&four[IP4_HEADER..]), 0);
        let six = reply(ip("2001:db8::1"), ip("fd00::2"), &message, 9);
        let mut summed = six[8..].to_vec();
        summed.extend_from_slice(&[0, 0, 0, message.len() as u8, 0, 0, 0, 58]);
        // An odd message has to come last.
        summed.rotate_right(8);
        assert_eq!(checksum(&summed), 0);
        assert_eq!((six[0], six[5], six[6], six[IP6_HEADER]), (0x60, 9, 58, 129));
    }

    #[test]
    fn errors_quote_what_they_are_about() {
        let (pod, outside) = (ip("fd00::2"), ip("2001:db8::1"));
        let original = packet(pod, outside, 17, &[0; 2000]);
        let error = unreachable(outside, pod, Why::Port, &original);
        assert_eq!((error.len(), error[IP6_HEADER], error[IP6_HEADER + 1]), (1280, 1, 4));
        assert_eq!(error[IP6_HEADER + ICMP_HEADER..], original[..QUOTED6]);
        let expired = unreachable(outside, pod, Why::Expired, &original);
        assert_eq!((expired[IP6_HEADER], expired[IP6_HEADER + 1]), (3, 0));
    }

    proptest! {
        #[test]
        fn foreign_packets_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = read_packet4(&bytes);
            let _ = read_message(&bytes, ip("fd00::2"), ip("2001:db8::1"), Some(1));
            let _ = is_reply(&bytes, false);
        }
    }
}
