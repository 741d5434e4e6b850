//! Which events may help a pod that a plugin has refused. The cases are those that upstream documents for
//! its queueing hints (`isSchedulableAfter…` of `pkg/scheduler/framework/plugins`).

mod support;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use scheduler::framework::Event;
use scheduler::pod::PodInfo;
use scheduler::volumes::{Changed, StorageChange, Volumes};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::{asking, node, pod, profile};

fn object<K: DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).expect("an object"))
}

/// A change from one state to another; null stands for one that was not there.
fn changed<K: DeserializeOwned>(old: Value, new: Value) -> Changed<K> {
    Changed { old: (!old.is_null()).then(|| object(old)), new: object(new) }
}

fn storage<K: DeserializeOwned>(
    kind: fn(Changed<K>) -> StorageChange,
    old: Value,
    new: Value,
) -> Event {
    Event::StorageChanged(kind(changed(old, new)))
}

fn helps(plugin: &str, pod: &PodInfo, event: &Event) -> bool {
    profile().plugin(plugin).expect("a plugin").may_help(event, pod)
}

fn check(plugin: &str, pod: &PodInfo, cases: Vec<(&str, Event, bool)>) {
    for (what, event, want) in cases {
        assert_eq!(helps(plugin, pod, &event), want, "{plugin}: {what}");
    }
}

fn using(claim: &str) -> Value {
    json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]})
}

fn claim(namespace: &str, name: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name}})
}

fn claim_event(old: Value, new: Value) -> Event {
    storage::<PersistentVolumeClaim>(StorageChange::Claim, old, new)
}

fn node_event(old: Value, new: Value) -> Event {
    match old {
        Value::Null => Event::NodeAdded(node("n", new)),
        old => Event::NodeUpdated { old: node("n", old), new: node("n", new) },
    }
}

fn labelled(labels: Value) -> Value {
    json!({"metadata": {"labels": labels}})
}

