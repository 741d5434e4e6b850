//! For random clusters and pods: no node is over-committed, no required rule is broken, and a place
//! is found whenever there is one.

mod support;

use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use proptest::prelude::*;
use scheduler::cluster::Cluster;
use scheduler::pod::PodInfo;
use scheduler::preemption::{Preemption, View, preempt};
use scheduler::schedule::{Failure, Nominated, Rotation, schedule};
use scheduler::volumes::Volumes;
use serde_json::json;
use support::{cluster, decide, node, pod, profile, volumes};

#[derive(Clone, Debug)]
struct NodeShape {
    cpu: i64,
    memory: i64,
    gpu: i64,
    pods: i64,
    zone: u8,
    tainted: bool,
    cordoned: bool,
}

/// Evenly over zones, or over nodes.
#[derive(Clone, Copy, Debug)]
struct Spread {
    zones: bool,
    skew: i64,
}

#[derive(Clone, Debug)]
struct PodShape {
    cpu: i64,
    memory: i64,
    gpu: i64,
    port: Option<i32>,
    /// The port only on one address.
    local: bool,
    zone: Option<u8>,
    avoids: Option<u8>,
    tolerates: bool,
    app: u8,
    /// Not in one zone with pods of this application.
    repels: Option<u8>,
    /// In one zone with a pod of this application.
    attracts: Option<u8>,
    /// How its own application may be spread.
    spread: Option<Spread>,
    /// Its claim: of 0 and 1 the volume is in the zone of that number; 2 is for one pod alone.
    disk: Option<u8>,
}

fn node_shape() -> impl Strategy<Value = NodeShape> {
    let sizes = (0..5_i64, 0..5_i64, 0..3_i64, 0..5_i64);
    let rarely = prop::bool::weighted;
    (sizes, 0..3_u8, rarely(0.2), rarely(0.1)).prop_map(
        |((cpu, memory, gpu, pods), zone, tainted, cordoned)| NodeShape {
            cpu,
            memory,
            gpu,
            pods,
            zone,
            tainted,
            cordoned,
        },
    )
}

fn pod_shape() -> impl Strategy<Value = PodShape> {
    let rarely = |range: std::ops::Range<u8>| proptest::option::weighted(0.2, range);
    let port = proptest::option::weighted(0.2, 1..3_i32);
    let gpu = prop_oneof![4 => Just(0_i64), 1 => 1..3_i64];
    let sizes = (0..4_i64, 0..4_i64, gpu, port, prop::bool::ANY);
    let places = (rarely(0..3), rarely(0..3), prop::bool::ANY);
    let spread = (prop::bool::ANY, 1..3_i64).prop_map(|(zones, skew)| Spread { zones, skew });
    let company = (0..3_u8, rarely(0..3), rarely(0..3), proptest::option::weighted(0.2, spread));
    (sizes, places, company, proptest::option::weighted(0.15, 0..3_u8)).prop_map(
        |(sizes, (zone, avoids, tolerates), (app, repels, attracts, spread), disk)| {
            let (cpu, memory, gpu, port, local) = sizes;
            PodShape {
                cpu,
                memory,
                gpu,
                port,
                local,
                zone,
                avoids,
                tolerates,
                app,
                repels,
                attracts,
                spread,
                disk,
            }
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
        "status": {"allocatable": {"cpu": shape.cpu.to_string(), "pods": shape.pods.to_string(),
            "memory": format!("{}Gi", shape.memory), "example.com/gpu": shape.gpu.to_string()}},
    });
    node(&format!("n{index}"), over)
}

