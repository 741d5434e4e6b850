//! For random clusters and pods: no node is over-committed, no required rule is broken, and a place
//! is found whenever there is one.

mod support;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use scheduler::cluster::Cluster;
use scheduler::pod::PodInfo;
use scheduler::preemption::{Preemption, View, preempt};
use scheduler::schedule::{Failure, Nominated};
use serde_json::json;
use support::{cluster, decide, node, pod, profile};

#[derive(Clone, Debug)]
struct NodeShape {
    cpu: i64,
    pods: i64,
    zone: u8,
    tainted: bool,
    cordoned: bool,
}

#[derive(Clone, Debug)]
struct PodShape {
    cpu: i64,
    port: Option<i32>,
    zone: Option<u8>,
    tolerates: bool,
    app: u8,
    /// Not in one zone with pods of this application.
    repels: Option<u8>,
}

fn node_shape() -> impl Strategy<Value = NodeShape> {
    (0..5_i64, 0..5_i64, 0..3_u8, prop::bool::weighted(0.2), prop::bool::weighted(0.1)).prop_map(
        |(cpu, pods, zone, tainted, cordoned)| NodeShape { cpu, pods, zone, tainted, cordoned },
    )
}

fn pod_shape() -> impl Strategy<Value = PodShape> {
    let rarely = |range: std::ops::Range<u8>| proptest::option::weighted(0.2, range);
    let port = proptest::option::weighted(0.2, 1..3_i32);
    (0..4_i64, port, rarely(0..3), prop::bool::ANY, 0..3_u8, rarely(0..3)).prop_map(
        |(cpu, port, zone, tolerates, app, repels)| PodShape {
            cpu,
            port,
            zone,
            tolerates,
            app,
            repels,
        },
    )
}

fn build_node(index: usize, shape: &NodeShape) -> Arc<Node> {
    let taints =
        if shape.tainted { json!([{"key": "k", "effect": "NoSchedule"}]) } else { json!([]) };
    let labels = json!({"zone": shape.zone.to_string()});
    let over = json!({
        "metadata": {"labels": labels},
        "spec": {"taints": taints, "unschedulable": shape.cordoned},
        "status": {"allocatable": {"cpu": shape.cpu.to_string(), "pods": shape.pods.to_string()}},
    });
    node(&format!("n{index}"), over)
}

fn build_pod(index: usize, shape: &PodShape) -> Arc<PodInfo> {
    let ports = shape.port.map(|port| json!([{"containerPort": 1, "hostPort": port}]));
    let mut spec = json!({
        "containers": [{
            "name": "c",
            "ports": ports,
            "resources": {"requests": {"cpu": shape.cpu.to_string()}},
        }],
    });
    if let Some(zone) = shape.zone {
        spec["nodeSelector"] = json!({"zone": zone.to_string()});
    }
    if shape.tolerates {
        spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    }
    if let Some(app) = shape.repels {
        let selector = json!({"matchLabels": {"app": app.to_string()}});
        spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "zone", "labelSelector": selector}]}});
    }
    let labels = json!({"app": shape.app.to_string()});
    pod(&format!("p{index}"), json!({"metadata": {"labels": labels}, "spec": spec}))
}

