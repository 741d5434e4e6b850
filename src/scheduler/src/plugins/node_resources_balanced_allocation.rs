//! NodeResourcesBalancedAllocation: nodes on which the resources would be used evenly.

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
        let share = |name: &str| {
            let (asked, all) = (asked.amount(name), all.amount(name));
            // Resources that neither the pod nor the node has do not count.
            let counts =
                all != 0 && (asked != 0 || matches!(name, "cpu" | "memory" | "ephemeral-storage"));
            counts.then(|| ((used.amount(name) + asked) as f64 / all as f64).min(1.0))
        };
        let shares: Vec<f64> = self.names.iter().filter_map(|name| share(name)).collect();
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
}
