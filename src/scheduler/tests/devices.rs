//! Claims of devices: which node a pod goes to, and which devices it gets.

mod support;

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use scheduler::allocation::{Wish, allocate};
use scheduler::cluster::Cluster;
use scheduler::devices::Devices;
use scheduler::node::NodeInfo;
use scheduler::plugins::give_back;
use scheduler::schedule::Failure;
use serde_json::{Value, json};
use support::{cluster, decide, node, outcome, pod};

fn of<K: serde::de::DeserializeOwned>(object: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(object).expect("an object"))
}

fn device(name: &str, model: &str, memory: &str, numa: i64) -> Value {
    json!({"name": name, "attributes": {
            "model": {"string": model}, "numa": {"int": numa}, "driverVersion": {"version": "1.2.0"}},
        "capacity": {"memory": {"value": memory}}})
}

fn slice(node: &str, devices: &[Value]) -> Arc<ResourceSlice> {
    of(json!({"metadata": {"name": node}, "spec": {"driver": "gpu.example.com", "nodeName": node,
        "pool": {"name": node, "generation": 1, "resourceSliceCount": 1}, "devices": devices}}))
}

fn claim(name: &str, devices: Value, status: Value) -> Arc<ResourceClaim> {
    of(json!({"metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
        "spec": {"devices": devices}, "status": status}))
}

fn exactly(more: Value) -> Value {
    let mut request = json!({"deviceClassName": "gpu"});
    for (key, value) in more.as_object().into_iter().flatten() {
        request[key] = value.clone();
    }
    json!({"requests": [{"name": "r", "exactly": request}]})
}

fn choosing(expression: &str) -> Value {
    exactly(json!({"selectors": [{"cel": {"expression": expression}}]}))
}

