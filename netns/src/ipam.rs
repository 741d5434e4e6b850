//! Which pod has which address of the node's range.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::{Cidr, Error};

/// Hands out addresses in ascending order and starts again at the beginning only when the range
/// is used up, so that an address just given back is the last to be given out again: peers that
/// still talk to the old pod do not reach a new one.
pub(crate) struct Ipam {
    cidr: Cidr,
    first: u32,
    last: u32,
    reserved: u32,
    next: u32,
    used: HashMap<u32, String>,
}

impl Ipam {
    /// The network address, the broadcast address and `gateway` are never given out.
    pub fn new(cidr: Cidr, gateway: IpAddr) -> Result<Self, Error> {
        let unusable = || Error::Range { cidr: cidr.to_string(), gateway: gateway.to_string() };
        let (first, last) = cidr.v4_bounds().ok_or_else(unusable)?;
        let IpAddr::V4(gateway_v4) = gateway else {
            return Err(unusable());
        };
        if cidr.prefix() > 30 || !cidr.contains(gateway) {
            return Err(unusable());
        }
        Ok(Self {
            cidr,
            first: first + 1,
            last: last - 1,
            reserved: u32::from(gateway_v4),
            next: first + 1,
            used: HashMap::new(),
        })
    }

    pub fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// A free address for `owner`.
    pub fn allocate(&mut self, owner: &str) -> Result<Ipv4Addr, Error> {
        let size = self.last - self.first + 1;
        for step in 0..size {
            let candidate = self.first + (self.next - self.first + step) % size;
            if candidate != self.reserved && !self.used.contains_key(&candidate) {
                self.used.insert(candidate, owner.to_owned());
                self.next = self.first + (candidate - self.first + 1) % size;
                return Ok(Ipv4Addr::from(candidate));
            }
        }
        Err(Error::Exhausted { cidr: self.cidr.to_string(), used: self.used.len() })
    }

    /// Takes a certain address, known from an earlier life. False if it is taken or foreign.
    pub fn claim(&mut self, address: Ipv4Addr, owner: &str) -> bool {
        let number = u32::from(address);
        let free = (self.first..=self.last).contains(&number)
            && number != self.reserved
            && !self.used.contains_key(&number);
        if free {
            self.used.insert(number, owner.to_owned());
            let size = self.last - self.first + 1;
            self.next = self.first + (number - self.first + 1) % size;
        }
        free
    }

    /// Gives an address back.
    pub fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&u32::from(address));
    }

    /// The offset of an address in its network; small, and unique while the address is in use.
    pub fn offset(&self, address: Ipv4Addr) -> u32 {
        u32::from(address).wrapping_sub(self.first) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn ipam(cidr: &str, gateway: &str) -> Ipam {
        Ipam::new(cidr.parse().unwrap(), gateway.parse().unwrap()).unwrap()
    }

    #[test]
    fn reserved_addresses_are_never_given_out() {
        let mut ipam = ipam("10.42.0.0/29", "10.42.0.1");
        let given: Vec<_> = (0..5).map(|_| ipam.allocate("x").unwrap()).collect();
        let expected = [2, 3, 4, 5, 6].map(|n| Ipv4Addr::new(10, 42, 0, n));
        assert_eq!(given, expected);
        assert!(matches!(ipam.allocate("x"), Err(Error::Exhausted { used: 5, .. })));
    }

    #[test]
    fn a_released_address_is_the_last_to_return() {
        let mut ipam = ipam("10.42.0.0/29", "10.42.0.1");
        let first = ipam.allocate("a").unwrap();
        ipam.release(first);
        let order: Vec<_> = (0..5).map(|_| ipam.allocate("b").unwrap()).collect();
        assert_eq!(order[4], first);
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        let cases = [
            ("10.42.0.0/31", "10.42.0.1"),
            ("10.42.0.0/24", "10.43.0.1"),
            ("fd00::/64", "fd00::1"),
        ];
        for (cidr, gateway) in cases {
            let result = Ipam::new(cidr.parse().unwrap(), gateway.parse().unwrap());
            assert!(matches!(result, Err(Error::Range { .. })), "{cidr}");
        }
    }

    #[test]
    fn claims_are_kept() {
        let mut ipam = ipam("10.42.0.0/29", "10.42.0.1");
        let address = Ipv4Addr::new(10, 42, 0, 2);
        assert!(ipam.claim(address, "a"));
        assert!(!ipam.claim(address, "b"));
        assert!(!ipam.claim(Ipv4Addr::new(10, 42, 0, 1), "a"));
        assert!(!ipam.claim(Ipv4Addr::new(10, 43, 0, 2), "a"));
        assert_ne!(ipam.allocate("c").unwrap(), address);
    }

    proptest! {
        #[test]
        fn no_address_is_held_twice(operations in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut ipam = ipam("10.42.0.0/28", "10.42.0.1");
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for operation in operations {
                match operation {
                    None => if let Ok(address) = ipam.allocate("x") { held.push(address); },
                    Some(n) if !held.is_empty() => ipam.release(held.swap_remove(usize::from(n) % held.len())),
                    Some(_) => {}
                }
                let unique: HashSet<_> = held.iter().collect();
                prop_assert_eq!(unique.len(), held.len());
                prop_assert!(held.len() <= 13);
            }
        }
    }
}