#[test]
fn volume_binding() {
    let waiting = pod("p", json!({"spec": using("data")}));
    let ephemeral = json!({"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]});
    let ephemeral = pod("p", json!({"spec": ephemeral}));
    let volume =
        |size: &str| json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": size}}});
    let class = |zones: Value| {
        json!({"metadata": {"name": "c"}, "provisioner": "d", "allowedTopologies": [
            {"matchLabelExpressions": [{"key": "zone", "values": zones}]}]})
    };
    let class_event = |old, new| storage::<StorageClass>(StorageChange::Class, old, new);
    let moved = |kinds: &str| {
        json!({"metadata": {"name": "n", "annotations": {
            "storage.alpha.kubernetes.io/migrated-plugins": kinds}}, "spec": {"drivers": []}})
    };
    let csi = |old, new| storage::<CSINode>(StorageChange::Node, old, new);
    let driver =
        |tells: bool| json!({"metadata": {"name": "d"}, "spec": {"storageCapacity": tells}});
    let driver_event = |old, new| storage::<CSIDriver>(StorageChange::Driver, old, new);
    let room = |all: &str, largest: Value| {
        json!({"metadata": {"name": "r", "namespace": "d"}, "storageClassName": "c", "capacity": all,
            "maximumVolumeSize": largest})
    };
    let room_event = |old, new| storage::<CSIStorageCapacity>(StorageChange::Capacity, old, new);
    let own = || claim("default", "data");
    check(
        "VolumeBinding",
        &waiting,
        vec![
            ("its claim comes", claim_event(Value::Null, own()), true),
            ("its claim changes", claim_event(own(), own()), true),
            ("another claim", claim_event(Value::Null, claim("default", "other")), false),
            ("of another namespace", claim_event(Value::Null, claim("other", "data")), false),
            (
                "a volume",
                storage::<PersistentVolume>(StorageChange::Volume, Value::Null, volume("1Gi")),
                true,
            ),
            ("a class comes", class_event(Value::Null, class(json!(["a"]))), true),
            (
                "a class allows more",
                class_event(class(json!(["a"])), class(json!(["a", "b"]))),
                true,
            ),
            (
                "a class allows the same",
                class_event(class(json!(["a"])), class(json!(["a"]))),
                false,
            ),
            ("a node's drivers come", csi(Value::Null, moved("a")), true),
            ("older volumes move to drivers", csi(moved("a"), moved("a,b")), true),
            ("nothing moves", csi(moved("a"), moved("a")), false),
            ("a driver ceases to tell of room", driver_event(driver(true), driver(false)), true),
            ("a driver begins to tell of room", driver_event(driver(false), driver(true)), false),
            ("a driver comes", driver_event(Value::Null, driver(true)), false),
            ("room comes", room_event(Value::Null, room("1Gi", Value::Null)), true),
            ("more room", room_event(room("1Gi", Value::Null), room("2Gi", Value::Null)), true),
            ("less room", room_event(room("2Gi", Value::Null), room("1Gi", Value::Null)), false),
            (
                "more room, not at once",
                room_event(room("1Gi", json!("1Gi")), room("2Gi", json!("1Gi"))),
                false,
            ),
            ("anything", Event::StorageChanged(StorageChange::Any), true),
            ("a node", node_event(Value::Null, json!({})), true),
            (
                "a node elsewhere",
                node_event(labelled(json!({"zone": "a"})), labelled(json!({"zone": "b"}))),
                true,
            ),
            (
                "a node as before",
                node_event(json!({}), json!({"spec": {"unschedulable": true}})),
                false,
            ),
            ("devices", Event::DevicesChanged, false),
            (
                "a pod goes",
                Event::AssignedPodRemoved(pod("q", json!({"spec": using("data")}))),
                false,
            ),
        ],
    );
    let made = claim_event(Value::Null, claim("default", "p-scratch"));
    assert!(helps("VolumeBinding", &ephemeral, &made), "the claim that is made for the pod");
}

#[test]
fn volume_zone() {
    let waiting = pod("p", json!({"spec": using("data")}));
    let volume = |zone: &str| json!({"metadata": {"name": "v", "labels": {"topology.kubernetes.io/zone": zone, "other": zone}}});
    let unlabelled = |other: &str| json!({"metadata": {"name": "v", "labels": {"other": other}}});
    let volumes = |old, new| storage::<PersistentVolume>(StorageChange::Volume, old, new);
    let class = |mode: &str| json!({"metadata": {"name": "c"}, "provisioner": "d", "volumeBindingMode": mode});
    let classes = |old, new| storage::<StorageClass>(StorageChange::Class, old, new);
    check(
        "VolumeZone",
        &waiting,
        vec![
            ("its claim", claim_event(Value::Null, claim("default", "data")), true),
            ("another", claim_event(Value::Null, claim("default", "other")), false),
            ("a volume comes", volumes(Value::Null, volume("a")), true),
            ("it moves", volumes(volume("a"), volume("b")), true),
            (
                "the same zones in another order are others",
                volumes(volume("a__b"), volume("b__a")),
                true,
            ),
            ("it stays", volumes(unlabelled("a"), unlabelled("b")), false),
            ("a class that binds late", classes(Value::Null, class("WaitForFirstConsumer")), true),
            ("one that binds at once", classes(Value::Null, class("Immediate")), false),
            (
                "one that was there",
                classes(class("WaitForFirstConsumer"), class("WaitForFirstConsumer")),
                false,
            ),
            ("a node", node_event(Value::Null, json!({})), true),
            ("a node as before", node_event(json!({}), json!({})), false),
        ],
    );
}

#[test]
fn volume_restrictions() {
    let disk = |name: &str, reads: bool| json!({"volumes": [{"name": "v", "gcePersistentDisk": {"pdName": name, "readOnly": reads}}]});
    let gone = |namespace: &str, spec: Value| {
        Event::AssignedPodRemoved(pod(
            "q",
            json!({"metadata": {"namespace": namespace}, "spec": spec}),
        ))
    };
    check(
        "VolumeRestrictions",
        &pod("p", json!({"spec": using("data")})),
        vec![
            ("the claim's other user goes", gone("default", using("data")), true),
            ("another claim's", gone("default", using("other")), false),
            ("in another namespace", gone("other", using("data")), false),
            ("one without volumes", gone("default", json!({})), false),
            ("its claim comes", claim_event(Value::Null, claim("default", "data")), true),
            (
                "its claim changes",
                claim_event(claim("default", "data"), claim("default", "data")),
                false,
            ),
            ("another comes", claim_event(Value::Null, claim("default", "other")), false),
        ],
    );
    check(
        "VolumeRestrictions",
        &pod("p", json!({"spec": disk("a", true)})),
        vec![
            ("the writer of its disk goes", gone("default", disk("a", false)), true),
            ("another reader", gone("default", disk("a", true)), false),
            ("another disk", gone("default", disk("b", false)), false),
        ],
    );
}

#[test]
fn node_volume_limits() {
    let told = |drivers: &[(&str, i32)]| {
        let drivers: Vec<Value> = drivers
            .iter()
            .map(|(name, count)| json!({"name": name, "nodeID": "n", "allocatable": {"count": count}}))
            .collect();
        json!({"metadata": {"name": "n"}, "spec": {"drivers": drivers}})
    };
    let csi = |old, new| storage::<CSINode>(StorageChange::Node, old, new);
    let gone = |spec: Value| Event::AssignedPodRemoved(pod("q", json!({"spec": spec})));
    check(
        "NodeVolumeLimits",
        &pod("p", json!({"spec": using("data")})),
        vec![
            ("a pod with a claim goes", gone(using("other")), true),
            ("one without", gone(json!({"volumes": [{"name": "v", "emptyDir": {}}]})), false),
            ("a node's drivers come", csi(Value::Null, told(&[("d", 1)])), true),
            ("more can be attached", csi(told(&[("d", 1)]), told(&[("d", 2)])), true),
            ("another driver", csi(told(&[("d", 1)]), told(&[("d", 1), ("e", 1)])), true),
            ("as many", csi(told(&[("d", 1)]), told(&[("d", 1)])), false),
            ("fewer", csi(told(&[("d", 2)]), told(&[("d", 1)])), false),
            ("its claim comes", claim_event(Value::Null, claim("default", "data")), true),
            (
                "its claim changes",
                claim_event(claim("default", "data"), claim("default", "data")),
                false,
            ),
            ("another claim", claim_event(Value::Null, claim("default", "other")), false),
        ],
    );
}

fn app(name: &str, app: &str, on: &str) -> Arc<PodInfo> {
    pod(name, json!({"metadata": {"labels": {"app": app}}, "spec": {"nodeName": on}}))
}

#[test]
fn pod_topology_spread() {
    let spread = |keys: &[&str], taints: &str| {
        let constraints: Vec<Value> = keys
            .iter()
            .map(|key| {
                json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "DoNotSchedule",
                "nodeTaintsPolicy": taints, "labelSelector": {"matchLabels": {"app": "a"}}})
            })
            .collect();
        pod(
            "p",
            json!({"metadata": {"labels": {"app": "a"}}, "spec": {"topologySpreadConstraints": constraints}}),
        )
    };
    let elsewhere = pod(
        "q",
        json!({"metadata": {"namespace": "other", "labels": {"app": "a"}}, "spec": {"nodeName": "n"}}),
    );
    let both = || labelled(json!({"zone": "1", "host": "h"}));
    let tainted = json!({"metadata": {"labels": {"zone": "1", "host": "h"}},
        "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let updated = |old, new| Event::AssignedPodUpdated { old, new };
    check(
        "PodTopologySpread",
        &spread(&["zone", "host"], "Ignore"),
        vec![
            ("one of its kind comes", Event::PodAssigned(app("q", "a", "n")), true),
            ("another kind", Event::PodAssigned(app("q", "b", "n")), false),
            ("one of another namespace", Event::PodAssigned(elsewhere.clone()), false),
            ("one of its kind goes", Event::AssignedPodRemoved(app("q", "a", "n")), true),
            ("another kind goes", Event::AssignedPodRemoved(app("q", "b", "n")), false),
            ("one becomes its kind", updated(app("q", "b", "n"), app("q", "a", "n")), true),
            ("one ceases to be", updated(app("q", "a", "n"), app("q", "b", "n")), true),
            ("one changes otherwise", updated(app("q", "b", "n"), app("q", "c", "n")), false),
            ("a node with all labels", node_event(Value::Null, both()), true),
            (
                "a node with one of them",
                node_event(Value::Null, labelled(json!({"zone": "1"}))),
                false,
            ),
            ("a node goes", Event::NodeRemoved(node("n", both())), true),
            ("a node that did not count goes", Event::NodeRemoved(node("n", json!({}))), false),
            ("a node begins to count", node_event(labelled(json!({"zone": "1"})), both()), true),
            ("a node ceases to count", node_event(both(), labelled(json!({"zone": "1"}))), true),
            ("a node moves", node_event(both(), labelled(json!({"zone": "2", "host": "h"}))), true),
            (
                "a node gets another label",
                node_event(both(), labelled(json!({"zone": "1", "host": "h", "x": "y"}))),
                false,
            ),
            ("a node gets a taint", node_event(both(), tainted.clone()), true),
            (
                "one that does not count gets a taint",
                node_event(json!({}), json!({"spec": tainted["spec"]})),
                false,
            ),
            ("storage", Event::StorageChanged(StorageChange::Any), false),
        ],
    );
    let tolerating = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"tolerations": [{"operator": "Exists"}]}});
    let itself = || Event::Itself { old: app("p", "a", ""), new: pod("p", tolerating.clone()) };
    check(
        "PodTopologySpread",
        &spread(&["zone"], "Honor"),
        vec![("it tolerates more", itself(), true)],
    );
    check(
        "PodTopologySpread",
        &spread(&["zone"], "Ignore"),
        vec![("that does not matter", itself(), false)],
    );
}