fn build_pod(index: usize, shape: &PodShape) -> Arc<PodInfo> {
    let ip = if shape.local { "127.0.0.1" } else { "" };
    let ports =
        shape.port.map(|port| json!([{"containerPort": 1, "hostPort": port, "hostIP": ip}]));
    let mut requests =
        json!({"cpu": shape.cpu.to_string(), "memory": format!("{}Gi", shape.memory)});
    if shape.gpu > 0 {
        requests["example.com/gpu"] = json!(shape.gpu.to_string());
    }
    let mut spec = json!({
        "containers": [{"name": "c", "ports": ports, "resources": {"requests": requests}}],
    });
    if let Some(zone) = shape.zone {
        spec["nodeSelector"] = json!({"zone": zone.to_string()});
    }
    if shape.tolerates {
        spec["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
    }
    let near = |app: u8| {
        let selector = json!({"matchLabels": {"app": app.to_string()}});
        json!({"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "zone", "labelSelector": selector}]})
    };
    if let Some(app) = shape.repels {
        spec["affinity"]["podAntiAffinity"] = near(app);
    }
    if let Some(app) = shape.attracts {
        spec["affinity"]["podAffinity"] = near(app);
    }
    if let Some(zone) = shape.avoids {
        spec["affinity"]["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "zone", "operator": "NotIn", "values": [zone.to_string()]}]}]}});
    }
    if let Some(Spread { zones, skew }) = shape.spread {
        let key = if zones { "zone" } else { "kubernetes.io/hostname" };
        spec["topologySpreadConstraints"] = json!([{"topologyKey": key, "maxSkew": skew,
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": shape.app.to_string()}}}]);
    }
    if let Some(disk) = shape.disk {
        let claim = json!({"claimName": format!("claim-{disk}")});
        spec["volumes"] = json!([{"name": "v", "persistentVolumeClaim": claim}]);
    }
    let labels = json!({"app": shape.app.to_string()});
    pod(&format!("p{index}"), json!({"metadata": {"labels": labels}, "spec": spec}))
}

/// The claims that pods may have, and their volumes.
fn disks() -> Arc<Volumes> {
    let claim = |disk: u8| {
        let mode = if disk == 2 { "ReadWriteOncePod" } else { "ReadWriteMany" };
        json!({"metadata": {"name": format!("claim-{disk}"), "namespace": "default",
                "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"accessModes": [mode], "volumeName": format!("volume-{disk}")},
            "status": {"phase": "Bound"}})
    };
    let volume = |disk: u8| {
        let mut volume = json!({"metadata": {"name": format!("volume-{disk}")}, "spec": {}});
        if disk < 2 {
            volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [{"matchExpressions":
                [{"key": "zone", "operator": "In", "values": [disk.to_string()]}]}]}});
        }
        volume
    };
    let all = [0, 1, 2];
    volumes(json!(all.map(claim)), json!(all.map(volume)), json!([]))
}

/// Whether the pod may be on the node by the node's zone alone.
fn in_place(pod: &PodShape, node: &NodeShape) -> bool {
    pod.zone.is_none_or(|zone| zone == node.zone) && pod.avoids != Some(node.zone)
}

/// Whether pods of the application stay spread with one more on the node at `at`. Of the nodes those count that
/// the pod itself could choose by their labels.
fn stays_spread(
    pod: &PodShape,
    Spread { zones, skew }: Spread,
    at: usize,
    nodes: &[NodeShape],
    placed: &[(PodShape, usize)],
) -> bool {
    let domain = |at: usize| if zones { usize::from(nodes[at].zone) } else { at };
    let counted: Vec<usize> = (0..nodes.len()).filter(|at| in_place(pod, &nodes[*at])).collect();
    let same = |of: usize| {
        let there = placed.iter().filter(|(other, place)| {
            other.app == pod.app && counted.contains(place) && domain(*place) == of
        });
        there.count() as i64
    };
    let least = counted.iter().map(|at| same(domain(*at))).min().unwrap_or(0);
    same(domain(at)) + 1 - least <= skew
}

/// The rules once more, over shapes, as plainly as they can be put.
fn allowed(pod: &PodShape, at: usize, nodes: &[NodeShape], placed: &[(PodShape, usize)]) -> bool {
    let node = &nodes[at];
    let on_node = || placed.iter().filter(|(_, place)| *place == at).map(|(pod, _)| pod);
    let in_zone =
        || placed.iter().filter(|(_, place)| nodes[*place].zone == node.zone).map(|(pod, _)| pod);
    let fits = |wanted: i64, there: i64, of: fn(&PodShape) -> i64| {
        wanted == 0 || wanted <= there - on_node().map(of).sum::<i64>()
    };
    let clash = |other: &PodShape| {
        pod.port.is_some()
            && other.port == pod.port
            && (other.local == pod.local || !(other.local && pod.local))
    };
    let is_app = |app: u8| move |other: &PodShape| other.app == app;
    // The first of its kind may begin anywhere.
    let alone = |app: u8| app == pod.app && !placed.iter().any(|(other, _)| other.app == app);
    !node.cordoned
        && (!node.tainted || pod.tolerates)
        && in_place(pod, node)
        && (on_node().count() as i64) < node.pods
        && fits(pod.cpu, node.cpu, |other| other.cpu)
        && fits(pod.memory, node.memory, |other| other.memory)
        && fits(pod.gpu, node.gpu, |other| other.gpu)
        && !on_node().any(clash)
        && in_zone().all(|other| other.repels != Some(pod.app) && pod.repels != Some(other.app))
        && pod.attracts.is_none_or(|app| in_zone().any(is_app(app)) || alone(app))
        && pod.spread.is_none_or(|spread| stays_spread(pod, spread, at, nodes, placed))
        && match pod.disk {
            Some(2) => !placed.iter().any(|(other, _)| other.disk == Some(2)),
            Some(zone) => zone == node.zone,
            None => true,
        }
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
        cluster.volumes = disks();
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
        cluster.volumes = disks();
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
            let view = View { profile: &profile, cluster: &cluster, nominated: &nominated, budgets: &[], start: 0 };
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

    /// Whoever remembers what was judged of nodes before decides as one who does not.
    #[test]
    fn what_was_judged_before_changes_no_decision(
        nodes in proptest::collection::vec(node_shape(), 1..7),
        kinds in proptest::collection::vec(pod_shape(), 1..4),
        steps in proptest::collection::vec((0..4_usize, 0..8_u8, node_shape()), 1..40),
    ) {
        let built = nodes.iter().enumerate().map(|(index, shape)| build_node(index, shape));
        let mut cluster: Cluster = cluster(built, []);
        cluster.volumes = disks();
        let (profile, nominated) = (profile(), Nominated::new());
        let mut rotation = Rotation::default();
        for (index, (kind, what, shape)) in steps.into_iter().enumerate() {
            match what {
                0 => cluster.set_node(build_node(kind, &shape)),
                1 => drop(cluster.remove_node(&format!("n{kind}"))),
                2 => {
                    let there = cluster.nodes().iter().flat_map(|node| &node.pods).next().cloned();
                    there.inspect(|pod| cluster.remove_pod(&pod.node_name, &pod.uid));
                }
                _ => {
                    let pod = build_pod(index, &kinds[kind % kinds.len()]);
                    let mut afresh = rotation.afresh();
                    let want = schedule(&profile, &pod, &cluster, &nominated, &mut afresh);
                    let got = schedule(&profile, &pod, &cluster, &nominated, &mut rotation);
                    prop_assert_eq!(&got, &want);
                    if let Ok(placement) = got {
                        cluster.add_pod(Arc::new(pod.on(&placement.node)));
                    }
                }
            }
        }
    }

    /// Pods come and go, nodes too: the sums over the pods of a node stay right.
    #[test]
    fn the_picture_stays_true(
        steps in proptest::collection::vec((0..3_usize, pod_shape(), prop::bool::ANY), 1..40),
    ) {
        let shape = NodeShape { cpu: 100, memory: 100, gpu: 100, pods: 100, zone: 0, tainted: false, cordoned: false };
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
            let mut asked = scheduler::resource::Resource::default();
            for pod in &own {
 asked.add(&pod.requests);
}
            for resource in ["cpu", "memory", "example.com/gpu"] {
                let (known, want) = (node.requested.amount(resource), asked.amount(resource));
                prop_assert_eq!(known, want, "{}", resource);
            }
            let ports: usize = own.iter().map(|pod| pod.host_ports.len()).sum();
            prop_assert_eq!(node.host_ports.len(), ports);
            let grouped: i64 = node.groups.iter().map(|group| group.count).sum();
            prop_assert_eq!(grouped, own.len() as i64);
        }
        let nearby = present.iter().any(|pod| {
            !pod.affinities.required_anti.is_empty() || !pod.affinities.required.is_empty()
        });
        prop_assert_eq!(cluster.has_affine_pods(), nearby);
        let repelling = present.iter().any(|pod| !pod.affinities.required_anti.is_empty());
        prop_assert_eq!(cluster.has_anti_affine_pods(), repelling);
    }
}
