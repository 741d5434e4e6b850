//! ServiceCIDRs: ready for use, and kept while addresses need them.
//!
//! Source: `pkg/controller/servicecidrs/servicecidrs_controller.go`.

use std::net::IpAddr;
use std::time::Duration;

use client::Informers;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR, ServiceCIDRStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{touched, unless_code};

const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// Marks the IPAddresses of Services, with who keeps them.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const MANAGER: &str = "ipallocator.k8s.io";
/// How long a deleted range is still looked at, for addresses that were just given out.
const DELETION_GRACE: Duration = Duration::from_secs(10);

/// A network: its address as a number of 128 bits, its prefix, and whether it is of version 6.
type Network = (u128, u32, bool);

fn bits(address: IpAddr) -> (u128, bool) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, false),
        IpAddr::V6(address) => (u128::from(address), true),
    }
}

fn network(text: &str) -> Option<Network> {
    let (address, prefix) = text.split_once('/')?;
    let (address, v6) = bits(address.parse().ok()?);
    let prefix: u32 = prefix.parse().ok().filter(|p| *p <= if v6 { 128 } else { 32 })?;
    Some((address & mask(prefix), prefix, v6))
}

fn mask(prefix: u32) -> u128 {
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
}

fn contains((base, prefix, v6): Network, address: IpAddr) -> bool {
    let (address, other) = bits(address);
    v6 == other && address & mask(prefix) == base
}

fn networks(range: &ServiceCIDR) -> Vec<Network> {
    let cidrs = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    cidrs.filter_map(|text| network(text)).collect()
}

/// Whether an address is one that the API server keeps for a Service.
fn is_managed(address: &IPAddress) -> bool {
    address.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER)
}

/// Whether addresses of Services in the range are in no other range.
fn is_needed(
    range: &ServiceCIDR,
    others: &[impl AsRef<ServiceCIDR>],
    addresses: &[impl AsRef<IPAddress>],
) -> bool {
    let own = networks(range);
    let alive = |other: &ServiceCIDR| {
        other.metadata.uid != range.metadata.uid && other.metadata.deletion_timestamp.is_none()
    };
    let elsewhere: Vec<Network> =
        others.iter().map(AsRef::as_ref).filter(|o| alive(o)).flat_map(networks).collect();
    let used = addresses.iter().map(AsRef::as_ref).filter(|address| is_managed(address));
    used.filter_map(|address| address.name_any().parse::<IpAddr>().ok()).any(|address| {
        own.iter().any(|network| contains(*network, address))
            && !elsewhere.iter().any(|network| contains(*network, address))
    })
}

fn ready(range: &ServiceCIDR, needed: bool, now: Timestamp) -> ServiceCIDRStatus {
    let ending = range.metadata.deletion_timestamp.is_some();
    let (status, reason, message) = if ending && needed {
        (
            "False",
            "Terminating",
            "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
        )
    } else {
        ("True", "", "Kubernetes Service CIDR is ready")
    };
    let before = range.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let same = before.into_iter().find(|c| c.type_ == "Ready" && c.status == status);
    let since = same.map_or(Time(now), |known| known.last_transition_time.clone());
    ServiceCIDRStatus {
        conditions: Some(vec![Condition {
            type_: "Ready".into(),
            status: status.into(),
            reason: reason.into(),
            message: message.into(),
            last_transition_time: since,
            observed_generation: None,
        }]),
    }
}

