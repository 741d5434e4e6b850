//! The decision, case by case, with upstream's messages.

mod support;

use scheduler::preemption::{Preemption, View, preempt};
use scheduler::schedule::{Failure, Nominated, Rotation, schedule};
use serde_json::{Value, json};
use support::{asking, cluster, configured, decide, node, outcome, pod, profile};

/// One node, one pod: the message when it does not fit.
#[test]
fn filters_speak_upstreams_words() {
    let taint =
        |effect: &str| json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": effect}]}});
    let tolerating = |over: Value| json!({"spec": {"tolerations": [over]}});
    let selecting = |over: Value| json!({"spec": {"nodeSelector": over}});
    let terms = |terms: Value| {
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": terms}}}}})
    };
    let expression = |key: &str, operator: &str, values: &[&str]| {
        terms(json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]))
    };
    let none = || json!({});
    let labelled = || json!({"metadata": {"labels": {"disk": "ssd", "size": "7"}}});
    let affinity = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.";
    let tainted = "0/1 nodes are available: 1 node(s) had untolerated taint(s).";
    let fits = "n";
    let cases: Vec<(Value, Value, &str)> = vec![
        (none(), none(), fits),
        (none(), json!({"spec": asking("4", "8Gi")}), fits),
        (
            none(),
            json!({"spec": asking("5", "1Gi")}),
            "0/1 nodes are available: 1 Insufficient cpu.",
        ),
        (
            none(),
            json!({"spec": asking("5", "9Gi")}),
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
        ),
        (
            json!({"status": {"allocatable": {"pods": "0"}}}),
            none(),
            "0/1 nodes are available: 1 Too many pods.",
        ),
        (
            none(),
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}}),
            "0/1 nodes are available: 1 Insufficient example.com/gpu.",
        ),
        (
            json!({"status": {"allocatable": {"example.com/gpu": "1"}}}),
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}}),
            fits,
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            none(),
            "0/1 nodes are available: 1 node(s) were unschedulable.",
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            tolerating(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"})),
            fits,
        ),
        (taint("NoSchedule"), none(), tainted),
        (taint("NoExecute"), none(), tainted),
        (taint("PreferNoSchedule"), none(), fits),
        (taint("NoSchedule"), tolerating(json!({"operator": "Exists"})), fits),
        (taint("NoSchedule"), tolerating(json!({"key": "k", "value": "v"})), fits),
        (taint("NoSchedule"), tolerating(json!({"key": "k", "value": "w"})), tainted),
        (
            taint("NoSchedule"),
            tolerating(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})),
            tainted,
        ),
        (labelled(), selecting(json!({"disk": "ssd"})), fits),
        (labelled(), selecting(json!({"disk": "hdd"})), affinity),
        (labelled(), expression("disk", "In", &["hdd", "ssd"]), fits),
        (labelled(), expression("disk", "NotIn", &["ssd"]), affinity),
        (labelled(), expression("none", "NotIn", &["ssd"]), fits),
        (labelled(), expression("disk", "Exists", &[]), fits),
        (labelled(), expression("disk", "DoesNotExist", &[]), affinity),
        (labelled(), expression("size", "Gt", &["6"]), fits),
        (labelled(), expression("size", "Lt", &["7"]), affinity),
        (labelled(), terms(json!([{}])), affinity),
        (
            none(),
            terms(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
            ),
            fits,
        ),
        (
            none(),
            terms(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]),
            ),
            "0/1 nodes are available: 1 node(s) didn't satisfy plugin(s) [NodeAffinity].",
        ),
    ];
    for (node_over, pod_over, want) in cases {
        let told = format!("{node_over} {pod_over}");
        let got = outcome(&pod("p", pod_over), &cluster([node("n", node_over)], []));
        assert_eq!(got, want, "{told}");
    }
}

