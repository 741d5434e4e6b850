//! A node's network in one unprivileged process: pods on a bridge, the way out through ordinary
//! sockets of the host, services as nf_tables maps.
//!
//! Start at [`Node`], which is the data plane and needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN` in its
//! user namespace only; [`Control`] speaks with it from another process. This crate knows nothing
//! of Kubernetes, runs no programs, and changes nothing in the host's network.
//!
//! | file | what |
//! |---|---|
//! | `node`, `network` | the data plane: tasks; kernel state on the node thread |
//! | `gateway/` | egress: TCP, UDP, ping; connections held until the outside answers |
//! | `attention` | how long a thread of the gateway waits before it sleeps |
//! | `control/` | the socket between the node process and its clients |
//! | `publish`, `clients` | the way in: ports of the host, and who comes in by them |
//! | `ruleset`, `services`, `policy` | nf_tables rules, and what changes in them |
//! | `conntrack` | flows to forget |
//! | `nft/`, `link`, `netlink` | encoders |

mod attention;
mod cidr;
mod clients;
mod conntrack;
mod control;
mod error;
mod family;
mod forward;
mod gateway;
mod ipam;
mod link;
mod netlink;
mod network;
mod nft;
mod node;
mod policy;
mod publish;
mod relay;
mod ruleset;
mod services;
mod sys;
mod thread;

pub use cidr::{Cidr, CidrError};
pub use control::Control;
pub use error::Error;
pub use forward::Forward;
pub use network::{
    Adopted, AttachRequest, Attachment, Bandwidth, lead_to_loopback_services, raise_loopback,
};
pub use node::{Node, NodeConfig, Ranges6};
pub use policy::{Member, PolicyRule, PolicyTable, PortRange};
pub use publish::{Publication, Refused};
pub use ruleset::{LOOPBACK_SERVICES, LOOPBACK_SERVICES_PREFIX};
pub use services::{Backend, Frontend, Protocol, ServiceChange, ServiceTable};