#[test]
fn inter_pod_affinity() {
    let wanting = |kind: &str| {
        let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "a"}}}]);
        let terms = json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": term}});
        pod("p", json!({"spec": {"affinity": terms}}))
    };
    let updated = |old, new| Event::AssignedPodUpdated { old, new };
    let zone = |zone: &str| labelled(json!({"zone": zone}));
    check(
        "InterPodAffinity",
        &wanting("podAffinity"),
        vec![
            ("one becomes what it wants", updated(app("q", "b", "n"), app("q", "a", "n")), true),
            ("one ceases to be", updated(app("q", "a", "n"), app("q", "b", "n")), false),
            ("one changes otherwise", updated(app("q", "b", "n"), app("q", "c", "n")), false),
            ("a node in a zone", node_event(Value::Null, zone("1")), true),
            ("a node in none", node_event(Value::Null, json!({})), false),
            ("a node moves", node_event(zone("1"), zone("2")), true),
            ("a node outside of zones", node_event(json!({}), labelled(json!({"x": "y"}))), false),
        ],
    );
    check(
        "InterPodAffinity",
        &wanting("podAntiAffinity"),
        vec![
            ("one becomes what it shuns", updated(app("q", "b", "n"), app("q", "a", "n")), false),
            ("one ceases to be", updated(app("q", "a", "n"), app("q", "b", "n")), true),
            ("a node in a zone", node_event(Value::Null, zone("1")), true),
        ],
    );
    check(
        "InterPodAffinity",
        &pod("p", json!({})),
        vec![("any node", node_event(Value::Null, json!({})), true)],
    );
}

