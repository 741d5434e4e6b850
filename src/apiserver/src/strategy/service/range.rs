//! Ranges of addresses that Services get theirs from.
//!
//! Source: `pkg/registry/core/service/ipallocator/ipallocator.go`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Most addresses of a range that are looked through for a free one.
const LOOKED_AT: u128 = 65_536;

/// The networks of cluster addresses that the server was started with: of IPv4, of IPv6, or of both, of
/// which IPv4 is the first then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    pub(super) four: Option<Range>,
    pub(super) six: Option<Range>,
}

impl Network {
    /// Reads `10.43.0.0/16`, `fd00:43::/112`, or both, separated by a comma
    /// (`--service-cluster-ip-range`).
    pub fn parse(text: &str) -> Option<Self> {
        let parse = |text| Range::parse(text).filter(Range::is_large);
        let four = |text| parse(text).filter(|range| !range.is_six);
        let six = |text| parse(text).filter(|range| range.is_six);
        match text.split_once(',') {
            Some((first, second)) => {
                Some(Self { four: Some(four(first)?), six: Some(six(second)?) })
            }
            None if text.contains(':') => Some(Self { four: None, six: Some(six(text)?) }),
            None => Some(Self { four: Some(four(text)?), six: None }),
        }
    }

    /// The first address, that of the Service `kubernetes`.
    pub fn first(self) -> IpAddr {
        let range = self.four.or(self.six).expect("there is a network of one family at least");
        range.address(range.first())
    }

    /// The network of a family.
    pub(super) fn of(self, family: &str) -> Option<Range> {
        if family == "IPv6" { self.six } else { self.four }
    }
}

impl Default for Network {
    /// `10.43.0.0/16`
    fn default() -> Self {
        let base = u128::from(u32::from(Ipv4Addr::new(10, 43, 0, 0)));
        Self { four: Some(Range { base, bits: 16, is_six: false }), six: None }
    }
}

/// One range, of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: u128,
    bits: u32,
    is_six: bool,
}

/// An address as a number of its family.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl Range {
    /// Reads `10.9.0.0/24` or `2001:db8::/64`; of IPv6 nothing larger than a /64.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let base: IpAddr = base.parse().ok()?;
        let is_six = base.is_ipv6();
        let known = if is_six { 64..=128 } else { 1..=32 };
        let bits = bits.parse::<u32>().ok().filter(|bits| known.contains(bits))?;
        let range = Self { base: 0, bits, is_six };
        Some(Self { base: number(base) & !range.hosts(), ..range })
    }

    /// Whether a cluster can live in it.
    fn is_large(&self) -> bool {
        self.bits <= if self.is_six { 124 } else { 28 }
    }

    /// `IPv4` or `IPv6`.
    pub(super) fn family(&self) -> &'static str {
        if self.is_six { "IPv6" } else { "IPv4" }
    }

    /// The bits that tell addresses of the range apart.
    fn hosts(self) -> u128 {
        let width = if self.is_six { 128 } else { 32 };
        u128::MAX.checked_shr(128 - (width - self.bits)).unwrap_or(0)
    }

    /// Whether the address lies in it, usable or not.
    pub(super) fn contains(self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_six && number(address) & !self.hosts() == self.base
    }

    fn first(self) -> u128 {
        self.base.saturating_add(1)
    }

    /// The broadcast address of an IPv4 network is nobody's.
    fn last(self) -> u128 {
        let last = self.base | self.hosts();
        if self.is_six { last } else { last.saturating_sub(1) }
    }

    /// Whether a Service can have the address: the network's own and the broadcast address are none.
    pub(super) fn is_usable(self, address: IpAddr) -> bool {
        self.contains(address) && (self.first()..=self.last()).contains(&number(address))
    }

    fn address(self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if !self.is_six => Ipv4Addr::from(number).into(),
            _ => Ipv6Addr::from(number).into(),
        }
    }

    /// How many addresses, from the first on, are left to people who choose theirs, while there are others
    /// (KEP-3070).
    fn static_part(self) -> u128 {
        match self.hosts().saturating_add(1) {
            0..=16 => 0,
            size => (size / 16).clamp(16, 256),
        }
    }

    /// Addresses to try: those of the upper part first, each part from somewhere on, so that one just
    /// given back is not the next to be given.
    pub(super) fn candidates(self) -> impl Iterator<Item = IpAddr> {
        let (first, end) = (self.first(), self.last().saturating_add(1));
        let middle = (first + self.static_part()).min(end);
        let random = uuid::Uuid::new_v4().as_u128();
        let part = move |from: u128, to: u128| {
            let size = to.saturating_sub(from);
            (0..size.min(LOOKED_AT)).map(move |i| from + (random % size + i) % size)
        };
        part(middle, end).chain(part(first, middle)).map(move |number| self.address(number))
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(self.base), self.bits)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn networks_are_read() {
        let network = Network::parse("10.43.0.0/16").unwrap();
        assert_eq!(network, Network::default());
        assert_eq!(network.four.unwrap().to_string(), "10.43.0.0/16");
        assert_eq!(network.first(), Ipv4Addr::new(10, 43, 0, 1));
        assert_eq!(Network::parse("fd00::/112").unwrap().first().to_string(), "fd00::1");
        let refused =
            ["", "10.43.0.0", "10.43.0.0/0", "10.43.0.0/31", "fd00::/32", "fd00::/112,10.0.0.0/8"];
        for text in refused {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_usable_address_is_a_candidate_once_and_nothing_else() {
        // Range, candidates, and how many of the first of them are beyond the part for chosen ones.
        for (text, want, upper) in [
            ("10.0.0.0/24", 254, 238),
            ("10.0.0.0/27", 30, 14),
            ("10.0.0.16/28", 14, 14),
            ("10.0.0.4/30", 2, 2),
            ("10.0.0.4/31", 0, 0),
            ("10.0.0.4/32", 0, 0),
            ("255.255.255.248/29", 6, 6),
            ("2001:db8::/120", 255, 239),
            ("2001:db8::1/128", 0, 0),
        ] {
            let range = Range::parse(text).expect(text);
            let all: Vec<IpAddr> = range.candidates().collect();
            let distinct: BTreeSet<IpAddr> = all.iter().copied().collect();
            assert_eq!((all.len(), distinct.len()), (want, want), "{text}");
            assert!(all.iter().all(|address| range.is_usable(*address)), "{text}: {all:?}");
            let chosen = |address: &IpAddr| number(*address) < range.first() + range.static_part();
            assert!(!all[..upper].iter().any(chosen), "{text}");
            assert!(all[upper..].iter().all(chosen), "{text}");
        }
        let large = Range::parse("2001:db8::/64").unwrap();
        assert!(large.candidates().take(99).all(|address| large.is_usable(address)));
    }
}
