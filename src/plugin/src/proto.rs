//! The messages of CSI v1 and of plugin registration, as far as they are spoken here.
//!
//! Source: the Container Storage Interface specification, `csi.proto`;
//! `k8s.io/kubelet/pkg/apis/pluginregistration/v1/api.proto`. Field numbers are theirs.

use std::collections::HashMap;

use prost::Message;

/// `pluginregistration.InfoRequest`, and every other message without fields.
#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// `pluginregistration.PluginInfo`
#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DevicePlugin`, …
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// The driver's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its socket.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    /// Versions of CSI it speaks.
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`
#[derive(Clone, PartialEq, Message)]
pub struct RegistrationStatus {
    /// Whether the kubelet will use it.
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    /// Why not.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `NodeGetInfoResponse`
#[derive(Clone, PartialEq, Message)]
pub struct NodeInfo {
    /// The node, as the driver names it.
    #[prost(string, tag = "1")]
    pub node_id: String,
    /// Most volumes of the driver on the node; zero for no limit.
    #[prost(int64, tag = "2")]
    pub max_volumes_per_node: i64,
    /// Where the node is.
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

/// `Topology`
#[derive(Clone, PartialEq, Message)]
pub struct Topology {
    /// Keys and values, which become labels of the node.
    #[prost(map = "string, string", tag = "1")]
    pub segments: HashMap<String, String>,
}

/// `NodeGetCapabilitiesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct NodeCapabilities {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<NodeCapability>,
}

/// `NodeServiceCapability`
#[derive(Clone, PartialEq, Message)]
pub struct NodeCapability {
    /// The only kind there is.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<NodeRpc>,
}

/// `NodeServiceCapability.RPC`
#[derive(Clone, PartialEq, Message)]
pub struct NodeRpc {
    /// 1: volumes are staged; 3: they are expanded on the node; 6: the driver sets a volume's group itself.
    #[prost(int32, tag = "1")]
    pub r#type: i32,
}

/// `STAGE_UNSTAGE_VOLUME`
pub const STAGE: i32 = 1;
/// `EXPAND_VOLUME`
pub const EXPAND: i32 = 3;
/// `VOLUME_MOUNT_GROUP`
pub const MOUNT_GROUP: i32 = 6;

/// `VolumeCapability`
#[derive(Clone, PartialEq, Message)]
pub struct VolumeCapability {
    /// A device.
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    /// A file system; one of the two is there.
    #[prost(message, optional, tag = "2")]
    pub mount: Option<MountVolume>,
    /// From how many places it is used.
    #[prost(message, optional, tag = "3")]
    pub access_mode: Option<AccessMode>,
}

/// `VolumeCapability.MountVolume`
#[derive(Clone, PartialEq, Message)]
pub struct MountVolume {
    /// Type of the file system; empty for the driver's choice.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Mount options.
    #[prost(string, repeated, tag = "2")]
    pub mount_flags: Vec<String>,
    /// The group files belong to, for drivers that set it.
    #[prost(string, tag = "3")]
    pub volume_mount_group: String,
}

/// `VolumeCapability.AccessMode`
#[derive(Clone, PartialEq, Message)]
pub struct AccessMode {
    /// 1 to 7, see the specification.
    #[prost(int32, tag = "1")]
    pub mode: i32,
}

/// `NodeStageVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Stage {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// What attaching it told.
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: HashMap<String, String>,
    /// Where it is staged.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// How it is used.
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
    /// Secrets.
    #[prost(map = "string, string", tag = "5")]
    pub secrets: HashMap<String, String>,
    /// The volume's attributes.
    #[prost(map = "string, string", tag = "6")]
    pub volume_context: HashMap<String, String>,
}

/// `NodeUnstageVolumeRequest` and `NodeUnpublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Undo {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where it was staged or published.
    #[prost(string, tag = "2")]
    pub path: String,
}

/// `NodePublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Publish {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// What attaching it told.
    #[prost(map = "string, string", tag = "2")]
    pub publish_context: HashMap<String, String>,
    /// Where it is staged, if it is.
    #[prost(string, tag = "3")]
    pub staging_target_path: String,
    /// Where the pod finds it.
    #[prost(string, tag = "4")]
    pub target_path: String,
    /// How it is used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Only for reading.
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    /// Secrets.
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    /// The volume's attributes, and what the driver wants to know of the pod.
    #[prost(map = "string, string", tag = "8")]
    pub volume_context: HashMap<String, String>,
}

