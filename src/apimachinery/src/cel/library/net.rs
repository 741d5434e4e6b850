//! IP addresses and ranges of them.

use std::net::IpAddr;

use super::{NO_OVERLOAD, Result};
use crate::cel::value::Value;

fn parse_ip(text: &str) -> std::result::Result<IpAddr, String> {
    if text.contains('%') {
        return Err(format!("IP address {text:?} with zone value is not allowed"));
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )),
    }
}

fn parse_cidr(text: &str) -> std::result::Result<(IpAddr, u8), String> {
    let bad = || {
        format!(
            "network address parse error during conversion from string: network address parse error during conversion from string: netip.ParsePrefix({text:?}): no '/'"
        )
    };
    let (address, bits) = text.split_once('/').ok_or_else(bad)?;
    let ip = parse_ip(address)?;
    let bits: u8 = bits.parse().map_err(|_| bad())?;
    if bits > if ip.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    Ok((ip, bits))
}

fn number(ip: IpAddr) -> (u128, u32) {
    match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    }
}

fn masked(ip: IpAddr, bits: u8) -> IpAddr {
    let (value, width) = number(ip);
    let keep = if bits == 0 { 0 } else { u128::MAX << (width - u32::from(bits)) };
    match ip {
        IpAddr::V4(_) => IpAddr::V4(((value & keep) as u32).into()),
        IpAddr::V6(_) => IpAddr::V6((value & keep).into()),
    }
}

pub(super) fn function<'a>(name: &str, args: &[Value<'a>]) -> Result<'a> {
    match (name, args) {
        ("ip", [Value::Text(text)]) => parse_ip(text).map(Value::Ip),
        ("isIP", [Value::Text(text)]) => Ok(parse_ip(text).is_ok().into()),
        ("ip.isCanonical", [Value::Text(text)]) => {
            parse_ip(text).map(|ip| (ip.to_string() == text.as_ref()).into())
        }
        ("cidr", [Value::Text(text)]) => parse_cidr(text).map(|(ip, bits)| Value::Cidr(ip, bits)),
        ("isCIDR", [Value::Text(text)]) => Ok(parse_cidr(text).is_ok().into()),
        _ => Err(NO_OVERLOAD.into()),
    }
}

pub(super) fn method<'a>(target: &Value<'a>, name: &str, args: &[Value<'a>]) -> Result<'a> {
    let ip = match target {
        Value::Ip(ip) => *ip,
        Value::Cidr(ip, bits) => return cidr_method(*ip, *bits, name, args),
        _ => return Err(NO_OVERLOAD.into()),
    };
    if !args.is_empty() {
        return Err(NO_OVERLOAD.into());
    }
    let local_unicast = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let local_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    Ok(match name {
        "family" => return Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
        "isUnspecified" => ip.is_unspecified(),
        "isLoopback" => ip.is_loopback(),
        "isLinkLocalMulticast" => local_multicast,
        "isLinkLocalUnicast" => local_unicast,
        "isGlobalUnicast" => {
            !(ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_multicast()
                || local_unicast
                || broadcast)
        }
        _ => return Err(NO_OVERLOAD.into()),
    }
    .into())
}

fn cidr_method<'a>(ip: IpAddr, bits: u8, name: &str, args: &[Value<'a>]) -> Result<'a> {
    let inside =
        |other: IpAddr| other.is_ipv4() == ip.is_ipv4() && masked(other, bits) == masked(ip, bits);
    Ok(match (name, args) {
        ("containsIP", [Value::Ip(other)]) => inside(*other).into(),
        ("containsIP", [Value::Text(text)]) => inside(parse_ip(text)?).into(),
        ("containsCIDR", [Value::Cidr(other, more)]) => (*more >= bits && inside(*other)).into(),
        ("containsCIDR", [Value::Text(text)]) => {
            let (other, more) = parse_cidr(text)?;
            (more >= bits && inside(other)).into()
        }
        ("ip", []) => Value::Ip(ip),
        ("prefixLength", []) => Value::Int(i64::from(bits)),
        ("masked", []) => Value::Cidr(masked(ip, bits), bits),
        _ => return Err(NO_OVERLOAD.into()),
    })
}
