//! Who may speak with whom: chains and sets made from profiles.
//!
//! A profile is a list of rules that allow; pods that are under the same profile share one chain.
//! Chains and their sets are named by content and never change, so that a change of policy is: make
//! the new ones, point the pods to them, remove those nobody needs. One transaction does it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Protocol;
use crate::family::Family;
use crate::nft::expr::{Compare, R0};
use crate::nft::{Batch, Data, Element, Rule, SetFlags, SetSpec};
use crate::ruleset::{EGRESS, INGRESS};

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// Protocol.
    pub protocol: Protocol,
    /// First port.
    pub first: u16,
    /// Last port.
    pub last: u16,
}

/// Something that is allowed: these peers, on these ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyRule {
    /// Everybody; the two lists are then of no meaning.
    pub any_peer: bool,
    /// Ranges of addresses, first and last.
    pub ranges: Vec<(IpAddr, IpAddr)>,
    /// Members by name.
    pub members: Vec<String>,
    /// On the receiver's side. None: every protocol and port.
    pub ports: Option<Vec<PortRange>>,
}

/// A pod that policies know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Addresses that it is known to have; those of pods attached here are known anyway.
    pub addresses: Vec<IpAddr>,
    /// Number of the profile of what may reach it. None: everything.
    pub ingress: Option<usize>,
    /// Number of the profile of what it may reach. None: everything.
    pub egress: Option<usize>,
}

/// All policies of the node, resolved as far as that goes without addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyTable {
    /// Each a list of rules of which one has to allow.
    pub profiles: Vec<Vec<PolicyRule>>,
    /// By the name that they are attached under.
    pub members: BTreeMap<String, Member>,
    /// Whether pods that are not among the members may be attached, and are under no policy.
    pub others_are_free: bool,
}

/// Addresses without gaps and overlaps, ascending.
type Ranges = Vec<(IpAddr, IpAddr)>;

/// A rule with addresses only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Resolved {
    /// None: everybody.
    peers: Option<Ranges>,
    ports: Option<Vec<PortRange>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    fn map(self, family: Family) -> String {
        family.name(match self {
            Self::Ingress => INGRESS,
            Self::Egress => EGRESS,
        })
    }
}

type Profile = (Direction, Vec<Resolved>);

/// The policies as the kernel has them.
#[derive(Default)]
pub(crate) struct Policies {
    chains: BTreeMap<Profile, u64>,
    pods: BTreeMap<(Direction, IpAddr), u64>,
    next: u64,
}

impl Policies {
    /// Writes what leads from these policies to those of `table`, where `attached` tells the
    /// addresses of pods by name. Returns the state after the batch is committed.
    pub fn change(
        &self,
        batch: &mut Batch,
        table: &PolicyTable,
        attached: &BTreeMap<String, Vec<IpAddr>>,
    ) -> Self {
        let mut after = Self { next: self.next, ..Self::default() };
        for ((direction, address), rules) in wanted(table, attached) {
            let profile = (direction, rules);
            let known = after.chains.get(&profile).or_else(|| self.chains.get(&profile));
            let number = known.copied().unwrap_or_else(|| {
                after.next += 1;
                create(batch, after.next, &profile);
                after.next
            });
            after.chains.insert(profile, number);
            after.pods.insert((direction, address), number);
        }
        for (key, number) in &self.pods {
            if after.pods.get(key) != Some(number) {
                batch.delete_elements(&map_of(key), &[Element::Key(crate::family::octets(key.1))]);
            }
        }
        for (key, number) in &after.pods {
            if self.pods.get(key) != Some(number) {
                let element = Element::Jump(crate::family::octets(key.1), chain_name(*number));
                batch.add_elements(&map_of(key), &[element]);
            }
        }
        for (profile, number) in &self.chains {
            if !after.chains.contains_key(profile) {
                remove(batch, *number, profile);
            }
        }
        after
    }
}

fn map_of((direction, address): &(Direction, IpAddr)) -> String {
    direction.map(Family::of(*address))
}

/// The rules of each address that is under any, by direction.
fn wanted(
    table: &PolicyTable,
    attached: &BTreeMap<String, Vec<IpAddr>>,
) -> BTreeMap<(Direction, IpAddr), Vec<Resolved>> {
    let resolved: Vec<Vec<Resolved>> = table
        .profiles
        .iter()
        .map(|rules| rules.iter().map(|rule| resolve(rule, table, attached)).collect())
        .collect();
    let mut wanted = BTreeMap::new();
    for (name, member) in &table.members {
        // Policies are enforced where a pod is attached, at both ends of its traffic.
        for address in attached.get(name).into_iter().flatten() {
            let profiles =
                [(Direction::Ingress, member.ingress), (Direction::Egress, member.egress)];
            for (direction, profile) in profiles {
                if let Some(rules) = profile.and_then(|number| resolved.get(number)) {
                    wanted.insert((direction, *address), rules.clone());
                }
            }
        }
    }
    wanted
}

fn resolve(
    rule: &PolicyRule,
    table: &PolicyTable,
    attached: &BTreeMap<String, Vec<IpAddr>>,
) -> Resolved {
    let peers = (!rule.any_peer).then(|| {
        let members = rule.members.iter().flat_map(|name| {
            let here = attached.get(name).into_iter().flatten();
            let told = table.members.get(name).into_iter().flat_map(|member| &member.addresses);
            here.chain(told).map(|address| (*address, *address))
        });
        merge(rule.ranges.iter().copied().chain(members))
    });
    Resolved { peers, ports: rule.ports.clone() }
}

