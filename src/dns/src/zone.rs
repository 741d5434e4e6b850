//! The cluster's names, as the server holds them.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Names that may follow each other before a chain is given up.
const CHAIN_MAX: usize = 8;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name for the name.
    Cname(String),
    /// A port, and the name of the host that has it.
    Srv {
        /// Port.
        port: u16,
        /// Host.
        target: String,
    },
    /// The name of an address.
    Ptr(String),
    /// A text.
    Txt(String),
}

impl Data {
    pub(crate) fn address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::A(address),
            IpAddr::V6(address) => Self::Aaaa(address),
        }
    }
}

/// The kinds of questions that the zone answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// An alias.
    Cname,
    /// Ports.
    Srv,
    /// Names of an address.
    Ptr,
    /// Texts.
    Txt,
    /// Everything.
    Any,
    /// Something else, of which there is none.
    Other,
}

impl Kind {
    fn takes(self, data: &Data) -> bool {
        match data {
            Data::A(_) => matches!(self, Self::A | Self::Any),
            Data::Aaaa(_) => matches!(self, Self::Aaaa | Self::Any),
            Data::Cname(_) => matches!(self, Self::Cname | Self::Any),
            Data::Srv { .. } => matches!(self, Self::Srv | Self::Any),
            Data::Ptr(_) => matches!(self, Self::Ptr | Self::Any),
            Data::Txt(_) => matches!(self, Self::Txt | Self::Any),
        }
    }
}

/// The answer to a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Records, each with its owner. Does the chain end in a name outside the cluster, that is the
    /// target of the last one.
    Records(Vec<(String, Data)>),
    /// The name is there, without such a record.
    NoData,
    /// There is no such name.
    NxDomain,
    /// The name is not the cluster's.
    NotOurs,
}

/// A name, in lower case and without the last dot, and what one record says of it.
pub(crate) type Named = (String, Data);

/// All records of the cluster. Names are in lower case and without the last dot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Zone {
    /// Such as `cluster.local`. Empty: nothing is known yet.
    domain: String,
    /// Domains of addresses that are the cluster's alone, such as `42.10.in-addr.arpa`.
    reverse: Vec<String>,
    records: HashMap<String, BTreeSet<Data>>,
    /// Names that have others directly below them, and how many.
    parents: HashMap<String, usize>,
}

impl Zone {
    /// A zone without records.
    pub fn new(domain: &str, reverse: Vec<String>) -> Self {
        Self { domain: domain.to_owned(), reverse, ..Self::default() }
    }

    /// Such as `cluster.local`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What is known of exactly this name.
    pub fn records(&self, name: &str) -> impl Iterator<Item = &Data> {
        self.records.get(name).into_iter().flatten()
    }

    fn is_there(&self, name: &str) -> bool {
        self.records.contains_key(name) || self.parents.contains_key(name)
    }

