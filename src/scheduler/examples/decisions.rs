//! How many decisions a second the scheduler makes: `decisions [NODES] [PODS]`.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use scheduler::cluster::Cluster;
use scheduler::plugins::default_profile;
use scheduler::pod::PodInfo;
use scheduler::schedule::{Nominated, Rotation, schedule};
use serde_json::json;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let nodes: usize = args.next().map_or(Ok(200), |text| text.parse())?;
    let pods: usize = args.next().map_or(Ok(5000), |text| text.parse())?;
    let mut cluster = Cluster::default();
    for index in 0..nodes {
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": format!("n{index}"), "labels": {"zone": format!("{}", index % 3)}},
            "status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}},
        }))?;
        cluster.set_node(Arc::new(node));
    }
    let profile = default_profile();
    let mut rotation = Rotation::default();
    let started = Instant::now();
    let mut placed = 0;
    for index in 0..pods {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": format!("p{index}"), "namespace": "default", "uid": format!("{index}")},
            "spec": {"containers": [{
                "name": "c", "image": "app:1",
                "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}},
            }]},
        }))?;
        let pod = PodInfo::new(Arc::new(pod));
        let decided = schedule(&profile, &pod, &cluster, &Nominated::new(), &mut rotation);
        if let Ok(placement) = decided {
            cluster.add_pod(Arc::new(pod.on(&placement.node)));
            placed += 1;
        }
    }
    let rate = pods as f64 / started.elapsed().as_secs_f64();
    println!("{nodes} nodes, {pods} pods: {placed} placed, {rate:.0}/s");
    Ok(())
}
