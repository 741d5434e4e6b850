//! NodeResourcesBalancedAllocation: nodes on which CPU and memory would be used evenly.

use crate::cluster::Cluster;
use crate::framework::{MAX_NODE_SCORE, Plugin, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeResourcesBalancedAllocation;

struct Balance<'a>(&'a PodInfo);

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        // Pods that ask for nothing would otherwise all go to the same, best balanced node.
        let asks = pod.requests.milli_cpu != 0 || pod.requests.memory_bytes != 0;
        asks.then(|| Box::new(Balance(pod)) as Box<dyn Score>)
    }
}

impl Score for Balance<'_> {
    fn score(&self, node: &NodeInfo) -> i64 {
        let (all, used, asked) = (&node.allocatable, &node.requested, &self.0.requests);
        let share = |used: i64, all: i64| (all != 0).then(|| (used as f64 / all as f64).min(1.0));
        let shares = (
            share(used.milli_cpu + asked.milli_cpu, all.milli_cpu),
            share(used.memory_bytes + asked.memory_bytes, all.memory_bytes),
        );
        let deviation = match shares {
            (Some(cpu), Some(memory)) => ((cpu - memory) / 2.0).abs(),
            _ => 0.0,
        };
        ((1.0 - deviation) * MAX_NODE_SCORE as f64) as i64
    }
}
