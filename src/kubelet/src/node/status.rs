//! The node's status: capacity, addresses, conditions, images.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_cri::v1 as cri;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeStatus, NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{Settings, machine};
use crate::context::Context;
use crate::csi;
use crate::eviction;
use crate::eviction::threshold::{Signal, Thresholds};
use crate::status::whole_seconds;
use crate::{quantity, restart_all};

/// Images told at most, the largest first, with at most five names each (upstream's defaults).
const MAX_IMAGE_NAMES: usize = 5;
/// What is looked up for each status.
#[derive(Default)]
pub struct Seen {
    /// Why the runtime is not ready, or nothing.
    pub not_ready: Vec<String>,
    /// The runtime's version, `name://version`.
    pub runtime: String,
    /// The runtime's handlers.
    pub handlers: Vec<cri::RuntimeHandler>,
    /// Whether the runtime knows policies of supplementary groups.
    pub groups_policy: bool,
    /// Images on the node.
    pub images: Vec<cri::Image>,
    /// What else the runtime tells of itself, such as whether limits can be enforced.
    pub others: Vec<cri::RuntimeCondition>,
    /// The runtime was asked at all.
    pub asked: bool,
}

/// Asks the runtime.
pub async fn look(context: &Context) -> Seen {
    let mut seen = Seen { asked: true, ..Seen::default() };
    match context.cri.version(cri::VersionRequest { version: "v1".into() }).await {
        Ok(version) => {
            seen.runtime = format!("{}://{}", version.runtime_name, version.runtime_version);
        }
        Err(error) => seen.not_ready.push(format!("container runtime is down: {error}")),
    }
    match context.cri.status(cri::StatusRequest { verbose: false }).await {
        Ok(answer) => {
            seen.handlers = answer.runtime_handlers;
            seen.groups_policy = answer.features.is_some_and(|f| f.supplemental_groups_policy);
            let conditions = answer.status.unwrap_or_default().conditions;
            let own = ["RuntimeReady", "NetworkReady"];
            seen.others =
                conditions.iter().filter(|c| !own.contains(&c.r#type.as_str())).cloned().collect();
            for (name, title) in [
                ("RuntimeReady", "container runtime is not ready"),
                ("NetworkReady", "container runtime network not ready"),
            ] {
                match conditions.iter().find(|c| c.r#type == name) {
                    Some(c) if c.status => {}
                    Some(c) => seen.not_ready.push(format!(
                        "{title}: {name}=false reason:{} message:{}",
                        c.reason, c.message
                    )),
                    None => {
                        seen.not_ready.push(format!("{title}: the runtime does not tell {name}"));
                    }
                }
            }
        }
        Err(error) => seen
            .not_ready
            .push(format!("container runtime status check may not have completed yet: {error}")),
    }
    if let Ok(listed) = context.cri.list_images(cri::ListImagesRequest { filter: None }).await {
        seen.images = listed.images;
    }
    seen
}

/// Makes the status.
pub fn make(
    context: &Context,
    settings: &Settings,
    old: Option<&NodeStatus>,
    seen: &Seen,
) -> NodeStatus {
    let mut capacity = machine::capacity(&context.machine, &context.root_dir, settings.max_pods);
    // What others say that the node has besides can be used as well.
    let told = old.and_then(|o| o.capacity.as_ref()).into_iter().flatten();
    capacity.extend(
        told.filter(|(name, _)| is_extended(name))
            .map(|(name, amount)| (name.clone(), amount.clone())),
    );
    let devices = context.devices.amounts();
    capacity.extend(devices.iter().map(|(name, (all, _))| (name.clone(), all.clone())));
    let mut allocatable = allocatable(&capacity, &context.thresholds.hard, &context.reserved);
    allocatable.extend(devices.into_iter().map(|(name, (_, usable))| (name, usable)));
    let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", context.node_ip.to_string()),
            address("Hostname", context.node_name.clone()),
        ]),
        allocatable: Some(allocatable),
        capacity: Some(capacity),
        conditions: Some(conditions(context, old, seen)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(settings.port) }),
        }),
        images: Some(images(&seen.images, context.limits.status_images)),
        node_info: Some(NodeSystemInfo {
            architecture: machine::architecture().into(),
            boot_id: machine::line("/proc/sys/kernel/random/boot_id"),
            container_runtime_version: seen.runtime.clone(),
            kernel_version: machine::line("/proc/sys/kernel/osrelease"),
            kube_proxy_version: String::new(),
            kubelet_version: settings.kubelet_version.clone(),
            machine_id: machine::line("/etc/machine-id"),
            operating_system: "linux".into(),
            os_image: machine::os_image(),
            swap: Some(context.machine.swap_bytes)
                .filter(|bytes| *bytes > 0)
                .map(|bytes| NodeSwapStatus { capacity: i64::try_from(bytes).ok() }),
            system_uuid: machine::line("/etc/machine-id"),
        }),
        runtime_handlers: (!seen.handlers.is_empty()).then(|| {
            seen.handlers
                .iter()
                .map(|h| NodeRuntimeHandler {
                    name: Some(h.name.clone()),
                    features: h.features.as_ref().map(|f| NodeRuntimeHandlerFeatures {
                        recursive_read_only_mounts: Some(f.recursive_read_only_mounts),
                        user_namespaces: Some(f.user_namespaces),
                    }),
                })
                .collect()
        }),
        features: Some(NodeFeatures { supplemental_groups_policy: Some(seen.groups_policy) }),
        declared_features: Some(
            [crate::resize::FEATURE, restart_all::FEATURE].map(str::to_owned).to_vec(),
        ),
        volumes_in_use: Some(csi::held(&context.root_dir)),
        ..NodeStatus::default()
    }
}