#[test]
fn nodes() {
    let selecting = pod("p", json!({"spec": {"nodeSelector": {"disk": "ssd"}}}));
    let disk = |disk: &str| labelled(json!({"disk": disk}));
    let more = pod(
        "p",
        json!({"metadata": {"annotations": {"x": "y"}}, "spec": {"nodeSelector": {"disk": "ssd"}}}),
    );
    let narrowed = pod("p", json!({"spec": {"nodeSelector": {"disk": "ssd", "zone": "1"}}}));
    check(
        "NodeAffinity",
        &selecting,
        vec![
            ("a node that matches", node_event(Value::Null, disk("ssd")), true),
            ("one that does not", node_event(Value::Null, disk("hdd")), false),
            ("one that begins to", node_event(disk("hdd"), disk("ssd")), true),
            (
                "one that matched before",
                node_event(disk("ssd"), labelled(json!({"disk": "ssd", "x": "y"}))),
                false,
            ),
            (
                "the pod changes otherwise",
                Event::Itself { old: selecting.clone(), new: more },
                false,
            ),
            ("the pod is narrowed", Event::Itself { old: selecting.clone(), new: narrowed }, true),
        ],
    );
    let cordoned = |cordoned: bool| json!({"spec": {"unschedulable": cordoned}});
    let tolerating = pod("p", json!({"spec": {"tolerations": [{"operator": "Exists"}]}}));
    let plain = pod("p", json!({}));
    check(
        "NodeUnschedulable",
        &plain,
        vec![
            ("a node", node_event(Value::Null, cordoned(false)), true),
            ("a cordoned one", node_event(Value::Null, cordoned(true)), false),
            ("uncordoned", node_event(cordoned(true), cordoned(false)), true),
            ("cordoned", node_event(cordoned(false), cordoned(true)), false),
            ("as before", node_event(cordoned(false), cordoned(false)), false),
        ],
    );
    let learned = Event::Itself { old: plain.clone(), new: tolerating.clone() };
    assert!(helps("NodeUnschedulable", &tolerating, &learned));
    let same = Event::Itself { old: tolerating.clone(), new: tolerating.clone() };
    assert!(!helps("NodeUnschedulable", &tolerating, &same));
    let tainted = |value: &str| json!({"spec": {"taints": [{"key": "k", "value": value, "effect": "NoSchedule"}]}});
    let own = pod("p", json!({"spec": {"tolerations": [{"key": "k", "value": "v"}]}}));
    check(
        "TaintToleration",
        &own,
        vec![
            ("a node that it tolerates", node_event(Value::Null, tainted("v")), true),
            ("one that it does not", node_event(Value::Null, tainted("w")), false),
            ("a taint changes", node_event(tainted("w"), tainted("v")), true),
            ("tolerated before", node_event(tainted("v"), json!({})), false),
        ],
    );
    let size = |cpu: &str| json!({"status": {"allocatable": {"cpu": cpu}}});
    check(
        "NodeResourcesFit",
        &pod("p", json!({"spec": asking("3", "1Gi")})),
        vec![
            ("a large node", node_event(Value::Null, size("4")), true),
            ("a small one", node_event(Value::Null, size("2")), false),
            ("one that grows", node_event(size("2"), size("4")), true),
            ("one that grows too little", node_event(size("1"), size("2")), false),
            ("one that stays", node_event(size("4"), size("4")), false),
            ("a pod goes", Event::AssignedPodRemoved(app("q", "a", "n")), true),
            ("a pod comes", Event::PodAssigned(app("q", "a", "n")), false),
        ],
    );
}

