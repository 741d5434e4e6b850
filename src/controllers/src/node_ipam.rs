//! A range of pod addresses for every node.
//!
//! Source: `pkg/controller/nodeipam/ipam/range_allocator.go`, with a node mask of 24 bits for IPv4 and
//! 64 for IPv6.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use client::Informers;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{Error, name, touched};

/// Bits of a node's range, of each family.
const NODE_BITS4: u32 = 24;
const NODE_BITS6: u32 = 64;
/// Most ranges of one cluster, as upstream has it.
const RANGE_BITS: u32 = 16;

/// The cluster's pod addresses, in nodes' portions.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// The first range's bits, as far as they name it.
    first: u64,
    count: u64,
    v4: bool,
}

impl Ranges {
    /// From a network such as `10.42.0.0/16` or `fd00:10:42::/56`.
    pub fn parse(cidr: &str) -> Result<Self, Error> {
        let parsed = cidr.split_once('/').and_then(|(address, bits)| {
            let address: IpAddr = address.parse().ok()?;
            let (first, node_bits) = match address {
                IpAddr::V4(v4) => (u64::from(u32::from(v4) >> (32 - NODE_BITS4)), NODE_BITS4),
                IpAddr::V6(v6) => ((u128::from(v6) >> (128 - NODE_BITS6)) as u64, NODE_BITS6),
            };
            let bits: u32 = bits.parse().ok()?;
            let range_bits = node_bits.checked_sub(bits).filter(|bits| *bits <= RANGE_BITS)?;
            let count = 1 << range_bits;
            Some(Self { first: first & !(count - 1), count, v4: address.is_ipv4() })
        });
        parsed.ok_or_else(|| Error::ClusterCidr { cidr: cidr.to_owned() })
    }

    fn range(self, index: u64) -> String {
        let bits = self.first + index;
        if self.v4 {
            let address = Ipv4Addr::from((bits as u32) << (32 - NODE_BITS4));
            format!("{address}/{NODE_BITS4}")
        } else {
            let address = Ipv6Addr::from(u128::from(bits) << (128 - NODE_BITS6));
            format!("{address}/{NODE_BITS6}")
        }
    }

    /// The first range that nobody uses.
    fn free(self, used: &HashSet<String>) -> Option<String> {
        (0..self.count).map(|index| self.range(index)).find(|range| !used.contains(range))
    }
}

fn range_of(node: &Node) -> Option<String> {
    node.spec.as_ref()?.pod_cidr.clone().filter(|range| !range.is_empty())
}

/// Runs until `shutdown`.
pub async fn run(
    client: Client,
    informers: Informers,
    ranges: Ranges,
    shutdown: CancellationToken,
) {
    let nodes = informers.get::<Node>();
    // One key for all: two nodes must not be given the same range at the same time.
    let changes = touched(&nodes, |node| {
        if range_of(node).is_none() { name(node).into_iter().map(drop).collect() } else { vec![] }
    });
    let store = nodes.store();
    queue::run("node-ipam", changes, shutdown, |()| {
        let all = store.state();
        let api: Api<Node> = Api::all(client.clone());
        Box::pin(async move {
            let mut used: HashSet<String> = all.iter().filter_map(|node| range_of(node)).collect();
            for node in all.iter().filter(|node| range_of(node).is_none()) {
                let Some(range) = ranges.free(&used) else {
                    return Err("every range of pod addresses is in use".into());
                };
                let name = node.metadata.name.clone().unwrap_or_default();
                let patch = json!({"spec": {"podCIDR": range, "podCIDRs": [range]}});
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                used.insert(range);
            }
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_once() {
        let ranges = Ranges::parse("10.42.0.0/23").unwrap();
        let mut used = HashSet::new();
        assert_eq!(ranges.free(&used).as_deref(), Some("10.42.0.0/24"));
        used.insert("10.42.0.0/24".to_owned());
        assert_eq!(ranges.free(&used).as_deref(), Some("10.42.1.0/24"));
        used.insert("10.42.1.0/24".to_owned());
        assert_eq!(ranges.free(&used), None);
        let ranges = Ranges::parse("fd00:10:42::/63").unwrap();
        assert_eq!(ranges.free(&used).as_deref(), Some("fd00:10:42::/64"));
        used.insert("fd00:10:42::/64".to_owned());
        assert_eq!(ranges.free(&used).as_deref(), Some("fd00:10:42:1::/64"));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for cidr in
            ["", "10.42.0.0", "10.42.0.0/25", "x/16", "10.42.0.0/x", "fd00::/65", "fd00::/40"]
        {
            assert!(Ranges::parse(cidr).is_err(), "{cidr}");
        }
    }
}
