//! The cluster's DNS. The server runs in the node process and answers from a zone that it keeps while
//! the daemon is away; the [`Feeder`] runs in the daemon and tells it what Services there are. Names
//! outside the cluster are resolved as the host resolves them.
//!
//! Start at `zone`, which is pure: Services and EndpointSlices to records, questions to answers.

mod cache;
mod feeder;
mod forwarding;
mod host;
mod metrics;
mod recent;
mod server;
mod shares;
mod zone;

pub use feeder::Feeder;
pub use forwarding::Forwarding;
pub use server::{Handle, Sockets, serve};
pub use zone::{Data, Zone};

/// Where the server tells what it has done, in Prometheus' format: CoreDNS' port for it.
pub const METRICS_PORT: u16 = 9153;
