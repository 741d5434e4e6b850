//! Kubernetes' object machinery without I/O: the built-in types as a table, and the algorithms that
//! walk it. It knows no store, no HTTP and no kind's own rules. Start at `schema`.

pub mod apply;
pub mod cel;
pub mod decode;
pub mod field;
pub mod fields;
pub mod json_path;
pub mod labels;
pub mod meta;
pub mod names;
pub mod patch;
pub mod pattern;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod schema;
pub mod status;
pub mod structural;
pub mod time;
pub mod trace;

pub use status::Status;
