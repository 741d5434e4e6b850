//! Extended resources that a class of devices stands for: where a node has no such resource of its own,
//! devices of the class are claimed for the pod.
//!
//! Source: `pkg/scheduler/framework/plugins/dynamicresources/extendeddynamicresources.go`, KEP 5004.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest};
use k8s_openapi::api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::devices::Devices;
use crate::node::NodeInfo;
use crate::pod::PodInfo;

/// Marks claims that the scheduler makes for extended resources.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// By this and its name every class can be asked for.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// What the claim is called before it is made. No claim can be called that.
pub const IN_MEMORY: &str = "<extended-resources>";

/// The claim of a pod for its extended resources on one node.
#[derive(Clone, Debug, Default)]
pub struct Extended {
    /// As it is to be made.
    pub claim: ResourceClaim,
    /// Which request is for which container's resource.
    pub mappings: Vec<ContainerExtendedResourceRequest>,
}

/// Whether a class of devices may stand for the resource.
pub fn may_be_backed(resource: &str) -> bool {
    let native = !resource.contains('/') || resource.contains("kubernetes.io/");
    resource.starts_with(IMPLICIT) || !native
}

/// The class that stands for the resource: of several the newest.
fn class<'a>(resource: &str, devices: &'a Devices) -> Option<&'a Arc<DeviceClass>> {
    if let Some(name) = resource.strip_prefix(IMPLICIT) {
        return devices.classes.get(name);
    }
    let named = devices
        .classes
        .values()
        .filter(|class| class.spec.extended_resource_name.as_deref() == Some(resource));
    // Of classes of one second the first by name.
    named.max_by_key(|class| {
        let meta = &class.metadata;
        (meta.creation_timestamp.clone(), std::cmp::Reverse(meta.name.clone()))
    })
}

/// The extended resources that the pod asks for and that classes stand for.
pub fn backed(pod: &PodInfo, devices: &Devices) -> BTreeSet<String> {
    let asked = pod.requests.scalars.iter().filter(|(_, asked)| **asked > 0);
    let asked = asked.map(|(name, _)| name).filter(|name| may_be_backed(name));
    asked.filter(|name| class(name, devices).is_some()).cloned().collect()
}

/// Those of them that the node does not have of its own.
pub fn claimed_on(backed: &BTreeSet<String>, node: &NodeInfo) -> BTreeSet<String> {
    backed.iter().filter(|name| node.allocatable.amount(name) == 0).cloned().collect()
}

/// A claim that an earlier attempt has left for the pod.
pub fn stale<'a>(pod: &PodInfo, devices: &'a Devices) -> Option<&'a Arc<ResourceClaim>> {
    devices.claims.values().find(|claim| {
        let marks = claim.metadata.annotations.as_ref();
        let owners = claim.metadata.owner_references.iter().flatten();
        claim.metadata.name.as_deref().is_none_or(|name| !name.starts_with(IN_MEMORY))
            && marks.and_then(|marks| marks.get(ANNOTATION)).is_some_and(|mark| mark == "true")
            && owners.into_iter().any(|o| o.controller == Some(true) && o.uid == pod.uid)
    })
}

/// What one container asks of one resource beyond what `reusable` requests give it, and which requests
/// are its.
fn asked(
    (index, container): (usize, &Container),
    (resource, class): (&str, &str),
    reusable: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let mut mappings = Vec::new();
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let Some(requests) = requests else { return (None, mappings) };
    let amount = |text: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
        text.0.parse::<apimachinery::quantity::Quantity>().map_or(0, |quantity| quantity.value())
    };
    let wanted = requests.get(resource).map_or(0, amount);
    if wanted == 0 {
        return (None, mappings);
    }
    let mut map = |request_name: &str| {
        mappings.push(ContainerExtendedResourceRequest {
            container_name: container.name.clone(),
            request_name: request_name.to_owned(),
            resource_name: resource.to_owned(),
        });
    };
    let mut given = 0;
    for request in reusable.iter().flatten() {
        given += count(request);
        map(&request.name);
        if given >= wanted {
            return (None, mappings);
        }
    }
    // Its place among all that the container asks for, by name.
    let place = requests.keys().position(|name| name == resource).unwrap_or(0);
    let name = format!("container-{index}-request-{place}");
    map(&name);
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".into()),
        count: Some(wanted - given),
        ..ExactDeviceRequest::default()
    };
    let request = DeviceRequest { name, exactly: Some(exactly), ..DeviceRequest::default() };
    (Some(request), mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|exactly| exactly.count).unwrap_or(0)
}

/// The requests for one resource. Init containers that end use what containers after them have, and
/// share what they need beyond that, because one runs after the other.
fn requests(
    containers: &[(&Container, bool)],
    of: (&str, &str),
) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let (mut lasting, mut mappings) = (Vec::new(), Vec::new());
    for (index, (container, ends)) in containers.iter().enumerate() {
        if *ends {
            lasting.push(None);
            continue;
        }
        let (request, mapped) = asked((index, container), of, &[]);
        lasting.push(request);
        mappings.extend(mapped);
    }
    let (mut largest, mut names): (Option<DeviceRequest>, BTreeSet<String>) = Default::default();
    let mut passing = Vec::new();
    for (index, (container, ends)) in containers.iter().enumerate() {
        if !ends {
            continue;
        }
        let (request, mapped) = asked((index, container), of, &lasting[index..]);
        passing.extend(mapped);
        let Some(request) = request else { continue };
        names.insert(request.name.clone());
        if largest.as_ref().is_none_or(|known| count(known) < count(&request)) {
            largest = Some(request);
        }
    }
    if let Some(largest) = &largest {
        for mapping in passing.iter_mut().filter(|mapping| names.contains(&mapping.request_name)) {
            mapping.request_name.clone_from(&largest.name);
        }
    }
    mappings.extend(passing);
    (largest.into_iter().chain(lasting.into_iter().flatten()).collect(), mappings)
}

