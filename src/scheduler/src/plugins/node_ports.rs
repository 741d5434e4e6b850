//! NodePorts: a host port is one pod's.

use crate::cluster::Cluster;
use crate::framework::{Event, Filter, Plugin, Point, Rejection};
use crate::node::NodeInfo;
use crate::pod::{HostPort, PodInfo};

pub struct NodePorts;

struct Wanted<'a>(&'a [HostPort]);

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::PreFilter, Point::Filter]
    }

    fn pre_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        _: &'a Cluster,
    ) -> Result<Option<Box<dyn Filter + 'a>>, Rejection> {
        let ports = pod.host_ports.as_slice();
        Ok((!ports.is_empty()).then(|| Box::new(Wanted(ports)) as Box<dyn Filter>))
    }

    fn may_help(&self, event: &Event, pod: &PodInfo) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::AssignedPodRemoved(gone) => {
                gone.host_ports.iter().any(|port| pod.host_ports.iter().any(|p| p.conflicts(port)))
            }
            _ => false,
        }
    }
}

impl Filter for Wanted<'_> {
    fn is_local(&self) -> bool {
        true
    }

    fn check(&self, node: &NodeInfo) -> Result<(), Rejection> {
        let taken = |port: &HostPort| node.host_ports.iter().any(|other| other.conflicts(port));
        if !self.0.iter().any(taken) {
            return Ok(());
        }
        Err(Rejection::unschedulable("node(s) didn't have free ports for the requested pod ports"))
    }
}