#[test]
fn host_ports_are_one_pods() {
    let on = |ports: Value| {
        let spec = json!({"nodeName": "n", "containers": [{"name": "c", "ports": ports}]});
        cluster([node("n", json!({}))], [pod("other", json!({"spec": spec}))])
    };
    let taken =
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    let cases = [
        (json!([{"hostPort": 80}]), json!([{"hostPort": 80}]), taken),
        (json!([{"hostPort": 80}]), json!([{"hostPort": 81}]), "n"),
        (json!([{"hostPort": 80, "protocol": "UDP"}]), json!([{"hostPort": 80}]), "n"),
        (
            json!([{"hostPort": 80, "hostIP": "10.0.0.1"}]),
            json!([{"hostPort": 80, "hostIP": "10.0.0.2"}]),
            "n",
        ),
        (json!([{"hostPort": 80, "hostIP": "10.0.0.1"}]), json!([{"hostPort": 80}]), taken),
        (json!([{"containerPort": 80}]), json!([{"containerPort": 80}]), "n"),
    ];
    for (other, own, want) in cases {
        let told = format!("{other} {own}");
        let wanting = pod("p", json!({"spec": {"containers": [{"name": "c", "ports": own}]}}));
        assert_eq!(outcome(&wanting, &on(other)), want, "{told}");
    }
}

#[test]
fn without_nodes_there_is_nothing_to_choose() {
    assert_eq!(
        outcome(&pod("p", json!({})), &cluster([], [])),
        "no nodes available to schedule pods"
    );
}

#[test]
fn reasons_are_counted_over_nodes() {
    let nodes = [
        node("a", json!({"spec": {"unschedulable": true}})),
        node("b", json!({"status": {"allocatable": {"cpu": "1"}}})),
        node("c", json!({"status": {"allocatable": {"cpu": "1"}}})),
    ];
    let got = outcome(&pod("p", json!({"spec": asking("2", "1Gi")})), &cluster(nodes, []));
    assert_eq!(got, "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.");
}

#[test]
fn scores_choose_the_better_node() {
    let two = |a: Value, b: Value| [node("a", a), node("b", b)];
    let none = || json!({});
    let asks = || json!({"spec": asking("1", "1Gi")});
    let wish = json!({"spec": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}}});
    let held = json!({"status": {"images": [{"names": ["docker.io/app:latest", "app:latest"], "sizeBytes": 600 << 20}]}});
    let avoided = json!({"spec": {"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}});
    let cases = [
        // LeastAllocated: the larger node is emptier.
        (
            two(none(), json!({"status": {"allocatable": {"cpu": "8", "memory": "16Gi"}}})),
            asks(),
            "b",
        ),
        // BalancedAllocation breaks what LeastAllocated leaves even.
        (
            two(json!({"status": {"allocatable": {"cpu": "2", "memory": "64Gi"}}}), none()),
            asks(),
            "b",
        ),
        (two(none(), json!({"metadata": {"labels": {"disk": "ssd"}}})), wish, "b"),
        (two(none(), held), none(), "b"),
        (two(avoided, none()), none(), "b"),
    ];
    for (nodes, pod_over, want) in cases {
        let told = format!("{pod_over}");
        assert_eq!(outcome(&pod("p", pod_over), &cluster(nodes, [])), want, "{told}");
    }
}

#[test]
fn pods_attract_and_repel() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    let nodes = || [node("a", zone("1")), node("b", zone("2"))];
    let labelled = |name: &str, node: &str, app: &str| {
        pod(name, json!({"metadata": {"labels": {"app": app}}, "spec": {"nodeName": node}}))
    };
    let term = |app: &str| json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": app}}}]);
    let required = |kind: &str, app: &str| {
        json!({"metadata": {"labels": {"app": "own"}}, "spec": {"affinity": {kind:
            {"requiredDuringSchedulingIgnoredDuringExecution": term(app)}}}})
    };
    let there = || cluster(nodes(), [labelled("x", "a", "web")]);
    assert_eq!(outcome(&pod("p", required("podAffinity", "web")), &there()), "a");
    assert_eq!(outcome(&pod("p", required("podAntiAffinity", "web")), &there()), "b");
    assert_eq!(
        outcome(&pod("p", required("podAffinity", "db")), &there()),
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules."
    );
    // The first of its kind may start anywhere.
    assert!(decide(&pod("p", required("podAffinity", "own")), &there()).is_ok());
    let both = cluster(nodes(), [labelled("x", "a", "web"), labelled("y", "b", "web")]);
    assert_eq!(
        outcome(&pod("p", required("podAntiAffinity", "web")), &both),
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
    );
    let mut repelling = required("podAntiAffinity", "own");
    repelling["spec"]["nodeName"] = json!("a");
    let guarded = cluster([node("a", zone("1"))], [pod("x", repelling)]);
    assert_eq!(
        outcome(&pod("p", json!({"metadata": {"labels": {"app": "own"}}})), &guarded),
        "0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."
    );
    let wish = json!({"spec": {"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight": 100, "podAffinityTerm": term("web")[0]}]}}}});
    let far = cluster(nodes(), [labelled("x", "b", "web")]);
    assert_eq!(outcome(&pod("p", wish), &far), "b");
}

