//! Whom a rule is about.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer};
use kube::ResourceExt;
use netns::{Cidr, PolicyRule};

use super::{World, member_name, selector};

/// The peers of a rule: blocks of addresses, and pods.
pub(super) struct Peers<'a> {
    any: bool,
    ranges: Vec<(IpAddr, IpAddr)>,
    pub pods: Vec<&'a Pod>,
}

impl<'a> Peers<'a> {
    /// Those of a rule's `from` or `to` in a policy of `namespace`; missing or empty means everybody.
    pub fn of(peers: Option<&[NetworkPolicyPeer]>, namespace: &str, world: &World<'a>) -> Self {
        let peers = peers.unwrap_or_default();
        let mut own = Self { any: peers.is_empty(), ranges: Vec::new(), pods: Vec::new() };
        for peer in peers {
            if let Some(block) = &peer.ip_block {
                own.ranges.extend(ranges(block));
            } else {
                own.pods
                    .extend(world.pods.iter().filter(|pod| is_peer(peer, namespace, pod, world)));
            }
        }
        own
    }

    /// Whether nobody at all is meant.
    pub fn is_empty(&self) -> bool {
        !self.any && self.ranges.is_empty() && self.pods.is_empty()
    }

    /// A rule about all of them, on every port.
    pub fn rule(&self) -> PolicyRule {
        PolicyRule {
            any_peer: self.any,
            ranges: self.ranges.clone(),
            members: names(self.pods.iter().copied()),
            ports: None,
        }
    }

    /// The pods of which a port's name may be asked.
    pub fn named(&self, world: &World<'a>) -> Vec<&'a Pod> {
        if self.any { world.pods.clone() } else { self.pods.clone() }
    }
}

/// The names of pods, sorted.
pub(super) fn names<'a>(pods: impl Iterator<Item = &'a Pod>) -> Vec<String> {
    let mut names: Vec<String> = pods.map(member_name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn is_peer(peer: &NetworkPolicyPeer, namespace: &str, pod: &Pod, world: &World) -> bool {
    let theirs = pod.namespace().unwrap_or_default();
    let in_namespace = match &peer.namespace_selector {
        None => theirs == namespace,
        Some(selector) => {
            let labels = world.namespaces.get(&theirs);
            labels.is_some_and(|labels| selector::selects(selector, labels))
        }
    };
    in_namespace && peer.pod_selector.as_ref().is_none_or(|s| selector::selects(s, pod.labels()))
}

/// What is left of a block without its exceptions.
fn ranges(block: &IPBlock) -> Vec<(IpAddr, IpAddr)> {
    let Some(whole) = parse(&block.cidr) else { return Vec::new() };
    let mut exceptions: Vec<_> = block.except.iter().flatten().filter_map(|t| parse(t)).collect();
    exceptions.sort_unstable();
    let mut left = Vec::new();
    let mut first = whole.0;
    for (start, end) in exceptions {
        if first < start {
            left.push((first, before(start)));
        }
        match after(end) {
            Some(next) if next <= whole.1 => first = first.max(next),
            _ => return left,
        }
    }
    left.push((first, whole.1));
    left
}

/// First and last address of a block; bits beyond its prefix do not matter, as upstream has it.
fn parse(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, prefix) = text.split_once('/')?;
    Some(Cidr::containing(address.parse().ok()?, prefix.parse().ok()?).bounds())
}

fn before(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((u32::from(v4).saturating_sub(1)).into()),
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6).saturating_sub(1)).into()),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4(u32::from(v4).checked_add(1)?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(u128::from(v6).checked_add(1)?.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_taken_out() {
        let cases: [(&str, &[&str], &str); 6] = [
            ("10.0.0.0/30", &[], "10.0.0.0-10.0.0.3"),
            ("10.0.0.0/30", &["10.0.0.1/32"], "10.0.0.0-10.0.0.0 10.0.0.2-10.0.0.3"),
            ("10.0.0.0/30", &["10.0.0.2/31"], "10.0.0.0-10.0.0.1"),
            ("10.0.0.0/30", &["10.0.0.0/30"], ""),
            ("0.0.0.0/0", &["10.0.0.0/8"], "0.0.0.0-9.255.255.255 11.0.0.0-255.255.255.255"),
            ("fd00::/126", &["fd00::2/127", "fd00::/128"], "fd00::1-fd00::1"),
        ];
        for (cidr, except, want) in cases {
            let except = Some(except.iter().map(ToString::to_string).collect());
            let left = ranges(&IPBlock { cidr: cidr.into(), except });
            let told: Vec<_> = left.iter().map(|(a, b)| format!("{a}-{b}")).collect();
            assert_eq!(told.join(" "), want, "{cidr}");
        }
    }
}