/// Runs until `shutdown`.
pub async fn run(client: Client, informers: Informers, shutdown: CancellationToken) {
    let ranges = informers.get::<ServiceCIDR>();
    let addresses = informers.get::<IPAddress>();
    ranges.ready().await;
    addresses.ready().await;
    let ending = |range: &ServiceCIDR| range.metadata.deletion_timestamp.is_some();
    let known = ranges.store();
    // A range that comes or goes may set another free that is being deleted.
    let of_range = move |range: &ServiceCIDR| {
        let all = known.state();
        let others = all.iter().filter(|other| ending(other)).map(|other| other.name_any());
        std::iter::once(range.name_any()).chain(others).collect()
    };
    let known = ranges.store();
    let of_address = move |address: &IPAddress| {
        let Ok(ip) = address.name_any().parse() else { return Vec::new() };
        if !is_managed(address) {
            return Vec::new();
        }
        let all = known.state();
        // Others do not care who uses them.
        let ending = all.iter().filter(|range| ending(range));
        let holding = ending.filter(|range| networks(range).iter().any(|n| contains(*n, ip)));
        holding.map(|range| range.name_any()).collect()
    };
    let changes =
        futures::stream::select(touched(&ranges, of_range), touched(&addresses, of_address));
    queue::run("service-cidr", changes, shutdown, |key: String| {
        let found = ranges.get("", &key);
        let needed = found.as_ref().filter(|range| ending(range)).is_some_and(|range| {
            is_needed(range, &ranges.store().state(), &addresses.store().state())
        });
        let api: Api<ServiceCIDR> = Api::all(client.clone());
        Box::pin(async move {
            let Some(range) = found else { return Ok(Next::Done) };
            let mut range = ServiceCIDR::clone(&range);
            let parameters = PostParams::default();
            let held = range.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
            let deleted = range.metadata.deletion_timestamp.as_ref().map(|time| time.0);
            if let Some(since) = deleted
                && held
                && !needed
            {
                let passed = Timestamp::now().duration_since(since).unsigned_abs();
                if let Some(rest) = DELETION_GRACE.checked_sub(passed) {
                    return Ok(Next::After(rest));
                }
                range.finalizers_mut().retain(|finalizer| finalizer != FINALIZER);
                unless_code(api.replace(&key, &parameters, &range).await, 404)?;
                return Ok(Next::Done);
            }
            if deleted.is_none() && !held {
                range.finalizers_mut().push(FINALIZER.into());
                range = api.replace(&key, &parameters, &range).await?;
            }
            let status = ready(&range, needed, Timestamp::now());
            if range.status.as_ref() != Some(&status) {
                range.status = Some(status);
                unless_code(api.replace_status(&key, &parameters, &range).await, 404)?;
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        for (cidr, address, want) in [
            ("10.43.0.0/16", "10.43.7.1", true),
            ("10.43.0.0/16", "10.44.0.1", false),
            ("fd00::/112", "fd00::5", true),
            ("0.0.0.0/0", "fd00::5", false),
            ("10.43.0.9/32", "10.43.0.9", true),
        ] {
            let network = network(cidr).expect("a network");
            assert_eq!(
                contains(network, address.parse().expect("an address")),
                want,
                "{cidr} {address}"
            );
        }
    }

    #[test]
    fn a_range_in_use_is_needed() {
        let range = |uid: &str, cidr: &str| -> Box<ServiceCIDR> {
            Box::new(
                serde_json::from_value(
                    json!({"metadata": {"name": uid, "uid": uid}, "spec": {"cidrs": [cidr]}}),
                )
                .expect("a range"),
            )
        };
        let address = |text: &str| -> Box<IPAddress> {
            Box::new(serde_json::from_value(json!({"metadata": {"name": text, "labels": {MANAGED_BY: MANAGER}}, "spec": {"parentRef": {"resource": "services", "name": "s"}}})).expect("one"))
        };
        let (small, large) = (range("a", "10.0.0.0/24"), range("b", "10.0.0.0/16"));
        let used = [address("10.0.0.7")];
        assert!(is_needed(&small, std::slice::from_ref(&small), &used));
        assert!(!is_needed(&small, &[small.clone(), large], &used));
        assert!(!is_needed(&small, std::slice::from_ref(&small), &[address("10.9.0.1")]));
        let mut foreign = address("10.0.0.8");
        foreign.metadata.labels = None;
        assert!(!is_needed(&small, std::slice::from_ref(&small), &[foreign]));
    }
}
