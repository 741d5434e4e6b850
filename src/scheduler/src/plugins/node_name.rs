//! NodeName: a pod that names its node goes there and nowhere else.

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

pub struct NodeName;

struct Named<'a>(&'a str);

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let name = pod.node_name.as_str();
        Ok((!name.is_empty()).then(|| Box::new(Named(name)) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        matches!(event, Event::NodeAdded(node) if node.metadata.name.as_deref() == Some(&pod.node_name))
    }
}

impl Filter for Named<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        if node.name == self.0 {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match the requested node name"))
    }
}