#[test]
fn pods_spread_over_domains() {
    let zone = |zone: &str| json!({"metadata": {"labels": {"zone": zone}}});
    let nodes = || [node("a", zone("1")), node("b", zone("2")), node("c", json!({}))];
    let own = json!({"app": "own"});
    let spreading = |when: &str| {
        pod(
            "p",
            json!({"metadata": {"labels": own}, "spec": {"topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": own}}]}}),
        )
    };
    let placed = |name: &str, node: &str| {
        pod(name, json!({"metadata": {"labels": own}, "spec": {"nodeName": node}}))
    };
    let uneven = cluster(nodes(), [placed("x", "a")]);
    assert_eq!(outcome(&spreading("DoNotSchedule"), &uneven), "b");
    assert_eq!(outcome(&spreading("ScheduleAnyway"), &uneven), "b");
    let cordoned = json!({"metadata": {"labels": {"zone": "2"}}, "spec": {"unschedulable": true}});
    let stuck = cluster(
        [node("a", zone("1")), node("b", cordoned), node("c", json!({}))],
        [placed("x", "a")],
    );
    assert_eq!(
        outcome(&spreading("DoNotSchedule"), &stuck),
        "0/3 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
         1 node(s) didn't match pod topology spread constraints (missing required label), \
         1 node(s) were unschedulable."
    );
}

