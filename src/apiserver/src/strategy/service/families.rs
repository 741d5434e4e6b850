//! Which families of addresses a Service gets.
//!
//! Source: `initIPFamilyFields` of `pkg/registry/core/service/storage/alloc.go`.

use std::net::{IpAddr, Ipv6Addr};

use apimachinery::field::{Error, Path};
use serde_json::Value;

use crate::zero::Zero;

/// Most addresses of an IPv6 network that are looked through for a free one.
const LOOKED_AT: u128 = 65_536;

/// A network of IPv6 cluster addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network6 {
    base: u128,
    bits: u32,
}

impl Network6 {
    /// Reads `fd00:43::/112`.
    pub fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let base = u128::from(base.parse::<Ipv6Addr>().ok()?);
        let bits = bits.parse::<u32>().ok().filter(|bits| (64..=124).contains(bits))?;
        Some(Self { base: base & (u128::MAX << (128 - bits)), bits })
    }

    /// The address behind the network's own.
    pub(super) fn first(self) -> IpAddr {
        Ipv6Addr::from(self.base + 1).into()
    }

    pub(super) fn contains(self, address: Ipv6Addr) -> bool {
        u128::from(address) & (u128::MAX << (128 - self.bits)) == self.base
    }

    /// Addresses to try, from somewhere in the range on, so that one just given back is not the next
    /// to be given.
    pub(super) fn candidates(self) -> impl Iterator<Item = IpAddr> {
        let size = ((1_u128 << (128 - self.bits)) - 1).min(LOOKED_AT - 1);
        let start = uuid::Uuid::new_v4().as_u128() % size;
        (0..size).map(move |i| Ipv6Addr::from(self.base + 1 + (start + i) % size).into())
    }
}

impl std::fmt::Display for Network6 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv6Addr::from(self.base), self.bits)
    }
}

/// The families of a Service, in order, and the policy that they come from.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Families {
    pub policy: String,
    pub list: Vec<&'static str>,
}

fn other(family: &str) -> &'static str {
    if family == "IPv4" { "IPv6" } else { "IPv4" }
}

/// What a Service asks for, as far as the cluster can give it: whether it has IPv4 and IPv6 addresses.
/// `first` is the Service's first address, if any.
pub(super) fn decide(
    service: &Value,
    first: &str,
    (four, six): (bool, bool),
) -> Result<Families, Error> {
    let dual = four && six;
    let spec = &service["spec"];
    let asked: Vec<&str> = spec["ipFamilies"].texts().collect();
    let many = asked.len() > 1 || spec["clusterIPs"].items().len() > 1;
    let policy = match spec["ipFamilyPolicy"].text() {
        "" if many => "RequireDualStack",
        "" => "SingleStack",
        given => given,
    };
    if policy == "RequireDualStack" && !dual {
        let path = Path::new("spec").child("ipFamilyPolicy");
        let detail = "this cluster is not configured for dual-stack services";
        return Err(Error::invalid(&path, policy, detail));
    }
    let of_address = match first.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => Some("IPv6"),
        Ok(IpAddr::V4(_)) => Some("IPv4"),
        Err(_) => None,
    };
    let usual = if four { "IPv4" } else { "IPv6" };
    let primary = match asked.first().copied().or(of_address).unwrap_or(usual) {
        "IPv6" => "IPv6",
        _ => "IPv4",
    };
    if !(if primary == "IPv4" { four } else { six }) {
        let path = Path::new("spec").child("ipFamilies").index(0);
        return Err(Error::invalid(&path, primary, "not configured on this cluster"));
    }
    let mut list = vec![primary];
    if policy != "SingleStack" && dual {
        list.push(other(primary));
    }
    Ok(Families { policy: policy.to_owned(), list })
}