/// `NodeExpandVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Expand {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Where the pod has it.
    #[prost(string, tag = "2")]
    pub volume_path: String,
    /// How large it is to be.
    #[prost(message, optional, tag = "3")]
    pub capacity_range: Option<CapacityRange>,
    /// Where it is staged, if it is.
    #[prost(string, tag = "4")]
    pub staging_target_path: String,
    /// How it is used.
    #[prost(message, optional, tag = "5")]
    pub volume_capability: Option<VolumeCapability>,
    /// Secrets.
    #[prost(map = "string, string", tag = "6")]
    pub secrets: HashMap<String, String>,
}

/// `CapacityRange`
#[derive(Clone, PartialEq, Message)]
pub struct CapacityRange {
    /// At least so much.
    #[prost(int64, tag = "1")]
    pub required_bytes: i64,
    /// At most so much; 0 for anything.
    #[prost(int64, tag = "2")]
    pub limit_bytes: i64,
}

/// `GetPluginCapabilitiesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PluginCapabilities {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<PluginCapability>,
}

/// `PluginCapability`
#[derive(Clone, PartialEq, Message)]
pub struct PluginCapability {
    /// 1: it has a controller; 2: its volumes are not to be had everywhere.
    #[prost(message, optional, tag = "1")]
    pub service: Option<Kind>,
    /// 1: volumes grow in use; 2: only when nobody uses them.
    #[prost(message, optional, tag = "2")]
    pub volume_expansion: Option<Kind>,
}

/// `PluginCapability.Service`, `PluginCapability.VolumeExpansion`, `ControllerServiceCapability.RPC`
#[derive(Clone, PartialEq, Message)]
pub struct Kind {
    /// Which, see the specification.
    #[prost(int32, tag = "1")]
    pub r#type: i32,
}

/// `CONTROLLER_SERVICE` of a plugin.
pub const CONTROLLER_SERVICE: i32 = 1;
/// `VOLUME_ACCESSIBILITY_CONSTRAINTS` of a plugin.
pub const ACCESSIBILITY_CONSTRAINTS: i32 = 2;

/// `ControllerGetCapabilitiesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerCapabilities {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub capabilities: Vec<ControllerCapability>,
}

/// `ControllerServiceCapability`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerCapability {
    /// The only kind there is.
    #[prost(message, optional, tag = "1")]
    pub rpc: Option<Kind>,
}

/// `CREATE_DELETE_VOLUME` of a controller.
pub const CREATE_DELETE: i32 = 1;
/// `PUBLISH_UNPUBLISH_VOLUME` of a controller.
pub const PUBLISH_UNPUBLISH: i32 = 2;
/// `GET_CAPACITY` of a controller.
pub const GET_CAPACITY: i32 = 4;
/// `CLONE_VOLUME` of a controller.
pub const CLONE: i32 = 7;
/// `PUBLISH_READONLY` of a controller.
pub const PUBLISH_READONLY: i32 = 8;
/// `EXPAND_VOLUME` of a controller.
pub const CONTROLLER_EXPAND: i32 = 9;
/// `SINGLE_NODE_MULTI_WRITER` of a controller.
pub const SINGLE_NODE_MULTI_WRITER: i32 = 13;

/// `CreateVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct CreateVolume {
    /// What the volume is called; asked for twice, it is made once.
    #[prost(string, tag = "1")]
    pub name: String,
    /// How large it is to be.
    #[prost(message, optional, tag = "2")]
    pub capacity_range: Option<CapacityRange>,
    /// How it will be used.
    #[prost(message, repeated, tag = "3")]
    pub volume_capabilities: Vec<VolumeCapability>,
    /// The class' parameters.
    #[prost(map = "string, string", tag = "4")]
    pub parameters: HashMap<String, String>,
    /// Secrets.
    #[prost(map = "string, string", tag = "5")]
    pub secrets: HashMap<String, String>,
    /// What it begins with.
    #[prost(message, optional, tag = "6")]
    pub volume_content_source: Option<ContentSource>,
    /// From where it has to be reached.
    #[prost(message, optional, tag = "7")]
    pub accessibility_requirements: Option<TopologyRequirement>,
}

/// `VolumeContentSource`
#[derive(Clone, PartialEq, Message)]
pub struct ContentSource {
    /// Another volume.
    #[prost(message, optional, tag = "2")]
    pub volume: Option<VolumeId>,
}

/// `VolumeContentSource.VolumeSource`
#[derive(Clone, PartialEq, Message)]
pub struct VolumeId {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
}