/// Whether this is the name of a resource that only others know of (the page about extended resources of the
/// Kubernetes documentation).
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// What pods may use: all but what is reserved and the eviction threshold of memory and disk.
fn allocatable(
    capacity: &BTreeMap<String, Quantity>,
    thresholds: &Thresholds,
    reserved: &[(String, Quantity)],
) -> BTreeMap<String, Quantity> {
    let mut out = capacity.clone();
    if let Some(memory) = out.get_mut("memory")
        && let Some(bytes) = crate::quantity::value(memory)
    {
        let kept = eviction::kept(thresholds, Signal::Memory, bytes as u64);
        // Huge pages are taken from it already.
        let huge = capacity.iter().filter(|(name, _)| name.starts_with("hugepages-"));
        let huge: i64 = huge.filter_map(|(_, amount)| quantity::value(amount)).sum();
        let left = (bytes as u64).saturating_sub(kept).saturating_sub(huge as u64);
        memory.0 = format!("{}Ki", left / 1024);
    }
    if let Some(disk) = out.get_mut("ephemeral-storage")
        && let Some(bytes) = crate::quantity::value(disk)
    {
        let kept = eviction::kept(thresholds, Signal::NodeDisk, bytes as u64);
        disk.0 = (bytes as u64).saturating_sub(kept).to_string();
    }
    for (name, amount) in reserved {
        let (Some(left), Some(kept)) = (out.get_mut(name), quantity::milli(amount)) else {
            continue;
        };
        let Some(all) = quantity::milli(left) else { continue };
        let rest = (all - kept).max(0);
        left.0 = if name == "cpu" { format!("{rest}m") } else { (rest / 1_000).to_string() };
    }
    out
}

fn images(images: &[cri::Image], most: Option<usize>) -> Vec<ContainerImage> {
    let mut sorted: Vec<&cri::Image> = images.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let told = sorted.into_iter().take(most.unwrap_or(usize::MAX)).map(|image| {
        let names: Vec<String> = image
            .repo_digests
            .iter()
            .chain(&image.repo_tags)
            .take(MAX_IMAGE_NAMES)
            .cloned()
            .collect();
        ContainerImage { names: Some(names), size_bytes: Some(image.size as i64) }
    });
    told.collect()
}