/// The pod's claim for `resources`, which its node does not have of its own.
pub fn claim(pod: &PodInfo, resources: &BTreeSet<String>, devices: &Devices) -> Extended {
    let spec = pod.spec();
    let init = spec.init_containers.iter().flatten();
    let init = init.map(|c| (c, c.restart_policy.as_deref() != Some("Always")));
    let containers: Vec<(&Container, bool)> =
        init.chain(spec.containers.iter().map(|container| (container, false))).collect();
    let (mut all, mut mappings) = (Vec::new(), Vec::new());
    for resource in resources {
        let Some(name) = class(resource, devices).and_then(|class| class.metadata.name.as_deref())
        else {
            continue;
        };
        let (wanted, mapped) = requests(&containers, (resource, name));
        all.extend(wanted);
        mappings.extend(mapped);
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None,
    };
    let metadata = ObjectMeta {
        name: Some(format!("{IN_MEMORY}-{}", pod.uid)),
        namespace: Some(pod.namespace.clone()),
        generate_name: Some(format!("{}-extended-resources-", pod.name)),
        annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    let wanted = DeviceClaim { requests: Some(all), ..DeviceClaim::default() };
    let claim = ResourceClaim {
        metadata,
        spec: ResourceClaimSpec { devices: Some(wanted) },
        ..ResourceClaim::default()
    };
    Extended { claim, mappings }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, json};

    use super::*;

    fn devices() -> Devices {
        let class = |name: &str, resource: Option<&str>, at: &str| -> (String, Arc<DeviceClass>) {
            let class = json!({"metadata": {"name": name, "creationTimestamp": at},
                "spec": {"extendedResourceName": resource}});
            (name.to_owned(), Arc::new(serde_json::from_value(class).expect("a class")))
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let classes = [
            class("old", Some("example.com/gpu"), early),
            class("new-a", Some("example.com/gpu"), late),
            class("new-b", Some("example.com/gpu"), late),
            class("plain", None, early),
        ];
        Devices { classes: classes.into(), ..Devices::default() }
    }

    fn pod(init: Value, containers: Value) -> PodInfo {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"initContainers": init, "containers": containers}}))
            .expect("a pod");
        PodInfo::new(Arc::new(pod))
    }

    fn container(name: &str, gpus: i64, always: bool) -> Value {
        json!({"name": name, "restartPolicy": always.then_some("Always"),
            "resources": {"requests": {"cpu": "1", "example.com/gpu": gpus.to_string()}}})
    }

    #[test]
    fn a_class_stands_for_a_resource() {
        for (resource, want) in [
            ("example.com/gpu", Some("new-a")),
            ("example.com/other", None),
            ("deviceclass.resource.kubernetes.io/plain", Some("plain")),
            ("deviceclass.resource.kubernetes.io/none", None),
        ] {
            let devices = devices();
            let found = class(resource, &devices).and_then(|class| class.metadata.name.clone());
            assert_eq!(found.as_deref(), want, "{resource}");
        }
        for (resource, want) in [
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("example.com/gpu", true),
            ("kubernetes.io/batch", false),
            ("deviceclass.resource.kubernetes.io/plain", true),
        ] {
            assert_eq!(may_be_backed(resource), want, "{resource}");
        }
    }

    #[test]
    fn containers_share_devices_where_one_ends_before_the_other() {
        let gpu = BTreeSet::from(["example.com/gpu".to_owned()]);
        let none = json!([]);
        // Init containers, containers, the requests made, and who uses which.
        for (init, containers, want, used) in [
            (none.clone(), json!([container("a", 2, false)]), "0-1=2", "a:0-1"),
            (
                none.clone(),
                json!([container("a", 1, false), container("b", 1, false)]),
                "0-1=1 1-1=1",
                "a:0-1 b:1-1",
            ),
            (
                none.clone(),
                json!([container("a", 0, false), container("b", 1, false)]),
                "1-1=1",
                "b:1-1",
            ),
            // It makes do with what comes after it.
            (
                json!([container("i", 1, false)]),
                json!([container("a", 2, false)]),
                "1-1=2",
                "a:1-1 i:1-1",
            ),
            // It needs one more than those after it.
            (
                json!([container("i", 3, false)]),
                json!([container("a", 1, false), container("b", 1, false)]),
                "0-1=1 1-1=1 2-1=1",
                "a:1-1 b:2-1 i:1-1 i:2-1 i:0-1",
            ),
            // Two that follow each other share.
            (
                json!([container("i", 1, false), container("j", 2, false)]),
                json!([container("a", 0, false)]),
                "1-1=2",
                "i:1-1 j:1-1",
            ),
            // A sidecar before it keeps its own.
            (
                json!([container("s", 1, true), container("i", 1, false)]),
                json!([container("a", 0, false)]),
                "0-1=1 1-1=1",
                "s:0-1 i:1-1",
            ),
        ] {
            let told = format!("{init} {containers}");
            let extended = claim(&pod(init, containers), &gpu, &devices());
            let short = |name: &str| name.replace("container-", "").replace("-request", "");
            let wanted = extended.claim.spec.devices.and_then(|all| all.requests).expect("some");
            let got = wanted.iter().map(|r| format!("{}={}", short(&r.name), count(r)));
            assert_eq!(got.collect::<Vec<_>>().join(" "), want, "{told}");
            let got = extended.mappings.iter();
            let got = got.map(|m| format!("{}:{}", m.container_name, short(&m.request_name)));
            assert_eq!(got.collect::<Vec<_>>().join(" "), used, "{told}");
        }
    }
}
