//! How fast pods are taken from nodes that do not answer. Where many are silent at once, it is rather the network
//! that is broken, and nothing is gained by moving everything: the pace is slower then, and where no node at all
//! answers, nobody is evicted.
//!
//! Source: `pkg/controller/nodelifecycle/node_lifecycle_controller.go` (`handleDisruption`, `ComputeZoneState`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::readiness;

/// Seconds between two nodes of a zone (`--node-eviction-rate`).
const PACE_S: i64 = 10;
/// The same where most of a large zone is silent (`--secondary-node-eviction-rate`).
const SLOW_PACE_S: i64 = 100;
/// Nodes of a zone that is not large (`--large-cluster-size-threshold`).
const SMALL: usize = 50;
/// Silent nodes in a hundred from which on a zone is disrupted (`--unhealthy-zone-threshold`).
const DISRUPTED_PERCENT: usize = 55;
/// Fewer silent nodes never disrupt a zone.
const DISRUPTED_MIN: usize = 3;
/// A node with this label tells nothing about its zone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";

/// What becomes of the pods of a node that has gone silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evictions {
    /// They leave.
    Begin,
    /// They leave if that has begun.
    Wait,
    /// They stay, even if others were leaving.
    End,
}

/// Ready nodes, and the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Zone {
    ready: usize,
    silent: usize,
}

impl Zone {
    fn is_lost(self) -> bool {
        self.ready == 0 && self.silent > 0
    }

    /// Seconds between two of its nodes; `None` when none is next.
    fn pace_s(self) -> Option<i64> {
        let all = self.ready + self.silent;
        let disrupted = !self.is_lost()
            && self.silent >= DISRUPTED_MIN
            && self.silent * 100 >= DISRUPTED_PERCENT * all;
        if disrupted { (all > SMALL).then_some(SLOW_PACE_S) } else { Some(PACE_S) }
    }
}

/// Region and zone.
type Place = (String, String);

fn place(node: &Node) -> Place {
    let labels = node.labels();
    let label = |key: &str| {
        let today = labels.get(&format!("topology.kubernetes.io/{key}"));
        let old = || labels.get(&format!("failure-domain.beta.kubernetes.io/{key}"));
        today.or_else(old).cloned().unwrap_or_default()
    };
    (label("region"), label("zone"))
}

fn count<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> BTreeMap<Place, Zone> {
    let mut zones: BTreeMap<Place, Zone> = BTreeMap::new();
    for node in nodes.into_iter().filter(|node| !node.labels().contains_key(EXCLUDED)) {
        let zone = zones.entry(place(node)).or_default();
        if readiness(node) == Some("True") { zone.ready += 1 } else { zone.silent += 1 }
    }
    zones
}

#[derive(Default)]
struct Known {
    counted: Option<Timestamp>,
    zones: BTreeMap<Place, Zone>,
    /// When the last node of each zone had its turn.
    turns: BTreeMap<Place, Timestamp>,
}

/// The zones, as they were counted at most a second ago.
#[derive(Default)]
pub struct Zones(Mutex<Known>);

impl Zones {
    /// Decides for `node`, which is silent; `given_up` says whether its pods are leaving already. If that
    /// begins, it was the zone's turn.
    pub fn evictions<N: AsRef<Node>>(
        &self,
        node: &Node,
        given_up: bool,
        all: impl FnOnce() -> Vec<N>,
        now: Timestamp,
    ) -> Evictions {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |counted: Timestamp| now.duration_since(counted) < SignedDuration::from_secs(1);
        if !known.counted.is_some_and(fresh) {
            known.zones = count(all().iter().map(AsRef::as_ref));
            known.counted = Some(now);
        }
        if known.zones.values().all(|zone| zone.is_lost()) {
            return Evictions::End;
        }
        if given_up {
            return Evictions::Wait;
        }
        let place = place(node);
        let pace_s = known.zones.get(&place).copied().unwrap_or_default().pace_s();
        let Some(pace_s) = pace_s else { return Evictions::Wait };
        let last = known.turns.get(&place);
        if last.is_some_and(|last| now.duration_since(*last).as_secs() < pace_s) {
            return Evictions::Wait;
        }
        known.turns.insert(place, now);
        Evictions::Begin
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn node(zone: &str, ready: bool) -> Arc<Node> {
        let ready = if ready { "True" } else { "Unknown" };
        let node = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}});
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    #[test]
    fn the_more_nodes_are_silent_the_slower_they_are_given_up() {
        for (ready, silent, want) in [
            (9, 1, Some(10)),
            (1, 2, Some(10)),
            (2, 3, None),
            (3, 3, Some(10)),
            (0, 3, Some(10)),
            (20, 31, Some(100)),
            (20, 30, None),
        ] {
            assert_eq!(Zone { ready, silent }.pace_s(), want, "{ready} {silent}");
        }
    }

    #[test]
    fn one_node_of_a_zone_after_the_other_is_given_up() {
        let all = || {
            let mut all: Vec<_> = (0..4).map(|_| node("a", true)).collect();
            all.extend([node("a", false), node("a", false), node("b", false)]);
            all
        };
        let zones = Zones::default();
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        for (zone, given_up, second, want) in [
            ("a", false, 100, Evictions::Begin),
            ("a", false, 100, Evictions::Wait),
            ("b", false, 100, Evictions::Begin),
            ("a", false, 109, Evictions::Wait),
            ("a", true, 110, Evictions::Wait),
            ("a", false, 110, Evictions::Begin),
        ] {
            let got = zones.evictions(&node(zone, false), given_up, all, at(second));
            assert_eq!(got, want, "{zone} {second}");
        }
    }

    #[test]
    fn nodes_are_counted_where_they_are() {
        let labelled = |labels: serde_json::Value, ready: &str| -> Node {
            let node = json!({"metadata": {"labels": labels},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}});
            serde_json::from_value(node).expect("a node")
        };
        let zone = |zone: &str| json!({"topology.kubernetes.io/zone": zone});
        let nodes = [
            labelled(zone("a"), "True"),
            labelled(zone("a"), "Unknown"),
            labelled(json!({"failure-domain.beta.kubernetes.io/zone": "a"}), "True"),
            labelled(json!({"topology.kubernetes.io/zone": "b", EXCLUDED: ""}), "Unknown"),
            labelled(json!({}), "False"),
        ];
        let place = |zone: &str| (String::new(), zone.to_owned());
        let want = BTreeMap::from([
            (place("a"), Zone { ready: 2, silent: 1 }),
            (place(""), Zone { ready: 0, silent: 1 }),
        ]);
        assert_eq!(count(&nodes), want);
    }

    #[test]
    fn where_no_node_answers_nobody_is_evicted() {
        let zones = Zones::default();
        let all = || vec![node("a", false), node("b", false)];
        let now = Timestamp::from_second(100).expect("a time");
        for given_up in [false, true] {
            let got = zones.evictions(&node("a", false), given_up, all, now);
            assert_eq!(got, Evictions::End, "{given_up}");
        }
    }
}