#[test]
fn node_declared_features() {
    let rules =
        json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
    let container = json!({"name": "c", "image": "app", "restartPolicyRules": rules});
    let needing = pod("p", json!({"spec": {"containers": [container]}}));
    let able = || json!({"status": {"declaredFeatures": ["RestartAllContainersOnContainerExits", "Other"]}});
    check(
        "NodeDeclaredFeatures",
        &needing,
        vec![
            ("a node that can", node_event(Value::Null, able()), true),
            ("one that cannot", node_event(Value::Null, json!({})), false),
            ("one that learns", node_event(json!({}), able()), true),
            ("one that could before", node_event(able(), able()), false),
        ],
    );
    let nodes = || [node("old", json!({})), node("new", able())];
    assert_eq!(support::outcome(&needing, &support::cluster(nodes(), [])), "new");
    assert_eq!(
        support::outcome(&needing, &support::cluster([node("old", json!({}))], [])),
        "0/1 nodes are available: 1 node declared features check failed - unsatisfied requirements: \
         RestartAllContainersOnContainerExits."
    );
}

#[test]
fn dynamic_resources() {
    let waiting = pod(
        "p",
        json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "mine"}]}}),
    );
    let claim = |namespace: &str, name: &str, status: Value| json!({"metadata": {"namespace": namespace, "name": name}, "spec": {}, "status": status});
    let event = |old, new| Event::DeviceClaimChanged(changed::<ResourceClaim>(old, new));
    let has = || json!({"allocation": {"devices": {"results": []}}});
    let mine = |status: Value| claim("default", "mine", status);
    let finalized = json!({"metadata": {"namespace": "default", "name": "mine", "finalizers": ["f"]}, "spec": {}, "status": {}});
    check(
        "DynamicResources",
        &waiting,
        vec![
            ("its claim comes", event(Value::Null, mine(json!({}))), true),
            ("its claim has another status", event(mine(json!({})), mine(has())), true),
            ("its claim changes otherwise", event(mine(json!({})), finalized), false),
            ("another comes", event(Value::Null, claim("default", "other", json!({}))), false),
            ("of another namespace", event(Value::Null, claim("other", "mine", json!({}))), false),
            (
                "another gives devices back",
                event(claim("other", "other", has()), claim("other", "other", json!({}))),
                true,
            ),
            (
                "another gets devices",
                event(claim("other", "other", json!({})), claim("other", "other", has())),
                false,
            ),
            ("devices come", Event::DevicesChanged, true),
            ("a node", node_event(Value::Null, json!({})), true),
            (
                "a node grows",
                node_event(json!({}), json!({"status": {"allocatable": {"x.io/y": "1"}}})),
                true,
            ),
            (
                "a node as before",
                node_event(json!({}), json!({"spec": {"unschedulable": true}})),
                false,
            ),
        ],
    );
}

