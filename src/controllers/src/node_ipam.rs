//! A range of pod addresses for every node.
//!
//! Source: `pkg/controller/nodeipam/ipam/range_allocator.go`, with a node mask of 24 bits.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use client::Informers;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{Error, name, touched};

/// Bits of a node's range.
const NODE_BITS: u32 = 24;

/// The cluster's pod addresses, in nodes' portions.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    base: u32,
    count: u32,
}

impl Ranges {
    /// From a network such as `10.42.0.0/16`.
    pub fn parse(cidr: &str) -> Result<Self, Error> {
        let parsed = cidr.split_once('/').and_then(|(address, bits)| {
            let address: Ipv4Addr = address.parse().ok()?;
            let bits: u32 = bits.parse().ok().filter(|bits| (8..=NODE_BITS).contains(bits))?;
            let base = u32::from(address) & (u32::MAX << (32 - bits));
            Some(Self { base, count: 1 << (NODE_BITS - bits) })
        });
        parsed.ok_or_else(|| Error::ClusterCidr { cidr: cidr.to_owned() })
    }

    /// The first range that nobody uses.
    fn free(self, used: &HashSet<String>) -> Option<String> {
        (0..self.count)
            .map(|index| self.base + (index << (32 - NODE_BITS)))
            .map(|base| format!("{}/{NODE_BITS}", Ipv4Addr::from(base)))
            .find(|range| !used.contains(range))
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
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for cidr in ["", "10.42.0.0", "10.42.0.0/25", "x/16", "10.42.0.0/x"] {
            assert!(Ranges::parse(cidr).is_err(), "{cidr}");
        }
    }
}