    /// The name above, if that is of this zone.
    fn above<'a>(&self, name: &'a str) -> Option<&'a str> {
        let (_, parent) = name.split_once('.')?;
        is_below(parent, &self.domain).then_some(parent)
    }

    /// Adds a record.
    pub fn add(&mut self, (name, data): Named) {
        let mut below = name.as_str();
        // A name that was there is counted by the one above it.
        let mut fresh = !self.is_there(below);
        while let Some(parent) = self.above(below).filter(|_| fresh) {
            fresh = !self.is_there(parent);
            *self.parents.entry(parent.to_owned()).or_default() += 1;
            below = parent;
        }
        self.records.entry(name).or_default().insert(data);
    }

    /// Takes a record away.
    pub fn remove(&mut self, (name, data): &Named) {
        let Some(records) = self.records.get_mut(name) else { return };
        records.remove(data);
        if !records.is_empty() {
            return;
        }
        self.records.remove(name);
        let mut gone = name.as_str();
        while !self.is_there(gone)
            && let Some(parent) = self.above(gone)
        {
            if let Some(count) = self.parents.get_mut(parent) {
                *count -= 1;
                if *count == 0 {
                    self.parents.remove(parent);
                }
            }
            gone = parent;
        }
    }

    /// The answer to a question about `name`, which is in lower case and without the last dot.
    pub fn answer(&self, name: &str, kind: Kind) -> Answer {
        if self.domain.is_empty() || !is_below(name, &self.domain) {
            // Addresses of the cluster have names here; all other addresses are the host's to name.
            let reverse = name.rsplit('.').next() == Some("arpa");
            let Some(records) = self.records.get(name).filter(|_| reverse) else {
                let within = |domain: &String| is_below(name, domain);
                let own = reverse && self.reverse.iter().any(within);
                return if own { Answer::NxDomain } else { Answer::NotOurs };
            };
            return found(records.iter().filter(|data| kind.takes(data)).map(|d| (name, d)));
        }
        if let Some(address) = self.pod(name) {
            let data = Data::address(address);
            return found([(name, &data)].into_iter().filter(|(_, data)| kind.takes(data)));
        }
        let Some(records) = self.records.get(name) else {
            let there = name == self.domain || self.parents.contains_key(name);
            return if there { Answer::NoData } else { Answer::NxDomain };
        };
        let mut out: Vec<(&str, &Data)> = Vec::new();
        let mut owner = name;
        let mut records = Some(records);
        for _ in 0..CHAIN_MAX {
            let Some(here) = records else { break };
            let fitting = here.iter().filter(|data| kind.takes(data));
            out.extend(fitting.map(|data| (owner, data)));
            let alias = here.iter().find_map(|data| match data {
                Data::Cname(target) if !kind.takes(data) => Some((data, target)),
                _ => None,
            });
            let Some((data, target)) = alias else { break };
            out.push((owner, data));
            owner = target;
            records = self.records.get(target.as_str());
        }
        found(out.into_iter())
    }

    /// The address in a pod's name, such as `10-42-0-5.default.pod.cluster.local`.
    fn pod(&self, name: &str) -> Option<IpAddr> {
        let rest = name.strip_suffix(&self.domain)?.strip_suffix(".pod.")?;
        let (label, namespace) = rest.split_once('.')?;
        if namespace.is_empty() || namespace.contains('.') {
            return None;
        }
        label.replace('-', ".").parse().ok().or_else(|| label.replace('-', ":").parse().ok())
    }
}

fn found<'a>(records: impl Iterator<Item = (&'a str, &'a Data)>) -> Answer {
    let records: Vec<(String, Data)> =
        records.map(|(name, data)| (name.to_owned(), data.clone())).collect();
    if records.is_empty() { Answer::NoData } else { Answer::Records(records) }
}

/// Whether a name is a domain's or lies in it.
pub(crate) fn is_below(name: &str, domain: &str) -> bool {
    name == domain || name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

#[cfg(test)]
impl Zone {
    /// A zone of records made by hand.
    pub fn of(domain: &str, records: impl IntoIterator<Item = Named>) -> Self {
        let mut zone = Self::new(domain, Vec::new());
        records.into_iter().for_each(|record| zone.add(record));
        zone
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Few names, so that they come and go above, below and beside each other.
    fn record() -> impl Strategy<Value = Named> {
        let name = prop_oneof![
            Just("a.x.test"),
            Just("b.a.x.test"),
            Just("c.b.a.x.test"),
            Just("d.x.test"),
            Just("x.test"),
            Just("test"),
            Just("1.2.in-addr.arpa"),
        ];
        (name, 0..2u8).prop_map(|(name, n)| (name.to_owned(), Data::A([10, 0, 0, n].into())))
    }

    proptest! {
        #[test]
        fn what_comes_and_goes_leaves_the_zone_of_what_is_there(
            changes in proptest::collection::vec((any::<bool>(), record()), 0..40)
        ) {
            let (mut zone, mut model) = (Zone::new("test", Vec::new()), BTreeSet::new());
            for (add, record) in changes {
                if add {
                    model.insert(record.clone());
                    zone.add(record);
                } else {
                    model.remove(&record);
                    zone.remove(&record);
                }
                prop_assert_eq!(&zone, &Zone::of("test", model.iter().cloned()));
                for name in ["x.test", "a.x.test", "b.a.x.test"] {
                    let below = |(owner, _): &Named| is_below(owner, name);
                    let there = zone.answer(name, Kind::Txt) != Answer::NxDomain;
                    prop_assert_eq!(there, model.iter().any(below), "{}", name);
                }
            }
        }
    }
}