/// The rules once more, over shapes, as plainly as they can be put.
fn allowed(pod: &PodShape, at: usize, nodes: &[NodeShape], placed: &[(PodShape, usize)]) -> bool {
    let node = &nodes[at];
    let on_node = || placed.iter().filter(|(_, place)| *place == at).map(|(pod, _)| pod);
    let in_zone =
        || placed.iter().filter(|(_, place)| nodes[*place].zone == node.zone).map(|(pod, _)| pod);
    let used: i64 = on_node().map(|other| other.cpu).sum();
    !node.cordoned
        && (!node.tainted || pod.tolerates)
        && pod.zone.is_none_or(|zone| zone == node.zone)
        && (on_node().count() as i64) < node.pods
        && (pod.cpu == 0 || pod.cpu <= node.cpu - used)
        && pod.port.is_none_or(|port| on_node().all(|other| other.port != Some(port)))
        && in_zone().all(|other| other.repels != Some(pod.app) && pod.repels != Some(other.app))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_place_is_found_when_there_is_one_and_only_then(
        nodes in proptest::collection::vec(node_shape(), 1..7),
        pods in proptest::collection::vec(pod_shape(), 1..25),
    ) {
        let built = nodes.iter().enumerate().map(|(index, shape)| build_node(index, shape));
        let mut cluster: Cluster = cluster(built, []);
        let mut placed: Vec<(PodShape, usize)> = Vec::new();
        for (index, shape) in pods.iter().enumerate() {
            let pod = build_pod(index, shape);
            let possible: Vec<String> = (0..nodes.len())
                .filter(|at| allowed(shape, *at, &nodes, &placed))
                .map(|at| format!("n{at}"))
                .collect();
            match decide(&pod, &cluster) {
                Ok(placement) => {
                    prop_assert!(possible.contains(&placement.node), "{shape:?} on {}", placement.node);
                    prop_assert_eq!(placement.feasible, possible.len());
                    let at = placement.node[1..].parse().expect("a number");
                    prop_assert!(cluster.add_pod(Arc::new(pod.on(&placement.node))));
                    placed.push((shape.clone(), at));
                }
                Err(failure) => prop_assert!(possible.is_empty(), "{shape:?}: {failure}"),
            }
        }
    }

    /// What preemption takes away is enough, nothing of it is spared for nothing, and nobody as important goes.
    #[test]
    fn preemption_makes_room_and_no_more(
        nodes in proptest::collection::vec(node_shape(), 1..5),
        pods in proptest::collection::vec((pod_shape(), 0..4_i32), 1..20),
    ) {
        let built = nodes.iter().enumerate().map(|(index, shape)| build_node(index, shape));
        let mut cluster: Cluster = cluster(built, []);
        let mut placed: Vec<(PodShape, usize, String, i32)> = Vec::new();
        for (index, (shape, priority)) in pods.iter().enumerate() {
            let mut pod = build_pod(index, shape);
            Arc::make_mut(&mut pod).priority = *priority;
            let failure = match decide(&pod, &cluster) {
                Ok(placement) => {
                    let at = placement.node[1..].parse().expect("a number");
                    cluster.add_pod(Arc::new(pod.on(&placement.node)));
                    placed.push((shape.clone(), at, pod.uid.clone(), *priority));
                    continue;
                }
                Err(failure) => failure,
            };
            let Failure::Unfit(unfit) = failure else { unreachable!("there are nodes") };
            let (profile, nominated) = (profile(), Nominated::new());
            let view = View { profile: &profile, cluster: &cluster, nominated: &nominated, budgets: &[] };
            let left = |gone: &[&str]| -> Vec<(PodShape, usize)> {
                let stay = placed.iter().filter(|(_, _, uid, _)| !gone.contains(&uid.as_str()));
                stay.map(|(shape, at, ..)| (shape.clone(), *at)).collect()
            };
            // On some node it is enough that all lesser pods of that node go.
            let possible = (0..nodes.len()).any(|at| {
                let lesser = placed.iter().filter(|(_, place, _, p)| *place == at && p < priority);
                let gone: Vec<&str> = lesser.map(|(_, _, uid, _)| uid.as_str()).collect();
                !gone.is_empty() && allowed(shape, at, &nodes, &left(&gone))
            });
            match preempt(view, &pod, &unfit) {
                Preemption::Nominate { node, victims } => {
                    let at: usize = node[1..].parse().expect("a number");
                    let gone: Vec<&str> = victims.iter().map(|victim| victim.uid.as_str()).collect();
                    prop_assert!(victims.iter().all(|victim| victim.priority < *priority));
                    prop_assert!(victims.iter().all(|victim| victim.node_name == node));
                    prop_assert!(allowed(shape, at, &nodes, &left(&gone)), "{shape:?} on {node}");
                    for spared in &gone {
                        let fewer: Vec<&str> =
                            gone.iter().copied().filter(|uid| uid != spared).collect();
                        prop_assert!(!allowed(shape, at, &nodes, &left(&fewer)), "{spared} may stay");
                    }
                }
                Preemption::Helpless(why) | Preemption::Ineligible(why) => {
                    prop_assert!(!possible, "{shape:?}: {why}");
                }
            }
        }
    }

    /// Pods come and go, nodes too: the sums over the pods of a node stay right.
    #[test]
    fn the_picture_stays_true(
        steps in proptest::collection::vec((0..3_usize, pod_shape(), prop::bool::ANY), 1..40),
    ) {
        let shape = NodeShape { cpu: 100, pods: 100, zone: 0, tainted: false, cordoned: false };
        let mut cluster = cluster((0..3).map(|index| build_node(index, &shape)), []);
        let mut present: Vec<Arc<PodInfo>> = Vec::new();
        for (index, (at, shape, add)) in steps.into_iter().enumerate() {
            if add || present.is_empty() {
                let pod = Arc::new(build_pod(index, &shape).on(&format!("n{at}")));
                cluster.add_pod(pod.clone());
                present.push(pod);
            } else {
                let gone = present.swap_remove(index % present.len());
                cluster.remove_pod(&gone.node_name, &gone.uid);
            }
        }
        for node in cluster.nodes() {
            let own: Vec<_> = present.iter().filter(|pod| pod.node_name == node.name).collect();
            prop_assert_eq!(node.pods.len(), own.len());
            let cpu: i64 = own.iter().map(|pod| pod.requests.milli_cpu).sum();
            prop_assert_eq!(node.requested.milli_cpu, cpu);
            let ports: usize = own.iter().map(|pod| pod.host_ports.len()).sum();
            prop_assert_eq!(node.host_ports.len(), ports);
            let grouped: i64 = node.groups.iter().map(|group| group.count).sum();
            prop_assert_eq!(grouped, own.len() as i64);
        }
        let repelling = present.iter().any(|pod| !pod.affinities.required_anti.is_empty());
        prop_assert_eq!(cluster.has_anti_affine_pods(), repelling);
    }
}
