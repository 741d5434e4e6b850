//! ImageLocality: nodes that hold the pod's images already, the larger the better.

use crate::cluster::Cluster;
use crate::framework::{MAX_NODE_SCORE, Plugin, Point, Score};
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Images smaller than this are fetched quickly enough anywhere.
const MIN_BYTES: i64 = 23 << 20;
/// More than this per image makes no difference any more.
const MAX_BYTES_PER_IMAGE: i64 = 1000 << 20;

pub struct ImageLocality;

struct Images {
    /// The image of each container and each volume that is one, with the share of all nodes that hold it.
    wanted: Vec<(String, f64)>,
}

/// The name under which a node lists the image: with a tag.
fn listed_name(image: &str) -> String {
    let tagged = image.rfind(':') > image.rfind('/');
    if tagged { image.to_owned() } else { format!("{image}:latest") }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn points(&self) -> &'static [Point] {
        &[Point::Score]
    }

    fn pre_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        cluster: &'a Cluster,
        _: &[&'a NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.spec();
        let all = cluster.nodes().len().max(1) as f64;
        let images = spec.init_containers.iter().flatten().chain(&spec.containers);
        let volumes = spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref());
        let wanted: Vec<_> = images
            .filter_map(|container| container.image.as_ref())
            .chain(volumes.filter_map(|image| image.reference.as_ref()))
            .map(|image| {
                let name = listed_name(image);
                let spread = cluster.nodes_with_image(&name) as f64 / all;
                (name, spread)
            })
            .collect();
        // Where nobody has any of them, all nodes are the same.
        let any = wanted.iter().any(|(_, spread)| *spread > 0.0);
        any.then(|| Box::new(Images { wanted }) as Box<dyn Score>)
    }
}

impl Score for Images {
    fn score(&self, node: &NodeInfo) -> i64 {
        let held = self.wanted.iter().filter_map(|(name, spread)| {
            // An image that few nodes hold counts less, so that not all its pods crowd there.
            node.images.get(name).map(|size| (*size as f64 * spread) as i64)
        });
        let max = MAX_BYTES_PER_IMAGE * self.wanted.len().max(1) as i64;
        let bytes = held.sum::<i64>().clamp(MIN_BYTES, max);
        MAX_NODE_SCORE * (bytes - MIN_BYTES) / (max - MIN_BYTES)
    }
}
