//! NodeResourcesBalancedAllocation: nodes whose resources the pod would bring nearer to being used evenly.

use crate::cluster::Cluster;
use crate::configuration::BalancedAllocation;
use crate::framework::{MAX_NODE_SCORE, Plugin, Point, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeResourcesBalancedAllocation(pub BalancedAllocation);

struct Balance<'a> {
    pod: &'a PodInfo,
    names: Vec<&'a str>,
}

/// How evenly the resources are used, each given as what is used and all there is.
fn evenness(uses: impl Iterator<Item = (i64, i64)>) -> i64 {
    let shares: Vec<f64> = uses.map(|(used, all)| (used as f64 / all as f64).min(1.0)).collect();
    let deviation = match shares.as_slice() {
        [one, other] => ((one - other) / 2.0).abs(),
        [] | [_] => 0.0,
        many => {
            let mean = many.iter().sum::<f64>() / many.len() as f64;
            let squares = many.iter().map(|share| (share - mean).powi(2)).sum::<f64>();
            (squares / many.len() as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
}

/// What the pod would change: three quarters of the best score where the use stays as even as it is, more where
/// it becomes more even. `uses` are of each resource what is used, what the pod asks for, and all there is.
fn rate(uses: &[(i64, i64, i64)]) -> i64 {
    let with = evenness(uses.iter().map(|(used, asked, all)| (used + asked, *all)));
    let without = evenness(uses.iter().map(|(used, _, all)| (*used, *all)));
    MAX_NODE_SCORE / 2 + (MAX_NODE_SCORE / 2 + with - without) / 2
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreScore, Point::Score]
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        // Pods that ask for nothing would otherwise all go to the same, best balanced node.
        let names: Vec<&str> = self.0.resources.iter().map(|r| r.name.as_str()).collect();
        let asks = names.iter().any(|name| pod.requests.amount(name) != 0);
        asks.then(|| Box::new(Balance { pod, names }) as Box<dyn Score>)
    }
}

impl Score for Balance<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn score(&self, node: &NodeInfo) -> i64 {
        let (all, used, asked) = (&node.allocatable, &node.requested, &self.pod.requests);
        let uses = self.names.iter().filter_map(|name| {
            let (asked, all) = (asked.amount(name), all.amount(name));
            // Resources that neither the pod nor the node has do not count.
            let counts =
                all != 0 && (asked != 0 || matches!(*name, "cpu" | "memory" | "ephemeral-storage"));
            counts.then(|| (used.amount(name), asked, all))
        });
        rate(&uses.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_the_use_more_even_is_better() {
        for (uses, want) in [
            (vec![], 75),
            (vec![(0, 4, 10)], 75),
            // As even as before.
            (vec![(0, 1, 10), (0, 1, 10)], 75),
            (vec![(5, 2, 10), (1, 2, 10)], 75),
            (vec![(0, 10, 10), (0, 0, 10)], 50),
            (vec![(10, 0, 10), (0, 10, 10)], 100),
            (vec![(0, 3, 10), (0, 1, 10)], 70),
            (vec![(3, 0, 10), (1, 2, 10)], 80),
            // More than there is counts as all there is.
            (vec![(9, 5, 10), (9, 1, 10)], 75),
            (vec![(0, 3, 10), (0, 3, 10), (0, 9, 10)], 60),
        ] {
            assert_eq!(rate(&uses), want, "{uses:?}");
        }
    }
}
