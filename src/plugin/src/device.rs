//! The messages of device plugins, and of the API that tells who has which device.
//!
//! Source: `k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto`, `k8s.io/kubelet/pkg/apis/podresources/v1/api.proto`.
//! Field numbers are theirs.

use std::collections::HashMap;

use prost::Message;

/// The version plugins register with.
pub const VERSION: &str = "v1beta1";
/// The health of a device that can be used.
pub const HEALTHY: &str = "Healthy";

/// `RegisterRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Register {
    /// Of the API.
    #[prost(string, tag = "1")]
    pub version: String,
    /// The plugin's socket, beside the kubelet's.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// What pods ask for.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// What the plugin wants to be asked.
    #[prost(message, optional, tag = "4")]
    pub options: Option<Options>,
}

/// `DevicePluginOptions`
#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// It is told before each start of a container.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// It says which devices go well together.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// `ListAndWatchResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Listed {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// `Device`
#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// What the plugin calls it.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `Healthy` or `Unhealthy`.
    #[prost(string, tag = "2")]
    pub health: String,
}

/// `PreferredAllocationRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Prefer {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<PreferContainer>,
}

/// `ContainerPreferredAllocationRequest`
#[derive(Clone, PartialEq, Message)]
pub struct PreferContainer {
    /// What can be had.
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    /// What it has already.
    #[prost(string, repeated, tag = "2")]
    pub must_include: Vec<String>,
    /// How many it needs.
    #[prost(int32, tag = "3")]
    pub size: i32,
}

/// `PreferredAllocationResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Preferred {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<Ids>,
}

/// `ContainerPreferredAllocationResponse`, `ContainerAllocateRequest`, `PreStartContainerRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Ids {
    /// Devices.
    #[prost(string, repeated, tag = "1")]
    pub devices: Vec<String>,
}

/// `AllocateRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Allocate {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<Ids>,
}

/// `AllocateResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Allocated {
    /// One for each container.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<Edits>,
}

/// `ContainerAllocateResponse`: what a container needs to use its devices.
#[derive(Clone, PartialEq, Message)]
pub struct Edits {
    /// Environment.
    #[prost(map = "string, string", tag = "1")]
    pub envs: HashMap<String, String>,
    /// Mounts.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    /// Device nodes.
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<Node>,
    /// For the runtime.
    #[prost(map = "string, string", tag = "4")]
    pub annotations: HashMap<String, String>,
    /// Devices by the names of the Container Device Interface.
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// `Mount`
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// Where.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// What.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Only for reading.
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

/// `DeviceSpec`
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    /// Where.
    #[prost(string, tag = "1")]
    pub container_path: String,
    /// What.
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Of `rwm`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// `CDIDevice`
#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    /// `vendor/class=name`
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `ListPodResourcesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PodResourcesList {
    /// All pods.
    #[prost(message, repeated, tag = "1")]
    pub pod_resources: Vec<PodResources>,
}

/// `GetPodResourcesRequest`
#[derive(Clone, PartialEq, Message)]
pub struct WhichPod {
    /// Its name.
    #[prost(string, tag = "1")]
    pub pod_name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
}

/// `GetPodResourcesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct OnePod {
    /// The pod.
    #[prost(message, optional, tag = "1")]
    pub pod_resources: Option<PodResources>,
}

/// `PodResources`
#[derive(Clone, PartialEq, Message)]
pub struct PodResources {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its namespace.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Its containers.
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

/// `ContainerResources`
#[derive(Clone, PartialEq, Message)]
pub struct ContainerResources {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its devices.
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
}

/// `ContainerDevices`
#[derive(Clone, PartialEq, Message)]
pub struct ContainerDevices {
    /// The resource.
    #[prost(string, tag = "1")]
    pub resource_name: String,
    /// Devices.
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
}

/// `AllocatableResourcesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct AllocatableResources {
    /// Devices that pods can have.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<ContainerDevices>,
}
