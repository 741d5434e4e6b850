//! Rules for IP addresses and ranges of them in fields that are older than the stricter reading
//! (KEP-4858, `StrictIPCIDRValidation`): written without leading zeros, not IPv4 in the guise of IPv6,
//! and ranges as such, without bits beyond the prefix.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation/ip.go`.

use std::net::{IpAddr, Ipv4Addr};

use apimachinery::field::{Error, ErrorList, Path};

const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
/// What is said of a text that is no range.
pub const RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// An address, IPv4 or IPv6.
pub fn address(text: &str, path: &Path, errors: &mut ErrorList) {
    let detail = match text.parse::<IpAddr>() {
        Ok(address) if is_mapped(address) => "must not be an IPv4-mapped IPv6 address",
        Ok(_) => return,
        Err(_) if without_zeros(text).is_some() => "must not have leading 0s",
        Err(_) => ADDRESS,
    };
    errors.push(Error::invalid(path, text, detail));
}

/// An address, unless it is one of `kept`, which the object had before.
pub fn new_address<'a>(
    text: &str,
    mut kept: impl Iterator<Item = &'a str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    if !kept.any(|old| old == text) {
        address(text, path, errors);
    }
}

/// A range of addresses. One of `kept`, which the object had before, is taken as it is.
pub fn range<'a>(
    text: &str,
    mut kept: impl Iterator<Item = &'a str>,
    path: &Path,
    errors: &mut ErrorList,
) {
    if kept.any(|old| old == text) {
        return;
    }
    let detail = match cidr(text) {
        Some((address, _)) if is_mapped(address) => "must not have an IPv4-mapped IPv6 address",
        Some((address, bits)) if has_more(address, bits) => {
            "must not have bits set beyond the prefix length"
        }
        Some(_) if !has_zeros(text) => return,
        _ if generous(text).is_some() => "must not have leading 0s in IP or prefix length",
        _ => RANGE,
    };
    errors.push(Error::invalid(path, text, detail));
}

/// An address and how many of its bits count; `None` when the text is no such thing.
pub fn cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u32 = bits.bytes().all(|b| b.is_ascii_digit()).then(|| bits.parse().ok())??;
    (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
}

/// A range as it was read before: with leading zeros.
fn generous(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = text.split_once('/')?;
    let address = address.parse().ok().or_else(|| without_zeros(address))?;
    cidr(&format!("{address}/{bits}"))
}

/// Whether the length of a range's prefix begins with a zero that is not all of it.
fn has_zeros(text: &str) -> bool {
    let bits = text.split_once('/').map_or("", |(_, bits)| bits);
    bits.len() > 1 && bits.starts_with('0')
}

/// An IPv4 address with leading zeros, read as decimal.
fn without_zeros(text: &str) -> Option<IpAddr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(six) if six.to_ipv4_mapped().is_some())
}

/// Whether bits are set beyond the first `bits`.
fn has_more(address: IpAddr, bits: u32) -> bool {
    let rest = match address {
        IpAddr::V4(v4) => v4.to_bits().checked_shl(bits).unwrap_or(0).into(),
        IpAddr::V6(v6) => v6.to_bits().checked_shl(bits).unwrap_or(0),
    };
    rest != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validation::told;

    #[test]
    fn addresses_have_one_form() {
        for (text, want) in [
            ("10.0.0.1", ""),
            ("0.0.0.0", ""),
            ("2001:DB8::1", ""),
            ("10.0.0.01", "must not have leading 0s"),
            ("::ffff:10.0.0.1", "must not be an IPv4-mapped IPv6 address"),
            ("10.0.0.256", ADDRESS),
            ("10.0.0", ADDRESS),
            ("10.0.0.1.2", ADDRESS),
            ("10.0.0.+1", ADDRESS),
            ("fe80::1%eth0", ADDRESS),
            ("", ADDRESS),
        ] {
            let got = told(|e| address(text, &Path::new("ip"), e)).join("; ");
            let want = if want.is_empty() {
                String::new()
            } else {
                format!("ip: Invalid value: {text:?}: {want}")
            };
            assert_eq!(got, want);
        }
    }

    #[test]
    fn ranges_have_one_form() {
        for (text, want) in [
            ("10.0.0.0/8", ""),
            ("0.0.0.0/0", ""),
            ("10.0.0.1/32", ""),
            ("::/0", ""),
            ("2001:db8::/64", ""),
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("2001:db8::1/64", "must not have bits set beyond the prefix length"),
            ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
            ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            ("::ffff:10.0.0.0/104", "must not have an IPv4-mapped IPv6 address"),
            ("10.0.0.0/33", RANGE),
            ("10.0.0.0/+8", RANGE),
            ("10.0.0.0/", RANGE),
            ("10.0.0.0", RANGE),
        ] {
            let none = std::iter::empty::<&str>;
            let got = told(|e| range(text, none(), &Path::new("cidr"), e)).join("; ");
            let want = if want.is_empty() {
                String::new()
            } else {
                format!("cidr: Invalid value: {text:?}: {want}")
            };
            assert_eq!(got, want);
            let kept = [text];
            let got = told(|e| range(text, kept.into_iter(), &Path::new("cidr"), e));
            assert!(got.is_empty(), "{text} was there before");
        }
    }
}
