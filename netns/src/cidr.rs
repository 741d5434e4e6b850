//! An address range in CIDR notation (RFC 4632).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network: its first address and the length of its prefix in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not a CIDR.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CidrError {
    /// Not `ADDRESS/LENGTH`.
    #[error("{0:?} is not of the form ADDRESS/LENGTH")]
    Malformed(String),
    /// Bits are set beyond the prefix.
    #[error("{text} has bits set beyond its prefix: did you mean {suggestion}?")]
    HostBits {
        /// As given.
        text: String,
        /// With those bits cleared.
        suggestion: String,
    },
}

impl Cidr {
    /// The network that contains `address`, host bits cleared.
    pub fn containing(address: IpAddr, prefix: u8) -> Self {
        let address = match address {
            IpAddr::V4(v4) => {
                let bits = u32::from(v4);
                let shift = 32u32.saturating_sub(u32::from(prefix));
                IpAddr::from(Ipv4Addr::from(
                    bits.checked_shr(shift).and_then(|b| b.checked_shl(shift)).unwrap_or(0),
                ))
            }
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                let shift = 128u32.saturating_sub(u32::from(prefix));
                let masked = bits.checked_shr(shift).and_then(|b| b.checked_shl(shift));
                IpAddr::from(Ipv6Addr::from(masked.unwrap_or(0)))
            }
        };
        Self { address, prefix }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the prefix, in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in this network.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self::containing(address, self.prefix).address == self.address
    }

    /// First and last address.
    pub fn bounds(&self) -> (IpAddr, IpAddr) {
        let last = match self.address {
            IpAddr::V4(first) => {
                let hosts = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or_default();
                Ipv4Addr::from(u32::from(first) | hosts).into()
            }
            IpAddr::V6(first) => {
                let hosts = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or_default();
                Ipv6Addr::from(u128::from(first) | hosts).into()
            }
        };
        (self.address, last)
    }

    /// First and last address of an IPv4 network, as numbers.
    pub(crate) fn v4_bounds(&self) -> Option<(u32, u32)> {
        match self.bounds() {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some((first.into(), last.into())),
            _ => None,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError::Malformed(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let prefix: u8 = prefix.parse().map_err(|_| malformed())?;
        if prefix > if address.is_ipv4() { 32 } else { 128 } {
            return Err(malformed());
        }
        let network = Self::containing(address, prefix);
        if network.address == address {
            Ok(network)
        } else {
            Err(CidrError::HostBits { text: text.to_owned(), suggestion: network.to_string() })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_and_refuses() {
        let cases = [
            ("10.42.0.0/24", true),
            ("0.0.0.0/0", true),
            ("10.42.0.7/32", true),
            ("fd00::/64", true),
            ("::/0", true),
            ("10.42.0.1/24", false),
            ("10.42.0.0", false),
            ("10.42.0.0/33", false),
            ("10.42.0.0/+8", false),
            ("10.42.0.0/", false),
            ("fd00::/129", false),
        ];
        for (text, good) in cases {
            assert_eq!(text.parse::<Cidr>().is_ok(), good, "{text}");
        }
    }

    #[test]
    fn contains_by_prefix() {
        let cidr: Cidr = "10.42.0.0/24".parse().unwrap();
        assert!(cidr.contains("10.42.0.255".parse().unwrap()));
        assert!(!cidr.contains("10.42.1.0".parse().unwrap()));
        assert!(!cidr.contains("::1".parse().unwrap()));
        assert_eq!(cidr.v4_bounds(), Some((0x0a2a_0000, 0x0a2a_00ff)));
        let all: Cidr = "0.0.0.0/0".parse().unwrap();
        assert_eq!(all.v4_bounds(), Some((0, u32::MAX)));
    }

    proptest! {
        #[test]
        fn texts_never_panic(text in "[0-9a-f.:/]{0,24}") {
            if let Ok(cidr) = text.parse::<Cidr>() {
                prop_assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(cidr));
            }
        }
    }
}