#[test]
fn pods_wait_for_their_claims_and_follow_their_volumes() {
    let claiming = || json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}});
    let nodes = || ["a", "b"].map(|name| node(name, json!({})));
    let decided = |claims: Value, volumes: Value, classes: Value| {
        let mut cluster = cluster(nodes(), []);
        cluster.volumes = support::volumes(claims, volumes, classes);
        outcome(&pod("p", claiming()), &cluster)
    };
    let claim = |class: &str, volume: Value| {
        let done = if volume.is_null() {
            json!({})
        } else {
            json!({"pv.kubernetes.io/bind-completed": "yes"})
        };
        json!([{"metadata": {"namespace": "default", "name": "data", "annotations": done},
            "spec": {"storageClassName": class, "volumeName": volume}}])
    };
    let volume = json!([{"metadata": {"name": "v"}, "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}]}}}}]);
    let late = |provisioner: &str, zone: &str| {
        json!([{"metadata": {"name": "late"}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer", "allowedTopologies": [
                {"matchLabelExpressions": [{"key": "kubernetes.io/hostname", "values": [zone]}]}]}])
    };
    let mut free = volume.clone();
    free[0]["spec"]["storageClassName"] = json!("late");
    free[0]["status"] = json!({"phase": "Available"});
    let mut pending = free.clone();
    pending[0]["status"] = json!({"phase": "Pending"});
    let mut attributed = free.clone();
    attributed[0]["spec"]["volumeAttributesClassName"] = json!("gold");
    // What is set aside for the claim need not be of its class, and leaves it no other choice.
    let mut kept = volume.clone();
    kept[0]["spec"]["claimRef"] = json!({"namespace": "default", "name": "data"});
    let mut anywhere = free[0].clone();
    anywhere["metadata"]["name"] = json!("anywhere");
    anywhere["spec"]["nodeAffinity"] = json!(null);
    kept.as_array_mut().expect("volumes").push(anywhere);
    let mut taken = free.clone();
    taken[0]["spec"]["claimRef"] = json!({"namespace": "default", "name": "other"});
    let mut lost = claim("now", json!("v"));
    lost[0]["status"] = json!({"phase": "Lost"});
    let nothing =
        "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    let by_hand = || late("kubernetes.io/no-provisioner", "a");
    let none = || json!([]);
    let cases = [
        (
            none(),
            none(),
            none(),
            "0/2 nodes are available: persistentvolumeclaim \"data\" not found.",
        ),
        (
            claim("now", json!(null)),
            none(),
            none(),
            "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
        ),
        (
            claim("now", json!("v")),
            none(),
            none(),
            "0/2 nodes are available: persistentvolume \"v\" not found.",
        ),
        (
            lost,
            volume.clone(),
            none(),
            "0/2 nodes are available: persistentvolumeclaim \"data\" bound to non-existent persistentvolume \"v\".",
        ),
        (claim("now", json!("v")), volume, none(), "b"),
        (claim("late", json!(null)), none(), by_hand(), nothing),
        (claim("late", json!(null)), taken, by_hand(), nothing),
        (claim("late", json!(null)), pending, by_hand(), nothing),
        (claim("late", json!(null)), attributed, by_hand(), nothing),
        (claim("late", json!(null)), kept, by_hand(), "b"),
        (claim("late", json!(null)), free, by_hand(), "b"),
        (claim("late", json!(null)), none(), late("x", "a"), "a"),
    ];
    for (claims, volumes, classes, want) in cases {
        assert_eq!(decided(claims, volumes, classes), want);
    }
}

#[test]
fn volumes_have_zones_and_exclusive_users() {
    let zone = |name: &str, zone: &str| {
        node(name, json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}))
    };
    let volume_of =
        || json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    let volume = volume_of();
    let mut other = volume.clone();
    other["nodeName"] = json!("b");
    let storage = |mode: &str, zones: &str| {
        support::volumes(
            json!([{"metadata": {"namespace": "default", "name": "data",
                    "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
                "spec": {"volumeName": "v", "accessModes": [mode]}}]),
            json!([{"metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": zones}}}]),
            json!([]),
        )
    };
    let decided = |mode: &str, zones: &str, user: bool| {
        let user = user.then(|| pod("user", json!({"spec": other})));
        let mut cluster = cluster([zone("a", "east"), zone("b", "west")], user);
        cluster.volumes = storage(mode, zones);
        outcome(&pod("p", json!({"spec": volume})), &cluster)
    };
    assert_eq!(decided("ReadWriteOnce", "west", true), "b");
    assert_eq!(decided("ReadWriteOnce", "north__east", false), "a");
    assert_eq!(
        decided("ReadWriteOnce", "north", false),
        "0/2 nodes are available: 2 node(s) had no available volume zone."
    );
    let old = |key: &str, zones: &str| {
        let mut cluster = cluster([zone("a", "east"), zone("b", "west")], []);
        let mut volumes = scheduler::volumes::Volumes::clone(&storage("ReadWriteOnce", ""));
        let volume = json!({"metadata": {"name": "v", "labels": {key: zones}}});
        let volume = serde_json::from_value(volume).expect("a volume");
        volumes.volumes.insert("v".into(), std::sync::Arc::new(volume));
        cluster.volumes = std::sync::Arc::new(volumes);
        outcome(&pod("p", json!({"spec": volume_of()})), &cluster)
    };
    // Nodes may have the label by its name of today alone, and a label that names nothing says nothing.
    assert_eq!(old("failure-domain.beta.kubernetes.io/zone", "west"), "b");
    assert_eq!(
        old("failure-domain.beta.kubernetes.io/region", "west"),
        "0/2 nodes are available: 2 node(s) had no available volume zone."
    );
    assert!(["a", "b"].contains(&old("topology.kubernetes.io/zone", "north__").as_str()));
    // A claim for one pod is in use wherever its pod is.
    assert_eq!(
        decided("ReadWriteOncePod", "west", true),
        "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
    );
    assert_eq!(decided("ReadWriteOncePod", "west", false), "b");
}