#[test]
fn what_is_told_of_storage_is_taken_over() {
    use client::Change;
    use scheduler::volumes::Told;
    let mut volumes = Volumes::default();
    let volume = |claimed: bool| -> Arc<PersistentVolume> {
        let reference = claimed.then(|| json!({"name": "data", "namespace": "default"}));
        object(json!({"metadata": {"name": "v"}, "spec": {"claimRef": reference}}))
    };
    let claimed = |volumes: &Volumes| {
        volumes.volumes.get("v").map(|v| v.spec.as_ref().is_some_and(|s| s.claim_ref.is_some()))
    };
    let reserved = [("v".to_owned(), volume(true))].into();
    let none = std::collections::HashMap::new();
    let told = |claimed| Told::Volume(Change::Applied(volume(claimed)));
    let change = volumes.follow(told(false), &none);
    assert!(matches!(change, Some(StorageChange::Volume(Changed { old: None, .. }))));
    assert_eq!(claimed(&volumes), Some(false));
    let change = volumes.follow(told(false), &reserved);
    assert!(matches!(change, Some(StorageChange::Volume(Changed { old: Some(_), .. }))));
    assert_eq!(claimed(&volumes), Some(true), "it is set aside");
    assert!(volumes.follow(Told::Volume(Change::Deleted(volume(false))), &none).is_none());
    assert_eq!(claimed(&volumes), None);
    let claim: Arc<PersistentVolumeClaim> = object(claim("default", "data"));
    volumes.follow(Told::Claim(Change::Applied(claim)), &none);
    assert!(volumes.claim("default", "data").is_some());
    assert!(Told::Claim(Change::Synced).is_resync());
}
