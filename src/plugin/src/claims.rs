//! The messages of drivers of claimed devices (dynamic resource allocation).
//!
//! Source: `k8s.io/kubelet/pkg/apis/dra/v1/api.proto`, whose `v1beta1` has the same messages. Field numbers are theirs.

use std::collections::HashMap;

use prost::Message;

/// `Claim`
#[derive(Clone, PartialEq, Message)]
pub struct Claim {
    /// Its namespace.
    #[prost(string, tag = "1")]
    pub namespace: String,
    /// Its uid.
    #[prost(string, tag = "2")]
    pub uid: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub name: String,
}

/// `NodePrepareResourcesRequest` and `NodeUnprepareResourcesRequest`
#[derive(Clone, PartialEq, Message)]
pub struct Claims {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub claims: Vec<Claim>,
}

/// `NodePrepareResourcesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Prepared {
    /// By uid.
    #[prost(map = "string, message", tag = "1")]
    pub claims: HashMap<String, PreparedClaim>,
}

/// `NodePrepareResourceResponse`
#[derive(Clone, PartialEq, Message)]
pub struct PreparedClaim {
    /// What containers get.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<PreparedDevice>,
    /// Why there is nothing.
    #[prost(string, tag = "2")]
    pub error: String,
}

/// `Device`
#[derive(Clone, PartialEq, Message)]
pub struct PreparedDevice {
    /// The claim's requests that it is for; none for all.
    #[prost(string, repeated, tag = "1")]
    pub request_names: Vec<String>,
    /// Its pool.
    #[prost(string, tag = "2")]
    pub pool_name: String,
    /// Its name.
    #[prost(string, tag = "3")]
    pub device_name: String,
    /// By the names of the Container Device Interface.
    #[prost(string, repeated, tag = "4")]
    pub cdi_device_ids: Vec<String>,
}

/// `NodeUnprepareResourcesResponse`
#[derive(Clone, PartialEq, Message)]
pub struct Unprepared {
    /// By uid.
    #[prost(map = "string, message", tag = "1")]
    pub claims: HashMap<String, UnpreparedClaim>,
}

/// `NodeUnprepareResourceResponse`
#[derive(Clone, PartialEq, Message)]
pub struct UnpreparedClaim {
    /// Why it is not given back.
    #[prost(string, tag = "1")]
    pub error: String,
}