/// Sorts ranges and joins those that touch: interval sets take no overlaps.
fn merge(ranges: impl Iterator<Item = (IpAddr, IpAddr)>) -> Ranges {
    let sorted: BTreeSet<_> = ranges.filter(|(first, last)| first <= last).collect();
    let mut merged = Ranges::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(before)
                if before.0.is_ipv4() == first.is_ipv4()
                    && crate::family::next_address(before.1).is_none_or(|next| first <= next) =>
            {
                before.1 = before.1.max(last);
            }
            _ => merged.push((first, last)),
        }
    }
    merged
}

fn chain_name(number: u64) -> String {
    format!("policy-{number}")
}

fn set_name(number: u64, rule: usize, family: Family) -> String {
    family.name(&format!("peers-{number}-{rule}-v"))
}

/// The sets that a profile's chain uses.
fn sets(number: u64, rules: &[Resolved]) -> impl Iterator<Item = (String, Family, Ranges)> {
    rules.iter().enumerate().flat_map(move |(index, rule)| {
        Family::BOTH.into_iter().filter_map(move |family| {
            let peers = rule.peers.as_ref()?;
            let own: Ranges =
                peers.iter().filter(|(first, _)| Family::of(*first) == family).copied().collect();
            (!own.is_empty()).then(|| (set_name(number, index, family), family, own))
        })
    })
}

fn create(batch: &mut Batch, number: u64, (direction, rules): &Profile) {
    let mut with_peers = BTreeSet::new();
    for (name, family, ranges) in sets(number, rules) {
        let id = batch.next_id();
        batch.set(&SetSpec {
            name: &name,
            id,
            flags: SetFlags::INTERVAL,
            key_bytes: family.bytes(),
            data: Data::None,
            timeout_ms: None,
        });
        let intervals = ranges.iter().flat_map(|(first, last)| Element::interval(*first, *last));
        batch.add_elements(&name, &intervals.collect::<Vec<_>>());
        with_peers.insert(name);
    }
    let chain = chain_name(number);
    batch.chain(&chain);
    for (index, rule) in rules.iter().enumerate() {
        for family in Family::BOTH {
            let set = set_name(number, index, family);
            let peers = || match (&rule.peers, direction) {
                (None, _) => Some(Rule::new().family(family)),
                (Some(_), _) if !with_peers.contains(&set) => None,
                (Some(_), Direction::Ingress) => {
                    Some(Rule::new().family(family).source(family, R0).lookup(&set, R0, false))
                }
                (Some(_), Direction::Egress) => {
                    Some(Rule::new().family(family).destination(family, R0).lookup(&set, R0, false))
                }
            };
            match &rule.ports {
                None => {
                    if let Some(rule) = peers() {
                        batch.rule(&chain, &rule.back());
                    }
                }
                Some(ports) => {
                    for port in ports {
                        if let Some(rule) = peers() {
                            batch.rule(&chain, &on_port(rule, *port).back());
                        }
                    }
                }
            }
        }
    }
    batch.rule(&chain, &Rule::new().drop());
}

fn on_port(rule: Rule, port: PortRange) -> Rule {
    let rule = rule.transport(i32::from(port.protocol.number()));
    let (first, last) = (port.first.to_be_bytes(), port.last.to_be_bytes());
    if port.first == 0 && port.last == u16::MAX {
        rule
    } else if port.first == port.last {
        rule.destination_port(R0).compare(R0, Compare::Equal, &first)
    } else {
        rule.destination_port(R0).range(R0, &first, &last)
    }
}

fn remove(batch: &mut Batch, number: u64, (_, rules): &Profile) {
    batch.delete_chain(&chain_name(number));
    for (name, _, _) in sets(number, rules) {
        batch.delete_set(&name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_are_joined() {
        let cases: [(&[(&str, &str)], &[(&str, &str)]); 4] = [
            (&[("10.0.0.2", "10.0.0.2"), ("10.0.0.1", "10.0.0.1")], &[("10.0.0.1", "10.0.0.2")]),
            (&[("10.0.0.0", "10.0.0.9"), ("10.0.0.3", "10.0.0.4")], &[("10.0.0.0", "10.0.0.9")]),
            (
                &[("255.255.255.255", "255.255.255.255"), ("::", "::1")],
                &[("255.255.255.255", "255.255.255.255"), ("::", "::1")],
            ),
            (&[("10.0.0.2", "10.0.0.1")], &[]),
        ];
        for (given, want) in cases {
            let parse = |list: &[(&str, &str)]| -> Ranges {
                list.iter().map(|(first, last)| (ip(first), ip(last))).collect()
            };
            assert_eq!(merge(parse(given).into_iter()), parse(want));
        }
    }

    proptest! {
        #[test]
        fn joined_ranges_hold_the_same_addresses(
            ranges in proptest::collection::vec((0u8..64, 0u8..64), 0..20)
        ) {
            let address = |n: u8| IpAddr::from([10, 0, 0, n]);
            let given: Ranges =
                ranges.iter().map(|(a, b)| (address(*a.min(b)), address(*a.max(b)))).collect();
            let merged = merge(given.clone().into_iter());
            let within = |list: &Ranges, a: IpAddr| list.iter().any(|(f, l)| *f <= a && a <= *l);
            for n in 0..64 {
                prop_assert_eq!(within(&given, address(n)), within(&merged, address(n)));
            }
            for pair in merged.windows(2) {
                prop_assert!(crate::family::next_address(pair[0].1).unwrap() < pair[1].0);
            }
        }
    }
}
