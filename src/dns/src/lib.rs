//! The cluster's DNS. The server runs in the node process and answers from a zone that it keeps while
//! the daemon is away; the [`Feeder`] runs in the daemon and tells it what Services there are. Names
//! outside the cluster are resolved as the host resolves them.
//!
//! Three modules are pure: `names` makes Services and EndpointSlices into records, `zone` holds them in
//! the server, `answer` makes questions into answers. What changes is told by difference.

mod answer;
mod cache;
mod feeder;
mod forwarding;
mod host;
mod metrics;
mod names;
mod recent;
mod server;
mod shares;
mod update;
mod zone;

pub use feeder::Feeder;
pub use forwarding::Forwarding;
pub use server::{Handle, Sockets, serve};

/// Where the server tells what it has done, in Prometheus' format: CoreDNS' port for it.
pub const METRICS_PORT: u16 = 9153;
