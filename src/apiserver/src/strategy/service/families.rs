//! Which families of addresses a Service gets.
//!
//! Source: `initIPFamilyFields` of `pkg/registry/core/service/storage/alloc.go`.

use std::net::IpAddr;

use apimachinery::field::{Error, Path};
use serde_json::Value;

use crate::zero::Zero;

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
