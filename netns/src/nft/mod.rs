//! nf_tables over netlink: atomic batches of tables, chains, rules, sets and maps.
//!
//! Encodes what this crate needs and no more. Formats: the kernel's
//! `include/uapi/linux/netfilter/nf_tables.h`; meanings: `nft(8)`. Every number is big-endian.

mod batch;
mod elements;
pub(crate) mod expr;
mod set;

pub(crate) use batch::{Batch, Chain, Hook, Kind, dump_elements};
pub(crate) use expr::Rule;
pub(crate) use set::{Data, Element, SetFlags, SetSpec};