/// What preemption comes to, as text.
fn preempted(pod: &scheduler::pod::PodInfo, cluster: &scheduler::cluster::Cluster) -> String {
    preempted_from(0, pod, cluster)
}

fn preempted_from(
    start: usize,
    pod: &scheduler::pod::PodInfo,
    cluster: &scheduler::cluster::Cluster,
) -> String {
    let Err(Failure::Unfit(unfit)) = decide(pod, cluster) else { panic!("the pod fits") };
    let (profile, nominated) = (profile(), Nominated::new());
    let view = View { profile: &profile, cluster, nominated: &nominated, budgets: &[], start };
    match preempt(view, pod, &unfit) {
        Preemption::Nominate { node, victims } => {
            let names: Vec<&str> = victims.iter().map(|victim| victim.name.as_str()).collect();
            format!("{node}: {}", names.join(" "))
        }
        Preemption::Helpless(message) | Preemption::Ineligible(message) => message,
    }
}

#[test]
fn preemption_removes_the_least_that_is_needed() {
    let placed = |name: &str, node: &str, priority: i32, cpu: &str| {
        let mut spec = asking(cpu, "1Mi");
        spec["nodeName"] = json!(node);
        spec["priority"] = json!(priority);
        pod(name, json!({"spec": spec}))
    };
    let wanting = |priority: i32, cpu: &str| {
        let mut spec = asking(cpu, "1Mi");
        spec["priority"] = json!(priority);
        pod("p", json!({"spec": spec}))
    };
    let one = || [node("a", json!({}))];
    let full = cluster(one(), [placed("x", "a", 0, "2"), placed("y", "a", 5, "2")]);
    assert_eq!(preempted(&wanting(10, "2"), &full), "a: x");
    assert_eq!(preempted(&wanting(10, "3"), &full), "a: y x");
    assert_eq!(
        preempted(&wanting(0, "2"), &full),
        "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    assert_eq!(
        preempted(&wanting(10, "5"), &full),
        "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
    );
    let two = || [node("a", json!({})), node("b", json!({}))];
    let alike = cluster(two(), [placed("x", "a", 0, "4"), placed("y", "b", 0, "4")]);
    for (start, want) in [(0, "a: x"), (1, "b: y"), (2, "a: x"), (7, "b: y")] {
        assert_eq!(preempted_from(start, &wanting(10, "2"), &alike), want, "{start}");
    }
    let choice = cluster(two(), [placed("x", "a", 5, "4"), placed("y", "b", 3, "4")]);
    assert_eq!(preempted(&wanting(10, "2"), &choice), "b: y");
    let mut polite = asking("2", "1Mi");
    polite["priority"] = json!(10);
    polite["preemptionPolicy"] = json!("Never");
    assert_eq!(
        preempted(&pod("p", json!({"spec": polite})), &full),
        "preemption: not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn arguments_change_what_plugins_decide() {
    let args = |plugin: &str, args: &str| {
        configured(&format!("profiles: [{{pluginConfig: [{{name: {plugin}, args: {args}}}]}}]"))
    };
    let placed = |node: &str, cpu: &str| {
        let mut spec = asking(cpu, "1Gi");
        spec["nodeName"] = json!(node);
        pod("other", json!({"spec": spec}))
    };
    let ssd = json!({"metadata": {"labels": {"disk": "ssd"}}});
    let two = || [node("a", json!({})), node("b", ssd.clone())];
    let decided = |profile: &scheduler::framework::Profile, pod, cluster: &_| match schedule(
        profile,
        pod,
        cluster,
        &Nominated::new(),
        &mut Rotation::default(),
    ) {
        Ok(placement) => placement.node,
        Err(failure) => failure.to_string(),
    };
    let plain = pod("p", json!({"spec": asking("1", "1Gi")}));
    let busy = cluster(two(), [placed("a", "1")]);
    assert_eq!(decided(&profile(), &plain, &busy), "b");
    let packing = args(
        "NodeResourcesFit",
        "{scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 1}]}}",
    );
    assert_eq!(decided(&packing, &plain, &busy), "a");
    let empty = cluster([node("a", json!({}))], []);
    let term =
        "{nodeSelectorTerms: [{matchExpressions: [{key: disk, operator: In, values: [ssd]}]}]}";
    let fast = args(
        "NodeAffinity",
        &format!("{{addedAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {term}}}}}"),
    );
    assert_eq!(decided(&fast, &plain, &busy), "b");
    assert_eq!(
        decided(&fast, &plain, &empty),
        "0/1 nodes are available: 1 node(s) didn't match scheduler-enforced node affinity."
    );
    let gpu = pod(
        "p",
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"example.com/gpu": "1"}}}]}}),
    );
    let ignoring = args("NodeResourcesFit", "{ignoredResourceGroups: [example.com]}");
    assert_eq!(decided(&ignoring, &gpu, &empty), "a");
    let blind =
        configured("profiles: [{plugins: {filter: {disabled: [{name: NodeResourcesFit}]}}}]");
    assert_eq!(decided(&blind, &gpu, &empty), "a");
}

