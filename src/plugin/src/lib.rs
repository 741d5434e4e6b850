//! How plugins are spoken with: calls and services over unix sockets, the messages of the Container Storage Interface,
//! of device plugins and of plugin registration, and which CSI drivers have registered. It decides nothing and knows
//! no API server; start at [`Plugin`].

pub mod call;
pub mod claims;
pub mod device;
pub mod drivers;
pub mod proto;
pub mod serve;

pub use call::{Code, Plugin, Socket};
pub use drivers::{Driver, Drivers};
