//! The unix socket through which other processes of the node ask the node process for things.
//!
//! One connection carries one request and its answer, each a length, JSON, and at most one
//! descriptor (`SCM_RIGHTS`, `unix(7)`). So a client needs no state, and finds a restarted node
//! process again without noticing.

mod client;
mod frame;
mod server;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    Adopted, AttachRequest, Attachment, Forward, PolicyTable, Publication, Refused, ServiceChange,
    ServiceTable,
};

pub use client::Control;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// With the pod's network namespace.
    Attach(AttachRequest),
    Detach {
        id: String,
    },
    Adopt {
        id: String,
        pod: Adopted,
    },
    Attachments,
    /// Answered with an unconnected socket.
    TcpSocket {
        peer: SocketAddr,
    },
    /// Answered with the namespace.
    NodeNamespace,
    ApplyServices(ServiceTable),
    ChangeServices(ServiceChange),
    ApplyPolicies(PolicyTable),
    Publish(Vec<Publication>),
    SetForwards(Vec<Forward>),
    PodCidr,
    Gateways,
    /// Answered at once; then the connection stays open as long as the node process lives.
    Watch,
}

#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Done,
    Attachment(Attachment),
    Attachments(Vec<Attachment>),
    PodCidr(crate::Cidr),
    Gateways(Vec<IpAddr>),
    Published(Vec<Option<Refused>>),
    Error { message: String },
}