/// Two nodes: `a` with one small device, `b` with two large ones and one that is like them but apart.
fn devices(claims: &[Arc<ResourceClaim>]) -> Devices {
    let class: Arc<DeviceClass> = of(json!({"metadata": {"name": "gpu"}, "spec": {"selectors": [
        {"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}}));
    let name = |claim: &ResourceClaim| claim.metadata.name.clone().expect("a name");
    Devices {
        claims: claims.iter().map(|c| (("default".into(), name(c)), Arc::clone(c))).collect(),
        slices: vec![
            slice("a", &[device("small", "s", "8Gi", 0)]),
            slice(
                "b",
                &[
                    device("large0", "l", "80Gi", 0),
                    device("large1", "l", "80Gi", 1),
                    device("large2", "l", "80Gi", 1),
                ],
            ),
        ],
        classes: [("gpu".to_owned(), class)].into(),
    }
}

fn given(wanted: Value, others: &[Arc<ResourceClaim>], on: &str) -> Option<String> {
    given_of(&devices(others), wanted, on)
}

fn given_of(devices: &Devices, wanted: Value, on: &str) -> Option<String> {
    let wish = Wish::new(claim("c", wanted, json!(null)), devices).expect("a right claim");
    let node = NodeInfo::new(node(on, json!({})));
    let results = allocate(&[wish], devices, &devices.taken(), &node).ok()?;
    let results = results[0].devices.as_ref()?.results.as_ref()?;
    let named = results.iter().map(|result| format!("{}={}", result.request, result.device));
    Some(named.collect::<Vec<_>>().join(" "))
}

#[test]
fn requests_get_the_devices_they_choose() {
    let held = |device: &str| {
        let result =
            json!({"request": "r", "driver": "gpu.example.com", "pool": "b", "device": device});
        claim("held", exactly(json!({})), json!({"allocation": {"devices": {"results": [result]}}}))
    };
    let same_numa = |requests: Value| json!({"requests": requests, "constraints": [{"matchAttribute": "gpu.example.com/numa"}]});
    let two = exactly(json!({"count": 2}))["requests"].clone();
    let first = json!({"requests": [{"name": "r", "firstAvailable": [
        {"name": "many", "deviceClassName": "gpu", "count": 4},
        {"name": "few", "deviceClassName": "gpu", "count": 1}]}]});
    let cases: Vec<(Value, &[Arc<ResourceClaim>], &str, Option<&str>)> = vec![
        (exactly(json!({})), &[], "a", Some("r=small")),
        (exactly(json!({"count": 2})), &[], "a", None),
        (exactly(json!({"count": 2})), &[], "b", Some("r=large0 r=large1")),
        (exactly(json!({"allocationMode": "All"})), &[], "b", Some("r=large0 r=large1 r=large2")),
        (exactly(json!({})), &[], "c", None),
        (choosing("device.attributes['gpu.example.com'].model == 'l'"), &[], "a", None),
        (choosing("device.attributes['gpu.example.com'].model == 'l'"), &[], "b", Some("r=large0")),
        (
            choosing("device.capacity['gpu.example.com'].memory.compareTo(quantity('10Gi')) > 0"),
            &[],
            "a",
            None,
        ),
        (
            choosing(
                "device.attributes['gpu.example.com'].driverVersion.isGreaterThan(semver('1.1.0'))",
            ),
            &[],
            "a",
            Some("r=small"),
        ),
        // An attribute that is not there ends the search.
        (choosing("device.attributes['gpu.example.com'].color == 'red'"), &[], "a", None),
        (same_numa(two.clone()), &[], "b", Some("r=large1 r=large2")),
        (first, &[], "b", Some("r/few=large0")),
    ];
    for (wanted, others, on, want) in cases {
        let told = format!("{wanted} on {on}");
        assert_eq!(given(wanted, others, on).as_deref(), want, "{told}");
    }
    let taken = [held("large1")];
    assert_eq!(
        given(exactly(json!({"count": 2})), &taken, "b").as_deref(),
        Some("r=large0 r=large2")
    );
    assert_eq!(given(same_numa(two), &taken, "b"), None);
    assert_eq!(given(exactly(json!({"allocationMode": "All"})), &taken, "b"), None);
    let looking_on = exactly(json!({"adminAccess": true, "count": 3}));
    assert_eq!(given(looking_on, &taken, "b").as_deref(), Some("r=large0 r=large1 r=large2"));
}

/// Why the node `on`, which has these devices, cannot satisfy the claim.
fn refusal(devices: &Devices, wanted: Value, on: &str) -> String {
    let wish = Wish::new(claim("c", wanted, json!(null)), devices).expect("a right claim");
    let refused = allocate(&[wish], devices, &devices.taken(), &NodeInfo::new(node(on, json!({}))));
    refused.expect_err("it is refused").into_owned()
}

#[test]
fn all_devices_are_all_that_are_chosen_and_can_do() {
    let of_node = |all: &[Value]| Devices { slices: vec![slice("a", all)], ..devices(&[]) };
    let all = || exactly(json!({"allocationMode": "All"}));
    let mut broken = device("broken", "l", "80Gi", 0);
    broken["taints"] = json!([{"key": "broken", "effect": "NoSchedule"}]);
    let (small, large) = (device("small", "s", "8Gi", 0), device("large", "l", "80Gi", 0));
    let many: Vec<Value> = (0..33).map(|n| device(&format!("d{n}"), "s", "8Gi", 0)).collect();
    let tolerant = json!({"allocationMode": "All", "tolerations": [{"operator": "Exists"}]});
    let capable = json!({"allocationMode": "All", "capacity": {"requests": {"memory": "10Gi"}}});
    for (has, wanted, want) in [
        (vec![small.clone(), large.clone()], all(), Some("r=small r=large")),
        (vec![small.clone(), broken.clone()], all(), None),
        (vec![small.clone(), broken.clone()], exactly(tolerant), Some("r=small r=broken")),
        (vec![broken, small.clone()], exactly(json!({})), Some("r=small")),
        // What has not enough is not asked for.
        (vec![small, large], exactly(capable), Some("r=large")),
        (many.clone(), all(), None),
        (many.clone(), exactly(json!({"count": 33})), None),
    ] {
        assert_eq!(given_of(&of_node(&has), wanted.clone(), "a").as_deref(), want, "{wanted}");
    }
    let most = given_of(&of_node(&many), exactly(json!({"count": 32})), "a").expect("as many");
    assert_eq!(most.split(' ').count(), 32);
}

#[test]
fn a_search_ends_at_what_cannot_be_known() {
    let expression = "device.attributes['gpu.example.com'].color == 'red'";
    let refused = refusal(&devices(&[]), choosing(expression), "a");
    let begin = "claim default/c: selector on device gpu.example.com/a/small: CEL runtime error: ";
    assert!(refused.starts_with(begin), "{refused}");

    let mut partly = devices(&[]);
    let mut slice = ResourceSlice::clone(&partly.slices[1]);
    slice.spec.pool.resource_slice_count = 2;
    partly.slices[1] = Arc::new(slice);
    let all = || exactly(json!({"allocationMode": "All"}));
    assert_eq!(
        refusal(&partly, all(), "b"),
        "claim default/c, request r: asks for all devices, but resource pool gpu.example.com/b is currently being updated"
    );
    assert_eq!(refusal(&partly, exactly(json!({})), "b"), "cannot allocate all claims");
    assert_eq!(given_of(&partly, all(), "a").as_deref(), Some("r=small"));
}

#[test]
fn requests_that_nothing_can_satisfy_say_why() {
    let numa = |requests: Value| json!({"requests": requests, "constraints": [{"matchAttribute": "gpu.example.com/numa"}]});
    let all = || exactly(json!({"allocationMode": "All"}));
    let sub = json!([{"name": "r", "firstAvailable": [
        {"name": "all", "deviceClassName": "gpu", "allocationMode": "All"},
        {"name": "one", "deviceClassName": "gpu"}]}]);
    let many = json!([{"name": "r", "exactly": {"deviceClassName": "gpu", "count": 30}},
        {"name": "s", "firstAvailable": [
            {"name": "more", "deviceClassName": "gpu", "count": 9},
            {"name": "less", "deviceClassName": "gpu", "count": 3}]}]);
    let most = |name: &str| json!({"name": name, "exactly": {"deviceClassName": "gpu", "count": i64::MAX}});
    for (wanted, want) in [
        (
            numa(all()["requests"].clone()),
            "claim default/c, request r: cannot add device gpu.example.com/b/large1 because a claim constraint would not be satisfied",
        ),
        (
            numa(sub),
            "claim default/c, request all: cannot add device gpu.example.com/b/large1 because a claim constraint would not be satisfied",
        ),
        (
            json!({"requests": many}),
            "claim default/c: number of requested devices 33 exceeds the claim limit of 32",
        ),
        (
            json!({"requests": [most("r"), most("s"), most("t")]}),
            "claim default/c: number of requested devices 18446744073709551615 exceeds the claim limit of 32",
        ),
    ] {
        assert_eq!(refusal(&devices(&[]), wanted.clone(), "b"), want, "{wanted}");
    }
}

#[test]
fn pools_that_contradict_themselves_give_nothing() {
    let part = |name: &str, set: &str, counter: &str| {
        json!({"name": name, "consumesCounters": [
            {"counterSet": set, "counters": {(counter): {"value": "1"}}}]})
    };
    let plain = |name: &str| json!({"name": name});
    let set = |name: &str| json!({"name": name, "counters": {"slices": {"value": "7"}}});
    // The slices of pool `p`, with their devices and their sets of counters, beside pool `b` with its three devices.
    let picture = |pool: &[(Vec<Value>, Vec<Value>)]| {
        let mut picture = devices(&[]);
        for (number, (has, counters)) in pool.iter().enumerate() {
            picture.slices.push(of(json!({"metadata": {"name": format!("p{number}")}, "spec": {
                "driver": "gpu.example.com", "allNodes": true, "devices": has,
                "sharedCounters": counters,
                "pool": {"name": "p", "generation": 1, "resourceSliceCount": pool.len()}}})));
        }
        picture
    };
    let invalid = "invalid resource pools were encountered";
    let all = "claim default/c, request r: asks for all devices, but resource pool gpu.example.com/p is currently invalid";
    for (pool, sound) in [
        (vec![(vec![plain("x")], vec![]), (vec![plain("y")], vec![])], true),
        (vec![(vec![plain("x")], vec![]), (vec![plain("x")], vec![])], false),
        (vec![(vec![part("x", "s", "slices")], vec![]), (vec![], vec![set("s")])], true),
        (vec![(vec![part("x", "t", "slices")], vec![]), (vec![], vec![set("s")])], false),
        (vec![(vec![part("x", "s", "memory")], vec![]), (vec![], vec![set("s")])], false),
        (vec![(vec![], vec![set("s")]), (vec![plain("x")], vec![set("s")])], false),
    ] {
        let picture = picture(&pool);
        // What the other pool has can still be had.
        let three = given_of(&picture, exactly(json!({"count": 3})), "b");
        assert_eq!(three.as_deref(), Some("r=large0 r=large1 r=large2"), "{pool:?}");
        assert_eq!(given_of(&picture, exactly(json!({"count": 4})), "b").is_some(), sound);
        if !sound {
            let four = exactly(json!({"count": 4}));
            assert_eq!(refusal(&picture, four, "b"), invalid, "{pool:?}");
            assert_eq!(refusal(&picture, exactly(json!({"allocationMode": "All"})), "b"), all);
        }
    }
}

#[test]
fn devices_that_are_not_ready_at_once_are_given_last() {
    let mut picture = devices(&[]);
    let mut slow = ResourceSlice::clone(&slice("b", &[device("first", "l", "80Gi", 0)]));
    slow.spec.pool.name = "a-fabric".into();
    for device in slow.spec.devices.iter_mut().flatten() {
        device.binding_conditions = Some(vec!["Attached".into()]);
    }
    picture.slices.insert(0, Arc::new(slow));
    assert_eq!(given_of(&picture, exactly(json!({})), "b").as_deref(), Some("r=large0"));
    let four = given_of(&picture, exactly(json!({"count": 4})), "b");
    assert_eq!(four.as_deref(), Some("r=large0 r=large1 r=large2 r=first"));
}

#[test]
fn an_administrator_looks_at_a_device_once() {
    let request = |name: &str, admin: bool, count: i64| {
        json!({"name": name, "exactly":
            {"deviceClassName": "gpu", "adminAccess": admin, "count": count}})
    };
    for (requests, want) in [
        (json!([request("r", true, 3), request("s", true, 1)]), None),
        (json!([request("r", true, 2), request("s", true, 1)]), Some("r=large0 r=large1 s=large2")),
        (json!([request("r", true, 1), request("s", false, 1)]), Some("r=large0 s=large1")),
        (json!([request("s", false, 1), request("r", true, 1)]), Some("s=large0 r=large1")),
        (json!([request("r", true, 3), request("s", false, 1)]), None),
    ] {
        let wanted = json!({"requests": requests});
        assert_eq!(given(wanted, &[], "b").as_deref(), want, "{requests}");
    }
}

#[test]
fn devices_are_set_up_as_class_and_claim_say() {
    let opaque = |name: &str| json!({"driver": "gpu.example.com", "parameters": {"from": name}});
    let class: Arc<DeviceClass> = of(json!({"metadata": {"name": "gpu"},
        "spec": {"config": [{"opaque": opaque("class")}]}}));
    let mut devices = devices(&[]);
    devices.classes.insert("gpu".to_owned(), class);
    let first = json!([{"name": "many", "deviceClassName": "gpu", "count": 9},
        {"name": "few", "deviceClassName": "gpu"}]);
    let exact = json!({"deviceClassName": "gpu"});
    let said =
        |name: &str, requests: &[&str]| json!({"requests": requests, "opaque": opaque(name)});
    let wanted = json!({
        "requests": [{"name": "r", "exactly": exact}, {"name": "s", "firstAvailable": first}],
        "config": [said("all", &[]), said("r", &["r"]), said("s", &["s"]),
            said("many", &["s/many"]), said("few", &["s/few"]), said("both", &["s/many", "s/few"])]});
    let wish = Wish::new(claim("c", wanted, json!(null)), &devices).expect("a right claim");
    let on = NodeInfo::new(node("b", json!({})));
    let result = allocate(&[wish], &devices, &devices.taken(), &on).expect("devices").remove(0);
    let config = result.devices.and_then(|devices| devices.config).expect("configurations");
    let told: Vec<String> = config
        .iter()
        .map(|config| {
            let from = &config.opaque.as_ref().expect("parameters").parameters.0["from"];
            let requests = config.requests.clone().unwrap_or_default().join("+");
            format!("{} {}: {requests}", config.source, from.as_str().unwrap_or_default())
        })
        .collect();
    let want = [
        "FromClass class: r+s/few",
        "FromClaim all: ",
        "FromClaim r: r",
        "FromClaim s: s",
        "FromClaim few: s/few",
        "FromClaim both: s/many+s/few",
    ];
    assert_eq!(told, want);
}

/// Devices of which several have shares, and partitions that draw on the same counters.
fn divided(claims: &[Arc<ResourceClaim>]) -> Devices {
    let part = |name: &str, slices: &str| {
        json!({"name": name, "consumesCounters": [
            {"counterSet": "gpu0", "counters": {"slices": {"value": slices}}}]})
    };
    let shared = json!({"name": "nic", "allowMultipleAllocations": true, "capacity": {"bandwidth": {
        "value": "10G", "requestPolicy": {"default": "1G", "validRange": {"min": "1G", "step": "1G"}}}}});
    let spec = |more: Value| {
        let mut spec = json!({"driver": "gpu.example.com", "nodeName": "a",
            "pool": {"name": "a", "generation": 1, "resourceSliceCount": 2}});
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        of(json!({"metadata": {"name": "s"}, "spec": spec}))
    };
    Devices {
        slices: vec![
            spec(json!({"sharedCounters": [
                {"name": "gpu0", "counters": {"slices": {"value": "7"}}}]})),
            spec(json!({"devices": [
                part("whole", "7"), part("half", "4"), part("third", "3"), part("small", "1"), shared]})),
        ],
        ..devices(claims)
    }
}

#[test]
fn partitions_of_a_device_draw_on_the_same_counters() {
    let held = |device: &str| {
        let result =
            json!({"request": "r", "driver": "gpu.example.com", "pool": "a", "device": device});
        claim("held", exactly(json!({})), json!({"allocation": {"devices": {"results": [result]}}}))
    };
    let named = |names: &str| {
        json!({"selectors": [{"cel": {"expression":
        format!("!device.allowMultipleAllocations && {names}")}}]})
    };
    let any = |count: i64| {
        let mut asked = named("true");
        asked["count"] = count.into();
        exactly(asked)
    };
    for (wanted, others, want) in [
        (any(1), vec![], Some("r=whole")),
        // The whole leaves nothing to the others; the search goes on without it.
        (any(2), vec![], Some("r=half r=third")),
        (any(3), vec![], None),
        (any(1), vec![held("half")], Some("r=third")),
        (any(2), vec![held("third")], None),
        (any(1), vec![held("whole")], None),
    ] {
        let told = format!("{wanted}");
        assert_eq!(given_of(&divided(&others), wanted, "a").as_deref(), want, "{told}");
    }
}

#[test]
fn shares_of_a_device_are_no_more_than_it_has() {
    let nic = |bandwidth: &str, count: i64| {
        exactly(json!({"count": count, "capacity": {"requests": {"bandwidth": bandwidth}},
            "selectors": [{"cel": {"expression": "device.allowMultipleAllocations"}}]}))
    };
    let allocated = |name: &str, wanted: Value, others: &[Arc<ResourceClaim>]| {
        let devices = divided(others);
        let wish = Wish::new(claim(name, wanted.clone(), json!(null)), &devices).expect("a claim");
        let on = NodeInfo::new(node("a", json!({})));
        let result = allocate(&[wish], &devices, &devices.taken(), &on).ok()?.remove(0);
        Some(claim(name, wanted, json!({"allocation": serde_json::to_value(result).ok()?})))
    };
    let results = |claim: &ResourceClaim| {
        let allocation = claim.status.clone().and_then(|status| status.allocation);
        allocation.and_then(|given| given.devices?.results).expect("results")
    };
    let first = allocated("first", nic("5500M", 1), &[]).expect("a share");
    let share = &results(&first)[0];
    let part = share.consumed_capacity.as_ref().map(|part| part["bandwidth"].0.clone());
    assert_eq!(part.as_deref(), Some("6G"));
    assert_eq!(
        share.share_id.as_ref().map(|id| id.split('-').map(str::len).collect()),
        Some(vec![8, 4, 4, 4, 12])
    );

    assert!(allocated("second", nic("5G", 1), &[Arc::clone(&first)]).is_none());
    let second = allocated("second", nic("2G", 2), &[Arc::clone(&first)]).expect("two shares");
    let ids: Vec<_> = results(&second).into_iter().filter_map(|share| share.share_id).collect();
    assert!(ids.len() == 2 && ids[0] != ids[1] && Some(&ids[0]) != share.share_id.as_ref());
    assert!(allocated("third", nic("1G", 1), &[first, second]).is_none());
    assert!(allocated("fourth", nic("11G", 1), &[]).is_none());
}

#[test]
fn a_pod_goes_where_its_devices_are() {
    let using = |name: &str| {
        pod("p", json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}}))
    };
    let picture = |claims: &[Arc<ResourceClaim>]| -> Cluster {
        let mut picture = cluster([node("a", json!({})), node("b", json!({}))], []);
        picture.devices = Arc::new(devices(claims));
        picture
    };
    let large = "device.attributes['gpu.example.com'].model == 'l'";
    let open = claim("open", choosing(large), json!(null));
    assert_eq!(outcome(&using("open"), &picture(&[open])), "b");
    let selector = json!({"nodeSelectorTerms": [{"matchFields": [
        {"key": "metadata.name", "operator": "In", "values": ["a"]}]}]});
    let bound =
        claim("bound", exactly(json!({})), json!({"allocation": {"nodeSelector": selector}}));
    assert_eq!(outcome(&using("bound"), &picture(&[bound])), "a");
    let greedy = claim("greedy", exactly(json!({"count": 9})), json!(null));
    assert_eq!(
        outcome(&using("greedy"), &picture(&[greedy])),
        "0/2 nodes are available: 2 cannot allocate all claims."
    );
    assert_eq!(
        outcome(&using("none"), &picture(&[])),
        "0/2 nodes are available: resourceclaim \"none\" not found."
    );
    let templated = pod(
        "p",
        json!({"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}]}}),
    );
    assert_eq!(
        outcome(&templated, &picture(&[])),
        "0/2 nodes are available: pod \"default/p\": ResourceClaim not created yet for gpu."
    );
}

#[test]
fn devices_stand_in_for_extended_resources() {
    let asking = |name: &str, count: &str| {
        let requests = json!({(name): count});
        pod(
            "p",
            json!({"spec": {"containers": [{"name": "c", "resources": {"requests": requests}}]}}),
        )
    };
    let named: Arc<DeviceClass> = of(
        json!({"metadata": {"name": "gpu"}, "spec": {"extendedResourceName": "example.com/gpu"}}),
    );
    let picture = |nodes: [Value; 2], class: Option<&Arc<DeviceClass>>| -> Cluster {
        let [a, b] = nodes;
        let mut picture = cluster([node("a", a), node("b", b)], []);
        let classes = class.map(|class| ("gpu".to_owned(), Arc::clone(class)));
        let classes = classes.into_iter().collect();
        picture.devices = Arc::new(Devices { classes, ..devices(&[]) });
        picture
    };
    let plain = || [json!({}), json!({})];
    let plugin = || [json!({"status": {"allocatable": {"example.com/gpu": "3"}}}), json!({})];
    let none = "0/2 nodes are available: 2 Insufficient example.com/gpu. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    let few = "0/2 nodes are available: 2 cannot allocate all claims.";
    for (name, count, nodes, class, want) in [
        ("example.com/gpu", "3", plain(), Some(&named), "b"),
        ("example.com/gpu", "4", plain(), Some(&named), few),
        ("deviceclass.resource.kubernetes.io/gpu", "3", plain(), Some(&named), "b"),
        ("example.com/gpu", "1", plain(), None, none.split_once(" preemption").map_or("", |n| n.0)),
        // A node that has the resource itself gives that.
        (
            "example.com/gpu",
            "4",
            plugin(),
            Some(&named),
            "0/2 nodes are available: 1 Insufficient example.com/gpu, 1 cannot allocate all claims.",
        ),
    ] {
        let found = outcome(&asking(name, count), &picture(nodes, class));
        assert_eq!(found, want, "{name} {count}");
    }
    // On one of the nodes it is claimed, on the other it is not.
    let pod = asking("example.com/gpu", "3");
    let picture = picture(plugin(), Some(&named));
    for (at, want) in [("a", None), ("b", Some("container-0-request-0=3"))] {
        let on = picture.node(at).expect("a node");
        let extended = scheduler::plugins::plan(&pod, &picture, on).extended;
        let claimed = extended.map(|extended| {
            let status = extended.claim.status.expect("a status");
            let results = status.allocation.and_then(|given| given.devices?.results).expect("some");
            assert_eq!(status.reserved_for.map(|users| users.len()), Some(1));
            format!("{}={}", results[0].request, results.len())
        });
        assert_eq!(claimed.as_deref(), want, "{at}");
    }
}

#[test]
fn a_claim_gives_devices_back_that_are_elsewhere_and_nobody_elses() {
    let at_a = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]});
    let user = |name: &str| json!({"resource": "pods", "name": name, "uid": format!("uid-{name}")});
    let claiming = json!({"resourceClaims": [{"name": "x", "resourceClaimName": "c"}]});
    let done = "deallocation of ResourceClaim completed";
    for (spec, users, want) in [
        (&claiming, json!([]), done),
        (&claiming, json!([user("p")]), done),
        (&claiming, json!([user("q")]), "still not schedulable"),
        (&json!({"nodeSelector": {"no": "where"}}), json!([]), "no new claims to deallocate"),
    ] {
        let status = json!({"allocation": {"nodeSelector": at_a}, "reservedFor": users});
        let mut picture = cluster([node("b", json!({}))], []);
        picture.devices = Arc::new(devices(&[claim("c", exactly(json!({})), status)]));
        let pod = pod("p", json!({"spec": spec}));
        let Err(Failure::Unfit(unfit)) = decide(&pod, &picture) else { panic!("it fits: {spec}") };
        let (told, freed) = give_back(&pod, &picture, &unfit);
        assert_eq!((told, freed.is_some()), (want, want == done), "{spec} {users}");
    }
}