#[test]
fn pods_of_a_service_or_set_are_spread_by_themselves() {
    let zone = |name: &str, zone: &str| {
        node(name, json!({"metadata": {"labels": {"topology.kubernetes.io/zone": zone}}}))
    };
    let web = json!({"app": "web"});
    let placed = |name: &str, on: &str| {
        pod(name, json!({"metadata": {"labels": web}, "spec": {"nodeName": on}}))
    };
    let wanting = pod("p", json!({"metadata": {"labels": web}}));
    // The fuller node is the emptier in memory, so that only spreading speaks for the other zone.
    let mut picture = cluster(
        [zone("a", "1"), zone("b", "1"), zone("c", "2")],
        [placed("x", "a"), placed("y", "b")],
    );
    let labels = std::collections::BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    let mut owners = scheduler::owners::Owners::default();
    owners.set_service(("default".into(), "web".into()), Some(labels));
    picture.owners = std::sync::Arc::new(owners);
    assert_eq!(outcome(&wanting, &picture), "c");
    let mut constrained = configured(
        "profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultingType: List, \
         defaultConstraints: [{maxSkew: 1, topologyKey: rack, whenUnsatisfiable: DoNotSchedule}]}}]}]",
    );
    constrained.preemption = None;
    let failure =
        schedule(&constrained, &wanting, &picture, &Nominated::new(), &mut Rotation::default());
    assert_eq!(
        failure.expect_err("no node has the label").to_string(),
        "0/3 nodes are available: 3 node(s) didn't match pod topology spread constraints (missing required label)."
    );
}