fn conditions(context: &Context, old: Option<&NodeStatus>, seen: &Seen) -> Vec<NodeCondition> {
    let now = context.clock.now();
    let pressure = |name: &str, yes: (&str, &str), no: (&str, &str)| {
        let under = context.pressure.is(name);
        let (reason, message) = if under { yes } else { no };
        (name.to_owned(), under, reason.to_owned(), message.to_owned())
    };
    let ending = context.ending.is_asked().then(|| "node is shutting down".to_owned());
    let not_ready: Vec<String> = seen.not_ready.iter().cloned().chain(ending).collect();
    let ready = if !seen.asked {
        (
            "Ready".into(),
            false,
            "KubeletNotReady".into(),
            "container runtime status check may not have completed yet".into(),
        )
    } else if not_ready.is_empty() {
        ("Ready".into(), true, "KubeletReady".into(), "kubelet is posting ready status".into())
    } else {
        ("Ready".into(), false, "KubeletNotReady".into(), not_ready.join(", "))
    };
    let all = [
        pressure(
            "MemoryPressure",
            ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
            ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ),
        pressure(
            "DiskPressure",
            ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ),
        pressure(
            "PIDPressure",
            ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ),
    ];
    let others = seen
        .others
        .iter()
        .map(|c| (c.r#type.clone(), c.status, c.reason.clone(), c.message.clone()));
    all.into_iter()
        .chain(others)
        .chain([ready])
        .map(|(name, status, reason, message)| condition(old, now, name, status, reason, message))
        .collect()
}

fn condition(
    old: Option<&NodeStatus>,
    now: Timestamp,
    name: String,
    status: bool,
    reason: String,
    message: String,
) -> NodeCondition {
    let status = if status { "True" } else { "False" }.to_owned();
    let before = old.and_then(|o| o.conditions.as_ref()).into_iter().flatten();
    let same = before.into_iter().find(|c| c.type_ == name && c.status == status);
    NodeCondition {
        last_heartbeat_time: Some(whole_seconds(now)),
        last_transition_time: same
            .and_then(|c| c.last_transition_time.clone())
            .or_else(|| Some(whole_seconds(now))),
        message: Some(message),
        reason: Some(reason),
        status,
        type_: name,
    }
}

/// Whether the status says Ready.
pub fn is_ready(status: &NodeStatus) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// What changed from one status to another, in the words of events; of pressure also what it is `at_first`.
pub fn changes(old: &NodeStatus, new: &NodeStatus, at_first: bool) -> Vec<&'static str> {
    let find = |name: &str| {
        let found = old.conditions.iter().flatten().find(|c| c.type_ == name);
        found.map(|c| c.status == "True")
    };
    let told = new.conditions.iter().flatten().filter_map(|condition| {
        let now = condition.status == "True";
        let (yes, no) = match condition.type_.as_str() {
            "MemoryPressure" => ("NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            "DiskPressure" => ("NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            "PIDPressure" => ("NodeHasInsufficientPID", "NodeHasSufficientPID"),
            "Ready" => ("NodeReady", "NodeNotReady"),
            _ => return None,
        };
        let before = find(&condition.type_);
        let same = match condition.type_.as_str() {
            "Ready" => before.unwrap_or(false) == now,
            _ => before == Some(now) && !at_first,
        };
        (!same).then_some(if now { yes } else { no })
    });
    told.collect()
}

/// Whether the two differ in more than the time they were made.
pub fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let bare = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
            condition.last_transition_time = None;
        }
        // Conditions of others stay in the API's object.
        let own = new.conditions.as_deref().unwrap_or_default();
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|c| own.iter().any(|o| o.type_ == c.type_));
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        (
            status.conditions,
            status.capacity,
            status.allocatable,
            status.addresses,
            status.images,
            status.node_info,
            status.volumes_in_use.filter(|held| !held.is_empty()),
        )
    };
    bare(old) != bare(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_extended_resources() {
        let cases = [
            ("example.com/fakecpu", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("node.kubernetes.io/thing", false),
            ("requests.example.com/thing", false),
        ];
        for (name, extended) in cases {
            assert_eq!(is_extended(name), extended, "{name}");
        }
    }

    #[test]
    fn what_is_reserved_is_not_allocatable() {
        let quantities = |list: &[(&str, &str)]| {
            let list = list.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned())));
            list.collect::<Vec<_>>()
        };
        let capacity = [("cpu", "2"), ("memory", "1Gi"), ("pods", "110")];
        let capacity = BTreeMap::from_iter(quantities(&capacity));
        let reserved = [("cpu", "200m"), ("cpu", "300m"), ("memory", "24Mi"), ("nothing", "1")];
        let reserved = quantities(&reserved);
        let thresholds = crate::eviction::threshold::defaults();
        let left = allocatable(&capacity, &thresholds, &reserved);
        let expected = [("cpu", "1500m"), ("memory", "943718400"), ("pods", "110")];
        let expected = BTreeMap::from_iter(quantities(&expected));
        assert_eq!(left, expected);
    }
}
