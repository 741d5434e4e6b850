//! A range of pod addresses for every node.
//!
//! Source: `pkg/controller/nodeipam/ipam/range_allocator.go`, with a node mask of 24 bits for IPv4 and
//! 64 for IPv6.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use client::{Change, Informers};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::queue::{self, Next};
use crate::{Error, unless_code};

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

    /// The number of a range that is one of these.
    fn index(self, range: &str) -> Option<u64> {
        let (address, _) = range.split_once('/')?;
        let bits = match address.parse().ok()? {
            IpAddr::V4(v4) if self.v4 => u64::from(u32::from(v4) >> (32 - NODE_BITS4)),
            IpAddr::V6(v6) if !self.v4 => (u128::from(v6) >> (128 - NODE_BITS6)) as u64,
            _ => return None,
        };
        bits.checked_sub(self.first).filter(|index| *index < self.count)
    }
}

fn range_of(node: &Node) -> Option<&str> {
    node.spec.as_ref()?.pod_cidr.as_deref().filter(|range| !range.is_empty())
}

fn uid_of(node: &Node) -> &str {
    node.metadata.uid.as_deref().unwrap_or_default()
}

/// Who has which range.
struct Given {
    ranges: Ranges,
    free: BTreeSet<u64>,
    /// By uid: what is told of a node that is gone is not about another one of that name.
    by_node: HashMap<String, u64>,
}

impl Given {
    fn new(ranges: Ranges) -> Self {
        Self { ranges, free: (0..ranges.count).collect(), by_node: HashMap::new() }
    }

    /// Takes note of the node's range; says whether it has one.
    fn has(&mut self, node: &Node) -> bool {
        let Some(range) = range_of(node) else { return false };
        if let Some(index) = self.ranges.index(range)
            && self.by_node.get(uid_of(node)) != Some(&index)
        {
            self.take_back(uid_of(node));
            self.free.remove(&index);
            self.by_node.insert(uid_of(node).to_owned(), index);
        }
        true
    }

    /// The first range that nobody has; the same again for the same node.
    fn give(&mut self, uid: &str) -> Option<String> {
        let index = match self.by_node.get(uid) {
            Some(index) => *index,
            None => self.free.pop_first()?,
        };
        self.by_node.insert(uid.to_owned(), index);
        Some(self.ranges.range(index))
    }

    fn take_back(&mut self, uid: &str) {
        if let Some(index) = self.by_node.remove(uid)
            && !self.by_node.values().any(|other| *other == index)
        {
            self.free.insert(index);
        }
    }

    /// Takes note of all nodes that there are; names those without a range.
    fn all(&mut self, nodes: &[Arc<Node>]) -> Vec<String> {
        let mut before = std::mem::take(&mut self.by_node);
        self.free = (0..self.ranges.count).collect();
        let without: Vec<&Arc<Node>> = nodes.iter().filter(|node| !self.has(node)).collect();
        // What is just being told to a node is its own already.
        for uid in without.iter().map(|node| uid_of(node)) {
            if let Some(index) = before.remove(uid)
                && self.free.remove(&index)
            {
                self.by_node.insert(uid.to_owned(), index);
            }
        }
        without.into_iter().map(|node| node.name_any()).collect()
    }

    /// Takes note of what happened; names the nodes that need a range.
    fn follow(
        &mut self,
        change: Change<Node>,
        all: impl FnOnce() -> Vec<Arc<Node>>,
    ) -> Vec<String> {
        match change {
            Change::Applied(node) if self.has(&node) => Vec::new(),
            Change::Applied(node) => vec![node.name_any()],
            Change::Deleted(node) => {
                self.take_back(uid_of(&node));
                Vec::new()
            }
            Change::Synced => self.all(&all()),
        }
    }
}

/// Runs until `shutdown`.
pub async fn run(
    client: Client,
    informers: Informers,
    ranges: Ranges,
    shutdown: CancellationToken,
) {
    let nodes = informers.get::<Node>();
    let store = nodes.store();
    let given = Arc::new(Mutex::new(Given::new(ranges)));
    let changes = {
        let given = given.clone();
        nodes.subscribe().map(move |change| {
            let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
            given.follow(change, || store.state())
        })
    };
    queue::run("node-ipam", changes, shutdown, |name: String| {
        // The lock is taken first: that the node is gone comes to be known after this or before.
        let mut given = given.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes.get("", &name).filter(|node| range_of(node).is_none());
        let needs = node.map(|node| (given.give(uid_of(&node)), node.uid()));
        drop(given);
        let api: Api<Node> = Api::all(client.clone());
        Box::pin(async move {
            let Some((range, uid)) = needs else { return Ok(Next::Done) };
            let Some(range) = range else {
                return Err("every range of pod addresses is in use".into());
            };
            let patch = json!({"metadata": {"uid": uid},
                "spec": {"podCIDR": range, "podCIDRs": [range]}});
            let told = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            unless_code(told, 404)?;
            Ok(Next::Done)
        })
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, range: Option<&str>) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "uid": name}, "spec": {"podCIDR": range}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    #[test]
    fn a_node_that_is_made_again_keeps_its_new_range() {
        let mut given = Given::new(Ranges::parse("10.42.0.0/22").unwrap());
        let old = node("old", Some("10.42.0.0/24"));
        given.follow(Change::Applied(old.clone()), Vec::new);
        let mut again = Node::clone(&node("old", None));
        again.metadata.uid = Some("new".into());
        assert_eq!(given.give(uid_of(&again)).as_deref(), Some("10.42.1.0/24"));
        // What is told late of the one before changes nothing of that.
        given.follow(Change::Applied(old.clone()), Vec::new);
        given.follow(Change::Deleted(old), Vec::new);
        assert_eq!(given.give("b").as_deref(), Some("10.42.0.0/24"));
        assert_eq!(given.give("c").as_deref(), Some("10.42.2.0/24"));
        assert_eq!(given.give(uid_of(&again)).as_deref(), Some("10.42.1.0/24"));
    }

    #[test]
    fn ranges_are_given_once() {
        let mut given = Given::new(Ranges::parse("10.42.0.0/23").unwrap());
        let mut follow = |change| given.follow(change, || unreachable!());
        assert!(follow(Change::Applied(node("a", Some("10.42.0.0/24")))).is_empty());
        assert!(follow(Change::Applied(node("foreign", Some("10.9.0.0/24")))).is_empty());
        assert_eq!(follow(Change::Applied(node("b", None))), ["b"]);
        let second = Some("10.42.1.0/24".to_owned());
        assert_eq!((given.give("b"), given.give("b")), (second.clone(), second));
        assert_eq!(given.give("c"), None);
        // It is on its way to b, which has not told yet; the one of a is free again.
        let all = [node("b", None), node("c", None)];
        assert_eq!(given.follow(Change::Synced, || all.to_vec()), ["b", "c"]);
        assert_eq!(given.give("c").as_deref(), Some("10.42.0.0/24"));
        given.follow(Change::Applied(node("twin", Some("10.42.1.0/24"))), Vec::new);
        for (gone, want) in [("b", None), ("twin", Some("10.42.1.0/24"))] {
            given.follow(Change::Deleted(node(gone, None)), Vec::new);
            assert_eq!(given.give("d").as_deref(), want, "{gone}");
        }
        let mut given = Given::new(Ranges::parse("fd00:10:42::/63").unwrap());
        assert_eq!(given.give("a").as_deref(), Some("fd00:10:42::/64"));
        given.follow(Change::Applied(node("b", Some("fd00:10:42:1::/64"))), Vec::new);
        assert_eq!(given.give("c"), None);
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