#[test]
fn drivers_attach_only_so_many_volumes() {
    let claim = |name: &str| {
        json!({"metadata": {"namespace": "default", "name": name,
                "annotations": {"pv.kubernetes.io/bind-completed": "yes"}},
            "spec": {"volumeName": name}})
    };
    let volume = |name: &str| json!({"metadata": {"name": name}, "spec": {"csi": {"driver": "d", "volumeHandle": name}}});
    let using = |name: &str, claim: &str, on: Value| {
        let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]);
        pod(name, json!({"spec": {"volumes": volumes, "nodeName": on}}))
    };
    let full = "0/1 nodes are available: 1 node(s) exceed max volume count.";
    for (limit, wanted, left, want) in [
        (1, "w", None, full),
        (2, "w", None, "n"),
        (1, "v", None, "n"),
        // A volume of a pod that is gone is attached as long as the attachment is there.
        (2, "w", Some(("u", "n")), full),
        (3, "w", Some(("u", "n")), "n"),
        (2, "w", Some(("u", "m")), "n"),
        (2, "w", Some(("w", "n")), "n"),
        (2, "w", Some(("v", "n")), "n"),
    ] {
        let mut picture = cluster([node("n", json!({}))], [using("other", "v", json!("n"))]);
        let mut volumes = scheduler::volumes::Volumes::clone(&support::volumes(
            json!([claim("v"), claim("w")]),
            json!([volume("u"), volume("v"), volume("w")]),
            json!([]),
        ));
        let told = json!({"metadata": {"name": "n"}, "spec": {"drivers": [
            {"name": "d", "nodeID": "n", "allocatable": {"count": limit}}]}});
        let told = serde_json::from_value(told).expect("a CSINode");
        volumes.nodes.insert("n".into(), std::sync::Arc::new(told));
        if let Some((volume, node)) = left {
            let left = json!({"metadata": {"name": "a"}, "spec": {"attacher": "d",
                "nodeName": node, "source": {"persistentVolumeName": volume}}});
            let left = serde_json::from_value(left).expect("an attachment");
            volumes.attachments.insert("a".into(), std::sync::Arc::new(left));
        }
        picture.volumes = std::sync::Arc::new(volumes);
        assert_eq!(outcome(&using("p", wanted, json!(null)), &picture), want, "{limit} {wanted}");
    }
}

#[test]
fn volumes_are_made_where_their_driver_has_room() {
    let spec = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    let zone = |name: &str, zone: &str| node(name, json!({"metadata": {"labels": {"zone": zone}}}));
    let decided = |asked: &str, tells: bool| {
        let mut picture = cluster([zone("a", "1"), zone("b", "2")], []);
        let mut volumes = scheduler::volumes::Volumes::clone(&support::volumes(
            json!([{"metadata": {"namespace": "default", "name": "data"}, "spec": {
                "storageClassName": "late", "resources": {"requests": {"storage": asked}}}}]),
            json!([]),
            json!([{"metadata": {"name": "late"}, "provisioner": "d",
                "volumeBindingMode": "WaitForFirstConsumer"}]),
        ));
        let driver = json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": tells}});
        let driver = serde_json::from_value(driver).expect("a driver");
        volumes.drivers.insert("d".into(), std::sync::Arc::new(driver));
        let room = |zone: &str, size: &str| {
            let told = json!({"metadata": {"name": zone}, "storageClassName": "late",
                "nodeTopology": {"matchLabels": {"zone": zone}}, "capacity": size});
            std::sync::Arc::new(serde_json::from_value(told).expect("a capacity"))
        };
        for (zone, size) in [("1", "1Gi"), ("2", "10Gi")] {
            volumes.capacities.insert(("d".into(), zone.into()), room(zone, size));
        }
        picture.volumes = std::sync::Arc::new(volumes);
        outcome(&pod("p", json!({"spec": spec})), &picture)
    };
    assert_eq!(decided("5Gi", true), "b");
    assert_eq!(
        decided("50Gi", true),
        "0/2 nodes are available: 2 node(s) did not have enough free storage."
    );
    assert_ne!(
        decided("50Gi", false),
        "0/2 nodes are available: 2 node(s) did not have enough free storage."
    );
}