/// `TopologyRequirement`
#[derive(Clone, PartialEq, Message)]
pub struct TopologyRequirement {
    /// From one of these at least.
    #[prost(message, repeated, tag = "1")]
    pub requisite: Vec<Topology>,
    /// The best first.
    #[prost(message, repeated, tag = "2")]
    pub preferred: Vec<Topology>,
}

/// `CreateVolumeResponse`
#[derive(Clone, PartialEq, Message)]
pub struct CreatedVolume {
    /// The volume.
    #[prost(message, optional, tag = "1")]
    pub volume: Option<MadeVolume>,
}

/// `Volume`
#[derive(Clone, PartialEq, Message)]
pub struct MadeVolume {
    /// Its size; 0 when that is not known.
    #[prost(int64, tag = "1")]
    pub capacity_bytes: i64,
    /// What the driver calls it.
    #[prost(string, tag = "2")]
    pub volume_id: String,
    /// What the driver wants to be told on the node.
    #[prost(map = "string, string", tag = "3")]
    pub volume_context: HashMap<String, String>,
    /// What it begins with.
    #[prost(message, optional, tag = "4")]
    pub content_source: Option<ContentSource>,
    /// From where it can be reached.
    #[prost(message, repeated, tag = "5")]
    pub accessible_topology: Vec<Topology>,
}

/// `DeleteVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct DeleteVolume {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// Secrets.
    #[prost(map = "string, string", tag = "2")]
    pub secrets: HashMap<String, String>,
}

/// `ControllerPublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerPublish {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// The node, as the driver names it.
    #[prost(string, tag = "2")]
    pub node_id: String,
    /// How it will be used.
    #[prost(message, optional, tag = "3")]
    pub volume_capability: Option<VolumeCapability>,
    /// Only for reading.
    #[prost(bool, tag = "4")]
    pub readonly: bool,
    /// Secrets.
    #[prost(map = "string, string", tag = "5")]
    pub secrets: HashMap<String, String>,
    /// The volume's attributes.
    #[prost(map = "string, string", tag = "6")]
    pub volume_context: HashMap<String, String>,
}

/// `ControllerPublishVolumeResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerPublished {
    /// What the node is to be told.
    #[prost(map = "string, string", tag = "1")]
    pub publish_context: HashMap<String, String>,
}

/// `ControllerUnpublishVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerUnpublish {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// The node, as the driver names it.
    #[prost(string, tag = "2")]
    pub node_id: String,
    /// Secrets.
    #[prost(map = "string, string", tag = "3")]
    pub secrets: HashMap<String, String>,
}

/// `ControllerExpandVolumeRequest`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerExpand {
    /// The volume.
    #[prost(string, tag = "1")]
    pub volume_id: String,
    /// How large it is to be.
    #[prost(message, optional, tag = "2")]
    pub capacity_range: Option<CapacityRange>,
    /// Secrets.
    #[prost(map = "string, string", tag = "3")]
    pub secrets: HashMap<String, String>,
    /// How it is used.
    #[prost(message, optional, tag = "4")]
    pub volume_capability: Option<VolumeCapability>,
}

/// `ControllerExpandVolumeResponse`
#[derive(Clone, PartialEq, Message)]
pub struct ControllerExpanded {
    /// Its size now.
    #[prost(int64, tag = "1")]
    pub capacity_bytes: i64,
    /// Whether the node has to do its part.
    #[prost(bool, tag = "2")]
    pub node_expansion_required: bool,
}

/// `GetCapacityRequest`
#[derive(Clone, PartialEq, Message)]
pub struct GetCapacity {
    /// How volumes would be used.
    #[prost(message, repeated, tag = "1")]
    pub volume_capabilities: Vec<VolumeCapability>,
    /// The class' parameters.
    #[prost(map = "string, string", tag = "2")]
    pub parameters: HashMap<String, String>,
    /// Where they would be.
    #[prost(message, optional, tag = "3")]
    pub accessible_topology: Option<Topology>,
}

/// `GetCapacityResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Capacity {
    /// What is left.
    #[prost(int64, tag = "1")]
    pub available_capacity: i64,
    /// The largest volume, where the driver says.
    #[prost(message, optional, tag = "2")]
    pub maximum_volume_size: Option<Bytes>,
}

/// `google.protobuf.Int64Value`
#[derive(Clone, PartialEq, Message)]
pub struct Bytes {
    /// The number.
    #[prost(int64, tag = "1")]
    pub value: i64,
}
